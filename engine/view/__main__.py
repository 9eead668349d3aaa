"""Show the map of a finished run in a browser: classes, provenance and confidence over the image it was made from.

    python -m engine.view map                          the page, at an address that is printed
    python -m engine.view map --serve 0.0.0.0:8080     for others too, by a token in that address
    python -m engine.view map --rgir ortho.tif         the image lies elsewhere by now

The folder is what `python -m engine.run --output` wrote; nothing in it is changed. While a run goes on, its own
`--serve` shows the same page. Ends with Ctrl-C.

Exit codes: 0 done; 2 not a finished run, or an address that cannot be served; 3 a map cannot be read.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import secrets
import signal
import sys
import webbrowser
from collections.abc import Sequence
from pathlib import Path

from engine.contract.command import command_parser
from engine.contract.errors import EngineError
from engine.contract.sensors import Sensor
from engine.options import in_options
from engine.rasters.georeference import gdal_environment
from engine.view.address import BASE_HELP, listen

ANY_PORT = ":0"
DRIVERS = ("GTiff", "JP2OpenJPEG", "PNG", "JPEG")
"""That may open what ``run.json`` names, which may be somebody else's: others could reach for other files, or a
network."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        listening, invitation = listen("--serve", options.serve)  # says so where the extra is missing
        from engine.view.replay import Replay
        from engine.view.serve import serve
        from engine.view.web import MapSite

        with listening, gdal_environment():
            others = {sensor: path for sensor in Sensor if (path := getattr(options, sensor.value)) is not None}
            replay = Replay(options.output, others, identity=secrets.token_hex(4))
            logging.getLogger("rasterio").setLevel(logging.ERROR)
            print(f"the map is at {invitation.url} (Ctrl-C ends)", flush=True)
            if options.open:
                webbrowser.open(invitation.url)

            async def until_stopped() -> None:
                ended, loop = asyncio.Event(), asyncio.get_running_loop()
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.add_signal_handler(number, ended.set)
                await serve(
                    MapSite(replay, None, DRIVERS, ended, options.base_layer).app(invitation.token), listening, ended
                )

            asyncio.run(until_stopped())
    except EngineError as error:
        print(f"error: {in_options(str(error))}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        pass  # before it served
    return 0


def build_parser() -> argparse.ArgumentParser:
    """Every option of the command."""
    parser = command_parser("engine.view", __doc__)
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="folder of a finished run")
    parser.add_argument(
        "--serve",
        default=ANY_PORT,
        metavar="[HOST]:PORT",
        help="where (default: any free port of this machine, for this machine alone)",
    )
    for sensor, what in ((Sensor.RGIR, "image"), (Sensor.NDSM, "heights")):
        parser.add_argument(f"--{sensor}", type=Path, metavar="PATH", help=f"the {what}, if not where the run read it")
    parser.add_argument("--base-layer", metavar="WHAT", default="", help=BASE_HELP)
    parser.add_argument("--open", action="store_true", help="open a browser")
    return parser


if __name__ == "__main__":
    sys.exit(main())
