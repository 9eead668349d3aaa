"""One run: check everything, stream the frames, publish their maps. :mod:`engine.run` is its command line.

::

    make_plan(request, stack)    what would run, on what; touches nothing
    run(request, observer)       runs it; returns what run.json holds
"""

from __future__ import annotations

import logging
import shutil
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from engine.backends.base import BackendInfo
from engine.backends.fastest import learn
from engine.backends.resilient import ResilientBackend, open_chain
from engine.contract.atomic import replacing
from engine.contract.bundle import Bundle
from engine.contract.errors import EngineError, InterruptedRunError, OutputError, ResumeError, writing
from engine.contract.sensors import Scenario, Sensor
from engine.frame_log import NAME as FRAME_LOG_NAME
from engine.frame_log import FrameLog, FrameRecord, read_frame_log
from engine.frames import FrameSource, RasterFrames
from engine.health.detection import detection
from engine.health.monitor import Verdict
from engine.interrupt import first_signal
from engine.job import TileReport
from engine.journal import Entry, Journal, Statistics
from engine.live.frames import FolderFrames
from engine.observer import Observer
from engine.output import FRAME_NAMES, OUTPUT_NAMES, REPORT_NAME
from engine.ownership import RUN_NAME, frame_mark, holds_a_run, owned, remove_marked, sweep
from engine.plan import Choose, Plan, make_plan, read_limit_s
from engine.reader import Past
from engine.record import RunRecord, TileTimes
from engine.request import RunRequest
from engine.sink import MAKE_ROOM, FrameSink
from engine.stac.items import ITEM_NAME, map_item, write_item
from engine.stitcher import Tiling
from engine.stream import stream
from engine.tile_log import NAME as TILE_LOG_NAME
from engine.tile_log import TileLog, read_tile_log
from engine.version import own_version

log = logging.getLogger(__name__)

LEARN_TILES = 200
"""A run of fewer is over before it would pay to measure which graph is the fastest."""


@dataclass(frozen=True, kw_only=True)
class OpenBundle:
    """A backend that is open for several runs in turn. Whoever opened it closes it."""

    bundle: Bundle
    backend: ResilientBackend


def open_bundle(request: RunRequest, bundle: Bundle, scenarios: Iterable[Scenario], stack: ExitStack) -> OpenBundle:
    """What all runs with the bundle and the options of a request can share.

    Args:
        request: any of them.
        bundle: that of the request.
        scenarios: of all of them.
        stack: closes the backend.

    Raises:
        BackendError: the backend, its library or its device cannot be used.
    """
    tiling = Tiling.of(bundle.manifest, halo_px=request.halo_px, blend=request.blend)
    opened = open_chain(request.backend, bundle, scenarios=scenarios, wanted=tiling.wanted)
    return OpenBundle(bundle=bundle, backend=stack.enter_context(opened))


