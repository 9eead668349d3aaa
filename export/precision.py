"""fp16 written into a graph, by NVIDIA Model Optimizer's AutoCast: no builder flag, the same types in every runtime.

https://nvidia.github.io/Model-Optimizer/guides/8_autocast.html. Inputs and outputs keep their types. AutoCast itself
keeps in fp32 each node that sees a value above 512 on the tile it is given; what else stays there is stated below.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from modelopt.onnx.autocast import configure_logging, convert_to_mixed_precision
from numpy.typing import NDArray

from engine.contract.sensors import Sensor

FP32_OPERATORS = ("InstanceNormalization", "LayerNormalization", "ReduceMean", "Softmax")
"""They sum over whole maps, tokens or rows, which eleven bits do not hold."""
FP32_LAYERS = (f"{Sensor.NDSM}/", "head/(?!Resize|DepthToSpace)", "smooth/")
"""Patterns of node names. Heights are squared under roots before they are small; and the map's own softmax, its largest
probability and the confidence are what the tolerances of a bundle are about."""


def to_fp16(model: onnx.ModelProto, inputs: Mapping[str, NDArray[np.generic]]) -> onnx.ModelProto:
    """Convert a graph; the same graph and inputs give the same bytes.

    Args:
        model: as :func:`export.surgery.operate` leaves it, nodes named by layer.
        inputs: a typical batch, raw sensor units by input name.

    Returns:
        A graph with fp16 weights and activations, fp32 where stated above, and Casts between the two.
    """
    configure_logging("ERROR")  # or it lists every node that is excluded below
    with tempfile.TemporaryDirectory() as folder:
        graph, batch = Path(folder) / "graph.onnx", Path(folder) / "batch.npz"
        onnx.save(model, graph)
        np.savez(batch, **dict[str, Any](inputs))
        converted: onnx.ModelProto = convert_to_mixed_precision(
            str(graph),
            low_precision_type="fp16",
            keep_io_types=True,
            op_types_to_exclude=list(FP32_OPERATORS),
            nodes_to_exclude=list(FP32_LAYERS),
            calibration_data=str(batch),
            providers=["cpu"],
        )
    # AutoCast leaves shapes of tensors that are gone, in the order of a set.
    made = {name for node in converted.graph.node for name in node.output}
    kept = sorted((v for v in converted.graph.value_info if v.name in made), key=lambda value: value.name)
    del converted.graph.value_info[:]
    converted.graph.value_info.extend(kept)
    return converted


def explain(model: onnx.ModelProto) -> str:
    """Which types a graph computes in, as lines of text."""
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    by_type: dict[int, Counter[str]] = {}
    for node in model.graph.node:
        by_type.setdefault(types.get(node.output[0], onnx.TensorProto.UNDEFINED), Counter())[node.op_type] += 1
    lines = []
    for kind, ops in sorted(by_type.items()):
        listed = ", ".join(f"{op} {count}" for op, count in ops.most_common())
        lines.append(f"  {onnx.TensorProto.DataType.Name(kind).lower():<10}{ops.total():>4} nodes: {listed}")
    return "\n".join(lines)
