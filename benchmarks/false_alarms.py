"""How often sensors are called faulty that are not: clean flights over every kind of ground, audits included.

    python -m benchmarks.false_alarms                              procedural ground, and what is made of it
    python -m benchmarks.false_alarms --naip ../shared/data/naip   real images of five cities as well, without heights

A flight has both sensors and is judged as ``--sensors auto`` judges it. Procedural scenes have no open sea, desert,
snow or night: these are made of them here, by rules that are easy to read (:data:`GROUNDS`). Snow and a lit night keep
their detail; water keeps a shore. Real images are judged tile by tile, each as the first of a flight.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.command import at_least_one, exit_code_of, parser_of
from engine.acceptance.degradations import CleanFlight, DegradationFlights, SceneTiles
from engine.backends.base import Output
from engine.backends.options import BackendOptions
from engine.contract.bundle import Bundle
from engine.contract.errors import InputError, UsageError, writing
from engine.contract.sensors import Scenario, Sensor
from engine.health.audit import auditor_of
from engine.rasters.georeference import gdal_environment
from engine.rasters.raster import SensorRasters
from engine.rasters.sources import Observation
from train.data.synthetic import STYLES, generate

SEED, GSD_M = 6_000_001, 0.2
Image: TypeAlias = NDArray[np.float32]
Heights: TypeAlias = NDArray[np.float32]
Ground = Callable[[Image, Heights, np.random.Generator], tuple[Image, Heights]]
WATER, SAND = (np.array(colour, np.float32)[:, None, None] for colour in ((18, 34, 46), (196, 176, 148)))


def _water(image: Image, heights: Heights, rng: np.random.Generator) -> tuple[Image, Heights]:
    """Waves behind a shore that takes a fifth of the tile; the water's height is 0 but for centimetres."""
    sea = np.arange(image.shape[2]) > image.shape[2] // 5
    waves = 3 * rng.standard_normal(image.shape[1:], np.float32)
    waves = (waves + np.roll(waves, 1, 0) + np.roll(waves, 2, 0)) * np.float32(0.5)
    return np.where(sea, WATER + waves, image), np.where(sea, 0.02 * waves, heights)


def _desert(image: Image, heights: Heights, rng: np.random.Generator) -> tuple[Image, Heights]:
    """Sand with the texture of the scene and shrubs of a metre at most."""
    texture = image.mean(axis=0) - image.mean()
    return SAND + 0.3 * texture + 2 * rng.standard_normal(image.shape, np.float32), np.minimum(heights, 1.0)


def _snow(image: Image, heights: Heights, rng: np.random.Generator) -> tuple[Image, Heights]:
    """Everything low is white; roofs and crowns keep a third of their contrast."""
    contrast = np.where(heights > 1, 0.35, 0.1).astype(np.float32)
    white = 222 + contrast * (image - image.mean()) + 1.5 * rng.standard_normal(image.shape, np.float32)
    return white, heights


def _night(image: Image, heights: Heights, rng: np.random.Generator) -> tuple[Image, Heights]:
    """A fifth of the light, the noise of a long exposure, and a lamp on every two thousandth pixel."""
    lamps = (rng.random(image.shape[1:]) < 5e-4) * np.float32(180)
    lamps = sum((np.roll(lamps, (down, across), (0, 1)) for down in (-1, 0, 1) for across in (-1, 0, 1)), lamps)
    return 0.2 * image + 3 * rng.standard_normal(image.shape, np.float32) + lamps, heights


GROUNDS: Mapping[str, tuple[str, Ground]] = {
    "water": ("park", _water),
    "desert": ("fields", _desert),
    "snow": ("village", _snow),
    "city by night": ("city", _night),
}
"""By name: the style of the procedural scene that each is made of, and how."""


def flights(tiles: int, tile_px: int) -> Iterator[SceneTiles]:
    """A flight over every style and every ground; each tile is a scene of its own."""
    plain: Mapping[str, tuple[str, Ground]] = {
        style: (style, lambda image, heights, _: (image, heights)) for style in STYLES
    }
    for name, (style, change) in {**plain, **GROUNDS}.items():
        yield SceneTiles(name=name, tiles=[_tile(style, change, number, tile_px) for number in range(tiles)])


def _tile(style: str, change: Ground, number: int, tile_px: int) -> dict[Sensor, Observation]:
    scene, rng = generate(seed=SEED + number, size_px=tile_px, gsd_m=GSD_M, style=style), np.random.default_rng(number)
    heights = np.asarray(scene.ndsm, np.float32).squeeze()
    valid = np.isfinite(heights)
    image, heights = change(scene.rgir.astype(np.float32), np.where(valid, heights, 0), rng)
    return {
        Sensor.RGIR: _observed(np.clip(np.rint(image), 0, 255).astype(np.uint8), np.ones_like(valid)),
        Sensor.NDSM: _observed(heights[None].astype(np.float32), valid),
    }


def _observed(values: NDArray[np.uint8] | NDArray[np.float32], valid: NDArray[np.bool_]) -> Observation:
    return Observation(values=values, valid=valid)


def images_in(folder: Path | None) -> list[Path]:
    """The real images.

    Raises:
        InputError: there is none.
    """
    paths = [] if folder is None else sorted(folder.glob("*/rgir.tif"))
    if folder is not None and not paths:
        raise InputError(f"--naip must hold SCENE/rgir.tif, and {folder} has none: pass another folder")
    return paths


def naip(paths: Sequence[Path], bundle: Bundle) -> Iterator[SceneTiles]:
    """A flight of one tile over each real image."""
    specs = {Sensor.RGIR: bundle.manifest.sensor(Sensor.RGIR)}
    for path in paths:
        with gdal_environment(), SensorRasters.open({Sensor.RGIR: path}, specs) as rasters:
            side = min(rasters.grid.height, rasters.grid.width)
            yield SceneTiles(name="NAIP", tiles=[rasters.read(0, 0, side, side)])


def count(options: argparse.Namespace) -> list[CleanFlight]:
    """Fly all; one result for each kind of ground.

    Raises:
        EngineError: it cannot be done.
    """
    at_least_one(options, "tiles")
    images = images_in(options.naip)
    bundle = Bundle.load(options.bundle)
    found: dict[str, CleanFlight] = {}
    with BackendOptions(hint="latency").open(bundle, scenarios=Scenario, wanted=(Output.CLASSES,)) as backend:
        auditor = auditor_of(backend, bundle.manifest)
        if auditor is None:
            raise UsageError(
                "--bundle must have its audits on, and classes of the name building and tree: pass another"
            )
        judged = DegradationFlights(
            infer=auditor.infer, classes=auditor.classes, limits=bundle.manifest.health, audit=auditor.limits
        )
        every = chain(flights(options.tiles, bundle.manifest.tile_px), naip(images, bundle))
        total = len(STYLES) + len(GROUNDS) + len(images)
        for flight in tqdm(every, total=total, unit="flight", file=sys.stderr):
            clean = judged.clean(flight)
            before = found.get(flight.name)
            found[flight.name] = clean if before is None else before.plus(clean)
    return list(found.values())


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print, write the CSV."""
    parser = parser_of("false_alarms", __doc__, result="false_alarms.csv")
    parser.add_argument("--tiles", type=int, default=12, metavar="N", help="of each flight (12)")
    parser.add_argument("--naip", type=Path, metavar="DIR", help="real images, <scene>/rgir.tif")
    options = parser.parse_args(arguments)

    def work() -> None:
        rows = [asdict(each) for each in count(options)]
        with writing(options.out), options.out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        for row in rows:
            print("  ".join(f"{name} {value}" for name, value in row.items()))

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main())
