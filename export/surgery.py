"""Rewrites of an exported graph: the same function in fewer operators, and in the forms that fused kernels look for.

Each rewrite is exact but for the rounding of a constant, edits the graph in place as onnx-graphsurgeon does, and
returns it. :data:`REWRITES` lists them in the order they run; :func:`operate` runs them and says what each one did.

What ``torch.onnx`` already does right is not done again: it strips the unused generator, folds constants and batch
normalisation, and writes LayerNormalization as one operator. ``tests/export/test_onnx_graphs.py`` holds it to that.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

PARAMETER_PREFIX = "model."
"""Of every parameter's name: the attribute of :mod:`export.scenarios` that holds the network."""
WEIGHT_SUFFIX, BIAS_SUFFIX = ".weight", ".bias"


# --- the rewrites


def name_layers(graph: gs.Graph) -> gs.Graph:
    """Name each layer after its module and every other node ``{layer before it}/{operator}``.

    A linear layer's weight, which the exporter stores transposed and numbered, gets its module's name as well.
    """
    layers = {tensor.name: tensor.name for tensor in graph.inputs}
    used: Counter[str] = Counter()
    for node in graph.nodes:
        own = _module(node)
        layer = own or next((layers[tensor.name] for tensor in node.inputs if tensor.name in layers), graph.name)
        name = own or f"{layer}/{node.op}"
        if own and node.op == "MatMul":
            node.inputs[1].name = f"{PARAMETER_PREFIX}{layer}{WEIGHT_SUFFIX}"
        used[name] += 1
        node.name = name if used[name] == 1 else f"{name}_{used[name] - 1}"
        layers.update((tensor.name, layer) for tensor in node.outputs)
    return graph


def drop_byte_clips(graph: gs.Graph) -> gs.Graph:
    """Drop ``Max`` and ``Min`` with bounds that a byte cannot leave: 0..255 or wider."""
    for node in _nodes(graph, "Max", "Min"):
        data, bound = _split_constant(node)
        if bound is None or not _is_byte(data):
            continue
        if np.all(bound <= 0) if node.op == "Max" else np.all(bound >= 255):
            _bypass(node, data)
    return graph.cleanup()


def fold_scale(graph: gs.Graph) -> gs.Graph:
    """Fold a constant per-channel factor into the convolutions that read it.

    Exact with zero padding as well: zero times a factor is zero.
    """
    for node in _nodes(graph, "Mul"):
        data, scale = _split_constant(node)
        convolutions = _reading_convolutions(node.outputs[0])
        if scale is None or not convolutions or not all(_fits_channels(scale, conv) for conv in convolutions):
            continue
        for conv in convolutions:
            weight = conv.inputs[1]
            conv.inputs[1] = _constant(f"{weight.name}.scaled", weight.values * scale.reshape(1, -1, 1, 1))
        _bypass(node, data)
    return graph.cleanup()


def fold_offset(graph: gs.Graph) -> gs.Graph:
    """Fold a constant per-channel offset into the biases of the convolutions that read it.

    Only where they add no zeros around the map: a zero there is a zero of the shifted values, not of the raw ones.
    Padding that repeats or mirrors the map is no obstacle.
    """
    for node in _nodes(graph, "Sub"):
        offset = _values(node.inputs[1])
        convolutions = _reading_convolutions(node.outputs[0])
        if offset is None or not convolutions:
            continue
        if not all(_fits_channels(offset, conv) and not _pads_with_zeros(conv) for conv in convolutions):
            continue
        for conv in convolutions:
            weight = conv.inputs[1]
            shift = (weight.values.astype(np.float64) * offset.reshape(1, -1, 1, 1)).sum(axis=(1, 2, 3))
            bias = conv.inputs[2].values if len(conv.inputs) > 2 else 0.0
            shifted = _constant(f"{PARAMETER_PREFIX}{conv.name}{BIAS_SUFFIX}.shifted", bias - shift)
            conv.inputs = [*conv.inputs[:2], shifted]
        _bypass(node, node.inputs[0])
    return graph.cleanup()


def prescale_projections(graph: gs.Graph) -> gs.Graph:
    """Fold the constant on Q and on K into their projections: nothing then stands between MatMul, Softmax, MatMul.

    TensorRT asks for Q and K that are scaled before their product
    (https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/transformers-fused-attention.html).
    """
    for node in _nodes(graph, "Mul"):
        data, scale = _split_constant(node)
        linear = _linear_behind(graph, data)
        if scale is None or scale.size != 1 or linear is None:
            continue
        for layer, at in linear:
            constant = layer.inputs[at]
            layer.inputs[at] = _constant(f"{constant.name}.scaled", constant.values * scale.reshape(()))
        _bypass(node, data)
    return graph.cleanup()


