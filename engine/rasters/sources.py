"""One sensor's raster, opened and read window by window: a file, a difference of two, or an array.

A GDAL dataset is not thread-safe: one thread at a time may read a source.
"""

from __future__ import annotations

import hashlib
import logging
import math
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import MaskFlags
from rasterio.windows import Window

from engine.contract.bands import SensorSpec
from engine.contract.errors import RasterFormatError, RasterOpenError, RasterSilentError
from engine.contract.nodata import fill_nodata
from engine.deadline import DeadlineError, Patience
from engine.rasters.georeference import GDAL_ERRORS, Grid, check_overlap, onto_grid
from engine.rasters.ground_filter import ground_below
from engine.rasters.height_models import HeightModels, check_datums
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
from engine.rasters.stretch import Range, Stretch, apply_stretch, ranges_of, ranges_of_array
from engine.resampling import nearest

log = logging.getLogger(__name__)

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
        raster_valid: bool [H, W], of the raster's own pixels, where these were resampled.
    """

    values: NDArray[Any]
    valid: NDArray[np.bool_]
    raster_valid: NDArray[np.bool_] | None = None
    whole: bool = False
    """Every pixel is known to be valid; else nobody has looked."""

    def valid_of(self, height: int, width: int) -> NDArray[np.bool_]:
        """Validity of the raster's pixels, of which the window holds so many."""
        if self.raster_valid is not None:
            return self.raster_valid
        if self.valid.shape == (height, width):
            return self.valid
        rows, cols = self.valid.shape
        return self.valid[np.ix_(nearest(range(height), height, rows), nearest(range(width), width, cols))]


