"""Rasters as a source: pacing, buffers, read errors and verdicts, with real files."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from engine.buffers import BufferPool
from engine.contract.bands import ndsm_spec, rgir_spec
from engine.contract.errors import RasterOpenError
from engine.contract.health import default_limits
from engine.contract.sensors import Sensor
from engine.frames import RasterFrames
from engine.grid import Tile, TileGrid
from engine.health.faults import Injector, parse_faults
from engine.health.monitor import Fault, Monitor, State, Verdict
from engine.rasters.raster import SensorRasters
from engine.reader import FaultyReader, JobSource, Past, TileReader
from engine.stitcher import CropStitcher
from tests.engine.flight_scene import flight_scene

SPECS = {Sensor.RGIR: rgir_spec(), Sensor.NDSM: ndsm_spec()}
GUARD_S = 60


def pool(count: int = 4) -> BufferPool:
    return BufferPool(SPECS.values(), tile_px=64, count=count)


@pytest.fixture
def paths(write_scene) -> dict[Sensor, Path]:
    return write_scene(flight_scene(200, 300))


@pytest.fixture
def rasters(paths):
    with SensorRasters.open(paths, SPECS) as opened:
        yield opened


def tiles(rasters: SensorRasters) -> list:
    grid = TileGrid(height=rasters.grid.height, width=rasters.grid.width, tile_px=64, halo_px=8)
    return list(grid.tiles())


class Chosen(CropStitcher):
    """Lays some of a raster's tiles."""

    def __init__(self, rasters: SensorRasters, chosen: list[Tile]) -> None:
        super().__init__(height=rasters.grid.height, width=rasters.grid.width, tile_px=64, halo_px=8)
        self._chosen = chosen

    def tiles(self, start: int = 0) -> Iterator[Tile]:
        return iter(self._chosen[start:])


def raster_source(
    rasters: SensorRasters,
    chosen: list[Tile],
    *,
    pool: BufferPool,
    monitor: Monitor | None = None,
    injector: Injector | None = None,
    rate_hz: float | None = None,
    past: dict[int, Past] | None = None,
) -> JobSource:
    """Jobs of the chosen tiles of a pair of rasters."""
    reader = TileReader(
        RasterFrames(rasters),
        stitch=lambda _grid: Chosen(rasters, chosen),
        pool=pool,
        tile_px=64,
        rate_hz=rate_hz,
    )
    spoilt = reader if injector is None else FaultyReader(reader, injector)
    return JobSource(spoilt, monitor=monitor, strict=True, past=past)


def drain(source: JobSource) -> list:
    """Every job, its arrays copied before its buffers go back."""
    jobs = []
    for job in source:
        seen = {s: (each.values.copy(), each.valid.copy()) for s, each in job.observations.items()}
        jobs.append((job, seen))
        job.release()
    return jobs


def test_tiles_read_through_one_set_of_buffers_equal_plain_reads(rasters) -> None:
    for job, seen in drain(raster_source(rasters, tiles(rasters), pool=pool(count=1))):
        window = job.tile.reads
        plain = rasters.read(window.row, window.col, window.height, window.width)
        for sensor, (values, valid) in seen.items():
            np.testing.assert_array_equal(values, plain[sensor].values)
            np.testing.assert_array_equal(valid, plain[sensor].valid)
        assert job.wait_s == 0
        assert job.verdicts == {}


def test_no_buffer_is_read_into_before_it_was_given_back(rasters) -> None:
    jobs = iter(raster_source(rasters, tiles(rasters), pool=pool(count=3)))
    held = [next(jobs) for _ in range(3)]
    arrays = {id(each.values) for job in held for each in job.observations.values()}
    assert len(arrays) == 6
    fourth: list = []
    reader = threading.Thread(target=lambda: fourth.append(next(jobs)))
    reader.start()
    reader.join(0.2)
    assert reader.is_alive(), "it waits for a buffer"
    held[1].release()
    reader.join(GUARD_S)
    assert {id(each.values) for each in fourth[0].observations.values()} == {
        id(each.values) for each in held[1].observations.values()
    }


def test_stopping_wakes_a_source_that_waits_for_a_buffer(rasters) -> None:
    source = raster_source(rasters, tiles(rasters), pool=pool(count=1))
    jobs = iter(source)
    next(jobs)
    reader = threading.Thread(target=lambda: list(jobs))
    reader.start()
    source.stop()
    reader.join(GUARD_S)
    assert not reader.is_alive()


