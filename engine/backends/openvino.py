"""OpenVINO on the CPU: the embedded default."""

from __future__ import annotations

import io
import logging
import queue
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino.properties as props
import openvino.properties.hint as hints

from engine.backends import instruction_sets
from engine.backends.base import Backend, BackendInfo, ExecutionPrecision, Inputs, Output, Outputs, PerformanceHint
from engine.backends.fastest import conditions, fastest
from engine.backends.remembered import Remembered
from engine.backends.signature import Tensor, check_signature
from engine.backends.words import said
from engine.contract.bundle import Bundle, Precision
from engine.contract.errors import BackendError
from engine.contract.sensors import Scenario

log = logging.getLogger(__name__)

DEVICE = "CPU"
_MODES: dict[PerformanceHint, hints.PerformanceMode] = {
    "throughput": hints.PerformanceMode.THROUGHPUT,
    "latency": hints.PerformanceMode.LATENCY,
}
_LAYERS = ("Convolution", "GroupConvolution", "MatMul")
WRONG_ABOVE = 0.25
"""Mean error over mean magnitude of a layer's output. On the demo bundle rounding alone gave at most 0.03, and the one
layer that OpenVINO 2026.4.1 got wrong gave 0.91."""


@cache
def shared_core() -> ov.Core:
    """The process's only OpenVINO Core: many of them over the life of a process have crashed others.

    See https://github.com/openvinotoolkit/openvino/issues/35338. Options belong to a compiled model, never to the Core.
    """
    return ov.Core()


class OpenVinoBackend(Backend):
    """One compiled model per scenario on OpenVINO's streams, as many as the hint gives, one thread waiting on each.

    Waiting threads rather than ``start_async`` callbacks: a callback is not called when inference fails, so the failure
    would be lost. Graphs are compiled, or taken as an earlier start left them. Unwanted outputs are cut
    off before compiling, so that a map without blending never writes probabilities to memory.
    """

    def __init__(
        self,
        bundle: Bundle,
        scenarios: Iterable[Scenario],
        wanted: Iterable[Output],
        *,
        precision: ExecutionPrecision = "auto",
        threads: int | None = None,
        hint: PerformanceHint = "throughput",
        remembered: Remembered | None = None,
    ) -> None:
        graph: Precision = precision if precision != "auto" else fastest(remembered, bundle, threads, hint) or "fp32"
        if bundle.signed_by is not None:  # what runs is what was signed, and nothing that was made of it
            remembered = None
        self._wanted = tuple(wanted)
        config: dict[str, Any] = {hints.performance_mode: _MODES[hint]}
        if precision == "fp32" or instruction_sets.told() in instruction_sets.WITHOUT_BF16:
            config[hints.inference_precision] = ov.Type.f32
        if threads is not None:
            config[props.inference_num_threads] = threads
        self._idle: dict[Scenario, queue.SimpleQueue[ov.InferRequest]] = {}
        self._answers: dict[Output, tuple[tuple[int, ...], np.dtype[Any]]] = {}
        core = shared_core()
        try:
            device = str(core.get_property(DEVICE, props.device.full_name)).strip()
            key = {"library": ov.__version__, "device": device, "wanted": self._wanted, "graph": graph}
            key |= {
                **conditions(bundle, threads, hint),
                "config": {str(name): str(value) for name, value in config.items()},
            }

            def prepared(scenario: Scenario) -> ov.CompiledModel:
                """As an earlier start left it, or compiled now."""
                mine = {**key, "scenario": scenario}
                kept = b"" if remembered is None else remembered.content("compiled", mine)
                if kept:
                    try:
                        return core.import_model(io.BytesIO(kept), DEVICE, config)
                    except RuntimeError as error:
                        log.info("a compiled graph that was kept is compiled again: %s", said(error))
                compiled = core.compile_model(self._read(core, bundle, paths[scenario], scenario), DEVICE, config)
                if remembered is not None:
                    remembered.keep("compiled", mine, compiled.export_model().getvalue())
                return compiled

            with bundle.opened(scenarios, graph) as paths:
                for scenario in paths:  # one by one: OpenVINO's Python binding has been seen to lock itself up
                    compiled = prepared(scenario)
                    slots = int(compiled.get_property(props.optimal_number_of_infer_requests))
                    ports = {name: compiled.output(name.value) for name in self._wanted}
                    self._answers = {name: (tuple(p.shape)[1:], p.element_type.to_dtype()) for name, p in ports.items()}
                    self._idle[scenario] = queue.SimpleQueue()
                    for _ in range(slots):
                        self._idle[scenario].put(compiled.create_infer_request())
            self.info = BackendInfo(
                name="openvino",
                library=f"openvino {ov.__version__.split('-')[0]}",
                device=device,
                precision=str(compiled.get_property(hints.inference_precision).get_type_name()),
                threads=int(compiled.get_property(props.inference_num_threads)),
                slots=slots,
                graph=graph,
            )
            self._pool = ThreadPoolExecutor(max_workers=slots, thread_name_prefix="openvino")
        except RuntimeError as error:
            raise BackendError(f"OpenVINO could not prepare the bundle {bundle.root}: {said(error)}") from error

    def _read(self, core: ov.Core, bundle: Bundle, path: Path, scenario: Scenario) -> ov.Model:
        """The scenario's graph with the wanted outputs only and a batch of one.

        Streams, not batches, keep CPU cores busy, and static shapes compile to faster code.
        """
        model = core.read_model(path)
        check_signature(bundle, scenario, inputs=_tensors(model.inputs), outputs=_tensors(model.outputs))
        pruned = ov.Model([model.output(name.value) for name in self._wanted], model.get_parameters(), scenario.value)
        pruned.reshape({port: [1, *list(port.partial_shape)[1:]] for port in pruned.inputs})
        return pruned

    def submit(self, scenario: Scenario, inputs: Inputs) -> Future[Outputs]:
        """Queue one tile for the next idle request of that scenario."""
        return self._pool.submit(self._run, scenario, inputs)

    def _run(self, scenario: Scenario, inputs: Inputs) -> Outputs:
        request = self._idle[scenario].get()
        try:
            for sensor, values in inputs.items():
                request.set_tensor(sensor.value, ov.Tensor(values[None], shared_memory=True))
            outputs = {name: np.empty(*self._answers[name]) for name in self._wanted}
            for name, values in outputs.items():  # the graph writes into the caller's memory: nothing is copied
                request.set_tensor(name.value, ov.Tensor(values[None], shared_memory=True))
            request.infer()
            return outputs
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed on a tile of scenario {scenario}: {said(error)}") from error
        finally:
            self._idle[scenario].put(request)

    def close(self) -> None:
        """Wait for the queue to empty; free the graphs."""
        self._pool.shutdown()
        self._idle.clear()


