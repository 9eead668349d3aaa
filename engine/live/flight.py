"""A flight over a live folder: from frames that land as files to a folder of maps for each.

::

    plan_flight(request)     what would run; touches nothing
    fly(request, observer)   maps frames until told to stop or nothing lands any more; returns what run.json holds
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine import summary, tile_log
from engine.backends.base import BackendInfo
from engine.backends.resilient import BackendEvent
from engine.buffers import BufferPool
from engine.contract.errors import InterruptedRunError, OutputError
from engine.contract.sensors import Provenance, Sensor
from engine.doctor.host import own_version
from engine.health.faults import Injector, detection
from engine.health.monitor import Monitor, Verdict
from engine.interrupt import first_signal
from engine.journal import Entry, Journal, Statistics
from engine.live import frame_log
from engine.live.frame_log import FrameLog, FrameRecord, read_frame_log
from engine.live.request import LivePlan, LiveRequest, open_folder, plan_flight
from engine.live.sink import LiveSink
from engine.live.source import FrameReading, LiveSource
from engine.mosaic import CropMosaic
from engine.segment import Observer
from engine.stream import TileReport, jobs_alive, stream
from engine.tile_log import TileLog, read_tile_log

__all__ = ["LivePlan", "LiveRequest", "fly", "plan_flight"]


def fly(
    request: LiveRequest,
    observer: Observer,
    *,
    waits: Callable[[bool], None] = lambda _: None,
    backend_event: Callable[[BackendEvent, BackendInfo], None] = lambda *_: None,
    frame_done: Callable[[FrameRecord], None] = lambda _: None,
) -> dict[str, Any]:
    """Map the frames that land in the request's folder.

    SIGINT and SIGTERM end the flight after the frame under way, a second one at once. Frames that were not begun stay
    in their folder for a flight with ``resume``.

    Args:
        request: what is asked for.
        observer: watches tiles.
        waits: told when the flight begins (True) and ceases (False) to wait for a frame; from the read thread.
        backend_event: told what happened to a backend, and which one infers now; before the next tile is done.
        frame_done: told of each frame once its maps are in place; from the write thread.

    Returns:
        What ``run.json`` holds.

    Raises:
        EngineError: by the tree in :mod:`engine.contract.errors`. What has been published stays, for ``resume``.
    """
    started_at = datetime.now(UTC)
    journal = Journal(request.output)
    with ExitStack() as stack:
        plan = plan_flight(request)
        backend = stack.enter_context(
            request.open_backend(plan.bundle, scenarios=plan.scenarios, wanted=CropMosaic.wanted)
        )
        opened = backend.info
        key = _key(plan, opened)
        resumed = request.resume and _begun(request.output)
        entry = journal.read(key) if resumed else Entry(key=key, tiles_done=0, statistics=Statistics())
        sink, done = _open_sink(plan, journal, entry, stack, resumed=resumed, frame_done=frame_done)
        source = _open_source(plan, entry, sink, done, slots=opened.slots, waits=waits)
        verdicts: list[Mapping[Sensor, Verdict]] = []
        observer.started(None, opened, first_tile=entry.tiles_done)
        clock = time.perf_counter()

        def seen(report: TileReport) -> None:
            if request.inject:
                verdicts.append(report.verdicts)
            for event in backend.news():
                backend_event(event, backend.info)
            observer.tile_done(report)

        try:
            with first_signal(source.finish) as received:  # the frame under way is finished
                stream(source, backend=backend, sink=sink, report=seen, scenario=entry.statistics.scenario)
        except KeyboardInterrupt as error:
            raise InterruptedRunError(
                "stopped in the middle of a frame; nothing that is published is lost: repeat with --resume to go on"
            ) from error
        observer.publishing()
        streamed_s = time.perf_counter() - clock
        times = summary.TileTimes(read_tile_log(journal.folder / tile_log.NAME))
        described = plan.describe()
        told: dict[str, Any] = {
            "version": own_version(),
            "started_utc": started_at.isoformat(timespec="seconds"),
            **described,
            "tiling": {**described["tiling"], "tiles": len(times)},
            "backend": msgspec.to_builtins(opened),
            "backend_events": msgspec.to_builtins(backend.events),
            "ended": "idle" if source.idle else ", ".join(number.name for number in received),
            "frames": _frames(request),
            "arrivals": msgspec.to_builtins(source.folder.arrivals),
            "result": _result(plan, sink.statistics),
            "tiles_lost": int(times.lost.sum()),
            "tiles_dropped": int(times.skipped.sum()),
            "health": {**described["health"], **msgspec.to_builtins(sink.statistics.sensors)},
            "latency_ms": times.latencies(),
            "injected": msgspec.to_builtins(detection(request.inject, verdicts)) if request.inject else None,
            "performance": {"tiles": len(times) - entry.tiles_done, "stream_s": round(streamed_s, 4)},
            "resumed_after_frames": len(done) if resumed else None,
            "system": summary.system(),
        }
        _write_rest(request, journal, told)
    return told


def _key(plan: LivePlan, backend: BackendInfo) -> dict[str, Any]:
    """Everything that the bytes of a frame's maps depend on, besides its files."""
    request = plan.request
    return {
        "version": own_version(),
        "bundle": plan.bundle.digest,
        "live": str(request.folder.resolve()),
        "sensors": sorted(request.sensors),
        "rgir_bands": request.rgir_bands,
        "ndsm_scale_m": request.ndsm_scale_m,
        "health": msgspec.to_builtins(plan.limits),
        "halo_px": plan.halo_px,
        "backend": f"{backend.library} {backend.graph} {backend.precision}",
        "threads": backend.threads,
    }


