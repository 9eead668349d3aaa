"""Each statistic on tiles whose value is known: fine below the soft limit, suspicious above, deadly above the hard."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.contract.health import default_limits
from engine.contract.sensors import Sensor
from engine.health.monitor import Fault, State
from engine.health.tile_statistics import measure
from engine.rasters.sources import Observation
from tests.engine.made_tiles import NDSM, RGIR, holes, monitor, observation, stick, town

Maker = Callable[[float], Observation]


def image_with(change: Callable[[NDArray, float, np.random.Generator], NDArray]) -> Maker:
    def make(value: float) -> Observation:
        sighting = town(3)[RGIR]
        changed = change(sighting.values.astype(np.float64), value, np.random.default_rng(5))
        return observation(np.clip(np.rint(changed), 0, 255).astype(np.uint8))

    return make


def heights_with(change: Callable[[NDArray, float, np.random.Generator], NDArray]) -> Maker:
    def make(value: float) -> Observation:
        sighting = town(3)[NDSM]
        return observation(change(sighting.values.copy(), value, np.random.default_rng(5)).astype(np.float32))

    return make


def replace_share(new: float) -> Callable[[NDArray, float, np.random.Generator], NDArray]:
    def change(values: NDArray, share: float, rng: np.random.Generator) -> NDArray:
        _, height, width = values.shape
        values[:, : round(share * height / 0.75), : width * 3 // 4] = new
        return values

    return change


def dim_to(values: NDArray, bright: float, rng: np.random.Generator) -> NDArray:
    return rng.uniform(0, bright, values.shape)


def white(values: NDArray, std: float, rng: np.random.Generator) -> NDArray:
    return values + rng.normal(0, std, values.shape)


@pytest.mark.parametrize(
    ("sensor", "fault", "make", "fine", "soft", "hard"),
    [
        (RGIR, Fault.SATURATED, image_with(replace_share(255)), 0.2, 0.4, 0.6),
        (RGIR, Fault.DARK, image_with(dim_to), 50, 30, 12),
        (RGIR, Fault.NOISE, image_with(white), 17, 22.5, 29),
        (RGIR, Fault.STUCK_COLUMNS, image_with(stick), 1, 3, 6),
        (NDSM, Fault.STUCK_COLUMNS, heights_with(stick), 1, 3, 6),
        (NDSM, Fault.NOISE, heights_with(white), 0.8, 1.25, 2.0),
        (NDSM, Fault.OUT_OF_RANGE, heights_with(replace_share(-9999)), 0.0, 0.03, 0.1),
        (NDSM, Fault.OUT_OF_RANGE, heights_with(replace_share(3276.7)), 0.0, 0.03, 0.1),
    ],
    ids=lambda value: None if callable(value) else str(value),
)
def test_a_statistic_is_fine_below_the_soft_limit_suspicious_above_and_deadly_above_the_hard(
    sensor: Sensor, fault: Fault, make: Maker, fine: float, soft: float, hard: float
) -> None:
    expected = {fine: (State.ALIVE, None), soft: (State.DEGRADED, fault), hard: (State.DEAD, fault)}
    for value, verdict in expected.items():
        found = monitor().assess({sensor: make(value)})[sensor]
        assert (found.state, found.fault) == verdict, f"{value}: {found}"


@pytest.mark.parametrize(("share", "state"), [(0.03, State.ALIVE), (0.1, State.DEGRADED), (0.25, State.DEAD)])
@pytest.mark.parametrize("sensor", Sensor)
def test_scattered_holes_are_judged_by_their_edges(sensor: Sensor, share: float, state: State) -> None:
    whole = town(3)[sensor]
    assert monitor().assess({sensor: holes(whole.values, share, np.random.default_rng(0))})[sensor].state is state


@pytest.mark.parametrize("std", [1.0, 8.0, 30.0])
def test_the_noise_of_an_image_is_measured_beside_a_texture_that_all_bands_share(std: float) -> None:
    rng = np.random.default_rng(1)
    texture = rng.normal(0, 20, (256, 256))
    image = np.rint(np.clip(127 + texture + rng.normal(0, std, (3, 256, 256)), 0, 255)).astype(np.uint8)
    # what is left of a band after regression on two that are noisy themselves is at most sqrt(1.5) of its own noise
    found = measure(observation(image), default_limits()[RGIR]).noise
    assert found is not None
    assert 0.95 * std < found < 1.05 * np.sqrt(1.5 * std**2 + 1 / 4)


@pytest.mark.parametrize("band", range(3))
def test_noise_in_a_single_band_is_seen(band: int) -> None:
    image = town(2)[RGIR]
    values = image.values.astype(np.float64)
    values[band] += np.random.default_rng(0).normal(0, 40, values[band].shape)
    verdict = monitor().assess({RGIR: observation(np.clip(values, 0, 255).astype(np.uint8))})[RGIR]
    assert (verdict.state, verdict.fault) == (State.DEAD, Fault.NOISE)


@pytest.mark.parametrize("std", [0.05, 0.5, 3.0])
def test_the_noise_of_heights_is_measured_beside_walls(std: float) -> None:
    rng = np.random.default_rng(1)
    walls = np.kron(rng.uniform(0, 30, (16, 16)), np.ones((16, 16)))
    heights = (walls + rng.normal(0, std, (256, 256)))[None].astype(np.float32)
    found = measure(observation(heights), default_limits()[NDSM]).noise
    # walls stand in 2 of 16 second differences, so that the calmest quarter lies a little further out
    assert found == pytest.approx(std, rel=0.25)


def test_statistics_look_only_at_pixels_with_data() -> None:
    whole = town(4, side=256)
    rng = np.random.default_rng(0)
    valid = np.ones((256, 256), np.bool_)
    valid[:, 100:] = False  # the sensor's coverage ends here
    for sensor, sighting in whole.items():
        found = []
        for most in (2, 256):
            values = sighting.values.copy()
            values[:, :, 100:] = rng.integers(0, most, values[:, :, 100:].shape)
            found.append(measure(Observation(values=values, valid=valid), default_limits()[sensor]))
        one, other = found
        assert (one.spread, one.noise, one.mean, one.stuck) == (other.spread, other.noise, other.mean, other.stuck)
        assert one.valid == pytest.approx(100 / 256)
        assert one.mean == pytest.approx(sighting.values[:, :, :100].mean(), rel=0.15)
        assert one.spread == pytest.approx(sighting.values[:, :, :100].std(axis=(1, 2)), rel=0.15)


@pytest.mark.parametrize("coverage", ["half", "diagonal", "corner"])
def test_the_end_of_a_raster_is_no_hole(coverage: str) -> None:
    rows, cols = np.mgrid[:128, :128]
    valid = {"half": cols < 64, "diagonal": rows + cols < 128, "corner": rows + cols < 30}[coverage]
    for sensor, sighting in town().items():
        verdict = monitor().assess({sensor: observation(sighting.values, valid)})[sensor]
        assert verdict.state is State.ALIVE


@pytest.mark.parametrize("sensor", Sensor)
def test_holes_are_counted_within_the_part_that_has_data(sensor: Sensor) -> None:
    seen = town()[sensor]
    valid = (np.random.default_rng(0).random((128, 128)) >= 0.1) & (np.arange(128) < 64)
    assert monitor().assess({sensor: observation(seen.values, valid)})[sensor].fault is Fault.HOLES


def test_lost_lines_are_holes() -> None:
    seen = town()[RGIR]
    valid = np.ones((128, 128), np.bool_)
    valid[::3] = False
    for mask in (valid, valid.T):
        assert monitor().assess({RGIR: observation(seen.values, mask)})[RGIR].fault is Fault.HOLES


# Stuck columns


def test_water_clipped_to_black_is_no_stuck_column() -> None:
    image = town(side=256)[RGIR]
    values = image.values.copy()
    values[0, :, :150] = 0  # near infrared left of a coast that runs north
    assert monitor().assess({RGIR: observation(values)})[RGIR].state is State.ALIVE


def test_a_street_clipped_to_zero_is_no_stuck_column() -> None:
    heights = town(side=256)[NDSM]
    values = heights.values.copy()
    values[0, :, 96:112] = 0
    assert monitor().assess({NDSM: observation(values)})[NDSM].state is State.ALIVE


@pytest.mark.parametrize("axis", [1, 2])
def test_a_raster_of_one_line_mirrored_into_a_tile_is_no_stuck_column(axis: int) -> None:
    seen = town(side=256)[RGIR]
    line = np.take(seen.values, [9], axis=axis).repeat(256, axis=axis)
    assert measure(observation(line), default_limits()[RGIR]).stuck == 0


@pytest.mark.parametrize("sensor", Sensor)
def test_stuck_rows_are_seen_as_stuck_columns_are(sensor: Sensor) -> None:
    seen = town()[sensor]
    turned = stick(seen.values.transpose(0, 2, 1).copy(), 8, np.random.default_rng(0)).transpose(0, 2, 1)
    verdict = monitor().assess({sensor: observation(np.ascontiguousarray(turned))})[sensor]
    assert (verdict.state, verdict.fault) == (State.DEAD, Fault.STUCK_COLUMNS)
