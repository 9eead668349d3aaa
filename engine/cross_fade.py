"""Where tiles meet: class probabilities of the tiles that share pixels, weighted and summed.

Most tiles agree on most pixels, and a weighted mean of distributions that have one class in front has it in front too.
So the classes are compared first, and probabilities are summed only where they differ. Elsewhere the confidence is the
weighted mean of the tiles' own, which are whole numbers: it may be one of 255 off the mean of the probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Output
from engine.contract.bundle import NODATA_CLASS
from engine.contract.sensors import Provenance
from engine.grid import Tile, TileGrid, Window
from engine.map_block import Answers, MapBlock, composed
from engine.probabilities import as_bytes
from engine.resampling import RasterAnswer, most_probable

WEIGHT_TOLERANCE = 1e-3
"""Blend weights sum to 1 but for rounding; a sum further below tells of a tile without data."""
NOTHING = int(Provenance.NONE)
FEW = 8
"""Where at most one pixel in so many differs, those are picked; else all are summed."""


@dataclass(frozen=True, kw_only=True)
class _Part:
    """What one tile says of a band, [..., h, w] over the band's whole height."""

    left: int
    """Its first column in the band."""
    down: NDArray[np.float32]
    """Weights of the rows, [h, 1]."""
    across: NDArray[np.float32]
    """Weights of the columns, [w]."""
    classes: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    seen: NDArray[np.bool_] | None
    """Where it saw anything; None is everywhere."""

    def shared(self, left: int, right: int) -> tuple[slice, slice] | None:
        """Columns of the block from ``left`` to ``right``, and of this part, that are the same pixels."""
        first, last = max(left, self.left), min(right, self.left + len(self.across))
        return (slice(first - left, last - left), slice(first - self.left, last - self.left)) if first < last else None

    def weights(self, cols: slice) -> NDArray[np.float32]:
        """[h, w] of these columns; 0 where the tile saw nothing."""
        weights = self.down * self.across[cols]
        return weights if self.seen is None else np.where(self.seen[:, cols], weights, np.float32(0))


_Parts: TypeAlias = "Sequence[tuple[_Part, slice, slice]]"
"""Parts that reach into a block, each with the shared columns of the block and of the part."""


