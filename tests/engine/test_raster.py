"""Reading sensor rasters, against plain rasterio, numpy and loops as oracles."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import Resampling, reproject, transform_bounds

from engine.contract.bands import ndsm_spec, rgir_spec
from engine.contract.errors import GridError, RasterFormatError, RasterOpenError
from engine.contract.sensors import Sensor
from engine.rasters.georeference import Grid, gdal_environment
from engine.rasters.raster import SensorRasters

SPECS = {Sensor.RGIR: rgir_spec(), Sensor.NDSM: ndsm_spec()}
LAMBERT = CRS.from_epsg(2154)
NORTH_UP = Affine(0.2, 0, 770550, 0, -0.2, 6277600)
REAL_SCENES = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.filterwarnings("error::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with gdal_environment():
        yield


def colours(height: int = 247, width: int = 250, bands: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(1, 256, (bands, height, width), np.uint8)


def heights(height: int = 247, width: int = 250) -> NDArray[np.float32]:
    """Smooth, as resampling needs it: 0 to 20 m."""
    rows, cols = np.mgrid[:height, :width]
    return (10 + 5 * np.sin(rows / 17) + 5 * np.cos(cols / 23)).astype(np.float32)[None]


def save(path: Path, values: NDArray[Any], *, mask: NDArray[np.bool_] | None = None, **profile: Any) -> Path:
    """Write ``values`` [B, h, w]; keywords as in a rasterio profile, plus what has to be set on the dataset."""
    told = ("scales", "offsets", "units", "colorinterp", "gcps", "descriptions")
    later = {key: profile.pop(key) for key in told if key in profile}
    profile = {"driver": "GTiff", "crs": LAMBERT, "transform": NORTH_UP} | profile
    count, height, width = values.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(path, "w", count=count, height=height, width=width, dtype=values.dtype, **profile) as file:
            for name, value in later.items():
                setattr(file, name, value)
            file.write(values)
            if mask is not None:
                file.write_mask(mask)
    return path


def unplaced(path: Path, values: NDArray[Any], **profile: Any) -> Path:
    return save(path, values, crs=None, transform=None, **profile)


def read_all(path: Path, sensor: Sensor, **options: Any) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    with SensorRasters.open({sensor: path}, SPECS, **options) as rasters:
        seen = rasters.read(0, 0, rasters.grid.height, rasters.grid.width)[sensor]
    return seen.values, seen.valid


def read_pair(rgir: Path, ndsm: Path) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The nDSM as it comes out on the RGIR grid."""
    with SensorRasters.open({Sensor.NDSM: ndsm, Sensor.RGIR: rgir}, SPECS) as rasters:
        seen = rasters.read(0, 0, rasters.grid.height, rasters.grid.width)[Sensor.NDSM]
    return seen.values, seen.valid


# ---------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize(
    "window",
    [
        (0, 0, 247, 250),
        (10, 20, 64, 65),
        (-5, 100, 20, 30),
        (240, 240, 30, 40),
        (-100, -131, 512, 512),
        (-700, 900, 300, 200),
        (246, 249, 1, 1),
        (247, 250, 1, 1),
    ],
)
@pytest.mark.parametrize("tiled", [True, False])
def test_a_window_shows_what_rasterio_reads_and_mirrors_beyond_the_border(
    tmp_path: Path, window: tuple[int, int, int, int], tiled: bool
) -> None:
    row, col, height, width = window
    values, ndsm = colours(), heights()
    ndsm[0, 200:, :50] = -9999
    layout = {"tiled": True, "blockxsize": 64, "blockysize": 64} if tiled else {}
    paths = {
        Sensor.RGIR: save(tmp_path / "rgir.tif", values, **layout),
        Sensor.NDSM: save(tmp_path / "ndsm.tif", ndsm, nodata=-9999, **layout),
    }
    with SensorRasters.open(paths, SPECS) as rasters:
        seen = rasters.read(row, col, height, width)
    pad = 1000
    around = ((pad, pad), (pad, pad))
    cut = np.s_[row + pad : row + pad + height, col + pad : col + pad + width]
    for band in range(3):
        np.testing.assert_array_equal(seen[Sensor.RGIR].values[band], np.pad(values[band], around, "symmetric")[cut])
    assert seen[Sensor.RGIR].values.dtype == np.uint8
    assert seen[Sensor.RGIR].valid.all()
    valid = np.pad(ndsm[0] != -9999, around, "symmetric")[cut]
    np.testing.assert_array_equal(seen[Sensor.NDSM].valid, valid)
    expected = np.pad(ndsm[0], around, "symmetric")[cut]
    np.testing.assert_array_equal(seen[Sensor.NDSM].values[0][valid], expected[valid])
    assert seen[Sensor.NDSM].values.dtype == np.float32
    assert np.isfinite(seen[Sensor.NDSM].values).all()
    assert seen[Sensor.NDSM].values.min() > -1


