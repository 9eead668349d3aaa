"""PyTorch modules to ONNX files: static tile, free batch, one weights file shared by the graphs of a precision.

``torch.onnx`` in its ``torch.export`` form is used because it folds batch normalisation into convolutions, writes
LayerNormalization as one op, and computes every shape at export.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import torch
from onnx import external_data_helper, numpy_helper
from torch import Tensor

from engine.contract.bundle import Precision
from engine.contract.sensors import Scenario, Sensor
from export.scenarios import BANDS, OUTPUTS, inputs_of, scenario_module
from train.system import System

OPSET = 18
"""The oldest opset with all that is needed, so that TensorRT 10 on a Jetson parses the graphs as well."""
BATCH_AXIS = "batch"
EXTERNAL_ABOVE_BYTES = 1024
"""Smaller initializers stay in the graph: shapes and scales that runtimes read while they parse."""
ALIGNMENT_BYTES = 64


@dataclass(frozen=True, kw_only=True)
class SharedWeights:
    """What :func:`write_graphs` wrote."""

    graphs: Mapping[Scenario, Path]
    weights: Path
    unshared_bytes: int
    """What the same weights would take with one copy per graph."""

    @property
    def saved_bytes(self) -> int:
        """What sharing saves."""
        return self.unshared_bytes - self.weights.stat().st_size


def export_graph(model: System, scenario: Scenario, tile_px: int) -> onnx.ModelProto:
    """One scenario as an ONNX graph, weights inside; the same model gives the same bytes.

    Inputs and outputs are those of :mod:`export.scenarios` with T = ``tile_px``; N is the free axis ``batch``.

    Args:
        model: in evaluation mode, on the CPU.
        scenario: which graph; it holds a generator only if it needs it.
        tile_px: side T.
    """
    inputs = inputs_of(scenario)
    batch = torch.export.Dim(BATCH_AXIS)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # or it lists every torchvision op it lacks
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own insides, nothing a user could act on
        program = torch.onnx.export(
            scenario_module(model, scenario),
            # Two samples, as torch.export would take a batch of one for a constant.
            tuple(_example(sensor, tile_px, batch=2) for sensor in inputs),
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in inputs),
            input_names=[sensor.value for sensor in inputs],
            output_names=list(OUTPUTS),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    graph.graph.name = f"gemmnet_{scenario}"
    _remove_notes(graph)
    return graph


def write_graphs(
    graphs: Mapping[Scenario, onnx.ModelProto], folder: Path, precision: Precision = "fp32"
) -> SharedWeights:
    """Write ``{scenario}.onnx`` for each graph and one ``weights.bin`` with their initializers, each content once.

    Other precisions than fp32 stand before the suffix: ``{scenario}.fp16.onnx``, ``weights.fp16.bin``. The files are
    ONNX external data (https://onnx.ai/onnx/repo-docs/ExternalData.html) and pass ``onnx.checker``.
    """
    infix = "" if precision == "fp32" else f".{precision}"
    weights_path = folder / f"weights{infix}.bin"
    offsets: dict[bytes, int] = {}
    paths, unshared_bytes = {}, 0
    with weights_path.open("wb") as weights:
        for scenario in sorted(graphs, key=list(Scenario).index):
            slim = onnx.ModelProto()
            slim.CopyFrom(graphs[scenario])
            for tensor in slim.graph.initializer:
                content = numpy_helper.to_array(tensor).tobytes()
                if len(content) <= EXTERNAL_ABOVE_BYTES:
                    continue
                unshared_bytes += len(content)
                key = hashlib.sha256(content).digest()
                if key not in offsets:
                    weights.write(bytes(-weights.tell() % ALIGNMENT_BYTES))
                    offsets[key] = weights.tell()
                    weights.write(content)
                tensor.raw_data = content
                external_data_helper.set_external_data(tensor, weights_path.name, offsets[key], len(content))
                tensor.ClearField("raw_data")
            paths[scenario] = folder / f"{scenario}{infix}.onnx"
            paths[scenario].write_bytes(slim.SerializeToString(deterministic=True))
    for path in paths.values():
        onnx.checker.check_model(path, full_check=True)
    return SharedWeights(graphs=paths, weights=weights_path, unshared_bytes=unshared_bytes)


def op_counts(graph: onnx.ModelProto) -> Counter[str]:
    """How many nodes of each type the graph has."""
    return Counter(node.op_type for node in graph.graph.node)


def _example(sensor: Sensor, tile_px: int, *, batch: int) -> Tensor:
    dtype = torch.uint8 if sensor is Sensor.RGIR else torch.float32
    return torch.zeros(batch, BANDS[sensor], tile_px, tile_px, dtype=dtype)


def _remove_notes(model: onnx.ModelProto) -> None:
    """Drop the exporter's stack traces and module paths: they differ between machines and name their folders."""
    graph = model.graph
    noted = (model, graph, *graph.node, *graph.initializer, *graph.value_info, *graph.input, *graph.output)
    for message in noted:
        message.ClearField("doc_string")
        message.ClearField("metadata_props")
