"""The process beside a run with ``--serve``: lines of :mod:`engine.view.messages` come in, a page goes out.

Started by :class:`engine.view.observer.Page` with the run's output folder, the descriptor of a listening socket,
that of the canvas and a base layer; ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path

from engine.contract.formats import MalformedError
from engine.rasters.georeference import gdal_environment
from engine.telemetry.status import Phase
from engine.view.address import TOKEN_VARIABLE
from engine.view.canvas import LiveCanvas
from engine.view.flight import ShownFlight
from engine.view.messages import PhaseBegun, Started, decode
from engine.view.serve import serve
from engine.view.web import MapSite

LOW_PRIORITY = 10
"""Added to the run's own niceness once tiles are due: a tenth of its weight where both want one core. While the run
opens its backend, the page may come up beside it."""
LINE_BYTES = 1 << 20


def main() -> int:
    """Serve until the run ends."""
    output, listening, canvas, base = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    for number in (signal.SIGINT, signal.SIGTERM):  # they are the run's, which ends this process by its last line
        signal.signal(number, signal.SIG_IGN)
    logging.disable(logging.WARNING)  # the run says it
    with gdal_environment(), socket.socket(fileno=listening) as listener:
        asyncio.run(_main(ShownFlight(output, identity=secrets.token_hex(4)), listener, LiveCanvas(canvas), base))
    return 0


async def _main(flight: ShownFlight, listening: socket.socket, canvas: LiveCanvas, base: str) -> None:
    ended = asyncio.Event()
    token = os.environ.get(TOKEN_VARIABLE) or None
    serving = asyncio.create_task(serve(MapSite(flight, canvas, None, ended, base).app(token), listening, ended))
    await _listen(flight)
    ended.set()
    await serving


async def _listen(flight: ShownFlight) -> None:
    """Feed the flight with what the run tells, until the run is gone."""
    reader = asyncio.StreamReader(limit=LINE_BYTES)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    while line := await reader.readline():
        with suppress(MalformedError):  # the last line of a run that was killed
            flight.apply(message := decode(line))
            if isinstance(message, Started):
                os.nice(LOW_PRIORITY)
    if flight.phase not in (Phase.FINISHED, Phase.FAILED):
        flight.apply(PhaseBegun(phase=Phase.FAILED, reason="the run ended without a word: it was killed, or crashed"))


if __name__ == "__main__":
    sys.exit(main())
