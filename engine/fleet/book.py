"""The books of a fleet: which units wait, what became of the others, and what is left of it on the disk.

::

    OUTPUT/units.csv     a row for each unit, in the order in which they ended
    OUTPUT/fleet.json    the sums, and why units failed
"""

from __future__ import annotations

import csv
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import msgspec

from engine.contract.atomic import write_whole
from engine.contract.errors import writing
from engine.fleet.units import Unit
from engine.fleet.worker import ATTEMPTS, UnitOutcome, UnitState
from engine.record import GridUsed
from engine.version import own_version

NAME, UNITS_NAME = "fleet.json", "units.csv"
DEGREES = ("west", "south", "east", "north")
COLUMNS = ("unit", "state", "attempts", "seconds", "mpx", "tiles_lost", "worker", *DEGREES, "reason")
AGAIN_S = 5.0
"""A unit that somebody else maps is looked at again after so long."""
MAX_REASONS = 1000
MAX_PLACED = 10_000
"""A virtual raster over more maps than that is slow to open."""


class FleetRecord(msgspec.Struct, frozen=True, kw_only=True):
    """``fleet.json``."""

    version: str
    bundle: str
    """SHA-256 of its manifest."""
    started_utc: str
    seconds: float
    ended: str
    """``complete``, or what ended it before."""
    shard: str | None
    units: int
    states: Mapping[UnitState, int]
    incomplete: int
    """Published, but tiles were lost or no sensor saw anything."""
    retries: int
    mpx: float
    """Mapped this time."""
    mpx_per_s: float
    workers: Mapping[str, int]
    """Units mapped this time, by worker."""
    failed: Mapping[str, str]
    """Reasons by unit, of the first of them."""


