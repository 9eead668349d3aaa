"""Sensor rasters in, on one grid: windowed reads of RGIR and nDSM, with the validity of every pixel.

:mod:`engine.rasters` is the only user of rasterio, and where GDAL's exceptions become this project's. A GDAL dataset
is not thread-safe: one thread at a time may use a :class:`SensorRasters`.
"""

from __future__ import annotations

import hashlib
import logging
import math
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from engine.contract.bands import SensorSpec
from engine.contract.errors import GridError, RasterFormatError, RasterOpenError, UsageError
from engine.contract.nodata import fill_nodata
from engine.contract.sensors import Sensor
from engine.grid import mirrored
from engine.rasters.georeference import (
    CACHE_BYTES,
    GDAL_ERRORS,
    Grid,
    check_overlap,
    onto_grid,
    unreferenced_is_fine,
)
from engine.rasters.height_models import HeightModels, check_datums, check_difference
from engine.rasters.names import RasterName, local_file
from engine.rasters.opening import (
    SAMPLE_PX,
    alpha_bands,
    believed,
    nodata_range,
    open_raster,
    sensor_bands,
    spread,
    to_metres,
)

log = logging.getLogger(__name__)

CACHE_LIMIT_BYTES = 512 << 20
IDENTITY_BYTES = 64 << 10
"""Of a file's head and of its tail, which its identity covers beside size and time."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One sensor in one window.

    Args:
        values: RGIR uint8 [3, h, w] or nDSM float32 [1, h, w] in metres; always finite. Invalid pixels hold
            valid ones, mirrored (:func:`engine.contract.nodata.fill_nodata`), or 0 where nothing is valid, so that a
            network sees no cliff at the edge of the data.
        valid: bool [h, w].
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_]


RasterInput: TypeAlias = "RasterName | HeightModels | NDArray[Any] | rasterio.io.DatasetReader"
"""A raster as it can be given: a file or GDAL's name for one, an array, an open dataset; nDSM as DSM and DTM too."""


@dataclass(frozen=True, kw_only=True)
class _Source:
    """An opened sensor raster. ``view`` is what is read: the file, or the file warped onto the grid.

    Metres are raw * scale + offset. Sensors with 8-bit digital numbers use neither.
    """

    spec: SensorSpec
    name: RasterName
    file: Any
    view: Any
    bands: tuple[int, ...]
    scale: float
    offset: float
    nodata: tuple[float, float] | None
    """Raw values from the first to the second are invalid: the nodata tag as GDAL compares it."""
    masked: bool
    """GDAL's mask tells what is valid."""
    alpha: tuple[int, ...]
    """Bands that hold 0 where a pixel is invalid, whatever else says that it is valid."""

    def read(self, row: int, col: int, out: Observation) -> None:
        """A window inside the grid, from (row, col) on and as large as ``out``, whose arrays are overwritten."""
        self.read_unfilled(row, col, out)
        _fill(self.spec, out)

    def read_unfilled(self, row: int, col: int, out: Observation) -> None:
        """:meth:`read` that leaves any value where there is no data, and NaN or infinity marked as valid."""
        height, width = out.valid.shape
        window = Window(col, row, width, height)
        direct = all(self.view.dtypes[band - 1] == out.values.dtype for band in self.bands)
        try:
            raw: NDArray[Any] = self.view.read(self.bands, window=window, out=out.values if direct else None)
            masks = self.view.read_masks(self.bands, window=window) if self.masked else None
            opaque = self.view.read(self.alpha, window=window) if self.alpha else None
        except GDAL_ERRORS as error:
            raise RasterOpenError(
                f"{self.spec.sensor} raster {self.name} cannot be read at rows {row}..{row + height - 1}, columns "
                f"{col}..{col + width - 1}: it is truncated or damaged; check it with `gdalinfo -checksum` and copy "
                f"it again ({first_cause(error)})"
            ) from error
        # a pixel that is valid in any band is valid: one dead band must not blank the map
        if masks is not None:
            masks.any(axis=0, out=out.valid)
        elif self.nodata is not None:
            ((raw < self.nodata[0]) | (raw > self.nodata[1])).any(axis=0, out=out.valid)
        else:
            out.valid[...] = True
        if opaque is not None:
            np.logical_and(out.valid, (opaque > 0).all(axis=0), out=out.valid)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is told by isfinite
            if not direct:
                np.copyto(out.values, raw, casting="unsafe")
            if (self.scale, self.offset) != (1.0, 0.0):
                np.multiply(out.values, np.float32(self.scale), out=out.values)
                np.add(out.values, np.float32(self.offset), out=out.values)

    def blank(self, height: int, width: int) -> Observation:
        """Memory for a window of that size."""
        return _blank(self.spec, height, width)

    def nodata_rules(self) -> list[str]:
        """How invalid pixels are told, in words."""
        first = self.bands[0] - 1
        flags = self.file.mask_flag_enums[first]
        rules = ["alpha band"] if alpha_bands(self.file, self.bands) else []
        if MaskFlags.nodata in flags:
            rules.append(f"nodata tag {self.file.nodatavals[first]}")
        if flags == [MaskFlags.per_dataset]:  # an alpha band is per_dataset too
            rules.append("mask band")
        return rules + (["NaN or infinite"] if self.file.dtypes[first].startswith("float") else [])

    def identity(self) -> dict[str, Any]:
        """See :meth:`SensorRasters.identity`."""
        return _identity(self)

    def describe(self) -> dict[str, Any]:
        """See :meth:`SensorRasters.describe`."""
        return _description(self)


