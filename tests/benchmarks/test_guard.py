"""A guard against a slower pipeline: ratios only, measured side by side, so that a slow machine is no failure."""

from __future__ import annotations

import statistics
import threading
import time
from pathlib import Path

import pytest

from benchmarks.rasters import write_raster
from benchmarks.rates import WANTED, inputs_of, offline, single_stream
from benchmarks.tiles import tiles_of_run
from engine import demo
from engine.backends.options import BackendOptions
from engine.contract.bundle import Bundle
from engine.contract.sensors import Scenario, Sensor
from tests.engine.runs import Watcher, request_for, run_told

pytestmark = pytest.mark.slow

LEAST_RATE = 0.65
"""Of the bare backend's tiles a second with its two slots busy. Sound, the stream reaches 0.9 to 1.0 on two cores, idle
or with others competing for them; one tile at a time leaves a slot idle: 0.45 to 0.6."""
MOST_WORK = 1.4
"""Processor seconds of a tile, times those of the bare backend, which hardly care who else uses the machine. Sound, the
stream takes 1.05 to 1.15, and 1.4 in one round of seven on a busy machine; each tile inferred twice takes more than
2."""
ROUNDS = (3, 7)
"""The median counts: of the first three, or of up to seven where those do not convince."""
THREADS = 2
"""However many cores there are, so that the bounds mean the same everywhere."""


class Stopwatch(Watcher):
    """Processor seconds of this process from the first tile's reading to the last one's writing."""

    def started(self, plan, backend, *, first_tile) -> None:
        super().started(plan, backend, first_tile=first_tile)
        self.cpu_s = -time.process_time()

    def publishing(self) -> None:
        self.cpu_s += time.process_time()


def test_the_stream_keeps_the_backend_busy_and_does_nothing_twice(tmp_path: Path) -> None:
    bundle, scenario = Bundle.load(demo.BUNDLE), Scenario.MISSING_NDSM
    rasters = {Sensor.RGIR: write_raster(tmp_path, 4)[1][Sensor.RGIR]}
    tiles = tiles_of_run(bundle.manifest, rasters, 25)
    options = {"precision": "fp32", "threads": THREADS}
    request = request_for(demo.BUNDLE, rasters, tmp_path / "map", backend="openvino", overwrite=True, **options)
    rates: list[float] = []
    work: list[float] = []
    with BackendOptions(name="openvino", **options).open(bundle, scenarios=[scenario], wanted=WANTED) as backend:
        inputs = inputs_of(scenario, tiles)

        def bare() -> tuple[float, float]:
            """Tiles a second, processor seconds a tile."""
            cpu_s = -time.process_time()
            rate = offline(backend, scenario, inputs, len(tiles))
            return rate, (cpu_s + time.process_time()) / (len(tiles) + backend.info.slots)

        single_stream(backend, scenario, inputs, 2)
        while len(rates) < ROUNDS[0] or (len(rates) < ROUNDS[1] and not sound(rates, work)):
            before = bare()
            threads, watch = set(threading.enumerate()), Stopwatch()
            told = run_told(request, watch)
            left = {thread.name for thread in set(threading.enumerate()) - threads}
            bare_rate, bare_cpu_s = ((one + other) / 2 for one, other in zip(before, bare(), strict=True))
            assert told["result"]["inferences"][scenario] == told["tiling"]["tiles"] == len(tiles)
            assert not left, "threads outlive the run"
            rates.append(told["performance"]["tiles_per_s"] / bare_rate)
            work.append(watch.cpu_s / len(tiles) / bare_cpu_s)
    assert sound(rates, work), (
        f"of the bare backend's tiles a second the stream reached {rounded(rates)} (least median {LEAST_RATE}), taking "
        f"{rounded(work)} times its processor time a tile (most {MOST_WORK}): a stage waits for another or works twice"
    )


def sound(rates: list[float], work: list[float]) -> bool:
    return statistics.median(rates) >= LEAST_RATE and statistics.median(work) <= MOST_WORK


def rounded(ratios: list[float]) -> str:
    return ", ".join(f"{ratio:.2f}" for ratio in ratios)
