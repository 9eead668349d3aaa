"""Make confidence mean something: one temperature per scenario, kept in the checkpoint and taken into exported graphs.

    python -m train.temperature runs/mixed/best.safetensors --data synthetic:16 --data folder:/data/naip
    python -m train.temperature runs/mixed/best.safetensors --data folder:/data/naip --out train/demo.safetensors --half
    python -m train.temperature runs/mixed/best.safetensors --data folder:/data/naip --measure     those it has, on test

Logits divided by a temperature give the same map with another confidence (https://arxiv.org/abs/1706.04599). Each is
fitted on the labelled scenes of the sources' validation parts, which nothing was trained on, by the likelihood of their
labels; sources count alike, whatever their size. Printed are the expected calibration errors (15 bins) before and
after, the latter by cross-validation: a temperature fitted on every second scene, measured on the others, and the
reverse. ``--measure`` fits nothing: it measures the temperatures that the checkpoint has on the sources' test parts.
The checkpoint keeps the errors, `export.run` puts them into the bundle's manifest, and `calib.run` into its report.

Exit codes: 0 done, 2 options or data that do not fit, 130 Ctrl-C (nothing written).
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from engine.contract.bundle import Confidence
from engine.contract.command import command_parser
from engine.contract.sensors import Scenario, scenarios_within
from train import checkpoint
from train.data.isprs import Part
from train.data.labels import IGNORE_INDEX
from train.data.procedural import ProceduralSource
from train.data.rasters import DataError
from train.data.scenes import Scene
from train.data.sources import GRAMMAR, open_mix
from train.predict import at_gsd, predictor, tiles
from train.system import System

EVERY = 4
"""Of rows and of columns: neighbours tell the same."""
BINS = 15
RANGE = (0.25, 8.0)


@dataclass(frozen=True, kw_only=True)
class PixelSample:
    """Pixels of one scene."""

    source: str
    logits: Tensor
    """float [n, C]."""
    labels: Tensor
    """int64 [n]."""


@torch.no_grad()
def samples_of(
    model: System,
    scenario: Scenario,
    scenes: Mapping[str, Sequence[Scene]],
    gsd_m: tuple[float, float] | None = None,
) -> list[PixelSample]:
    """Logits and labels of every fourth row and column of the scenes that have the scenario's sensors."""
    found = []
    predict = predictor(model, scenario)
    for source, members in scenes.items():
        for scene in tqdm(members, desc=f"{scenario} {source}", unit="scene", leave=False):
            if not scene.labelled or scenario not in scenarios_within(scene.sensors):
                continue
            parts = []
            for tile in tiles(scene):
                logits, _ = at_gsd(predict, scene.gsd_m, gsd_m)(tile.rgir[None].float(), tile.ndsm[None])
                at = (*tile.core, slice(None))
                truth = torch.from_numpy(tile.labels).long()[at[:2]][::EVERY, ::EVERY]
                values = logits[0].movedim(0, -1)[at][::EVERY, ::EVERY]
                known = truth != IGNORE_INDEX
                parts.append((values[known], truth[known]))
            found.append(
                PixelSample(
                    source=source,
                    logits=torch.cat([logits for logits, _ in parts]),
                    labels=torch.cat([labels for _, labels in parts]),
                )
            )
    return [sample for sample in found if len(sample.labels)]


def fitted(samples: Sequence[PixelSample]) -> float:
    """The temperature under which the labels are likeliest; sources count alike.

    Raises:
        DataError: there is no labelled pixel.
    """
    if not samples:
        raise DataError("a temperature is fitted on labelled pixels, received none: check the data's split")
    pooled = [_pooled(samples, source) for source in sorted({sample.source for sample in samples})]

    def loss(log_temperature: float) -> float:
        scale = torch.tensor(-log_temperature).exp()
        return sum(float(F.cross_entropy(logits * scale, labels)) for logits, labels in pooled)

    low, high = (float(torch.tensor(bound).log()) for bound in RANGE)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-3})
    return round(float(torch.tensor(best.x).exp()), 4)


