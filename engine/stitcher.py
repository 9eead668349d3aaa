"""From tile results to map pixels: which scenario each pixel takes, and how tiles meet.

:class:`CropStitcher` writes what each tile owns; :class:`HannStitcher` cross-fades the class probabilities of
neighbours. Both hand out finished :class:`MapBlock` values in order, and know from which tile an interrupted run must
go on so that its bytes equal those of an uninterrupted one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Output, Outputs
from engine.contract.bundle import Manifest
from engine.contract.errors import UsageError
from engine.contract.sensors import Scenario
from engine.cross_fade import FadeBand
from engine.grid import Strip, Tile, TileGrid, Window
from engine.map_block import Answers, MapBlock, cropped
from engine.resampling import RasterAnswer
from engine.resolution import Gsd, Resolution

Blend = Literal["none", "hann"]

ACCUMULATOR_BYTES = 64 * 2**20
"""Memory that cross-fading may hold; it sets the width of a strip."""


class Stitcher(ABC):
    """Takes the tile results of one frame in order, gives map blocks in order."""

    grid: TileGrid
    wanted: tuple[Output, ...]
    """The graph outputs it needs of each tile; of one that was resampled, probabilities alone."""
    tiles_done: int = 0
    """Tiles whose every pixel has been handed out; what the journal records."""

    def add(self, tile: Tile, provenance: NDArray[np.uint8], outputs: Mapping[Scenario, Outputs]) -> Iterator[MapBlock]:
        """Take one tile.

        Args:
            tile: the next tile of the grid's order.
            provenance: uint8 [S, S] over ``tile.reads``: the scenario each pixel is to be mapped by.
            outputs: the answer of every scenario that occurs in ``tile.target``, [..., T, T]; where T is not S, the
                tile was resampled, and its answer is resampled back.
        """
        side = self.grid.tile_px
        answers: Answers = {
            scenario: answer if _side_of(answer) == side else RasterAnswer(answer, side)
            for scenario, answer in outputs.items()
        }
        return self._add(tile, provenance, answers)

    @abstractmethod
    def _add(self, tile: Tile, provenance: NDArray[np.uint8], outputs: Answers) -> Iterator[MapBlock]:
        """:meth:`add` at the raster's resolution."""

    def __len__(self) -> int:
        return len(self.grid)

    def tiles(self, start: int = 0) -> Iterator[Tile]:
        """The tiles to read, from index ``start`` on."""
        return self.grid.tiles(start)

    @abstractmethod
    def resume_at(self, tiles_done: int) -> int:
        """Prepare to go on after ``tiles_done``; returns the index of the first tile to infer.

        Where all are done the last of them are inferred again, though nothing is written: what ends a run is a tile.
        """


def _side_of(answer: Outputs) -> int:
    return int(next(iter(answer.values())).shape[-1])


class CropStitcher(Stitcher):
    """Each tile writes the pixels it owns; its halo is context only.

    ``probabilities`` is the number of classes where their probabilities are handed out as well.
    """

    wanted = (Output.CLASSES, Output.CONFIDENCE)

    def __init__(self, *, height: int, width: int, tile_px: int, halo_px: int, probabilities: int = 0) -> None:
        self._probabilities = probabilities
        self.grid = TileGrid(height=height, width=width, tile_px=tile_px, halo_px=halo_px)

    def _add(self, tile: Tile, provenance: NDArray[np.uint8], outputs: Answers) -> Iterator[MapBlock]:
        """Compose the pixels that the tile owns."""
        if tile.index >= self.tiles_done:
            inside = tile.target.within(tile.reads)
            yield cropped(tile.target, inside, provenance, outputs, self._probabilities)
            self.tiles_done = tile.index + 1

    def resume_at(self, tiles_done: int) -> int:
        """Tiles are independent: go on with the next."""
        self.tiles_done = tiles_done
        return min(tiles_done, len(self) - 1)


