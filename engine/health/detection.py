"""How faults on purpose were seen by the monitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.contract.sensors import Sensor
from engine.health.faults import Injection, Kind
from engine.health.verdict import Fault, State, Verdict


@dataclass(frozen=True, kw_only=True)
class InjectionOutcome:
    """How one injection was seen."""

    injection: str
    """As it is written in ``--inject``."""
    expected_hard: bool
    tiles: int
    """Tiles of the run in which there was something to spoil."""
    detected: bool
    delay_tiles: int | None
    """From the first of these tiles to the first verdict against the sensor; None: never."""
    dead_delay_tiles: int | None
    """From the first of these tiles to the first DEAD verdict; None: never."""
    fault: Fault | None
    """What the first verdict called it."""


@dataclass(frozen=True, kw_only=True)
class Detection:
    """How all injections of a run were seen."""

    outcomes: tuple[InjectionOutcome, ...]
    false_alarms: Mapping[Sensor, int]
    """Tiles in which a sensor that was left alone was said to have a fault. A raster's nodata is none, nor is the
    recovery after a fault."""


def detection(injections: Sequence[Injection], verdicts: Sequence[Mapping[Sensor, Verdict]]) -> Detection:
    """How every injection was seen. ``verdicts`` holds those of tile 0, 1, 2, ... of the run."""
    false_alarms = {
        sensor: sum(
            _against(verdict)
            for tile, by_sensor in enumerate(verdicts)
            if (verdict := by_sensor.get(sensor)) is not None
            and not any(tile in injection for injection in injections if injection.sensor is sensor)
        )
        for sensor in Sensor
    }
    return Detection(outcomes=tuple(_outcome(each, verdicts) for each in injections), false_alarms=false_alarms)


def _against(verdict: Verdict) -> bool:
    """The verdict blames this very tile for a fault."""
    return verdict.fault not in (None, Fault.NO_DATA) and not verdict.recovering


def _outcome(injection: Injection, verdicts: Sequence[Mapping[Sensor, Verdict]]) -> InjectionOutcome:
    stop = len(verdicts) if injection.last is None else min(injection.last + 1, len(verdicts))
    present = (verdicts[tile].get(injection.sensor) for tile in range(injection.first, stop))
    touched = [verdict for verdict in present if verdict is not None]
    if injection.kind is Kind.DEAD:
        blamed = [not verdict.recovering and verdict.fault is not None for verdict in touched]
    else:  # where the raster itself has no data there was nothing to spoil
        touched = [verdict for verdict in touched if verdict.fault is not Fault.NO_DATA]
        blamed = [_against(verdict) for verdict in touched]
    first = next((place for place, hit in enumerate(blamed) if hit), None)
    dead = (place for place, hit in enumerate(blamed) if hit and touched[place].state is State.DEAD)
    return InjectionOutcome(
        injection=str(injection),
        expected_hard=injection.expected_hard,
        tiles=len(touched),
        detected=first is not None,
        delay_tiles=first,
        dead_delay_tiles=next(dead, None),
        fault=None if first is None else touched[first].fault,
    )
