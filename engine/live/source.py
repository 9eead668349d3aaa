"""Frames that land in a folder as a source of jobs.

::

    watch thread: LiveFolder.poll() -> waiting frames        read thread: frame -> its tiles, one job each

The folder is watched while frames are read, so that a frame's waiting time counts from the moment it was there, and a
partner's from the moment its file was whole, however far behind the maps are.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from engine.buffers import BufferPool
from engine.contract.bands import SensorSpec
from engine.contract.errors import InputError
from engine.contract.sensors import Sensor
from engine.grid import Tile, Window
from engine.health.faults import Injector
from engine.health.monitor import Absent, Fault, Monitor, Sighting, State, Verdict
from engine.live.folder import POLL_S, Frame, LiveFolder
from engine.mosaic import CropMosaic
from engine.rasters.georeference import Grid
from engine.rasters.raster import SensorRasters
from engine.stream import Job, make_job

log = logging.getLogger(__name__)

SCAN_SHARE = 4
"""The pause between two looks is at least so many times as long as a look takes: a folder of a hundred thousand files
must not keep a core busy."""
FRAMES_WAITING = 2
"""So many whole frames may wait when the oldest are to be dropped."""


@dataclass(frozen=True, kw_only=True)
class FramePlan:
    """A frame that is being mapped.

    ``mosaic`` and ``grid`` are None for a frame without a map: none of its files could be used, or it was dropped. It
    passes the pipeline as one tile without pixels, so that it is judged, counted and logged in its turn.
    """

    frame: Frame
    absent: Mapping[Sensor, Absent]
    """Sensors that deliver nothing to the whole frame."""
    grid: Grid | None = None
    mosaic: CropMosaic | None = None

    @property
    def tiles(self) -> int:
        """How many jobs it makes."""
        return 1 if self.mosaic is None else len(self.mosaic.grid)


@dataclass(kw_only=True)
class _Waiting:
    frame: Frame
    dropped: bool = False


@dataclass(frozen=True, kw_only=True)
class FrameReading:
    """How the rasters of a frame are read; see :meth:`engine.rasters.raster.SensorRasters.open`."""

    specs: Mapping[Sensor, SensorSpec]
    tile_px: int
    halo_px: int
    rgir_bands: tuple[int, int, int] | None = None
    ndsm_scale_m: float | None = None

    def open(self, files: Mapping[Sensor, Path]) -> tuple[SensorRasters | None, dict[Sensor, Absent]]:
        """The rasters that can be used together, and why the others cannot."""
        usable, broken = dict(files), dict[Sensor, Absent]()
        while usable:
            try:
                return self._open(usable), broken
            except InputError as error:
                sensor, why = self._culprit(usable, error)
                broken[sensor] = Absent(fault=Fault.READ_ERROR, detail=str(why))
                del usable[sensor]
        return None, broken

    def _open(self, files: Mapping[Sensor, Path]) -> SensorRasters:
        return SensorRasters.open(
            files,
            self.specs,
            rgir_bands=self.rgir_bands,
            ndsm_scale_m=self.ndsm_scale_m,
            window_px=self.tile_px,
        )

    def _culprit(self, files: Mapping[Sensor, Path], error: InputError) -> tuple[Sensor, InputError]:
        """The file that cannot be opened by itself; if each can, the one that does not fit onto the other's grid."""
        for sensor, path in files.items():
            try:
                self._open({sensor: path}).close()
            except InputError as own:
                return sensor, own
        return [sensor for sensor in Sensor if sensor in files][-1], error


