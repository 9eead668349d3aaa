"""Make every sensor fail in every way, on purpose, and see what the map makes of it.

    python -m engine.acceptance                                        the demo model and scene, a minute or two
    python -m engine.acceptance --bundle B --rgir a.tif --ndsm b.tif   your model over your rasters
    python -m engine.acceptance --rgir a.tif --ndsm b.tif --tiles 500 --csv matrix.csv
    python -m engine.acceptance --degradations                         what is wrong and looks right, by strength
    python -m engine.acceptance --degradations --scene town --scene ../fields --csv d.csv --plot d.svg

A flight of --tiles tiles is flown once for each fault: each kind, each sensor; in single tiles, in bursts, to the end;
both sensors at once, in turn, and in every second tile. The rasters' own tiles are used where they are enough; else the
flight goes on over their mirror image. Everything but the files of the maps is the pipeline of engine.run.

A case passes if
- every hard fault makes its sensor dead in the tile where it starts (soft ones, which a single tile does not prove, are
  reported);
- no sensor that was left alone is blamed, in any tile;
- outside the faults every byte of the map equals that of the flight without faults;
- inside, and until the sensor has shown enough good tiles to be believed, every byte equals the map of the other sensor
  alone; where there is none, a sensor that is not believed yet is used if its tile is good;
- no tile is lost, but where both sensors failed.

The maps to compare with take 2.4 MB of temporary disk a tile.

With --degradations every way in which a sensor can be wrong and look right is flown at several strengths over the demo
scene, or over each --scene, a folder with rgir.tif and ndsm.tif. The table says how many points of class agreement with
the fault-free map are lost beyond dropping the sensor, if it is used and with the sensors watched, and from which
strength on harm is detected. A folder with rgir.tif alone counts for false alarms. It always exits 0.

Exit codes: 0 all pass; 1 a case fails; 2 wrong options; 3 an input raster; 4 the CSV, or no temporary disk; 5 the
bundle; 6 the backend; 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from engine import demo
from engine.acceptance import degradations
from engine.acceptance.rehearsal import CaseResult, Flight, Rehearsal
from engine.backends.base import ExecutionPrecision
from engine.backends.options import BackendName, BackendOptions
from engine.contract.bundle import Bundle
from engine.contract.command import command_parser
from engine.contract.errors import EngineError, OutputError, UsageError
from engine.contract.health import parse_audit, parse_limits
from engine.contract.sensors import Scenario, Sensor
from engine.health.audit import auditor_of
from engine.health.faults import Injection, Kind, kinds_of
from engine.options import in_options
from engine.rasters.georeference import gdal_environment
from engine.rasters.raster import SensorRasters
from engine.stitcher import CropStitcher

LEAST_TILES = 18
"""So that every case has tiles before, within and behind its faults."""
SPACING = 24
"""A long flight has one fault of a case in so many tiles."""
SURVEYED_TILES = 4
BURST = 5
"""Tiles of one."""
ENOUGH = 0.5
"""Faults begin where both sensors have data in so many of a tile's pixels: the edge of a raster proves little."""


@dataclass(frozen=True, kw_only=True)
class FaultCase:
    """Faults to be flown together."""

    name: str
    injections: tuple[Injection, ...]


