"""What follows from the faults of one tile after the other: flat heights, frozen frames, hysteresis, memory."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from engine.contract.health import Limit
from engine.contract.sensors import Sensor
from engine.health.monitor import Absent, Fault, State, Verdict
from engine.health.tile_statistics import strong_edges
from tests.engine.made_tiles import (
    BAD,
    NDSM,
    NOTHING,
    RGIR,
    Seen,
    beside_an_image,
    holes,
    lake,
    monitor,
    noisy,
    observation,
    states,
    town,
)

# One value, the same bytes, too few pixels


def test_one_value_in_all_bands_is_a_hard_fault_and_in_one_band_a_soft_one() -> None:
    image = town()[RGIR]
    grey = observation(np.full_like(image.values, 90))
    one_band = image.values.copy()
    one_band[0] = 0
    assert monitor().assess({RGIR: grey})[RGIR].state is State.DEAD
    verdict = monitor().assess({RGIR: observation(one_band)})[RGIR]
    assert (verdict.state, verdict.fault) == (State.DEGRADED, Fault.CONSTANT)
    assert verdict.detail.startswith("band 1 of 3")


def test_flat_heights_over_a_lake_are_believed() -> None:
    for verdict in states(monitor(), NDSM, [lake(seed) for seed in range(10)]):
        assert verdict.state is State.ALIVE


def test_flat_heights_under_a_town_are_a_dead_sensor() -> None:
    assert strong_edges(town()[RGIR]) > 0.12
    verdict = monitor().assess(town() | {NDSM: lake()[NDSM]})[NDSM]
    assert (verdict.state, verdict.fault) == (State.DEAD, Fault.CONSTANT)


def test_flat_heights_above_the_ground_are_a_dead_sensor_even_over_a_lake() -> None:
    flat = observation(np.full((1, 128, 128), 7.5, np.float32))
    verdict = monitor().assess(lake() | {NDSM: flat})[NDSM]
    assert (verdict.state, verdict.fault) == (State.DEAD, Fault.CONSTANT)


@pytest.mark.parametrize("image", [{}, {RGIR: Absent(fault=Fault.LATE, detail="")}], ids=["no image", "late image"])
def test_flat_heights_without_an_image_to_ask_are_suspicious(image: Seen) -> None:
    found = states(monitor(), NDSM, [image | {NDSM: lake()[NDSM]}] * 3)
    assert [verdict.state for verdict in found] == [State.DEGRADED, State.DEGRADED, State.DEAD]


def test_an_image_that_is_dead_itself_is_not_asked_about_flat_heights() -> None:
    judge = monitor()
    judge.assess(town())
    found = judge.assess(town() | {NDSM: lake()[NDSM]})
    assert found[RGIR].fault is Fault.FROZEN
    assert (found[NDSM].state, found[NDSM].fault) == (State.DEGRADED, Fault.CONSTANT)


def test_a_height_sensor_that_died_over_a_town_does_not_recover_by_flat_tiles() -> None:
    judge = monitor()
    judge.assess(town() | {NDSM: lake()[NDSM]})
    assert {verdict.state for verdict in states(judge, NDSM, [lake(seed) for seed in range(6)])} == {State.DEAD}
    assert [verdict.state for verdict in states(judge, NDSM, [town(seed) for seed in range(3)])] == [
        State.DEAD,
        State.DEAD,
        State.ALIVE,
    ]


@pytest.mark.parametrize("sensor", Sensor)
def test_the_same_bytes_twice_are_frozen_and_one_changed_column_is_not(sensor: Sensor) -> None:
    seen = town()
    sighting = seen[sensor]
    values = sighting.values.copy()
    values[0, :, 5] += 1
    found = states(monitor(), sensor, [seen, seen, {**seen, sensor: observation(values)}])
    assert [verdict.fault for verdict in found] == [None, Fault.FROZEN, Fault.FROZEN]
    assert [verdict.recovering for verdict in found] == [False, False, True]


def test_a_frozen_sensor_is_seen_across_a_gap_without_data() -> None:
    found = states(monitor(), NDSM, [town(), town() | {NDSM: NOTHING}, town()])
    assert [verdict.fault for verdict in found] == [None, Fault.NO_DATA, Fault.FROZEN]


def test_a_few_pixels_are_too_little_to_judge_and_no_recovery() -> None:
    few = np.zeros((128, 128), np.bool_)
    few[60:64, 60:64] = True
    corner: Seen = {NDSM: observation(np.full((1, 128, 128), 40, np.float32), few)}
    judge = monitor()
    assert judge.assess(corner)[NDSM].state is State.ALIVE
    judge.assess({NDSM: BAD})
    for _ in range(5):
        verdict = judge.assess(corner)[NDSM]
        assert (verdict.state, verdict.recovering) == (State.DEAD, True)


# Noise beside the sensor's own


def test_a_camera_that_is_always_noisy_raises_no_alarm_when_it_is_a_little_noisier() -> None:
    judge = monitor()
    assert {verdict.state for verdict in states(judge, RGIR, [noisy(seed, 15) for seed in range(9)])} == {State.ALIVE}
    assert judge.assess(noisy(9, 22))[RGIR].state is State.ALIVE
    assert judge.assess(noisy(10, 45))[RGIR].fault is Fault.NOISE


def test_the_same_noise_in_a_quiet_camera_is_a_fault() -> None:
    judge = monitor()
    states(judge, RGIR, [noisy(seed, 2) for seed in range(9)])
    assert judge.assess(noisy(9, 22))[RGIR].fault is Fault.NOISE


# Hysteresis


def words(verdicts: list[Verdict]) -> str:
    """One letter per tile: a alive, d degraded, D dead, r dead and recovering."""
    letter = {State.ALIVE: "a", State.DEGRADED: "d", State.DEAD: "D"}
    return "".join("r" if verdict.recovering else letter[verdict.state] for verdict in verdicts)


def sequence(text: str) -> list[Seen]:
    """g good, s suspicious, x unreadable, n no data."""
    tiles: list[Seen] = []
    for place, letter in enumerate(text):
        heights = town(place)[NDSM]
        suspicious = holes(heights.values, 0.1, np.random.default_rng(place))
        tiles.append({NDSM: {"g": heights, "s": suspicious, "x": BAD, "n": NOTHING}[letter]})
    return tiles


@pytest.mark.parametrize(
    ("tiles", "expected"),
    [
        ("ggxgggg", "aaDrraa"),  # hard: at once; three good ones bring it back
        ("gssgssg", "addadda"),  # suspicious, but never three in a row
        ("gsssgggg", "addDrraa"),
        ("gxggsgggg", "aDrrDrraa"),  # a suspicious tile starts recovery over
        ("gxggxggg", "aDrrDrra"),
        ("gnggnnng", "aDaaDDDa"),  # no data never lasts
        ("gxgngngg", "aDrDrDaa"),  # nor is it a good tile
        ("gsnsnsg", "adDdDDr"),  # nor does it end a row of suspicious ones
        ("gnxng", "aDDDr"),
    ],
)
def test_hysteresis(tiles: str, expected: str) -> None:
    assert words(states(monitor(), NDSM, beside_an_image(sequence(tiles)))) == expected


def test_hysteresis_follows_the_limits() -> None:
    judge = monitor(dead_after_tiles=1, alive_after_tiles=1)
    assert words(states(judge, NDSM, sequence("gsgxg"))) == "aDaDa"


def test_a_good_tile_of_a_dead_sensor_is_used_where_nothing_else_is_usable() -> None:
    judge = monitor()
    judge.assess(town(0) | {NDSM: BAD})
    held = judge.assess(town(1))[NDSM]
    alone = judge.assess(town(2) | {RGIR: Absent(fault=Fault.LATE, detail="")})[NDSM]
    assert (held.state, held.recovering) == (State.DEAD, True)
    assert (alone.state, alone.fault, alone.recovering) == (State.DEGRADED, Fault.READ_ERROR, True)
    assert judge.assess(town(3))[NDSM].state is State.ALIVE


def test_a_tile_that_proves_nothing_is_not_used_even_where_nothing_else_is() -> None:
    judge = monitor()
    judge.assess(town() | {NDSM: BAD})
    few = np.zeros((128, 128), np.bool_)
    few[60:64, 60:64] = True
    heights = town(1)[NDSM]
    found = judge.assess({RGIR: BAD, NDSM: observation(heights.values, few)})
    assert {verdict.state for verdict in found.values()} == {State.DEAD}


def test_a_recovering_sensor_says_why_it_died_and_how_far_it_is() -> None:
    found = states(monitor(), NDSM, beside_an_image(sequence("xgg")))
    assert [verdict.detail for verdict in found] == [
        "disk gone: check the file and its disk",
        "1 of 3 good tiles",
        "2 of 3 good tiles",
    ]
    assert {verdict.fault for verdict in found} == {Fault.READ_ERROR}


def test_sensors_are_judged_apart() -> None:
    found = monitor().assess(town() | {NDSM: BAD})
    assert found[RGIR].state is State.ALIVE
    assert found[NDSM].state is State.DEAD
    assert found[RGIR].usable
    assert not found[NDSM].usable


def test_a_check_that_is_switched_off_raises_no_alarm() -> None:
    judge = monitor(noise=None, hole_edges=None)
    assert judge.assess(noisy(1, 60))[RGIR].state is State.ALIVE
    assert words(states(judge, NDSM, sequence("ss"))) == "aa"


def test_a_limit_that_is_lowered_is_named_in_the_detail() -> None:
    verdict = monitor(noise=Limit(soft=0.1, hard=0.5)).assess(noisy(1, 3))[RGIR]
    assert verdict.fault is Fault.NOISE
    assert "hard limit 0.5 DN: " in verdict.detail


def test_tiles_of_other_sizes_are_judged_alike() -> None:
    for side in (32, 64, 512):
        judge = monitor()
        verdicts = judge.assess(town(side=side))
        assert {verdict.state for verdict in verdicts.values()} == {State.ALIVE}
        assert judge.assess(town(side=side))[RGIR].fault is Fault.FROZEN


# Memory


def test_a_restored_monitor_judges_as_one_that_was_never_stopped() -> None:
    text = "ggsgxggsssgnxnggggs"
    tiles = [{**each, **noisy(place, 1 + place % 4 * 8)} for place, each in enumerate(sequence(text))]
    whole = monitor()
    expected = [whole.assess(seen) for seen in tiles]
    for cut in range(len(tiles)):
        first = monitor()
        for seen in tiles[:cut]:
            first.assess(seen)
        kept = msgspec.json.encode(first.snapshot())
        second = monitor()
        second.restore(msgspec.json.decode(kept))
        assert [second.assess(seen) for seen in tiles[cut:]] == expected[cut:]
        assert second.snapshot() == whole.snapshot()


def test_a_snapshot_does_not_change_afterwards() -> None:
    judge = monitor()
    judge.assess(town(0))
    kept = judge.snapshot()
    before = msgspec.json.encode(kept)
    judge.assess(town(1))
    assert msgspec.json.encode(kept) == before


def test_buffers_may_be_read_into_again_and_are_not_written_to() -> None:
    buffers = {sensor: observation(np.zeros_like(seen.values)) for sensor, seen in town().items()}
    judge, fresh = monitor(), monitor()
    for seed in range(4):
        for sensor, seen in town(seed).items():
            buffers[sensor].values[...] = seen.values
        assert judge.assess(buffers) == fresh.assess(town(seed))
        for sensor, seen in town(seed).items():
            assert np.array_equal(buffers[sensor].values, seen.values)
            assert buffers[sensor].valid.all()


def test_only_lateness_and_read_errors_make_a_sensor_absent() -> None:
    with pytest.raises(ValueError, match="late or read_error, received noise"):
        Absent(fault=Fault.NOISE, detail="")
