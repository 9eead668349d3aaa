"""What a library tells of an engine, in the words of each release, and what is concluded from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError
from engine.contract.plans import BatchRange, EngineAudit, PlanAudit, PlanKey, Target
from engine.contract.sensors import Scenario
from export.arithmetic import Product, products
from export.build import heavier
from export.built_layers import audit_engine, layers_of_inspector, layers_of_log, require_built
from export.progress import PhaseBar, Stop
from export.trt_library import TrtLibrary, open_library
from export.trt_network import NetworkLayer, Tensor
from tests.export.toy_engines import requires_rtx

KEY = PlanKey(
    scenario=Scenario.FULL,
    precision="int8",
    source_sha256="0" * 64,
    library="tensorrt_rtx",
    library_version="1.7.1",
    target=Target(scope="capabilities", compute_capabilities=(86,)),
    batch=BatchRange(minimum=1, optimum=1, maximum=1),
)

# Shortened, in the form of TensorRT-RTX 1.7.1.
RTX = """Layers:
Name: __myl_wait_0, LayerType: wait, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 1, Metadata:
Name: __myl_CastMul_myl0_1, LayerType: kgen, Inputs: [ { Name: rgir, Dimensions: [1,3,8,8], Strides: [192,64,8,1], \
StrideOrder: [3,2,1,0], Datatype: UInt8, Format: (Linear) Row major linear format }], Constants: [ { Name: c0, \
Dimensions: [1,1,64,64], Strides: [1], StrideOrder: [0], Datatype: Half, Format: (NHWC) Channel major format }], \
Outputs: [ { Name: a, Dimensions: [1,4,8,8], Strides: [1], StrideOrder: [0], Datatype: Int8, Format: (NHWC) Channel \
major format }], TacticName: x, StreamId: 0, Metadata: [ONNX Layer: first][ONNX Layer: rgir/Cast]
Name: first_myl0_2, LayerType: correlation, Inputs: [ { Name: a, Dimensions: [1,4,8,8], Strides: [1], StrideOrder: \
[0], Datatype: Int8, Format: (NHWC) Channel major format }], Constants: [ { Name: w, Dimensions: [16,4,3,3], Strides: \
[1], StrideOrder: [0], Datatype: Int8, Format: (NHWC) Channel major format }, { Name: s, Dimensions: [1,16,1,1], \
Strides: [1], StrideOrder: [0], Datatype: Float, Format: (NHWC) Channel major format }], Outputs: [ { Name: b, \
Dimensions: [1,16,8,8], Strides: [1], StrideOrder: [0], Datatype: Float, Format: (NHWC) Channel major format }], \
TacticName: , StreamId: 0, Metadata: [ONNX Layer: first]
Name: second_myl0_3, LayerType: correlation, Inputs: [ { Name: b, Dimensions: [-1,16,8,8], Strides: [1], StrideOrder: \
[0], Datatype: Half, Format: (NHWC) Channel major format }], Constants: [ { Name: w2, Dimensions: [16,16,1,1], \
Strides: [1], StrideOrder: [0], Datatype: Int8, Format: (NHWC) Channel major format }], Outputs: [ { Name: c, \
Dimensions: [-1,16,8,8], Strides: [1], StrideOrder: [0], Datatype: Half, Format: (NHWC) Channel major format }], \
TacticName: , StreamId: 0, Metadata: [ONNX Layer: second]

I/O Tensors:
 Name: rgir, IOMode: Input, DataType: UInt8, Dimensions: [1,3,8,8]