def mirrored(known: list[int], place: int) -> int:
    """Where the value of a place comes from: numpy's symmetric padding of the nearest run of known places."""
    nearest = min(known, key=lambda other: (abs(other - place), other))
    first = last = nearest
    while first - 1 in known:
        first -= 1
    while last + 1 in known:
        last += 1
    return int(np.pad(np.arange(first, last + 1), 60, "symmetric")[place - first + 60])


def test_invalid_pixels_mirror_the_nearest_run_of_their_row_and_rows_without_data_other_rows(tmp_path: Path) -> None:
    values = heights(40, 30)
    values[0][np.random.default_rng(3).random((40, 30)) < 0.4] = np.nan
    values[0, 10:16, 9:] = values[0, 16:19, :22] = values[0, :4] = values[0, 20:23] = values[0, 37:] = np.nan
    filled, valid = read_all(save(tmp_path / "ndsm.tif", values), Sensor.NDSM)

    rows_with_data = [row for row in range(40) if valid[row].any()]
    for row in range(40):
        source = mirrored(rows_with_data, row)
        columns = np.flatnonzero(valid[source]).tolist()
        for col in range(30):
            assert filled[0, row, col] == values[0, source, mirrored(columns, col)]


def test_a_window_without_any_valid_pixel_is_zero(tmp_path: Path) -> None:
    filled, valid = read_all(save(tmp_path / "ndsm.tif", np.full((1, 9, 8), -9999, np.float32), nodata=-9999), "ndsm")
    assert not valid.any()
    assert (filled == 0).all()


# ----------------------------------------------------------------------------------------------------- nodata


HOLES = np.random.default_rng(5).random((60, 50)) < 0.3


@pytest.mark.parametrize("kind", ["tag", "alpha", "mask inside", "mask file", "tag outside the dtype"])
def test_rgir_validity_is_what_gdal_says(tmp_path: Path, kind: str) -> None:
    path, values = tmp_path / "rgir.tif", colours(60, 50)
    values[:, HOLES] = 0
    if kind.startswith("mask"):
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=kind == "mask inside"):
            save(path, values, mask=~HOLES)
        assert (tmp_path / "rgir.tif.msk").exists() == (kind == "mask file")
    elif kind == "alpha":
        alpha = np.where(HOLES, 0, 255).astype(np.uint8)[None]
        names = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
        save(path, np.concatenate([values, alpha]), colorinterp=names)
    elif kind == "tag":
        save(path, values, nodata=0)
    else:
        # rasterio refuses to write such a tag; other tools do not
        save(path, values)
        (tmp_path / "rgir.vrt").write_text(
            '<VRTDataset rasterXSize="50" rasterYSize="60">'
            + "".join(
                f'<VRTRasterBand dataType="Byte" band="{band}"><NoDataValue>-9999</NoDataValue><SimpleSource>'
                f'<SourceFilename relativeToVRT="1">rgir.tif</SourceFilename><SourceBand>{band}</SourceBand>'
                "</SimpleSource></VRTRasterBand>"
                for band in (1, 2, 3)
            )
            + "</VRTDataset>"
        )
        path = tmp_path / "rgir.vrt"
    _, valid = read_all(path, Sensor.RGIR)
    np.testing.assert_array_equal(valid, ~HOLES if kind != "tag outside the dtype" else np.ones_like(HOLES))


