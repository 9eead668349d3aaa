import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import uniform_filter

from train.data import dataset
from train.data.dataset import (
    CropDataset,
    SceneCache,
    WholeSceneDataset,
    augment_height,
    augment_optical,
    band_statistics,
    box_blur,
    fill_holes,
    resample,
    resample_nearest,
)


def write_scene(cache: SceneCache, seed: int, side: int = 96) -> None:
    """A scene whose bands all tell the label, so that a crop that tears them apart shows."""
    labels = np.random.default_rng(seed).integers(0, 6, (side, side)).astype(np.uint8)
    ndsm = labels[None].astype(np.float16)
    ndsm[0, 10:14, 20:30] = np.nan
    folder = cache.path(seed)
    folder.mkdir(parents=True)
    np.save(folder / "rgir.npy", np.stack([labels * 40, labels * 30, labels * 20]))
    np.save(folder / "ndsm.npy", ndsm)
    np.save(folder / "labels.npy", labels)


@pytest.fixture
def cache(tmp_path):
    found = SceneCache(root=tmp_path / "cache")
    for seed in range(3):
        write_scene(found, seed)
    return found


def test_holes_take_the_nearest_value_of_their_row_and_empty_rows_that_of_their_column():
    nan = np.nan
    height = np.array([[1, nan, nan, nan, 5], [nan] * 5, [7, 7, nan, 8, 8], [nan] * 5], np.float32)
    filled, valid = fill_holes(height)
    expected = [[1, 1, 1, 5, 5], [1, 1, 1, 5, 5], [7, 7, 7, 8, 8], [7, 7, 7, 8, 8]]
    np.testing.assert_array_equal(filled, expected)
    np.testing.assert_array_equal(valid, np.isfinite(height))


def test_a_height_without_any_value_becomes_flat_ground():
    filled, valid = fill_holes(np.full((3, 4), np.nan, np.float32))
    assert not filled.any()
    assert not valid.any()


@pytest.mark.parametrize("size", [48, 64, 100])
def test_resampling_agrees_with_torch(size):
    x = np.random.default_rng(0).random((2, 64, 64)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(x)[None], size=(size, size), mode="bilinear", align_corners=False)[0]
    np.testing.assert_allclose(resample(x, size), expected.numpy(), atol=1e-5)
    nearest = F.interpolate(torch.from_numpy(x)[None], size=(size, size), mode="nearest-exact")[0, 0]
    np.testing.assert_array_equal(resample_nearest(x[0], size), nearest.numpy())


def test_box_blur_agrees_with_scipy():
    x = np.random.default_rng(0).random((2, 20, 30)).astype(np.float32)
    expected = uniform_filter(x, (1, 5, 5), mode="nearest")
    np.testing.assert_allclose(box_blur(x, 2), expected, atol=1e-5)


def test_a_sample_depends_on_seed_and_index_alone(cache):
    def make(seed: int) -> CropDataset:
        return CropDataset(cache, range(3), length=20, crop_px=32, seed=seed)

    first, again, other = make(0), make(0), make(1)
    _ = again[3]  # a draw in between, as another worker would make it
    for name, tensor in first[7].items():
        torch.testing.assert_close(again[7][name], tensor, atol=0, rtol=0)
    assert not torch.equal(first[7]["rgir"], other[7]["rgir"])
    assert not torch.equal(first[7]["rgir"], first[8]["rgir"])


def test_a_sample_has_the_documented_shapes_types_and_finite_heights(cache):
    for i in range(20):
        item = CropDataset(cache, range(3), length=20, crop_px=32, seed=0)[i]
        shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in item.items()}
        assert shapes == {
            "rgir": ((3, 32, 32), torch.uint8),
            "ndsm": ((1, 32, 32), torch.float32),
            "ndsm_valid": ((32, 32), torch.bool),
            "labels": ((32, 32), torch.uint8),
            "available": ((2,), torch.bool),
        }
        assert torch.isfinite(item["ndsm"]).all()


