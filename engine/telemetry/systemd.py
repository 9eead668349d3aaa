"""Notices to systemd, where the process is a service of ``Type=notify``.

``READY=1`` once the backend is warm, ``STATUS=`` with the progress, ``WATCHDOG=1`` while the run advances and
``STOPPING=1`` at the end; the protocol is datagrams to ``$NOTIFY_SOCKET``
(https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html). Without that variable nothing happens.

::

    [Service]
    Type=notify
    ExecStart=/opt/gemmnet/bin/python -m engine.run --live /data/frames --output /data/maps
    # longer than --watchdog, so that a hung backend can be replaced before the whole service is
    WatchdogSec=60
    Restart=on-failure
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Self

from engine.backends.base import BackendInfo
from engine.observer import Observer
from engine.telemetry.status import RunStatus

if TYPE_CHECKING:
    from engine.plan import Plan

log = logging.getLogger(__name__)

STATUS_S = 1.0
"""Shortest time between two ``STATUS=`` notices."""
SEND_TIMEOUT_S = 1.0
"""Longest time that a notice may take when the service manager does not read."""


class ServiceManager(Observer):
    """Keeps systemd informed; an :class:`~engine.observer.Observer` and a context manager.

    The watchdog is answered only when there was a sign of life since the last answer (see :class:`RunStatus`), so a run
    that hangs is restarted after about ``WatchdogSec``. Notices of progress leave from a thread of their own: a service
    manager that does not read its socket never holds up a tile.

    Args:
        status: how the run is doing.
        address: path of the socket, beginning with @ if abstract; None turns everything off.
        watchdog_s: time after which systemd acts on silence; None where it does not.
    """

    def __init__(self, status: RunStatus, *, address: str | None, watchdog_s: float | None = None) -> None:
        self._status = status
        self._address = address
        self._watchdog_s = watchdog_s
        self._unheard = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep_informed, name="systemd", daemon=True)

    @classmethod
    def from_environment(cls, status: RunStatus, environment: Mapping[str, str] = os.environ) -> ServiceManager:
        """As ``$NOTIFY_SOCKET``, ``$WATCHDOG_USEC`` and ``$WATCHDOG_PID`` say."""
        address = environment.get("NOTIFY_SOCKET") or None
        if address is not None and address[0] not in "/@":
            log.warning("$NOTIFY_SOCKET is %r, neither a path nor abstract (@): systemd is not informed", address)
            address = None
        microseconds = environment.get("WATCHDOG_USEC", "")
        mine = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_s = int(microseconds) / 1e6 if mine and microseconds.isdigit() and int(microseconds) else None
        return cls(status, address=address, watchdog_s=watchdog_s)

    def __enter__(self) -> Self:
        if self._address is not None:
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._send("STOPPING=1", f"STATUS={_one_line(self._status.describe())}")

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """The service is up."""
        self._send("READY=1", f"STATUS={backend.library} on {_one_line(backend.device)}, ready")

    def _keep_informed(self) -> None:
        """Send what is new, and answer the watchdog, until the end."""
        period_s = min(STATUS_S, self._watchdog_s / 4) if self._watchdog_s else STATUS_S
        told, told_at, answered_at = "", float("-inf"), time.monotonic()
        while not self._ended.wait(period_s):
            now = time.monotonic()
            notices = []
            if self._watchdog_s and now - self._status.silent_s() >= answered_at:
                notices.append("WATCHDOG=1")
                answered_at = now
            status = _one_line(self._status.describe())
            if status != told and now - told_at >= STATUS_S:
                notices.append(f"STATUS={status}")
                told, told_at = status, now
            if notices:
                self._send(*notices)

    def _send(self, *notices: str) -> None:
        """One datagram. A service manager that cannot be reached is logged once and does not end the run."""
        if self._address is None:
            return
        where = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(SEND_TIMEOUT_S)
                sender.sendto("\n".join(notices).encode(), where)
        except OSError as error:
            if not self._unheard:
                log.warning("systemd cannot be informed through %s: %s", self._address, error)
            self._unheard = True


def _one_line(text: str) -> str:
    """A notice ends with its line."""
    return " ".join(text.split())