def merge_transposes(graph: gs.Graph) -> gs.Graph:
    """Make one of two transpositions in a row."""
    for node in _nodes(graph, "Transpose"):
        before = _producer(node.inputs[0])
        if before is None or before.op != "Transpose" or not _read_once(graph, before.outputs[0]):
            continue
        node.attrs["perm"] = [before.attrs["perm"][axis] for axis in node.attrs["perm"]]
        _bypass(before, before.inputs[0])
    return graph.cleanup()


def drop_whole_splits(graph: gs.Graph) -> gs.Graph:
    """Drop ``Split`` into one part."""
    for node in _nodes(graph, "Split"):
        if len(node.outputs) == 1:
            _bypass(node, node.inputs[0])
    return graph.cleanup()


# --- the table, and its report


@dataclass(frozen=True, kw_only=True)
class Rewrite:
    """A rewrite and why it is worth having."""

    apply: Callable[[gs.Graph], gs.Graph]
    reason: str

    @property
    def name(self) -> str:
        """Of its function."""
        return self.apply.__name__


REWRITES = (
    Rewrite(apply=name_layers, reason="reports, exclusions and audits can say which layer they mean"),
    Rewrite(apply=drop_byte_clips, reason="an 8-bit sensor cannot leave the range it is clipped to"),
    Rewrite(apply=fold_scale, reason="raw units reach the first convolution without a pass to scale them"),
    Rewrite(apply=fold_offset, reason="nor one to shift them, where no zeros are padded"),
    Rewrite(apply=prescale_projections, reason="fused attention needs Q and K scaled before their product"),
    Rewrite(apply=merge_transposes, reason="K is turned once on its way to the product, not twice"),
    Rewrite(apply=drop_whole_splits, reason="tokens of a single map need no cutting"),
)
"""In the order they run."""


@dataclass(frozen=True, kw_only=True)
class RewriteStep:
    """What one rewrite did to one graph, found by comparing the graph before and after."""

    rewrite: Rewrite
    before: Counter[str]
    """Nodes of each type."""
    after: Counter[str]
    removed: tuple[str, ...]
    """Names of nodes that are gone."""
    changed: tuple[str, ...]
    """Names of nodes with another name, attribute or constant than before."""


def operate(model: onnx.ModelProto) -> tuple[onnx.ModelProto, tuple[RewriteStep, ...]]:
    """Run every rewrite on a copy of a graph; the same graph gives the same bytes.

    Args:
        model: as ``export.onnx_graphs.export_graph`` gives it, weights inside.

    Returns:
        The graph with the same inputs, outputs, opset and IR version, and one step per rewrite.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)  # onnx-graphsurgeon keeps, and renames, the tensors of the model it imports
    graph = gs.import_onnx(copy).toposort()
    steps = []
    for rewrite in REWRITES:
        nodes = list(graph.nodes)
        known = [_fingerprint(node) for node in nodes]
        graph = rewrite.apply(graph)
        kept = {id(node) for node in graph.nodes}
        steps.append(
            RewriteStep(
                rewrite=rewrite,
                before=Counter(op for _, op, *_ in known),
                after=Counter(node.op for node in graph.nodes),
                removed=tuple(name for node, (name, *_) in zip(nodes, known, strict=True) if id(node) not in kept),
                changed=tuple(
                    node.name
                    for node, print_ in zip(nodes, known, strict=True)
                    if id(node) in kept and _fingerprint(node) != print_
                ),
            )
        )
    return gs.export_onnx(graph, ir_version=model.ir_version), tuple(steps)


def explain(steps: Sequence[RewriteStep]) -> str:
    """What each rewrite did, as lines of text."""
    lines = []
    for step in steps:
        before, after = step.before.total(), step.after.total()
        lines.append(f"  {step.rewrite.name:<22}{before:>4} -> {after:<4} {step.rewrite.reason}")
        found = [f"removed {len(step.removed)}: {', '.join(step.removed)}"] if step.removed else []
        if step.changed:
            names = "every node" if len(step.changed) == after else f"{len(step.changed)}: {', '.join(step.changed)}"
            found.append(f"changed {names}")
        for text in found or ["found nothing to do"]:
            lines += textwrap.wrap(text, 118, initial_indent=" " * 6, subsequent_indent=" " * 8, break_long_words=False)
    left = ", ".join(f"{op} {count}" for op, count in steps[-1].after.most_common())
    return "\n".join([*lines, *textwrap.wrap(f"left: {left}", 118, initial_indent="  ", subsequent_indent=" " * 8)])


# --- reading and editing


def _nodes(graph: gs.Graph, *ops: str) -> list[gs.Node]:
    """Nodes of these types that may go: none of them makes an output of the graph."""
    return [node for node in graph.nodes if node.op in ops and not any(_is_output(graph, t) for t in node.outputs)]


def _is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return any(tensor is output for output in graph.outputs)


def _values(tensor: gs.Tensor) -> NDArray[np.generic] | None:
    return tensor.values if isinstance(tensor, gs.Constant) else None


def _split_constant(node: gs.Node) -> tuple[gs.Tensor, NDArray[Any] | None]:
    """The two inputs of a node as (what flows, the constant), or (the first, None) if both flow."""
    first, second = node.inputs
    if isinstance(first, gs.Constant):
        first, second = second, first
    return first, _values(second)


def _constant(name: str, values: NDArray[np.generic]) -> gs.Constant:
    return gs.Constant(name, np.ascontiguousarray(values, np.float32))


def _producer(tensor: gs.Tensor) -> gs.Node | None:
    return tensor.inputs[0] if tensor.inputs else None


def _read_once(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return len(tensor.outputs) == 1 and not _is_output(graph, tensor)


def _bypass(node: gs.Node, source: gs.Tensor) -> None:
    """Let every reader of the node's output read ``source``; ``cleanup`` then removes the node."""
    (output,) = node.outputs
    for reader in list(output.outputs):
        reader.inputs = [source if tensor is output else tensor for tensor in reader.inputs]
    node.outputs.clear()