class Book:
    """Hands out units and writes down what becomes of them. Use from one thread.

    Args:
        units: to be mapped.
        folder: of this machine, where ``units.csv`` and ``fleet.json`` go.
        tell: is told of each unit that has ended.
    """

    def __init__(self, units: Iterable[Unit], folder: Path, *, tell: Callable[[Book, UnitOutcome], None]) -> None:
        self._waiting = deque(units)
        self.total = len(self._waiting)
        self._later: deque[tuple[float, Unit]] = deque()
        """Units that somebody else maps, and when they are looked at again."""
        self._attempts: Counter[tuple[str, int | None]] = Counter()
        self._cut: dict[str, tuple[Unit, set[int]]] = {}
        """Units that wait for their blocks, and which these are."""
        self.states: Counter[UnitState] = Counter()
        self.workers: Counter[str] = Counter()
        self.failed: dict[str, str] = {}
        self.placed: dict[str, GridUsed] = {}
        """Grids of what is published, by unit, of the first of them."""
        self.incomplete, self.retries, self.mpx = 0, 0, 0.0
        self._began, self._started = time.perf_counter(), datetime.now(UTC)
        self._tell, self._folder = tell, folder
        self._temporary = folder / f".{UNITS_NAME}.{os.getpid()}"
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._rows: TextIO = self._temporary.open("w", newline="", encoding="utf-8")
        self._csv = csv.DictWriter(self._rows, COLUMNS, lineterminator="\n")
        self._csv.writeheader()

    @property
    def ended(self) -> int:
        """Units that need no more work."""
        return sum(self.states.values())

    @property
    def waiting(self) -> int:
        """Units that :meth:`take` can hand out now."""
        return len(self._waiting)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.perf_counter() - self._began

    def take(self) -> Unit | None:
        """The next unit; None while there is none, and for ever once :meth:`wait_s` is None and none is under way."""
        if self._waiting:
            return self._waiting.popleft()
        if self._later and self._later[0][0] <= time.monotonic():
            return self._later.popleft()[1]
        return None

    def wait_s(self) -> float | None:
        """How long until :meth:`take` may have another; None where only units under way can bring one."""
        return max(self._later[0][0] - time.monotonic(), 0.0) if self._later else None

    def give_back(self, unit: Unit) -> None:
        """Whoever took it is gone, or never began."""
        self._waiting.append(unit)

    def settle(self, unit: Unit, outcome: UnitOutcome) -> None:
        """Write down what became of a unit, or put it back."""
        if outcome.state is UnitState.CLAIMED:
            self._later.append((time.monotonic() + AGAIN_S, unit))
            return
        if outcome.state is UnitState.CUT:
            self._cut[unit.name] = unit, set(outcome.blocks)
            self._waiting.extendleft(replace(unit, block=number) for number in reversed(outcome.blocks))
            return
        attempt = unit.name, unit.block
        self._attempts[attempt] += 1
        if outcome.state is UnitState.FAILED and outcome.again and self._attempts[attempt] < ATTEMPTS:
            self.retries += 1
            self.give_back(unit)
            return
        attempts = self._attempts.pop(attempt)
        if unit.block is not None:
            if unit.name not in self._cut:  # another of its blocks has failed
                return
            whole, left = self._cut[unit.name]
            left.discard(unit.block)
            if outcome.state is not UnitState.FAILED:
                if not left:
                    del self._cut[unit.name]
                    self._waiting.appendleft(whole)
                return
            del self._cut[unit.name]
            self._waiting = deque(each for each in self._waiting if each.name != unit.name)
        self.states[outcome.state] += 1
        marker = outcome.marker
        if outcome.state is UnitState.FAILED and len(self.failed) < MAX_REASONS:
            self.failed[unit.name] = outcome.reason
        if marker is not None and len(self.placed) < MAX_PLACED:
            self.placed[unit.name] = marker.grid
        self.incomplete += marker is not None and marker.incomplete
        if marker is not None and outcome.state is UnitState.MAPPED:
            self.mpx += marker.mpx
            self.workers[marker.worker] += 1
        self._write(outcome, attempts)
        self._tell(self, outcome)

    def close(
        self, *, bundle: str, ended: str = "complete", shard: str | None = None
    ) -> tuple[FleetRecord, tuple[str, str]]:
        """Put ``units.csv`` and ``fleet.json`` in place.

        Args:
            bundle: SHA-256 of its manifest.
            ended: see :class:`FleetRecord`.
            shard: which, as in ``3/10``; then both files are called after it.

        Returns:
            The record, and what both files are called.

        Raises:
            OutputError: they cannot be written.
        """
        record = FleetRecord(
            version=own_version(),
            bundle=bundle,
            started_utc=self._started.isoformat(timespec="seconds"),
            seconds=round(self.seconds, 3),
            ended=ended,
            shard=shard,
            units=self.total,
            states={
                state: self.states[state] for state in UnitState if state not in (UnitState.CLAIMED, UnitState.CUT)
            },
            incomplete=self.incomplete,
            retries=self.retries,
            mpx=round(self.mpx, 3),
            mpx_per_s=round(self.mpx / self.seconds, 3),
            workers=dict(self.workers),
            failed=self.failed,
        )
        label = "" if shard is None else f"-{shard.replace('/', '-of-')}"
        units, sums = (name.replace(".", f"{label}.") for name in (UNITS_NAME, NAME))
        with writing(self._folder):
            self._rows.flush()
            os.fsync(self._rows.fileno())
            self._rows.close()
            self._temporary.replace(self._folder / units)
            content = msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"
            write_whole(self._folder / sums, content, durable=True)
        return record, (units, sums)

    def _write(self, outcome: UnitOutcome, attempts: int) -> None:
        marker = outcome.marker
        row: dict[str, Any] = {"unit": outcome.unit, "state": outcome.state, "attempts": attempts}
        row |= {"seconds": outcome.seconds, "reason": outcome.reason}
        if marker is not None:
            row |= {"mpx": round(marker.mpx, 3), "tiles_lost": marker.tiles_lost, "worker": marker.worker}
            row |= dict(zip(DEGREES, marker.degrees or (), strict=False))
        with writing(self._temporary):
            self._csv.writerow(row)
            self._rows.flush()

    def __enter__(self) -> Book:
        return self

    def __exit__(self, *_error: object) -> None:
        self._rows.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)
