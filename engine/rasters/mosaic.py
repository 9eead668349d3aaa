"""Many maps as one: where each lies on the earth, and a virtual raster over all."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

from rasterio.crs import CRS
from rasterio.warp import transform_bounds

from engine.contract.bundle import NODATA_CLASS, ClassSpec
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


def mosaic_vrts(maps: Mapping[str, GridUsed], classes: Sequence[ClassSpec]) -> dict[str, bytes]:
    """All class maps as one raster for each CRS, which GDAL and QGIS open without copying a pixel.

    Args:
        maps: grid of each by its name relative to the file. Those that are not georeferenced, or are rotated, are left
            out.
        classes: names and colours.

    Returns:
        Files by name: ``classes.vrt``, or one for each CRS (https://gdal.org/en/stable/drivers/raster/vrt.html).
    """
    by_crs: dict[str, dict[str, GridUsed]] = {}
    for name, grid in sorted(maps.items()):
        if grid.crs is not None and grid.transform is not None and grid.transform[1] == grid.transform[3] == 0:
            by_crs.setdefault(grid.crs, {})[name] = grid
    if len(by_crs) == 1:
        return {"classes.vrt": _vrt(*by_crs.popitem(), classes)}
    names = {crs: re.sub(r"[^A-Za-z0-9]+", "-", crs)[:60] for crs in by_crs}
    return {f"classes-{names[crs]}.vrt": _vrt(crs, of, classes) for crs, of in by_crs.items()}


def _vrt(crs: str, maps: Mapping[str, GridUsed], classes: Sequence[ClassSpec]) -> bytes:
    sides = {name: _bounds(grid) for name, grid in maps.items()}
    left, top = min(each[0] for each in sides.values()), max(each[3] for each in sides.values())
    right, bottom = max(each[2] for each in sides.values()), min(each[1] for each in sides.values())
    pixel = min(abs(grid.transform[0]) for grid in maps.values() if grid.transform)
    size = {"rasterXSize": str(round((right - left) / pixel)), "rasterYSize": str(round((top - bottom) / pixel))}
    root = ElementTree.Element("VRTDataset", size)
    _add(root, "SRS", crs)
    _add(root, "GeoTransform", f"{left!r}, {pixel!r}, 0.0, {top!r}, 0.0, {-pixel!r}")
    band = _add(root, "VRTRasterBand", dataType="Byte", band="1")
    _add(band, "NoDataValue", str(NODATA_CLASS))
    _add(band, "ColorInterp", "Palette")
    table = _add(band, "ColorTable")
    for spec in classes:
        _add(table, "Entry", **dict(zip(("c1", "c2", "c3", "c4"), map(str, (*spec.rgb, 255)), strict=True)))
    for name, grid in maps.items():
        source = _add(band, "ComplexSource")
        _add(source, "SourceFilename", name, relativeToVRT="1")
        _add(source, "SourceBand", "1")
        width, height = str(grid.width), str(grid.height)  # told here, so that opening the whole opens no map
        _add(source, "SourceProperties", RasterXSize=width, RasterYSize=height, DataType="Byte")
        _add(source, "SrcRect", xOff="0", yOff="0", xSize=width, ySize=height)
        west, south, east, north = sides[name]
        place = {"xOff": (west - left) / pixel, "yOff": (top - north) / pixel}
        place |= {"xSize": (east - west) / pixel, "ySize": (north - south) / pixel}
        _add(source, "DstRect", **{side: repr(round(value, 6)) for side, value in place.items()})
        _add(source, "NODATA", str(NODATA_CLASS))
    return bytes(ElementTree.tostring(root, encoding="utf-8"))


def _bounds(grid: GridUsed) -> Degrees:
    """West, south, east, north of a grid that is not rotated, in its CRS."""
    assert grid.transform is not None
    a, _, c, _, e, f = grid.transform
    xs, ys = sorted((c, c + a * grid.width)), sorted((f, f + e * grid.height))
    return xs[0], ys[0], xs[1], ys[1]


def _add(parent: ElementTree.Element, tag: str, text: str | None = None, **attributes: str) -> ElementTree.Element:
    child = ElementTree.SubElement(parent, tag, attributes)
    child.text = text
    return child
