"""A pair of rasters as a source of jobs: read as fast as tiles are wanted, or at a set rate as if in flight."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from engine.buffers import BufferPool, Buffers
from engine.contract.sensors import Sensor
from engine.grid import Tile
from engine.health.faults import Injector
from engine.health.monitor import Absent, Fault, Monitor, Sighting, Verdict
from engine.rasters.raster import SensorRasters, first_cause
from engine.stream import Job, make_job


@dataclass(frozen=True, kw_only=True)
class Past:
    """What a run that is resumed had made of a tile: it must be made of it again."""

    verdicts: Mapping[Sensor, Verdict]
    skipped: bool


class RasterSource:
    """Reads tiles one after the other.

    Args:
        rasters: what is read.
        tiles: in this order.
        pool: as many buffers as jobs can be alive; closed when the source is stopped.
        monitor: judges every tile. Without it both sensors are trusted, and a tile that cannot be read ends the
            iteration with its :class:`~engine.contract.errors.RasterOpenError`.
        injector: makes sensors fail before they are judged.
        rate_hz: tiles a second; None reads as fast as jobs are taken.
        past: tiles that were judged before the run was interrupted, by index; the monitor does not see them again.
        waits: told when the source begins (True) and ceases (False) to wait for a tile to be due; from the read thread.
    """

    def __init__(
        self,
        rasters: SensorRasters,
        tiles: Iterable[Tile],
        *,
        pool: BufferPool,
        monitor: Monitor | None = None,
        injector: Injector | None = None,
        rate_hz: float | None = None,
        past: Mapping[int, Past] | None = None,
        waits: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self._rasters, self._tiles, self._pool = rasters, tiles, pool
        self._monitor, self._injector = monitor, injector
        self._rate_hz, self._past = rate_hz, past or {}
        self._waits = waits
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Job]:
        started = time.monotonic()
        for count, tile in enumerate(self._tiles):
            due = None if self._rate_hz is None else started + count / self._rate_hz
            if due is not None and due > time.monotonic():
                self._waits(True)
                self._stopped.wait(due - time.monotonic())
                self._waits(False)
            if self._stopped.is_set():
                return
            buffers = self._pool.take()
            if buffers is None:
                return
            yield self._read(tile, buffers, due)

    def stop(self) -> None:
        """End the iteration before the next tile."""
        self._stopped.set()
        self._pool.close()

    def _read(self, tile: Tile, buffers: Buffers, due: float | None) -> Job:
        began = time.monotonic()
        available_at = began if due is None else due
        past = self._past.get(tile.index)
        errors = self._rasters.read_into(tile.reads.row, tile.reads.col, buffers)
        seen: dict[Sensor, Sighting] = {**buffers}
        for sensor, error in errors.items():
            if self._monitor is None or (past is not None and past.verdicts[sensor].usable):
                raise error
            seen[sensor] = Absent(fault=Fault.READ_ERROR, detail=str(first_cause(error)))
        if self._injector is not None:
            seen = self._injector.apply(tile.index, seen)
        verdicts: Mapping[Sensor, Verdict] = {}
        if past is not None:
            verdicts = past.verdicts
        elif self._monitor is not None:
            verdicts = self._monitor.assess(seen)
        job = make_job(
            tile,
            {sensor: each for sensor, each in seen.items() if not isinstance(each, Absent)},
            verdicts=verdicts,
            available_at=available_at,
            wait_s=began - available_at,
            read_s=time.monotonic() - began,
            monitor=None if self._monitor is None else self._monitor.snapshot(),
            release=lambda: self._pool.give(buffers),
        )
        return job.skip() if past is not None and past.skipped else job
