"""Tiles held in memory for benchmarks: the bundle's golden tile, then windows of a scene."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray

from engine.contract.bundle import Bundle
from engine.contract.holes import fill_holes
from engine.contract.sensors import Sensor

Tile = dict[Sensor, NDArray[np.generic]]
"""What both sensors saw: ``rgir`` uint8 [3, T, T], ``ndsm`` float32 [1, T, T] in metres, finite."""


def tiles_of(bundle: Bundle, scene: Mapping[Sensor, Path], count: int) -> list[Tile]:
    """The golden tile and as many non-overlapping tiles of the scene as are wanted and fit, by row.

    Args:
        bundle: sets the tile's side T and holds the golden tile.
        scene: two rasters on one grid; where one has no data it takes its nearest value, as in flight.
        count: how many.
    """
    with np.load(bundle.golden_path) as golden:
        tiles: list[Tile] = [{sensor: golden[sensor.value] for sensor in Sensor}]
    rasters = {sensor: _read(scene[sensor]) for sensor in Sensor}
    side = bundle.manifest.tile_px
    height, width = (min(raster.shape[axis] for raster in rasters.values()) for axis in (1, 2))
    for row in range(0, height - side + 1, side):
        for col in range(0, width - side + 1, side):
            window = np.s_[:, row : row + side, col : col + side]
            tiles.append({sensor: np.ascontiguousarray(raster[window]) for sensor, raster in rasters.items()})
    return tiles[:count]


def _read(path: Path) -> NDArray[np.generic]:
    with rasterio.open(path) as file:
        values, valid = file.read(), file.dataset_mask() > 0
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    return fill_holes(values, valid)
