"""Several sources in one training."""

import numpy as np
import pytest
import rasterio
from PIL import Image

from engine.contract.sensors import Scenario, Sensor
from tests.train.scenes import toy_scene
from tests.train.test_folder import SIDE, scene
from train import checkpoint, run
from train.data.dataset import CropDataset, Pool
from train.data.drawn_heights import drawn_heights
from train.data.folder import FolderSource
from train.data.procedural import FIRST_SEED
from train.data.rasters import DataError
from train.data.sources import open_mix
from train.evaluate import scenarios_of

SPLIT = '[split]\nvalidation = ["b"]\ntest = ["c"]\n'


@pytest.fixture
def real(tmp_path):
    """Images without heights: a and b with labels, c and d without."""
    root = tmp_path / "real"
    for name in "abcd":
        scene(root, name, without="ndsm")
        (root / name / "ndsm.tif").unlink(missing_ok=True)
    for name in "cd":
        (root / name / "labels.tif").unlink()
    (root / "dataset.toml").write_text(SPLIT)
    return root


def overlay(folder, name, value, side=SIDE):
    folder.mkdir(exist_ok=True)
    Image.fromarray(np.full((side, side), value, np.uint8)).save(folder / f"{name}.png")
    return folder


def test_samples_come_from_each_source_by_its_share_and_zoom(tmp_path, monkeypatch):
    scenes = [toy_scene(tmp_path, seed) for seed in range(3)]
    pools = [
        Pool(scenes=tuple(scenes[:2]), share=3, zoom=(0.5, 0.5)),
        Pool(scenes=(scenes[2],), share=1, zoom=(2.0, 2.0)),
    ]
    crops = CropDataset(pools, counted=(0, 1, 2, 3, 4), length=1, crop_px=32, seed=0)
    places = [crops._place(np.random.default_rng(i)) for i in range(800)]
    small = [window[2] for _, found, window in places if found.name == scenes[2].name]
    large = [window[2] for _, found, window in places if found.name != scenes[2].name]
    assert set(small) == {16}
    assert set(large) == {64}
    assert len(small) / len(places) == pytest.approx(0.25, abs=0.06)  # 4 standard deviations


def test_scenes_of_any_resolution_are_brought_to_the_range_that_is_asked_for(tmp_path):
    fine, coarse = (toy_scene(tmp_path, seed, gsd_m=gsd_m) for seed, gsd_m in enumerate((0.1, 0.6)))
    pool = Pool(scenes=(fine, coarse), zoom=(1, 1), gsd_m=(0.15, 0.3))
    crops = CropDataset([pool], counted=(0, 1, 2, 3, 4), length=1, crop_px=32, seed=0)
    sides = {fine.name: set(), coarse.name: set()}
    for i in range(200):
        _, scene, window = crops._place(np.random.default_rng(i))
        sides[scene.name].add(window[2])
    # 32 px of 0.15 to 0.3 m are 4.8 to 9.6 m on the ground
    assert (min(sides[fine.name]), max(sides[fine.name])) == pytest.approx((48, 96), abs=1)
    assert (min(sides[coarse.name]), max(sides[coarse.name])) == pytest.approx((8, 16), abs=1)


def test_a_range_of_resolutions_needs_scenes_that_tell_theirs(tmp_path):
    with pytest.raises(ValueError, match="scenes that tell theirs; 1 do not, such as scene_00000001"):
        Pool(scenes=(toy_scene(tmp_path, 0, gsd_m=0.2), toy_scene(tmp_path, 1)), gsd_m=(0.15, 0.3))


def test_a_folder_scene_knows_its_resolution_and_the_mix_the_one_it_trains_for(tmp_path, real):
    found = open_mix([f"folder:{real}"], tmp_path / "cache", shares=None, zooms=None, gsd="0.15-0.3")
    assert found.gsd_m == (0.15, 0.3)
    (pool,) = found.pools()
    assert pool.gsd_m == (0.15, 0.3)
    with rasterio.open(real / "a" / "rgir.tif") as raster:
        assert {scene.gsd_m for scene in pool.scenes} == {raster.res[0]}


@pytest.mark.parametrize("text", ["0.3", "0.3-0.1", "0-1", "a-b", "0.1-inf"])
def test_ranges_of_resolutions_that_are_none_are_refused(tmp_path, real, text):
    with pytest.raises(DataError, match="--gsd takes two metres as LOW-HIGH"):
        open_mix([f"folder:{real}"], tmp_path / "cache", shares=None, zooms=None, gsd=text)


def test_labels_of_another_folder_fill_what_lacks_them_and_replace_none(tmp_path, real):
    for name in "ad":
        overlay(tmp_path / "labels", name, 4)
    mine = FolderSource(root=real, cache=tmp_path / "cache", overlay=tmp_path / "labels")
    found = {s.name: s for part in ("train", "validation", "test") for s in mine.split(part)}
    assert [name for name, s in sorted(found.items()) if s.labelled] == ["a", "b", "d"]
    assert set(np.unique(found["d"].labels())) == {4}
    assert len(np.unique(found["a"].labels())) > 1  # its own


def test_labels_that_come_later_prepare_their_scene_again(tmp_path, real):
    first = FolderSource(root=real, cache=tmp_path / "cache").split("train")
    assert [s.labelled for s in first] == [True, False]
    labels = overlay(tmp_path / "labels", "d", 2)
    again = FolderSource(root=real, cache=tmp_path / "cache", overlay=labels).split("train")
    assert [s.labelled for s in again] == [True, True]


