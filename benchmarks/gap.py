"""How far procedural scenes are from real images, by class and measure, and whether a classifier tells them apart.

    python -m benchmarks.gap --data ../shared/data/naip --labels train/data/labels/naip
    python -m benchmarks.gap --data ../shared/data/naip --labels train/data/labels/naip --real-colours --out after.csv

Both sides are compared at one ground sampling distance: procedural scenes are drawn at that of the real ones. Of each
class the pixels of all scenes are pooled and their measures compared: the three bands, NDVI, the local contrast (the
standard deviation in a window of 5 px) and the sharpness (gradient over local contrast). ``distance`` is the
Wasserstein-1 distance of the two distributions divided by the standard deviation of the real one: at 0 they are equal,
at 1 they lie one standard deviation apart. Quantiles of both stand beside it.

The row ``told apart`` is the accuracy of a linear classifier on held-out crops (each fold leaves places out): it sees
of each crop the mean, the spread, the contrast, the sharpness and the spectral slope of each band. 50 percent: it
cannot tell; 100: it always can. Only scenes of the training part are looked at.

Writes the rows as CSV, largest distance first, and a picture with real crops above procedural ones.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats
from tqdm import tqdm

from benchmarks.command import at_least_one, exit_code_of, parser_of
from benchmarks.conditions import conditions, write_csv
from benchmarks.tables import TABLES
from engine.contract.errors import InputError, UsageError
from engine.contract.sensors import Sensor

BANDS = ("NIR", "red", "green")
MEASURES = (*BANDS, "NDVI", *(f"contrast {band}" for band in BANDS), *(f"sharpness {band}" for band in BANDS))
QUANTILES = (5, 25, 50, 75, 95)
CROP_PX = 128
WINDOW_PX = 5
FEWEST_PIXELS = 2000
"""Of a class on both sides, below which nothing is said of it."""
FOLDS = 5
SHOWN = 6
SHOWN_PX = 160

Labelled = tuple[NDArray[np.uint8], NDArray[np.uint8]]
"""rgir uint8 [3, H, W] and labels uint8 [H, W]."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print, write the CSV and the picture."""
    options = build_parser().parse_args(arguments)

    def work() -> None:
        at_least_one(options, "scenes")
        rows = compare(options)
        print(TABLES["gap"].markdown(rows))
        write_csv(options.out, rows)
        print(f"written to {options.out} and {options.out.with_suffix('.png')}")

    return exit_code_of(work)


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = parser_of("gap", __doc__, result="gap.csv")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of real scenes (dataset.toml)")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="further labels, <scene>.png")
    parser.add_argument("--scenes", type=int, default=100, metavar="N", help="procedural scenes (100)")
    parser.add_argument("--real-colours", action="store_true", help="draw them in the colours of NAIP")
    return parser


def compare(options: argparse.Namespace) -> list[dict[str, object]]:
    """Do what the command line asks; the rows of the CSV.

    Raises:
        EngineError: the data cannot be used.
    """
    try:
        from train.data import synthetic
        from train.data.folder import FolderSource
        from train.data.labels import ISPRS_LABELS
        from train.data.rasters import DataError
    except ImportError as error:
        raise UsageError(f"comparing needs the data sources ({error}): pip install 'gemmnet-edge[train]'") from error
    real: dict[str, Labelled] = {}
    with tempfile.TemporaryDirectory(prefix="gap-") as cache:
        try:
            source = FolderSource(root=options.data.resolve(), cache=Path(cache), overlay=options.labels)
            gsd_m = source.gsd_m[0]
            for scene in source.split("train"):
                if scene.labelled:
                    real[scene.name] = (np.array(scene.bands(Sensor.RGIR)), np.array(scene.labels()))
        except DataError as error:
            raise InputError(str(error)) from error
    if len(real) < FOLDS:
        raise InputError(f"--data must hold at least {FOLDS} labelled scenes to train on, received {len(real)}")
    side = next(iter(real.values()))[1].shape[0]
    drawn: dict[str, Labelled] = {}
    for seed in tqdm(range(options.scenes), desc="drawing", unit="scene"):
        made = synthetic.generate(seed=seed, size_px=side, gsd_m=gsd_m, real_colours=options.real_colours)
        drawn[f"seed_{seed}"] = (made.rgir, made.labels)
    draw([rgir for rgir, _ in real.values()], [rgir for rgir, _ in drawn.values()], options.out.with_suffix(".png"))
    rows = distances(list(real.values()), list(drawn.values()), ISPRS_LABELS.names)
    share = told_apart({name: rgir for name, (rgir, _) in real.items()}, [rgir for rgir, _ in drawn.values()])
    told = {"class": "all", "measure": "told apart, %", "distance": round(100 * share, 1)}
    about = {"real_scenes": len(real), "procedural_scenes": len(drawn), "gsd_m": gsd_m, **conditions()}
    return [{**dict.fromkeys(rows[0], ""), **told, **about}, *({**row, **about} for row in rows)]


