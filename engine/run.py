"""Segment rasters with whatever sensors are alive.

    python -m engine.run --sensors rgir                                   the demo scene, height sensor dead
    python -m engine.run --rgir ortho.tif --ndsm height.tif --output map   your rasters
    python -m engine.run --rgir ortho.tif --output map                     the height sensor is dead
    python -m engine.run --rgir ortho.tif --ndsm height.tif --dry-run      what would run, and on what

Rasters: RGIR is 8 bit with the bands near-infrared, red, green; nDSM is height above ground in metres. They may
differ in grid and CRS; nDSM is then warped onto RGIR. Where one of them has no data, the map is made from the other.

Exit codes: 0 done; 1 internal error; 2 wrong options; 3 an input raster; 4 the output; 5 the bundle; 6 the backend;
7 --resume does not fit; 130 interrupted (repeat with --resume).
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from engine import demo
from engine.backends.base import BackendInfo
from engine.contract.errors import EngineError, UsageError
from engine.contract.sensors import Sensor, parse_sensors
from engine.georeference import gdal_environment
from engine.segment import Plan, Request, plan, segment
from engine.stream import TileReport


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(
        level=logging.ERROR if options.quiet or options.json else logging.INFO, format="%(levelname)s %(message)s"
    )
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        request = request_of(options)
        with gdal_environment():
            if options.dry_run:
                return _dry_run(request, as_json=options.json)
            console = JsonLines() if options.json else Quiet() if options.quiet else Console()
            with console:
                summary = segment(request, console)
            console.finished(request, summary)
    except EngineError as error:
        if options.json:
            _emit(event="error", error=type(error).__name__, message=str(error), exit_code=error.exit_code)
        else:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted before the first tile; nothing was written", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sources = parser.add_argument_group("what to segment")
    sources.add_argument("--sensors", metavar="LIST", help="alive sensors, e.g. rgir or rgir,ndsm (default: all given)")
    sources.add_argument("--rgir", type=Path, metavar="PATH", help="NIR-R-G raster, 8 bit (default: the demo scene)")
    sources.add_argument("--ndsm", type=Path, metavar="PATH", help="height above ground (default: the demo scene)")
    sources.add_argument("--rgir-bands", metavar="N,R,G", help="band numbers of NIR, red and green, e.g. 4,1,2")
    sources.add_argument("--ndsm-scale", type=float, metavar="M", help="metres per unit of an integer nDSM, e.g. 0.1")
    model = parser.add_argument_group("how")
    model.add_argument("--bundle", type=Path, default=demo.BUNDLE, metavar="DIR", help="model (default: the demo's)")
    model.add_argument("--backend", choices=("auto", "openvino", "onnxruntime"), default="auto", help="default: auto")
    model.add_argument("--precision", choices=("auto", "fp32"), default="auto", help="fp32 is exact; auto is fastest")
    model.add_argument("--threads", type=int, metavar="N", help="CPU threads for inference (default: all cores)")
    model.add_argument("--halo", type=int, metavar="PX", help="context around each tile (default: the bundle's)")
    model.add_argument("--blend", choices=("none", "hann"), default="none", help="hann cross-fades tiles; slower")
    results = parser.add_argument_group("results")
    results.add_argument("--output", type=Path, metavar="DIR", help="folder (default: segmented-SENSORS)")
    results.add_argument("--overwrite", action="store_true", help="replace results that are there")
    results.add_argument("--resume", action="store_true", help="finish an interrupted run")
    results.add_argument("--dry-run", action="store_true", help="check everything, say what would run, write nothing")
    results.add_argument("--json", action="store_true", help="one JSON object per line on standard output")
    results.add_argument("--quiet", action="store_true", help="errors only")
    return parser


def request_of(options: argparse.Namespace) -> Request:
    """The options as a request.

    Raises:
        UsageError: they contradict each other.
    """
    given = {sensor: path for sensor in Sensor if (path := getattr(options, sensor.value)) is not None}
    sources = given or dict(demo.SCENE)
    alive = parse_sensors(options.sensors) if options.sensors else frozenset(sources)
    for sensor in alive - set(sources):
        raise UsageError(f"--sensors names {sensor}, but only {', '.join(sources)} is given: add --{sensor} PATH")
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"--threads must be at least 1, received {options.threads}")
    names = [sensor.value for sensor in Sensor if sensor in alive]
    return Request(
        rasters={sensor: sources[sensor] for sensor in Sensor if sensor in alive},
        bundle=options.bundle,
        output=options.output or Path(f"segmented-{'-'.join(names)}"),
        backend=options.backend,
        precision=options.precision,
        threads=options.threads,
        halo_px=options.halo,
        blend=options.blend,
        overwrite=options.overwrite,
        resume=options.resume,
        rgir_bands=_bands(options.rgir_bands),
        ndsm_scale_m=options.ndsm_scale,
    )


def _bands(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    try:
        nir, red, green = (int(number) for number in text.split(","))
    except ValueError as error:
        raise UsageError(f"--rgir-bands takes three band numbers such as 4,1,2; received {text!r}") from error
    return nir, red, green


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does: what is under way is written and journalled."""
    raise KeyboardInterrupt


