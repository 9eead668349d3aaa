"""From colours and heights to an 8-bit NIR-R-G image: sun, shadow, air, lens, sensor, file."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from train.data.synthetic.canvas import F32, LOW_VEGETATION, TREE, Canvas, value_noise

Rng = np.random.Generator


def cast_shadow(surface: F32, gsd_m: float, azimuth: float, elevation: float) -> F32:
    """Depth in metres by which each pixel lies below the sun's ray (<= 0: lit), float32 [H,W].

    `azimuth` is the direction towards the sun in raster axes (radians), `elevation` its height.
    The running maximum along the ray is found by doubling, so its cost is logarithmic in the
    length of the longest shadow.
    """
    dx, dy = float(np.cos(azimuth)), float(np.sin(azimuth))
    fall = gsd_m * float(np.tan(elevation))
    top = float(surface.max())

    def towards_sun(field: F32, steps: float) -> F32:
        r, c = round(dy * steps), round(dx * steps)
        out = np.full_like(field, -1e3)
        h, w = field.shape
        if abs(r) >= h or abs(c) >= w:
            return out
        out[max(-r, 0) : h - max(r, 0), max(-c, 0) : w - max(c, 0)] = field[
            max(r, 0) : h - max(-r, 0), max(c, 0) : w - max(-c, 0)
        ]
        return out - fall * steps

    ray = towards_sun(surface, 1.0)
    steps = 1.0
    while steps * fall < top:
        np.maximum(ray, towards_sun(ray, steps), out=ray)
        steps *= 2
    return ray - surface


def expose(canvas: Canvas, rng: Rng) -> NDArray[np.uint8]:
    """Render the canvas to uint8 [3,H,W] (margin included) under random sun, air and camera."""
    shape, gsd = canvas.shape, canvas.gsd_m
    azimuth = float(rng.uniform(0, 2 * np.pi))
    elevation = float(np.radians(rng.uniform(22, 66)))
    overcast = rng.random() < 0.12
    direct = float(rng.uniform(0.05, 0.3) if overcast else rng.uniform(0.5, 0.78))
    sky = np.array((rng.uniform(0.75, 1.0), 1.0, rng.uniform(1.0, 1.15)), np.float32)

    facing = np.cos(azimuth) * canvas.slope_x + np.sin(azimuth) * canvas.slope_y
    norm = np.sqrt(1 + canvas.slope_x**2 + canvas.slope_y**2)
    lambert = (np.sin(elevation) - np.cos(elevation) * facing) / (norm * np.sin(elevation))
    lambert = np.clip(lambert, 0.08, 1.7)
    # Foliage scatters light inside the crown, so its shading is softer than a solid's.
    softness = np.full(256, 0.85, np.float32)
    softness[TREE], softness[LOW_VEGETATION] = rng.uniform(0.25, 0.8), rng.uniform(0.05, 0.4)
    soft = softness[canvas.label]
    lambert = 1 + (lambert - 1) * soft

    depth = cast_shadow(canvas.surface, gsd, azimuth, elevation)
    shadow = np.clip((depth - 0.05) / float(rng.uniform(0.1, 0.5)), 0, 1)
    shadow = ndimage.uniform_filter(shadow, 3)
    wide = ndimage.uniform_filter(canvas.surface, max(int(3.0 / gsd) | 1, 3))
    hidden = np.clip((wide - canvas.surface) * 0.05, 0, 0.45)  # sky hidden by neighbours
    sun = direct * lambert * (1 - shadow * float(rng.uniform(0.85, 1.0)))

    image = np.empty((3, *shape), np.float32)
    gain = rng.uniform(0.85, 1.42) * np.exp(rng.normal((-0.05, 0, 0), (0.14, 0.05, 0.05)))
    haze, veil = float(rng.beta(1.2, 8)), rng.uniform(0.4, 0.8, 3)
    gamma = float(np.exp(rng.normal(0, 0.18)))
    fall_off = _vignette(rng, shape)
    drift = value_noise(rng, shape, max(shape) / 2.0) * float(rng.uniform(0, 0.04))
    light = np.clip(fall_off + drift, 0.6, 1.4)
    for b in range(3):
        band = canvas.colour[b] * (sun + (1 - direct) * (1 - hidden) * sky[b]) * light * gain[b]
        band = np.clip(band, 0.0, 1.3) ** gamma
        image[b] = band * (1 - haze) + haze * veil[b]
    if rng.random() < 0.3:  # a punchier or flatter tone curve about the mid grey
        image = 0.5 + (image - 0.5) * float(rng.uniform(0.8, 1.35))
    image = _lens(rng, image)
    # Highlights roll off softly instead of clipping hard.
    image = np.where(image > 0.85, 0.85 + 0.15 * np.tanh((image - 0.85) / 0.15), image)
    noise = float(rng.choice((0.0, 0.006, 0.015, 0.03), p=(0.25, 0.4, 0.27, 0.08)))
    if noise:
        image += noise * rng.standard_normal(image.shape, dtype=np.float32)
    out = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.35:
        out = _jpeg(out, int(rng.integers(45, 92)))
    return out


def _vignette(rng: Rng, shape: tuple[int, int]) -> F32:
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None] - float(rng.normal(0, 0.6))
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)[None, :] - float(rng.normal(0, 0.6))
    return (1 - float(rng.uniform(-0.02, 0.08)) * (x * x + y * y)).astype(np.float32)


def _lens(rng: Rng, image: F32) -> F32:
    """Optical blur, now and then a resampled (softer) image, often sharpened afterwards."""
    sigma = float(rng.choice((0.35, 0.6, 0.9, 1.3, 1.8), p=(0.22, 0.28, 0.28, 0.15, 0.07)))
    sigma *= float(rng.uniform(0.8, 1.2))
    if sigma > 0.3:
        image = ndimage.gaussian_filter(image, (0, sigma, sigma), truncate=3)
    if rng.random() < 0.45:
        blurred = ndimage.gaussian_filter(image, (0, sigma * 1.6, sigma * 1.6), truncate=2.5)
        image = image + (image - blurred) * float(rng.uniform(0.3, 1.3))
    return image


def _jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(buffer, "JPEG", quality=quality)
    return np.ascontiguousarray(np.asarray(Image.open(buffer)).transpose(2, 0, 1))
