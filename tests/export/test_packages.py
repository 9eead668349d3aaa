"""Bundles packed for elsewhere, held against what is read there: Triton's schema, Deepness's rules, the Hub's cache."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from google.protobuf import text_format

import engine
from engine import demo
from engine.contract.bundle import Bundle
from engine.contract.sensors import Provenance, Scenario, Sensor
from export.packages.__main__ import main
from tests.conftest import CLASSES, toy_probabilities

TILE_PX = 64
RNG = np.random.default_rng(3)
TILE = {
    Sensor.RGIR: RNG.integers(0, 256, (2, 3, TILE_PX, TILE_PX), np.uint8),
    Sensor.NDSM: RNG.uniform(0, 20, (2, 1, TILE_PX, TILE_PX)).astype(np.float32),
}


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def expected(scenario: Scenario) -> np.ndarray:
    return np.stack([toy_probabilities(scenario, {s: TILE[s][n] for s in scenario.sensors}, 0) for n in range(2)])


def schema_of_triton() -> Any:
    """The generated module alone: the package around it asks for gRPC."""
    package = importlib.util.find_spec("tritonclient")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(toy_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "repository"
    assert main([str(toy_bundle.root), "--for", "triton", "--out", str(folder)]) == 0
    return folder


def test_a_triton_repository_is_what_its_schema_and_its_graphs_say(repository: Path) -> None:
    schema = schema_of_triton()
    kinds = {schema.TYPE_UINT8: "tensor(uint8)", schema.TYPE_FP32: "tensor(float)"}
    configs = {}
    for path in repository.glob("*/config.pbtxt"):
        config = configs[path.parent.name] = text_format.Parse(path.read_text(), schema.ModelConfig())
        assert config.name == path.parent.name
        assert config.max_batch_size == 8
    assert set(configs) == {*Scenario, "gemmnet"}
    for scenario in Scenario:
        opened, config = session(repository / scenario / "1" / "model.onnx"), configs[scenario]
        assert config.platform == "onnxruntime_onnx"
        for told, there in ((config.input, opened.get_inputs()), (config.output, opened.get_outputs())):
            assert {each.name: ([*each.dims], kinds[each.data_type]) for each in told} == {
                each.name: (each.shape[1:], each.type) for each in there
            }
    assert configs["gemmnet"].backend == "python"
    assert all(each.optional for each in configs["gemmnet"].input)
    assert (repository / "gemmnet" / "1" / "model.py").is_file()


class Tensor:
    """What Triton's Python backend passes around."""

    def __init__(self, name: str, values: np.ndarray) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._values

    def shape(self) -> tuple[int, ...]:
        return self._values.shape


class Refusal:
    def __init__(self, told: str) -> None:
        self._told = told

    def message(self) -> str:
        return self._told


class Response:
    def __init__(self, output_tensors: list[Tensor] | None = None, error: Refusal | None = None) -> None:
        self.tensors, self._error = output_tensors or [], error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> Refusal | None:
        return self._error


class Request:
    def __init__(self, given: dict[str, np.ndarray], wanted: list[str]) -> None:
        self.given, self.wanted = given, wanted

    def requested_output_names(self) -> list[str]:
        return self.wanted


def emulated_backend(repository: Path) -> types.ModuleType:
    """Triton's module for Python models, with ONNX Runtime as the server behind it."""

    class InferenceRequest:
        def __init__(self, *, model_name: str, requested_output_names: list[str], inputs: list[Tensor]) -> None:
            self.model, self.wanted, self.inputs = model_name, requested_output_names, inputs

        def exec(self) -> Response:
            feed = {each.name(): each.as_numpy() for each in self.inputs}
            try:
                found = session(repository / self.model / "1" / "model.onnx").run(self.wanted, feed)
            except Exception as error:  # a server answers, whatever the library says
                return Response(error=Refusal(str(error)))
            return Response([Tensor(name, values) for name, values in zip(self.wanted, found, strict=True)])

    module = types.ModuleType("triton_python_backend_utils")
    module.__dict__.update(
        Tensor=Tensor,
        TritonError=Refusal,
        InferenceResponse=Response,
        InferenceRequest=InferenceRequest,
        get_input_tensor_by_name=lambda request, name: (
            Tensor(name, request.given[name]) if name in request.given else None
        ),
        get_output_tensor_by_name=lambda answer, name: next(each for each in answer.tensors if each.name() == name),
    )
    return module