def _dry_run(request: Request, *, as_json: bool) -> int:
    with ExitStack() as stack:
        described = plan(request, stack).describe()
    described["output"] = str(request.output)
    print(json.dumps({"event": "plan", **described} if as_json else described, indent=None if as_json else 2))
    return 0


def _emit(**event: Any) -> None:
    print(json.dumps(event), flush=True)


class Quiet:
    """Says nothing; the base of what does."""

    def __enter__(self) -> Quiet:
        return self

    def __exit__(self, *_error: object) -> None:
        """End the progress display, whatever happened."""

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """All checks passed."""

    def tile_done(self, report: TileReport) -> None:
        """One more tile."""

    def publishing(self) -> None:
        """All tiles are done."""

    def finished(self, request: Request, summary: dict[str, Any]) -> None:
        """Results are in place."""


class Console(Quiet):
    """A progress bar with rate, engine and time left, and a line at the end."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def __exit__(self, *_error: object) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """Open the bar."""
        grid = plan.rasters.grid
        tiles = len(plan.mosaic.grid)
        self._mpx_per_tile = grid.width * grid.height / 1e6 / tiles
        print(
            f"{grid.width} x {grid.height} px in {tiles} tiles of {plan.mosaic.grid.tile_px} px, "
            f"halo {plan.halo_px} px; {backend.library} on {backend.device} ({backend.precision})",
            file=sys.stderr,
        )
        self._bar = tqdm(total=tiles, initial=first_tile, unit="tile", file=sys.stderr, mininterval=0.2)
        self._began, self._tiles = time.perf_counter(), 0

    def tile_done(self, report: TileReport) -> None:
        """Advance."""
        assert self._bar is not None
        self._tiles += 1
        rate = self._tiles * self._mpx_per_tile / (time.perf_counter() - self._began)
        engine = "+".join(report.scenarios) or "no data"
        self._bar.set_postfix_str(f"{rate:.1f} Mpx/s, {engine}", refresh=False)
        self._bar.update()

    def publishing(self) -> None:
        """Close the bar; writing takes a moment."""
        assert self._bar is not None
        self._bar.close()
        print("writing Cloud-Optimised GeoTIFFs", file=sys.stderr)

    def finished(self, request: Request, summary: dict[str, Any]) -> None:
        """Where the results are."""
        speed = summary["performance"]
        print(
            f"done in {speed['stream_s'] + speed['publish_s']:.1f} s ({speed['mpx_per_s']:.2f} Mpx/s, "
            f"peak memory {speed['peak_rss_mib']:.0f} MiB): {request.output}/quicklook.png, classes.tif, "
            "confidence.tif, provenance.tif, run.json",
            file=sys.stderr,
        )


class JsonLines(Quiet):
    """One event per line: ``started``, ``progress`` (at most two a second), ``publishing``, ``finished``, ``error``."""

    def __init__(self) -> None:
        self._done, self._told = 0, 0.0

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """Everything known before the first tile."""
        self._total, self._done = len(plan.mosaic.grid), first_tile
        _emit(event="started", backend=backend.name, device=backend.device, first_tile=first_tile, **plan.describe())

    def tile_done(self, report: TileReport) -> None:
        """At most two a second, and the last."""
        self._done += 1
        now = time.monotonic()
        if now - self._told >= 0.5 or self._done == self._total:
            self._told = now
            _emit(event="progress", tiles_done=self._done, tiles=self._total, scenarios=list(report.scenarios))

    def publishing(self) -> None:
        """All tiles are done."""
        _emit(event="publishing")

    def finished(self, request: Request, summary: dict[str, Any]) -> None:
        """The whole of run.json."""
        _emit(event="finished", output=str(request.output), run=summary)


if __name__ == "__main__":
    sys.exit(main())
