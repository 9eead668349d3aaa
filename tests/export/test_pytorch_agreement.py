"""The agreement matrix with PyTorch as its reference, on the bundle that export made of it."""

from __future__ import annotations

import csv
from pathlib import Path

from benchmarks import agreement
from engine.contract.sensors import Scenario


def test_exported_graphs_agree_with_the_checkpoint_they_came_from(exported, tmp_path: Path) -> None:
    out = tmp_path / "agreement.csv"
    options = ["--bundle", str(exported.bundle.root), "--checkpoint", str(exported.checkpoint), "--csv", str(out)]
    assert agreement.main([*options, "--backends", "openvino,onnxruntime", "--precisions", "fp32", "--tiles", "1"]) == 0
    rows = list(csv.DictReader(out.open()))
    assert {(row["backend"], row["scenario"]) for row in rows} == {
        (backend, scenario.value) for backend in ("openvino", "onnxruntime") for scenario in Scenario
    }
    for row in rows:
        assert row["reference"].startswith("PyTorch")
        assert float(row["class_agreement"]) >= 0.999
        assert float(row["max_probability_difference"]) <= 1e-3
