"""From tile results to map pixels: which scenario each pixel takes, and how tiles meet.

:class:`CropStitcher` writes what each tile owns; :class:`HannStitcher` cross-fades the class probabilities of
neighbours. Both hand out finished :class:`MapBlock` values in order, and know from which tile an interrupted run must
go on so that its bytes equal those of an uninterrupted one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Output, Outputs
from engine.contract.bundle import NODATA_CLASS, Manifest
from engine.contract.errors import UsageError
from engine.contract.sensors import Provenance, Scenario
from engine.grid import Strip, Tile, TileGrid, Window

Blend = Literal["none", "hann"]
_T = TypeVar("_T", np.uint8, np.float32)

ACCUMULATOR_BYTES = 64 * 2**20
"""Memory that cross-fading may hold; it sets the width of a strip."""
WEIGHT_TOLERANCE = 1e-3
"""Blend weights sum to 1 but for rounding; a sum further below tells of a tile without data."""


@dataclass(frozen=True, kw_only=True)
class MapBlock:
    """Finished pixels: ``classes``, ``confidence`` and ``provenance``, each uint8 [h, w]."""

    window: Window
    classes: NDArray[np.uint8]
    confidence: NDArray[np.uint8]
    provenance: NDArray[np.uint8]


class Stitcher(ABC):
    """Takes the tile results of one frame in order, gives map blocks in order."""

    grid: TileGrid
    wanted: tuple[Output, ...]
    """The graph outputs it needs of each tile."""
    tiles_done: int = 0
    """Tiles whose every pixel has been handed out; what the journal records."""

    @abstractmethod
    def add(self, tile: Tile, provenance: NDArray[np.uint8], outputs: Mapping[Scenario, Outputs]) -> Iterator[MapBlock]:
        """Take one tile.

        Args:
            tile: the next tile of the grid's order.
            provenance: uint8 [T, T] over ``tile.reads``: the scenario each pixel is to be mapped by.
            outputs: the answer of every scenario that occurs in ``tile.target``.
        """

    def __len__(self) -> int:
        return len(self.grid)

    def tiles(self, start: int = 0) -> Iterator[Tile]:
        """The tiles to read, from index ``start`` on."""
        return self.grid.tiles(start)

    @abstractmethod
    def resume_at(self, tiles_done: int) -> int:
        """Prepare to go on after ``tiles_done``; returns the index of the first tile to infer."""


class CropStitcher(Stitcher):
    """Each tile writes the pixels it owns; its halo is context only."""

    wanted = (Output.CLASSES, Output.CONFIDENCE)

    def __init__(self, *, height: int, width: int, tile_px: int, halo_px: int) -> None:
        self.grid = TileGrid(height=height, width=width, tile_px=tile_px, halo_px=halo_px)

    def add(self, tile: Tile, provenance: NDArray[np.uint8], outputs: Mapping[Scenario, Outputs]) -> Iterator[MapBlock]:
        """Compose the pixels that the tile owns."""
        core = tile.target.within(tile.reads)
        source = provenance[core]
        yield MapBlock(
            window=tile.target,
            classes=_compose(source, {s: out[Output.CLASSES][core] for s, out in outputs.items()}, NODATA_CLASS),
            confidence=_compose(source, {s: out[Output.CONFIDENCE][core] for s, out in outputs.items()}, 0),
            provenance=source,
        )
        self.tiles_done = tile.index + 1

    def resume_at(self, tiles_done: int) -> int:
        """Tiles are independent: go on with the next."""
        self.tiles_done = tiles_done
        return tiles_done


class HannStitcher(Stitcher):
    """Cross-fades class probabilities over ``2 * halo_px`` where tiles meet.

    A pixel's scenario is its own (which sensors are valid there), so tiles that cover it give the probabilities of the
    same graph, unless a sensor died between them: then two graphs are cross-faded, and the pixel's provenance is that
    of the tile that owns it. Where a tile has nothing to give, its neighbours' probabilities are scaled up to sum to 1.
    Memory is one tile row of one strip.

    Raises:
        UsageError: the halo is above a quarter of the tile, so that a third tile would reach into a cross-fade.
    """

    wanted = (Output.PROBABILITIES,)

    def __init__(self, *, height: int, width: int, tile_px: int, halo_px: int, classes: int) -> None:
        if 4 * halo_px > tile_px:
            raise UsageError(
                f"--blend hann takes a --halo of at most a quarter of the tile, {tile_px // 4} px; received {halo_px}"
            )
        stride = tile_px - 2 * halo_px
        strip_tiles = max(4, ACCUMULATOR_BYTES // (4 * classes * tile_px * stride))
        self.grid = TileGrid(height=height, width=width, tile_px=tile_px, halo_px=halo_px, strip_tiles=strip_tiles)
        self._classes = classes
        self._strip: Strip | None = None

    def add(self, tile: Tile, provenance: NDArray[np.uint8], outputs: Mapping[Scenario, Outputs]) -> Iterator[MapBlock]:
        """Accumulate; after the last tile of a tile row, hand out the rows that no later tile touches."""
        strip = self._enter(tile)
        row, col = strip.position(tile.index)
        target, inside = tile.target, tile.target.within(tile.reads)
        here = target.within(self._span)
        source = provenance[inside]
        if outputs:
            probabilities = _compose(source, {s: o[Output.PROBABILITIES][:, *inside] for s, o in outputs.items()}, 0)
            across = self.grid.cols.weights(col)[target.col - self.grid.cols.reach(col)[0] :][: target.width]
            down = self.grid.rows.weights(row)[:, None]
            self._sum[:, *here] += probabilities * down * across
            self._weight[here] += np.where(source != Provenance.NONE, down * across, 0)
        known = self._provenance[here]
        owned = np.zeros(source.shape, np.bool_)
        owned[self._owned(row, col, target)] = True
        np.copyto(known, source, where=(source != Provenance.NONE) & (owned | (known == Provenance.NONE)))
        if tile.index + 1 == strip.first_index + (row + 1) * strip.tiles_per_row:
            block = self._finish_row(row)
            if tile.index >= self.tiles_done:  # else a resumed run only rebuilds the sums below rows it already wrote
                yield block
                self.tiles_done = tile.index + 1

    def resume_at(self, tiles_done: int) -> int:
        """Go back one tile row within the strip: its lower cross-fade has to be summed again."""
        self.tiles_done = tiles_done
        strip = next((s for s in reversed(self.grid.strips) if s.first_index < tiles_done), None)
        if strip is None or tiles_done == strip.stop_index:
            return tiles_done
        return tiles_done - strip.tiles_per_row

    def _enter(self, tile: Tile) -> Strip:
        """The tile's strip, with buffers that start at its tile row."""
        current = self._strip
        if current is not None and tile.index < current.stop_index:
            return current
        strip = next(s for s in reversed(self.grid.strips) if s.first_index <= tile.index)
        left, right = strip.pixels
        row, _ = strip.position(tile.index)
        self._strip = strip
        self._span = Window(row=row * self.grid.rows.stride, col=left, height=self.grid.tile_px, width=right - left)
        self._sum = np.zeros((self._classes, self.grid.tile_px, right - left), np.float32)
        self._weight = np.zeros((self.grid.tile_px, right - left), np.float32)
        self._provenance = np.zeros((self.grid.tile_px, right - left), np.uint8)
        return strip

    def _owned(self, row: int, col: int, target: Window) -> tuple[slice, slice]:
        """The pixels of ``target`` that lie nearer to this tile's middle than to any other's."""
        rows, cols = self.grid.rows, self.grid.cols
        return (
            slice(max(0, rows.boundary(row) - target.row), max(0, rows.boundary(row + 1) - target.row)),
            slice(max(0, cols.boundary(col) - target.col), max(0, cols.boundary(col + 1) - target.col)),
        )

    def _finish_row(self, row: int) -> MapBlock:
        rows, span = self.grid.rows, self._span
        bottom = rows.length if row == rows.count - 1 else span.row + rows.stride
        ready = slice(0, bottom - span.row)
        mean, source = self._sum[:, ready], self._provenance[ready].copy()
        unmapped = source == Provenance.NONE
        partial = ~unmapped & (self._weight[ready] < 1 - WEIGHT_TOLERANCE)
        if partial.any():  # never where all tiles agree: rounding would change the maps
            mean = np.divide(mean, self._weight[ready], where=partial, out=mean.copy())
        classes = mean.argmax(axis=0).astype(np.uint8)
        classes[unmapped] = NODATA_CLASS
        confidence = np.rint(mean.max(axis=0) * 255).clip(0, 255).astype(np.uint8)
        confidence[unmapped] = 0
        block = MapBlock(
            window=Window(row=span.row, col=span.col, height=bottom - span.row, width=span.width),
            classes=classes,
            confidence=confidence,
            provenance=source,
        )
        for buffer in (self._sum, self._weight, self._provenance):
            kept = buffer[..., rows.stride :, :].copy()
            buffer[..., : kept.shape[-2], :] = kept
            buffer[..., kept.shape[-2] :, :] = 0
        self._span = Window(row=span.row + rows.stride, col=span.col, height=span.height, width=span.width)
        return block


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How every frame of a run is cut into tiles and put together again.

    Raises:
        UsageError: the halo leaves no core, or is too wide to blend.
    """

    tile_px: int
    halo_px: int
    blend: Blend = "none"
    classes: int
    """How many the model has."""

    def __post_init__(self) -> None:
        self.stitcher(self.tile_px, self.tile_px)  # its checks belong to construction

    @classmethod
    def of(cls, manifest: Manifest, *, halo_px: int | None, blend: Blend) -> Tiling:
        """That of a bundle; ``halo_px`` None takes the bundle's, or a quarter of the tile when blending."""
        usual_px = manifest.tile_px // 4 if blend == "hann" else manifest.halo_px
        return cls(
            tile_px=manifest.tile_px,
            halo_px=usual_px if halo_px is None else halo_px,
            blend=blend,
            classes=len(manifest.classes),
        )

    @property
    def wanted(self) -> tuple[Output, ...]:
        """The graph outputs that are needed of each tile."""
        return HannStitcher.wanted if self.blend == "hann" else CropStitcher.wanted

    def stitcher(self, height: int, width: int) -> Stitcher:
        """For a frame of that size."""
        if self.blend == "hann":
            return HannStitcher(
                height=height, width=width, tile_px=self.tile_px, halo_px=self.halo_px, classes=self.classes
            )
        return CropStitcher(height=height, width=width, tile_px=self.tile_px, halo_px=self.halo_px)


def _compose(source: NDArray[np.uint8], by_scenario: Mapping[Scenario, NDArray[_T]], fill: int | float) -> NDArray[_T]:
    """Take each pixel of [..., h, w] from the scenario that ``source`` [h, w] names; ``fill`` where it names none."""
    layers = [(source == scenario.provenance, values) for scenario, values in by_scenario.items()]
    whole = next((values for mine, values in layers if mine.all()), None)
    if whole is not None:
        return whole
    composed = np.full(layers[0][1].shape if layers else source.shape, fill, layers[0][1].dtype if layers else np.uint8)
    for mine, values in layers:
        np.copyto(composed, values, where=mine)
    return composed
