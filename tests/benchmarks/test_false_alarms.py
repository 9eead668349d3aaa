"""What the flights over made ground show."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.false_alarms import GROUNDS, flights
from engine.contract.sensors import Sensor


@pytest.fixture(scope="module")
def tiles() -> dict[str, dict[Sensor, np.ndarray]]:
    return {
        flight.name: {sensor: seen.values for sensor, seen in flight.tiles[0].items()} for flight in flights(1, 128)
    }


def test_every_ground_is_what_a_sensor_delivers(tiles) -> None:
    assert set(GROUNDS) < set(tiles)
    for seen in tiles.values():
        assert (seen[Sensor.RGIR].dtype, seen[Sensor.RGIR].shape) == (np.uint8, (3, 128, 128))
        assert (seen[Sensor.NDSM].dtype, seen[Sensor.NDSM].shape) == (np.float32, (1, 128, 128))


def test_grounds_look_like_what_they_are_called(tiles) -> None:
    mean = {name: seen[Sensor.RGIR].mean() for name, seen in tiles.items()}
    assert mean["city by night"] < 0.4 * mean["city"]
    assert mean["snow"] > 190
    assert tiles["desert"][Sensor.NDSM].max() <= 1
    assert np.abs(tiles["water"][Sensor.NDSM][..., 64:]).max() < 0.5
