"""What the page knows of a run: fed with what the run tells, asked for all of it or for what is new."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import numpy as np

from engine.backends.base import BackendInfo
from engine.contract.bundle import ClassSpec
from engine.contract.sensors import PROVENANCE_LABELS, Scenario, Sensor
from engine.grid import Window
from engine.health.history import Change, SensorHistory
from engine.health.monitor import Verdict
from engine.output import REPORT_NAME
from engine.record import GridUsed, PlanRecord, RasterUsed
from engine.report.data import Shown
from engine.report.words import LOST, NOTHING, SCENARIO_LOOKS, SENSOR_NAMES, STATE_LOOKS, css, faults_in_words
from engine.telemetry.status import Phase
from engine.view.canvas import Shape
from engine.view.messages import (
    BackendChanged,
    FrameBegun,
    FrameDone,
    Message,
    PhaseBegun,
    Started,
    TileDone,
    Waiting,
)

TILES_KEPT = 3000
"""For the charts: five minutes at ten tiles a second."""
LISTED = 300
"""Switches, and changes of sensors, that are kept; the last of them."""
RECENT_S = 60.0
"""What speed and latency are told of."""
CELL_PX = 512
"""Side of the squares of a map whose news are counted."""


@dataclass(kw_only=True, eq=False)
class ShownFrame:
    """A map on the page."""

    number: int
    stamp: str
    grid: GridUsed
    inputs: Mapping[Sensor, RasterUsed]
    published: bool = False
    """Its maps are files; else they are on the canvas."""
    changed: int = 0
    news: Any = field(init=False)
    """Sequence number of the last change in every cell, int64 [rows, columns]."""

    def __post_init__(self) -> None:
        self.news = np.full((-(-self.grid.height // CELL_PX), -(-self.grid.width // CELL_PX)), self.changed, np.int64)

    @property
    def shape(self) -> Shape:
        """What a canvas holds of it."""
        return Shape.of(self.grid.height, self.grid.width)

    def touch(self, window: Window, sequence: int) -> None:
        """Something is new there."""
        rows = slice(window.row // CELL_PX, -(-(window.row + window.height) // CELL_PX))
        cols = slice(window.col // CELL_PX, -(-(window.col + window.width) // CELL_PX))
        self.news[rows, cols] = sequence

    def describe(self) -> dict[str, Any]:
        """For the page."""
        grid, shape = self.grid, self.shape
        return {
            "number": self.number,
            "stamp": self.stamp,
            "height": grid.height,
            "width": grid.width,
            "gsd_m": grid.gsd_m,
            "crs": grid.crs,
            "transform": grid.transform,
            "published": self.published,
            "step": 1 if self.published else shape.step,
            "inputs": [str(sensor) for sensor in Sensor if sensor in self.inputs],
        }


@dataclass(frozen=True, kw_only=True)
class Told:
    """One tile, and when it was told."""

    sequence: int
    number: int
    """Among all tiles of the run."""
    frame: int
    tile: TileDone


class ShownFlight:
    """Not thread-safe: feed and ask it from one thread.

    Attributes:
        output: folder of the run.
        frames: its maps, in order.
        sequence: grows with everything that is told.
    """

    def __init__(self, output: Path, *, identity: str = "") -> None:
        self.output, self.identity, self.base = output, identity, ""
        self.frames: list[ShownFrame] = []
        self.sequence = self._static_since = 0
        self.phase, self.reason, self.waits = Phase.STARTING, "", False
        self.started: Started | None = None
        self.backend: BackendInfo | None = None
        self.backend_events: deque[dict[str, Any]] = deque(maxlen=LISTED)
        self.tiles: deque[Told] = deque(maxlen=TILES_KEPT)
        self.switches: deque[tuple[int, dict[str, Any]]] = deque(maxlen=LISTED)
        self.changes: deque[tuple[int, dict[str, Any]]] = deque(maxlen=LISTED)
        self.history = SensorHistory()
        self.verdicts: Mapping[Sensor, Verdict] = {}
        self.since: dict[Sensor, int] = {}
        """The tile in which each sensor's state began."""
        self.tiles_done = self.tiles_lost = self.tiles_dropped = self.switch_count = 0
        self.frames_done = self.frames_dropped = self.misses = 0

    def apply(self, message: Message) -> None:
        """Take what the run tells."""
        self.sequence += 1
        match message:
            case Started():
                self.started, self.backend = message, message.backend
                self.tiles_done = message.first_tile
                self.phase, self._static_since = Phase.RUNNING, self.sequence
            case FrameBegun():
                self._begin(message)
            case TileDone():
                self._tile(message)
            case BackendChanged():
                self.backend = message.backend
                self.backend_events.append(msgspec.to_builtins(message.event))
            case FrameDone():
                self.frames_done += 1
                self.frames_dropped += message.dropped
                if self.started is not None and self.started.plan.live is not None:
                    limit = self.started.deadline_ms
                    self.misses += limit is not None and message.mapped and message.latency_ms > limit
                for frame in self.frames[-2:]:
                    if message.mapped and frame.stamp == message.stamp:
                        self._published(frame)
            case PhaseBegun():
                self.phase, self.reason = message.phase, message.reason
            case Waiting():
                self.waits = message.waits

    def snapshot(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        return {**self._static(), **self._news(0, whole=True)}

    def news(self, since: int) -> dict[str, Any] | None:
        """What is new since a sequence number; None where that is too long ago to tell."""
        oldest = self.tiles[0].sequence if len(self.tiles) == TILES_KEPT else 0
        oldest = max(oldest, self._static_since + 1)
        return None if since < oldest - 1 or since > self.sequence else self._news(since, whole=False)

    def _begin(self, message: FrameBegun) -> None:
        frame = ShownFrame(
            number=len(self.frames),
            stamp=message.stamp,
            grid=message.grid,
            inputs=message.inputs,
            changed=self.sequence,
        )
        self.frames.append(frame)

    def _published(self, frame: ShownFrame) -> None:
        frame.published, frame.changed = True, self.sequence
        frame.news[...] = self.sequence

    def _tile(self, tile: TileDone) -> None:
        frame = next((each.number for each in self.frames[-1:-4:-1] if each.stamp == tile.frame), -1)
        number = self.tiles_done
        self.tiles.append(Told(sequence=self.sequence, number=number, frame=frame, tile=tile))
        self.tiles_done += 1
        self.tiles_lost += tile.lost
        self.tiles_dropped += tile.skipped
        for window in tile.painted if frame >= 0 else ():
            self.frames[frame].touch(window, self.sequence)
        for sensor, verdict in tile.verdicts.items():
            before = self.verdicts.get(sensor)
            if before is None or (before.state, before.fault) != (verdict.state, verdict.fault):
                self.since[sensor] = number
        self.verdicts = tile.verdicts
        for change in self.history.add(tile.tile, tile.verdicts, frame=tile.frame):
            self.changes.append((self.sequence, changed(change, number)))
        limit = None if self.started is None else self.started.deadline_ms
        if self.started is not None and self.started.plan.live is None:
            self.misses += limit is not None and not tile.skipped and tile.latency_ms > limit
        if tile.switched and tile.scenario is not None:
            self.switch_count += 1
            mark = switch(self.switch_count, number, frame, tile.target, tile.scenario, why(tile))
            self.switches.append((self.sequence, mark))

    def _static(self) -> dict[str, Any]:
        """What does not change."""
        run = None if self.started is None else described(self.started, self.output)
        if run is not None:
            run["base"] = urlsplit(self.base).hostname or Path(self.base).name
        return {"run": run, "words": WORDS}

    def _news(self, since: int, *, whole: bool) -> dict[str, Any]:
        new = [each for each in self.tiles if each.sequence > since]
        told: dict[str, Any] = {
            "sequence": self.sequence,
            "frames": [frame.describe() for frame in self.frames if frame.changed > since],
            "tiles": columns(new),
            "switches": [mark for sequence, mark in self.switches if sequence > since],
            "changes": [change for sequence, change in self.changes if sequence > since],
            "now": self.now(),
        }
        if not whole:
            told["painted"] = [
                [each.frame, window.row, window.col, window.height, window.width]
                for each in new
                for window in each.tile.painted
            ]
        return told

    def now(self) -> dict[str, Any]:
        """The state of things."""
        last = self.tiles[-1].tile if self.tiles else None
        planned = None if self.started is None else self.started.plan.tiling.tiles
        return {
            "phase": self.phase,
            "reason": self.reason,
            "waits": self.waits,
            "tiles": {
                "done": self.tiles_done,
                "planned": planned,
                "lost": self.tiles_lost,
                "dropped": self.tiles_dropped,
            },
            "frames": {"done": self.frames_done, "dropped": self.frames_dropped},
            "switches": self.switch_count,
            "misses": self.misses,
            "engine": None if last is None else _mapped_from(last),
            "backend": None if self.backend is None else str(self.backend),
            "backend_events": [*self.backend_events][-5:],
            "sensors": self._sensors(),
            **self._pace(),
        }

    def _sensors(self) -> list[dict[str, Any]]:
        plan = None if self.started is None else self.started.plan
        return [] if plan is None else [self._sensor(sensor) for sensor in sensors_of(plan)]

    def _sensor(self, sensor: Sensor) -> dict[str, Any]:
        verdict = self.verdicts.get(sensor)
        counts = self.history.states.get(sensor, {})
        faults = self.history.faults.get(sensor, {})
        return {
            "sensor": sensor,
            "state": int(Shown.of(verdict)),
            "fault": faults_in_words([verdict.fault] if verdict and verdict.fault else []),
            "detail": verdict.detail if verdict else "",
            "recovering": bool(verdict and verdict.recovering),
            "since": self.since.get(sensor),
            "tiles": {str(state): count for state, count in counts.items()},
            "blamed": faults_in_words(f"{fault} {count}" for fault, count in faults.items()),
        }

    def _pace(self) -> dict[str, Any]:
        if not self.tiles:
            return {"tiles_per_s": None, "latency": None}
        end = self.tiles[-1].tile.at_s
        recent = [each.tile for each in self.tiles if each.tile.at_s >= end - RECENT_S]
        times = np.array([tile.latency_ms for tile in recent if not tile.skipped])
        span = end - recent[0].at_s
        latency = None
        if len(times):
            p50, p99 = np.percentile(times, (50, 99))
            latency = {"last": round(float(times[-1]), 1), "p50": round(float(p50), 1), "p99": round(float(p99), 1)}
        return {"tiles_per_s": round((len(recent) - 1) / span, 2) if span > 0 else None, "latency": latency}


WORDS: Mapping[str, Any] = {
    "sensors": {str(sensor): name for sensor, name in SENSOR_NAMES.items()},
    "states": [{"name": STATE_LOOKS[each].name, "height": STATE_LOOKS[each].height} for each in Shown],
    "engines": [
        {"name": SCENARIO_LOOKS[key].name, "short": SCENARIO_LOOKS[key].short, "colour": SCENARIO_LOOKS[key].colour}
        for key in range(len(SCENARIO_LOOKS))
    ],
    "provenance": [PROVENANCE_LABELS[source] for source in PROVENANCE_LABELS],
}
"""The words and colours of the report; lists are indexed by the numbers that stand for them."""


def columns(tiles: Iterable[Told]) -> dict[str, list[Any]]:
    """Of the charts: number, seconds, milliseconds, what was mapped from, the sensors' states."""
    told = [*tiles]
    return {
        "number": [each.number for each in told],
        "at_s": [each.tile.at_s for each in told],
        "latency_ms": [round(each.tile.latency_ms, 1) for each in told],
        "engine": [_mapped_from(each.tile) for each in told],
        **{str(sensor): [int(Shown.of(each.tile.verdicts.get(sensor))) for each in told] for sensor in Sensor},
    }


def described(started: Started, output: Path) -> dict[str, Any]:
    """What the page says of the run throughout."""
    plan = started.plan
    return {
        "title": output.absolute().name,
        "output": str(output),
        "started_utc": started.started_utc,
        "bundle": plan.bundle.name,
        "live": plan.live is not None,
        "watched": plan.health.watched,
        "rate_hz": started.rate_hz,
        "deadline_ms": started.deadline_ms,
        "sensors": sensors_of(plan),
        "report": (output / REPORT_NAME).is_file(),
        "replayed": False,
        "classes": [class_described(spec) for spec in started.classes],
    }


def sensors_of(plan: PlanRecord) -> list[Sensor]:
    """Those that the run may use."""
    used = {sensor for scenario in plan.scenarios for sensor in scenario.sensors}
    return [sensor for sensor in Sensor if sensor in used]


def class_described(spec: ClassSpec) -> dict[str, str]:
    """Name and colour."""
    return {"name": spec.name, "colour": css(spec.rgb)}


def switch(count: int, number: int, frame: int, target: Window, scenario: Scenario, reason: str) -> dict[str, Any]:
    """A mark on the map."""
    return {
        "count": count,
        "number": number,
        "frame": frame,
        "row": target.row,
        "col": target.col,
        "height": target.height,
        "width": target.width,
        "engine": [*Scenario].index(scenario) + 1,
        "why": reason,
    }


def changed(change: Change, number: int) -> dict[str, Any]:
    """A sensor's change, in words."""
    return {
        "number": number,
        "sensor": change.sensor,
        "state": int(Shown[change.state.name]),
        "fault": faults_in_words([change.fault] if change.fault else []),
        "detail": change.detail,
    }


def why(tile: TileDone) -> str:
    """The reason of a switch: ``nDSM dead (frozen: ...)``, or what there is of the sensors' data in the tile."""
    reasons = []
    for sensor, verdict in tile.verdicts.items():
        if verdict.fault is not None:
            detail = f": {verdict.detail}" if verdict.detail else ""
            reasons.append(f"{SENSOR_NAMES[sensor]} {verdict.state} ({faults_in_words([verdict.fault])}{detail})")
    return "; ".join(reasons) or tile.reason


def _mapped_from(tile: TileDone) -> int:
    """A key of SCENARIO_LOOKS."""
    if tile.lost:
        return LOST
    return NOTHING if tile.scenario is None else [*Scenario].index(tile.scenario) + 1
