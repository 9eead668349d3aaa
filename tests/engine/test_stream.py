"""The pipeline by itself: order, what waits for what, what is dropped, and what an error leaves behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
import pytest

from engine.backends.base import Backend, Output
from engine.backends.options import BackendOptions
from engine.contract.errors import OutputError, RasterOpenError
from engine.contract.sensors import Provenance, Scenario, Sensor
from engine.grid import TileGrid
from engine.health.monitor import Fault, State, Verdict
from engine.job import Job, make_job
from engine.rasters.sources import Observation
from engine.stream import jobs_alive, stream
from tests.conftest import toy_probabilities

GUARD_S = 60
TILES = list(TileGrid(height=64 * 6, width=64 * 8, tile_px=64, halo_px=0).tiles())


@pytest.fixture(scope="module")
def backend(toy_bundle) -> Iterator[Backend]:
    with BackendOptions(name="openvino", precision="fp32", threads=1).open(
        toy_bundle, scenarios=Scenario, wanted=[Output.CLASSES]
    ) as opened:
        yield opened


def observations(seed: int) -> dict[Sensor, Observation]:
    rng = np.random.default_rng(seed)
    valid = np.ones((64, 64), bool)
    return {
        Sensor.RGIR: Observation(values=rng.integers(0, 256, (3, 64, 64), np.uint8), valid=valid),
        Sensor.NDSM: Observation(values=rng.uniform(-1, 30, (1, 64, 64)).astype(np.float32), valid=valid),
    }


class Made:
    """A source of made-up tiles that counts the jobs alive; ``fails_at`` raises instead of that tile."""

    def __init__(self, *, fails_at: int | None = None, dead_ndsm: frozenset[int] = frozenset()) -> None:
        self.fails_at, self.dead_ndsm = fails_at, dead_ndsm
        self.alive = self.most_alive = self.read = 0
        self.stopped = False
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[Job]:
        for tile in TILES:
            if self.stopped:
                return
            if tile.index == self.fails_at:
                raise RasterOpenError("truncated")
            with self._lock:
                self.alive += 1
                self.most_alive = max(self.alive, self.most_alive)
            self.read += 1
            state = State.DEAD if tile.index in self.dead_ndsm else State.ALIVE
            fault = Fault.FROZEN if state is State.DEAD else None
            yield make_job(
                tile,
                observations(tile.index),
                verdicts={Sensor.RGIR: Verdict(state=State.ALIVE), Sensor.NDSM: Verdict(state=state, fault=fault)},
                available_at=time.monotonic(),
                wait_s=0.0,
                read_s=0.0,
                release=self._released,
            )

    def _released(self) -> None:
        with self._lock:
            self.alive -= 1

    def stop(self) -> None:
        self.stopped = True


class Kept:
    """A sink that keeps what it is given; ``fails_at`` raises instead of taking that tile."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.jobs: list[Job] = []
        self.classes: list[dict] = []
        self.reports: list = []

    def add(self, job, outputs) -> None:
        if job.tile.index == self.fails_at:
            raise OutputError("disk full")
        self.jobs.append(job)
        self.classes.append({scenario: answer[Output.CLASSES] for scenario, answer in outputs.items()})

    def written(self, report) -> None:
        self.reports.append(report)


class Gated(Backend):
    """Answers nothing until the gate is opened."""

    def __init__(self, inner: Backend) -> None:
        self.inner, self.info, self.gate = inner, inner.info, threading.Event()

    def submit(self, scenario, inputs):
        assert self.gate.wait(GUARD_S)
        return self.inner.submit(scenario, inputs)

    def close(self) -> None:
        pass


def assert_mapped_right(sink: Kept) -> None:
    for job, classes in zip(sink.jobs, sink.classes, strict=True):
        assert set(classes) == set(job.scenarios)
        for scenario, answer in classes.items():
            seen = observations(job.tile.index)
            expected = toy_probabilities(scenario, {s: seen[s].values for s in scenario.sensors}, 0).argmax(axis=0)
            assert (answer == expected).mean() > 0.9995


def test_every_tile_arrives_once_and_in_order(backend) -> None:
    source, sink, told = Made(), Kept(), []
    stream(source, backend=backend, sink=sink, report=told.append)
    assert [job.tile for job in sink.jobs] == TILES
    assert [report.tile for report in told] == TILES
    assert told == sink.reports
    assert source.alive == 0
    assert_mapped_right(sink)


def test_no_more_jobs_exist_than_there_are_buffers_for(backend) -> None:
    source, gated = Made(), Gated(backend)
    opening = threading.Timer(0.3, gated.gate.set)
    opening.start()
    stream(source, backend=gated, sink=Kept(), report=lambda _: None)
    assert source.most_alive <= jobs_alive(backend.info.slots) < len(TILES)


def test_a_tile_seen_by_a_dead_sensor_is_inferred_without_it(backend) -> None:
    sink, told = Kept(), []
    dead = frozenset({3, 4, 5, 20})
    stream(Made(dead_ndsm=dead), backend=backend, sink=sink, report=told.append)
    for job in sink.jobs:
        alone = job.tile.index in dead
        assert job.scenarios == ((Scenario.MISSING_NDSM,) if alone else (Scenario.FULL,))
        assert (job.provenance == (Provenance.MISSING_NDSM if alone else Provenance.FULL)).all()
    assert_mapped_right(sink)
    assert [report.tile.index for report in told if report.switched] == [3, 6, 20, 21]


