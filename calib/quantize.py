"""Where Q/DQ pairs go, by NVIDIA Model Optimizer (https://github.com/NVIDIA/Model-Optimizer).

It puts them on the input and the weights of every convolution and on nothing else; a residual sum then reads the
quantised tensor that its convolution reads. What one graph for three runtimes takes beyond that is in :mod:`calib.qdq`.

An 8-bit image needs no pair of its own: it is cast and shifted before the first convolution, whose pair stands behind
that. What stays floating keeps the type of the graph that is quantised. fp16 suits TensorRT; OpenVINO on an AVX2 CPU
took the same time with fp32 there.
"""

from __future__ import annotations

import tempfile
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from modelopt.onnx import quantization as model_optimizer

from calib.qdq import QUANTISED, exported, joined_layers, release
from calib.runtimes import Batch
from engine.contract.errors import BackendError

TOOL = f"nvidia-modelopt {version('nvidia-modelopt')}"


def place(model: onnx.ModelProto, tile: Batch) -> onnx.ModelProto:
    """Put pairs on every convolution that Model Optimizer takes, with ranges to be set by :func:`calib.qdq.set_ranges`.

    Layers behind a concatenation that could not be split stay floating (:func:`calib.qdq.joined_layers`).

    Args:
        model: with fp32 or fp16 layers, which keep their type.
        tile: any input; Model Optimizer insists on measuring something.

    Raises:
        BackendError: Model Optimizer refuses the graph.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "graph.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, source)
        try:
            model_optimizer.quantize(
                str(source),
                quantize_mode="int8",
                calibration_method="max",
                calibration_data=dict(tile),
                calibration_eps=["cpu"],
                op_types_to_quantize=[QUANTISED],
                high_precision_dtype="fp32",  # that is: leave the floating layers as they are
                passes=[],
                output_path=str(target),
                log_level="CRITICAL",  # or it reports the missing GPU as an error
            )
            placed = onnx.load(target)
        except Exception as error:  # whatever onnx, onnxruntime or the tool itself raise
            raise BackendError(f"Model Optimizer could not quantise {model.graph.name}: {error}") from error
    graph = gs.import_onnx(placed)
    release(graph, joined_layers(placed))
    return exported(graph, placed)
