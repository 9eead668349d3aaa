"""Tiles at another resolution than their raster's: resampled for the model, its answer resampled back.

::

    window of S x S raster px --average or interpolate--> tile of T x T px --> graph
    window of S x S raster px <--interpolate or average-- probabilities   <--

Each axis is resampled linearly: averaged over the area of the new pixel where pixels grow, interpolated between centres
where they shrink. These are GDAL's ``average`` and ``bilinear``. Probabilities are resampled before the most probable
class is taken, so that borders between classes do not follow the model's coarser pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Output, Outputs

PIECE_PX = 1 << 14
CHUNK_ROWS = 32
"""So many rows of a tile are resampled at a time: what they need stays in the processor's cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Taps:
    """How an axis of N pixels becomes one of M: new pixel i is the sum over k of weight[i, k] * old[index[i, k]].

    Attributes:
        index: [M, K], 0..N-1, ascending in both directions.
        weight: float32 [M, K]; each row sums to 1.
    """

    index: NDArray[np.intp]
    weight: NDArray[np.float32]

    def part(self, first: int, stop: int) -> Taps:
        """Those of the new pixels ``first`` to ``stop``."""
        return Taps(index=self.index[first:stop], weight=self.weight[first:stop])

    @property
    def span(self) -> tuple[int, int]:
        """First and end old pixel that is needed."""
        return int(self.index.min()), int(self.index.max()) + 1

    def moved(self, by: int) -> Taps:
        """For an array whose first pixel is the old axis' pixel ``by``."""
        return Taps(index=self.index - by, weight=self.weight)

    def along(self, values: NDArray[Any], axis: int) -> NDArray[np.float32]:
        """``values`` resampled along its last axis (-1) or the one before (-2)."""
        total: NDArray[np.float32] | None = None
        for index, weight in zip(self.index.T, self.weight.T, strict=True):
            part = np.take(values, index, axis=axis, mode="clip") * (weight if axis == -1 else weight[:, None])
            total = part if total is None else np.add(total, part, out=total)
        assert total is not None
        return total


@lru_cache(maxsize=32)
def taps(length: int, resampled: int) -> Taps:
    """From an axis of ``length`` pixels to one of ``resampled`` pixels over the same ground."""
    step, place = length / resampled, np.arange(resampled, dtype=np.float64)[:, None]
    if step > 1:
        first, last = place * step, (place + 1) * step
        index = np.floor(first + 1e-9).astype(np.intp) + np.arange(int(np.ceil(step)) + 1)
        weight = (np.minimum(index + 1, last) - np.maximum(index, first)).clip(0) / step
    else:
        at = ((place + 0.5) * step - 0.5).clip(0, length - 1)
        index = np.floor(at).astype(np.intp) + np.arange(2)
        weight = 1 - np.abs(at - index)
    used = (weight > 1e-9).any(axis=0)
    weight = np.where(weight > 1e-9, weight, 0)[:, used]
    return Taps(
        index=index[:, used].clip(0, length - 1),
        weight=(weight / weight.sum(axis=1, keepdims=True)).astype(np.float32),
    )


def nearest(places: NDArray[np.intp] | range, length: int, resampled: int) -> NDArray[np.intp]:
    """Which of ``resampled`` pixels holds the centre of each of ``places`` among ``length`` pixels."""
    return ((2 * np.asarray(places) + 1) * resampled) // (2 * length)


def chunks(length: int) -> Iterator[tuple[int, int]]:
    """First and end row of each chunk."""
    for first in range(0, length, CHUNK_ROWS):
        yield first, min(first + CHUNK_ROWS, length)


def mean_of_valid(
    values: NDArray[Any], valid: NDArray[np.bool_], rows: Taps, cols: Taps
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Resample ``values`` [B, h, w] by what is valid of them; a new pixel is valid where any of it is.

    Returns:
        Values [B, H, W], of no meaning where they are not valid, and their validity [H, W].
    """
    if valid.all():
        whole = cols.along(rows.along(values, -2), -1)
        return whole, np.ones(whole.shape[1:], np.bool_)
    total = cols.along(rows.along(np.where(valid, values, 0), -2), -1)
    share = cols.along(rows.along(valid, -2), -1)
    np.divide(total, share, where=share > 1e-6, out=total)
    return total, share > 1e-6


def most_probable(probabilities: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Class and its probability x 255, uint8 [h, w] each, of probabilities [C, h, w].

    Five times as fast as argmax over so short a first axis, and in pieces that stay in the processor's cache.
    """
    _, height, width = probabilities.shape
    classes, confidence = np.zeros((height, width), np.uint8), np.empty((height, width), np.uint8)
    rows = max(1, PIECE_PX // width)
    for piece in (slice(top, top + rows) for top in range(0, height, rows)):
        first, *others = probabilities[:, piece]
        best, kind = first.copy(), classes[piece]
        for index, each in enumerate(others, start=1):
            above = (each > best).view(np.uint8)
            np.maximum(kind, np.multiply(above, np.uint8(index), out=above), out=kind)
            np.maximum(best, each, out=best)
        np.rint(np.multiply(best, 255, out=best), out=best)
        confidence[piece] = np.clip(best, 0, 255, out=best)
    return classes, confidence


class Layer(Protocol):
    """What windows are taken of, as of an array."""

    def __getitem__(self, at: Any, /) -> NDArray[Any]:
        """The window."""


class RasterAnswer:
    """A graph's answer for a tile of T x T pixels as if it were one of S x S; only the windows asked for are computed.

    Args:
        outputs: with its probabilities, float32 [C, T, T].
        tile_px: S.
    """

    def __init__(self, outputs: Outputs, tile_px: int) -> None:
        self._probabilities = outputs[Output.PROBABILITIES]
        self._taps = taps(self._probabilities.shape[-1], tile_px)
        self._kept: tuple[Any, tuple[NDArray[np.uint8], NDArray[np.uint8]]] | None = None

    def __getitem__(self, output: Output) -> Layer:
        return _Layer(self, output)

    def window(self, output: Output, rows: slice, cols: slice) -> NDArray[Any]:
        """One output in a window."""
        if output is Output.PROBABILITIES:
            return self._resampled(*rows.indices(len(self._taps.index))[:2], cols)
        if self._kept is None or self._kept[0] != (rows, cols):  # class and confidence are asked for in turn
            first, stop, _ = rows.indices(len(self._taps.index))
            parts = [
                most_probable(self._resampled(first + top, first + bottom, cols))
                for top, bottom in chunks(stop - first)
            ]
            classes, confidence = (np.concatenate(each) for each in zip(*parts, strict=True))
            self._kept = (rows, cols), (classes, confidence)
        return self._kept[1][0 if output is Output.CLASSES else 1]

    def _resampled(self, first: int, stop: int, cols: slice) -> NDArray[np.float32]:
        across = self._taps.part(cols.start, cols.stop)
        return across.along(self._taps.part(first, stop).along(self._probabilities, -2), -1)


@dataclass(frozen=True)
class _Layer:
    answer: RasterAnswer
    output: Output

    def __getitem__(self, at: Any, /) -> NDArray[Any]:
        return self.answer.window(self.output, *at[-2:])
