"""What each part of `python -m train.adapt` earns on images whose labels it never saw.

    python -m benchmarks.ablations --target folder:MINE --data ../shared/data --seeds 0,1 --runs runs/ablations
    python -m benchmarks.ablations --target folder:MINE --data ../shared/data --adapt '--steps 600 --batch 8'

Adapts a checkpoint to ``--target`` once for each variant and seed: with all parts, without one of them,
without any pseudo-label (procedural scenes pasted into the images alone), and with nothing but the batch statistics of
both (no weight moves). Scores the last weights of each run, and those that its rule kept, on the labelled scenes of
``--data`` (:mod:`benchmarks.real`, PyTorch); ``before`` is the checkpoint as it is. ``--adapt`` takes options of
train.adapt for all runs. A run that is done is not trained again, so that an interrupted command goes on.

Writes a row for each run, set and scenario as CSV after every run.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import real
from benchmarks.accuracy import NEEDS
from benchmarks.command import exit_code_of, listed, parser_of
from benchmarks.conditions import conditions, write_csv
from benchmarks.tables import TABLES
from engine.contract.errors import InputError, UsageError

SCORES = ("mf1_percent", "oa_percent", "ece_percent", "tree_points_hit_percent", "ground_called_tree_percent")
COLUMNS = ("data", "labels", "scenario", *SCORES, *conditions())


def main(arguments: Sequence[str] | None = None) -> int:
    """Adapt, score, print, write the CSV."""
    options = build_parser().parse_args(arguments)

    def work() -> None:
        rows: list[dict[str, object]] = []
        for found in run(options):
            rows += found
            write_csv(options.out, rows)
        print(TABLES["ablations"].markdown(rows))
        print(f"written to {options.out}")

    return exit_code_of(work)


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = parser_of("ablations", __doc__, result="ablations.csv")
    parser.add_argument("--target", required=True, metavar="folder:DIR", help="images to adapt to, no label is read")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="labelled scenes to score")
    parser.add_argument("--init", default="demo", metavar="FILE", help="checkpoint to adapt (demo, the shipped)")
    parser.add_argument("--variants", metavar="LIST", help="comma-separated (default: all but without trees)")
    parser.add_argument("--seeds", default="0,1", metavar="LIST", help="of samples and mixtures (0,1)")
    parser.add_argument("--steps", type=int, default=600, help="of each run (600)")
    parser.add_argument("--adapt", default="", metavar="OPTIONS", help="more options of train.adapt, as one word")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="folder of the runs (runs/ablations)")
    return parser


def run(options: argparse.Namespace) -> Iterator[list[dict[str, object]]]:
    """Rows of the checkpoint as it is, then of each run.

    Raises:
        EngineError: the data or the options cannot be used.
    """
    try:
        from train import adapt, checkpoint
    except ImportError as error:
        raise UsageError(NEEDS.format(error=error)) from error
    before = checkpoint.named(options.init)
    if not all(text.isdigit() for text in options.seeds.split(",")):
        raise UsageError(f"--seeds takes numbers such as 0,1, received {options.seeds!r}")
    variants = {
        "all parts": "",
        "no pseudo-labels": f"--warm-up {options.steps - 1}",
        "batch statistics alone": "--lr 1e-9",
        **{f"without {part}": f"--without {part}" for part in adapt.PARTS},
    }
    usual = [variant for variant in variants if variant != "without trees"]
    wanted = listed(options.variants or ",".join(usual), variants, "--variants")
    as_it_is = _scored(options, before)
    yield [{"variant": "before", "seed": "", "weights": "", "step": 0, **row} for row in as_it_is]
    for seed in options.seeds.split(","):
        for variant in wanted:
            out = options.runs / f"{variant.replace(' ', '-')}_{seed}"
            given = ["--init", str(before), "--data", options.target, "--steps", str(options.steps), "--seed", seed]
            given += [*shlex.split(f"{options.adapt} {variants[variant]}"), "--out", str(out)]
            if not (out / "last.safetensors").exists():
                (out / "best.safetensors").unlink(missing_ok=True)
                if code := adapt.main(given):
                    raise (
                        KeyboardInterrupt
                        if code == 130
                        else InputError(f"train.adapt {shlex.join(given)} ended with {code}")
                    )
            scored = {0: as_it_is}
            for weights in ("last", "best"):
                path = out / f"{weights}.safetensors"
                step = checkpoint.load(path)[1].step
                scored[step] = scored.get(step) or _scored(options, path)
                about = {"variant": variant, "seed": seed, "weights": weights, "step": step}
                yield [{**about, **row} for row in scored[step]]


def _scored(options: argparse.Namespace, path: Path) -> list[dict[str, object]]:
    words = ["--data", str(options.data), "--checkpoint", str(path), "--out", str(options.runs / "scored.csv")]
    options.runs.mkdir(parents=True, exist_ok=True)
    rows = real.score(real.build_parser().parse_args(words))
    steps = {"steps": options.steps, "adapt": options.adapt}
    return [{**steps, **{name: row[name] for name in COLUMNS}} for row in rows if row["place"] == real.ALL]


if __name__ == "__main__":
    sys.exit(main())
