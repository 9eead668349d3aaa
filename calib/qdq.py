"""Editing Q/DQ pairs: what makes one graph right in TensorRT, OpenVINO and ONNX Runtime.

A pair is QuantizeLinear and DequantizeLinear in a row on a tensor; a layer whose factors all come out of pairs runs in
INT8. Symmetric throughout, as TensorRT takes no zero point: activations have one scale, weights one per output channel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import ArrayLike, NDArray

QUANTISED = "Conv"
"""The operator that becomes INT8. With MatMul as well the demo's full graph was as accurate (a probability changed by
0.0039 on average instead of 0.0038, 8 validation scenes), but OpenVINO on two AVX2 cores took 10 % longer: its INT8
products are slower than its float32 ones. They are 14 % of the multiply-accumulates."""
ACTIVATION_LEVELS = 127
WEIGHT_LEVELS = 64
"""Of 127. AVX2 and AVX-512 without VNNI shift activations to unsigned and add two products in 16 bits: 2 x 255 x 64
fits, 2 x 255 x 65 saturates (https://docs.openvino.ai/latest/pot_saturation_issue.html)."""


@dataclass(frozen=True, kw_only=True)
class WeightedLayer:
    """A node with weights or a matrix product."""

    name: str
    op: str
    macs: int
    """Multiply-accumulates for one tile."""
    int8: bool
    """Whether every factor comes from INT8."""


def layers_of(model: onnx.ModelProto) -> tuple[WeightedLayer, ...]:
    """Every convolution and matrix product of a graph, in its order."""
    graph = with_shapes(model)
    return tuple(
        WeightedLayer(
            name=node.name, op=node.op, macs=_macs(node), int8=all(_pair(tensor) for tensor in node.inputs[:2])
        )
        for node in graph.nodes
        if node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul")
    )


def int8_share(model: onnx.ModelProto) -> float:
    """Share of a graph's multiply-accumulates that are INT8."""
    layers = layers_of(model)
    return sum(layer.macs for layer in layers if layer.int8) / max(1, sum(layer.macs for layer in layers))


def ranged_tensors(placed: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the activations that pairs stand on."""
    constants = {tensor.name for tensor in placed.graph.initializer}
    found = (node.input[0] for node in placed.graph.node if node.op_type == "QuantizeLinear")
    return tuple(name for name in found if name not in constants)


def inputs_of_layers(placed: onnx.ModelProto) -> dict[str, str]:
    """By INT8 layer: the activation it reads."""
    graph = gs.import_onnx(placed)
    pairs = {node.name: _pair(node.inputs[0]) for node in graph.nodes if node.op == QUANTISED}
    return {name: pair[0].inputs[0].name for name, pair in pairs.items() if pair}


_POINTWISE = frozenset({"Cast", "Relu", "LeakyRelu", "Clip", "Add", "Sub", "Mul", "Div", "Max", "Min", "Identity"})


def joined_layers(placed: onnx.ModelProto) -> frozenset[str]:
    """INT8 layers that read a concatenation of channels, with nothing but pointwise operators in between.

    Libraries join quantised parts each in their own way: OpenVINO 2026.4.1 gave a wrong map for 16 + 1 channels on
    processors with AVX-512 and without AMX. No INT8 layer of ours may depend on that.
    """
    graph = gs.import_onnx(placed)
    found = {node.name: _pair(node.inputs[0]) for node in graph.nodes if node.op == QUANTISED}
    return frozenset(name for name, pair in found.items() if pair and _joined(pair[0].inputs[0]))


def _joined(tensor: gs.Tensor) -> bool:
    node = producer(tensor)
    if node is None or node.op == "Concat":
        return node is not None
    return node.op in _POINTWISE and any(_joined(one) for one in node.inputs)


def finish(placed: onnx.ModelProto, thresholds: Mapping[str, float], released: Collection[str] = ()) -> onnx.ModelProto:
    """An INT8 graph that runtimes take.

    Args:
        placed: from :func:`place`.
        thresholds: by activation, where it is clipped.
        released: names of layers that stay floating.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(placed)  # onnx-graphsurgeon edits the tensors of the model it imports
    graph = gs.import_onnx(copy)
    release(graph, released)
    set_ranges(graph, thresholds)
    narrow_weights(graph)
    return exported(graph, placed)


def exported(graph: gs.Graph, like: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without what nothing reads, sorted, as a model of the other's version."""
    model: onnx.ModelProto = gs.export_onnx(graph.cleanup().toposort(), ir_version=like.ir_version)
    return model


def release(graph: gs.Graph, names: Collection[str]) -> None:
    """Let layers read their floating inputs; a pair that no INT8 layer reads any more goes, for every reader."""
    for node in graph.nodes:
        if node.name in names:
            node.inputs = [pair[0].inputs[0] if (pair := _pair(tensor)) else tensor for tensor in node.inputs]
    for node in graph.nodes:
        pair = _pair(node.outputs[0]) if node.op == "DequantizeLinear" else ()
        readers = list(node.outputs[0].outputs)
        if pair and not any(reader.op == QUANTISED for reader in readers):
            source = pair[0].inputs[0]
            for reader in readers:
                reader.inputs = [source if tensor is node.outputs[0] else tensor for tensor in reader.inputs]
    graph.cleanup()


def set_ranges(graph: gs.Graph, thresholds: Mapping[str, float]) -> None:
    """Give each activation's pair its scale; ``thresholds`` holds every activation that has one."""
    for quantize, dequantize in _pairs(graph):
        source = quantize.inputs[0]
        if isinstance(source, gs.Constant):
            continue
        old = quantize.inputs[1].values
        scale = _scale(thresholds[source.name] / ACTIVATION_LEVELS, like=old)
        quantize.inputs[1] = dequantize.inputs[1] = gs.Constant(f"{source.name}.scale", scale)


def narrow_weights(graph: gs.Graph) -> None:
    """Store weights as INT8 within :data:`WEIGHT_LEVELS`, per output channel, with scales that their type can hold."""
    for quantize, dequantize in _pairs(graph):
        weight = quantize.inputs[0]
        if not isinstance(weight, gs.Constant):
            continue
        values, old = weight.values.astype(np.float32), quantize.inputs[1].values
        axis = quantize.attrs.get("axis", 0) if old.ndim else None
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = _scale(np.abs(values).max(axis=others) / WEIGHT_LEVELS, like=old)
        along = [-1 if i == axis else 1 for i in range(values.ndim)]
        steps = np.rint(values / scale.astype(np.float32).reshape(along))
        dequantize.inputs[0] = gs.Constant(
            f"{weight.name}.int8", np.clip(steps, -WEIGHT_LEVELS, WEIGHT_LEVELS).astype(np.int8)
        )
        dequantize.inputs[1] = gs.Constant(f"{weight.name}.scale", scale)
        quantize.outputs.clear()


def with_shapes(model: onnx.ModelProto) -> gs.Graph:
    """A copy of a graph for one tile's shapes; the batch axis keeps its name."""
    return gs.import_onnx(onnx.shape_inference.infer_shapes(model, data_prop=True))


def producer(tensor: gs.Tensor) -> gs.Node | None:
    """The node that makes a tensor, if one does."""
    return tensor.inputs[0] if tensor.inputs else None


def _pair(tensor: gs.Tensor) -> tuple[gs.Node, gs.Node] | tuple[()]:
    """(Q, DQ) that a tensor comes out of, or nothing. INT8 weights have no Q: then it is (DQ, DQ)."""
    dequantize = producer(tensor)
    if dequantize is None or dequantize.op != "DequantizeLinear":
        return ()
    quantize = producer(dequantize.inputs[0])
    return (quantize or dequantize, dequantize)


def _pairs(graph: gs.Graph) -> list[tuple[gs.Node, gs.Node]]:
    found = (_pair(node.outputs[0]) for node in graph.nodes if node.op == "DequantizeLinear")
    return [pair for pair in found if pair]


def _scale(value: ArrayLike, *, like: NDArray[np.floating]) -> NDArray[np.floating]:
    """A scale in the type and shape of another, at least the type's smallest normal number: below, digits are lost."""
    return np.asarray(np.maximum(value, np.finfo(like.dtype).tiny), like.dtype).reshape(like.shape)


def _macs(node: gs.Node) -> int:
    sizes = [1 if isinstance(side, str) else int(side) for side in node.outputs[0].shape]
    output = int(np.prod(sizes))
    match node.op:
        case "Conv":
            return output * int(np.prod(node.inputs[1].shape[1:]))
        case "ConvTranspose":
            sizes = [1 if isinstance(side, str) else int(side) for side in node.inputs[0].shape]
            return int(np.prod(sizes)) * int(np.prod(node.inputs[1].shape[1:]))
        case _:
            return output * int(node.inputs[0].shape[-1])
