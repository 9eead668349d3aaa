"""What a few cheap statistics say about one sensor's tile; :mod:`engine.health.monitor` judges them.

They are cheap, because they look at every fourth pixel of 32 of a tile's rows, or at 16 of these rows: what they look
for (noise, light, a column that is stuck) lies everywhere in a tile or nowhere. Holes alone are counted in every pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine.contract.health import HealthLimits
from engine.health.colours import WHITE_GAIN, Colours, crippled, measure_changes, measure_colours
from engine.health.ground import Ground, measure_ground
from engine.health.lattice import SAMPLED_ROWS, Lattice, lattice_of
from engine.health.novelty import Signature, signature

if TYPE_CHECKING:
    from engine.rasters.sources import Observation

LEAST_SHARE = 1 / 32
"""With data in fewer of the sampled pixels nothing but holes and heights is measured."""
PART = 1 / 4
"""Holes and stuck columns are shares of the part that has data, or of this much where it is smaller."""
EDGE_LAG_PX = 8
EDGE_DN = 40
STAND_OUT = {"u": 4.0, "f": 0.25}
"""Least mean difference between a stuck column and its neighbour, in DN or metres (by kind of dtype)."""
STUCK_ROWS = 128
NARROW_PX = {"u": 32, "f": 2}
"""Widest strip of one value that is stuck; no camera image has one, but height has streets clipped to zero."""
NOISE_COLS = 100
GREY_MOMENTS = np.stack([np.arange(256.0), np.arange(256.0) ** 2], axis=1)
FAR_M = 5.0
"""Heights over such a range are far from constant."""
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
    """DN or metres; None of heights that are far from constant."""
    spread: tuple[float, ...] | None = None
    """Standard deviation of each band, DN or metres; of heights that are far from constant the least it can be."""
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
    lattice: Lattice | None = None
    """What is held against the other sensor; not kept longer than the tile."""


def measure(seen: Observation, limits: HealthLimits) -> TileStatistics:
    """All statistics of a tile: RGIR uint8 [3, T, T] or nDSM float32 [1, T, T], as :class:`Observation` has them."""
    values, valid = seen.values, seen.valid
    share = 1.0 if seen.whole else np.count_nonzero(valid) / valid.size
    whole = share == 1.0
    step = max(1, values.shape[1] // SAMPLED_ROWS)
    rows, row_px = slice(step // 2, None, step), step if not whole else 2 * step  # less than a tile: all of its rows
    fewer = slice(step // 2, None, row_px)
    half, half_mask = values[:, fewer], None if whole else valid[fewer]
    lattice = lattice_of(seen, whole=whole)
    checksum = lattice.checksum
    if not share:
        return TileStatistics(valid=0.0, hole_edges=0.0, checksum=checksum)
    edges = 0.0 if whole else _hole_edges(valid, share)
    if any(
        mask is not None and np.count_nonzero(mask) < LEAST_SHARE * mask.size for mask in (half_mask, lattice.valid)
    ):
        outside = _outside(lattice.values, limits, lattice.extent)
        return TileStatistics(valid=share, hole_edges=edges, checksum=checksum, outside=outside)
    stuck = 0.0
    if not whole or _maybe_stuck(half, values, checksum):
        mask = None if whole else valid[rows]
        columns = slice(step // 2, None, max(1, values.shape[2] // SAMPLED_ROWS))
        turned, turned_mask = values[:, :, columns].transpose(0, 2, 1), None if whole else valid[:, columns].T
        stuck = max(_stuck(values[:, rows], mask), _stuck(turned, turned_mask))
    common: dict[str, Any] = {
        "valid": share,
        "hole_edges": edges,
        "checksum": checksum,
        "stuck": stuck,
        "lattice": lattice,
        "signature": None if limits.repeats is None else signature(seen, lattice=lattice),
    }
    if values.dtype.kind == "f":
        mean, spread = _mean_and_spread(lattice)
        return TileStatistics(
            **common,
            mean=mean,
            spread=(spread,),
            outside=_outside(lattice.values, limits, lattice.extent),
            noise=_height_noise(half[0, ::4], None if half_mask is None else half_mask[::4]),
            ground=None
            if limits.ground is None
            else measure_ground(lattice, low_m=limits.ground.low_m, high_m=limits.ground.high_m),
        )
    half = np.ascontiguousarray(half)
    changes = measure_changes(half, half_mask, row_px)
    pixels = _pixels(half[:, ::2], None if half_mask is None else half_mask[::2])
    light, levels = _light(np.array([np.bincount(band, minlength=256) for band in pixels]))
    colours = None
    if limits.colours is not None and changes is not None:
        colours = measure_colours(changes, half, half_mask, crippled=levels, limits=limits.colours)
    return TileStatistics(**common, **light, noise=None if changes is None else changes.noise, colours=colours)


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


def _mean_and_spread(lattice: Lattice) -> tuple[float | None, float]:
    """Of heights: their mean and standard deviation."""
    lowest, highest = lattice.extent
    if highest - lowest > FAR_M and lattice.valid is None:  # if all but two were in the middle
        return None, (highest - lowest) / math.sqrt(2 * lattice.values.size)
    known = lattice.known_values
    rest = known - known[0]
    mean = float(np.add.reduce(rest)) / rest.size
    return float(known[0]) + mean, math.sqrt(max(float(rest @ rest) / rest.size - mean**2, 0.0))


def _hole_edges(valid: NDArray[np.bool_], share: float) -> float:
    along_rows = np.count_nonzero(valid[:, 1:] != valid[:, :-1])
    along_columns = np.count_nonzero(valid[1:] != valid[:-1])
    return float(max(along_rows, along_columns) / (valid.size * max(share, PART)))


def _outside(values: NDArray[Any], limits: HealthLimits, extent: tuple[float, float]) -> float | None:
    """Share of pixels; one without data holds the height of its neighbour."""
    lowest, highest = limits.min_height_m, limits.max_height_m
    if lowest is None or highest is None:
        return None
    if extent[0] >= lowest and extent[1] <= highest:  # the usual tile, without temporary arrays
        return 0.0
    return float(np.count_nonzero((values < lowest) | (values > highest)) / values.size)


def _light(histogram: NDArray[np.intp]) -> tuple[dict[str, Any], str]:
    """Mean, spread, bright end and saturation from the bands' histograms, [B, 256], and what is wrong with a band."""
    below = np.cumsum(histogram, axis=1)
    count = int(below[0, -1])
    moments = (histogram @ GREY_MOMENTS / count).tolist()
    brightest, clipped, wrong = 0, 0, ""
    for band, ladder in zip(histogram, below, strict=True):
        low, high, bright, top = ladder.searchsorted((0.05 * count, 0.95 * count, 0.99 * count, count)).tolist()
        brightest = max(brightest, bright)
        highest = int(band[top])
        if top == 255 or highest < count:  # a band of one level is constant
            clipped += highest
        wrong = wrong or crippled(band, count, low, high)
    light = {
        "mean": sum(mean for mean, _ in moments) / len(moments),
        "spread": tuple(math.sqrt(max(square - mean**2, 0.0)) for mean, square in moments),
        "bright": float(brightest),
        "saturated": clipped / (count * len(histogram)),
    }
    return light, wrong


