"""A folder into which frames land as files: which are whole, which belong together, in which order they go.

A frame is one raster per sensor with the same stamp (:mod:`engine.live.frame_name`).

**Whole.** A file is not opened before it has landed whole. A sidecar written after its file vouches for it. Without one
its size and time must be the same in two looks, and every byte range that the TIFF names must be there
(:mod:`engine.contract.tiff`). A file that was renamed into place is therefore taken at the second look.

**Pairs.** The partner of a file is awaited for a set time, counted from the moment the first of them was whole; then
the frame goes without it (LATE). A partner that comes later is counted and not mapped, as are duplicates. A file that
rests unfinished for :data:`STALLED_S` will not be finished by anyone: READ_ERROR.

**Order.** Frames go by stamp, numbers compared as numbers. A frame waits for one of an earlier stamp that has begun to
land, no longer than it would for a partner. It does not wait for what nobody has seen: a frame whose first file lands
after a later frame has gone is mapped when it comes, and counted.

The folder is looked at every :data:`POLL_S` rather than watched with inotify: the kernel tells only of changes that it
makes itself, never of those that another machine makes on a network mount; its queue overflows; and a scan would be
needed all the same, for what landed before the start and for files at rest.
"""

from __future__ import annotations

import logging
import math
import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from engine.contract.errors import InputError
from engine.contract.formats import MalformedError, MismatchError, from_json, read_file
from engine.contract.sensors import Sensor
from engine.contract.tiff import unfinished
from engine.deadline import MOST_HANGING, Caller, DeadlineError, too_many_hang
from engine.frames import Frame
from engine.health.monitor import Absent, Fault
from engine.live.frame_name import Pattern, Sidecar, StampOrder, check_stamp, stamp_order

log = logging.getLogger(__name__)

_T = TypeVar("_T")

POLL_S = 0.05
STALLED_S = 5.0
SIDECAR_LIMIT_BYTES = 64 << 10
RECENT_FILES = 64
"""So many files taken last are looked at again, for one delivered twice; to look at all would take ever longer."""

_State = tuple[int, int]
"""Size in bytes and modification time in nanoseconds."""


@dataclass(kw_only=True)
class Arrivals:
    """What landed and was not mapped, or not in its turn."""

    duplicates: int = 0
    """Files of a sensor and stamp that another file had delivered."""
    late: int = 0
    """Partners that came after their frame had gone without them."""
    out_of_order: int = 0
    """Frames that went after one of a later stamp."""
    unfinished: int = 0
    """Files that were never finished."""
    ignored: int = 0
    """Sidecars that say nothing of use."""
    quarantined: int = 0
    """Files that are not mapped because of what they are called: a stamp that cannot name a folder of results, or
    names one that is there and not ours."""
    silent: int = 0
    """Files whose disk gives no answer in time; their frames are mapped without them, or without the rest of them."""


@dataclass(kw_only=True)
class _Landing:
    """A file that has been seen and not been taken yet."""

    sensor: Sensor
    stamp: str
    resting_since: float
    state: _State | None = None
    vouched: bool = False


@dataclass(kw_only=True)
class _Pending:
    """A frame that has begun to land."""

    names: dict[Sensor, str] = field(default_factory=dict)
    seen: dict[Sensor, Path | Absent] = field(default_factory=dict)
    first_at: float | None = None
    ready_at: float | None = None


