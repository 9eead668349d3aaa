"""``--metrics``: ``/metrics`` for Prometheus, and ``/healthz`` for whoever asks whether the run is alive."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

from engine.contract.errors import UsageError
from engine.telemetry.status import RunStatus

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
REQUEST_LIMIT_S = 5.0
"""Longest time that a request may take, from the connection to the last byte of the answer."""
MAX_CLIENTS = 16


class Exposed(Protocol):
    """What ``/metrics`` tells."""

    def exposition(self) -> tuple[str, bytes]:
        """Content type and body."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, option: str = "--metrics") -> Address:
    """``:9102`` and ``9102`` listen to this machine alone, ``0.0.0.0:9102`` and ``[::]:9102`` to everybody.

    Args:
        text: the value of an option.
        option: its name, for the error.

    Raises:
        UsageError: it is none of these, or the port is not in 0..65535 (0: any that is free).
    """
    host, _, port = text.strip().rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not port.isdecimal() or int(port) > 65535 or (":" in bare and bare == host):
        raise UsageError(f"{option} takes [HOST]:PORT with a port up to 65535, such as :9102; received {text!r}")
    return Address(host=bare or LOOPBACK, port=int(port))


class Endpoint(ThreadingTCPServer):
    """Answers ``/metrics`` and ``/healthz`` from threads of its own; a context manager.

    Listens as soon as it is made. A client that fails, dawdles or comes in a crowd is dropped, and never holds up the
    run or another client: a request is over after :data:`REQUEST_LIMIT_S`, however it drips, and where
    :data:`MAX_CLIENTS` are being served, the one that has been longest gives way to the next.

    Args:
        address: where to listen.
        metrics: what ``/metrics`` tells.
        status: what ``/healthz`` tells.
        stall_s: ``/healthz`` answers 503 when a tile is due and none was done for so long.

    Raises:
        UsageError: nobody can listen there: the port is taken or needs privileges, or the host is not this machine.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 2 * MAX_CLIENTS

    def __init__(self, address: Address, metrics: Exposed, status: RunStatus, *, stall_s: float = 60.0) -> None:
        self.metrics, self.status, self.stall_s = metrics, status, stall_s
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        self._served: dict[socket.socket, float] = {}
        """Connections that are open, the oldest first, and when each came."""
        self._lock = threading.Lock()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.1}, name="metrics", daemon=True
        )
        try:
            super().__init__((address.host, address.port), _Handler)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UsageError(
                f"--metrics must name an address of this machine and a free port; cannot listen on {address} "
                f"({reason}): name another, or stop what listens there"
            ) from error
        self.address = Address(host=address.host, port=self.server_address[1])

    def __enter__(self) -> Self:
        self._thread.start()
        log.info("metrics at http://%s/metrics, health at http://%s/healthz", self.address, self.address)
        return self

    def __exit__(self, *_error: object) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve in a thread; the oldest of too many clients gives way."""
        with self._lock:
            while len(self._served) >= MAX_CLIENTS:
                self._hang_up(next(iter(self._served)))
            self._served[request] = time.monotonic()
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve, then make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._served.pop(request, None)

    def service_actions(self) -> None:
        """Between two connections: hang up on whoever has taken too long."""
        late = time.monotonic() - REQUEST_LIMIT_S
        with self._lock:
            for request in [each for each, came in self._served.items() if came < late]:
                self._hang_up(request)

    def _hang_up(self, request: socket.socket) -> None:
        """End a connection: whatever its thread waits for, it wakes up."""
        del self._served[request]
        with suppress(OSError):
            request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is none of the run's business."""
        log.debug("a client of the metrics failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """One client."""

    timeout = REQUEST_LIMIT_S
    server: Endpoint

    def do_GET(self) -> None:
        """Answer the two paths there are."""
        path = urlsplit(self.path).path
        if path == "/metrics":
            self._answer(HTTPStatus.OK, *self.server.metrics.exposition())
        elif path == "/healthz":
            alive, told = self.server.status.health(self.server.stall_s)
            self._answer(HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE, *_json(told))
        else:
            told = {"error": f"{path} is not here: ask for /metrics or /healthz"}
            self._answer(HTTPStatus.NOT_FOUND, *_json(told))

    def log_message(self, format: str, *arguments: object) -> None:
        """A scrape every few seconds is no news."""

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _json(told: dict[str, Any]) -> tuple[str, bytes]:
    return "application/json", json.dumps(told).encode() + b"\n"
