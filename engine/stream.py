"""The pipeline: read ahead, infer several tiles at a time, write behind; order kept, memory bounded.

::

    read thread         caller's thread              backend threads       write thread
    for job in source -> backend.submit(scenario) -> one graph per tile -> sink.add(job, answers), sink.written(report)

Every stage waits for the slowest, and no more than :func:`jobs_alive` jobs with data exist at a time. A source that the
world paces may instead have the oldest waiting job skipped: it passes the sink in its turn, as a tile without data.

An exception of any stage reaches the caller after tiles already inferred have been written in order; nothing is written
behind a tile that failed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Backend, Inputs, Outputs
from engine.contract.sensors import Provenance, Scenario, Sensor, scenario_for
from engine.grid import Tile
from engine.job_queue import JobQueue
from engine.rasters.raster import Observation

if TYPE_CHECKING:
    from engine.health.monitor import Verdict


def _nothing() -> None:
    """Nothing to give back."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A tile that has been read: what each usable sensor saw, and which scenario each pixel takes."""

    tile: Tile
    frame: str = ""
    """The stamp of the frame that the tile belongs to; empty for a raster."""
    observations: Mapping[Sensor, Observation]
    """Of the sensors that may be used: a dead one is not among them."""
    verdicts: Mapping[Sensor, Verdict] = field(default_factory=dict)
    """Empty where health is not watched."""
    provenance: NDArray[np.uint8]
    """uint8 [T, T] over ``tile.reads``, values of :class:`Provenance`."""
    pixels: Mapping[Provenance, int]
    """How many pixels of ``tile.target`` take each scenario, most first."""
    skipped: bool = False
    """Dropped because the pipeline could not keep up: not inferred."""
    available_at: float
    """``time.monotonic()`` when the tile was there to be read; its due time when the source is paced."""
    wait_s: float
    """From available to the start of reading."""
    read_s: float
    monitor: Mapping[str, Any] | None = None
    """The health monitor's state after this tile, for the journal."""
    release: Callable[[], None] = _nothing
    """Gives the buffers back; called once, when nobody reads them any more."""

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """Scenarios that occur in ``tile.target``, the most frequent first."""
        return tuple(Scenario[source.name] for source in self.pixels if source is not Provenance.NONE)

    def inputs(self, scenario: Scenario) -> Inputs:
        """What that scenario's graph reads: the sensors it needs and no other."""
        return {sensor: np.ascontiguousarray(self.observations[sensor].values) for sensor in scenario.sensors}

    def skip(self) -> Job:
        """This tile without its data; the buffers are given back."""
        self.release()
        nothing = np.broadcast_to(np.uint8(Provenance.NONE), self.provenance.shape)
        pixels = {Provenance.NONE: self.tile.target.pixels}
        return replace(self, observations={}, provenance=nothing, pixels=pixels, skipped=True, release=_nothing)


def make_job(
    tile: Tile,
    seen: Mapping[Sensor, Observation],
    *,
    available_at: float,
    wait_s: float,
    read_s: float,
    verdicts: Mapping[Sensor, Verdict] | None = None,
    frame: str = "",
    monitor: Mapping[str, Any] | None = None,
    release: Callable[[], None] = _nothing,
) -> Job:
    """Decide pixel by pixel which sensors a tile is mapped from.

    Args:
        tile: the tile.
        seen: what each sensor saw over ``tile.reads``; a sensor that delivered nothing is left out.
        verdicts: a sensor that is dead by them is not used, whatever it delivered.
        available_at, wait_s, read_s, frame, monitor, release: see :class:`Job`.
    """
    verdicts = verdicts or {}
    usable = {sensor: each for sensor, each in seen.items() if sensor not in verdicts or verdicts[sensor].usable}
    window = tile.reads
    provenance = provenance_of({sensor: each.valid for sensor, each in usable.items()}, (window.height, window.width))
    counts = pixels_of(provenance[tile.target.within(window)])
    present = sorted((source for source in Provenance if counts[source]), key=lambda source: -counts[source])
    return Job(
        tile=tile,
        frame=frame,
        observations=usable,
        verdicts=verdicts,
        provenance=provenance,
        pixels={source: counts[source] for source in present},
        available_at=available_at,
        wait_s=wait_s,
        read_s=read_s,
        monitor=monitor,
        release=release,
    )


