"""Segment rasters with whatever sensors are alive.

    python -m engine.run --sensors rgir                                   the demo scene, height sensor dead
    python -m engine.run --rgir ortho.tif --ndsm height.tif --output map   your rasters, their sensors' health watched
    python -m engine.run --rgir ortho.tif --output map                     the height sensor is dead
    python -m engine.run --rgir ortho.tif --dsm dsm.tif --dtm dtm.tif      height above ground as a difference
    python -m engine.run --rgir ortho.tif --ndsm height.tif --dry-run      what would run, and on what
    python -m engine.run --list pairs.csv --output maps                     many rasters, a folder for each
    python -m engine.run --live frames --output maps --resume               frames that land in a folder, as a service
    python -m engine.run --rate 10Hz --inject "ndsm:dead@2-4"              the demo scene as a flight with a failure
    python -m engine.run --live frames --output maps --serve :8080         the map in a browser while it grows

Rasters: RGIR is 8 bit with the bands near-infrared, red, green; nDSM is height above ground in metres, on file or as
a surface model (--dsm) and a terrain model (--dtm) that are subtracted window by window. Rasters may differ in grid and
CRS; heights are then warped onto RGIR, or onto the DSM where there is no RGIR. Where one sensor has no data, the map is
made from the other; so it is in every tile in which a sensor is found dead, unless --sensors names those to trust.

Exit codes: 0 done; 1 internal error; 2 wrong options; 3 an input raster; 4 the output; 5 the bundle; 6 the backend;
7 --resume does not fit; 8 done, but tiles were lost; 9 of a list some failed; 130 interrupted (repeat with --resume).
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import msgspec

from engine.backends.resilient import leave
from engine.console import Console, JsonLines, emit
from engine.contract.command import command_parser
from engine.contract.errors import EngineError, TilesLostError, UsageError
from engine.contract.sensors import Sensor
from engine.fleet.here import dry_run, map_list
from engine.observer import Observers
from engine.options import add_options, in_options, polygons_of, request_of
from engine.plan import make_plan
from engine.rasters.georeference import gdal_environment
from engine.record import RunRecord
from engine.report import write_report
from engine.runner import run
from engine.telemetry import log
from engine.telemetry.observe import watched
from engine.telemetry.streams import steady_streams
from engine.view.observer import Page

STALL_S = 60.0
"""/healthz answers 503 after this long without a tile, or after twice --watchdog if that is longer."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    with steady_streams():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    options = build_parser().parse_args(arguments)
    return guarded(options, _do)


def _do(options: argparse.Namespace) -> int:
    if options.list is not None:
        if options.dry_run:
            return dry_run(options)
        map_list(options)
        return 0
    if options.shard is not None:
        raise UsageError("--shard is a part of a list: pass --list PATH")
    return _dry_run(options) if options.dry_run else _run(options)


def guarded(options: argparse.Namespace, work: Callable[[argparse.Namespace], int]) -> int:
    """Do what a command line asks for, with its logs, its signals and its errors; returns the exit code."""
    quiet = options.quiet or (options.json and options.log_format == "text")
    log.configure(options.log_format, level=logging.ERROR if quiet else options.log_level.upper())
    logging.getLogger("rasterio").setLevel(logging.WARNING)  # our errors say what GDAL's said, once a tile
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with gdal_environment():
            return work(options)
    except EngineError as error:
        message = in_options(str(error))
        if options.json:
            emit(event="error", error=type(error).__name__, message=message, exit_code=error.exit_code)
        else:
            print(f"error: {message}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130  # before the first tile: nothing to resume


def build_parser() -> argparse.ArgumentParser:
    """The options; also what the documentation is checked against."""
    parser = command_parser("engine.run", __doc__)
    add_options(parser)
    return parser


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """SIGTERM ends a run as Ctrl-C does: what is under way is written and journalled."""
    raise KeyboardInterrupt


def _dry_run(options: argparse.Namespace) -> int:
    """Say what would run."""
    request, polygons = request_of(options), polygons_of(options)
    if polygons is not None:
        polygons.check()
    with ExitStack() as stack:
        described = {**msgspec.to_builtins(make_plan(request, stack).describe()), "output": str(request.output)}
    print(json.dumps({"event": "plan", **described}) if options.json else json.dumps(described, indent=2))
    return 0


def _run(options: argparse.Namespace) -> int:
    """Map what is asked for, watched by whoever is to watch."""
    request, polygons = request_of(options), polygons_of(options)
    if polygons is not None:
        polygons.check()
    stall_s = max(STALL_S, 2 * request.backend.watchdog_s)
    with ExitStack() as stack:
        teller = [JsonLines()] if options.json else [] if options.quiet else [stack.enter_context(Console())]
        watchers = stack.enter_context(
            watched(metrics=options.metrics, deadline_ms=request.deadline_ms, stall_s=stall_s)
        )
        page = (
            []
            if options.serve is None
            else [stack.enter_context(Page(options.serve, request.output, options.base_layer or ""))]
        )
        record = run(request, Observers([*teller, *watchers.observers, *page]))
    if polygons is not None:
        count = polygons.write(request.output, bar=False if options.json or options.quiet else None)
        if not (options.json or options.quiet):
            print(f"polygons: {polygons.path}, {count} of them", file=sys.stderr)
    if options.report:
        report = write_report(request.output)
        if not (options.json or options.quiet):
            print(f"report: {report}", file=sys.stderr)
    _check_whole(request.output, record)
    return 0


def _check_whole(output: Path, record: RunRecord) -> None:
    """Results that lack tiles are published, and the exit code says so."""
    lost, dropped = record.tiles_lost, record.tiles_dropped
    if lost:
        raise TilesLostError(
            f"{lost} of {record.tiling.tiles} tiles hold no data ({dropped} dropped because inference was "
            f"behind, {lost - dropped} without a usable sensor); the rest of {output} is whole: "
            "tiles.csv names them"
        )
    mapped = sum(record.result.pixels_from(sensor) for sensor in Sensor)
    if record.live is None and not mapped:
        raise TilesLostError(
            f"the map in {output} holds no pixel with data, for no sensor saw any: look at the rasters with "
            "`gdalinfo -stats`, their nodata values and masks first"
        )


if __name__ == "__main__":
    leave(main())
