"""A whole raster through a library on the engine's own tiles, and through ``engine.run``.

*Cropped tiles* is the least one can do: the engine's tiles (:mod:`engine.grid`), each keeping its core, in memory.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.peers.peer import Classes, Peer
from benchmarks.peers.subject import Subject
from benchmarks.rasters import write_raster
from engine.backends.base import BackendInfo, Inputs
from engine.backends.options import BackendOptions
from engine.contract.sensors import Scenario, Sensor
from engine.grid import Tile, TileGrid
from engine.observer import Observer
from engine.plan import Plan
from engine.request import RasterFiles, RunRequest
from engine.runner import run
from export.scenarios import inputs_of


@dataclass(frozen=True, kw_only=True)
class RasterPair:
    """What both sensors saw, without gaps, on the disk and in memory."""

    mpx: float
    paths: Mapping[Sensor, Path]
    pixels: Mapping[Sensor, NDArray[np.generic]]
    """``rgir`` uint8 [3, H, W], ``ndsm`` float32 [1, H, W]."""

    @classmethod
    def write(cls, folder: Path, mpx: float) -> RasterPair:
        """About so many megapixels of the demo scene, again and again; tiled and deflated on the disk."""
        size, paths = write_raster(folder, mpx)
        pixels = {}
        for sensor, path in paths.items():
            with rasterio.open(path) as file:
                pixels[sensor] = file.read()
        return cls(mpx=size, paths=paths, pixels=pixels)

    def stacked(self, scenario: Scenario) -> NDArray[np.float32]:
        """The bands of the scenario's sensors one after the other, float32 [B, H, W]: what one-input tilers take."""
        return np.concatenate([self.pixels[sensor].astype(np.float32) for sensor in inputs_of(scenario)])

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width."""
        height, width = self.pixels[Sensor.NDSM].shape[1:]
        return height, width


class Tiler(ABC):
    """A way to map a whole raster, ready."""

    library: str

    @abstractmethod
    def map(self) -> Classes:
        """Classes [H, W]."""

    def timed(self) -> tuple[Classes, float]:
        """The map, and the seconds from the raster to it."""
        started = time.perf_counter()
        classes = self.map()
        return classes, time.perf_counter() - started

    def close(self) -> None:
        """Let go of threads and memory."""
        return


class CroppedTiles(Tiler):
    """A library on the engine's tiles, in memory."""

    def __init__(self, peer: Peer, subject: Subject, scenario: Scenario, raster: RasterPair) -> None:
        self.library = peer.library
        self._peer, self._raster, self._sensors = peer, raster, inputs_of(scenario)
        manifest = subject.bundle.manifest
        height, width = raster.shape
        self._tiles = tuple(
            TileGrid(height=height, width=width, tile_px=manifest.tile_px, halo_px=manifest.halo_px).tiles()
        )

    def map(self) -> Classes:
        """See :meth:`Tiler.map`."""
        classes = np.empty(self._raster.shape, np.uint8)

        def take(number: int, answer: Classes) -> None:
            tile = self._tiles[number]
            target = tile.target
            rows, cols = slice(target.row, target.row + target.height), slice(target.col, target.col + target.width)
            classes[rows, cols] = answer[target.within(tile.reads)]

        self._peer.infer_each((self._cut(tile) for tile in self._tiles), take)
        return classes

    def _cut(self, tile: Tile) -> Inputs:
        reads = tile.reads
        at = np.s_[:, reads.row : reads.row + reads.height, reads.col : reads.col + reads.width]
        return {sensor: np.ascontiguousarray(self._raster.pixels[sensor][at]) for sensor in self._sensors}

    def close(self) -> None:
        """See :meth:`Tiler.close`."""
        self._peer.close()


class OneInput(nn.Module):
    """A scenario's module for tilers that pass one tensor: float32 [N, B, T, T] -> probabilities [N, C, T, T]."""

    def __init__(self, module: nn.Module, scenario: Scenario) -> None:
        super().__init__()
        self.module = module
        self.bands = [3 if sensor is Sensor.RGIR else 1 for sensor in inputs_of(scenario)]

    def forward(self, stacked: Tensor) -> Tensor:
        """Probabilities."""
        probabilities: Tensor = self.module(*torch.split(stacked, self.bands, dim=1))[2]
        return probabilities


class EngineRun(Tiler):
    """All of ``engine.run``, from disk to disk: reading, composing, confidence, provenance, overviews and journal.

    Timed from the moment that the backend is warm, as the others are, to the published maps.
    """

    def __init__(self, subject: Subject, scenario: Scenario, raster: RasterPair, folder: Path) -> None:
        self._request = RunRequest(
            source=RasterFiles(paths={sensor: raster.paths[sensor] for sensor in inputs_of(scenario)}),
            bundle=subject.bundle.root,
            output=folder / f"engine_{subject.name}_{scenario}",
            backend=BackendOptions(name="openvino", precision="fp32"),
            overwrite=True,
        )
        self.library = ""

    def map(self) -> Classes:
        """See :meth:`Tiler.map`."""
        return self.timed()[0]

    def timed(self) -> tuple[Classes, float]:
        """See :meth:`Tiler.timed`."""
        start = _StartClock()
        record = run(self._request, start)
        seconds = time.perf_counter() - start.at
        self.library = record.backend.library
        return read_classes(self._request.output / "classes.tif"), seconds


class _StartClock(Observer):
    """Notes when a run begins to map."""

    at = 0.0

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """All checks passed, the backend is warm."""
        self.at = time.perf_counter()


TilerOpener = Callable[[Subject, Scenario, RasterPair, Path], Tiler]
RUN = ("engine.run, disk to disk", "fp32")


def cropped(name: str) -> str:
    """What a library on cropped tiles is called."""
    return f"{name}, cropped tiles"


def read_classes(path: Path) -> Classes:
    """A map of classes, [H, W]."""
    with rasterio.open(path) as file:
        classes: Classes = file.read(1)
    return classes
