"""A sweep trains each variant once, times what would be deployed, and draws the front through the right ones."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.sweep import report, training, variants
from benchmarks.sweep.__main__ import build_parser, main
from benchmarks.sweep.latency import Timed
from benchmarks.sweep.variants import VARIANTS, Variant
from engine.contract.errors import UsageError
from engine.contract.sensors import Scenario
from tests.train.scenes import toy_scene
from train import checkpoint
from train.data.procedural import FIRST_SEED

TINY = Variant(
    name="tiny",
    base="nano",
    changes={
        "encoder_widths": (8, 8, 8),
        "encoder_refinements": (0, 0, 0),
        "generator_widths": (8, 8),
        "generator_refinements": (0, 0),
        "hyfex_attention": False,
        "hyfma_attention": False,
    },
    budget={"steps": 4},
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, list[str]]:
    """A sweep of one small variant, from training to the picture, and its command line."""
    folder = tmp_path_factory.mktemp("sweep")
    for seed in (0, 1, FIRST_SEED["validation"], FIRST_SEED["test"]):
        toy_scene(folder / "cache", seed, side=64)
    words = "--variants tiny --steps 2 --batch 2 --crop 32 --synthetic 2 --validation-scenes 1 --test-scenes 1"
    words += " --tile 64 --rounds 2 --repeats 1 --threads 1 --workers 0"
    arguments = [*words.split(), "--cache", str(folder / "cache"), "--runs", str(folder / "runs")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "tiny", TINY)
        assert main([*arguments, "--out", str(folder / "sweep.csv")]) == 0
    return folder, arguments


@pytest.mark.slow
def test_a_row_per_scenario_with_cost_scores_and_conditions(finished) -> None:
    folder, _ = finished
    rows = list(csv.DictReader((folder / "sweep.csv").open()))
    assert [row["scenario"] for row in rows] == [scenario.value for scenario in Scenario]
    model, info = checkpoint.load(folder / "runs" / "tiny-0" / "best.safetensors")
    assert info.model == TINY.model
    assert info.step == 4, "the variant's own --steps"
    for row in rows:
        assert (row["encoder_widths"], row["token_stride_px"], row["token_depth"]) == ("8-8-8", "8", "0")
        assert int(row["parameters"]) == model.deployable_parameters()
        assert float(row["class_agreement"]) > 0.999, "what is timed must map as PyTorch does"
        assert float(row["latency_ms"]) > 0
        assert float(row["latency_over_reference"]) == 1
        assert float(row["mean_f1_min"]) <= float(row["mean_f1"]) <= float(row["mean_f1_max"])
        assert (row["seeds"], row["lr"], row["steps"], row["rounds"], row["threads"]) == ("0", "", "4", "2", "1")
        assert row["commit"]
    gmac = {row["scenario"]: float(row["gmac"]) for row in rows}
    assert gmac["missing_ndsm"] > gmac["full"], "the generator is embedded where a sensor is missing"


@pytest.mark.slow
def test_the_picture_and_the_table_lie_beside_the_csv(finished) -> None:
    folder, _ = finished
    with Image.open(folder / "sweep.png") as picture:
        assert min(picture.size) > 400
    assert (folder / "sweep.md").read_text().count("| **tiny** |") == 1
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_trained_variants_are_not_trained_again_and_other_settings_are_refused(finished) -> None:
    folder, arguments = finished
    options = build_parser().parse_args(arguments)
    path = folder / "runs" / "tiny-0" / "last.safetensors"
    before = path.stat().st_mtime_ns
    assert [run.seed for run in training.train([TINY], options)] == [0]
    assert path.stat().st_mtime_ns == before
    options.batch = 4
    with pytest.raises(UsageError, match="batch: was 2, now 4"):
        training.train([TINY], options)


@pytest.mark.slow
def test_an_interrupted_training_writes_no_result(finished, tmp_path, monkeypatch, capsys) -> None:
    _, arguments = finished
    monkeypatch.setitem(VARIANTS, "tiny", TINY)
    monkeypatch.setattr("train.run.main", lambda _: 130)
    assert main([*arguments, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "sweep.csv")]) == 130
    assert "go on with: python -m benchmarks.sweep --variants tiny" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_variant_takes_a_tile_of_512_px_and_no_two_are_the_same() -> None:
    trained = [(variant.model, tuple(variant.budget.items())) for variant in VARIANTS.values()]
    assert all(512 % model.stride_px == 0 for model, _ in trained)
    assert len(set(trained)) == len(trained)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"name": "stem 1/2", "base": "nano"}, "takes letters"),
        ({"name": "x", "base": "huge"}, "base must be one of"),
        ({"name": "paper", "base": "nano"}, "has the name of a preset"),
        ({"name": "x", "base": "nano", "changes": {"token_heads": 7}}, "multiple of token_heads"),
        ({"name": "x", "base": "nano", "budget": {"steps": 0}}, "each at least 1, received {'steps': 0}"),
        ({"name": "x", "base": "nano", "budget": {"lr": 1}}, "budget takes steps, batch, crop"),
        ({"name": "nano", "base": "nano", "budget": {"steps": 2}}, "has the name of a preset"),
    ],
)
def test_a_variant_that_cannot_be_is_refused(changes, named) -> None:
    with pytest.raises(ValueError, match=named):
        Variant(**changes)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--variants", "nano,huge"), "--variants takes each of"),
        (("--variants", "nano,nano"), "--variants takes each of"),
        (("--tile", "100"), "--tile must be a positive multiple of 16 px for variant paper"),
    ],
)
def test_wrong_options_are_explained(capsys, options, named) -> None:
    assert main(options) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--rounds=0", "--steps=many", "--seeds=a", "--lr=5e-4,", "--lr=0", "--lr=5"])
def test_numbers_that_are_none_are_refused(capsys, word) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([word])
    assert stopped.value.code == 2
    option, value = word.split("=")
    assert option in (told := capsys.readouterr().err)
    assert f"received {value!r}" in told


def test_the_front_holds_what_nothing_beats() -> None:
    points = {"slow": (9.0, 0.7), "best": (8.0, 0.8), "fast": (1.0, 0.5), "worse": (1.0, 0.4), "twin": (1.0, 0.5)}
    assert report.front(points) == ["fast", "twin", "best"]


def _timed(name: str, scenario: Scenario, *rounds_ms: float) -> Timed:
    variant = variants.Variant(name=name, base="nano", changes={"token_depth": 2})
    return Timed(
        variant=variant,
        scenario=scenario,
        parameters=1_000_000,
        gmac=2.0,
        request=None,
        class_agreement=1.0,
        threads=2,
        rounds_ms=list(rounds_ms),
    )


def test_ratios_are_medians_of_each_rounds_ratio() -> None:
    # In the slow second round both take three times as long: ratios of single rounds do not see it.
    timed = [_timed("a", scenario, 10, 30, 11) for scenario in Scenario]
    timed += [_timed("b", scenario, 5, 15, 11) for scenario in Scenario]
    rows = report.rows(timed, {}, {})
    assert [row["latency_ms"] for row in rows] == [11, 11, 11, 11, 11, 11]
    assert [row["latency_over_reference"] for row in rows] == [1, 1, 1, 0.5, 0.5, 0.5]
    assert {row["mean_f1"] for row in rows} == {""}
    assert "mF1" not in report.markdown(rows)


def test_scores_are_means_over_seeds_and_the_front_is_of_means_over_scenarios() -> None:
    timed = [_timed(name, scenario, ms) for name, ms in (("a", 10.0), ("b", 20.0)) for scenario in Scenario]
    by_scenario = dict(zip(Scenario, ([0.5, 0.7], [0.3, 0.5], [0.2, 0.2]), strict=True))
    scores = {"a": by_scenario, "b": {**by_scenario, Scenario.FULL: [0.5, 0.6]}}
    rows = report.rows(timed, scores, {"steps": 7, "batch": 2, "crop": 64})
    assert [row["mean_f1"] for row in rows[:3]] == [0.6, 0.4, 0.2]
    assert (rows[0]["mean_f1_min"], rows[0]["mean_f1_max"], rows[0]["steps"]) == (0.5, 0.7, 7)
    assert [row["pareto"] for row in rows] == [True] * 3 + [False] * 3
    assert "**a**" in report.markdown(rows)
    assert "| 60.0 / 40.0 / 20.0 |" in report.markdown(rows)
