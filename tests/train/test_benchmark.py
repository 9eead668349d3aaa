import csv

import pytest

from tests.train.scenes import toy_scene
from train import benchmark, checkpoint
from train.data.procedural import FIRST_SEED


@pytest.fixture
def arguments(tmp_path):
    cache = tmp_path / "cache"
    for seed in (0, 1, FIRST_SEED["validation"], FIRST_SEED["test"]):
        toy_scene(cache, seed, side=64)
    fixed = "--presets nano --steps 2 --batch 2 --crop 64 --synthetic 2 --validation-scenes 1 --test-scenes 1"
    return [*fixed.split(), "--threads", "1", "--workers", "0", "--cache", str(cache), "--out", str(tmp_path / "out")]


def test_a_benchmark_trains_scores_and_does_not_train_twice(arguments, tmp_path, capsys):
    out = tmp_path / "out"
    assert benchmark.main([*arguments, "--seeds", "0,1"]) == 0
    table = (out / "benchmark.md").read_text()
    assert table in capsys.readouterr().out
    assert "| nano | GEMMNet_AE |" in table
    lines = (out / "benchmark.csv").read_text().splitlines()
    assert lines[0].startswith("# python -m train.benchmark --presets nano")
    rows = list(csv.DictReader(lines[1:]))
    assert [(row["seed"], row["scenario"]) for row in rows][:4] == [
        ("0", "full"),
        ("0", "missing_ndsm"),
        ("0", "missing_rgir"),
        ("1", "full"),
    ]
    assert rows[0]["mean_f1"] != rows[3]["mean_f1"]
    made = [(out / "nano-0" / name).stat().st_mtime_ns for name in ("last.safetensors", "scores.json")]
    assert benchmark.main(arguments) == 0
    assert [(out / "nano-0" / name).stat().st_mtime_ns for name in ("last.safetensors", "scores.json")] == made
    again = csv.DictReader((out / "benchmark.csv").read_text().splitlines()[1:])
    assert list(again) == rows[:3], "kept scores are those that were measured"
    (out / "nano-0" / "scores.json").write_text('{"a key of then": [{"preset": "nano"}]}')
    assert benchmark.main(arguments) == 0
    again = csv.DictReader((out / "benchmark.csv").read_text().splitlines()[1:])
    assert list(again) == rows[:3], "what another version kept is scored again"
    assert checkpoint.load(out / "nano-1" / "last.safetensors")[1].train.seed == 1
    assert benchmark.main([*arguments, "--batch", "4"]) == 2
    assert "batch: was 2, now 4" in capsys.readouterr().err


def test_of_several_learning_rates_the_best_by_validation_trains_the_other_seeds(arguments, tmp_path, caplog):
    caplog.set_level("INFO", "train.benchmark")
    assert benchmark.main([*arguments, "--seeds", "1,0", "--lr", "1e-3,1e-4"]) == 0
    out = tmp_path / "out"
    validated = {}
    for lr in ("0.001", "0.0001"):
        info = checkpoint.load(out / f"nano-lr{lr}-1" / "best.safetensors")[1]
        assert info.train.lr == float(lr)
        validated[lr] = sum(scores.mean_f1 for scores in info.metrics.values()) / 3
    best, other = sorted(validated, key=validated.get, reverse=True)
    assert (out / f"nano-lr{best}-0").is_dir()
    assert not (out / f"nano-lr{other}-0").exists()
    rows = list(csv.DictReader((out / "benchmark.csv").read_text().splitlines()[1:]))
    assert [(row["seed"], row["lr"]) for row in rows] == [("1", best)] * 3 + [("0", best)] * 3
    assert f"learning rate {best}: validation mF1 {100 * validated[best]:.1f}: chosen" in caplog.text


@pytest.mark.parametrize("preset", ["mmformer", "shaspec", "edge"])
def test_every_kind_of_system_trains_and_is_scored(preset, arguments, tmp_path):
    assert benchmark.main([*arguments, "--presets", preset]) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "benchmark.csv").read_text().splitlines()[1:]))
    assert len(rows) == 3
    made = [bool(row["synthesis_mae"]) for row in rows]
    assert made == ([False, True, True] if preset == "edge" else [False] * 3)


def test_an_unknown_preset_is_refused(arguments, capsys):
    assert benchmark.main([*arguments, "--presets", "nano,huge"]) == 2
    assert "'nano,huge'" in capsys.readouterr().err
