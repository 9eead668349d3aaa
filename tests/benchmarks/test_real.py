"""Scores on real scenes, from scenes and a bundle small enough to check by hand."""

import csv

import numpy as np
import pytest

from benchmarks import real
from engine import demo
from engine.contract.errors import InputError
from engine.contract.sensors import Scenario
from tests.train.test_folder import scene
from train.data.labels import ISPRS_LABELS
from train.metrics import Confusion


def test_a_tally_counts_trees_ground_and_calibration():
    tally = real.PlaceTally(confusion=Confusion(ISPRS_LABELS))
    truth = np.array([[3, 3, 0, 0, 5, 255]], np.uint8)
    classes = np.array([[3, 0, 3, 0, 0, 0]], np.uint8)
    after, before = np.array([[0.9, 0.9, 0.6, 0.6, 0.6, 0.1]], np.float32), np.full((1, 6), 0.95, np.float32)
    tally.add(truth, classes, after, before)
    row = tally.row()
    assert row["pixels"] == 5
    assert row["oa_percent"] == 50  # of the four that are no clutter
    assert row["oa_with_clutter_percent"] == 40
    assert row["ground_called_tree_percent"] == pytest.approx(33.33)
    # two pixels at 0.9, one right; three at 0.6, one right
    assert row["ece_percent"] == pytest.approx(100 * (2 * (0.9 - 0.5) + 3 * (0.6 - 1 / 3)) / 5, abs=0.01)
    assert row["ece_before_percent"] == pytest.approx(100 * (0.95 - 2 / 5))


def test_real_scenes_are_scored_by_place_and_scenario(tmp_path, capsys):
    root = tmp_path / "cities"
    for name, lacking in (("north_2018_1", "ndsm"), ("north_2020_7", "ndsm"), ("south_2020_1", "")):
        scene(root / "aerial", name, without=lacking)
    (root / "aerial" / "north_2018_1" / "trees.csv").write_text("x,y\n1,1\n47,47\n900,1\n")
    (root / "aerial" / "dataset.toml").write_text(
        '[split]\nvalidation = ["north_2020_7"]\ntest = ["north_2018_1", "south_2020_1"]\n'
    )
    scene(root / "aerial", "train_2020_1")
    out = tmp_path / "real.csv"
    words = ["--data", str(root), "--precisions", "fp32", "--threads", "1", "--out", str(out)]
    assert real.main(words) == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["place"], row["scenario"]): row for row in rows}
    assert set(found) == {
        ("north", Scenario.MISSING_NDSM),
        *(("south", scenario) for scenario in Scenario),
        *(("all", scenario) for scenario in Scenario),
    }
    assert found["north", Scenario.MISSING_NDSM]["tree_points"] == "2"  # the third lies outside
    assert int(found["all", Scenario.MISSING_NDSM]["pixels"]) == 2 * 48 * 48
    error, before = (float(found["all", Scenario.FULL][f"ece{name}_percent"]) for name in ("", "_before"))
    assert 0 < abs(before - error) < 10  # the temperatures of the demo bundle lie near 1.2
    assert out.with_suffix(".png").stat().st_size > 1000
    assert demo.BUNDLE.exists()


def test_a_folder_without_labelled_scenes_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"put labels\.tif beside rgir\.tif"):
        real.scenes_of(tmp_path, "test", tmp_path / "cache")