class LiveFolder:
    """Finds frames in a folder. Use from one thread.

    Args:
        folder: where frames land; files in its subfolders are not seen.
        sensors: those expected to deliver; files of others are not seen.
        pattern: of file names; None takes only files that a sidecar tells of.
        partner_wait_s: how long a frame waits for a sensor after the first has delivered.
        done: stamps that have been mapped already, and the sensors that delivered.
        refuses: why a stamp must not be mapped; None where it may.
        limit_s: longest wait for the disk of a file; None waits without end.

    Raises:
        InputError: there is no such folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        sensors: frozenset[Sensor],
        pattern: Pattern | None,
        partner_wait_s: float,
        done: Mapping[str, frozenset[Sensor]] | None = None,
        refuses: Callable[[str], str | None] = lambda _: None,
        limit_s: float | None = None,
    ) -> None:
        if not folder.is_dir():
            raise InputError(f"frames land in a folder; {folder} is none: create it, or name another")
        self.arrivals = Arrivals()
        self.changed_at = -math.inf
        """When something was last seen to land or to grow."""
        self.path, self.sensors, self._pattern = folder, sensors, pattern
        self._wait_s, self._refuses = partner_wait_s, refuses
        self._caller, self._counting = None if limit_s is None else Caller(limit_s), threading.Lock()
        self._landing: dict[str, _Landing] = {}
        self._pending: dict[str, _Pending] = {}
        self._gone: dict[str, frozenset[Sensor]] = {}
        self._last: StampOrder | None = None
        self.skip(done or {})
        self._taken: set[str] = set()
        self._recent: deque[tuple[str, _State | None]] = deque(maxlen=RECENT_FILES)
        self._unreadable: dict[str, float] = {}
        """Sidecars that are no JSON yet, and since when."""
        self._missing = self._wondered = False
        self._first_look = True

    def skip(self, done: Mapping[str, frozenset[Sensor]]) -> None:
        """Leave out frames that have been dealt with: their stamps, and the sensors that delivered."""
        self._gone = dict(done)
        self._last = max(map(stamp_order, self._gone), default=None)

    @property
    def waiting(self) -> bool:
        """Some frame has begun to land and has not gone yet."""
        return bool(self._pending)

    def poll(self, now: float) -> list[Frame]:
        """Look at the folder once; returns the frames that can go, in order.

        Args:
            now: the time in seconds on a clock that never goes back.
        """
        names = self._names()
        self._taken.intersection_update(names)
        self._look_again()
        for name in names:
            if name not in self._taken and name.endswith(".json"):
                self._read_sidecar(name, now)
        for name in names:
            if name not in self._taken and name not in self._landing and self._pattern is not None:
                found = self._pattern.match(name)
                if found is None:
                    self._wonder(name)
                elif found[0] in self.sensors:
                    self._notice(name, *found, now, vouched=False)
        self._first_look = False
        self._settle(now)
        return self._depart(now)

    def count_silent(self) -> None:
        """A file gave no answer in time; from any thread."""
        with self._counting:
            self.arrivals.silent += 1

    def close(self) -> None:
        """Look no more."""
        if self._caller is not None:
            self._caller.close()

    def _within(self, function: Callable[[], _T]) -> _T:
        """What ``function``, which reads a file, returns.

        Raises:
            DeadlineError: its disk gives no answer, or others give none already.
        """
        if self._caller is None:
            return function()
        if too_many_hang():
            raise DeadlineError(f"{MOST_HANGING} reads hang already")
        return self._caller(function)

    def _names(self) -> list[str]:
        try:
            with os.scandir(self.path) as entries:
                # regular files: a link may lead anywhere, or to itself, and a pipe would be waited for
                names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
        except OSError as error:  # a mount that went away may come back
            if not self._missing:
                log.warning("%s cannot be looked at (%s): trying again", self.path, error.strerror)
            self._missing = True
            return [*self._taken, *self._landing]
        self._missing = False
        return names

    def _wonder(self, name: str) -> None:
        """Say once that a file looks like a frame's, but fits no pattern: it would never be mapped."""
        if not self._wondered and name.endswith((".tif", ".tiff")):
            log.warning("%s does not fit the pattern: ignored, unless a sidecar tells of it", name)
            self._wondered = True

    def _state(self, name: str) -> _State | None:
        try:
            state = (self.path / name).lstat()
        except (OSError, ValueError):
            return None
        return (state.st_size, state.st_mtime_ns) if stat.S_ISREG(state.st_mode) else None

    def _look_again(self) -> None:
        """Has a file taken lately been delivered again, under the same name? Told once per file."""
        for name, state in list(self._recent):
            now = self._state(name)
            if now != state:
                self._recent.remove((name, state))
                if now is not None:
                    self._duplicate(name)

    def _duplicate(self, name: str) -> None:
        self.arrivals.duplicates += 1
        log.warning("%s is a duplicate: ignored", name)

    def _read_sidecar(self, name: str, now: float) -> None:
        try:
            told = from_json(self._within(partial(read_file, self.path / name, SIDECAR_LIMIT_BYTES)), Sidecar)
        except DeadlineError as error:
            self.count_silent()
            return self._ignore(name, f"cannot be read ({error})")
        except MismatchError as error:
            return self._ignore(name, f"is no sidecar of a frame ({error})")
        except (OSError, MalformedError) as error:  # half written, it is no JSON
            if now - self._unreadable.setdefault(name, now) >= STALLED_S:
                self._ignore(name, f"cannot be read as JSON ({error})")
            return None
        by_name = self._pattern.match(told.file) if self._pattern is not None else None
        if by_name not in (None, (told.sensor, told.stamp)):
            return self._ignore(name, f"contradicts the name of {told.file}: rename it, or go by sidecars alone")
        self._unreadable.pop(name, None)
        self._taken.add(name)
        if told.sensor in self.sensors and told.file not in self._taken:
            # one that was there before its file cannot know that the file is whole
            self._notice(told.file, told.sensor, told.stamp, now, vouched=self._state(told.file) is not None)
        return None

    def _ignore(self, name: str, why: str) -> None:
        self._taken.add(name)
        self._unreadable.pop(name, None)
        log.log(logging.DEBUG if self.arrivals.ignored else logging.WARNING, "%s %s: ignored", name, why)
        self.arrivals.ignored += 1

    def _notice(self, name: str, sensor: Sensor, stamp: str, now: float, *, vouched: bool) -> None:
        """A file of a frame is there."""
        if stamp in self._gone:
            self._taken.add(name)
            if self._first_look:  # what an earlier run has dealt with
                return
            if sensor in self._gone[stamp]:
                self._duplicate(name)
            else:
                self._come_late(name, stamp)
            return
        if stamp not in self._pending and (why := self._poison(stamp)) is not None:
            self._taken.add(name)
            self.arrivals.quarantined += 1
            log.warning("%s is left out: %s", name, why)
            return
        frame = self._pending.setdefault(stamp, _Pending())
        if frame.names.setdefault(sensor, name) != name:
            self._taken.add(name)
            self._duplicate(name)
            return
        landing = self._landing.setdefault(name, _Landing(sensor=sensor, stamp=stamp, resting_since=now))
        landing.vouched |= vouched

    def _poison(self, stamp: str) -> str | None:
        """Why a stamp must not be mapped."""
        try:
            check_stamp(stamp)
        except ValueError as error:
            return str(error)
        return self._refuses(stamp)

    def _come_late(self, name: str, stamp: str) -> None:
        self.arrivals.late += 1
        log.warning("%s came late: frame %s has gone without it", name, stamp)

    def _settle(self, now: float) -> None:
        """Take the files that are whole, and give up those that will never be."""
        for name, landing in list(self._landing.items()):
            state = self._state(name)
            at_rest = state == landing.state
            if not at_rest:
                landing.state, landing.resting_since = state, now
                self.changed_at = now
            path = self.path / name
            if landing.vouched and state is not None:
                self._take(name, landing, path, now)
            elif at_rest:
                try:
                    why = self._within(partial(unfinished, path))
                except DeadlineError as error:
                    self.count_silent()
                    log.warning("%s is left out: its disk gives %s", name, error)
                    self._take(name, landing, Absent(fault=Fault.READ_ERROR, detail=f"{name}: {error}"), now)
                    continue
                if why is None:
                    self._take(name, landing, path, now)
                elif now - landing.resting_since >= STALLED_S:
                    self.arrivals.unfinished += 1
                    detail = f"{name} has not changed for {STALLED_S:g} s, but is not whole: {why}"
                    self._take(name, landing, Absent(fault=Fault.READ_ERROR, detail=detail), now)

    def _take(self, name: str, landing: _Landing, outcome: Path | Absent, now: float) -> None:
        frame = self._pending[landing.stamp]
        frame.seen[landing.sensor] = outcome
        frame.first_at = now if frame.first_at is None else frame.first_at
        self._taken.add(name)
        self._recent.append((name, landing.state))
        del self._landing[name]
        self.changed_at = now

    def _depart(self, now: float) -> list[Frame]:
        """The frames that need wait for nothing more, earlier stamps first."""
        going: list[str] = []
        ready: list[str] = []
        overtaking = False
        for stamp in sorted(self._pending, key=stamp_order):
            frame = self._pending[stamp]
            self._check_ready(frame, now)
            if frame.ready_at is None:
                overtaking = True
                continue
            ready.append(stamp)
            if not overtaking or now >= frame.ready_at + self._wait_s:
                going += ready
                ready = []
        return [self._go(stamp) for stamp in going]

    def _check_ready(self, frame: _Pending, now: float) -> None:
        if frame.ready_at is not None or frame.first_at is None:
            return
        if self.sensors == frame.seen.keys():
            frame.ready_at = now
        elif now >= frame.first_at + self._wait_s:
            frame.ready_at = frame.first_at + self._wait_s
            for sensor in self.sensors - frame.seen.keys():
                name = frame.names.get(sensor)
                what = "no file" if name is None else f"{name} not whole"
                detail = f"{what} {self._wait_s * 1e3:.0f} ms after its partner"
                frame.seen[sensor] = Absent(fault=Fault.LATE, detail=detail)

    def _go(self, stamp: str) -> Frame:
        frame = self._pending.pop(stamp)
        for name in frame.names.values():
            if self._landing.pop(name, None) is not None:
                self._taken.add(name)
                self._come_late(name, stamp)
        order = stamp_order(stamp)
        if self._last is not None and order < self._last:
            self.arrivals.out_of_order += 1
            log.warning("frame %s comes after one of a later stamp", stamp)
        self._last = order if self._last is None else max(self._last, order)
        files = {sensor: seen for sensor in Sensor if isinstance(seen := frame.seen.get(sensor), Path)}
        absent = {sensor: seen for sensor in Sensor if isinstance(seen := frame.seen.get(sensor), Absent)}
        self._gone[stamp] = frozenset(files)
        assert frame.first_at is not None
        assert frame.ready_at is not None
        return Frame(stamp=stamp, files=files, absent=absent, first_at=frame.first_at, available_at=frame.ready_at)
