"""Do heights above ground stand on the ground? Almost everywhere some of it shows, and lies at 0 m."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from engine.health.lattice import Lattice

BLOCKS = 8
"""A tile is looked at in 8 x 8 blocks: the lowest height of each is its ground, unless something covers it whole."""
LEAST_SIDE_PX = 128
"""Of a tile smaller than this a single roof covers a block."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """Statistics of one tile's heights, metres."""

    level_m: float
    """Median of the blocks' lowest heights."""
    lowest_m: float
    """The 10th percentile of the blocks' lowest heights."""
    grounded: float
    """Share of the blocks that are at the ground: whose lowest height lies between ``low_m`` and ``high_m``."""
    below: float
    """Share of the pixels below ``low_m``."""
    slope_m: float | None
    """How much a plane through the blocks' lowest heights rises from one side of the tile to the other; None where half
    of them are at the ground."""
    heights: NDArray[np.float32]
    """What was looked at, [n]."""
    highest_m: float
    """Of them at most."""
    steps: NDArray[np.float32]
    """How much that changes over an eighth of a block, which is 8 px of a tile of 512; absolute, [m]."""

    @cached_property
    def top_m(self) -> float:
        """The 99th percentile of the heights."""
        return _top(self.heights)

    @cached_property
    def rise_m(self) -> float:
        """The same of the steps."""
        return _top(self.steps) if self.steps.size else 0.0

    def reaches(self, height_m: float) -> bool:
        """:attr:`top_m` is at least so much; counting is cheaper than finding it."""
        return self.highest_m >= height_m and _reaches(self.heights, height_m)

    def smooth(self, share: float) -> bool:
        """:attr:`rise_m` is less than this share of :attr:`top_m`."""
        if self.steps.size and _reaches(self.steps, share * self.highest_m):  # the usual tile
            return False
        return self.rise_m < share * self.top_m


def measure_ground(lattice: Lattice, *, low_m: float, high_m: float) -> Ground | None:
    """The statistics of a tile.

    Args:
        lattice: of its heights.
        low_m, high_m: between these a height is the ground's.

    Returns:
        None where hardly a block has data, or the tile is small.
    """
    sample, known = lattice.values, lattice.known_values
    rows, cols = (size // BLOCKS * BLOCKS for size in sample.shape)
    if lattice.side_px < LEAST_SIDE_PX:
        return None
    sample = sample[:rows, :cols]
    if lattice.valid is not None:
        sample = np.where(lattice.valid[:rows, :cols], sample, np.inf)
    least = sample.reshape(BLOCKS, rows // BLOCKS, BLOCKS, cols // BLOCKS).min(axis=1).min(axis=2)
    there = np.isfinite(least)
    base = np.sort(least[there])
    if len(base) < BLOCKS:
        return None
    grounded = base.searchsorted(high_m, side="right") - base.searchsorted(low_m)
    steps = lattice.rises.ravel() if lattice.known is None else lattice.rises[lattice.known]
    return Ground(
        level_m=float(base[len(base) // 2]),
        lowest_m=float(base[len(base) // 10]),
        grounded=int(grounded) / len(base),
        below=0.0 if lattice.extent[0] >= low_m else float(np.count_nonzero(known < low_m)) / known.size,
        slope_m=_slope(least, there) if grounded < len(base) // 2 else None,
        heights=known,
        highest_m=lattice.extent[1],
        steps=steps,
    )


def _place(values: NDArray[np.float32]) -> int:
    """Of the 99th percentile, in order."""
    return int(0.99 * (values.size - 1))


def _top(values: NDArray[np.float32]) -> float:
    place = _place(values)
    return float(np.partition(values, place, axis=None)[place])


def _reaches(values: NDArray[np.float32], bound: float) -> bool:
    return int(np.count_nonzero(values >= bound)) >= values.size - _place(values)


def _slope(least: NDArray[np.float32], there: NDArray[np.bool_]) -> float:
    """Rise of the plane of least squares, along its steepest direction, over one tile side."""
    row, col = (each[there] / BLOCKS for each in np.mgrid[:BLOCKS, :BLOCKS])
    terms = np.stack([np.ones_like(row), row, col], axis=1)
    _, down, across = np.linalg.lstsq(terms, least[there].astype(np.float64), rcond=None)[0]
    return float(np.hypot(down, across))