@dataclass(frozen=True, kw_only=True)
class FileSource:
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
    stretch: tuple[Range, ...] | None = None
    """Of imagery that has more than 8 bits: the values of each band that become 0 and 255."""
    again: Callable[[ExitStack], FileSource] | None = None
    """Opens the same once more, for another thread; None where that may not be, or would not pay."""
    patience: Patience | None = None
    """Limits each read; None waits without end."""

    def read(self, row: int, col: int, out: Observation) -> bool:
        """A window inside the grid, from (row, col) on and as large as ``out``, whose arrays are overwritten.

        It leaves any value where there is no data, and NaN or infinity marked as valid: :func:`settle` comes after it.

        Returns:
            Whether every pixel is known to be valid and a number, so that nothing is to be settled.

        Raises:
            RasterOpenError: the file is damaged.
            RasterSilentError: it gives no answer in time.
        """
        if self.patience is None:
            return self._read(row, col, out)
        mine = self.blank(*out.valid.shape)  # a read that comes back too late must not change what others see
        try:
            whole = self.patience(partial(self._read, row, col, mine))
        except DeadlineError as error:
            raise RasterSilentError(
                f"{self.spec.sensor} raster {self.name} gave no window ({error}): see whether its disk answers"
            ) from error
        np.copyto(out.values, mine.values)
        np.copyto(out.valid, mine.valid)
        return whole

    def _read(self, row: int, col: int, out: Observation) -> bool:
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
        whole = opaque is None
        if masks is not None:
            masks.any(axis=0, out=out.valid)
            whole = whole and bool(out.valid.all())
        elif self.nodata is not None and not _beyond(raw, *self.nodata):
            ((raw < self.nodata[0]) | (raw > self.nodata[1])).any(axis=0, out=out.valid)
            whole = whole and bool(out.valid.all())
        else:
            out.valid[...] = True
        if opaque is not None:
            np.logical_and(out.valid, (opaque > 0).all(axis=0), out=out.valid)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is told by isfinite
            if self.stretch is not None:
                if raw.dtype.kind == "f":
                    np.logical_and(out.valid, np.isfinite(raw).any(axis=0), out=out.valid)
                    whole = whole and bool(out.valid.all())
                apply_stretch(raw, self.stretch, out.values)
            elif not direct:
                np.copyto(out.values, raw, casting="unsafe")
            if (self.scale, self.offset) != (1.0, 0.0):
                np.multiply(out.values, np.float32(self.scale), out=out.values)
                np.add(out.values, np.float32(self.offset), out=out.values)
        return whole and _finite(out.values)

    def blank(self, height: int, width: int) -> Observation:
        """Memory for a window of that size."""
        return blank_observation(self.spec, height, width)

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
class Difference:
    """Height above ground as surface minus terrain, both in metres and on the grid; valid where both are."""

    spec: SensorSpec
    surface: FileSource
    terrain: FileSource
    found: str | None = None
    """SHA-256 of a terrain that was found below the surface; None of one on file."""

    @property
    def again(self) -> Callable[[ExitStack], Difference] | None:
        """See :attr:`FileSource.again`."""
        surface, terrain = self.surface.again, self.terrain.again
        if surface is None or terrain is None:
            return None
        return lambda stack: Difference(spec=self.spec, surface=surface(stack), terrain=terrain(stack))

    def read(self, row: int, col: int, out: Observation) -> bool:
        """See :meth:`FileSource.read`."""
        terrain = self.terrain.blank(*out.valid.shape)
        whole = self.surface.read(row, col, out)
        whole = self.terrain.read(row, col, terrain) and whole
        np.logical_and(out.valid, terrain.valid, out=out.valid)
        with np.errstate(over="ignore", invalid="ignore"):
            np.subtract(out.values, terrain.values, out=out.values)
        return whole and _finite(out.values)

    def sample(self, grid: Grid) -> NDArray[np.float32]:
        """Valid values from windows all over the grid, [N]."""
        samples = []
        for row in spread(grid.height, 5):
            for col in spread(grid.width, 5):
                seen = self.blank(min(SAMPLE_PX, grid.height - row), min(SAMPLE_PX, grid.width - col))
                self.read(row, col, seen)
                settle(self.spec, seen)
                samples.append(seen.values[0][seen.valid])
        return np.concatenate(samples)

    def blank(self, height: int, width: int) -> Observation:
        """See :meth:`FileSource.blank`."""
        return blank_observation(self.spec, height, width)

    def identity(self) -> dict[str, Any]:
        """See :meth:`SensorRasters.identity`."""
        terrain = self.terrain.identity() if self.found is None else {"sha256": self.found}
        return {"dsm": self.surface.identity(), "dtm": terrain}

    def describe(self) -> dict[str, Any]:
        """See :meth:`SensorRasters.describe`."""
        terrain = self.terrain.describe()
        if self.found is not None:
            terrain["path"] = ""
        return {**self.surface.describe(), "minus": terrain}


