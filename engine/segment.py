"""One run from rasters to maps: check everything, stream, publish. :mod:`engine.run` is its command line.

::

    plan(request)                 what would run, on what, how many tiles; touches nothing
    segment(request, observer)    runs it; returns what run.json holds
"""

from __future__ import annotations

import logging
import os
import platform
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from engine.backends import BackendName, open_backend
from engine.backends.base import Backend, BackendInfo, ExecutionPrecision
from engine.cog import MapWriter
from engine.contract.bundle import Bundle
from engine.contract.errors import EngineError, InputError, InterruptedRunError, OutputError, UsageError
from engine.contract.sensors import Provenance, Scenario, Sensor, scenarios_within
from engine.journal import Entry, Journal, Statistics
from engine.mosaic import CropMosaic, HannMosaic, Mosaic
from engine.preview import Preview
from engine.raster import SensorRasters
from engine.sink import MapSink
from engine.stream import TileReport, stream

log = logging.getLogger(__name__)

Blend = Literal["none", "hann"]
OUTPUT_NAMES = ("classes.tif", "confidence.tif", "provenance.tif", "run.json", "quicklook.png")


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything a run needs to know.

    Raises:
        UsageError: no raster is given, or ``overwrite`` and ``resume`` contradict each other.
    """

    rasters: Mapping[Sensor, Path]
    """The sensors that are alive, and where."""
    bundle: Path
    output: Path
    backend: BackendName = "auto"
    precision: ExecutionPrecision = "auto"
    threads: int | None = None
    halo_px: int | None = None
    """None takes the bundle's halo, or a quarter of the tile when blending."""
    blend: Blend = "none"
    overwrite: bool = False
    resume: bool = False
    rgir_bands: tuple[int, int, int] | None = None
    ndsm_scale_m: float | None = None

    def __post_init__(self) -> None:
        if not self.rasters:
            raise UsageError("at least one sensor must be alive, received none: pass --rgir PATH or --ndsm PATH")
        if self.overwrite and self.resume:
            raise UsageError("--overwrite starts over and --resume goes on: pass one of them")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked request: bundle verified, rasters open, tiles laid."""

    bundle: Bundle
    rasters: SensorRasters
    mosaic: Mosaic
    halo_px: int
    scenarios: tuple[Scenario, ...]

    def describe(self) -> dict[str, Any]:
        """For ``--dry-run`` and ``run.json``; JSON-serialisable."""
        grid = self.rasters.grid
        return {
            "bundle": {
                "name": self.bundle.manifest.name,
                "path": str(self.bundle.root),
                "sha256": self.bundle.digest,
            },
            "inputs": self.rasters.describe(),
            "grid": {
                "width": grid.width,
                "height": grid.height,
                "crs": None if grid.crs is None else grid.crs.to_string(),
                "transform": None if grid.transform is None else list(grid.transform)[:6],
                "gsd_m": grid.gsd_m,
            },
            "tiling": {
                "tiles": len(self.mosaic.grid),
                "tile_px": self.mosaic.grid.tile_px,
                "halo_px": self.halo_px,
                "blend": "hann" if isinstance(self.mosaic, HannMosaic) else "none",
            },
            "scenarios": [scenario.value for scenario in self.scenarios],
        }


class Observer(Protocol):
    """Who watches a run; called in the thread that called :func:`segment`."""

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """All checks passed, the backend is warm."""

    def tile_done(self, report: TileReport) -> None:
        """One more tile is in the maps."""

    def publishing(self) -> None:
        """All tiles are done; the maps are being written as Cloud-Optimised GeoTIFF."""


def plan(request: Request, stack: ExitStack) -> Plan:
    """Check the request against the bundle, the rasters and the output folder. Writes nothing.

    Args:
        request: what is asked for.
        stack: closes the rasters.

    Raises:
        EngineError: whatever is wrong with it, by the tree in :mod:`engine.contract.errors`.
    """
    _check_output(request)
    bundle = Bundle.load(request.bundle)
    manifest = bundle.manifest
    rasters = stack.enter_context(
        SensorRasters.open(
            request.rasters,
            {sensor: manifest.sensor(sensor) for sensor in request.rasters},
            rgir_bands=request.rgir_bands,
            ndsm_scale_m=request.ndsm_scale_m,
            window_px=manifest.tile_px,
        )
    )
    blend_halo_px = manifest.tile_px // 4 if request.blend == "hann" else manifest.halo_px
    halo_px = blend_halo_px if request.halo_px is None else request.halo_px
    size = {"height": rasters.grid.height, "width": rasters.grid.width, "tile_px": manifest.tile_px, "halo_px": halo_px}
    mosaic: Mosaic = (
        HannMosaic(**size, classes=len(manifest.classes)) if request.blend == "hann" else CropMosaic(**size)
    )
    gsd_m, (finest, coarsest) = rasters.grid.gsd_m, manifest.gsd_m
    if gsd_m is not None and not 0.9 * finest <= gsd_m <= 1.1 * coarsest:
        log.warning(
            "the raster's ground sampling distance of %.3g m lies outside the %.3g to %.3g m the bundle was trained "
            "for: expect a worse map, or resample the raster",
            gsd_m,
            finest,
            coarsest,
        )
    return Plan(
        bundle=bundle,
        rasters=rasters,
        mosaic=mosaic,
        halo_px=halo_px,
        scenarios=scenarios_within(request.rasters),
    )


def segment(request: Request, observer: Observer) -> dict[str, Any]:
    """Segment the request's rasters into its output folder.

    Returns:
        What ``run.json`` holds.

    Raises:
        EngineError: by the tree in :mod:`engine.contract.errors`. After an InterruptedRunError, OutputError or
            BackendError the unfinished run is kept for ``resume``.
    """
    started_at = datetime.now(UTC)
    journal = Journal(request.output)
    with ExitStack() as stack:
        todo = plan(request, stack)
        backend = stack.enter_context(
            open_backend(
                request.backend,
                todo.bundle,
                scenarios=todo.scenarios,
                wanted=todo.mosaic.wanted,
                precision=request.precision,
                threads=request.threads,
            )
        )
        key = _key(request, todo, backend)
        entry = journal.read(key) if request.resume else Entry(key=key, tiles_done=0, statistics=Statistics())
        first = todo.mosaic.resume_at(entry.tiles_done)
        sink = _open_sink(request, todo, journal, entry, stack)
        reports: list[tuple[float, float, float]] = []
        observer.started(todo, backend.info, first_tile=first)
        clock = time.perf_counter()

        def seen(report: TileReport) -> None:
            reports.append((report.read_s, report.infer_s, report.write_s))
            observer.tile_done(report)

        try:
            stream(todo.mosaic.grid.tiles(first), rasters=todo.rasters, backend=backend, sink=sink, report=seen)
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
        except InputError:
            sink.writer.close()
            journal.remove()
            raise
        except EngineError:
            _checkpoint_if_possible(sink)
            raise
        summary = {
            "version": _own_version(),
            "started_utc": started_at.isoformat(timespec="seconds"),
            **todo.describe(),
            "backend": msgspec.to_builtins(backend.info),
            "result": _result(todo, sink.statistics),
            "performance": _performance(todo, reports, streamed_s, time.perf_counter() - clock),
            "resumed_at_tile": first if request.resume else None,
            "system": {
                "python": platform.python_version(),
                "machine": platform.machine(),
                "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            },
        }
        _write_rest(request, todo, sink, summary)
    journal.remove()
    return summary


def _check_output(request: Request) -> None:
    existing = [name for name in OUTPUT_NAMES if (request.output / name).exists()]
    if existing and not (request.overwrite or request.resume):
        raise OutputError(
            f"{request.output} already holds {', '.join(existing)}: pass --overwrite to replace them, "
            "or another --output"
        )
    if Journal(request.output).exists and not (request.overwrite or request.resume):
        raise OutputError(
            f"{request.output} holds an unfinished run: pass --resume to finish it, or --overwrite to start over"
        )
    if request.output.exists() and not request.output.is_dir():
        raise OutputError(f"--output must be a folder; {request.output} is a file: pass another --output")


def _key(request: Request, todo: Plan, backend: Backend) -> dict[str, Any]:
    """Everything the bytes of the maps depend on."""
    return {
        "version": _own_version(),
        "bundle": todo.bundle.digest,
        "inputs": todo.rasters.identity(),
        "rgir_bands": request.rgir_bands,
        "ndsm_scale_m": request.ndsm_scale_m,
        "halo_px": todo.halo_px,
        "blend": request.blend,
        "backend": f"{backend.info.library} {backend.info.precision}",
        "threads": backend.info.threads,
    }


def _open_sink(request: Request, todo: Plan, journal: Journal, entry: Entry, stack: ExitStack) -> MapSink:
    """Open or create the unfinished run's files; a failure to create them leaves nothing."""
    try:
        if not request.resume:
            journal.remove()
        journal.folder.mkdir(parents=True, exist_ok=True)
        grid = todo.rasters.grid
        writer = MapWriter.create(journal.folder, grid, todo.bundle.manifest.classes, resume=request.resume)
        stack.callback(writer.close)
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
            journal=journal,
            key=entry.key,
            statistics=entry.statistics,
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


