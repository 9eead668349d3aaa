"""What a service manager hears, on a real datagram socket."""

from __future__ import annotations

import os
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.telemetry.status import RunStatus
from engine.telemetry.systemd import ServiceManager
from tests.engine.test_run_status import ALIVE, BACKEND, FROZEN, PLAN, tile_report

WATCHDOG_S = 0.2


class Manager:
    """The other end of the socket."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def hear(self, timeout_s: float = 20) -> list[str]:
        """The lines of the next datagram."""
        self._socket.settimeout(timeout_s)
        return self._socket.recv(4096).decode().splitlines()

    def hear_until(self, line: str) -> None:
        while line not in self.hear():
            pass

    def hear_all(self, seconds: float) -> list[str]:
        """Every line that arrives in that time."""
        until, lines = time.monotonic() + seconds, []
        while (rest := until - time.monotonic()) > 0:
            try:
                lines += self.hear(rest)
            except TimeoutError:
                break
        return lines

    def close(self) -> None:
        self._socket.close()

    def environment(self, **more: str) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self.address, **more}


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path: Path) -> Iterator[Manager]:
    abstract = request.param == "abstract"
    if abstract and sys.platform != "linux":
        pytest.skip("abstract sockets are Linux's own")
    heard = Manager(f"@{uuid.uuid4()}" if abstract else str(tmp_path / "notify"))
    yield heard
    heard.close()


@pytest.fixture
def one_manager(tmp_path: Path) -> Iterator[Manager]:
    heard = Manager(str(tmp_path / "notify"))
    yield heard
    heard.close()


def test_ready_progress_and_stopping_are_told(manager) -> None:
    status = RunStatus()
    with ServiceManager.from_environment(status, manager.environment()) as service:
        status.started(PLAN, BACKEND, first_tile=0)
        service.started(PLAN, BACKEND, first_tile=0)
        assert manager.hear() == ["READY=1", "STATUS=openvino 1 on CPU, ready"]
        status.tile_done(tile_report(verdicts={"rgir": ALIVE, "ndsm": FROZEN}))
        assert manager.hear() == ["STATUS=1 tiles, full, ndsm dead (frozen)"]
        status.failed("disk\nfull")
    assert "STOPPING=1" in (last := manager.hear())
    assert last[-1] == "STATUS=failed: disk full"


def test_without_a_service_manager_nothing_happens(one_manager) -> None:
    with ServiceManager.from_environment(RunStatus(), {"WATCHDOG_USEC": "200000"}) as service:
        service.started(PLAN, BACKEND, first_tile=0)
    assert one_manager.hear_all(0.1) == []


def test_the_watchdog_is_answered_while_tiles_advance_and_not_when_they_stop(one_manager) -> None:
    status = RunStatus()
    environment = one_manager.environment(WATCHDOG_USEC=str(int(WATCHDOG_S * 1e6)), WATCHDOG_PID=str(os.getpid()))
    with ServiceManager.from_environment(status, environment):
        status.started(PLAN, BACKEND, first_tile=0)
        for _ in range(4):
            status.tile_done(tile_report())
            one_manager.hear_until("WATCHDOG=1")
        assert one_manager.hear_all(5 * WATCHDOG_S).count("WATCHDOG=1") <= 1, "one for the last tile, of twenty"
        status.tile_done(tile_report())
        one_manager.hear_until("WATCHDOG=1")


def test_the_watchdog_is_answered_while_the_waiting_and_while_publishing(one_manager) -> None:
    status = RunStatus()
    environment = one_manager.environment(WATCHDOG_USEC=str(int(WATCHDOG_S * 1e6)))
    with ServiceManager.from_environment(status, environment):
        status.started(PLAN, BACKEND, first_tile=0)
        status.waiting(True)
        for _ in range(6):
            one_manager.hear_until("WATCHDOG=1")
        status.waiting(False)
        answers = one_manager.hear_all(5 * WATCHDOG_S).count("WATCHDOG=1")
        assert answers <= 2, "the frame is there, and no tile comes of it"
        status.publishing()
        for _ in range(6):
            one_manager.hear_until("WATCHDOG=1")


@pytest.mark.parametrize(
    "variables",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}],
)
def test_a_watchdog_that_is_off_or_not_for_this_process_is_not_answered(variables, one_manager) -> None:
    status = RunStatus()
    with ServiceManager.from_environment(status, one_manager.environment(**variables)):
        status.started(PLAN, BACKEND, first_tile=0)
        status.waiting(True)
        assert "WATCHDOG=1" not in one_manager.hear_all(2 * WATCHDOG_S)


def test_a_service_manager_that_is_gone_is_reported_once_and_ends_nothing(tmp_path, caplog) -> None:
    status = RunStatus()
    environment = {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "40000"}
    with ServiceManager.from_environment(status, environment) as service:
        service.started(PLAN, BACKEND, first_tile=0)
        status.publishing()
        time.sleep(0.2)
    assert [record.message for record in caplog.records] == [
        f"systemd cannot be informed through {tmp_path / 'gone'}: [Errno 2] No such file or directory"
    ]


def test_an_address_that_is_no_unix_socket_is_refused_with_a_word(caplog) -> None:
    with ServiceManager.from_environment(RunStatus(), {"NOTIFY_SOCKET": "vsock:2:1234"}) as service:
        service.started(PLAN, BACKEND, first_tile=0)
    assert "'vsock:2:1234', neither a path nor abstract" in caplog.text
