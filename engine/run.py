"""Segment rasters with whatever sensors are alive.

    python -m engine.run --sensors rgir                                   the demo scene, height sensor dead
    python -m engine.run --rgir ortho.tif --ndsm height.tif --output map   your rasters, their sensors' health watched
    python -m engine.run --rgir ortho.tif --output map                     the height sensor is dead
    python -m engine.run --rgir ortho.tif --ndsm height.tif --dry-run      what would run, and on what
    python -m engine.run --live frames --output maps --resume               frames that land in a folder, as a service
    python -m engine.run --rate 10Hz --inject "ndsm:dead@2-4"              the demo scene as a flight with a failure

Rasters: RGIR is 8 bit with the bands near-infrared, red, green; nDSM is height above ground in metres. They may
differ in grid and CRS; nDSM is then warped onto RGIR. Where one of them has no data, the map is made from the other; so
it is in every tile in which a sensor is found dead, unless --sensors names the sensors to trust.

Exit codes: 0 done; 1 internal error; 2 wrong options; 3 an input raster; 4 the output; 5 the bundle; 6 the backend;
7 --resume does not fit; 8 done, but tiles were lost; 130 interrupted (repeat with --resume).
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import FrameType
from typing import Any, get_args

from engine import demo
from engine.backends import BackendName
from engine.backends.base import ExecutionPrecision, PerformanceHint
from engine.backends.resilient import leave
from engine.console import Console, JsonLines, Quiet, Together, emit
from engine.contract.errors import EngineError, TilesLostError, UsageError
from engine.contract.sensors import Sensor, parse_sensors
from engine.live.command import (
    FlightConsole,
    FlightJsonLines,
    FlightQuiet,
    add_live_options,
    live_request_of,
    refuse_live_options,
)
from engine.live.flight import fly, plan_flight
from engine.options import settings_of
from engine.rasters.georeference import gdal_environment
from engine.rasters.names import raster_name
from engine.report import write_report
from engine.request import Request, plan
from engine.segment import segment
from engine.watch import log
from engine.watch.log import LogFormat
from engine.watch.observe import Watch, watched

DEADLINE_MS = 1000.0
"""Of a tile, when --rate is given and --deadline is not."""
STALL_S = 60.0
"""/healthz answers 503 after this long without a tile, or after twice --watchdog if that is longer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    quiet = options.quiet or (options.json and options.log_format == "text")
    log.configure(options.log_format, level=logging.ERROR if quiet else logging.INFO)
    logging.getLogger("rasterio._err").setLevel(logging.WARNING)  # our errors say what GDAL's said, once a tile
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with gdal_environment():
            return _fly(options) if options.live is not None else _map(options)
    except EngineError as error:
        if options.json:
            emit(event="error", error=type(error).__name__, message=str(error), exit_code=error.exit_code)
        else:
            print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130  # before the first tile: nothing to resume


