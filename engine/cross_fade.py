"""Where tiles meet: class probabilities of the tiles that share pixels, weighted and summed."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Output
from engine.contract.bundle import NODATA_CLASS
from engine.contract.sensors import Provenance
from engine.grid import Tile, TileGrid, Window
from engine.map_block import Answers, MapBlock, compose
from engine.probabilities import as_bytes
from engine.resampling import most_probable

_Weights: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]
"""Of a tile's rows, [h, 1], and of its columns, [w]."""

WEIGHT_TOLERANCE = 1e-3
"""Blend weights sum to 1 but for rounding; a sum further below tells of a tile without data."""


class FadeBand:
    """Pixels that several tiles share: their probabilities, weighted and summed.

    Each tile covers the band's whole height, and the tiles of one row come from left to right.
    """

    def __init__(self, window: Window, classes: int, *, probabilities: bool = False) -> None:
        self.window, self._probabilities = window, probabilities
        shape = (window.height, window.width)
        self._sum = np.empty((classes, *shape), np.float32)
        self._filled = 0
        """So many columns of the sum hold something."""
        self._provenance = np.zeros(shape, np.uint8)
        self._given: list[tuple[slice, _Weights, NDArray[np.bool_] | None]] = []
        """By tile its columns, its weights, and where it saw anything; None is everywhere."""
        self._holes = False

    @staticmethod
    def bytes_per_px(classes: int) -> int:
        """Memory of one pixel."""
        return 4 * classes + 4 + 1

    def add(
        self,
        grid: TileGrid,
        tile: Tile,
        position: tuple[int, int],
        provenance: NDArray[np.uint8],
        outputs: Answers,
    ) -> None:
        """Add what a tile knows of these pixels."""
        (row, col), window, target = position, self.window, tile.target
        top, bottom = window.row, window.row + window.height
        left = max(window.col, target.col)
        right = min(window.col + window.width, target.col + target.width)
        if min(bottom, target.row + target.height) <= max(top, target.row) or right <= left:
            return
        assert target.row <= top
        assert bottom <= target.row + target.height
        shared = Window(row=top, col=left, height=window.height, width=right - left)
        cols, inside = shared.within(window)[1], shared.within(tile.reads)
        source = provenance[inside]
        seen = None if source.min() != Provenance.NONE else source != Provenance.NONE
        self._holes |= seen is not None
        if outputs:
            weights = (
                grid.rows.weights(row)[top - grid.rows.reach(row)[0] :][: shared.height, None],
                grid.cols.weights(col)[left - grid.cols.reach(col)[0] :][: shared.width],
            )
            probabilities = compose(source, {s: o[Output.PROBABILITIES][:, *inside] for s, o in outputs.items()}, 0)
            self._sum_up(cols, probabilities, weights[0] * weights[1])
            self._given.append((cols, weights, seen))
        else:
            self._sum_up(cols, np.broadcast_to(np.float32(0), (len(self._sum), *source.shape)), None)
        known = self._provenance[:, cols]
        np.copyto(known, source, where=known == Provenance.NONE)
        owned = (
            slice(max(0, grid.rows.boundary(row) - top), max(0, grid.rows.boundary(row + 1) - top)),
            slice(max(0, grid.cols.boundary(col) - left), max(0, grid.cols.boundary(col + 1) - left)),
        )
        np.copyto(known[owned], source[owned], where=True if seen is None else seen[owned])

    def _sum_up(self, cols: slice, probabilities: NDArray[np.float32], weights: NDArray[np.float32] | None) -> None:
        """Add ``probabilities`` [C, h, w] times ``weights`` [h, w]; in columns that hold nothing yet, write them."""
        split = min(max(self._filled - cols.start, 0), cols.stop - cols.start)
        added, written = slice(0, split), slice(split, None)
        self._filled = max(self._filled, cols.stop)
        for total, values in zip(self._sum[:, :, cols], probabilities, strict=True):  # each stays in the cache
            if weights is None:
                total[:, written] = 0
                continue
            np.multiply(values[:, written], weights[:, written], out=total[:, written])
            if split:
                total[:, added] += values[:, added] * weights[:, added]

    def finish(self) -> MapBlock:
        """The pixels' classes, once every tile has added to them."""
        provenance = self._provenance
        if self._holes:
            weight = np.zeros(provenance.shape, np.float32)
            for cols, (down, across), seen in self._given:
                weight[:, cols] += down * across if seen is None else np.where(seen, down * across, 0)
            partial = (provenance != Provenance.NONE) & (weight < 1 - WEIGHT_TOLERANCE)
            if partial.any():  # never where all tiles agree: rounding would change the maps
                np.divide(self._sum, weight, where=partial, out=self._sum)
        classes, confidence = most_probable(self._sum)
        unmapped = provenance == Provenance.NONE
        if self._holes:
            classes[unmapped] = NODATA_CLASS
            confidence[unmapped] = 0
        return MapBlock(
            window=self.window,
            classes=classes,
            confidence=confidence,
            provenance=provenance,
            probabilities=as_bytes(self._sum, unmapped) if self._probabilities else None,
        )
