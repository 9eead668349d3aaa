"""Rasters that are mapped at another resolution, against GDAL's resampling of whole rasters."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine
from rasterio.warp import Resampling, reproject

import engine
from engine.backends.base import Output
from engine.contract.bands import ndsm_spec, rgir_spec
from engine.contract.bundle import NODATA_CLASS, Bundle, save_manifest
from engine.contract.errors import GridError, InterruptedRunError, UsageError
from engine.contract.sensors import Provenance, Scenario, Sensor
from engine.grid import Window
from engine.rasters.height_models import HeightModels
from engine.rasters.raster import SensorRasters
from engine.resampling import RasterAnswer, mean_of_valid, nearest, taps
from engine.resolution import Resolution
from engine.run import main
from tests.conftest import make_scene, toy_map, toy_probabilities
from tests.engine.runs import Watcher, request_for, run_told

MAPS = ("classes.tif", "confidence.tif", "provenance.tif")


def warped(values: NDArray, shape: tuple[int, int], how: Resampling, nodata: float | None = None) -> NDArray:
    """GDAL's resampling of [B, h, w] to another shape over the same ground."""
    out = np.full((len(values), *shape), np.nan if nodata is None else nodata, np.float64)
    height, width = values.shape[1:]
    reproject(
        values.astype(np.float64),
        out,
        src_transform=Affine.scale(shape[1] / width, shape[0] / height),
        dst_transform=Affine.identity(),
        src_crs="EPSG:3857",
        dst_crs="EPSG:3857",
        src_nodata=nodata,
        dst_nodata=nodata,
        resampling=how,
    )
    return out


@pytest.mark.parametrize("shape", [(32, 45), (25, 31), (7, 90), (64, 90), (100, 97), (130, 91)])
def test_resampling_is_gdals_average_and_bilinear(shape) -> None:
    values = np.random.default_rng(0).uniform(0, 255, (2, 64, 90))
    found = taps(90, shape[1]).along(taps(64, shape[0]).along(values, -2), -1)
    expected = values
    for axis, length in enumerate(shape):  # GDAL does both axes by one method
        size = (length, expected.shape[2]) if axis == 0 else (expected.shape[1], length)
        smaller = length < values.shape[axis + 1]
        expected = warped(expected, size, Resampling.average if smaller else Resampling.bilinear)
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_what_is_not_valid_has_no_part_in_a_mean() -> None:
    rng = np.random.default_rng(1)
    values, valid = rng.uniform(1, 255, (1, 60, 60)), rng.uniform(size=(60, 60)) < 0.4
    values[:, ~valid] = np.nan
    found, seen = mean_of_valid(values, valid, taps(60, 25), taps(60, 25))
    expected = warped(np.where(valid, values, -1), (25, 25), Resampling.average, nodata=-1)
    np.testing.assert_array_equal(seen, expected[0] != -1)
    np.testing.assert_allclose(found[:, seen], expected[:, seen], rtol=1e-4)


@pytest.mark.parametrize(("length", "resampled"), [(64, 32), (37, 64), (100, 31), (5, 5)])
def test_the_nearest_pixel_is_gdals(length, resampled) -> None:
    column = np.arange(resampled, dtype=np.float64)[None, :, None]
    expected = warped(column, (length, 1), Resampling.nearest)[0, :, 0]
    off = (2 * np.arange(length) + 1) * resampled % (2 * length) == 0  # a centre on an edge belongs to either
    np.testing.assert_array_equal(nearest(range(length), length, resampled)[~off], expected[~off])


