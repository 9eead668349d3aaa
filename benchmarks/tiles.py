"""Tiles held in memory for benchmarks: the bundle's golden tile and windows of a scene, or those a run would read."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from engine.contract.bundle import Bundle, Manifest
from engine.contract.nodata import fill_nodata
from engine.contract.sensors import Sensor
from engine.grid import TileGrid

Tile = dict[Sensor, NDArray[np.generic]]
"""What both sensors saw: ``rgir`` uint8 [3, T, T], ``ndsm`` float32 [1, T, T] in metres, finite."""


def tiles_of(bundle: Bundle, scene: Mapping[Sensor, Path], count: int) -> list[Tile]:
    """The golden tile and as many non-overlapping tiles of the scene as are wanted and fit, by row.

    Args:
        bundle: sets the tile's side T and holds the golden tile.
        scene: two rasters on one grid; where one has no data it takes its nearest value, as in flight.
        count: how many.
    """
    golden = bundle.golden()
    tiles: list[Tile] = [{sensor: golden[sensor.value] for sensor in Sensor}]
    rasters = {sensor: _read(scene[sensor]) for sensor in Sensor}
    side = bundle.manifest.tile_px
    height, width = (min(raster.shape[axis] for raster in rasters.values()) for axis in (1, 2))
    for row in range(0, height - side + 1, side):
        for col in range(0, width - side + 1, side):
            window = np.s_[:, row : row + side, col : col + side]
            tiles.append({sensor: np.ascontiguousarray(raster[window]) for sensor, raster in rasters.items()})
    return tiles[:count]


def tiles_of_run(manifest: Manifest, rasters: Mapping[Sensor, Path], at_most: int) -> list[Tile]:
    """The first tiles of a run over complete rasters, halo included, in its order.

    Args:
        manifest: of the bundle that the run uses; sets the tile and its halo.
        rasters: without gaps and not smaller than a tile, on one grid.
        at_most: how many, if there are so many.
    """
    with ExitStack() as stack:
        files = {sensor: stack.enter_context(rasterio.open(path)) for sensor, path in rasters.items()}
        first = next(iter(files.values()))
        grid = TileGrid(height=first.height, width=first.width, tile_px=manifest.tile_px, halo_px=manifest.halo_px)
        windows = [
            Window(t.reads.col, t.reads.row, t.reads.width, t.reads.height) for t in islice(grid.tiles(), at_most)
        ]
        return [{sensor: file.read(window=window) for sensor, file in files.items()} for window in windows]


def _read(path: Path) -> NDArray[np.generic]:
    with rasterio.open(path) as file:
        values, valid = file.read(), file.dataset_mask() > 0
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(axis=0)
    return fill_nodata(values, valid)
