"""``--probabilities``: the toy graphs evaluated on the whole raster are the oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

import engine
from engine.contract.errors import InterruptedRunError, ResumeError
from engine.contract.sensors import Scenario, Sensor
from tests.conftest import CLASSES, Scene, make_scene, toy_probabilities
from tests.engine.runs import Watcher, request_for, run_told

NAME = "probabilities.tif"


def expected(scene: Scene) -> np.ndarray:
    """What each pixel's graph answers, [C, H, W]; NaN where no sensor saw anything."""
    rasters, valid = scene
    found = np.full((CLASSES, *valid[Sensor.RGIR].shape), np.nan, np.float32)
    for scenario in Scenario:
        mine = np.logical_and.reduce(
            [valid[sensor] if sensor in scenario.sensors else ~valid[sensor] for sensor in Sensor]
        )
        found[:, mine] = toy_probabilities(scenario, rasters, 0)[:, mine]
    return found


@pytest.mark.parametrize("blend", ["none", "hann"])
def test_each_band_is_the_probability_of_its_class(blend, toy_bundle, write_scene, tmp_path: Path) -> None:
    scene = make_scene(149, 211)
    run_told(request_for(toy_bundle, write_scene(scene), tmp_path / "out", blend=blend, probabilities=True))
    with rasterio.open(tmp_path / "out" / NAME) as file:
        values = file.read(masked=True)
        assert file.descriptions == tuple(f"class {index}" for index in range(CLASSES))
        assert (file.nodata, set(file.scales), file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"]) == (255, {1 / 254}, "COG")
        found = values * np.array(file.scales)[:, None, None]
    oracle = expected(scene)
    np.testing.assert_array_equal(np.ma.getmaskarray(values), np.isnan(oracle))
    # half a step of rounding, and what float32 loses in sums of weighted tiles
    assert np.abs(found - np.ma.masked_invalid(oracle)).max() < 0.5 / 254 + 1e-5
    with rasterio.open(tmp_path / "out" / "classes.tif") as file:
        classes = np.ma.masked_equal(file.read(1), 255)
    best = np.take_along_axis(values, classes.filled(0)[None].astype(int), 0)[0]
    assert (best == values.max(axis=0))[~classes.mask].all(), "the class of the map has the largest probability"


def test_a_resumed_run_ends_with_the_same_probabilities(toy_bundle, write_scene, tmp_path: Path) -> None:
    paths, stopped = write_scene(make_scene(149, 211)), tmp_path / "stopped"
    run_told(request_for(toy_bundle, paths, tmp_path / "whole", probabilities=True))
    with pytest.raises(InterruptedRunError):
        run_told(request_for(toy_bundle, paths, stopped, probabilities=True), Watcher(7))
    with pytest.raises(ResumeError, match="probabilities was True, now False"):
        run_told(request_for(toy_bundle, paths, stopped, resume=True))
    run_told(request_for(toy_bundle, paths, stopped, probabilities=True, resume=True))
    assert (stopped / NAME).read_bytes() == (tmp_path / "whole" / NAME).read_bytes()


def test_probabilities_of_an_older_map_do_not_stay(toy_bundle, write_scene, tmp_path: Path) -> None:
    paths, output = write_scene(make_scene(64, 64)), tmp_path / "out"
    run_told(request_for(toy_bundle, paths, output, probabilities=True))
    assert (output / NAME).exists()
    run_told(request_for(toy_bundle, paths, output, overwrite=True))
    assert not (output / NAME).exists()


@pytest.mark.parametrize("blend", ["none", "hann"])
def test_the_face_keeps_and_saves_what_a_run_writes(blend, toy_bundle, write_scene, tmp_path: Path) -> None:
    paths = write_scene(make_scene(149, 211))
    run_told(request_for(toy_bundle, paths, tmp_path / "run", blend=blend, probabilities=True, backend="openvino"))
    with engine.load(toy_bundle.root, backend="openvino", precision="fp32") as model:
        named = {sensor.value: path for sensor, path in paths.items()}
        assert model.segment(**named, watch=False, blend=blend).probabilities is None
        result = model.segment(**named, watch=False, blend=blend, probabilities=True)
    with rasterio.open(tmp_path / "run" / NAME) as file:
        np.testing.assert_array_equal(result.probabilities, file.read())
    result.save(tmp_path / "map")
    assert (tmp_path / "map" / NAME).read_bytes() == (tmp_path / "run" / NAME).read_bytes()