@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """A sensor's pixels in memory, or mapped into it; only the windows that are read are touched."""

    spec: SensorSpec
    values: NDArray[Any]
    """[B, H, W]."""
    scale: float
    stretch: tuple[Range, ...] | None = None

    @classmethod
    def of(
        cls, spec: SensorSpec, array: NDArray[Any], scale_m: float | None, stretch: Stretch | None = None
    ) -> ArraySource:
        """See that an array is one of that sensor's."""
        bands, sensor = len(spec.bands), spec.sensor
        values = array[None] if array.ndim == 2 and bands == 1 else array
        if values.ndim != 3 or len(values) != bands or 0 in values.shape:
            shape = f"[{bands}, H, W]" if bands > 1 else "[H, W] or [1, H, W]"
            raise RasterFormatError(f"{sensor} must be an array {shape} with pixels, received {list(array.shape)}")
        ranges = None
        if spec.dtype == "uint8" and values.dtype != np.uint8 and stretch is not None and values.dtype.kind in "iuf":
            ranges = ranges_of_array(stretch, values)
        elif spec.dtype == "uint8" and values.dtype != np.uint8:
            raise RasterFormatError(
                f"{sensor} must be 8-bit (uint8, 0..255), received {values.dtype}: pass `stretch`, as in percent, or "
                "rescale it as the model's training images were"
            )
        if spec.dtype == "float32" and values.dtype.kind != "f" and (scale_m is None or values.dtype.kind not in "iu"):
            raise RasterFormatError(
                f"{sensor} must be metres in floating point, or whole numbers with ndsm_scale_m, received "
                f"{values.dtype}: pass ndsm_scale_m (0.1 for decimetres)"
            )
        if scale_m is not None and not (math.isfinite(scale_m) and scale_m > 0):
            raise RasterFormatError(f"ndsm_scale_m must be a positive number of metres, received {scale_m}")
        scale = 1.0 if scale_m is None or spec.dtype == "uint8" else scale_m
        return cls(spec=spec, values=values, scale=scale, stretch=ranges)

    def read(self, row: int, col: int, out: Observation) -> bool:
        """See :meth:`FileSource.read`."""
        height, width = out.valid.shape
        window = self.values[:, row : row + height, col : col + width]
        with np.errstate(over="ignore", invalid="ignore"):
            if self.stretch is not None:
                apply_stretch(np.ma.getdata(window), self.stretch, out.values)
            else:
                np.copyto(out.values, np.ma.getdata(window), casting="unsafe")
            if self.scale != 1.0:
                np.multiply(out.values, np.float32(self.scale), out=out.values)
        if isinstance(window, np.ma.MaskedArray):
            out.valid[...] = ~np.ma.getmaskarray(window).all(axis=0)  # valid in any band is valid
        else:
            out.valid[...] = True
        if self.stretch is not None and window.dtype.kind == "f":
            np.logical_and(out.valid, np.isfinite(np.ma.getdata(window)).any(axis=0), out=out.valid)
            return False
        return not isinstance(window, np.ma.MaskedArray) and _finite(out.values)

    def blank(self, height: int, width: int) -> Observation:
        """See :meth:`FileSource.blank`."""
        return blank_observation(self.spec, height, width)

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
            "stretch": self.stretch,
        }


def _beyond(raw: NDArray[Any], lowest: float, highest: float) -> bool:
    """Whether some band holds no value between the two: a look at its extremes, which NaN fails."""
    return any(band.min() > highest or band.max() < lowest for band in raw)


def _finite(values: NDArray[Any]) -> bool:
    """Whether all are numbers, by the least and the largest, which NaN and infinity would be."""
    return values.dtype.kind != "f" or bool(np.isfinite(values.min()) and np.isfinite(values.max()))


def mark_invalid(spec: SensorSpec, out: Observation) -> None:
    """Mark what is no number as invalid."""
    if spec.dtype == "float32":
        np.logical_and(out.valid, np.isfinite(out.values).all(axis=0), out=out.valid)


def settle(spec: SensorSpec, out: Observation) -> None:
    """Mark what is no number as invalid, and replace what is invalid."""
    mark_invalid(spec, out)
    filled = fill_nodata(out.values, out.valid)
    if filled is not out.values:
        np.copyto(out.values, filled)


def blank_observation(spec: SensorSpec, height: int, width: int) -> Observation:
    """Memory for a window of that size."""
    values = np.empty((len(spec.bands), height, width), spec.dtype)
    return Observation(values=values, valid=np.empty((height, width), np.bool_))


AnySource: TypeAlias = "FileSource | Difference | ArraySource"


