"""What several systems are trained and scored with alike: options of the commands that compare them."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_options(parser: argparse.ArgumentParser) -> None:
    """Seeds, learning rates, steps, crops and scenes, in a group of their own."""
    group = parser.add_argument_group("training and scores, the same for all")
    group.add_argument("--seeds", type=_seeds, default="0", metavar="LIST", help="comma-separated (0)")
    group.add_argument(
        "--lr", type=_rates, metavar="LIST", help="peak learning rates, comma-separated, to choose from (the preset's)"
    )
    group.add_argument("--steps", type=count, default=2000, metavar="N", help="optimiser steps of each (2000)")
    group.add_argument("--batch", type=count, default=8, metavar="N", help="samples per step (8)")
    group.add_argument("--crop", type=count, default=256, metavar="PX", help="side of a training crop (256)")
    group.add_argument("--synthetic", type=count, default=400, metavar="N", help="procedural training scenes (400)")
    group.add_argument("--validate-every", type=count, metavar="N", help="steps between validations (only the last)")
    group.add_argument(
        "--validation-scenes", type=count, default=16, metavar="N", help="for the choice of the best step (16)"
    )
    group.add_argument("--test-scenes", type=count, default=100, metavar="N", help="held-out scenes (100)")
    group.add_argument("--cache", type=Path, default=Path("runs/cache"), help="where scenes are kept (runs/cache)")
    group.add_argument("--workers", type=int, default=1, metavar="N", help="processes that prepare samples (1)")
    parser.add_argument(
        "--threads",
        type=count,
        default=2,
        metavar="N",
        help="CPU threads, each with its part of a step; batch normalisation sees one part at a time (2)",
    )


def count(text: str) -> int:
    """Type of an option that takes 1 or more."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, received {text!r}")
    return int(text)


def _seeds(text: str) -> list[int]:
    if not all(seed.isdigit() for seed in text.split(",")):
        raise argparse.ArgumentTypeError(f"takes whole numbers, received {text!r}")
    return list(map(int, text.split(",")))


def _rates(text: str) -> list[float]:
    try:
        rates = list(map(float, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"takes numbers such as 5e-4,2e-3, received {text!r}") from error
    if not all(0 < rate < 1 for rate in rates):
        raise argparse.ArgumentTypeError(f"learning rates must lie between 0 and 1, received {text!r}")
    return rates
