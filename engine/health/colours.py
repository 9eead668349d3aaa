"""Do the bands of an image behave as near-infrared, red and green do? Statistics that no white balance changes.

Everything that stands on the ground shows in all bands at once: in the finest detail every band goes with the others,
least so near-infrared, in which vegetation is bright. So a band that goes with no other is dead or noise, one that goes
against them is inverted, two that are one are a copy, and the band that goes least with the other two is the infrared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DETAIL_PX = 4
COARSE_PX = 16
LEAST_PIXELS = 256
BITS = (5, 6)
"""Lower ones may be stuck without harm; the highest makes jumps."""
FEW = 1e-3
"""Of the pixels; so many may contradict that a bit is stuck."""
FEW_LEVELS = 4
LEAST_STRUCTURE_DN = 5.0
"""Over 16 px, of three bands together: an image that changes by less shows nothing that could be blurred."""
ROUNDING_DN = 0.5
"""Added to every standard deviation, in quadrature: what rounding to whole numbers does to a smooth band."""


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Statistics of one tile's three bands. Pairs are (NIR, red), (NIR, green), (red, green), by place."""

    detail: tuple[float, float, float]
    """Correlation of the bands' differences over 4 px."""
    coarse: tuple[float, float, float]
    """The same over 16 px."""
    difference: tuple[float, float, float]
    """Standard deviation of the difference of two bands, DN."""
    structure: float
    """How much more the mean of the bands changes over 16 px than from one pixel to the next; noise alone has 1."""
    blur: float
    """The same of an image that has structure, however smooth it is from one pixel to the next; 0 of others."""
    jumps: float
    """Share of neighbouring pixels that differ by 100 to 156 DN, of the band that has most: a damaged highest bit jumps
    by 128."""
    crippled: str
    """What is wrong with the grey levels of a band, in words: a bit that is the same in every pixel though the levels
    reach beyond what it counts, or four levels in all. Empty where nothing is."""

    @property
    def infrared(self) -> int:
        """Place of the band that goes least with the other two: 0 where the order is right."""
        return int(np.argmax((self.detail[2], self.detail[1], self.detail[0])))

    @property
    def disorder(self) -> float:
        """How many times more the second and third band leave unexplained of each other than the best pair does."""
        return (1.01 - self.detail[2]) / (1.01 - max(self.detail))


def measure_colours(
    sample: NDArray[np.uint8], mask: NDArray[np.bool_] | None, histogram: NDArray[np.intp]
) -> Colours | None:
    """The statistics of some rows of an image.

    Args:
        sample: uint8 [3, rows, W].
        mask: bool [rows, W], where there is data; None is everywhere.
        histogram: of each band, [3, 256].

    Returns:
        None where too few pixels have data.
    """
    values = sample[:, :, ::DETAIL_PX].astype(np.float32)
    detail = values[:, :, 1:] - values[:, :, :-1]
    wide = sample.astype(np.int16)
    fine = (wide[:, :, 1:] - wide[:, :, :-1]).reshape(3, -1)
    grey = wide[0, ::2] + wide[1, ::2] + wide[2, ::2]
    coarse, close = grey[:, COARSE_PX:] - grey[:, :-COARSE_PX], grey[:, 1:] - grey[:, :-1]
    across = COARSE_PX // DETAIL_PX
    wider = values[:, :, across:] - values[:, :, :-across]
    if mask is None:
        values, detail, wider = values.reshape(3, -1), detail.reshape(3, -1), wider.reshape(3, -1)
    else:
        some, beside = mask[:, ::DETAIL_PX], mask[:, 1:] & mask[:, :-1]
        wider = wider[:, some[:, across:] & some[:, :-across]]
        values, detail = values[:, some], detail[:, some[:, 1:] & some[:, :-1]]
        fine, close = fine[:, beside.ravel()], close[beside[::2]]
        coarse = coarse[mask[::2, COARSE_PX:] & mask[::2, :-COARSE_PX]]
    if min(detail.shape[1], wider.shape[1], coarse.size) < LEAST_PIXELS:
        return None
    level, step = _covariance(values), _covariance(detail)
    far, near = _power(coarse), _power(close)
    # whoever differs by 100 to 156 DN lies within 56 of 100, as an unsigned number
    leaps = (np.abs(fine) - np.int16(100)).view(np.uint16) <= 56
    jumps = int(np.count_nonzero(leaps, axis=1).max()) / fine.shape[1]
    return Colours(
        detail=_pairs(step),
        coarse=_pairs(_covariance(wider)),
        difference=_differences(level),
        structure=far / max(near, 3 * ROUNDING_DN),
        blur=far / max(near, ROUNDING_DN) if far > LEAST_STRUCTURE_DN else 0.0,
        jumps=jumps,
        crippled=next(filter(None, map(_crippled, histogram)), ""),
    )


def _power(steps: NDArray[np.int16]) -> float:
    """Root mean square."""
    flat = steps.ravel().astype(np.float32)
    return math.sqrt(float(flat @ flat) / flat.size)


def _covariance(values: NDArray[np.float32]) -> NDArray[np.float64]:
    centred = values - values.mean(axis=1, keepdims=True)
    covariance: NDArray[np.float64] = (centred @ centred.T / values.shape[1]).astype(np.float64)
    return covariance


def _pairs(covariance: NDArray[np.float64]) -> tuple[float, float, float]:
    (a, ab, ac), (_, b, bc), (_, _, c) = covariance.tolist()
    a, b, c = (each + ROUNDING_DN**2 for each in (a, b, c))
    return ab / math.sqrt(a * b), ac / math.sqrt(a * c), bc / math.sqrt(b * c)


def _differences(covariance: NDArray[np.float64]) -> tuple[float, float, float]:
    (a, ab, ac), (_, b, bc), (_, _, c) = covariance.tolist()
    first, second, third = (math.sqrt(max(each, 0.0)) for each in (a + b - 2 * ab, a + c - 2 * ac, b + c - 2 * bc))
    return first, second, third


def _crippled(histogram: NDArray[np.intp]) -> str:
    below = np.cumsum(histogram)
    low, high = np.searchsorted(below, (0.05 * below[-1], 0.95 * below[-1])).tolist()
    there = np.flatnonzero(histogram[low : high + 1])
    if len(there) > high - low + 1 - (1 << BITS[0]):  # the usual band
        return ""
    there += low
    if high - low >= 64 and len(there) <= FEW_LEVELS:
        return f"it shows {len(there)} grey levels in all"
    levels = np.arange(256)
    for bit in BITS:
        if high - low >= 2 << bit:
            ones = int(histogram[(levels >> bit) & 1 == 1].sum())
            if min(ones, int(below[-1]) - ones) < FEW * below[-1]:
                return f"bit {bit} is always {int(2 * ones > below[-1])}"
    return ""
