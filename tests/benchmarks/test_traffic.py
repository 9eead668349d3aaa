"""The int8 form with one scale for each layer's weights is the same network, rounded a little more coarsely."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.traffic import one_scale


def test_one_scale_for_a_layers_weights_changes_rounding_alone() -> None:
    rng = np.random.default_rng(0)
    weights = (
        rng.normal(size=(8, 4, 3, 3)).astype(np.float32) * np.linspace(0.5, 1, 8, dtype=np.float32)[:, None, None, None]
    )
    scales = (np.abs(weights).max(axis=(1, 2, 3)) / 127).astype(np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "scales", "zeros"], ["q"], axis=0),
        helper.make_node("DequantizeLinear", ["q", "scales", "zeros"], ["d"], axis=0),
        helper.make_node("Conv", ["x", "d"], ["y"], pads=[1] * 4),
    ]
    constants = {"w": weights, "scales": scales, "zeros": np.zeros(8, np.int8)}
    made = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 16, 16])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    coarse = one_scale(model)
    assert [node.op_type for node in coarse.graph.node] == ["DequantizeLinear", "Conv"]
    held = {tensor.name: numpy_helper.to_array(tensor) for tensor in coarse.graph.initializer}
    levels, step = (held[name] for name in coarse.graph.node[0].input)
    assert (levels.dtype, step.shape) == (np.int8, ())
    tile = {"x": rng.normal(size=(1, 4, 16, 16)).astype(np.float32)}
    exact, rounded = (
        onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"]).run(["y"], tile)[0]
        for each in (model, coarse)
    )
    # 36 weights, each off by half a step at most, times numbers of spread 1
    assert 0 < np.abs(exact - rounded).max() < 36 * 3 * float(step)
    assert onnx.checker.check_model(coarse) is None
