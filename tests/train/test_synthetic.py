"""The procedural scenes are reproducible, exact in their formats, and plausible in metres."""

import subprocess
import sys

import numpy as np
import pytest
import rasterio
from scipy import ndimage

from train.data.synthetic import GSD_RANGE_M, STYLES, SyntheticScene, generate
from train.data.synthetic.optics import cast_shadow

IMPERVIOUS, BUILDING, LOW_VEGETATION, TREE, CAR, CLUTTER = range(6)


@pytest.fixture(scope="module")
def scenes() -> list[SyntheticScene]:
    return [generate(seed=seed, size_px=192) for seed in range(28)]


def pooled(scenes: list[SyntheticScene], index: int) -> tuple[np.ndarray, np.ndarray]:
    """All pixels of a class: rgir [3,N] and the known heights [M]."""
    rgir = np.concatenate([s.rgir[:, s.labels == index] for s in scenes], axis=1)
    ndsm = np.concatenate([s.ndsm[0][s.labels == index] for s in scenes])
    return rgir.astype(np.float64), ndsm[~np.isnan(ndsm)]


def test_a_seed_gives_the_same_bytes_in_another_process() -> None:
    code = (
        "import hashlib; from train.data.synthetic import generate; s = generate(seed=5, size_px=96);"
        "print(hashlib.sha256(s.rgir.tobytes() + s.ndsm.tobytes() + s.labels.tobytes()).hexdigest(), s.gsd_m)"
    )
    digests = {
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


def test_seeds_differ() -> None:
    assert not np.array_equal(generate(seed=1, size_px=64).rgir, generate(seed=2, size_px=64).rgir)


def test_formats_are_as_documented(scenes: list[SyntheticScene]) -> None:
    for scene in scenes:
        assert scene.rgir.dtype == np.uint8
        assert scene.rgir.shape == (3, 192, 192)
        assert scene.ndsm.dtype == np.float32
        assert scene.ndsm.shape == (1, 192, 192)
        assert scene.labels.dtype == np.uint8
        assert set(np.unique(scene.labels)) <= {*range(6), 255}
        assert GSD_RANGE_M[0] <= scene.gsd_m <= GSD_RANGE_M[1]
        known = scene.ndsm[~np.isnan(scene.ndsm)]
        assert known.size
        assert known.min() > -3
        assert known.max() < 60


def test_only_some_scenes_have_holes_in_the_heights(scenes: list[SyntheticScene]) -> None:
    holed = np.mean([np.isnan(s.ndsm).any() for s in scenes])
    assert 0.1 < holed < 0.6


def test_class_shares_are_those_of_a_neighbourhood(scenes: list[SyntheticScene]) -> None:
    shares = np.mean([np.bincount(s.labels.ravel(), minlength=6)[:6] / s.labels.size for s in scenes], axis=0)
    low = (0.20, 0.10, 0.15, 0.07, 0.008, 0.004)
    high = (0.50, 0.40, 0.45, 0.30, 0.04, 0.08)
    assert np.all(shares > low), shares
    assert np.all(shares < high), shares


def test_vegetation_is_brighter_in_nir_than_in_red_and_asphalt_is_not(scenes: list[SyntheticScene]) -> None:
    def ndvi(index: int) -> float:
        nir, red, _ = pooled(scenes, index)[0]
        return float(np.median((nir - red) / (nir + red + 1)))

    assert ndvi(TREE) > 0.1
    assert ndvi(LOW_VEGETATION) > 0.05
    assert ndvi(IMPERVIOUS) < 0.02
    assert ndvi(BUILDING) < 0.05


def test_heights_are_those_of_the_classes(scenes: list[SyntheticScene]) -> None:
    medians = [float(np.median(pooled(scenes, index)[1])) for index in range(6)]
    assert 4 < medians[BUILDING] < 15
    assert 2 < medians[TREE] < 15
    assert 0.1 < medians[CAR] < 1.8
    assert abs(medians[IMPERVIOUS]) < 0.15
    assert abs(medians[LOW_VEGETATION]) < 0.4


def test_neither_sensor_alone_tells_the_classes_apart(scenes: list[SyntheticScene]) -> None:
    """Roofs share colours with pavements, and lawns share heights with asphalt."""
    roofs, ground = (pooled(scenes, index)[0].mean(axis=0) for index in (BUILDING, IMPERVIOUS))
    inside = (roofs > np.percentile(ground, 10)) & (roofs < np.percentile(ground, 90))
    assert inside.mean() > 0.5
    lawn, asphalt = (pooled(scenes, index)[1] for index in (LOW_VEGETATION, IMPERVIOUS))
    assert (lawn < np.percentile(asphalt, 90)).mean() > 0.4


def test_cars_have_their_size_in_metres_at_every_pixel_size() -> None:
    def car_area_m2(gsd_m: float) -> float:
        """Median area of whole, separate cars over some scenes of the same ground extent."""
        areas: list[float] = []
        for seed in range(4):
            scene = generate(seed=seed, size_px=int(60 / gsd_m), gsd_m=gsd_m, style="suburb")
            parts, count = ndimage.label(scene.labels == CAR)
            sizes = ndimage.sum_labels(np.ones_like(parts), parts, np.arange(1, count + 1))
            areas += [float(a) * gsd_m**2 for a in sizes if a * gsd_m**2 > 2]
        return float(np.median(areas))

    for gsd_m in (0.1, 0.3):
        assert 5 < car_area_m2(gsd_m) < 12


def test_sizes_need_not_be_square() -> None:
    scene = generate(seed=3, size_px=(80, 133), gsd_m=0.5)
    assert scene.labels.shape == (80, 133)
    assert scene.gsd_m == 0.5


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("gsd_m", [0.05, 0.5])
def test_every_style_builds_at_both_ends_of_the_range(style: str, gsd_m: float) -> None:
    assert generate(seed=11, size_px=128, gsd_m=gsd_m, style=style).labels.shape == (128, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size_px": 8}, "at least 16"),
        ({"gsd_m": 0.0}, r"0\.03\.\.2 metres, received 0\.0"),
        ({"style": "moon"}, "one of suburb"),
    ],
)
def test_a_wrong_argument_is_an_error_that_names_the_rule(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(seed=0, **options)


def test_a_wall_throws_a_shadow_of_the_right_length() -> None:
    surface = np.zeros((64, 64), np.float32)
    surface[:, 40] = 5.0
    # Sun in the +x direction at 45 degrees: a 5 m wall shades 5 m, ten pixels, on its -x side.
    shaded = cast_shadow(surface, 0.5, azimuth=0.0, elevation=np.pi / 4) > 0.01
    assert shaded[32, 31:40].all()
    assert not shaded[32, :30].any()
    assert not shaded[32, 40:].any()


def test_the_command_writes_scenes_that_gdal_reads_back(tmp_path) -> None:
    command = [sys.executable, "-m", "train.data.synthetic", "--out", str(tmp_path), "--count", "1"]
    subprocess.run([*command, "--size", "128", "--seed", "9", "--preview"], check=True, capture_output=True)
    folder, scene = tmp_path / "scene_00000", generate(seed=9, size_px=128)
    with rasterio.open(folder / "rgir.tif") as src:
        assert np.array_equal(src.read(), scene.rgir)
        assert src.res == pytest.approx((scene.gsd_m, scene.gsd_m))
    with rasterio.open(folder / "ndsm.tif") as src:
        assert np.array_equal(src.read(), scene.ndsm, equal_nan=True)
        assert np.isnan(src.nodata)
    with rasterio.open(folder / "labels.tif") as src:
        assert np.array_equal(src.read(1), scene.labels)
        assert src.colormap(1)[BUILDING] == (0, 0, 255, 255)
    assert (folder / "preview.png").stat().st_size > 0


def test_real_colours_change_colours_alone() -> None:
    plain, real = (generate(seed=4, size_px=192, gsd_m=0.5, real_colours=given) for given in (False, True))
    assert np.array_equal(plain.labels, real.labels)
    assert np.array_equal(plain.ndsm, real.ndsm, equal_nan=True)
    nir, red = (np.stack([s.rgir[band][s.labels == 3].astype(float) for s in (plain, real)]) for band in (0, 1))
    ndvi = np.median((nir - red) / np.maximum(nir + red, 1), axis=1)
    assert ndvi[1] > ndvi[0] + 0.1
