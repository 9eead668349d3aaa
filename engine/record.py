"""``run.json``: what a run did. One typed record writes it and reads it.

The same for every run, whatever its frames came from. ``python -c "import engine.record as r; print(r.schema())"``
prints its JSON schema.
"""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from engine.backends.base import BackendInfo
from engine.backends.resilient import BackendEvent
from engine.contract.atomic import write_whole
from engine.contract.bundle import ClassSpec
from engine.contract.formats import from_builtins, from_json, read_file
from engine.contract.health import AuditLimits, HealthLimits
from engine.contract.sensors import Scenario, Sensor
from engine.frame_log import FrameRecord
from engine.health.detection import Detection
from engine.health.history import Change, SensorHistory
from engine.health.monitor import Fault, State
from engine.health.preflight import Advice
from engine.journal import Statistics, Switch
from engine.live.folder import Arrivals
from engine.rasters.area import Area
from engine.rasters.georeference import Grid
from engine.rasters.stretch import Range
from engine.request import LandingFolder, WhenBehind
from engine.stitcher import Blend, Tiling
from engine.tile_log import STAGES, TileRow


class BundleUsed(msgspec.Struct, frozen=True, kw_only=True):
    """The model."""

    name: str
    path: str
    sha256: str


class RasterUsed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A sensor's raster and how it was read."""

    path: str
    driver: str
    width: int
    height: int
    bands: tuple[int, ...]
    dtype: str
    crs: str | None
    gsd_m: float | None
    nodata: tuple[str, ...]
    """How invalid pixels are told."""
    metres_per_unit: float | None
    warped: bool
    stretch: tuple[Range, ...] | None = None
    """The values of each band that became 0 and 255, where imagery has more than 8 bits."""
    minus: RasterUsed | None = None
    """What was subtracted pixel by pixel: the terrain model, where this is a surface model."""


class GridUsed(msgspec.Struct, frozen=True, kw_only=True):
    """The grid of the maps."""

    width: int
    height: int
    crs: str | None
    transform: tuple[float, ...] | None
    gsd_m: float | None


class AreaUsed(msgspec.Struct, frozen=True, kw_only=True):
    """The part of the rasters that was mapped."""

    name: str
    """As it was asked for."""
    polygons: int
    row: int
    col: int
    """Where the maps begin in the rasters' grid."""

    @classmethod
    def of(cls, area: Area) -> AreaUsed:
        """As it lies on the raster."""
        return cls(name=area.name, polygons=len(area.polygons), row=area.window.row, col=area.window.col)


class FolderUsed(msgspec.Struct, frozen=True, kw_only=True):
    """The folder in which frames landed."""

    folder: str
    sensors: tuple[Sensor, ...]
    pattern: str
    partner_wait_ms: float
    idle_exit_s: float | None

    @classmethod
    def of(cls, source: LandingFolder) -> FolderUsed:
        """As it was asked for."""
        return cls(
            folder=str(source.folder),
            sensors=tuple(sensor for sensor in Sensor if sensor in source.sensors),
            pattern="sidecar" if source.pattern is None else source.pattern.text,
            partner_wait_ms=source.partner_wait_ms,
            idle_exit_s=source.idle_exit_s,
        )


class TilingUsed(msgspec.Struct, frozen=True, kw_only=True):
    """How the maps were tiled."""

    tiles: int | None
    """Of all frames together; None before it is known."""
    tile_px: int
    """Raster pixels; of several frames the first one's."""
    halo_px: int
    blend: Blend
    mapped_gsd_m: float | None = None
    """What tiles were resampled to, where they were; of several frames the first one's."""

    @classmethod
    def of(cls, tiling: Tiling, grid: GridUsed | None, *, tiles: int | None) -> TilingUsed:
        """Over a raster on that grid; None where none is known."""
        gsd_m = None if grid is None else grid.gsd_m
        height, width = (tiling.tile_px, tiling.tile_px) if grid is None else (grid.height, grid.width)
        side, halo_px = tiling.laid(height, width, gsd_m)
        resampled = gsd_m is not None and side != tiling.tile_px
        return cls(
            tiles=tiles,
            tile_px=side,
            halo_px=halo_px,
            blend=tiling.blend,
            mapped_gsd_m=gsd_m * side / tiling.tile_px if gsd_m is not None and resampled else None,
        )