@pytest.mark.parametrize("nodata", [-9999.0, -3.4028234663852886e38, math.nan, 0.1, None])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ndsm_validity_is_what_gdal_says_and_never_includes_nan_or_infinity(
    tmp_path: Path, nodata: float | None, dtype: str
) -> None:
    values = heights(60, 50).astype(dtype)
    if nodata is not None:
        values[0][HOLES] = nodata
    values[0, 3, :5], values[0, 4, :5], values[0, 5, :5] = np.nan, np.inf, -np.inf
    path = save(tmp_path / "ndsm.tif", values, nodata=nodata)
    with rasterio.open(path) as file:
        expected = (file.read_masks(1) > 0) & np.isfinite(values[0])
    filled, valid = read_all(path, Sensor.NDSM)
    np.testing.assert_array_equal(valid, expected)
    np.testing.assert_array_equal(filled[0][valid], values[0][valid].astype(np.float32))
    assert np.isfinite(filled).all()


def test_one_dead_band_does_not_blank_the_map(tmp_path: Path) -> None:
    values = colours(60, 50)
    values[1] = 0
    values[:, HOLES] = 0
    filled, valid = read_all(save(tmp_path / "rgir.tif", values, nodata=0), Sensor.RGIR)
    np.testing.assert_array_equal(valid, ~HOLES)
    np.testing.assert_array_equal(filled[:, valid], values[:, valid])


def test_the_description_says_how_nodata_is_told(tmp_path: Path) -> None:
    paths = {
        Sensor.RGIR: save(tmp_path / "rgir.tif", colours(60, 50), mask=~HOLES),
        Sensor.NDSM: save(tmp_path / "ndsm.tif", heights(60, 50), nodata=-9999),
    }
    with SensorRasters.open(paths, SPECS) as rasters:
        told = rasters.describe()
    assert told["rgir"]["nodata"] == ["mask band"]
    assert told["ndsm"]["nodata"] == ["nodata tag -9999.0", "NaN or infinite"]
    assert told["rgir"]["crs"] == "EPSG:2154"
    assert told["rgir"]["gsd_m"] == pytest.approx(0.2)
    assert json.loads(json.dumps(told)) == told


# ------------------------------------------------------------------------------------------- bands and units


@pytest.mark.parametrize(
    ("values", "received", "next_step"),
    [
        (colours(bands=5), "has 5", "rgir_bands=4,1,2"),
        (colours(bands=4), "marked alpha", "rgir_bands=4,1,2"),
        (colours(bands=1), "has 1", "rgir_bands"),
        (colours().astype(np.uint16), "uint16", "gdal_translate -ot Byte -scale"),
        (colours().astype(np.float32), "float32", "gdal_translate"),
    ],
)
def test_an_rgir_raster_of_another_kind_is_refused(
    tmp_path: Path, values: NDArray[Any], received: str, next_step: str
) -> None:
    path = save(tmp_path / "rgir.tif", values)
    with pytest.raises(RasterFormatError, match=received) as caught:
        read_all(path, Sensor.RGIR)
    assert next_step in str(caught.value)
    assert str(path) in str(caught.value)


def test_bands_can_be_chosen_by_number(tmp_path: Path) -> None:
    values = colours(bands=4)
    path = save(tmp_path / "rgbi.tif", values)
    chosen, _ = read_all(path, Sensor.RGIR, rgir_bands=(4, 1, 2))
    np.testing.assert_array_equal(chosen, values[[3, 0, 1]])
    with pytest.raises(RasterFormatError, match="5,1,2"):
        read_all(path, Sensor.RGIR, rgir_bands=(5, 1, 2))


