import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from engine.contract.sensors import Scenario, Sensor
from tests.train.scenes import toy_scene
from train import report
from train.blocks import Normalise
from train.config import PRESETS
from train.data.labels import IGNORE_INDEX, ISPRS_LABELS
from train.data.rasters import DataError
from train.data.scenes import write_scene
from train.evaluate import evaluate, score
from train.metrics import Confusion, Scores
from train.model import GEMMNet
from train.predict import at_gsd, tiles


@pytest.mark.parametrize("size", [(64, 64), (65, 200), (40, 64), (30, 300), (10, 12)])
def test_cores_cover_a_scene_once_and_labels_stand_where_they_stood(tmp_path, size):
    labels = np.random.default_rng(0).integers(0, 6, size).astype(np.uint8)
    arrays = {"rgir": np.stack([labels] * 3), "ndsm": labels[None].astype(np.float16), "labels": labels}
    scene = write_scene(tmp_path / "scene", arrays, {})
    found, times = np.zeros(size, np.uint8), np.zeros(size, int)
    for tile in tiles(scene, tile_px=64, halo_px=8):
        assert all(side % 64 == 0 for side in tile.rgir.shape[1:])
        rows, cols = tile.core
        place = np.s_[tile.row + rows.start : tile.row + rows.stop, tile.col + cols.start : tile.col + cols.stop]
        found[place], times[place] = tile.labels[tile.core], times[place] + 1
        np.testing.assert_array_equal(tile.rgir[0].numpy()[tile.core], tile.labels[tile.core])
        beyond = tile.labels == IGNORE_INDEX
        assert not tile.valid[Sensor.NDSM][beyond].any()
    np.testing.assert_array_equal(found, labels)
    assert (times == 1).all()


def test_context_of_a_core_is_at_least_the_halo_inside_a_scene(tmp_path):
    scene = toy_scene(tmp_path, 0, side=300)
    for tile in tiles(scene, tile_px=64, halo_px=8):
        for start, core in zip((tile.row, tile.col), tile.core, strict=True):
            assert core.start >= 8 or start + core.start == 0
            assert core.stop <= 56 or start + core.stop == 300


@pytest.mark.parametrize(("gsd_m", "side"), [(0.05, 64), (0.2, 128), (0.6, 256), (None, 128)])
def test_a_network_sees_the_nearest_resolution_it_is_for_and_its_map_comes_back(gsd_m, side):
    # Left half dark, right half bright: whatever the resolution, the border stays where it was.
    rgir = torch.zeros(1, 3, 128, 128)
    rgir[..., 64:] = 200
    seen = []

    def predict(bands, heights):
        seen.append((tuple(bands.shape), tuple(heights.shape)))
        return torch.cat((100 - bands[:, :1], bands[:, :1] - 100), dim=1), heights

    logits, made = at_gsd(predict, gsd_m, (0.1, 0.3))(rgir, torch.ones(1, 1, 128, 128))
    assert seen == [((1, 3, side, side), (1, 1, side, side))]
    assert made.shape == (1, 1, 128, 128)
    torch.testing.assert_close(made, torch.ones_like(made))
    classes = logits[0].argmax(dim=0)
    assert not classes[:, :62].any()
    assert classes[:, 66:].all()


def test_scores_accumulate_over_all_pixels_and_are_also_averaged_over_tiles(tmp_path):
    scenes = [toy_scene(tmp_path, seed, side=64) for seed in range(2)]
    torch.manual_seed(0)
    model = GEMMNet(PRESETS["nano"].model).eval()

    def perfect_in_the_first_scene(rgir, ndsm):
        labels = (rgir[:, 0] // 40).long()
        if torch.equal(rgir[0], torch.from_numpy(np.array(scenes[1].bands(Sensor.RGIR)))):
            labels = (labels + 1) % 6
        return torch.nn.functional.one_hot(labels, 6).movedim(-1, 1).float(), None

    (result,) = score(model, {(Scenario.FULL, "generator"): perfect_in_the_first_scene}, scenes, ISPRS_LABELS)
    assert result.tile_mean_iou == pytest.approx(0.5)
    assert 0.2 < result.scores.mean_iou < 0.5
    assert result.eroded is None


def test_synthesis_is_measured_where_the_sensor_was(tmp_path):
    scene = toy_scene(tmp_path, 0, side=64)
    torch.manual_seed(0)
    model = GEMMNet(PRESETS["nano"].model).eval()
    real = torch.from_numpy(np.array(scene.bands(Sensor.RGIR)))[None]
    off = (real.float() + 20).clamp(0, 255)
    predict = {(Scenario.MISSING_RGIR, "generator"): lambda rgir, ndsm: (torch.zeros(1, 6, 64, 64), off / 127.5 - 1)}
    (result,) = score(model, predict, [scene], ISPRS_LABELS)
    assert result.synthesis.mean_absolute_error == pytest.approx(20, abs=0.1)
    expected = structural_similarity(real[0].numpy().astype(np.float32), off[0].numpy(), channel_axis=0, data_range=255)
    assert result.synthesis.ssim == pytest.approx(expected, abs=0.02)  # that one leaves a border of 3 px out


@pytest.mark.parametrize("sensor", list(Sensor))
def test_normalisation_is_undone(sensor):
    bands = next(spec.bands for spec in PRESETS["nano"].model.sensor_specs if spec.sensor is sensor)
    normalise = Normalise(bands)
    raw = torch.linspace(0, 50, 40).view(1, 1, 5, 8).expand(1, len(bands), 5, 8)
    torch.testing.assert_close(normalise.inverse(normalise(raw)), raw, atol=1e-3, rtol=1e-4)


def test_scenes_without_labels_are_refused(tmp_path):
    model = GEMMNet(PRESETS["nano"].model).eval()
    with pytest.raises(DataError, match="scenes with labels"):
        evaluate(model, [toy_scene(tmp_path, 0, without=("labels",))], {"rgir": (), "ndsm": ()})


def test_scenes_of_one_sensor_are_scored_in_its_scenario_alone(tmp_path):
    model = GEMMNet(PRESETS["nano"].model).eval()
    (result,) = evaluate(model, [toy_scene(tmp_path, 0, without=("ndsm",))], {"rgir": (), "ndsm": ()})
    assert (result.scenario, result.input) == (Scenario.MISSING_NDSM, "generator")


def test_the_table_has_the_papers_rows_on_its_own_cities_only():
    confusion = Confusion()
    confusion.add(np.arange(6, dtype=np.uint8), np.arange(6, dtype=np.uint8))
    scores: Scores = confusion.scores()
    results = [FakeResult(scenario=scenario, scores=scores) for scenario in Scenario]
    own, city = (report.table_1({"edge": results}, name) for name in ("synthetic", "vaihingen"))
    assert "(paper)" not in own
    assert "| edge (ours) | 100.00 | 100.00 |" in own
    assert "| GEMMNet_cGAN (paper) | 79.07 | | 66.74 |" in city
    assert {line.count("|") for line in city.strip().splitlines()} == {11}


class FakeResult:
    input, tile_mean_iou = "generator", None

    def __init__(self, *, scenario: Scenario, scores: Scores) -> None:
        self.scenario, self.scores = scenario, scores