class HealthUsed(msgspec.Struct, frozen=True, kw_only=True):
    """By what the sensors are judged."""

    watched: bool
    limits: Mapping[Sensor, HealthLimits]
    audit: AuditLimits | None
    """None where the sensors are trusted."""


class PlanRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What will run; for ``--dry-run``."""

    bundle: BundleUsed
    inputs: Mapping[Sensor, RasterUsed] | None
    """Of the only frame; None where there may be several, each with its own."""
    live: FolderUsed | None
    """None where no folder was watched."""
    area: AreaUsed | None = None
    """None: all of the rasters."""
    grid: GridUsed | None
    """Of the only frame, as ``inputs``."""
    tiling: TilingUsed
    scenarios: tuple[Scenario, ...]
    health: HealthUsed


class HealthRecord(HealthUsed, frozen=True, kw_only=True):
    """What the sensors were worth."""

    advice: tuple[Advice, ...]
    """What a few tiles told before the rasters were mapped."""
    states: Mapping[Sensor, Mapping[State, int]]
    """Tiles."""
    faults: Mapping[Sensor, Mapping[Fault, int]]
    change_count: int
    changes: tuple[Change, ...]
    """The first of them."""

    @classmethod
    def of(cls, used: HealthUsed, history: SensorHistory) -> HealthRecord:
        """Limits and what came of them."""
        return cls(
            watched=used.watched,
            limits=used.limits,
            audit=used.audit,
            advice=tuple(history.advice),
            states=history.states,
            faults=history.faults,
            change_count=history.change_count,
            changes=tuple(history.changes),
        )


class Quantiles(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Of times in ms; none of them where there was nothing to time."""

    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    max: float | None = None


class TileQuantiles(Quantiles, frozen=True, kw_only=True, omit_defaults=True):
    """Of so many tiles."""

    tiles: int

    @classmethod
    def of(cls, times_ms: NDArray[np.float64]) -> TileQuantiles:
        """Of times in ms, [tiles]."""
        return cls(tiles=len(times_ms), **_quantiles(times_ms))


class Latency(TileQuantiles, frozen=True, kw_only=True):
    """From available to written, over tiles that were not dropped."""

    by_scenario: Mapping[str, TileQuantiles]
    """By the scenario of most pixels; ``none`` where nothing was inferred."""
    switches: TileQuantiles
    """Where that scenario is another than in the tile before."""


class Deadline(msgspec.Struct, frozen=True, kw_only=True):
    """What was later than allowed."""

    limit_ms: float | None
    misses: int | None

    @classmethod
    def of(cls, limit_ms: float | None, times_ms: NDArray[np.float64]) -> Deadline:
        """Count the misses."""
        return cls(limit_ms=limit_ms, misses=None if limit_ms is None else int((times_ms > limit_ms).sum()))


class FrameCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the frames, those before a resume included."""

    done: int
    mapped: int
    dropped: int
    without: Mapping[Sensor, int]
    """Frames to which a sensor delivered nothing."""
    latency_ms: Quantiles
    """From a frame being there to its maps being in place."""
    deadline: Deadline

    @classmethod
    def of(cls, records: Iterable[FrameRecord], sensors: Iterable[Sensor], deadline_ms: float | None) -> FrameCounts:
        """Count the frames of a run."""
        all_of_them = list(records)
        latencies_ms = np.array([record.latency_ms for record in all_of_them if record.mapped])
        return cls(
            done=len(all_of_them),
            mapped=len(latencies_ms),
            dropped=sum(record.dropped for record in all_of_them),
            without={sensor: sum(sensor in record.absent for record in all_of_them) for sensor in sensors},
            latency_ms=Quantiles(**_quantiles(latencies_ms)),
            deadline=Deadline.of(deadline_ms, latencies_ms),
        )


class MapRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is in the maps."""

    inferences: Mapping[Scenario, int]
    provenance_pixels: Mapping[str, int]
    class_pixels: Mapping[str, int]
    switch_count: int
    switches: tuple[Switch, ...]
    """The first of them."""

    @classmethod
    def of(cls, statistics: Statistics, classes: Iterable[ClassSpec]) -> MapRecord:
        """As it was counted."""
        return cls(
            inferences=statistics.inferences,
            provenance_pixels=statistics.pixels.by_provenance,
            class_pixels={spec.name: statistics.pixels.classes[index] for index, spec in enumerate(classes)},
            switch_count=statistics.switch_count,
            switches=tuple(statistics.switches),
        )

    def pixels_from(self, sensor: Sensor) -> int:
        """Pixels of the maps that a sensor had a part in."""
        return sum(
            self.provenance_pixels.get(scenario.provenance.name.lower(), 0)
            for scenario in Scenario
            if sensor in scenario.sensors
        )


class Pace(msgspec.Struct, frozen=True, kw_only=True):
    """How fast tiles were to come."""

    rate_hz: float | None
    when_behind: WhenBehind


class Performance(msgspec.Struct, frozen=True, kw_only=True):
    """Timings of this process; a resumed run counts its own tiles only."""

    tiles: int
    stream_s: float
    """Reading, inferring, composing, writing."""
    publish_s: float
    """Writing Cloud-Optimised GeoTIFF and the rest."""
    tiles_per_s: float
    mpx_per_s: float
    """With publishing."""
    stages_ms: Mapping[str, Quantiles]
    peak_rss_mib: float


class SystemRecord(msgspec.Struct, frozen=True, kw_only=True):
    """Where it ran."""

    python: str
    machine: str
    cores: int | None

    @classmethod
    def here(cls) -> SystemRecord:
        """This process."""
        return cls(
            python=platform.python_version(),
            machine=platform.machine(),
            cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        )


class RunRecord(PlanRecord, frozen=True, kw_only=True):
    """Everything that ``run.json`` holds."""

    version: str
    started_utc: str
    backend: BackendInfo
    """The one that was opened first."""
    backend_events: tuple[BackendEvent, ...]
    ended: str
    """``complete`` when all frames were read, ``idle`` when none landed for long, or the signals that ended it."""
    frames: FrameCounts
    arrivals: Arrivals
    """What landed and was not mapped, or not in its turn."""
    result: MapRecord
    tiles_lost: int
    """Without a map although there was something to see, dropped ones included."""
    tiles_dropped: int
    health: HealthRecord
    pace: Pace
    latency_ms: Latency
    deadline: Deadline
    """Of tiles."""
    injected: Detection | None
    performance: Performance
    resumed_at_tile: int | None
    resumed_after_frames: int | None
    system: SystemRecord

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """What :meth:`write` wrote.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not such a file, or one of another version.
        """
        return from_json(read_file(path), cls)

    def write(self, path: Path) -> None:
        """Write the file whole or not at all.

        Raises:
            OSError: the system refuses.
        """
        write_whole(path, msgspec.json.format(msgspec.json.encode(self), indent=2) + b"\n", durable=True)


def schema() -> dict[str, Any]:
    """The JSON schema of ``run.json``."""
    return msgspec.json.schema(RunRecord)


def described(inputs: Mapping[str, Any], grid: Grid) -> tuple[Mapping[Sensor, RasterUsed], GridUsed]:
    """A frame's rasters, see :meth:`engine.frames.Rasters.describe`, and the grid that they are read on."""
    return from_builtins(inputs, dict[Sensor, RasterUsed]), grid_used(grid)