def test_labels_that_fit_no_scene_or_another_size_are_refused(tmp_path, real):
    with pytest.raises(DataError, match="no labels of a scene"):
        FolderSource(root=real, cache=tmp_path / "cache", overlay=overlay(tmp_path / "other", "moon", 1))
    wrong = overlay(tmp_path / "wrong", "d", 1, side=SIDE // 2)
    with pytest.raises(DataError, match="one size"):
        FolderSource(root=real, cache=tmp_path / "cache", overlay=wrong).split("train")


def test_only_what_teaches_is_trained_on(tmp_path, real):
    mix = open_mix([f"folder:{real}"], tmp_path / "cache", shares=None, zooms="1-2")
    assert [s.name for s in mix.pools()[0].scenes] == ["a"]
    for name in "a":
        (real / name / "labels.tif").unlink()
    with pytest.raises(DataError, match=r"train\.adapt"):
        open_mix([f"folder:{real}"], tmp_path / "cache", shares=None, zooms=None).pools()


@pytest.mark.parametrize(
    ("shares", "zooms"), [("1", None), ("1,0", None), ("a,b", None), (None, "2"), (None, "2-1"), (None, "1-2,1-2,1-2")]
)
def test_shares_and_zooms_that_do_not_fit_are_refused(tmp_path, real, shares, zooms):
    with pytest.raises(DataError, match="--share"):
        open_mix(["synthetic:1", f"folder:{real}"], tmp_path, shares=shares, zooms=zooms)


def test_labels_of_another_folder_belong_to_a_folder(tmp_path):
    with pytest.raises(DataError, match="--labels belongs to a folder"):
        open_mix(["synthetic:1"], tmp_path, shares=None, zooms=None, labels=tmp_path)


def test_a_mix_of_other_classes_is_refused(tmp_path, real):
    (real / "dataset.toml").write_text(SPLIT + '[[class]]\nname = "water"\nrgb = [0, 0, 255]\n')
    with pytest.raises(DataError, match="same classes"):
        open_mix(["synthetic:1", f"folder:{real}"], tmp_path, shares=None, zooms=None)


def test_real_images_without_heights_train_and_validate_beside_procedural_scenes(tmp_path, real):
    cache = tmp_path / "cache"
    for seed in (0, 1, FIRST_SEED["validation"]):
        toy_scene(cache, seed)
    out = tmp_path / "run"
    words = f"--preset nano --data synthetic:2 --data folder:{real} --share 0.25,0.75 --zoom 0.7-1.4,1-2 --steps 2"
    words += f" --validation-scenes 1 --batch 2 --crop 64 --validate-every 2 --workers 0 --threads 1 --cache {cache}"
    assert run.main([*words.split(), "--out", str(out)]) == 0
    _, info = checkpoint.load(out / "best.safetensors")
    assert set(info.metrics) == set(Scenario)
    assert {name: set(found) for name, found in info.other_metrics.items()} == {"real": {Scenario.MISSING_NDSM}}
    own = sum(s.mean_f1 for s in info.metrics.values()) / 3
    other = info.other_metrics["real"][Scenario.MISSING_NDSM].mean_f1
    assert info.mean_f1 == pytest.approx((own + other) / 2)
    assert info.dataset == "25% synthetic (2 scenes, 2 labelled); 75% real (1 scenes, 1 labelled)"
    assert info.gsd_m == pytest.approx((0.057, 0.5), abs=1e-3)


def test_a_mix_that_cannot_validate_all_scenarios_is_refused(tmp_path, real, capsys):
    words = ["--data", f"folder:{real}", "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "run")]
    assert run.main(words) == 2
    assert "name one that has some first" in capsys.readouterr().err


def test_scenarios_that_can_be_scored_follow_from_the_sensors(tmp_path):
    rgir = toy_scene(tmp_path, 0, without=("ndsm",))
    unlabelled = toy_scene(tmp_path, 1, without=("labels",))
    assert scenarios_of([rgir, unlabelled]) == (Scenario.MISSING_NDSM,)
    assert rgir.sensors == {Sensor.RGIR}
    both = toy_scene(tmp_path, 2)
    assert set(scenarios_of([rgir, both])) == set(Scenario)


def test_drawn_heights_stand_up_where_things_do_and_are_unknown_where_the_class_is():
    labels = np.zeros((80, 80), np.uint8)
    labels[5:25, 5:25] = 1
    labels[30:50, 30:50] = 3
    labels[60:63, 60:68] = 4
    labels[70:75, :] = 2
    labels[:, 78:] = 255
    for seed in range(5):
        height = drawn_heights(labels, 0.6, np.random.default_rng(seed))
        assert np.isnan(height[labels == 255]).all()
        assert np.isfinite(height[labels != 255]).all()
        assert height[labels == 1].min() > 2.2  # a storey less its tolerance
        assert height[35:45, 35:45].mean() > 2
        assert 1.2 < height[61, 62] < 2
        assert abs(height[labels == 0]).max() < 1.5


def test_drawn_heights_teach_both_sensors_and_never_stand_alone(tmp_path):
    drawn = toy_scene(tmp_path, 0, without=("ndsm",))
    crops = CropDataset(
        [Pool(scenes=(drawn,), drawn_gsd_m=0.6)], counted=(0, 1, 2, 3, 4), length=60, crop_px=32, seed=0
    )
    found = [tuple(crops[i]["available"].tolist()) for i in range(60)]
    assert set(found) == {(True, True), (True, False)}
    assert 10 <= found.count((True, True)) <= 32  # a third of 60, within 3.3 standard deviations
    assert all(crops[i]["ndsm_valid"].all() for i in range(5))