def run(
    request: RunRequest,
    observer: Observer | None = None,
    opened: OpenBundle | None = None,
    *,
    part: Choose | None = None,
) -> RunRecord:
    """Map the request's frames into its output folder.

    SIGINT and SIGTERM stop a run over rasters after the tiles under way; it can be resumed. A run over a landing folder
    ends with the frame under way, and a second signal stops it at once. Frames that were not begun stay in their
    folder for a run with ``resume``.

    Args:
        request: what is asked for.
        observer: watches.
        opened: of :func:`open_bundle`, which stays open; None opens one for this run.
        part: of a raster; None maps all of it, see :mod:`engine.rows`.

    Returns:
        What ``run.json`` holds. Maps with lost tiles are results too: see ``tiles_lost``.

    Raises:
        EngineError: by the tree in :mod:`engine.contract.errors`. Whatever ends a run that has mapped at least one
            tile, the unfinished run is kept for ``resume``.
    """
    watcher, started_at = observer or Observer(), datetime.now(UTC)
    with ExitStack() as stack:
        stack.enter_context(owned(request.output))
        plan = make_plan(request, stack, bundle=None if opened is None else opened.bundle, part=part)
        journal = Journal(request.output)
        with writing(request.output):
            sweep(request.output, OUTPUT_NAMES)
        if request.resume and not plan.frames.live:
            _check_unfinished(request.output, journal)
        backend = stack.enter_context(_open_backend(plan, journal)) if opened is None else opened.backend
        info, frames, events_before = backend.info, plan.frames, len(backend.events)
        backend.news()  # of the run before, which told them
        start = _start(plan, journal, info)
        sink = open_sink(plan, journal, start, stack, watcher)
        if not start.resumed and plan.part is None:
            sink.statistics.sensors.advice.extend(plan.advice(backend))
            for advice in sink.statistics.sensors.advice:
                log.warning("%s", advice, extra={"event": "preflight", "sensor": str(advice.sensor)})
        source = plan.open_source(
            backend,
            tiles_done=0 if frames.live else start.entry.tiles_done,
            monitor=start.entry.monitor,
            past=_past(plan, journal, start) if plan.part is None else plan.part.past,
            waits=watcher.waiting,
        )
        verdicts: list[Mapping[Sensor, Verdict]] = []
        watcher.started(plan, info, first_tile=start.first_tile)
        clock = time.perf_counter()

        def report(done: TileReport) -> None:
            if request.inject:
                verdicts.append(done.verdicts)
            for event in backend.news():
                watcher.backend_changed(event, backend.info)
            watcher.tile_done(done)

        try:
            with first_signal(frames.finish if frames.live else source.stop) as received:
                stream(
                    source,
                    backend=backend,
                    sink=sink,
                    report=report,
                    drop_oldest=request.when_behind == "drop-oldest" and not frames.live,
                    scenario=start.entry.statistics.scenario,
                    read_limit_s=read_limit_s(request),
                )
            if received and not frames.live:
                raise KeyboardInterrupt  # only now: every tile that was read is written
            stream_s = time.perf_counter() - clock
            sink.checkpoint()
            watcher.publishing()
            if not frames.live:
                if opened is None:
                    backend.close()  # publishing needs memory of its own
                sink.publish()
                sink.complete()
        except KeyboardInterrupt as error:
            sink.checkpoint()
            raise InterruptedRunError(_interrupted(plan, sink)) from error
        except EngineError:
            _keep(plan, sink)
            raise
        total_s = time.perf_counter() - clock
        record = plan.record(
            started_at=started_at,
            sink=sink,
            times=TileTimes(read_tile_log(journal.folder / TILE_LOG_NAME)),
            first=start.entry.tiles_done,
            backend=info,
            backend_events=backend.events[events_before:],
            ended=_ended(frames, received),
            injected=detection(request.inject, verdicts) if request.inject else None,
            stream_s=stream_s,
            publish_s=sink.publish_s if frames.live else total_s - stream_s,
            total_s=total_s,
        )
        if start.resumed:
            after = None if sink.records is None else len(sink.records.done)
            record = msgspec.structs.replace(
                record, resumed_at_tile=start.first_tile if after is None else None, resumed_after_frames=after
            )
        _write_rest(request.output, journal, record)
    if not frames.live:  # else more frames may land
        journal.remove()
    for sensor in (each for each in Sensor if each in request.source.sensors and record.tiling.tiles):
        if not record.result.pixels_from(sensor):
            log.warning("%s had no part in any pixel of the maps: see run.json and tiles.csv for the reason", sensor)
    watcher.finished(record)
    return record


def _check_unfinished(output: Path, journal: Journal) -> None:
    """See that there is a run to go on with; what the power took from a run while it swept up is swept up here.

    Raises:
        ResumeError: the run is finished.
    """
    if not journal.begun and holds_a_run(output):
        journal.remove()
        raise ResumeError(
            f"the run in {output} is finished, so that resume=True has nothing to do: use its maps, or map again with "
            "overwrite=True"
        )


