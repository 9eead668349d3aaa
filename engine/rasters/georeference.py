"""Pixel grids on the ground, and how one raster is brought onto another's grid.

What reading (:mod:`engine.rasters.raster`) and writing (:mod:`engine.rasters.cog`) share lies here.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # what rasterio lets through untranslated; it has no public name
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.vrt import WarpedVRT
from rasterio.warp import transform as reproject_points

from engine.contract.errors import GridError

log = logging.getLogger(__name__)

GDAL_ERRORS = (RasterioError, CPLE_BaseError)
ALIGNED_PX = 0.01
"""Grids whose corners differ by less are one grid: resampling would blur more than it would correct."""
METRES_PER_DEGREE = 111_320.0

CACHE_BYTES = 32 << 20
"""GDAL's block cache: enough for 512 px windows over a tiled raster of any width."""


@contextmanager
def gdal_environment(cache_bytes: int = CACHE_BYTES) -> Iterator[None]:
    """Bound GDAL's memory. A command line enters this once, in its main thread, so that it holds for every thread.

    JPEG and PNG files that end early are an error here; by GDAL's defaults they show grey or noise.
    """
    with rasterio.Env(GDAL_CACHEMAX=cache_bytes, GDAL_ERROR_ON_LIBJPEG_WARNING=True, GDAL_PNG_WHOLE_IMAGE_OPTIM=False):
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
    image that is placed by ground control points alone keeps them in ``gcps``.

    Raises:
        ValueError: a side is not positive.
    """

    width: int
    height: int
    crs: CRS | None
    transform: Affine | None
    gcps: tuple[GroundControlPoint, ...] = ()
    gcps_crs: CRS | None = None

    def __post_init__(self) -> None:
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"a grid needs positive sides, received {self.width} x {self.height}")

    @classmethod
    def of(cls, file: Any) -> Grid:
        """The grid of an opened rasterio dataset."""
        placed = file.transform != Affine.identity()  # GDAL's word for "no transform"
        gcps, gcps_crs = file.gcps
        return cls(
            width=file.width,
            height=file.height,
            crs=file.crs,
            transform=file.transform if placed else None,
            gcps=() if placed else tuple(gcps),
            gcps_crs=None if placed else gcps_crs,
        )

    @property
    def gsd_m(self) -> float | None:
        """Ground sampling distance in metres; None where the grid has no transform, or no CRS to give its unit.

        In a geographic CRS it is the geometric mean of both directions at the centre, on a sphere. A projection's
        own scale is not undone: Web Mercator overstates it by 1 / cos(latitude).
        """
        if self.transform is None or self.crs is None:
            return None
        side = math.sqrt(abs(self.transform.determinant))
        if self.crs.is_geographic:
            _, latitude = _apply(self.transform, self.width / 2, self.height / 2)
            return side * METRES_PER_DEGREE * math.sqrt(abs(math.cos(math.radians(latitude))))
        if self.crs.is_projected:
            return side * float(self.crs.linear_units_factor[1])
        return None


def onto_grid(file: Any, grid: Grid, *, name: str, grid_name: str) -> Any:
    """What to read of ``file`` so that every window is on ``grid``: the file itself, or a warped view of it.

    The file is read as it is where both grids agree within :data:`ALIGNED_PX`, and pixel by pixel where sizes agree
    but not both are georeferenced. Otherwise the view resamples bilinearly (averaging where the file is finer) and
    holds float32 with NaN wherever the file has no data.

    Args:
        name: what messages call the file.
        grid_name: what messages call the raster that the grid comes from.

    Raises:
        GridError: the file does not overlap the grid, or cannot be placed on it.
    """
    own = Grid.of(file)
    same_size = (own.width, own.height) == (grid.width, grid.height)
    sizes = f"{name} has {own.width} x {own.height} px, {grid_name} has {grid.width} x {grid.height} px"
    if own.transform is None or grid.transform is None:
        if not same_size:
            raise GridError(
                f"rasters must have the same size where not both are georeferenced; {sizes}: georeference both with "
                "`gdal_translate -a_srs -a_ullr`, or crop them to one size"
            )
        if own.transform is not grid.transform:
            log.warning("only one of %s and %s is georeferenced: reading them pixel by pixel", name, grid_name)
        return file
    outline = _outline_px(own, grid)
    corners = np.array([(0, own.width, own.width, 0), (0, 0, own.height, own.height)], float)
    if same_size and np.abs(outline[:, :: outline.shape[1] // 4] - corners).max() < ALIGNED_PX:
        return file
    _check_overlap(outline, grid, name, grid_name)
    log.info(
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
    crs = grid.crs or own.crs or CRS.from_epsg(3857)
    try:
        return WarpedVRT(
            file,
            src_crs=own.crs or crs,
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


def _outline_px(own: Grid, grid: Grid, per_side: int = 21) -> NDArray[np.float64]:
    """The outline of ``own`` as columns and rows of ``grid``, [2, 4 * per_side], from the first corner around."""
    assert own.transform is not None
    assert grid.transform is not None
    step, zero, one = np.linspace(0, 1, per_side, endpoint=False), np.zeros(per_side), np.ones(per_side)
    cols = np.concatenate([step, one, 1 - step, zero]) * own.width
    rows = np.concatenate([zero, step, one, 1 - step]) * own.height
    xs, ys = _apply(own.transform, cols, rows)
    # a world file places an image without naming its CRS: then the other raster's is the best guess
    if own.crs is not None and grid.crs is not None and own.crs != grid.crs:
        try:
            xs, ys = (np.asarray(axis) for axis in reproject_points(own.crs, grid.crs, xs, ys))
        except GDAL_ERRORS as error:
            raise GridError(f"no way is known from {own.crs} to {grid.crs}: warp both to one CRS ({error})") from error
    return np.stack(_apply(~grid.transform, xs, ys))


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
