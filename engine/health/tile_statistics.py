"""What a few cheap statistics say about one sensor's tile; :mod:`engine.health.monitor` judges them.

They are cheap, because they look at 32 of a tile's rows: what they look for (noise, light, a column that is stuck) lies
everywhere in a tile or nowhere. Holes alone are counted over every pixel.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.contract.health import HealthLimits
from engine.health.colours import Colours, measure_colours
from engine.health.ground import Ground, measure_ground
from engine.health.novelty import Signature, signature

if TYPE_CHECKING:
    from engine.rasters.sources import Observation

SAMPLED_ROWS = 32
LEAST_SHARE = 1 / 32
"""With data in fewer of the sampled pixels nothing but holes and heights is measured."""
PART = 1 / 4
"""Holes and stuck columns are shares of the part that has data, or of this much where it is smaller."""
EDGE_LAG_PX = 8
EDGE_DN = 40
STAND_OUT = {"u": 4.0, "f": 0.25}
"""Least mean difference between a stuck column and its neighbour, in DN or metres (by kind of dtype)."""
NARROW_PX = {"u": 32, "f": 2}
"""Widest strip of one value that is stuck; no camera image has one, but height has streets clipped to zero."""
WHITE_GAIN = math.sqrt(6)
"""The second difference x[i-1] - 2 x[i] + x[i+1] of white noise has so many times its standard deviation."""
GREY_MOMENTS = np.stack([np.arange(256.0), np.arange(256.0) ** 2], axis=1)
NORMAL_QUARTER = 0.31864
"""A quarter of a normal distribution lies within so many standard deviations."""


@dataclass(frozen=True, kw_only=True)
class TileStatistics:
    """The statistics of one tile. None: does not apply to the sensor, or too few pixels have data."""

    valid: float
    """Share of pixels with data."""
    hole_edges: float
    """Pairs of neighbours, along rows or columns, of which one has data and the other none, per pixel with data."""
    checksum: int
    """CRC-32 of the rows that are looked at."""
    mean: float | None = None
    """DN or metres."""
    spread: tuple[float, ...] | None = None
    """Standard deviation of each band, DN or metres."""
    bright: float | None = None
    """99th percentile of the brightest band, DN."""
    saturated: float | None = None
    """Share of values at the highest grey level of their band: at 255 DN, or where something else clips them."""
    outside: float | None = None
    """Share of pixels outside the range of heights that exist."""
    stuck: float | None = None
    """Share of columns, or of rows if that is more, that show one value; of the band that has most."""
    noise: float | None = None
    """Standard deviation of the noise, DN or metres."""
    colours: Colours | None = None
    ground: Ground | None = None
    signature: Signature | None = None


def measure(seen: Observation, limits: HealthLimits) -> TileStatistics:
    """All statistics of a tile: RGIR uint8 [3, T, T] or nDSM float32 [1, T, T], as :class:`Observation` has them."""
    values, valid = seen.values, seen.valid
    share = 1.0 if seen.whole else np.count_nonzero(valid) / valid.size
    whole = share == 1.0
    rows = slice(None, None, max(1, values.shape[1] // SAMPLED_ROWS))
    sample, mask = np.ascontiguousarray(values[:, rows]), None if whole else valid[rows]
    checksum = zlib.crc32(sample.data)
    if not share:
        return TileStatistics(valid=0.0, hole_edges=0.0, checksum=checksum)
    edges = 0.0 if whole else _hole_edges(valid, share)
    outside = _outside(sample, limits)
    if mask is not None and np.count_nonzero(mask) < LEAST_SHARE * mask.size:
        return TileStatistics(valid=share, hole_edges=edges, checksum=checksum, outside=outside)
    columns = slice(None, None, max(1, values.shape[2] // SAMPLED_ROWS))
    turned, turned_mask = values[:, :, columns].transpose(0, 2, 1), None if whole else valid[:, columns].T
    stuck = max(_stuck(sample, mask), _stuck(turned, turned_mask))
    half, half_mask = sample[:, ::2], None if mask is None else mask[::2]
    if values.dtype.kind == "f":
        pixels = _pixels(sample, mask)
        mean = float(pixels.mean())
        return TileStatistics(
            valid=share,
            hole_edges=edges,
            checksum=checksum,
            mean=mean,
            spread=(_spread(pixels, mean),),
            outside=outside,
            stuck=stuck,
            noise=_height_noise(half[:, ::2], None if half_mask is None else half_mask[::2]),
            ground=None
            if limits.ground is None
            else measure_ground(
                values[0], None if whole else valid, low_m=limits.ground.low_m, high_m=limits.ground.high_m
            ),
            signature=None if limits.repeats is None else signature(seen),
        )
    histogram = np.stack([np.bincount(band, minlength=256) for band in _pixels(half, half_mask)])
    return TileStatistics(
        valid=share,
        hole_edges=edges,
        checksum=checksum,
        **_light(histogram),
        stuck=stuck,
        noise=_image_noise(half[:, ::2], None if half_mask is None else half_mask[::2]),
        colours=None if limits.colours is None else measure_colours(half, half_mask, histogram),
        signature=None if limits.repeats is None else signature(seen),
    )


def strong_edges(image: Observation) -> float:
    """Share of pixels that differ from the one 8 px further along the row by more than 40 DN, in each band.

    Of the band that has fewest. Towns have about 0.16, water and open land below 0.08.
    """
    rows = slice(None, None, max(1, image.values.shape[1] // SAMPLED_ROWS))
    sample = image.values[:, rows].astype(np.int16)
    strong = np.abs(sample[:, :, EDGE_LAG_PX:] - sample[:, :, :-EDGE_LAG_PX]) > EDGE_DN
    known = image.valid[rows, EDGE_LAG_PX:] & image.valid[rows, :-EDGE_LAG_PX]
    if not known.any():
        return 0.0
    return float((strong & known).sum(axis=(1, 2)).min() / known.sum())


def _pixels(sample: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[Any]:
    """The values with data, [B, n]."""
    flat = sample.reshape(len(sample), -1)
    return flat if mask is None else np.compress(mask.ravel(), flat, axis=1)


def _spread(values: NDArray[np.float32], mean: float) -> float:
    """Standard deviation."""
    rest = values.ravel() - np.float32(mean)
    return math.sqrt(float(rest @ rest) / rest.size)


def _hole_edges(valid: NDArray[np.bool_], share: float) -> float:
    along_rows = np.count_nonzero(valid[:, 1:] != valid[:, :-1])
    along_columns = np.count_nonzero(valid[1:] != valid[:-1])
    return float(max(along_rows, along_columns) / (valid.size * max(share, PART)))


def _outside(values: NDArray[Any], limits: HealthLimits) -> float | None:
    """Share of pixels; one without data holds the height of its neighbour."""
    lowest, highest = limits.min_height_m, limits.max_height_m
    if lowest is None or highest is None:
        return None
    if values.min() >= lowest and values.max() <= highest:  # the usual tile, without temporary arrays
        return 0.0
    return float(np.count_nonzero((values < lowest) | (values > highest)) / values.size)


def _light(histogram: NDArray[np.intp]) -> dict[str, Any]:
    """Mean, spread, bright end and saturation from the bands' histograms, [B, 256]."""
    below = np.cumsum(histogram, axis=1)
    count = below[:, -1]
    means, squares = (histogram.astype(np.float64) @ GREY_MOMENTS / count[:, None]).T
    variances = squares - means**2
    top = 255 - np.argmax(histogram[:, ::-1] > 0, axis=1)
    lit = np.flatnonzero((top == 255) | (np.count_nonzero(histogram, axis=1) > 1))  # a band of one level is constant
    bright = (below < 0.99 * count[:, None]).sum(axis=1)
    return {
        "mean": float(means.mean()),
        "spread": tuple(float(each) for each in np.sqrt(np.maximum(variances, 0.0))),
        "bright": float(bright.max()),
        "saturated": float(histogram[lit, top[lit]].sum() / histogram.sum()),
    }


