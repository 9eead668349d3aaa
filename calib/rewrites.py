"""A floating graph in the form that INT8 kernels suit: the same function of the same weights.

None of this is for :mod:`export`: in floating point it gains nothing, or loses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from calib.qdq import QUANTISED, exported, producer, with_shapes


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """All rewrites, on a copy."""
    return shuffle_last(split_concatenations(cast_first(model)))


def cast_first(model: onnx.ModelProto) -> onnx.ModelProto:
    """Cast the parts of a concatenation instead of the whole, so that nothing stands between it and its readers."""
    graph = with_shapes(model)
    for cast in [node for node in graph.nodes if node.op == "Cast"]:
        concat = producer(cast.inputs[0])
        if concat is None or concat.op != "Concat":
            continue
        whole, parts = cast.outputs[0], []
        for k, part in enumerate(concat.inputs):
            piece = gs.Variable(f"{whole.name}.{k}", dtype=whole.dtype, shape=part.shape)
            graph.nodes.append(
                gs.Node("Cast", f"{cast.name}.{k}", attrs=dict(cast.attrs), inputs=[part], outputs=[piece])
            )
            parts.append(piece)
        cast.outputs.clear()
        name = f"{concat.name}/{cast.name}"
        graph.nodes.append(gs.Node("Concat", name, attrs=dict(concat.attrs), inputs=parts, outputs=[whole]))
    return exported(graph, model)


def split_concatenations(model: onnx.ModelProto) -> onnx.ModelProto:
    """Turn each convolution of a concatenation into a sum of convolutions, which is the same function.

    OpenVINO 2026.4.1 rounds a concatenation of signed INT8 tensors to three values, whether the pair stands before it
    or behind, and without AMX it joins parts of unequal, odd channel counts wrongly. Without the concatenation its INT8
    graph is right, and no tensor is copied. What cannot be split stays floating (:func:`calib.qdq.joined_layers`).
    """
    graph = with_shapes(model)
    for node in [node for node in graph.nodes if node.op == QUANTISED]:
        concat = producer(node.inputs[0])
        if concat is None or concat.op != "Concat" or concat.attrs["axis"] != 1 or node.attrs.get("group", 1) != 1:
            continue
        weight, *bias = node.inputs[1:]
        ends = np.cumsum([part.shape[1] for part in concat.inputs])
        slices = np.split(weight.values, ends[:-1], axis=1)
        total = node.outputs[0]
        summed: gs.Tensor | None = None
        for k, (part, values) in enumerate(zip(concat.inputs, slices, strict=True)):
            piece = gs.Variable(f"{total.name}.{k}", dtype=total.dtype, shape=total.shape)
            inputs = [part, gs.Constant(f"{weight.name}.{k}", np.ascontiguousarray(values)), *([] if k else bias)]
            graph.nodes.append(
                gs.Node(QUANTISED, f"{node.name}.{k}", attrs=dict(node.attrs), inputs=inputs, outputs=[piece])
            )
            if summed is None:
                summed = piece
                continue
            last = k == len(slices) - 1
            out = total if last else gs.Variable(f"{total.name}.to{k}", dtype=total.dtype, shape=total.shape)
            if last:
                node.outputs.clear()
            graph.nodes.append(gs.Node("Add", f"{node.name}/Add_{k}", inputs=[summed, piece], outputs=[out]))
            summed = out
    return exported(graph, model)


def shuffle_last(model: onnx.ModelProto) -> onnx.ModelProto:
    """Move ``DepthToSpace`` behind all that treats each pixel by itself: softmax, and which class is the largest.

    A depth-wise convolution in between takes its polyphase form, a convolution of each class's packed channels, exact
    at the borders too, where both pad with zeros. For 5x5 and blocks of 4 it multiplies six times as often, mostly by
    zeros; but on two AVX2 cores OpenVINO took 1.7 ms for it in INT8 against 3.4 depth-wise (5.8 in float32).
    """
    graph = with_shapes(model)
    for shuffle in [node for node in graph.nodes if node.op == "DepthToSpace" and node.attrs.get("mode") == "CRD"]:
        (packed,), (pixels,) = shuffle.inputs, shuffle.outputs
        side: int = shuffle.attrs["blocksize"]
        smooth = _depthwise(graph, pixels, reach=side)
        source = pixels if smooth is None else smooth.outputs[0]
        inside = _pixelwise(graph, source)
        if not inside:
            continue
        batch, channels, height, width = packed.shape
        layer = (smooth or shuffle).name.partition("/")[0]
        if smooth is not None:
            weight, *bias = smooth.inputs[1:]
            smooth.inputs = [
                packed,
                gs.Constant(f"{weight.name}.packed", _polyphase(weight.values, side)),
                *(gs.Constant(f"{one.name}.packed", one.values.repeat(side**2)) for one in bias),
            ]
            smooth.attrs |= {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
            packed = gs.Variable(f"{source.name}.packed", source.dtype, packed.shape)
            smooth.outputs = [packed]
        shuffle.outputs.clear()
        # A stack of every block's first pixels, every block's second ones...: who treats pixels alone does not mind.
        stack = (side**2 * height, width)
        _reshape(graph, f"{layer}/Stack", packed, (channels // side**2, *stack), source)
        for tensor in [source, *(output for node in inside.values() for output in node.outputs)]:
            if _is_output(graph, tensor) or any(id(reader) not in inside for reader in tensor.outputs):
                _unstack(graph, f"{layer}/Unstack_{tensor.name}", tensor, inside, (side, height, width))
            else:
                tensor.shape = (batch, tensor.shape[1], *stack)
    return exported(graph, model)


def _is_output(graph: gs.Graph, tensor: gs.Tensor) -> bool:
    return any(tensor is output for output in graph.outputs)


def _depthwise(graph: gs.Graph, pixels: gs.Tensor, *, reach: int) -> gs.Node | None:
    """The only reader of a tensor if it is a convolution of each channel by itself that keeps the size.

    ``reach`` is how far from its middle its window may go.
    """
    if _is_output(graph, pixels) or [reader.op for reader in pixels.outputs] != ["Conv"]:
        return None
    (conv,) = pixels.outputs
    if any(not isinstance(tensor, gs.Constant) for tensor in conv.inputs[1:]):
        return None
    channels, each, rows, columns = conv.inputs[1].shape
    default: dict[str, object] = {"group": 1, "pads": [0] * 4, "strides": [1, 1], "dilations": [1, 1]}
    needed = default | {"group": channels, "pads": [rows // 2] * 4}
    keeps_size = rows % 2 == 1 and all(conv.attrs.get(name, default[name]) == needed[name] for name in needed)
    return conv if keeps_size and each == 1 and rows == columns and rows // 2 <= reach else None


def _polyphase(weight: NDArray[np.floating], side: int) -> NDArray[np.floating]:
    """A depth-wise kernel for pixels as one for packed pixels: [C, 1, k, k] -> [C * side^2, side^2, 3, 3].

    Tap (u, v) of the pixel (i, j) of a block reads the pixel ``(i + u - k // 2) mod side`` of the block that lies
    ``(i + u - k // 2) div side`` rows below; columns likewise.
    """
    channels, _, size, _ = weight.shape
    packed = np.zeros((channels, side, side, side, side, 3, 3), weight.dtype)
    places = [[divmod(i + u - size // 2, side) for u in range(size)] for i in range(side)]
    for i, j, u, v in np.ndindex(side, side, size, size):
        (row, from_i), (column, from_j) = places[i][u], places[j][v]
        packed[:, i, j, from_i, from_j, row + 1, column + 1] = weight[:, 0, u, v]
    return packed.reshape(channels * side**2, side**2, 3, 3)


def _pixelwise(graph: gs.Graph, source: gs.Tensor) -> dict[int, gs.Node]:
    """By identity: the nodes behind a map [N, C, H, W] that treat each pixel by itself and keep the four axes."""
    maps, found = {id(source)}, {}
    for node in graph.nodes:
        flowing = [tensor for tensor in node.inputs if not isinstance(tensor, gs.Constant)]
        if not flowing or any(id(tensor) not in maps for tensor in flowing):
            continue
        constants = [tensor.values for tensor in node.inputs if isinstance(tensor, gs.Constant)]
        if node.op in ("ReduceMax", "ReduceSum"):
            alone = [values.tolist() for values in constants] == [[1]] and node.attrs.get("keepdims", 1) == 1
        elif node.op == "TopK":
            alone = node.attrs.get("axis", -1) == 1
        elif node.op == "Cast":
            alone = node.attrs["to"] in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)  # TensorRT moves no bytes
        else:
            alone = node.op in ("Add", "Sub", "Mul", "Div", "Exp", "Round") and all(v.size == 1 for v in constants)
        if alone:
            found[id(node)] = node
            maps.update(id(tensor) for tensor in node.outputs)
    return found


def _reshape(graph: gs.Graph, name: str, source: gs.Tensor, shape: Sequence[int], target: gs.Tensor) -> None:
    """Add a node that keeps the batch and gives ``target`` the rest of its shape."""
    sides = gs.Constant(f"{name}.shape", np.array([0, *shape]))  # 0: as it is
    graph.nodes.append(gs.Node("Reshape", name, inputs=[source, sides], outputs=[target]))
    target.shape = (source.shape[0], *shape)


def _unstack(
    graph: gs.Graph, name: str, tensor: gs.Tensor, inside: Mapping[int, gs.Node], block: tuple[int, int, int]
) -> None:
    """Let a map be made as a stack [N, C, side^2 * h, w]: those inside read that, everyone else its pixels."""
    side, height, width = block
    channels = tensor.shape[1]
    stacked, rows, turned = (gs.Variable(f"{tensor.name}.{of}", tensor.dtype) for of in ("stacked", "rows", "turned"))
    stacked.shape = (tensor.shape[0], channels, side**2 * height, width)
    (producer,) = tensor.inputs
    producer.outputs = [stacked if output is tensor else output for output in producer.outputs]
    for reader in list(tensor.outputs):
        if id(reader) in inside:
            reader.inputs = [stacked if read is tensor else read for read in reader.inputs]
    _reshape(graph, f"{name}.rows", stacked, (channels, side, side, height, width), rows)
    turned.shape = (tensor.shape[0], channels, height, side, width, side)
    graph.nodes.append(
        gs.Node("Transpose", f"{name}.turn", attrs={"perm": [0, 1, 4, 2, 5, 3]}, inputs=[rows], outputs=[turned])
    )
    _reshape(graph, name, turned, (channels, side * height, side * width), tensor)
