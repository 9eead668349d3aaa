"""Before the flight: what is wrong with a raster as a whole is told, with what mends it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from engine.contract.errors import RasterOpenError
from engine.contract.health import default_limits
from engine.contract.sensors import Sensor
from engine.grid import Window
from engine.health.preflight import Advice, examine
from engine.health.verdict import Fault
from engine.rasters.georeference import Grid
from engine.rasters.sources import Observation
from tests.engine.made_tiles import NDSM, RGIR
from tests.engine.test_health_audit import AUDITOR
from tests.engine.test_health_plausibility import SIDE, village


class Mapped:
    """A raster in memory, as :class:`engine.frames.Rasters`."""

    def __init__(self, seen: Mapping[Sensor, Observation], broken: bool = False) -> None:
        self._seen, self._broken = seen, broken
        height, width = next(iter(seen.values())).valid.shape
        self.grid = Grid(height=height, width=width, crs=None, transform=None)
        self.reads = 0

    def read_into(
        self, window: Window, out: Mapping[Sensor, Observation]
    ) -> tuple[dict[Sensor, Observation], dict[Sensor, RasterOpenError]]:
        self.reads += 1
        for sensor, buffer in out.items():
            at = (slice(window.row, window.row + SIDE), slice(window.col, window.col + SIDE))
            buffer.values[...] = self._seen[sensor].values[:, *at]
            buffer.valid[...] = self._seen[sensor].valid[at]
        broken = {NDSM: RasterOpenError("gone")} if self._broken else {}
        return {sensor: buffer for sensor, buffer in out.items() if sensor not in broken}, broken

    def describe(self) -> dict[str, dict[str, Any]]:
        return {}


def looked_at(seen: Mapping[Sensor, Observation], **options: Any) -> tuple[Advice, ...]:
    limits = {sensor: default_limits()[sensor] for sensor in seen}
    return examine(Mapped(seen), limits, tile_px=SIDE, **{"auditor": AUDITOR, "tiles": 9, **options})


@pytest.fixture(scope="module")
def scene() -> dict[Sensor, Observation]:
    return village(3, 3 * SIDE)


def with_values(scene: Mapping[Sensor, Observation], sensor: Sensor, values: np.ndarray) -> dict[Sensor, Observation]:
    return {**scene, sensor: Observation(values=np.ascontiguousarray(values), valid=scene[sensor].valid)}


def test_rasters_that_are_right_get_no_advice(scene: dict[Sensor, Observation]) -> None:
    assert looked_at(scene) == ()
    assert looked_at({RGIR: scene[RGIR]}, auditor=None) == ()


def test_a_surface_model_is_told_in_every_tile(scene: dict[Sensor, Observation]) -> None:
    (advice,) = looked_at(with_values(scene, NDSM, scene[NDSM].values + 80))
    assert (advice.sensor, advice.fault, advice.tiles, advice.of) == (NDSM, Fault.GROUND, 9, 9)
    assert "--dsm, with --dtm or --ground auto" in str(advice)


def test_the_order_of_bands_is_told_with_its_option(scene: dict[Sensor, Observation]) -> None:
    (bands,) = looked_at(with_values(scene, RGIR, scene[RGIR].values[[2, 1, 0]]))
    assert bands.fault is Fault.BANDS
    assert "--rgir-bands" in bands.detail
    (alone,) = looked_at({RGIR: with_values(scene, RGIR, scene[RGIR].values[[2, 1, 0]])[RGIR]}, auditor=None)
    assert alone.detail == bands.detail


def test_how_far_heights_are_off_is_told_in_pixels(scene: dict[Sensor, Observation]) -> None:
    moved = np.roll(scene[NDSM].values, (12, -40), (1, 2))
    advice = looked_at(with_values(scene, NDSM, moved))
    assert [each.fault for each in advice] == [Fault.MISPLACED]
    assert "12 px down and 40 px left" in advice[0].detail


def test_decimetres_and_heights_upside_down_are_told_with_their_option(scene: dict[Sensor, Observation]) -> None:
    (high,) = looked_at(with_values(scene, NDSM, scene[NDSM].values * 8))
    assert (high.fault, "--ndsm-scale, 0.1 for decimetres" in high.detail) == (Fault.UNITS, True)
    (deep,) = looked_at(with_values(scene, NDSM, -0.8 * scene[NDSM].values))
    assert (deep.fault, "check the sign" in deep.detail) == (Fault.GROUND, True)


def test_a_small_raster_costs_a_single_look_and_a_damaged_one_no_error(scene: dict[Sensor, Observation]) -> None:
    rasters = Mapped(scene, broken=True)
    assert examine(rasters, default_limits(), tile_px=SIDE, auditor=AUDITOR) == ()
    assert rasters.reads == 1