def _open_sink(
    plan: LivePlan,
    journal: Journal,
    entry: Entry,
    stack: ExitStack,
    *,
    resumed: bool,
    frame_done: Callable[[FrameRecord], None],
) -> tuple[LiveSink, dict[str, frozenset[Sensor]]]:
    """The logs, cut back to what the journal vouches for; and the stamps that are done."""
    request = plan.request
    try:
        if not resumed:
            _clear(request.output)
        journal.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot write to {request.output} ({error.strerror}): check permissions or pass another --output"
        ) from error
    keep = entry.tiles_done if resumed else None
    tiles = stack.enter_context(TileLog(journal.folder / tile_log.NAME, keep=keep))
    records = stack.enter_context(FrameLog(request.output / frame_log.NAME, keep_tiles=keep))
    sink = LiveSink(
        output=request.output,
        classes=plan.bundle.manifest.classes,
        frames={},
        journal=journal,
        key=entry.key,
        tiles=tiles,
        records=records,
        statistics=entry.statistics,
        tiles_done=entry.tiles_done,
        monitor=entry.monitor,
        frame_done=frame_done,
    )
    stack.callback(sink.close)
    sink.checkpoint()
    return sink, records.done


def _begun(output: Path) -> bool:
    """There is something to go on from; a flight that was killed before its first checkpoint left nothing."""
    records = output / frame_log.NAME
    return (Journal(output).folder / "journal.json").exists() or (records.exists() and records.stat().st_size > 0)


def _clear(output: Path) -> None:
    """Remove what an earlier flight left, and nothing else."""
    records = output / frame_log.NAME
    if records.exists():
        try:
            stamps = [record.stamp for record in read_frame_log(records)]
        except ValueError as error:
            raise OutputError(
                f"{error}: it is not known which folders in {output} are to be replaced; empty it yourself, or pass "
                "another --output"
            ) from error
        for stamp in stamps:
            shutil.rmtree(output / stamp, ignore_errors=True)
    Journal(output).remove()
    for name in (frame_log.NAME, tile_log.NAME, "run.json"):
        (output / name).unlink(missing_ok=True)


def _open_source(
    plan: LivePlan,
    entry: Entry,
    sink: LiveSink,
    done: Mapping[str, frozenset[Sensor]],
    *,
    slots: int,
    waits: Callable[[bool], None],
) -> LiveSource:
    request, manifest = plan.request, plan.bundle.manifest
    monitor = None if plan.limits is None else Monitor(plan.limits)
    if monitor is not None and entry.monitor is not None:
        monitor.restore(entry.monitor)
    specs = {sensor: manifest.sensor(sensor) for sensor in Sensor if sensor in request.sensors}
    return LiveSource(
        folder=open_folder(plan, done),
        reading=FrameReading(
            specs=specs,
            tile_px=manifest.tile_px,
            halo_px=plan.halo_px,
            rgir_bands=request.rgir_bands,
            ndsm_scale_m=request.ndsm_scale_m,
        ),
        pool=BufferPool(specs.values(), tile_px=manifest.tile_px, count=jobs_alive(slots)),
        frames=sink.frames,
        monitor=monitor,
        injector=Injector(request.inject) if request.inject else None,
        drop_oldest=request.when_behind == "drop-oldest",
        idle_exit_s=request.idle_exit_s,
        waits=waits,
    )


def _frames(request: LiveRequest) -> dict[str, Any]:
    """What became of the frames of the whole flight."""
    counts = Counter[str]({"done": 0, "mapped": 0, "dropped": 0})
    without = Counter[str](dict.fromkeys((sensor.value for sensor in Sensor if sensor in request.sensors), 0))
    times: list[float] = []
    for record in read_frame_log(request.output / frame_log.NAME):
        counts.update(done=1, mapped=record.mapped, dropped=record.dropped)
        without.update(sensor.value for sensor in record.absent)
        if record.mapped:
            times.append(record.latency_ms)
    latencies_ms, limit_ms = np.array(times), request.deadline_ms
    cuts = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100} if times else {}
    return {
        **counts,
        "without": without,
        "latency_ms": {name: round(float(np.percentile(latencies_ms, q)), 3) for name, q in cuts.items()},
        "deadline": {"limit_ms": limit_ms, "misses": limit_ms and int((latencies_ms > limit_ms).sum())},
    }


def _result(plan: LivePlan, statistics: Statistics) -> dict[str, Any]:
    classes = plan.bundle.manifest.classes
    return {
        "inferences": {scenario.value: count for scenario, count in statistics.inferences.items()},
        "provenance_pixels": {source.name.lower(): statistics.provenance_pixels[source] for source in Provenance},
        "class_pixels": {spec.name: statistics.class_pixels[index] for index, spec in enumerate(classes)},
        "switch_count": statistics.switch_count,
        "switches": msgspec.to_builtins(statistics.switches),
    }


def _write_rest(request: LiveRequest, journal: Journal, told: Mapping[str, Any]) -> None:
    """tiles.csv and run.json, each written whole or not at all. The journal stays: more frames may land."""
    try:
        temporary = journal.folder / "tiles.copy.csv"
        shutil.copyfile(journal.folder / tile_log.NAME, temporary)
        temporary.replace(request.output / tile_log.NAME)
        temporary = journal.folder / "run.json"
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n")
        temporary.replace(request.output / "run.json")
    except OSError as error:
        raise OutputError(
            f"cannot write to {request.output} ({error.strerror}): free space and repeat with --resume"
        ) from error