@dataclass(kw_only=True)
class LiveSource:
    """Reads the frames of a folder, tile by tile, until it is told to finish or the folder has been quiet for long.

    Args:
        folder: where frames land.
        reading: how they are read.
        pool: as many buffers as jobs can be alive; closed when the source is stopped.
        frames: the frames under way by stamp, for the sink: entered here with their first tile, removed there.
        monitor: judges every tile, across frames; None trusts whatever was delivered and can be read.
        injector: makes sensors fail before they are judged; tiles count on from frame to frame.
        drop_oldest: when more than :data:`FRAMES_WAITING` frames wait, the oldest is dropped; else all are mapped.
        idle_exit_s: finish when nothing has landed and no frame has been under way for so long; None goes on.
        waits: told, from the read thread, when the source begins (True) and ceases (False) to wait for a frame.
    """

    folder: LiveFolder
    reading: FrameReading
    pool: BufferPool
    frames: dict[str, FramePlan]
    monitor: Monitor | None = None
    injector: Injector | None = None
    drop_oldest: bool = False
    idle_exit_s: float | None = None
    waits: Callable[[bool], None] = lambda _: None
    idle: bool = False
    """It ended because the folder was quiet."""
    _queue: deque[_Waiting] = field(default_factory=deque)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _finishing: threading.Event = field(default_factory=threading.Event)
    _stopped: bool = False
    _error: BaseException | None = None
    _tiles: int = 0

    def __iter__(self) -> Iterator[Job]:
        watching = threading.Thread(target=self._watch, name="watch")
        watching.start()
        try:
            while (waiting := self._next()) is not None:
                yield from self._skip(waiting.frame) if waiting.dropped else self._read(waiting.frame)
        finally:
            self.finish()
            watching.join()

    def finish(self) -> None:
        """Begin no other frame: the iteration ends with the last tile of the one under way. From any thread."""
        self._finishing.set()

    def stop(self) -> None:
        """End the iteration before the next tile, from any thread."""
        self._stopped = True
        self.finish()
        self.pool.close()

    def _watch(self) -> None:
        """Look for frames until there is no need."""
        quiet_since = time.monotonic()
        try:
            while not self._finishing.is_set():
                began = time.monotonic()
                frames = self.folder.poll(began)
                with self._changed:
                    self._queue.extend(_Waiting(frame=frame) for frame in frames)
                    if self.drop_oldest:
                        self._drop()
                    busy = self._queue or self.frames or self.folder.waiting
                    quiet_since = began if busy else max(quiet_since, self.folder.changed_at)
                    self._changed.notify_all()
                if self.idle_exit_s is not None and began - quiet_since >= self.idle_exit_s:
                    self.idle = True
                    break
                self._finishing.wait(max(POLL_S, SCAN_SHARE * (time.monotonic() - began)))
        except BaseException as error:  # raised again in the read thread
            self._error = error
        finally:
            with self._changed:
                self._finishing.set()
                self._changed.notify_all()

    def _drop(self) -> None:
        kept = [waiting for waiting in self._queue if not waiting.dropped]
        for waiting in kept[:-FRAMES_WAITING]:
            waiting.dropped = True
            log.warning("frame %s is dropped: the maps are %d frames behind", waiting.frame.stamp, len(kept))

    def _next(self) -> _Waiting | None:
        with self._changed:
            if not self._queue and not self._finishing.is_set():
                self.waits(True)
                self._changed.wait_for(lambda: self._queue or self._finishing.is_set())
                self.waits(False)
            if self._error is not None:
                raise self._error
            if self._finishing.is_set():
                return None
            waiting = self._queue.popleft()
            frame = waiting.frame
            self.frames[frame.stamp] = FramePlan(frame=frame, absent=frame.absent)  # from here on it is under way
            return waiting

    def _skip(self, frame: Frame) -> Iterator[Job]:
        self._tiles += 1
        wait_s = time.monotonic() - frame.available_at
        yield make_job(
            self._nothing, {}, frame=frame.stamp, available_at=frame.available_at, wait_s=wait_s, read_s=0.0
        ).skip()

    def _read(self, frame: Frame) -> Iterator[Job]:
        began = time.monotonic()
        rasters, broken = self.reading.open(frame.files)
        absent = {**frame.absent, **broken}
        if rasters is None:
            self.frames[frame.stamp] = FramePlan(frame=frame, absent=absent)
            yield self._job(frame, self._nothing, absent, began=began, last=True)
            return
        with rasters:
            opened_s = time.monotonic() - began
            grid, size = rasters.grid, {"tile_px": self.reading.tile_px, "halo_px": self.reading.halo_px}
            mosaic = CropMosaic(height=grid.height, width=grid.width, **size)
            self.frames[frame.stamp] = FramePlan(frame=frame, absent=absent, grid=grid, mosaic=mosaic)
            for tile in mosaic.grid.tiles():
                buffers = self.pool.take()
                if buffers is None or self._stopped:
                    return
                began = time.monotonic() - opened_s  # the first tile's reading includes it
                errors = rasters.read_into(tile.reads.row, tile.reads.col, buffers)
                failed = {s: Absent(fault=Fault.READ_ERROR, detail=str(e.__cause__ or e)) for s, e in errors.items()}
                last = tile.index == len(mosaic.grid) - 1
                give_back = partial(self.pool.give, buffers)
                yield self._job(frame, tile, {**buffers, **absent, **failed}, began=began, last=last, release=give_back)
                opened_s = 0.0

    @property
    def _nothing(self) -> Tile:
        """Stands for a frame without a map."""
        side = self.reading.tile_px
        return Tile(
            index=0, reads=Window(row=0, col=0, height=side, width=side), target=Window(row=0, col=0, height=0, width=0)
        )

    def _job(
        self,
        frame: Frame,
        tile: Tile,
        seen: Mapping[Sensor, Sighting],
        *,
        began: float,
        last: bool,
        release: Callable[[], None] = lambda: None,
    ) -> Job:
        """Judge what the sensors delivered. The monitor's state is kept with the frame's last tile."""
        if self.injector is not None:
            seen = self.injector.apply(self._tiles, seen)
        self._tiles += 1
        return make_job(
            tile,
            {sensor: each for sensor, each in seen.items() if not isinstance(each, Absent)},
            verdicts=_trust(seen) if self.monitor is None else self.monitor.assess(seen),
            frame=frame.stamp,
            available_at=frame.available_at,
            wait_s=began - frame.available_at,
            read_s=time.monotonic() - began,
            monitor=self.monitor.snapshot() if self.monitor is not None and last else None,
            release=release,
        )


def _trust(seen: Mapping[Sensor, Sighting]) -> dict[Sensor, Verdict]:
    """A sensor is dead where it delivers nothing, and only there."""
    return {
        sensor: Verdict(state=State.DEAD, fault=each.fault, detail=each.detail)
        if isinstance(each, Absent)
        else Verdict(state=State.ALIVE)
        for sensor, each in seen.items()
    }
