"""Write the tables of the pages from benchmarks/results: no figure of them is typed.

    python -m benchmarks.readme                  rewrite every table
    python -m benchmarks.readme --check          exit code 1 and the names of the tables that differ
    python -m benchmarks.readme --list           the names, and what each is made from

A table stands between <!-- table: NAME --> and <!-- /table -->, each on a line of its own. Under it stand the command
whose result it is, the machine, the versions and the commit. All other text is left as it is.

Exit codes: 0 done, 1 --check found a difference, 2 an unknown or open table, or a result that is not there, 4 a page
cannot be written.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.conditions import ROOT
from benchmarks.tables import RESULTS, TABLES, block
from engine.contract.atomic import write_whole
from engine.contract.command import command_parser
from engine.contract.errors import EngineError, UsageError, writing

PAGES = (ROOT / "README.md", ROOT / "export" / "README.md", *sorted((ROOT / "docs").glob("*.md")))
TABLE = re.compile(
    r"^(?P<start><!-- table: (?P<name>[\w-]+) -->\n)(?P<body>(?:(?!<!-- /?table).*\n)*)(?P<end><!-- /table -->$)?",
    re.MULTILINE,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite or check; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        if options.list:
            print("\n".join(f"{name:<16}{table.file:<20}{table.command}" for name, table in TABLES.items()))
            return 0
        return max([update(page, options.results, check=options.check) for page in options.readme])
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = command_parser("benchmarks.readme", __doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where a table differs")
    parser.add_argument("--list", action="store_true", help="print the names of all tables")
    parser.add_argument(
        "--readme",
        type=Path,
        nargs="+",
        default=PAGES,
        metavar="FILE",
        help="pages to rewrite (both README.md, docs/*.md)",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="DIR", help="files (benchmarks/results)")
    return parser


def update(page: Path, results: Path, *, check: bool) -> int:
    """Put every table of the page right, or with ``check`` tell which are not; 1 where one differs.

    Raises:
        UsageError: the page is not there, a table is unknown or open, or its result is not there.
        OutputError: the page cannot be written.
    """
    try:
        old = page.read_text()
    except OSError as error:
        raise UsageError(f"--readme must name a page to rewrite, received {page} ({error.strerror})") from error
    folder = "../benchmarks/results" if page.resolve().parent.name in ("docs", "export") else "benchmarks/results"
    differing: list[str] = []

    def rewritten(match: re.Match[str]) -> str:
        if match["end"] is None:
            raise UsageError(
                f"table {match['name']} must end with a line <!-- /table --> before the next one starts, received none"
            )
        body = f"{block(match['name'], results, folder)}\n"
        if body != match["body"]:
            differing.append(match["name"])
        return f"{match['start']}{body}{match['end']}"

    new = TABLE.sub(rewritten, old)
    if check:
        for name in differing:
            print(f"{page}: table {name} differs from {results}: run `python -m benchmarks.readme`", file=sys.stderr)
        return 1 if differing else 0
    if differing:
        with writing(page):
            write_whole(page, new.encode())
    print(f"{page}: {', '.join(differing) if differing else 'nothing'} rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main())