def _open_backend(plan: Plan, journal: Journal) -> ResilientBackend:
    """The backend; of a run that is resumed with the graph that it began with, whatever ``auto`` has become since."""
    options, remembers = plan.request.backend, True
    begun_with = journal.backend if plan.request.resume else None
    if begun_with is not None and options.precision == "auto":
        options = replace(options, precision="int8") if "int8" in begun_with.split() else options
        remembers = False
    elif plan.tiles is None or plan.tiles >= LEARN_TILES:
        learnt = learn(options, plan.bundle, scenarios=plan.scenarios, wanted=plan.tiling.wanted)
        if learnt:
            log.info("%s", learnt)
    return open_chain(options, plan.bundle, scenarios=plan.scenarios, wanted=plan.tiling.wanted, remembers=remembers)


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a run begins: at the beginning, or where an interrupted one stopped."""

    entry: Entry
    resumed: bool
    first_tile: int
    """The first tile to infer. Of a landing folder, how many tiles were mapped before."""


def _start(plan: Plan, journal: Journal, backend: BackendInfo) -> Start:
    """What the journal says.

    Raises:
        ResumeError: the run that it is of is another one.
    """
    request, stitcher = plan.request, plan.stitcher()
    key = run_key(plan, backend)
    # a service over a landing folder starts and restarts with one command
    fresh = plan.frames.live and not (journal.begun or _has_frames(request.output))
    resumed = request.resume and not fresh
    entry = journal.read(key) if resumed else Entry(key=key, tiles_done=0, statistics=Statistics())
    first = entry.tiles_done if stitcher is None else stitcher.resume_at(entry.tiles_done)
    return Start(entry=entry, resumed=resumed, first_tile=first)


def run_key(plan: Plan, backend: BackendInfo) -> Mapping[str, Any]:
    """All that the bytes of a run depend on, for its journal."""
    request = plan.request
    return {
        "version": own_version(),
        "bundle": plan.bundle.digest,
        "inputs": plan.frames.identity(),
        "rgir_bands": request.rgir_bands,
        "ndsm_scale_m": request.ndsm_scale_m,
        "gsd": request.gsd,
        "health": msgspec.to_builtins(plan.limits),
        "audit": msgspec.to_builtins(plan.audit),
        "inject": msgspec.to_builtins(request.inject),
        "halo_px": plan.tiling.halo_px,
        "blend": plan.tiling.blend,
        "probabilities": plan.tiling.probabilities,
        "backend": f"{backend.library} {backend.graph} {backend.precision}",
        "threads": backend.threads,
    }


def _has_frames(output: Path) -> bool:
    records = output / FRAME_LOG_NAME
    return records.exists() and records.stat().st_size > 0


def open_sink(plan: Plan, journal: Journal, start: Start, stack: ExitStack, watcher: Observer) -> FrameSink:
    """Open or create the unfinished run's files; a failure to create them leaves nothing."""
    output, frames, entry = plan.request.output, plan.frames, start.entry
    keep = entry.tiles_done if start.resumed else None

    def frame_done(record: FrameRecord) -> None:
        frames.done(record.stamp)
        watcher.frame_done(record)

    if frames.live and not start.resumed:
        _clear_frames(output, journal)
    try:
        if not start.resumed:
            journal.remove()
        journal.make()
        tiles = stack.enter_context(TileLog(journal.folder / TILE_LOG_NAME, keep=keep, mark=entry.tiles))
        records = None
        if isinstance(frames, FolderFrames):
            records = stack.enter_context(FrameLog(output / FRAME_LOG_NAME, keep_tiles=keep, mark=entry.frames))
            frames.folder.skip(records.done)
        sink = FrameSink(
            output=output,
            model=plan.bundle.manifest.name,
            classes=plan.bundle.manifest.classes,
            probabilities=plan.tiling.probabilities,
            live=frames.live,
            journal=journal,
            key=entry.key,
            tiles=tiles,
            records=records,
            statistics=entry.statistics,
            tiles_done=entry.tiles_done,
            monitor=entry.monitor,
            frame_done=frame_done,
            watcher=watcher,
        )
        stack.callback(sink.close)
        if isinstance(frames, RasterFrames):
            sink.begin(frames.rasters.grid, frames.rasters.describe(), resume=start.resumed, windows=entry.windows)
        sink.checkpoint()
    except BaseException as error:
        if not start.resumed:
            journal.remove()
        if isinstance(error, OSError):
            raise OutputError(
                f"cannot write to {output} ({error.strerror}): free space, check permissions or pass another `output`"
            ) from error
        raise
    return sink