@pytest.mark.parametrize("side", [20, 64, 83, 300])
def test_an_answer_is_resampled_before_the_most_probable_class_is_taken(side) -> None:
    rng = np.random.default_rng(side)
    probabilities = rng.dirichlet(np.ones(5), (64, 64)).transpose(2, 0, 1).astype(np.float32)
    how = Resampling.average if side < 64 else Resampling.bilinear
    expected = warped(probabilities, (side, side), how)
    answer = RasterAnswer({Output.PROBABILITIES: probabilities}, side)
    at = np.s_[3 : side - 1, 2:side]
    np.testing.assert_allclose(answer[Output.PROBABILITIES][:, *at], expected[:, *at], atol=1e-5)
    first, second = np.sort(expected, axis=0)[-1:-3:-1]
    clear = (first - second > 1e-4)[at]
    np.testing.assert_array_equal(answer[Output.CLASSES][at][clear], expected.argmax(axis=0)[at][clear])
    assert np.abs(answer[Output.CONFIDENCE][at] - expected.max(axis=0)[at] * 255).max() < 0.51


def test_a_window_is_the_average_of_each_sensors_pixels(write_scene) -> None:
    rasters, valid = make_scene(200, 230)
    specs = {Sensor.RGIR: rgir_spec(), Sensor.NDSM: ndsm_spec()}
    window = Window(row=40, col=96, height=128, width=128)
    with SensorRasters.open(write_scene((rasters, valid)), specs) as opened:
        out = {
            sensor: replace(each, values=each.values[:, :64, :64], valid=each.valid[:64, :64])
            for sensor, each in opened.read(0, 0, 64, 64).items()
        }
        seen, errors = opened.read_into(window, out)
    assert not errors
    inside = window.within(Window(row=0, col=0, height=200, width=230))
    for sensor, each in seen.items():
        mine = valid[sensor][inside]
        blocks = np.where(mine, rasters[sensor][:, *inside].astype(np.float64), np.nan).reshape(-1, 64, 2, 64, 2)
        some = mine.reshape(64, 2, 64, 2).any(axis=(1, 3))
        np.testing.assert_array_equal(each.valid, some)
        assert each.whole == mine.all()
        np.testing.assert_array_equal(np.ones_like(mine) if each.whole else each.raster_valid, mine)
        expected = np.nanmean(np.where(some[:, None, :, None], blocks, 0), axis=(2, 4))
        tolerance = 0.5 if sensor is Sensor.RGIR else 1e-4
        assert np.abs(each.values - expected)[:, some].max() <= tolerance


@pytest.mark.parametrize(
    ("gsd_m", "scale"), [(0.05, 2.0), (0.092, 1.0), (0.2, 1.0), (0.65, 1.0), (1.2, 0.5), (0.001, 8.0), (100, 1 / 8)]
)
def test_a_raster_outside_the_range_takes_its_nearer_end(gsd_m, scale) -> None:
    assert Resolution(finest_m=0.1, coarsest_m=0.6).scale(gsd_m) == pytest.approx(scale)


@pytest.mark.parametrize(
    ("gsd_m", "smallest", "scale"),
    [(0.3, 0.7, 0.7), (0.3, 0.2, 1 / 3), (0.3, 3.0, 1.0), (0.05, 0.5, 2.0), (1.2, 0.3, 0.3), (0.3, 0.95, 1.0)],
)
def test_a_raster_smaller_than_a_tile_fills_it(gsd_m, smallest, scale, toy_bundle) -> None:
    manifest = replace(toy_bundle.manifest, best_gsd_m=(0.1, 0.6))
    assert Resolution.of("auto", manifest).scale(gsd_m, smallest) == pytest.approx(scale)
    assert Resolution.of(gsd_m, manifest).scale(gsd_m, smallest) == 1.0  # what is asked for is met


@pytest.fixture
def coarse_bundle(toy_bundle: Bundle, tmp_path: Path) -> Bundle:
    """The pixelwise graphs, best at 0.4 to 0.5 m; scenes have 0.2 m."""
    root = tmp_path / "coarse"
    root.mkdir()
    for path in toy_bundle.root.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    save_manifest(replace(toy_bundle.manifest, best_gsd_m=(0.4, 0.5)), root)
    return Bundle.load(root)


