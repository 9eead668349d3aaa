"""Variants of a model, trained alike and timed side by side: width, stem, token stride and depth.

    python -m benchmarks.sweep --steps 1000 --batch 4 --crop 192         trains what is not trained yet, then measures
    python -m benchmarks.sweep --variants paper,nano --seeds 0,1 --steps 1000
    python -m benchmarks.sweep --latency-only                            minutes: nothing is trained or scored

The variants are listed in benchmarks/sweep/variants.py. Each is trained from scratch with the same steps, batch, crop,
scenes, seeds and learning rates, as `python -m train.benchmark` does it, and scored on held-out procedural scenes. Only
edge-same-time has a budget of its own: what it makes of the time that paper needs for 300 steps of 4 crops of 128 px.
Runs that --runs holds are not trained again and interrupted ones go on: repeat the command. It may be the --out of
train.benchmark.

Latency: single-stream in the sense of MLPerf inference (https://github.com/mlcommons/inference), one tile from host
memory to its classes and confidence in host memory, in OpenVINO in float32, of the graphs that `python -m export.run`
writes. All variants alternate in one run, round by round; a figure is the median over rounds of each round's median,
and a ratio the median over rounds of its ratio to the first variant. GMAC are counted at 512 x 512.

Writes sweep.csv (a row per variant and scenario), sweep.md and sweep.png, the Pareto front: mF1 against latency, both
the mean of the three scenarios. With --latency-only, sweep_latency.csv and .md.

Exit codes: 0 done, 1 training failed, 2 options, 6 OpenVINO failed, 130 Ctrl-C (training goes on where it was).
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import RESULTS, parser_of
from benchmarks.conditions import conditions, write_csv
from benchmarks.sweep.variants import VARIANTS, Variant, chosen
from engine.contract.atomic import replacing
from engine.contract.errors import EngineError, InterruptedRunError, UsageError
from train.budget import add_options, count


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure, print, write; returns the exit code."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("train").setLevel(logging.INFO)
    command = shlex.join(["python", "-m", "benchmarks.sweep", *(sys.argv[1:] if arguments is None else arguments)])
    try:
        return sweep(options)
    except InterruptedRunError:
        print(f"stopped; go on with: {command}", file=sys.stderr)
        return InterruptedRunError.exit_code
    except KeyboardInterrupt:
        print(f"stopped; what is trained is kept, repeat: {command}", file=sys.stderr)
        return InterruptedRunError.exit_code
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except ImportError as error:
        print(f"error: a sweep needs {error.name or error}: pip install 'gemmnet-edge[export,train]'", file=sys.stderr)
        return UsageError.exit_code


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = parser_of("sweep", __doc__)
    parser.add_argument(
        "--variants",
        default=",".join(VARIANTS),
        metavar="LIST",
        help=f"the first is the reference ({', '.join(VARIANTS)})",
    )
    parser.add_argument("--latency-only", action="store_true", help="random weights, no scores")
    timing = parser.add_argument_group("latency")
    timing.add_argument("--rounds", type=count, default=10, metavar="N", help="rounds (10)")
    timing.add_argument("--repeats", type=count, default=5, metavar="N", help="tiles of each per round (5)")
    timing.add_argument("--tile", type=int, default=512, metavar="PX", help="side of a tile (512)")
    add_options(parser)
    parser.add_argument("--runs", type=Path, default=Path("runs/sweep"), help="folder of all runs (runs/sweep)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="CSV; .md and .png go beside it (benchmarks/results)")
    return parser


def sweep(options: argparse.Namespace) -> int:
    """Do what the command line asks; 1 when training fails.

    Raises:
        EngineError: it cannot be done.
        ImportError: PyTorch or an exporter is not installed.
    """
    variants = chosen(options.variants)
    _check(options, variants)
    # Here, so that --help answers without PyTorch.
    from benchmarks.sweep import latency, report, training

    try:
        trained = [] if options.latency_only else training.train(variants, options)
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    scores = training.score(trained, options)
    timed = latency.measure(
        [(variant, training.model_of(variant, trained)) for variant in variants],
        tile_px=options.tile,
        rounds=options.rounds,
        repeats=options.repeats,
        threads=options.threads,
    )
    rows = report.rows(timed, scores, training.budget(options) if scores else {})
    out = options.out or RESULTS / ("sweep_latency.csv" if options.latency_only else "sweep.csv")
    write_csv(out, [{**row, **conditions()} for row in rows])
    table = report.markdown(rows)
    with replacing(out.with_suffix(".md")) as temporary:
        temporary.write_text(table)
    print(table)
    if scores:
        report.plot(rows, out.with_suffix(".png"))
    print(f"written: {out}")
    return 0


def _check(options: argparse.Namespace, variants: Sequence[Variant]) -> None:
    for side in ("tile", "crop"):
        px = getattr(options, side)
        for variant in variants:
            if px < 1 or px % variant.model.stride_px:
                raise UsageError(
                    f"--{side} must be a positive multiple of {variant.model.stride_px} px for variant {variant.name}, "
                    f"received {px}"
                )


if __name__ == "__main__":
    sys.exit(main())
