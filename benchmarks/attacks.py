"""Attacks on a signed bundle: is each refused, and how long does the refusal take?

    python -m benchmarks.attacks                    the demo bundle, signed anew, twenty tries of each attack
    python -m benchmarks.attacks --tries 3          a quick look

An aircraft's installation requires signatures of one key. Each attack changes a copy of the bundle, of its signature or
of the installation's keys; then the bundle is loaded as before a run. No network is asked for anything. What is timed
is that load, the first in a process excepted: signature, manifest, number, and the hashes of all files as far as the
attack lets it come.

Exit codes: 0 all refused with the right error; 1 one was not; 2 options.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.command import at_least_one, exit_code_of, parser_of
from benchmarks.conditions import conditions, write_csv
from engine.contract.bundle import Bundle
from engine.contract.errors import BundleError
from engine.contract.trust import Policy


def main(arguments: Sequence[str] | None = None) -> int:
    """Attack, time, write the CSV; returns the exit code."""
    parser = parser_of("attacks", __doc__, result="attacks.csv")
    parser.add_argument("--tries", type=int, default=20, metavar="N", help="of each attack (default: 20)")
    options = parser.parse_args(arguments)

    def run() -> int:
        at_least_one(options, "tries")
        rows = measure(Bundle.load(options.bundle, Policy()), options.tries)
        write_csv(options.out, [{**row, **conditions()} for row in rows])
        refused = sum(bool(row["refused"]) for row in rows)
        slowest = max(float(str(row["refused_ms"])) for row in rows)
        print(f"{refused} of {len(rows)} attacks refused, the slowest in {slowest:.1f} ms; written: {options.out}")
        return int(refused < len(rows))

    return exit_code_of(run)


def measure(bundle: Bundle, tries: int) -> list[dict[str, object]]:
    """One row per attack: whether all tries ended in its error, and the median time."""
    from tests.engine.attacks import ATTACKS, make_aircraft

    rows: list[dict[str, object]] = []
    for attack, expected in ATTACKS.items():
        with tempfile.TemporaryDirectory(prefix="attack-") as scratch:
            aircraft = make_aircraft(bundle, Path(scratch))
            began = time.perf_counter()
            aircraft.load()
            whole_s = time.perf_counter() - began
            attack(aircraft)
            times, found = [], set[type]()
            for _ in range(tries):
                began = time.perf_counter()
                try:
                    aircraft.load()
                except BundleError as error:
                    found.add(type(error))
                else:
                    found.add(type(None))
                times.append(time.perf_counter() - began)
        rows.append(
            {
                "attack": attack.__name__.strip("_").replace("_", " "),
                "error": expected.__name__,
                "refused": found == {expected},
                "refused_ms": round(statistics.median(times) * 1e3, 2),
                "accepted_whole_ms": round(whole_s * 1e3, 2),
                "tries": tries,
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(main())
