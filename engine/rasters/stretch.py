"""Imagery of 16 bits or in floating point, brought to the 8 bits that a model reads: a straight line for each band.

The line runs through two values of a band that become 0 and 255; what lies beyond is cut off. They are percentiles of
the whole raster, the ends of a scale of reflectance, or numbers, so that neighbouring rasters can be stretched alike.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.contract.errors import RasterFormatError, RasterOpenError, UsageError
from engine.contract.formats import MalformedError, from_json, read_file
from engine.contract.sensors import Sensor
from engine.rasters.georeference import GDAL_ERRORS
from engine.rasters.names import RasterName

Range: TypeAlias = tuple[float, float]
"""The values of a band that become 0 and 255."""

PERCENT = (2.0, 98.0)
SAMPLE_PX = 4_000_000
"""Percentiles are taken of about so many pixels, evenly spread over the raster."""
_PERCENT = re.compile(r"percent(?:=([\d.]+),([\d.]+))?")
_REFLECTANCE = re.compile(r"reflectance(?:=([\d.eE+-]+))?")
_RUN = "run.json"


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """How the bands of RGIR become 8 bits.

    Attributes:
        ranges: of near infrared, red, green; None where they are percentiles of each raster.
        percent: which percentiles.
    """

    ranges: tuple[Range, ...] | None = None
    percent: Range = PERCENT

    def __post_init__(self) -> None:
        low, high = self.percent
        if not 0 <= low < high <= 100:
            raise UsageError(f"`stretch` takes percentiles as in percent=2,98, received {low:g},{high:g}")
        for low, high in self.ranges or ():
            if not (low < high and math.isfinite(high - low)):
                raise UsageError(f"`stretch` takes a band's low:high with low < high, received {low:g}:{high:g}")

    def check_for_frames(self) -> None:
        """See that it is the same for every frame.

        Raises:
            UsageError: it is not.
        """
        if self.ranges is None:
            raise UsageError(
                "percentiles are of one raster, and frames must all be stretched alike: pass `stretch` as "
                "reflectance=VALUE, as numbers, or as the run.json of a run over one of them"
            )


class _Raster(msgspec.Struct):
    stretch: tuple[Range, ...] | None = None


class _Run(msgspec.Struct):
    inputs: dict[str, _Raster] | None = None


def parse_stretch(text: str) -> Stretch:
    """What ``--stretch`` says.

    >>> parse_stretch("reflectance=10000").ranges
    ((0.0, 10000.0), (0.0, 10000.0), (0.0, 10000.0))
    >>> parse_stretch("90:3000,60:1800,70:1500").ranges[1]
    (60.0, 1800.0)

    Raises:
        UsageError: it cannot be understood, or names a run that had none.
    """
    if found := _PERCENT.fullmatch(text):
        return Stretch() if found[1] is None else Stretch(percent=(_number(found[1]), _number(found[2])))
    if found := _REFLECTANCE.fullmatch(text):
        return Stretch(ranges=((0.0, _number(found[1] or "1")),) * 3)
    pairs = [part.split(":") for part in text.split(",")]
    if len(pairs) == 3 and all(len(pair) == 2 for pair in pairs):
        return Stretch(ranges=tuple((_number(low), _number(high)) for low, high in pairs))
    path = Path(text)
    path = path / _RUN if path.is_dir() else path
    if path.name != _RUN:
        raise UsageError(
            "`stretch` is percent, percent=LOW,HIGH, reflectance=VALUE, LOW:HIGH for each of NIR, red and green, as in "
            f"90:3000,60:1800,70:1500, or the run.json of an earlier run; received {text!r}"
        )
    try:
        told = from_json(read_file(path), _Run)
    except (OSError, MalformedError) as error:
        raise UsageError(f"`stretch` {path} cannot be read ({error}): pass the run.json of an earlier run") from error
    ranges = (told.inputs or {}).get(Sensor.RGIR, _Raster()).stretch
    if ranges is None:
        raise UsageError(f"`stretch` {path} is of a run whose imagery was not stretched: pass percent, or numbers")
    return Stretch(ranges=ranges)


def ranges_of(stretch: Stretch, name: RasterName, file: Any, bands: tuple[int, ...], alpha: tuple[int, ...]) -> Any:
    """The range of each band of an opened raster: as given, or its percentiles over the whole raster.

    One pass over the smallest overview that has enough pixels, or over every n-th pixel where there are none.

    Raises:
        RasterFormatError: it holds nothing to stretch.
        RasterOpenError: it cannot be read.
    """
    if stretch.ranges is not None:
        return stretch.ranges
    step = max(1.0, math.sqrt(file.width * file.height / SAMPLE_PX))
    shape = (max(1, round(file.height / step)), max(1, round(file.width / step)))
    ranges = []
    try:
        opaque = (file.read(alpha, out_shape=(len(alpha), *shape)) > 0).all(axis=0) if alpha else True
        for band in bands:
            valid = (file.read_masks(band, out_shape=shape) > 0) if not alpha else opaque
            ranges.append(_percentiles(stretch, name, file.read(band, out_shape=shape), valid))
    except GDAL_ERRORS as error:
        raise RasterOpenError(f"rgir raster {name} cannot be read ({error}): copy it again") from error
    return tuple(ranges)


def ranges_of_array(stretch: Stretch, values: NDArray[Any]) -> tuple[Range, ...]:
    """:func:`ranges_of` for an array [3, H, W], which may be masked."""
    if stretch.ranges is not None:
        return stretch.ranges
    step = max(1, math.isqrt(values[0].size // SAMPLE_PX))
    seen = values[:, ::step, ::step]
    return tuple(_percentiles(stretch, "array", np.ma.getdata(band), ~np.ma.getmaskarray(band)) for band in seen)


def apply_stretch(raw: NDArray[Any], ranges: tuple[Range, ...], out: NDArray[np.uint8]) -> None:
    """``raw`` [3, h, w] as 8 bits; what is no number becomes 0."""
    for band, (low, high), into in zip(raw, ranges, out, strict=True):
        line = (band.astype(np.float32) - np.float32(low)) * np.float32(255 / (high - low))
        np.copyto(into, np.rint(np.nan_to_num(line, copy=False, nan=0.0)).clip(0, 255), casting="unsafe")


def _percentiles(stretch: Stretch, name: object, values: NDArray[Any], valid: Any) -> Range:
    seen = values[valid & np.isfinite(values)]
    if not seen.size:
        raise RasterFormatError(
            f"rgir raster {name} holds no pixel with data to stretch: look at it with gdalinfo -stats"
        )
    low, high = (float(each) for each in np.percentile(seen, stretch.percent))
    if low == high:
        raise RasterFormatError(
            f"a band is stretched between two values, and the percentiles {stretch.percent[0]:g} and "
            f"{stretch.percent[1]:g} of {name} are both {low:g}: give `stretch` as numbers"
        )
    return low, high


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"`stretch` takes numbers, received {text!r}") from error