RGB_AND_NIR = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.nir]
AS_ALPHA = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.alpha]
FALSE_COLOUR = [ColorInterp.red, ColorInterp.green, ColorInterp.blue, ColorInterp.undefined]


@pytest.mark.parametrize(
    ("descriptions", "marks", "expected"),
    [
        (("Red", "Green", "Blue", "NIR"), AS_ALPHA, (4, 1, 2)),
        (("Band 1: blue", "Band 2: green", "Band 3: red", "Band 4: near-infrared"), AS_ALPHA, (4, 3, 2)),
        (("B1 Near_Infrared", "B2 Red", "B3 Green", "B4 Red edge"), FALSE_COLOUR, (1, 2, 3)),
        ((None, None, None, None), RGB_AND_NIR, (4, 1, 2)),
        ((None, None, None, "nir"), AS_ALPHA, (4, 1, 2)),
        (("green", "red", "nir"), FALSE_COLOUR[:3], (3, 2, 1)),
        (("Red", "Green", "Blue"), FALSE_COLOUR[:3], (1, 2, 3)),  # no near infrared: as before, in order
        ((None, None, None), FALSE_COLOUR[:3], (1, 2, 3)),
    ],
)
def test_bands_are_found_by_what_they_call_themselves(
    tmp_path: Path, descriptions: tuple[str | None, ...], marks: list[ColorInterp], expected: tuple[int, ...]
) -> None:
    values = colours(bands=len(marks))
    path = save(tmp_path / "image.tif", values, colorinterp=marks, descriptions=descriptions)
    found, valid = read_all(path, Sensor.RGIR)
    np.testing.assert_array_equal(found, values[[band - 1 for band in expected]])
    assert valid.all()
    chosen, _ = read_all(path, Sensor.RGIR, rgir_bands=(len(marks), 2, 1))
    np.testing.assert_array_equal(chosen, values[[-1, 1, 0]])


@pytest.mark.parametrize(
    "descriptions",
    [
        (None, None, None, None),
        ("NIR 1", "red", "green", "NIR 2"),
        ("nir", None, None, None),
        ("red", "green", "x", "y"),
    ],
)
def test_bands_that_do_not_tell_which_they_are_are_refused(
    tmp_path: Path, descriptions: tuple[str | None, ...]
) -> None:
    """Not even in part: with near infrared first, GDAL's red is no red."""
    path = save(tmp_path / "image.tif", colours(bands=4), colorinterp=FALSE_COLOUR, descriptions=descriptions)
    with pytest.raises(
        RasterFormatError, match=r"has 4, which call themselves .*: choose them, as in `rgir_bands=4,1,2`"
    ):
        read_all(path, Sensor.RGIR)


def test_an_ndsm_of_two_bands_or_complex_numbers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RasterFormatError, match="1 band"):
        read_all(save(tmp_path / "two.tif", np.concatenate([heights(), heights()])), Sensor.NDSM)
    with pytest.raises(RasterFormatError, match="complex64"):
        read_all(save(tmp_path / "complex.tif", heights().astype(np.complex64)), Sensor.NDSM)


def test_whole_numbers_are_no_heights_until_a_scale_says_so(tmp_path: Path) -> None:
    decimetres = np.rint(heights() * 10).astype(np.uint8)
    plain = save(tmp_path / "plain.tif", decimetres)
    with pytest.raises(RasterFormatError, match="ndsm_scale_m"):
        read_all(plain, Sensor.NDSM)
    metres, _ = read_all(plain, Sensor.NDSM, ndsm_scale_m=0.1)
    np.testing.assert_allclose(metres, decimetres / 10, rtol=1e-6)

    tagged = save(tmp_path / "tagged.tif", decimetres, scales=[0.1], offsets=[-1.0], nodata=7)
    metres, valid = read_all(tagged, Sensor.NDSM)
    np.testing.assert_array_equal(valid, decimetres[0] != 7)
    np.testing.assert_allclose(metres[0][valid], decimetres[0][valid] / 10 - 1, rtol=1e-5, atol=1e-6)


