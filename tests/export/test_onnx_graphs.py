"""The graphs themselves: their interface, their structure, their weights, and their answers against PyTorch."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from engine.backends.openvino import shared_core
from engine.contract.bands import normalise
from engine.contract.bundle import Precision
from engine.contract.errors import BundleError
from engine.contract.sensors import Scenario, Sensor
from export import surgery
from export.golden import GoldenInputs
from export.onnx_graphs import ALIGNMENT_BYTES, EXTERNAL_ABOVE_BYTES, export_graph, write_graphs
from export.run import PRECISIONS
from export.verify import verify
from tests.export.conftest import TILE_PX, Exported
from train.config import PRESETS
from train.systems import build

CHANNELS = {Sensor.RGIR: 3, Sensor.NDSM: 1}
OUTPUTS = ("classes", "confidence", "probabilities")
Values = Mapping[str, NDArray[np.generic]]


def graph_path(exported: Exported, scenario: Scenario, precision: Precision = "fp32") -> Path:
    return exported.bundle.graph(scenario, precision)


def slim(exported: Exported, scenario: Scenario, precision: Precision = "fp32") -> onnx.ModelProto:
    """The graph as its file has it, weights left outside."""
    return onnx.load(graph_path(exported, scenario, precision), load_external_data=False)


def random_inputs(scenario: Scenario, batch: int, seed: int = 0) -> dict[str, NDArray[np.generic]]:
    rng = np.random.default_rng(seed)
    smooth = np.repeat(np.repeat(rng.random((batch, 4, 16, 16)), TILE_PX // 16, 2), TILE_PX // 16, 3)
    noisy = smooth + rng.normal(0, 0.1, smooth.shape)
    raw = {
        Sensor.RGIR: np.clip(noisy[:, :3] * 255, 0, 255).astype(np.uint8),
        Sensor.NDSM: (noisy[:, 3:] * 80 - 10).astype(np.float32),
    }
    return {sensor.value: raw[sensor] for sensor in Sensor if sensor in scenario.sensors}


def pytorch_answer(exported: Exported, scenario: Scenario, inputs: Values) -> dict[str, NDArray[np.generic]]:
    """The map as torch's own softmax and argmax make it of the model's logits."""
    model = exported.model
    tensors = [torch.from_numpy(value) for value in inputs.values()]
    with torch.no_grad():
        match scenario:
            case Scenario.FULL:
                logits = model.forward_full(*tensors)
            case Scenario.MISSING_NDSM:
                logits, _ = model.forward_missing_ndsm(*tensors)
            case Scenario.MISSING_RGIR:
                logits, _ = model.forward_missing_rgir(*tensors)
    probabilities = torch.softmax(logits, dim=1)
    return {
        "classes": logits.argmax(dim=1).numpy(),
        "confidence": (probabilities.amax(dim=1) * 255).round().numpy(),
        "probabilities": probabilities.numpy(),
    }


def onnxruntime_answer(
    path: Path, inputs: Values, outputs: tuple[str, ...] = OUTPUTS
) -> dict[str, NDArray[np.generic]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(list(outputs), dict(inputs)), strict=True))


def openvino_answer(path: Path, inputs: Values, outputs: tuple[str, ...] = OUTPUTS) -> dict[str, NDArray[np.generic]]:
    compiled = shared_core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    results = compiled(dict(inputs))
    return {name: results[name] for name in outputs}


RUNTIMES = (onnxruntime_answer, openvino_answer)


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("scenario", Scenario)
def test_a_graph_gives_pytorchs_map_at_any_batch(exported: Exported, scenario: Scenario, runtime) -> None:
    for batch in (1, 3):
        inputs = random_inputs(scenario, batch, seed=batch)
        expected = pytorch_answer(exported, scenario, inputs)
        received = runtime(graph_path(exported, scenario), inputs)
        assert len(np.unique(expected["classes"])) > 1  # a constant map would prove nothing
        assert (received["classes"] == expected["classes"]).mean() >= 0.999
        np.testing.assert_allclose(received["probabilities"], expected["probabilities"], rtol=0, atol=1e-5)
        assert np.abs(received["confidence"].astype(float) - expected["confidence"]).max() <= 1


@pytest.mark.parametrize("scenario", Scenario)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_classes_become_bytes_by_way_of_float32_which_changes_none_of_them(
    exported: Exported, scenario: Scenario, precision: Precision, tmp_path: Path
) -> None:
    model = onnx.load(graph_path(exported, scenario, precision))
    made_by = {name: node for node in model.graph.node for name in node.output}
    to_bytes = made_by["classes"]
    while to_bytes.op_type != "Cast":
        to_bytes = made_by[to_bytes.input[0]]
    to_float = made_by[to_bytes.input[0]]
    while to_float.op_type != "Cast":
        to_float = made_by[to_float.input[0]]
    targets = [next(a.i for a in node.attribute if a.name == "to") for node in (to_float, to_bytes)]
    assert targets == [TensorProto.FLOAT, TensorProto.UINT8]

    inputs = random_inputs(scenario, batch=1)
    with_cast = {answer: answer(graph_path(exported, scenario, precision), inputs) for answer in RUNTIMES}
    for node in model.graph.node:
        node.input[:] = [to_float.input[0] if name == to_float.output[0] else name for name in node.input]
    model.graph.node.remove(to_float)
    del model.graph.value_info[:]  # what stood between the two casts is int64 now
    onnx.save(model, tmp_path / "direct.onnx")
    for answer, expected in with_cast.items():
        direct = answer(tmp_path / "direct.onnx", inputs)
        assert len(np.unique(direct["classes"])) > 1
        for name in ("classes", "confidence"):
            np.testing.assert_array_equal(direct[name], expected[name])
        # OpenVINO cuts the graph into kernels elsewhere, and the softmax's last digit with it.
        np.testing.assert_allclose(direct["probabilities"], expected["probabilities"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_byte_survives_the_way_through_float32(runtime, tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Cast", ["f"], ["y"], to=TensorProto.UINT8),
    ]
    made = helper.make_graph(
        nodes,
        "bytes",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [1, 256])],
        [helper.make_tensor_value_info("y", TensorProto.UINT8, [1, 256])],
    )
    path = tmp_path / "bytes.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    every = np.arange(256, dtype=np.int64)[None]
    np.testing.assert_array_equal(runtime(path, {"x": every}, ("y",))["y"], every)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scenario", Scenario)
def test_inputs_and_outputs_are_those_of_the_contract(
    exported: Exported, scenario: Scenario, precision: Precision
) -> None:
    graph = slim(exported, scenario, precision).graph
    side = [TILE_PX, TILE_PX]

    def described(values) -> list[tuple[str, int, list[str | int]]]:
        shapes = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]
        return [(v.name, v.type.tensor_type.elem_type, shape) for v, shape in zip(values, shapes, strict=True)]

    dtypes = {Sensor.RGIR: TensorProto.UINT8, Sensor.NDSM: TensorProto.FLOAT}
    expected = [(s.value, dtypes[s], ["batch", CHANNELS[s], *side]) for s in Sensor if s in scenario.sensors]
    assert described(graph.input) == expected
    assert described(graph.output) == [
        ("classes", TensorProto.UINT8, ["batch", *side]),
        ("confidence", TensorProto.UINT8, ["batch", *side]),
        ("probabilities", TensorProto.FLOAT, ["batch", 6, *side]),
    ]


@pytest.mark.parametrize("scenario", Scenario)
def test_a_graph_sees_the_contracts_normalised_bands(exported: Exported, scenario: Scenario, tmp_path: Path) -> None:
    """Cut each input's chain off at its first convolution and compare with the contract's numpy oracle.

    The factor of the normalisation is in the convolution's weights, so what arrives there lacks it.
    """
    model = onnx.load(graph_path(exported, scenario))
    fed = {}
    for sensor in scenario.sensors:
        name = sensor.value
        while (node := next(n for n in model.graph.node if name in n.input)).op_type != "Conv":
            (name,) = node.output
        fed[sensor] = name
    del model.graph.output[:]
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in fed.values())
    path = tmp_path / "cut.onnx"
    onnx.save(model, path)

    inputs = random_inputs(scenario, batch=2)
    received = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(list(fed.values()), inputs)
    for sensor, bands in zip(fed, received, strict=True):
        oracle = normalise(inputs[sensor.value], exported.bundle.manifest.sensor(sensor).bands)
        scale = np.array([band.scale for band in exported.bundle.manifest.sensor(sensor).bands], np.float32)
        np.testing.assert_allclose(bands * scale[:, None, None], oracle, rtol=0, atol=5e-6)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scenario", Scenario)
def test_nothing_is_left_to_compute_that_was_known_at_export(
    exported: Exported, scenario: Scenario, precision: Precision
) -> None:
    model = slim(exported, scenario, precision)
    ops = Counter(node.op_type for node in model.graph.node)
    leftovers = {"Shape", "Gather", "If", "Loop", "ConstantOfShape", "Constant", "Identity", "BatchNormalization"}
    assert not ops.keys() & leftovers
    assert not model.functions
    assert {node.domain for node in model.graph.node} == {""}
    assert model.opset_import[0].version >= 18

    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Resize":
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            assert attributes["coordinate_transformation_mode"] == b"half_pixel"
            assert attributes["mode"] == b"linear"
            assert set(filter(None, node.input[1:])) <= constants
        if node.op_type == "Reshape":
            assert node.input[1] in constants


@pytest.mark.parametrize("scenario", Scenario)
def test_a_graph_holds_the_layers_of_its_own_path_and_no_other(exported: Exported, scenario: Scenario) -> None:
    called: Counter[str] = Counter()
    kinds = {nn.Conv2d: "Conv", nn.LayerNorm: "LayerNormalization"}
    handles = [
        layer.register_forward_hook(lambda layer, *_: called.update([kinds[type(layer)]]))
        for layer in exported.model.modules()
        if type(layer) in kinds
    ]
    try:
        pytorch_answer(exported, scenario, random_inputs(scenario, batch=1))
    finally:
        for handle in handles:
            handle.remove()
    graph = slim(exported, scenario).graph
    ops = Counter(node.op_type for node in graph.node)
    assert {op: ops[op] for op in kinds.values()} == dict(called)

    generators = {tensor.name.split(".")[2] for tensor in graph.initializer if ".generator." in tensor.name}
    assert generators == {sensor.value for sensor in set(Sensor) - scenario.sensors}
    assert not [tensor.name for tensor in graph.initializer if "_heads." in tensor.name]  # training only


def external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


@pytest.mark.parametrize("precision", PRECISIONS)
def test_the_three_graphs_share_every_weight_they_have_in_common(exported: Exported, precision: Precision) -> None:
    weights = exported.bundle.root / exported.bundle.manifest.weights[PRECISIONS.index(precision)].path
    places: dict[Scenario, dict[str, str]] = {}
    contents: dict[str, bytes] = {}
    data = weights.read_bytes()
    for scenario in Scenario:
        places[scenario] = {}
        for tensor in slim(exported, scenario, precision).graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL:
                assert len(numpy_helper.to_array(tensor).tobytes()) <= EXTERNAL_ABOVE_BYTES
                continue
            entry = external(tensor)
            assert entry["location"] == weights.name
            assert int(entry["offset"]) % ALIGNMENT_BYTES == 0
            places[scenario][tensor.name] = entry["offset"]
            contents[entry["offset"]] = data[int(entry["offset"]) :][: int(entry["length"])]
    # The encoders, the fusion and the decoder are one set of bytes for all three.
    # Nothing scales a generated band.
    stems = {f"model.encoder.{sensor}.stages.0.enter.0.weight.scaled" for sensor in Sensor}
    shared = {name for name in places[Scenario.FULL] if name.startswith("model.")} - stems
    assert len(shared) >= 0.9 * len(places[Scenario.FULL])
    assert any(".encoder." in name for name in shared)
    for scenario in (Scenario.MISSING_NDSM, Scenario.MISSING_RGIR):
        assert {n: places[scenario][n] for n in shared} == {n: places[Scenario.FULL][n] for n in shared}
    assert len(set(contents.values())) == len(contents)
    padding = len(data) - sum(map(len, contents.values()))
    assert 0 <= padding < ALIGNMENT_BYTES * len(contents)


def test_exporting_again_gives_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    scenario = Scenario.FULL
    again, _ = surgery.operate(export_graph(exported.model, scenario, TILE_PX))
    whole = onnx.load(graph_path(exported, scenario))
    written = []
    for graph in (again, whole):
        shared = write_graphs({scenario: graph}, tmp_path)
        written.append((shared.graphs[scenario].read_bytes(), shared.weights.read_bytes()))
    assert written[0] == written[1]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scenario", Scenario)
def test_no_graph_names_a_folder_of_the_machine_it_was_exported_on(
    exported: Exported, scenario: Scenario, precision: Precision
) -> None:
    content = graph_path(exported, scenario, precision).read_bytes()
    folders = (bytes(Path(__file__).parents[2]), bytes(Path.home()), bytes(Path(tempfile.gettempdir())))
    for trace in (b"site-packages", b".py", *folders):
        assert trace not in content


def test_a_graph_that_differs_from_pytorch_is_refused_with_the_numbers(exported: Exported, tmp_path: Path) -> None:
    model = onnx.load(graph_path(exported, Scenario.FULL))
    head = next(tensor for tensor in model.graph.initializer if tensor.name == "model.head.bias")
    bias = numpy_helper.to_array(head).copy()
    bias[0] += 0.1
    head.CopyFrom(numpy_helper.from_array(bias, head.name))
    path = tmp_path / "full.onnx"
    onnx.save(model, path)
    inputs = random_inputs(Scenario.FULL, batch=1)
    tile = GoldenInputs(rgir=inputs["rgir"][0], ndsm=inputs["ndsm"][0])

    with pytest.raises(BundleError, match=r"full fp32 in onnxruntime \d+\.\d+%, \d\.\de-0\d and \d+"):
        verify(exported.model, {Scenario.FULL: {"fp32": path}}, [[tile]])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "scenario"), [("mmformer", Scenario.MISSING_NDSM), ("shaspec", Scenario.MISSING_RGIR)]
)
def test_the_systems_it_is_compared_with_export_as_well(preset: str, scenario: Scenario) -> None:
    torch.manual_seed(0)
    widths = {"token_width": 16, "token_heads": 2, "token_mlp": 16, "position_grid": 4}
    model = build(replace(PRESETS[preset].model, **widths)).eval()
    inputs = {
        Sensor.RGIR: np.random.default_rng(0).integers(0, 256, (1, 3, 64, 64), np.uint8),
        Sensor.NDSM: np.random.default_rng(1).uniform(0, 9, (1, 1, 64, 64)).astype(np.float32),
    }
    fed = {sensor.value: inputs[sensor] for sensor in scenario.sensors}
    graph, _ = surgery.operate(export_graph(model, scenario, 64))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["probabilities"], fed)
    with torch.no_grad():
        tensors = [torch.from_numpy(values) for values in fed.values()]
        path = {Scenario.MISSING_NDSM: model.forward_missing_ndsm, Scenario.MISSING_RGIR: model.forward_missing_rgir}
        expected = path[scenario](*tensors)[0].softmax(dim=1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
