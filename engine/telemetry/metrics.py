"""A run as Prometheus sees it; :mod:`engine.telemetry.endpoint` serves it.

Names and units follow https://prometheus.io/docs/practices/naming/; every label takes its values from a closed list,
and each series is there from the start, so that a rate over it is never missing. Counts are those of this process: a
resumed run starts from zero. What to watch::

    gemmnet_stalled_seconds > 60                                               the run hangs
    gemmnet_sensor_state{state="dead"} == 1                                    a sensor is not used
    rate(gemmnet_deadline_misses_total[5m]) > 0                                too slow
    increase(gemmnet_tiles_lost_total[5m]) > 0                                 a hole in the map
    increase(gemmnet_backend_events_total{event!="opened"}[1h]) > 0            a library failed
    histogram_quantile(0.99, rate(gemmnet_tile_latency_seconds_bucket[5m]))    p99 latency

Needs ``pip install prometheus-client``, which only this file imports.
"""

from __future__ import annotations

import platform
import time
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from engine.backends.base import BackendInfo
from engine.backends.resilient import BackendEvent, What
from engine.contract.sensors import Scenario, Sensor
from engine.health.monitor import Fault, State
from engine.job import TileReport
from engine.observer import Observer
from engine.telemetry.status import Phase, RunStatus
from engine.tile_log import STAGES
from engine.version import own_version

if TYPE_CHECKING:
    from engine.plan import Plan

disable_created_metrics()  # type: ignore[no-untyped-call, unused-ignore]  # they double the series, and nothing here reads them

LATENCY_BUCKETS_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)
STAGE_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"
NO_SCENARIO = "none"
"""Label of a tile in which nothing was inferred."""
DROPPED, NO_SENSOR = "dropped", "no_sensor"


