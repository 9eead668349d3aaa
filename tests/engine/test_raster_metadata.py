"""What a raster says of itself and is not so: each kind with its right value, GDAL's own mask or the loop as oracle."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC
from rasterio.transform import from_bounds, from_origin
from rasterio.warp import transform as reproject

from engine.contract.errors import GridError, RasterFormatError, RasterOpenError, one_line
from engine.contract.sensors import Sensor
from engine.rasters.georeference import Grid, gdal_environment
from engine.rasters.names import local_file, raster_name
from engine.rasters.raster import SensorRasters
from tests.engine.test_raster import LAMBERT, NORTH_UP, SPECS, colours, heights, read_all, read_pair, save, unplaced


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with gdal_environment():
        yield


# ------------------------------------------------------------------------------------------------ numbers in tags


@pytest.mark.parametrize("nodata", [math.inf, -math.inf])
def test_an_infinite_nodata_value_hides_what_equals_it_and_nothing_else(tmp_path: Path, nodata: float) -> None:
    values = heights(60, 50)
    values[0, :, :10] = nodata
    path = save(tmp_path / "ndsm.tif", values, nodata=nodata)
    with rasterio.open(path) as file:
        expected = file.read_masks(1) > 0
    filled, valid = read_all(path, Sensor.NDSM)
    np.testing.assert_array_equal(valid, expected)
    assert valid.mean() == 0.8
    np.testing.assert_array_equal(filled[0][valid], values[0][valid])


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, -math.inf, 1e300, 1e-60])
@pytest.mark.parametrize("warped", [False, True])
def test_a_scale_that_leaves_no_height_is_refused_by_its_name(tmp_path: Path, value: float, warped: bool) -> None:
    rgir = save(tmp_path / "rgir.tif", colours())
    ndsm = save(tmp_path / "ndsm.tif", heights(), scales=(value,), transform=NORTH_UP @ Affine.translation(warped, 0))
    with pytest.raises(RasterFormatError, match="scale tag") as caught:
        read_pair(rgir, ndsm)
    assert "gdal_edit" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_an_offset_that_is_no_number_is_refused_by_its_name(tmp_path: Path, value: float) -> None:
    with pytest.raises(RasterFormatError, match="offset tag"):
        read_all(save(tmp_path / "ndsm.tif", heights(), offsets=(value,)), Sensor.NDSM)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e300])
def test_a_scale_option_that_is_no_number_of_metres_is_refused(tmp_path: Path, scale: float) -> None:
    with pytest.raises(RasterFormatError, match="ndsm_scale_m must be a positive number"):
        read_all(save(tmp_path / "ndsm.tif", heights()), Sensor.NDSM, ndsm_scale_m=scale)


@pytest.mark.parametrize(
    "transform",
    [
        Affine(0.2, 0, 600000, 0.2, 0, 6800000),
        Affine(0, 0, 600000, 0, 0, 6800000),
        Affine(math.nan, 0, 600000, 0, -0.2, 6800000),
        Affine(0.2, 0, math.inf, 0, -0.2, 6800000),
        Affine(1e-320, 0, 600000, 0, -1e-320, 6800000),
    ],
)
def test_a_geotransform_that_maps_no_plane_is_refused(tmp_path: Path, transform: Affine) -> None:
    good, bad = save(tmp_path / "rgir.tif", colours()), tmp_path / "ndsm.vrt"
    save(tmp_path / "ndsm.tif", heights())
    numbers = ", ".join(repr(number) for number in transform.to_gdal())
    bad.write_text(
        f'<VRTDataset rasterXSize="250" rasterYSize="247"><SRS>EPSG:2154</SRS><GeoTransform>{numbers}</GeoTransform>'
        '<VRTRasterBand dataType="Float32" band="1"><SimpleSource><SourceFilename relativeToVRT="1">ndsm.tif'
        "</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    for read in (lambda: read_pair(good, bad), lambda: read_all(bad, Sensor.NDSM)):
        with pytest.raises(GridError, match="geotransform must map"):
            read()


# ------------------------------------------------------------------------------------------------------ alpha bands

RGB = [ColorInterp.red, ColorInterp.green, ColorInterp.blue]


def with_alpha(path: Path, alpha: Any, at: int = 4, **profile: Any) -> Path:
    """Band ``at`` is marked alpha; the rest are colours."""
    values = colours(60, 50, bands=max(4, at))
    values[at - 1] = alpha
    marks = [*RGB, *[ColorInterp.undefined] * (len(values) - 3)]
    marks[at - 1] = ColorInterp.alpha
    return save(path, values, colorinterp=marks, **profile)


@pytest.mark.parametrize("at", [4, 5, 6])
def test_an_alpha_band_masks_wherever_it_stands(tmp_path: Path, at: int) -> None:
    alpha = np.full((60, 50), 255, np.uint8)
    alpha[:20] = 0
    path = with_alpha(tmp_path / "rgir.tif", alpha, at)
    _, valid = read_all(path, Sensor.RGIR, rgir_bands=(3, 1, 2))
    np.testing.assert_array_equal(valid, alpha > 0)
    with SensorRasters.open({Sensor.RGIR: path}, SPECS, rgir_bands=(3, 1, 2)) as rasters:
        assert rasters.describe()["rgir"]["nodata"] == ["alpha band"]


def test_alpha_and_nodata_both_count(tmp_path: Path) -> None:
    alpha = np.full((60, 50), 255, np.uint8)
    alpha[:, :10] = 0
    path = with_alpha(tmp_path / "rgir.tif", alpha, 5, nodata=7)
    values = rasterio.open(path).read((1, 2, 3))
    _, valid = read_all(path, Sensor.RGIR, rgir_bands=(1, 2, 3))
    np.testing.assert_array_equal(valid, (alpha > 0) & (values != 7).any(axis=0))


def test_a_band_that_is_asked_for_is_data_whatever_its_mark_says(tmp_path: Path) -> None:
    infrared = colours(60, 50)[0]
    infrared[:30] = 0  # water
    path = with_alpha(tmp_path / "rgir.tif", infrared)
    values, valid = read_all(path, Sensor.RGIR, rgir_bands=(4, 1, 2))
    assert valid.all()
    np.testing.assert_array_equal(values[0], infrared)


@pytest.mark.parametrize("bands", [None, (1, 2, 3)])
def test_a_band_marked_alpha_that_holds_values_between_is_refused_and_makes_no_holes(
    tmp_path: Path, bands: tuple[int, int, int] | None
) -> None:
    infrared = np.full((60, 50), 120, np.uint8)
    infrared[:20] = 0
    with pytest.raises(RasterFormatError, match="band 4 of .* is marked alpha, but 100% of its values lie between"):
        read_all(with_alpha(tmp_path / "rgir.tif", infrared), Sensor.RGIR, rgir_bands=bands)


# --------------------------------------------------------------------------------------------------------- placement


def corners(shift: float = 0) -> list[GroundControlPoint]:
    return [
        GroundControlPoint(row, col, 770550 + 0.2 * (col + shift), 6277600 - 0.2 * row)
        for row, col in ((0, 0), (0, 250), (247, 0), (247, 250))
    ]


def test_rasters_placed_by_other_ground_control_points_are_not_laid_pixel_on_pixel(tmp_path: Path) -> None:
    rgir = unplaced(tmp_path / "rgir.tif", colours(), gcps=(corners(), LAMBERT))
    shifted = unplaced(tmp_path / "ndsm.tif", heights(), gcps=(corners(25), LAMBERT))
    placed = save(tmp_path / "placed.tif", heights())
    for image, ndsm in ((rgir, shifted), (rgir, placed), (save(tmp_path / "image.tif", colours()), shifted)):
        with pytest.raises(GridError, match="placed by ground control points: warp it first with `gdalwarp"):
            read_pair(image, ndsm)
    alike = unplaced(tmp_path / "alike.tif", heights(), gcps=(corners(), LAMBERT))
    np.testing.assert_array_equal(read_pair(rgir, alike)[0], heights())


def camera(line_offset: float) -> RPC:
    one = [1.0, *[0.0] * 19]
    return RPC(
        err_bias=0, err_rand=0, height_off=0, height_scale=100, lat_off=48, lat_scale=1, line_den_coeff=one,
        line_num_coeff=[0.0, 0.0, 1.0, *[0.0] * 17], line_off=line_offset, line_scale=120, long_off=2, long_scale=1,
        samp_den_coeff=one, samp_num_coeff=[0.0, 1.0, *[0.0] * 18], samp_off=125, samp_scale=125,
    )  # fmt: skip


def test_rasters_of_other_camera_models_are_not_laid_pixel_on_pixel(tmp_path: Path) -> None:
    for name, values, offset in (("rgir", colours(), 120), ("ndsm", heights(), 140), ("alike", heights(), 120)):
        path = unplaced(tmp_path / f"{name}.tif", values)
        with rasterio.open(path, "r+") as file:
            file.rpcs = camera(offset)
    with pytest.raises(GridError, match=r"a camera model \(RPC\): warp it first with `gdalwarp -rpc"):
        read_pair(tmp_path / "rgir.tif", tmp_path / "ndsm.tif")
    np.testing.assert_array_equal(read_pair(tmp_path / "rgir.tif", tmp_path / "alike.tif")[0], heights())


def lonlat(path: Path, west: float, east: float, crs: str = "EPSG:4326") -> Path:
    """Heights that grow by one metre per degree of longitude, counted from 0 to 360."""
    transform = from_bounds(west, -18, east, -16, 400, 100)
    longitudes = (west + (np.arange(400) + 0.5) * (east - west) / 400) % 360
    values = np.broadcast_to(longitudes, (1, 100, 400)).astype(np.float32)
    return save(path, values, crs=CRS.from_string(crs), transform=transform)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:4171"])
@pytest.mark.parametrize("grid_crs", ["EPSG:32701", "EPSG:4326", "EPSG:3832"])
@pytest.mark.parametrize(("west", "east"), [(181, 183), (170, 190), (-179, -177), (-190, -170)])
def test_heights_on_either_side_of_the_antimeridian_are_found(
    tmp_path: Path, west: float, east: float, grid_crs: str, crs: str
) -> None:
    """The same place has longitude -178 and 182; whichever a file counts by, its heights come out there."""
    (x,), (y,) = reproject("EPSG:4326", grid_crs, [-178.05], [-16.95])
    step = 0.001 if grid_crs == "EPSG:4326" else 100
    rgir = save(
        tmp_path / "rgir.tif", colours(90, 80), crs=CRS.from_string(grid_crs), transform=from_origin(x, y, step, step)
    )
    values, valid = read_pair(rgir, lonlat(tmp_path / "ndsm.tif", west, east, crs))
    assert valid.all()
    with rasterio.open(rgir) as file:
        cols, rows = np.meshgrid(np.arange(80) + 0.5, np.arange(90) + 0.5)
        xs, ys = file.transform @ (cols.ravel(), rows.ravel())
        longitudes = np.reshape(reproject(grid_crs, "EPSG:4326", xs, ys)[0], (90, 80)) % 360
    np.testing.assert_allclose(values[0], longitudes, atol=0.15 * (east - west) / 400)  # GDAL's own error: 0.125 px


def test_a_grid_across_the_antimeridian_is_covered_on_both_sides(tmp_path: Path) -> None:
    (x,), (y,) = reproject("EPSG:4326", "EPSG:3832", [179.9], [-16.95])
    rgir = save(tmp_path / "rgir.tif", colours(90, 200), crs=CRS.from_epsg(3832), transform=from_origin(x, y, 150, 150))
    assert read_pair(rgir, lonlat(tmp_path / "ndsm.tif", 179, 181))[1].all()


# ------------------------------------------------------------------------------------------------------ files and names


def test_a_tiff_that_lost_the_end_of_a_tag_is_refused_though_its_pixels_are_whole(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.tif", (10 * heights()).astype(np.int16), scales=(0.1,))
    with rasterio.open(whole, "r+") as file:
        file.update_tags(note="x" * 200)  # makes GDAL write its tags anew, behind the pixels
    np.testing.assert_allclose(read_all(whole, Sensor.NDSM)[0], heights(), atol=0.1)
    cut = tmp_path / "cut.tif"
    cut.write_bytes(whole.read_bytes()[:-1])
    with rasterio.open(cut) as file:
        assert file.scales == (1.0,)  # what GDAL makes of it
    with pytest.raises(RasterOpenError, match="truncated or damaged.*before the values of tag 42112"):
        read_all(cut, Sensor.NDSM)


@pytest.mark.parametrize(
    "text",
    [
        "/vsicurl/https://host/a.tif?url=b//c",
        "/vsizip//absolute/a.zip/a.tif",
        "s3://bucket//a.tif",
        "zip+https://host/a.zip!a.tif",
        "https://host//a.tif",
        "/vsistdin/",
        'NETCDF:"a.nc":height',
        "GTIFF_DIR:2:a.tif",
    ],
)
def test_a_name_that_is_no_path_stays_as_it_was_typed(text: str) -> None:
    assert raster_name(text) == text
    assert isinstance(raster_name(text), str)
    assert local_file(text) is None


@pytest.mark.parametrize("text", ["a.tif", "./a//b.tif", "/tmp/a.tif", "C:/a.tif"])
def test_a_path_is_a_path(text: str) -> None:
    assert raster_name(text) == Path(text)
    assert local_file(text) == Path(text)


def test_a_file_whose_name_looks_like_a_driver_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "GTIFF:x.tif", colours(60, 50))
    assert raster_name("GTIFF:x.tif") == Path("GTIFF:x.tif")


def test_a_subdataset_is_read_and_a_container_names_its_own(tmp_path: Path) -> None:
    path = tmp_path / "both.tif"
    save(path, colours(60, 50))
    save(path, 255 - colours(60, 50), APPEND_SUBDATASET="YES")
    values, _ = read_all(f"GTIFF_DIR:2:{path}", Sensor.RGIR)
    np.testing.assert_array_equal(values, 255 - colours(60, 50))
    container = tmp_path / "container.gpkg"
    for table, append in (("first", "NO"), ("second", "YES")):
        save(container, colours(60, 50), driver="GPKG", RASTER_TABLE=table, APPEND_SUBDATASET=append)
    with pytest.raises(RasterOpenError, match="container of 2 rasters: pass one of them as rgir: GPKG:.*:first"):
        read_all(container, Sensor.RGIR)


@pytest.mark.parametrize(
    "name",
    [
        "x" * 300 + ".tif",
        os.fsdecode(b"caf\xe9.tif"),
        "two\nlines.tif",
        "s3://nowhere/a.tif",
        "nope://x",
        "/vsizip/no.zip/a",
    ],
)
def test_a_name_that_leads_nowhere_is_one_line(tmp_path: Path, name: str) -> None:
    given = raster_name(name)
    if isinstance(given, Path):
        given = tmp_path / given
        if b"\xe9" in os.fsencode(given) and sys.platform == "linux":
            shutil.copy(save(tmp_path / "plain.tif", colours(60, 50)), given)
    with pytest.raises(RasterOpenError) as caught:
        read_all(given, Sensor.RGIR)
    assert str(caught.value).isprintable()


def test_one_line_is_printable_and_keeps_its_ends() -> None:
    assert one_line("a\n  b\r\nc\x1b[31m\udce9") == "a b c\\x1b[31m\\udce9"
    assert one_line("x" * 5000 + "end").endswith("xend")
    assert len(one_line("x" * 5_000_000)) < 2100


@pytest.mark.parametrize("variable", ["PROJ_LIB", "PROJ_DATA"])
def test_the_proj_database_of_another_program_is_not_used(tmp_path: Path, variable: str) -> None:
    program = """
        import rasterio  # before this project could do anything about it
        from rasterio.crs import CRS
        from engine.rasters.georeference import gdal_environment
        with gdal_environment():
            assert CRS.from_epsg(2154).is_projected
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**os.environ, variable: str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert variable in done.stderr


def test_a_silent_server_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with gdal_environment():
        options = rasterio.env.getenv()
        assert {"GDAL_HTTP_TIMEOUT", "GDAL_HTTP_CONNECTTIMEOUT", "GDAL_HTTP_LOW_SPEED_TIME"} <= set(options)
    monkeypatch.setenv("GDAL_HTTP_TIMEOUT", "7")
    program = "import rasterio.env as e; from engine.rasters.georeference import gdal_environment as g\n"
    program += "with g(): print(e.get_gdal_config('GDAL_HTTP_TIMEOUT'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "7"


def test_a_grid_of_an_opened_file_names_it(tmp_path: Path) -> None:
    with rasterio.open(save(tmp_path / "a.tif", colours(60, 50))) as file:
        assert Grid.of(file) == Grid(width=50, height=60, crs=LAMBERT, transform=NORTH_UP)