@dataclass(frozen=True, kw_only=True)
class _Difference:
    """Height above ground as surface minus terrain, both in metres and on the grid; valid where both are."""

    spec: SensorSpec
    surface: _Source
    terrain: _Source

    def read(self, row: int, col: int, out: Observation) -> None:
        """See :meth:`_Source.read`."""
        terrain = self.terrain.blank(*out.valid.shape)
        self.surface.read_unfilled(row, col, out)
        self.terrain.read_unfilled(row, col, terrain)
        np.logical_and(out.valid, terrain.valid, out=out.valid)
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(out.values, terrain.values, out=out.values)
        _fill(self.spec, out)

    def sample(self, grid: Grid) -> NDArray[np.float32]:
        """Valid values from windows all over the grid, [N]."""
        samples = []
        for row in spread(grid.height, 5):
            for col in spread(grid.width, 5):
                seen = self.blank(min(SAMPLE_PX, grid.height - row), min(SAMPLE_PX, grid.width - col))
                self.read(row, col, seen)
                samples.append(seen.values[0][seen.valid])
        return np.concatenate(samples)

    def blank(self, height: int, width: int) -> Observation:
        """See :meth:`_Source.blank`."""
        return _blank(self.spec, height, width)

    def identity(self) -> dict[str, Any]:
        """See :meth:`SensorRasters.identity`."""
        return {"dsm": self.surface.identity(), "dtm": self.terrain.identity()}

    def describe(self) -> dict[str, Any]:
        """See :meth:`SensorRasters.describe`."""
        return {**self.surface.describe(), "minus": self.terrain.describe()}


@dataclass(frozen=True, kw_only=True)
class _ArraySource:
    """A sensor's pixels in memory, or mapped into it; only the windows that are read are touched."""

    spec: SensorSpec
    values: NDArray[Any]
    """[B, H, W]."""
    scale: float

    @classmethod
    def of(cls, spec: SensorSpec, array: NDArray[Any], scale_m: float | None) -> _ArraySource:
        """See that an array is one of that sensor's."""
        bands, sensor = len(spec.bands), spec.sensor
        values = array[None] if array.ndim == 2 and bands == 1 else array
        if values.ndim != 3 or len(values) != bands or 0 in values.shape:
            shape = f"[{bands}, H, W]" if bands > 1 else "[H, W] or [1, H, W]"
            raise RasterFormatError(f"{sensor} must be an array {shape} with pixels, received {list(array.shape)}")
        if spec.dtype == "uint8" and values.dtype != np.uint8:
            raise RasterFormatError(
                f"{sensor} must be 8-bit (uint8, 0..255), received {values.dtype}: rescale it as the model's training "
                "images were"
            )
        if spec.dtype == "float32" and values.dtype.kind != "f" and (scale_m is None or values.dtype.kind not in "iu"):
            raise RasterFormatError(
                f"{sensor} must be metres in floating point, or whole numbers with ndsm_scale_m, received "
                f"{values.dtype}: pass ndsm_scale_m (0.1 for decimetres)"
            )
        if scale_m is not None and not (math.isfinite(scale_m) and scale_m > 0):
            raise RasterFormatError(f"ndsm_scale_m must be a positive number of metres, received {scale_m}")
        return cls(spec=spec, values=values, scale=1.0 if scale_m is None or spec.dtype == "uint8" else scale_m)

    def read(self, row: int, col: int, out: Observation) -> None:
        """See :meth:`_Source.read`."""
        height, width = out.valid.shape
        window = self.values[:, row : row + height, col : col + width]
        with np.errstate(over="ignore", invalid="ignore"):
            np.copyto(out.values, np.ma.getdata(window), casting="unsafe")
            if self.scale != 1.0:
                np.multiply(out.values, np.float32(self.scale), out=out.values)
        out.valid[...] = ~np.ma.getmaskarray(window).all(axis=0)  # valid in any band is valid
        _fill(self.spec, out)

    def blank(self, height: int, width: int) -> Observation:
        """See :meth:`_Source.blank`."""
        return _blank(self.spec, height, width)

    def describe(self) -> dict[str, Any]:
        """See :meth:`SensorRasters.describe`."""
        bands, height, width = self.values.shape
        rules = ["mask"] if isinstance(self.values, np.ma.MaskedArray) else []
        return {
            "path": "",
            "driver": "array",
            "width": width,
            "height": height,
            "bands": list(range(1, bands + 1)),
            "dtype": str(self.values.dtype),
            "crs": None,
            "gsd_m": None,
            "nodata": rules + (["NaN or infinite"] if self.values.dtype.kind == "f" else []),
            "metres_per_unit": self.scale if self.spec.dtype == "float32" else None,
            "warped": False,
        }


