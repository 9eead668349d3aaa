"""``python -m export.audit``: its counts against graphs whose answer is known and an independent count in ONNX."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from math import prod
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.contract.bundle import Bundle
from engine.contract.errors import BundleError
from engine.contract.plan_cache import default_cache, save_plan
from engine.contract.plans import Device
from engine.contract.sensors import Scenario, Sensor
from export import audit as command
from export import build
from export.arithmetic import audit, products
from export.trt_library import TrtLibrary, open_library
from export.trt_network import NetworkLayer
from tests.conftest import CHANNELS, CLASSES
from tests.export.toy_engines import halved, quantised, replace_graph, requires_rtx, with_engines

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "engine" / "demo" / "bundle"
RTX = ["--library", "tensorrt_rtx"]
TILE_PX = 64
"""Of the toy bundles."""

pytestmark = requires_rtx


@pytest.fixture(scope="module")
def library() -> TrtLibrary:
    return open_library("tensorrt_rtx")


@pytest.fixture
def bundle(wide_bundle: Bundle, tmp_path: Path) -> Bundle:
    """Toy graphs of 13 x 13 convolutions in fp32, fp16 and int8."""
    return with_engines(wide_bundle, tmp_path / "bundle")


Parse = Callable[[onnx.ModelProto], tuple[NetworkLayer, ...]]


@pytest.fixture
def parse(library: TrtLibrary, tmp_path: Path) -> Parse:
    def parse(model: onnx.ModelProto) -> tuple[NetworkLayer, ...]:
        onnx.save(model, tmp_path / "graph.onnx")
        return tuple(library.parse(tmp_path / "graph.onnx").layers())

    return parse


def toy_macs(scenario: Scenario, kernel_px: int) -> int:
    bands = sum(CHANNELS[sensor] for sensor in Sensor if sensor in scenario.sensors)
    return CLASSES * bands * kernel_px**2 * TILE_PX**2


def graph(
    nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], shape: list[int], dtype: int = TensorProto.FLOAT
) -> onnx.ModelProto:
    """A graph from ``x`` to ``y`` with a free batch."""
    made = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", dtype, ["batch", *shape])],
        [helper.make_tensor_value_info("y", dtype, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def quantise(source: str, result: str) -> list[onnx.NodeProto]:
    """Source -> int8 -> ``result`` in floating point, with the constants ``scale`` and ``zero``."""
    return [
        helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{result}_int8"]),
        helper.make_node("DequantizeLinear", [f"{result}_int8", "scale", "zero"], [result]),
    ]


SCALES = {"scale": np.float32(0.05), "zero": np.int8(0)}


def types(layers: tuple[NetworkLayer, ...]) -> list[tuple[str, str, str]]:
    return [(product.layer.kind, product.type, product.remark) for product in products(layers)]


@pytest.mark.parametrize("scenario", Scenario)
def test_a_convolutions_operations_are_counted_for_one_tile(
    bundle: Bundle, library: TrtLibrary, scenario: Scenario
) -> None:
    for precision in ("fp32", "fp16", "int8"):
        counts = audit(tuple(library.parse(bundle.graph(scenario, precision)).layers()), precision)
        assert counts.macs == toy_macs(scenario, kernel_px=13)
        assert counts.mac_share == {precision: 1.0}
        assert counts.fallbacks == ()


def onnx_macs(path: Path) -> int:
    """Multiply-accumulates by ONNX shape inference, for a batch of one."""
    model = onnx.load(path)
    for tensor in model.graph.input:
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        # What the exporter left symbolic is the batch.
        shapes[value.name] = [dim.dim_value or 1 for dim in value.type.tensor_type.shape.dim]
    total = 0
    for node in model.graph.node:
        if node.op_type == "Conv":
            total += prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
        elif node.op_type == "MatMul":
            total += prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
        elif node.op_type == "Gemm":
            total += prod(shapes[node.output[0]]) * max(shapes[node.input[0]])
    return total


@pytest.mark.parametrize("scenario", Scenario)
def test_the_count_of_the_demo_graphs_is_that_of_onnx(library: TrtLibrary, scenario: Scenario) -> None:
    path = Bundle.load(DEMO).graph(scenario, "fp32")
    counts = audit(tuple(library.parse(path).layers()), "fp32")
    assert counts.macs == onnx_macs(path)
    weights = sum(prod(tensor.dims) for tensor in onnx.load(path, load_external_data=False).graph.initializer)
    assert counts.weights_bytes == pytest.approx(4 * weights, rel=0.02), "shapes and indices are no weights"


@pytest.mark.parametrize(
    ("operands", "type_", "remark"),
    [
        (["input", "weights"], "int8", ""),
        (["weights"], "fp32", "input is not quantised"),
        (["input"], "fp32", "weights are not quantised"),
        ([], "fp32", ""),
    ],
)
def test_a_convolution_is_int8_only_if_both_its_operands_are(
    wide_bundle: Bundle, parse: Parse, operands: list[str], type_: str, remark: str
) -> None:
    layers = parse(quantised(wide_bundle.graph(Scenario.FULL, "fp32"), operands))
    assert types(layers) == [("convolution", type_, remark)] * 2
    counts = audit(layers, "int8")
    assert counts.mac_share == {type_: 1.0}
    assert len(counts.fallbacks) == (0 if type_ == "int8" else 2)
    assert counts.casts == (2 if "input" in operands else 0)


def test_int8_weights_are_counted_as_bytes(wide_bundle: Bundle, parse: Parse) -> None:
    path = wide_bundle.graph(Scenario.FULL, "fp32")
    elements = CLASSES * 4 * 13**2
    exact, int8, fp16 = (
        audit(parse(model), "fp32").weights_bytes for model in (onnx.load(path), quantised(path), halved(path))
    )
    assert 4 * elements < exact < 4 * elements + 100
    assert elements < int8 < elements + 200
    assert 2 * elements < fp16 < 2 * elements + 100


def test_weights_that_are_quantised_in_the_graph_are_counted_as_bytes(parse: Parse) -> None:
    weights = np.ones((8, 4, 3, 3), np.float32)
    nodes = [*quantise("x", "a"), *quantise("w", "b"), helper.make_node("Conv", ["a", "b"], ["y"])]
    layers = parse(graph(nodes, {"w": weights, **SCALES}, [4, 16, 16]))
    assert types(layers) == [("convolution", "int8", "")]
    counts = audit(layers, "int8")
    assert weights.size <= counts.weights_bytes < weights.size + 40
    assert counts.casts == 1, "weights are converted once, in the build"


def test_a_mixed_network_is_split_by_operations_and_names_what_fell_back(parse: Parse) -> None:
    rng = np.random.default_rng(0)
    small, large = (rng.normal(size=(4, 4, side, side)).astype(np.float32) for side in (1, 3))
    nodes = [
        *quantise("x", "a"),
        *quantise("large", "b"),
        helper.make_node("Conv", ["a", "b"], ["c"], pads=[1] * 4, name="large_convolution"),
        helper.make_node("Conv", ["c", "small"], ["y"], name="small_convolution"),
    ]
    counts = audit(parse(graph(nodes, {"small": small, "large": large, **SCALES}, [4, 8, 8])), "int8")
    assert counts.mac_share == {"int8": pytest.approx(0.9), "fp32": pytest.approx(0.1)}
    assert counts.fallbacks == ("small_convolution",)


def test_arithmetic_between_dequantising_and_a_product_makes_it_a_floating_one(parse: Parse) -> None:
    nodes = [
        *quantise("x", "a"),
        helper.make_node("Relu", ["a"], ["b"]),
        *quantise("w", "c"),
        helper.make_node("Conv", ["b", "c"], ["y"]),
    ]
    layers = parse(graph(nodes, {"w": np.ones((4, 4, 1, 1), np.float32), **SCALES}, [4, 8, 8]))
    assert types(layers) == [("convolution", "fp32", "input is not quantised")]


def test_moving_data_between_dequantising_and_a_product_keeps_it_an_integer_one(parse: Parse) -> None:
    nodes = [
        *quantise("x", "a"),
        helper.make_node("Transpose", ["a"], ["b"], perm=[0, 2, 1]),
        *quantise("w", "c"),
        helper.make_node("MatMul", ["b", "c"], ["y"]),
    ]
    layers = parse(graph(nodes, {"w": np.ones((6, 5), np.float32), **SCALES}, [6, 7]))
    assert types(layers) == [("matrix_multiply", "int8", "")]
    assert audit(layers, "int8").macs == 7 * 6 * 5


def test_transposed_convolutions_and_transposed_products_are_counted(parse: Parse) -> None:
    nodes = [helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])]
    up = audit(parse(graph(nodes, {"w": np.ones((4, 6, 2, 2), np.float32)}, [4, 8, 8])), "fp32")
    assert up.macs == 8 * 8 * 4 * 6 * 2 * 2
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)]
    assert audit(parse(graph(nodes, {"w": np.ones((5, 6), np.float32)}, [6])), "fp32").macs == 6 * 5


def test_grouped_convolutions_are_counted_by_group(parse: Parse) -> None:
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], group=4, pads=[1] * 4)]
    assert audit(parse(graph(nodes, {"w": np.ones((4, 1, 3, 3), np.float32)}, [4, 8, 8])), "fp32").macs == 8 * 8 * 4 * 9


def test_conversions_at_run_time_are_counted_and_constants_are_not(wide_bundle: Bundle, parse: Parse) -> None:
    path = wide_bundle.graph(Scenario.FULL, "fp32")
    assert audit(parse(onnx.load(path)), "fp32").casts == 0, "uint8 in and out are conversions that every graph has"
    assert audit(parse(halved(path)), "fp16").casts == 4


def test_operations_that_cannot_be_counted_are_an_error(parse: Parse) -> None:
    nodes = [helper.make_node("Einsum", ["x", "w"], ["y"], equation="bij,jk->bik", name="tricky")]
    with pytest.raises(BundleError, match=r"'tricky' is of type EINSUM, whose multiply-accumulates cannot be counted"):
        parse(graph(nodes, {"w": np.ones((5, 6), np.float32)}, [4, 5]))


def test_the_free_batch_is_free_again_after_the_count(bundle: Bundle, library: TrtLibrary) -> None:
    network = library.parse(bundle.graph(Scenario.FULL, "fp32"))
    tuple(network.layers())
    shapes = [tuple(network.definition.get_input(index).shape) for index in range(network.definition.num_inputs)]
    assert shapes == [(-1, 3, TILE_PX, TILE_PX), (-1, 1, TILE_PX, TILE_PX)]


def test_the_command_shows_every_engine_and_every_layer(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--bundle", str(bundle.root), "--layers", "--json", str(tmp_path / "audit.json"), *RTX]) == 0
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.startswith(tuple(Scenario)) and "%" in line]
    assert [row[:2] for row in rows] == [
        [scenario, precision] for scenario in Scenario for precision in ("fp32", "fp16", "int8")
    ]
    assert rows[2][3:7] == ["0.0%", "0.0%", "0.0%", "100.0%"]
    assert "  int8  convolution" in out
    saved = json.loads((tmp_path / "audit.json").read_text())
    assert len(saved) == 9
    for entry in saved:
        assert sum(layer["macs"] for layer in entry["layers"]) == entry["counts"]["macs"]
        assert entry["share"] == 1.0
        assert entry["counts"]["layers"] == len(entry["layers"])


def test_the_command_fails_for_an_engine_that_is_not_what_it_is_called(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    liar = replace_graph(
        bundle, Scenario.MISSING_RGIR, "int8", halved(bundle.graph(Scenario.MISSING_RGIR, "fp32")).SerializeToString()
    )
    assert command.main(["--bundle", str(liar.root), *RTX]) == 5
    captured = capsys.readouterr()
    assert "missing_rgir int8: 0.0%, at least 50% is asked" in captured.out
    assert "1 of 9 engines are not what they are called" in captured.err
    assert command.main(["--bundle", str(liar.root), "--min-int8-share", "0", *RTX]) == 0


def test_an_int8_engine_that_was_measured_to_be_slower_is_reported(
    bundle: Bundle, library: TrtLibrary, capsys: pytest.CaptureFixture[str]
) -> None:
    device = Device(name="NVIDIA RTX 4090", compute_capability=89, multiprocessors=128)
    options = build.parser().parse_args(["--bundle", str(bundle.root), "--precision", "fp16,int8", *RTX])
    for job in build.jobs(options, bundle, library):
        counts = audit(tuple(library.parse(job.graph).layers()), job.key.precision)
        slow = job.key.scenario is Scenario.FULL and job.key.precision == "int8"
        plan = save_plan(default_cache(bundle), job.key, b"not loaded here", audit=counts, build_s=0.0)
        plan.with_latency(2.0 if slow else 1.0, device)
    assert command.main(["--bundle", str(bundle.root), *RTX]) == 0
    out = capsys.readouterr().out
    assert "full: int8 is slower than fp16 on NVIDIA RTX 4090, 128 multiprocessors (2.00 ms, 1.00 ms) and does" in out
    assert out.count("is slower than") == 1
    assert out.count("measured: ") == 6


def test_inspecting_engines_needs_their_device_and_their_plans(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(["--bundle", str(bundle.root), "--engines", *RTX]) == 6
    error = capsys.readouterr().err
    assert "no CUDA driver" in error or "needs a plan" in error


def test_what_the_built_plans_write_is_a_table(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--bundle", str(bundle.root), "--precision", "fp16,int8"]
    assert command.main([*arguments, "--traffic"]) == 5
    assert "run `python -m export.build`" in capsys.readouterr().err
    assert build.main([*arguments, *RTX, "--no-probabilities"]) == 0
    assert build.main([*arguments, *RTX]) == 0
    capsys.readouterr()
    assert command.main([*arguments, "--traffic"]) == 0
    rows = [row.strip("| ").split(" | ") for row in capsys.readouterr().out.splitlines()[2:]]
    expected = [
        [f"{scenario} {precision}", outputs]
        for scenario in Scenario
        for precision in ("fp16", "int8")
        for outputs in ("classes, confidence", "all")
    ]
    assert [row[:2] for row in rows] == expected
    for lean, whole in zip(rows[::2], rows[1::2], strict=True):
        assert float(lean[3].split()[0]) <= float(whole[3].split()[0])
    assert command.main([*arguments, *RTX]) == 0
    assert "  engine: 100.0% fp16; " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_an_engine_whose_memory_is_the_users_is_inspected_without_any(name: str, monkeypatch) -> None:
    """On stand-ins: the inspector needs a device. Plans of TensorRT-RTX refuse a context with memory of its own."""
    answer = {"Layers": [{"Name": "first", "LayerType": "correlation", "Inputs": [{"Datatype": "Int8"}]}]}

    class Engine:
        num_io_tensors = 0

        def create_runtime_config(self) -> SimpleNamespace:
            assert name == "tensorrt_rtx"
            config = SimpleNamespace(strategy="STATIC")
            config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
            return config

        def create_execution_context(self, how: object = "STATIC") -> object | None:
            return object() if getattr(how, "strategy", how) == "USER_MANAGED" else None

        def create_engine_inspector(self) -> SimpleNamespace:
            return SimpleNamespace(get_engine_information=lambda _format: json.dumps(answer))

    module = ModuleType(name)
    module.__version__ = "11.4.0"
    module.ILogger = type("ILogger", (), {"Severity": SimpleNamespace(INTERNAL_ERROR=0, ERROR=1)})
    module.Runtime = lambda _logger: SimpleNamespace(deserialize_cuda_engine=lambda _plan: Engine())
    module.ExecutionContextAllocationStrategy = SimpleNamespace(STATIC="STATIC", USER_MANAGED="USER_MANAGED")
    module.LayerInformationFormat = SimpleNamespace(JSON="JSON")
    monkeypatch.setitem(sys.modules, name, module)
    (layer,) = TrtLibrary(name).inspect(b"plan")
    assert (layer.kind, [tensor.type for tensor in layer.inputs]) == ("correlation", ["int8"])
