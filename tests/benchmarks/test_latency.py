"""Latency is measured where it is said to be, and decides which TensorRT precision runs."""

from __future__ import annotations

import csv
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from benchmarks import latency
from benchmarks.cold_start import STAGES, cold_starts
from benchmarks.rates import WANTED, first_after_switch, inputs_of, open_bare
from benchmarks.tiles import tiles_of
from engine import demo
from engine.backends.base import Backend, Output
from engine.backends.options import BackendOptions
from engine.contract.bundle import Bundle
from engine.contract.errors import BackendError
from engine.contract.plan_cache import stored_plans
from engine.contract.sensors import Scenario
from tests.engine.emulated_gpu import Gpu, installed
from tests.engine.plans import LIBRARIES, build, under_three_names


def run(bundle: Bundle, out: Path, *options: str) -> tuple[int, list[dict[str, str]]]:
    arguments = ["--bundle", str(bundle.root), "--out", str(out / "latency.csv"), "--rounds", "2", "--tiles", "4"]
    arguments += ["--burn-in", "1", "--switch-after", "2", "--cold-starts", "0", "--max-batch", "0"]
    code = latency.main([*arguments, *options])
    path = out / "latency.csv"
    return code, list(csv.DictReader(path.open())) if path.exists() else []


def test_a_row_per_backend_precision_and_scenario_with_its_conditions(toy_bundle, tmp_path) -> None:
    options = ("--backends", "openvino,onnxruntime", "--precisions", "fp32", "--threads", "1", "--max-batch", "2")
    code, rows = run(toy_bundle, tmp_path, *options)
    assert code == 0
    arrangements = (("openvino", "throughput"), ("openvino", "latency"), ("onnxruntime", "throughput"))
    assert [(row["backend"], row["hint"], row["scenario"]) for row in rows] == [
        (*arrangement, scenario.value) for arrangement in arrangements for scenario in Scenario
    ]
    for row in rows:
        cuts = [float(row[f"single_stream_p{cut}_ms"]) for cut in (50, 90, 95, 99)]
        assert 0 < cuts[0] <= cuts[1] <= cuts[2] <= cuts[3]
        # the cuts are rounded, which counts where they are short
        assert float(row["jitter_p99_over_p50"]) == pytest.approx(cuts[3] / cuts[0], rel=5e-3, abs=0.02)
        assert float(row["offline_tiles_per_s"]) > 0
        assert (row["threads"], row["rounds"], row["tiles_per_round"], row["batch"]) == ("1", "2", "4", "1")
        assert row["switches"] == "4", "from each of two scenarios, in each of two rounds"
        assert float(row["switch_over_steady"]) == pytest.approx(float(row["switch_p50_ms"]) / cuts[0], rel=0.05)
        assert row["h2d_ms"] == row["cold_start_ms"] == "", "not measured"
        assert "onnxruntime" in row["libraries"]
        if row["hint"] == "latency":
            assert row["slots"] == "1"
            assert row["best_batch"] == "", "the library by itself is measured once"
            continue
        rates = float(row["batch1_tiles_per_s"]), float(row["best_batch_tiles_per_s"])
        assert (row["best_batch"], rates[1] == rates[0]) in {("1", True), ("2", False)}
        assert rates[1] >= rates[0]


def test_a_switch_is_timed_right_after_tiles_of_another_scenario(toy_bundle) -> None:
    class Recorder(Backend):
        def __init__(self) -> None:
            self.asked: list[Scenario] = []

        def submit(self, scenario, inputs):
            assert set(inputs) == set(scenario.sensors)
            self.asked.append(scenario)
            answer: Future = Future()
            answer.set_result({})
            return answer

        def close(self) -> None:
            pass

    backend = Recorder()
    tiles = tiles_of(toy_bundle, demo.SCENE, 2)
    assert first_after_switch(backend, Scenario.MISSING_RGIR, tiles, after=3).shape == (2,)
    others = [scenario for scenario in Scenario if scenario is not Scenario.MISSING_RGIR]
    assert backend.asked == [*[others[0]] * 3, Scenario.MISSING_RGIR, *[others[1]] * 3, Scenario.MISSING_RGIR]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