def cases(fit: NDArray[np.bool_]) -> Iterator[FaultCase]:
    """The matrix for a flight; the fault-free one comes first.

    Args:
        fit: tiles in which a fault can begin, bool [tiles]; at least one.
    """
    yield FaultCase(name="no fault", injections=())
    tiles, places = len(fit), np.flatnonzero(fit)
    starts = range(SPACING // 3, max(SPACING, tiles - SPACING // 2 + 1), SPACING)

    def fault(sensor: Sensor, kind: Kind, first: int, length: int | None) -> Injection:
        begin = int(next((place for place in places if place >= first), places[-1]))
        last = None if length is None else min(begin + length, tiles) - 1
        return Injection(sensor=sensor, kind=kind, first=begin, last=last)

    def faults(sensor: Sensor, kind: Kind, length: int, offset: int = 0) -> tuple[Injection, ...]:
        return tuple(fault(sensor, kind, start + offset, length) for start in starts)

    for sensor in Sensor:
        for kind in kinds_of(sensor):
            yield FaultCase(name=f"{sensor} {kind}, single tiles", injections=faults(sensor, kind, 1))
            yield FaultCase(name=f"{sensor} {kind}, bursts", injections=faults(sensor, kind, BURST))
            yield FaultCase(name=f"{sensor} {kind}, to the end", injections=(fault(sensor, kind, starts[-1], None),))
    rgir, ndsm = Sensor.RGIR, Sensor.NDSM
    yield FaultCase(name="both at once", injections=faults(rgir, Kind.DARK, 3) + faults(ndsm, Kind.LATE, 3))
    yield FaultCase(
        name="both, overlapping", injections=faults(rgir, Kind.NOISE, 4) + faults(ndsm, Kind.ERROR, 4, offset=2)
    )
    yield FaultCase(
        name="in turn", injections=faults(ndsm, Kind.FROZEN, 2, offset=-2) + faults(rgir, Kind.SATURATED, 2, offset=2)
    )
    flicker = dict.fromkeys(fault(ndsm, Kind.ERROR, starts[0] + 2 * number, 1) for number in range(4))
    yield FaultCase(name="every second tile", injections=tuple(flicker))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the temporary maps are removed
    try:
        for option, path in (("--csv", options.csv), ("--plot", options.plot)):
            if path is not None and not path.parent.is_dir():
                raise OutputError(f"{path} cannot be written (its folder does not exist): pass another {option}")
        if not options.degradations and (options.scene or options.plot):
            raise UsageError("--scene and --plot belong to --degradations: pass that too")
        if options.degradations:
            return _survey(options)
        with gdal_environment(), ExitStack() as stack:
            rehearsal, about = _prepare(options, stack)
            print(about)
            results = _fly(rehearsal)
        if options.csv is not None:
            write_csv(options.csv, results)
    except EngineError as error:
        print(f"error: {in_options(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print("\n".join(render(results)))
    return 0 if all(result.passed for _, result in results) else 1


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = command_parser("engine.acceptance", __doc__)
    parser.add_argument("--bundle", type=Path, default=demo.BUNDLE, metavar="DIR", help="model (default: the demo's)")
    parser.add_argument("--rgir", type=Path, metavar="PATH", help="raster to fly over (default: the demo scene)")
    parser.add_argument("--ndsm", type=Path, metavar="PATH", help="its heights")
    parser.add_argument(
        "--tiles", type=int, metavar="N", help=f"of a flight (default: {SPACING}, with --degradations {SURVEYED_TILES})"
    )
    parser.add_argument(
        "--degradations", action="store_true", help="what looks right and is wrong, by kind and strength"
    )
    parser.add_argument(
        "--scene", action="append", type=Path, default=[], metavar="DIR", help="folder to fly over; repeatable"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="strength against harm, as SVG")
    parser.add_argument(
        "--health",
        action="append",
        default=[],
        metavar="WHAT",
        help="limits other than the bundle's, as engine.run takes them; repeatable",
    )
    parser.add_argument("--backend", choices=get_args(BackendName), default="auto", help="default: auto")
    parser.add_argument("--precision", choices=get_args(ExecutionPrecision), default="auto", help="default: auto")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads for inference (default: all cores)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table there too")
    return parser


def render(results: Sequence[tuple[FaultCase, CaseResult]]) -> Iterator[str]:
    """The table, as lines for a terminal, and the verdict."""
    width = max(len(case.name) for case, _ in results)
    yield f"{'':<{width}}  {'':>7}  {'':>5}  {'false':>6}  {'tiles':>5}  {'outside':>8}  {'inside':>8}"
    yield (
        f"{'case':<{width}}  {'seen':>7}  {'delay':>5}  {'alarms':>6}  {'lost':>5}  {'equal':>8}  {'equal':>8}  verdict"
    )
    for case, result in results:
        seen = f"{result.detected}/{result.spoiling}" if case.injections else ""
        delay = "" if result.delay_tiles is None else str(result.delay_tiles)
        yield (
            f"{case.name:<{width}}  {seen:>7}  {delay:>5}  {result.false_alarms:>6}  {result.lost:>5}  "
            f"{_share(result.outside_equal):>8}  {_share(result.inside_equal):>8}  "
            + ("pass" if result.passed else f"FAIL: {result.why}")
        )
    failed = [case.name for case, result in results if not result.passed]
    hard = [result for _, result in results if result.hard]
    yield ""
    yield (
        f"{len(results) - len(failed)} of {len(results)} cases pass; hard faults made dead in the tile where they "
        f"start: {sum(result.hard_at_once for result in hard)} of {sum(result.hard for result in hard)}; false alarms: "
        f"{sum(result.false_alarms for _, result in results)} in {sum(result.tiles for _, result in results)} tiles; "
        f"tiles lost: {sum(result.lost for _, result in results)}"
    )


def write_csv(path: Path, results: Sequence[tuple[FaultCase, CaseResult]]) -> None:
    """One row per case.

    Raises:
        OutputError: the system refuses.
    """
    names = [each.name for each in fields(CaseResult)]
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["case", "inject", *names, "passed"])
            for case, result in results:
                inject = ",".join(str(each) for each in case.injections)
                writer.writerow([case.name, inject, *(getattr(result, name) for name in names), int(result.passed)])
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): pass another --csv") from error


