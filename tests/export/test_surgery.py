"""Each rewrite on a graph of a few nodes, against ONNX Runtime on the untouched graph; then all on the real ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from engine.contract.sensors import Scenario, Sensor
from export import surgery
from export.onnx_graphs import export_graph
from export.scenarios import scenario_module
from tests.export.conftest import Exported, random_model

pytestmark = pytest.mark.slow

Values = Mapping[str, NDArray[np.generic]]
node = helper.make_node
rng = np.random.default_rng(0)

MAP = ["N", 3, 8, 8]


def tiny(
    nodes: Sequence[NodeProto],
    constants: Values,
    *,
    shape: Sequence[str | int] = MAP,
    dtype: int = TensorProto.FLOAT,
    outputs: Sequence[str] = ("y",),
) -> onnx.ModelProto:
    """A graph from ``x`` to ``outputs``."""
    graph = helper.make_graph(
        list(nodes),
        "tiny",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def conv(source: str, out: str, *, pads: int = 0, group: int = 1, bias: bool = True) -> NodeProto:
    inputs = [source, "weight", *(["bias"] if bias else [])]
    return node("Conv", inputs, [out], pads=[pads] * 4, group=group, kernel_shape=[3, 3])


def conv_constants(c_in: int = 3) -> dict[str, NDArray[np.float32]]:
    return {
        "weight": rng.normal(size=(6, c_in, 3, 3)).astype(np.float32),
        "bias": rng.normal(size=6).astype(np.float32),
    }


def per_channel(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(1, -1, 1, 1)


def answer(model: onnx.ModelProto, inputs: Values) -> list[NDArray[np.generic]]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))


def ops(model: onnx.ModelProto) -> Counter[str]:
    return Counter(n.op_type for n in model.graph.node)


def rewritten(
    rewrite: Callable[[gs.Graph], gs.Graph], model: onnx.ModelProto, *, atol: float = 1e-5
) -> onnx.ModelProto:
    """The model after one rewrite, having seen that it still computes the same."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    after = gs.export_onnx(rewrite(gs.import_onnx(copy)), ir_version=model.ir_version)
    onnx.checker.check_model(after, full_check=True)
    x = model.graph.input[0].type.tensor_type
    size = [2 if d.dim_param else d.dim_value for d in x.shape.dim]
    byte = x.elem_type == TensorProto.UINT8
    value = rng.integers(0, 256, size, np.uint8) if byte else rng.normal(size=size).astype(np.float32)
    for expected, received in zip(answer(model, {"x": value}), answer(after, {"x": value}), strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=atol)
    return after


# --- drop_byte_clips


def clipped(low: float, high: float, dtype: int) -> onnx.ModelProto:
    nodes = [
        node("Cast", ["x"], ["a"], to=TensorProto.FLOAT),
        node("Max", ["a", "low"], ["b"]),
        node("Min", ["b", "high"], ["c"]),
        node("Relu", ["c"], ["y"]),
    ]
    return tiny(nodes, {"low": per_channel(low, -1, -1), "high": per_channel(high, 300, 300)}, dtype=dtype)


def test_a_byte_is_not_clipped_to_what_it_cannot_leave() -> None:
    after = rewritten(surgery.drop_byte_clips, clipped(0, 255, TensorProto.UINT8))
    assert ops(after) == {"Cast": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("low", "high", "dtype", "left"),
    [
        (10, 255, TensorProto.UINT8, {"Cast", "Max", "Min"}),
        (0, 200, TensorProto.UINT8, {"Cast", "Min"}),
        (0, 255, TensorProto.FLOAT, {"Cast", "Max", "Min"}),
    ],
)
def test_a_clip_that_can_bite_stays(low: float, high: float, dtype: int, left: set[str]) -> None:
    assert set(ops(rewritten(surgery.drop_byte_clips, clipped(low, high, dtype)))) == left | {"Relu"}


# --- fold_scale


