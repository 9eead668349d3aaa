"""A backend that survives its library: created again after an error, replaced when it hangs; no tile is lost.

::

    error    close it, open the same backend again (its golden tile is checked), submit what was in flight again
    lost     its device is lost to this process: the next backend, with the advice to restart
    again    the next backend of the chain, with a warning
    hang     no answer for ``watchdog_s``: the next backend at once; the hung threads are left behind
    none     every tile in flight fails with BackendError

A hung library cannot be stopped, only left: its late answers are ignored, and a process that has left one behind ends
with :func:`leave`, because the interpreter would wait for its threads.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from typing import NoReturn, TypeVar

from engine.backends.base import Backend, Inputs, Output, Outputs
from engine.backends.options import CHAIN, BackendName, BackendOptions
from engine.backends.remembered import Remembered
from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError, DeviceLostError
from engine.contract.sensors import Scenario
from engine.deadline import left_behind
from engine.telemetry.streams import let_go_of_streams

log = logging.getLogger(__name__)

_T = TypeVar("_T")

CLOSE_LIMIT_S = 10.0
"""Longest wait for a backend to close; one that has failed may hang instead."""
OPEN_LIMIT_S = 300.0
"""Longest wait for a replacement to open: compiling three graphs takes seconds on a server, more on a small board."""

STOPPED_S = 2.0
"""A watchdog that wakes so much too late was stopped itself: a paused container, SIGSTOP, a debugger."""


class What(StrEnum):
    """What happened to a backend."""

    ERROR = "error"
    """It failed on a tile."""
    LOST = "lost"
    """Its device is lost until the process ends: opening it again would fail as well."""
    HUNG = "hung"
    """It gave no answer for the watchdog's time, or did not close or open."""
    REFUSED = "refused"
    """It could not be opened, or did not reproduce the golden tile."""
    OPENED = "opened"
    """It has taken over, and computes the tiles in flight again."""


@dataclass(frozen=True, kw_only=True)
class BackendEvent:
    """One entry of ``backend_events`` in ``run.json``."""

    at_utc: str
    backend: str
    what: What
    detail: str
    tiles_in_flight: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _PendingTile:
    scenario: Scenario
    inputs: Inputs
    answer: Future[Outputs] = field(default_factory=Future)


class _Attempt:
    """One opened backend, fed by a thread of its own: a library that hangs in ``submit`` must not hold the caller."""

    def __init__(self, backend: Backend, answered: Callable[[_Attempt, _PendingTile, Future[Outputs]], None]) -> None:
        self.backend, self._answered = backend, answered
        self._tiles: queue.SimpleQueue[_PendingTile | None] = queue.SimpleQueue()
        self._feeder = threading.Thread(target=self._feed, name=f"feed {backend.info.name}", daemon=True)
        self._feeder.start()

    def send(self, tile: _PendingTile) -> None:
        self._tiles.put(tile)

    def close(self) -> None:
        self._tiles.put(None)
        self._feeder.join()
        self.backend.close()

    def _feed(self) -> None:
        while (tile := self._tiles.get()) is not None:
            try:
                answer = self.backend.submit(tile.scenario, tile.inputs)
            except Exception as error:  # it reaches the caller by the tile's future, as any other failure does
                answer = Future()
                answer.set_exception(error)
            answer.add_done_callback(partial(self._answered, self, tile))


