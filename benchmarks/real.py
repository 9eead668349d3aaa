"""How well a model maps real images with labels: by place and scenario, with trees that people marked, and pictures.

    python -m benchmarks.real --data ../shared/data                                          the demo bundle
    python -m benchmarks.real --data ../shared/data --precisions fp32,int8
    python -m benchmarks.real --data ../shared/data --checkpoint runs/mixed/best.safetensors   in PyTorch, float32
    python -m benchmarks.real --data ../shared/data/naip --part validation                   the places to tune with
    python -m benchmarks.real --data ../shared/data --gsd off                                each raster as it is

``--data`` holds scenes (``<scene>/rgir.tif``, with ``ndsm.tif`` and ``labels.tif`` where there are any), folders of
such scenes with a ``dataset.toml`` (:mod:`train.data.folder`), or both. Of a folder with a ``dataset.toml`` only
``--part`` counts (test by default), so that nothing is scored that may be trained on; of others every labelled scene.
Rough labels from rules, ``labels_lidar_derived.tif``, are read where there are no others, and their rows say so.

Maps are those that a user gets: ``engine.load().segment()`` reads the rasters, resamples them where the bundle maps
best at another ground sampling distance (``--gsd``), and no sensor is doubted. A checkpoint does the same in PyTorch.

A place is what stands before the year in ``<city>_<year>_<n>``, else the scene. Scores are of one confusion matrix of
all labelled pixels of a place, in percent: mF1 and OA over pixels of the counted classes, as ISPRS scores, and
``*_with_clutter`` over all. ``tree_points_hit`` is the share of the points in ``trees.csv`` (a crown each, by people)
on a pixel mapped as tree; ``ground_called_tree`` the share of labelled pixels without trees that are mapped as tree:
read both together. ``ece`` is the expected calibration error of the confidence: the mean distance between confidence
and accuracy over 15 bins. ``ece_before`` is that without the temperature of the scenario, which is taken out of the
probabilities again (of a bundle after they were cross-faded and rounded to 1/254).

Writes the rows as CSV and a picture with image, labels and maps of a tile of each place.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tqdm import tqdm

from benchmarks.accuracy import NEEDS
from benchmarks.agreement import BACKENDS, precisions_of
from benchmarks.command import exit_code_of, listed, parser_of
from benchmarks.conditions import conditions, write_csv
from benchmarks.tables import TABLES
from engine.backends.options import BackendName
from engine.contract.bundle import Bundle
from engine.contract.errors import InputError, UsageError
from engine.contract.sensors import Scenario, Sensor, scenarios_within
from engine.model import Model, load
from engine.options import gsd_of
from engine.resolution import Gsd

if TYPE_CHECKING:
    from train.data.folder import FolderSource
    from train.data.scenes import Scene
    from train.metrics import Confusion

PLACE = re.compile(r"(?P<city>.+)_(19|20)\d\d_\d+")
ROUGH = "labels_lidar_derived.tif"
ALL = "all"
BINS = 15
PICTURE_PX = 256


@dataclass(frozen=True, kw_only=True)
class RealScene:
    """A labelled real scene."""

    data: str
    """Name of the set."""
    scene: Scene
    source: FolderSource
    rough: bool
    """Whether the labels follow rules."""
    trees: NDArray[np.int64]
    """int64 [n, 2]: row and column of each marked crown."""

    @property
    def place(self) -> str:
        """The city, or the scene's name."""
        found = PLACE.fullmatch(self.scene.name)
        return found["city"] if found else self.scene.name


