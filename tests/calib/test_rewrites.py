"""Rewrites for INT8 kernels: ONNX Runtime on the untouched graph is the oracle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from calib.qdq import layers_of
from calib.rewrites import cast_first, prepare, shuffle_last, split_concatenations
from engine.contract.sensors import Scenario
from tests.calib.conftest import network, run

node = helper.make_node


# --- concatenations


@pytest.mark.parametrize("parts", [2, 3])
def test_a_split_concatenation_is_the_same_function(parts: int) -> None:
    rng = np.random.default_rng(parts)
    widths = (4, 6, 2)[:parts]
    sources = [f"x{k}" for k in range(parts)]
    weight = rng.normal(size=(5, sum(widths), 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Concat", sources, ["joint"], axis=1),
            helper.make_node("Conv", ["joint", "w", "b"], ["y"], name="conv", pads=[1, 1, 1, 1], strides=[2, 2]),
        ],
        "concat",
        [helper.make_tensor_value_info(name, 1, ["n", c, 8, 8]) for name, c in zip(sources, widths, strict=True)],
        [helper.make_tensor_value_info("y", 1, ["n", 5, 4, 4])],
        [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(rng.normal(size=5).astype(np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    split = split_concatenations(model)
    onnx.checker.check_model(split, full_check=True)
    assert Counter(node.op_type for node in split.graph.node) == {"Conv": parts, "Add": parts - 1}
    inputs = {name: rng.normal(size=(2, c, 8, 8)).astype(np.float32) for name, c in zip(sources, widths, strict=True)}
    np.testing.assert_allclose(run(split, inputs, "y")[0], run(model, inputs, "y")[0], atol=1e-5)


def test_a_network_without_concatenation_keeps_its_layers() -> None:
    model = network(Scenario.MISSING_NDSM)
    assert [layer.name for layer in layers_of(split_concatenations(model))] == [
        layer.name for layer in layers_of(model)
    ]


def test_a_concatenation_behind_a_cast_is_split_as_well() -> None:
    """As the relief stands beside 16 packed heights in fp16 graphs: 16 + 1 channels, cast as one."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(5, 17, 3, 3)).astype(np.float16)
    graph = helper.make_graph(
        [
            node("Concat", ["heights", "relief"], ["joint"], name="join", axis=1),
            node("Cast", ["joint"], ["half"], name="cast", to=TensorProto.FLOAT16),
            node("Conv", ["half", "w"], ["y"], name="conv", pads=[1, 1, 1, 1]),
            node("Conv", ["half", "w"], ["z"], name="other", pads=[1, 1, 1, 1]),
        ],
        "relief",
        [helper.make_tensor_value_info(name, 1, ["n", c, 8, 8]) for name, c in (("heights", 16), ("relief", 1))],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["n", 5, 8, 8]) for name in "yz"],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    split = split_concatenations(cast_first(model))
    onnx.checker.check_model(split, full_check=True)
    assert Counter(one.op_type for one in split.graph.node) == {"Cast": 2, "Conv": 4, "Add": 2}
    inputs = {
        "heights": rng.normal(size=(2, 16, 8, 8)).astype(np.float32),
        "relief": rng.normal(size=(2, 1, 8, 8)).astype(np.float32),
    }
    for name in "yz":  # sums of 153 products of fp16
        np.testing.assert_allclose(run(split, inputs, name)[0], run(model, inputs, name)[0], atol=0.1)


# --- the shuffle

CLASSES, ROWS, COLUMNS = 3, 5, 7
ANSWER = (
    node("ReduceMax", ["logits", "axis"], ["top"], keepdims=1),
    node("Sub", ["logits", "top"], ["below"]),
    node("Exp", ["below"], ["powers"]),
    node("ReduceSum", ["powers", "axis"], ["sum"], keepdims=1),
    node("Div", ["powers", "sum"], ["probabilities"]),
    node("TopK", ["probabilities", "axis"], ["best", "winner"], axis=1),
    node("Mul", ["best", "n255"], ["percent"]),
    node("Round", ["percent"], ["rounded"]),
    node("Squeeze", ["winner", "axis"], ["class"]),
    node("Cast", ["class"], ["classes"], to=TensorProto.UINT8),
    node("Squeeze", ["rounded", "axis"], ["flat"]),
    node("Cast", ["flat"], ["confidence"], to=TensorProto.UINT8),
)
OUTPUTS = ("classes", "confidence", "probabilities")
REDUCED = ("classes", "confidence")