def _height_noise(sample: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> float | None:
    """Standard deviation, in metres, of the noise in the calmest quarter of 100 places of some rows, [n, W].

    Walls and crowns are steps of metres, but some ground, roof or canopy is smooth in every tile: noise is what even
    the smallest quarter of the second differences cannot do without.
    """
    room = max(0, sample.shape[1] - 2)
    every = max(1, room // NOISE_COLS)
    here, beside, behind = (sample[:, lag : lag + room : every] for lag in range(3))
    second = here + behind
    second -= 2 * beside
    np.abs(second, out=second)
    if mask is None:
        second = second.ravel()
    else:
        second = second[np.logical_and.reduce([mask[:, lag : lag + room : every] for lag in range(3)])]
    if not second.size:
        return None
    quarter = second.size // 4
    return float(np.partition(second, quarter)[quarter] / (NORMAL_QUARTER * WHITE_GAIN))


def _maybe_stuck(half: NDArray[Any], values: NDArray[Any], number: int) -> bool:
    """Some column, or row, shows one value at four places: the usual tile of an image has none.

    Of the rows 128 are looked at: each is another line of memory. A tile in which 3 % of them are stuck has none of
    these among them once in 75 times.

    Args:
        half: some rows of the tile, [B, n, W].
        values: the tile, [B, H, W].
        number: any, other rows with another.
    """
    (_, height, width), count = values.shape, half.shape[1]
    if _any_alike(half[:, 0], [half[:, part * count // 4] for part in (1, 2, 3)]):
        return True
    every = max(1, height // STUCK_ROWS)
    rows = values[:, number % every :: every]
    return _any_alike(rows[:, :, 0], [rows[:, :, part * width // 4] for part in (1, 2, 3)])


def _any_alike(first: NDArray[Any], others: Sequence[NDArray[Any]]) -> bool:
    """All show the same at some place."""
    same = first == others[0]
    for other in others[1:]:
        same &= first == other
    return bool(same.any())


def _stuck(sample: NDArray[Any], mask: NDArray[np.bool_] | None) -> float:
    """Share of columns of ``sample`` [B, n, W] that are stuck, in the band that has most of them."""
    shown, enough = sample[:, 0], np.ones(sample.shape[2], np.bool_)
    if mask is None:
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