def test_heights_in_feet_are_refused_until_a_scale_converts_them(tmp_path: Path) -> None:
    path = save(tmp_path / "feet.tif", heights(), units=["ft"])
    with pytest.raises(RasterFormatError, match="'ft'"):
        read_all(path, Sensor.NDSM)
    metres, _ = read_all(path, Sensor.NDSM, ndsm_scale_m=0.3048)
    np.testing.assert_allclose(metres, heights() * 0.3048, rtol=1e-6)
    with pytest.raises(RasterFormatError, match="positive"):
        read_all(path, Sensor.NDSM, ndsm_scale_m=0.0)


# -------------------------------------------------------------------------------------------------- alignment


def on_the_rgir_grid(
    values: NDArray[np.float32], transform: Affine, crs: CRS, to: Affine, size: tuple[int, int]
) -> NDArray[np.float32]:
    """The oracle: GDAL's warp of the whole array at once, NaN where there is nothing."""
    out = np.full(size, np.nan, np.float32)
    reproject(
        values[0],
        out,
        src_transform=transform,
        src_crs=crs,
        src_nodata=np.nan,
        dst_transform=to,
        dst_crs=LAMBERT,
        dst_nodata=np.nan,
        resampling=Resampling.bilinear,
    )
    return out


PLACES = {
    "shifted by pixels": (NORTH_UP @ Affine.translation(30, -20), LAMBERT),
    "shifted by a fraction": (NORTH_UP @ Affine.translation(3.3, 4.6), LAMBERT),
    "twice as coarse": (NORTH_UP @ Affine.scale(2), LAMBERT),
    "finer": (NORTH_UP @ Affine.scale(0.7), LAMBERT),
    "rotated": (NORTH_UP @ Affine.translation(40, 30) @ Affine.rotation(20), LAMBERT),
    "south up": (NORTH_UP @ Affine.translation(0, 240) @ Affine.scale(1, -1), LAMBERT),
}


@pytest.mark.parametrize("place", [*PLACES, "another CRS"])
@pytest.mark.parametrize("holes", ["tag", "nan", "mask", "alpha"])
def test_an_ndsm_on_another_grid_is_warped_onto_that_of_the_rgir(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str, holes: str
) -> None:
    rgir = save(tmp_path / "rgir.tif", colours())
    values = heights()
    if place == "another CRS":
        crs = CRS.from_epsg(32631)
        west, _, _, north = transform_bounds(LAMBERT, crs, 770550, 6277550, 770600, 6277600)
        transform = Affine(0.2, 0, west, 0, -0.2, north)
    else:
        transform, crs = PLACES[place]
    empty = np.zeros((247, 250), bool)
    empty[100:140, 60:90] = True
    oracle = on_the_rgir_grid(np.where(empty, np.nan, values), transform, crs, NORTH_UP, (247, 250))
    if holes in ("tag", "nan"):
        values[0][empty] = -9999 if holes == "tag" else np.nan
        ndsm = save(
            tmp_path / "n.tif", values, crs=crs, transform=transform, nodata=-9999 if holes == "tag" else math.nan
        )
    elif holes == "mask":
        ndsm = save(tmp_path / "n.tif", values, crs=crs, transform=transform, mask=~empty)
    else:
        alpha = np.where(empty, 0, 255).astype(np.float32)[None]
        ndsm = save(
            tmp_path / "n.tif",
            np.concatenate([values, alpha]),
            crs=crs,
            transform=transform,
            colorinterp=[ColorInterp.gray, ColorInterp.alpha],
        )
    with caplog.at_level(logging.INFO, "engine"):
        warped, valid = read_pair(rgir, ndsm)
    assert "warped" in caplog.text
    np.testing.assert_array_equal(valid, np.isfinite(oracle))
    assert 0.05 < valid.mean() < 0.99
    # the oracle warps the whole image in one piece, the reader block by block: GDAL fits its kernel to each
    # piece. A shift by half a pixel would differ by 0.15 m and more.
    np.testing.assert_allclose(warped[0][valid], oracle[valid], atol=0.1)