def shuffled(
    between: Sequence[NodeProto], *, side: int = 4, kernel: int = 5, per_group: int = 1, mode: str = "CRD"
) -> onnx.ModelProto:
    """A head whose packed logits are shuffled, then whatever stands between ``pixels`` and ``logits``, then a map."""
    rng = np.random.default_rng((side, kernel))
    maps = [ROWS * side, COLUMNS * side]
    graph = helper.make_graph(
        [
            node("DepthToSpace", ["x"], ["pixels"], name="head/DepthToSpace", blocksize=side, mode=mode),
            *between,
            *ANSWER,
        ],
        "shuffled",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CLASSES * side**2, ROWS, COLUMNS])],
        [
            *(helper.make_tensor_value_info(name, TensorProto.UINT8, ["n", *maps]) for name in REDUCED),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["n", CLASSES, *maps]),
        ],
        [
            numpy_helper.from_array(rng.normal(size=(CLASSES, per_group, kernel, kernel)).astype(np.float32), "w"),
            numpy_helper.from_array(rng.normal(size=CLASSES).astype(np.float32), "b"),
            numpy_helper.from_array(np.array([1]), "axis"),
            numpy_helper.from_array(np.float32(255), "n255"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def smoothed(kernel: int, *, group: int = CLASSES, **attributes: object) -> NodeProto:
    values = {"pads": [kernel // 2] * 4, **attributes}
    return node("Conv", ["pixels", "w", "b"], ["logits"], name="smooth", group=group, **values)


def plain() -> NodeProto:
    return node("Mul", ["pixels", "n255"], ["logits"])


def rewritten(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its shuffle last, having seen that it answers the same, one sample alone and two."""
    after = shuffle_last(model)
    onnx.checker.check_model(after, full_check=True)
    assert [o.SerializeToString() for o in after.graph.output] == [o.SerializeToString() for o in model.graph.output]
    channels = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    for batch in (1, 2):
        x = {"x": np.random.default_rng(batch).normal(size=(batch, channels, ROWS, COLUMNS)).astype(np.float32)}
        for name, expected, received in zip(OUTPUTS, run(model, x, *OUTPUTS), run(after, x, *OUTPUTS), strict=True):
            assert expected.shape == received.shape
            off = 0 if name == "classes" else 1 if name == "confidence" else 1e-5
            assert np.abs(expected.astype(np.float64) - received).max() <= off, name
    return after


def producer_of(model: onnx.ModelProto, name: str) -> NodeProto:
    (found,) = (one for one in model.graph.node if name in one.output)
    return found


@pytest.mark.parametrize(("side", "kernel"), [(4, 5), (4, 3), (2, 5), (2, 3), (3, 7)])
def test_smoothing_and_answer_come_before_the_shuffle(side: int, kernel: int) -> None:
    after = rewritten(shuffled([smoothed(kernel)], side=side, kernel=kernel))
    assert "DepthToSpace" not in {one.op_type for one in after.graph.node}
    (layer,) = layers_of(after)
    assert layer.name == "smooth"
    assert layer.macs == ROWS * COLUMNS * CLASSES * side**4 * 9
    shapes = {value.name: [d.dim_value for d in value.type.tensor_type.shape.dim] for value in after.graph.value_info}
    assert shapes["powers"][1:] == [CLASSES, side**2 * ROWS, COLUMNS]


def test_every_pixel_is_shuffled_as_its_class_and_before_it_is_a_byte() -> None:
    after = rewritten(shuffled([smoothed(5)]))
    for name in REDUCED:
        cast = producer_of(after, name)
        assert cast.op_type == "Cast"
        squeeze = producer_of(after, cast.input[0])
        assert producer_of(after, squeeze.input[0]).op_type == "Reshape"


def test_the_answer_alone_moves_where_nothing_is_smoothed() -> None:
    after = rewritten(shuffled([plain()]))
    assert "DepthToSpace" not in {one.op_type for one in after.graph.node}


@pytest.mark.parametrize(
    ("between", "settings"),
    [
        pytest.param([smoothed(3, group=1)], {"kernel": 3, "per_group": CLASSES}, id="a convolution over classes"),
        pytest.param([smoothed(5)], {"side": 1}, id="a window beyond the neighbouring blocks"),
        pytest.param([smoothed(5)], {"mode": "DCR"}, id="another order of channels"),
        pytest.param([smoothed(5, pads=[4] * 4, dilations=[2, 2])], {}, id="a window with gaps"),
        pytest.param([node("Softmax", ["pixels"], ["logits"], axis=3)], {}, id="a sum over a row"),
    ],
)
def test_what_reads_its_neighbours_otherwise_keeps_the_shuffle_before_it(
    between: list[NodeProto], settings: dict[str, object]
) -> None:
    after = rewritten(shuffled(between, **settings))
    assert "DepthToSpace" in {one.op_type for one in after.graph.node}


def test_an_output_before_the_smoothing_stays_an_output() -> None:
    model = shuffled([smoothed(5)])
    wanted = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["n", CLASSES, 4 * ROWS, 4 * COLUMNS])
    model.graph.output.append(wanted)
    after = rewritten(model)
    x = {"x": np.random.default_rng(3).normal(size=(1, CLASSES * 16, ROWS, COLUMNS)).astype(np.float32)}
    np.testing.assert_array_equal(run(after, x, "pixels")[0], run(model, x, "pixels")[0])


def test_both_rewrites_leave_a_graph_without_either_as_it_is() -> None:
    model = network(Scenario.MISSING_NDSM)
    assert Counter(one.op_type for one in prepare(model).graph.node) == Counter(o.op_type for o in model.graph.node)
