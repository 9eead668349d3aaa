"""A sensor raster opened, and what it says of itself checked before it is believed."""

from __future__ import annotations

import logging
import math
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import rasterio
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.windows import Window

from engine.contract.bands import SensorSpec
from engine.contract.errors import RasterFormatError, RasterOpenError
from engine.contract.sensors import Sensor
from engine.contract.tiff import unfinished
from engine.rasters.georeference import GDAL_ERRORS
from engine.rasters.names import RasterName, gdal_name, local_file, would_wait

log = logging.getLogger(__name__)

METRE_NAMES = frozenset({"", "m", "metre", "metres", "meter", "meters"})
TIFF_DRIVERS = frozenset({"GTiff", "COG"})
LONGEST_LIST = 12
"""So many bands are named in a message."""
_BAND_NAMES = (
    frozenset({"nir", "nearinfrared", "nearir", "infrared", "ir", "n"}),
    frozenset({"red", "r"}),
    frozenset({"green", "g"}),
)
"""What near infrared, red and green are called, letters alone; the first of each is GDAL's colour interpretation."""
SAMPLE_PX = 128
"""Side of the windows in which an alpha band is looked at."""


def open_raster(what: str, name: RasterName, drivers: Sequence[str] | None = None) -> Any:
    """The opened file.

    Args:
        what: messages call it, as its sensor.
        name: of the file.
        drivers: of GDAL, for a file from outside. It must be a regular file then, no link, and GDAL looks at no other
            file for its sake: none beside it, none that it names, none on a network.

    A TIFF that ends before the value of a tag does is refused even where GDAL could read its pixels: GDAL only warns,
    and goes on without a scale or a nodata value. Missing pixels show when they are read.

    Raises:
        RasterOpenError: it is missing, unreadable, truncated, or a container of several rasters.
    """
    path = local_file(name)
    if would_wait(name):
        raise RasterOpenError(
            f"{what} raster {name} must be a file, received a pipe, a socket or a device: copy it to one"
        )
    try:
        file = rasterio.open(gdal_name(name)) if drivers is None else _open_closed(what, name, drivers)
    # a name can be refused before GDAL sees it: bytes that are no UTF-8, a scheme that wants another package
    except (*GDAL_ERRORS, OSError, ValueError, TypeError, ImportError) as error:
        missing = path is not None and not _is_there(path)
        fault = "does not exist" if missing else "is not a raster that GDAL can read"
        raise RasterOpenError(f"{what} raster {name} {fault}: check the path given as {what} ({error})") from error
    try:
        if not file.count and file.subdatasets:
            raise RasterOpenError(
                f"{what} raster {name} is a container of {len(file.subdatasets)} rasters: pass one of them as "
                f"{what}: {', '.join(file.subdatasets[:5])}"
            )
        missing_part = unfinished(path, tags_only=True) if path is not None and file.driver in TIFF_DRIVERS else None
        if missing_part is not None:
            raise RasterOpenError(
                f"{what} raster {name} is truncated or damaged, and what it says of itself is not whole: "
                f"{missing_part}; copy it again"
            )
    except BaseException:
        file.close()
        raise
    return file


def _open_closed(what: str, name: RasterName, drivers: Sequence[str]) -> Any:
    """A regular file opened by the first of the drivers that can, and nothing else with it."""
    path = local_file(name)
    if path is None or not stat.S_ISREG(path.lstat().st_mode):
        raise RasterOpenError(f"{what} raster {name} must be a regular file, no link and no device: replace it")
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED=False):
        for driver in drivers[:-1]:
            with suppress(*GDAL_ERRORS):
                return rasterio.open(gdal_name(name), driver=driver)
        return rasterio.open(gdal_name(name), driver=drivers[-1])


@contextmanager
def believed(what: str, name: RasterName) -> Iterator[None]:
    """Around what asks an opened file about itself: GDAL reads some tags late, and may find them damaged only then.

    Raises:
        RasterOpenError: they are.
    """
    try:
        yield
    except (*GDAL_ERRORS, OSError, ValueError, TypeError, OverflowError, MemoryError) as error:
        raise RasterOpenError(
            f"{what} raster {name} is truncated or damaged, and what it says of itself cannot be read ({error}): "
            "copy it again"
        ) from error


