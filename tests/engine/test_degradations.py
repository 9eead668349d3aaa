"""Acceptance of degradations: harm is counted beyond dropping the sensor, and what is said of it adds up."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from engine.acceptance import degradations
from engine.acceptance.degradations import DegradationFlights, DegradationOutcome, SceneTiles
from engine.contract.health import AuditLimits, default_limits
from engine.contract.sensors import Sensor
from engine.health.faults import Kind
from engine.health.verdict import Fault
from tests.engine.made_tiles import NDSM, RGIR
from tests.engine.test_health_audit import CLASSES, infer
from tests.engine.test_health_plausibility import village

SURVEY = DegradationFlights(infer=infer, classes=CLASSES, limits=default_limits(), audit=AuditLimits())
FLIGHT = SceneTiles(name="village", tiles=[village(seed) for seed in range(3)])


def outcome(sensor: Sensor, kind: Kind, strength: float) -> DegradationOutcome:
    (found,) = SURVEY.outcomes(FLIGHT, [(sensor, kind, strength)])
    return found


def test_a_clean_flight_has_no_false_alarm() -> None:
    clean = SURVEY.clean(FLIGHT)
    assert (clean.tiles, clean.dead, clean.degraded, clean.audits) == (3, 0, 0, 1)
    assert SURVEY.clean(SceneTiles(name="half", tiles=[{RGIR: seen[RGIR]} for seen in FLIGHT.tiles])).audits == 0


def test_a_surface_model_costs_much_if_used_and_nothing_if_watched() -> None:
    found = outcome(NDSM, Kind.OFFSET, 80)
    assert found.used > 20
    assert found.lost == 0
    assert (found.seen_after, found.fault, found.blamed_other) == (0, Fault.GROUND, False)


def test_what_does_no_harm_is_used() -> None:
    found = outcome(RGIR, Kind.GAIN, 0.9)
    assert found.seen_after is None
    assert found.lost == found.used < 3


def test_a_held_sensor_is_counted_from_where_it_repeats() -> None:
    found = outcome(NDSM, Kind.HELD, 0.05)
    assert (found.tiles, found.seen_after, found.fault) == (2, 0, Fault.HELD)


def test_every_degradation_is_flown_at_every_strength() -> None:
    flown = list(degradations.cases())
    assert len(flown) == len(set(flown)) > 60
    assert {sensor for sensor, _, _ in flown} == set(Sensor)


def test_table_csv_and_picture_say_the_same(tmp_path: Path) -> None:
    outcomes = [outcome(NDSM, Kind.OFFSET, 5), outcome(NDSM, Kind.OFFSET, 80)]
    clean = [SURVEY.clean(FLIGHT)]
    text = "\n".join(degradations.render(clean, outcomes))
    assert "2 cases, all; more than 3 points lost beyond dropping: 2 if used, 0 watched" in text
    assert "1 clean flights, 3 tiles: 0 dead, 0 degraded, 1 audits" in text
    degradations.write_csv(tmp_path / "d.csv", clean, outcomes)
    rows = list(csv.DictReader((tmp_path / "d.csv").open()))
    assert [row["kind"] for row in rows] == ["offset", "offset", "clean"]
    assert float(rows[0]["used"]) == pytest.approx(outcomes[0].used, abs=0.01)
    degradations.write_picture(tmp_path / "d.svg", outcomes)
    assert (tmp_path / "d.svg").read_text().count("<circle") == 4
