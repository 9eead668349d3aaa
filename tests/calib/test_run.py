"""The command from end to end on a small bundle."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import onnx
import pytest

from calib import run as command
from calib import score
from calib.findings import Settings
from calib.qdq import layers_of
from calib.samples import choose
from calib.scenes import find_scenes, tiles_of
from calib.store import TensorStore
from engine.contract.bundle import Bundle
from engine.contract.sensors import Scenario
from tests.calib.conftest import CLASSES, TILE_PX, write_bundle

ROOT = Path(__file__).parent.parent.parent
SMALL = [
    "--methods",
    "max",
    "--calibration-tiles",
    "3",
    "--search-tiles",
    "2",
    "--sensitivity-tiles",
    "1",
    "--evaluation-tiles",
    "2",
]


def needs_model_optimizer() -> None:
    pytest.importorskip("modelopt.onnx.quantization", reason="the extra calib is not installed")


def content(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.iterdir())}


def calibrate(root: Path, data: Path, *more: str) -> int:
    return command.main(["--bundle", str(root), "--data", str(data), "--budget", "100", *SMALL, *more])


def settings_for(data: Path) -> Settings:
    """Every tile in every role, and a budget that anything keeps."""
    tiles = tuple(tiles_of(find_scenes(data), TILE_PX))
    return Settings(
        calibration=choose(tiles, 3, CLASSES),
        search=tiles,
        evaluation=tiles,
        sensitivity_tiles=1,
        methods=("max",),
        budget_points=100,
        min_int8_share=0,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """A bundle with INT8 graphs; its work lies beside it. Copy it before changing it."""
    needs_model_optimizer()
    root = write_bundle(tmp_path_factory.mktemp("finished") / "bundle").root
    assert calibrate(root, data) == 0
    return root


@pytest.mark.slow
def test_a_bundle_gains_int8_graphs_and_a_report(finished: Path) -> None:
    bundle = Bundle.load(finished)
    for scenario in Scenario:
        graph = onnx.load(bundle.graph(scenario, "int8"))
        assert any(node.op_type == "DequantizeLinear" for node in graph.graph.node)
    work = finished.with_name("bundle.calib")
    report = msgspec.json.decode((work / "report.json").read_bytes())
    assert report["bundle_sha256"] == bundle.digest
    assert [study["scenario"] for study in report["studies"]] == [scenario.value for scenario in Scenario]
    for study in report["studies"]:
        fp32, *int8 = (one["mean_f1"] for one in study["evaluations"])
        # Labels are the full network's own classes.
        assert study["scenario"] != "full" or fp32 == 100
        assert len(int8) == 2
        assert study["int8_share"] == 1
        assert len(study["sensitivity"]) == sum(layer["int8"] for layer in study["layers"])
    assert (work / "report.html").stat().st_size > 5000


@pytest.mark.slow
def test_calibration_search_and_evaluation_share_no_tile(finished: Path) -> None:
    report = msgspec.json.decode((finished.with_name("bundle.calib") / "report.json").read_bytes())
    used = [{one["sha256"] for one in report[role]} for role in ("calibration", "search", "evaluation")]
    assert [len(tiles) for tiles in used] == [3, 2, 2]
    assert len(set.union(*used)) == 7


@pytest.mark.slow
def test_int8_graphs_are_not_replaced_unless_asked_for(
    finished: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = content(finished)
    assert calibrate(finished, data) == 4
    assert "add --overwrite" in capsys.readouterr().err
    assert content(finished) == before


def stop_at(monkeypatch: pytest.MonkeyPatch, number: int) -> list[int]:
    """Let Ctrl-C come while the score of this number is computed; returns a list that grows with each."""
    original, begun = score.Scorer._run, []

    def run(self: score.Scorer, *arguments: object, **options: object) -> score.GraphScore:
        begun.append(1)
        if len(begun) == number:
            raise KeyboardInterrupt
        return original(self, *arguments, **options)

    monkeypatch.setattr(score.Scorer, "_run", run)
    return begun


def test_a_run_that_is_stopped_publishes_nothing(
    bundle: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_model_optimizer()
    before = content(bundle.root)
    stop_at(monkeypatch, 2)
    assert calibrate(bundle.root, data) == 130
    assert f"the same command goes on from {bundle.root}.calib" in capsys.readouterr().err
    assert content(bundle.root) == before


@pytest.mark.slow
def test_a_study_that_was_stopped_goes_on_and_ends_with_the_same_graph(
    bundle: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_model_optimizer()
    from calib.study import study

    wanted = settings_for(data)
    expected, found = study(bundle, Scenario.MISSING_RGIR, wanted, TensorStore(tmp_path / "whole"))
    store = TensorStore(tmp_path / "stopped")
    begun = stop_at(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        study(bundle, Scenario.MISSING_RGIR, wanted, store)
    assert len(list(store.root.glob("score-*"))) == 3
    graph, again = study(bundle, Scenario.MISSING_RGIR, wanted, store)
    assert graph.SerializeToString(deterministic=True) == expected.SerializeToString(deterministic=True)
    assert again == found
    assert len(begun) == len(list(store.root.glob("score-*"))) + 1, "only what was interrupted ran again"


@pytest.mark.slow
def test_a_budget_that_cannot_be_kept_leaves_the_bundle_alone(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_model_optimizer()
    root = write_bundle(tmp_path / "bundle").root
    shutil.copytree(finished.with_name("bundle.calib"), tmp_path / "bundle.calib")
    before = content(root)
    assert calibrate(root, data, "--budget", "0", "--min-int8-share", "0.9") == 5
    message = capsys.readouterr().err
    assert "int8 may cost at most 0 points of mF1" in message
    assert "Most to blame" in message
    assert content(root) == before


@pytest.mark.slow
def test_a_tight_budget_leaves_the_most_sensitive_layers_floating(
    bundle: Bundle, data: Path, store: TensorStore
) -> None:
    needs_model_optimizer()
    from calib.study import study

    loose = settings_for(data)
    _, everything = study(bundle, Scenario.FULL, loose, store)
    (step,) = everything.steps
    assert step.released == ()
    assert step.loss_points > 0
    tight = replace(loose, budget_points=step.loss_points / 2)
    graph, found = study(bundle, Scenario.FULL, tight, store)
    *tried, last = found.steps
    assert last.loss_points <= tight.budget_points < min(step.loss_points for step in tried)
    assert last.released == tuple(one.layer for one in found.sensitivity[: len(last.released)])
    assert {layer.name for layer in layers_of(graph) if not layer.int8} == set(last.released)
    assert found.loss_points <= tight.budget_points


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["--methods", "min"], 2, "--methods takes max, entropy and percentile"),
        (["--budget", "-1"], 2, "--budget is at least 0"),
        (["--min-int8-share", "2"], 2, "--min-int8-share lies in"),
        (["--data", "nowhere"], 3, "--data must be a folder"),
    ],
)
def test_wrong_options_end_with_the_codes_that_help_states(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str], more: list[str], code: int, message: str
) -> None:
    if code != 2:
        needs_model_optimizer()
    root = write_bundle(tmp_path / "bundle").root
    assert calibrate(root, data, *more) == code
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_bundle_is_a_bundle_error(tmp_path: Path, data: Path) -> None:
    needs_model_optimizer()
    assert calibrate(tmp_path, data) == 5


def in_a_process_without(blocked: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    script = (
        "import sys, runpy\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {blocked!r}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        f"sys.argv = ['calib.run', *{list(arguments)!r}]\n"
        "runpy.run_module('calib.run', run_name='__main__')\n"
    )
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)


def test_help_needs_no_library() -> None:
    heavy = ("modelopt", "onnx", "onnx_graphsurgeon", "onnxruntime", "openvino", "torch", "rasterio", "numpy")
    done = in_a_process_without(heavy, "--help")
    assert done.returncode == 0, done.stderr
    assert "python -m calib.run --bundle" in done.stdout


def test_a_missing_extra_names_its_install_command(bundle: Bundle, data: Path) -> None:
    done = in_a_process_without(("modelopt",), "--bundle", str(bundle.root), "--data", str(data))
    assert done.returncode == 2
    assert "calibration needs modelopt: pip install 'gemmnet-edge[calib]'" in done.stderr
