"""What a fleet says while it maps: a bar over all units, or a line of JSON for each."""

from __future__ import annotations

import logging
import sys
from typing import Any, Self

import msgspec
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from engine.console import emit
from engine.fleet.book import Book, FleetRecord
from engine.fleet.worker import UnitOutcome, UnitState
from engine.job import TileReport
from engine.observer import Observer

log = logging.getLogger(__name__)


class FleetTeller(Observer):
    """Says nothing but why units fail. A context manager; also watches each run, where there is one to watch."""

    def begin(self, units: int, where: str) -> None:
        """So many units are to be mapped, by whom."""

    def unit(self, book: Book, outcome: UnitOutcome) -> None:
        """A unit has ended."""
        if outcome.state is UnitState.FAILED:
            log.error("%s: %s", outcome.unit, outcome.reason, extra={"event": "unit", "unit": outcome.unit})

    def end(self, record: FleetRecord, output: str) -> None:
        """The books are closed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        pass


class UnitBar(FleetTeller):
    """A progress bar with what failed, the rate and the time left."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._logging = logging_redirect_tqdm()
        self._share, self._shown = 0.0, 0.0
        """What a tile of the unit under way adds; what of it the bar shows."""

    def __enter__(self) -> Self:
        self._logging.__enter__()
        return self

    def begin(self, units: int, where: str) -> None:
        """Open the bar."""
        print(f"{units} units, mapped by {where}", file=sys.stderr)
        bar = "{l_bar}{bar}| {n:.1f}/{total} units [{elapsed}<{remaining}{postfix}]"
        self._bar = tqdm(total=units, bar_format=bar, file=sys.stderr, mininterval=0.2)

    def started(self, plan: Any, backend: Any, *, first_tile: int) -> None:
        """A unit begins."""
        self._share = 1 / max(plan.tiles or 1, 1)

    def tile_done(self, report: TileReport) -> None:
        """The unit under way has one more tile."""
        if self._bar is not None and self._shown + self._share < 1:
            self._shown += self._share
            self._bar.update(self._share)

    def unit(self, book: Book, outcome: UnitOutcome) -> None:
        """A unit has ended."""
        super().unit(book, outcome)
        self._shown = 0.0
        if self._bar is not None:
            failed = f", {book.states[UnitState.FAILED]} failed" if book.states[UnitState.FAILED] else ""
            self._bar.set_postfix_str(f"{book.mpx / book.seconds:.1f} Mpx/s{failed}", refresh=False)
            self._bar.update(book.ended - self._bar.n)

    def end(self, record: FleetRecord, output: str) -> None:
        """What became of all."""
        if self._bar is not None:
            self._bar.close()
        print(f"{summary(record)}: {output}", file=sys.stderr)

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None:
            self._bar.close()
        self._logging.__exit__(*error)


class JsonUnits(FleetTeller):
    """``started``, ``unit`` for each, ``finished`` with the whole of fleet.json."""

    def begin(self, units: int, where: str) -> None:
        """How many there are."""
        emit(event="started", units=units, where=where)

    def unit(self, book: Book, outcome: UnitOutcome) -> None:
        """A unit has ended."""
        told = {"unit": outcome.unit, "state": outcome.state, "seconds": outcome.seconds, "reason": outcome.reason}
        emit(event="unit", **told, ended=book.ended, units=book.total)

    def end(self, record: FleetRecord, output: str) -> None:
        """The whole of fleet.json."""
        emit(event="finished", output=output, fleet=msgspec.to_builtins(record))


def summary(record: FleetRecord) -> str:
    """In a line."""
    counts = record.states
    parts = [f"{counts[UnitState.MAPPED]} mapped", f"{counts[UnitState.THERE]} there already"]
    parts += [f"{counts[UnitState.FAILED]} failed"] if counts[UnitState.FAILED] else []
    parts += [f"{record.incomplete} incomplete"] if record.incomplete else []
    left = record.units - sum(counts.values())
    parts += [f"{left} left"] if left else []
    return f"of {record.units} units {', '.join(parts)} in {record.seconds:.1f} s ({record.mpx_per_s:.2f} Mpx/s)"