class Metrics(Observer):
    """Counts what a run does; an :class:`~engine.observer.Observer`.

    Args:
        status: whether the run is alive.
        deadline_s: tiles written later than that, from available to written, are misses. It becomes a bucket of the
            latency histogram, so that the share in time is exact.
    """

    def __init__(self, status: RunStatus, *, deadline_s: float | None = None) -> None:
        self.registry = CollectorRegistry()
        self._deadline_s = deadline_s
        self._states: dict[Sensor, State] = {}
        self._make_progress(status)
        self._make_latency()
        self._make_trouble()
        ProcessCollector(registry=self.registry)

    def _make_progress(self, status: RunStatus) -> None:
        self._build = self._gauge("build_info", "Always 1; what runs.", "version", "python", "bundle", "bundle_sha256")
        self._backend = self._gauge(
            "backend_info", "Always 1; what infers now.", "backend", "library", "device", "graph", "precision"
        )
        self._planned = self._gauge(
            "tiles_planned", "Tiles of the whole run, those before a resume included; NaN where nobody knows."
        )
        self._planned.set(float("nan"))
        self._tiles = self._counter(
            "tiles_total", "Tiles done, by the scenario of most pixels; dropped ones have none.", "scenario"
        )
        self._inferences = self._counter("inferences_total", "Graphs run; a tile may need several.", "scenario")
        self._last = self._gauge("last_tile_timestamp_seconds", "Unix time when the last tile was done; 0 before it.")
        self._gauge(
            "stalled_seconds", "Time since the last sign of life while a tile is due; 0 while none is."
        ).set_function(status.silent_s)
        phases = self._gauge("run_phase", "1 for the phase the run is in.", "phase")
        for phase in Phase:
            phases.labels(phase).set_function(partial(_is_in, status, phase))
        for scenario in Scenario:
            self._inferences.labels(scenario)
        for main in (*Scenario, NO_SCENARIO):
            self._tiles.labels(main)

    def _make_latency(self) -> None:
        buckets = sorted({*LATENCY_BUCKETS_S, *([self._deadline_s] if self._deadline_s else [])})
        self._latency = Histogram(
            "gemmnet_tile_latency_seconds",
            "From a tile being available to its result being written, dropped tiles excluded.",
            ["scenario"],
            buckets=buckets,
            registry=self.registry,
        )
        self._stages = Histogram(
            "gemmnet_tile_stage_seconds",
            "Where a tile's latency goes: wait (for reading to begin), read, queue, infer, write.",
            ["stage"],
            buckets=STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self._depth = self._gauge("queue_depth", "Tiles read and not yet submitted to the backend.")
        self._gauge("deadline_seconds", "Longest latency allowed; NaN without a deadline.").set(
            self._deadline_s or float("nan")
        )
        self._misses = self._counter("deadline_misses_total", "Tiles mapped later than the deadline.")
        for main in (*Scenario, NO_SCENARIO):
            self._latency.labels(main)
        for stage in STAGES:
            self._stages.labels(stage)

    def _make_trouble(self) -> None:
        self._lost = self._counter(
            "tiles_lost_total", "Tiles without a map although there was something to see.", "reason"
        )
        self._switches = self._counter("switches_total", "Changes of the main scenario, by the new one.", "scenario")
        self._state = self._gauge(
            "sensor_state", "1 for the state a sensor is in; no series while unwatched.", "sensor", "state"
        )
        self._changes = self._counter(
            "sensor_state_changes_total", "Changes of state, by the new one.", "sensor", "state"
        )
        self._faults = self._counter(
            "sensor_faulty_tiles_total", "Tiles in which a sensor was at fault.", "sensor", "fault"
        )
        self._events = self._counter(
            "backend_events_total", "Failures of a backend, and replacements.", "backend", "event"
        )
        for reason in (DROPPED, NO_SENSOR):
            self._lost.labels(reason)
        for scenario in Scenario:
            self._switches.labels(scenario)
        for sensor in Sensor:
            for state in State:
                self._changes.labels(sensor, state)
            for fault in Fault:
                self._faults.labels(sensor, fault)

    def exposition(self) -> tuple[str, bytes]:
        """Content type and text of everything, as Prometheus reads it."""
        return TEXT_FORMAT, generate_latest(self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"gemmnet_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"gemmnet_{name}", text, labels, registry=self.registry)

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """What runs is known."""
        name, sha256 = plan.bundle.manifest.name, plan.bundle.digest
        self._build.labels(own_version(), platform.python_version(), name, sha256).set(1)
        if plan.tiles is not None:
            self._planned.set(plan.tiles)
        self._name_backend(backend)

    def tile_done(self, report: TileReport) -> None:
        """Count one tile."""
        main = report.scenarios[0] if report.scenarios else NO_SCENARIO
        self._tiles.labels(main).inc()
        for scenario in report.scenarios:
            self._inferences.labels(scenario).inc()
        self._last.set(time.time())
        self._depth.set(report.queue_depth)
        if report.switched:
            self._switches.labels(main).inc()
        if report.skipped:
            self._lost.labels(DROPPED).inc()
        else:
            self._count_time(report, main)
        self._count_health(report)

    def publishing(self) -> None:
        """No more tiles wait."""
        self._depth.set(0)

    def backend_changed(self, event: BackendEvent, backend: BackendInfo) -> None:
        """Something happened to a backend; ``backend`` is what infers now."""
        for what in What:
            self._events.labels(event.backend, what)
        self._events.labels(event.backend, event.what).inc()
        self._name_backend(backend)

    def _count_time(self, report: TileReport, main: str) -> None:
        self._latency.labels(main).observe(report.latency_s)
        for stage in STAGES:
            self._stages.labels(stage).observe(getattr(report, f"{stage}_s"))
        if self._deadline_s is not None and report.latency_s > self._deadline_s:
            self._misses.inc()

    def _count_health(self, report: TileReport) -> None:
        if report.lost and not report.skipped:
            self._lost.labels(NO_SENSOR).inc()
        for sensor, verdict in report.verdicts.items():
            if verdict.fault is not None:
                self._faults.labels(sensor, verdict.fault).inc()
            if verdict.fault is Fault.NO_DATA:
                continue  # rasters end somewhere, and the sensor is well
            before = self._states.get(sensor, State.ALIVE)
            if verdict.state is not before:
                self._changes.labels(sensor, verdict.state).inc()
            self._states[sensor] = verdict.state
            for state in State:
                self._state.labels(sensor, state).set(state is verdict.state)

    def _name_backend(self, backend: BackendInfo) -> None:
        for what in What:
            self._events.labels(backend.name, what)
        self._backend.clear()
        self._backend.labels(backend.name, backend.library, backend.device, backend.graph, backend.precision).set(1)


def _is_in(status: RunStatus, phase: Phase) -> float:
    return float(status.phase is phase)