def sensor_bands(
    spec: SensorSpec, name: RasterName, file: Any, chosen: tuple[int, ...] | None, *, stretched: bool = False
) -> tuple[int, ...]:
    """The 1-based bands that carry the sensor, after checking their number and dtype.

    Those of RGIR that are not chosen are the ones that call themselves so; else they are all but alpha, in order.

    Raises:
        RasterFormatError: bands or dtype are not the sensor's, or an alpha band is none.
        RasterOpenError: an alpha band cannot be read.
    """
    data = tuple(band for band in file.indexes if file.colorinterp[band - 1] != ColorInterp.alpha)
    told = _told_bands(file) if spec.sensor is Sensor.RGIR and not chosen else None
    bands = chosen or told or data
    if told not in (None, data):
        log.info("near infrared, red and green are bands %s, %s, %s of %s, as it says itself", *bands, name)
    if len(bands) != len(spec.bands) or not set(bands) <= set(file.indexes):
        names = ", ".join(band.name for band in spec.bands)
        asked = f" and {','.join(map(str, bands))} was asked for" if chosen else ""
        hint = "pass a one-band raster"
        if spec.sensor is Sensor.RGIR:
            hint = "choose them, as in `rgir_bands=4,1,2`"
            if not chosen and len(data) > len(spec.bands):
                asked = f", which call themselves {', '.join(_names_of_bands(file)[:LONGEST_LIST])}"
        raise RasterFormatError(
            f"{spec.sensor} needs {len(spec.bands)} band(s) ({names}) besides alpha; "
            f"{name} has {len(data)}{asked}: {hint}"
        )
    for band in alpha_bands(file, bands):
        _check_alpha(name, file, band)
    dtypes = sorted({file.dtypes[band - 1] for band in bands})
    if spec.dtype == "uint8" and dtypes != ["uint8"] and not (stretched and len(dtypes) == 1):
        raise RasterFormatError(
            f"{spec.sensor} must be 8-bit (uint8, 0..255); {name} holds {', '.join(dtypes)}: pass "
            "`stretch`, as in percent, or rescale it with `gdal_translate -ot Byte -scale`"
        )
    if any(dtype.startswith("complex") for dtype in dtypes):
        raise RasterFormatError(f"{spec.sensor} must hold real numbers; {name} holds {dtypes[0]}: pass its real part")
    return bands


def _told_bands(file: Any) -> tuple[int, ...] | None:
    """The bands that call themselves near infrared, red and green; None where not exactly one does for each.

    A description counts before the colour interpretation, which many a false-colour image has as red, green, blue.
    """
    found = [
        [band for band, said in zip(file.indexes, _names_of_bands(file), strict=True) if _is_called(said, names)]
        for names in _BAND_NAMES
    ]
    return tuple(bands[0] for bands in found) if all(len(bands) == 1 for bands in found) else None


def _names_of_bands(file: Any) -> list[str]:
    """The description of each band, or its colour interpretation where there is none."""
    return [said or mark.name for said, mark in zip(file.descriptions, file.colorinterp, strict=True)]


def _is_called(said: str, names: frozenset[str]) -> bool:
    """Whether ``Band 4: Near-Infrared`` is one of the names."""
    plain = re.sub(r"^(band|b)?[\W_]*\d+", "", said.casefold().strip())
    return re.sub(r"[\W_]", "", plain) in names


def alpha_bands(file: Any, bands: tuple[int, ...]) -> tuple[int, ...]:
    """The bands marked alpha that are not among ``bands``: one that was asked for is data, whatever its mark says."""
    return tuple(band for band in file.indexes if file.colorinterp[band - 1] == ColorInterp.alpha and band not in bands)


def _check_alpha(name: RasterName, file: Any, band: int) -> None:
    """GDAL marks the fourth of four 8-bit bands as alpha unless told otherwise, a near-infrared band too."""
    if np.dtype(file.dtypes[band - 1]).kind != "u":
        return
    samples = []
    try:
        for row in spread(file.height):
            for col in spread(file.width):
                samples.append(file.read(band, window=Window(col, row, SAMPLE_PX, SAMPLE_PX)).ravel())
    except GDAL_ERRORS as error:
        raise RasterOpenError(f"{name} cannot be read in its middle: it is truncated or damaged ({error})") from error
    seen = np.concatenate(samples)
    seen = seen[seen > 0]
    if not seen.size or seen.max() == 1:
        return  # nothing, or a mask of 0 and 1
    between = float((seen < np.iinfo(seen.dtype).max).mean())
    if between > 0.5:
        raise RasterFormatError(
            f"an alpha band tells valid (255) from invalid (0); band {band} of {name} is marked alpha, but "
            f"{between:.0%} of its values lie between: if it is near infrared, pass `rgir_bands={band},1,2`, else "
            f"take the mark away with `gdal_edit.py -colorinterp_{band} undefined`"
        )