Mapped = tuple[NDArray[np.uint8], NDArray[np.floating], NDArray[np.floating]]
"""Classes uint8 [H, W], confidence in 0..1 float [H, W], and what it was before the temperature."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """Something that maps scenes: a backend with a precision, or PyTorch."""

    name: str
    precision: str
    arithmetic: str
    mapped: Callable[[RealScene, Scenario], Mapped]


@dataclass(kw_only=True)
class PlaceTally:
    """What one way has scored in one place and scenario."""

    confusion: Confusion
    trees: int = 0
    hit: int = 0
    bare: int = 0
    called_tree: int = 0
    bins: NDArray[np.float64] = field(default_factory=lambda: np.zeros((2, 3, BINS)))
    """Pixels, sum of confidence and of hits, by confidence; then the same by what it was before the temperature."""

    def add(self, truth: NDArray[np.uint8], classes: NDArray[np.uint8], *confidences: NDArray[np.floating]) -> None:
        """Count the labelled pixels of a window, all of one shape.

        Args:
            truth, classes: uint8 [H, W].
            confidences: 0..1 [H, W], after and before the temperature.
        """
        self.confusion.add(truth, classes)
        known, tree = truth < len(self.confusion.matrix), self.confusion.labels.names.index("tree")
        without = known & (truth != tree)
        self.bare += int(without.sum())
        self.called_tree += int((classes[without] == tree).sum())
        right = classes[known] == truth[known]
        for bins, confidence in zip(self.bins, confidences, strict=True):
            at = np.minimum((confidence[known] * BINS).astype(int), BINS - 1)
            for row, weights in enumerate((np.ones(at.size), confidence[known], right)):
                bins[row] += np.bincount(at, weights, BINS)

    def merge(self, other: PlaceTally) -> None:
        """Take in what another has counted."""
        self.confusion.matrix += other.confusion.matrix
        self.trees, self.hit = self.trees + other.trees, self.hit + other.hit
        self.bare, self.called_tree = self.bare + other.bare, self.called_tree + other.called_tree
        self.bins = self.bins + other.bins

    def row(self) -> dict[str, object]:
        """Columns of the CSV, in percent."""
        from train.metrics import Confusion

        every = self.confusion.scores()
        counted = Confusion(self.confusion.labels)
        rows = list(self.confusion.labels.counted)
        counted.matrix[rows] = self.confusion.matrix[rows]
        scores = counted.scores()
        count, confidence, right = self.bins.swapaxes(0, 1)
        after, before = np.abs(confidence - right).sum(axis=1) / np.maximum(count.sum(axis=1), 1)
        return {
            "mf1_percent": round(100 * scores.mean_f1, 2),
            "oa_percent": round(100 * scores.overall_accuracy, 2),
            **{f"f1 {name}": round(100 * value, 2) for name, value in scores.class_f1.items()},
            "mf1_with_clutter_percent": round(100 * every.mean_f1, 2),
            "oa_with_clutter_percent": round(100 * every.overall_accuracy, 2),
            "tree_points": self.trees,
            "tree_points_hit_percent": round(100 * self.hit / self.trees, 2) if self.trees else "",
            "ground_called_tree_percent": round(100 * self.called_tree / self.bare, 2) if self.bare else "",
            "ece_percent": round(100 * float(after), 2),
            "ece_before_percent": round(100 * float(before), 2),
            "pixels": self.confusion.pixels,
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Score, print, write the CSV and the picture."""
    options = build_parser().parse_args(arguments)

    def work() -> None:
        rows = score(options)
        print(TABLES["real"].markdown(rows))
        write_csv(options.out, rows)
        print(f"written to {options.out} and {options.out.with_suffix('.png')}")

    return exit_code_of(work)


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = parser_of("real", __doc__, result="real.csv")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="scenes, or folders of scenes")
    parser.add_argument("--part", choices=("train", "validation", "test"), default="test", help="which scenes (test)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="score a checkpoint in PyTorch instead")
    parser.add_argument(
        "--gsd", type=gsd_of, default="auto", metavar="auto|M|off", help="resolution to map at, as engine.run's (auto)"
    )
    parser.add_argument("--backends", default="openvino", metavar="LIST", help=f"of {', '.join(BACKENDS)} (openvino)")
    parser.add_argument("--precisions", metavar="LIST", help="of fp32, fp16, int8, auto (default: all of the bundle)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: all cores)")
    return parser


def score(options: argparse.Namespace) -> list[dict[str, object]]:
    """Do what the command line asks; the rows of the CSV.

    Raises:
        EngineError: it cannot be done.
    """
    bundle = Bundle.load(options.bundle)
    with tempfile.TemporaryDirectory(prefix="real-") as cache, ExitStack() as stack:
        scenes = scenes_of(options.data, options.part, Path(cache))
        ways = ways_of(options, bundle, stack)
        tallies, pictures = run(bundle, ways, scenes)
    draw(pictures, options.out.with_suffix(".png"))
    about = {
        "model": options.checkpoint.stem if options.checkpoint else bundle.manifest.name,
        "bundle_sha256": "" if options.checkpoint else bundle.digest[:12],
        **conditions(),
    }
    rough = {found.data for found in scenes if found.rough}
    return [
        {
            "data": data,
            "labels": "rules" if data in rough else "people",
            "part": options.part,
            "place": place,
            "scenario": scenario.value,
            "backend": way.name,
            "precision": way.precision,
            "arithmetic": way.arithmetic,
            "gsd": options.gsd,
            **tally.row(),
            **about,
        }
        for (data, place, scenario, number), tally in tallies.items()
        for way in [ways[number]]
    ]


def ways_of(options: argparse.Namespace, bundle: Bundle, stack: ExitStack) -> list[Way]:
    """What maps the tiles: the checkpoint, or each backend with each precision.

    Raises:
        EngineError: it cannot be opened.
    """
    if options.checkpoint is not None:
        return [_pytorch(options)]
    names: list[BackendName] = listed(options.backends, BACKENDS, "--backends")
    ways = []
    for name in names:
        for precision in precisions_of(bundle, options.precisions):
            model = stack.enter_context(load(bundle.root, backend=name, precision=precision, threads=options.threads))
            info, mapped = model.backend, partial(_segmented, model, options.gsd)
            ways.append(Way(name=info.name, precision=info.graph, arithmetic=info.precision, mapped=mapped))
    return ways


def _segmented(model: Model, gsd: Gsd, found: RealScene, scenario: Scenario) -> Mapped:
    files, source = found.source.files(found.scene.name), found.source
    result = model.segment(
        rgir=files["rgir"] if Sensor.RGIR in scenario.sensors else None,
        ndsm=files["ndsm"] if Sensor.NDSM in scenario.sensors else None,
        rgir_bands=None if source.rgir_bands == (1, 2, 3) or Sensor.RGIR not in scenario.sensors else source.rgir_bands,
        ndsm_scale_m=None if source.ndsm_scale_m == 1 or Sensor.NDSM not in scenario.sensors else source.ndsm_scale_m,
        watch=False,
        gsd=gsd,
        probabilities=True,
    )
    assert result.probabilities is not None
    fitted = {each.scenario: each.temperature for each in model.bundle.manifest.training.confidence}
    before = np.where(result.probabilities == 255, 0, result.probabilities) ** np.float32(fitted.get(scenario, 1))
    return result.classes, result.confidence / np.float32(255), before.max(axis=0) / before.sum(axis=0).clip(min=1)


def _pytorch(options: argparse.Namespace) -> Way:
    """A checkpoint, at the resolutions that it was trained for."""
    try:
        import torch

        from train import checkpoint
        from train.predict import at_gsd, predictor, tiles

        model, info = checkpoint.load(options.checkpoint)
    except ImportError as error:
        raise UsageError(NEEDS.format(error=error)) from error
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(f"--checkpoint takes a file of `python -m train.run`: {error}") from error
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.gsd not in ("auto", "off"):
        within: tuple[float, float] | None = (options.gsd, options.gsd)
    else:
        within = info.gsd_m if options.gsd == "auto" else None

    @torch.inference_mode()
    def mapped(found: RealScene, scenario: Scenario) -> Mapped:
        scene, temperature = found.scene, info.temperatures.get(scenario, 1.0)
        classes = np.zeros(scene.size_px, np.uint8)
        confidence, before = (np.zeros(scene.size_px, np.float32) for _ in range(2))
        predict = at_gsd(predictor(model, scenario), scene.gsd_m, within)
        for tile in tiles(scene):
            logits, _ = predict(tile.rgir[None].float(), tile.ndsm[None])
            best = (logits[0] / temperature).softmax(dim=0).max(dim=0)
            rows, cols = tile.core
            row, col = tile.row + rows.start, tile.col + cols.start
            place = np.s_[row : row + rows.stop - rows.start, col : col + cols.stop - cols.start]
            raw = logits[0].softmax(dim=0).amax(dim=0)
            classes[place], confidence[place], before[place] = (
                x.numpy()[tile.core] for x in (best.indices, best.values, raw)
            )
        return classes, confidence, before

    return Way(name="PyTorch", precision="fp32", arithmetic="f32", mapped=mapped)


def scenes_of(root: Path, part: str, cache: Path) -> list[RealScene]:
    """Every labelled scene that may be scored.

    Args:
        root: of ``--data``.
        part: of folders with a ``dataset.toml``.
        cache: where scenes are prepared.

    Raises:
        InputError: there is none, or one cannot be used.
        UsageError: the data sources are not installed.
    """
    try:
        from train.data.folder import DESCRIPTION
        from train.data.rasters import DataError
    except ImportError as error:
        raise UsageError(NEEDS.format(error=error)) from error
    if not root.is_dir():
        raise InputError(f"--data takes a folder of scenes, received {root}, which is none")
    found: list[RealScene] = []
    try:
        if (root / DESCRIPTION).exists():
            found += _described(root, part, cache)
        else:
            found += _loose(root, cache)
            for folder in sorted(path.parent for path in root.glob(f"*/{DESCRIPTION}")):
                found += _described(folder, part, cache)
    except DataError as error:
        raise InputError(str(error)) from error
    if not found:
        raise InputError(f"{root} holds no labelled scene of the {part} part: put labels.tif beside rgir.tif")
    return found


def _described(root: Path, part: Any, cache: Path) -> Iterator[RealScene]:
    from train.data.folder import FolderSource

    source = FolderSource(root=root, cache=cache)
    for scene in source.split(part):
        if scene.labelled:
            yield RealScene(data=root.name, scene=scene, source=source, rough=False, trees=_trees(root / scene.name))


def _loose(root: Path, cache: Path) -> Iterator[RealScene]:
    from train.data.folder import FolderSource
    from train.data.rasters import Raster
    from train.data.scenes import write_scene

    names = sorted(path.parent.name for path in root.glob("*/rgir.tif"))
    if not names:
        return
    source = FolderSource(root=root, cache=cache)
    for name in names:
        arrays = source.read_scene(name)
        rough = "labels" not in arrays and (root / name / ROUGH).exists()
        if rough:
            with Raster(root / name / "rgir.tif") as grid, Raster(root / name / ROUGH) as raster:
                arrays["labels"] = raster.read((1,), like=grid, nearest=True)[0][0]
        if "labels" in arrays:
            with Raster(root / name / "rgir.tif") as grid:
                about = {"gsd_m": grid.gsd_m}
            scene = write_scene(cache / "loose" / name, arrays, about)
            yield RealScene(data=root.name, scene=scene, source=source, rough=rough, trees=_trees(root / name))


def _trees(folder: Path) -> NDArray[np.int64]:
    path = folder / "trees.csv"
    if not path.exists():
        return np.zeros((0, 2), np.int64)
    with path.open(newline="") as file:
        points = [(int(float(row["y"])), int(float(row["x"]))) for row in csv.DictReader(file)]
    return np.array(points, np.int64).reshape(-1, 2)


Key = tuple[str, str, Scenario, int]
"""Set, place, scenario, number of the way."""


def run(
    bundle: Bundle, ways: Sequence[Way], scenes: Sequence[RealScene]
) -> tuple[dict[Key, PlaceTally], dict[str, list[NDArray[np.uint8]]]]:
    """Map every scene in every scenario that it has the sensors for.

    Returns:
        Tallies, each set's sum after its places, and panels by place: image, labels, a map for each scenario by the
        first way, each uint8 [256, 256, 3].
    """
    from train.data.labels import ISPRS_LABELS
    from train.metrics import Confusion

    if bundle.manifest.classes != ISPRS_LABELS.classes:
        raise InputError("real scenes are labelled with the six ISPRS classes; the bundle tells others apart")
    tallies: dict[Key, PlaceTally] = {}
    pictures: dict[str, list[NDArray[np.uint8]]] = {}
    palette = ISPRS_LABELS.palette()
    for found in tqdm(scenes, desc="mapping", unit="scene"):
        scene = found.scene
        panels = [_image(scene), palette[np.asarray(scene.labels())]]
        inside = found.trees[(found.trees < scene.size_px).all(axis=1)]
        for scenario in Scenario:
            if scenario not in scenarios_within(scene.sensors):
                continue
            for number, way in enumerate(ways):
                key = (found.data, found.place, scenario, number)
                tally = tallies.setdefault(key, PlaceTally(confusion=Confusion(ISPRS_LABELS)))
                mapped, *confidences = way.mapped(found, scenario)
                tally.add(np.asarray(scene.labels()), mapped, *confidences)
                tally.trees += len(inside)
                tally.hit += int((mapped[inside[:, 0], inside[:, 1]] == ISPRS_LABELS.names.index("tree")).sum())
                if number == 0:
                    panels.append(palette[mapped])
        pictures.setdefault(found.place, [_fitted(panel) for panel in panels])
    for (data, _, scenario, number), tally in list(tallies.items()):
        total = tallies.setdefault((data, ALL, scenario, number), PlaceTally(confusion=Confusion(ISPRS_LABELS)))
        total.merge(tally)
    return tallies, pictures


def _image(scene: Scene) -> NDArray[np.uint8]:
    """What the camera saw, uint8 [H, W, 3]; black without one."""
    if Sensor.RGIR not in scene.sensors:
        return np.zeros((*scene.size_px, 3), np.uint8)
    return np.moveaxis(np.asarray(scene.bands(Sensor.RGIR)), 0, 2)


def _fitted(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """At most 256 px a side from the top left corner, black beyond."""
    square = np.zeros((PICTURE_PX, PICTURE_PX, 3), np.uint8)
    part = picture[:PICTURE_PX, :PICTURE_PX]
    square[: part.shape[0], : part.shape[1]] = part
    return square


def draw(pictures: Mapping[str, Sequence[NDArray[np.uint8]]], path: Path) -> None:
    """A row for each place: image, labels, then full, RGIR only and nDSM only, those that there are."""
    gap, head = 4, 14
    columns = max(map(len, pictures.values()))
    step = PICTURE_PX + gap
    sheet = Image.new("RGB", (columns * step - gap, len(pictures) * (step + head)), (24, 24, 24))
    pen = ImageDraw.Draw(sheet)
    for row, (place, panels) in enumerate(pictures.items()):
        top = row * (step + head)
        maps = ["RGIR only"] if len(panels) == 3 else ["both sensors", "RGIR only", "nDSM only"]
        for column, (panel, title) in enumerate(zip(panels, [place, "labels", *maps], strict=False)):
            pen.text((column * step + 2, top), title, (230, 230, 230))
            sheet.paste(Image.fromarray(panel), (column * step, top + head))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


if __name__ == "__main__":
    sys.exit(main())
