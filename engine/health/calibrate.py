"""Fit the limits of a bundle's audits, and of colours, on scenes in which nothing is wrong.

    python -m train.data.synthetic --out runs/health --count 60 --size 512
    python -m engine.health.calibrate --bundle bundle --scene runs/health/*            what would change
    python -m engine.health.calibrate --bundle bundle --scene runs/health/* --write    and write it into the manifest

Each scene is a folder with rgir.tif and ndsm.tif, on which the model was trained or might have been. All three graphs
map every tile. The limits begin as sharp as they may be, and give way towards quantiles of what was measured (the
maps' agreement and the ranks at --rate of the tiles, the others at half of it) until no clean tile is condemned. Of
colours the limit of inverted infrared lies beyond every tile, and that of bands that lie apart, which only asks for an
audit, leaves a tenth of --rate beyond it. A folder with rgir.tif alone counts for colours. Run it for every new model,
after calib.run and before the bundle is signed; engine.acceptance --degradations shows what the limits are worth.

Exit codes: 0 done; 1 a clean tile is condemned by the new limits; 2 options; 3 a raster; 4 the CSV or the manifest;
5 the bundle; 6 the backend; 130 interrupted.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
from tqdm import tqdm

from engine import demo
from engine.backends.base import Output
from engine.backends.options import BackendName, BackendOptions
from engine.contract.bundle import Bundle, save_manifest
from engine.contract.command import command_parser
from engine.contract.errors import EngineError, OutputError, UsageError
from engine.contract.formats import from_builtins
from engine.contract.health import AuditLimits, ColourLimits
from engine.contract.sensors import Scenario, Sensor
from engine.grid import TileGrid
from engine.health.audit import Auditor, Evidence, auditor_of, judge
from engine.health.colours import Colours
from engine.health.monitor import Monitor
from engine.health.tile_statistics import measure
from engine.health.verdict import Fault
from engine.options import in_options
from engine.rasters.georeference import gdal_environment
from engine.rasters.raster import SensorRasters

LEAST_TILES = 20
BOUNDS = {
    "agreement": (0.5, 0.8),
    "grounded": (0.3, 0.6),
    "ranks": (0.55, 0.7),
    "apart": (0.2, 0.3),
    "opposed": (0.4, 0.55),
    "sigmas": (1.5, 2.4),
    "explained": (0.05, 0.15),
}
"""Mildest and sharpest value of each limit."""
COLOUR_BOUNDS = {"reversed": (0.7, 0.3), "parted": (0.2, 0.5)}
"""The same of colours."""
MARGIN = 0.05
"""Of a limit that makes a sensor dead at once, beyond the worst clean tile."""
STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Examined:
    """One clean tile."""

    scene: str
    tile: int
    evidence: Evidence
    doubts: Mapping[Sensor, tuple[Fault, ...]]
    """By cheaper signs."""


def fit(examined: Sequence[Examined], limits: AuditLimits, rate: float) -> AuditLimits:
    """The sharpest limits that clean tiles pass.

    Args:
        examined: what was measured.
        limits: what is kept of these is not fitted.
        rate: share of clean tiles that a single limit may leave on its wrong side, at its mildest.
    """
    evidence = [each.evidence for each in examined]
    likeness = [each.likeness for each in evidence if each.likeness is not None]
    measured: dict[str, list[float | None]] = {
        "agreement": [each.with_and_without_heights for each in evidence],
        "grounded": [each.near for each in evidence if each.with_and_without_heights < limits.harmless],
        "ranks": [each.ranks for each in evidence],
        "apart": [each.apart for each in evidence if each.blind and each.with_and_without_heights < limits.agreement],
        "opposed": [each.ranks for each in evidence],
        "sigmas": [each.sigmas for each in likeness],
        "explained": [each.explained for each in likeness],
    }
    mild, sharp = {}, {}
    for name, values in measured.items():
        known = [value for value in values if value is not None]
        share = rate if name in ("agreement", "ranks") else rate / 2
        low, high = BOUNDS[name]
        mild[name] = float(np.clip(np.quantile(known, share), low, high)) if known else high
        sharp[name] = mild[name] if name == "agreement" else high
    for step in range(STEPS):
        part = step / (STEPS - 1)
        fitted = {name: round(sharp[name] + part * (mild[name] - sharp[name]), 3) for name in BOUNDS}
        found: AuditLimits = from_builtins({**msgspec.to_builtins(limits), **fitted}, AuditLimits)
        if not condemned(examined, found):
            break
    return found


def fit_colours(tiles: Sequence[Colours], limits: ColourLimits, rate: float) -> ColourLimits:
    """The sharpest limits of inverted infrared and of bands that lie apart that clean tiles pass.

    Args:
        tiles: what was measured.
        limits: what is kept of these is not fitted.
        rate: see :func:`fit`; a tenth of it is left beyond ``parted``, nothing beyond ``reversed``.
    """
    if not tiles:
        return limits
    (mildest, sharpest), (least, most) = COLOUR_BOUNDS["reversed"], COLOUR_BOUNDS["parted"]
    inverted = max((each.inverted for each in tiles), default=0.0)
    apart = float(np.quantile([each.together for each in tiles], rate / 10))
    return replace(
        limits,
        reversed=round(float(np.clip(inverted + MARGIN, sharpest, mildest)), 3),
        parted=round(float(np.clip(apart, least, most)), 3),
    )


def condemned(examined: Sequence[Examined], limits: AuditLimits) -> list[tuple[Examined, Sensor]]:
    """Clean tiles of which an audit would find a sensor guilty."""
    return [
        (each, sensor)
        for each in examined
        for sensor, finding in judge(each.evidence, each.doubts, limits).items()
        if finding.hard
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = command_parser("engine.health.calibrate", __doc__)
    parser.add_argument("--bundle", type=Path, default=demo.BUNDLE, metavar="DIR", help="model (default: the demo's)")
    parser.add_argument(
        "--scene",
        type=Path,
        nargs="+",
        required=True,
        metavar="DIR",
        help="with rgir.tif, ndsm.tif, or the first alone",
    )
    parser.add_argument("--rate", type=float, default=0.05, metavar="SHARE", help="see above (default: 0.05)")
    parser.add_argument("--backend", choices=get_args(BackendName), default="auto", help="default: auto")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads for inference (default: all cores)")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write what was measured of each tile")
    parser.add_argument("--write", action="store_true", help="put the limits into the bundle's manifest")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        return _calibrate(options)
    except EngineError as error:
        print(f"error: {in_options(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _calibrate(options: argparse.Namespace) -> int:
    if not 0 < options.rate < 0.5:
        raise UsageError(f"--rate must lie between 0 and 0.5, received {options.rate:g}")
    bundle = Bundle.load(options.bundle)
    manifest = bundle.manifest
    chosen = BackendOptions(name=options.backend, threads=options.threads, hint="latency")
    with gdal_environment(), chosen.open(bundle, scenarios=Scenario, wanted=(Output.CLASSES,)) as backend:
        auditor = auditor_of(backend, manifest, replace(manifest.audit, every_tiles=1))
        if auditor is None:
            raise UsageError("the bundle's classes name no building and tree, which audits go by: pass another")
        examined: list[Examined] = []
        colours: list[Colours] = []
        for each in _examine(options.scene, bundle, auditor, colours):
            examined.append(each)
    if len(examined) < LEAST_TILES:
        raise UsageError(
            f"at least {LEAST_TILES} tiles with both sensors are needed, found {len(examined)}: add scenes"
        )
    fitted = fit(examined, manifest.audit, options.rate)
    seen = manifest.health[Sensor.RGIR]
    tinted = None if seen.colours is None else fit_colours(colours, seen.colours, options.rate)
    if options.csv is not None:
        _write_csv(options.csv, examined)
    print(f"{len(examined)} tiles of {len(options.scene)} scenes, {manifest.name}")
    for name in BOUNDS:
        print(f"  {name:<10} {getattr(manifest.audit, name):>6g} -> {getattr(fitted, name):g}")
    if seen.colours is not None:
        for name in COLOUR_BOUNDS:
            print(f"  {name:<10} {getattr(seen.colours, name):>6g} -> {getattr(tinted, name):g}")
    bad = condemned(examined, fitted)
    print(f"clean tiles condemned: {len(condemned(examined, manifest.audit))} -> {len(bad)}")
    for each, sensor in bad:
        print(f"  {each.scene}, tile {each.tile}: {sensor}")
    if options.write:
        try:
            health = {**manifest.health, Sensor.RGIR: replace(seen, colours=tinted)}
            save_manifest(replace(manifest, audit=fitted, health=health), options.bundle)
        except OSError as error:
            raise OutputError(f"the manifest in {options.bundle} cannot be written ({error.strerror})") from error
        print(f"written to {options.bundle}")
    return 1 if bad else 0


def _examine(scenes: Sequence[Path], bundle: Bundle, auditor: Auditor, colours: list[Colours]) -> Iterator[Examined]:
    """Every tile of every scene with both sensors, as a run would read it; ``colours`` gets those of every image."""
    manifest = bundle.manifest
    for folder in tqdm(scenes, unit="scene", file=sys.stderr):
        there = [sensor for sensor in Sensor if sensor is Sensor.RGIR or (folder / f"{sensor}.tif").exists()]
        paths = {sensor: folder / f"{sensor}.tif" for sensor in there}
        specs = {sensor: manifest.sensor(sensor) for sensor in there}
        with SensorRasters.open(paths, specs, window_px=manifest.tile_px) as rasters:
            size = {"height": rasters.grid.height, "width": rasters.grid.width}
            for tile in TileGrid(**size, tile_px=manifest.tile_px, halo_px=manifest.halo_px).tiles():
                window = tile.reads
                seen = rasters.read(window.row, window.col, window.height, window.width)
                measured = measure(seen[Sensor.RGIR], manifest.health[Sensor.RGIR]).colours
                if measured is not None and not measured.few:
                    colours.append(measured)
                if len(there) < len(Sensor):
                    continue
                evidence = auditor.examine(seen)
                if evidence is not None:
                    doubts = Monitor(manifest.health).doubts(seen)
                    yield Examined(scene=folder.name, tile=tile.index, evidence=evidence, doubts=doubts)


def _write_csv(path: Path, examined: Sequence[Examined]) -> None:
    rows: list[dict[str, object]] = []
    for each in examined:
        values = asdict(each.evidence)
        alike = values.pop("likeness") or {}
        rounded = {name: None if value is None else round(value, 4) for name, value in {**values, **alike}.items()}
        doubts = " ".join(f"{sensor}:{fault}" for sensor, faults in each.doubts.items() for fault in faults)
        rows.append({"scene": each.scene, "tile": each.tile, **rounded, "doubts": doubts})
    names = list(dict.fromkeys(name for row in rows for name in row))
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): pass another --csv") from error


if __name__ == "__main__":
    sys.exit(main())
