"""Do the bands of an image behave as near-infrared, red and green do? Statistics that no white balance changes.

Everything that stands on the ground shows in all bands at once: in the finest detail every band goes with the others,
least so near-infrared, in which vegetation is bright. So a band that goes with no other is dead or noise, one that goes
against them is inverted, two that are one are a copy, and the band that goes least with the other two is the infrared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from engine.contract.health import ColourLimits

DETAIL_PX = 4
COARSE_PX = 16
LEAST_PIXELS = 256
LEAST_PLACES = 200
"""So many places that lie 16 px apart are needed: there the correlation of bands that have nothing to do with each
other strays by 1 / sqrt(200) = 0.07, half of the mildest limit. A tile of 512 px has 496, one of 128 px has 56."""
BITS = (5, 6)
"""Lower ones may be stuck without harm; the highest makes jumps."""
FEW = 1e-3
"""Of the pixels; so many may contradict that a bit is stuck."""
FEW_LEVELS = 4
JUMP_DN = 100
CHANGE_COLS = 84
LEAST_STRUCTURE_DN = 5.0
"""Over 16 px, of three bands together: an image that changes by less shows nothing that could be blurred."""
ROUNDING_DN = 0.5
"""Added to every standard deviation, in quadrature: what rounding to whole numbers does to a smooth band."""
WHITE_GAIN = math.sqrt(6)
"""The second difference x[i-1] - 2 x[i] + x[i+1] of white noise has so many times its standard deviation."""
SECOND_ROUNDING = 0.25
"""A quarter DN squared of what rounding to whole numbers adds anyway keeps identical bands invertible."""
Moments: TypeAlias = list[list[float]]
"""Mean products of three bands, 3 x 3."""


@dataclass(frozen=True, kw_only=True)
class Colours:
    """Statistics of one tile's three bands. Pairs are (NIR, red), (NIR, green), (red, green), by place."""

    detail: tuple[float, float, float]
    """Correlation of the bands' differences over 4 px."""
    coarse: tuple[float, float, float]
    """The same over 16 px."""
    difference: tuple[float, float, float]
    """Standard deviation of the difference of two bands, DN; where it changes over 16 px anyway, at least that."""
    structure: float
    """How much more the mean of the bands changes over 16 px than from one pixel to the next; noise alone has 1."""
    blur: float
    """The same of an image that has structure, however smooth it is from one pixel to the next; 0 of others."""
    jumps: float
    """Share of neighbouring pixels that differ by 100 to 156 DN, of the band that has most: a damaged highest bit jumps
    by 128. Where that cannot be many, the most it can be."""
    crippled: str
    """What is wrong with the grey levels of a band, in words: a bit that is the same in every pixel though the levels
    reach beyond what it counts, or four levels in all. Empty where nothing is."""
    few: bool = False
    """Too few places have data for the correlations to mean anything."""

    @property
    def infrared(self) -> int:
        """Place of the band that goes least with the other two: 0 where the order is right."""
        return int(np.argmax((self.detail[2], self.detail[1], self.detail[0])))

    @property
    def inverted(self) -> float:
        """By how much less the detail of the infrared goes with red's and green's than what is coarse does; 0 where it
        goes with either."""
        if max(self.detail[:2]) >= 0:
            return 0.0
        return min(wide - fine for fine, wide in zip(self.detail[:2], self.coarse[:2], strict=True))

    @property
    def together(self) -> float:
        """How well red and green go together, in detail or at large, whichever is less."""
        return min(self.detail[2], self.coarse[2])

    @property
    def shared(self) -> float:
        """How well the detail of the band that goes least with the others goes with one of them."""
        return sorted(self.detail)[1]

    @property
    def disorder(self) -> float:
        """How many times more the second and third band leave unexplained of each other than the best pair does."""
        return (1.01 - self.detail[2]) / (1.01 - max(self.detail))


@dataclass(frozen=True, kw_only=True)
class Changes:
    """How three bands change along rows, together: mean products of their differences, DN squared."""

    near: Moments
    """Over one pixel."""
    detail: Moments
    """Over 4 px."""
    wide: Moments
    """Over 16 px."""
    second: Moments
    """Of x[i-1] - 2 x[i] + x[i+1]."""
    places: int
    """How many of the places with data lie at least 16 px apart."""

    @property
    def noise(self) -> float:
        """Standard deviation, in DN, of the finest detail of a band that the other bands do not share; the worst's.

        Leaves, tiles and gravel show in all bands at once, a sensor's noise does not. The residual variance of each
        band after regression on the others is the reciprocal of the diagonal of the inverse covariance matrix
        (Whittaker, Graphical Models in Applied Multivariate Statistics, 1990, section 5.8).
        """
        (a, ab, ac), (_, b, bc), (_, _, c) = self.second
        a, b, c = a + SECOND_ROUNDING, b + SECOND_ROUNDING, c + SECOND_ROUNDING
        minors = b * c - bc * bc, a * c - ac * ac, a * b - ab * ab
        determinant = a * minors[0] - ab * (ab * c - bc * ac) + ac * (ab * bc - b * ac)
        return math.sqrt(max(determinant, 0.0) / min(minors)) / WHITE_GAIN


