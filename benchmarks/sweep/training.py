"""Variants trained on the same scenes with the same budget, by the machinery of :mod:`train.benchmark`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.sweep.variants import Variant
from engine.contract.sensors import Scenario
from train import benchmark, checkpoint
from train.system import System
from train.systems import build

RANDOM_SEED = 0
"""Of the weights of a variant that is timed without being trained."""


@dataclass(frozen=True, kw_only=True)
class TrainedVariant:
    """One trained variant."""

    variant: Variant
    seed: int
    checkpoint: Path


Scores = Mapping[str, Mapping[Scenario, Sequence[float]]]
"""mF1 in 0..1 of each seed, by variant and scenario."""


def train(variants: Sequence[Variant], options: argparse.Namespace) -> list[TrainedVariant]:
    """Train each variant with each seed, or find it trained.

    Raises:
        InterruptedRunError: Ctrl-C; the same call goes on.
        UsageError: a folder of ``options.runs`` holds a run with other settings.
        RuntimeError: training failed; the log says why.
    """
    return [
        TrainedVariant(variant=variant, seed=seed, checkpoint=path)
        for variant in variants
        for seed, path in benchmark.trained(
            _as_benchmark(options, variant.budget), variant.name, preset=variant.base, model=variant.changes
        )
    ]


def score(runs: Sequence[TrainedVariant], options: argparse.Namespace) -> Scores:
    """Score every run on the held-out scenes."""
    found: dict[str, dict[Scenario, list[float]]] = {}
    for run in tqdm(runs, desc="scoring", unit="run", disable=not runs):
        mine = found.setdefault(run.variant.name, {scenario: [] for scenario in Scenario})
        for entry in benchmark.measure(run.checkpoint, _as_benchmark(options), run.variant.name, run.seed):
            mine[entry.scenario].append(entry.mean_f1)
    return found


def model_of(variant: Variant, runs: Sequence[TrainedVariant]) -> System:
    """The variant's first trained model on the CPU in evaluation mode, or one with random weights."""
    for run in runs:
        if run.variant == variant:
            return checkpoint.load(run.checkpoint)[0]
    torch.manual_seed(RANDOM_SEED)
    return build(variant.model).eval()


def budget(options: argparse.Namespace) -> dict[str, object]:
    """What a variant without a budget of its own was trained and scored with: columns of the result."""
    return {
        "seeds": " ".join(map(str, options.seeds)),
        "lr": " ".join(f"{lr:g}" for lr in options.lr or ()),
        "steps": options.steps,
        "batch": options.batch,
        "crop": options.crop,
        "training_scenes": options.synthetic,
        "test_scenes": options.test_scenes,
    }


def _as_benchmark(options: argparse.Namespace, own: Mapping[str, int] | None = None) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(options), "out": options.runs, **(own or {})})
