"""Heights drawn from labels, for labelled images without a height sensor.

An image with labels alone teaches the scenario without nDSM and nothing else. A building, a tree, a car and open ground
have heights that look like themselves whatever their exact value, so an nDSM can be drawn that fits the labels: with it
the image also teaches both sensors together, and tells the nDSM generator what stands up. It is a prior, not a
measurement: nothing is scored on it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from train.data.labels import IGNORE_INDEX, ISPRS_LABELS

BUILDING, LOW_VEGETATION, TREE, CAR, CLUTTER = (
    ISPRS_LABELS.names.index(name) for name in ("building", "low vegetation", "tree", "car", "clutter")
)
STOREY_M = 2.9
HOUSE_M2 = 400.0
"""Buildings up to this size mostly have pitched roofs; larger ones flat ones, and may be higher."""


def drawn_heights(labels: NDArray[np.uint8], gsd_m: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """An nDSM that fits the labels.

    Args:
        labels: uint8 [H, W], the ISPRS classes, 255 unknown.
        gsd_m: ground sampling distance, in metres.
        rng: of the sample.

    Returns:
        float32 [H, W], metres; NaN where the class is unknown.
    """
    height = ndimage.gaussian_filter(rng.standard_normal(labels.shape), 12).astype(np.float32)
    height *= np.float32(rng.uniform(0, 0.25) / max(float(height.std()), 1e-6))
    height[labels == LOW_VEGETATION] += np.float32(rng.uniform(0, 0.3))
    buildings, count = ndimage.label(labels == BUILDING)
    boxes = ndimage.find_objects(buildings)
    for number in range(1, count + 1):
        at = boxes[number - 1]
        inside = buildings[at] == number
        roof = _roof(inside, gsd_m, rng)
        height[at][inside] = roof[inside]
    trees = labels == TREE
    if trees.any():
        height[trees] = _canopy(trees, gsd_m, rng)[trees]
    cars = labels == CAR
    height[cars] = rng.uniform(1.3, 1.9)
    clutter, count = ndimage.label(labels == CLUTTER)
    for number in range(1, count + 1):
        if rng.random() < 0.3:  # most of it lies flat: bare soil, water
            height[clutter == number] += np.float32(rng.uniform(0.5, 2.5))
    height[labels == IGNORE_INDEX] = np.nan
    return height


def _roof(inside: NDArray[np.bool_], gsd_m: float, rng: np.random.Generator) -> NDArray[np.float32]:
    area = float(inside.sum()) * gsd_m**2
    storeys = rng.integers(1, 3) if area < HOUSE_M2 else rng.integers(1, 5)
    roof = np.full(inside.shape, storeys * STOREY_M + rng.uniform(-0.4, 1.2), np.float32)
    if rng.random() < (0.75 if area < HOUSE_M2 else 0.1):
        # From every wall inwards, as a hip roof, up to a ridge.
        to_wall = ndimage.distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1] * gsd_m
        roof += np.minimum(to_wall * rng.uniform(0.2, 0.7), rng.uniform(1.0, 3.5)).astype(np.float32)
    return roof


def _canopy(trees: NDArray[np.bool_], gsd_m: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Domes of several sizes: distance from the crown's edge, with a texture of branches and gaps."""
    to_edge = ndimage.distance_transform_edt(trees) * gsd_m
    crown = rng.uniform(1.0, 3.0)
    tall = ndimage.gaussian_filter(rng.standard_normal(trees.shape), max(3.0 / gsd_m, 1.0))
    tall = np.exp(0.3 * tall / max(float(tall.std()), 1e-6)) * rng.uniform(4, 11)
    rough = 1 + 0.15 * ndimage.gaussian_filter(rng.standard_normal(trees.shape), max(0.4 / gsd_m, 0.5))
    return np.asarray(np.clip(tall * (1 - np.exp(-to_edge / crown)) * rough + 0.5, 0, 35), np.float32)
