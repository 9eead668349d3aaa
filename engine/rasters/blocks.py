"""Windows that come in a known order, cut from blocks that are decoded once each.

::

    file     the blocks that it is stored in; small ones several at a time, strips some rows at a time
    warped   512 x 512 pixels of the grid: a window would warp again what it shares with its neighbours
    array    as it is

A block is kept until the last window that needs it has passed, so that of a raster of any height a row of blocks is in
memory, and another one as far as windows reach into it. With several readers blocks are decoded ahead, each reader on a
handle of its own; whose turn a window is never changes, nor does a pixel of it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from engine.contract.errors import RasterOpenError
from engine.contract.sensors import Sensor
from engine.grid import Window
from engine.rasters.sources import AnySource, Difference, FileSource, Observation, mark_invalid

WARPED_PX = 512
LEAST_PX = 256
"""Smaller blocks are read several at a time."""
STRIP_ROWS = 64
MOST_BLOCK_BYTES = 32 << 20
"""A raster stored in larger blocks is read window by window."""
HELD_BYTES = 96 << 20
"""Of one sensor: beyond it the blocks that were used longest ago are decoded again when their turn comes."""
LEAST_HELD = 16


@dataclass(frozen=True, kw_only=True)
class _Block:
    values: NDArray[Any]
    valid: NDArray[np.bool_] | None
    """None: every pixel is."""


class Blocks:
    """A source whose windows come in order; reads as a source does.

    Args:
        source: what is read.
        shape: height and width of a block.
        grid: height and width of all.
        windows: in order; iterated now.
        pool: decodes ahead; None decodes when a block is asked for.
    """

    def __init__(
        self,
        source: FileSource | Difference,
        shape: tuple[int, int],
        grid: tuple[int, int],
        windows: Iterable[Window],
        pool: Executor | None,
    ) -> None:
        self.spec, self.blank = source.spec, source.blank
        self._source, self._pool = source, pool
        self._shape, self._grid = shape, grid
        self._across = -(-grid[1] // shape[1])
        self._last = np.full((-(-grid[0] // shape[0]), self._across), -1, np.int32)
        for number, window in enumerate(windows):
            self._last[self._under(window)] = number
        self._held: dict[tuple[int, int], Future[_Block]] = {}
        block_bytes = shape[0] * shape[1] * (len(source.spec.bands) * np.dtype(source.spec.dtype).itemsize + 1)
        self._most = max(LEAST_HELD, HELD_BYTES // block_bytes)
        self._own = threading.local()
        self._files, self._opening = ExitStack(), threading.Lock()

    def begin(self, window: Window) -> None:
        """Have the blocks under a window decoded."""
        for place in self._places(window):
            self._begin(place)

    def passed(self, number: int, window: Window) -> None:
        """Nobody will ask for this window again."""
        for place in self._places(window):
            if self._last[place] <= number:
                self._held.pop(place, None)

    def read(self, row: int, col: int, out: Observation) -> bool:
        """As :meth:`FileSource.read`; whether every pixel is valid and a number."""
        height, width = out.valid.shape
        window = Window(row=row, col=col, height=height, width=width)
        whole = True
        try:
            for place in self._places(window):
                block = self._begin(place).result()
                top, left = place[0] * self._shape[0] - row, place[1] * self._shape[1] - col
                rows, from_rows = _overlap(top, block.values.shape[1], height)
                cols, from_cols = _overlap(left, block.values.shape[2], width)
                out.values[:, rows, cols] = block.values[:, from_rows, from_cols]
                out.valid[rows, cols] = True if block.valid is None else block.valid[from_rows, from_cols]
                whole = whole and block.valid is None
        except RasterOpenError:  # a window that does not reach into the damage is whole, and the message names it
            return self._source.read(row, col, out)
        return whole

    def close(self) -> None:
        """Close the readers' own files."""
        self._held.clear()
        self._files.close()

    def _under(self, window: Window) -> tuple[slice, slice]:
        """Rows and columns of the blocks under the part of a window that lies on the grid."""
        (height, width), (rows, cols) = self._shape, self._grid
        top, bottom = max(0, window.row), min(rows, window.row + window.height)
        left, right = max(0, window.col), min(cols, window.col + window.width)
        return slice(top // height, -(-bottom // height)), slice(left // width, -(-right // width))

    def _places(self, window: Window) -> Iterator[tuple[int, int]]:
        rows, cols = self._under(window)
        return product(range(rows.start, rows.stop), range(cols.start, cols.stop))

    def _begin(self, place: tuple[int, int]) -> Future[_Block]:
        decoded = self._held.pop(place, None)
        if decoded is None:
            if len(self._held) >= self._most:
                self._held.pop(next(iter(self._held)))
            if self._pool is not None:
                decoded = self._pool.submit(self._decode, place)
            else:
                decoded = Future()
                try:
                    decoded.set_result(self._decode(place))
                except RasterOpenError as error:
                    decoded.set_exception(error)
        self._held[place] = decoded  # at the end: it was used last
        return decoded

    def _decode(self, place: tuple[int, int]) -> _Block:
        row, col = place[0] * self._shape[0], place[1] * self._shape[1]
        out = self.blank(min(self._shape[0], self._grid[0] - row), min(self._shape[1], self._grid[1] - col))
        whole = self._handle().read(row, col, out)
        if not whole:
            mark_invalid(self.spec, out)
            whole = bool(out.valid.all())
        return _Block(values=out.values, valid=None if whole else out.valid)

    def _handle(self) -> FileSource | Difference:
        """The source; in a reader's thread one of its own."""
        if self._pool is None:
            return self._source
        if not hasattr(self._own, "source"):
            with self._opening:
                again = self._source.again
                assert again is not None
                self._own.source = again(self._files)
        own: FileSource | Difference = self._own.source
        return own


def _overlap(start: int, length: int, size: int) -> tuple[slice, slice]:
    """Where ``length`` places from ``start`` on lie among the first ``size``, and which of the former those are."""
    first, stop = max(0, start), min(size, start + length)
    return slice(first, stop), slice(first - start, stop - start)


def cut(source: FileSource | Difference, height: int, width: int) -> tuple[int, int] | None:
    """Height and width of the blocks in which a source on a grid of that size is read; None reads it by windows."""
    if isinstance(source, Difference):
        return cut(source.surface, height, width)
    rows = cols = WARPED_PX
    if source.view is source.file:
        rows, cols = source.file.block_shapes[source.bands[0] - 1]
        rows *= max(1, (LEAST_PX if cols < width else STRIP_ROWS) // rows)
        cols *= max(1, LEAST_PX // cols)
    rows, cols = min(rows, height), min(cols, width)
    size = rows * cols * len(source.spec.bands) * np.dtype(source.spec.dtype).itemsize
    return (rows, cols) if size <= MOST_BLOCK_BYTES else None


@contextmanager
def in_blocks(
    sources: Mapping[Sensor, AnySource | Blocks],
    grid: tuple[int, int],
    windows: Callable[[], Iterator[Window]],
    readers: int,
) -> Iterator[dict[Sensor, AnySource | Blocks]]:
    """The sources, in blocks where that pays, for windows that come in this order."""
    files = {
        sensor: (source, shape)
        for sensor, source in sources.items()
        if isinstance(source, FileSource | Difference) and (shape := cut(source, *grid)) is not None
    }
    with ExitStack() as stack:
        pool = None
        if readers > 1 and files:
            # with an environment of their own the threads may leave their files to another one to close
            pool = stack.enter_context(ThreadPoolExecutor(readers, "decode", lambda: rasterio.Env().__enter__()))
        cut_up: dict[Sensor, AnySource | Blocks] = dict(sources)
        for sensor, (source, shape) in files.items():
            blocks = Blocks(source, shape, grid, windows(), pool if source.again is not None else None)
            cut_up[sensor] = blocks
            stack.callback(blocks.close)
        yield cut_up
