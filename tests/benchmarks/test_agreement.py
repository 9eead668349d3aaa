"""The agreement matrix says what is so, and fails when a backend answers something else."""

from __future__ import annotations

import csv
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import rasterio
from onnx import numpy_helper

from benchmarks import agreement
from benchmarks.tiles import tiles_of
from engine import demo
from engine.contract.bundle import Bundle, FileRef, save_manifest
from engine.contract.sensors import Scenario, Sensor
from tests.conftest import make_scene
from tests.engine.precision_graphs import with_precisions


@pytest.fixture(scope="module")
def precisions(toy_bundle, tmp_path_factory) -> Bundle:
    return with_precisions(toy_bundle, tmp_path_factory.mktemp("precisions") / "bundle")


def run(bundle: Bundle, out: Path, *options: str) -> tuple[int, list[dict[str, str]]]:
    code = agreement.main(["--bundle", str(bundle.root), "--csv", str(out / "agreement.csv"), *options])
    path = out / "agreement.csv"
    return code, list(csv.DictReader(path.open())) if path.exists() else []


def test_every_backend_precision_and_scenario_has_a_row_within_tolerance(precisions, tmp_path, write_scene) -> None:
    scene = write_scene(make_scene(200, 150), folder="scene")[Sensor.RGIR].parent
    code, rows = run(precisions, tmp_path, "--backends", "openvino,onnxruntime", "--scene", str(scene), "--tiles", "5")
    assert code == 0
    found = {(row["backend"], row["graph"], row["scenario"]): row for row in rows}
    assert set(found) == {
        (backend, graph, scenario)
        for backend in ("openvino", "onnxruntime")
        for graph in ("fp32", "fp16", "int8")
        for scenario in Scenario
    }
    for (_, graph, _), row in found.items():
        assert row["within_tolerance"] == "True"
        assert row["tiles"] == "5"
        if graph == "fp32":
            assert float(row["max_probability_difference"]) < 1e-5
        else:
            assert float(row["max_probability_difference"]) > 1e-5, "it must tell the precisions apart"
    table = (tmp_path / "agreement.md").read_text()
    assert table.count("| int8 |") == 2
    assert "out of tolerance" not in table


def test_a_graph_that_means_something_else_fails_and_is_named(precisions, tmp_path, capsys) -> None:
    root = Path(shutil.copytree(precisions.root, tmp_path / "bundle"))
    path = root / "missing_rgir.int8.onnx"
    graph = onnx.load(path)
    weights = next(tensor for tensor in graph.graph.initializer if tensor.name == "ndsm_weights_int8")
    weights.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(weights), weights.name))
    onnx.save(graph, path)
    graphs = {scenario: dict(refs) for scenario, refs in precisions.manifest.graphs.items()}
    graphs[Scenario.MISSING_RGIR]["int8"] = FileRef.of(path, root)
    save_manifest(replace(precisions.manifest, graphs=graphs), root)
    code, rows = run(Bundle.load(root), tmp_path, "--backends", "openvino", "--tiles", "1")
    assert code == 1
    assert {row["graph"] for row in rows} == {"fp32", "fp16"}
    assert "openvino int8 failed" in (told := capsys.readouterr().err)
    assert "scenario missing_rgir" in told


def test_a_backend_that_is_not_there_is_left_out_with_its_reason(precisions, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "engine.backends.tensorrt", None)
    code, rows = run(precisions, tmp_path, "--backends", "tensorrt,onnxruntime", "--tiles", "1")
    assert code == 0
    assert {row["backend"] for row in rows} == {"onnxruntime"}
    assert "tensorrt fp32 is left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--backends", "tensorflow"), "--backends takes a list of tensorrt, openvino, onnxruntime"),
        (("--precisions", "int4"), "--precisions takes a list of fp32, fp16, int8"),
        (("--tiles", "0"), "--tiles must be at least 1"),
        (("--checkpoint", "nowhere.safetensors"), "--checkpoint takes a file of `python -m train.run`"),
    ],
)
def test_wrong_options_are_explained(precisions, tmp_path, capsys, options, named) -> None:
    code, _ = run(precisions, tmp_path, *options)
    assert code == 2
    assert named in capsys.readouterr().err


@pytest.mark.slow
def test_the_demo_bundle_agrees_in_every_backend_that_runs_here(tmp_path) -> None:
    code, rows = run(Bundle.load(demo.BUNDLE), tmp_path, "--backends", "openvino,onnxruntime", "--tiles", "1")
    assert code == 0
    assert {row["scenario"] for row in rows} == set(Scenario)


def test_tiles_are_the_golden_one_and_windows_of_the_scene_without_holes(toy_bundle, write_scene) -> None:
    scene, valid = make_scene(200, 150)
    paths = write_scene((scene, valid))
    tiles = tiles_of(toy_bundle, paths, 100)
    assert len(tiles) == 1 + 3 * 2
    with rasterio.open(paths[Sensor.RGIR]) as file:
        last = file.read()[:, 128:192, 64:128]
    seen = valid[Sensor.RGIR][128:192, 64:128]
    assert seen.any()
    assert (tiles[-1][Sensor.RGIR][:, seen] == last[:, seen]).all()
    for tile in tiles:
        assert tile[Sensor.NDSM].min() > -100, "a hole was not filled"
        assert tile[Sensor.RGIR].flags.c_contiguous
