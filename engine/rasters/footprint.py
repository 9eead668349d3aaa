"""Where a raster lies on the globe, and when it was taken."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import rasterio
from rasterio.crs import CRS
from rasterio.warp import transform as reproject_points

from engine.rasters.georeference import GDAL_ERRORS, Grid, unreferenced_is_fine

WGS84 = CRS.from_epsg(4326)
POINTS_PER_SIDE = 8
"""A straight side is a curve on the globe."""
log = logging.getLogger(__name__)


def footprint(grid: Grid) -> list[tuple[float, float]] | None:
    """The outline of a grid as a closed ring of (longitude, latitude) in degrees, against the clock; None where nobody
    knows."""
    if grid.crs is None or grid.transform is None:
        return None
    steps = np.arange(POINTS_PER_SIDE) / POINTS_PER_SIDE
    corners = [(0, 0), (0, grid.height), (grid.width, grid.height), (grid.width, 0)]
    following = [*corners[1:], corners[0]]
    a, b, c, d, e, f = tuple(grid.transform)[:6]
    places = [
        (a * col + b * row + c, d * col + e * row + f)
        for (x, y), (to_x, to_y) in zip(corners, following, strict=True)
        for col, row in zip(x + (to_x - x) * steps, y + (to_y - y) * steps, strict=True)
    ]
    try:
        longitudes, latitudes = reproject_points(grid.crs, WGS84, *zip(*places, strict=True))
    except GDAL_ERRORS as error:
        log.warning("the place of the map cannot be told in longitude and latitude (%s)", error)
        return None
    if not np.isfinite([*longitudes, *latitudes]).all():
        return None
    ring = [(round(x, 7), round(y, 7)) for x, y in zip(longitudes, latitudes, strict=True)]
    area = sum(p[0] * q[1] - q[0] * p[1] for p, q in zip(ring, [*ring[1:], ring[0]], strict=True))
    ring = ring if area > 0 else ring[::-1]
    return [*ring, ring[0]]


def taken_at(path: Path) -> datetime:
    """When a raster was taken, UTC: by its tag ``TIFFTAG_DATETIME``, else when its file was last changed.

    Raises:
        OSError: there is no such file.
    """
    changed = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    try:
        with unreferenced_is_fine(), rasterio.open(path) as file:
            tag = file.tags().get("TIFFTAG_DATETIME", "")
        return datetime.strptime(tag, "%Y:%m:%d %H:%M:%S").replace(tzinfo=UTC)
    except (*GDAL_ERRORS, ValueError):
        return changed
