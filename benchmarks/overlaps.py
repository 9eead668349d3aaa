"""How often two tiles of the same ground disagree: each tile is mapped by itself, with other ground around it.

    python -m benchmarks.overlaps                                      procedural scenes, the demo bundle
    python -m benchmarks.overlaps --data ../shared/data/naip           and real images (dataset.toml, its test part)

Two tiles lie an eighth of their side apart, down and across. Compared are the classes of the pixels that either of them
could have to map, those at least the bundle's halo from every edge of both. Procedural scenes have a
resolution in the middle of the bundle's; real images are magnified until both tiles fit.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from benchmarks.agreement import WANTED
from benchmarks.command import at_least_one, exit_code_of, parser_of
from benchmarks.conditions import conditions, write_csv
from benchmarks.real import scenes_of
from benchmarks.tables import TABLES
from benchmarks.tiles import Tile
from engine.backends.base import Output
from engine.backends.options import BackendOptions
from engine.contract.bundle import Bundle, Manifest
from engine.contract.nodata import fill_nodata
from engine.contract.sensors import Scenario, Sensor

Classify = Callable[[Scenario, Tile], NDArray[np.uint8]]
"""The classes of a tile, [T, T]."""

FIRST_SEED = 5_000_100


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write the CSV."""
    parser = parser_of("overlaps", __doc__, result="overlaps.csv")
    parser.add_argument("--data", type=Path, metavar="DIR", help="real scenes as well, those with labels")
    parser.add_argument("--scenes", type=int, default=12, metavar="N", help="of each kind, at most (12)")
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: compare(options))


def compare(options: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        EngineError: the bundle or the data cannot be used.
    """
    at_least_one(options, "scenes")
    bundle = Bundle.load(options.bundle)
    differ: dict[tuple[str, Scenario], list[float]] = {}
    with BackendOptions(name="openvino", precision="fp32").open(bundle, scenarios=Scenario, wanted=WANTED) as backend:

        def classify(scenario: Scenario, tile: Tile) -> NDArray[np.uint8]:
            return backend.infer(scenario, tile)[Output.CLASSES]

        for kind, scene in scenes(options, bundle.manifest):
            for scenario in Scenario:
                if scenario.sensors <= scene.keys():
                    differ.setdefault((kind, scenario), []).append(
                        disagreement(classify, bundle.manifest, scenario, scene)
                    )
        about = {"backend": backend.info.library, "arithmetic": backend.info.precision, **conditions()}
    rows = [
        {"scenes": kind, "scenario": scenario, "count": len(found), "differ_percent": round(100 * np.mean(found), 2)}
        for (kind, scenario), found in differ.items()
    ]
    write_csv(options.out, [{**row, **about} for row in rows])
    print(TABLES["overlaps"].markdown(rows))
    print(f"written to {options.out}")


def disagreement(classify: Classify, manifest: Manifest, scenario: Scenario, scene: Tile) -> float:
    """Share of the pixels inside both tiles whose class differs."""
    side, halo = manifest.tile_px, manifest.halo_px
    apart = side // 8
    maps = [
        classify(scenario, {sensor: cut(scene[sensor], at, side) for sensor in scenario.sensors}) for at in (0, apart)
    ]
    first, second = maps[0][apart + halo : side - halo], maps[1][halo : side - apart - halo]
    return float((first[:, apart + halo : side - halo] != second[:, halo : side - apart - halo]).mean())


def cut(bands: NDArray[np.generic], at: int, side: int) -> NDArray[np.generic]:
    """The square tile from (at, at) on."""
    return np.ascontiguousarray(bands[:, at : at + side, at : at + side])


def scenes(options: argparse.Namespace, manifest: Manifest) -> Iterator[tuple[str, Tile]]:
    """Kind and bands of each scene: as large as both tiles, without gaps."""
    from train.data.synthetic import generate

    side = manifest.tile_px + manifest.tile_px // 8
    finest, coarsest = manifest.best_gsd_m or manifest.gsd_m
    with tempfile.TemporaryDirectory(prefix="overlaps-") as cache:
        found = [] if options.data is None else scenes_of(options.data, "test", Path(cache))[: options.scenes]
        for seed in tqdm(range(FIRST_SEED, FIRST_SEED + options.scenes), desc="procedural", unit="scene"):
            made = generate(seed=seed, size_px=side, gsd_m=(finest * coarsest) ** 0.5)
            heights = fill_nodata(made.ndsm, np.isfinite(made.ndsm[0]))
            yield "procedural", {Sensor.RGIR: made.rgir, Sensor.NDSM: heights}
        for real in tqdm(found, desc="real", unit="scene"):
            yield options.data.name, {Sensor.RGIR: magnified(np.asarray(real.scene.bands(Sensor.RGIR)), side)}


def magnified(rgir: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """uint8 [3, side, side], bilinear."""
    image = Image.fromarray(np.moveaxis(rgir, 0, 2)).resize((side, side), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.moveaxis(np.asarray(image), 2, 0))


if __name__ == "__main__":
    sys.exit(main())
