"""Train systems on the same scenes with the same budget, score them on the same held-out scenes, print the table.

    python -m train.benchmark --steps 300 --out runs/benchmark
    python -m train.benchmark --presets paper,nano --seeds 0,1,2 --steps 2000 --out runs/pair

Systems that OUT holds already are not trained again, an interrupted one goes on where it was: repeat the command.
Writes benchmark.csv (a row per preset, seed and scenario) and benchmark.md (the layout of the GEMMNet paper's
Table 1, mean over seeds).
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import logging
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.contract.errors import UsageError
from engine.contract.sensors import Scenario
from train import checkpoint, run
from train.config import PRESETS, differences
from train.data.procedural import ProceduralSource
from train.evaluate import Result, score
from train.model import gmac
from train.predict import predictor
from train.report import COLUMNS

log = logging.getLogger("train.benchmark")

DEFAULT_PRESETS = tuple(PRESETS)
CSV_NAME, TABLE_NAME = "benchmark.csv", "benchmark.md"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One trained system and its scores on the held-out scenes."""

    preset: str
    seed: int
    title: str
    parameters: int
    """That at least one exported graph holds."""
    gmac: dict[Scenario, float]
    """At 512 x 512."""
    results: tuple[Result, ...]


def train_one(
    options: argparse.Namespace, name: str, seed: int, *, preset: str = "", model: Mapping[str, object] | None = None
) -> Path | None:
    """Train a model, or go on with it, or find it done: its best checkpoint; None when interrupted.

    Args:
        options: budget and folders.
        name: of the run's folder, with the seed.
        seed: of weights, samples and augmentation.
        preset: what is trained; ``name`` unless given.
        model: fields of the model that differ from the preset's.

    Raises:
        RuntimeError: training failed; the log says why.
        UsageError: the folder holds a run with other settings.
    """
    out = options.out / f"{name}-{seed}"
    validate_every = options.validate_every or options.steps
    arguments = ["--preset", preset or name, "--seed", str(seed), "--out", str(out), "--cache", str(options.cache)]
    arguments += ["--synthetic", str(options.synthetic), "--steps", str(options.steps), "--batch", str(options.batch)]
    arguments += ["--crop", str(options.crop), "--validate-every", str(validate_every)]
    arguments += ["--validation-scenes", str(options.validation_scenes), "--threads", str(options.threads)]
    arguments += ["--workers", str(options.workers)]
    if model:
        arguments += ["--model", json.dumps(dict(model))]
    last = out / "last.safetensors"
    if last.exists():
        given, info = run.parse(arguments), checkpoint.load(last)[1]
        asked = run.settings(given, run.source_of(given))
        differing = [*differences(info.model, asked.model), *differences(info.train, asked.train)]
        if differing:
            raise UsageError(
                f"{out} was trained with other settings ({'; '.join(differing)}): choose another folder for the runs, "
                "or delete that one"
            )
        if info.step >= options.steps:
            return out / "best.safetensors"
    if (out / "resume.pt").exists():
        arguments.append("--resume")
    log.info("%s, seed %d", name, seed)
    code = run.main(arguments)
    if code == 130:
        return None
    if code != 0:
        raise RuntimeError(f"training {name} with seed {seed} ended with exit code {code}")
    return out / "best.safetensors"


def measure(path: Path, options: argparse.Namespace, preset: str, seed: int) -> Entry:
    """Score a checkpoint and count what it costs."""
    model, info = checkpoint.load(path)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    source = ProceduralSource(cache=options.cache, count=1, test_count=options.test_scenes)
    ways = {(scenario, "generator"): predictor(model, scenario) for scenario in Scenario}
    results = score(model, ways, source.split("test"), info.labels)
    return Entry(
        preset=preset,
        seed=seed,
        title=info.model.title,
        parameters=model.deployable_parameters(),
        gmac={scenario: gmac(model, scenario) for scenario in Scenario},
        results=tuple(results),
    )