def test_a_shift_by_whole_pixels_does_not_change_a_value(tmp_path: Path) -> None:
    values = heights()
    ndsm = save(tmp_path / "n.tif", values, transform=NORTH_UP @ Affine.translation(30, -20))
    warped, valid = read_pair(save(tmp_path / "rgir.tif", colours()), ndsm)
    np.testing.assert_array_equal(warped[0, :227, 30:], values[0, 20:, :220])
    assert valid[:227, 30:].all()
    assert not valid[228:].any()
    assert not valid[:, :29].any()


def test_scale_tags_hold_for_warped_heights_too(tmp_path: Path) -> None:
    centimetres = np.rint(heights() * 100).astype(np.int16)
    ndsm = save(tmp_path / "n.tif", centimetres, transform=NORTH_UP @ Affine.translation(0.5, 0.5), scales=[0.01])
    warped, valid = read_pair(save(tmp_path / "rgir.tif", colours()), ndsm)
    half = heights()[0]
    half = (half[:-1, :-1] + half[1:, :-1] + half[:-1, 1:] + half[1:, 1:]) / 4
    assert valid[1:, 1:].all()
    np.testing.assert_allclose(warped[0, 1:, 1:], half, atol=0.006)


def test_grids_that_differ_by_less_than_a_hundredth_pixel_are_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ndsm = save(tmp_path / "n.tif", heights(), transform=NORTH_UP @ Affine.translation(0.005, 0.005))
    with caplog.at_level(logging.INFO, "engine"):
        values, _ = read_pair(save(tmp_path / "rgir.tif", colours()), ndsm)
    np.testing.assert_array_equal(values, heights())
    assert caplog.text == ""


def test_a_missing_crs_is_taken_from_the_other_raster(tmp_path: Path) -> None:
    shifted = NORTH_UP @ Affine.translation(30, -20)
    expected, _ = read_pair(
        save(tmp_path / "rgir.tif", colours()), save(tmp_path / "named.tif", heights(), transform=shifted)
    )
    nameless = save(tmp_path / "nameless.tif", heights(), transform=shifted, crs=None)
    for rgir_crs in (LAMBERT, None):
        rgir = save(tmp_path / "rgir.tif", colours(), crs=rgir_crs)
        np.testing.assert_array_equal(read_pair(rgir, nameless)[0], expected)


def test_rasters_that_do_not_overlap_are_refused_with_both_bounds(tmp_path: Path) -> None:
    rgir = save(tmp_path / "rgir.tif", colours())
    ndsm = save(tmp_path / "n.tif", heights(), transform=NORTH_UP @ Affine.translation(300, 0))
    with pytest.raises(GridError, match="overlap") as caught:
        read_pair(rgir, ndsm)
    assert "x 770550..770600" in str(caught.value)
    assert "x 770610..770660" in str(caught.value)
    ndsm = save(tmp_path / "n.tif", heights(), crs=CRS.from_epsg(4326), transform=Affine(1e-6, 0, 2.5, 0, -1e-6, 48.8))
    with pytest.raises(GridError, match="overlap"):
        read_pair(rgir, ndsm)


