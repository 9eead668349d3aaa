"""Fault injection: the grammar, what each kind does to a tile, and how detection is counted."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from engine.contract.errors import UsageError
from engine.contract.health import default_limits
from engine.contract.sensors import Sensor
from engine.health.detection import detection
from engine.health.faults import (
    Injection,
    Injector,
    Kind,
    degradations_of,
    kinds_of,
    parse_faults,
    strengths_of,
)
from engine.health.monitor import Absent, Fault, Monitor, Sighting, State, Verdict
from engine.rasters.sources import Observation

RGIR, NDSM = Sensor.RGIR, Sensor.NDSM
Seen = dict[Sensor, Sighting]


def tile(seed: int, side: int = 64) -> dict[Sensor, Observation]:
    """A healthy tile with buildings; the left edge of the image has no data."""
    rng = np.random.default_rng(seed)
    blocks = np.kron(rng.integers(0, 2, (side // 8, side // 8)), np.ones((8, 8)))
    image = 90 + 70 * blocks + rng.normal(0, 4, (side, side)) + rng.normal(0, 1, (3, side, side))
    rows = np.mgrid[:side, :side][0]
    valid = np.ones((side, side), np.bool_)
    valid[:, :4] = False
    return {
        RGIR: Observation(values=np.rint(np.clip(image, 0, 255)).astype(np.uint8), valid=valid),
        NDSM: Observation(
            values=(8 * blocks + 0.1 * np.sin(rows / 9 + seed))[None].astype(np.float32), valid=np.ones_like(valid)
        ),
    }


# Grammar


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ndsm:dead@120-180", [(NDSM, Kind.DEAD, 120, 180)]),
        ("rgir:noise@200", [(RGIR, Kind.NOISE, 200, 200)]),
        ("ndsm:frozen@300-", [(NDSM, Kind.FROZEN, 300, None)]),
        (
            "ndsm:dead@120-180, rgir:noise@200,ndsm:frozen@300-,rgir:late@0-410",
            [
                (NDSM, Kind.DEAD, 120, 180),
                (RGIR, Kind.NOISE, 200, 200),
                (NDSM, Kind.FROZEN, 300, None),
                (RGIR, Kind.LATE, 0, 410),
            ],
        ),
    ],
)
def test_faults_are_read_as_written(text: str, expected: list[tuple[Sensor, Kind, int, int | None]]) -> None:
    found = parse_faults(text)
    assert [(each.sensor, each.kind, each.first, each.last) for each in found] == expected
    assert ",".join(map(str, found)) == text.replace(" ", "")


@pytest.mark.parametrize(
    "text",
    ["", "ndsm", "ndsm:dead", "lidar:dead@1", "ndsm:broken@1", "ndsm:dead@", "ndsm:dead@-3", "ndsm:dead@1-2-3", "a,,b"],
)
def test_a_text_outside_the_grammar_is_refused_with_the_grammar(text: str) -> None:
    with pytest.raises(UsageError, match=r"SENSOR:KIND@FIRST.*rgir, ndsm.*frozen.*received"):
        parse_faults(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ndsm:dead@9-3", "not before it"),
        ("ndsm:dark@3", "ndsm can be dead, holes, constant, flat"),
        ("rgir:range@3", "rgir can be dead"),
        ("rgir:frozen@0-5", "tile 1 or later"),
    ],
)
def test_faults_that_make_no_sense_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_faults(text)


# Injection


@pytest.mark.parametrize(("sensor", "kind"), [(s, k) for s in Sensor for k in kinds_of(s)])
def test_every_kind_changes_its_sensor_in_its_tiles_alone(sensor: Sensor, kind: Kind) -> None:
    injector = Injector([Injection(sensor=sensor, kind=kind, first=2, last=3)])
    for index in range(6):
        seen, untouched = tile(index), tile(index)
        got = injector.apply(index, seen)
        for each in Sensor:
            assert np.array_equal(seen[each].values, untouched[each].values)
            assert np.array_equal(seen[each].valid, untouched[each].valid)
            if each is not sensor or index not in (2, 3):
                assert got[each] is seen[each]
        if index not in (2, 3):
            continue
        spoiled = got[sensor]
        if isinstance(spoiled, Absent):
            assert kind in (Kind.LATE, Kind.ERROR)
            continue
        assert spoiled.values.dtype == seen[sensor].values.dtype
        assert spoiled.values.shape == seen[sensor].values.shape
        assert np.isfinite(spoiled.values).all()
        changed = not np.array_equal(spoiled.values, seen[sensor].values)
        assert changed or not np.array_equal(spoiled.valid, seen[sensor].valid)
        assert not (spoiled.valid & ~seen[sensor].valid).any() or kind is Kind.FROZEN


def delivered(seed: int, index: int, kind: Kind, sensor: Sensor = RGIR) -> Observation:
    got = Injector([Injection(sensor=sensor, kind=kind, first=0, last=None)], seed).apply(index, tile(0))[sensor]
    assert isinstance(got, Observation)
    return got


@pytest.mark.parametrize("kind", [Kind.NOISE, Kind.HOLES, Kind.DARK])
def test_the_bytes_depend_on_seed_tile_and_nothing_else(kind: Kind) -> None:
    first, again = delivered(1, 5, kind), delivered(1, 5, kind)
    assert np.array_equal(first.values, again.values)
    assert np.array_equal(first.valid, again.valid)
    for other in (delivered(1, 6, kind), delivered(2, 5, kind)):
        assert not (np.array_equal(first.values, other.values) and np.array_equal(first.valid, other.valid))


@pytest.mark.parametrize("sensor", Sensor)
def test_the_same_columns_are_stuck_in_every_tile(sensor: Sensor) -> None:
    first, second = (delivered(0, index, Kind.STUCK, sensor).values for index in (3, 9))
    stuck = [(values == values[:, :1]).all(axis=(0, 1)) for values in (first, second)]
    assert np.array_equal(*stuck)
    assert stuck[0].sum() == 64 // 20
    assert np.array_equal(first[:, 0, stuck[0]], second[:, 0, stuck[0]])


@pytest.mark.parametrize(("sensor", "std"), [(RGIR, 40.0), (NDSM, 2.5)])
def test_noise_has_the_stated_strength(sensor: Sensor, std: float) -> None:
    grey = Observation(values=np.full_like(tile(0)[sensor].values, 127), valid=tile(0)[sensor].valid)
    noisy = Injector(parse_faults(f"{sensor}:noise@0")).apply(0, {sensor: grey})[sensor]
    assert isinstance(noisy, Observation)
    assert noisy.values.astype(np.float64).std() == pytest.approx(std, rel=0.05)


def test_a_frozen_sensor_repeats_the_tile_before_though_its_buffer_is_used_again() -> None:
    injector = Injector(parse_faults("ndsm:frozen@2-3"))
    buffers = tile(0)
    wanted = tile(1)[NDSM].values
    for index in range(5):
        buffers[NDSM].values[...] = tile(index)[NDSM].values
        got = injector.apply(index, buffers)[NDSM]
        assert isinstance(got, Observation)
        assert np.array_equal(got.values, wanted) == (index in (1, 2, 3))


def test_a_sensor_freezes_what_it_delivered_not_what_it_should_have() -> None:
    injector = Injector(parse_faults("rgir:dark@1,rgir:frozen@2"))
    dark, frozen = (injector.apply(index, tile(index))[RGIR] for index in (1, 2))
    assert isinstance(dark, Observation)
    assert isinstance(frozen, Observation)
    assert np.array_equal(dark.values, frozen.values)


def test_a_sensor_that_is_not_there_is_left_alone() -> None:
    absent = Absent(fault=Fault.READ_ERROR, detail="gone")
    injector = Injector(parse_faults("ndsm:noise@0-,rgir:dead@0-"))
    assert injector.apply(0, {NDSM: absent}) == {NDSM: absent}


# Detection


def verdict(letter: str) -> Verdict:
    """a alive, d degraded by noise, D dead by noise, r recovering, n no data."""
    noise, dead = Fault.NOISE, State.DEAD
    return {
        "a": Verdict(state=State.ALIVE),
        "d": Verdict(state=State.DEGRADED, fault=noise),
        "D": Verdict(state=dead, fault=noise),
        "r": Verdict(state=dead, fault=noise, recovering=True),
        "n": Verdict(state=dead, fault=Fault.NO_DATA),
    }[letter]


def flight(ndsm: str, rgir: str | None = None) -> list[dict[Sensor, Verdict]]:
    return [
        {NDSM: verdict(each), RGIR: verdict(other)} for each, other in zip(ndsm, rgir or "a" * len(ndsm), strict=True)
    ]


@pytest.mark.parametrize(
    ("fault", "ndsm", "tiles", "delay", "dead_delay"),
    [
        ("ndsm:noise@2-4", "aaDDDrra", 3, 0, 0),
        ("ndsm:noise@2-4", "aaaDDrra", 3, 1, 1),
        ("ndsm:noise@2-4", "aaddDrra", 3, 0, 2),
        ("ndsm:noise@2-4", "aaaaaaaa", 3, None, None),
        ("ndsm:noise@2-4", "aannDrra", 1, 0, 0),  # the raster has no data where it starts
        ("ndsm:noise@2-4", "aDrDDrra", 3, 1, 1),  # still recovering from something else
        ("ndsm:dead@2-4", "aannnaaa", 3, 0, 0),
        ("ndsm:noise@6-", "aaaaaaDD", 2, 0, 0),
        ("ndsm:noise@90-", "aaaaaaaa", 0, None, None),  # the run was shorter
    ],
)
def test_detection_counts_from_the_first_tile_that_was_spoiled(
    fault: str, ndsm: str, tiles: int, delay: int | None, dead_delay: int | None
) -> None:
    (outcome,) = detection(parse_faults(fault), flight(ndsm)).outcomes
    assert outcome.injection == fault
    assert (outcome.tiles, outcome.delay_tiles, outcome.dead_delay_tiles) == (tiles, delay, dead_delay)
    assert outcome.detected == (delay is not None)
    assert (outcome.fault is None) == (delay is None)


def test_false_alarms_are_faults_of_sensors_left_alone_without_recovery_and_nodata() -> None:
    found = detection(parse_faults("ndsm:noise@2-3"), flight("nndDrraaD", "aaddaDrna"))
    assert found.false_alarms == {NDSM: 1, RGIR: 3}


def test_only_kinds_that_a_single_tile_does_not_prove_are_soft() -> None:
    soft = {kind for sensor in Sensor for kind in kinds_of(sensor) if not injected(sensor, kind).expected_hard}
    assert soft == {Kind.HOLES, Kind.FLAT}


def injected(sensor: Sensor, kind: Kind) -> Injection:
    return Injection(sensor=sensor, kind=kind, first=1, last=1)


def test_the_table_of_detection_is_ready_for_json() -> None:
    found = detection(parse_faults("ndsm:noise@1"), flight("aDrra"))
    assert msgspec.json.decode(msgspec.json.encode(found)) == {
        "outcomes": [
            {
                "injection": "ndsm:noise@1",
                "expected_hard": True,
                "tiles": 1,
                "detected": True,
                "delay_tiles": 0,
                "dead_delay_tiles": 0,
                "fault": "noise",
            }
        ],
        "false_alarms": {"rgir": 0, "ndsm": 0},
    }


def test_on_a_flight_with_every_kind_all_are_seen_at_once_and_nothing_else() -> None:
    wanted, start = [], 5
    for sensor in Sensor:
        for kind in kinds_of(sensor):
            wanted.append(f"{sensor}:{kind}@{start}-{start + 4}")
            start += 12
    injections = parse_faults(",".join(wanted))
    injector, monitor = Injector(injections), Monitor(default_limits())
    verdicts = [monitor.assess(injector.apply(index, dict(tile(index, side=128)))) for index in range(start)]
    found = detection(injections, verdicts)
    assert found.false_alarms == {RGIR: 0, NDSM: 0}
    for outcome in found.outcomes:
        assert outcome.delay_tiles == 0, outcome
        assert outcome.dead_delay_tiles == (0 if outcome.expected_hard else outcome.dead_delay_tiles), outcome
        assert outcome.dead_delay_tiles is not None, outcome


# Degradations

STRENGTHS = [
    (sensor, kind, each) for sensor in Sensor for kind in degradations_of(sensor) for each in strengths_of(kind)[sensor]
]


def degraded(sensor: Sensor, kind: Kind, strength: float, seed: int = 0) -> Observation:
    injector = Injector([Injection(sensor=sensor, kind=kind, first=1, last=None, strength=strength)], seed)
    injector.apply(0, tile(0))
    got = injector.apply(1, tile(1))[sensor]
    assert isinstance(got, Observation)
    return got


@pytest.mark.parametrize(("sensor", "kind", "strength"), STRENGTHS)
def test_every_degradation_changes_its_sensor_and_keeps_it_readable(
    sensor: Sensor, kind: Kind, strength: float
) -> None:
    clean, got = tile(1)[sensor], degraded(sensor, kind, strength)
    assert got.values.dtype == clean.values.dtype
    assert got.values.shape == clean.values.shape
    assert np.isfinite(got.values).all()
    assert not (np.array_equal(got.values, clean.values) and np.array_equal(got.valid, clean.valid))
    assert np.array_equal(degraded(sensor, kind, strength).values, got.values)


def test_a_strength_is_read_as_written_and_its_kind_has_a_default() -> None:
    (given,) = parse_faults("ndsm:offset=-2.5@3-")
    assert (given.kind, given.amount, str(given)) == (Kind.OFFSET, -2.5, "ndsm:offset=-2.5@3-")
    (plain,) = parse_faults("ndsm:offset@3-")
    assert plain.amount == 80
    assert not plain.expected_hard


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ndsm:dead=3@1", "dead has no strength"),
        ("rgir:bands=123@1", "one of 132, 213"),
        ("rgir:inverted=4@1", "inverted is one of 0, 1, 2, 3"),
        ("ndsm:shift=-3@1", "a number of at least 0, px off"),
        ("ndsm:fog=1@1", "ndsm can be dead"),
        ("ndsm:held=1@0", "a held sensor repeats the tile before"),
    ],
)
def test_strengths_that_make_no_sense_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_faults(text)


@pytest.mark.parametrize("down", [5, 20, 50])
def test_a_shift_moves_by_three_and_four_fifths(down: int) -> None:
    clean, got = tile(1)[NDSM].values[0], degraded(NDSM, Kind.SHIFT, down).values[0]
    rows, cols = round(0.6 * down), round(0.8 * down)
    assert np.array_equal(got[rows:, cols:], clean[: 64 - rows, : 64 - cols])


def test_a_blur_keeps_the_mean_and_a_tilt_has_its_height() -> None:
    clean = tile(1)[NDSM].values
    assert degraded(NDSM, Kind.BLUR, 9).values.mean() == pytest.approx(clean.mean(), rel=0.1)
    assert np.ptp((degraded(NDSM, Kind.TILT, 20).values - clean)[0].mean(axis=0)) == pytest.approx(20, abs=1e-3)


def test_a_held_sensor_repeats_what_it_delivered_with_noise() -> None:
    got = degraded(NDSM, Kind.HELD, 0.05).values - tile(0)[NDSM].values
    assert got.std() == pytest.approx(0.05, rel=0.1)
