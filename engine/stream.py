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

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from typing import Protocol

from engine.backends.base import Backend, Outputs
from engine.contract.errors import RasterSilentError
from engine.contract.sensors import Scenario
from engine.deadline import watched
from engine.job import Job, TileReport
from engine.job_queue import JobQueue


class JobStream(Protocol):
    """Where jobs come from; iterated once, in the read thread."""

    def __iter__(self) -> Iterator[Job]:
        """Jobs in order; waits until the next one is there."""

    def stop(self) -> None:
        """End the iteration soon, from any thread: whatever it waits for, it wakes up."""

    @property
    def reading(self) -> object | None:
        """The read that is under way, another object for each; None while there is none. From any thread."""


class Sink(Protocol):
    """Where inferred tiles go; called in order from one thread."""

    def add(self, job: Job, outputs: Mapping[Scenario, Outputs]) -> None:
        """Take one tile. The job's arrays are reused afterwards: copy what is to be kept. Outputs are the sink's."""

    def written(self, report: TileReport) -> None:
        """What became of the tile just added."""


TURN_S = 1e-3


def jobs_alive(slots: int) -> int:
    """The most jobs that exist at a time for a backend of that many slots: how many buffers a source needs."""
    return 2 * _depth(slots) + 2  # waiting, in flight, one being read, one changing hands


def _depth(slots: int) -> int:
    return slots + 2


@contextmanager
def _quick_turns() -> Iterator[None]:
    """Have threads take turns in the interpreter more often than every 5 ms.

    numpy and GDAL let go of it for less than that at a time, and a thread that then waits for the whole of another's
    turn cannot keep up: reading and writing would hardly overlap.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, TURN_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def stream(
    source: JobStream,
    *,
    backend: Backend,
    sink: Sink,
    report: Callable[[TileReport], None],
    drop_oldest: bool = False,
    scenario: Scenario | None = None,
    read_limit_s: float | None = None,
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
        read_limit_s: longest time that a tile may be read; None waits without end. Beyond it the read thread, which
            hangs, is left behind, and the error is a :class:`~engine.contract.errors.RasterSilentError`.
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

    hung = threading.Event()

    def silent() -> None:
        hung.set()
        waiting.end(
            RasterSilentError(f"a raster gave no window for {read_limit_s:g} s: see whether its disk or server answers")
        )

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
                frame=job.stamp,
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
    reading = threading.Thread(target=read, name="read", daemon=True)  # joined, unless it hangs
    watching = nullcontext() if read_limit_s is None else watched(lambda: source.reading, read_limit_s, silent)
    with _quick_turns(), watching, ThreadPoolExecutor(1, "write") as writing:

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
            while reading.is_alive() and not hung.is_set():
                reading.join(1.0)
