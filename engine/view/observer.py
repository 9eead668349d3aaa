"""``--serve``: the run's side of the page. It writes finished pixels and one line a tile, and waits for nobody."""

from __future__ import annotations

import fcntl
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from engine.backends.base import BackendInfo
from engine.backends.resilient import BackendEvent
from engine.contract.sensors import Sensor
from engine.frame_log import FrameRecord
from engine.grid import Window
from engine.job import TileReport
from engine.journal import Switch
from engine.map_block import MapBlock
from engine.observer import Observer
from engine.plan import Plan
from engine.record import GridUsed, RasterUsed, RunRecord
from engine.telemetry.status import Phase
from engine.view import messages
from engine.view.address import listen
from engine.view.canvas import LiveCanvas, Shape

log = logging.getLogger(__name__)

PIPE_BYTES = 1 << 20
"""Lines that wait for the page's process; what does not fit is not told."""
LONGEST_REASON = 400
"""Characters of why a run failed."""
GOODBYE_S = 5.0
"""The page's process has so long to tell browsers how the run ended."""


class Outlet:
    """Lines into a pipe that is never waited for. From any thread."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor, self._rest, self._lock = descriptor, b"", threading.Lock()
        self.dropped = 0
        """Lines that found no room."""
        self.broken = False
        """Nobody reads any more."""

    def send(self, message: messages.Message) -> None:
        """Write a line whole, or drop it."""
        line = messages.encode(message)
        with self._lock:
            if self.broken:
                return
            if self._push():  # what is left of the line before comes first
                self._rest = line
                if self._push() or len(self._rest) < len(line):
                    return
                self._rest = b""
            self.dropped += 1

    def _push(self) -> bool:
        """Whether all of the rest went."""
        while self._rest:
            try:
                self._rest = self._rest[os.write(self._descriptor, self._rest) :]
            except BlockingIOError:
                return False
            except OSError as error:
                self._rest, self.broken = b"", True
                log.warning("the page has ended (%s); the run goes on without", error.strerror)
        return True

    def close(self) -> None:
        """Say the rest, as far as there is room for it, and end; a second call does nothing."""
        with self._lock:
            if not self.broken:
                self._push()
            self.broken = True
            if self._descriptor >= 0:  # the number may be another file's by now
                os.close(self._descriptor)
                self._descriptor = -1


class PageTeller(Observer):
    """Paints what is mapped and tells what happens.

    Args:
        canvas: to paint on.
        send: takes a message and does not wait.
    """

    sees_pixels = True

    def __init__(self, canvas: LiveCanvas, send: Callable[[messages.Message], None]) -> None:
        self._canvas, self._send = canvas, send
        self._began = time.monotonic()
        self._shape: Shape | None = None
        self._stamp = ""
        self._painted: list[tuple[str, Window]] = []
        """Frame and place; the next frame may begin before the last tile of this one is told."""
        self._reasons: dict[tuple[str, int], str] = {}
        """Of switches whose tiles are on their way."""
        self._lock = threading.Lock()

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """Say what runs."""
        self._began = time.monotonic()
        self._send(
            messages.Started(
                plan=plan.describe(),
                classes=tuple(plan.bundle.manifest.classes),
                backend=backend,
                started_utc=datetime.now(UTC).isoformat(timespec="seconds"),
                first_tile=first_tile,
                rate_hz=plan.request.rate_hz,
                deadline_ms=plan.request.deadline_ms,
            )
        )

    def waiting(self, waits: bool) -> None:
        """Say so."""
        self._send(messages.Waiting(waits=waits))

    def frame_begun(self, stamp: str, grid: GridUsed, inputs: Mapping[Sensor, RasterUsed]) -> None:
        """Clear the canvas. In the write thread."""
        self._stamp, self._shape = stamp, Shape.of(grid.height, grid.width)
        self._canvas.clear(self._shape)
        self._send(messages.FrameBegun(stamp=stamp, grid=grid, inputs=inputs))

    def mapped(self, block: MapBlock) -> None:
        """Paint it. In the write thread."""
        assert self._shape is not None
        self._canvas.paint(self._shape, block)
        with self._lock:
            self._painted.append((self._stamp, block.window))

    def switched(self, stamp: str, switch: Switch) -> None:
        """Remember why. In the write thread."""
        self._reasons[stamp, switch.tile] = switch.reason

    def tile_done(self, report: TileReport) -> None:
        """One line."""
        with self._lock:
            painted = tuple(window for stamp, window in self._painted if stamp == report.frame)
            self._painted = [each for each in self._painted if each[0] != report.frame]
        self._send(
            messages.TileDone(
                at_s=round(time.monotonic() - self._began, 3),
                frame=report.frame,
                tile=report.tile.index,
                target=report.tile.target,
                painted=painted,
                scenario=report.scenarios[0] if report.scenarios else None,
                lost=report.lost,
                skipped=report.skipped,
                switched=report.switched,
                reason=self._reasons.pop((report.frame, report.tile.index), ""),
                verdicts=report.verdicts,
                latency_ms=round(report.latency_s * 1e3, 3),
                queue_depth=report.queue_depth,
            )
        )

    def frame_done(self, record: FrameRecord) -> None:
        """One line."""
        self._send(
            messages.FrameDone(
                stamp=record.stamp, mapped=record.mapped, dropped=record.dropped, latency_ms=record.latency_ms
            )
        )

    def backend_changed(self, event: BackendEvent, backend: BackendInfo) -> None:
        """One line."""
        self._send(messages.BackendChanged(event=event, backend=backend))

    def publishing(self) -> None:
        """One line."""
        self._send(messages.PhaseBegun(phase=Phase.PUBLISHING))

    def finished(self, record: RunRecord) -> None:
        """One line."""
        self._send(messages.PhaseBegun(phase=Phase.FINISHED))


class Page:
    """Serves the page of a run from a process of its own; a context manager that gives the run's observer.

    Args:
        address: ``[HOST]:PORT`` to listen on.
        output: folder of the run.
        base: a base layer, see :class:`engine.rasters.backdrop.BaseLayer`.

    Raises:
        UsageError: nobody can listen there, or the extra ``view`` is not installed.
    """

    def __init__(self, address: str, output: Path, base: str = "") -> None:
        listening, self.invitation = listen("--serve", address)
        self._canvas = LiveCanvas()
        reading, writing = os.pipe()
        with suppress(AttributeError, OSError):  # Linux alone; the default holds a hundred tiles
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        handles = (listening.fileno(), self._canvas.descriptor)
        command = [sys.executable, "-m", "engine.view.process", str(output.absolute()), *map(str, handles), base]
        environment = {**os.environ, **self.invitation.environment}
        try:
            self._process = subprocess.Popen(command, stdin=reading, pass_fds=handles, env=environment)
        except BaseException:
            os.close(writing)
            raise
        finally:
            os.close(reading)
            listening.close()
        self._outlet = Outlet(writing)

    def __enter__(self) -> PageTeller:
        log.info("the map is at %s", self.invitation.url)
        return PageTeller(self._canvas, self._outlet.send)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _at: object) -> None:
        """Tell how the run ended, and wait a moment until browsers know."""
        if error is not None:
            self._outlet.send(messages.PhaseBegun(phase=Phase.FAILED, reason=str(error)[:LONGEST_REASON]))
        self._outlet.close()
        try:
            self._process.wait(GOODBYE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._canvas.close()
        if self._outlet.dropped:
            log.warning("%d lines were not told to the page, whose process was too slow", self._outlet.dropped)