def measure_changes(sample: NDArray[np.uint8], mask: NDArray[np.bool_] | None, row_px: int) -> Changes | None:
    """The changes at some 84 places of some rows of an image.

    Args:
        sample: uint8 [3, rows, W].
        mask: bool [rows, W], where there is data; None is everywhere.
        row_px: from one of the rows to the next.

    Returns:
        None where too few pixels have data.
    """
    every, room = max(1, sample.shape[2] // CHANGE_COLS), sample.shape[2] - COARSE_PX
    if room < 1:
        return None
    values = sample.astype(np.float32)
    here, beside, behind, there, beyond = (
        values[:, :, lag : lag + room : every] for lag in (0, 1, 2, DETAIL_PX, COARSE_PX)
    )
    steps = np.empty((4, *here.shape), np.float32)
    np.subtract(beside, here, out=steps[0])
    np.subtract(there, here, out=steps[1])
    np.subtract(beyond, here, out=steps[2])
    np.subtract(behind, beside, out=steps[3])
    flat = steps.reshape(12, -1)
    if mask is not None:
        places = [mask[:, lag : lag + room : every] for lag in (0, 1, 2, DETAIL_PX, COARSE_PX)]
        flat = flat[:, np.logical_and.reduce(places).ravel()]
    if flat.shape[1] < LEAST_PIXELS:
        return None
    total = flat.shape[1]
    products = (flat @ flat.T).tolist()
    near, detail, wide, after = (
        [[each / total for each in row[first : first + 3]] for row in products[first : first + 3]]
        for first in range(0, 12, 3)
    )
    mixed = [row[9:] for row in products[:3]]
    second = [
        [near[one][other] + after[one][other] - (mixed[one][other] + mixed[other][one]) / total for other in range(3)]
        for one in range(3)
    ]
    places = total * every * min(row_px, COARSE_PX) // COARSE_PX**2
    return Changes(near=near, detail=detail, wide=wide, second=second, places=places)


def measure_colours(
    changes: Changes, sample: NDArray[np.uint8], mask: NDArray[np.bool_] | None, *, crippled: str, limits: ColourLimits
) -> Colours:
    """The statistics of some rows of an image.

    Args:
        changes: of these rows.
        sample: uint8 [3, rows, W].
        mask: bool [rows, W], where there is data; None is everywhere.
        crippled: what is wrong with the grey levels.
        limits: what lies beyond doubt within these is not measured any further.
    """
    far, near = _power(changes.wide), _power(changes.near)
    return Colours(
        detail=_pairs(changes.detail),
        coarse=_pairs(changes.wide),
        difference=_differences(changes.wide, sample, mask, limits.copied_dn),
        structure=far / max(near, 3 * ROUNDING_DN),
        blur=far / max(near, ROUNDING_DN) if far > LEAST_STRUCTURE_DN else 0.0,
        jumps=_jumps(changes.near, sample, mask, limits.jumps),
        crippled=crippled,
        few=changes.places < LEAST_PLACES,
    )


def _jumps(near: Moments, sample: NDArray[np.uint8], mask: NDArray[np.bool_] | None, limit: float) -> float:
    """No more than the mean square over 100 squared differ by 100 (Chebyshev): the usual tile is not looked at."""
    most = max(near[band][band] for band in range(3)) / JUMP_DN**2
    if most < limit:
        return most
    # whoever differs by 100 to 156 DN lies within 56 of 100, as an unsigned number
    leaps = sample[:, :, 1:] - sample[:, :, :-1]
    leaps -= np.uint8(JUMP_DN)
    jumps: NDArray[np.bool_] = leaps <= 56
    pairs = jumps[0].size
    if mask is not None:
        known = mask[:, 1:] & mask[:, :-1]
        jumps &= known
        pairs = max(1, np.count_nonzero(known))
    return float(max(np.count_nonzero(band) for band in jumps) / pairs)


def _power(moments: Moments) -> float:
    """Root mean square of the sum of the bands."""
    return math.sqrt(max(sum(map(sum, moments)), 0.0))


def _pairs(moments: Moments) -> tuple[float, float, float]:
    """Correlation of two bands; a change has no mean to speak of."""
    (a, ab, ac), (_, b, bc), (_, _, c) = moments
    a, b, c = (each + ROUNDING_DN**2 for each in (a, b, c))
    return ab / math.sqrt(a * b), ac / math.sqrt(a * c), bc / math.sqrt(b * c)


def _differences(
    wide: Moments, sample: NDArray[np.uint8], mask: NDArray[np.bool_] | None, copied_dn: float
) -> tuple[float, float, float]:
    """What changes by so much has at least a quarter of that as its variance: the usual tile is not looked at."""
    found = []
    for one, other in ((0, 1), (0, 2), (1, 2)):
        least = math.sqrt(max(wide[one][one] + wide[other][other] - 2 * wide[one][other], 0.0)) / 2
        if least < copied_dn:
            rest = sample[one].astype(np.int16) - sample[other]
            least = float((rest if mask is None else rest[mask]).std())
        found.append(least)
    return found[0], found[1], found[2]


def crippled(histogram: NDArray[np.intp], count: int, low: int, high: int) -> str:
    """What is wrong with the grey levels of a band, in words; empty where nothing is.

    Args:
        histogram: of the band, [256].
        count: its sum.
        low, high: its 5th and 95th percentile.
    """
    there = np.count_nonzero(histogram[low : high + 1])
    if there > high - low + 1 - (1 << BITS[0]):  # the usual band
        return ""
    if high - low >= 64 and there <= FEW_LEVELS:
        return f"it shows {there} grey levels in all"
    levels = np.arange(256)
    for bit in BITS:
        if high - low >= 2 << bit:
            ones = int(histogram[(levels >> bit) & 1 == 1].sum())
            if min(ones, count - ones) < FEW * count:
                return f"bit {bit} is always {int(2 * ones > count)}"
    return ""
