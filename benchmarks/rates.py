"""A backend, or the library under it by itself, on tiles held in memory, in the two ways that MLPerf inference names.

- *single-stream*: the next tile is handed over when the last one's answer is there; a latency per tile. MLPerf's figure
  of it is the 90th percentile.
- *offline*: all tiles are there from the start and every slot of the backend is busy; tiles a second.

https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc (section "Scenarios"; run length and
early stopping of that document are not followed).

The libraries by themselves are called as one would call them first: their defaults, no streams, no slots, no checks.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from benchmarks.tiles import Tile
from engine.backends.base import Backend, ExecutionPrecision, Inputs, Output, PerformanceHint
from engine.backends.options import BackendName
from engine.contract.sensors import Scenario

if TYPE_CHECKING:  # where TensorRT is measured there may be no OpenVINO
    import openvino

_T = TypeVar("_T")
WANTED = (Output.CLASSES, Output.CONFIDENCE)
"""What a map without blending needs."""
Feed = Mapping[str, NDArray[np.generic]]
"""A batch by the graph's names: ``rgir`` uint8 [N, 3, T, T], ``ndsm`` float32 [N, 1, T, T]."""
Bare = Callable[[Feed], Any]
"""Computes the wanted outputs of one batch and waits for them."""


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


def in_turn(contest: Sequence[_T], rounds: int, title: str) -> Iterator[_T]:
    """Each contestant once a round; each round begins with another one, so that who follows whom is nobody's luck."""
    for number in tqdm(range(rounds), desc=title, unit="round"):
        first = number % max(len(contest), 1)
        yield from (*contest[first:], *contest[:first])


def compile_openvino(
    model: Path | bytes,
    *,
    precision: ExecutionPrecision,
    batch: int = 1,
    threads: int | None = None,
    hint: Any = None,
) -> openvino.CompiledModel:
    """A graph with only the wanted outputs and static shapes; ``fp32`` keeps it from computing in bfloat16.

    ``hint`` is a ``PerformanceMode`` of OpenVINO.
    """
    import openvino
    import openvino.properties.hint as hints
    from openvino.properties import inference_num_threads

    from engine.backends.openvino import DEVICE, shared_core

    read = shared_core().read_model(model)
    pruned = openvino.Model([read.output(name.value) for name in WANTED], read.get_parameters(), "bare")
    pruned.reshape({port: [batch, *list(port.partial_shape)[1:]] for port in pruned.inputs})
    config: dict[Any, object] = {} if threads is None else {inference_num_threads: threads}
    if precision == "fp32":
        config[hints.inference_precision] = openvino.Type.f32
    if hint is not None:
        config[hints.performance_mode] = hint
    return shared_core().compile_model(pruned, DEVICE, config)


def open_bare(
    library: str, path: Path, *, batch: int = 1, precision: ExecutionPrecision, threads: int | None = None
) -> Bare | None:
    """A library by itself: all cores on one batch.

    None where it cannot be had so: TensorRT's plans are built for the batch of one that the engine uses.
    """
    if library == "openvino":
        compiled = compile_openvino(path, batch=batch, precision=precision, threads=threads)
        return lambda feed: compiled(dict(feed))
    if library != "onnxruntime":
        return None
    import onnxruntime  # an extra: only who asks for it needs it

    from engine.backends.onnxruntime import AS_WRITTEN, ERRORS_ONLY, PROVIDER

    # Its graphs take any batch and compute in the types written into them; these settings get the graph's own answers.
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = ERRORS_ONLY
    options.add_session_config_entry(*AS_WRITTEN)
    session = onnxruntime.InferenceSession(path, options, providers=[PROVIDER])
    return partial(session.run, [name.value for name in WANTED])


def bare_tiles_per_s(infer: Bare, inputs: Sequence[Inputs], *, batch: int, count: int) -> float:
    """Tiles per second of one batch after the other, at least ``count`` tiles, after one batch of burn-in."""
    feeds = []
    for first in range(0, max(batch, len(inputs) - batch + 1), batch):
        picked = [inputs[(first + index) % len(inputs)] for index in range(batch)]
        feeds.append({sensor.value: np.stack([tile[sensor] for tile in picked]) for sensor in picked[0]})
    repeats = math.ceil(count / batch)
    infer(feeds[0])
    started = time.perf_counter()
    for index in range(repeats):
        infer(feeds[index % len(feeds)])
    return repeats * batch / (time.perf_counter() - started)