class FadeBand:
    """Pixels that several tiles share.

    Each tile covers the band's whole height, and the tiles of one row come from left to right.

    Args:
        window: of the raster.
        classes: how many there are.
        probabilities: hand those out, too.
    """

    def __init__(self, window: Window, classes: int, *, probabilities: bool = False) -> None:
        self.window, self._classes, self._probabilities = window, classes, probabilities
        self._provenance = np.zeros((window.height, window.width), np.uint8)
        self._parts: list[_Part] = []
        self._holes = False
        self._finished = 0
        """So many columns have been handed out."""

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
        *,
        lasts: bool = False,
    ) -> None:
        """Add what a tile knows of these pixels.

        Args:
            grid, tile, position: the tile and its place.
            provenance, outputs: see :meth:`engine.stitcher.Stitcher.add`.
            lasts: keep copies, because the band outlives the tile by more than a tile or two.
        """
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
        seen = None if source.min() != NOTHING else source != NOTHING
        self._holes |= seen is not None
        if outputs:
            classes, confidence, probabilities = _composed(source, inside, outputs)
            self._parts.append(
                _Part(
                    left=cols.start,
                    down=grid.rows.weights(row)[top - grid.rows.reach(row)[0] :][: shared.height, None],
                    across=grid.cols.weights(col)[left - grid.cols.reach(col)[0] :][: shared.width],
                    classes=classes.copy() if lasts else classes,
                    confidence=confidence.copy() if lasts else confidence,
                    probabilities=probabilities.copy() if lasts else probabilities,
                    seen=seen,
                )
            )
        known = self._provenance[:, cols]
        np.copyto(known, source, where=known == NOTHING)
        owned = (
            slice(max(0, grid.rows.boundary(row) - top), max(0, grid.rows.boundary(row + 1) - top)),
            slice(max(0, grid.cols.boundary(col) - left), max(0, grid.cols.boundary(col + 1) - left)),
        )
        np.copyto(known[owned], source[owned], where=True if seen is None else seen[owned])

    def finish(self, stop: int | None = None) -> MapBlock | None:
        """The pixels left of a column to which every tile has added; None where there are no new ones.

        Args:
            stop: column of the raster; None is the band's end.
        """
        left, right = self._finished, self.window.width if stop is None else stop - self.window.col
        if right <= left:
            return None
        self._finished = right
        parts = [(part, *shared) for part in self._parts if (shared := part.shared(left, right)) is not None]
        self._parts = [part for part in self._parts if part.left + len(part.across) > right]
        provenance = self._provenance[:, left:right]
        scale = self._scale(parts, provenance) if self._holes else None
        classes, sure, differs = _compared(parts, provenance.shape)
        if scale is not None:
            sure *= scale
        confidence = np.rint(sure, out=sure).clip(0, 255).astype(np.uint8)
        at, total = np.nonzero(differs), None
        if self._probabilities or FEW * len(at[0]) > differs.size:
            total = _summed(parts, self._classes, provenance.shape)
            if scale is not None:
                total *= scale
        if len(at[0]):
            if total is not None:
                picked = total[:, at[0], at[1]]
            else:
                picked = _summed_at(parts, self._classes, *at)
                if scale is not None:
                    picked *= scale[at]
            classes[at], confidence[at] = (each[0] for each in most_probable(picked[:, None]))
        unmapped = provenance == NOTHING
        if self._holes:
            classes[unmapped], confidence[unmapped] = NODATA_CLASS, 0
        return MapBlock(
            window=replace(self.window, col=self.window.col + left, width=right - left),
            classes=classes,
            confidence=confidence,
            provenance=provenance,
            probabilities=as_bytes(total, unmapped) if self._probabilities and total is not None else None,
        )

    def _scale(self, parts: _Parts, provenance: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """What makes the probabilities of a pixel sum to 1 again, [h, w], where a tile had none to give.

        None where no tile lacks: rounding would change the maps.
        """
        weight = np.zeros(provenance.shape, np.float32)
        for part, mine, theirs in parts:
            weight[:, mine] += part.weights(theirs)
        partial = (provenance != NOTHING) & (weight < 1 - WEIGHT_TOLERANCE) & (weight > 0)
        return np.divide(1, weight, where=partial, out=np.ones_like(weight)) if partial.any() else None


def _composed(
    source: NDArray[np.uint8], inside: tuple[slice, slice], outputs: Answers
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Classes and confidence [h, w] and probabilities [C, h, w] of a window of a tile."""
    if any(isinstance(out, RasterAnswer) for out in outputs.values()):  # classes would be resampled again
        (probabilities,) = composed(source, inside, outputs, (Output.PROBABILITIES,))
        return *most_probable(probabilities), probabilities
    classes, confidence, probabilities = composed(
        source, inside, outputs, (Output.CLASSES, Output.CONFIDENCE, Output.PROBABILITIES)
    )
    return classes, confidence, probabilities


def _compared(
    parts: _Parts, shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_]]:
    """The class that the tiles give, their weighted confidence, and where they do not agree on the class."""
    classes, sure, differs = np.full(shape, NODATA_CLASS, np.uint8), np.zeros(shape, np.float32), np.zeros(shape, bool)
    for part, mine, theirs in parts:
        known, told = classes[:, mine], part.classes[:, theirs]
        new = known == NODATA_CLASS
        other = (told != known) & ~new
        if part.seen is not None:
            new &= part.seen[:, theirs]
            other &= part.seen[:, theirs]
        differs[:, mine] |= other
        np.copyto(known, told, where=new)
        sure[:, mine] += part.weights(theirs) * part.confidence[:, theirs]
    return classes, sure, differs


def _summed(parts: _Parts, classes: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The weighted sum of all probabilities, [C, h, w]."""
    total = np.zeros((classes, *shape), np.float32)
    for part, mine, theirs in parts:
        weights = part.weights(theirs)
        for summed, values in zip(total[:, :, mine], part.probabilities[:, :, theirs], strict=True):
            summed += values * weights  # class by class: each stays in the cache
    return total


def _summed_at(parts: _Parts, classes: int, rows: NDArray[np.intp], cols: NDArray[np.intp]) -> NDArray[np.float32]:
    """The same at some pixels alone, [C, N]."""
    total = np.zeros((classes, len(rows)), np.float32)
    for part, mine, theirs in parts:
        inside = (cols >= mine.start) & (cols < mine.stop)
        at = rows[inside], cols[inside] - mine.start + theirs.start
        weights = part.down[at[0], 0] * part.across[at[1]]
        if part.seen is not None:
            weights = np.where(part.seen[at], weights, np.float32(0))
        total[:, inside] += part.probabilities[:, *at] * weights
    return total
