"""The part of a raster that is to be mapped: a box, or the polygons of a vector file.

Vector files are read by pyogrio, of the extra ``gis``; a box needs none. Polygons are brought onto the raster's grid
once, edges cut into short pieces so that they bend as the projection does, and become a mask window by window: a pixel
belongs to the area if its centre does.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize
from rasterio.warp import transform as reproject_points

from engine.contract.errors import GridError, RasterFormatError, RasterOpenError, UsageError
from engine.grid import Window
from engine.rasters.georeference import GDAL_ERRORS, Grid
from engine.rasters.names import RasterName, gdal_name, raster_name, would_wait

if TYPE_CHECKING:
    from engine.contract.sensors import Sensor
    from engine.frames import Rasters
    from engine.rasters.sources import Observation

log = logging.getLogger(__name__)

AreaInput: TypeAlias = "RasterName | tuple[float, float, float, float]"
"""A vector file, ``FILE|layername=NAME`` where it has several layers; or left, bottom, right and top of a box, as text
``left,bottom,right,top`` in the raster's CRS, ``left,bottom,right,top@EPSG:4326`` in another."""

PIECES = 100
"""An edge as long as the whole area is cut into so many."""
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_BOX = re.compile(rf"\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*(?:@(.+))?")

_Ring = NDArray[np.float64]
"""x and y of the corners, [2, N]."""


@dataclass(frozen=True, kw_only=True)
class _Given:
    """Polygons as they were given, each as its outer ring and its holes."""

    name: str
    polygons: Sequence[Sequence[_Ring]]
    crs: CRS | None
    """None: that of the raster."""


@dataclass(frozen=True, kw_only=True)
class Area:
    """What is mapped of a raster.

    Attributes:
        name: how it was given.
        window: the pixels that hold all of it, in the raster.
        polygons: GeoJSON geometries in the raster's pixels: x is the column, y the row.
        bounds: of each, [N, 4]: left, top, right, bottom.
    """

    name: str
    window: Window
    polygons: Sequence[Mapping[str, Any]]
    bounds: NDArray[np.float64]

    @property
    def digest(self) -> str:
        """SHA-256 of where it lies."""
        return hashlib.sha256(repr((self.window, self.polygons)).encode()).hexdigest()

    def inside(self, window: Window) -> NDArray[np.bool_]:
        """Which pixels of a window of the raster belong to it, bool [h, w]."""
        left, top, right, bottom = self.bounds.T
        near = (left < window.col + window.width) & (right > window.col)
        near &= (top < window.row + window.height) & (bottom > window.row)
        shape = (window.height, window.width)
        if not near.any():
            return np.zeros(shape, np.bool_)
        shapes = [self.polygons[index] for index in np.flatnonzero(near).tolist()]
        mask = rasterize(shapes, shape, transform=Affine.translation(window.col, window.row), dtype=np.uint8)
        return np.asarray(mask).view(np.bool_)


def place(given: AreaInput, grid: Grid) -> Area:
    """An area on a raster's grid.

    Raises:
        UsageError: a box is none, or the extra that reads vector files is missing.
        RasterOpenError: the file cannot be read.
        RasterFormatError: it holds no polygons, or several layers of them.
        GridError: the area lies beside the raster, or nothing says where the raster lies.
    """
    found = _read(given)
    if grid.transform is None:
        raise GridError(
            f"`area` {found.name} needs a raster with a geotransform, to know where it lies: georeference it with "
            "`gdal_translate -a_srs -a_ullr`, or leave `area` away"
        )
    polygons = [[_to_pixels(ring, found, grid) for ring in rings] for rings in found.polygons]
    corners = np.concatenate([rings[0] for rings in polygons], axis=1)
    (left, top), (right, bottom) = np.floor(corners.min(axis=1)), np.ceil(corners.max(axis=1))
    left, top, right, bottom = max(0, left), max(0, top), min(grid.width, right), min(grid.height, bottom)
    if left >= right or top >= bottom:
        raise GridError(
            f"`area` must lie on the raster; {found.name} covers {_told(found)}, the raster {_extent(grid)}: check its "
            "numbers and its CRS, as with `gdalinfo` and `ogrinfo -so -al`"
        )
    bounds = [(*rings[0].min(axis=1), *rings[0].max(axis=1)) for rings in polygons]
    return Area(
        name=found.name,
        window=Window(row=int(top), col=int(left), height=int(bottom - top), width=int(right - left)),
        polygons=[{"type": "Polygon", "coordinates": [ring.T.tolist() for ring in rings]} for rings in polygons],
        bounds=np.array(bounds, np.float64),
    )


