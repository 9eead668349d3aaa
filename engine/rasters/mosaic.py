"""Many maps as one: where each lies on the earth."""

from __future__ import annotations

import math

from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from engine.rasters.georeference import GDAL_ERRORS
from engine.record import GridUsed

Degrees = tuple[float, float, float, float]
"""West, south, east, north in WGS 84."""


def bounds_in_degrees(grid: GridUsed) -> Degrees | None:
    """The bounds of a map in WGS 84; None where it is not georeferenced, or lies nowhere on the earth.

    West is above east where the map lies across the antimeridian.
    """
    if grid.crs is None or grid.transform is None:
        return None
    a, b, c, d, e, f = grid.transform
    corners = [(a * x + b * y + c, d * x + e * y + f) for x in (0, grid.width) for y in (0, grid.height)]
    xs, ys = zip(*corners, strict=True)
    try:
        found = transform_bounds(CRS.from_string(grid.crs), CRS.from_epsg(4326), min(xs), min(ys), max(xs), max(ys))
    except GDAL_ERRORS:
        return None
    if not all(map(math.isfinite, found)):
        return None
    west, south, east, north = (round(number, 7) for number in found)
    return west, south, east, north
