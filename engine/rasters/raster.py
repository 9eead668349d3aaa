"""Sensor rasters in, on one grid: windowed reads of RGIR and nDSM, with the validity of every pixel.

:mod:`engine.rasters` is the only user of rasterio, and where GDAL's exceptions become this project's. A GDAL dataset
is not thread-safe: one thread at a time may use a :class:`SensorRasters`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import rasterio
from numpy.typing import NDArray

from engine.contract.bands import SensorSpec
from engine.contract.errors import GridError, RasterOpenError, UsageError
from engine.contract.sensors import Sensor
from engine.deadline import Patience
from engine.grid import Window, mirrored
from engine.rasters.blocks import Blocks, cut, in_blocks
from engine.rasters.georeference import CACHE_BYTES, Grid, unreferenced_is_fine
from engine.rasters.height_models import HeightModels, check_difference
from engine.rasters.names import RasterName
from engine.rasters.sources import (
    AnySource,
    ArraySource,
    Difference,
    FileSource,
    Observation,
    mark_invalid,
    open_difference,
    open_source,
    settle,
)
from engine.rasters.stretch import Stretch
from engine.resampling import chunks, mean_of_valid, taps

log = logging.getLogger(__name__)

CACHE_LIMIT_BYTES = 512 << 20

RasterInput: TypeAlias = "RasterName | HeightModels | NDArray[Any] | rasterio.io.DatasetReader"
"""A raster as it can be given: a file or GDAL's name for one, an array, an open dataset; nDSM as DSM and DTM too."""