def _fill(spec: SensorSpec, out: Observation) -> None:
    """Replace what is invalid."""
    if spec.dtype == "float32":
        np.logical_and(out.valid, np.isfinite(out.values).all(axis=0), out=out.valid)
    filled = fill_nodata(out.values, out.valid)
    if filled is not out.values:
        np.copyto(out.values, filled)


def _blank(spec: SensorSpec, height: int, width: int) -> Observation:
    values = np.empty((len(spec.bands), height, width), spec.dtype)
    return Observation(values=values, valid=np.empty((height, width), np.bool_))


_AnySource: TypeAlias = "_Source | _Difference | _ArraySource"


class SensorRasters:
    """The sensor rasters of a run, read window by window on one grid. Use from one thread at a time.

    Attributes:
        grid: that of the RGIR raster, or the nDSM's when it is alone.
    """

    def __init__(self, sources: Mapping[Sensor, _AnySource], grid: Grid, files: ExitStack) -> None:
        self._sources = dict(sources)
        self._files = files
        self.grid = grid

    @classmethod
    def open(
        cls,
        paths: Mapping[Sensor, RasterInput],
        specs: Mapping[Sensor, SensorSpec],
        *,
        rgir_bands: tuple[int, int, int] | None = None,
        ndsm_scale_m: float | None = None,
        window_px: int = 512,
        drivers: Sequence[str] | None = None,
    ) -> SensorRasters:
        """Open every raster, check it and bring it onto the grid.

        Args:
            paths: one raster per sensor that is alive: a file, a name that GDAL understands
                (:mod:`engine.rasters.names`), a rasterio dataset that the caller has opened and closes, or an array
                [B, H, W] whose masked and NaN pixels have no data. Of nDSM also a DSM and a DTM.
            specs: what the graphs expect, at least for the sensors in ``paths``.
            rgir_bands: 1-based bands of the RGIR raster that hold NIR, red, green.
            ndsm_scale_m: metres per unit of nDSM value, after the file's own scale and offset tags.
            window_px: height of the windows to come; it sizes the block cache for rasters stored in strips.
            drivers: see :func:`engine.rasters.opening.open_raster`.

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
            sources: dict[Sensor, _AnySource] = {}
            grid, grid_name = None, ""
            for sensor in (sensor for sensor in Sensor if sensor in paths):
                given, spec = paths[sensor], specs[sensor]
                if isinstance(given, np.ndarray):
                    sources[sensor] = array = _ArraySource.of(spec, given, ndsm_scale_m)
                    grid, grid_name = _array_grid(sensor, array, grid, grid_name), grid_name or f"{sensor} (array)"
                    continue
                if isinstance(given, HeightModels):
                    if ndsm_scale_m is not None:
                        raise UsageError(
                            "ndsm_scale_m is of an nDSM on file; a DSM and a DTM say their scale themselves: leave it "
                            "away, and set theirs with `gdal_edit.py -scale`"
                        )
                    sources[sensor] = difference = _open_difference(stack, given, spec, grid, grid_name, drivers)
                    grid, grid_name = grid or Grid.of(difference.surface.file), grid_name or f"dsm {given.dsm}"
                    check_difference(given, difference.sample(grid))
                    continue
                sources[sensor] = source = _open_source(
                    *(stack, sensor, given, spec, grid, grid_name, drivers),
                    bands=rgir_bands if sensor is Sensor.RGIR else None,
                    scale_m=ndsm_scale_m,
                )
                grid, grid_name = grid or Grid.of(source.file), grid_name or f"{sensor} {source.name}"
            assert grid is not None
            _size_cache(_on_file(sources.values()), window_px)
            return cls(sources, grid, stack.pop_all())

    def read(self, row: int, col: int, height: int, width: int) -> dict[Sensor, Observation]:
        """Every sensor in one window, which may reach beyond the grid on any side by any amount.

        Beyond the border the raster is mirrored, border pixel included (numpy's ``symmetric``), again and again
        where the window is wider than the raster; a mirrored pixel is as valid as the one it shows.

        Raises:
            RasterOpenError: a file is truncated or damaged.
        """
        out = {sensor: source.blank(height, width) for sensor, source in self._sources.items()}
        for error in self.read_into(row, col, out).values():
            raise error
        return out

    def read_into(self, row: int, col: int, out: Mapping[Sensor, Observation]) -> dict[Sensor, RasterOpenError]:
        """:meth:`read` into buffers of the window's size; returns what went wrong, sensor by sensor.

        A sensor named in the answer has not been read: the content of its buffer means nothing.
        """
        errors: dict[Sensor, RasterOpenError] = {}
        for sensor, source in self._sources.items():
            try:
                self._read_one(source, row, col, out[sensor])
            except RasterOpenError as error:
                errors[sensor] = error
        return errors

    def _read_one(self, source: _AnySource, row: int, col: int, out: Observation) -> None:
        height, width = out.valid.shape
        if 0 <= row <= self.grid.height - height and 0 <= col <= self.grid.width - width:
            source.read(row, col, out)
            return
        rows, cols = mirrored(row, height, self.grid.height), mirrored(col, width, self.grid.width)
        top, left = int(rows.min()), int(cols.min())
        inner = source.blank(int(rows.max()) - top + 1, int(cols.max()) - left + 1)
        source.read(top, left, inner)
        at = np.ix_(rows - top, cols - left)
        for band, whole in zip(out.values, inner.values, strict=True):
            band[...] = whole[at]
        out.valid[...] = inner.valid[at]

    def identity(self) -> dict[str, dict[str, Any]]:
        """What must be unchanged for a run to be resumed; plain values, ready for JSON."""
        return {
            str(sensor): source.identity()
            for sensor, source in self._sources.items()
            if not isinstance(source, _ArraySource)
        }

    def describe(self) -> dict[str, dict[str, Any]]:
        """What each raster is and how it is read; plain values, ready for JSON."""
        return {str(sensor): source.describe() for sensor, source in self._sources.items()}

    def close(self) -> None:
        """Close the files; a second call does nothing."""
        self._files.close()

    def __enter__(self) -> SensorRasters:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _open_source(
    stack: ExitStack,
    what: str,
    given: Any,
    spec: SensorSpec,
    grid: Grid | None,
    grid_name: str,
    drivers: Sequence[str] | None,
    *,
    bands: tuple[int, ...] | None = None,
    scale_m: float | None = None,
) -> _Source:
    """A file or an open dataset, checked and brought onto the grid, if there is one yet.

    Args:
        stack: closes what is opened.
        what: messages call it: the sensor, ``dsm`` or ``dtm``.
        bands, scale_m: see :meth:`SensorRasters.open`.
    """
    with believed(what, given if isinstance(given, str | Path) else given.name):
        if isinstance(given, str | Path):
            name, file = given, stack.enter_context(open_raster(what, given, drivers))
        else:  # whoever opened it closes it
            name, file = given.name, given
        bands = sensor_bands(spec, name, file, bands)
        scale, offset = to_metres(what, name, file, bands[0], scale_m) if spec.dtype == "float32" else (1, 0)
        view = file
        if grid is None:
            Grid.of(file, name=f"{what} {name}")  # refuses one that makes no sense
        else:
            view = onto_grid(file, grid, name=f"{what} {name}", grid_name=grid_name)
            stack.enter_context(view) if view is not file else None
        # a warped view has NaN where the file has no data
        nodata, masked = nodata_range(file, bands) if view is file else (None, False)
        source = _Source(
            spec=spec,
            name=name,
            file=file,
            view=view,
            bands=bands,
            scale=scale,
            offset=offset,
            nodata=nodata,
            masked=masked,
            alpha=alpha_bands(file, bands) if view is file else (),
        )
        _description(source)  # whatever is asked of the file later has an answer
    return source


def _open_difference(
    stack: ExitStack,
    models: HeightModels,
    spec: SensorSpec,
    grid: Grid | None,
    grid_name: str,
    drivers: Sequence[str] | None,
) -> _Difference:
    """DSM and DTM on the grid, or on that of the DSM if there is none yet."""
    names = [f"dsm {models.dsm}", f"dtm {models.dtm}"]
    surface = _open_source(stack, "dsm", models.dsm, spec, grid, grid_name, drivers)
    own = Grid.of(surface.file, name=names[0])
    terrain = _open_source(stack, "dtm", models.dtm, spec, grid or own, grid_name or names[0], drivers)
    check_overlap(Grid.of(terrain.file, name=names[1]), own, name=names[1], grid_name=names[0])
    check_datums(models, surface.file.crs, terrain.file.crs)
    return _Difference(spec=spec, surface=surface, terrain=terrain)


def _on_file(sources: Iterable[_AnySource]) -> Iterator[_Source]:
    """The files that are read."""
    for source in sources:
        if isinstance(source, _Difference):
            yield from (source.surface, source.terrain)
        elif isinstance(source, _Source):
            yield source


def _array_grid(sensor: Sensor, array: _ArraySource, grid: Grid | None, grid_name: str) -> Grid:
    """The grid of the run, of which an array must have the size."""
    _, height, width = array.values.shape
    if grid is not None and (grid.height, grid.width) != (height, width):
        raise GridError(
            f"an array is read pixel by pixel, so {sensor} must have the size of {grid_name}, {grid.width} x "
            f"{grid.height} px; received {width} x {height} px"
        )
    return grid or Grid(width=width, height=height, crs=None, transform=None)


def first_cause(error: BaseException) -> BaseException:
    """What began it: GDAL tells the reason first, and then at every level that something failed."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _size_cache(sources: Iterable[_Source], window_px: int) -> None:
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


def _identity(source: _Source) -> dict[str, Any]:
    path = local_file(source.name)
    name, size_bytes, mtime_ns = str(source.name), None, None
    with believed(source.spec.sensor, source.name):
        digest = hashlib.sha256(repr(_told(source.file)).encode(errors="surrogatepass"))
    if path is not None:
        state = path.stat()
        name, size_bytes, mtime_ns = str(path.resolve()), state.st_size, state.st_mtime_ns
        if stat.S_ISREG(state.st_mode):  # some drivers read a folder
            with path.open("rb") as stream:
                digest.update(stream.read(IDENTITY_BYTES))
                stream.seek(max(0, size_bytes - IDENTITY_BYTES))
                digest.update(stream.read(IDENTITY_BYTES))
    return {
        "path": name,
        "size_bytes": size_bytes,
        "mtime_ns": mtime_ns,
        "sha256": digest.hexdigest(),
        "width": source.file.width,
        "height": source.file.height,
        "bands": list(source.bands),
        "scale": source.scale,
        "offset": source.offset,
    }


def _told(file: Any) -> tuple[Any, ...]:
    """What a file says of itself, sidecars included."""
    return (
        *(file.driver, file.width, file.height, file.dtypes, file.nodatavals, file.scales, file.offsets, file.units),
        *(file.colorinterp, None if file.crs is None else file.crs.to_wkt(), tuple(file.transform)),
        sorted(file.tags().items()),
    )


def _description(source: _Source) -> dict[str, Any]:
    grid = Grid.of(source.file, name=str(source.name))
    return {
        "path": str(source.name),
        "driver": source.file.driver,
        "width": grid.width,
        "height": grid.height,
        "bands": list(source.bands),
        "dtype": source.file.dtypes[source.bands[0] - 1],
        "crs": grid.crs.to_string() if grid.crs else None,
        "gsd_m": grid.gsd_m,
        "nodata": source.nodata_rules(),
        "metres_per_unit": source.scale if source.spec.dtype == "float32" else None,
        "warped": source.view is not source.file,
    }
