"""Where the tiles lie: windows, halo, ownership and blend weights. Pure arithmetic, no pixels.

Along one axis of ``length`` pixels, tile ``i`` reads ``tile_px`` pixels from ``min(i * stride, length - tile_px)``
with ``stride = tile_px - 2 * halo_px``. Neighbours meet at ``boundary(i) = i * stride + halo_px``, so each keeps
``halo_px`` of context beyond what it owns, except at the raster's own border, where real pixels beat padding. A raster
smaller than a tile is centred in one; the reader mirrors it outwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from engine.contract.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Window:
    """A rectangle of raster pixels. It may reach beyond the raster when it is read, never when it is written."""

    row: int
    col: int
    height: int
    width: int

    def within(self, outer: Window) -> tuple[slice, slice]:
        """This window as slices of an array that covers ``outer``."""
        row, col = self.row - outer.row, self.col - outer.col
        return slice(row, row + self.height), slice(col, col + self.width)

    def every(self, step: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where the window's pixels lie in a picture of every ``step``-th row and column, and which of them do."""

        def axis(start: int, length: int) -> tuple[slice, slice]:
            first, last = -(-start // step), -(-(start + length) // step)
            return slice(first, last), slice(first * step - start, length, step)

        (row_place, row_pick), (col_place, col_pick) = axis(self.row, self.height), axis(self.col, self.width)
        return (row_place, col_place), (row_pick, col_pick)

    @property
    def pixels(self) -> int:
        """Its area."""
        return self.height * self.width


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One inference: what it reads and which raster pixels it contributes to."""

    index: int
    reads: Window
    target: Window


@dataclass(frozen=True, kw_only=True)
class Axis:
    """Tiles along rows or columns.

    Raises:
        UsageError: the halo leaves no core.
    """

    length: int
    tile_px: int
    halo_px: int
    fade_px: int = 0
    """See :class:`TileGrid`."""

    def __post_init__(self) -> None:
        if not 0 <= 2 * self.halo_px < self.tile_px:
            raise UsageError(
                f"halo_px must be at least 0 and below half the tile of {self.tile_px} px, received {self.halo_px}"
            )

    @cached_property
    def stride(self) -> int:
        """Pixels from one tile to the next."""
        return self.tile_px - 2 * self.halo_px

    @cached_property
    def count(self) -> int:
        """Number of tiles."""
        return max(1, math.ceil((self.length - 2 * self.halo_px) / self.stride))

    def start(self, index: int) -> int:
        """First pixel that tile ``index`` reads; negative when the raster is smaller than a tile."""
        if self.length < self.tile_px:
            return (self.length - self.tile_px) // 2
        return min(index * self.stride, self.length - self.tile_px)

    def boundary(self, index: int) -> int:
        """First pixel that tile ``index`` owns; ``boundary(count)`` is the raster's end."""
        if index <= 0:
            return 0
        return self.length if index >= self.count else index * self.stride + self.halo_px

    def reach(self, index: int) -> tuple[int, int]:
        """Pixels on which tile ``index`` has a blend weight: what it owns and ``fade_px`` beyond each neighbour."""
        first = self.boundary(index) - (self.fade_px if index > 0 else 0)
        last = self.boundary(index + 1) + (self.fade_px if index < self.count - 1 else 0)
        return first, last

    def weights(self, index: int) -> NDArray[np.float32]:
        """Hann (sin²) cross-fade of tile ``index`` over its :meth:`reach`; all tiles' weights sum to 1 everywhere."""
        first, last = self.reach(index)
        return _cross_fade(last - first, 2 * self.fade_px, index > 0, index < self.count - 1)


@lru_cache(maxsize=64)
def _cross_fade(length: int, fade: int, rises: bool, falls: bool) -> NDArray[np.float32]:
    """Weights of 1, but for the ``fade`` pixels at an end where they rise from 0 or fall to it; not to be changed."""
    weights = np.ones(length, np.float32)
    ramp = np.sin(np.pi / 2 * (np.arange(fade) + 0.5) / max(fade, 1)) ** 2
    if rises:
        weights[:fade] = ramp
    if falls:
        weights[len(weights) - fade :] = ramp[::-1]
    weights.flags.writeable = False
    return weights


@dataclass(frozen=True, kw_only=True)
class TileGrid:
    """All tiles of a raster, in the order in which they are inferred.

    Without ``strip_tiles`` tiles run row by row and each writes the pixels it owns. With it the raster is cut into
    vertical strips of that many tile columns, each processed top to bottom, so that cross-fading holds one tile row of
    one strip in memory however wide the raster is; the two columns beside a strip are inferred again for its edges.

    Raises:
        UsageError: the halo leaves no core.
    """

    height: int
    width: int
    tile_px: int
    halo_px: int
    fade_px: int = 0
    """Pixels on each side of a border between tiles over which they are cross-faded; at most the halo."""
    strip_tiles: int | None = None

    def __post_init__(self) -> None:
        _ = self.rows, self.cols  # their checks belong to construction

    @cached_property
    def rows(self) -> Axis:
        """Tiles from top to bottom."""
        return Axis(length=self.height, tile_px=self.tile_px, halo_px=self.halo_px, fade_px=self.fade_px)

    @cached_property
    def cols(self) -> Axis:
        """Tiles from left to right."""
        return Axis(length=self.width, tile_px=self.tile_px, halo_px=self.halo_px, fade_px=self.fade_px)

    @cached_property
    def strips(self) -> tuple[Strip, ...]:
        """The vertical strips, left to right; a single one when tiles are not blended."""
        columns = self.strip_tiles or self.cols.count
        strips: list[Strip] = []
        first_index = 0
        for first in range(0, self.cols.count, columns):
            strip = Strip(grid=self, first=first, stop=min(first + columns, self.cols.count), first_index=first_index)
            strips.append(strip)
            first_index = strip.stop_index
        return tuple(strips)

    def __len__(self) -> int:
        return sum(strip.tiles_per_row for strip in self.strips) * self.rows.count

    def tiles(self, start: int = 0) -> Iterator[Tile]:
        """Tiles from index ``start`` on."""
        for strip in self.strips:
            for index in range(max(start, strip.first_index), strip.stop_index):
                yield strip.tile(index)


@dataclass(frozen=True, kw_only=True)
class Strip:
    """Tile columns ``first`` to ``stop`` (exclusive), from the top of the raster to its bottom."""

    grid: TileGrid
    first: int
    stop: int
    first_index: int

    @property
    def columns(self) -> range:
        """Tile columns to infer: the strip's own, and when blending the neighbour on each side."""
        if self.grid.strip_tiles is None:
            return range(self.first, self.stop)
        return range(max(0, self.first - 1), min(self.grid.cols.count, self.stop + 1))

    @property
    def tiles_per_row(self) -> int:
        """Inferences in one tile row."""
        return len(self.columns)

    @property
    def stop_index(self) -> int:
        """The index after its last tile's."""
        return self.first_index + self.tiles_per_row * self.grid.rows.count

    @property
    def pixels(self) -> tuple[int, int]:
        """First and end pixel column that the strip owns."""
        return self.grid.cols.boundary(self.first), self.grid.cols.boundary(self.stop)

    def position(self, index: int) -> tuple[int, int]:
        """Tile row and tile column of tile ``index``."""
        row, place = divmod(index - self.first_index, self.tiles_per_row)
        return row, self.columns[place]

    def tile(self, index: int) -> Tile:
        """The tile of that index."""
        rows, cols = self.grid.rows, self.grid.cols
        row, col = self.position(index)
        if self.grid.strip_tiles is None:
            top, bottom = rows.boundary(row), rows.boundary(row + 1)
            left, right = cols.boundary(col), cols.boundary(col + 1)
        else:
            top, bottom = rows.reach(row)
            left, right = cols.reach(col)
            left, right = max(left, self.pixels[0]), min(right, self.pixels[1])
        return Tile(
            index=index,
            reads=Window(row=rows.start(row), col=cols.start(col), height=self.grid.tile_px, width=self.grid.tile_px),
            target=Window(row=top, col=left, height=bottom - top, width=right - left),
        )


def mirrored(start: int, size: int, length: int) -> NDArray[np.intp]:
    """Which of 0..length-1 the places start..start+size-1 show when an axis is mirrored at both ends, [size].

    The border is part of the image, as in numpy's ``symmetric`` padding, and the images repeat without end.
    """
    folded = np.arange(start, start + size) % (2 * length)
    return np.minimum(folded, 2 * length - 1 - folded)
