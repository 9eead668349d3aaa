"""Latency of several models in one run: exported as ``export.run`` does, in OpenVINO, alternating round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import openvino as ov
import openvino.properties as props
import openvino.properties.hint as hints
import torch
from tqdm import tqdm

from benchmarks.rates import compile_openvino, in_turn
from benchmarks.sweep.variants import Variant
from engine.contract.errors import BackendError
from engine.contract.sensors import Scenario
from export.golden import GoldenInputs, synthetic_tile
from export.onnx_graphs import export_graph
from export.scenarios import inputs_of, scenario_module
from export.surgery import operate
from train.model import gmac
from train.system import System

TILE_SEED = 3_000_000
"""A procedural scene that no training draws; float32 arithmetic takes the same time on any."""


@dataclass(kw_only=True)
class Timed:
    """One variant and scenario, ready to run, and what each round measured."""

    variant: Variant
    scenario: Scenario
    parameters: int
    """Of the three deployed graphs together."""
    gmac: float
    """At 512 x 512."""
    request: ov.InferRequest
    class_agreement: float
    """Share of the tile's pixels with PyTorch's class."""
    threads: int
    rounds_ms: list[float] = field(default_factory=list)
    """Median of each round."""

    @property
    def latency_ms(self) -> float:
        """The median over rounds."""
        return statistics.median(self.rounds_ms)

    def over(self, reference: Timed) -> float:
        """The median over rounds of the ratio to another one."""
        return statistics.median(a / b for a, b in zip(self.rounds_ms, reference.rounds_ms, strict=True))


def measure(
    models: Sequence[tuple[Variant, System]], *, tile_px: int, rounds: int, repeats: int, threads: int
) -> list[Timed]:
    """Export and compile every variant and scenario, then time them in turn, ``repeats`` tiles in each round.

    Raises:
        BackendError: OpenVINO cannot compile or run a graph.
    """
    tile = synthetic_tile(seed=TILE_SEED, size_px=tile_px)
    timed = []
    with tqdm(total=len(models) * len(Scenario), desc="exporting", unit="graph") as bar:
        for variant, model in models:
            for scenario in Scenario:
                timed.append(prepare(variant, model, scenario, tile, threads))
                bar.update()
    for row in in_turn(timed, rounds, "timing"):
        row.request.infer()  # brings weights and buffers back into the caches
        latencies = []
        for _ in range(repeats):
            started = time.perf_counter()
            row.request.infer()
            latencies.append((time.perf_counter() - started) * 1e3)
        row.rounds_ms.append(statistics.median(latencies))
    return timed


def prepare(variant: Variant, model: System, scenario: Scenario, tile: GoldenInputs, threads: int) -> Timed:
    """One scenario's graph, compiled, its inputs in place, and compared with PyTorch on the tile.

    Raises:
        BackendError: OpenVINO cannot compile or run it.
    """
    graph, _ = operate(export_graph(model, scenario, tile.rgir.shape[-1]))
    sensors = inputs_of(scenario)
    hint = hints.PerformanceMode.LATENCY
    try:
        compiled = compile_openvino(graph.SerializeToString(), precision="fp32", threads=threads, hint=hint)
        request = compiled.create_infer_request()
        for sensor in sensors:
            request.set_tensor(sensor.value, ov.Tensor(np.ascontiguousarray(tile.sensor(sensor)[None])))
        request.infer()
        classes = request.get_tensor("classes").data[0]
        used = int(compiled.get_property(props.inference_num_threads))
    except RuntimeError as error:
        raise BackendError(f"OpenVINO failed on scenario {scenario} of variant {variant.name}: {error}") from error
    with torch.inference_mode():
        expected = scenario_module(model, scenario)(*(torch.from_numpy(tile.sensor(s)[None]) for s in sensors))[0]
    return Timed(
        variant=variant,
        scenario=scenario,
        parameters=model.deployable_parameters(),
        gmac=gmac(model, scenario),
        request=request,
        class_agreement=float((classes == expected[0].numpy()).mean()),
        threads=used,
    )
