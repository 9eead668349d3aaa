"""A run that has ended, from its folder: the same page, of the whole run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.contract.bundle import ClassSpec
from engine.contract.errors import UsageError
from engine.contract.formats import MalformedError, from_builtins
from engine.contract.page.charts import columns
from engine.contract.sensors import Scenario, Sensor
from engine.frame_log import NAME as FRAME_LOG_NAME
from engine.frame_log import read_frame_log
from engine.grid import Window
from engine.rasters.map_reader import MapReader
from engine.record import RasterUsed, grid_used
from engine.report.data import Finished, Outage, Shown
from engine.report.flight import mapped_from
from engine.report.words import SENSOR_NAMES, count, faults_in_words, percent, times
from engine.telemetry.status import Phase
from engine.view.flight import LISTED, ShownFlight, ShownFrame, changed, switch
from engine.view.messages import Started


class Replay(ShownFlight):
    """A finished run as the page sees it.

    Args:
        output: its folder.
        inputs: rasters to look at instead of those that ``run.json`` names.

    Raises:
        UsageError: the folder holds no finished run of this version.
        RasterOpenError: a map is missing or damaged.
    """

    def __init__(self, output: Path, inputs: Mapping[Sensor, Path] | None = None, *, identity: str = "") -> None:
        super().__init__(output, identity=identity)
        self._run = run = Finished(output)
        record = run.record
        self.sequence, self.phase, self.backend = 1, Phase.FINISHED, record.backend
        classes: tuple[ClassSpec, ...] = ()
        self._numbers: dict[str, int] = {}
        """Of the frames that have maps, by stamp."""
        frames = _frames(output) if run.frames else {}
        for stamp in run.frames or [""]:
            place = output / stamp
            if stamp and not (place / "classes.tif").is_file():
                continue  # it was dropped, or could not be read
            with MapReader(place) as maps:
                classes, grid = maps.classes, grid_used(maps.grid)
            self._numbers[stamp] = len(self.frames)
            used = frames.get(stamp, {}) if stamp else _inputs(record.inputs or {}, inputs or {})
            frame = ShownFrame(number=len(self.frames), stamp=stamp, grid=grid, inputs=used, published=True, changed=1)
            self.frames.append(frame)
        self.started = Started(
            plan=record,
            classes=classes,
            backend=record.backend,
            started_utc=record.started_utc,
            first_tile=0,
            rate_hz=record.pace.rate_hz,
            deadline_ms=run.deadline.limit_ms,
        )

    def snapshot(self) -> dict[str, Any]:
        """Everything, as JSON values."""
        record, run = self._run.record, self._static()
        total = max(1, sum(record.result.class_pixels.values()))
        for each in run["run"]["classes"]:
            each["share"] = percent(record.result.class_pixels.get(each["name"], 0) / total)
        run["run"] |= {"replayed": True}
        return {
            **run,
            "sequence": self.sequence,
            "frames": [frame.describe() for frame in self.frames],
            "tiles": self._columns(),
            "switches": self._switches(),
            "changes": [
                changed(each, self._run.tile_of(each.frame, each.tile)) for each in record.health.changes[:LISTED]
            ],
            "now": self.now(),
        }

    def news(self, since: int) -> dict[str, Any] | None:
        """There are none."""
        return None

    def now(self) -> dict[str, Any]:
        """How it ended."""
        run, record = self._run, self._run.record
        latency = record.latency_ms
        return {
            "phase": self.phase,
            "reason": "",
            "waits": False,
            "tiles": {
                "done": len(run),
                "planned": len(run),
                "lost": record.tiles_lost,
                "dropped": record.tiles_dropped,
            },
            "frames": {"done": record.frames.done, "dropped": record.frames.dropped},
            "switches": record.result.switch_count,
            "misses": run.deadline.misses or 0,
            "engine": None,
            "engines": self._engines(),
            "backend": str(record.backend),
            "backend_events": [msgspec.to_builtins(each) for each in record.backend_events[:5]],
            "sensors": [self._summary(sensor) for sensor in run.sensors],
            "tiles_per_s": record.performance.tiles_per_s,
            "latency": None if latency.p50 is None else {"p50": latency.p50, "p99": latency.p99},
        }

    def _engines(self) -> list[tuple[int, str]]:
        """What tiles were mapped from, most of them first."""
        keys, counts = np.unique(mapped_from(self._run), return_counts=True)
        order = np.argsort(-counts, kind="stable")
        return [(int(keys[each]), count(int(counts[each]), "tile")) for each in order]

    def _summary(self, sensor: Sensor) -> dict[str, Any]:
        """What a sensor was worth: its state in the last tile, and its outages."""
        told = self._run.record.health
        outages = list(self._run.outages(sensor))
        faults = told.faults.get(sensor, {})
        return {
            "sensor": sensor,
            "state": int(self._run.shown[sensor][-1]) if len(self._run) else int(Shown.UNWATCHED),
            "fault": "",
            "detail": _outages(outages),
            "recovering": False,
            "since": None,
            "tiles": {str(state): count for state, count in told.states.get(sensor, {}).items()},
            "blamed": faults_in_words(f"{fault} {count}" for fault, count in faults.items()),
        }

    def _switches(self) -> list[dict[str, Any]]:
        """The first of them, with the frame that each lies in."""
        run = self._run
        blamed = {
            (each.frame, each.tile): f"{SENSOR_NAMES[each.sensor]} {each.state} ({words}: {each.detail})"
            for each in run.record.health.changes
            if (words := faults_in_words([each.fault] if each.fault else []))
        }
        marks = []
        numbers = np.flatnonzero(run.times.switched)[:LISTED]
        for ordinal, number in enumerate(numbers.tolist(), start=1):
            row, col, height, width = run.place[number].tolist()
            stamp = run.frame_of(number)
            marks.append(
                switch(
                    ordinal,
                    number,
                    self._numbers.get(stamp, -1),
                    Window(row=row, col=col, height=height, width=width),
                    [*Scenario][run.times.scenario[number]],
                    blamed.get((stamp, number - run.tile_of(stamp, 0))) or _reason(run, ordinal),
                )
            )
        return marks

    def _columns(self) -> dict[str, list[Any]]:
        """Of the charts; of several tiles in a column the worst."""
        run = self._run
        firsts = columns(len(run))

        def worst(values: Any) -> list[Any]:
            return np.maximum.reduceat(values, firsts).tolist() if len(firsts) else []

        return {
            "number": firsts.tolist(),
            "at_s": firsts.tolist(),
            "latency_ms": worst(run.times.latency_ms),
            "engine": worst(mapped_from(run)),
            **{str(sensor): worst(run.shown[sensor]) for sensor in Sensor},
        }


def _frames(output: Path) -> dict[str, dict[Sensor, RasterUsed]]:
    """The rasters of a live flight's frames, by stamp: those that are still there."""
    found: dict[str, dict[Sensor, RasterUsed]] = {}
    for record in read_frame_log(output / FRAME_LOG_NAME):
        try:
            used = from_builtins(record.rasters, dict[Sensor, RasterUsed])
        except MalformedError as error:
            raise UsageError(f"{output / FRAME_LOG_NAME} is not of this version: {error}") from error
        found[record.stamp] = {sensor: each for sensor, each in used.items() if Path(each.path).is_file()}
    return found


def _reason(run: Finished, ordinal: int) -> str:
    """As the run told it."""
    told = run.record.result.switches
    return told[ordinal - 1].reason if ordinal <= len(told) else ""


def _outages(outages: list[Outage]) -> str:
    if not outages:
        return "usable in every tile"
    tiles = sum(each.tiles for each in outages)
    return f"not usable in {count(tiles, 'tile')}, {times(len(outages))}"


def _inputs(used: Mapping[Sensor, RasterUsed], others: Mapping[Sensor, Path]) -> dict[Sensor, RasterUsed]:
    """The rasters of the run, some of which may lie elsewhere by now."""
    for sensor in others:
        if sensor not in used:
            raise UsageError(f"the run read no {sensor}: leave --{sensor} away")
    return {
        sensor: msgspec.structs.replace(each, path=str(others[sensor]), minus=None) if sensor in others else each
        for sensor, each in used.items()
    }