def calibration_error(logits: Tensor, labels: Tensor, temperature: float = 1.0) -> float:
    """Expected calibration error over 15 bins of confidence, 0..1.

    Args:
        logits: float [n, C].
        labels: int64 [n].
        temperature: that logits are divided by.
    """
    confidence, classes = (logits / temperature).softmax(dim=1).max(dim=1)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)
    gap = torch.zeros(BINS).index_add_(0, bins, confidence - (classes == labels).float())
    return float(gap.abs().sum() / len(labels))


def confidences(scenario: Scenario, samples: Sequence[PixelSample], temperature: float) -> list[Confidence]:
    """Calibration errors before and after by cross-validation, for each source.

    Args:
        scenario: whose samples these are.
        samples: of all sources.
        temperature: fitted on all of them.
    """
    folds = [samples[0::2], samples[1::2]]
    temperatures = [fitted(other) if other else None for other in reversed(folds)]
    found = []
    for each in measured(scenario, samples, temperature):
        errors, pixels = 0.0, 0
        for fold, other in zip(folds, temperatures, strict=True):
            logits, labels = _pooled(fold, each.data)
            if other is not None and len(labels):
                errors += calibration_error(logits, labels, other) * len(labels)
                pixels += len(labels)
        found.append(replace(each, error_after=round(errors / pixels, 5) if pixels else None))
    return found


def measured(scenario: Scenario, samples: Sequence[PixelSample], temperature: float) -> list[Confidence]:
    """Calibration errors before and after, for each source; the temperature was fitted on other samples."""
    found = []
    for source in dict.fromkeys(sample.source for sample in samples):
        before, after = (calibration_error(*_pooled(samples, source), each) for each in (1.0, temperature))
        found.append(
            Confidence(
                scenario=scenario,
                data=source,
                temperature=temperature,
                error_before=round(before, 5),
                error_after=round(after, 5),
            )
        )
    return found


def _pooled(samples: Sequence[PixelSample], source: str) -> tuple[Tensor, Tensor]:
    mine = [sample for sample in samples if sample.source == source]
    if not mine:
        return torch.zeros(0, 1), torch.zeros(0, dtype=torch.long)
    return torch.cat([sample.logits for sample in mine]), torch.cat([sample.labels for sample in mine])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = command_parser("train.temperature", __doc__)
    parser.add_argument("checkpoint", type=checkpoint.named, help="a .safetensors of a run")
    parser.add_argument("--data", action="append", required=True, metavar="SOURCE", help=f"{GRAMMAR}; several times")
    parser.add_argument("--labels", type=Path, metavar="DIR", help="further labels for folder: scenes, <scene>.png")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where scenes are kept (runs/cache)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="checkpoint to write (the one that is read)")
    parser.add_argument("--half", action="store_true", help="keep kernels as float16: half the size, for a repository")
    parser.add_argument("--measure", action="store_true", help="fit nothing: measure on the test parts, and keep that")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = parse(argv)
    try:
        model, info = checkpoint.load(options.checkpoint)
        model.last_layer()
        mix = open_mix(options.data, options.cache, shares=None, zooms=None, labels=options.labels)
        if mix.labels != info.labels:
            raise DataError(f"{options.checkpoint} and the data must tell the same classes apart")
        part: Part = "test" if options.measure else "validation"
        sources = [
            replace(source, validation_count=source.count, test_count=source.count)
            if isinstance(source, ProceduralSource)
            else source
            for source in mix.sources
        ]
        scenes = {source.name: source.split(part) for source in sources}
        temperatures = dict(info.temperatures)
        confidence: list[Confidence] = []
        for scenario in Scenario:
            samples = samples_of(model, scenario, scenes, info.gsd_m)
            if options.measure:
                found = measured(scenario, samples, temperatures.get(scenario, 1.0))
                found = [replace(each, data=f"{each.data}, test") for each in found]
            else:
                temperatures[scenario] = fitted(samples)
                found = confidences(scenario, samples, temperatures[scenario])
            print(*found, sep="\n")
            confidence += found
        fit = shlex.join(["python", "-m", "train.temperature", *(sys.argv[1:] if argv is None else argv)])
        weights = checkpoint.halved(model.state_dict()) if options.half else model.state_dict()
        out = options.out or options.checkpoint
        info = replace(
            info, temperatures=temperatures, confidence=tuple(confidence), command=f"{info.command} && {fit}"
        )
        checkpoint.save(out, weights, info)
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