def test_a_paced_source_delivers_when_tiles_are_due_and_no_sooner(rasters) -> None:
    began = time.monotonic()
    jobs = drain(raster_source(rasters, tiles(rasters)[:8], pool=pool(), rate_hz=40.0))
    due = [job.available_at for job, _ in jobs]
    assert np.diff(due) == pytest.approx(np.full(7, 1 / 40))
    assert due[0] >= began
    assert time.monotonic() - began >= 7 / 40
    assert all(job.wait_s >= 0 for job, _ in jobs)


def test_waiting_behind_a_backlog_counts_as_waiting(rasters) -> None:
    jobs = []
    for job in raster_source(rasters, tiles(rasters)[:4], pool=pool(), rate_hz=1000.0):
        jobs.append(job)
        job.release()
        time.sleep(0.05)
    assert jobs[3].wait_s > 0.1


def test_stopping_wakes_a_paced_source(rasters) -> None:
    source = raster_source(rasters, tiles(rasters), pool=pool(), rate_hz=0.001)
    jobs = iter(source)
    next(jobs).release()
    reader = threading.Thread(target=lambda: list(jobs))
    reader.start()
    source.stop()
    reader.join(GUARD_S)
    assert not reader.is_alive()


def cut_in_half(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def test_a_sensor_that_cannot_be_read_is_absent_and_the_other_goes_on(write_scene) -> None:
    paths = write_scene(flight_scene(640, 640))
    cut_in_half(paths[Sensor.RGIR])
    with SensorRasters.open(paths, SPECS) as rasters:
        jobs = drain(raster_source(rasters, tiles(rasters), pool=pool(), monitor=Monitor(default_limits())))
    broken = [job for job, _ in jobs if job.verdicts[Sensor.RGIR].fault is Fault.READ_ERROR]
    assert 0 < len(broken) < len(jobs)
    for job in broken:
        assert job.verdicts[Sensor.RGIR].state is State.DEAD
        assert "previous exception" not in job.verdicts[Sensor.RGIR].detail, "the reason, not its echo"
        assert set(job.observations) == {Sensor.NDSM}


def test_without_a_monitor_a_sensor_that_cannot_be_read_ends_the_iteration(write_scene) -> None:
    paths = write_scene(flight_scene(640, 640))
    cut_in_half(paths[Sensor.RGIR])
    with SensorRasters.open(paths, SPECS) as rasters, pytest.raises(RasterOpenError, match="truncated or damaged"):
        drain(raster_source(rasters, tiles(rasters), pool=pool()))


def test_faults_on_purpose_reach_the_monitor(rasters) -> None:
    source = raster_source(
        rasters,
        tiles(rasters),
        pool=pool(),
        monitor=Monitor(default_limits()),
        injector=Injector(parse_faults("ndsm:frozen@5-7,rgir:late@12")),
    )
    faults = [(job.verdicts[Sensor.RGIR].fault, job.verdicts[Sensor.NDSM].fault) for job, _ in drain(source)]
    frozen_until_trusted = {tile for tile, (_, ndsm) in enumerate(faults) if ndsm is Fault.FROZEN}
    assert frozen_until_trusted == {5, 6, 7, 8, 9}, "two good tiles more, for it is alive after the third"
    assert faults[12][0] is Fault.LATE


def test_tiles_of_the_past_are_judged_as_they_were(rasters) -> None:
    dead = {
        Sensor.RGIR: Verdict(state=State.ALIVE),
        Sensor.NDSM: Verdict(state=State.DEAD, fault=Fault.NOISE),
    }
    past = {0: Past(verdicts=dead, skipped=False), 1: Past(verdicts=dead, skipped=True)}
    monitor = Monitor(default_limits())
    before = monitor.snapshot()
    first, second, third = drain(raster_source(rasters, tiles(rasters)[:3], pool=pool(), monitor=monitor, past=past))
    assert first[0].verdicts == dead
    assert first[0].monitor == before, "the monitor has seen these tiles already"
    assert set(first[1]) == {Sensor.RGIR}
    assert second[0].skipped
    assert second[1] == {}
    assert third[0].verdicts[Sensor.NDSM].state is State.ALIVE
    assert third[0].monitor != before