class SensorRasters:
    """The sensor rasters of a run, read window by window on one grid. Use from one thread at a time.

    Attributes:
        grid: that of the RGIR raster, or the nDSM's when it is alone.
    """

    def __init__(
        self,
        sources: Mapping[Sensor, AnySource | Blocks],
        grid: Grid,
        files: ExitStack,
        patience: Mapping[Sensor, Patience] | None = None,
    ) -> None:
        self._sources = dict(sources)
        self._files, self._patience = files, patience or {}
        self._under_way = threading.Event()
        """A read is."""
        self.grid = grid

    @classmethod
    def open(
        cls,
        paths: Mapping[Sensor, RasterInput],
        specs: Mapping[Sensor, SensorSpec],
        *,
        rgir_bands: tuple[int, int, int] | None = None,
        ndsm_scale_m: float | None = None,
        stretch: Stretch | None = None,
        window_px: int = 512,
        ordered: bool = False,
        drivers: Sequence[str] | None = None,
        limit_s: float | None = None,
    ) -> SensorRasters:
        """Open every raster, check it and bring it onto the grid.

        Args:
            paths: one raster per sensor that is alive: a file, a name that GDAL understands
                (:mod:`engine.rasters.names`), a rasterio dataset that the caller has opened and closes, or an array
                [B, H, W] whose masked and NaN pixels have no data. Of nDSM also a DSM and a DTM.
            specs: what the graphs expect, at least for the sensors in ``paths``.
            rgir_bands: 1-based bands of the RGIR raster that hold NIR, red, green.
            ndsm_scale_m: metres per unit of nDSM value, after the file's own scale and offset tags.
            stretch: how imagery of more than 8 bits becomes 8; None refuses it.
            window_px: height of the windows to come; it sizes the block cache for rasters stored in strips.
            ordered: most will be read :meth:`in_order`, so that GDAL need not remember blocks as well.
            drivers: see :func:`engine.rasters.opening.open_raster`.
            limit_s: longest time that a file may take for a window. One that takes longer is an error then and
                ever after, and stays open for the thread that hangs in it; None waits without end.

        Raises:
            RasterOpenError: a raster is missing, unreadable or truncated.
            RasterFormatError: band count, dtype or unit is not the sensor's, a tag makes no sense, or DSM and DTM are
                swapped or count heights from different surfaces.
            GridError: the rasters do not overlap, or nothing says how to align them.
            UsageError: ``ndsm_scale_m`` goes with a DSM and a DTM.
        """
        if not paths:
            raise ValueError("at least one sensor is needed, received none")
        with ExitStack() as stack, unreferenced_is_fine():
            sources: dict[Sensor, AnySource] = {}
            patience: dict[Sensor, Patience] = {}
            grid, grid_name = None, ""
            for sensor in (sensor for sensor in Sensor if sensor in paths):
                given, spec = paths[sensor], specs[sensor]
                if isinstance(given, np.ndarray):
                    sources[sensor] = array = ArraySource.of(spec, given, ndsm_scale_m, stretch)
                    grid, grid_name = _array_grid(sensor, array, grid, grid_name), grid_name or f"{sensor} (array)"
                    continue
                if isinstance(given, HeightModels):
                    if ndsm_scale_m is not None:
                        raise UsageError(
                            "ndsm_scale_m is of an nDSM on file; a DSM and a DTM say their scale themselves: leave it "
                            "away, and set theirs with `gdal_edit.py -scale`"
                        )
                    sources[sensor] = difference = open_difference(stack, given, spec, grid, grid_name, drivers)
                    grid, grid_name = grid or Grid.of(difference.surface.file), grid_name or f"dsm {given.dsm}"
                    check_difference(given, difference.sample(grid))
                    continue
                if limit_s is not None:
                    patience[sensor] = Patience(limit_s)
                    stack.callback(patience[sensor].close)
                sources[sensor] = source = open_source(
                    *(stack, sensor, given, spec, grid, grid_name, drivers),
                    bands=rgir_bands if sensor is Sensor.RGIR else None,
                    scale_m=ndsm_scale_m,
                    stretch=stretch,
                    patience=patience.get(sensor),
                )
                grid, grid_name = grid or Grid.of(source.file), grid_name or f"{sensor} {source.name}"
            assert grid is not None
            files = _on_file(sources.values())
            _size_cache(
                (file for file in files if not ordered or cut(file, grid.height, grid.width) is None), window_px
            )
            return cls(sources, grid, stack.pop_all(), patience)

    def read(self, row: int, col: int, height: int, width: int) -> dict[Sensor, Observation]:
        """Every sensor in one window, which may reach beyond the grid on any side by any amount.

        Beyond the border the raster is mirrored, border pixel included (numpy's ``symmetric``), again and again
        where the window is wider than the raster; a mirrored pixel is as valid as the one it shows.

        Raises:
            RasterOpenError: a file is truncated or damaged.
        """
        out = {sensor: source.blank(height, width) for sensor, source in self._sources.items()}
        seen, errors = self.read_into(Window(row=row, col=col, height=height, width=width), out)
        for error in errors.values():
            raise error
        return seen

    def read_into(
        self, window: Window, out: Mapping[Sensor, Observation]
    ) -> tuple[dict[Sensor, Observation], dict[Sensor, RasterOpenError]]:
        """:meth:`read` into buffers; a window of another size than theirs is resampled (:mod:`engine.resampling`).

        Returns:
            What each sensor saw, in the buffers; and what went wrong, by the sensors that could not be read, whose
            buffers mean nothing.
        """
        seen: dict[Sensor, Observation] = {}
        errors: dict[Sensor, RasterOpenError] = {}
        self._under_way.set()
        for sensor, source in self._sources.items():
            try:
                if out[sensor].valid.shape == (window.height, window.width):
                    whole = self._read_one(source, window.row, window.col, out[sensor], settle)
                    seen[sensor] = replace(out[sensor], whole=whole)
                else:
                    seen[sensor] = self._read_resampled(source, window, out[sensor])
            except RasterOpenError as error:
                errors[sensor] = error
        self._under_way.clear()
        return seen, errors

    def _read_resampled(self, source: AnySource | Blocks, window: Window, out: Observation) -> Observation:
        """Read some rows at a time, so that a window may be far larger than its tile."""
        height, width = out.valid.shape
        down, across = taps(window.height, height), taps(window.width, width)
        raster_valid = np.empty((window.height, window.width), np.bool_)
        for first, stop in chunks(height):
            part = down.part(first, stop)
            top, bottom = part.span
            seen = source.blank(bottom - top, window.width)
            self._read_one(source, window.row + top, window.col, seen, mark_invalid)
            raster_valid[top:bottom] = seen.valid
            values, valid = mean_of_valid(seen.values, seen.valid, part.moved(top), across)
            np.copyto(
                out.values[:, first:stop],
                np.rint(values, out=values) if out.values.dtype == np.uint8 else values,
                casting="unsafe",
            )
            out.valid[first:stop] = valid
        settle(source.spec, out)
        whole = bool(raster_valid.all())
        return replace(out, raster_valid=None if whole else raster_valid, whole=whole)

    def _read_one(
        self,
        source: AnySource | Blocks,
        row: int,
        col: int,
        out: Observation,
        finish: Callable[[SensorSpec, Observation], None],
    ) -> bool:
        """A window that may reach beyond the grid; ``finish`` is called on the pixels inside.

        Returns:
            Whether every pixel is known to be valid.
        """
        height, width = out.valid.shape
        if 0 <= row <= self.grid.height - height and 0 <= col <= self.grid.width - width:
            whole = source.read(row, col, out)
            if not whole:
                finish(source.spec, out)
            return whole
        rows, cols = mirrored(row, height, self.grid.height), mirrored(col, width, self.grid.width)
        top, left = int(rows.min()), int(cols.min())
        inner = source.blank(int(rows.max()) - top + 1, int(cols.max()) - left + 1)
        source.read(top, left, inner)
        finish(source.spec, inner)
        at = np.ix_(rows - top, cols - left)
        for band, pixels in zip(out.values, inner.values, strict=True):
            band[...] = pixels[at]
        out.valid[...] = inner.valid[at]
        return False

    def inside(self, window: Window) -> None:
        """All of it is to be mapped; see :meth:`engine.frames.Rasters.inside`."""

    @contextmanager
    def in_order(self, windows: Callable[[], Iterator[Window]], *, readers: int = 1) -> Iterator[SensorRasters]:
        """For the block: the same rasters, to be read by these windows and in this order, each block decoded once.

        Args:
            windows: all of them, from the first on; called more than once.
            readers: threads that decode ahead, where a raster can be opened more than once; 1: the caller decodes.
        """
        readers = 1 if self._patience else readers  # a pool would wait for a thread that hangs
        with in_blocks(self._sources, (self.grid.height, self.grid.width), windows, readers) as sources:
            ordered = _Ordered(sources, self.grid, windows(), ahead=readers if readers > 1 else 0)
            self._under_way = ordered._under_way
            yield ordered

    def identity(self) -> dict[str, dict[str, Any]]:
        """What must be unchanged for a run to be resumed; plain values, ready for JSON."""
        return {
            str(sensor): source.identity()
            for sensor, source in self._sources.items()
            if not isinstance(source, ArraySource | Blocks)
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """What each raster is and how it is read; plain values, ready for JSON."""
        return {
            str(sensor): source.describe() for sensor, source in self._sources.items() if not isinstance(source, Blocks)
        }

    @property
    def silent(self) -> frozenset[Sensor]:
        """Those whose file gave no answer in time."""
        return frozenset(sensor for sensor, patience in self._patience.items() if patience.lost)

    def close(self) -> None:
        """Close the files; a second call does nothing. Under a read that hangs in another thread they stay open."""
        if not self._under_way.is_set() and not self.silent:
            self._files.close()

    def __enter__(self) -> SensorRasters:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _Ordered(SensorRasters):
    """Rasters whose windows come in order."""

    def __init__(
        self, sources: Mapping[Sensor, AnySource | Blocks], grid: Grid, windows: Iterator[Window], *, ahead: int
    ) -> None:
        super().__init__(sources, grid, ExitStack())
        self._blocks = [source for source in sources.values() if isinstance(source, Blocks)]
        self._windows, self._ahead, self._count = windows, ahead, 0
        self._coming: deque[Window] = deque()

    def read_into(
        self, window: Window, out: Mapping[Sensor, Observation]
    ) -> tuple[dict[Sensor, Observation], dict[Sensor, RasterOpenError]]:
        """The next window."""
        self._under_way.set()  # blocks may be decoded here
        for coming in islice(self._windows, self._ahead + 1 - len(self._coming)):
            self._coming.append(coming)
            for blocks in self._blocks:
                blocks.begin(coming)
        expected = self._coming.popleft()
        assert window == expected, f"windows come in order: {window} is not {expected}"
        answer = super().read_into(window, out)
        for blocks in self._blocks:
            blocks.passed(self._count, window)
        self._count += 1
        return answer


def _on_file(sources: Iterable[AnySource]) -> Iterator[FileSource]:
    """The files that are read."""
    for source in sources:
        if isinstance(source, Difference):
            yield from (source.surface, source.terrain)
        elif isinstance(source, FileSource):
            yield source


def _array_grid(sensor: Sensor, array: ArraySource, grid: Grid | None, grid_name: str) -> Grid:
    """The grid of the run, of which an array must have the size."""
    _, height, width = array.values.shape
    if grid is not None and (grid.height, grid.width) != (height, width):
        raise GridError(
            f"an array is read pixel by pixel, so {sensor} must have the size of {grid_name}, {grid.width} x "
            f"{grid.height} px; received {width} x {height} px"
        )
    return grid or Grid(width=width, height=height, crs=None, transform=None)


def _size_cache(sources: Iterable[FileSource], window_px: int) -> None:
    """Let the block cache hold what a window shares with the next one, and the maps' blocks being written.

    A strip spans the whole width, so that a cache smaller than a row of windows would decode every strip again for
    every window; of tiled rasters the tiles under one window are enough.
    """
    needed = CACHE_BYTES // 4
    for source in sources:
        band = source.bands[0] - 1
        block_height, block_width = source.file.block_shapes[band]
        rows = min((window_px // block_height + 2) * block_height, source.file.height)
        cols = min((window_px // block_width + 2) * block_width, source.file.width)
        needed += rows * cols * source.file.count * np.dtype(source.file.dtypes[band]).itemsize
    needed = min(needed, CACHE_LIMIT_BYTES)
    if rasterio.env.hasenv() and int(rasterio.env.getenv().get("GDAL_CACHEMAX", needed)) < needed:
        log.info("GDAL's cache grows to %d MB for these block sizes; 256 px tiles need less", needed >> 20)
        rasterio.env.setenv(GDAL_CACHEMAX=needed)
