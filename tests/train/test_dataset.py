import numpy as np
import pytest
import torch
import torch.nn.functional as F

from engine.contract.nodata import fill_nodata
from engine.contract.sensors import Sensor
from tests.train.scenes import toy_scene
from train.data import dataset
from train.data.augment import augment_height, augment_optical, inside_border
from train.data.dataset import ZOOM, CropDataset, Pool, band_statistics, rare_pixels
from train.data.scenes import Scene, fill_height, write_scene

COUNTED = (0, 1, 2, 3, 4)


@pytest.fixture
def scenes(tmp_path):
    return [toy_scene(tmp_path, seed) for seed in range(3)]


def crops_of(scenes, *, zoom=ZOOM, **options) -> CropDataset:
    return CropDataset(
        [Pool(scenes=tuple(scenes), zoom=zoom)],
        **({"counted": COUNTED, "length": 40, "crop_px": 32, "seed": 0} | options),
    )


def unaugmented(monkeypatch) -> None:
    monkeypatch.setattr(dataset, "augment_optical", lambda rgir, rng: rgir)
    monkeypatch.setattr(dataset, "augment_height", lambda height, rng: height)


def test_holes_mirror_the_nearest_run_of_their_row_and_empty_rows_other_rows():
    nan = np.nan
    rows = [nan] * 7, [1, nan, nan, nan, 5, 6, nan], [nan, nan, nan, nan, nan, 7, 8], [nan] * 7, [nan] * 7
    height = np.array(rows, np.float32)
    filled, valid = fill_height(height)
    first, second = [1, 1, 1, 5, 5, 6, 6], [7, 7, 8, 8, 7, 7, 8]
    np.testing.assert_array_equal(filled, [first, first, second, second, first])
    np.testing.assert_array_equal(valid, np.isfinite(height))


def test_a_height_without_any_value_becomes_flat_ground():
    filled, valid = fill_height(np.full((3, 4), np.nan, np.float32))
    assert not filled.any()
    assert not valid.any()


def test_a_scene_with_arrays_of_different_sizes_is_refused(tmp_path):
    arrays = {"rgir": np.zeros((3, 8, 8), np.uint8), "ndsm": np.zeros((1, 8, 9), np.float16)}
    with pytest.raises(ValueError, match="one size"):
        write_scene(tmp_path / "scene", arrays, {})


def test_a_scene_without_a_sensor_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither"):
        write_scene(tmp_path / "scene", {"labels": np.zeros((8, 8), np.uint8)}, {})


def test_a_zoomed_crop_is_the_window_resampled_as_torch_does(scenes, monkeypatch):
    unaugmented(monkeypatch)
    crops = crops_of(scenes[:1], zoom=(1.999, 2.0))
    monkeypatch.setattr(np, "rot90", lambda x, turns, axes: x)
    item = next(crops[i] for i in range(40) if not np.random.default_rng((0, i)).bit_generator.random_raw() % 2)
    smallest = []
    for row in range(81):  # the window is one of these; labels tell which, up to a flip
        for col in range(81):
            window = scenes[0].read(row, col, 16, 16)
            bands = torch.from_numpy(window.rgir.astype(np.float32))[None]
            expected = F.interpolate(bands, size=(32, 32), mode="bilinear", align_corners=False)[0].round()
            for candidate in (expected, expected.flip(-1)):
                smallest.append(float((candidate - item["rgir"].float()).abs().max()))
    assert min(smallest) <= 1


def test_a_sample_depends_on_seed_and_index_alone(scenes):
    first, again, other = crops_of(scenes), crops_of(scenes), crops_of(scenes, seed=1)
    _ = again[3]  # a draw in between, as another worker would make it
    for name, tensor in first[7].items():
        torch.testing.assert_close(again[7][name], tensor, atol=0, rtol=0)
    assert not torch.equal(first[7]["rgir"], other[7]["rgir"])
    assert not torch.equal(first[7]["rgir"], first[8]["rgir"])


def test_a_sample_has_the_documented_shapes_types_and_finite_heights(scenes):
    for i in range(20):
        item = crops_of(scenes)[i]
        shapes = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in item.items()}
        assert shapes == {
            "rgir": ((3, 32, 32), torch.uint8),
            "rgir_valid": ((32, 32), torch.bool),
            "ndsm": ((1, 32, 32), torch.float32),
            "ndsm_valid": ((32, 32), torch.bool),
            "labels": ((32, 32), torch.uint8),
            "available": ((2,), torch.bool),
        }
        assert torch.isfinite(item["ndsm"]).all()


def test_bands_and_labels_are_cut_turned_and_flipped_together(scenes, monkeypatch):
    unaugmented(monkeypatch)
    crops = crops_of(scenes, zoom=(1, 1))
    holes = 0
    for i in range(40):
        item = crops[i]
        assert torch.equal(item["rgir"][0], item["labels"] * 40)
        measured = item["ndsm_valid"]
        assert torch.equal(item["ndsm"][0][measured], item["labels"].float()[measured])
        holes += int((~measured).sum())
    assert holes > 0