def as_csv(entries: Iterable[Entry], command: str) -> str:
    """One row per preset, seed and scenario; fractions in 0..1. The first line is the command, as a comment."""
    out = io.StringIO()
    out.write(f"# {command}\n")
    rows = csv.writer(out, lineterminator="\n")
    names = "preset system seed scenario parameters gmac mean_f1 mean_iou overall_accuracy tile_mean_iou"
    rows.writerow([*names.split(), "synthesis_mae", "synthesis_ssim"])
    for entry in entries:
        for result in entry.results:
            s, made = result.scores, result.synthesis
            scores = (s.mean_f1, s.mean_iou, s.overall_accuracy, result.tile_mean_iou)
            synthesis = (made.mean_absolute_error, made.ssim) if made else (None, None)
            rows.writerow(
                [entry.preset, entry.title, entry.seed, result.scenario.value, entry.parameters]
                + [f"{entry.gmac[result.scenario]:.3f}"]
                + ["" if value is None else f"{value:.5f}" for value in (*scores, *synthesis)]
            )
    return out.getvalue()


def as_table(entries: Sequence[Entry]) -> str:
    """Markdown: mF1 / mIoU by scenario in Table 1's order, mean over seeds, with the range where there are several."""
    by_preset: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        by_preset[entry.preset].append(entry)
    heading = " | ".join(f"{scenario.value.replace('_', ' ')} mF1 / mIoU" for scenario in COLUMNS)
    lines = [f"| preset | system | parameters, M | GMAC, full | GMAC, one missing | {heading} |", "|---" * 8 + "|"]
    for preset, group in by_preset.items():
        first = group[0]
        missing = max(first.gmac[scenario] for scenario in COLUMNS[1:])
        cells = [
            preset,
            first.title,
            f"{first.parameters / 1e6:.2f}",
            f"{first.gmac[Scenario.FULL]:.1f}",
            f"{missing:.1f}",
        ]
        for scenario in COLUMNS:
            scores = [r.scores for entry in group for r in entry.results if r.scenario is scenario]
            f1, iou = ([100 * getattr(s, name) for s in scores] for name in ("mean_f1", "mean_iou"))
            spread = f" ({min(f1):.1f}..{max(f1):.1f})" if len(f1) > 1 else ""
            cells.append(f"{sum(f1) / len(f1):.1f}{spread} / {sum(iou) / len(iou):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse(argv: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", default=",".join(DEFAULT_PRESETS), help=f"({','.join(DEFAULT_PRESETS)})")
    parser.add_argument("--seeds", default="0", help="comma-separated (0)")
    parser.add_argument("--steps", type=int, default=2000, help="optimiser steps of each (2000)")
    parser.add_argument("--batch", type=int, default=8, help="samples per step (8)")
    parser.add_argument("--crop", type=int, default=256, help="side of a training crop, px (256)")
    parser.add_argument("--synthetic", type=int, default=400, metavar="N", help="procedural training scenes (400)")
    parser.add_argument("--validate-every", type=int, help="steps between validations (only the last step)")
    parser.add_argument("--validation-scenes", type=int, default=16, help="for the choice of the best step (16)")
    parser.add_argument("--test-scenes", type=int, default=100, help="held-out scenes of the table (100)")
    parser.add_argument("--threads", type=int, default=2, help="ways to split a step on a CPU (2)")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare samples (1)")
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where scenes are kept (runs/cache)")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs and of the table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    options = parse(argv)
    command = shlex.join(["python", "-m", "train.benchmark", *(sys.argv[1:] if argv is None else argv)])
    presets = options.presets.split(",")
    unknown = sorted(set(presets) - set(PRESETS))
    if unknown or not all(seed.isdigit() for seed in options.seeds.split(",")):
        print(f"error: --presets takes {', '.join(PRESETS)} and --seeds whole numbers; received "
              f"{options.presets!r} and {options.seeds!r}", file=sys.stderr)  # fmt: skip
        return 2
    entries: list[Entry] = []
    for preset in presets:
        for seed in map(int, options.seeds.split(",")):
            try:
                path = train_one(options, preset, seed)
            except (UsageError, RuntimeError) as error:
                print(f"error: {error}", file=sys.stderr)
                return error.exit_code if isinstance(error, UsageError) else 1
            if path is None:
                print(f"stopped; go on with: {command}", file=sys.stderr)
                return 130
            entries.append(measure(path, options, preset, seed))
            # written after each, so that an interruption leaves what there is
            for name, text in ((CSV_NAME, as_csv(entries, command)), (TABLE_NAME, as_table(entries))):
                with checkpoint.replacing(options.out / name) as temporary:
                    temporary.write_text(text)
    print(as_table(entries))
    print(f"written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
