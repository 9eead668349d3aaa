"""A scene that a health monitor has nothing against: texture shared by the bands, smooth heights, quiet sensors."""

from __future__ import annotations

import numpy as np

from engine.contract.sensors import Sensor
from tests.conftest import Scene


def flight_scene(height: int, width: int, *, seed: int = 5) -> Scene:
    """Rasters of that size, valid everywhere: light and dark fields, hills and flat-roofed houses."""
    rng = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width].astype(np.float32)
    fields = np.kron(rng.uniform(60, 190, (height // 24 + 1, width // 24 + 1)), np.ones((24, 24)))[:height, :width]
    texture = rng.normal(0, 6, (height, width))
    bands = [fields + texture + 12 * np.sin(rows / 30 + band) + rng.normal(0, 1, fields.shape) for band in range(3)]
    houses = np.kron(rng.integers(0, 4, (height // 40 + 1, width // 40 + 1)) == 0, np.ones((40, 40)))[:height, :width]
    heights = 4 + 3 * np.sin(rows / 50) * np.cos(cols / 70) + 6 * houses + rng.normal(0, 0.03, (height, width))
    rasters = {
        Sensor.RGIR: np.clip(np.stack(bands), 1, 255).astype(np.uint8),
        Sensor.NDSM: heights[None].astype(np.float32),
    }
    return rasters, {sensor: np.ones((height, width), bool) for sensor in Sensor}
