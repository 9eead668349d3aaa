"""Score a checkpoint on scenes it has never seen, with both sensors and with either.

    python -m train.evaluate runs/demo/best.safetensors --synthetic 100
    python -m train.evaluate runs/v/best.safetensors --data vaihingen:/data/Vaihingen
    python -m train.evaluate runs/mine/best.safetensors --data folder:/data/scenes --part validation

Each scenario is scored by the path that is exported for it, whole scenes by sliding window, over one confusion matrix
of all pixels. Both missing scenarios are scored again with the full path fed a constant in place of the missing sensor
(zeros, and the training mean): what a runtime without generators would do. Beside it: scores without the pixels near
class boundaries where the data has such labels, the mIoU averaged over tiles, and how well the missing sensor is made
up (nDSM: mean absolute error in metres; RGIR: L1 in grey levels, SSIM).

Writes metrics.json, metrics.csv, table.md, charts.png and panel.png.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from tqdm import tqdm

from engine.contract.atomic import replacing
from engine.contract.command import command_parser
from engine.contract.sensors import Scenario, Sensor, scenarios_within
from train import checkpoint
from train.checkpoint import BandStatistics
from train.data.labels import ISPRS_LABELS, LabelSet
from train.data.procedural import ProceduralSource
from train.data.rasters import DataError
from train.data.scenes import Scene
from train.data.sources import GRAMMAR, Source, open_source
from train.metrics import Confusion
from train.predict import EvaluationTile, Predict, at_gsd, imputer, predictor, tiles
from train.results import Input, ScenarioResult, Synthesis
from train.system import System


class _Tally:
    """What one way to map a scenario has scored so far."""

    def __init__(self, labels: LabelSet) -> None:
        self.labels = labels
        self.all, self.eroded = Confusion(labels), Confusion(labels)
        self.tile_ious: list[float] = []
        self.errors: list[tuple[float, int]] = []
        self.similarities: list[tuple[float, int]] = []

    def add(self, tile: EvaluationTile, classes: np.ndarray) -> None:
        truth = tile.labels[tile.core]
        found = classes[tile.core]
        self.all.add(truth, found)
        if tile.eroded is not None:
            self.eroded.add(tile.eroded[tile.core], found)
        mine = Confusion(self.labels)
        mine.add(truth, found)
        if mine.pixels:
            self.tile_ious.append(mine.scores().mean_iou)

    def add_synthesis(self, tile: EvaluationTile, sensor: Sensor, made: np.ndarray) -> None:
        measured = tile.valid[sensor].copy()
        outside = np.ones_like(measured)
        outside[tile.core] = False
        measured &= ~outside
        if not measured.any():
            return
        real = {Sensor.RGIR: tile.rgir, Sensor.NDSM: tile.ndsm}[sensor].numpy().astype(np.float32)
        pixels = int(measured.sum())
        self.errors.append((float(np.abs(real - made)[:, measured].mean()), pixels))
        if sensor is Sensor.RGIR:
            _, similarity = structural_similarity(real, made, channel_axis=0, data_range=255.0, full=True)
            self.similarities.append((float(similarity[:, measured].mean()), pixels))

    def result(self, scenario: Scenario, how: Input) -> ScenarioResult:
        missing = next(iter(set(Sensor) - scenario.sensors), None)
        synthesis = None
        if self.errors and missing is not None:
            synthesis = Synthesis(
                sensor=missing,
                mean_absolute_error=_weighted(self.errors),
                ssim=_weighted(self.similarities) if self.similarities else None,
            )
        return ScenarioResult(
            scenario=scenario,
            input=how,
            scores=self.all.scores(),
            eroded=self.eroded.scores() if self.eroded.pixels else None,
            tile_mean_iou=float(np.mean(self.tile_ious)) if self.tile_ious else None,
            synthesis=synthesis,
        )


def _weighted(values: Sequence[tuple[float, int]]) -> float:
    return sum(value * weight for value, weight in values) / sum(weight for _, weight in values)


def usable(scene: Scene) -> bool:
    """Whether a scene can be scored in every scenario: it has labels and both sensors."""
    return scene.labelled and scene.sensors == frozenset(Sensor)


def scenarios_of(scenes: Sequence[Scene]) -> tuple[Scenario, ...]:
    """The scenarios that at least one labelled scene has the sensors for."""
    within = [scenarios_within(scene.sensors) for scene in scenes if scene.labelled]
    return tuple(scenario for scenario in Scenario if any(scenario in found for found in within))


@torch.no_grad()
def score(
    model: System,
    ways: Mapping[tuple[Scenario, Input], Predict],
    scenes: Sequence[Scene],
    labels: LabelSet,
    *,
    gsd_m: tuple[float, float] | None = None,
    synthesis: bool = True,
) -> list[ScenarioResult]:
    """Every way over all scenes that have labels and the sensors which its scenario reads.

    Args:
        model: in eval mode; says where tiles are computed and how bands are normalised.
        ways: by scenario and what replaces the missing sensor.
        scenes: to score on.
        labels: the classes.
        gsd_m: range of ground sampling distances that the model is for; scenes outside it are resampled, and their
            maps come back on their own grid.
        synthesis: also measure what the generators make.

    Raises:
        DataError: no scene can be scored in a scenario.
    """
    possible = set(scenarios_of(scenes))
    for scenario, _ in ways:
        if scenario not in possible:
            needed = " and ".join(sensor.value for sensor in Sensor if sensor in scenario.sensors)
            raise DataError(f"scoring {scenario} needs labelled scenes with {needed}, received none: check the split")
    device = next(model.parameters()).device
    tallies = {way: _Tally(labels) for way in ways}
    for scene in tqdm([scene for scene in scenes if scene.labelled], desc="scoring", unit="scene", leave=False):
        within = scenarios_within(scene.sensors)
        for tile in tiles(scene):
            rgir, ndsm = tile.rgir[None].to(device), tile.ndsm[None].to(device)
            for (scenario, how), predict in ways.items():
                if scenario not in within:
                    continue
                logits, made = at_gsd(predict, scene.gsd_m, gsd_m)(rgir, ndsm)
                tally = tallies[scenario, how]
                tally.add(tile, logits[0].argmax(dim=0).to(torch.uint8).cpu().numpy())
                if synthesis and made is not None:
                    sensor = next(iter(set(Sensor) - scenario.sensors))
                    raw = model.normalisation(sensor).inverse(made.float())
                    tally.add_synthesis(tile, sensor, raw[0].cpu().numpy())
    return [tallies[way].result(*way) for way in ways]


def evaluate(
    model: System,
    scenes: Sequence[Scene],
    statistics: Mapping[str, tuple[BandStatistics, ...]],
    labels: LabelSet = ISPRS_LABELS,
    *,
    gsd_m: tuple[float, float] | None = None,
) -> list[ScenarioResult]:
    """All scenarios by their own path, then both imputation baselines of the missing ones.

    Scenes of one sensor are scored in its scenario alone, and there is no baseline to beat.

    Raises:
        DataError: no scene has labels.
    """
    possible = scenarios_of(scenes)
    if not possible:
        raise DataError("scoring needs scenes with labels, received none: check the data's split")
    device = next(model.parameters()).device
    means = {sensor: torch.tensor([band.mean for band in statistics[sensor]], device=device) for sensor in Sensor}
    zeros: dict[Sensor, Tensor] = {sensor: torch.zeros_like(mean) for sensor, mean in means.items()}
    ways: dict[tuple[Scenario, Input], Predict] = {
        (scenario, "generator"): predictor(model, scenario) for scenario in possible
    }
    for scenario in (Scenario.MISSING_NDSM, Scenario.MISSING_RGIR) if Scenario.FULL in possible else ():
        ways[scenario, "zeros"] = imputer(model, scenario, zeros)
        ways[scenario, "mean"] = imputer(model, scenario, means)
    return score(model, ways, scenes, labels, gsd_m=gsd_m)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = command_parser("train.evaluate", __doc__)
    parser.add_argument("checkpoint", type=checkpoint.named, help="best.safetensors of a run, or demo")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("--data", metavar="SOURCE", help=GRAMMAR)
    data.add_argument("--synthetic", type=int, default=50, metavar="N", help="number of procedural scenes (50)")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="folder of further labels, <scene>.png, for folder:")
    parser.add_argument("--part", choices=("validation", "test"), default="test", help="which scenes (test)")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where scenes are kept (runs/cache)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go (beside the checkpoint)")
    return parser.parse_args(argv)


def source_of(options: argparse.Namespace) -> Source:
    """The scenes to score on.

    Raises:
        DataError: no such source.
    """
    if options.data is not None:
        return open_source(options.data, options.cache, options.labels)
    if options.synthetic < 1:
        raise DataError(f"--synthetic needs at least one scene, received {options.synthetic}")
    return ProceduralSource(
        cache=options.cache, count=1, validation_count=options.synthetic, test_count=options.synthetic
    )


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    from train import report  # matplotlib is slow to import, and --help needs none of it

    options = parse(argv)
    try:
        model, info = checkpoint.load(options.checkpoint)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        source = source_of(options)
        if source.labels != info.labels:
            raise DataError(
                f"{options.checkpoint} tells {', '.join(info.labels.names)} apart, {source.name} has "
                f"{', '.join(source.labels.names)}: score it on data with its own classes"
            )
        scenes = source.split(options.part)
        results = evaluate(model, scenes, info.statistics, info.labels, gsd_m=info.gsd_m)
        out = options.out or options.checkpoint.parent
        summary = {
            "checkpoint": options.checkpoint.name,
            "step": info.step,
            "held_out": source.describe(options.part),
            "results": results,
        }
        with replacing(out / "metrics.json") as temporary:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n")
        report.write(out, results, info, source=source.name, model=model, scene=next(filter(usable, scenes), None))
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    print(report.text_table(results, info.labels))
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
