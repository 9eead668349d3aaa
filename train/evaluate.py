"""Score a checkpoint on held-out scenes: ``python -m train.evaluate CHECKPOINT --synthetic 50``.

Each scenario is scored by the path that is exported for it. Both missing scenarios are scored again with the
full path fed a constant in place of the missing sensor (zeros, and the training mean): what a runtime without
generators would do.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from engine.contract.sensors import Scenario, Sensor
from train import checkpoint
from train.checkpoint import BandStatistics
from train.config import CLASS_NAMES
from train.data.dataset import SceneCache, WholeSceneDataset
from train.metrics import Confusion, Scores
from train.model import GEMMNet

EVALUATION_SEED = 2_000_000
Input = Literal["generator", "zeros", "mean"]
Predict = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Result:
    """Scores of one way to map a scenario."""

    scenario: Scenario
    input: Input
    scores: Scores


def predictor(model: GEMMNet, scenario: Scenario) -> Predict:
    """(rgir, ndsm) -> logits by the scenario's own path; the missing sensor is not touched."""
    match scenario:
        case Scenario.FULL:
            return model.forward_full
        case Scenario.MISSING_NDSM:
            return lambda rgir, ndsm: model.forward_missing_ndsm(rgir)[0]
        case Scenario.MISSING_RGIR:
            return lambda rgir, ndsm: model.forward_missing_rgir(ndsm)[0]


def imputer(model: GEMMNet, scenario: Scenario, constant: Mapping[Sensor, Tensor]) -> Predict:
    """(rgir, ndsm) -> logits of the full path, the missing sensor replaced with a constant per band.

    Args:
        model: in eval mode.
        scenario: one with a missing sensor.
        constant: raw value per band, float [B], by sensor.
    """

    def predict(rgir: Tensor, ndsm: Tensor) -> Tensor:
        fed = {Sensor.RGIR: rgir, Sensor.NDSM: ndsm}
        for sensor in set(Sensor) - scenario.sensors:
            fed[sensor] = constant[sensor].view(1, -1, 1, 1).expand(fed[sensor].shape)
        return model.forward_full(fed[Sensor.RGIR], fed[Sensor.NDSM])

    return predict


@torch.no_grad()
def confusions(
    predictors: Mapping[str, Predict], scenes: Dataset[dict[str, Tensor]], *, device: torch.device, batch: int = 2
) -> dict[str, Confusion]:
    """One confusion matrix per predictor over all pixels of all scenes."""
    found = {name: Confusion() for name in predictors}
    for item in tqdm(DataLoader(scenes, batch_size=batch), desc="scoring", unit="batch", leave=False):
        rgir, ndsm = item["rgir"].to(device), item["ndsm"].to(device)
        for name, predict in predictors.items():
            classes = predict(rgir, ndsm).argmax(dim=1).to(torch.uint8)
            found[name].add(item["labels"].numpy(), classes.cpu().numpy())
    return found


def evaluate(
    model: GEMMNet,
    scenes: Dataset[dict[str, Tensor]],
    statistics: Mapping[str, tuple[BandStatistics, ...]],
    *,
    device: torch.device | None = None,
) -> list[Result]:
    """All scenarios by their own path, then both imputation baselines of the missing ones."""
    device = device or torch.device("cpu")
    means = {sensor: torch.tensor([band.mean for band in statistics[sensor]], device=device) for sensor in Sensor}
    zeros = {sensor: torch.zeros_like(mean) for sensor, mean in means.items()}
    ways: dict[tuple[Scenario, Input], Predict] = {
        (scenario, "generator"): predictor(model, scenario) for scenario in Scenario
    }
    for scenario in (Scenario.MISSING_NDSM, Scenario.MISSING_RGIR):
        ways[scenario, "zeros"] = imputer(model, scenario, zeros)
        ways[scenario, "mean"] = imputer(model, scenario, means)
    found = confusions({f"{s}/{i}": predict for (s, i), predict in ways.items()}, scenes, device=device)
    return [Result(scenario=scenario, input=how, scores=found[f"{scenario}/{how}"].scores()) for scenario, how in ways]


def table(results: list[Result]) -> str:
    """Results as aligned text, percent."""
    header = ("scenario", "missing sensor is", "mF1", "mIoU", "OA", *CLASS_NAMES)
    rows = [header]
    for result in results:
        s = result.scores
        numbers = (s.mean_f1, s.mean_iou, s.overall_accuracy, *(s.class_f1[name] for name in CLASS_NAMES))
        how = "-" if result.scenario is Scenario.FULL else {"generator": "synthesised"}.get(result.input, result.input)
        rows.append((result.scenario.value, how, *(f"{100 * value:.1f}" for value in numbers)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m train.evaluate", description=__doc__)
    parser.add_argument("checkpoint", type=Path, help="best.safetensors of a run")
    parser.add_argument("--synthetic", type=int, default=50, metavar="N", help="number of procedural scenes (50)")
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED, help="seed of the first scene; training uses 0..")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where scenes are kept (runs/cache)")
    parser.add_argument("--out", type=Path, help="where metrics.json goes (beside the checkpoint)")
    options = parser.parse_args(argv)

    try:
        model, info = checkpoint.load(options.checkpoint)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    seeds = range(options.seed, options.seed + options.synthetic)
    cache = SceneCache(root=options.cache)
    cache.fill(seeds)
    results = evaluate(model, WholeSceneDataset(cache, seeds), info.statistics)
    report = {
        "checkpoint": options.checkpoint.name,
        "step": info.step,
        "held_out": f"{options.synthetic} procedural scenes of 512 px, seeds {seeds.start}..{seeds.stop - 1}",
        "results": results,
    }
    path = options.out or options.checkpoint.with_name("metrics.json")
    with checkpoint.replacing(path) as temporary:
        temporary.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
    print(table(results))
    print(f"written to {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