class WindowedRasters:
    """A window of rasters as rasters of their own; an :class:`engine.frames.Rasters`.

    Windows may reach beyond it: what lies there is read, for a model sees better with what is around.
    """

    def __init__(self, rasters: Rasters, window: Window) -> None:
        self._rasters, self._window = rasters, window
        transform = rasters.grid.transform
        if transform is not None:
            transform = transform @ Affine.translation(window.col, window.row)
        self.grid = replace(rasters.grid, width=window.width, height=window.height, transform=transform)

    def inside(self, window: Window) -> NDArray[np.bool_] | None:
        """See :meth:`engine.frames.Rasters.inside`."""
        return self._rasters.inside(self._moved(window))

    def read_into(
        self, window: Window, out: Mapping[Sensor, Observation]
    ) -> tuple[dict[Sensor, Observation], dict[Sensor, RasterOpenError]]:
        """See :meth:`engine.rasters.raster.SensorRasters.read_into`."""
        return self._rasters.read_into(self._moved(window), out)

    @contextmanager
    def in_order(self, windows: Callable[[], Iterator[Window]], *, readers: int = 1) -> Iterator[Self]:
        """See :meth:`engine.rasters.raster.SensorRasters.in_order`."""
        with self._rasters.in_order(lambda: map(self._moved, windows()), readers=readers) as ordered:
            mine = copy(self)
            mine._rasters = ordered
            yield mine

    def identity(self) -> Mapping[str, Any]:
        """See :meth:`engine.rasters.raster.SensorRasters.identity`."""
        return {**self._rasters.identity(), "window": astuple(self._window)}

    def describe(self) -> dict[str, dict[str, Any]]:
        """See :meth:`engine.rasters.raster.SensorRasters.describe`."""
        return self._rasters.describe()

    def _moved(self, window: Window) -> Window:
        return replace(window, row=window.row + self._window.row, col=window.col + self._window.col)


class AreaRasters(WindowedRasters):
    """Rasters of which an area is mapped."""

    def __init__(self, rasters: Rasters, area: Area) -> None:
        super().__init__(rasters, area.window)
        self.area = area

    def inside(self, window: Window) -> NDArray[np.bool_]:
        """See :meth:`engine.frames.Rasters.inside`."""
        return self.area.inside(self._moved(window))

    def identity(self) -> Mapping[str, Any]:
        """See :meth:`engine.rasters.raster.SensorRasters.identity`."""
        return {**self._rasters.identity(), "area": {"sha256": self.area.digest}}


class RowsRasters(WindowedRasters):
    """Rows of rasters that are mapped as those of the whole are, see :mod:`engine.rows`."""

    def __init__(self, rasters: Rasters, rows: Window) -> None:
        super().__init__(rasters, rows)
        self.grid = replace(self.grid, gcps=(), rpcs=None, whole_gsd_m=rasters.grid.gsd_m)


def _read(given: AreaInput) -> _Given:
    if isinstance(given, tuple):
        return _box(",".join(map(str, given)), given, None)
    text = str(given)
    if found := _BOX.fullmatch(text):
        *numbers, crs = found.groups()
        return _box(text, tuple(map(float, numbers)), crs)
    return _read_file(text)


def _box(text: str, numbers: tuple[float, ...], crs: str | None) -> _Given:
    if len(numbers) != 4 or not (numbers[0] < numbers[2] and numbers[1] < numbers[3]) or math.inf in map(abs, numbers):
        raise UsageError(f"`area` is left,bottom,right,top with left < right and bottom < top, received {text}")
    left, bottom, right, top = numbers
    try:
        named = None if crs is None else CRS.from_user_input(crs)
    except (*GDAL_ERRORS, ValueError) as error:
        raise UsageError(f"`area` names a CRS after @, as in @EPSG:4326; received {crs} ({error})") from error
    ring = np.array([(left, right, right, left, left), (bottom, bottom, top, top, bottom)], np.float64)
    return _Given(name=text, polygons=[[ring]], crs=named)


