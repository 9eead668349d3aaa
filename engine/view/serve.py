"""The web server: uvicorn on a socket that listens already, quiet, without a word about itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from engine.contract.errors import one_line

GOODBYE_S = 1
"""Connections that are open have so long when the server ends."""


class Server(uvicorn.Server):
    """Signals are left to whoever started it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Do not."""
        yield


def _in_one_line(record: logging.LogRecord) -> bool:
    """A request that fails is no traceback on the terminal of a run; the client is told anyway."""
    if record.exc_info and record.exc_info[1] is not None:
        record.msg, record.args = "a request failed: %s", (one_line(repr(record.exc_info[1])),)
        record.exc_info = None
    return True


async def serve(app: ASGIApp, listening: socket.socket, ended: asyncio.Event) -> None:
    """Serve until ``ended`` is set."""
    config = uvicorn.Config(
        app,
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=GOODBYE_S,
    )
    logging.getLogger("uvicorn.error").addFilter(_in_one_line)
    server = Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    waiting = asyncio.create_task(ended.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    waiting.cancel()
    await serving