def _is_byte(tensor: gs.Tensor) -> bool:
    """Whether values come from bytes, moved between places and channels at most."""
    cast = _producer(tensor)
    while cast is not None and cast.op in ("Reshape", "Transpose"):
        cast = _producer(cast.inputs[0])
    return cast is not None and cast.op == "Cast" and cast.inputs[0].dtype == np.uint8


def _reading_convolutions(tensor: gs.Tensor) -> list[gs.Node]:
    """Every reader of a tensor if all are convolutions of it, directly or through mirrored padding; else none."""
    found: list[gs.Node] = []
    for reader in tensor.outputs:
        if reader.op == "Conv" and reader.inputs[0] is tensor and isinstance(reader.inputs[1], gs.Constant):
            found.append(reader)
        elif reader.op == "Pad" and reader.attrs.get("mode") in ("reflect", "edge"):
            behind = _reading_convolutions(reader.outputs[0])
            if not behind:
                return []
            found += behind
        else:
            return []
    return found


def _fits_channels(values: NDArray[np.generic], conv: gs.Node) -> bool:
    """Whether a constant has one number for all input channels, or one for each of an ungrouped convolution."""
    channels = conv.inputs[1].shape[1]
    per_channel = values.ndim == 4 and values.shape == (1, channels, 1, 1) and conv.attrs.get("group", 1) == 1
    return values.size == 1 or per_channel


def _pads_with_zeros(conv: gs.Node) -> bool:
    return any(conv.attrs.get("pads", [])) or conv.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def _linear_behind(graph: gs.Graph, tensor: gs.Tensor) -> list[tuple[gs.Node, int]] | None:
    """The linear layer whose output this is but for its shape: (node, place of its constant) of MatMul and Add."""
    node = _producer(tensor)
    while node is not None and node.op in ("Reshape", "Transpose") and _read_once(graph, node.outputs[0]):
        node = _producer(node.inputs[0])
    if node is None or node.op != "Add" or not _read_once(graph, node.outputs[0]):
        return None
    product, _ = _split_constant(node)
    at = next((i for i, t in enumerate(node.inputs) if isinstance(t, gs.Constant)), None)
    matmul = _producer(product)
    if at is None or matmul is None or matmul.op != "MatMul" or not _read_once(graph, product):
        return None
    return [(matmul, 1), (node, at)] if isinstance(matmul.inputs[1], gs.Constant) else None


def _module(node: gs.Node) -> str | None:
    """The module whose weight a node holds: ``encoder.rgir.stages.0.enter.0``."""
    if len(node.inputs) < 2 or not isinstance(node.inputs[1], gs.Constant):
        return None
    name: str = node.inputs[1].name
    suffix = WEIGHT_SUFFIX
    if node.op == "MatMul":
        beside = [tensor for reader in node.outputs[0].outputs for tensor in reader.inputs]
        bias = next((tensor for tensor in beside if isinstance(tensor, gs.Constant)), None)
        name, suffix = (bias.name, BIAS_SUFFIX) if bias is not None else ("", "")
    if not (name.startswith(PARAMETER_PREFIX) and name.endswith(suffix)):
        return None
    return name.removeprefix(PARAMETER_PREFIX).removesuffix(suffix)


def _fingerprint(node: gs.Node) -> tuple[str, str, str, tuple[str, ...]]:
    """What a rewrite of this node changes; where its other inputs come from is the change of another node."""
    attributes = repr(sorted((name, repr(value)) for name, value in node.attrs.items()))
    return node.name, node.op, attributes, tuple(t.name for t in node.inputs if isinstance(t, gs.Constant))