def test_bands_and_labels_are_cut_turned_and_flipped_together(cache, monkeypatch):
    monkeypatch.setattr(dataset, "augment_optical", lambda rgir, rng: rgir)
    monkeypatch.setattr(dataset, "augment_height", lambda height, rng: height)
    crops = CropDataset(cache, range(3), length=40, crop_px=32, seed=0, scale=(1, 1))
    holes = 0
    for i in range(40):
        item = crops[i]
        assert torch.equal(item["rgir"][0], item["labels"] * 40)
        measured = item["ndsm_valid"]
        assert torch.equal(item["ndsm"][0][measured], item["labels"].float()[measured])
        holes += int((~measured).sum())
    assert holes > 0


def test_scenarios_are_drawn_uniformly(cache):
    crops = CropDataset(cache, range(3), length=300, crop_px=32, seed=0)
    masks, counts = np.unique([crops[i]["available"].numpy() for i in range(300)], axis=0, return_counts=True)
    assert masks.tolist() == [[False, True], [True, False], [True, True]]
    assert counts.min() > 75  # 100 expected, 8.2 standard deviation


def test_augmentation_changes_its_own_sensor_and_keeps_its_range():
    rng = np.random.default_rng(0)
    rgir = rng.integers(0, 256, (3, 64, 64)).astype(np.uint8)
    height = rng.random((64, 64), np.float32) * 10
    before = rgir.copy(), height.copy()
    for _ in range(30):
        seen, measured = augment_optical(rgir, rng), augment_height(height, rng)
        assert (seen.shape, seen.dtype) == (rgir.shape, np.uint8)
        assert (measured.shape, measured.dtype) == (height.shape, np.float32)
        assert not np.array_equal(seen, rgir)
        assert not np.array_equal(measured, height)
        assert np.isfinite(measured).all()
        assert -2 < measured.min() <= measured.max() < 14
    np.testing.assert_array_equal(rgir, before[0])
    np.testing.assert_array_equal(height, before[1])


def test_whole_scenes_come_unaugmented_with_their_holes_marked(cache):
    item = WholeSceneDataset(cache, range(3))[1]
    scene = cache.load(1)
    np.testing.assert_array_equal(item["rgir"].numpy(), scene.rgir)
    np.testing.assert_array_equal(item["labels"].numpy(), scene.labels)
    assert int((~item["ndsm_valid"]).sum()) == 4 * 10


def test_band_statistics_leave_holes_out(cache):
    found = band_statistics(cache, range(3))
    pixels = np.concatenate([np.asarray(cache.load(seed).ndsm, np.float64).ravel() for seed in range(3)])
    assert found["ndsm"] == [pytest.approx((np.nanmean(pixels), np.nanstd(pixels)))]
    assert len(found["rgir"]) == 3


def test_filling_a_cache_makes_only_what_is_missing_and_scenes_read_back_as_generated(tmp_path):
    cache = SceneCache(root=tmp_path / "cache")
    cache.fill(range(2), size_px=64, workers=1)
    (cache.root / ".scene-leftover").mkdir()  # of an interrupted run
    made = cache.path(1).stat().st_mtime_ns
    cache.fill(range(3), size_px=64, workers=1)
    assert cache.path(1).stat().st_mtime_ns == made
    expected = dataset.synthetic.generate(seed=2, size_px=64)
    scene = cache.load(2)
    np.testing.assert_array_equal(scene.rgir, expected.rgir)
    np.testing.assert_array_equal(scene.labels, expected.labels)
    np.testing.assert_allclose(scene.ndsm, expected.ndsm, atol=0.02)


def test_a_cache_of_another_generator_version_is_reported(tmp_path, caplog):
    cache = SceneCache(root=tmp_path)
    (tmp_path / "generator.sha256").write_text("of an older version")
    cache.fill([], workers=1)
    assert "another version" in caplog.text
