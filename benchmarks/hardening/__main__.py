"""Malformed inputs of every format: is each refused in one line with the right code, or rightly accepted?

    python -m benchmarks.hardening                              forty inputs of each of twenty formats
    python -m benchmarks.hardening --each 5                     a quick look
    python -m benchmarks.hardening --only journal,TIFF --each 200 --keep wrong

Each input is a whole file with damage drawn by its number: bits flipped, parts cut, doubled or replaced by what parsers
stumble over, other content altogether. It lies among whole files, and the command that reads it runs in a process of
its own: `engine.run`, `engine.run --live`, `--resume`, `engine.report`, `engine.keys`, `train.data.check`, or, where no
command can run here (TensorRT plans, the policy of an installation, the state of a training), the function that reads
the file for them. Counted are

    refused                  one line that says why, with a documented exit code
    accepted                 and rightly so, as readers say that are not this project's: the maps are those of a run
                             without damage, GDAL reads every pixel, or the text has no name that the whole one lacks
    wrong code, several lines, traceback, hang, accepted although wrong, native crash

Exit codes: 0 nothing but refused and accepted; 1 anything else; 2 options; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from benchmarks.command import at_least_one, exit_code_of, listed, parser_of
from benchmarks.conditions import conditions, write_csv
from benchmarks.hardening.attempts import DEADLINE_S, RIGHT, Attempt, AttemptOutcome, attempt
from benchmarks.hardening.formats import FORMATS
from benchmarks.hardening.ground import grounds


def main(arguments: Sequence[str] | None = None) -> int:
    """Try, count, write the CSV; returns the exit code."""
    parser = parser_of("hardening", __doc__, result="hardening.csv")
    parser.add_argument("--each", type=int, default=40, metavar="N", help="inputs of each format (default: 40)")
    parser.add_argument("--only", metavar="LIST", help=f"formats: {', '.join(FORMATS)} (default: all)")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the first input (default: 0)")
    parser.add_argument("--deadline", type=float, default=DEADLINE_S, metavar="S", help="of each (default: 60)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="at a time (default: cores)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the inputs that went wrong there")
    options = parser.parse_args(arguments)
    return exit_code_of(lambda: measure(options))


def measure(options: argparse.Namespace) -> int:
    """Try every input.

    Raises:
        EngineError: an option is wrong, or a command does not even work on whole inputs.
    """
    at_least_one(options, "each", "jobs")
    names = listed(options.only, FORMATS, "--only") if options.only else list(FORMATS)
    with tempfile.TemporaryDirectory(prefix="hardening-ground-") as scratch:
        ground = grounds(Path(scratch), names)
        todo = [(name, seed) for name in names for seed in range(options.first, options.first + options.each)]
        found: list[Attempt] = []
        with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(todo), unit="input") as bar:

            def one(job: tuple[str, int]) -> Attempt:
                name, seed = job
                return attempt(name, ground[name], seed, deadline_s=options.deadline, keep=options.keep)

            for each in pool.map(one, todo):
                bar.update()
                found.append(each)
                if each.outcome not in RIGHT:
                    bar.write(f"{each.format} {each.seed}: {each.outcome} ({each.exit_code}) {each.said}")
    rows = [row(name, [each for each in found if each.format == name]) for name in names]
    write_csv(options.out, [{**each, **conditions()} for each in rows])
    wrong = sum(each.outcome not in RIGHT for each in found)
    print(f"{len(found)} malformed inputs, {wrong} of them not as they should be; written: {options.out}")
    return 1 if wrong else 0


def row(name: str, attempts: Sequence[Attempt]) -> dict[str, object]:
    """A line of the result."""
    counted = Counter(each.outcome for each in attempts)
    return {"format": name, "tried": len(attempts), **{outcome.value: counted[outcome] for outcome in AttemptOutcome}}


if __name__ == "__main__":
    sys.exit(main())
