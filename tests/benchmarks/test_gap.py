"""What tells procedural scenes from real ones, on scenes whose distance is known."""

import numpy as np
import pytest
from scipy import ndimage

from benchmarks import gap
from engine.contract.errors import InputError
from tests.train.test_folder import scene

NAMES = ("ground", "roof")


def noise(seed, *, level=100, spread=10, smooth=0, side=256):
    x = np.random.default_rng(seed).standard_normal((3, side, side))
    if smooth:
        x = ndimage.gaussian_filter(x, (0, smooth, smooth))
        x /= x.std()
    return np.clip(np.rint(level + spread * x), 0, 255).astype(np.uint8)


def labels(side=256):
    return np.indices((side, side))[0] // (side // 2)


def test_distances_are_in_standard_deviations_of_the_real_pixels():
    real = [(noise(0), labels().astype(np.uint8))]
    rows = gap.distances(real, [(noise(1, level=120), labels().astype(np.uint8))], NAMES)
    found = {(row["class"], row["measure"]): row for row in rows}
    for name in NAMES:
        assert found[name, "red"]["distance"] == pytest.approx(2, abs=0.1)
        assert found[name, "red"]["real_p50"] == pytest.approx(100, abs=1)
        assert found[name, "red"]["procedural_p50"] == pytest.approx(120, abs=1)
        assert found[name, "contrast red"]["distance"] < 0.1
    assert [row["distance"] for row in rows] == sorted((row["distance"] for row in rows), reverse=True)


def test_a_class_that_one_side_lacks_is_left_out():
    only_ground = np.zeros((256, 256), np.uint8)
    rows = gap.distances([(noise(0), labels().astype(np.uint8))], [(noise(1), only_ground)], NAMES)
    assert {row["class"] for row in rows} == {"ground"}


def test_measures_are_what_their_names_say():
    rgir = np.zeros((3, 64, 64), np.uint8)
    rgir[0], rgir[1], rgir[2] = 150, 50, 80
    rgir[:, :, 32:] += 40
    found = dict(zip(gap.MEASURES, gap.measures(rgir), strict=True))
    assert found["NDVI"][0, 0] == pytest.approx(0.5)
    assert found["contrast red"][0, 0] == pytest.approx(0, abs=1e-2)
    assert found["contrast red"][30, 31] == pytest.approx(np.std([50] * 3 + [90] * 2), abs=1e-2)
    assert found["sharpness red"][30, 31] == pytest.approx(20 / (np.std([50] * 3 + [90] * 2) + 1), abs=1e-2)


def test_what_is_alike_cannot_be_told_apart_and_what_is_smooth_can():
    real = {f"town_2020_{i}": noise(i, smooth=2) for i in range(20)}
    assert 0.3 < gap.told_apart(real, [noise(100 + i, smooth=2) for i in range(20)]) < 0.7
    assert gap.told_apart(real, [noise(100 + i) for i in range(20)]) == 1


def test_the_same_place_in_two_years_is_in_one_fold():
    assert gap._place("chico_2018_60") == gap._place("chico_2020_60") != gap._place("chico_2020_6")


def test_too_few_labelled_scenes_are_refused(tmp_path):
    for name in "ab":
        scene(tmp_path, name)
    options = gap.build_parser().parse_args(["--data", str(tmp_path)])
    with pytest.raises(InputError, match="at least 5 labelled scenes"):
        gap.compare(options)
