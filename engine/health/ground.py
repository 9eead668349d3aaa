"""Do heights above ground stand on the ground? Almost everywhere some of it shows, and lies at 0 m."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

BLOCKS = 8
"""A tile is looked at in 8 x 8 blocks: the lowest height of each is its ground, unless something covers it whole."""
LEAST_SIDE_PX = 128
"""Of a tile smaller than this a single roof covers a block."""


@dataclass(frozen=True, kw_only=True)
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
    top_m: float
    """The 99th percentile of the heights."""
    rise_m: float
    """The same of the steps over an eighth of a block, which is 8 px of a tile of 512."""


def measure_ground(
    heights: NDArray[np.float32], valid: NDArray[np.bool_] | None, *, low_m: float, high_m: float
) -> Ground | None:
    """The statistics of a tile, from every eighth pixel of every eighth row.

    Args:
        heights: float32 [T, T], metres.
        valid: bool [T, T], where there is data; None is everywhere.
        low_m, high_m: between these a height is the ground's.

    Returns:
        None where hardly a block has data, or the tile is small.
    """
    if min(heights.shape) < LEAST_SIDE_PX:
        return None
    step = heights.shape[0] // 64
    sample = heights[step // 2 :: step, step // 2 :: step]
    rows, cols = (size // BLOCKS * BLOCKS for size in sample.shape)
    sample = sample[:rows, :cols]
    known = sample
    if valid is not None:
        mask = valid[step // 2 :: step, step // 2 :: step][:rows, :cols]
        sample, known = np.where(mask, sample, np.inf), sample[mask]
    least = sample.reshape(BLOCKS, rows // BLOCKS, BLOCKS, cols // BLOCKS).min(axis=(1, 3))
    there = np.isfinite(least)
    if np.count_nonzero(there) < BLOCKS:
        return None
    base = np.sort(least[there])
    grounded = np.searchsorted(base, high_m, side="right") - np.searchsorted(base, low_m)
    steps = sample[:, 1:] - sample[:, :-1] if valid is None else _steps(sample)
    return Ground(
        level_m=float(base[len(base) // 2]),
        lowest_m=float(base[len(base) // 10]),
        grounded=int(grounded) / len(base),
        below=float(np.count_nonzero(known < low_m)) / known.size,
        slope_m=_slope(least, there) if grounded < len(base) // 2 else None,
        top_m=_top(known),
        rise_m=_top(np.abs(steps)) if steps.size else 0.0,
    )


def _steps(sample: NDArray[np.float32]) -> NDArray[np.float32]:
    """Between neighbours that both have data."""
    known = np.isfinite(sample)
    steps: NDArray[np.float32] = np.diff(np.where(known, sample, 0))[known[:, 1:] & known[:, :-1]]
    return steps


def _top(values: NDArray[np.float32]) -> float:
    place = int(0.99 * (values.size - 1))
    return float(np.partition(values, place, axis=None)[place])


def _slope(least: NDArray[np.float32], there: NDArray[np.bool_]) -> float:
    """Rise of the plane of least squares, along its steepest direction, over one tile side."""
    row, col = (each[there] / BLOCKS for each in np.mgrid[:BLOCKS, :BLOCKS])
    terms = np.stack([np.ones_like(row), row, col], axis=1)
    _, down, across = np.linalg.lstsq(terms, least[there].astype(np.float64), rcond=None)[0]
    return float(np.hypot(down, across))
