"""A request that has been checked: bundle verified, rasters or folder there, tiles laid. Nothing here writes."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from engine.contract.bundle import Bundle, Manifest
from engine.contract.errors import OutputError, writing
from engine.contract.health import HealthLimits, parse_limits
from engine.contract.sensors import Scenario, Sensor, scenarios_within
from engine.frame_log import NAME as FRAME_LOG_NAME
from engine.frames import RasterFrames
from engine.journal import Journal
from engine.live.folder import LiveFolder
from engine.live.frames import FolderFrames, RasterOpener
from engine.ownership import RUN_NAME, check_text, frame_mark, holds_a_run, is_marked
from engine.rasters.names import RasterName, local_file
from engine.record import BundleUsed, FolderUsed, HealthUsed, PlanRecord, TilingUsed, described
from engine.request import LandingFolder, RasterFiles, RunRequest
from engine.sink import QUICKLOOK_NAME
from engine.stitcher import Stitcher, Tiling
from engine.tile_log import NAME as TILE_LOG_NAME

log = logging.getLogger(__name__)

REPORT_NAME = "report.html"
MAX_FRAME_PX = 1 << 30
"""Of a landing frame: a header that claims more is damaged, or not meant for a service."""
OUTPUT_NAMES = (
    "classes.tif",
    "confidence.tif",
    "provenance.tif",
    RUN_NAME,
    TILE_LOG_NAME,
    FRAME_LOG_NAME,
    QUICKLOOK_NAME,
    REPORT_NAME,
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will run, on what."""

    request: RunRequest
    bundle: Bundle
    frames: RasterFrames | FolderFrames
    tiling: Tiling
    scenarios: tuple[Scenario, ...]
    limits: Mapping[Sensor, HealthLimits] | None
    """None where the sensors are trusted."""

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
        return self.tiling.stitcher(grid.height, grid.width)

    def describe(self) -> PlanRecord:
        """For ``--dry-run`` and ``run.json``."""
        manifest, source = self.bundle.manifest, self.request.source
        rasters = self.frames.rasters if isinstance(self.frames, RasterFrames) else None
        inputs, grid = (None, None) if rasters is None else described(rasters.describe(), rasters.grid)
        return PlanRecord(
            bundle=BundleUsed(name=manifest.name, path=str(self.bundle.root), sha256=self.bundle.digest),
            inputs=inputs,
            live=FolderUsed.of(source) if isinstance(source, LandingFolder) else None,
            grid=grid,
            tiling=TilingUsed(
                tiles=self.tiles,
                tile_px=self.tiling.tile_px,
                halo_px=self.tiling.halo_px,
                blend=self.tiling.blend,
            ),
            scenarios=self.scenarios,
            health=HealthUsed(watched=self.limits is not None, limits=self.limits or {}),
        )


def make_plan(request: RunRequest, stack: ExitStack) -> Plan:
    """Check the request against the bundle, what is to be read and the output folder. Writes nothing.

    Args:
        request: what is asked for.
        stack: closes the rasters.

    Raises:
        EngineError: whatever is wrong with it, by the tree in :mod:`engine.contract.errors`.
    """
    _check_output(request)
    bundle = Bundle.load(request.bundle)
    manifest, sensors = bundle.manifest, [sensor for sensor in Sensor if sensor in request.source.sensors]
    limits = None
    if request.watch:
        adjusted = parse_limits(list(request.health), manifest.health)
        limits = {sensor: adjusted[sensor] for sensor in sensors}
    tiling = Tiling.of(manifest, halo_px=request.halo_px, blend=request.blend)
    opener = RasterOpener(
        specs={sensor: manifest.sensor(sensor) for sensor in sensors},
        tile_px=manifest.tile_px,
        rgir_bands=request.rgir_bands,
        ndsm_scale_m=request.ndsm_scale_m,
        drivers=request.source.drivers if isinstance(request.source, LandingFolder) else None,
        max_px=MAX_FRAME_PX if isinstance(request.source, LandingFolder) else None,
    )
    return Plan(
        request=request,
        bundle=bundle,
        frames=_open_frames(request, opener, manifest, stack),
        tiling=tiling,
        scenarios=scenarios_within(sensors),
        limits=limits,
    )


def _open_frames(
    request: RunRequest, opener: RasterOpener, manifest: Manifest, stack: ExitStack
) -> RasterFrames | FolderFrames:
    source = request.source
    if isinstance(source, LandingFolder):
        folder = LiveFolder(
            source.folder,
            sensors=source.sensors,
            pattern=source.pattern,
            partner_wait_s=source.partner_wait_ms / 1e3,
            refuses=partial(_taken, request.output),
        )
        return FolderFrames(
            folder=folder,
            opener=opener,
            drop_oldest=request.when_behind == "drop-oldest",
            idle_exit_s=source.idle_exit_s,
        )
    rasters = stack.enter_context(opener.open(source.paths))
    warn_of_resolution(rasters.grid.gsd_m, manifest)
    return RasterFrames(rasters, source.paths)


def warn_of_resolution(gsd_m: float | None, manifest: Manifest) -> None:
    """Say so where the ground sampling distance is not one that the model has learnt."""
    finest, coarsest = manifest.gsd_m
    if gsd_m is not None and not 0.9 * finest <= gsd_m <= 1.1 * coarsest:
        log.warning(
            "the raster's ground sampling distance of %.3g m lies outside the %.3g to %.3g m the bundle was trained "
            "for: expect a worse map, or resample the raster",
            gsd_m,
            finest,
            coarsest,
        )


def _taken(output: Path, stamp: str) -> str | None:
    """Why the maps of a frame cannot be put in place: their folder is somebody else's."""
    place = output / stamp
    if os.path.lexists(place) and not is_marked(place, frame_mark(stamp)):
        return f"its maps would replace {place}, which this project did not write"
    return None


def _check_output(request: RunRequest) -> None:
    output, again = request.output, request.overwrite or request.resume
    check_text(output, "--output")
    with writing(output):
        if output.exists() and not output.is_dir():
            raise OutputError(f"--output must be a folder; {output} is a file: pass another --output")
        existing = [name for name in OUTPUT_NAMES if os.path.lexists(output / name)]
        unfinished = Journal(output)
        if unfinished.exists and not again:
            raise OutputError(
                f"{output} holds an unfinished run: pass --resume to go on with it, --overwrite to start over, or "
                "another --output"
            )
    if existing and not again:
        raise OutputError(
            f"{output} already holds {', '.join(existing)}: pass --overwrite to replace them, or another --output"
        )
    if existing and request.overwrite and not (unfinished.ours or holds_a_run(output)):
        raise OutputError(
            f"{output} holds {', '.join(existing)}, and nothing that shows a run of this project to have written that: "
            "move it away, or pass another --output"
        )
    if isinstance(request.source, RasterFiles):
        for sensor, name in request.source.paths.items():
            _check_input(sensor, name, output)


def _check_input(sensor: Sensor, name: RasterName, output: Path) -> None:
    """A raster must not be one of the files that the run writes."""
    path = local_file(name)
    for written in (output / each for each in OUTPUT_NAMES):
        with suppress(OSError):
            if path is not None and path.samefile(written):
                raise OutputError(f"--{sensor} {name} is a file that the run would replace: pass another --output")