@lru_cache(maxsize=1)
def _read_file(text: str) -> _Given:
    """Every polygon of a layer. A list of rasters asks for one file again and again."""
    try:
        import pyogrio
        import shapely
    except ImportError as error:
        raise UsageError(
            f"`area` {text} is no box, and files are read by {error.name}: `pip install 'gemmnet-edge[gis]'`, or pass "
            "left,bottom,right,top"
        ) from error
    path, _, layer = text.partition("|layername=")
    name = raster_name(path)
    if would_wait(name):
        raise RasterOpenError(f"`area` {text} must be a file, received a pipe, a socket or a device: copy it to one")
    try:
        layers = pyogrio.list_layers(gdal_name(name))
        if not layer:
            flat = [str(each) for each, kind in layers if kind and not re.search("Point|Line", kind)]
            if len(flat) != 1:
                some = ", ".join(flat) if flat else "no layer of polygons"
                raise RasterFormatError(
                    f"`area` must be one layer of polygons; {path} has {some}: name one, as in `area` "
                    f"{path}|layername=NAME"
                )
            layer = flat[0]
        about, _, geometries, _ = pyogrio.raw.read(gdal_name(name), layer=layer, columns=[], force_2d=True)
        shapes = shapely.from_wkb(geometries)
        crs = None if about["crs"] is None else CRS.from_user_input(about["crs"])
    except (
        pyogrio.errors.DataSourceError,
        pyogrio.errors.DataLayerError,
        shapely.errors.GEOSException,
        OSError,
    ) as error:
        missing = isinstance(name, Path) and not name.exists()
        fault = "does not exist" if missing else "is no vector file that GDAL can read"
        raise RasterOpenError(f"`area` {text} {fault}: pass a file, or left,bottom,right,top ({error})") from error
    except (*GDAL_ERRORS, ValueError) as error:
        raise RasterOpenError(f"`area` {text} cannot be used ({error}): convert it with `ogr2ogr`") from error
    parts = shapely.get_parts([each for each in shapes if each is not None])
    polygons = parts[(shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(parts)]
    if not len(polygons):
        raise RasterFormatError(f"`area` must hold polygons; {text} has none: draw some, or pass left,bottom,right,top")
    if crs is None:
        log.warning("%s does not name its CRS: it is taken to be the raster's", text)
    rings = [[shapely.get_coordinates(ring).T for ring in (each.exterior, *each.interiors)] for each in polygons]
    return _Given(name=text, polygons=rings, crs=crs)


def _to_pixels(ring: _Ring, given: _Given, grid: Grid) -> _Ring:
    """Columns and rows of a ring's corners."""
    assert grid.transform is not None
    xs, ys = ring
    if given.crs is not None and grid.crs is not None and given.crs != grid.crs:
        longest = max(np.ptp(each) for rings in given.polygons for each in rings[0]) / PIECES
        xs, ys = _cut(ring, longest)
        try:
            xs, ys = (np.asarray(axis) for axis in reproject_points(given.crs, grid.crs, xs, ys))
        except GDAL_ERRORS as error:
            raise GridError(
                f"no way is known from {given.crs} of `area` {given.name} to {grid.crs}: reproject it with `ogr2ogr "
                f"-t_srs` first ({error})"
            ) from error
        if not np.isfinite((xs, ys)).all():
            raise GridError(
                f"`area` {given.name} reaches beyond where {grid.crs} holds: cut it to the raster, which covers "
                f"{_extent(grid)}"
            )
    a, b, c, d, e, f = (~grid.transform)[:6]
    return np.stack([a * xs + b * ys + c, d * xs + e * ys + f])


def _cut(ring: _Ring, longest: float) -> _Ring:
    """The ring with corners on its edges, so that none is longer."""
    lengths = np.hypot(*np.diff(ring))
    counts = np.maximum(1, np.ceil(lengths / longest)).astype(int) if longest > 0 else np.ones(len(lengths), int)
    at = np.concatenate([index + np.arange(count) / count for index, count in enumerate(counts)] + [[len(lengths)]])
    return np.stack([np.interp(at, np.arange(ring.shape[1]), axis) for axis in ring])


def _told(given: _Given) -> str:
    corners = np.concatenate([rings[0] for rings in given.polygons], axis=1)
    (left, bottom), (right, top) = corners.min(axis=1), corners.max(axis=1)
    return f"x {left:.7g}..{right:.7g}, y {bottom:.7g}..{top:.7g} ({given.crs or 'in its CRS'})"


def _extent(grid: Grid) -> str:
    assert grid.transform is not None
    a, b, c, d, e, f = grid.transform[:6]
    cols, rows = np.array([0, grid.width, grid.width, 0]), np.array([0, 0, grid.height, grid.height])
    xs, ys = a * cols + b * rows + c, d * cols + e * rows + f
    return f"x {xs.min():.7g}..{xs.max():.7g}, y {ys.min():.7g}..{ys.max():.7g} ({grid.crs or 'no CRS'})"