def test_the_library_by_itself_answers_what_the_backend_does(toy_bundle, name, batch) -> None:
    scenario = Scenario.FULL
    inputs = inputs_of(scenario, tiles_of(toy_bundle, demo.SCENE, batch))
    with BackendOptions(name=name, precision="fp32").open(toy_bundle, scenarios=[scenario], wanted=WANTED) as backend:
        bare = open_bare(
            backend.info.name, toy_bundle.graph(scenario, "fp32"), batch=batch, precision="fp32", threads=1
        )
        classes = next(iter(as_list(bare({s.value: np.stack([tile[s] for tile in inputs]) for s in scenario.sensors}))))
        expected = [backend.infer(scenario, tile)[Output.CLASSES] for tile in inputs]
    assert classes.shape == (batch, 64, 64)
    assert (classes == np.stack(expected)).mean() > 0.9995, "but for ties between two classes"


def as_list(answer) -> list[np.ndarray]:
    return answer if isinstance(answer, list) else list(answer.values())


def test_a_cold_start_is_a_process_whose_stages_follow_each_other(toy_bundle) -> None:
    request = {
        "backend": "onnxruntime",
        "precision": "fp32",
        "bundle": str(toy_bundle.root),
        "threads": 1,
        "hint": "throughput",
    }
    first, kept = cold_starts({**request, "plans": None})
    assert tuple(first) == STAGES
    assert min(first.values()) > 0
    assert first["import"] > 1, "numpy and the library take longer than that to import"
    assert kept is None, "ONNX Runtime keeps no compiled kernels"


@pytest.mark.slow
def test_a_second_start_of_openvino_compiles_and_checks_nothing(toy_bundle) -> None:
    request = {"backend": "openvino", "precision": "fp32", "bundle": str(toy_bundle.root), "threads": 1}
    first, second = cold_starts({**request, "hint": "throughput", "plans": None})
    assert second is not None
    assert tuple(first) == tuple(second) == STAGES
    assert second["golden"] == 0 < first["golden"]


def test_a_cold_start_that_fails_says_why(toy_bundle) -> None:
    request = {
        "backend": "onnxruntime",
        "precision": "int8",
        "bundle": str(toy_bundle.root),
        "threads": 1,
        "hint": "throughput",
    }
    with pytest.raises(BackendError, match="no int8 graph"):
        cold_starts({**request, "plans": None})


def test_nothing_to_measure_is_an_error(toy_bundle, tmp_path, capsys) -> None:
    code, rows = run(toy_bundle, tmp_path, "--backends", "openvino", "--precisions", "int8")
    assert (code, rows) == (6, [])
    assert "has no int8 graph" in capsys.readouterr().err


def test_recorded_latencies_decide_what_auto_loads(tmp_path, monkeypatch) -> None:
    bundle = under_three_names(tmp_path / "bundle")
    for precision in ("fp16", "int8"):
        build(bundle, precision)
    real = latency.one_round

    def int8_takes_half(row, *arguments) -> None:
        real(row, *arguments)
        row.latencies_ms[-1][:] = 1.0 if row.info.graph == "int8" else 2.0

    monkeypatch.setattr(latency, "one_round", int8_takes_half)
    gpu = Gpu()
    with installed(gpu, LIBRARIES):
        clocks = iter(range(10**6))
        event = sys.modules["pycuda.driver"].Event
        event.time_till = lambda mark, later: 0.5 * (next(clocks) % 3 + 1)  # upload, engine, download in turn
        code, rows = run(bundle, tmp_path, "--backends", "tensorrt", "--precisions", "fp16,int8", "--record")
        assert code == 0
        assert {(row["h2d_ms"], row["compute_ms"], row["d2h_ms"]) for row in rows} == {("0.5", "1.0", "1.5")}
        assert {plan.record.latency_ms for plan in stored_plans(bundle.root / "plans")} == {1.0, 2.0}
        with BackendOptions(name="tensorrt").open(bundle, scenarios=Scenario, wanted=[Output.CLASSES]) as backend:
            assert backend.info.graph == "int8"
    assert gpu.complaints() == []


@pytest.mark.parametrize("option", ["--tiles", "--rounds", "--burn-in", "--switch-after"])
def test_less_than_one_is_refused(toy_bundle, tmp_path, option, capsys) -> None:
    code, _ = run(toy_bundle, tmp_path, option, "0")
    assert code == 2
    assert "must be at least 1" in capsys.readouterr().err


def test_a_machine_with_tensorrt_alone_needs_no_openvino() -> None:
    script = "import sys; sys.modules['openvino'] = None; import benchmarks.latency, benchmarks.agreement"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
