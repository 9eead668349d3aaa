"""Pixel grids on the ground, and how one raster is brought onto another's grid.

What reading (:mod:`engine.rasters.raster`) and writing (:mod:`engine.rasters.cog`) share lies here.
"""

from __future__ import annotations

import logging
import math
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rasterio
from affine import Affine, AffineError
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what rasterio lets through untranslated; it has no public name
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.rpc import RPC
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as reproject_points

from engine.contract.errors import GridError
from engine.contract.proj import ignore_foreign_proj_data

log = logging.getLogger(__name__)

GDAL_ERRORS = (RasterioError, CPLE_BaseError)
ALIGNED_PX = 0.01
"""Grids whose corners differ by less are one grid: resampling would blur more than it would correct."""
METRES_PER_DEGREE = 111_320.0

CACHE_BYTES = 32 << 20
"""GDAL's block cache: enough for 512 px windows over a tiled raster of any width."""


_NETWORK = {
    "GDAL_HTTP_CONNECTTIMEOUT": "10",
    "GDAL_HTTP_LOW_SPEED_TIME": "30",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
    "GDAL_HTTP_TIMEOUT": "120",
    "GDAL_HTTP_MAX_RETRY": "2",
}
"""Seconds, and bytes a second: by GDAL's defaults a server that says nothing is waited for without end
(https://gdal.org/en/stable/user/configoptions.html#networking-options)."""


@contextmanager
def gdal_environment(cache_bytes: int = CACHE_BYTES) -> Iterator[None]:
    """Bound GDAL's memory and its patience. A command line enters this once, in its main thread, so that it holds for
    every thread.

    JPEG and PNG files that end early are an error here; by GDAL's defaults they show grey or noise. A network option
    that is set in the environment stays as it is there.
    """
    ignore_foreign_proj_data()
    network = {name: value for name, value in _NETWORK.items() if name not in os.environ}
    with rasterio.Env(
        GDAL_CACHEMAX=cache_bytes, GDAL_ERROR_ON_LIBJPEG_WARNING=True, GDAL_PNG_WHOLE_IMAGE_OPTIM=False, **network
    ):
        yield


@contextmanager
def unreferenced_is_fine() -> Iterator[None]:
    """Silence rasterio's warning about images without georeferencing, which are welcome here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The pixel grid of a raster.

    ``transform`` maps (column, row) to ``crs`` coordinates. It is None when the image is not georeferenced; an
    image that is placed by ground control points alone keeps them in ``gcps``, one placed by a camera model in
    ``rpcs``.

    Raises:
        ValueError: a side is not positive.
    """

    width: int
    height: int
    crs: CRS | None
    transform: Affine | None
    gcps: tuple[GroundControlPoint, ...] = ()
    gcps_crs: CRS | None = None
    rpcs: RPC | None = None
    whole_gsd_m: float | None = None
    """Of the raster that the grid is a part of; None: it is no part."""

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"a grid needs positive sides, received {self.width} x {self.height}")

    @classmethod
    def of(cls, file: Any, *, name: str = "") -> Grid:
        """The grid of an opened rasterio dataset.

        Args:
            file: opened.
            name: what messages call it.

        Raises:
            GridError: its transform or a ground control point is no number, or the transform maps all to a line.
        """
        name = name or str(file.name)
        placed = file.transform != Affine.identity()  # GDAL's word for "no transform"
        gcps, gcps_crs = file.gcps
        if placed and not _invertible(file.transform):
            raise GridError(
                f"a raster's geotransform must map every pixel to a place of its own; {name} has "
                f"{tuple(file.transform)[:6]}: georeference it again, as with `gdal_edit.py -a_ullr`"
            )
        if not all(math.isfinite(number) for point in gcps for number in (point.row, point.col, point.x, point.y)):
            raise GridError(f"ground control points must be finite numbers; {name} has others: set them again")
        return cls(
            width=file.width,
            height=file.height,
            crs=file.crs,
            transform=file.transform if placed else None,
            gcps=() if placed else tuple(gcps),
            gcps_crs=None if placed else gcps_crs,
            rpcs=None if placed or gcps else file.rpcs,
        )

    @property
    def placed_by(self) -> str | None:
        """By what the image is placed where no transform can say it, in words."""
        return "ground control points" if self.gcps else "a camera model (RPC)" if self.rpcs is not None else None

    @property
    def gsd_m(self) -> float | None:
        """Ground sampling distance in metres; None where the grid has no transform, or no CRS to give its unit.

        In a geographic CRS it is the geometric mean of both directions at the centre, on a sphere. A projection's
        own scale is not undone: Web Mercator overstates it by 1 / cos(latitude).
        """
        if self.whole_gsd_m is not None:
            return self.whole_gsd_m
        if self.transform is None or self.crs is None:
            return None
        side = math.sqrt(abs(self.transform.determinant))
        if self.crs.is_geographic:
            _, latitude = _apply(self.transform, self.width / 2, self.height / 2)
            return side * METRES_PER_DEGREE * math.sqrt(abs(math.cos(math.radians(latitude))))
        if self.crs.is_projected:
            return side * float(self.crs.linear_units_factor[1])
        return None