def test_a_resumed_stream_knows_the_scenario_before_its_first_tile(backend) -> None:
    told: list = []
    stream(Made(), backend=backend, sink=Kept(), report=told.append, scenario=Scenario.MISSING_NDSM)
    assert [report.tile.index for report in told if report.switched] == [0]


def test_when_behind_the_oldest_waiting_tiles_are_skipped_in_their_turn(backend) -> None:
    source, sink, gated, told = Made(), Kept(), Gated(backend), []

    def open_when_all_is_read() -> None:
        until = time.monotonic() + GUARD_S
        while source.read < len(TILES) and time.monotonic() < until:
            time.sleep(0.01)
        gated.gate.set()

    threading.Thread(target=open_when_all_is_read).start()
    stream(source, backend=gated, sink=sink, report=told.append, drop_oldest=True)
    assert [job.tile for job in sink.jobs] == TILES, "skipped tiles pass in their turn"
    skipped = [job.tile.index for job in sink.jobs if job.skipped]
    assert [report.tile.index for report in told if report.skipped] == skipped
    assert source.most_alive <= jobs_alive(backend.info.slots)
    assert source.alive == 0
    kept = [tile.index for tile in TILES if tile.index not in skipped]
    waiting = backend.info.slots + 2
    assert kept[-waiting:] == list(range(len(TILES) - waiting, len(TILES))), "the newest were kept"
    assert len(kept) <= waiting + 3, "besides them the one that held the backend, and what was taken as it was freed"
    for job, classes in zip(sink.jobs, sink.classes, strict=True):
        if job.skipped:
            assert classes == {}
            assert job.scenarios == ()
            assert (job.provenance == Provenance.NONE).all()
    assert_mapped_right(sink)


def test_without_dropping_the_source_waits_and_every_tile_is_mapped(backend) -> None:
    source, sink, gated = Made(), Kept(), Gated(backend)
    opening = threading.Timer(0.3, gated.gate.set)
    opening.start()
    stream(source, backend=gated, sink=sink, report=lambda _: None)
    assert not any(job.skipped for job in sink.jobs)
    assert len(sink.jobs) == len(TILES)


def test_an_error_of_the_source_comes_after_the_tiles_before_it(backend) -> None:
    sink = Kept()
    with pytest.raises(RasterOpenError, match="truncated"):
        stream(Made(fails_at=17), backend=backend, sink=sink, report=lambda _: None)
    assert [job.tile.index for job in sink.jobs] == list(range(17))


class Resting(Made):
    """Delivers a few tiles, then none until it is stopped."""

    def __init__(self, tiles: int) -> None:
        super().__init__()
        self.tiles, self.woken = tiles, threading.Event()

    def __iter__(self) -> Iterator[Job]:
        yield from islice(super().__iter__(), self.tiles)
        assert self.woken.wait(GUARD_S)

    def stop(self) -> None:
        super().stop()
        self.woken.set()


def test_tiles_are_reported_while_the_source_rests(backend) -> None:
    source, told = Resting(tiles=2), []

    def report(done) -> None:
        told.append(done.tile.index)
        if len(told) == 2:  # not before the source is stopped would the stream end
            source.stop()

    stream(source, backend=backend, sink=Kept(), report=report)
    assert told == [0, 1]


def test_a_failure_of_the_sink_ends_the_stream_while_the_source_rests(backend) -> None:
    source = Resting(tiles=2)
    with pytest.raises(OutputError, match="disk full"):
        stream(source, backend=backend, sink=Kept(fails_at=1), report=lambda _: None)
    assert source.stopped


def test_nothing_is_written_behind_a_tile_that_failed(backend) -> None:
    source, sink = Made(), Kept(fails_at=9)
    with pytest.raises(OutputError, match="disk full"):
        stream(source, backend=backend, sink=sink, report=lambda _: None)
    assert [job.tile.index for job in sink.jobs] == list(range(9))
    assert source.stopped


def test_an_interrupt_writes_what_was_submitted_and_stops_the_source(backend) -> None:
    source, sink = Made(), Kept()

    def report(done) -> None:
        if done.tile.index == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream(source, backend=backend, sink=sink, report=report)
    indices = [job.tile.index for job in sink.jobs]
    assert indices == list(range(len(indices)))
    assert 6 <= len(indices) <= 6 + jobs_alive(backend.info.slots)
    assert len(sink.reports) == len(sink.jobs), "the log of the tiles lacks none"
    assert source.stopped


def test_the_stages_of_a_tile_add_up_to_its_latency(backend) -> None:
    told: list = []
    stream(Made(), backend=backend, sink=Kept(), report=told.append)
    for report in told:
        stages = report.wait_s + report.read_s + report.queue_s + report.infer_s + report.write_s
        assert stages == pytest.approx(report.latency_s, abs=1e-6)
        assert min(report.queue_s, report.infer_s, report.write_s) >= 0
        assert 0 <= report.queue_depth <= backend.info.slots + 2
