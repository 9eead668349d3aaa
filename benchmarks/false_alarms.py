"""How often sensors are called faulty that are not: clean flights over every kind of ground, audits included.

    python -m benchmarks.false_alarms                              procedural ground, and what is made of it
    python -m benchmarks.false_alarms --naip ../shared/data/naip   real images of five cities as well, without heights
    python -m benchmarks.false_alarms --before-flight ../shared/data/town_north --before-flight engine/demo/scene

A flight has both sensors and is judged as ``--sensors auto`` judges it. Procedural scenes have no open sea, desert,
snow or night: these are made of them here, by rules that are easy to read (:data:`GROUNDS`). Snow and a lit night keep
their detail; water keeps a shore. Real images are judged tile by tile, each as the first of a flight.

With --before-flight the rasters of scenes are looked at as `gemmnet doctor` and `engine.run` do before they are mapped,
as they are and with what a whole raster can have (:data:`LASTING`), which is done to every tile that is looked at; the
result is before_flight.csv.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
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
from engine.contract.errors import InputError, RasterOpenError, UsageError, writing
from engine.contract.sensors import Scenario, Sensor
from engine.frames import RasterOpener
from engine.grid import Window
from engine.health.audit import Auditor, auditor_of
from engine.health.faults import Injection, Injector, Kind
from engine.health.preflight import SAMPLED_TILES, Readable, examine
from engine.rasters.georeference import Grid, gdal_environment
from engine.rasters.raster import SensorRasters
from engine.rasters.sources import Observation
from engine.stitcher import Tiling
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


LASTING: Mapping[Sensor, Mapping[Kind, Sequence[float]]] = {
    Sensor.RGIR: {
        Kind.BANDS: (132, 321, 231, 312, 213),
        Kind.COPIED: (2,),
        Kind.INVERTED: (1, 2, 3, 0),
        Kind.BIT: (6, 7),
        Kind.PARTED: (8,),
        Kind.BLUR: (9, 25),
        Kind.SHIFT: (20, 50),
        Kind.ELSEWHERE: (1, 4),
    },
    Sensor.NDSM: {
        Kind.OFFSET: (3, 5, 80),
        Kind.TILT: (5, 20),
        Kind.TERRAIN: (3, 10),
        Kind.SCALE: (100, 10, 3.28, 0.1),
        Kind.NEGATIVE: (1,),
        Kind.BLUR: (25, 81),
        Kind.SHIFT: (20, 50),
        Kind.ELSEWHERE: (1, 4),
    },
}
"""What can be wrong with a raster from end to end, by strength."""
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


@dataclass(frozen=True, kw_only=True)
class SaidOfScene:
    """What is said of a scene before it is mapped."""

    scene: str
    sensor: Sensor | None
    """The spoiled one; None is none."""
    kind: Kind | None
    strength: float | None
    blamed: str
    """Sensors that something is said of."""
    fault: str
    """What it is called."""
    detail: str


@dataclass(frozen=True, kw_only=True)
class Spoiled:
    """Rasters in which something is done to every window."""

    rasters: Readable
    injections: Sequence[Injection]

    @property
    def grid(self) -> Grid:
        """Of the rasters."""
        return self.rasters.grid

    def read_into(
        self, window: Window, out: Mapping[Sensor, Observation]
    ) -> tuple[dict[Sensor, Observation], dict[Sensor, RasterOpenError]]:
        """Read, and spoil."""
        seen, errors = self.rasters.read_into(window, out)
        spoiled = Injector(self.injections).apply(0, dict(seen))
        return {sensor: each for sensor, each in spoiled.items() if isinstance(each, Observation)}, errors


def before_flight(scenes: Sequence[Path], bundle: Bundle, auditor: Auditor) -> Iterator[SaidOfScene]:
    """What is said of each scene with both rasters, as it is and spoiled in every way."""
    manifest, cases = bundle.manifest, list(lasting())
    opener = RasterOpener(specs={each: manifest.sensor(each) for each in Sensor}, tile_px=manifest.tile_px)
    with gdal_environment(), tqdm(total=len(scenes) * len(cases), unit="look", file=sys.stderr) as bar:
        for folder in scenes:
            with opener.open({each: folder / f"{each}.tif" for each in Sensor}) as rasters:
                grid = rasters.grid
                tiling = Tiling.of(manifest, halo_px=None, blend="none", gsd="auto")
                window_px = tiling.laid(grid.height, grid.width, grid.gsd_m)[0]
                for injections in cases:
                    advice = examine(
                        Spoiled(rasters=rasters, injections=injections),
                        manifest.health,
                        tile_px=manifest.tile_px,
                        window_px=window_px,
                        auditor=auditor,
                        tiles=SAMPLED_TILES,
                    )
                    what = injections[0] if injections else None
                    yield SaidOfScene(
                        scene=folder.name,
                        sensor=None if what is None else what.sensor,
                        kind=None if what is None else what.kind,
                        strength=None if what is None else what.strength,
                        blamed=" ".join(each.sensor for each in advice),
                        fault=" ".join(each.fault for each in advice),
                        detail=" | ".join(map(str, advice)),
                    )
                    bar.update()


def lasting() -> Iterator[tuple[Injection, ...]]:
    """Nothing, then one thing at a time."""
    yield ()
    for sensor, kinds in LASTING.items():
        for kind, strengths in kinds.items():
            for strength in strengths:
                yield (Injection(sensor=sensor, kind=kind, first=0, last=None, strength=strength),)


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
    found: dict[str, CleanFlight] = {}
    with _auditor(options.bundle) as (bundle, auditor):
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


@contextmanager
def _auditor(path: Path) -> Iterator[tuple[Bundle, Auditor]]:
    bundle = Bundle.load(path)
    with BackendOptions(hint="latency").open(bundle, scenarios=Scenario, wanted=(Output.CLASSES,)) as backend:
        auditor = auditor_of(backend, bundle.manifest)
        if auditor is None:
            raise UsageError(
                "--bundle must have its audits on, and classes of the name building and tree: pass another"
            )
        yield bundle, auditor


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print, write the CSV."""
    parser = parser_of("false_alarms", __doc__, result="false_alarms.csv")
    parser.add_argument("--tiles", type=int, default=12, metavar="N", help="of each flight (12)")
    parser.add_argument("--naip", type=Path, metavar="DIR", help="real images, <scene>/rgir.tif")
    parser.add_argument(
        "--before-flight", type=Path, action="append", metavar="DIR", help="with rgir.tif, ndsm.tif; repeatable"
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        if options.before_flight:
            options.out = options.out.with_name("before_flight.csv")
            with _auditor(options.bundle) as (bundle, auditor):
                rows = [asdict(each) for each in before_flight(options.before_flight, bundle, auditor)]
        else:
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
