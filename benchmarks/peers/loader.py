"""The loop that one writes for throughput: ``torch.compile`` fed by the workers of a ``DataLoader``, file to file.

It is what torchgeo's ``GridGeoSampler`` and ``RasterDataset`` do, without the training libraries that torchgeo brings:
each worker opens the rasters and reads windows, several to a batch, while the network computes the batch before
(https://docs.pytorch.org/docs/stable/data.html, https://torchgeo.readthedocs.io/en/stable/api/samplers.html).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.windows import Window
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.peers.peer import Classes
from benchmarks.peers.pytorch import compiled
from benchmarks.peers.subject import Subject
from benchmarks.peers.tilers import OneInput, RasterPair, Tiler, read_classes
from engine.contract.sensors import Scenario, Sensor
from engine.grid import Tile, TileGrid
from export.scenarios import inputs_of

BATCH = 4
MOST_WORKERS = 4


class Windows(Dataset[tuple[int, Tensor]]):
    """What each tile reads, float32 [B, T, T]; a worker opens the rasters when it reads its first one."""

    def __init__(self, paths: Mapping[Sensor, Path], sensors: Sequence[Sensor], tiles: Sequence[Tile]) -> None:
        self._paths, self._tiles = [str(paths[sensor]) for sensor in sensors], tiles
        self._files: list[Any] = []

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, number: int) -> tuple[int, Tensor]:
        self._files = self._files or [rasterio.open(path) for path in self._paths]
        reads = self._tiles[number].reads
        window = Window(reads.col, reads.row, reads.width, reads.height)
        bands = [file.read(window=window).astype(np.float32) for file in self._files]
        return number, torch.from_numpy(np.concatenate(bands))


class LoaderTiles(Tiler):
    """The engine's tiles, each keeping its core, from disk to disk like ``engine.run``; classes alone are written."""

    def __init__(self, subject: Subject, scenario: Scenario, raster: RasterPair, folder: Path) -> None:
        self._model = compiled(OneInput(subject.modules[scenario], scenario).eval())
        self.library = f"torch {torch.__version__}"
        manifest, (height, width) = subject.bundle.manifest, raster.shape
        grid = TileGrid(height=height, width=width, tile_px=manifest.tile_px, halo_px=manifest.halo_px)
        self._tiles = tuple(grid.tiles())
        sensors = inputs_of(scenario)
        self._loader = DataLoader(
            Windows(raster.paths, sensors, self._tiles),
            batch_size=BATCH,
            num_workers=min(MOST_WORKERS, os.cpu_count() or 1),
            persistent_workers=True,
            multiprocessing_context="spawn",  # other libraries have threads here, which a fork would lose
        )
        self._output = folder / f"loader_{scenario}.tif"
        with rasterio.open(raster.paths[sensors[0]]) as file:
            self._profile = {**file.profile, "count": 1, "dtype": "uint8", "nodata": None}

    def map(self) -> Classes:
        """See :meth:`Tiler.map`."""
        with rasterio.open(self._output, "w", **self._profile) as file, torch.inference_mode():
            for numbers, stacked in self._loader:
                missing = BATCH - len(numbers)  # a batch of another size would be compiled anew
                full = torch.cat([stacked, stacked[:1].expand(missing, -1, -1, -1)]) if missing else stacked
                answers = self._model(full).argmax(dim=1).to(torch.uint8).numpy()
                for number, answer in zip(numbers.tolist(), answers, strict=False):
                    tile = self._tiles[number]
                    target = tile.target
                    window = Window(target.col, target.row, target.width, target.height)
                    file.write(answer[target.within(tile.reads)], 1, window=window)
        return read_classes(self._output)

    def close(self) -> None:
        """Have the workers end."""
        del self._loader