def spread(length: int, count: int = 3) -> list[int]:
    """Where ``count`` windows of :data:`SAMPLE_PX` begin that look at both ends and the middle of ``length`` pixels."""
    last = max(0, length - SAMPLE_PX)
    return sorted({last * index // (count - 1) for index in range(count)})


def to_metres(what: str, name: RasterName, file: Any, band: int, scale_m: float | None) -> tuple[float, float]:
    """Scale and offset that turn raw values into metres.

    Args:
        what: messages call the raster: ``ndsm``, ``dsm`` or ``dtm``.
        name, file, band: which values they are.
        scale_m: metres per unit, after the file's own tags; None trusts those.

    Raises:
        RasterFormatError: nothing says what the unit is, or the scale or the offset is no number to compute with.
    """
    scale, offset = float(file.scales[band - 1]), float(file.offsets[band - 1])
    for tag, value, usable in (("scale", scale, _factor(scale)), ("offset", offset, offset == 0 or _factor(offset))):
        if not usable:
            raise RasterFormatError(
                f"the {tag} tag of {what} must be a finite number{' other than 0' * (tag == 'scale')}; {name} "
                f"says {tag} {value:g}: correct it with `gdal_edit.py -{tag} VALUE`"
            )
    dtype, unit = file.dtypes[band - 1], (file.units[band - 1] or "").lower()
    if scale_m is not None:
        if not (scale_m > 0 and _factor(scale_m) and _factor(scale * scale_m)):
            raise RasterFormatError(f"{what}_scale_m must be a positive number of metres, received {scale_m}")
        return scale * scale_m, offset * scale_m
    hint = "pass ndsm_scale_m, metres per unit (0.1 for decimetres, 1 for metres)"
    if what != Sensor.NDSM:
        hint = "say so in the file, as with `gdal_edit.py -units m -scale 0.1` (decimetres; 1 for metres)"
    if unit not in METRE_NAMES:
        raise RasterFormatError(f"{what} must be in metres; {name} says its unit is {unit!r}: {hint}")
    told = (scale, offset) != (1.0, 0.0) or (unit and what != Sensor.NDSM)
    if not dtype.startswith("float") and not told:
        raise RasterFormatError(
            f"{what} in whole numbers needs a scale, for they may be decimetres; {name} holds {dtype} without "
            f"a scale tag: {hint}"
        )
    return scale, offset


def nodata_range(file: Any, bands: tuple[int, ...]) -> tuple[tuple[float, float] | None, bool]:
    """The range of raw values that means nodata, and whether GDAL's mask has to be read instead.

    Alpha bands count as no mask here: GDAL uses one only where it is the last of two or four bands, and then also for
    a band that was marked alpha by mistake. See :func:`alpha_bands`.
    """
    flags = [file.mask_flag_enums[band - 1] for band in bands]
    if all(MaskFlags.all_valid in flag or MaskFlags.alpha in flag for flag in flags):
        return None, False
    tags = {file.nodatavals[band - 1] for band in bands}
    dtypes = {np.dtype(file.dtypes[band - 1]) for band in bands}
    if any(flag != [MaskFlags.nodata] for flag in flags) or len(tags) > 1 or len(dtypes) > 1:
        return None, True
    # comparing here instead of asking for the mask saves GDAL a second reading of every window
    tag, dtype = tags.pop(), dtypes.pop()
    if tag is None:
        return None, True  # no number of this dtype: GDAL decides
    if not math.isfinite(tag):
        return None, False  # NaN and infinity are invalid anyway, and whole numbers hold neither
    if dtype.kind != "f":
        return ((int(tag), int(tag)) if tag.is_integer() else None), False
    limits = np.finfo(dtype)
    tolerance = 4 * float(limits.eps) * abs(tag)
    return (max(tag - tolerance, float(limits.min)), min(tag + tolerance, float(limits.max))), False


def _factor(value: float) -> bool:
    """Whether float32 pixels can be multiplied by it and still mean something; NaN and infinity fail."""
    limits = np.finfo(np.float32)
    return float(limits.tiny) <= abs(value) <= float(limits.max)


def _is_there(path: Any) -> bool:
    try:
        return bool(path.exists())
    except (OSError, ValueError):  # a name too long for the file system, or one with a NUL
        return False