class ResilientBackend(Backend):
    """A chain of backends that answers as one.

    Args:
        first: opens the backend to begin with.
        chain: by name, the backends to fall back on in this order; the first one's own name marks where it stands.
        watchdog_s: a backend that owes answers and gives none for so long counts as hung.

    Raises:
        EngineError: whatever ``first`` raises.
    """

    def __init__(
        self, first: Callable[[], Backend], chain: Mapping[str, Callable[[], Backend]], *, watchdog_s: float = 30.0
    ) -> None:
        self._chain, self._watchdog_s = dict(chain), watchdog_s
        self._owed: dict[_PendingTile, None] = {}
        """Tiles without an answer, in the order in which they came."""
        self._changed = threading.Condition()
        self._failure: BackendError | None = None
        """What the current attempt failed with."""
        self._end: BackendError | None = None
        """Set when no backend is left."""
        self._closed = False
        self._created_again: set[str] = set()
        self._events: list[BackendEvent] = []
        self._told = 0
        opened = _open_first(first)
        self._chain.setdefault(opened.info.name, first)
        self.info = opened.info
        self._heard_at = time.monotonic()
        self._attempt: _Attempt | None = _Attempt(opened, self._answered)
        self._watching = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._watching.start()

    @property
    def events(self) -> tuple[BackendEvent, ...]:
        """Everything that went wrong, and what became of it."""
        with self._changed:
            return tuple(self._events)

    def news(self) -> tuple[BackendEvent, ...]:
        """The events since the last call."""
        with self._changed:
            found, self._told = tuple(self._events[self._told :]), len(self._events)
        return found

    def submit(self, scenario: Scenario, inputs: Inputs) -> Future[Outputs]:
        """Queue one tile."""
        tile = _PendingTile(scenario=scenario, inputs=inputs)
        with self._changed:
            if self._end is not None:
                tile.answer.set_exception(self._end)
                return tile.answer
            if not self._owed:
                self._heard_at = time.monotonic()
            self._owed[tile] = None
            if self._attempt is not None:  # else it is sent when the next one has opened
                self._attempt.send(tile)
        return tile.answer

    def close(self) -> None:
        """Wait for the tiles in flight, as long as they come; free the graphs."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            attempt = self._attempt
            self._changed.notify_all()
        self._watching.join(OPEN_LIMIT_S)
        if attempt is not None:
            self._shut(attempt)
        with self._changed:
            owed, self._owed = self._owed, {}
        for tile in owed:
            tile.answer.set_exception(BackendError("the backend was closed before it answered"))

    def _answered(self, attempt: _Attempt, tile: _PendingTile, inner: Future[Outputs]) -> None:
        """Called in a thread of the library, or of the feeder."""
        error = BackendError("the library cancelled a tile") if inner.cancelled() else inner.exception()
        with self._changed:
            if attempt is not self._attempt or tile not in self._owed:
                return  # given up on meanwhile
            if isinstance(error, BackendError):
                if self._failure is None:
                    self._failure = error
                    self._changed.notify_all()
                return
            del self._owed[tile]
            self._heard_at = time.monotonic()
        if error is not None:
            tile.answer.set_exception(error)
        else:
            tile.answer.set_result(inner.result())

    def _watch(self) -> None:
        while True:
            with self._changed:
                while not self._closed and self._failure is None:
                    silent_s = time.monotonic() - self._heard_at if self._owed else 0.0
                    if silent_s >= self._watchdog_s:
                        break
                    self._wait(self._watchdog_s - silent_s)
                if self._closed:
                    return
                failure, self._failure = self._failure, None
                broken, self._attempt = self._attempt, None
            assert broken is not None
            self._recover(broken, failure)
            if self._end is not None:
                return

    def _wait(self, longest_s: float) -> None:
        """Wait for a change; time for which the whole process was stopped is not held against the backend."""
        began = time.monotonic()
        self._changed.wait(longest_s)
        if time.monotonic() - began > longest_s + STOPPED_S:
            self._heard_at = time.monotonic()

    def _recover(self, broken: _Attempt, failure: BackendError | None) -> None:
        """Replace an attempt that failed, or hung when ``failure`` is None."""
        name = broken.backend.info.name
        names = list(self._chain)
        candidates = names[names.index(name) + 1 :]
        if failure is None:
            left_behind.set()
            self._note(name, What.HUNG, f"no answer for {self._watchdog_s:g} s")
        elif isinstance(failure, DeviceLostError):
            self._note(name, What.LOST, str(failure))
            self._shut(broken)
        else:
            self._note(name, What.ERROR, str(failure))
            self._shut(broken)
            if name not in self._created_again:
                self._created_again.add(name)
                candidates = [name, *candidates]
        for candidate in candidates:
            try:
                opened = _within(OPEN_LIMIT_S, self._chain[candidate])
            except TimeoutError:
                left_behind.set()
                self._note(candidate, What.HUNG, f"not open after {OPEN_LIMIT_S:g} s")
            except Exception as error:  # next to a library that has failed, another may fail in any way
                self._note(candidate, What.REFUSED, str(error))
            else:
                self._install(opened)
                return
        self._give_up()

    def _install(self, opened: Backend) -> None:
        attempt = _Attempt(opened, self._answered)
        again = "tiles in flight are computed again"
        self._note(opened.info.name, What.OPENED, f"{opened.info.library} on {opened.info.device}; {again}")
        with self._changed:
            if not self._closed:
                self.info = opened.info
                self._attempt = attempt
                self._heard_at = time.monotonic()
                for tile in self._owed:
                    attempt.send(tile)
                return
        self._shut(attempt)

    def _give_up(self) -> None:
        story = "; ".join(f"{event.backend} {event.what}: {event.detail}" for event in self.events)
        end = BackendError(f"no backend is left ({story}): see what works with `python -m engine.doctor`")
        with self._changed:
            self._end = end
            owed, self._owed = self._owed, {}
        for tile in owed:
            tile.answer.set_exception(end)

    def _shut(self, attempt: _Attempt) -> None:
        name = attempt.backend.info.name
        try:
            _within(CLOSE_LIMIT_S, attempt.close)
        except TimeoutError:
            left_behind.set()
            self._note(name, What.HUNG, f"not closed after {CLOSE_LIMIT_S:g} s")
        except Exception as error:  # a library that has failed may fail again here, and there is nothing left to save
            self._note(name, What.ERROR, f"while closing: {error}")

    def _note(self, name: str, what: What, detail: str) -> None:
        with self._changed:
            event = BackendEvent(
                at_utc=datetime.now(UTC).isoformat(timespec="milliseconds"),
                backend=name,
                what=what,
                detail=detail,
                tiles_in_flight=len(self._owed),
            )
            self._events.append(event)
        log.warning(
            "backend %s %s: %s",
            name,
            what,
            detail,
            extra={"event": "backend", "backend": name, "what": str(what), "tiles_in_flight": event.tiles_in_flight},
        )


def _open_first(first: Callable[[], Backend]) -> Backend:
    """The backend to begin with, which may hang as any other may."""
    try:
        return _within(OPEN_LIMIT_S, first)
    except TimeoutError as error:
        left_behind.set()
        raise BackendError(
            f"no backend was open after {OPEN_LIMIT_S:g} s: see what works with `python -m engine.doctor`"
        ) from error
    except KeyboardInterrupt:
        left_behind.set()
        raise


def open_chain(
    options: BackendOptions,
    bundle: Bundle,
    *,
    scenarios: Iterable[Scenario],
    wanted: Iterable[Output],
    remembers: bool = True,
) -> ResilientBackend:
    """The backend that is asked for, opened again once if it fails; with ``auto`` the rest of :data:`CHAIN` follows.

    Args and errors are those of :meth:`engine.backends.options.BackendOptions.open`; ``remembers`` makes use of what
    earlier starts found out.
    """
    scenarios, wanted = tuple(scenarios), tuple(wanted)

    def opener(name: BackendName, remembered: Remembered | None = None) -> Callable[[], Backend]:
        asked = replace(options, name=name)
        return lambda: asked.open(bundle, scenarios=scenarios, wanted=wanted, remembered=remembered)

    chain = CHAIN if options.name == "auto" else (options.name,)
    first = opener(
        options.name, Remembered.here() if remembers else None
    )  # after a failure nothing that was remembered is believed
    return ResilientBackend(first, {each: opener(each) for each in chain}, watchdog_s=options.watchdog_s)


def leave(exit_code: int) -> NoReturn:
    """End the process, without waiting for library threads that will never return if any was left behind."""
    let_go_of_streams()
    if not left_behind.is_set():
        sys.exit(exit_code)
    logging.shutdown()
    os._exit(exit_code)


def _within(limit_s: float, function: Callable[[], _T]) -> _T:
    """What ``function`` returns or raises; TimeoutError when it takes longer, while it goes on in a daemon thread."""
    answer: Future[_T] = Future()

    def call() -> None:
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return answer.result(limit_s)