def _clear_frames(output: Path, journal: Journal) -> None:
    """Remove what an earlier live run left, and nothing else; first of all the journal that vouches for it."""
    records, stamps = output / FRAME_LOG_NAME, list[str]()
    if records.exists():
        try:
            stamps = [record.stamp for record in read_frame_log(records)]
        except ValueError as error:
            raise OutputError(
                f"{error}: it is not known which folders in {output} are to be replaced; empty it yourself, or pass "
                "another `output`"
            ) from error
    journal.forget()
    with writing(output):
        for stamp in stamps:
            remove_marked(output / stamp, frame_mark(stamp), FRAME_NAMES)
    for name in (FRAME_LOG_NAME, TILE_LOG_NAME, RUN_NAME):
        with writing(output / name):
            (output / name).unlink(missing_ok=True)


def _past(plan: Plan, journal: Journal, start: Start) -> dict[int, Past]:
    """Tiles that the journal already counts and that are read again: they are to be judged as they were."""
    if plan.frames.live or start.first_tile >= start.entry.tiles_done:
        return {}
    rows = read_tile_log(journal.folder / TILE_LOG_NAME)
    again = (row for row in rows if row.tile >= start.first_tile)
    return {row.tile: Past(verdicts=row.verdicts, skipped=row.skipped) for row in again}


def _interrupted(plan: Plan, sink: FrameSink) -> str:
    if plan.tiles is None:
        return "stopped in the middle of a frame; nothing that is published is lost: repeat with resume=True to go on"
    return f"stopped after {sink.tiles_done} of {plan.tiles} tiles; nothing is lost: repeat with resume=True to finish"


def _ended(frames: FrameSource, received: Sequence[signal.Signals]) -> str:
    if not isinstance(frames, FolderFrames):
        return "complete"
    return "idle" if frames.idle else ", ".join(number.name for number in received)


def _keep(plan: Plan, sink: FrameSink) -> None:
    """After a failure keep what is mapped; on a full disk the journal of the last checkpoint has to do."""
    if plan.frames.live:  # its last checkpoint is that of the last frame
        return
    if not sink.tiles_done:
        sink.close()
        sink.journal.remove()
        return
    try:
        sink.checkpoint()
    except (EngineError, OSError) as error:
        log.warning("the journal keeps its last checkpoint: %s", error)
    log.warning("%d of %d tiles are kept: once the cause is gone, resume the run", sink.tiles_done, plan.tiles)


def _write_rest(output: Path, journal: Journal, record: RunRecord) -> None:
    """tiles.csv and run.json, each written whole or not at all, and on the disk before the journal is forgotten."""
    with writing(output, MAKE_ROOM):
        with replacing(
            output / TILE_LOG_NAME, durable=True
        ) as temporary:  # a copy: the log itself is needed should this be repeated
            shutil.copyfile(journal.folder / TILE_LOG_NAME, temporary)
        (output / REPORT_NAME).unlink(missing_ok=True)  # of an older run: it would tell of other maps
        record.write(output / RUN_NAME)
    if record.live is None:
        write_item(output / ITEM_NAME, map_item(output, record))
