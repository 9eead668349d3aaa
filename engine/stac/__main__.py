"""Write STAC items, so that a catalogue finds maps and models.

    python -m engine.stac map                       map/item.json; of a live run one for each frame
    python -m engine.stac --bundle bundle           bundle/item.json of a model
    python -m engine.stac --bundle bundle --out models/edge.json

A run over a raster writes its item by itself. The time of a map is that of its first raster: by its tag
TIFFTAG_DATETIME, else when the file was last changed.

Exit codes: 0 done; 2 options, or not a finished run; 3 a map; 4 the item cannot be written; 5 the bundle.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from engine.contract.bundle import Bundle
from engine.contract.errors import EngineError, UsageError
from engine.frame_log import NAME as FRAME_LOG_NAME
from engine.frame_log import read_frame_log
from engine.ownership import RUN_NAME
from engine.rasters.georeference import gdal_environment
from engine.record import RunRecord
from engine.stac.items import ITEM_NAME, bundle_item, map_item, write_item


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        with gdal_environment():
            written = _of_bundle(options) if options.bundle is not None else _of_map(options)
    except EngineError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    for path in written:
        print(path)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.stac", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("map", nargs="?", type=Path, help="folder that engine.run --output wrote")
    parser.add_argument("--bundle", type=Path, metavar="DIR", help="a model instead of a map")
    parser.add_argument("--out", type=Path, metavar="FILE", help="of a bundle's item (DIR/item.json)")
    return parser


def _of_bundle(options: argparse.Namespace) -> list[Path]:
    if options.map is not None:
        raise UsageError(f"an item is of a map or of a bundle, received {options.map} and --bundle: leave one away")
    bundle = Bundle.load(options.bundle)
    path = options.out or options.bundle / ITEM_NAME
    return [write_item(path, bundle_item(bundle, path.parent))]


def _of_map(options: argparse.Namespace) -> list[Path]:
    folder: Path | None = options.map
    if folder is None or options.out is not None:
        raise UsageError("name the folder of a map, or --bundle DIR with or without --out FILE")
    try:
        record = RunRecord.read(folder / RUN_NAME)
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} holds no finished run ({error}): pass the folder that --output wrote") from error
    if record.live is None:
        return [write_item(folder / ITEM_NAME, map_item(folder, record))]
    frames = [each.stamp for each in read_frame_log(folder / FRAME_LOG_NAME) if each.mapped]
    return [write_item(folder / each / ITEM_NAME, map_item(folder / each, record, stamp=each)) for each in frames]


if __name__ == "__main__":
    sys.exit(main())
