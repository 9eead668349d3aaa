"""One run from rasters to maps: check everything, stream, publish. :mod:`engine.run` is its command line.

::

    plan(request)                 what would run, on what, how many tiles; touches nothing
    segment(request, observer)    runs it; returns what run.json holds
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from engine import summary
from engine.backends.base import BackendInfo
from engine.backends.resilient import BackendEvent
from engine.buffers import BufferPool
from engine.contract.errors import EngineError, InterruptedRunError, OutputError
from engine.contract.sensors import Sensor
from engine.doctor.host import own_version
from engine.health.faults import Injector, detection
from engine.health.monitor import Monitor, Verdict
from engine.interrupt import first_signal
from engine.journal import Entry, Journal, Statistics
from engine.preview import Preview
from engine.rasters.cog import MapWriter
from engine.request import REPORT_NAME, Plan, Request, plan
from engine.sink import MapSink
from engine.source import Past, RasterSource
from engine.stream import TileReport, jobs_alive, stream
from engine.tile_log import NAME as TILE_LOG_NAME
from engine.tile_log import TileLog, read_tile_log

__all__ = ["Observer", "Plan", "Request", "plan", "segment"]

log = logging.getLogger(__name__)


class Observer(Protocol):
    """Who watches a run; called in the thread that called :func:`segment`."""

    def started(self, plan: Plan | None, backend: BackendInfo, *, first_tile: int) -> None:
        """All checks passed, the backend is warm. There is no plan of the tiles of a live folder."""

    def tile_done(self, report: TileReport) -> None:
        """One more tile is in the maps."""

    def publishing(self) -> None:
        """All tiles are done; the maps are being written as Cloud-Optimised GeoTIFF."""


def segment(
    request: Request,
    observer: Observer,
    *,
    waits: Callable[[bool], None] = lambda _: None,
    backend_event: Callable[[BackendEvent, BackendInfo], None] = lambda *_: None,
) -> dict[str, Any]:
    """Segment the request's rasters into its output folder.

    Args:
        request: what is asked for.
        observer: watches tiles.
        waits: told when the run begins (True) and ceases (False) to wait for a tile to be due; from the read thread.
        backend_event: told what happened to a backend, and which one infers now; before the next tile is done.

    Returns:
        What ``run.json`` holds. Maps with lost tiles are results too: see ``tiles_lost``.

    Raises:
        EngineError: by the tree in :mod:`engine.contract.errors`. Whatever ends a run that has mapped at least one
            tile, the unfinished run is kept for ``resume``.
    """
    started_at = datetime.now(UTC)
    journal = Journal(request.output)
    with ExitStack() as stack:
        todo = plan(request, stack)
        backend = stack.enter_context(
            request.open_backend(todo.bundle, scenarios=todo.scenarios, wanted=todo.mosaic.wanted)
        )
        opened = backend.info
        key = _key(request, todo, opened)
        entry = journal.read(key) if request.resume else Entry(key=key, tiles_done=0, statistics=Statistics())
        first = todo.mosaic.resume_at(entry.tiles_done)
        sink = _open_sink(request, todo, journal, entry, stack)
        source = _open_source(request, todo, journal, entry, first=first, slots=opened.slots, waits=waits)
        verdicts: list[Mapping[Sensor, Verdict]] = []
        observer.started(todo, opened, first_tile=first)
        clock = time.perf_counter()

        def seen(report: TileReport) -> None:
            if request.inject:
                verdicts.append(report.verdicts)
            for event in backend.news():
                backend_event(event, backend.info)
            observer.tile_done(report)

        try:
            with first_signal(source.stop) as received:
                stream(
                    source,
                    backend=backend,
                    sink=sink,
                    report=seen,
                    drop_oldest=request.when_behind == "drop-oldest",
                    scenario=entry.statistics.scenario,
                )
            if received:
                raise KeyboardInterrupt  # only now: every tile that was read is written
            streamed_s = time.perf_counter() - clock
            sink.checkpoint()
            backend.close()  # publishing needs memory of its own
            observer.publishing()
            sink.writer.publish(request.output)
        except KeyboardInterrupt as error:
            sink.checkpoint()
            raise InterruptedRunError(
                f"stopped after {sink.mosaic.tiles_done} of {len(todo.mosaic.grid)} tiles; nothing is lost: "
                "repeat the command with --resume to finish"
            ) from error
        except EngineError:
            _keep(sink)
            raise
        times = summary.TileTimes(read_tile_log(journal.folder / TILE_LOG_NAME))
        total_s = time.perf_counter() - clock
        told = {
            "version": own_version(),
            "started_utc": started_at.isoformat(timespec="seconds"),
            **todo.describe(),
            "backend": msgspec.to_builtins(opened),
            "backend_events": msgspec.to_builtins(backend.events),
            **_outcome(request, todo, sink.statistics, times, verdicts),
            "performance": summary.performance(
                todo, times, first=entry.tiles_done, streamed_s=streamed_s, total_s=total_s
            ),
            "resumed_at_tile": first if request.resume else None,
            "system": summary.system(),
        }
        _write_rest(request, todo, sink, told)
    journal.remove()
    return told


def _outcome(
    request: Request,
    todo: Plan,
    statistics: Statistics,
    times: summary.TileTimes,
    verdicts: Sequence[Mapping[Sensor, Verdict]],
) -> dict[str, Any]:
    """What became of the tiles; of all of them, a resumed run's earlier ones too."""
    misses = None if request.deadline_ms is None else times.misses(request.deadline_ms)
    return {
        "result": summary.result(todo, statistics),
        "tiles_lost": int(times.lost.sum()),
        "tiles_dropped": int(times.skipped.sum()),
        "health": {**todo.describe_health(), **statistics.sensors.describe()},
        "pace": {"rate_hz": request.rate_hz, "when_behind": request.when_behind},
        "latency_ms": times.latencies(),
        "deadline": {"limit_ms": request.deadline_ms, "misses": misses},
        "injected": msgspec.to_builtins(detection(request.inject, verdicts)) if request.inject else None,
    }


