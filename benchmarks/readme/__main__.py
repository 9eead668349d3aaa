"""Write the tables of README.md and docs/ from benchmarks/results: no figure of them is typed.

    python -m benchmarks.readme                  rewrite every block
    python -m benchmarks.readme --check          exit code 1 and the names of the blocks that differ
    python -m benchmarks.readme --list           the names, and what each is made from

A block is what stands between <!-- table: NAME --> and <!-- /table -->, each on a line of its own. Under each table
stands the command whose result it is, the machine, the versions and the commit. All other text is left as it is.

Exit codes: 0 done, 1 --check found a difference, 2 an unknown or open block, or a result that is not there, 4 README
cannot be written.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.conditions import ROOT
from benchmarks.readme.blocks import BLOCKS, block
from benchmarks.readme.results import RESULTS
from engine.contract.errors import EngineError, OutputError, UsageError

PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
START = re.compile(r"^<!-- table: (?P<name>[\w-]+) -->$", re.MULTILINE)
END = "<!-- /table -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        if options.list:
            print("\n".join(f"{name:<14}{made.file:<18}{made.command}" for name, made in BLOCKS.items()))
            return 0
        return max([update(page, options.results, check=options.check) for page in options.readme])
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.readme", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a block differs")
    parser.add_argument("--list", action="store_true", help="print the names of all blocks")
    parser.add_argument(
        "--readme", type=Path, nargs="+", default=PAGES, metavar="FILE", help="pages to rewrite (README.md, docs/*.md)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="files (benchmarks/results)")
    return parser


def update(readme: Path, results: Path, *, check: bool) -> int:
    """Put every block of the page right, or with ``check`` tell which are not; 1 where one differs.

    Raises:
        UsageError: the page is not there, a block is unknown or open, or its result is not there.
        OutputError: the page cannot be written.
    """
    try:
        old = readme.read_text()
    except OSError as error:
        raise UsageError(f"--readme must name a page to rewrite, received {readme} ({error.strerror})") from error
    folder = "../benchmarks/results" if readme.resolve().parent.name == "docs" else "benchmarks/results"
    new, differing = rewritten(old, results, folder)
    if check:
        for name in differing:
            print(f"{readme}: table {name} differs from {results}: run `python -m benchmarks.readme`", file=sys.stderr)
        return 1 if differing else 0
    if differing:
        temporary = readme.with_name(f".{readme.name}.{os.getpid()}")
        try:
            temporary.write_text(new)
            temporary.replace(readme)
        except OSError as error:
            raise OutputError(f"{readme} cannot be written ({error.strerror})") from error
        finally:
            temporary.unlink(missing_ok=True)
    print(f"{readme}: {', '.join(differing) if differing else 'nothing'} rewritten")
    return 0


def rewritten(text: str, results: Path, folder: str) -> tuple[str, list[str]]:
    """The page with every block as it should be, linking results in ``folder``, and the names of those that were not.

    Raises:
        UsageError: see :func:`update`.
    """
    parts, differing, at = [], [], 0
    for start in START.finditer(text):
        name, following = start["name"], START.search(text, start.end())
        end = text.find(f"\n{END}", start.end(), following.start() if following else len(text))
        if end < 0:
            raise UsageError(f"table {name} must end with a line {END} before the next one starts, received none")
        body = f"\n{block(name, results, folder)}"
        if text[start.end() : end] != body:
            differing.append(name)
        parts += [text[at : start.end()], body]
        at = end
    return "".join([*parts, text[at:]]), differing


if __name__ == "__main__":
    sys.exit(main())