def maps_of(output: Path) -> list[NDArray[np.uint8]]:
    maps = []
    for name in MAPS:
        with rasterio.open(output / name) as file:
            maps.append(file.read(1))
    return maps


@pytest.mark.parametrize("blend", ["none", "hann"])
@pytest.mark.parametrize("alive", [{Sensor.RGIR}, {Sensor.NDSM}, set(Sensor)])
def test_a_map_is_that_of_the_coarser_raster_on_the_grid_of_the_finer(
    blend, alive, coarse_bundle, write_scene, tmp_path
) -> None:
    scene = make_scene(300, 434, holes=False)
    paths = {sensor: path for sensor, path in write_scene(scene).items() if sensor in alive}
    run = run_told(request_for(coarse_bundle, paths, tmp_path / "out", blend=blend), Watcher())
    assert run["tiling"] == {
        **{"tiles": run["tiling"]["tiles"], "tile_px": 128, "halo_px": 16, "blend": blend},
        "mapped_gsd_m": pytest.approx(0.4),
    }
    halves = {
        sensor: scene[0][sensor].reshape(-1, 150, 2, 217, 2).mean(axis=(2, 4), dtype=np.float64) for sensor in alive
    }
    if Sensor.RGIR in alive:
        halves[Sensor.RGIR] = np.rint(halves[Sensor.RGIR])
    scenario = next(each for each in Scenario if each.sensors == alive)
    expected = warped(toy_probabilities(scenario, halves, 0), (300, 434), Resampling.bilinear)
    classes, confidence, provenance = maps_of(tmp_path / "out")
    assert (provenance == scenario.provenance).all()
    assert (classes == expected.argmax(axis=0)).mean() > 0.999
    assert np.abs(confidence - expected.max(axis=0) * 255).max() < 2


@pytest.mark.parametrize("gsd", [0.4, 0.31, 0.13])
def test_every_pixel_keeps_its_own_nodata(gsd, toy_bundle, write_scene, tmp_path) -> None:
    rasters, valid = make_scene(290, 301)
    valid[Sensor.RGIR][100:160, 200:] = False
    valid[Sensor.NDSM][100:140, 220:] = False
    run_told(request_for(toy_bundle, write_scene((rasters, valid)), tmp_path / "out", gsd=gsd), Watcher())
    classes, _, provenance = maps_of(tmp_path / "out")
    expected = toy_map(rasters, valid)[2]
    np.testing.assert_array_equal(provenance, expected)
    np.testing.assert_array_equal(classes == NODATA_CLASS, expected == Provenance.NONE)


