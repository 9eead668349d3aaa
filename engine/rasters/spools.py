"""The unfinished maps: uncompressed tiled GeoTIFFs that survive a crash, and their overviews beside them.

::

    windows, as tiles finish --> blocks of 512 x 512, put together in memory, written where they lie
                                 every second pixel of a whole block --> blocks of the overview, and so on

Every byte is reserved when the files are created: a full disk shows before the first tile instead of after the last.
Blocks are of one size and lie in order, so that they are written past GDAL and its cache. The overviews are of this
process alone: a resumed run makes them again out of the maps.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Sequence
from itertools import product
from math import ceil
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from engine.contract.errors import OutputError
from engine.rasters.gdal_errors import gdal_writing, settle
from engine.rasters.georeference import Grid, unreferenced_is_fine
from engine.rasters.map_kinds import MapKind
from engine.rasters.spool_files import BLOCK_PX, overview_factors, overview_of

HELD_BYTES = 64 << 20
"""Of blocks that are put together; beyond it those that were touched longest ago go to the disk, and come back."""

BLOCK_BYTES = BLOCK_PX**2

Place = tuple[int, int]
"""Row and column of a block."""
Block = list[NDArray[np.uint8]]
"""Of each map, [B, S, S]."""


class Spools:
    """The files of the maps. Use from one thread at a time.

    Args:
        paths: of the maps, which exist.
        kinds: of the maps, in the same order.
        grid: of the maps.
        resumed: they hold something already.

    Raises:
        OutputError: the system refuses.
    """

    def __init__(self, paths: Sequence[Path], kinds: Sequence[MapKind], grid: Grid, *, resumed: bool) -> None:
        self.paths, bands = tuple(paths), [each.count for each in kinds]
        shapes = [(grid.height, grid.width)]
        for _ in overview_factors(grid):
            shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
        self._levels: list[_Level] = []
        for number, shape in reversed(list(enumerate(shapes))):
            above = self._levels[0] if self._levels else None
            files = [
                _SpoolFile(overview_of(path) if number else path, number, count)
                for path, count in zip(paths, bands, strict=True)
            ]
            self._levels.insert(0, _Level(files, shape, above, held_bytes=HELD_BYTES >> number))
        if resumed:
            self._levels[0].resume()

    def add(self, row: int, col: int, layers: Sequence[NDArray[np.uint8]]) -> None:
        """Take a window of the maps, which lies inside them.

        Raises:
            OutputError: the system refuses.
        """
        self._levels[0].add(row, col, layers)

    def read(self, row: int, height: int) -> list[NDArray[np.uint8]]:
        """Rows of every map, [B, height, W] each, as far as they are written.

        Raises:
            OutputError: the system refuses.
        """
        self._levels[0].put()
        return self._levels[0].read(row, height)

    def flush(self) -> None:
        """Wait until all of it is on the disk.

        Raises:
            OutputError: the system refuses.
        """
        self._levels[0].put()
        for path in self.paths:
            with gdal_writing(path):
                settle(path)

    def finish(self) -> None:
        """Complete the overviews, and close. The files stay.

        Raises:
            OutputError: the system refuses; it can be tried again.
        """
        try:
            for level in self._levels:
                level.finish()
        except OutputError:
            self._levels[0].resume()
            raise

    def close(self) -> None:
        """Write what is left; a second call does nothing.

        Raises:
            OutputError: the system refuses.
        """
        self._levels[0].put()


class _SpoolFile:
    """One level of a map in its file: blocks of known places, a band after another."""

    def __init__(self, path: Path, level: int, bands: int) -> None:
        self.path, self.bands = path, bands
        ovr = None if level < 2 else level - 2
        with gdal_writing(path), unreferenced_is_fine(), rasterio.open(path, driver="GTiff") as file:
            self._first = [
                int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=band, ovr=ovr)) for band in file.indexes
            ]

    def blank(self) -> NDArray[np.uint8]:
        """Memory for a block."""
        return np.empty((self.bands, BLOCK_PX, BLOCK_PX), np.uint8)

    def write(self, number: int, block: NDArray[np.uint8]) -> None:
        """Write block ``number``, [B, S, S]."""
        with gdal_writing(self.path), self.path.open("r+b", buffering=0) as file:
            for first, band in zip(self._first, block, strict=True):
                file.seek(first + number * BLOCK_BYTES)
                if file.write(band.data) != BLOCK_BYTES:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def read(self, number: int, block: NDArray[np.uint8]) -> None:
        """Read block ``number``, [B, S, S]."""
        with gdal_writing(self.path), self.path.open("rb", buffering=0) as file:
            for first, band in zip(self._first, block, strict=True):
                file.seek(first + number * BLOCK_BYTES)
                if file.readinto(band.data) != BLOCK_BYTES:
                    raise OSError(f"it ends within block {number}")


class _Level:
    """The maps at one resolution, put together block by block; every whole block goes to the level above."""

    def __init__(
        self, files: Sequence[_SpoolFile], shape: tuple[int, int], above: _Level | None, *, held_bytes: int
    ) -> None:
        self._files, self._shape, self._above = tuple(files), shape, above
        self._across = ceil(shape[1] / BLOCK_PX)
        self._known: dict[Place, int] = {}
        """Blocks of which the files hold something, by the pixels that are still to come."""
        self._stale: set[Place] = set()
        """Those of them that have changed since the level above heard of them."""
        self._held: OrderedDict[Place, Block] = OrderedDict()
        self._spare: list[Block] = []
        """Memory of blocks that are done: what is new costs a page fault for every 4 KiB."""
        self._most = max(4, held_bytes // (BLOCK_BYTES * sum(each.bands for each in files)))
        self._picks = tuple(map(_every_second, shape))

    def resume(self) -> None:
        """The files may hold anything."""
        places = product(range(ceil(self._shape[0] / BLOCK_PX)), range(self._across))
        self._known = dict.fromkeys(places, self._shape[0] * self._shape[1])
        self._stale = set(self._known)

    def add(self, row: int, col: int, layers: Sequence[NDArray[np.uint8]]) -> None:
        """Take a window."""
        height, width = layers[0].shape[-2:]
        for down, (from_rows, rows) in _cut(row, height):
            for across, (from_cols, cols) in _cut(col, width):
                place = down, across
                for mine, layer in zip(self._block(place), layers, strict=True):
                    mine[:, rows, cols] = layer[..., from_rows, from_cols]
                self._known[place] -= (rows.stop - rows.start) * (cols.stop - cols.start)
                if self._known[place] <= 0:
                    self._put(place)
                    self._tell(place)
                    self._let_go(place)
                elif len(self._held) > self._most:
                    oldest = next(iter(self._held))
                    self._put(oldest)
                    self._let_go(oldest)

    def read(self, row: int, height: int) -> list[NDArray[np.uint8]]:
        """Rows of each map, as the files have them."""
        layers = []
        for each in self._files:
            with gdal_writing(each.path), unreferenced_is_fine(), rasterio.open(each.path, driver="GTiff") as file:
                layers.append(file.read(window=Window(0, row, self._shape[1], height)))
        return layers

    def put(self) -> None:
        """Write what is held, and hold it no more."""
        for place in list(self._held):
            self._put(place)
            self._let_go(place)

    def finish(self) -> None:
        """Tell the level above what it has not heard of."""
        self.put()
        for place in sorted(self._stale):
            self._block(place)
            self._tell(place)
            self._let_go(place)

    def _block(self, place: Place) -> Block:
        """A block that is put together."""
        block = self._held.get(place)
        if block is None:
            block = (
                self._spare.pop()
                if self._spare
                else [np.empty((f.bands, BLOCK_PX, BLOCK_PX), np.uint8) for f in self._files]
            )
            for file, layer in zip(self._files, block, strict=True):
                if place in self._known:
                    file.read(place[0] * self._across + place[1], layer)
                else:
                    layer.fill(0)
            if place not in self._known:
                height, width = self._size(place)
                self._known[place] = height * width
            self._held[place] = block
        self._held.move_to_end(place)
        self._stale.add(place)
        return block

    def _size(self, place: Place) -> tuple[int, int]:
        """Height and width of the part of a block that lies on the map."""
        height, width = (min(BLOCK_PX, side - at * BLOCK_PX) for side, at in zip(self._shape, place, strict=True))
        return height, width

    def _put(self, place: Place) -> None:
        for file, layer in zip(self._files, self._held[place], strict=True):
            file.write(place[0] * self._across + place[1], layer)

    def _let_go(self, place: Place) -> None:
        self._spare.append(self._held.pop(place))

    def _tell(self, place: Place) -> None:
        """Have the level above show every second pixel of a block, as GDAL would."""
        if self._above is not None:
            parts = (
                _picked(picks, at * BLOCK_PX, length)
                for picks, at, length in zip(self._picks, place, self._size(place), strict=True)
            )
            (row, rows), (col, cols) = parts
            shown = [layer[:, rows][:, :, cols] for layer in self._held[place]]
            if shown[0].size:
                self._above.add(row, col, shown)
        self._stale.discard(place)


def _cut(start: int, length: int) -> list[tuple[int, tuple[slice, slice]]]:
    """The blocks that a stretch of an axis lies in: their number, the part of the stretch, and of the block."""
    parts = []
    for number in range(start // BLOCK_PX, -(-(start + length) // BLOCK_PX)):
        first, stop = max(start, number * BLOCK_PX), min(start + length, (number + 1) * BLOCK_PX)
        origin = number * BLOCK_PX
        parts.append((number, (slice(first - start, stop - start), slice(first - origin, stop - origin))))
    return parts


def _every_second(length: int) -> NDArray[np.intp]:
    """Which pixels of an axis GDAL's nearest neighbour takes into the first overview (gcore/overview.cpp)."""
    half = -(-length // 2)
    return np.minimum((0.5 + np.arange(half) * (length / half)).astype(np.intp), length - 1)


def _picked(picks: NDArray[np.intp], start: int, length: int) -> tuple[int, slice | NDArray[np.intp]]:
    """The first overview pixel of a stretch, and which of the stretch's pixels the overview shows."""
    first, last = np.searchsorted(picks, (start, start + length))
    shown = picks[first:last] - start
    even = len(shown) and shown[-1] - shown[0] == 2 * (len(shown) - 1)
    return int(first), slice(int(shown[0]), int(shown[-1]) + 1, 2) if even else shown
