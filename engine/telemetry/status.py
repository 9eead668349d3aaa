"""Is the run advancing? One answer for ``/healthz``, the systemd watchdog and ``systemctl status``."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from engine.backends.base import BackendInfo
from engine.contract.sensors import Sensor
from engine.job import TileReport
from engine.observer import Observer

if TYPE_CHECKING:
    from engine.health.monitor import Verdict
    from engine.plan import Plan


class Phase(StrEnum):
    """Where a run is."""

    STARTING = "starting"
    """Checking, opening the backend, warming up."""
    RUNNING = "running"
    PUBLISHING = "publishing"
    """Writing the maps as Cloud-Optimised GeoTIFF; no tiles are due any more."""
    FINISHED = "finished"
    FAILED = "failed"


class RunStatus(Observer):
    """The last word on a run, kept by the run and read by anybody from any thread.

    An :class:`~engine.observer.Observer`. Written by one thread, and each attribute is replaced whole, so that readers
    need no lock.

    A sign of life is a tile that was finished. While the source waits for what is not there yet (a frame that is not
    due, a folder without news) and while maps are published no tile is due, and that counts as alive.

    Args:
        clock: seconds that never jump; for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._moved_at = clock()
        self._waiting = False
        self._began_at, self._first_tile = self._moved_at, 0
        self.phase = Phase.STARTING
        self.reason = ""
        """Why the run failed."""
        self.tiles_done = 0
        self.tiles_planned: int | None = None
        """None where nobody knows how many will come."""
        self.tiles_dropped = 0
        self.last: TileReport | None = None
        self._last_at = self._moved_at
        self.verdicts: Mapping[Sensor, Verdict] = {}

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """The backend is warm."""
        self.tiles_planned = plan.tiles
        self.tiles_done = self._first_tile = first_tile
        self._move(Phase.RUNNING)
        self._began_at = self._moved_at

    def tile_done(self, report: TileReport) -> None:
        """A sign of life."""
        self.tiles_done += 1
        self.tiles_dropped += report.skipped
        self.verdicts = report.verdicts
        self._moved_at = self._last_at = self._clock()
        self.last = report

    def publishing(self) -> None:
        """No tile is due any more."""
        self._move(Phase.PUBLISHING)

    def succeeded(self) -> None:
        """The results are in place."""
        self._move(Phase.FINISHED)

    def failed(self, reason: str) -> None:
        """The run ends without its results."""
        self.reason = reason
        self._move(Phase.FAILED)

    def waiting(self, waits: bool) -> None:
        """The run says, from any thread: it waits for the world (True), the next tile is there (False)."""
        if not waits:
            self._moved_at = self._clock()  # what follows has its time from now on
        self._waiting = waits

    def silent_s(self) -> float:
        """Seconds since the last sign of life; 0 while no tile is due."""
        due = self.phase in (Phase.STARTING, Phase.RUNNING) and not self._waiting
        return self._clock() - self._moved_at if due else 0.0

    def health(self, stall_s: float) -> tuple[bool, dict[str, Any]]:
        """Whether the run is alive, and why, as JSON values. A dead sensor is no reason not to be.

        Args:
            stall_s: longest silence of a run that is alive.
        """
        silent_s, reason = self.silent_s(), self.describe()
        status = "failed" if self.phase is Phase.FAILED else "stalled" if silent_s > stall_s else "ok"
        if status == "stalled":
            reason = f"no sign of life for {silent_s:.0f} s (limit {stall_s:g} s): {reason}"
        last = self.last
        return status == "ok", {
            "status": status,
            "reason": reason,
            "phase": self.phase.value,
            "tiles": {"done": self.tiles_done, "planned": self.tiles_planned, "dropped": self.tiles_dropped},
            "last_tile_age_s": None if last is None else round(self._clock() - self._last_at, 3),
            "scenario": last.scenarios[0].value if last is not None and last.scenarios else None,
            "sensors": {
                sensor.value: {"state": verdict.state, "fault": verdict.fault, "detail": verdict.detail}
                for sensor, verdict in self.verdicts.items()
            },
        }

    def describe(self) -> str:
        """One line for people, such as ``412 of 1200 tiles, 9.8 tiles/s, missing_ndsm, ndsm dead (frozen)``."""
        if self.phase is Phase.FAILED:
            return f"failed: {self.reason}"
        if self.phase is not Phase.RUNNING:
            return self.phase.value
        parts = [f"{self.tiles_done} {f'of {self.tiles_planned} ' if self.tiles_planned else ''}tiles"]
        if self.tiles_planned and self._moved_at > self._began_at:
            parts.append(f"{(self.tiles_done - self._first_tile) / (self._moved_at - self._began_at):.1f} tiles/s")
        if self.tiles_dropped:
            parts.append(f"{self.tiles_dropped} dropped")
        if self.last is not None:
            parts.append("+".join(self.last.scenarios) or "no data")
        parts += [f"{sensor} {each.state} ({each.fault})" for sensor, each in self.verdicts.items() if each.fault]
        if self._waiting:
            parts.append("waiting for the next frame")
        return ", ".join(parts)

    def _move(self, phase: Phase) -> None:
        self._moved_at = self._clock()
        self.phase = phase