@pytest.mark.slow
@pytest.mark.parametrize("blend", ["none", "hann"])
def test_a_resumed_run_ends_with_the_same_bytes(blend, coarse_bundle, write_scene, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("engine.stitcher.ACCUMULATOR_BYTES", 1)
    paths = write_scene(make_scene(230, 700))
    run_told(request_for(coarse_bundle, paths, tmp_path / "whole", blend=blend), Watcher())
    with pytest.raises(InterruptedRunError):
        run_told(request_for(coarse_bundle, paths, tmp_path / "out", blend=blend), Watcher(7))
    watcher = Watcher()
    resumed = run_told(request_for(coarse_bundle, paths, tmp_path / "out", blend=blend, resume=True), watcher)
    assert watcher.tiles < resumed["tiling"]["tiles"]
    for name in (*MAPS, "quicklook.png"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_raster_inside_the_range_is_mapped_as_ever(toy_bundle, coarse_bundle, write_scene, tmp_path) -> None:
    paths = write_scene(make_scene(150, 170))
    run_told(request_for(toy_bundle, paths, tmp_path / "plain"), Watcher())
    run_told(request_for(coarse_bundle, paths, tmp_path / "off", gsd="off"), Watcher())
    for name in (*MAPS, "quicklook.png"):
        plain = (tmp_path / "plain" / name).read_bytes()
        assert plain == (tmp_path / "off" / name).read_bytes(), name


def test_two_height_models_are_subtracted_and_then_averaged(toy_bundle, write_scene, tmp_path) -> None:
    rasters, valid = make_scene(130, 140, holes=False)
    ndsm = write_scene((rasters, valid))[Sensor.NDSM]
    with rasterio.open(ndsm) as file:
        profile, heights = file.profile, file.read(1)
    for name, values in (("dsm", heights + 100), ("dtm", np.full_like(heights, 100))):
        with rasterio.open(tmp_path / f"{name}.tif", "w", **profile) as file:
            file.write(values, 1)
            file.units = ["m"]
    models = HeightModels(dsm=tmp_path / "dsm.tif", dtm=tmp_path / "dtm.tif")
    for name, given in (("one", ndsm), ("two", models)):
        run_told(request_for(toy_bundle, {Sensor.NDSM: given}, tmp_path / name, gsd=0.5), Watcher())
    for one, two in zip(maps_of(tmp_path / "one"), maps_of(tmp_path / "two"), strict=True):
        assert (one == two).mean() > 0.999


def test_the_library_takes_it_too(coarse_bundle, write_scene, tmp_path) -> None:
    scene = make_scene(200, 210)
    paths = write_scene(scene)
    run_told(request_for(coarse_bundle, paths, tmp_path / "out"), Watcher())
    with engine.load(coarse_bundle.root, precision="fp32") as model:
        whole = model.segment(rgir=paths[Sensor.RGIR], ndsm=paths[Sensor.NDSM], watch=False)
        streamed = list(model.stream([{"rgir": paths[Sensor.RGIR], "ndsm": paths[Sensor.NDSM]}] * 2, watch=False))
        with pytest.raises(GridError, match="must say its ground sampling distance"):
            model.segment(rgir=scene[0][Sensor.RGIR], gsd=0.4)
        assert model.segment(rgir=scene[0][Sensor.RGIR]).record.tiling.mapped_gsd_m is None
    assert whole.record.tiling.mapped_gsd_m == pytest.approx(0.4)
    for result in (whole, *streamed):
        for mine, map_ in zip(
            (result.classes, result.confidence, result.provenance), maps_of(tmp_path / "out"), strict=True
        ):
            np.testing.assert_array_equal(mine, map_)


@pytest.mark.parametrize(
    ("arguments", "exit_code", "says"),
    [
        (["--gsd", "fine"], 2, "auto, off or metres such as 0.1 are expected, received 'fine'"),
        (["--gsd", "-1"], 2, "--gsd must be auto, off or a positive number of metres, received -1"),
        (["--gsd", "40"], 3, "a raster of 0.2 m can be mapped at 0.025 to 1.6 m; received 40"),
    ],
)
def test_what_cannot_be_met_is_told_in_one_line(arguments, exit_code, says, toy_bundle, write_scene, tmp_path, capsys):
    paths = write_scene(make_scene(64, 64))
    given = ["--rgir", str(paths[Sensor.RGIR]), "--bundle", str(toy_bundle.root), "--output", str(tmp_path / "out")]
    try:
        code = main([*given, *arguments])
    except SystemExit as exit_:
        code = exit_.code
    error = capsys.readouterr().err
    assert (code, says in error, (tmp_path / "out").exists()) == (exit_code, True, False), error


def test_the_range_must_be_one(toy_bundle) -> None:
    with pytest.raises(ValueError, match=r"best_gsd_m must be \(finest, coarsest\)"):
        replace(toy_bundle.manifest, best_gsd_m=(0.5, 0.1))
    with pytest.raises(UsageError, match="positive number"):
        Resolution(finest_m=0, coarsest_m=0)


def test_a_dry_run_says_what_would_be_mapped(coarse_bundle, write_scene, capsys) -> None:
    paths = write_scene(make_scene(64, 64))
    assert main(["--rgir", str(paths[Sensor.RGIR]), "--bundle", str(coarse_bundle.root), "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tiling"]["mapped_gsd_m"] == pytest.approx(0.4)
