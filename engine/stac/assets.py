"""The rasters of a STAC item, found by what its assets call their bands.

Read by pystac, of the extra ``stac``. Names of bands are the common names of the specification (``nir``, ``red``,
``green``), as ``bands`` in STAC 1.1 and ``eo:bands`` before; heights are found by the same names, by roles or by the
key of the asset. Bands that lie in a file each become one raster, a GDAL VRT that needs no file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from engine.contract.errors import GridError, RasterFormatError, RasterOpenError, UsageError, one_line
from engine.contract.sensors import Sensor
from engine.rasters.georeference import unreferenced_is_fine
from engine.rasters.height_models import HeightModels
from engine.rasters.names import RasterName, gdal_name, raster_name
from engine.rasters.opening import open_raster
from engine.rasters.raster import RasterInput
from engine.stac.reading import read_json

RGIR = ("nir", "red", "green")
NEAR_INFRARED = frozenset({"nir", "nir08"})
"""``nir08`` is the narrow one, of satellites that have no other."""
HEIGHTS = frozenset({"ndsm", "chm", "hag", "height", "height above ground"})
_TYPES = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32", "float64": "Float64"}
"""GDAL's names of types that imagery comes in."""


def rasters_of(name: str) -> tuple[dict[Sensor, RasterInput], tuple[int, int, int] | None]:
    """What a STAC item offers.

    Args:
        name: of the item's JSON: a file or a URL.

    Returns:
        A raster for each sensor that the item has, and which bands of RGIR are near infrared, red and green.

    Raises:
        UsageError: pystac is missing.
        RasterOpenError: the item cannot be read, or its server keeps silent.
        RasterFormatError: it has neither these bands nor heights.
        GridError: its bands lie in files that do not fit onto each other.
    """
    try:
        import pystac
    except ImportError as error:
        raise UsageError("`stac` is read by pystac: `pip install 'gemmnet-edge[stac]'`") from error
    hint = "pass an item's JSON"
    content = read_json(name, hint=hint)
    try:
        item = pystac.Item.from_dict(content, href=pystac.utils.make_absolute_href(name))
        item.make_asset_hrefs_absolute()
        assets = {
            key: (raster_name(asset.href), _bands(asset), [*_words(key, asset)]) for key, asset in item.assets.items()
        }
    except Exception as error:  # whatever is wrong with foreign JSON or its schema
        raise RasterOpenError(f"`stac` {name} is no STAC item that can be used ({one_line(error)}): {hint}") from error
    found: dict[Sensor, RasterInput] = {}
    chosen = None
    whole = [(href, bands) for href, bands, _ in assets.values() if all(_place(bands, each) for each in RGIR)]
    alone = [[href for href, bands, _ in assets.values() if len(bands) == 1 and _place(bands, each)] for each in RGIR]
    if whole:
        href, bands = whole[0]
        nir, red, green = (_place(bands, each) for each in RGIR)
        found[Sensor.RGIR], chosen = href, (nir, red, green)
    elif all(alone):
        found[Sensor.RGIR] = _stacked([files[0] for files in alone])
    heights = {word: href for href, _, words in assets.values() for word in words}
    height = next((heights[word] for word in sorted(HEIGHTS) if word in heights), None)
    if height is not None:
        found[Sensor.NDSM] = height
    elif "dsm" in heights and "dtm" in heights:
        found[Sensor.NDSM] = HeightModels(dsm=heights["dsm"], dtm=heights["dtm"])
    if not found:
        told = "; ".join(
            f"{key}: {', '.join(filter(None, bands)) or 'no names'}" for key, (_, bands, _) in assets.items()
        )
        raise RasterFormatError(
            f"a STAC item needs assets with the bands nir, red and green, or one of heights above ground; {name} has "
            f"{told or 'no assets'}: name the files with `rgir` and `ndsm`"
        )
    return found, chosen


def _bands(asset: Any) -> list[str]:
    """The common name of each band, else its name."""
    told: Sequence[Mapping[str, Any]] = asset.extra_fields.get("bands") or asset.extra_fields.get("eo:bands") or ()
    return [
        str(band.get("eo:common_name") or band.get("common_name") or band.get("name") or "").casefold() for band in told
    ]


def _place(bands: Sequence[str], wanted: str) -> int:
    """The number of a band, from 1; 0: it is not there."""
    names = NEAR_INFRARED if wanted == "nir" else {wanted}
    return next((number for number, band in enumerate(bands, 1) if band in names), 0)


def _words(key: str, asset: Any) -> Iterator[str]:
    for word in (key, *(asset.roles or ()), *_bands(asset)):
        yield str(word).casefold()


def _stacked(files: Sequence[RasterName]) -> str:
    """A VRT of the first bands of some files, as GDAL takes it in place of a name.

    https://gdal.org/en/stable/drivers/raster/vrt.html
    """
    with ExitStack() as stack, unreferenced_is_fine():
        opened = [stack.enter_context(open_raster("rgir", name)) for name in files]
        first = opened[0]
        for name, file in zip(files, opened, strict=True):
            if (file.width, file.height, file.transform, file.crs) != (
                *(first.width, first.height),
                *(first.transform, first.crs),
            ):
                raise GridError(f"bands in files of their own must lie on one grid; {name} and {files[0]} do not")
        types = {file.dtypes[0] for file in opened}
        if len(types) > 1 or not types <= set(_TYPES):
            raise RasterFormatError(
                f"bands in files of their own must be of one type, received {', '.join(sorted(types))}"
            )
        kind, place = _TYPES[types.pop()], ", ".join(repr(float(each)) for each in first.transform.to_gdal())
        parts = [f'<VRTDataset rasterXSize="{first.width}" rasterYSize="{first.height}">']
        if first.crs is not None:
            parts.append(f"<SRS>{escape(first.crs.to_wkt())}</SRS><GeoTransform>{place}</GeoTransform>")
        for number, (name, file) in enumerate(zip(files, opened, strict=True), 1):
            nodata = "" if file.nodata is None else f"<NoDataValue>{file.nodata!r}</NoDataValue>"
            source = f'<SourceFilename relativeToVRT="0">{escape(_opened_name(name))}</SourceFilename>'
            parts.append(
                f'<VRTRasterBand dataType={quoteattr(kind)} band="{number}">{nodata}<SimpleSource>{source}'
                "<SourceBand>1</SourceBand></SimpleSource></VRTRasterBand>"
            )
        return "".join([*parts, "</VRTDataset>"])


def _opened_name(name: RasterName) -> str:
    """A name for GDAL itself, which knows no URLs."""
    text = gdal_name(name)
    for scheme, prefix in (
        ("https://", "/vsicurl/"),
        ("http://", "/vsicurl/"),
        ("s3://", "/vsis3/"),
        ("gs://", "/vsigs/"),
    ):
        if text.startswith(scheme):
            return prefix + (text if prefix == "/vsicurl/" else text.removeprefix(scheme))
    return text
