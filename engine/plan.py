"""A request that has been checked: bundle verified, rasters or folder there, tiles laid. Nothing here writes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from engine.backends.base import Backend, BackendInfo
from engine.backends.resilient import BackendEvent
from engine.buffers import BufferPool
from engine.contract.bundle import Bundle, Manifest
from engine.contract.health import AuditLimits, HealthLimits, parse_audit, parse_limits
from engine.contract.sensors import Scenario, Sensor, scenarios_within
from engine.contract.trust import installed_policy
from engine.frame_log import FrameRecord
from engine.frames import FrameSource, RasterFrames, RasterOpener
from engine.grid import TileGrid
from engine.health.audit import Auditor, auditor_of
from engine.health.detection import Detection
from engine.health.faults import Injector
from engine.health.monitor import Monitor
from engine.health.preflight import Advice, examine
from engine.journal import Statistics
from engine.live.folder import Arrivals, LiveFolder
from engine.live.frames import FolderFrames
from engine.output import check_input, check_output, taken
from engine.rasters.area import AreaRasters, RowsRasters, place
from engine.rasters.georeference import Grid
from engine.reader import FaultyReader, JobSource, Part, Past, Reader, TileReader
from engine.record import (
    AreaUsed,
    BundleUsed,
    FolderUsed,
    FrameCounts,
    GridUsed,
    HealthRecord,
    HealthUsed,
    MapRecord,
    Pace,
    PlanRecord,
    RasterUsed,
    RunRecord,
    SystemRecord,
    TileTimes,
    TilingUsed,
    described,
)
from engine.request import LandingFolder, RasterFiles, RunRequest
from engine.stitcher import Stitcher, Tiling
from engine.stream import jobs_alive
from engine.version import own_version

log = logging.getLogger(__name__)

MOST_READERS = 8
READ_LIMIT_S = 480.0
"""A raster may take so long to give a window: longer than GDAL lets a server take with all its tries."""
MAX_FRAME_PX = 1 << 30
"""Of a landing frame: a header that claims more is damaged, or not meant for a service."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will run, on what."""

    request: RunRequest
    bundle: Bundle
    frames: FrameSource
    tiling: Tiling
    scenarios: tuple[Scenario, ...]
    limits: Mapping[Sensor, HealthLimits] | None
    """None where the sensors are trusted."""
    audit: AuditLimits
    """How sensors are audited where they are watched."""
    part: Part | None = None
    """The rows that are mapped; None: all."""

    @property
    def sensors(self) -> tuple[Sensor, ...]:
        """Those that may be used."""
        return tuple(sensor for sensor in Sensor if sensor in self.request.source.sensors)

    @property
    def tiles(self) -> int | None:
        """How many there are; None where nobody knows how many will come."""
        stitcher = self.stitcher()
        return None if stitcher is None else len(stitcher)

    def stitcher(self) -> Stitcher | None:
        """A new one for the raster; None where frames are still to come."""
        if not isinstance(self.frames, RasterFrames):
            return None
        grid = self.frames.rasters.grid
        return self.tiling.stitcher(grid.height, grid.width, grid.gsd_m)

    def describe(self) -> PlanRecord:
        """For ``--dry-run`` and ``run.json``."""
        manifest, source = self.bundle.manifest, self.request.source
        rasters = self.frames.rasters if isinstance(self.frames, RasterFrames) else None
        inputs, grid = (None, None) if rasters is None else described(rasters.describe(), rasters.grid)
        return PlanRecord(
            bundle=BundleUsed(name=manifest.name, path=str(self.bundle.root), sha256=self.bundle.digest),
            inputs=inputs,
            live=FolderUsed.of(source) if isinstance(source, LandingFolder) else None,
            area=AreaUsed.of(rasters.area) if isinstance(rasters, AreaRasters) else None,
            grid=grid,
            tiling=TilingUsed.of(self.tiling, grid, tiles=self.tiles),
            scenarios=self.scenarios,
            health=HealthUsed(
                watched=self.limits is not None,
                limits=self.limits or {},
                audit=None if self.limits is None else self.audit,
            ),
        )

    def open_source(
        self,
        backend: Backend,
        *,
        tiles_done: int = 0,
        monitor: Mapping[str, Any] | None = None,
        past: Mapping[int, Past] | None = None,
        waits: Callable[[bool], None] = lambda _: None,
    ) -> JobSource:
        """The tiles of all frames as jobs.

        Args:
            backend: infers the tiles, and what audits of the sensors need.
            tiles_done, past: see :class:`engine.reader.TileReader` and :class:`engine.reader.JobSource`.
            monitor: what the health monitor knew when an earlier run ended.
            waits: told when the source begins (True) and ceases (False) to wait for the world.
        """
        request, manifest = self.request, self.bundle.manifest
        watching = None if self.limits is None else Monitor(self.limits, self.auditor(backend))
        if watching is not None and monitor is not None:
            watching.restore(monitor)
        reader: Reader = TileReader(
            self.frames,
            stitch=lambda grid: self.tiling.stitcher(grid.height, grid.width, grid.gsd_m),
            pool=BufferPool(
                map(manifest.sensor, self.sensors),
                tile_px=manifest.tile_px,
                count=jobs_alive(backend.info.slots) + 1,  # one may wait for the next to tell of it
            ),
            tile_px=manifest.tile_px,
            tiles_done=tiles_done,
            rate_hz=request.rate_hz,
            waits=waits,
            readers=request.readers or (1 if self.frames.live else readers_for(backend.info)),
        )
        if request.inject:
            reader = FaultyReader(reader, Injector(request.inject))
        return JobSource(reader, monitor=watching, strict=not self.frames.live, past=past)

    def auditor(self, backend: Backend) -> Auditor | None:
        """Who examines the sensors by the graphs of ``backend``; None where there is one sensor, or none is watched."""
        if self.limits is None or len(self.sensors) < len(Sensor):
            return None
        return auditor_of(backend, self.bundle.manifest, self.audit)

    def advice(self, backend: Backend) -> tuple[Advice, ...]:
        """What a few tiles of the raster tell before it is mapped; nothing where sensors are trusted, or of frames."""
        if self.limits is None or not isinstance(self.frames, RasterFrames):
            return ()
        rasters = self.frames.rasters
        return examine(
            rasters,
            self.limits,
            tile_px=self.tiling.tile_px,
            window_px=self.tiling.laid(rasters.grid.height, rasters.grid.width, rasters.grid.gsd_m)[0],
            auditor=self.auditor(backend),
        )

    def record(
        self,
        *,
        started_at: datetime,
        sink: Counted,
        times: TileTimes,
        backend: BackendInfo,
        backend_events: Sequence[BackendEvent],
        stream_s: float,
        publish_s: float,
        total_s: float,
        first: int = 0,
        ended: str = "complete",
        injected: Detection | None = None,
    ) -> RunRecord:
        """What became of the tiles and frames; of all of them, a resumed run's earlier ones too.

        Args:
            started_at: UTC.
            sink: counted what is in the maps.
            times: of all tiles.
            backend: the first that was opened.
            backend_events: what became of it.
            stream_s, publish_s, total_s, first: see :meth:`engine.record.TileTimes.performance`.
            ended: see :class:`engine.record.RunRecord`.
            injected: how faults on purpose were seen.
        """
        request, planned = self.request, self.describe()
        counts = FrameCounts.of(sink.done(), self.sensors, request.deadline_ms)
        first_grid = None if sink.described is None else sink.described[1]
        inputs, grid = sink.described if counts.done == 1 and sink.described is not None else (None, None)
        return RunRecord(
            version=own_version(),
            started_utc=started_at.isoformat(timespec="seconds"),
            bundle=planned.bundle,
            inputs=inputs,
            live=planned.live,
            area=planned.area,
            grid=grid,
            tiling=TilingUsed.of(self.tiling, first_grid, tiles=len(times)),
            scenarios=planned.scenarios,
            health=HealthRecord.of(planned.health, sink.statistics.sensors),
            backend=backend,
            backend_events=tuple(backend_events),
            ended=ended,
            frames=counts,
            arrivals=self.frames.folder.arrivals if isinstance(self.frames, FolderFrames) else Arrivals(),
            result=MapRecord.of(sink.statistics, self.bundle.manifest.classes),
            tiles_lost=int(times.lost.sum()),
            tiles_dropped=int(times.skipped.sum()),
            pace=Pace(rate_hz=request.rate_hz, when_behind=request.when_behind),
            latency_ms=times.latencies(),
            deadline=times.deadline(request.deadline_ms),
            injected=injected,
            performance=times.performance(
                first=first, stream_s=stream_s, publish_s=publish_s, total_s=total_s, pixels=sink.pixels_mapped
            ),
            resumed_at_tile=None,
            resumed_after_frames=None,
            system=SystemRecord.here(),
        )


