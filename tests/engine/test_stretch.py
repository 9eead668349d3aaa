"""Imagery of more than 8 bits, against numpy's percentiles of the whole raster."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.transform import from_origin

import engine
from engine.contract.bands import rgir_spec
from engine.contract.errors import RasterFormatError, UsageError
from engine.contract.sensors import Sensor
from engine.rasters.raster import SensorRasters
from engine.rasters.stretch import Stretch, parse_stretch
from engine.run import main
from tests.engine.runs import Watcher, live_request, request_for, run_told

SPECS = {Sensor.RGIR: rgir_spec()}
RANGES = "0:4000,100:3000,50:2500"


def write(path: Path, values: NDArray, *, nodata: float | None = None, overviews: bool = False) -> Path:
    count, height, width = values.shape
    shape = {"count": count, "height": height, "width": width}
    place = {"crs": "EPSG:2154", "transform": from_origin(650000, 6860000, 0.2, 0.2)}
    with rasterio.open(
        path, "w", driver="GTiff", dtype=values.dtype, nodata=nodata, tiled=True, **shape, **place
    ) as file:
        file.write(values)
        if overviews:
            file.build_overviews([2, 4, 8, 16], Resampling.nearest)
    return path


def scene(dtype: str, height: int = 90, width: int = 110) -> NDArray:
    rng = np.random.default_rng(0)
    values = rng.gamma(3, 300, (3, height, width)) * np.array([2.0, 1.0, 0.7])[:, None, None] + 50
    return values.astype(dtype)


def read(path: Path | NDArray, stretch: Stretch) -> tuple[NDArray, NDArray, dict]:
    with SensorRasters.open({Sensor.RGIR: path}, SPECS, stretch=stretch) as rasters:
        seen = rasters.read(0, 0, rasters.grid.height, rasters.grid.width)[Sensor.RGIR]
        return seen.values, seen.valid, rasters.describe()["rgir"]


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("percent", [(2, 98), (0, 100), (5, 90.5)])
def test_percentiles_of_each_band_become_0_and_255(dtype, percent, tmp_path) -> None:
    values = scene(dtype)
    values[:, 3:9, 5:20] = np.nan if dtype.startswith("float") else -1 if dtype == "int16" else 0
    nodata = None if dtype.startswith("float") else float(values[0, 3, 5])
    found, valid, told = read(write(tmp_path / "a.tif", values, nodata=nodata), Stretch(percent=percent))
    hole = np.zeros(valid.shape, bool)
    hole[3:9, 5:20] = True
    np.testing.assert_array_equal(valid, ~hole)
    low, high = np.percentile(values[:, ~hole].astype(np.float64), percent, axis=1)
    np.testing.assert_allclose(told["stretch"], np.stack([low, high], axis=1), rtol=1e-6)
    expected = ((values.astype(np.float64) - low[:, None, None]) / (high - low)[:, None, None] * 255).clip(0, 255)
    assert np.abs(found - expected)[:, ~hole].max() < 0.501


def test_an_array_is_stretched_as_a_file_is(tmp_path) -> None:
    values = scene("uint16")
    from_file, _, told = read(write(tmp_path / "a.tif", values), Stretch())
    from_array, _, same = read(values, Stretch())
    np.testing.assert_array_equal(from_file, from_array)
    assert told["stretch"] == same["stretch"]
    masked = np.ma.MaskedArray(values, values > 1500)
    _, valid, other = read(masked, Stretch(percent=(0, 100)))
    np.testing.assert_array_equal(valid, (values <= 1500).any(axis=0))
    assert max(high for _, high in other["stretch"]) <= 1500


@pytest.mark.parametrize("overviews", [False, True])
def test_a_large_raster_is_looked_at_once_and_about_right(overviews, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("engine.rasters.stretch.SAMPLE_PX", 40_000)
    values = scene("uint16", 700, 900)
    _, _, told = read(write(tmp_path / "a.tif", values, overviews=overviews), Stretch())
    expected = np.percentile(values.reshape(3, -1), (2, 98), axis=1).T
    np.testing.assert_allclose(told["stretch"], expected, rtol=0.03)


def test_8_bits_stay_as_they_are(tmp_path) -> None:
    values = (scene("uint16") // 20).astype(np.uint8)
    found, _, told = read(write(tmp_path / "a.tif", values), Stretch())
    np.testing.assert_array_equal(found, values)
    assert told["stretch"] is None


@pytest.mark.parametrize("gsd", ["off", 0.4])
def test_a_map_of_16_bits_is_that_of_the_stretched_image(gsd, toy_bundle, tmp_path) -> None:
    values = scene("uint16", 150, 170)
    low, high = (np.array(each, np.float64)[:, None, None] for each in ((0, 100, 50), (4000, 3000, 2500)))
    by_hand = np.rint(((values - low) / (high - low) * 255).clip(0, 255)).astype(np.uint8)
    paths = {"given": write(tmp_path / "16.tif", values), "by_hand": write(tmp_path / "8.tif", by_hand)}
    stretch = parse_stretch(RANGES)
    for name, path in paths.items():
        run = run_told(
            request_for(toy_bundle, {Sensor.RGIR: path}, tmp_path / name, stretch=stretch, gsd=gsd), Watcher()
        )
        assert run["inputs"]["rgir"]["stretch"] == ([[0, 4000], [100, 3000], [50, 2500]] if name == "given" else None)
    one, two = (rasterio.open(tmp_path / name / "classes.tif").read(1) for name in paths)
    np.testing.assert_array_equal(one, two)
    assert parse_stretch(str(tmp_path / "given")) == parse_stretch(str(tmp_path / "given" / "run.json")) == stretch
    with pytest.raises(UsageError, match="whose imagery was not stretched"):
        parse_stretch(str(tmp_path / "by_hand" / "run.json"))
    with engine.load(toy_bundle.root, precision="fp32") as model:
        result = model.segment(rgir=values, stretch=RANGES)
        with pytest.raises(UsageError, match="frames must all be stretched alike"):
            model.stream([], stretch="percent")
        (streamed,) = model.stream([{"rgir": values}], stretch=RANGES)
    np.testing.assert_array_equal(streamed.classes, result.classes)
    if gsd == "off":
        np.testing.assert_array_equal(result.classes, one)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("wide", "received 'wide'"),
        ("percent=98,2", "received 98,2"),
        ("percent=2,980", "received 2,980"),
        ("reflectance=0", "received 0:0"),
        ("1:2,3:4", "received '1:2,3:4'"),
        ("1:2,3:4,5:x", "takes numbers, received 'x'"),
        ("1:2,3:4,5:5", "received 5:5"),
        ("nowhere/run.json", "cannot be read"),
    ],
)
def test_a_stretch_that_is_none_is_told_in_one_line(text, says) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse_stretch(text)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_stretched_is_told(toy_bundle, tmp_path, capsys) -> None:
    flat = write(tmp_path / "flat.tif", np.full((3, 64, 64), 7, np.uint16))
    empty = write(tmp_path / "empty.tif", np.zeros((3, 64, 64), np.uint16), nodata=0)
    with pytest.raises(RasterFormatError, match="of .*flat.tif are both 7"):
        read(flat, Stretch())
    with pytest.raises(RasterFormatError, match="no pixel with data"):
        read(empty, Stretch())
    given = ["--bundle", str(toy_bundle.root), "--output", str(tmp_path / "out"), "--rgir", str(flat)]
    assert main(given) == 3
    assert "holds uint16: pass --stretch, as in percent" in capsys.readouterr().err
    assert main([*given, "--stretch", "0:9,0:9,0:9", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["inputs"]["rgir"]["stretch"] == [[0, 9]] * 3
    with pytest.raises(UsageError, match="frames must all be stretched alike"):
        live_request(toy_bundle, tmp_path, tmp_path / "out", stretch=Stretch())
