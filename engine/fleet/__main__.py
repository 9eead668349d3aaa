"""Map many rasters on many machines, with Ray.

    python -m engine.fleet --list pairs.csv --output maps                          this machine
    python -m engine.fleet --list pairs.csv --output /shared/maps --address auto   the Ray cluster that it is part of
    python -m engine.fleet --list collection.json --output s3://bucket/maps        a STAC collection, into a bucket
    python -m engine.fleet --list pairs.csv --output maps --shard 3/10             a tenth, without Ray: an array job
    python -m engine.fleet --list pairs.csv --dry-run --speed 9 --price 0.40       what there is, and what it would cost

The list is that of `engine.run --list`, and so are the maps, byte for byte; options of a run hold for every unit. All
nodes read the rasters, the bundle and the output by the same names. A worker that dies costs its unit some time:
another goes on with it. What is larger than --cut is mapped in blocks by many. A unit that fails is tried three times,
then set aside with its reason. The same command goes on where it was stopped; several drivers and shards may work on
one output at a time.

Exit codes: those of engine.run; 9 some units failed, the others are done.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from engine.backends.resilient import leave
from engine.contract.bundle import Bundle
from engine.contract.command import command_parser
from engine.contract.errors import UsageError
from engine.contract.trust import installed_policy
from engine.fleet.here import OUTPUT, drive, dry_run, listed, map_list, scenarios_of
from engine.fleet.stores import store_at
from engine.options import add_options
from engine.run import guarded
from engine.telemetry.streams import steady_streams

CUT_MPX = 1000.0
INSTALL = "pip install 'gemmnet-edge[fleet]'"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    with steady_streams():
        return guarded(build_parser().parse_args(arguments), _fleet)


def build_parser() -> argparse.ArgumentParser:
    """The options; also what the documentation is checked against."""
    parser = command_parser("engine.fleet", __doc__)
    add_options(parser)
    fleet = parser.add_argument_group("fleet")
    fleet.add_argument("--address", metavar="HOST:PORT", help="of a Ray cluster, or auto (default: this machine alone)")
    fleet.add_argument(
        "--cpus", type=int, metavar="N", help="of each worker (default: those of a node, shared by its GPUs)"
    )
    fleet.add_argument(
        "--cut",
        type=float,
        default=CUT_MPX,
        metavar="MPX",
        help=f"megapixels; a larger raster is mapped in blocks of rows by many workers (default: {CUT_MPX:g}; 0 never)",
    )
    return parser


def _fleet(options: argparse.Namespace) -> int:
    if options.list is None:
        raise UsageError("a fleet maps a list of rasters: pass --list PATH, a CSV or a folder")
    if options.cpus is not None and options.cpus < 1:
        raise UsageError(f"--cpus takes a number above zero, received {options.cpus}")
    if not 0 <= options.cut < float("inf"):
        raise UsageError(f"--cut takes megapixels, or 0 to cut no raster, received {options.cut:g}")
    if options.dry_run:
        return dry_run(options)
    if options.shard is not None:
        map_list(options)
        return 0
    # Ray's own words about workers that die would go to standard output; ours go to the log
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    try:
        from engine.fleet.cluster import Crew
    except ImportError as error:
        raise UsageError(
            f"a fleet needs Ray, which cannot be imported ({error}): {INSTALL}, or pass --shard I/N"
        ) from error
    units, store = listed(options), store_at(options.output or OUTPUT)
    if not isinstance(options.output, str):
        options.output = (options.output or OUTPUT).absolute()
    bundle = Bundle.load(options.bundle, installed_policy(options.require_signature))
    scenarios = scenarios_of(units, options)
    with store.shown() as word, Crew(options, scenarios, bundle=bundle.digest, word=word) as crew:
        drive(options, units, store, lambda book, _: crew.work(book), bundle=bundle, where=crew.address)
    return 0


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
