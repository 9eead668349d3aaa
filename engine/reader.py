"""From frames to jobs: read tile by tile, judge what the sensors delivered, decide what each pixel is mapped from.

::

    FrameSource -> TileReader [-> FaultyReader] -> JobSource -> engine.stream
    frames         tiles read      faults on purpose   judged
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.buffers import BufferPool, Buffers
from engine.contract.errors import RasterOpenError
from engine.contract.sensors import Sensor
from engine.frames import Frame, FrameSource, OpenFrame, Rasters
from engine.grid import Tile, Window
from engine.health.faults import Injector
from engine.health.monitor import Absent, Fault, Monitor, Sighting, State, Verdict
from engine.job import Job, make_job
from engine.rasters.georeference import Grid
from engine.rasters.sources import first_cause
from engine.stitcher import Stitcher


def _no_release() -> None:
    """Nothing to give back."""


@dataclass(frozen=True, kw_only=True)
class ReadTile:
    """A tile as the sensors delivered it, not judged yet."""

    frame: OpenFrame
    tile: Tile
    seen: Mapping[Sensor, Sighting]
    errors: Mapping[Sensor, RasterOpenError] = field(default_factory=dict)
    """Of the sensors that could not be read; they are Absent in ``seen``."""
    available_at: float
    began: float
    """``time.monotonic()`` when its reading began."""
    inside: NDArray[np.bool_] | None = None
    """Which pixels of ``tile.reads`` are to be mapped; None: all."""
    outside: bool = False
    """None is, so that nothing was read."""
    release: Callable[[], None] = _no_release
    """Gives the buffers back."""


class Reader(Protocol):
    """Where tiles that have been read come from."""

    def __iter__(self) -> Iterator[ReadTile]:
        """Tiles in order; waits until the next one is there."""

    def stop(self) -> None:
        """End the iteration before the next tile, from any thread."""

    @property
    def reading(self) -> object | None:
        """See :attr:`TileReader.reading`."""


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a run that is resumed had made of a tile: it must be made of it again."""

    verdicts: Mapping[Sensor, Verdict]
    skipped: bool


@dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of a raster that are mapped by themselves, see :mod:`engine.rows`."""

    window: Window
    past: Mapping[int, Past]
    """What all of its tiles are to be made of, counted within it."""


class TileReader:
    """Reads the frames of a source, tile after tile.

    Args:
        frames: what is read.
        stitch: from the grid of a frame to the stitcher that lays its tiles.
        pool: as many buffers as jobs can be alive; closed when the reader is stopped.
        tile_px: side of the tile that stands for a frame without a map.
        tiles_done: of the first frame, so many tiles have been mapped before.
        rate_hz: tiles a second; None reads as fast as jobs are taken.
        waits: told, from the read thread, when the reader begins (True) and ceases (False) to wait for a frame, or for
            a tile to be due.
        readers: threads that decode; 1 is the read thread itself.
    """

    def __init__(
        self,
        frames: FrameSource,
        *,
        stitch: Callable[[Grid], Stitcher],
        pool: BufferPool,
        tile_px: int,
        tiles_done: int = 0,
        rate_hz: float | None = None,
        waits: Callable[[bool], None] = lambda _: None,
        readers: int = 1,
    ) -> None:
        self._readers = readers
        self._frames, self._stitch, self._pool = frames, stitch, pool
        self._tile_px = tile_px
        self._tiles_done, self._rate_hz, self._waits = tiles_done, rate_hz, waits
        self._stopped = threading.Event()
        self._reading: object | None = None

    @property
    def reading(self) -> object | None:
        """The read that is under way, another object for each; None while there is none. From any thread."""
        return self._reading

    def __iter__(self) -> Iterator[ReadTile]:
        for frame in self._frames.frames(self._waits):
            yield from self._read(frame)

    def stop(self) -> None:
        """End the iteration before the next tile, from any thread."""
        self._stopped.set()
        self._frames.finish()
        self._pool.close()

    def _read(self, frame: Frame) -> Iterator[ReadTile]:
        began = time.monotonic()
        if frame.dropped:
            yield self._nothing(OpenFrame(frame=frame, absent=frame.absent), began)
            return
        with self._frames.open(frame) as (rasters, broken):
            absent = {**frame.absent, **broken}
            if rasters is None:
                yield self._nothing(OpenFrame(frame=frame, absent=absent), began)
                return
            stitcher = self._stitch(rasters.grid)
            first, self._tiles_done = stitcher.resume_at(self._tiles_done), 0
            opened = OpenFrame(
                frame=frame, absent=absent, grid=rasters.grid, inputs=rasters.describe(), stitcher=stitcher
            )
            opening_s = time.monotonic() - began

            def outside(tile: Tile) -> bool:
                inside = rasters.inside(tile.target)
                return inside is not None and not inside.any()

            windows = lambda: (tile.reads for tile in stitcher.tiles(first) if not outside(tile))  # noqa: E731
            with rasters.in_order(windows, readers=self._readers) as ordered:
                for count, tile in enumerate(stitcher.tiles(first)):
                    due = None if self._rate_hz is None else began + count / self._rate_hz
                    self._wait_until(due)
                    if outside(tile) and not self._stopped.is_set():
                        yield self._unread(opened, tile)
                        continue
                    buffers = None if self._stopped.is_set() else self._pool.take()
                    if buffers is None:
                        return
                    opening = 0.0 if count else opening_s
                    yield self._read_tile(opened, ordered, tile, buffers, due=due, opening_s=opening)

    def _read_tile(
        self, opened: OpenFrame, rasters: Rasters, tile: Tile, buffers: Buffers, *, due: float | None, opening_s: float
    ) -> ReadTile:
        """One tile; the first one's reading includes the time in which its frame was opened."""
        began = time.monotonic() - opening_s
        self._reading = tile
        seen, errors = rasters.read_into(tile.reads, buffers)
        self._reading = None
        failed = {s: Absent(fault=Fault.READ_ERROR, detail=str(first_cause(e))) for s, e in errors.items()}
        available_at = due if opened.frame.available_at is None else opened.frame.available_at
        return ReadTile(
            frame=opened,
            tile=tile,
            seen={**seen, **opened.absent, **failed},
            errors=errors,
            available_at=began if available_at is None else available_at,
            began=began,
            inside=rasters.inside(tile.reads),
            release=partial(self._pool.give, buffers),
        )

    def _unread(self, opened: OpenFrame, tile: Tile) -> ReadTile:
        """A tile without a pixel that is to be mapped."""
        now = time.monotonic()
        return ReadTile(frame=opened, tile=tile, seen={}, outside=True, available_at=now, began=now)

    def _nothing(self, opened: OpenFrame, began: float) -> ReadTile:
        """What stands for a frame without a map."""
        side, available_at = self._tile_px, opened.frame.available_at
        return ReadTile(
            frame=opened,
            tile=Tile(
                index=0,
                reads=Window(row=0, col=0, height=side, width=side),
                target=Window(row=0, col=0, height=0, width=0),
            ),
            seen=opened.absent,
            available_at=began if available_at is None else available_at,
            began=began,
        )

    def _wait_until(self, due: float | None) -> None:
        if due is not None and due > time.monotonic():
            self._waits(True)
            self._stopped.wait(due - time.monotonic())
            self._waits(False)


class FaultyReader:
    """A reader whose sensors fail on purpose, before they are judged; tiles are counted over all frames."""

    def __init__(self, reader: Reader, injector: Injector) -> None:
        self._reader, self._injector = reader, injector

    def __iter__(self) -> Iterator[ReadTile]:
        for count, read in enumerate(self._reader):
            dropped = read.frame.frame.dropped
            yield read if dropped else replace(read, seen=self._injector.apply(count, read.seen))

    def stop(self) -> None:
        """See :meth:`Reader.stop`."""
        self._reader.stop()

    @property
    def reading(self) -> object | None:
        """See :attr:`TileReader.reading`."""
        return self._reader.reading


