"""Graphs in memory as functions: OpenVINO for speed, ONNX Runtime as the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import openvino.properties as props
import openvino.properties.hint as hints
from numpy.typing import NDArray

from engine.contract.errors import BackendError

Batch = Mapping[str, NDArray[np.generic]]
"""Inputs by name, batch axis first."""
Infer = Callable[[Batch], dict[str, NDArray[np.generic]]]
"""A batch -> outputs by name."""

DEVICE = "CPU"


def openvino_infer(model: onnx.ModelProto, wanted: Sequence[str]) -> Infer:
    """A graph in OpenVINO on the CPU, floating layers in float32 whatever the CPU would prefer.

    Raises:
        BackendError: OpenVINO refuses the graph; the returned function raises it when a batch fails.
    """
    compiled = compile_openvino(model, wanted, {hints.inference_precision: ov.Type.f32})

    def infer(batch: Batch) -> dict[str, NDArray[np.generic]]:
        try:
            results = compiled(dict(batch))
        except RuntimeError as error:
            raise BackendError(f"OpenVINO failed on a tile: {error}") from error
        return {name: results[name] for name in wanted}

    return infer


@cache
def shared_core() -> ov.Core:
    """One Core for the process: see https://github.com/openvinotoolkit/openvino/issues/35338."""
    return ov.Core()


def compile_openvino(model: onnx.ModelProto, wanted: Sequence[str], config: Mapping[str, object]) -> ov.CompiledModel:
    """A graph compiled for one tile at a time with only the wanted outputs, as the engine does it.

    Raises:
        BackendError: OpenVINO refuses it.
    """
    core = shared_core()
    try:
        read = core.read_model(model.SerializeToString(), b"")
        pruned = ov.Model([read.output(name) for name in wanted], read.get_parameters(), model.graph.name)
        pruned.reshape({port: [1, *list(port.partial_shape)[1:]] for port in pruned.inputs})
        return core.compile_model(pruned, DEVICE, dict(config))
    except RuntimeError as error:
        raise BackendError(f"OpenVINO could not compile the graph {model.graph.name}: {error}") from error


def onnxruntime_infer(model: onnx.ModelProto, wanted: Sequence[str]) -> Infer:
    """A graph in ONNX Runtime on the CPU exactly as it is written: no operator fused, Q and DQ computed apart.

    Raises:
        BackendError: ONNX Runtime refuses the graph; the returned function raises it when a batch fails.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3  # or it lists every initializer that nothing reads
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its own classes have no common base
        raise BackendError(f"ONNX Runtime could not prepare the graph {model.graph.name}: {error}") from error

    def infer(batch: Batch) -> dict[str, NDArray[np.generic]]:
        try:
            return dict(zip(wanted, session.run(list(wanted), dict(batch)), strict=True))
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed on a tile: {error}") from error

    return infer


def versions() -> dict[str, str]:
    """Of the two libraries, and the CPU they ran on."""
    return {
        "openvino": ov.__version__.split("-")[0],
        "onnxruntime": ort.__version__,
        "cpu": str(shared_core().get_property(DEVICE, props.device.full_name)).strip(),
    }
