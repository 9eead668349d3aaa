"""Latency is measured where it is said to be, and decides which TensorRT precision runs."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from benchmarks import latency
from engine.backends import open_backend
from engine.backends.base import Output
from engine.contract.bundle import Bundle
from engine.contract.plan_cache import stored_plans
from engine.contract.sensors import Scenario
from tests.engine.emulated_gpu import Gpu, installed
from tests.engine.plans import LIBRARIES, build, under_three_names


def run(bundle: Bundle, out: Path, *options: str) -> tuple[int, list[dict[str, str]]]:
    arguments = ["--bundle", str(bundle.root), "--csv", str(out / "latency.csv"), "--rounds", "2", "--tiles", "4"]
    code = latency.main([*arguments, *options])
    path = out / "latency.csv"
    return code, list(csv.DictReader(path.open())) if path.exists() else []


def test_a_row_per_backend_precision_and_scenario_with_its_conditions(toy_bundle, tmp_path) -> None:
    options = ("--backends", "openvino,onnxruntime", "--precisions", "fp32", "--threads", "1")
    code, rows = run(toy_bundle, tmp_path, *options)
    assert code == 0
    assert [(row["backend"], row["scenario"]) for row in rows] == [
        (backend, scenario.value) for backend in ("openvino", "onnxruntime") for scenario in Scenario
    ]
    for row in rows:
        assert 0 < float(row["latency_p50_ms"]) <= float(row["latency_p90_ms"]) <= float(row["latency_p99_ms"])
        assert float(row["tiles_per_s"]) > 0
        assert (row["threads"], row["rounds"], row["tiles_per_round"]) == ("1", "2", "4")


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
        code, _ = run(bundle, tmp_path, "--backends", "tensorrt", "--precisions", "fp16,int8", "--record")
        assert code == 0
        assert {plan.record.latency_ms for plan in stored_plans(bundle.root / "plans")} == {1.0, 2.0}
        with open_backend("tensorrt", bundle, scenarios=Scenario, wanted=[Output.CLASSES]) as backend:
            assert backend.info.graph == "int8"
    assert gpu.complaints() == []


@pytest.mark.parametrize("option", ["--tiles", "--rounds"])
def test_less_than_one_is_refused(toy_bundle, tmp_path, option, capsys) -> None:
    code, _ = run(toy_bundle, tmp_path, option, "0")
    assert code == 2
    assert "must be at least 1" in capsys.readouterr().err
