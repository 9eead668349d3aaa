"""Where the page is served, and who may see it: this machine without more, anybody else with a token."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from engine.contract.errors import UsageError
from engine.telemetry.endpoint import Address, parse_address

TOKEN_VARIABLE = "GEMMNET_VIEW_TOKEN"
SHORTEST_TOKEN = 16
BASE_HELP = (
    "what may lie under the map as well: a raster or MBTiles, or tiles of a server, as in "
    "https://host/{z}/{x}/{y}.png, which is then asked for the place (default: none, no network)"
)
LIBRARIES = ("starlette", "uvicorn")
"""Of the extra ``view``."""


@dataclass(frozen=True, kw_only=True)
class Invitation:
    """Where the page is.

    Attributes:
        address: that is listened on.
        token: what a browser has to show; None on loopback, unless the environment sets one.
    """

    address: Address
    token: str | None

    @property
    def url(self) -> str:
        """What to open, with the token."""
        host = socket.gethostname() if self.address.host in ("0.0.0.0", "::") else self.address.host
        where = Address(host=host, port=self.address.port)
        return f"http://{where}/" + (f"?token={self.token}" if self.token else "")

    @property
    def environment(self) -> Mapping[str, str]:
        """How the token reaches the process that serves: a command line is everybody's to read."""
        return {} if self.token is None else {TOKEN_VARIABLE: self.token}


def listen(option: str, text: str) -> tuple[socket.socket, Invitation]:
    """A socket that listens, and where.

    Args:
        option: messages call it.
        text: ``[HOST]:PORT``; this machine alone unless a host is given, any free port for 0.

    Raises:
        UsageError: it is no address, nobody can listen there, the token in the environment is too short, or the extra
            ``view`` is not installed.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"the live map needs {' and '.join(missing)}: pip install 'gemmnet-edge[view]'")
    address = parse_address(text, option)
    token = os.environ.get(TOKEN_VARIABLE) or None
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UsageError(
            f"${TOKEN_VARIABLE} must have at least {SHORTEST_TOKEN} printable ASCII characters, received "
            f"{len(token)} characters: make one with `openssl rand -hex 16`, or unset it"
        )
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
        listening.listen(64)
    except OSError as error:
        listening.close()
        raise UsageError(
            f"{option} must name an address of this machine and a free port; cannot listen on {address} "
            f"({error.strerror or error}): name another, or stop what listens there"
        ) from error
    if token is None and not is_loopback(address.host):
        token = secrets.token_urlsafe(24)
    return listening, Invitation(address=Address(host=address.host, port=listening.getsockname()[1]), token=token)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