def open_source(
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
    stretch: Stretch | None = None,
    patience: Patience | None = None,
) -> FileSource:
    """A file or an open dataset, checked and brought onto the grid, if there is one yet.

    Args:
        stack: closes what is opened.
        what: messages call it: the sensor, ``dsm`` or ``dtm``.
        bands, scale_m, stretch: see :meth:`SensorRasters.open`.
        patience: see :attr:`FileSource.patience`.
    """
    with believed(what, given if isinstance(given, str | Path) else given.name):
        if isinstance(given, str | Path):
            name, file = given, stack.enter_context(open_raster(what, given, drivers))
        else:  # whoever opened it closes it
            name, file = given.name, given
        bands = sensor_bands(spec, name, file, bands, stretched=stretch is not None)
        scale, offset = to_metres(what, name, file, bands[0], scale_m) if spec.dtype == "float32" else (1, 0)
        view = file
        if grid is None:
            Grid.of(file, name=f"{what} {name}")  # refuses one that makes no sense
        else:
            view = onto_grid(file, grid, name=f"{what} {name}", grid_name=grid_name)
            stack.enter_context(view) if view is not file else None
        # a warped view has NaN where the file has no data
        nodata, masked = nodata_range(file, bands) if view is file else (None, False)
        source = FileSource(
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
            patience=patience,
        )
        if stretch is not None and spec.dtype == "uint8" and file.dtypes[bands[0] - 1] != "uint8":
            ranges = ranges_of(stretch, name, file, bands, source.alpha)
            log.info("%s is stretched to 8 bits, band by band: %s", name, ", ".join(f"{a:g}:{b:g}" for a, b in ranges))
            source = replace(source, stretch=ranges)
        _description(source)  # whatever is asked of the file later has an answer
        if not isinstance(given, str | Path) or drivers is not None or file.driver != "GTiff":
            return source

    def again(stack: ExitStack) -> FileSource:
        more = stack.enter_context(open_raster(what, given, drivers))
        if view is file:
            return replace(source, file=more, view=more)
        assert grid is not None
        warped = onto_grid(more, grid, name=f"{what} {name}", grid_name=grid_name, quiet=True)
        return replace(source, file=more, view=stack.enter_context(warped))

    return replace(source, again=again)


def open_difference(
    stack: ExitStack,
    models: HeightModels,
    spec: SensorSpec,
    grid: Grid | None,
    grid_name: str,
    drivers: Sequence[str] | None,
) -> Difference:
    """DSM and DTM on the grid, or on that of the DSM if there is none yet."""
    names = [f"dsm {models.dsm}", f"dtm {models.dtm}"]
    surface = open_source(stack, "dsm", models.dsm, spec, grid, grid_name, drivers)
    own = Grid.of(surface.file, name=names[0])
    if models.dtm is None:
        grid, grid_name = grid or own, grid_name or names[0]

        def rows(first: int, stop: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
            seen = surface.blank(stop - first, grid.width)
            surface.read(first, 0, seen)
            mark_invalid(spec, seen)
            return seen.values[0], seen.valid

        memory = stack.enter_context(ground_below(str(models.dsm), rows, grid))
        digest = hashlib.sha256(memory.getbuffer()).hexdigest()
        file = stack.enter_context(memory.open())
        terrain = open_source(stack, "dtm", file, spec, grid, grid_name, drivers)
        return Difference(spec=spec, surface=surface, terrain=terrain, found=digest)
    if surface.name == models.dtm:
        raise RasterFormatError(f"`dsm` and `dtm` are subtracted, and both are {models.dtm}: name the terrain as `dtm`")
    terrain = open_source(stack, "dtm", models.dtm, spec, grid or own, grid_name or names[0], drivers)
    check_overlap(Grid.of(terrain.file, name=names[1]), own, name=names[1], grid_name=names[0])
    check_datums(models, surface.file.crs, terrain.file.crs)
    return Difference(spec=spec, surface=surface, terrain=terrain)


def first_cause(error: BaseException) -> BaseException:
    """What began it: GDAL tells the reason first, and then at every level that something failed."""
    while (before := error.__cause__ or error.__context__) is not None:
        error = before
    return error


def _identity(source: FileSource) -> dict[str, Any]:
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
        "stretch": None if source.stretch is None else [list(each) for each in source.stretch],
    }


def _told(file: Any) -> tuple[Any, ...]:
    """What a file says of itself, sidecars included."""
    return (
        *(file.driver, file.width, file.height, file.dtypes, file.nodatavals, file.scales, file.offsets, file.units),
        *(file.colorinterp, None if file.crs is None else file.crs.to_wkt(), tuple(file.transform)),
        sorted(file.tags().items()),
    )


def _description(source: FileSource) -> dict[str, Any]:
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
        "stretch": source.stretch,
    }