def measures(rgir: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What is compared, by pixel.

    Args:
        rgir: uint8 [3, H, W].

    Returns:
        float32 [10, H, W] in the order of :data:`MEASURES`: bands and contrast in digital numbers, NDVI in -1..1,
        sharpness without unit.
    """
    x = rgir.astype(np.float32)
    ndvi = (x[0] - x[1]) / np.maximum(x[0] + x[1], 1)
    mean = ndimage.uniform_filter(x, (1, WINDOW_PX, WINDOW_PX))
    square = ndimage.uniform_filter(x * x, (1, WINDOW_PX, WINDOW_PX))
    contrast = np.sqrt(np.maximum(square - mean * mean, 0))
    rise = np.hypot(np.gradient(x, axis=1), np.gradient(x, axis=2))
    return np.concatenate([x, ndvi[None], contrast, rise / (contrast + 1)]).astype(np.float32)


def distances(real: Sequence[Labelled], drawn: Sequence[Labelled], names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class and measure, largest distance first."""
    pools = [dict(enumerate(_pooled(side, len(names)))) for side in (real, drawn)]
    rows = []
    for index, name in enumerate(names):
        mine, other = (pool[index] for pool in pools)
        if min(mine.shape[1], other.shape[1]) < FEWEST_PIXELS:
            continue
        for number, measure in enumerate(MEASURES):
            a, b = mine[number], other[number]
            distance = stats.wasserstein_distance(a, b) / max(float(a.std()), 1e-6)
            row: dict[str, Any] = {"class": name, "measure": measure, "distance": round(float(distance), 3)}
            for side, values in (("real", a), ("procedural", b)):
                for quantile, value in zip(QUANTILES, np.percentile(values, QUANTILES), strict=True):
                    row[f"{side}_p{quantile}"] = round(float(value), 3)
            rows.append(row)
    if not rows:
        raise InputError(f"no class has {FEWEST_PIXELS} pixels on both sides: pass more labelled scenes or --scenes")
    return sorted(rows, key=lambda row: -row["distance"])


def _pooled(scenes: Sequence[Labelled], classes: int) -> list[NDArray[np.float32]]:
    """Measures float32 [10, n] of each class; every scene counts by its pixels, one in seven of which is looked at."""
    found: list[list[NDArray[np.float32]]] = [[] for _ in range(classes)]
    for rgir, labels in scenes:
        seen, flat = measures(rgir).reshape(len(MEASURES), -1)[:, ::7], labels.ravel()[::7]
        for index in range(classes):
            found[index].append(seen[:, flat == index])
    return [np.concatenate(parts, axis=1) for parts in found]


def told_apart(real: dict[str, NDArray[np.uint8]], drawn: Sequence[NDArray[np.uint8]]) -> float:
    """Share of held-out crops that a linear classifier calls real or procedural rightly, both kinds counted alike.

    Logistic regression on standardised features with a ridge of 1; a fold holds whole scenes, of one place together.
    """
    places = sorted({_place(name) for name in real})
    features, kinds, folds = [], [], []
    for name, rgir in real.items():
        for crop in _crops(rgir):
            features.append(_features(crop))
            kinds.append(1.0)
            folds.append(places.index(_place(name)) % FOLDS)
    for number, rgir in enumerate(drawn):
        for crop in _crops(rgir):
            features.append(_features(crop))
            kinds.append(0.0)
            folds.append(number % FOLDS)
    x, y, fold = np.array(features), np.array(kinds), np.array(folds)
    rates = []
    for held in range(FOLDS):
        train, test = fold != held, fold == held
        if len(set(y[test])) < 2:
            continue
        mean, spread = x[train].mean(axis=0), x[train].std(axis=0) + 1e-9
        weights = _logistic((x[train] - mean) / spread, y[train])
        found = _with_one((x[test] - mean) / spread) @ weights > 0
        rates.append(np.mean([np.mean(found[y[test] == kind] == kind) for kind in (0, 1)]))
    return float(np.mean(rates))


def _place(name: str) -> str:
    """``city_year_number`` without its year: the same ground in two years is one place."""
    city, _, rest = name.partition("_20")
    return f"{city}_{rest.partition('_')[2]}" if rest else name


def _crops(rgir: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    _, height, width = rgir.shape
    for top in range(0, height - CROP_PX + 1, CROP_PX):
        for left in range(0, width - CROP_PX + 1, CROP_PX):
            yield rgir[:, top : top + CROP_PX, left : left + CROP_PX]


def _features(crop: NDArray[np.uint8]) -> NDArray[np.float64]:
    seen = measures(crop).reshape(len(MEASURES), -1)
    return np.concatenate([seen.mean(axis=1), seen.std(axis=1), [_slope(band) for band in crop]])


def _slope(band: NDArray[np.uint8]) -> float:
    """Slope of log power over log frequency, rings from 2 cycles a crop up to half the Nyquist frequency and beyond."""
    x = band.astype(np.float64)
    power = np.abs(np.fft.fftshift(np.fft.fft2((x - x.mean()) * np.outer(*[np.hanning(len(x))] * 2)))) ** 2
    rows, cols = np.indices(power.shape) - len(x) // 2
    ring = np.hypot(rows, cols).astype(int)
    rings = np.arange(2, len(x) // 2)
    mean = ndimage.mean(power, ring, rings)
    return float(np.polyfit(np.log(rings), np.log(mean + 1e-9), 1)[0])


def _with_one(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def _logistic(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights float64 [F + 1] of a ridge logistic regression, by Newton's method; kinds weigh alike."""
    x = _with_one(x)
    weigh = np.where(y == 1, 0.5 / y.mean(), 0.5 / (1 - y.mean()))
    weights = np.zeros(x.shape[1])
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (weigh * (p - y)) + weights
        curve = (x * (weigh * p * (1 - p))[:, None]).T @ x + np.eye(len(weights))
        step = np.linalg.solve(curve, gradient)
        weights -= step
        if np.abs(step).max() < 1e-6:
            break
    return weights


def draw(real: Sequence[NDArray[np.uint8]], drawn: Sequence[NDArray[np.uint8]], path: Path) -> None:
    """Real scenes above procedural ones, evenly chosen, as PNG of false colours."""
    rows = []
    for side in (real, drawn):
        chosen = [side[i] for i in np.linspace(0, len(side) - 1, SHOWN).astype(int)]
        rows.append(np.concatenate([scene[:, :SHOWN_PX, :SHOWN_PX] for scene in chosen], axis=2))
    Image.fromarray(np.concatenate(rows, axis=1).transpose(1, 2, 0)).convert("P", palette=Image.Palette.ADAPTIVE).save(
        path
    )


if __name__ == "__main__":
    sys.exit(main())
