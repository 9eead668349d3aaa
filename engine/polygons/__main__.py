"""Turn the map of a finished run into polygons for QGIS, PostGIS and other vector tools.

    python -m engine.polygons map                                       map/polygons.gpkg
    python -m engine.polygons map --out cover.parquet                   GeoParquet; .fgb writes FlatGeobuf
    python -m engine.polygons map --smallest 50 --simplify 1.5          fewer, smoother polygons

Each polygon is a connected area of one class with its name, its size, the mean confidence of its pixels and the share
of them that each sensor saw. Neighbours share their borders, also after --simplify. Memory grows with the width of the
map and its largest area, not with its height. A style for QGIS lies beside the file.

Exit codes: 0 done; 2 options, or the extra gis is missing; 3 the map; 4 the file; 130 interrupted (nothing is written).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.contract.command import command_parser
from engine.contract.errors import EngineError, InterruptedRunError
from engine.options import in_options
from engine.polygons.convert import SIMPLIFY_PX, SMALLEST_PX, Polygons


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        polygonise(options)
    except EngineError as error:
        print(f"error: {in_options(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; nothing is written", file=sys.stderr)
        return InterruptedRunError.exit_code
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = command_parser("engine.polygons", __doc__)
    parser.add_argument("map", type=Path, help="folder that engine.run --output wrote")
    parser.add_argument("--out", type=Path, metavar="FILE", help=".gpkg, .fgb or .parquet (MAP/polygons.gpkg)")
    parser.add_argument(
        "--smallest", type=int, default=SMALLEST_PX, metavar="PX", help="give smaller areas away (10 pixels)"
    )
    parser.add_argument(
        "--simplify", type=float, default=SIMPLIFY_PX, metavar="PX", help="move borders by so much (1 pixel)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    return parser


def polygonise(options: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        EngineError: it cannot be done; nothing was written.
    """
    polygons = Polygons(
        path=options.out or options.map / "polygons.gpkg",
        smallest_px=options.smallest,
        simplify_px=options.simplify,
        overwrite=options.overwrite,
    )
    count = polygons.write(options.map)
    print(f"{polygons.path}: {count} polygons")


if __name__ == "__main__":
    sys.exit(main())