def test_images_without_georeferencing_are_read_pixel_by_pixel(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rgir = unplaced(tmp_path / "rgir.png", colours(), driver="PNG")
    ndsm = unplaced(tmp_path / "ndsm.tif", heights())
    with SensorRasters.open({Sensor.RGIR: rgir, Sensor.NDSM: ndsm}, SPECS) as rasters:
        assert (rasters.grid.transform, rasters.grid.crs, rasters.grid.gsd_m) == (None, None, None)
        np.testing.assert_array_equal(rasters.read(0, 0, 247, 250)[Sensor.RGIR].values, colours())
    assert caplog.text == ""
    values, _ = read_pair(rgir, save(tmp_path / "placed.tif", heights()))
    np.testing.assert_array_equal(values, heights())
    assert "pixel by pixel" in caplog.text
    for other in (unplaced(tmp_path / "a.tif", heights(246)), save(tmp_path / "b.tif", heights(246))):
        with pytest.raises(GridError, match="250 x 246 px"):
            read_pair(rgir, other)


def test_the_grid_keeps_ground_control_points(tmp_path: Path) -> None:
    points = [GroundControlPoint(row, col, 100 + col, 200 - row) for row, col in ((0, 0), (0, 50), (60, 0), (60, 50))]
    path = unplaced(tmp_path / "rgir.tif", colours(60, 50), gcps=(points, LAMBERT))
    with SensorRasters.open({Sensor.RGIR: path}, SPECS) as rasters:
        assert [(point.row, point.col, point.x, point.y) for point in rasters.grid.gcps] == [
            (point.row, point.col, point.x, point.y) for point in points
        ]
        assert rasters.grid.gcps_crs == LAMBERT
        assert rasters.grid.transform is None


@pytest.mark.parametrize(
    ("epsg", "transform", "gsd_m", "tolerance"),
    [
        (2154, Affine(0.2, 0, 770550, 0, -0.2, 6277600), 0.2, 1e-9),
        (2154, Affine(0.2, 0, 770550, 0, 0.2, 6277600), 0.2, 1e-9),
        (2154, Affine.translation(770550, 6277600) @ Affine.rotation(30) @ Affine.scale(0.5, -0.5), 0.5, 1e-9),
        (2263, Affine(0.5, 0, 980000, 0, -0.5, 200000), 0.5 * 1200 / 3937, 1e-9),  # US survey feet
        (4326, Affine(1e-6, 0, 2.35, 0, -1e-6, 48.85), 0.09032, 2e-3),  # 0.1113 m north x 0.0733 m east
    ],
)
def test_ground_sampling_distance_is_in_metres_in_any_crs(
    epsg: int, transform: Affine, gsd_m: float, tolerance: float
) -> None:
    grid = Grid(width=100, height=80, crs=CRS.from_epsg(epsg), transform=transform)
    assert grid.gsd_m == pytest.approx(gsd_m, rel=tolerance)


def test_a_grid_without_crs_has_no_ground_sampling_distance() -> None:
    assert Grid(width=10, height=10, crs=None, transform=NORTH_UP).gsd_m is None
    with pytest.raises(ValueError, match="0 x 10"):
        Grid(width=0, height=10, crs=None, transform=None)


# ----------------------------------------------------------------------------------------------- broken files


@pytest.mark.parametrize("content", [None, b"", b"this is no raster"])
def test_a_missing_or_unreadable_raster_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "rgir.tif"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RasterOpenError, match="does not exist" if content is None else "not a raster") as caught:
        read_all(path, Sensor.RGIR)
    assert str(path) in str(caught.value)
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("driver", ["GTiff", "GTiff deflate", "PNG", "JPEG"])
def test_a_truncated_raster_fails_at_the_latest_when_the_missing_part_is_read(tmp_path: Path, driver: str) -> None:
    path = tmp_path / "rgir.img"
    if driver.startswith("GTiff"):
        save(path, colours(), compress="deflate" if "deflate" in driver else None)
    else:
        unplaced(path, colours(), driver=driver)
    with path.open("r+b") as stream:
        stream.truncate(path.stat().st_size * 2 // 3)
    with pytest.raises(RasterOpenError, match=r"truncated or damaged|not a raster"):
        read_all(path, Sensor.RGIR)


def test_paths_inside_archives_are_allowed(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "scene.zip", "w") as archive:
        archive.write(save(tmp_path / "rgir.tif", colours()), "inside/rgir.tif")
    path = Path("/vsizip/{" + str(tmp_path / "scene.zip") + "}/inside/rgir.tif")
    values, _ = read_all(path, Sensor.RGIR)
    np.testing.assert_array_equal(values, colours())
    with SensorRasters.open({Sensor.RGIR: path}, SPECS) as rasters:
        assert rasters.identity()["rgir"]["path"] == str(path)


def test_rasters_on_a_web_server_are_allowed(tmp_path: Path) -> None:
    save(tmp_path / "rgir.tif", colours())
    # a process of its own: rasterio keeps Python's lock while it opens a file
    program = "from http.server import *; s = HTTPServer(('127.0.0.1', 0), SimpleHTTPRequestHandler); "
    program += "print(s.server_port, flush=True); s.serve_forever()"
    server = subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        values, _ = read_all(Path(f"/vsicurl_streaming/http://127.0.0.1:{port}/rgir.tif"), Sensor.RGIR)
    finally:
        server.kill()
        server.communicate()
    np.testing.assert_array_equal(values, colours())


def test_the_identity_changes_with_the_file_and_with_how_it_is_read(tmp_path: Path) -> None:
    def identity(**options: Any) -> dict[str, dict[str, Any]]:
        with SensorRasters.open(paths, SPECS, **options) as rasters:
            return rasters.identity()

    paths = {Sensor.RGIR: save(tmp_path / "a.tif", colours()), Sensor.NDSM: save(tmp_path / "b.tif", heights())}
    before = identity()
    assert before == identity() == json.loads(json.dumps(before))
    assert before["rgir"]["size_bytes"] == paths[Sensor.RGIR].stat().st_size
    assert before != identity(rgir_bands=(1, 3, 2))
    assert before != identity(ndsm_scale_m=0.5)
    os.utime(paths[Sensor.NDSM], ns=(1, 1))
    assert before != identity()


def test_the_cache_holds_a_row_of_windows_of_a_wide_raster_in_strips(tmp_path: Path) -> None:
    wide = np.ones((3, 560, 30_000), np.uint8)
    strips = save(tmp_path / "strips.tif", wide, compress="deflate")
    tiles = save(tmp_path / "tiles.tif", wide, compress="deflate", tiled=True, blockxsize=256, blockysize=256)
    sizes = {}
    for path in (tiles, strips):
        with gdal_environment(), SensorRasters.open({Sensor.RGIR: path}, SPECS):
            sizes[path] = rasterio.env.getenv()["GDAL_CACHEMAX"]
    assert sizes[tiles] == 32 << 20
    assert 30_000 * 512 * 3 < sizes[strips] < 70 << 20


# ------------------------------------------------------------------------------------------------ real scenes


@pytest.mark.skipif(not REAL_SCENES.is_dir(), reason=f"the real scenes are not at {REAL_SCENES}")
@pytest.mark.parametrize("scene", ["town_north", "town_palms_a", "town_palms_b", "rural_strip"])
def test_real_scenes_read_as_rasterio_reads_them(scene: str) -> None:
    paths = {sensor: REAL_SCENES / scene / f"{sensor}.tif" for sensor in Sensor}
    with SensorRasters.open(paths, SPECS) as rasters:
        seen = rasters.read(0, 0, rasters.grid.height, rasters.grid.width)
    for sensor, path in paths.items():
        with rasterio.open(path) as file:
            expected, mask = file.read(), file.dataset_mask() > 0
        np.testing.assert_array_equal(seen[sensor].valid, mask)
        np.testing.assert_array_equal(seen[sensor].values[:, mask], expected[:, mask])


def test_closing_twice_is_harmless(tmp_path: Path) -> None:
    rasters = SensorRasters.open({Sensor.RGIR: save(tmp_path / "rgir.tif", colours())}, SPECS)
    rasters.close()
    rasters.close()
    shutil.rmtree(tmp_path)
