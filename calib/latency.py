"""How long OpenVINO takes for a tile with each graph, side by side in one run."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import openvino as ov
import openvino.properties as props
import openvino.properties.hint as hints

from calib.runtimes import Batch, compile_openvino
from calib.score import CLASSES
from engine.contract.bundle import Precision
from engine.contract.errors import BackendError
from engine.contract.sensors import Scenario

ROUNDS = 40
WARM_UP_ROUNDS = 5
CONFIDENCE = "confidence"


@dataclass(frozen=True, kw_only=True)
class GraphLatency:
    """One graph in one type of arithmetic, one tile at a time on every core, classes and confidence out."""

    precision: Precision
    """Of the graph."""
    floating: str
    """What its floating layers were asked to be computed in."""
    computed: str
    """What OpenVINO says it computes them in: a CPU without bfloat16 stays with f32."""
    int8_nodes: int
    """Convolutions that OpenVINO's profile shows in an INT8 kernel."""
    nodes: int
    """Convolutions in all."""
    median_ms: float
    p90_ms: float

    @property
    def label(self) -> str:
        """Graph and arithmetic."""
        return f"{self.precision} as {self.floating}"


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One scenario's graphs, measured in turns, and what they were measured under."""

    scenario: Scenario
    latencies: tuple[GraphLatency, ...]
    threads: int
    rounds: int
    load: float
    """Processes that wanted a CPU in the minute before, by the operating system's count."""


def measure(
    scenario: Scenario, graphs: Mapping[Precision, onnx.ModelProto], tile: Batch, *, rounds: int = ROUNDS
) -> Timing:
    """Run every graph once per round, so that whatever else the machine does falls on all of them alike.

    The float32 graph runs a second time asked for bfloat16, which a CPU with AMX or AVX512-BF16 takes up.

    Args:
        scenario: whose graphs.
        graphs: by precision.
        tile: a batch of one.
        rounds: that are counted.

    Raises:
        BackendError: OpenVINO refuses a graph or fails.
    """
    load = os.getloadavg()[0]
    asked = [(precision, ov.Type.f32) for precision in graphs]
    if "fp32" in graphs:
        asked.append(("fp32", ov.Type.bf16))
    compiled = [_compile(graphs[precision], floating, profiled=False) for precision, floating in asked]
    requests = [model.create_infer_request() for model in compiled]
    times_ms = np.zeros((rounds + WARM_UP_ROUNDS, len(requests)))
    for row in times_ms:
        for i, request in enumerate(requests):
            start = time.perf_counter()
            _infer(request, tile)
            row[i] = 1000 * (time.perf_counter() - start)
    kept = times_ms[WARM_UP_ROUNDS:]
    latencies = []
    for i, (precision, floating) in enumerate(asked):
        executed = convolution_kernels(graphs[precision], floating, tile)
        latencies.append(
            GraphLatency(
                precision=precision,
                floating=str(floating.get_type_name()),
                computed=str(compiled[i].get_property(hints.inference_precision).get_type_name()),
                int8_nodes=sum("I8" in kernel.upper() for kernel in executed),
                nodes=len(executed),
                median_ms=float(np.median(kept[:, i])),
                p90_ms=float(np.percentile(kept[:, i], 90)),
            )
        )
    threads = int(compiled[0].get_property(props.inference_num_threads))
    return Timing(scenario=scenario, latencies=tuple(latencies), threads=threads, rounds=rounds, load=load)


def convolution_kernels(model: onnx.ModelProto, floating: ov.Type, tile: Batch) -> list[str]:
    """The kernel that OpenVINO ran each convolution in, from its profile, for example ``jit_avx2_I8``."""
    request = _compile(model, floating, profiled=True).create_infer_request()
    _infer(request, tile)
    return [
        node.exec_type
        for node in request.profiling_info
        if "Convolution" in node.node_type and node.status == ov.ProfilingInfo.Status.EXECUTED
    ]


def _compile(model: onnx.ModelProto, floating: ov.Type, *, profiled: bool) -> ov.CompiledModel:
    config = {
        hints.performance_mode: hints.PerformanceMode.LATENCY,
        hints.inference_precision: floating,
        props.enable_profiling: profiled,
    }
    return compile_openvino(model, (CLASSES, CONFIDENCE), config)


def _infer(request: ov.InferRequest, tile: Batch) -> None:
    try:
        request.infer(dict(tile))
    except RuntimeError as error:
        raise BackendError(f"OpenVINO failed on a tile: {error}") from error
