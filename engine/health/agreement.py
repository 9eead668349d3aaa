"""Do an image and heights show the same place? Where heights step, the image has an edge, more often than elsewhere.

:func:`edge_agreement` is cheap and looks at every tile where it is; :func:`compare` also asks how well the two would
agree if one of them were moved, which says whether an agreement means anything, and how far off a sensor is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from engine.health.lattice import Lattice

if TYPE_CHECKING:
    from engine.rasters.sources import Observation

LEAST_PART = 8
"""A tile of which less than such a part is seen by both is not compared."""
STEP_PX = 4
"""Every fourth pixel of every fourth row is looked at."""
IMAGE_STEP_DN, HEIGHT_STEP_M = 60.0, 4.0
"""Steps count for no more than this, so that a few walls do not outweigh a street."""
REACH_PX = 64
"""The farthest a sensor is looked for."""
BLOCK = 4
NULL_SHIFTS = ((11, 5), (7, 16), (19, 9), (16, 21))
"""Places, in blocks, where heights and colours cannot belong together but by chance."""
SMOOTH_M = 0.05
"""Heights whose steps vary by less have no edges."""
RAISED_M = 2.0


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How an image and heights of one tile go together."""

    edges: float
    """Correlation of their edges, where they are."""
    sigmas: float
    """The same in standard deviations of the correlation over all displacements: below 2 it is chance."""
    best: float
    """The largest correlation at a displacement of up to 64 px along either axis, in the same unit."""
    down_px: int
    across_px: int
    """Where it is: how far the heights would have to be moved."""
    explained: float
    """Share of the variation of heights and their edges that colours explain, less what they explain by chance."""


def edge_agreement(image: Lattice, heights: Lattice) -> float | None:
    """Correlation of the steps along some rows of a tile; None where there is too little to compare."""
    both = np.empty((2, image.steps.size), np.float32)
    step, rise = both.reshape(2, *image.steps.shape)
    np.minimum(image.rises, np.int16(3 * IMAGE_STEP_DN), out=step)
    np.minimum(heights.rises, np.float32(HEIGHT_STEP_M), out=rise)
    masks = [each.known.ravel() for each in (image, heights) if each.known is not None]
    if masks:
        known = np.logical_and.reduce(masks)
        if np.count_nonzero(known) < known.size // LEAST_PART:
            return None
        both = both[:, known]
    count = both.shape[1]
    total, other_total = np.add.reduce(both, axis=1).tolist()
    (power, product), (_, other_power) = (both @ both.T).tolist()
    power, other_power = power - total**2 / count, other_power - other_total**2 / count
    if other_power < SMOOTH_M**2 * count or power < 9 * count:  # a DN squared in three bands
        return None
    return float(product - total * other_total / count) / math.sqrt(power * other_power)


def compare(image: Observation, heights: Observation) -> Likeness | None:
    """Everything there is to say; a few milliseconds a tile. None where there is too little to compare.

    The correlation over all displacements comes from one product of Fourier transforms.
    """
    half = STEP_PX // 2
    every = (slice(half, None, STEP_PX), slice(half, None, STEP_PX))
    valid = image.valid[every] & heights.valid[every]
    if valid.mean() < 0.05:
        return None
    bands = image.values[:, *every].astype(np.float32)
    height = heights.values[0][every]
    steps = np.minimum(_steps(bands.mean(axis=0)), IMAGE_STEP_DN)
    rises = np.minimum(_steps(height), HEIGHT_STEP_M)
    first, second = _whitened(steps, valid), _whitened(rises, valid)
    product = np.fft.rfft2(first) * np.conj(np.fft.rfft2(second))
    everywhere = np.fft.irfft2(product, s=first.shape) / np.count_nonzero(valid)
    spread = float(everywhere.std()) or 1.0
    reach = min(REACH_PX // STEP_PX, *(size // 2 - 1 for size in first.shape))
    near = np.roll(everywhere, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    down, across = np.unravel_index(int(near.argmax()), near.shape)
    here = float(near[reach - 1 : reach + 2, reach - 1 : reach + 2].max())
    return Likeness(
        edges=here,
        sigmas=here / spread,
        best=float(near.max()) / spread,
        down_px=STEP_PX * (int(down) - reach),
        across_px=STEP_PX * (int(across) - reach),
        explained=_explained(bands, steps, height, rises, valid),
    )


def _steps(values: NDArray[np.float32]) -> NDArray[np.float32]:
    steps = np.zeros_like(values)
    steps[:, 1:-1] = np.abs(values[:, 2:] - values[:, :-2])
    steps[1:-1] += np.abs(values[2:] - values[:-2])
    return steps


def _whitened(values: NDArray[np.float32], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Mean 0 and variance 1 where valid, and 0 elsewhere."""
    known = values[valid]
    return np.where(valid, (values - known.mean()) / (known.std() + 1e-6), 0).astype(np.float32)


def _explained(
    bands: NDArray[np.float32],
    steps: NDArray[np.float32],
    height: NDArray[np.float32],
    rises: NDArray[np.float32],
    valid: NDArray[np.bool_],
) -> float:
    """Coefficient of determination of a linear regression in blocks, less that of displaced blocks."""
    greenness = (bands[0] - bands[1]) / (bands[0] + bands[1] + 10)
    causes = np.stack([_blocks(each) for each in (*bands, greenness, greenness**2, steps)])
    high = (height > RAISED_M).astype(np.float32)
    effects = np.stack([_blocks(each) for each in (np.clip(height, -5, 25), high, rises)])
    there = _blocks(valid.astype(np.float32)) > 0.5

    def share(down: int, across: int) -> float:
        both = there & np.roll(there, (down, across), (0, 1))
        if np.count_nonzero(both) < 50:
            return 0.0
        left = causes[:, both].T
        right = np.roll(effects, (down, across), (1, 2))[:, both].T
        left = (left - left.mean(axis=0)) / (left.std(axis=0) + 1e-6)
        right = (right - right.mean(axis=0)) / (right.std(axis=0) + 1e-6)
        rest = right - left @ np.linalg.lstsq(left, right, rcond=None)[0]
        return float(np.mean(1 - rest.var(axis=0) / (right.var(axis=0) + 1e-9)))

    rows, cols = there.shape
    by_chance = [share(down * rows // 32, across * cols // 32) for down, across in NULL_SHIFTS]
    return share(0, 0) - float(np.mean(by_chance))


def _blocks(values: NDArray[np.float32]) -> NDArray[np.float32]:
    rows, cols = (size // BLOCK for size in values.shape)
    cut = values[: rows * BLOCK, : cols * BLOCK]
    return np.asarray(cut.reshape(rows, BLOCK, cols, BLOCK).mean(axis=(1, 3)))
