"""Every change of a sensor's state in a run, and how many tiles it spent in each."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.contract.sensors import Sensor
from engine.health.monitor import Fault, State, Verdict
from engine.health.preflight import Advice

log = logging.getLogger(__name__)

MAX_CHANGES = 1000


@dataclass(frozen=True, kw_only=True)
class Change:
    """From this tile on a sensor is worth something else, or for another reason."""

    tile: int
    frame: str
    sensor: Sensor
    state: State
    fault: Fault | None
    detail: str


@dataclass(kw_only=True)
class SensorHistory:
    """Counts that ``run.json`` reports; plain values that a journal can hold.

    A tile in which a sensor has no data is counted and no change: rasters end somewhere, and the sensor is well.
    """

    advice: list[Advice] = field(default_factory=list)
    """What was told before the flight."""
    states: dict[Sensor, dict[State, int]] = field(default_factory=dict)
    faults: dict[Sensor, dict[Fault, int]] = field(default_factory=dict)
    """Tiles by the fault they were blamed with."""
    change_count: int = 0
    changes: list[Change] = field(default_factory=list)
    """The first :data:`MAX_CHANGES` of them."""
    last: dict[Sensor, tuple[State, Fault | None]] = field(default_factory=dict)

    def add(self, tile: int, verdicts: Mapping[Sensor, Verdict], *, frame: str = "") -> list[Change]:
        """Count one tile, and log what changed; returns the changes."""
        found = []
        for sensor, verdict in verdicts.items():
            states = self.states.setdefault(sensor, dict.fromkeys(State, 0))
            states[verdict.state] += 1
            if verdict.fault is not None:
                faults = self.faults.setdefault(sensor, {})
                faults[verdict.fault] = faults.get(verdict.fault, 0) + 1
            now = (verdict.state, verdict.fault)
            if verdict.fault is Fault.NO_DATA or now == self.last.get(sensor, (State.ALIVE, None)):
                continue
            self.last[sensor] = now
            self.change_count += 1
            change = Change(
                tile=tile, frame=frame, sensor=sensor, state=verdict.state, fault=verdict.fault, detail=verdict.detail
            )
            if len(self.changes) < MAX_CHANGES:
                self.changes.append(change)
            _tell(change)
            found.append(change)
        return found


def _tell(change: Change) -> None:
    place = f"frame {change.frame}, tile {change.tile}" if change.frame else f"tile {change.tile}"
    reason = ", ".join(part for part in (change.fault, change.detail) if part)
    log.log(
        logging.INFO if change.state is State.ALIVE else logging.WARNING,
        "%s: %s is %s%s",
        place,
        change.sensor,
        change.state,
        f": {reason}" if reason else "",
        extra={
            "event": "sensor_state",
            "tile": change.tile,
            "frame": change.frame,
            "sensor": str(change.sensor),
            "state": str(change.state),
            "fault": None if change.fault is None else str(change.fault),
        },
    )