def grid_used(grid: Grid) -> GridUsed:
    """A grid as records describe it."""
    return GridUsed(
        width=grid.width,
        height=grid.height,
        crs=None if grid.crs is None else grid.crs.to_string(),
        transform=None if grid.transform is None else tuple(grid.transform)[:6],
        gsd_m=grid.gsd_m,
    )


_NOTHING = len(Scenario)
"""Stands for "no scenario" among the indices of scenarios."""


class TileTimes:
    """The columns of a tile log that a record needs, as arrays of one entry per tile."""

    def __init__(self, rows: Iterable[TileRow]) -> None:
        order = list(Scenario)
        stages, flags = [], []
        for row in rows:
            stages.append((*row.stages_ms.values(), row.latency_ms))
            scenario = _NOTHING if row.scenario is None else order.index(row.scenario)
            flags.append((scenario, row.skipped, row.switched, row.lost))
        times = np.array(stages, np.float64).reshape(-1, len(STAGES) + 1)
        marks = np.array(flags, np.int64).reshape(-1, 4)
        self.stages_ms = dict(zip(STAGES, times.T, strict=False))
        self.latency_ms = times[:, -1]
        self.scenario = marks[:, 0]
        self.skipped, self.switched, self.lost = (marks[:, 1:] == 1).T

    def __len__(self) -> int:
        return len(self.latency_ms)

    def latencies(self) -> Latency:
        """Percentiles over tiles that were not dropped: all, by the scenario of most pixels, and where it switched."""
        mapped = ~self.skipped
        return Latency(
            tiles=int(mapped.sum()),
            **_quantiles(self.latency_ms[mapped]),
            by_scenario={
                name: TileQuantiles.of(self.latency_ms[mapped & (self.scenario == index)])
                for index, name in enumerate((*(scenario.value for scenario in Scenario), "none"))
            },
            switches=TileQuantiles.of(self.latency_ms[mapped & self.switched]),
        )

    def deadline(self, limit_ms: float | None) -> Deadline:
        """Tiles that were mapped later than that."""
        return Deadline.of(limit_ms, self.latency_ms[~self.skipped])

    def performance(self, *, first: int, stream_s: float, publish_s: float, total_s: float, pixels: int) -> Performance:
        """Timings of this process.

        Args:
            first: tiles below were mapped by an earlier one.
            stream_s: from the first tile's reading to the last one's writing.
            publish_s: of writing the maps as Cloud-Optimised GeoTIFF.
            total_s: from the first tile's reading to all maps in place.
            pixels: mapped.
        """
        tiles = len(self) - first
        stages = {stage: _quantiles(values[first:]) for stage, values in self.stages_ms.items()}
        return Performance(
            tiles=tiles,
            stream_s=round(stream_s, 4),
            publish_s=round(publish_s, 4),
            tiles_per_s=round(tiles / stream_s, 3),
            mpx_per_s=round(pixels / 1e6 / total_s, 3),
            stages_ms={stage: Quantiles(**quantiles) for stage, quantiles in stages.items()},
            peak_rss_mib=round(peak_rss_mib(), 1),
        )


def _quantiles(times_ms: NDArray[np.float64]) -> dict[str, float]:
    if not len(times_ms):
        return {}
    names = {"p50": 50, "p90": 90, "p95": 95, "p99": 99, "max": 100}
    return {name: round(float(np.percentile(times_ms, q)), 3) for name, q in names.items()}


def peak_rss_mib() -> float:
    """The most memory that this process has had resident.

    Linux' ``ru_maxrss`` begins with that of the process that started this one (setmax_mm_hiwater_rss in fs/exec.c),
    so that a small command started by a large program would seem large; ``VmHWM`` is this process's own.
    """
    try:
        _, found, rest = Path("/proc/self/status").read_text().partition("VmHWM:")
    except OSError:
        found, rest = "", ""
    if found:
        return int(rest.split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 if sys.platform != "darwin" else 2**20)