def _checkpoint_if_possible(sink: MapSink) -> None:
    """After a failure: on a full disk the journal of the last checkpoint has to do."""
    try:
        sink.checkpoint()
    except (EngineError, OSError) as error:
        log.warning("the journal keeps its last checkpoint: %s", error)


def _write_rest(request: Request, todo: Plan, sink: MapSink, summary: Mapping[str, Any]) -> None:
    """quicklook.png and run.json, each written whole or not at all."""
    title = f"{todo.bundle.manifest.name}   sensors: {' + '.join(sorted(request.rasters, reverse=True))}"
    try:
        temporary = sink.journal.folder / "quicklook.png"
        sink.preview.save(temporary, title=title, classes=todo.bundle.manifest.classes, statistics=sink.statistics)
        temporary.replace(request.output / "quicklook.png")
        temporary = sink.journal.folder / "run.json"
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
        temporary.replace(request.output / "run.json")
    except OSError as error:
        raise OutputError(
            f"cannot write to {request.output} ({error.strerror}): free space and repeat with --resume"
        ) from error


def _result(todo: Plan, statistics: Statistics) -> dict[str, Any]:
    return {
        "inferences": {scenario.value: count for scenario, count in statistics.inferences.items()},
        "provenance_pixels": {source.name.lower(): statistics.provenance_pixels[source] for source in Provenance},
        "class_pixels": {
            spec.name: statistics.class_pixels[index] for index, spec in enumerate(todo.bundle.manifest.classes)
        },
        "switch_count": statistics.switch_count,
        "switches": msgspec.to_builtins(statistics.switches),
    }


def _performance(
    todo: Plan, reports: list[tuple[float, float, float]], streamed_s: float, total_s: float
) -> dict[str, Any]:
    """Timings of this process; a resumed run counts its own tiles only."""
    stages = np.array(reports or [(0.0, 0.0, 0.0)])
    tiles = len(reports)
    share = tiles / len(todo.mosaic.grid)
    megapixels = share * todo.rasters.grid.width * todo.rasters.grid.height / 1e6
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "tiles": tiles,
        "stream_s": round(streamed_s, 4),
        "publish_s": round(total_s - streamed_s, 4),
        "tiles_per_s": round(tiles / streamed_s, 3),
        "mpx_per_s": round(megapixels / total_s, 3),
        "stages_ms": {
            name: {f"p{q}": round(float(np.percentile(stages[:, i], q)) * 1e3, 3) for q in (50, 90, 99)}
            for i, name in enumerate(("read", "infer", "write"))
        },
        "peak_rss_mib": round(peak_kib / (1024 if sys.platform != "darwin" else 2**20), 1),
    }


def _own_version() -> str:
    try:
        return version("gemmnet-edge")
    except PackageNotFoundError:  # run from a source tree
        return "source"
