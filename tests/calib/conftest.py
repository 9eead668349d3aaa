"""Small networks with what the real ones have (residuals, a concatenation, a reshape) and scenes they map exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import rasterio
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from rasterio.transform import from_origin

from calib.store import TensorStore
from engine.contract.bands import ndsm_spec, rgir_spec
from engine.contract.bundle import (
    GOLDEN_STRIDE,
    SCHEMA_VERSION,
    Bundle,
    ClassSpec,
    FileRef,
    Manifest,
    Training,
    save_manifest,
)
from engine.contract.sensors import Scenario, Sensor
from tests.conftest import prove_with_the_least

TILE_PX = 32
CLASSES = ("ground", "roof", "grass", "clutter")
WIDTH = 16
BANDS = {Sensor.RGIR: 3, Sensor.NDSM: 1}


def network(scenario: Scenario, *, seed: int = 0) -> onnx.ModelProto:
    """3x3 entry and residual per sensor, a 1x1 fusion of the concatenation where there are two, a 1x1 head.

    Layers are named ``rgir.enter``, ``rgir.refine``, ``ndsm.enter``, ``ndsm.refine``, ``fuse`` and ``head``.
    """
    rng = np.random.default_rng((seed, list(Scenario).index(scenario)))
    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(name: str, values: object) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def conv(name: str, source: str, c_in: int, c_out: int, kernel: int) -> str:
        scale = 1.4 / np.sqrt(c_in * kernel**2)
        weight = constant(f"{name}.weight", rng.normal(0, scale, (c_out, c_in, kernel, kernel)).astype(np.float32))
        bias = constant(f"{name}.bias", rng.normal(0, 0.1, c_out).astype(np.float32))
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [source, weight, bias], [f"{name}.out"], name=name, pads=pads))
        return f"{name}.out"

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=f"make {output}", **attributes))
        return output

    features = []
    for sensor in (sensor for sensor in Sensor if sensor in scenario.sensors):
        shift, unit = (127.5, 1 / 64) if sensor is Sensor.RGIR else (8.0, 1 / 4)
        values = node("Cast", [sensor.value], f"{sensor}.float", to=TensorProto.FLOAT)
        values = node("Sub", [values, constant(f"{sensor}.shift", np.float32(shift))], f"{sensor}.shifted")
        values = node("Mul", [values, constant(f"{sensor}.unit", np.float32(unit))], f"{sensor}.scaled")
        values = node("Relu", [conv(f"{sensor}.enter", values, BANDS[sensor], WIDTH, 3)], f"{sensor}.entered")
        refined = node("Relu", [conv(f"{sensor}.refine", values, WIDTH, WIDTH, 3)], f"{sensor}.refined")
        features.append(node("Add", [values, refined], f"{sensor}.features"))
    joint = node("Concat", features, "joint", axis=1) if len(features) > 1 else features[0]
    fused = node("Relu", [conv("fuse", joint, WIDTH * len(features), WIDTH, 1)], "fused")
    logits = conv("head", fused, WIDTH, len(CLASSES), 1)
    axis = constant("axis", np.array([1]))
    node("Softmax", [logits], "probabilities", axis=1)
    node("ArgMax", [logits], "winner", axis=1, keepdims=0)
    node("Cast", ["winner"], "classes", to=TensorProto.UINT8)
    node("ReduceMax", ["probabilities", axis], "best", keepdims=0)
    node("Mul", ["best", constant("n255", np.float32(255))], "percent")
    node("Round", ["percent"], "rounded")
    node("Cast", ["rounded"], "confidence", to=TensorProto.UINT8)
    side = [TILE_PX, TILE_PX]
    graph = helper.make_graph(
        nodes,
        scenario.value,
        [
            helper.make_tensor_value_info(
                sensor.value,
                TensorProto.UINT8 if sensor is Sensor.RGIR else TensorProto.FLOAT,
                ["batch", BANDS[sensor], *side],
            )
            for sensor in Sensor
            if sensor in scenario.sensors
        ],
        [
            helper.make_tensor_value_info("classes", TensorProto.UINT8, ["batch", *side]),
            helper.make_tensor_value_info("confidence", TensorProto.UINT8, ["batch", *side]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(CLASSES), *side]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def run(model: onnx.ModelProto, inputs: Mapping[str, NDArray], *wanted: str) -> list[NDArray]:
    """ONNX Runtime with its optimisations off: the oracle."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(list(wanted) or ["probabilities"], dict(inputs))


