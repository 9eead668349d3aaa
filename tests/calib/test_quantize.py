"""Model Optimizer's placement, and that our ranges are the ones it would measure."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

pytest.importorskip("modelopt.onnx.quantization", reason="the extra calib is not installed")

from calib.qdq import finish, int8_share, layers_of, ranged_tensors
from calib.quantize import place
from calib.ranges import collect, threshold
from calib.rewrites import split_concatenations
from engine.contract.errors import BackendError
from engine.contract.sensors import Scenario
from tests.calib.conftest import network, rasters, run


def tile() -> dict[str, np.ndarray]:
    return {name: values[None] for name, values in rasters(5).items()}


@pytest.fixture(scope="module")
def floating() -> onnx.ModelProto:
    return split_concatenations(network(Scenario.FULL))


@pytest.fixture(scope="module")
def placed(floating: onnx.ModelProto) -> onnx.ModelProto:
    return place(floating, tile())


def test_every_convolution_gets_pairs_and_nothing_else_changes(
    floating: onnx.ModelProto, placed: onnx.ModelProto
) -> None:
    assert int8_share(placed) == 1
    assert {layer.name for layer in layers_of(placed)} == {layer.name for layer in layers_of(floating)}
    others = [n.op_type for n in placed.graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    assert sorted(others) == sorted(node.op_type for node in floating.graph.node)


def test_the_residual_sum_reads_what_its_convolution_reads(placed: onnx.ModelProto) -> None:
    made = {name: node for node in placed.graph.node for name in node.output}
    for sensor in ("rgir", "ndsm"):
        total = next(node for node in placed.graph.node if f"{sensor}.features" in node.output)
        conv = next(node for node in placed.graph.node if node.name == f"{sensor}.refine")
        assert total.input[0] == conv.input[0]
        assert made[conv.input[0]].op_type == "DequantizeLinear"


def test_max_ranges_are_the_ones_model_optimizer_measures(floating: onnx.ModelProto, placed: onnx.ModelProto) -> None:
    found = collect(floating, ranged_tensors(placed), [tile()])
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in placed.graph.initializer}
    theirs = {n.input[0]: values[n.input[1]] for n in placed.graph.node if n.op_type == "QuantizeLinear"}
    for name, magnitudes in found.items():
        assert threshold(magnitudes, "max") / 127 == pytest.approx(float(theirs[name]), rel=1e-5), name


def test_the_finished_graph_is_close_to_the_floating_one(floating: onnx.ModelProto, placed: onnx.ModelProto) -> None:
    limits = {n: threshold(m, "max") for n, m in collect(floating, ranged_tensors(placed), [tile()]).items()}
    off = np.abs(run(finish(placed, limits), tile())[0] - run(floating, tile())[0])
    assert 1e-4 < off.mean() < 0.02


def test_placement_is_the_same_every_time(floating: onnx.ModelProto, placed: onnx.ModelProto) -> None:
    again = place(floating, tile())
    assert again.SerializeToString(deterministic=True) == placed.SerializeToString(deterministic=True)


def test_a_graph_that_model_optimizer_refuses_is_a_backend_error(floating: onnx.ModelProto) -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(floating)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(BackendError, match="Model Optimizer could not quantise full"):
        place(broken, tile())
