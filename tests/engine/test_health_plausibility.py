"""What a tile cannot be: bands, ground, repeats and agreement, each on tiles whose defect is known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from engine.contract.health import ColourLimits, default_limits
from engine.contract.sensors import Sensor
from engine.health.agreement import compare, edge_agreement
from engine.health.ground import measure_ground
from engine.health.lattice import lattice_of
from engine.health.monitor import Fault, Monitor, State, Verdict
from engine.health.novelty import Signature, likeness, signature
from engine.health.plausibility import SURE_DISORDER, image_findings
from engine.health.tile_statistics import measure
from engine.rasters.sources import Observation
from tests.engine.made_tiles import NDSM, RGIR, lake, observation

SIDE = 256


def village(seed: int = 0, side: int = SIDE) -> dict[Sensor, Observation]:
    """Houses 8 m high on flat ground among vegetation: infrared shares less with red than red does with green."""
    rng = np.random.default_rng(seed)
    houses, greens = np.zeros((side, side)), np.zeros((side, side))
    for layer, count, least, most in ((greens, 14, 30, 70), (houses, 40, 9, 33)):
        for _ in range(count * side**2 // 256**2):
            row, col = rng.integers(0, side, 2)
            height, width = rng.integers(least, most, 2)
            layer[row : row + height, col : col + width] = 1
    greens *= 1 - houses
    texture = rng.normal(0, 8, (side, side))
    red = 100 + 50 * houses - 30 * greens + texture
    green = 95 + 45 * houses - 15 * greens + texture
    infrared = 110 + 40 * houses + 30 * greens + texture + rng.normal(0, 4, (side, side))
    image = np.stack([infrared, red, green]) + rng.normal(0, 1, (3, side, side))
    heights = 8 * houses + 0.1 * rng.normal(0, 1, (side, side))
    return {
        RGIR: observation(np.clip(np.rint(image), 0, 255).astype(np.uint8)),
        NDSM: observation(heights[None].astype(np.float32)),
    }


def judged(change: Callable[[NDArray], NDArray], sensor: Sensor = RGIR) -> Verdict:
    """The verdict on a village of which one sensor is changed."""
    seen = village()
    values = change(seen[sensor].values.astype(np.float64))
    values = np.clip(np.rint(values), 0, 255).astype(np.uint8) if sensor is RGIR else values.astype(np.float32)
    return Monitor(default_limits()).assess({**seen, sensor: observation(np.ascontiguousarray(values))})[sensor]


def one_band(band: int, change: Callable[[NDArray], NDArray]) -> Callable[[NDArray], NDArray]:
    def spoil(values: NDArray) -> NDArray:
        values[band] = change(values[band])
        return values

    return spoil


def grain(values: NDArray, std: float) -> NDArray:
    return np.random.default_rng(3).normal(128, std, values.shape)


def test_a_village_raises_no_alarm() -> None:
    judge = Monitor(default_limits())
    for seed in range(4):
        assert {verdict.state for verdict in judge.assess(village(seed)).values()} == {State.ALIVE}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v[[1, 0, 2]], "second of the three bands behaves as the infrared"),
        (lambda v: v[[2, 1, 0]], "third of the three bands behaves as the infrared"),
        (lambda v: v[[1, 2, 0]], "third of the three bands behaves as the infrared"),
        (lambda v: v[[0, 0, 2]], "infrared and red are the same"),
        (lambda v: v[[1, 1, 1]], "infrared and red are the same"),
        (one_band(1, lambda b: 255 - b), "one is inverted"),
        (one_band(2, lambda b: 255 - b), "one is inverted"),
        (one_band(1, lambda b: grain(b, 3)), "red shares no detail"),
        (one_band(2, lambda b: grain(b, 12)), "green shares no detail"),
        (lambda v: v.astype(np.uint8) & 0xBF, "bit 6 is always 0"),
    ],
)
def test_bands_that_cannot_be_infrared_red_and_green_are_named(
    change: Callable[[NDArray], NDArray], words: str
) -> None:
    verdict = judged(change)
    assert (verdict.state, verdict.fault) == (State.DEAD, Fault.BANDS)
    assert words in verdict.detail


@pytest.mark.parametrize(
    "change",
    [
        lambda v: 0.3 * v,
        lambda v: 1.3 * v + 10,
        lambda v: 0.6 * v + 80 + np.random.default_rng(0).normal(0, 3, v.shape),
        lambda v: v * np.array([1.4, 0.7, 1.0])[:, None, None],
        lambda v: v[[0, 2, 1]],
        lambda v: v * (1 - 0.3 * np.linspace(-1, 1, SIDE) ** 2),
    ],
    ids=["dark", "bright", "haze", "white balance", "red for green", "vignette"],
)
def test_what_does_no_harm_stays_in_use(change: Callable[[NDArray], NDArray]) -> None:
    assert judged(change).state is State.ALIVE


@pytest.mark.parametrize("std", [1.0, 3.0, 8.0])
def test_an_image_of_nothing_over_houses_is_blind_and_over_a_lake_is_a_lake(std: float) -> None:
    noise = np.clip(np.rint(grain(np.zeros((3, SIDE, SIDE)), std)), 0, 255).astype(np.uint8)
    blind = Monitor(default_limits()).assess({**village(), RGIR: observation(noise)})
    assert (blind[RGIR].state, blind[RGIR].fault) == (State.DEAD, Fault.BLIND)
    calm = Monitor(default_limits()).assess({**lake(side=SIDE), RGIR: observation(noise)})
    assert calm[RGIR].state is State.ALIVE


def test_an_implausible_image_is_used_where_there_is_nothing_else() -> None:
    turned = observation(np.ascontiguousarray(village()[RGIR].values[[2, 1, 0]]))
    verdict = Monitor(default_limits()).assess({RGIR: turned})[RGIR]
    assert (verdict.state, verdict.fault) == (State.DEGRADED, Fault.BANDS)
    assert verdict.detail.endswith("but nothing else to use")


def test_a_switched_off_check_of_colours_raises_no_alarm() -> None:
    limits = default_limits()
    limits[RGIR] = type(limits[RGIR])(**{**_fields(limits[RGIR]), "colours": None})
    turned = observation(np.ascontiguousarray(village()[RGIR].values[[2, 1, 0]]))
    assert Monitor(limits).assess({**village(), RGIR: turned})[RGIR].state is State.ALIVE


def _fields(limits: object) -> dict[str, object]:
    return {name: getattr(limits, name) for name in limits.__dataclass_fields__}  # type: ignore[attr-defined]


def test_band_statistics_look_only_at_pixels_with_data() -> None:
    seen, side = village(0, 2 * SIDE)[RGIR], 2 * SIDE
    valid = np.arange(side) < side // 2
    found = []
    for most in (2, 256):
        garbage = np.random.default_rng(0).integers(0, most, seen.values.shape)
        values = np.where(valid, seen.values, garbage).astype(np.uint8)
        found.append(
            measure(Observation(values=values, valid=np.tile(valid, (side, 1))), default_limits()[RGIR]).colours
        )
    assert found[0] == found[1]
    assert found[0] is not None
    steps = [np.diff(band[:, : side // 2 : 4].astype(float)).ravel() for band in seen.values]
    assert found[0].detail == pytest.approx([np.corrcoef(steps)[pair] for pair in ((0, 1), (0, 2), (1, 2))], abs=0.05)
    assert found[0].disorder < ColourLimits().order


def test_few_places_say_nothing_of_colours() -> None:
    """Bands of squares of 16 px that have nothing to do with each other: a tile of 128 px has 64 of them."""
    for seed in range(8):
        squares = np.random.default_rng(seed).integers(0, 256, (3, 8, 8))
        image = np.kron(squares, np.ones((16, 16), np.int64)).astype(np.uint8)
        assert Monitor(default_limits()).assess({RGIR: observation(image)})[RGIR].state is State.ALIVE


def test_over_a_closed_forest_the_order_of_bands_is_for_an_audit_to_judge() -> None:
    """All that varies is light: every band goes with every other, infrared best with red."""
    rng, limits = np.random.default_rng(0), ColourLimits()
    light = np.kron(rng.normal(0, 20, (SIDE // 8, SIDE // 8)), np.ones((8, 8))) + rng.normal(0, 4, (SIDE, SIDE))
    image = np.stack([90 + light, 65 + light, 70 + light + rng.normal(0, 6, light.shape)])
    image[:2] += rng.normal(0, 1, (2, *light.shape))
    found = measure(observation(np.clip(np.rint(image), 0, 255).astype(np.uint8)), default_limits()[RGIR]).colours
    assert found is not None
    assert found.infrared == 2
    assert found.disorder > SURE_DISORDER * limits.order
    (finding,) = image_findings(found, limits, None)
    assert (finding.hard, finding.doubt, finding.hint) == (False, True, True)


# Ground


@pytest.mark.parametrize(("offset", "grounded"), [(0, 1.0), (1, 1.0), (5, 0.0), (80, 0.0), (-2, 1.0), (-5, 0.0)])
def test_the_share_of_blocks_at_the_ground_is_measured(offset: float, grounded: float) -> None:
    heights = observation(village()[NDSM].values + np.float32(offset))
    found = measure_ground(lattice_of(heights), low_m=-2.5, high_m=1.4)
    assert found is not None
    assert found.grounded == pytest.approx(grounded, abs=0.05)
    assert found.level_m == pytest.approx(offset, abs=0.5)


def test_a_tilt_is_measured_from_side_to_side() -> None:
    heights = observation(village()[NDSM].values + np.linspace(0, 20, SIDE, dtype=np.float32))
    found = measure_ground(lattice_of(heights), low_m=-2.5, high_m=1.4)
    assert found is not None
    assert found.slope_m == pytest.approx(20, rel=0.15)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v + 5, "ground lies at 4"),
        (lambda v: v - 6, "lie below -2.5 m"),
        (lambda v: v + np.linspace(0, 20, SIDE), "ground is tilted, by"),
    ],
)
def test_heights_that_do_not_stand_on_the_ground_are_suspicious_and_then_dead(
    change: Callable[[NDArray], NDArray], words: str
) -> None:
    judge, found = Monitor(default_limits()), []
    for seed in range(3):
        seen = village(seed)
        heights = observation(change(seen[NDSM].values.astype(np.float64)).astype(np.float32))
        found.append(judge.assess({**seen, NDSM: heights})[NDSM])
    assert [verdict.state for verdict in found] == [State.DEGRADED, State.DEGRADED, State.DEAD]
    assert {verdict.fault for verdict in found} == {Fault.GROUND}
    assert words in found[0].detail


def test_ground_that_lies_at_80_m_is_dead_at_once() -> None:
    verdict = judged(lambda v: v + 80, NDSM)
    assert (verdict.state, verdict.fault) == (State.DEAD, Fault.GROUND)
    assert "surface model" in verdict.detail


# Novelty


@pytest.mark.parametrize(("sensor", "noise"), [(RGIR, 3.0), (NDSM, 0.05), (NDSM, 0.3)])
def test_the_last_tile_again_with_noise_is_held_while_the_other_sensor_moves_on(sensor: Sensor, noise: float) -> None:
    judge, rng, first = Monitor(default_limits()), np.random.default_rng(0), village(0)
    judge.assess(first)
    for seed in (1, 2):
        again = first[sensor].values + rng.normal(0, noise, first[sensor].values.shape)
        again = np.clip(np.rint(again), 0, 255).astype(np.uint8) if sensor is RGIR else again.astype(np.float32)
        verdicts = judge.assess({**village(seed), sensor: observation(again)})
        assert (verdicts[sensor].state, verdicts[sensor].fault) == (State.DEAD, Fault.HELD)
        other = next(each for each in Sensor if each is not sensor)
        assert verdicts[other].state is State.ALIVE


def test_a_place_that_both_sensors_see_again_is_held_by_neither() -> None:
    judge, rng, first = Monitor(default_limits()), np.random.default_rng(0), village(0)
    judge.assess(first)
    heights = (first[NDSM].values + rng.normal(0, 0.05, first[NDSM].values.shape)).astype(np.float32)
    image = np.clip(np.rint(first[RGIR].values + rng.normal(0, 2, first[RGIR].values.shape)), 0, 255).astype(np.uint8)
    verdicts = judge.assess({RGIR: observation(image), NDSM: observation(heights)})
    assert {verdict.state for verdict in verdicts.values()} == {State.ALIVE}


def test_a_signature_survives_a_journal_and_tells_places_apart() -> None:
    one, other = signature(village(0)[RGIR]), signature(village(1)[RGIR])
    again = Signature.of_text(one.text)
    assert np.array_equal(again.steps, one.steps)
    same, different = likeness(one, again), likeness(one, other)
    assert same == pytest.approx(1)
    assert different is not None
    assert abs(different) < 0.2
    assert likeness(one, signature(observation(np.full((3, SIDE, SIDE), 80, np.uint8)))) is None


# Agreement


def test_edges_agree_where_both_sensors_see_the_same_place_and_nowhere_else() -> None:
    here, elsewhere = village(0), village(1)
    agreeing = edge_agreement(lattice_of(here[RGIR]), lattice_of(here[NDSM]))
    chance = edge_agreement(lattice_of(here[RGIR]), lattice_of(elsewhere[NDSM]))
    assert agreeing is not None
    assert chance is not None
    assert agreeing > 0.3
    assert abs(chance) < 0.15
    same, other = compare(here[RGIR], here[NDSM]), compare(here[RGIR], elsewhere[NDSM])
    assert same is not None
    assert other is not None
    assert same.sigmas > 5 > 2.5 > other.sigmas
    assert same.explained > 0.15 > other.explained


@pytest.mark.parametrize(("down", "across"), [(0, 0), (12, 20), (-40, 8)])
def test_how_far_heights_are_off_is_told(down: int, across: int) -> None:
    seen = village(0, 512)
    moved = np.roll(seen[NDSM].values, (down, across), (1, 2))
    found = compare(seen[RGIR], observation(moved))
    assert found is not None
    assert (found.down_px, found.across_px) == pytest.approx((-down, -across), abs=4)


def test_flat_heights_cannot_be_compared() -> None:
    assert edge_agreement(lattice_of(village()[RGIR]), lattice_of(lake(side=SIDE)[NDSM])) is None


# Blur, and what is clipped


def smooth(values: NDArray, width: int) -> NDArray:
    """The mean of so many pixels along rows and columns, twice, round the borders."""
    for axis in (1, 1, 2, 2):
        values = np.mean([np.roll(values, step, axis) for step in range(width)], axis=0)
    return values


def doubts(seen: dict[Sensor, Observation], sensor: Sensor) -> tuple[Fault, ...]:
    return Monitor(default_limits()).doubts(seen)[sensor]


@pytest.mark.parametrize(("sensor", "width"), [(RGIR, 15), (NDSM, 41)])
def test_what_is_smeared_is_doubted_and_without_an_audit_used(sensor: Sensor, width: int) -> None:
    seen = village()
    values = smooth(seen[sensor].values.astype(np.float64), width).astype(seen[sensor].values.dtype)
    smeared = {**seen, sensor: observation(values)}
    assert Fault.BLURRED not in doubts(seen, sensor)
    assert Fault.BLURRED in doubts(smeared, sensor)
    assert Monitor(default_limits()).assess(smeared)[sensor].fault is not Fault.BLURRED


def test_an_image_that_is_clipped_below_the_end_of_the_range_is_saturated() -> None:
    assert judged(lambda values: np.minimum(values, 80)).fault is Fault.SATURATED
    assert judged(lambda values: np.minimum(values, 200)).state is State.ALIVE
