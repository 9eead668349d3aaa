"""What a sensor delivers that is plainly broken, by kind: moderate, so that it spoils a map without being absurd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.contract.nodata import fill_nodata
from engine.contract.sensors import Sensor
from engine.rasters.sources import Observation

NOISE_STD = {Sensor.RGIR: 40.0, Sensor.NDSM: 2.5}
CONSTANT_VALUE = {Sensor.RGIR: 117, Sensor.NDSM: 12.0}
STUCK_VALUES = {Sensor.RGIR: (0.0, 255.0), Sensor.NDSM: (2.0, 30.0)}
OVERFLOW_M = 6553.5


def with_values(seen: Observation, values: NDArray[Any]) -> Observation:
    """Other values, in the sensor's range and dtype; NaN has no data."""
    holes = np.isnan(values).any(axis=0)
    values = np.nan_to_num(values, copy=False)
    if seen.values.dtype.kind == "u":
        values = np.clip(np.rint(values), 0, 255)
    values = values.astype(seen.values.dtype)
    if not holes.any():
        return Observation(values=values, valid=seen.valid)
    valid = seen.valid & ~holes
    return Observation(values=fill_nodata(values, valid), valid=valid)


# Each of these takes the sensor, what it saw, randomness of the device (the same in every tile) and of the moment.


def _dead(sensor: Sensor, seen: Observation, defect: np.random.Generator, moment: np.random.Generator) -> Observation:
    return Observation(values=np.zeros_like(seen.values), valid=np.zeros_like(seen.valid))


def _holes(sensor: Sensor, seen: Observation, defect: np.random.Generator, moment: np.random.Generator) -> Observation:
    valid = seen.valid & (moment.random(seen.valid.shape, np.float32) >= 0.1)
    return Observation(values=fill_nodata(seen.values.copy(), valid), valid=valid)


def _constant(
    sensor: Sensor, seen: Observation, defect: np.random.Generator, moment: np.random.Generator
) -> Observation:
    return Observation(values=np.full_like(seen.values, CONSTANT_VALUE[sensor]), valid=seen.valid)


def _flat(sensor: Sensor, seen: Observation, defect: np.random.Generator, moment: np.random.Generator) -> Observation:
    return Observation(values=np.zeros_like(seen.values), valid=seen.valid)


def _saturated(
    sensor: Sensor, seen: Observation, defect: np.random.Generator, moment: np.random.Generator
) -> Observation:
    return with_values(seen, seen.values.astype(np.float32) * 3 + 180)


def _dark(sensor: Sensor, seen: Observation, defect: np.random.Generator, moment: np.random.Generator) -> Observation:
    return with_values(seen, seen.values // 30 + moment.integers(0, 3, seen.values.shape, np.uint8))


def _stuck(sensor: Sensor, seen: Observation, defect: np.random.Generator, moment: np.random.Generator) -> Observation:
    bands, _, width = seen.values.shape
    columns = defect.choice(width, max(1, width // 20), replace=False)
    values = seen.values.astype(np.float32)
    values[:, :, columns] = defect.uniform(*STUCK_VALUES[sensor], (bands, 1, len(columns)))
    return with_values(seen, values)


def _range(sensor: Sensor, seen: Observation, defect: np.random.Generator, moment: np.random.Generator) -> Observation:
    _, height, width = seen.values.shape
    block = max(1, height // 16)
    rows, cols = -(-height // block), -(-width // block)
    hit = np.zeros(rows * cols, np.bool_)
    hit[moment.choice(hit.size, max(1, hit.size // 8), replace=False)] = True
    hit = hit.reshape(rows, cols).repeat(block, axis=0).repeat(block, axis=1)[:height, :width]
    return with_values(seen, np.where(hit, np.float32(OVERFLOW_M), seen.values))


def _noise(sensor: Sensor, seen: Observation, defect: np.random.Generator, moment: np.random.Generator) -> Observation:
    noise = moment.standard_normal(seen.values.shape, np.float32) * np.float32(NOISE_STD[sensor])
    return with_values(seen, seen.values + noise)


FAILURE: Mapping[str, Callable[[Sensor, Observation, np.random.Generator, np.random.Generator], Observation]] = {
    "dead": _dead,
    "holes": _holes,
    "constant": _constant,
    "flat": _flat,
    "saturated": _saturated,
    "dark": _dark,
    "stuck": _stuck,
    "range": _range,
    "noise": _noise,
}
