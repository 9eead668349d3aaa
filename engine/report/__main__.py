"""Write the report of a finished run: one page of HTML that needs nothing but a browser.

    python -m engine.report segmented-rgir-ndsm           writes segmented-rgir-ndsm/report.html

The folder is what `python -m engine.run --output` wrote. Its run.json, tiles.csv and maps are read; none is changed.

Exit codes: 0 done; 2 not a finished run; 3 a map cannot be read; 4 the report cannot be written.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.contract.command import command_parser
from engine.contract.errors import EngineError
from engine.options import in_options
from engine.rasters.georeference import gdal_environment
from engine.report import write_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        with gdal_environment(), tqdm(total=1.0, file=sys.stderr, bar_format="{l_bar}{bar}|", delay=1) as bar:
            target = write_report(options.output, progress=lambda share: _advance(bar, share))
    except EngineError as error:
        print(f"error: {in_options(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    print(target)
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = command_parser("engine.report", __doc__)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder of a finished run")
    return parser


def _advance(bar: Any, share: float) -> None:
    bar.update(share - bar.n)


if __name__ == "__main__":
    sys.exit(main())