def provenance_of(valid: Mapping[Sensor, NDArray[np.bool_]], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Which scenario each pixel takes, uint8 [h, w], from the sensors' validity masks, bool [h, w] each."""
    scenario = scenario_for(valid)
    if scenario is not None and all(mask.all() for mask in valid.values()):  # the usual tile, a tenth of the time
        return np.full(shape, scenario.provenance, np.uint8)
    dead = np.zeros(shape, np.bool_)
    rgir, ndsm = valid.get(Sensor.RGIR, dead), valid.get(Sensor.NDSM, dead)
    table = np.empty(4, np.uint8)
    table[[0, 1, 2, 3]] = Provenance.NONE, Provenance.MISSING_NDSM, Provenance.MISSING_RGIR, Provenance.FULL
    return np.asarray(table[rgir.view(np.uint8) + 2 * ndsm.view(np.uint8)])


def pixels_of(provenance: NDArray[np.uint8]) -> dict[Provenance, int]:
    """How many pixels take each scenario; np.bincount, which widens every pixel to int64, takes six times as long."""
    return {source: int(np.count_nonzero(provenance == source)) for source in Provenance}


@dataclass(frozen=True, kw_only=True)
class TileReport:
    """What became of one tile, and how long each stage took."""

    frame: str
    tile: Tile
    scenarios: tuple[Scenario, ...]
    """Those inferred, that of most pixels first; empty where there was nothing to infer."""
    verdicts: Mapping[Sensor, Verdict]
    skipped: bool
    switched: bool
    """The first of ``scenarios`` differs from that of the last tile that had one."""
    available_at: float
    wait_s: float
    read_s: float
    queue_s: float
    """From read to submitted."""
    infer_s: float
    """From submission to the last scenario's answer, waiting for a free slot and for earlier tiles included."""
    write_s: float
    latency_s: float
    """From available to written."""
    queue_depth: int
    """Jobs that had been read and not yet submitted when this one was submitted."""


class Source(Protocol):
    """Where jobs come from; iterated once, in the read thread."""

    def __iter__(self) -> Iterator[Job]:
        """Jobs in order; waits until the next one is there."""

    def stop(self) -> None:
        """End the iteration soon, from any thread: whatever it waits for, it wakes up."""


class Sink(Protocol):
    """Where inferred tiles go; called in order from one thread."""

    def add(self, job: Job, outputs: Mapping[Scenario, Outputs]) -> None:
        """Take one tile. Its arrays are reused afterwards: copy what is to be kept."""

    def written(self, report: TileReport) -> None:
        """What became of the tile just added."""


def jobs_alive(slots: int) -> int:
    """The most jobs that exist at a time for a backend of that many slots: how many buffers a source needs."""
    return 2 * _depth(slots) + 2  # waiting, in flight, one being read, one changing hands


def _depth(slots: int) -> int:
    return slots + 2


def stream(
    source: Source,
    *,
    backend: Backend,
    sink: Sink,
    report: Callable[[TileReport], None],
    drop_oldest: bool = False,
    scenario: Scenario | None = None,
) -> None:
    """Send the jobs of ``source`` through the pipeline.

    A KeyboardInterrupt stops the reading; tiles already submitted are written before it is raised again.

    Args:
        source: where jobs come from.
        backend: infers them.
        sink: takes them.
        report: called in the caller's thread, in order, once a tile is in the sink.
        drop_oldest: when jobs come faster than they are inferred, skip the one that waited longest; else the source
            waits.
        scenario: that of the last tile before the first, for a run that is resumed.
    """
    depth = _depth(backend.info.slots)
    waiting = JobQueue(depth, drop_oldest=drop_oldest)
    broken = threading.Event()
    last = scenario

    def read() -> None:
        try:
            for job in source:
                if not waiting.put(job):
                    return
        except BaseException as error:  # raised again in the caller's thread, in its turn
            waiting.end(error)
        else:
            waiting.end(None)

    def finish(
        job: Job, answers: Mapping[Scenario, Future[Outputs]], submitted: float, queue_depth: int
    ) -> TileReport | None:
        nonlocal last
        if broken.is_set():
            return None
        try:
            outputs = {scenario: answer.result() for scenario, answer in answers.items()}
            answered = time.monotonic()
            sink.add(job, outputs)
            written = time.monotonic()
            main = job.scenarios[0] if job.scenarios else None
            done = TileReport(
                frame=job.frame,
                tile=job.tile,
                scenarios=job.scenarios,
                verdicts=job.verdicts,
                skipped=job.skipped,
                switched=main is not None and last is not None and main is not last,
                available_at=job.available_at,
                wait_s=job.wait_s,
                read_s=job.read_s,
                queue_s=submitted - job.available_at - job.wait_s - job.read_s,
                infer_s=answered - submitted,
                write_s=written - answered,
                latency_s=written - job.available_at,
                queue_depth=queue_depth,
            )
            last = main or last
            job.release()
            sink.written(done)
        except BaseException:
            broken.set()
            raise
        return done

    behind: deque[Future[TileReport | None]] = deque()
    reading = threading.Thread(target=read, name="read")
    with ThreadPoolExecutor(1, "write") as writing:

        def collect(at_most: int) -> None:
            """Report what has been written, and wait until no more than so many tiles are on their way."""
            while behind and (len(behind) > at_most or behind[0].done()):
                done = behind.popleft().result()
                if done is not None:
                    report(done)

        reading.start()
        try:
            while True:
                # a source may rest for long: what was written meanwhile is reported, and a failure ends the stream
                waiting.wait(lambda: bool(behind) and behind[0].done())
                collect(depth)
                if not waiting.ready:
                    continue
                job = waiting.get()
                if job is None:
                    break
                queue_depth = len(waiting)
                submitted = time.monotonic()
                answers = {each: backend.submit(each, job.inputs(each)) for each in job.scenarios}
                behind.append(writing.submit(finish, job, answers, submitted, queue_depth))
                behind[-1].add_done_callback(lambda _: waiting.wake())
                collect(depth)
            collect(0)
        finally:
            waiting.close()
            source.stop()
            reading.join()
