"""Made-up tiles for the tests of sensor health: a town, a lake, and ways to spoil them by a known amount."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

from engine.contract.health import default_limits
from engine.contract.nodata import fill_nodata
from engine.contract.sensors import Sensor
from engine.health.monitor import Absent, Fault, Monitor, Sighting, Verdict
from engine.rasters.sources import Observation

RGIR, NDSM = Sensor.RGIR, Sensor.NDSM
Seen = dict[Sensor, Sighting]


def observation(values: NDArray, valid: NDArray[np.bool_] | None = None) -> Observation:
    """As the reader would deliver it: holes filled."""
    valid = np.ones(values.shape[1:], np.bool_) if valid is None else valid
    return Observation(values=fill_nodata(values.copy(), valid), valid=valid)


def town(seed: int = 0, side: int = 128) -> dict[Sensor, Observation]:
    """A made-up tile with houses, texture that all bands share, a little noise and smooth heights."""
    rng = np.random.default_rng(seed)
    houses = np.kron(rng.integers(0, 2, (side // 16, side // 16)), np.ones((16, 16)))
    texture = rng.normal(0, 6, (side, side))
    bands = [base + gain * (60 * houses + texture) for base, gain in ((110, 1.0), (80, 0.9), (70, 0.8))]
    image = np.rint(np.stack(bands) + rng.normal(0, 1, (3, side, side)))
    rows, cols = np.mgrid[:side, :side]
    ground = 0.2 * np.sin((rows + 2 * cols) / 40 + seed)
    return {
        RGIR: observation(np.clip(image, 0, 255).astype(np.uint8)),
        NDSM: observation((ground + 6 * houses)[None].astype(np.float32)),
    }


def lake(seed: int = 0, side: int = 128) -> dict[Sensor, Observation]:
    """Calm water, and heights of exactly zero."""
    rng = np.random.default_rng(seed)
    image = np.clip(rng.normal(60, 3, (3, side, side)), 0, 255).astype(np.uint8)
    return {RGIR: observation(image), NDSM: observation(np.zeros((1, side, side), np.float32))}


NOTHING = observation(np.zeros((1, 128, 128), np.float32), np.zeros((128, 128), np.bool_))
BAD = Absent(fault=Fault.READ_ERROR, detail="disk gone")


def monitor(**changes: object) -> Monitor:
    """With the default limits, changed for both sensors."""
    return Monitor({sensor: dataclasses.replace(limits, **changes) for sensor, limits in default_limits().items()})


def states(judge: Monitor, sensor: Sensor, tiles: list[Seen]) -> list[Verdict]:
    """The verdicts on one sensor, tile after tile."""
    return [judge.assess(seen)[sensor] for seen in tiles]


def beside_an_image(tiles: list[Seen]) -> list[Seen]:
    """The same tiles with a healthy image, so that something else is usable."""
    return [{RGIR: town(place)[RGIR], **seen} for place, seen in enumerate(tiles)]


def noisy(seed: int, std: float) -> dict[Sensor, Observation]:
    """The town's image alone, through a camera with noise of that standard deviation in DN."""
    image = town(seed)[RGIR]
    grain = np.random.default_rng(seed).normal(0, std, image.values.shape)
    return {RGIR: observation(np.clip(image.values + grain, 0, 255).astype(np.uint8))}


def stick(values: NDArray, columns: float, rng: np.random.Generator) -> NDArray:
    """That many columns, spread over the tile, at 20."""
    values[:, :, 3 :: values.shape[2] // int(columns + 1)][:, :, : int(columns)] = 20.0
    return values


def holes(values: NDArray, share: float, rng: np.random.Generator) -> Observation:
    """That share of the pixels, anywhere, without data."""
    return observation(values, rng.random(values.shape[1:]) >= share)
