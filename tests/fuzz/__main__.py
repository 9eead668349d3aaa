"""Fuzz for as long as is wanted.

    python -m tests.fuzz --minutes 60              every target in turn
    python -m tests.fuzz --minutes 5 --only TIFF   one of them

A failing input is written into tests/fuzz/corpus, which the tests read. Exit codes: 0 none failed, 1 one did.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import sys
import time

from hypothesis import HealthCheck, given, settings

from engine.rasters.georeference import gdal_environment
from tests.fuzz.mutations import mutated
from tests.fuzz.targets import CORPUS, TARGETS, check

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

    failing: list[bytes] = []

    @settings(max_examples=BATCH, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(content=mutated(TARGETS[name].example()))
    def attempt(content: bytes) -> None:
        try:
            check(name, content)
        except Exception:
            failing.append(content)  # the last one is the smallest that Hypothesis finds
            raise

    try:
        attempt()
    except Exception as error:  # whatever it is, it is the finding
        path = CORPUS / name.replace(" ", "-") / hashlib.sha256(failing[-1]).hexdigest()[:12]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(failing[-1])
        print(f"{name}: {type(error).__name__}: {error}; kept as {path}", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
