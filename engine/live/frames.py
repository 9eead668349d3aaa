"""Frames that land in a folder as a source of frames.

::

    watch thread: LiveFolder.poll() -> waiting frames        read thread: takes the next

The folder is watched while frames are read, so that a frame's waiting time counts from the moment it was there, and a
partner's from the moment its file was whole, however far behind the maps are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from engine.contract.errors import InputError, RasterSilentError
from engine.contract.sensors import Sensor
from engine.deadline import left_behind
from engine.frames import Frame, RasterOpener
from engine.health.monitor import Absent, Fault
from engine.live.folder import POLL_S, LiveFolder
from engine.rasters.raster import RasterInput, SensorRasters

log = logging.getLogger(__name__)

SCAN_SHARE = 4
"""The pause between two looks is at least so many times as long as a look takes: a folder of a hundred thousand files
must not keep a core busy."""
LOOK_LIMIT_S = 5.0
"""Longest wait for the last look at the folder."""
FRAMES_WAITING = 2
"""So many whole frames may wait when the oldest are to be dropped."""


@dataclass(kw_only=True)
class FolderFrames:
    """The frames of a folder, until it is told to finish or the folder has been quiet for long.

    Args:
        folder: where frames land.
        opener: opens their rasters.
        drop_oldest: when more than :data:`FRAMES_WAITING` frames wait, the oldest is dropped; else all are mapped.
        idle_exit_s: finish when nothing has landed and no frame has been under way for so long; None goes on.
    """

    folder: LiveFolder
    opener: RasterOpener
    drop_oldest: bool = False
    idle_exit_s: float | None = None
    idle: bool = False
    """It ended because the folder was quiet."""
    live = True
    _queue: deque[Frame] = field(default_factory=deque)
    _under_way: set[str] = field(default_factory=set)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _finishing: threading.Event = field(default_factory=threading.Event)
    _error: BaseException | None = None

    def frames(self, waits: Callable[[bool], None] = lambda _: None) -> Iterator[Frame]:
        """Frames in order; see :meth:`engine.frames.FrameSource.frames`."""
        watching = threading.Thread(target=self._watch, name="watch", daemon=True)
        watching.start()
        try:
            while (frame := self._next(waits)) is not None:
                yield frame
        finally:
            self.finish()
            watching.join(LOOK_LIMIT_S)
            if watching.is_alive():  # the folder's own disk hangs
                left_behind.set()

    @contextmanager
    def open(self, frame: Frame) -> Iterator[tuple[SensorRasters | None, Mapping[Sensor, Absent]]]:
        """For the block: the rasters that can be used together, and why the others cannot."""
        usable, broken = dict(frame.files), dict[Sensor, Absent]()
        rasters = None
        while usable and rasters is None:
            try:
                rasters = self.opener.open(usable)
            except InputError as error:
                sensor, why = self._culprit(usable, error)
                if isinstance(why, RasterSilentError):
                    self.folder.count_silent()
                broken[sensor] = Absent(fault=Fault.READ_ERROR, detail=str(why))
                del usable[sensor]
        with rasters or nullcontext():
            yield rasters, broken
            for sensor in rasters.silent if rasters is not None else ():
                self.folder.count_silent()
                log.warning("%s of frame %s gives no answer: the frame is mapped without it", sensor, frame.stamp)

    def finish(self) -> None:
        """Begin no other frame: the iteration ends with the one under way. From any thread."""
        with self._changed:
            self._finishing.set()
            self._changed.notify_all()

    def done(self, stamp: str) -> None:
        """The frame is not under way any more. From any thread."""
        self._under_way.discard(stamp)

    def identity(self) -> Mapping[str, Any]:
        """The folder and the sensors expected to deliver."""
        return {"folder": str(self.folder.path.resolve()), "sensors": sorted(self.folder.sensors)}

    def _culprit(self, files: Mapping[Sensor, RasterInput], error: InputError) -> tuple[Sensor, InputError]:
        """The file that cannot be opened by itself; if each can, the one that does not fit onto the other's grid."""
        if isinstance(error, RasterSilentError) and error.sensor is not None:
            return Sensor(error.sensor), error
        for sensor, path in files.items():
            try:
                self.opener.open({sensor: path}).close()
            except InputError as own:
                return sensor, own
        return [sensor for sensor in Sensor if sensor in files][-1], error

    def _watch(self) -> None:
        """Look for frames until there is no need."""
        quiet_since = time.monotonic()
        try:
            while not self._finishing.is_set():
                began = time.monotonic()
                frames = self.folder.poll(began)
                with self._changed:
                    self._queue.extend(frames)
                    if self.drop_oldest:
                        self._drop()
                    busy = self._queue or self._under_way or self.folder.waiting
                    quiet_since = began if busy else max(quiet_since, self.folder.changed_at)
                    self._changed.notify_all()
                if self.idle_exit_s is not None and began - quiet_since >= self.idle_exit_s:
                    self.idle = True
                    break
                self._finishing.wait(max(POLL_S, SCAN_SHARE * (time.monotonic() - began)))
        except BaseException as error:  # raised again in the read thread
            self._error = error
        finally:
            self.folder.close()
            self.finish()

    def _drop(self) -> None:
        kept = [place for place, frame in enumerate(self._queue) if not frame.dropped]
        for place in kept[:-FRAMES_WAITING]:
            self._queue[place] = replace(self._queue[place], dropped=True)
            log.warning("frame %s is dropped: the maps are %d frames behind", self._queue[place].stamp, len(kept))

    def _next(self, waits: Callable[[bool], None]) -> Frame | None:
        with self._changed:
            if not self._queue and not self._finishing.is_set():
                waits(True)
                self._changed.wait_for(lambda: self._queue or self._finishing.is_set())
                waits(False)
            if self._error is not None:
                raise self._error
            if self._finishing.is_set():
                return None
            frame = self._queue.popleft()
            self._under_way.add(frame.stamp)
            return frame
