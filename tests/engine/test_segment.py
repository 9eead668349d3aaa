"""Whole runs on rasters of every awkward size, against an oracle that evaluates the toy graphs on the whole raster."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from engine.contract.bundle import NODATA_CLASS
from engine.contract.errors import EngineError, InterruptedRunError, OutputError, ResumeError, UsageError
from engine.contract.sensors import Provenance, Scenario, Sensor
from engine.journal import FOLDER
from tests.conftest import Scene, make_scene, toy_map
from tests.engine.runs import Watcher, request_for, run_told

MAPS = ("classes.tif", "confidence.tif", "provenance.tif")


def read_maps(output: Path) -> list[np.ndarray]:
    maps = []
    for name in MAPS:
        with rasterio.open(output / name) as file:
            maps.append(file.read(1))
    return maps


def assert_equals_oracle(output: Path, scene: Scene, alive: set[Sensor], *, radius: int = 0, share=0.9995) -> None:
    rasters, valid = scene
    expected = toy_map({s: rasters[s] for s in alive}, {s: valid[s] for s in alive}, radius)
    classes, confidence, provenance = read_maps(output)
    np.testing.assert_array_equal(provenance, expected[2])
    np.testing.assert_array_equal(classes == NODATA_CLASS, expected[0] == NODATA_CLASS)
    assert (classes == expected[0]).mean() >= share  # the rest: ties between two classes in float32
    assert np.abs(confidence.astype(int) - expected[1]).max() <= 1


@pytest.mark.parametrize("size", [(64, 64), (37, 50), (64, 1), (200, 64), (149, 211)])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_every_size_equals_the_whole_raster_oracle(size, backend, toy_bundle, write_scene, tmp_path) -> None:
    scene = make_scene(*size)
    run_told(request_for(toy_bundle, write_scene(scene), tmp_path / "out", backend=backend), Watcher())
    assert_equals_oracle(tmp_path / "out", scene, set(Sensor))


@pytest.mark.parametrize("alive", [{Sensor.RGIR}, {Sensor.NDSM}])
def test_a_single_sensor_maps_what_it_saw(alive, toy_bundle, write_scene, tmp_path) -> None:
    scene = make_scene(150, 170)
    paths = {sensor: path for sensor, path in write_scene(scene).items() if sensor in alive}
    run = run_told(request_for(toy_bundle, paths, tmp_path / "out"), Watcher())
    assert_equals_oracle(tmp_path / "out", scene, alive)
    assert run["result"]["inferences"]["full"] == 0


@pytest.mark.parametrize("blend", ["none", "hann"])
def test_no_seam_when_the_halo_covers_the_receptive_field(blend, wide_bundle, write_scene, tmp_path) -> None:
    scene = make_scene(230, 317, holes=False)
    request = request_for(wide_bundle, write_scene(scene), tmp_path / "out", blend=blend, halo_px=16)
    run_told(request, Watcher())
    if blend == "none":
        assert_equals_oracle(tmp_path / "out", scene, set(Sensor), radius=6)
    else:  # fading tiles in also lets a little of their padded edge in
        rasters, valid = scene
        classes, _, _ = read_maps(tmp_path / "out")
        assert (classes == toy_map(rasters, valid, 6)[0]).mean() > 0.99


def test_without_a_halo_seams_show(wide_bundle, write_scene, tmp_path) -> None:
    scene = make_scene(230, 317, holes=False)
    run_told(request_for(wide_bundle, write_scene(scene), tmp_path / "out", halo_px=0), Watcher())
    classes, _, _ = read_maps(tmp_path / "out")
    assert (classes == toy_map(*scene, 6)[0]).mean() < 0.99


def test_hann_in_many_strips_equals_the_pixelwise_oracle(toy_bundle, write_scene, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("engine.stitcher.ACCUMULATOR_BYTES", 1)  # the narrowest strips
    scene = make_scene(150, 500)
    watcher = Watcher()
    run_told(request_for(toy_bundle, write_scene(scene), tmp_path / "out", blend="hann"), watcher)
    assert len(watcher.plan.stitcher().grid.strips) > 2
    assert_equals_oracle(tmp_path / "out", scene, set(Sensor))


def test_a_dead_ndsm_block_goes_through_the_rgir_graph_alone(toy_bundle, write_scene, tmp_path) -> None:
    rasters, valid = make_scene(48, 48 * 5, holes=False)
    valid[Sensor.NDSM][:, 96:] = False
    run = run_told(request_for(toy_bundle, write_scene((rasters, valid)), tmp_path / "out"), Watcher())
    used = run["result"]["inferences"]
    tiles = run["tiling"]["tiles"]
    assert used["missing_rgir"] == 0
    assert used["full"] < tiles
    assert used["full"] + used["missing_ndsm"] <= tiles + 1, "only the tile on the border needs both graphs"
    (switch,) = run["result"]["switches"]
    assert switch["scenario"] == Scenario.MISSING_NDSM
    assert "ndsm valid in" in switch["reason"]


@pytest.mark.parametrize("blend", ["none", "hann"])
@pytest.mark.parametrize("stop_after", [1, 7, 26])
def test_resume_after_an_interrupt_ends_with_the_same_bytes(
    blend, stop_after, wide_bundle, write_scene, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("engine.stitcher.ACCUMULATOR_BYTES", 1)
    paths = write_scene(make_scene(230, 317))
    run_told(request_for(wide_bundle, paths, tmp_path / "whole", blend=blend), Watcher())
    stopped = tmp_path / "stopped"
    with pytest.raises(InterruptedRunError, match="resume=True"):
        run_told(request_for(wide_bundle, paths, stopped, blend=blend), Watcher(stop_after))
    assert [path.name for path in stopped.iterdir()] == [FOLDER]
    with pytest.raises(OutputError, match="unfinished run"):
        run_told(request_for(wide_bundle, paths, stopped, blend=blend), Watcher())
    watcher = Watcher()
    resumed = run_told(request_for(wide_bundle, paths, stopped, blend=blend, resume=True), watcher)
    assert watcher.first_tile > 0 or stop_after == 1 or blend == "hann"
    assert watcher.tiles < resumed["tiling"]["tiles"] or watcher.first_tile == 0
    for name in (*MAPS, "quicklook.png"):
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    whole = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert resumed["result"]["provenance_pixels"] == whole["result"]["provenance_pixels"]
    assert resumed["result"]["class_pixels"] == whole["result"]["class_pixels"]
    assert resumed["result"]["switches"] == whole["result"]["switches"]
    others = ["classes.qml", "provenance.qml", "run.json", "tiles.csv", "quicklook.png", "item.json"]
    assert sorted(path.name for path in stopped.iterdir()) == sorted([*MAPS, *others])


def test_resume_refuses_another_run(toy_bundle, write_scene, tmp_path) -> None:
    paths = write_scene(make_scene(150, 170))
    output = tmp_path / "out"
    with pytest.raises(InterruptedRunError):
        run_told(request_for(toy_bundle, paths, output), Watcher(2))
    with pytest.raises(ResumeError, match="halo_px was 8, now 4"):
        run_told(request_for(toy_bundle, paths, output, halo_px=4, resume=True), Watcher())
    write_scene(make_scene(150, 170, seed=2))
    with pytest.raises(ResumeError, match="inputs"):
        run_told(request_for(toy_bundle, paths, output, resume=True), Watcher())
    with pytest.raises(ResumeError, match="does not exist"):
        run_told(request_for(toy_bundle, paths, tmp_path / "new", resume=True), Watcher())


def test_results_that_exist_are_kept_unless_overwrite_is_given(toy_bundle, write_scene, tmp_path) -> None:
    paths = write_scene(make_scene(64, 64))
    output = tmp_path / "out"
    run_told(request_for(toy_bundle, paths, output), Watcher())
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    with pytest.raises(OutputError, match="overwrite=True"):
        run_told(request_for(toy_bundle, paths, output), Watcher())
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    run_told(request_for(toy_bundle, paths, output, overwrite=True), Watcher())
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} != before


def test_a_raster_truncated_on_disk_ends_the_run_and_nothing_is_published(toy_bundle, write_scene, tmp_path) -> None:
    paths = write_scene(make_scene(600, 600))
    size = paths[Sensor.RGIR].stat().st_size
    with paths[Sensor.RGIR].open("r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(EngineError) as caught:
        run_told(request_for(toy_bundle, paths, tmp_path / "out"), Watcher())
    assert caught.value.exit_code == 3
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {FOLDER}


def test_blending_refuses_a_halo_above_a_quarter_of_the_tile(toy_bundle, write_scene, tmp_path) -> None:
    with pytest.raises(UsageError, match="at most a quarter of the tile, 16 px; received 20"):
        run_told(
            request_for(toy_bundle, write_scene(make_scene(64, 64)), tmp_path / "out", blend="hann", halo_px=20),
            Watcher(),
        )


def test_run_json_accounts_for_every_pixel(toy_bundle, write_scene: Callable, tmp_path) -> None:
    scene = make_scene(149, 211)
    run_told(request_for(toy_bundle, write_scene(scene), tmp_path / "out"), Watcher())
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    _, _, provenance = toy_map(*scene)
    for source in Provenance:
        assert run["result"]["provenance_pixels"][source.name.lower()] == (provenance == source).sum()
    assert sum(run["result"]["class_pixels"].values()) == (provenance != Provenance.NONE).sum()
    assert run["bundle"]["sha256"] == toy_bundle.digest
    assert run["performance"]["tiles"] == run["tiling"]["tiles"]
