"""What a network sees where a sensor has no data; the same in training, in export and in flight."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def fill_holes(values: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[Any]:
    """``values`` [B, h, w] with invalid pixels replaced; may change its argument.

    A pixel that is invalid in ``valid`` [h, w] takes the nearest valid one of its row, and a row without any takes
    the nearest row that has one (the earlier of two at one distance). Where nothing is valid the result is 0.
    """
    if valid.all():
        return values
    full, some = np.all(valid, axis=1), np.any(valid, axis=1)
    if not some.any():
        return np.zeros_like(values)
    broken = np.flatnonzero(some & ~full)
    values[:, broken] = np.take_along_axis(values[:, broken], _nearest(valid[broken])[None], axis=2)
    return values if some.all() else values[:, _nearest(some[None])[0]]


def _nearest(valid: NDArray[np.bool_]) -> NDArray[np.intp]:
    """For each place in a row the index of the nearest valid one, the earlier of two; every row must have one."""
    length = valid.shape[1]
    index = np.arange(length)
    before = np.maximum.accumulate(np.where(valid, index, -length), axis=1)
    after = np.minimum.accumulate(np.where(valid, index, 2 * length)[:, ::-1], axis=1)[:, ::-1]
    return np.where(index - before <= after - index, before, after)