def test_the_selector_asks_the_graph_for_the_sensors_that_came(repository: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", emulated_backend(repository))
    spec = importlib.util.spec_from_file_location("selector", repository / "gemmnet" / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    wanted = ["provenance", "probabilities", "classes"]
    requests = [Request({s.value: TILE[s] for s in each.sensors}, wanted) for each in Scenario]
    wrong = {"rgir": TILE[Sensor.RGIR][:, :2]}
    *answers, neither, refused = module.TritonPythonModel().execute(
        [*requests, Request({}, wanted), Request(wrong, wanted)]
    )
    for scenario, answer in zip(Scenario, answers, strict=True):
        found = {each.name(): each.as_numpy() for each in answer.tensors}
        np.testing.assert_allclose(found["probabilities"], expected(scenario), atol=1e-4)
        np.testing.assert_array_equal(found["provenance"], [[Provenance[scenario.name]]] * 2)
        assert set(found) == set(wanted)
    assert "received neither" in neither.error().message()
    assert "Got: 2 Expected: 3" in refused.error().message()


def test_deepness_reads_each_model_and_feeds_it_right(toy_bundle: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    assert main([str(toy_bundle.root), "--for", "deepness", "--out", str(folder)]) == 0
    for scenario in Scenario:
        opened = session(folder / f"{scenario}.onnx")
        (layer,), (output,) = opened.get_inputs(), opened.get_outputs()  # it refuses more than one of either
        assert output.shape[1:] == [CLASSES, TILE_PX, TILE_PX]
        assert layer.shape[-1] == layer.shape[-2] == TILE_PX
        told = {name: json.loads(text) for name, text in opened.get_modelmeta().custom_metadata_map.items()}
        assert str(told["model_type"]).capitalize() == "Segmentor"
        names = sorted(told["class_names"].items(), key=lambda each: int(each[0]))
        assert [int(number) for number, _ in names] == [*range(CLASSES)]
        assert [name for _, name in names] == [spec.name for spec in toy_bundle.manifest.classes]
        assert int(told["tile_size"]) == int(told["tiles_size"]) == TILE_PX
        assert int(told["tiles_overlap"]) == 25  # a halo of 8 px on both sides of 64
        assert float(told["resolution"]) == 22  # cm, between 0.05 m and 1 m
        bands = layer.shape[1]
        assert len(told["standardization_mean"]) == len(told["standardization_std"]) == bands
        pixels = np.concatenate([TILE[s].astype(np.float32) for s in Sensor if s in scenario.sensors], axis=1)
        assert pixels.shape[1] == bands
        fed = np.float32(np.moveaxis(pixels, 1, -1) * 1.0 / 255.0)  # tiles come as NHWC
        fed = (fed - told["standardization_mean"]) / told["standardization_std"]
        fed = np.transpose(fed, (0, 3, 1, 2)).astype(np.float32)
        (found,) = opened.run(None, {layer.name: fed})
        np.testing.assert_allclose(found, expected(scenario), atol=1e-4)
        (holes,) = opened.run(None, {layer.name: np.full_like(fed, np.nan)})
        assert np.isfinite(holes).all()


def test_a_folder_for_the_hub_opens_from_its_cache_of_links(toy_bundle: Bundle, tmp_path: Path) -> None:
    folder, checkpoint, licence = tmp_path / "hub", tmp_path / "best.safetensors", tmp_path / "LICENSE"
    checkpoint.write_bytes(b"weights")
    licence.write_text("Do what you like.")
    options = [
        "--license",
        "other",
        "--license-name",
        "ours-1.0",
        "--license-file",
        str(licence),
        "--checkpoint",
        str(checkpoint),
    ]
    assert main([str(toy_bundle.root), "--for", "huggingface", "--out", str(folder), *options]) == 0
    _, head, body = (folder / "README.md").read_text().split("---\n", 2)
    told = yaml.safe_load(head)
    assert (told["license"], told["license_name"], told["license_link"]) == ("other", "ours-1.0", "LICENSE")
    assert told["pipeline_tag"] == "image-segmentation"
    assert "land-cover" in told["tags"]
    assert body.strip().startswith("# toy")
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert (folder / "LICENSE").read_text() == "Do what you like."

    snapshot, blobs = tmp_path / "models--me--toy" / "snapshots" / "abc", tmp_path / "models--me--toy" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(Path("..") / ".." / "blobs" / str(number))
    with engine.load(snapshot, precision="fp32") as model:
        mine = model.segment(ndsm=TILE[Sensor.NDSM][0])
    with engine.load(toy_bundle.root, precision="fp32") as model:
        np.testing.assert_array_equal(mine.classes, model.segment(ndsm=TILE[Sensor.NDSM][0]).classes)


@pytest.mark.slow
def test_graphs_of_the_demo_carry_their_weights_and_answer_as_before(tmp_path: Path) -> None:
    folder = tmp_path / "hub"
    assert main(["--for", "huggingface", "--out", str(folder), "--license", "mit"]) == 0
    packed = Bundle.load(folder)
    assert packed.manifest.weights == ()
    for path in folder.glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        assert not any(each.external_data for each in graph.initializer), path
    before = Bundle.load(demo.BUNDLE)
    sample = {"ndsm": np.zeros((1, 1, packed.manifest.tile_px, packed.manifest.tile_px), np.float32)}
    scenario = Scenario.MISSING_RGIR
    with before.opened([scenario], "fp32") as paths:
        (was,) = session(paths[scenario]).run(["classes"], sample)
    (now,) = session(packed.graph(scenario, "fp32")).run(["classes"], sample)
    np.testing.assert_array_equal(now, was)


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (["--for", "huggingface"], 2, "under a licence"),
        (["--for", "huggingface", "--license", "other", "--license-name", "ours"], 2, "has a name and a text"),
        (["--for", "huggingface", "--license", "mit", "--card", "none.md"], 2, "must be readable"),
        (["--for", "triton", "--precision", "int8"], 5, "has no int8 graph"),
    ],
)
def test_what_cannot_be_packed_is_told_and_leaves_nothing(
    options, code, named, toy_bundle: Bundle, tmp_path: Path, capsys
) -> None:
    assert main([str(toy_bundle.root), "--out", str(tmp_path / "out"), *options]) == code
    assert named in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert main([str(toy_bundle.root), "--out", str(tmp_path / "out"), "--for", "triton"]) == 4
    assert "left alone" in capsys.readouterr().err
