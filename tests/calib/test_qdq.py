"""Q/DQ edits: ONNX Runtime with its optimisations off is the oracle, OpenVINO's INT8 kernels must agree with it."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import helper, numpy_helper

from calib.qdq import (
    WEIGHT_LEVELS,
    finish,
    inputs_of_layers,
    int8_share,
    joined_layers,
    layers_of,
    ranged_tensors,
    release,
)
from calib.ranges import collect, threshold
from calib.rewrites import split_concatenations
from calib.runtimes import openvino_infer
from engine.contract.sensors import Scenario
from tests.calib.conftest import TILE_PX, network, rasters, run, with_pairs

LAYERS = ("rgir.enter", "rgir.refine", "ndsm.enter", "ndsm.refine", "fuse.0", "fuse.1", "head")


def batch(seed: int = 5) -> dict[str, np.ndarray]:
    return {name: values[None] for name, values in rasters(seed).items()}


@pytest.fixture(scope="module")
def floating() -> onnx.ModelProto:
    return split_concatenations(network(Scenario.FULL))


@pytest.fixture(scope="module")
def limits(floating: onnx.ModelProto) -> dict[str, float]:
    names = sorted({node.input[0] for node in floating.graph.node if node.op_type == "Conv"})
    return {name: threshold(found, "max") for name, found in collect(floating, names, [batch()]).items()}


@pytest.fixture(scope="module")
def placed(floating: onnx.ModelProto, limits: dict[str, float]) -> onnx.ModelProto:
    return with_pairs(floating, dict.fromkeys(limits, 1.0))


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


# --- what is INT8


def test_layers_that_read_a_concatenation_are_found_through_what_is_pointwise(limits: dict[str, float]) -> None:
    joined = network(Scenario.FULL)
    assert joined_layers(with_pairs(joined, dict.fromkeys([*limits, "joint"], 1.0))) == {"fuse"}
    fuse = next(node for node in joined.graph.node if node.name == "fuse")
    joined.graph.node.insert(list(joined.graph.node).index(fuse), helper.make_node("Relu", ["joint"], ["clipped"]))
    fuse.input[0] = "clipped"
    placed = with_pairs(joined, dict.fromkeys([*limits, "clipped"], 1.0))
    assert joined_layers(placed) == {"fuse"}
    graph = gs.import_onnx(placed)
    release(graph, joined_layers(placed))
    assert joined_layers(gs.export_onnx(graph.cleanup().toposort())) == frozenset()


def test_no_layer_reads_a_concatenation_once_they_are_split(placed: onnx.ModelProto) -> None:
    assert joined_layers(placed) == frozenset()


def test_layers_say_their_work_and_whether_both_factors_are_int8(placed: onnx.ModelProto) -> None:
    layers = {layer.name: layer for layer in layers_of(placed)}
    assert set(layers) == set(LAYERS)
    assert layers["rgir.enter"].macs == TILE_PX**2 * 16 * 3 * 9
    assert layers["fuse.1"].macs == TILE_PX**2 * 16 * 16
    assert all(layer.int8 for layer in layers.values())
    assert int8_share(placed) == 1


def test_matrix_products_count_towards_the_work_and_are_not_int8() -> None:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [helper.make_tensor_value_info("x", 1, ["n", 7, 3])],
        [helper.make_tensor_value_info("y", 1, ["n", 7, 5])],
        [numpy_helper.from_array(np.ones((3, 5), np.float32), "w")],
    )
    (layer,) = layers_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)]))
    assert (layer.macs, layer.int8) == (7 * 3 * 5, False)


# --- ranges and weights


def test_a_finished_graph_has_the_scales_it_was_given(placed: onnx.ModelProto, limits: dict[str, float]) -> None:
    graph = finish(placed, limits)
    values = constants(graph)
    scales = {
        node.input[0]: float(values[node.input[1]]) for node in graph.graph.node if node.op_type == "QuantizeLinear"
    }
    assert scales == pytest.approx({name: limit / 127 for name, limit in limits.items()}, rel=1e-6)
    assert set(ranged_tensors(placed)) == set(limits)


def test_weights_are_stored_as_int8_that_no_cpu_saturates_on(placed: onnx.ModelProto, limits: dict[str, float]) -> None:
    graph = finish(placed, limits)
    values, made, before = constants(graph), producers(graph), constants(placed)
    for node in graph.graph.node:
        if node.op_type != "Conv":
            continue
        stored, scale = (values[name] for name in made[node.input[1]].input[:2])
        weight = before[node.input[1].removesuffix("_dq")]
        assert stored.dtype == np.int8
        assert np.abs(stored).max(axis=(1, 2, 3)).tolist() == [WEIGHT_LEVELS] * len(stored)
        # Half a step off at most, and the largest sum of two products fits 16 bits.
        off = np.abs(stored * scale[:, None, None, None] - weight)
        assert (off <= 0.5001 * scale[:, None, None, None]).all()
    assert 2 * 255 * WEIGHT_LEVELS <= 2**15 - 1


@pytest.mark.parametrize("scenario", list(Scenario))
def test_int8_kernels_of_openvino_give_what_is_written(scenario: Scenario) -> None:
    model = split_concatenations(network(scenario))
    names = sorted({node.input[0] for node in model.graph.node if node.op_type == "Conv"})
    inputs = {sensor.value: batch()[sensor.value] for sensor in scenario.sensors}
    limits = {name: threshold(found, "max") for name, found in collect(model, names, [inputs]).items()}
    graph = finish(with_pairs(model, dict.fromkeys(limits, 1.0)), limits)
    wanted = ("classes", "probabilities")
    expected = dict(zip(wanted, run(graph, inputs, *wanted), strict=True))
    received = openvino_infer(graph, wanted)(inputs)
    # A value halfway between two steps may be rounded either way, and then moves what depends on it by a step.
    assert np.abs(received["probabilities"] - expected["probabilities"]).mean() < 2e-4
    assert (received["classes"] == expected["classes"]).mean() > 0.998
    assert np.abs(expected["probabilities"] - run(model, inputs)[0]).mean() > 1e-3, "not quantised at all"


def test_the_finished_graph_keeps_inputs_outputs_and_a_free_batch(
    placed: onnx.ModelProto, limits: dict[str, float]
) -> None:
    graph, original = finish(placed, limits), network(Scenario.FULL)
    assert list(graph.graph.input) == list(original.graph.input)
    assert list(graph.graph.output) == list(original.graph.output)
    onnx.checker.check_model(graph, full_check=True)
    two = {name: np.concatenate([values, batch(6)[name]]) for name, values in batch().items()}
    np.testing.assert_allclose(run(graph, two)[0][:1], run(graph, batch())[0], atol=1e-6)


# --- releasing


def test_releasing_every_layer_gives_the_floating_graph_back(
    floating: onnx.ModelProto, placed: onnx.ModelProto, limits: dict[str, float]
) -> None:
    graph = finish(placed, limits, LAYERS)
    assert Counter(node.op_type for node in graph.graph.node) == Counter(node.op_type for node in floating.graph.node)
    np.testing.assert_array_equal(run(graph, batch())[0], run(floating, batch())[0])


def test_a_released_layer_computes_in_floating_point_and_the_others_stay(
    placed: onnx.ModelProto, limits: dict[str, float]
) -> None:
    graph = finish(placed, limits, ["rgir.refine"])
    assert [layer.name for layer in layers_of(graph) if not layer.int8] == ["rgir.refine"]
    assert 0 < int8_share(graph) < 1
    node = next(node for node in graph.graph.node if node.name == "rgir.refine")
    assert list(node.input) == ["rgir.entered", "rgir.refine.weight", "rgir.refine.bias"]


def test_a_residual_reads_the_quantised_tensor_as_long_as_a_layer_does(
    placed: onnx.ModelProto, limits: dict[str, float]
) -> None:
    def residual(released: list[str]) -> str:
        graph = finish(placed, limits, released)
        node = next(node for node in graph.graph.node if node.output[0] == "rgir.features")
        made = producers(graph)[node.input[0]]
        return made.op_type

    assert residual([]) == "DequantizeLinear"
    assert residual(["rgir.refine"]) == "Relu"


def test_each_int8_layer_knows_the_activation_it_reads(placed: onnx.ModelProto) -> None:
    reads = inputs_of_layers(placed)
    assert set(reads) == set(LAYERS)
    assert reads["rgir.refine"] == "rgir.entered"
    assert (reads["fuse.0"], reads["fuse.1"]) == ("rgir.features", "ndsm.features")


# --- half precision


def test_scales_too_small_for_half_precision_are_raised_to_its_smallest_normal_number() -> None:
    weight = np.full((2, 1, 1, 1), 1e-4, np.float16)
    weight[1] = 0.5
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
        "half",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["n", 1, 4, 4])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT16, ["n", 2, 4, 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    placed = with_pairs(model, {"x": 1.0})
    values = constants(finish(placed, {"x": 1e-6}))
    tiny = np.finfo(np.float16).tiny
    assert values["x.scale"].dtype == values["w.scale"].dtype == np.float16
    assert float(values["x.scale"]) == tiny
    np.testing.assert_array_equal(values["w.scale"], np.array([tiny, 0.5 / WEIGHT_LEVELS], np.float16))
    # The steps are counted in the scale as it is stored.
    assert values["w.int8"].ravel().tolist() == [round(float(weight[0, 0, 0, 0]) / float(tiny)), WEIGHT_LEVELS]
