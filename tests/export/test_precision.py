"""fp16 graphs: which nodes compute in which type, and how close to PyTorch they stay."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from engine.contract.bundle import Precision
from engine.contract.sensors import Scenario, Sensor
from export import precision, surgery
from export.onnx_graphs import export_graph
from export.verify import TOLERANCES, onnxruntime_infer
from tests.export.conftest import Exported, random_model


def fp16(exported: Exported, scenario: Scenario) -> onnx.ModelProto:
    return onnx.load(exported.bundle.graph(scenario, "fp16"))


def typical(exported: Exported, scenario: Scenario) -> Mapping[str, NDArray[np.generic]]:
    golden = np.load(exported.bundle.golden_path)
    return {sensor.value: golden[sensor.value][None] for sensor in Sensor if sensor in scenario.sensors}


def output_types(model: onnx.ModelProto) -> dict[str, int]:
    known = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*known.value_info, *known.output)}
    return {node.name: types[node.output[0]] for node in model.graph.node}


@pytest.mark.parametrize("scenario", Scenario)
def test_multiplications_are_in_fp16_and_sensitive_sums_in_fp32(exported: Exported, scenario: Scenario) -> None:
    model = fp16(exported, scenario)
    types = output_types(model)
    by_op: dict[str, set[int]] = {}
    for node in model.graph.node:
        by_op.setdefault(node.op_type, set()).add(types[node.name])
    for op in ("Conv", "MatMul", "Resize", "Erf"):
        assert by_op[op] == {TensorProto.FLOAT16}, op
    for op in ("LayerNormalization", "Softmax", "Exp", "ReduceSum", "TopK"):
        assert by_op[op] == {TensorProto.FLOAT}, op
    heights = {types[n.name] for n in model.graph.node if n.name.startswith("ndsm/") and n.op_type != "Cast"}
    assert heights == ({TensorProto.FLOAT} if Sensor.NDSM in scenario.sensors else set())


@pytest.mark.parametrize("scenario", Scenario)
def test_weights_are_stored_in_fp16_but_for_those_of_layer_norms(exported: Exported, scenario: Scenario) -> None:
    model = fp16(exported, scenario)
    readers = {name: node.op_type for node in model.graph.node for name in node.input}
    wide = [tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT]
    assert {readers[tensor.name] for tensor in wide if np.prod(tensor.dims) > 4} == {"LayerNormalization"}
    single, half = exported.bundle.manifest.weights
    assert half.size_bytes < 0.55 * single.size_bytes


@pytest.mark.parametrize("scenario", Scenario)
def test_an_fp16_graph_stays_within_its_tolerance(exported: Exported, scenario: Scenario) -> None:
    inputs = tuple(typical(exported, scenario).values())

    def run(kind: Precision) -> tuple[NDArray[np.generic], ...]:
        return onnxruntime_infer(exported.bundle.graph(scenario, kind))(inputs)

    expected, received = run("fp32"), run("fp16")
    error = np.abs(received[2] - expected[2]).max()
    assert 0 < error <= TOLERANCES["fp16"].probability_error  # zero would mean that nothing was converted
    assert (received[0] == expected[0]).mean() >= TOLERANCES["fp16"].class_agreement
    assert np.abs(received[1].astype(int) - expected[1].astype(int)).max() <= TOLERANCES["fp16"].confidence_error


@pytest.mark.parametrize("scenario", Scenario)
def test_the_shapes_in_an_fp16_graph_are_of_its_own_tensors_and_in_order(
    exported: Exported, scenario: Scenario
) -> None:
    """AutoCast writes them in the order of a set, which no two processes share."""
    graph = fp16(exported, scenario).graph
    names = [value.name for value in graph.value_info]
    assert names == sorted(names)
    assert set(names) <= {name for node in graph.node for name in node.output}


def test_a_node_that_overflows_on_the_typical_batch_stays_in_fp32(exported: Exported) -> None:
    """AutoCast's own rule, on a graph that breaks it."""
    scenario = Scenario.MISSING_NDSM
    model = onnx.load(exported.bundle.graph(scenario, "fp32"))
    layer = next(n for n in model.graph.node if n.name == "fusion.merge.0")
    bias = next(t for t in model.graph.initializer if t.name == layer.input[2])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(1000), bias.name))
    types = output_types(precision.to_fp16(model, typical(exported, scenario)))
    assert types["fusion.merge.0"] == TensorProto.FLOAT
    assert types["fusion.fuse.0.0"] == TensorProto.FLOAT16


@pytest.mark.slow
def test_means_over_a_whole_image_are_taken_in_fp32() -> None:
    graph, _ = surgery.operate(export_graph(random_model(0, standardise=True), Scenario.MISSING_NDSM, 128))
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 128, 128), np.uint8)
    converted = precision.to_fp16(graph, {"rgir": image})
    types = output_types(converted)
    means = {node.name: types[node.name] for node in converted.graph.node if node.op_type == "ReduceMean"}
    assert len(means) == 2  # mean and spread; generator and encoder share them
    assert set(means.values()) == {TensorProto.FLOAT}


def test_the_report_names_the_types_and_what_computes_in_them(exported: Exported) -> None:
    lines = precision.explain(fp16(exported, Scenario.FULL)).splitlines()
    found = {line.split()[0]: line for line in lines}
    assert set(found) == {"float", "float16", "int64", "uint8"}
    assert "Conv" in found["float16"]
    assert "LayerNormalization 9" in found["float"]