@pytest.mark.parametrize("scale", [per_channel(0.5, 2, -3), np.float32(0.25)])
def test_a_factor_goes_into_every_convolution_that_reads_it(scale: NDArray[np.float32]) -> None:
    nodes = [
        node("Mul", ["x", "scale"], ["a"]),
        conv("a", "y", pads=1),
        node("Pad", ["a", "around"], ["b"], mode="reflect"),
        conv("b", "z"),
    ]
    constants = {**conv_constants(), "scale": scale, "around": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    after = rewritten(surgery.fold_scale, tiny(nodes, constants, outputs=("y", "z")))
    assert ops(after) == {"Conv": 2, "Pad": 1}


def test_a_factor_that_something_else_reads_stays() -> None:
    nodes = [node("Mul", ["x", "scale"], ["a"]), conv("a", "y", pads=1), node("Relu", ["a"], ["z"])]
    model = tiny(nodes, {**conv_constants(), "scale": per_channel(1, 2, 3)}, outputs=("y", "z"))
    assert ops(rewritten(surgery.fold_scale, model)) == ops(model)


def test_a_factor_that_is_an_output_stays() -> None:
    nodes = [node("Mul", ["x", "scale"], ["z"]), conv("z", "y")]
    model = tiny(nodes, {**conv_constants(), "scale": per_channel(1, 2, 3)}, outputs=("y", "z"))
    assert ops(rewritten(surgery.fold_scale, model)) == ops(model)


def test_a_factor_per_channel_stays_before_a_grouped_convolution() -> None:
    nodes = [node("Mul", ["x", "scale"], ["a"]), conv("a", "y", group=3)]
    model = tiny(nodes, {**conv_constants(c_in=1), "scale": per_channel(1, 2, 3)})
    assert ops(rewritten(surgery.fold_scale, model)) == ops(model)


# --- fold_offset


@pytest.mark.parametrize("bias", [True, False])
def test_an_offset_goes_into_the_bias_where_no_zeros_are_padded(bias: bool) -> None:
    nodes = [
        node("Sub", ["x", "offset"], ["a"]),
        conv("a", "y", bias=bias),
        node("Pad", ["a", "around"], ["b"], mode="reflect"),
        conv("b", "z", bias=bias),
    ]
    constants = {**conv_constants(), "offset": per_channel(3, -2, 7), "around": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    if not bias:
        del constants["bias"]
    after = rewritten(surgery.fold_offset, tiny(nodes, constants, outputs=("y", "z")), atol=1e-4)
    assert ops(after) == {"Conv": 2, "Pad": 1}


def test_an_offset_stays_where_zeros_are_padded() -> None:
    """Folded there it would be wrong along the border; this graph shows by how much."""
    nodes = [node("Sub", ["x", "offset"], ["a"]), conv("a", "y", pads=1)]
    constants = {**conv_constants(), "offset": per_channel(3, -2, 7)}
    model = tiny(nodes, constants)
    assert ops(rewritten(surgery.fold_offset, model)) == ops(model)

    shift = np.einsum("oihw,i->o", constants["weight"], constants["offset"].ravel())
    wrong = tiny([conv("x", "y", pads=1)], {**constants, "bias": constants["bias"] - shift})
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    error = np.abs(answer(wrong, {"x": x})[0] - answer(model, {"x": x})[0])
    assert error[..., 1:-1, 1:-1].max() < 1e-4
    assert error[..., 0, :].max() > 1


def test_a_constant_minus_the_map_is_no_offset() -> None:
    nodes = [node("Sub", ["offset", "x"], ["a"]), conv("a", "y")]
    model = tiny(nodes, {**conv_constants(), "offset": per_channel(3, -2, 7)})
    assert ops(rewritten(surgery.fold_offset, model)) == ops(model)


# --- prescale_projections


LINEAR = {
    "weight": rng.normal(size=(12, 12)).astype(np.float32),
    "bias": rng.normal(size=12).astype(np.float32),
    "scale": np.float32(0.42),
    "heads": np.array([-1, 5, 3, 4]),
}
TOKENS = ["N", 5, 12]


def projected() -> list[NodeProto]:
    return [
        node("MatMul", ["x", "weight"], ["a"]),
        node("Add", ["a", "bias"], ["b"]),
        node("Reshape", ["b", "heads"], ["c"]),
        node("Transpose", ["c"], ["d"], perm=[0, 2, 1, 3]),
        node("Mul", ["d", "scale"], ["e"]),
        node("Relu", ["e"], ["y"]),
    ]


def test_the_constant_on_q_and_k_goes_into_their_projection() -> None:
    after = rewritten(surgery.prescale_projections, tiny(projected(), LINEAR, shape=TOKENS))
    assert ops(after) == {"MatMul": 1, "Add": 1, "Reshape": 1, "Transpose": 1, "Relu": 1}


@pytest.mark.parametrize("branch", ["a", "b", "d"])
@pytest.mark.parametrize("through", ["Relu", None])
def test_a_projection_that_something_else_reads_is_not_scaled(branch: str, through: str | None) -> None:
    reader = [node(through, [branch], ["z"])] if through else []
    outputs = ("y", "z" if through else branch)
    model = tiny([*projected(), *reader], LINEAR, shape=TOKENS, outputs=outputs)
    assert ops(rewritten(surgery.prescale_projections, model)) == ops(model)


def test_the_half_of_a_gelu_is_no_attention_scale() -> None:
    nodes = [
        node("Erf", ["x"], ["a"]),
        node("Add", ["a", "one"], ["b"]),
        node("Mul", ["half", "b"], ["c"]),
        node("Mul", ["x", "c"], ["y"]),
    ]
    model = tiny(nodes, {"one": np.float32(1), "half": np.float32(0.5)}, shape=TOKENS)
    assert ops(rewritten(surgery.prescale_projections, model)) == ops(model)


# --- merge_transposes, drop_whole_splits


def test_two_transpositions_in_a_row_become_one() -> None:
    nodes = [
        node("Transpose", ["x"], ["a"], perm=[0, 2, 1, 3]),
        node("Transpose", ["a"], ["b"], perm=[0, 1, 3, 2]),
        node("Transpose", ["b"], ["c"], perm=[3, 1, 0, 2]),
        node("Relu", ["c"], ["y"]),
    ]
    after = rewritten(surgery.merge_transposes, tiny(nodes, {}, shape=["N", 3, 4, 5]))
    assert ops(after) == {"Transpose": 1, "Relu": 1}


def test_a_transposition_that_something_else_reads_stays() -> None:
    nodes = [node("Transpose", ["x"], ["z"], perm=[0, 2, 1, 3]), node("Transpose", ["z"], ["y"], perm=[0, 1, 3, 2])]
    model = tiny(nodes, {}, outputs=("y", "z"))
    assert ops(rewritten(surgery.merge_transposes, model)) == ops(model)


def test_a_split_into_one_part_is_dropped_and_one_into_two_is_not() -> None:
    nodes = [
        node("Split", ["x"], ["a"], axis=2, num_outputs=1),
        node("Split", ["a"], ["b", "c"], axis=2, num_outputs=2),
        node("Add", ["b", "c"], ["y"]),
    ]
    assert ops(rewritten(surgery.drop_whole_splits, tiny(nodes, {}))) == {"Split": 1, "Add": 1}


# --- name_layers


def test_nodes_are_named_by_the_module_that_holds_their_weight() -> None:
    nodes = [
        node("Relu", ["x"], ["a"]),
        node("MatMul", ["a", "val_7"], ["b"]),
        node("Add", ["b", "model.mlp.0.bias"], ["c"]),
        node("Relu", ["c"], ["d"]),
        node("Relu", ["d"], ["y"]),
    ]
    constants = {"val_7": LINEAR["weight"], "model.mlp.0.bias": LINEAR["bias"]}
    after = rewritten(surgery.name_layers, tiny(nodes, constants, shape=TOKENS))
    assert [n.name for n in after.graph.node] == ["x/Relu", "mlp.0", "mlp.0/Add", "mlp.0/Relu", "mlp.0/Relu_1"]
    assert {t.name for t in after.graph.initializer} == {"model.mlp.0.weight", "model.mlp.0.bias"}


# --- the real graphs


@pytest.fixture(scope="module")
def operated(exported: Exported) -> dict[Scenario, tuple[onnx.ModelProto, tuple[surgery.RewriteStep, ...]]]:
    return {scenario: surgery.operate(raw) for scenario, raw in exported.raw.items()}


Operated = Mapping[Scenario, tuple[onnx.ModelProto, tuple[surgery.RewriteStep, ...]]]


@pytest.mark.parametrize("scenario", Scenario)
def test_surgery_leaves_the_answer_of_a_graph_as_it_is(
    exported: Exported, operated: Operated, scenario: Scenario
) -> None:
    golden = np.load(exported.bundle.golden_path)
    inputs = {sensor.value: golden[sensor.value][None] for sensor in Sensor if sensor in scenario.sensors}
    before, after = answer(exported.raw[scenario], inputs), answer(operated[scenario][0], inputs)
    assert (before[0] == after[0]).mean() >= 0.9999
    np.testing.assert_allclose(after[2], before[2], rtol=0, atol=1e-5)


@pytest.mark.parametrize("scenario", Scenario)
def test_the_report_counts_what_each_rewrite_found(operated: Operated, scenario: Scenario) -> None:
    model, steps = operated[scenario]
    assert [step.rewrite for step in steps] == list(surgery.REWRITES)
    transformers = 3 if scenario is Scenario.FULL else 4  # of two encoders, the fusion and a generator
    removed = {step.rewrite.name: len(step.removed) for step in steps}
    assert removed == {
        "name_layers": 0,
        "drop_byte_clips": 2 * (Sensor.RGIR in scenario.sensors),
        "fold_scale": len(scenario.sensors),
        "fold_offset": 0,  # the preset pads its first convolutions with zeros
        "prescale_projections": 2 * transformers,
        "merge_transposes": transformers,
        "drop_whole_splits": transformers - 1,  # the fusion's is into two
    }
    for step in steps:
        assert step.before.total() - step.after.total() == len(step.removed)
    assert steps[-1].after == ops(model)
    text = surgery.explain(steps)
    assert all(rewrite.name in text and rewrite.reason in text for rewrite in surgery.REWRITES)
    assert "fusion.mixer.layers.0.attention.query/Mul" in text


@pytest.mark.parametrize("scenario", Scenario)
def test_surgery_keeps_the_interface_and_takes_its_input_as_it_finds_it(
    exported: Exported, operated: Operated, scenario: Scenario
) -> None:
    raw, (model, _) = exported.raw[scenario], operated[scenario]
    assert list(model.graph.input) == list(raw.graph.input)
    assert list(model.graph.output) == list(raw.graph.output)
    assert (model.ir_version, list(model.opset_import)) == (raw.ir_version, list(raw.opset_import))
    again, _ = surgery.operate(raw)
    assert again.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("scenario", Scenario)
def test_nothing_stands_between_the_products_of_attention_and_its_softmax(
    operated: Operated, scenario: Scenario
) -> None:
    model, _ = operated[scenario]
    makers = {name: n for n in model.graph.node for name in n.output}
    readers: dict[str, list[NodeProto]] = {}
    for n in model.graph.node:
        for name in n.input:
            readers.setdefault(name, []).append(n)
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    softmaxes = [n for n in model.graph.node if n.op_type == "Softmax"]
    assert len(softmaxes) == (3 if scenario is Scenario.FULL else 4)
    for softmax in softmaxes:
        (weighted,) = readers[softmax.output[0]]
        product = makers[softmax.input[0]]
        assert (product.op_type, weighted.op_type) == ("MatMul", "MatMul")
        for tensor in product.input:
            chain = []
            while (n := makers[tensor]).op_type != "MatMul":
                chain.append(n.op_type)
                tensor = next(name for name in n.input if name not in constants)
            assert chain == ["Transpose", "Reshape", "Add"]


@pytest.mark.parametrize("scenario", Scenario)
def test_every_node_of_a_real_graph_has_its_own_name_and_every_layer_its_modules(
    exported: Exported, operated: Operated, scenario: Scenario
) -> None:
    model, _ = operated[scenario]
    names = [n.name for n in model.graph.node]
    assert len(set(names)) == len(names)
    modules = dict(exported.model.named_modules())
    for n in model.graph.node:
        if n.op_type in ("Conv", "LayerNormalization") or (n.op_type == "MatMul" and "/" not in n.name):
            assert n.name in modules, n.name
        else:
            base = n.name.split("/")[0]
            assert base in modules or base in {sensor.value for sensor in scenario.sensors}, n.name


def test_a_first_convolution_reads_bytes_less_their_offset_and_nothing_more(operated: Operated) -> None:
    model, _ = operated[Scenario.MISSING_NDSM]
    before = [n.op_type for n in model.graph.node if n.name.startswith("rgir/")]
    assert before == ["Cast", "Sub"]


PACKED = {
    "pixel_shuffle": True,
    "smoothing_kernel": 5,
    "stem_stride": 4,
    "encoder_widths": (8, 16, 24),
    "encoder_refinements": (0,) * 3,
}


def test_packed_pixels_reach_the_first_convolution_unscaled_and_stay_packed_inside() -> None:
    packed = random_model(0, **PACKED)
    byte, metres = (
        rng.integers(0, 256, (2, 3, 64, 64), np.uint8),
        rng.uniform(-2, 30, (2, 1, 64, 64)).astype(np.float32),
    )
    for scenario, fed in ((Scenario.MISSING_NDSM, {"rgir": byte}), (Scenario.MISSING_RGIR, {"ndsm": metres})):
        raw = export_graph(packed, scenario, 64)
        graph, steps = surgery.operate(raw)
        changed = {step.rewrite.name: step.removed for step in steps}
        sensor = next(iter(fed))
        assert any(name.startswith(f"{sensor}/Mul") for name in changed["fold_scale"])
        assert bool(changed["drop_byte_clips"]) == (sensor == "rgir")
        # the generator's answer is not unpacked and packed again: one unpacking, of the classes
        assert ops(graph)["DepthToSpace"] == 1
        with torch.no_grad():
            logits, _ = getattr(packed, f"forward_{scenario}")(*(torch.from_numpy(value) for value in fed.values()))
        *_, found = answer(graph, fed)
        np.testing.assert_allclose(found, logits.softmax(dim=1).numpy(), atol=2e-4)


@pytest.mark.parametrize("scenario", [Scenario.MISSING_RGIR, Scenario.MISSING_NDSM])
@pytest.mark.parametrize("more", [{"relief": True}, {"standardise": True}, {"relief": True, "standardise": True}])
def test_a_network_told_more_of_measured_and_of_made_bands_answers_as_pytorch_does(more, scenario) -> None:
    model = random_model(0, **more, **PACKED)
    fed = {
        "rgir": rng.integers(0, 256, (2, 3, 64, 64), np.uint8),
        "ndsm": rng.uniform(-2, 30, (2, 1, 64, 64)).astype(np.float32),
    }
    fed = {sensor: fed[sensor] for sensor in scenario.sensors}
    graph, _ = surgery.operate(export_graph(model, scenario, 64))
    with torch.no_grad():
        *_, expected = scenario_module(model, scenario)(*map(torch.from_numpy, fed.values()))
    *_, found = answer(graph, fed)
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-4)