def _key(request: Request, todo: Plan, backend: BackendInfo) -> dict[str, Any]:
    """Everything the bytes of the maps depend on."""
    return {
        "version": own_version(),
        "bundle": todo.bundle.digest,
        "inputs": todo.rasters.identity(),
        "rgir_bands": request.rgir_bands,
        "ndsm_scale_m": request.ndsm_scale_m,
        "health": msgspec.to_builtins(todo.limits),
        "inject": msgspec.to_builtins(request.inject),
        "halo_px": todo.halo_px,
        "blend": request.blend,
        "backend": f"{backend.library} {backend.graph} {backend.precision}",
        "threads": backend.threads,
    }


def _open_source(
    request: Request,
    todo: Plan,
    journal: Journal,
    entry: Entry,
    *,
    first: int,
    slots: int,
    waits: Callable[[bool], None],
) -> RasterSource:
    """The tiles from ``first`` on; those that the journal already counts are to be judged as they were."""
    monitor = None if todo.limits is None else Monitor(todo.limits)
    if monitor is not None and entry.monitor is not None:
        monitor.restore(entry.monitor)
    manifest = todo.bundle.manifest
    past: dict[int, Past] = {}
    if first < entry.tiles_done:
        rows = read_tile_log(journal.folder / TILE_LOG_NAME)
        past = {row.tile: Past(verdicts=row.verdicts, skipped=row.skipped) for row in rows if row.tile >= first}
    return RasterSource(
        todo.rasters,
        todo.mosaic.grid.tiles(first),
        pool=BufferPool(
            (manifest.sensor(sensor) for sensor in request.rasters), tile_px=manifest.tile_px, count=jobs_alive(slots)
        ),
        monitor=monitor,
        injector=Injector(request.inject) if request.inject else None,
        rate_hz=request.rate_hz,
        past=past,
        waits=waits,
    )


def _open_sink(request: Request, todo: Plan, journal: Journal, entry: Entry, stack: ExitStack) -> MapSink:
    """Open or create the unfinished run's files; a failure to create them leaves nothing."""
    try:
        if not request.resume:
            journal.remove()
        journal.folder.mkdir(parents=True, exist_ok=True)
        grid = todo.rasters.grid
        writer = MapWriter.create(journal.folder, grid, todo.bundle.manifest.classes, resume=request.resume)
        stack.callback(writer.close)
        tiles = stack.enter_context(
            TileLog(journal.folder / TILE_LOG_NAME, keep=entry.tiles_done if request.resume else None)
        )
        preview = Preview(
            journal.folder,
            height=grid.height,
            width=grid.width,
            sensors=frozenset(request.rasters),
            resume=request.resume,
        )
        sink = MapSink(
            mosaic=todo.mosaic,
            writer=writer,
            preview=preview,
            tiles=tiles,
            journal=journal,
            key=entry.key,
            statistics=entry.statistics,
            monitor=entry.monitor,
            counted=entry.tiles_done,
        )
        sink.remember()
        sink.checkpoint()
    except BaseException as error:
        if not request.resume:
            journal.remove()
        if isinstance(error, OSError):
            raise OutputError(
                f"cannot write to {request.output} ({error.strerror}): free space or pass another --output"
            ) from error
        raise
    return sink


def _keep(sink: MapSink) -> None:
    """After a failure keep what is mapped; on a full disk the journal of the last checkpoint has to do."""
    done, tiles = sink.mosaic.tiles_done, len(sink.mosaic.grid)
    if not done:
        sink.writer.close()
        sink.journal.remove()
        return
    try:
        sink.checkpoint()
    except (EngineError, OSError) as error:
        log.warning("the journal keeps its last checkpoint: %s", error)
    log.warning("%d of %d tiles are kept: once the cause is gone, repeat the command with --resume", done, tiles)


def _write_rest(request: Request, todo: Plan, sink: MapSink, told: Mapping[str, Any]) -> None:
    """quicklook.png, tiles.csv and run.json, each written whole or not at all."""
    title = f"{todo.bundle.manifest.name}   sensors: {' + '.join(sorted(request.rasters, reverse=True))}"
    folder, output = sink.journal.folder, request.output
    try:
        temporary = folder / "quicklook.png"
        sink.preview.save(temporary, title=title, classes=todo.bundle.manifest.classes, statistics=sink.statistics)
        temporary.replace(output / "quicklook.png")
        temporary = folder / "tiles.copy.csv"  # a copy: the log itself is needed should this have to be repeated
        shutil.copyfile(folder / TILE_LOG_NAME, temporary)
        temporary.replace(output / TILE_LOG_NAME)
        (output / REPORT_NAME).unlink(missing_ok=True)  # of an older run: it would tell of other maps
        temporary = folder / "run.json"
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(told), indent=2) + b"\n")
        temporary.replace(output / "run.json")
    except OSError as error:
        raise OutputError(
            f"cannot write to {request.output} ({error.strerror}): free space and repeat with --resume"
        ) from error