class JobSource:
    """Judges tiles as they are read; a :class:`engine.stream.Source`.

    Args:
        reader: of the tiles.
        monitor: judges every tile, across frames. None trusts whatever was delivered.
        strict: a sensor that is trusted and cannot be read ends the iteration with its
            :class:`~engine.contract.errors.RasterOpenError`; else the tile is mapped without it.
        past: tiles of the first frame that were judged before the run was interrupted, by index; the monitor does not
            see them again.
    """

    def __init__(
        self, reader: Reader, *, monitor: Monitor | None, strict: bool, past: Mapping[int, Past] | None = None
    ) -> None:
        self._reader, self._monitor, self._strict, self._past = reader, monitor, strict, past or {}

    def __iter__(self) -> Iterator[Job]:
        """Tiles in order; one of which nothing tells yet which sensor is wrong waits for the next of its raster."""
        held: _Judged | None = None
        for read in self._reader:
            judged = self._judge(read)
            if held is not None:
                yield self._job(held, judged.revision)
                held = None
            if judged.disputed and read.tile.index + 1 < len(read.frame.stitcher or ()):
                held = judged
            else:
                yield self._job(judged)
        if held is not None:
            yield self._job(held)

    def stop(self) -> None:
        """See :meth:`Reader.stop`."""
        self._reader.stop()

    @property
    def reading(self) -> object | None:
        """See :attr:`TileReader.reading`."""
        return self._reader.reading

    def _judge(self, read: ReadTile) -> _Judged:
        past = self._past.get(read.tile.index)
        for sensor, error in read.errors.items():
            trusted = self._strict if self._monitor is None else past is not None and past.verdicts[sensor].usable
            if trusted:
                raise error
        monitor = self._monitor
        if read.frame.frame.dropped or read.outside:
            verdicts: Mapping[Sensor, Verdict] = {}
        elif past is not None:
            verdicts = past.verdicts
        elif monitor is not None:
            if read.tile.index == 0:
                monitor.begin_frame()
            verdicts = monitor.assess(read.seen, (read.tile.reads.row, read.tile.reads.col))
            return _Judged(
                read=read,
                verdicts=verdicts,
                monitor=monitor.snapshot(),
                disputed=monitor.disputed,
                revision=monitor.revision,
            )
        else:
            verdicts = _trust(read.seen)
        return _Judged(read=read, verdicts=verdicts, monitor=None if monitor is None else monitor.snapshot())

    def _job(self, judged: _Judged, revision: Mapping[Sensor, Verdict] | None = None) -> Job:
        read = judged.read
        past = self._past.get(read.tile.index)
        job = make_job(
            read.tile,
            {sensor: each for sensor, each in read.seen.items() if not isinstance(each, Absent)},
            verdicts=judged.verdicts if revision is None else revision,
            inside=read.inside,
            frame=read.frame,
            available_at=read.available_at,
            wait_s=read.began - read.available_at,
            read_s=time.monotonic() - read.began,
            monitor=judged.monitor,
            release=read.release,
        )
        return job.skip() if read.frame.frame.dropped or (past is not None and past.skipped) else job


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """A tile and what its sensors are worth."""

    read: ReadTile
    verdicts: Mapping[Sensor, Verdict]
    monitor: Mapping[str, Any] | None
    """The monitor's state after this tile."""
    disputed: bool = False
    revision: Mapping[Sensor, Verdict] | None = None
    """See :attr:`Monitor.disputed` and :attr:`Monitor.revision`."""


def _trust(seen: Mapping[Sensor, Sighting]) -> dict[Sensor, Verdict]:
    """A sensor is dead where it delivers nothing, and only there; no verdicts at all where every one delivers."""
    if not any(isinstance(each, Absent) for each in seen.values()):
        return {}
    return {
        sensor: Verdict(state=State.DEAD, fault=each.fault, detail=each.detail)
        if isinstance(each, Absent)
        else Verdict(state=State.ALIVE)
        for sensor, each in seen.items()
    }
