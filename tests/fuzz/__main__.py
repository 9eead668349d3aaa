"""Fuzz for as long as is wanted.

    python -m tests.fuzz --minutes 60              every target in turn
    python -m tests.fuzz --minutes 5 --only TIFF   one of them

A failing input is printed, to be added to ``ONCE_FAILING`` in tests/fuzz/targets.py. Exit codes: 0 none failed, 1 one
did.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time

from hypothesis import HealthCheck, given, settings

from engine.rasters.georeference import gdal_environment
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import TARGETS, check

BATCH = 200


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    parser.add_argument("--only", choices=TARGETS, help="one target")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    names = [options.only] if options.only else list(TARGETS)
    until = time.monotonic() + 60 * options.minutes
    tried = dict.fromkeys(names, 0)
    with gdal_environment():
        while time.monotonic() < until:
            for name in names:
                if not _batch(name):
                    return 1
                tried[name] += BATCH
    print("; ".join(f"{name}: {count} inputs" for name, count in tried.items()))
    return 0


def _batch(name: str) -> bool:
    """A batch of new inputs; whether all of them were read or refused as they should be."""

    @settings(max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(content=mutated(TARGETS[name].example()))
    def attempt(content: bytes) -> None:
        check(name, content)

    try:
        attempt()
    except Exception as error:  # whatever it is, it is the finding
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