def readers_for(backend: BackendInfo) -> int:
    """How many threads decode: a share of the cores, and the smaller one where the backend computes on them too."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(MOST_READERS, max(1, cores // (4 if backend.threads else 2)))


class Counted(Protocol):
    """What a sink knows of the maps when all tiles are in them."""

    statistics: Statistics
    pixels_mapped: int
    """By this process."""
    described: tuple[Mapping[Sensor, RasterUsed], GridUsed] | None
    """The rasters and the grid of the first frame that had a map."""

    def done(self) -> list[FrameRecord]:
        """The frames that are done."""


Choose = Callable[[TileGrid], Part | None]
"""From the tiles of a whole raster to the part of it that is to be mapped; None: all."""


def make_plan(
    request: RunRequest, stack: ExitStack, *, bundle: Bundle | None = None, part: Choose | None = None
) -> Plan:
    """Check the request against the bundle, what is to be read and the output folder. Writes nothing.

    Args:
        request: what is asked for.
        stack: closes the rasters.
        bundle: that of the request, where it is loaded already.
        part: of a raster; None maps all of it.

    Raises:
        EngineError: whatever is wrong with it, by the tree in :mod:`engine.contract.errors`.
    """
    check_output(request.output, overwrite=request.overwrite, resume=request.resume)
    if isinstance(request.source, RasterFiles):
        for sensor, given in request.source.paths.items():
            check_input(sensor, given, request.output)
    if bundle is None:
        bundle = Bundle.load(request.bundle, installed_policy(request.require_signature))
    return plan_for(request, bundle, stack, part=part)


def plan_for(
    request: RunRequest,
    bundle: Bundle,
    stack: ExitStack,
    *,
    frames: Callable[[RasterOpener], FrameSource] | None = None,
    part: Choose | None = None,
) -> Plan:
    """:func:`make_plan` for a bundle that is loaded, and results that may go anywhere.

    Args:
        request, stack, part: as there.
        bundle: that of the request.
        frames: where they come from; None is what the request says.
    """
    manifest, sensors = bundle.manifest, [sensor for sensor in Sensor if sensor in request.source.sensors]
    limits = None
    if request.watch:
        adjusted = parse_limits(list(request.health), manifest.health)
        limits = {sensor: adjusted[sensor] for sensor in sensors}
    audit = parse_audit(list(request.health), manifest.audit)
    if request.audit_every is not None:
        audit = replace(audit, every_tiles=request.audit_every)
    tiling = Tiling.of(
        manifest,
        halo_px=request.halo_px,
        blend=request.blend,
        gsd=request.gsd,
        probabilities=request.probabilities,
    )
    opener = RasterOpener(
        specs={sensor: manifest.sensor(sensor) for sensor in sensors},
        tile_px=manifest.tile_px,
        rgir_bands=request.rgir_bands,
        ndsm_scale_m=request.ndsm_scale_m,
        stretch=request.stretch,
        drivers=request.source.drivers if isinstance(request.source, LandingFolder) else None,
        max_px=MAX_FRAME_PX if isinstance(request.source, LandingFolder) else None,
        resolution=tiling.resolution,
        limit_s=_answer_limit_s(request),
        goes_on=isinstance(request.source, LandingFolder),
    )
    source, chosen = _open_frames(request, opener, stack) if frames is None else frames(opener), None
    if isinstance(source, RasterFrames):
        grid = source.rasters.grid
        tiling = _at_its_resolution(tiling, grid, manifest)
        chosen = None if part is None else part(tiling.stitcher(grid.height, grid.width, grid.gsd_m).grid)
        if chosen is not None and isinstance(request.source, RasterFiles):
            source = RasterFrames(RowsRasters(source.rasters, chosen.window), request.source.paths)
    return Plan(
        request=request,
        bundle=bundle,
        frames=source,
        tiling=tiling,
        scenarios=scenarios_within(sensors),
        limits=limits,
        audit=audit,
        part=chosen,
    )


def _answer_limit_s(request: RunRequest) -> float:
    """Longest wait for a file; a frame is one of this machine, and a raster may be on a server."""
    live = isinstance(request.source, LandingFolder)
    return request.backend.watchdog_s if live else max(request.backend.watchdog_s, READ_LIMIT_S)


def read_limit_s(request: RunRequest) -> float:
    """Longest time that a tile may be read before the run ends; a frame is given up before, sensor by sensor."""
    live = isinstance(request.source, LandingFolder)
    return _answer_limit_s(request) * (2 * len(Sensor) if live else 1)


def _open_frames(request: RunRequest, opener: RasterOpener, stack: ExitStack) -> FrameSource:
    source = request.source
    if isinstance(source, LandingFolder):
        folder = LiveFolder(
            source.folder,
            sensors=source.sensors,
            pattern=source.pattern,
            partner_wait_s=source.partner_wait_ms / 1e3,
            refuses=partial(taken, request.output),
            limit_s=opener.limit_s,
        )
        return FolderFrames(
            folder=folder,
            opener=opener,
            drop_oldest=request.when_behind == "drop-oldest",
            idle_exit_s=source.idle_exit_s,
        )
    rasters = stack.enter_context(opener.open(source.paths))
    if request.area is None:
        return RasterFrames(rasters, source.paths)
    return RasterFrames(AreaRasters(rasters, place(request.area, rasters.grid)), source.paths)


def _at_its_resolution(tiling: Tiling, grid: Grid, manifest: Manifest) -> Tiling:
    """The tiling of a raster: one that is not resampled needs no more of the graphs than one that never could be.

    Says so where the raster is resampled, and where the result is not a resolution that the model has learnt.
    """
    if (gsd_m := grid.gsd_m) is None:
        return replace(tiling, resolution=None)
    side, _ = tiling.laid(grid.height, grid.width, gsd_m)
    mapped_m, (finest, coarsest) = gsd_m * side / tiling.tile_px, manifest.gsd_m
    if side != tiling.tile_px:
        log.info(
            "the raster's ground sampling distance is %.3g m: it is mapped at %.3g m, and the map comes back on the "
            "raster's grid",
            gsd_m,
            mapped_m,
        )
    if not 0.9 * finest <= mapped_m <= 1.1 * coarsest:
        log.warning(
            "the ground sampling distance of %.3g m lies outside the %.3g to %.3g m the bundle was trained for: expect "
            "a worse map, or choose another with `gsd`",
            mapped_m,
            finest,
            coarsest,
        )
    return tiling if side != tiling.tile_px else replace(tiling, resolution=None)
