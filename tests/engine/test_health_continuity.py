"""Tiles of one raster overlap: a sensor that does not go on where its last tile ended shows another place."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

import numpy as np
import pytest

from engine.contract.health import default_limits
from engine.contract.sensors import Sensor
from engine.health.monitor import Fault, Monitor, State, Verdict
from engine.health.novelty import likeness, signature
from engine.rasters.sources import Observation
from tests.engine.made_tiles import NDSM, RGIR, observation
from tests.engine.test_health_audit import AUDITOR
from tests.engine.test_health_plausibility import SIDE, village

STRIDE = 192
PLACES = [(0, 0), (0, STRIDE), (0, 2 * STRIDE), (STRIDE, 0), (STRIDE, STRIDE), (STRIDE, 2 * STRIDE)]
SCENE = village(5, SIDE + 2 * STRIDE)
Spoil = Callable[[int, dict[Sensor, Observation]], dict[Sensor, Observation]]


def tile(place: tuple[int, int]) -> dict[Sensor, Observation]:
    window = (slice(place[0], place[0] + SIDE), slice(place[1], place[1] + SIDE))
    return {sensor: observation(np.ascontiguousarray(each.values[:, *window])) for sensor, each in SCENE.items()}


def turned(sensor: Sensor, *tiles: int) -> Spoil:
    """Another place, of the same statistics, in some tiles."""

    def spoil(index: int, seen: dict[Sensor, Observation]) -> dict[Sensor, Observation]:
        if index not in tiles:
            return seen
        return {**seen, sensor: observation(np.ascontiguousarray(np.rot90(seen[sensor].values, 2, axes=(1, 2))))}

    return spoil


def flown(spoil: Spoil, *, audited: bool = False, placed: bool = True) -> list[Mapping[Sensor, Verdict]]:
    judge = Monitor(default_limits(), AUDITOR if audited else None)
    return [judge.assess(spoil(index, tile(place)), place if placed else None) for index, place in enumerate(PLACES)]


@pytest.mark.parametrize("sensor", [RGIR, NDSM])
def test_a_foreign_tile_is_found_at_once_and_only_with_places(sensor: Sensor) -> None:
    verdicts = flown(turned(sensor, 2))
    assert [each[sensor].state for each in verdicts[:2]] == [State.ALIVE] * 2
    assert (verdicts[2][sensor].state, verdicts[2][sensor].fault) == (State.DEAD, Fault.MISPLACED)
    assert "where its last tile ended" in verdicts[2][sensor].detail
    other = NDSM if sensor is RGIR else RGIR
    assert {each[other].state for each in verdicts} == {State.ALIVE}
    assert {each[sensor].state for each in flown(turned(sensor, 2), placed=False)} == {State.ALIVE}


def test_tiles_of_a_raster_go_on_and_rows_begin_anew() -> None:
    verdicts = flown(lambda index, seen: seen, audited=True)
    assert {verdict.state for each in verdicts for verdict in each.values()} == {State.ALIVE}


def test_an_image_of_another_place_acquits_the_heights_that_were_blamed_for_it() -> None:
    verdicts = flown(turned(RGIR, *range(6)), audited=True)
    assert verdicts[0][NDSM].fault is Fault.MISPLACED, "nothing tells yet which of the two is wrong"
    for each in verdicts[1:]:
        assert each[RGIR].state is State.DEAD
        assert each[NDSM].state is State.ALIVE


def test_a_tile_after_a_bad_one_is_not_held_against_it() -> None:
    verdicts = flown(turned(NDSM, 1))
    assert verdicts[1][NDSM].state is State.DEAD
    assert verdicts[2][NDSM].recovering


def test_signatures_are_compared_where_the_tiles_overlap() -> None:
    here, there = tile(PLACES[0])[RGIR], tile(PLACES[1])[RGIR]
    assert likeness(signature(here), signature(there), (0, STRIDE), SIDE) == pytest.approx(1)
    assert abs(likeness(signature(here), signature(there)) or 0) < 0.3
    np.testing.assert_array_equal(signature(there, (0, STRIDE)).steps, signature(there).steps)
    window = (slice(None), slice(STRIDE - 51, STRIDE - 51 + SIDE), slice(41, 41 + SIDE))
    later = observation(np.ascontiguousarray(SCENE[RGIR].values[window]))
    earlier = observation(np.ascontiguousarray(SCENE[RGIR].values[:, :SIDE, 100 : 100 + SIDE]))
    moved = (STRIDE - 51, -59)
    assert likeness(signature(earlier), signature(later, moved), moved, SIDE) == pytest.approx(1)
    assert likeness(signature(here), signature(there, (SIDE, 0)), (SIDE, 0), SIDE) is None
    assert abs(likeness(signature(here), signature(there, (0, -STRIDE)), (0, -STRIDE), SIDE) or 0) < 0.3


def test_a_resumed_flight_knows_where_the_last_tile_was() -> None:
    first, second = Monitor(default_limits()), Monitor(default_limits())
    first.assess(tile(PLACES[0]), PLACES[0])
    second.restore(json.loads(json.dumps(first.snapshot())))
    seen = turned(RGIR, 1)(1, tile(PLACES[1]))
    assert second.assess(seen, PLACES[1])[RGIR].fault is Fault.MISPLACED


def test_another_frame_need_not_go_on_where_the_last_one_ended() -> None:
    for told, states in ((True, {State.ALIVE}), (False, {State.DEGRADED})):
        monitor = Monitor(default_limits())
        monitor.assess(tile(PLACES[1]), PLACES[1])
        if told:
            monitor.begin_frame()
        verdicts = monitor.assess(village(9, SIDE), PLACES[0])
        assert {verdict.state for verdict in verdicts.values()} == states