def _prepare(options: argparse.Namespace, stack: ExitStack) -> tuple[Rehearsal, str]:
    """Open everything, and say what it is."""
    given = {sensor: getattr(options, sensor.value) for sensor in Sensor}
    if len({path is None for path in given.values()}) > 1:
        raise UsageError("a sensor can be lost where there are two: pass both --rgir and --ndsm, or none for the demo")
    tiles = SPACING if options.tiles is None else options.tiles
    if tiles < LEAST_TILES:
        raise UsageError(f"--tiles must be at least {LEAST_TILES}, received {tiles}")
    paths = dict(demo.SCENE) if given[Sensor.RGIR] is None else given
    bundle = Bundle.load(options.bundle)
    manifest = replace(bundle.manifest, audit=parse_audit(options.health, bundle.manifest.audit))
    limits = parse_limits(options.health, manifest.health)
    rasters = stack.enter_context(
        SensorRasters.open(paths, {sensor: manifest.sensor(sensor) for sensor in Sensor}, window_px=manifest.tile_px)
    )
    backend = stack.enter_context(
        BackendOptions(name=options.backend, precision=options.precision, threads=options.threads).open(
            bundle, scenarios=Scenario, wanted=CropStitcher.wanted
        )
    )
    flight = Flight(rasters=rasters, tile_px=manifest.tile_px, halo_px=manifest.halo_px, tiles=tiles)
    about = f"{manifest.name} on {backend.info}; {tiles} tiles of {manifest.tile_px} px, {flight.about}"
    return stack.enter_context(Rehearsal(flight, backend, manifest, limits)), about


