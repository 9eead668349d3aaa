"""What a run is asked for, and the same once it has been checked. Nothing here writes."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from engine.backends import BackendName
from engine.backends.base import ExecutionPrecision, Output, PerformanceHint
from engine.backends.resilient import ResilientBackend, open_chain
from engine.contract.bundle import Bundle
from engine.contract.errors import OutputError, UsageError
from engine.contract.health import HealthLimits, parse_limits
from engine.contract.sensors import Scenario, Sensor, scenarios_within
from engine.health.faults import Injection
from engine.journal import Journal
from engine.mosaic import CropMosaic, HannMosaic, Mosaic
from engine.rasters.raster import SensorRasters

log = logging.getLogger(__name__)

Blend = Literal["none", "hann"]
WhenBehind = Literal["block", "drop-oldest"]
REPORT_NAME = "report.html"
OUTPUT_NAMES = (
    "classes.tif",
    "confidence.tif",
    "provenance.tif",
    "run.json",
    "tiles.csv",
    "quicklook.png",
    REPORT_NAME,
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run over rasters and a flight over a live folder are both asked for."""

    bundle: Path
    output: Path
    watch: bool = False
    """Judge every sensor in every tile, and map without one that is dead; else all are trusted."""
    health: tuple[str, ...] = ()
    """Changes to the bundle's limits, as :func:`engine.contract.health.parse_limits` takes them."""
    backend: BackendName = "auto"
    precision: ExecutionPrecision = "auto"
    threads: int | None = None
    hint: PerformanceHint = "throughput"
    watchdog_s: float = 30.0
    """A backend without an answer for so long counts as hung."""
    plans: Path | None = None
    """Folder of TensorRT plans; None is the one under the bundle."""
    halo_px: int | None = None
    """None takes the bundle's, or a quarter of the tile when blending."""
    when_behind: WhenBehind = "block"
    deadline_ms: float | None = None
    """What is later than this, from available to written, is counted."""
    inject: tuple[Injection, ...] = ()
    """Faults on purpose; tiles are counted over all frames of a flight."""
    overwrite: bool = False
    resume: bool = False
    rgir_bands: tuple[int, int, int] | None = None
    ndsm_scale_m: float | None = None

    def check(self, sensors: Collection[Sensor], positive: Mapping[str, float | None]) -> None:
        """See that the settings fit each other.

        Args:
            sensors: those that are expected to deliver.
            positive: more options that must be positive numbers where they are given.

        Raises:
            UsageError: a number is not positive, or two options contradict each other.
        """
        if self.overwrite and self.resume:
            raise UsageError("--overwrite starts over and --resume goes on: pass one of them")
        numbers = {**positive, "--deadline": self.deadline_ms, "--watchdog": self.watchdog_s, "--threads": self.threads}
        for option, number in numbers.items():
            if number is not None and not 0 < number < float("inf"):
                raise UsageError(f"{option} must be a positive number, received {number:g}")
        if not self.watch and (self.health or self.inject):
            option = "--inject" if self.inject else "--health"
            raise UsageError(f"{option} needs sensors that are watched: pass --sensors auto")
        if self.inject and self.resume:
            raise UsageError("a run with --inject cannot be resumed: start over with --overwrite")
        for injection in self.inject:
            if injection.sensor not in sensors:
                names = ", ".join(sensor for sensor in Sensor if sensor in sensors)
                raise UsageError(f"--inject names {injection.sensor}, but the run reads {names}: add that sensor")

    def open_backend(
        self, bundle: Bundle, *, scenarios: Iterable[Scenario], wanted: Iterable[Output]
    ) -> ResilientBackend:
        """The backend that is asked for, with what stands behind it.

        Raises:
            EngineError: as :func:`engine.backends.open_backend`.
        """
        return open_chain(
            self.backend,
            bundle,
            scenarios=scenarios,
            wanted=wanted,
            precision=self.precision,
            threads=self.threads,
            hint=self.hint,
            watchdog_s=self.watchdog_s,
            plans=self.plans,
        )


@dataclass(frozen=True, kw_only=True)
class Request(Settings):
    """Everything a run over rasters needs to know.

    Raises:
        UsageError: no raster is given, a number is not positive, or two options contradict each other.
    """

    rasters: Mapping[Sensor, Path]
    """The sensors that may be used, and where."""
    blend: Blend = "none"
    rate_hz: float | None = None
    """Tiles a second, as if in flight; None reads as fast as tiles are mapped."""

    def __post_init__(self) -> None:
        if not self.rasters:
            raise UsageError("at least one sensor must be alive, received none: pass --rgir PATH or --ndsm PATH")
        self.check(self.rasters, {"--rate": self.rate_hz})
        if self.when_behind == "drop-oldest" and self.rate_hz is None:
            raise UsageError("--when-behind drop-oldest needs --rate: without it every tile is waited for")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A checked request: bundle verified, rasters open, tiles laid."""

    bundle: Bundle
    rasters: SensorRasters
    mosaic: Mosaic
    halo_px: int
    scenarios: tuple[Scenario, ...]
    limits: Mapping[Sensor, HealthLimits] | None
    """None where the sensors are trusted."""

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
            "health": self.describe_health(),
        }

    def describe_health(self) -> dict[str, Any]:
        """By what the sensors are judged; JSON-serialisable."""
        return {"watched": self.limits is not None, "limits": msgspec.to_builtins(self.limits or {})}


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
    limits = None
    if request.watch:
        adjusted = parse_limits(list(request.health), manifest.health)
        limits = {sensor: adjusted[sensor] for sensor in request.rasters}
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
        limits=limits,
    )


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