def onto_grid(file: Any, grid: Grid, *, name: str, grid_name: str, quiet: bool = False) -> Any:
    """What to read of ``file`` so that every window is on ``grid``: the file itself, or a warped view of it.

    The file is read as it is where both grids agree within :data:`ALIGNED_PX`, and pixel by pixel where sizes agree
    but not both are georeferenced. Otherwise the view resamples bilinearly (averaging where the file is finer) and
    holds float32 with NaN wherever the file has no data.

    Args:
        name: what messages call the file.
        grid_name: what messages call the raster that the grid comes from.
        quiet: log nothing; it has been said.

    Raises:
        GridError: the file does not overlap the grid, or cannot be placed on it.
    """
    level = logging.DEBUG if quiet else logging.INFO
    own = Grid.of(file, name=name)
    same_size = (own.width, own.height) == (grid.width, grid.height)
    sizes = f"{name} has {own.width} x {own.height} px, {grid_name} has {grid.width} x {grid.height} px"
    if (own.placed_by or grid.placed_by) and not (same_size and _placed_alike(own, grid)):
        where, placed = (name, own) if own.placed_by else (grid_name, grid)
        option = "-tps" if placed.gcps else "-rpc"
        raise GridError(
            f"rasters must be on one grid, or placed by a transform each; {where} is placed by {placed.placed_by}: "
            f"warp it first with `gdalwarp {option} -t_srs EPSG:... in.tif out.tif`"
        )
    if own.transform is None or grid.transform is None:
        if not same_size:
            raise GridError(
                f"rasters must have the same size where not both are georeferenced; {sizes}: georeference both with "
                "`gdal_translate -a_srs -a_ullr`, or crop them to one size"
            )
        if own.transform is not grid.transform:
            log.warning("only one of %s and %s is georeferenced: reading them pixel by pixel", name, grid_name)
        return file
    own, own_crs, grid_crs = _comparable(own, grid)
    outline = _to_grid_px(own, grid, _outline(own), own_crs, grid_crs)
    corners = np.array([(0, own.width, own.width, 0), (0, 0, own.height, own.height)], float)
    if same_size and np.abs(outline[:, :: outline.shape[1] // 4] - corners).max() < ALIGNED_PX:
        return file
    _check_overlap(outline, grid, name, grid_name)
    back = _to_grid_px(grid, own, outline, grid_crs, own_crs)
    if not (np.abs(back - _outline(own)) < max(1.0, 0.01 * max(own.width, own.height))).all(axis=0).any():
        raise GridError(
            f"{name} overlaps {grid_name}, but no point of it is found again on the way back from {grid.crs} to "
            f"{own.crs}: warp it with `gdalwarp -t_srs` first"
        )
    log.log(
        level,
        "%s is warped onto the grid of %s (bilinear): its first corner lies at column %.2f, row %.2f, its pixels "
        "span %.3f; CRS %s -> %s",
        name,
        grid_name,
        *outline[:, 0],
        math.sqrt(_polygon_area(outline) / (own.width * own.height)),
        own.crs,
        grid.crs,
    )
    # with no CRS at all both are in the same unnamed one; GDAL wants a name, and any will do
    crs = grid_crs or own_crs or CRS.from_epsg(3857)
    try:
        return WarpedVRT(
            file,
            src_crs=own_crs or crs,
            src_transform=own.transform,
            crs=crs,
            transform=grid.transform,
            width=grid.width,
            height=grid.height,
            resampling=Resampling.bilinear,
            dtype="float32",
            src_nodata=file.nodata,
            nodata=math.nan,
        )
    except GDAL_ERRORS as error:
        raise GridError(
            f"{name} cannot be warped onto the grid of {grid_name}: warp it with `gdalwarp` first ({error})"
        ) from error


def _invertible(transform: Affine) -> bool:
    try:
        return all(math.isfinite(number) for number in (*transform, *~transform))
    except (AffineError, ZeroDivisionError, OverflowError):
        return False


def _placed_alike(own: Grid, grid: Grid) -> bool:
    """Whether both are placed by the same points or the same camera model, as bands of one camera are."""

    def points(each: Grid) -> list[tuple[float, ...]]:
        return [(point.row, point.col, point.x, point.y) for point in each.gcps]

    if own.transform is not None or grid.transform is not None:
        return False
    return (points(own), own.gcps_crs, own.rpcs) == (points(grid), grid.gcps_crs, grid.rpcs)


def _comparable(own: Grid, grid: Grid) -> tuple[Grid, CRS | None, CRS | None]:
    """``own`` and the CRS of both, such that one place has one longitude.

    180 degrees east are 180 degrees west, and some count longitudes from 0 to 360. PROJ answers in -180..180, so that
    a raster beyond that range would lie elsewhere on the way back: its CRS is told to count around the raster's middle.
    """
    assert own.transform is not None
    if own.crs is None or grid.crs is None:
        return own, own.crs, grid.crs
    if own.crs != grid.crs:
        if any(each.crs.is_geographic and _beyond_180(each) for each in (own, grid) if each.crs is not None):
            return own, _counting_around_its_middle(own), _counting_around_its_middle(grid)
        return own, own.crs, grid.crs
    if own.crs.is_geographic:  # equal CRSs are never transformed: the raster is moved by whole turns
        turns = round((sum(_longitudes(grid)) - sum(_longitudes(own))) / 2 / 360)
        own = replace(own, transform=Affine.translation(360 * turns, 0) @ own.transform) if turns else own
    return own, own.crs, grid.crs


def _longitudes(grid: Grid) -> tuple[float, float]:
    """The westernmost and the easternmost of a geographic grid."""
    assert grid.transform is not None
    longitudes, _ = _apply(grid.transform, *_outline(grid))
    return float(longitudes.min()), float(longitudes.max())


def _beyond_180(grid: Grid) -> bool:
    """Whether a geographic grid has longitudes that PROJ would not answer with; one wider than the globe has no middle
    to count around.
    """
    west, east = _longitudes(grid)
    return max(-west, east) > 180 + 1e-9 and east - west < 361


def _counting_around_its_middle(grid: Grid) -> CRS | None:
    """The CRS of a grid; a geographic one with longitudes that count around the grid's middle, all else alike.

    ``CENTER_LONG`` is GDAL's own extension for this. The name must be new and the authority's code gone, for GDAL keeps
    transformations by them and would answer with one that counts otherwise.
    """
    if grid.crs is None or not grid.crs.is_geographic:
        return grid.crs
    middle = f"{sum(_longitudes(grid)) / 2:.6f}"
    wkt = re.sub(r',AUTHORITY\["[^"]*","[^"]*"\]\]$', "]", grid.crs.to_wkt(version="WKT1_GDAL"))
    wkt = re.sub(r'^GEOGCS\["', f'GEOGCS["around {middle}: ', wkt)
    return CRS.from_wkt(f'{wkt[:-1]},EXTENSION["CENTER_LONG","{middle}"]]')


def _outline(grid: Grid, per_side: int = 21) -> NDArray[np.float64]:
    """Columns and rows along the border, [2, 4 * per_side], from the first corner around."""
    step, zero, one = np.linspace(0, 1, per_side, endpoint=False), np.zeros(per_side), np.ones(per_side)
    return np.stack(
        [
            np.concatenate([step, one, 1 - step, zero]) * grid.width,
            np.concatenate([zero, step, one, 1 - step]) * grid.height,
        ]
    )


def _to_grid_px(
    own: Grid, grid: Grid, points: NDArray[np.float64], own_crs: CRS | None, grid_crs: CRS | None
) -> NDArray[np.float64]:
    """Columns and rows of ``own``, [2, N], as columns and rows of ``grid``; infinite where there is no way."""
    assert own.transform is not None
    assert grid.transform is not None
    xs, ys = _apply(own.transform, *points)
    # a world file places an image without naming its CRS: then the other raster's is the best guess
    if own_crs is not None and grid_crs is not None and own_crs != grid_crs:
        try:
            xs, ys = (np.asarray(axis) for axis in reproject_points(own_crs, grid_crs, xs, ys))
        except GDAL_ERRORS as error:
            raise GridError(f"no way is known from {own.crs} to {grid.crs}: warp both to one CRS ({error})") from error
    return np.stack(_apply(~grid.transform, xs, ys))


def check_overlap(own: Grid, grid: Grid, *, name: str, grid_name: str) -> None:
    """See that two grids overlap, as far as both say where they lie.

    Raises:
        GridError: they do not.
    """
    if own.transform is not None and grid.transform is not None:
        own, own_crs, grid_crs = _comparable(own, grid)
        _check_overlap(_to_grid_px(own, grid, _outline(own), own_crs, grid_crs), grid, name, grid_name)


def _check_overlap(outline: NDArray[np.float64], grid: Grid, name: str, grid_name: str) -> None:
    assert grid.transform is not None
    seen = outline[:, np.isfinite(outline).all(axis=0)]
    if seen.size and (seen.min(axis=1) < (grid.width, grid.height)).all() and (seen.max(axis=1) > 0).all():
        return
    here = _bounds(grid.transform, np.array([(0, grid.width, grid.width, 0), (0, 0, grid.height, grid.height)], float))
    there = _bounds(grid.transform, seen) if seen.size else "nothing"
    raise GridError(
        f"rasters must overlap; in {grid.crs or 'their CRS'} {grid_name} covers {here} and {name} covers {there}: "
        "check that both show the same place and carry the right CRS"
    )


def _apply(transform: Affine, cols: Any, rows: Any) -> tuple[Any, Any]:
    a, b, c, d, e, f = transform[:6]
    return a * cols + b * rows + c, d * cols + e * rows + f


def _bounds(transform: Affine, outline: NDArray[np.float64]) -> str:
    xs, ys = _apply(transform, *outline)
    return f"x {xs.min():.7g}..{xs.max():.7g}, y {ys.min():.7g}..{ys.max():.7g}"


def _polygon_area(outline: NDArray[np.float64]) -> float:
    xs, ys = outline
    return abs(float(xs @ np.roll(ys, -1) - ys @ np.roll(xs, -1))) / 2
