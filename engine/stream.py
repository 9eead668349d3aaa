"""The pipeline: read ahead, infer several tiles at a time, write behind; order kept, memory bounded.

::

    read thread          caller's thread              backend threads       write thread
    source.read(tile) -> backend.submit(scenario) -> one graph per tile -> sink.add(job, answers)

Every stage waits for the slowest: at most ``slots + 2`` tiles lie between two stages. An exception of any stage reaches
the caller after tiles already inferred have been written in order; nothing is written behind a tile that failed.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Backend, Inputs, Outputs
from engine.contract.sensors import Provenance, Scenario, Sensor, scenario_for
from engine.grid import Tile
from engine.raster import Observation, SensorRasters


@dataclass(frozen=True, kw_only=True)
class Job:
    """A tile that has been read: what each sensor saw, and which scenario each pixel takes."""

    tile: Tile
    observations: Mapping[Sensor, Observation]
    provenance: NDArray[np.uint8]
    """uint8 [T, T] over ``tile.reads``, values of :class:`Provenance`."""
    pixels: Mapping[Provenance, int]
    """How many pixels of ``tile.target`` take each scenario, most first."""
    read_s: float

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """Scenarios that occur in ``tile.target``, the most frequent first."""
        return tuple(Scenario[source.name] for source in self.pixels if source is not Provenance.NONE)

    def inputs(self, scenario: Scenario) -> Inputs:
        """What that scenario's graph reads: the sensors it needs and no other."""
        return {sensor: np.ascontiguousarray(self.observations[sensor].values) for sensor in scenario.sensors}


def read_job(rasters: SensorRasters, tile: Tile) -> Job:
    """Read one tile and decide pixel by pixel which sensors are alive."""
    started = time.perf_counter()
    window = tile.reads
    observations = rasters.read(window.row, window.col, window.height, window.width)
    provenance = provenance_of({sensor: seen.valid for sensor, seen in observations.items()})
    counts = np.bincount(provenance[tile.target.within(window)].ravel(), minlength=len(Provenance))
    present = sorted((source for source in Provenance if counts[source]), key=lambda source: -counts[source])
    return Job(
        tile=tile,
        observations=observations,
        provenance=provenance,
        pixels={source: int(counts[source]) for source in present},
        read_s=time.perf_counter() - started,
    )


def provenance_of(valid: Mapping[Sensor, NDArray[np.bool_]]) -> NDArray[np.uint8]:
    """Which scenario each pixel takes, uint8 [h, w], from the sensors' validity masks, bool [h, w] each."""
    shape = next(iter(valid.values())).shape
    scenario = scenario_for(valid)
    if scenario is not None and all(mask.all() for mask in valid.values()):  # the usual tile, a tenth of the time
        return np.full(shape, scenario.provenance, np.uint8)
    dead = np.zeros(shape, np.bool_)
    rgir, ndsm = valid.get(Sensor.RGIR, dead), valid.get(Sensor.NDSM, dead)
    table = np.empty(4, np.uint8)
    table[[0, 1, 2, 3]] = Provenance.NONE, Provenance.MISSING_NDSM, Provenance.MISSING_RGIR, Provenance.FULL
    return np.asarray(table[rgir.view(np.uint8) + 2 * ndsm.view(np.uint8)])


@dataclass(frozen=True, kw_only=True)
class TileReport:
    """What became of one tile."""

    tile: Tile
    scenarios: tuple[Scenario, ...]
    read_s: float
    infer_s: float
    """From submission to the last scenario's answer, waiting for a free slot included."""
    write_s: float


class Sink(Protocol):
    """Where inferred tiles go; called in order from one thread."""

    def add(self, job: Job, outputs: Mapping[Scenario, Outputs]) -> None:
        """Take one tile."""


def stream(
    tiles: Iterable[Tile], *, rasters: SensorRasters, backend: Backend, sink: Sink, report: Callable[[TileReport], None]
) -> None:
    """Send ``tiles`` through the pipeline; ``report`` is called in the caller's thread, in order.

    A KeyboardInterrupt stops the reading; tiles already submitted are written before it is raised again.
    """
    depth = backend.info.slots + 2
    broken = threading.Event()

    def finish(job: Job, answers: Mapping[Scenario, Future[Outputs]], submitted: float) -> TileReport | None:
        if broken.is_set():
            return None
        try:
            outputs = {scenario: answer.result() for scenario, answer in answers.items()}
            answered = time.perf_counter()
            sink.add(job, outputs)
        except BaseException:
            broken.set()
            raise
        return TileReport(
            tile=job.tile,
            scenarios=job.scenarios,
            read_s=job.read_s,
            infer_s=answered - submitted,
            write_s=time.perf_counter() - answered,
        )

    remaining = iter(tiles)
    ahead: deque[Future[Job]] = deque()
    behind: deque[Future[TileReport | None]] = deque()
    with ThreadPoolExecutor(1, "read") as reading, ThreadPoolExecutor(1, "write") as writing:

        def collect(at_most: int) -> None:
            while len(behind) > at_most:
                done = behind.popleft().result()
                if done is not None:
                    report(done)

        try:
            ahead.extend(reading.submit(read_job, rasters, tile) for tile in islice(remaining, depth))
            while ahead:
                job = ahead.popleft().result()
                ahead.extend(reading.submit(read_job, rasters, tile) for tile in islice(remaining, 1))
                submitted = time.perf_counter()
                answers = {scenario: backend.submit(scenario, job.inputs(scenario)) for scenario in job.scenarios}
                behind.append(writing.submit(finish, job, answers, submitted))
                collect(depth)
            collect(0)
        except BaseException:
            reading.shutdown(wait=True, cancel_futures=True)
            raise
