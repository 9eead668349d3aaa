"""Augmentation that respects what each sensor measures.

Light, camera and air change RGIR and never heights; a survey's scale, noise and holes change heights and never
colours; turning and zooming happen to both (:mod:`train.data.dataset`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from train.data.scenes import fill_height

LEAST_NOISE_M = 0.003
"""No survey repeats itself to the millimetre, yet one that is cut off at 0 m is exactly flat between its objects.
Instance normalisation divides what is flat by the root of its epsilon, layer after layer: the gradient of such a crop
came to 1e26, and one in 300 took the step of its whole batch for itself. A millimetre of noise makes it like any other.
"""


def augment_optical(rgir: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Another camera, sun and atmosphere: gains, gamma, haze, saturation, blur, noise. uint8 [3, H, W] -> same."""
    levels = np.arange(256, dtype=np.float32) / 255
    gamma = np.exp(rng.uniform(-0.3, 0.3))
    exposure, haze = np.exp(rng.uniform(-0.25, 0.25)), max(0.0, rng.uniform(-0.3, 0.3))
    tables = []
    for spread in (0.25, 0.15, 0.15):  # NIR is the band whose calibration differs most between cameras
        table = np.clip(levels * exposure * np.exp(rng.uniform(-spread, spread)), 0, 1) ** gamma
        table = table * (1 - haze) + haze * rng.uniform(0.5, 0.9) + rng.uniform(-0.06, 0.06)
        tables.append(table.astype(np.float32) * 255)
    x = np.stack([table[band] for table, band in zip(tables, rgir, strict=True)])
    if rng.random() < 0.4:
        x += rng.uniform(0, 0.5) * (x.mean(axis=0) - x)  # towards grey
    if rng.random() < 0.4:
        x = _blur(x, int(rng.integers(1, 3)))
    if rng.random() < 0.5:
        x += rng.standard_normal(x.shape, np.float32) * np.float32(rng.uniform(1, 9))
    return np.clip(np.rint(x), 0, 255).astype(np.uint8)


def augment_height(height: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Another survey: scale, offset, misregistration, sparse points, smoothing, holes, noise.

    Args:
        height: float32 [H, W], metres, finite.
        rng: of the sample.

    Returns:
        float32 [H, W], finite: holes are filled as the runtime fills them.
    """
    x = height * np.float32(rng.uniform(0.85, 1.2))
    if rng.random() < 0.3:
        x += np.float32(rng.normal(0, 0.15))
    if rng.random() < 0.25:
        shift: tuple[int, int] = tuple(rng.integers(-2, 3, 2).tolist())
        x = np.roll(x, shift, axis=(0, 1))
    if rng.random() < 0.3:
        # Nearest of a jittered coarse grid: the facets of a sparse point cloud.
        step = int(rng.integers(2, 6))
        y, x_index = np.ogrid[: x.shape[0], : x.shape[1]]
        wobble = rng.integers(0, step, (2, *x.shape)) if step < 4 else rng.integers(0, step, (2, 1, 1))
        rows = np.clip(y // step * step + wobble[0], 0, x.shape[0] - 1)
        columns = np.clip(x_index // step * step + wobble[1], 0, x.shape[1] - 1)
        x = x[rows, columns]
    if rng.random() < 0.3:
        x = _blur(x[None], int(rng.integers(1, 4)))[0]
    if rng.random() < 0.2:
        x = x.copy()
        for _ in range(int(rng.integers(1, 5))):
            top, left = rng.integers(0, x.shape[0]), rng.integers(0, x.shape[1])
            x[top : top + rng.integers(4, 40), left : left + rng.integers(4, 40)] = np.nan
        x, _ = fill_height(x)
    noise = rng.uniform(LEAST_NOISE_M, 0.12) if rng.random() < 0.5 else LEAST_NOISE_M
    x = x + rng.standard_normal(x.shape, np.float32) * np.float32(noise)
    return np.ascontiguousarray(x, np.float32)


def inside_border(side: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Where a crop that the border of a map runs through has data: one side of a line, bool [side, side].

    Half of the lines lie along rows or columns, as a raster ends; the others anyhow, as an orthophoto does inside one.
    """
    angle = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.5:
        angle = np.rint(angle / (np.pi / 2)) * (np.pi / 2)
    off = np.arange(side) - (side - 1) / 2
    return off[:, None] * np.sin(angle) + off * np.cos(angle) < side * rng.uniform(-0.35, 0.35)


def _blur(x: NDArray[np.float32], radius: int) -> NDArray[np.float32]:
    """Mean over (2 * radius + 1) squared, edges repeated. float32 [B, H, W] -> same."""
    size = 2 * radius + 1
    return np.asarray(ndimage.uniform_filter(x, (1, size, size), mode="nearest"))
