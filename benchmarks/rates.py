"""A backend on tiles held in memory, in the two ways that MLPerf inference names.

- *single-stream*: the next tile is handed over when the last one's answer is there; a latency per tile. MLPerf's figure
  of it is the 90th percentile.
- *offline*: all tiles are there from the start and every slot of the backend is busy; tiles a second.

https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc (section "Scenarios"; run length and
early stopping of that document are not followed).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.tiles import Tile
from engine.backends import BackendName
from engine.backends.base import Backend, Inputs, PerformanceHint
from engine.contract.sensors import Scenario


def hints_of(backend: BackendName) -> tuple[PerformanceHint, ...]:
    """The arrangements that a backend has: the one for many tiles first, the one for lone tiles last."""
    return ("throughput", "latency") if backend == "openvino" else ("throughput",)


def inputs_of(scenario: Scenario, tiles: Sequence[Tile]) -> list[Inputs]:
    """The tiles as the scenario's graph reads them: without the sensors that it does without."""
    return [{sensor: tile[sensor] for sensor in scenario.sensors} for tile in tiles]


def single_stream(backend: Backend, scenario: Scenario, inputs: Sequence[Inputs], count: int) -> NDArray[np.float64]:
    """Latency in milliseconds, float64 [count], of one tile after the other, from host memory to host memory."""
    latencies_ms = np.empty(count)
    for index in range(count):
        started = time.perf_counter()
        backend.infer(scenario, inputs[index % len(inputs)])
        latencies_ms[index] = (time.perf_counter() - started) * 1e3
    return latencies_ms


def offline(backend: Backend, scenario: Scenario, inputs: Sequence[Inputs], count: int) -> float:
    """Tiles per second over ``count`` tiles, with all slots busy from the first to the last."""
    flying = deque(backend.submit(scenario, inputs[index % len(inputs)]) for index in range(backend.info.slots))
    started = time.perf_counter()
    for index in range(count):
        flying.popleft().result()
        flying.append(backend.submit(scenario, inputs[index % len(inputs)]))
    rate = count / (time.perf_counter() - started)
    for last in flying:
        last.result()
    return rate


def first_after_switch(
    backend: Backend, scenario: Scenario, tiles: Sequence[Tile], *, after: int
) -> NDArray[np.float64]:
    """Milliseconds of the first tile of ``scenario`` after ``after`` tiles of each other one, float64 [2]."""
    latencies_ms = []
    for other in Scenario:
        if other is not scenario:
            single_stream(backend, other, inputs_of(other, tiles), after)
            latencies_ms.append(single_stream(backend, scenario, inputs_of(scenario, tiles), 1))
    return np.concatenate(latencies_ms)
