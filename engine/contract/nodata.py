"""What a network sees where a sensor has no data; the same in training, in export and in flight."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def fill_nodata(values: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    """``values`` [B, h, w] with invalid pixels replaced; may change its argument.

    A row with any pixel that is valid in ``valid`` [h, w] is mirrored at the ends of its valid runs, each invalid
    pixel in the run nearest to it (the earlier of two), back and forth as often as it takes; then rows without any
    are filled in the same way from the others. Where nothing is valid the result is 0.

    Mirrored, for networks look at the mean and spread of a whole tile: at the border of a map the last pixels of each
    row, repeated, would count more than all that was seen.
    """
    if valid.all():
        return values
    full, some = np.all(valid, axis=1), np.any(valid, axis=1)
    if not some.any():
        return np.zeros_like(values)
    broken = np.flatnonzero(some & ~full)
    values[:, broken] = np.take_along_axis(values[:, broken], _mirrored(valid[broken])[None], axis=2)
    return values if some.all() else values[:, _mirrored(some[None])[0]]


def _mirrored(valid: NDArray[np.bool_]) -> NDArray[np.int32]:
    """For each place in a row the index of the valid place that it takes its value from; every row must have one."""
    length = valid.shape[1]
    index = np.arange(length, dtype=np.int32)
    before, after = _latest(np.where(valid, index, -length)), _soonest(np.where(valid, index, 2 * length))
    nearest = np.where(index - before <= after - index, before, after)
    first, last = _latest(np.where(valid, -1, index)) + 1, _soonest(np.where(valid, length, index)) - 1
    first, last = np.take_along_axis(first, nearest, axis=1), np.take_along_axis(last, nearest, axis=1)
    there_and_back = 2 * (last - first + 1)
    step = (index - first) % there_and_back
    source: NDArray[np.int32] = first + np.minimum(step, there_and_back - 1 - step)
    return source


def _latest(index: NDArray[np.int32]) -> NDArray[np.int32]:
    """The largest so far, row by row."""
    latest: NDArray[np.int32] = np.maximum.accumulate(index, axis=1)
    return latest


def _soonest(index: NDArray[np.int32]) -> NDArray[np.int32]:
    """The smallest from here on, row by row."""
    return -_latest(-index[:, ::-1])[:, ::-1]