def test_beyond_a_maps_border_is_what_the_runtime_fills_in_and_nothing_to_learn_from(scenes, monkeypatch):
    unaugmented(monkeypatch)
    whole, cut = crops_of(scenes, zoom=(1, 1)), crops_of(scenes, zoom=(1, 1), border_share=1.0)
    shares = []
    for i in range(40):
        was, item = whole[i], cut[i]
        inside = item["rgir_valid"]
        shares.append(float(inside.float().mean()))
        assert torch.equal(item["ndsm_valid"], was["ndsm_valid"] & inside)
        assert torch.equal(item["labels"], torch.where(inside, was["labels"], 255))
        for sensor in Sensor:
            expected = fill_nodata(was[sensor].numpy().copy(), inside.numpy())
            np.testing.assert_array_equal(item[sensor], expected)
        assert torch.equal(item["available"], was["available"])
    assert 0 < min(shares) < 0.3
    assert 0.7 < max(shares) < 1


def test_as_many_crops_end_at_a_border_as_asked_for(tmp_path):
    crops = crops_of([toy_scene(tmp_path, 0, without=("ndsm",))], length=300, border_share=0.2)
    cut = [crops[i] for i in range(300) if not crops[i]["rgir_valid"].all()]
    assert 36 < len(cut) < 84  # 60 expected, 6.9 standard deviation
    assert not any(item["ndsm_valid"].any() for item in cut)


def test_half_of_the_borders_lie_along_rows_or_columns():
    rng = np.random.default_rng(0)
    masks = [inside_border(64, rng) for _ in range(200)]
    straight = sum(bool((mask == mask[0]).all() or (mask == mask[:, :1]).all()) for mask in masks)
    assert 70 < straight < 130  # 100 expected, 7.1 standard deviation


def test_scenarios_are_drawn_uniformly(scenes):
    crops = crops_of(scenes, length=300)
    masks, counts = np.unique([crops[i]["available"].numpy() for i in range(300)], axis=0, return_counts=True)
    assert masks.tolist() == [[False, True], [True, False], [True, True]]
    assert counts.min() > 75  # 100 expected, 8.2 standard deviation


def test_a_scene_without_a_sensor_is_used_for_the_other_and_has_nothing_to_reconstruct(tmp_path):
    crops = crops_of([toy_scene(tmp_path, 0, without=("ndsm",))])
    for i in range(10):
        item = crops[i]
        assert item["available"].tolist() == [True, False]
        assert item["rgir_valid"].all()
        assert not item["ndsm_valid"].any()


def test_a_scene_without_labels_is_unknown_everywhere(tmp_path):
    item = crops_of([toy_scene(tmp_path, 0, without=("labels",))], rare_share=1.0)[0]
    assert (item["labels"] == 255).all()


def test_crops_on_rare_pixels_hold_one_and_others_are_drawn_anywhere(tmp_path, monkeypatch):
    unaugmented(monkeypatch)
    labels = np.zeros((200, 200), np.uint8)
    labels[150:152, 30:33] = 4
    arrays = {"rgir": np.zeros((3, 200, 200), np.uint8), "ndsm": np.zeros((1, 200, 200), np.float16)}
    scene = write_scene(tmp_path / "cars", {**arrays, "labels": labels}, {})
    always = crops_of([scene], rare_share=1.0, zoom=(1, 1))
    assert all((always[i]["labels"] == 4).any() for i in range(40))
    assert len({int((always[i]["labels"] == 4).nonzero()[0, 0]) for i in range(40)}) > 5, "cars stand in one place"
    never = crops_of([scene], zoom=(1, 1))
    assert sum(bool((never[i]["labels"] == 4).any()) for i in range(40)) < 10


def test_common_classes_and_clutter_are_never_rare(scenes):
    assert rare_pixels(scenes, COUNTED, seed=0) == {}
    labels = np.zeros((64, 64), np.uint8)
    labels[0, :5] = 5
    assert rare_pixels([FakeLabels(labels)], COUNTED, seed=0) == {}


class FakeLabels:
    labelled = True

    def __init__(self, labels: np.ndarray) -> None:
        self._labels = labels

    def labels(self) -> np.ndarray:
        return self._labels


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


def test_band_statistics_leave_holes_out(scenes):
    found = band_statistics(scenes)
    pixels = np.concatenate([np.asarray(scene.bands(Sensor.NDSM), np.float64).ravel() for scene in scenes])
    assert found["ndsm"] == [pytest.approx((np.nanmean(pixels), np.nanstd(pixels)))]
    assert len(found["rgir"]) == 3


def test_statistics_of_scenes_that_all_lack_a_sensor_are_refused(tmp_path):
    with pytest.raises(ValueError, match="none has ndsm"):
        band_statistics([toy_scene(tmp_path, 0, without=("ndsm",))])


def test_pixels_that_rgir_did_not_see_are_filled_and_marked(tmp_path):
    rgir = np.full((3, 8, 8), 9, np.uint8)
    rgir[:, :, :4] = 0
    valid = np.ones((8, 8), bool)
    valid[:, :4] = False
    scene = write_scene(tmp_path / "scene", {"rgir": rgir, "rgir_valid": valid}, {})
    window = Scene(folder=scene.folder).read(0, 0, 8, 8)
    assert (window.rgir == 9).all()
    np.testing.assert_array_equal(window.rgir_valid, valid)
