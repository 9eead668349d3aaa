"""What the flights over made ground show."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.false_alarms import GROUNDS, Spoiled, flights, lasting
from engine.contract.sensors import Sensor
from engine.grid import Window
from engine.health.faults import parse_faults
from engine.rasters.sources import Observation


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


def test_what_a_whole_raster_can_have_comes_after_one_in_which_nothing_is_wrong() -> None:
    first, *spoiled = lasting()
    assert first == ()
    assert len({str(one) for (one,) in spoiled}) == len(spoiled) > 30


def test_spoiled_rasters_are_spoiled_in_every_window(tiles) -> None:
    class Raster:
        def read_into(self, window, out):
            return {Sensor.NDSM: Observation(values=tiles["city"][Sensor.NDSM], valid=np.ones((128, 128), bool))}, {}

    spoiled = Spoiled(rasters=Raster(), injections=parse_faults("ndsm:offset=5@0-"))
    for row in (0, 64):
        seen, _ = spoiled.read_into(Window(row=row, col=0, height=128, width=128), {})
        np.testing.assert_allclose(seen[Sensor.NDSM].values, tiles["city"][Sensor.NDSM] + 5, rtol=1e-6)
