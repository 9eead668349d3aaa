"""Audits: who is guilty by the maps of three graphs, when one is due, and what the monitor makes of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from engine.contract.health import AuditLimits, default_limits
from engine.contract.sensors import Scenario, Sensor
from engine.health.audit import Auditor, judge, weigh
from engine.health.docket import Docket
from engine.health.monitor import Fault, Monitor, State
from engine.health.verdict import Sighting
from engine.rasters.sources import Observation
from tests.engine.made_tiles import NDSM, RGIR, observation
from tests.engine.test_health_plausibility import SIDE, village

CLASSES = ("impervious surface", "building", "low vegetation", "tree", "car", "clutter")
LIMITS = AuditLimits()


def by_heights(heights: Observation) -> NDArray[np.uint8]:
    """As a graph would that takes whatever is higher than 2 m for a building."""
    return (heights.values[0] > 2).astype(np.uint8)


def by_image(image: Observation) -> NDArray[np.uint8]:
    """As a graph would that knows the village's roofs by their colour."""
    infrared, red, _ = image.values.astype(np.float32)
    return ((red > 125) & (infrared > 130)).astype(np.uint8)


def infer(scenario: Scenario, seen: Mapping[Sensor, Observation]) -> NDArray[np.uint8]:
    """A model that trusts heights in three columns of four, and the image in the fourth."""
    if scenario is not Scenario.FULL:
        return by_image(seen[RGIR]) if scenario is Scenario.MISSING_NDSM else by_heights(seen[NDSM])
    return np.where(np.arange(SIDE) // 4 % 4, by_heights(seen[NDSM]), by_image(seen[RGIR])).astype(np.uint8)


AUDITOR = Auditor(infer=infer, classes=CLASSES, limits=LIMITS)


def changed(seen: Mapping[Sensor, Observation], offset: float = 0, factor: float = 1) -> dict[Sensor, Observation]:
    return {**seen, NDSM: observation(seen[NDSM].values * np.float32(factor) + np.float32(offset))}


def guilty(seen: Mapping[Sensor, Observation], **doubts: tuple[Fault, ...]) -> dict[Sensor, Fault]:
    evidence = AUDITOR.examine(seen)
    assert evidence is not None
    suspects = {Sensor(name): faults for name, faults in doubts.items()}
    return {sensor: finding.fault for sensor, finding in judge(evidence, suspects, LIMITS).items()}


def test_a_clean_tile_finds_nobody_guilty_whatever_is_suspected() -> None:
    assert guilty(village()) == {}
    assert guilty(village(), ndsm=(Fault.GROUND, Fault.UNITS, Fault.MISPLACED)) == {}


@pytest.mark.parametrize(
    ("seen", "doubts", "fault"),
    [
        (changed(village(), offset=5), (Fault.GROUND,), Fault.GROUND),
        (changed(village(), offset=5), (), Fault.GROUND),
        (changed(village(), factor=0.1), (Fault.UNITS,), Fault.UNITS),
        ({**village(), NDSM: village(1)[NDSM]}, (), Fault.MISPLACED),
        ({**village(), NDSM: village(2)[NDSM]}, (Fault.MISPLACED,), Fault.MISPLACED),
    ],
)
def test_heights_that_are_wrong_are_found_guilty(
    seen: dict[Sensor, Observation], doubts: tuple[Fault, ...], fault: Fault
) -> None:
    assert guilty(seen, ndsm=doubts) == {NDSM: fault}


def test_colours_that_contradict_heights_which_fit_the_edges_are_found_guilty() -> None:
    seen = village()
    values = seen[RGIR].values.copy()
    inverted = {**seen, RGIR: observation(255 - values)}
    assert guilty(inverted) == {RGIR: Fault.BANDS}


def test_a_blurred_image_is_no_witness_against_heights() -> None:
    foreign = {**village(), NDSM: village(1)[NDSM]}
    assert guilty(foreign, rgir=(Fault.BLURRED,)) == {}


def test_a_blurred_image_is_given_up_where_heights_alone_are_sure() -> None:
    evidence = AUDITOR.examine(village())
    assert evidence is not None
    sure = dataclasses.replace(evidence, plain=0.95, with_and_without_image=0.8)
    assert list(judge(sure, {RGIR: (Fault.BLURRED,)}, LIMITS)) == [RGIR]
    assert judge(sure, {}, LIMITS) == {}
    varied = dataclasses.replace(sure, plain=0.6)
    assert judge(varied, {RGIR: (Fault.BLURRED,)}, LIMITS) == {}


def test_smeared_heights_are_given_up_unless_the_edges_fit() -> None:
    evidence = AUDITOR.examine(village())
    assert evidence is not None
    assert evidence.likeness is not None
    assert judge(evidence, {NDSM: (Fault.BLURRED,)}, LIMITS) == {}
    chance = dataclasses.replace(evidence.likeness, sigmas=1.0)
    apart = dataclasses.replace(evidence, likeness=chance, with_and_without_heights=0.7)
    (finding,) = judge(apart, {NDSM: (Fault.BLURRED,)}, LIMITS).values()
    assert finding.fault is Fault.BLURRED


def test_heights_that_are_rough_all_over_open_country_are_noise() -> None:
    rng = np.random.default_rng(0)
    field = {RGIR: village()[RGIR], NDSM: observation(rng.normal(0, 0.8, (1, SIDE, SIDE)).astype(np.float32))}
    maps = dict.fromkeys(Scenario, np.full((SIDE, SIDE), 2, np.uint8))
    maps[Scenario.FULL] = np.where(np.arange(SIDE) % 5, 2, 3 + np.zeros((SIDE, SIDE))).astype(np.uint8)
    evidence = weigh(field, maps, CLASSES, near_m=1.4)
    assert evidence is not None
    assert evidence.rough_m > 2
    assert {sensor: each.fault for sensor, each in judge(evidence, {}, LIMITS).items()} == {NDSM: Fault.NOISE}
    smooth = dataclasses.replace(evidence, rough_m=0.3)
    assert judge(smooth, {}, LIMITS) == {}


def test_trees_that_are_greyer_than_roofs_condemn_an_image_at_once_and_odd_roofs_alone_do_not() -> None:
    evidence = AUDITOR.examine(village())
    assert evidence is not None
    odd = dataclasses.replace(evidence, ranks=0.4, with_and_without_heights=0.6, with_and_without_image=0.6)
    (finding,) = judge(odd, {}, LIMITS).values()
    assert (finding.fault, finding.hard) == (Fault.BANDS, False)
    (finding,) = judge(dataclasses.replace(odd, green=-0.2, near=0.5, floor=0.5), {}, LIMITS).values()
    assert finding.hard


def test_a_sensor_that_does_no_harm_is_not_found_guilty() -> None:
    fields = {RGIR: village()[RGIR], NDSM: observation(np.zeros((1, SIDE, SIDE), np.float32))}
    flat = Auditor(infer=lambda scenario, _: np.zeros((SIDE, SIDE), np.uint8), classes=CLASSES, limits=LIMITS)
    evidence = flat.examine(changed(fields, offset=5))
    assert evidence is not None
    assert judge(evidence, {NDSM: (Fault.GROUND,)}, LIMITS) == {}


def test_evidence_counts_pixels_that_both_sensors_saw() -> None:
    seen = village()
    valid = np.zeros((SIDE, SIDE), np.bool_)
    valid[: SIDE // 2] = True
    half = {RGIR: Observation(values=seen[RGIR].values, valid=valid), NDSM: seen[NDSM]}
    maps = {scenario: infer(scenario, seen) for scenario in Scenario}
    noisy = {scenario: np.where(valid, values, 5).astype(np.uint8) for scenario, values in maps.items()}
    noisy[Scenario.FULL] = np.where(valid, maps[Scenario.FULL], 3).astype(np.uint8)
    one, other = (weigh(half, each, CLASSES, near_m=1.4) for each in (maps, noisy))
    assert one == other
    nothing = {
        RGIR: Observation(values=seen[RGIR].values, valid=~valid),
        NDSM: Observation(values=seen[NDSM].values, valid=valid),
    }
    assert weigh(nothing, maps, CLASSES, near_m=1.4) is None


# When


def test_an_audit_is_due_at_once_and_then_every_so_many_tiles() -> None:
    docket = Docket()
    audited = [tile for tile in range(60) if docket.next_tile(20, True, False, False)]
    assert audited == [0, 20, 40]


def test_doubts_cannot_ask_for_more_than_twice_the_audits_in_the_long_run() -> None:
    docket = Docket()
    for _ in range(2000):
        docket.next_tile(50, True, True, True)
    assert docket.audits <= 2 * 2000 / 50 + 3


def test_an_audit_that_is_due_waits_for_a_tile_with_both_sensors() -> None:
    docket = Docket()
    possible = [False, False, True, True]
    assert [docket.next_tile(100, each, False, False) for each in possible] == [False, False, True, False]


def test_a_convicted_sensor_is_examined_again_after_ever_longer_waits() -> None:
    docket = Docket(spare=100.0)
    assert docket.next_tile(1000, True, False, False)
    docket.judged(True, 1000)
    audited = []
    for tile in range(1, 40):
        docket.spare = 2.0
        if docket.next_tile(1000, True, False, True):
            docket.judged(True, 1000)
            audited.append(tile)
    assert audited == [4, 12, 28]


# What follows


def watched(every_tiles: int = 150) -> Monitor:
    return Monitor(default_limits(), Auditor(infer=infer, classes=CLASSES, limits=AuditLimits(every_tiles=every_tiles)))


def test_heights_of_another_place_are_dead_in_the_first_tile_and_until_they_are_right_again() -> None:
    judge_, states = watched(), []
    for seed in range(14):
        heights = village(seed + 50)[NDSM] if seed < 6 else village(seed)[NDSM]
        states.append(judge_.assess({RGIR: village(seed)[RGIR], NDSM: heights})[NDSM].state)
    assert states[:6] == [State.DEAD] * 6
    assert states[-1] is State.ALIVE
    assert judge_.audits <= 4


def test_a_closed_forest_is_acquitted_and_not_suspected_again() -> None:
    def forest(seed: int) -> dict[Sensor, Sighting]:
        canopy = 15 + 2 * np.sin(np.arange(SIDE) / (5 + seed)) * np.cos(np.arange(SIDE) / 9)[None, :, None]
        return {RGIR: village(seed)[RGIR], NDSM: observation(canopy.astype(np.float32))}

    trees = Auditor(infer=lambda scenario, _: np.full((SIDE, SIDE), 3, np.uint8), classes=CLASSES, limits=LIMITS)
    judge_ = Monitor(default_limits(), trees)
    assert {judge_.assess(forest(seed))[NDSM].state for seed in range(8)} == {State.ALIVE}
    before = judge_.audits
    assert before <= 2
    higher = forest(9)
    assert isinstance(higher[NDSM], Observation)
    judge_.assess({**higher, NDSM: observation(higher[NDSM].values + 30)})
    assert judge_.audits == before + 1


def test_audits_that_are_switched_off_never_ask_a_graph() -> None:
    def refuse(scenario: Scenario, seen: Mapping[Sensor, Observation]) -> NDArray[np.uint8]:
        raise AssertionError(scenario)

    limits = AuditLimits(every_tiles=0)
    judge_ = Monitor(default_limits(), Auditor(infer=refuse, classes=CLASSES, limits=limits))
    assert judge_.assess(changed(village(), offset=5))[NDSM].state is State.DEGRADED


def test_a_restored_monitor_audits_as_one_that_was_never_stopped() -> None:
    tiles = [changed(village(seed), offset=5 if 3 <= seed < 6 else 0) for seed in range(10)]
    whole = watched(4)
    expected = [whole.assess(seen) for seen in tiles]
    for cut in (1, 4, 7):
        first = watched(4)
        for seen in tiles[:cut]:
            first.assess(seen)
        second = watched(4)
        second.restore(msgspec.json.decode(msgspec.json.encode(first.snapshot())))
        assert [second.assess(seen) for seen in tiles[cut:]] == expected[cut:]
        assert second.snapshot() == whole.snapshot()
