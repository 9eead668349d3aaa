"""The ground that is found below a surface model, against the ground that was put there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from engine.contract.bands import ndsm_spec
from engine.contract.errors import GridError, RasterFormatError, UsageError
from engine.contract.sensors import Sensor
from engine.rasters.height_models import HeightModels
from engine.rasters.raster import SensorRasters
from engine.run import main

SPECS = {Sensor.NDSM: ndsm_spec()}
NDSM = Sensor.NDSM


def write(
    path: Path, heights: np.ndarray, *, crs: str | None = "EPSG:2154", nodata: float | None = None
) -> HeightModels:
    height, width = heights.shape
    place = {"crs": crs, "transform": from_origin(650000, 6860000, 0.5, 0.5)}
    shape = {"count": 1, "height": height, "width": width, "dtype": "float32", "nodata": nodata}
    with rasterio.open(path, "w", driver="GTiff", **shape, **place) as file:
        file.write(heights.astype(np.float32), 1)
        file.units = ["m"]
    return HeightModels(dsm=path, dtm=None)


def village(side: int = 160) -> tuple[np.ndarray, np.ndarray]:
    """A hill and what stands on it: houses, a tall hall, and trees."""
    rng = np.random.default_rng(0)
    down, across = np.mgrid[:side, :side] * 0.5
    hill = 100 + 0.08 * across + 5 * np.sin(down / 25)
    objects = np.zeros((side, side))
    for row in range(20, side - 30, 50):
        for col in range(20, side - 30, 40):
            objects[row : row + 20, col : col + 16] = rng.uniform(4, 9)
    objects[90:125, 90:140] = 14
    objects[rng.random((side, side)) < 0.02] = 6
    return hill, objects


def read(models: HeightModels) -> tuple[np.ndarray, np.ndarray, dict, dict]:
    with SensorRasters.open({NDSM: models}, SPECS) as rasters:
        seen = rasters.read(0, 0, rasters.grid.height, rasters.grid.width)[NDSM]
        return seen.values[0].copy(), seen.valid.copy(), rasters.describe()["ndsm"], rasters.identity()["ndsm"]


def test_heights_stand_on_the_hill_that_was_put_below_them(tmp_path) -> None:
    pytest.importorskip("CSF")
    hill, objects = village()
    surface = hill + objects
    surface[60:80, 20:50] = -9999
    found, valid, told, identity = read(write(tmp_path / "dsm.tif", surface, nodata=-9999))
    np.testing.assert_array_equal(valid, surface != -9999)
    off = np.abs(found - objects)[valid]
    tall = objects[valid] > 2
    assert np.median(off[~tall]) < 0.25
    assert np.median(off[tall]) < 0.5
    assert np.percentile(off, 95) < 1.5
    assert told["minus"]["path"] == ""
    assert told["minus"]["gsd_m"] == pytest.approx(1.0)
    again, _, _, same = read(HeightModels(dsm=tmp_path / "dsm.tif", dtm=None))
    np.testing.assert_array_equal(found, again)
    assert identity == same


def test_a_surface_without_ground_is_told(tmp_path) -> None:
    pytest.importorskip("CSF")
    with pytest.raises(RasterFormatError, match="holds none"):
        read(write(tmp_path / "empty.tif", np.full((50, 50), -9999), nodata=-9999))
    with pytest.raises(GridError, match="needs a surface model in a known CRS"):
        read(write(tmp_path / "nowhere.tif", village()[0], crs=None))


def test_a_missing_library_names_its_extra(tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "CSF", None)
    with pytest.raises(UsageError, match=r"pip install 'gemmnet-edge\[ground\]'"):
        read(write(tmp_path / "dsm.tif", village()[0]))


def test_the_command_takes_a_surface_alone(toy_bundle, tmp_path, capfd) -> None:
    models = write(tmp_path / "dsm.tif", np.add(*village(100)))
    given = ["--bundle", str(toy_bundle.root), "--output", str(tmp_path / "out"), "--dry-run"]
    assert main([*given, "--dsm", str(models.dsm)]) == 2
    assert "add --dtm, or --ground auto to find it" in capfd.readouterr().err
    assert main([*given, "--ground", "auto"]) == 2
    assert "add --dsm" in capfd.readouterr().err
    assert main([*given, "--ground", "auto", "--dsm", "a.tif", "--dtm", "b.tif"]) == 2
    assert "leave one of them away" in capfd.readouterr().err
    pytest.importorskip("CSF")
    assert main([*given, "--dsm", str(models.dsm), "--ground", "auto"]) == 0
    assert json.loads(capfd.readouterr().out)["inputs"]["ndsm"]["minus"]["path"] == ""  # the library kept quiet
