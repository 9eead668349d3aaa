"""Height above ground as DSM minus DTM: rasterio's warp and numpy as oracles; pairs that make no sense are refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from engine.contract.errors import (
    GridError,
    InterruptedRunError,
    OutputError,
    RasterFormatError,
    RasterOpenError,
    ResumeError,
    UsageError,
)
from engine.contract.sensors import Sensor
from engine.rasters.georeference import gdal_environment
from engine.rasters.height_models import HeightModels, vertical_datum
from engine.rasters.raster import SensorRasters
from engine.run import main
from tests.conftest import make_scene
from tests.engine.runs import Watcher, request_for, run_told
from tests.engine.test_raster import LAMBERT, NORTH_UP, PLACES, SPECS, colours, heights, on_the_rgir_grid, save

FRENCH, EGM96 = CRS.from_user_input("EPSG:2154+5720"), CRS.from_user_input("EPSG:2154+5773")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with gdal_environment():
        yield


def ground(height: int = 247, width: int = 250) -> NDArray[np.float32]:
    """A slope from 300 m up, with waves that bilinear resampling can follow."""
    rows, cols = np.mgrid[:height, :width]
    return (300 + rows / 20 + cols / 40 + np.sin(cols / 31))[None].astype(np.float32)


def difference(
    dsm: Path, dtm: Path, rgir: Path | None = None, **options: Any
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """What the network would see of nDSM on the whole grid."""
    paths: dict[Sensor, Any] = {Sensor.NDSM: HeightModels(dsm=dsm, dtm=dtm)}
    if rgir is not None:
        paths[Sensor.RGIR] = rgir
    with SensorRasters.open(paths, SPECS, **options) as rasters:
        seen = rasters.read(0, 0, rasters.grid.height, rasters.grid.width)[Sensor.NDSM]
    return seen.values[0], seen.valid


def test_on_one_grid_it_is_the_difference_and_nodata_where_either_has_none(tmp_path: Path) -> None:
    surface, terrain = ground() + heights(), np.rint(ground() * 100).astype(np.int32)
    expected = surface - terrain * np.float32(0.01)
    surface[0, 20:40, 30:60], surface[0, 200, 7] = -9999, math.nan
    terrain[0, 30:70, 50:90] = 0
    values, valid = difference(
        save(tmp_path / "dsm.tif", surface, nodata=-9999),
        save(tmp_path / "dtm.tif", terrain, nodata=0, scales=[0.01], units=["m"]),
    )
    empty = np.zeros(valid.shape, bool)
    empty[20:40, 30:60] = empty[200, 7] = empty[30:70, 50:90] = True
    np.testing.assert_array_equal(valid, ~empty)
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values[valid], expected[0][valid], atol=1e-4)  # float32 at 300 m: 3e-5


@pytest.mark.parametrize("place", ["shifted by a fraction", "twice as coarse", "rotated"])
def test_grids_of_their_own_are_warped_onto_that_of_the_rgir(tmp_path: Path, place: str) -> None:
    transform, crs = PLACES[place]
    coarse = NORTH_UP @ Affine.translation(20, 10) @ Affine.scale(3)
    surface, terrain = ground() + heights(), ground(90, 90)
    surface[0, 100:140, 60:90] = math.nan
    oracle = on_the_rgir_grid(surface, transform, crs, NORTH_UP, (247, 250)) - on_the_rgir_grid(
        terrain, coarse, LAMBERT, NORTH_UP, (247, 250)
    )
    values, valid = difference(
        save(tmp_path / "dsm.tif", surface, transform=transform, nodata=math.nan),
        save(tmp_path / "dtm.tif", terrain, transform=coarse),
        save(tmp_path / "rgir.tif", colours()),
    )
    np.testing.assert_array_equal(valid, np.isfinite(oracle))
    assert 0.05 < valid.mean() < 0.99
    # twice the tolerance of one warped raster, whose reason stands in test_raster.py
    np.testing.assert_allclose(values[valid], oracle[valid], atol=0.2)


def test_without_rgir_the_terrain_is_warped_onto_the_surface(tmp_path: Path) -> None:
    fine, coarse = NORTH_UP @ Affine.translation(60, 40), NORTH_UP @ Affine.scale(2)
    dsm = save(tmp_path / "dsm.tif", ground(120, 130) + 4, transform=fine)
    dtm = save(tmp_path / "dtm.tif", ground(), transform=coarse)
    with SensorRasters.open({Sensor.NDSM: HeightModels(dsm=dsm, dtm=dtm)}, SPECS) as rasters:
        assert (rasters.grid.width, rasters.grid.height, rasters.grid.transform) == (130, 120, fine)
        told = rasters.describe()["ndsm"]
        values = rasters.read(0, 0, 120, 130)[Sensor.NDSM].values[0]
    assert (told["path"], told["warped"], told["minus"]["path"]) == (str(dsm), False, str(dtm))
    assert told["minus"]["warped"]
    oracle = ground(120, 130)[0] + 4 - on_the_rgir_grid(ground(), coarse, LAMBERT, fine, (120, 130))
    np.testing.assert_allclose(values, oracle, atol=0.1)


def test_a_window_equals_that_of_the_same_ndsm_on_file_beyond_the_border_too(tmp_path: Path) -> None:
    dsm, dtm = save(tmp_path / "dsm.tif", ground() + heights()), save(tmp_path / "dtm.tif", ground())
    ndsm = save(tmp_path / "ndsm.tif", ground() + heights() - ground())
    with (
        SensorRasters.open({Sensor.NDSM: HeightModels(dsm=dsm, dtm=dtm)}, SPECS) as made,
        SensorRasters.open({Sensor.NDSM: ndsm}, SPECS) as filed,
    ):
        for window in ((-30, 100, 64, 64), (200, 220, 90, 70)):
            for got, expected in zip(made.read(*window).values(), filed.read(*window).values(), strict=True):
                np.testing.assert_array_equal(got.values, expected.values)
                np.testing.assert_array_equal(got.valid, expected.valid)


# ------------------------------------------------------------------------------------------------ what is refused


def test_swapped_models_are_refused_and_flat_ground_is_not(tmp_path: Path) -> None:
    dsm, dtm = save(tmp_path / "dsm.tif", ground() + heights()), save(tmp_path / "dtm.tif", ground())
    with pytest.raises(RasterFormatError, match=r"the median of .*dtm.tif minus .*dsm.tif is -\d.* m, .*: swap"):
        difference(dtm, dsm)
    noise = np.random.default_rng(0).normal(0, 0.2, (1, 247, 250)).astype(np.float32)
    difference(save(tmp_path / "field.tif", ground() + noise), dtm)


def test_swapped_models_of_open_country_are_refused(tmp_path: Path) -> None:
    """Where most of the ground is bare, the median is 0 either way."""
    trees = np.zeros((1, 247, 250), np.float32)
    trees[:, ::3, ::3] = 15
    dsm, dtm = save(tmp_path / "dsm.tif", ground() + trees), save(tmp_path / "dtm.tif", ground())
    difference(dsm, dtm)
    with pytest.raises(RasterFormatError, match=r"is 0.00 m, and 100% of what differs by more than 1 m lies below"):
        difference(dtm, dsm)
    trees[:, ::30, ::30] = -3  # a pit here and there
    difference(save(tmp_path / "pits.tif", ground() + trees), dtm)


def test_models_that_do_not_overlap_each_other_are_refused(tmp_path: Path) -> None:
    rgir = save(tmp_path / "rgir.tif", colours())
    west = save(tmp_path / "dsm.tif", ground(247, 100))
    east = save(tmp_path / "dtm.tif", ground(247, 100), transform=NORTH_UP @ Affine.translation(120, 0))
    for others in ((), (rgir,)):
        with pytest.raises(GridError, match=r"must overlap.*dsm.tif covers.*dtm.tif covers"):
            difference(west, east, *others)


@pytest.mark.parametrize("with_rgir", [False, True])
def test_heights_that_count_from_different_surfaces_are_refused(tmp_path: Path, with_rgir: bool) -> None:
    rgir = [save(tmp_path / "rgir.tif", colours())] if with_rgir else []
    dsm = save(tmp_path / "dsm.tif", ground() + heights(), crs=FRENCH)
    with pytest.raises(RasterFormatError, match=r"IGN69, .*dtm.tif from EGM96 geoid"):
        difference(dsm, save(tmp_path / "dtm.tif", ground(), crs=EGM96), *rgir)
    values, _ = difference(dsm, save(tmp_path / "same.tif", ground(), crs=FRENCH), *rgir)
    np.testing.assert_allclose(values, heights()[0], atol=1e-4)  # nothing is shifted for the sake of a datum


def test_a_datum_that_only_one_of_them_names_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dsm = save(tmp_path / "dsm.tif", ground() + heights(), crs=FRENCH)
    difference(dsm, save(tmp_path / "dtm.tif", ground()))
    assert "IGN69" in caplog.text
    caplog.clear()
    difference(save(tmp_path / "high.tif", ground() + 48), save(tmp_path / "dtm.tif", ground()))
    assert "is 48.0 m: see that both count heights from the same datum" in caplog.text


@pytest.mark.parametrize(
    ("crs", "datum"),
    [
        ("EPSG:2154", None),
        ("EPSG:4979", "the ellipsoid of World Geodetic System 1984"),
        ("EPSG:4326+3855", "EGM2008 geoid"),
        ('LOCAL_CS["site",UNIT["metre",1]]', None),
    ],
)
def test_what_heights_count_from_is_read_from_the_crs(crs: str, datum: str | None) -> None:
    found = vertical_datum(CRS.from_user_input(crs))
    assert (found and found.removesuffix(" ensemble")) == datum  # what PROJ calls it since EPSG 10


def test_units_that_are_not_known_are_refused_for_each_of_them(tmp_path: Path) -> None:
    good = save(tmp_path / "good.tif", ground() + heights())
    whole = np.rint(ground()).astype(np.int16)
    for bad, what in (
        (save(tmp_path / "feet.tif", ground(), units=["ft"]), "dtm must be in metres"),
        (save(tmp_path / "whole.tif", whole), "dtm in whole numbers needs a scale"),
    ):
        with pytest.raises(RasterFormatError, match=rf"{what}.*gdal_edit.py -units m -scale"):
            difference(good, bad)
    values, _ = difference(good, save(tmp_path / "metres.tif", whole, units=["m"]))
    np.testing.assert_allclose(values, (ground() + heights() - whole)[0], atol=1e-4)
    with pytest.raises(UsageError, match="ndsm_scale_m is of an nDSM"):
        difference(good, good, ndsm_scale_m=0.1)
    with pytest.raises(RasterOpenError, match=r"dsm raster .*none.tif does not exist: check the path given as dsm"):
        difference(tmp_path / "none.tif", good)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--dsm a.tif", "add --dtm"),
        ("--dtm a.tif", "add --dsm"),
        ("--dsm a.tif --dtm b.tif --ndsm c.tif", "pass those two, or --ndsm"),
        ("--live . --dsm a.tif", "leave --dsm away"),
    ],
)
def test_options_that_contradict_each_other_end_with_one_line(
    options: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options.split()) == 2
    line = capsys.readouterr().err
    assert told in line
    assert line.count("\n") == 1


# ------------------------------------------------------------------------------------------------ runs


def test_a_run_maps_as_from_the_ndsm_on_file_names_both_and_resumes(toy_bundle, write_scene, tmp_path: Path) -> None:
    scene = make_scene(150, 170, holes=False)
    paths: dict[Sensor, Any] = write_scene(scene)
    place = {"transform": Affine(0.2, 0, 650000, 0, -0.2, 6860000)}
    terrain = np.floor(ground(150, 170))
    surface = terrain + np.rint(scene[0][Sensor.NDSM] * 64) / 64  # so that float32 subtracts exactly
    models = HeightModels(
        dsm=save(tmp_path / "dsm.tif", surface, **place), dtm=save(tmp_path / "dtm.tif", terrain, **place)
    )
    filed = {**paths, Sensor.NDSM: save(tmp_path / "ndsm.tif", surface - terrain, **place)}
    made = {**paths, Sensor.NDSM: models}
    run_told(request_for(toy_bundle, filed, tmp_path / "filed", blend="none"), Watcher())
    with pytest.raises(InterruptedRunError):
        run_told(request_for(toy_bundle, made, tmp_path / "made", blend="none"), Watcher(7))
    told = run_told(request_for(toy_bundle, made, tmp_path / "made", blend="none", resume=True), Watcher())
    assert told["resumed_at_tile"] > 0
    assert told["inputs"]["ndsm"]["path"] == str(models.dsm)
    assert told["inputs"]["ndsm"]["minus"]["path"] == str(models.dtm)
    assert json.loads((tmp_path / "made" / "run.json").read_text())["inputs"] == told["inputs"]
    for name in ("classes.tif", "confidence.tif", "provenance.tif"):
        assert (tmp_path / "made" / name).read_bytes() == (tmp_path / "filed" / name).read_bytes(), name


@pytest.mark.parametrize("changed", ["dsm", "dtm"])
def test_resume_refuses_another_file_of_either(toy_bundle, write_scene, tmp_path: Path, changed: str) -> None:
    paths: dict[Sensor, Any] = write_scene(make_scene(150, 170, holes=False))
    place = {"transform": Affine(0.2, 0, 650000, 0, -0.2, 6860000)}
    models = {
        "dsm": save(tmp_path / "dsm.tif", ground(150, 170) + 3, **place),
        "dtm": save(tmp_path / "dtm.tif", ground(150, 170), **place),
    }
    paths[Sensor.NDSM] = HeightModels(**models)
    with pytest.raises(InterruptedRunError):
        run_told(request_for(toy_bundle, paths, tmp_path / "out"), Watcher(2))
    save(models[changed], ground(150, 170) + 2, **place)
    with pytest.raises(ResumeError, match="inputs"):
        run_told(request_for(toy_bundle, paths, tmp_path / "out", resume=True), Watcher())


def test_a_model_is_not_replaced_by_the_maps_made_of_it(toy_bundle, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    dtm = save(tmp_path / "out" / "classes.tif", ground())
    paths: dict[Sensor, Any] = {Sensor.NDSM: HeightModels(dsm=save(tmp_path / "dsm.tif", ground() + 3), dtm=dtm)}
    before = dtm.read_bytes()
    with pytest.raises(OutputError):
        run_told(request_for(toy_bundle, paths, tmp_path / "out", overwrite=True), Watcher())
    assert dtm.read_bytes() == before
