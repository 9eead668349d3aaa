"""From the surveyed surface to an nDSM as LiDAR or dense image matching delivers it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from train.data.synthetic.canvas import F32, LOW_VEGETATION, Canvas, Mask, value_noise

Rng = np.random.Generator


def survey_heights(canvas: Canvas, rng: Rng) -> F32:
    """Heights above ground in metres, float32 [H,W] (margin included), NaN where unknown.

    Two thirds of the scenes are LiDAR (scattered points, nearest or smooth interpolation), the
    rest dense matching (smooth, bleeding edges). Each may add ground bias, offset, clipping,
    decimetre steps and holes.
    """
    surface = canvas.sensed
    gsd = canvas.gsd_m
    ground = _ground(canvas, rng)
    heights = _lidar(surface + ground, gsd, rng) if rng.random() < 0.68 else _matching(surface + ground, gsd, rng)
    heights = _displace(heights, gsd, rng)
    if rng.random() < 0.75:
        heights = np.maximum(heights, 0)
    style = rng.random()
    if style < 0.2:  # 8-bit decimetres, as the public ISPRS nDSMs
        heights = np.clip(np.round(heights * 10) / 10, 0, 25.5)
    elif style < 0.3:
        heights = (np.round(heights * 20) / 20).astype(np.float32, copy=False)
    if rng.random() < 0.3:
        heights[_holes(canvas.shape, gsd, rng)] = np.nan
    return heights.astype(np.float32)


def _ground(canvas: Canvas, rng: Rng) -> F32:
    """What is left of the terrain after normalisation: bias, slow undulation, fine noise."""
    gsd, shape = canvas.gsd_m, canvas.shape
    slow = value_noise(rng, shape, float(rng.uniform(10, 60)) / gsd)
    ground = slow * float(rng.choice((0.0, 0.03, 0.1, 0.25), p=(0.35, 0.35, 0.2, 0.1)))
    if rng.random() < 0.25:
        ground = ground + float(rng.uniform(-0.1, 0.3))
    fine = value_noise(rng, shape, max(0.3 / gsd, 1.0))
    # Pulses return from grass blades as well as from the soil between: rougher than asphalt.
    rough = np.full(256, float(rng.choice((0.01, 0.03, 0.07), p=(0.45, 0.4, 0.15))), np.float32)
    rough[LOW_VEGETATION] += float(rng.choice((0.0, 0.02, 0.05, 0.1), p=(0.3, 0.3, 0.25, 0.15)))
    return (ground + np.abs(fine) * rough[canvas.label]).astype(np.float32, copy=False)


def _lidar(surface: F32, gsd: float, rng: Rng) -> F32:
    density = float(np.exp(rng.uniform(np.log(1.0), np.log(30.0))))  # points per square metre
    noise = float(rng.choice((0.01, 0.03, 0.06)))
    values = surface + noise * rng.standard_normal(surface.shape, dtype=np.float32)
    share = density * gsd * gsd
    if share > 3:  # several points per pixel: the raster keeps the highest
        if rng.random() < 0.5:
            values = ndimage.maximum_filter(values, 2)
        return values
    spacing_px = 1 / np.sqrt(max(share, 1e-6))
    # Flight strips and scan lines make the density uneven.
    swath = 1 + 0.5 * np.tanh(value_noise(rng, surface.shape, 12 / gsd))
    chance = rng.random(surface.shape, dtype=np.float32)
    points = chance < share * swath
    if not points.any():
        points[surface.shape[0] // 2, surface.shape[1] // 2] = True
    index = ndimage.distance_transform_edt(~points, return_distances=False, return_indices=True)
    heights = values[index[0], index[1]]
    way = rng.random()
    if way < 0.45:
        return heights
    if way < 0.85:  # linear interpolation of a triangulation looks like a smoothed nearest
        return ndimage.gaussian_filter(heights, spacing_px * float(rng.uniform(0.25, 0.5)))
    return ndimage.median_filter(heights, max(int(spacing_px) | 1, 3) if spacing_px < 6 else 3)


def _matching(surface: F32, gsd: float, rng: Rng) -> F32:
    """Image matching: narrow gaps close, edges bleed, weak texture wobbles."""
    heights = surface
    reach_px = round(float(rng.uniform(0.3, 1.2)) / gsd)
    if reach_px >= 2 and rng.random() < 0.6:
        heights = ndimage.grey_closing(heights, min(reach_px, 9))
    warp = value_noise(rng, surface.shape, float(rng.uniform(0.8, 3)) / gsd)
    heights = ndimage.gaussian_filter(heights, max(float(rng.uniform(0.15, 0.6)) / gsd, 0.5))
    wobble = value_noise(rng, surface.shape, max(float(rng.uniform(0.5, 2.0)) / gsd, 1.0))
    return heights + wobble * float(rng.uniform(0.02, 0.15)) + 0.4 * np.maximum(warp - 1.8, 0)


def _displace(heights: F32, gsd: float, rng: Rng) -> F32:
    """Shift by up to 0.5 m: image and heights are registered only so well."""
    if rng.random() < 0.4:
        return heights
    reach, angle = abs(float(rng.normal(0, 0.2))), float(rng.uniform(0, 2 * np.pi))
    shift = np.round(np.array((np.sin(angle), np.cos(angle))) * min(reach, 0.5) / gsd)
    rows = np.clip(np.arange(heights.shape[0]) - int(shift[0]), 0, heights.shape[0] - 1)
    cols = np.clip(np.arange(heights.shape[1]) - int(shift[1]), 0, heights.shape[1] - 1)
    return heights[rows[:, None], cols[None, :]]


def _holes(shape: tuple[int, int], gsd: float, rng: Rng) -> Mask:
    """Where the survey has no value: spots, strips, or a large part behind a curved edge."""
    kind = rng.random()
    if kind < 0.6:
        blobs = value_noise(rng, shape, float(np.exp(rng.uniform(np.log(0.5), np.log(8)))) / gsd)
        return blobs > float(rng.uniform(1.7, 2.6))
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)[None, :]
    angle = float(rng.uniform(0, 2 * np.pi))
    across = x * np.cos(angle) + y * np.sin(angle)
    along = y * np.cos(angle) - x * np.sin(angle)
    edge = across + float(rng.normal(0, 0.3)) * along**2 + float(rng.uniform(-0.4, 0.7))
    if kind < 0.75:
        return np.abs(edge) < float(rng.uniform(0.01, 0.1))
    return edge > 1.0