"""

# In the form of TensorRT 10: names of fused layers, words about layouts, weights beside the tensors.
TENSORRT_10 = """Engine Layer Information:
Name: Reformatting CopyNode for Input Tensor 0 to {ForeignNode[first...second]}, LayerType: Reformat, Inputs: [ \
{ Name: rgir, Location: Device, Dimensions: [1,3,8,8], Format/Datatype: Row major linear UINT8 format }], Outputs: [ \
{ Name: Reformatted Input Tensor 0 to {ForeignNode[first...second]}, Location: Device, Dimensions: [1,4,8,8], \
Format/Datatype: Thirty-two wide channel vectorized row major Int8 format }], ParameterType: Reformat, StreamId: 0, \
Metadata:
Name: first + PWN(first/Relu), LayerType: CaskConvolution, Inputs: [ { Name: a, Location: Device, Dimensions: \
[1,4,8,8], Format/Datatype: Thirty-two wide channel vectorized row major Int8 format }], Outputs: [ { Name: b, \
Location: Device, Dimensions: [1,16,8,8], Format/Datatype: Thirty-two wide channel vectorized row major Int8 format \
}], ParameterType: Convolution, Kernel: [3,3], Weights: {"Type": "Int8", "Count": 576}, Bias: {"Type": "Float", \
"Count": 16}, StreamId: 0, Metadata: [ONNX Layer: first]\x1e[ONNX Layer: first/Relu]
Name: second, LayerType: CaskConvolution, Inputs: [ { Name: b, Location: Device, Dimensions: [1,16,8,8], \
Format/Datatype: Half }], Outputs: [ { Name: c, Location: Device, Dimensions: [1,16,8,8], Format/Datatype: Row major \
linear FP32 }], ParameterType: Convolution, Weights: {"Type": "Half", "Count": 256}, StreamId: 0, Metadata:
"""


def product(name: str, macs: int, type_: str = "int8") -> Product:
    tensor = Tensor(name=f"{name}.out", dtype="fp16", shape=(1,))
    layer = NetworkLayer(
        name=name,
        kind="convolution",
        inputs=(tensor,),
        outputs=(tensor,),
        macs=macs,
        weights_dtype=None,
        weights_elements=0,
    )
    return Product(layer=layer, type=type_, remark="")


ASKED = (product("first", 300), product("second", 100), product("nowhere", 100))


def test_the_log_of_rtx_is_read_layer_by_layer() -> None:
    found = audit_engine(layers_of_log(RTX), ASKED, "int8")
    assert found.kernels == 3, "waiting for another stream starts no kernel"
    assert found.written == {"fp32": 4 * 1024, "fp16": 2 * 1024, "int8": 256}
    assert found.bytes_written == 6 * 1024 + 256
    # A kernel that only prepares `first` names it too, with a larger constant; weights alone are no int8 arithmetic.
    assert found.mac_share == {"int8": 0.6, "fp16": 0.2, "unknown": 0.2}
    assert found.fallbacks == ("second",)
    assert found.widened == 1


def test_the_log_of_tensorrt_10_is_read_layer_by_layer() -> None:
    found = audit_engine(layers_of_log(TENSORRT_10), ASKED, "int8")
    assert found.kernels == 3
    assert found.written == {"fp32": 4 * 1024, "int8": 256 + 1024}, "uint8 is not int8"
    assert found.mac_share == {"int8": 0.6, "fp16": 0.2, "unknown": 0.2}
    assert found.widened == 0


@pytest.mark.parametrize("log", [RTX, TENSORRT_10], ids=["Datatype", "Format/Datatype"])
def test_the_inspectors_json_says_the_same_as_the_log(log: str) -> None:
    def tensors(layer: dict) -> dict:
        key = "Datatype" if log is RTX else "Format/Datatype"
        return {"Name": "t", "Dimensions": [layer["elements"]], key: layer["type"]}

    spelled = {"fp32": "Float", "fp16": "Half", "int8": "Int8", "uint8": "UInt8"}
    layers = []
    for layer in layers_of_log(log):
        as_dict = {
            "Name": layer.name,
            "LayerType": layer.kind,
            "Inputs": [tensors({"elements": t.elements, "type": spelled[t.type]}) for t in layer.inputs],
            "Outputs": [tensors({"elements": t.elements, "type": spelled[t.type]}) for t in layer.outputs],
            "Metadata": "".join(f"[ONNX Layer: {node}]" for node in sorted(layer.nodes - {layer.name})),
        }
        if layer.weights is not None and log is RTX:
            weights = {"elements": layer.weights.elements, "type": spelled[layer.weights.type]}
            as_dict["Constants"] = [tensors(weights)]
        elif layer.weights is not None:
            as_dict["Weights"] = {"Type": spelled[layer.weights.type], "Count": layer.weights.elements}
        layers.append(as_dict)
    information = json.loads(json.dumps({"Layers": layers}))
    assert layers_of_inspector(information) == layers_of_log(log)


def test_a_layer_without_a_type_or_tensors_is_no_traceback() -> None:
    found = layers_of_inspector({"Layers": [{"Name": "first"}, {"Name": "b", "Inputs": [{"Format/Datatype": "N/A"}]}]})
    audited = audit_engine(found, ASKED, "int8")
    assert (audited.kernels, audited.bytes_written, audited.mac_share) == (2, 0, {"unknown": 1.0})


@pytest.mark.parametrize("information", [{}, {"Layers": []}, {"Layers": ["first", "second"]}])
def test_an_inspector_that_knows_names_alone_is_an_error(information: dict[str, object]) -> None:
    with pytest.raises(BackendError, match="holds no layer information"):
        layers_of_inspector(information)


def test_a_log_of_names_alone_proves_nothing() -> None:
    assert layers_of_log("Layers:\nfirst + second\nthird") == ()


def audited(engine: EngineAudit | None) -> PlanAudit:
    return PlanAudit(
        macs=500,
        mac_share={"int8": 0.8, "fp16": 0.2},
        layers=3,
        fallbacks=("third",),
        casts=0,
        weights_bytes=0,
        engine=engine,
    )


def engine(mac_share: dict[str, float], *, kernels: int = 1, nbytes: int = 0) -> EngineAudit:
    return EngineAudit(
        kernels=kernels,
        bytes_written=nbytes,
        written={},
        mac_share=mac_share,
        fallbacks=("first", "third"),
        widened=7,
    )


def test_an_engine_that_is_proven_wider_than_it_was_asked_to_be_is_refused() -> None:
    require_built(audited(None), KEY, 0.5)
    require_built(audited(engine({"int8": 0.1, "unknown": 0.6, "fp16": 0.3})), KEY, 0.5)
    with pytest.raises(BackendError) as refused:
        require_built(audited(engine({"fp16": 0.6, "int8": 0.4})), KEY, 0.5)
    message = str(refused.value)
    assert "computes 60.0% fp16, 40.0% int8 of its multiply-accumulates; at least 50% must be in int8" in message
    assert "(1 layers are wider than the graph says: first)" in message
    require_built(audited(engine({"fp16": 0.6, "int8": 0.4})), KEY, 0.3)


def test_an_int8_engine_that_writes_more_than_its_fp16_sibling_is_named(tmp_path: Path) -> None:
    from engine.contract.plan_cache import save_plan

    def stored(precision: str, nbytes: int, **changes: object) -> object:
        key = replace(KEY, precision=precision, source_sha256=precision * 16, **changes)
        return save_plan(
            tmp_path, key, b"plan", audit=audited(engine({}, kernels=nbytes, nbytes=nbytes * 10**6)), build_s=1.0
        )

    ndsm = {"scenario": Scenario.MISSING_NDSM}
    plans = [
        stored("fp16", 50),
        stored("int8", 90),
        stored("fp16", 50, **ndsm),
        stored("int8", 40, **ndsm),
        stored("int8", 90, probabilities=True),
    ]
    (sentence,) = heavier(plans)
    assert sentence.startswith(
        "full: the int8 engine writes 90.0 MB a tile in 90 kernels (7 of its int8 layers hand on"
    )
    assert "the fp16 engine 50.0 MB in 50: expect fp16 to be faster" in sentence


# --- TensorRT-RTX itself ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def library() -> TrtLibrary:
    return open_library("tensorrt_rtx")


def built(library: TrtLibrary, path: Path, key: PlanKey) -> EngineAudit:
    network = library.parse(path)
    asked = products(tuple(network.layers()))
    with PhaseBar("", Stop()) as bar:
        made = library.build(network, replace(key, library_version=library.version), progress=bar)
    return audit_engine(made.layers, asked, "int8")


def quantised_chain(op: str) -> onnx.ModelProto:
    """The plainest int8 there is: two products in a row, one scale for each tensor, every result quantised at once."""
    rng = np.random.default_rng(0)
    weights_shape, sides = ((64, 64, 3, 3), (64, 32, 32)) if op == "Conv" else ((64, 64), (1024, 64))
    constants = {"scale": np.float32(0.05), "zero": np.int8(0), "weights_scale": np.float32(0.01)}
    nodes, source = [], "x"
    for layer in ("a", "b", "y"):
        nodes.append(helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{layer}.q"]))
        nodes.append(helper.make_node("DequantizeLinear", [f"{layer}.q", "scale", "zero"], [f"{layer}.dq"]))
        if layer == "y":
            break
        constants[f"{layer}.w"] = rng.integers(-64, 64, weights_shape).astype(np.int8)
        nodes.append(helper.make_node("DequantizeLinear", [f"{layer}.w", "weights_scale"], [f"{layer}.wdq"]))
        source = f"{layer}.out"
        padding = {"pads": [1] * 4} if op == "Conv" else {}
        nodes.append(helper.make_node(op, [f"{layer}.dq", f"{layer}.wdq"], [source], name=layer, **padding))
    made = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *sides])],
        [helper.make_tensor_value_info("y.dq", TensorProto.FLOAT, ["batch", *sides])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@requires_rtx
@pytest.mark.parametrize(("op", "widened"), [("Conv", 2), ("MatMul", 0)])
def test_rtx_requantises_the_plainest_int8_convolution_in_another_kernel(
    library: TrtLibrary, tmp_path: Path, op: str, widened: int
) -> None:
    """Why int8 is no gain there. Should a later version not do so: look at int8 for GPUs again (export/README.md)."""
    onnx.save(quantised_chain(op), tmp_path / "chain.onnx")
    found = built(library, tmp_path / "chain.onnx", KEY)
    assert found.mac_share == {"int8": 1.0}
    assert found.widened == widened


@requires_rtx
def test_rtx_computes_int8_convolutions_in_floating_point_on_turing_and_the_build_refuses(
    library: TrtLibrary, tmp_path: Path
) -> None:
    onnx.save(quantised_chain("Conv"), tmp_path / "chain.onnx")
    turing = replace(KEY, target=Target(scope="capabilities", compute_capabilities=(75,)))
    found = built(library, tmp_path / "chain.onnx", turing)
    assert found.mac_share == {"fp32": 1.0}
    with pytest.raises(BackendError, match=r"for sm_75 and made an engine that computes 100\.0% fp32"):
        require_built(audited(found), turing, 0.5)


@requires_rtx
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_product_of_the_demo_is_found_in_its_engine_with_the_type_of_its_graph(
    library: TrtLibrary, tmp_path: Path, precision: str
) -> None:
    path = Bundle.load(Path(__file__).parents[2] / "engine" / "demo" / "bundle").graph(Scenario.FULL, precision)
    engines = {}
    for probabilities in (True, False):
        network = library.parse(path, probabilities=probabilities)
        layers = tuple(network.layers())
        key = replace(KEY, precision=precision, library_version=library.version, probabilities=probabilities)
        with PhaseBar("", Stop()) as bar:
            made = library.build(network, key, progress=bar)
        engines[probabilities] = audit_engine(made.layers, products(layers), precision)
        counted: dict[str, int] = {}
        for each in products(layers):
            counted[each.type] = counted.get(each.type, 0) + each.layer.macs
        total = sum(counted.values())
        assert engines[probabilities].mac_share == pytest.approx({name: macs / total for name, macs in counted.items()})
    whole, lean = engines[True], engines[False]
    assert whole.written["uint8"] == lean.written["uint8"] == 2 * 512 * 512, "classes and confidence"
    assert whole.bytes_written - lean.bytes_written >= 6 * 512 * 512 * 4, "probabilities at least"