def rasters(seed: int, *, size_px: int = TILE_PX) -> dict[str, NDArray]:
    """Smooth random sensors; labels are what the full network makes of them, so that it scores 100."""
    rng = np.random.default_rng(seed)

    def smooth(bands: int) -> NDArray[np.float64]:
        coarse = rng.uniform(0, 1, (bands, size_px // 8 + 1, size_px // 8 + 1))
        return np.kron(coarse, np.ones((8, 8)))[:, :size_px, :size_px]

    return {
        "rgir": (smooth(3) * 255).astype(np.uint8),
        "ndsm": (smooth(1) * 20).astype(np.float16).astype(np.float32),
    }


def labelled(seed: int) -> dict[str, NDArray]:
    """A scene of one tile."""
    scene = rasters(seed)
    (classes,) = run(network(Scenario.FULL), {name: values[None] for name, values in scene.items()}, "classes")
    return {**scene, "labels": classes[0]}


def write_npy(folder: Path, scene: Mapping[str, NDArray]) -> Path:
    """The layout of the training cache."""
    folder.mkdir(parents=True)
    for name, values in scene.items():
        np.save(folder / f"{name}.npy", values.astype(np.float16) if name == "ndsm" else values)
    return folder


def write_tif(folder: Path, scene: Mapping[str, NDArray]) -> Path:
    """The layout of procedural scenes."""
    folder.mkdir(parents=True)
    for name, values in scene.items():
        bands = np.atleast_3d(values.T).T
        with rasterio.open(
            folder / f"{name}.tif",
            "w",
            driver="GTiff",
            count=len(bands),
            height=bands.shape[1],
            width=bands.shape[2],
            dtype=bands.dtype,
            transform=from_origin(0, 0, 0.2, 0.2),
            crs="EPSG:32632",
        ) as file:
            file.write(bands)
    return folder


def write_bundle(root: Path) -> Bundle:
    """A verified bundle around the three networks, weights inside."""
    root.mkdir(parents=True)
    tile = rasters(99)
    golden = dict(tile)
    for scenario in Scenario:
        model = network(scenario)
        onnx.save(model, root / f"{scenario}.onnx")
        inputs = {sensor.value: tile[sensor.value][None] for sensor in scenario.sensors}
        classes, probabilities = run(model, inputs, "classes", "probabilities")
        golden[f"{scenario}/classes"] = classes[0]
        golden[f"{scenario}/probabilities"] = probabilities[0, :, ::GOLDEN_STRIDE, ::GOLDEN_STRIDE].astype(np.float16)
    np.savez_compressed(root / "golden.npz", **golden)
    save_manifest(
        Manifest(
            schema_version=SCHEMA_VERSION,
            name="toy",
            created_utc="2026-01-01T00:00:00Z",
            classes=tuple(ClassSpec(name=name, rgb=(60 * i, 255 - 60 * i, 90)) for i, name in enumerate(CLASSES)),
            sensors=(rgir_spec(), ndsm_spec()),
            gsd_m=(0.05, 1.0),
            tile_px=TILE_PX,
            halo_px=4,
            graphs={scenario: {"fp32": FileRef.of(root / f"{scenario}.onnx", root)} for scenario in Scenario},
            weights=(),
            golden=FileRef.of(root / "golden.npz", root),
            training=Training(command="none", dataset="none", steps=0, held_out="none", scores=()),
        ),
        root,
    )
    return Bundle.load(root)


def write_data(root: Path, *, per_role: int = 4) -> Path:
    """Scenes of all three roles, named by seed as the training cache names them."""
    for start in (0, 1_000_000, 2_000_000):
        for seed in range(start, start + per_role):
            write_npy(root / f"scene_{seed:08d}", labelled(seed))
    return root


def with_pairs(model: onnx.ModelProto, limits: Mapping[str, float]) -> onnx.ModelProto:
    """Q/DQ on the input and weights of every convolution, written by hand as Model Optimizer lays them out.

    Args:
        model: floating.
        limits: by activation that gets a pair, the magnitude that becomes 127.
    """
    placed = onnx.ModelProto()
    placed.CopyFrom(model)
    graph, nodes = placed.graph, []
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}

    def pair(source: str, scale: NDArray, **attributes: int) -> list[onnx.NodeProto]:
        dtype = onnx.helper.np_dtype_to_tensor_dtype(scale.dtype)
        graph.initializer.append(numpy_helper.from_array(scale, f"{source}_scale"))
        graph.initializer.append(numpy_helper.from_array(np.zeros(scale.shape, np.int8), f"{source}_zero"))
        assert dtype in (TensorProto.FLOAT, TensorProto.FLOAT16)
        names = [f"{source}_scale", f"{source}_zero"]
        return [
            helper.make_node("QuantizeLinear", [source, *names], [f"{source}_q"], f"{source}_Q", **attributes),
            helper.make_node(
                "DequantizeLinear", [f"{source}_q", *names], [f"{source}_dq"], f"{source}_DQ", **attributes
            ),
        ]

    for name, limit in limits.items():
        dtype = next(iter(weights.values())).dtype
        nodes += pair(name, np.asarray(limit / 127, dtype))
    for node in graph.node:
        if node.op_type == "Conv":
            largest = np.abs(weights[node.input[1]]).max(axis=(1, 2, 3)) / 127
            nodes += pair(node.input[1], largest.astype(weights[node.input[1]].dtype), axis=0)
            node.input[1] += "_dq"
        for k, source in enumerate(node.input):
            if source in limits:
                node.input[k] = f"{source}_dq"
    produced = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    waiting = [*nodes, *graph.node]
    ordered = []
    while waiting:
        ready = next(node for node in waiting if set(node.input) - {""} <= produced)
        waiting.remove(ready)
        ordered.append(ready)
        produced |= set(ready.output)
    del graph.node[:]
    graph.node.extend(ordered)
    onnx.checker.check_model(placed, full_check=True)
    return placed


@pytest.fixture(scope="package", autouse=True)
def brief_proof() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calib.publish.prove", prove_with_the_least)
        yield


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return write_bundle(tmp_path / "bundle")


@pytest.fixture
def store(tmp_path: Path) -> TensorStore:
    return TensorStore(tmp_path / "work")