def build_parser() -> argparse.ArgumentParser:
    """The options; also what the documentation is checked against."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    inputs = parser.add_argument_group("inputs")
    inputs.add_argument("--rgir", type=raster_name, metavar="PATH", help="raster with near-infrared, red, green")
    inputs.add_argument("--ndsm", type=raster_name, metavar="PATH", help="raster with height above ground")
    inputs.add_argument(
        "--sensors",
        metavar="LIST",
        help="auto watches the health of those given (default for both); rgir, ndsm or rgir,ndsm trusts what it names",
    )
    inputs.add_argument("--rgir-bands", metavar="N,N,N", help="band numbers of NIR, red, green, as in 4,1,2")
    inputs.add_argument("--ndsm-scale", type=float, metavar="M", help="metres per unit of nDSM (0.1 for decimetres)")
    add_live_options(parser)
    flight = parser.add_argument_group("flight")
    flight.add_argument(
        "--health",
        action="append",
        default=[],
        metavar="WHAT",
        help="limits other than the bundle's, repeatable: a TOML or JSON file, or as in ndsm.max_height_m=80",
    )
    flight.add_argument("--rate", type=_rate_hz, metavar="HZ", help="replay at so many tiles a second, as in 10Hz")
    flight.add_argument(
        "--deadline",
        type=float,
        metavar="MS",
        help=f"count tiles later than this, from available to written (default with --rate: {DEADLINE_MS:g})",
    )
    flight.add_argument(
        "--when-behind",
        choices=("block", "drop-oldest"),
        default="block",
        help="tiles that come too fast wait, or the oldest is skipped and counted (default: block)",
    )
    flight.add_argument(
        "--inject", metavar="FAULTS", help='make sensors fail, as in "ndsm:dead@120-180,rgir:noise@200,ndsm:late@300-"'
    )
    flight.add_argument(
        "--metrics",
        metavar="[HOST]:PORT",
        help="serve /metrics for Prometheus and /healthz, as in :9102 (this machine alone unless a host is given)",
    )
    model = parser.add_argument_group("model")
    model.add_argument("--bundle", type=Path, default=demo.BUNDLE, metavar="DIR", help="default: the demo model")
    model.add_argument("--backend", choices=get_args(BackendName), default="auto", help="default: auto")
    model.add_argument(
        "--precision", choices=get_args(ExecutionPrecision), default="auto", help="fp32 is exact; auto is fastest"
    )
    model.add_argument("--plans", type=Path, metavar="DIR", help="TensorRT plans (default: those under the bundle)")
    model.add_argument("--threads", type=int, metavar="N", help="CPU threads for inference (default: all cores)")
    model.add_argument(
        "--hint",
        choices=get_args(PerformanceHint),
        help="OpenVINO takes several tiles at a time, or one on all cores (default: latency with --rate)",
    )
    model.add_argument(
        "--watchdog",
        type=float,
        default=30.0,
        metavar="S",
        help="a backend silent for so long is replaced by the next (default: 30)",
    )
    model.add_argument("--halo", type=int, metavar="PX", help="context around each tile (default: the bundle's)")
    model.add_argument("--blend", choices=("none", "hann"), default="none", help="hann cross-fades tiles; slower")
    results = parser.add_argument_group("results")
    results.add_argument("--output", type=Path, metavar="DIR", help="folder (default: segmented-SENSORS)")
    results.add_argument("--overwrite", action="store_true", help="replace results that are there")
    results.add_argument("--resume", action="store_true", help="finish an interrupted run")
    results.add_argument("--report", action="store_true", help="also write report.html, to read in a browser")
    results.add_argument("--dry-run", action="store_true", help="check everything, say what would run, write nothing")
    results.add_argument(
        "--log-format", choices=get_args(LogFormat), default="text", help="of log lines on standard error (text)"
    )
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
    watch = options.sensors == "auto" or (options.sensors is None and len(sources) == len(Sensor))
    named = options.sensors not in (None, "auto")
    alive = parse_sensors(options.sensors) if named else frozenset(sources)
    for sensor in alive - set(sources):
        raise UsageError(f"--sensors names {sensor}, but only {', '.join(sources)} is given: add --{sensor} PATH")
    names = [sensor.value for sensor in Sensor if sensor in alive]
    deadline_ms = options.deadline
    if deadline_ms is None and options.rate is not None:
        deadline_ms = DEADLINE_MS
    return Request(
        **settings_of(options),
        rasters={sensor: sources[sensor] for sensor in Sensor if sensor in alive},
        output=options.output or Path(f"segmented-{'-'.join(names)}"),
        watch=watch,
        blend=options.blend,
        rate_hz=options.rate,
        deadline_ms=deadline_ms,
    )


def _rate_hz(text: str) -> float:
    try:
        return float(text.lower().removesuffix("hz"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"tiles a second such as 10 or 10Hz are expected, received {text!r}") from None


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does: what is under way is written and journalled."""
    raise KeyboardInterrupt


def _map(options: argparse.Namespace) -> int:
    """Map a pair of rasters."""
    refuse_live_options(options)
    request = request_of(options)
    if options.dry_run:
        with ExitStack() as stack:
            return _describe(plan(request, stack).describe(), request.output, as_json=options.json)
    console = JsonLines() if options.json else Quiet() if options.quiet else Console()
    with console, _watched(options, request.deadline_ms) as watch:
        summary = segment(
            request,
            Together([console, *watch.observers]),
            waits=watch.source_waits,
            backend_event=watch.backend_event,
        )
    console.finished(request, summary)
    return _end(options, request.output, summary)


def _fly(options: argparse.Namespace) -> int:
    """Map the frames that land in a folder."""
    request = live_request_of(options)
    if options.dry_run:
        return _describe(plan_flight(request).describe(), request.output, as_json=options.json)
    console = FlightJsonLines() if options.json else FlightQuiet() if options.quiet else FlightConsole()
    with console, _watched(options, request.deadline_ms) as watch:
        summary = fly(
            request,
            Together([console, *watch.observers]),
            waits=watch.source_waits,
            backend_event=watch.backend_event,
            frame_done=console.frame_done,
        )
    console.flown(request, summary)
    return _end(options, request.output, summary)


def _watched(options: argparse.Namespace, deadline_ms: float | None) -> AbstractContextManager[Watch]:
    return watched(
        metrics=options.metrics,
        deadline_s=None if deadline_ms is None else deadline_ms / 1e3,
        stall_s=max(STALL_S, 2 * options.watchdog),
    )


def _describe(described: dict[str, Any], output: Path, *, as_json: bool) -> int:
    described["output"] = str(output)
    print(json.dumps({"event": "plan", **described} if as_json else described, indent=None if as_json else 2))
    return 0


def _end(options: argparse.Namespace, output: Path, summary: dict[str, Any]) -> int:
    if options.report:
        report = write_report(output)
        if not (options.json or options.quiet):
            print(f"report: {report}", file=sys.stderr)
    _check_whole(output, summary)
    return 0


def _check_whole(output: Path, summary: dict[str, Any]) -> None:
    """Results that lack tiles are published, and the exit code says so."""
    lost, dropped = summary["tiles_lost"], summary["tiles_dropped"]
    if lost:
        raise TilesLostError(
            f"{lost} of {summary['tiling']['tiles']} tiles hold no data ({dropped} dropped because inference was "
            f"behind, {lost - dropped} without a usable sensor); the rest of {output} is whole: "
            "tiles.csv names them"
        )


if __name__ == "__main__":
    leave(main())