def _second_differences(sample: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    """x[i-1] - 2 x[i] + x[i+1] along rows, of pixels that all have data, [B, n]."""
    values = sample.astype(np.float32)
    second = values[:, :, 2:] + values[:, :, :-2]
    second -= 2 * values[:, :, 1:-1]
    return _pixels(second, None if mask is None else mask[:, 2:] & mask[:, 1:-1] & mask[:, :-2])


def _image_noise(sample: NDArray[Any], mask: NDArray[np.bool_] | None) -> float | None:
    """Standard deviation, in DN, of the finest detail of a band that the other bands do not share; the worst band's.

    Leaves, tiles and gravel show in all bands at once, a sensor's noise does not. The residual variance of each band
    after regression on the others is the reciprocal of the diagonal of the inverse covariance matrix (Whittaker,
    Graphical Models in Applied Multivariate Statistics, 1990, section 5.8).
    """
    second = _second_differences(sample, mask)
    if not second.shape[1]:
        return None
    covariance = second @ second.T / second.shape[1]
    # a quarter DN squared of what rounding to whole numbers adds anyway keeps identical bands invertible
    precision = np.linalg.inv(covariance.astype(np.float64) + 0.25 * np.eye(len(second)))
    return float(np.sqrt(1 / np.diag(precision)).max() / WHITE_GAIN)


def _height_noise(sample: NDArray[Any], mask: NDArray[np.bool_] | None) -> float | None:
    """Standard deviation, in metres, of the noise in the calmest quarter of the tile.

    Walls and crowns are steps of metres, but some ground, roof or canopy is smooth in every tile: noise is what even
    the smallest quarter of the second differences cannot do without.
    """
    second = np.abs(_second_differences(sample, mask)[0])
    if not second.size:
        return None
    quarter = second.size // 4
    return float(np.partition(second, quarter)[quarter] / (NORMAL_QUARTER * WHITE_GAIN))


def _stuck(sample: NDArray[Any], mask: NDArray[np.bool_] | None) -> float:
    """Share of columns of ``sample`` [B, n, W] that are stuck, in the band that has most of them."""
    shown, enough = sample[:, 0], np.ones(sample.shape[2], np.bool_)
    if mask is None:
        few = sample[:, :: max(1, sample.shape[1] // 4)]
        if not (few == few[:, :1]).all(axis=1).any():  # the usual tile: four of its rows tell
            return 0.0
        constant = (sample == shown[:, None]).all(axis=1)
    else:
        # pixels without data hold a neighbour's value: a column has to show one value where it has data
        shown = np.take_along_axis(sample, mask.argmax(axis=0)[None, None], axis=1)[:, 0]
        enough = mask.sum(axis=0) >= len(mask) // 2
        constant = ((sample == shown[:, None]) | ~mask).all(axis=1) & enough
    if not constant.any():  # the usual tile
        return 0.0
    if (constant | ~enough).all():  # a raster of one row is mirrored into columns of one value
        return 0.0
    judged = max(int(enough.sum()), int(PART * enough.size))
    return max(map(_stuck_columns, sample, shown, constant), default=0) / judged


def _stuck_columns(band: NDArray[Any], shown: NDArray[Any], constant: NDArray[np.bool_]) -> int:
    """How many columns of ``band`` [n, W] are stuck, of those that show one value each, ``shown`` [W].

    Water clipped to black and ground clipped to zero fill columns too. What tells stuck columns: neighbours that
    stay at different values, or a narrow strip that stands out.
    """
    kind = band.dtype.kind
    narrow = NARROW_PX[kind]
    level = shown.astype(np.float32)
    count = 0
    for start, stop in np.flatnonzero(np.diff(constant, prepend=False, append=False)).reshape(-1, 2):
        inner = np.abs(np.diff(level[start:stop])).max(initial=0.0)
        beside = [column for column in (start - 1, stop) if 0 <= column < band.shape[1]]
        steps = (np.abs(band[:, column].astype(np.float32) - level[start]).mean() for column in beside)
        outer = max(steps, default=0.0)
        if max(inner, outer if stop - start <= narrow else 0.0) >= STAND_OUT[kind]:
            count += int(stop - start)
    return count