def _survey(options: argparse.Namespace) -> int:
    """``--degradations``."""
    tiles = SURVEYED_TILES if options.tiles is None else options.tiles
    if tiles < 2:
        raise UsageError(f"--tiles must be at least 2, received {tiles}: a held sensor repeats the tile before")
    bundle = Bundle.load(options.bundle)
    manifest = bundle.manifest
    # tiles come one at a time here
    chosen = BackendOptions(name=options.backend, precision=options.precision, threads=options.threads, hint="latency")
    with gdal_environment(), chosen.open(bundle, scenarios=Scenario, wanted=CropStitcher.wanted) as backend:
        auditor = auditor_of(backend, manifest, parse_audit(options.health, manifest.audit))
        if auditor is None:
            raise UsageError(
                "the bundle's audit is switched off, or its classes name no building and tree: pass another"
            )
        survey = degradations.DegradationFlights(
            infer=auditor.infer,
            classes=auditor.classes,
            limits=parse_limits(options.health, manifest.health),
            audit=auditor.limits,
        )
        scenes = {each.name: _rasters_of(each) for each in options.scene} or {"demo": dict(demo.SCENE)}
        print(f"{manifest.name} on {backend.info}; {tiles} tiles a flight")
        clean, outcomes, matrix = [], [], list(degradations.cases())
        paired = sum(len(paths) == len(Sensor) for paths in scenes.values())
        with logging_redirect_tqdm(), tqdm(total=paired * len(matrix), unit="case", file=sys.stderr) as bar:
            for name, paths in scenes.items():
                specs = {sensor: manifest.sensor(sensor) for sensor in paths}
                with SensorRasters.open(paths, specs, window_px=manifest.tile_px) as rasters:
                    line = Flight(rasters=rasters, tile_px=manifest.tile_px, halo_px=manifest.halo_px, tiles=tiles)
                    windows = [(each.reads.row, each.reads.col, each.reads.height, each.reads.width) for each in line]
                    tiles_seen = [rasters.read(*window) for window in windows]
                    flight = degradations.SceneTiles(name=name, tiles=tiles_seen, places=[each[:2] for each in windows])
                clean.append(survey.clean(flight))
                if len(paths) == len(Sensor):
                    for outcome in survey.outcomes(flight, matrix):
                        outcomes.append(outcome)
                        bar.update()
    if not outcomes:
        raise UsageError("a sensor can be dropped where there are two: pass a --scene with rgir.tif and ndsm.tif")
    if options.csv is not None:
        degradations.write_csv(options.csv, clean, outcomes)
    if options.plot is not None:
        degradations.write_picture(options.plot, outcomes)
    print("\n".join(degradations.render(clean, outcomes)))
    return 0


def _rasters_of(folder: Path) -> dict[Sensor, Path]:
    """The rasters of a scene's folder."""
    paths = {sensor: folder / f"{sensor}.tif" for sensor in Sensor if (folder / f"{sensor}.tif").exists()}
    if not paths:
        raise UsageError(f"--scene {folder} must hold rgir.tif, ndsm.tif or both: pass another folder")
    return paths


def _fly(rehearsal: Rehearsal) -> list[tuple[FaultCase, CaseResult]]:
    """The references and all cases, with a progress bar."""
    results = []
    with (
        logging_redirect_tqdm(),
        tqdm(total=rehearsal.references * len(rehearsal), unit="tile", file=sys.stderr, mininterval=0.5) as bar,
    ):
        bar.set_postfix_str("references", refresh=False)
        rehearsal.prepare(lambda: bar.update())
        whole = (rehearsal.shares >= ENOUGH).all(axis=1)
        fit = whole & np.roll(whole, 1)  # a frozen sensor repeats the tile before
        fit[0] = False
        if not fit.any():
            raise UsageError(
                f"a fault needs two tiles in a row in which both sensors have data in {ENOUGH:.0%} of the pixels; "
                f"none of {len(fit)} is such: pass other rasters, or more --tiles"
            )
        matrix = list(cases(fit))
        bar.total += len(matrix) * len(rehearsal)
        for case in matrix:
            bar.set_postfix_str(case.name, refresh=False)
            results.append((case, rehearsal.fly(case.injections, lambda: bar.update())))
    return results


def _share(share: float | None) -> str:
    """Never rounded up to 100 %."""
    if share is None:
        return ""
    return "100 %" if share == 1 else f"{min(99.99, 100 * share):.2f} %"


if __name__ == "__main__":
    sys.exit(main())