class HannStitcher(Stitcher):
    """Cross-fades class probabilities over ``halo_px`` where tiles meet; elsewhere a tile's own answer stands.

    That is half of what two tiles share: pixels at the very edge of a tile, with the least context, count for nothing,
    the seams are as faint as over all of it, and it costs half.

    ::

        tile      T T T T T      T, B  the bands shared with the tile row above and below: kept until that row comes
                  L C C C R      L, R  the bands shared with the tiles beside: kept until the next tile is there
                  L C C C R      C     the tile's alone: classes and confidence as the graph gives them
                  B B B B B      (of T column by column, once no tile to come reaches it)

    A pixel's scenario is its own (which sensors are valid there), so tiles that cover it give the probabilities of the
    same graph, unless a sensor died between them: then two graphs are cross-faded, and the pixel's provenance is that
    of the tile that owns it. Where a tile has nothing to give, its neighbours' probabilities are scaled up to sum to 1.
    Memory is a band as wide as a strip.

    Raises:
        UsageError: the halo is above a quarter of the tile, so that a third tile would reach into a cross-fade.
    """

    wanted = (Output.CLASSES, Output.CONFIDENCE, Output.PROBABILITIES)

    def __init__(
        self, *, height: int, width: int, tile_px: int, halo_px: int, classes: int, probabilities: int = 0
    ) -> None:
        fade_px = halo_px // 2
        column_bytes = max(1, tile_px - 2 * halo_px) * 2 * max(1, 2 * fade_px) * FadeBand.bytes_per_px(classes)
        self.grid = TileGrid(
            height=height,
            width=width,
            tile_px=tile_px,
            halo_px=halo_px,
            fade_px=fade_px,
            strip_tiles=max(4, ACCUMULATOR_BYTES // column_bytes),
        )
        if 4 * halo_px > tile_px:
            raise UsageError(
                f"to blend, halo_px must be at most a quarter of the tile, {tile_px // 4} px; received {halo_px}"
            )
        self._classes, self._probabilities = classes, probabilities
        self._strip: Strip | None = None
        self._above: FadeBand | None = None
        self._below: FadeBand | None = None
        self._left: FadeBand | None = None

    def _add(self, tile: Tile, provenance: NDArray[np.uint8], outputs: Answers) -> Iterator[MapBlock]:
        """Hand out what is the tile's alone, and the bands to which it was the last to add."""
        strip = self._enter(tile)
        again = tile.index < self.tiles_done  # a resumed run rebuilds the bands below rows that it already wrote
        row, col = position = strip.position(tile.index)
        finished = [self._core(tile, col, provenance, outputs), *self._beside(tile, strip, provenance, outputs)]
        ends_row = tile.index + 1 == strip.first_index + (row + 1) * strip.tiles_per_row
        if self._above is not None:
            self._above.add(self.grid, tile, position, provenance, outputs)
            finished.append(self._above.finish(None if ends_row else self.grid.cols.reach(col + 1)[0]))
        if self._below is not None:
            self._below.add(self.grid, tile, position, provenance, outputs, lasts=True)
        if ends_row:
            self._above, self._below = self._below, self._band_below(strip, row + 1)
        if not again:
            yield from (block for block in finished if block is not None)
            if ends_row:
                self.tiles_done = tile.index + 1

    def resume_at(self, tiles_done: int) -> int:
        """Go back one tile row within the strip: its lower bands have to be summed again."""
        self.tiles_done = tiles_done
        strip = next((s for s in reversed(self.grid.strips) if s.first_index < tiles_done), None)
        if strip is None or (tiles_done == strip.stop_index and tiles_done < len(self)):
            return tiles_done
        return tiles_done - strip.tiles_per_row

    def _enter(self, tile: Tile) -> Strip:
        """The tile's strip; on its first tile with empty bands."""
        current = self._strip
        if current is not None and tile.index < current.stop_index:
            return current
        strip = next(s for s in reversed(self.grid.strips) if s.first_index <= tile.index)
        row, _ = strip.position(tile.index)
        self._strip, self._left = strip, None
        self._above, self._below = self._band_below(strip, row - 1), self._band_below(strip, row)
        return strip

    def _band_below(self, strip: Strip, row: int) -> FadeBand | None:
        """The empty band between a tile row and the next, where there are both and a halo."""
        rows, (left, right) = self.grid.rows, strip.pixels
        if not (0 <= row < rows.count - 1 and self.grid.fade_px):
            return None
        top = rows.boundary(row + 1) - self.grid.fade_px
        return self._band(Window(row=top, col=left, height=2 * self.grid.fade_px, width=right - left))

    def _band(self, window: Window) -> FadeBand:
        return FadeBand(window, self._classes, probabilities=bool(self._probabilities))

    def _rows_between(self, tile: Tile) -> tuple[int, int]:
        """First and end row that the tile shares with no tile row above or below."""
        top, bottom, fade = tile.target.row, tile.target.row + tile.target.height, 2 * self.grid.fade_px
        return top + (fade if top > 0 else 0), bottom - (fade if bottom < self.grid.height else 0)

    def _core(self, tile: Tile, col: int, provenance: NDArray[np.uint8], outputs: Answers) -> MapBlock | None:
        """What is the tile's alone."""
        (top, bottom), target, fade = self._rows_between(tile), tile.target, 2 * self.grid.fade_px
        left, right = self.grid.cols.reach(col)
        left, right = left + (fade if left > 0 else 0), right - (fade if right < self.grid.width else 0)
        left, right = max(left, target.col), min(right, target.col + target.width)
        if bottom <= top or right <= left:
            return None
        window = Window(row=top, col=left, height=bottom - top, width=right - left)
        return cropped(window, window.within(tile.reads), provenance, outputs, self._probabilities)

    def _beside(
        self, tile: Tile, strip: Strip, provenance: NDArray[np.uint8], outputs: Answers
    ) -> Iterator[MapBlock | None]:
        """Add to the bands on both sides; the left one is then finished."""
        position = strip.position(tile.index)
        (top, bottom), fade_px = self._rows_between(tile), self.grid.fade_px
        if self._left is not None:
            self._left.add(self.grid, tile, position, provenance, outputs)
            yield self._left.finish()
        self._left = None
        middle = self.grid.cols.boundary(position[1] + 1)
        left, right = max(middle - fade_px, strip.pixels[0]), min(middle + fade_px, strip.pixels[1])
        if bottom > top and left < right and position[1] < self.grid.cols.count - 1:
            window = Window(row=top, col=left, height=bottom - top, width=right - left)
            self._left = self._band(window)
            self._left.add(self.grid, tile, position, provenance, outputs)


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How every frame of a run is cut into tiles and put together again.

    Raises:
        UsageError: the halo leaves no core, or is too wide to blend.
    """

    tile_px: int
    """Of the model, as ``halo_px``; :meth:`laid` has both in pixels of a raster."""
    halo_px: int
    blend: Blend = "hann"
    classes: int
    """How many the model has."""
    resolution: Resolution | None = None
    """At which rasters are mapped; None: each at its own."""
    probabilities: bool = False
    """Hand out the probability of each class, too."""

    def __post_init__(self) -> None:
        self.stitcher(self.tile_px, self.tile_px)  # its checks belong to construction

    @classmethod
    def of(
        cls,
        manifest: Manifest,
        *,
        halo_px: int | None,
        blend: Blend,
        gsd: Gsd = "off",
        probabilities: bool = False,
    ) -> Tiling:
        """That of a bundle; ``halo_px`` None takes the bundle's."""
        return cls(
            tile_px=manifest.tile_px,
            halo_px=manifest.halo_px if halo_px is None else halo_px,
            blend=blend,
            classes=len(manifest.classes),
            resolution=Resolution.of(gsd, manifest),
            probabilities=probabilities,
        )

    @property
    def wanted(self) -> tuple[Output, ...]:
        """The graph outputs that are needed of each tile."""
        needless = self.blend == "none" and self.resolution is None and not self.probabilities
        return CropStitcher.wanted if needless else HannStitcher.wanted

    def laid(self, height: int, width: int, gsd_m: float | None) -> tuple[int, int]:
        """Side and halo of a tile, in pixels of a raster of that size and ground sampling distance (None: not known).

        Raises:
            GridError: the distance that was asked for cannot be met.
        """
        if self.resolution is None or gsd_m is None:
            return self.tile_px, self.halo_px
        scale = self.resolution.scale(gsd_m, smallest=max(height, width) / self.tile_px)
        side = max(1, round(self.tile_px * scale))
        return side, self.halo_px * side // self.tile_px

    def stitcher(self, height: int, width: int, gsd_m: float | None = None) -> Stitcher:
        """For a frame of that size and ground sampling distance, in metres; see :meth:`laid`."""
        tile_px, halo_px = self.laid(height, width, gsd_m)
        probabilities = self.classes if self.probabilities else 0
        if self.blend == "hann":
            return HannStitcher(
                height=height,
                width=width,
                tile_px=tile_px,
                halo_px=halo_px,
                classes=self.classes,
                probabilities=probabilities,
            )
        return CropStitcher(height=height, width=width, tile_px=tile_px, halo_px=halo_px, probabilities=probabilities)
