"""What the commands of this folder have in common: how they read options, and how they end."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from engine import demo
from engine.contract.command import command_parser
from engine.contract.errors import EngineError, InterruptedRunError, UsageError

RESULTS = Path(__file__).parent / "results"


def parser_of(name: str, description: str | None, *, result: str | None = None) -> argparse.ArgumentParser:
    """A parser for ``python -m benchmarks.NAME``; with ``result``, a file name, it has ``--bundle`` and ``--out``."""
    parser = command_parser(f"benchmarks.{name}", description)
    if result is not None:
        parser.add_argument("--bundle", type=Path, default=demo.BUNDLE, help="model (default: the demo's)")
        parser.add_argument(
            "--out", "--csv", type=Path, default=RESULTS / result, metavar="CSV", help=f"result (results/{result})"
        )
    return parser


def at_least_one(options: argparse.Namespace, *names: str) -> None:
    """Check counts.

    Raises:
        UsageError: an option is below 1.
    """
    for name in names:
        if getattr(options, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, received {getattr(options, name)}")


def listed(text: str, known: Iterable[Any], option: str) -> list[Any]:
    """The names of a comma-separated option.

    Raises:
        UsageError: the list is empty or names something unknown.
    """
    names, known = [name.strip() for name in text.split(",") if name.strip()], list(known)
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise UsageError(f"{option} takes a list of {', '.join(known)}; received {text!r}")
    return names


def exit_code_of(measure: Callable[[], int | None]) -> int:
    """Measure; its answer or 0 when it is done, an error's own code and a line to stderr when not, 130 after Ctrl-C."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        return measure() or 0
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return InterruptedRunError.exit_code