def first_wrong_layer(bundle: Bundle, scenario: Scenario, inputs: Inputs) -> str:
    """Which layer of a scenario's int8 graph OpenVINO computes wrongly here; empty where every layer is right.

    The same graph is run twice: as always, and with OpenVINO's low precision transformations switched off, so that it
    computes what the Q/DQ pairs say in float32. The outputs of all convolutions and products are compared.

    Args:
        bundle: the model.
        scenario: whose graph.
        inputs: one tile by sensor.

    Raises:
        BackendError: OpenVINO refuses the graph or fails on the tile.
    """
    core = shared_core()
    try:
        with bundle.opened([scenario], "int8") as paths:
            model = core.read_model(paths[scenario])
        layers = [op for op in model.get_ordered_ops() if op.get_type_name() in _LAYERS]
        cut = ov.Model([op.output(0) for op in layers], model.get_parameters(), scenario.value)
        cut.reshape({port: [1, *list(port.partial_shape)[1:]] for port in cut.inputs})
        tile = {sensor.value: values[None] for sensor, values in inputs.items()}
        config = {hints.inference_precision: ov.Type.f32}
        found, right = (
            core.compile_model(cut, DEVICE, each)(tile) for each in (config, config | {"LP_TRANSFORMS_MODE": "NO"})
        )
        for at, op in enumerate(layers):
            error = float(np.abs(found[at] - right[at]).mean()) / max(float(np.abs(right[at]).mean()), 1e-9)
            if error > WRONG_ABOVE:
                return str(op.get_friendly_name()).partition("/")[0]
    except RuntimeError as error:
        raise BackendError(f"OpenVINO could not run {scenario} layer by layer: {said(error)}") from error
    return ""


def _tensors(ports: Iterable[Any]) -> dict[str, Tensor]:
    return {
        port.any_name: (
            port.element_type.to_dtype(),
            tuple(None if axis.is_dynamic else axis.get_length() for axis in port.partial_shape),
        )
        for port in ports
    }
