"""Scores are those of an independent count, for whole scenes of any size, and the drop is against what it says."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from benchmarks import accuracy
from engine.contract.bundle import Bundle
from engine.contract.sensors import Scenario, Sensor
from tests.conftest import CLASSES, make_scene, toy_probabilities
from tests.engine.precision_graphs import quantised_probabilities, with_precisions

SIZES = ((150, 100), (40, 90))
"""Several tiles of 64 px each way, and a scene that is smaller than one."""
ROUNDING_PERCENT = 0.1
"""Pixels where two classes tie within float32 may fall either way."""


@pytest.fixture(scope="module")
def bundle(toy_bundle, tmp_path_factory) -> Bundle:
    return with_precisions(toy_bundle, tmp_path_factory.mktemp("accuracy") / "bundle")


@pytest.fixture(scope="module")
def scenes() -> list[tuple[dict[Sensor, NDArray], NDArray[np.uint8]]]:
    """Sensors and labels: what the full graph answers, but for a band that is wrong and one that is unknown."""
    made = []
    for seed, (height, width) in enumerate(SIZES):
        rasters, _ = make_scene(height, width, holes=False, seed=seed)
        rasters[Sensor.NDSM] = rasters[Sensor.NDSM].astype(np.float16).astype(np.float32)  # as scenes are kept
        labels = toy_probabilities(Scenario.FULL, rasters, 0).argmax(axis=0).astype(np.uint8)
        labels[5:20] = (labels[5:20] + 1) % CLASSES
        labels[-7:] = 255
        made.append((rasters, labels))
    return made


@pytest.fixture(scope="module")
def data(scenes, bundle, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for index, (rasters, labels) in enumerate(scenes):
        _write(root / f"scene{index}", {**{s.value: r for s, r in rasters.items()}, "labels": labels[None]})
    for name in ("train", "unlabelled"):
        _write(root / name, {"rgir": scenes[1][0][Sensor.RGIR]})
    lines = ['[split]\ntest = ["scene0", "scene1"]\nvalidation = ["unlabelled"]\n']
    lines += [f'[[class]]\nname = "{spec.name}"\nrgb = {list(spec.rgb)}\n' for spec in bundle.manifest.classes]
    (root / "dataset.toml").write_text("".join(lines))
    return root


def _write(folder: Path, arrays: dict[str, NDArray]) -> None:
    folder.mkdir()
    for name, values in arrays.items():
        count, height, width = values.shape
        with rasterio.open(
            folder / f"{name}.tif", "w", driver="GTiff", dtype=values.dtype, count=count, height=height, width=width,
            crs="EPSG:2154", transform=from_origin(650000, 6860000, 0.2, 0.2),
        ) as file:  # fmt: skip
            file.write(values)


def run(bundle: Bundle, data: Path | str, out: Path, *options: str) -> tuple[int, list[dict[str, str]]]:
    arguments = ["--bundle", str(bundle.root), "--data", f"folder:{data}", "--cache", str(out / "cache")]
    code = accuracy.main([*arguments, "--out", str(out / "accuracy.csv"), "--threads", "1", *options])
    path = out / "accuracy.csv"
    return code, list(csv.DictReader(path.open())) if path.exists() else []


def counted(scenes, probabilities) -> tuple[float, float, float]:
    """mF1, mIoU and OA in percent, class by class over all labelled pixels."""
    truth = np.concatenate([labels.ravel() for _, labels in scenes])
    found = np.concatenate([probabilities(rasters).argmax(axis=0).ravel() for rasters, _ in scenes])
    found, truth = found[truth != 255], truth[truth != 255]
    f1, iou = [], []
    for k in range(CLASSES):
        both = np.count_nonzero((truth == k) & (found == k))
        either = np.count_nonzero((truth == k) | (found == k))
        f1.append(2 * both / (both + either))
        iou.append(both / either)
    return 100 * np.mean(f1), 100 * np.mean(iou), 100 * np.mean(truth == found)


def test_every_graph_scores_what_numpy_counts_and_drops_by_the_difference(bundle, scenes, data, tmp_path) -> None:
    code, rows = run(bundle, data, tmp_path, "--backends", "openvino,onnxruntime", "--precisions", "fp32,int8")
    assert code == 0
    found = {(row["backend"], row["precision"], row["scenario"]): row for row in rows}
    assert len(found) == len(rows) == (1 + 2 * 2) * len(Scenario)
    labelled = sum(int((labels != 255).sum()) for _, labels in scenes)
    for scenario in Scenario:
        exact = counted(scenes, lambda rasters, s=scenario: toy_probabilities(s, rasters, 0))
        rounded = counted(scenes, lambda rasters, s=scenario: quantised_probabilities(s, rasters))
        reference = found["reference", "fp32", scenario]
        for backend, precision in [("reference", "fp32"), ("openvino", "fp32"), ("onnxruntime", "int8")]:
            row = found[backend, precision, scenario]
            scores = [float(row[name]) for name in ("mf1_percent", "miou_percent", "oa_percent")]
            assert scores == pytest.approx(exact if precision == "fp32" else rounded, abs=ROUNDING_PERCENT)
            drop = float(reference["mf1_percent"]) - float(row["mf1_percent"])
            assert float(row["drop_mf1_points"]) == pytest.approx(drop, abs=2e-3)
            assert int(row["pixels"]) == labelled
            assert row["reference"].startswith("onnxruntime")
        assert float(found["openvino", "fp32", scenario]["same_class_percent"]) >= 100 - ROUNDING_PERCENT
    assert float(found["openvino", "int8", Scenario.FULL]["same_class_percent"]) < 99.9, "it must tell graphs apart"


def test_data_with_other_classes_is_refused(bundle, data, tmp_path, capsys) -> None:
    (tmp_path / "other").mkdir()
    for item in data.iterdir():
        (tmp_path / "other" / item.name).symlink_to(item)
    (tmp_path / "other" / "dataset.toml").unlink()
    code, rows = run(bundle, tmp_path / "other", tmp_path)
    assert (code, rows) == (3, [])
    assert "must have the bundle's classes, class 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "named"),
    [
        (("--backends", "tensorrt"), 6, "no backend could run"),
        (("--precisions", "int4"), 2, "--precisions takes a list of fp32, fp16, int8"),
        (("--part", "validation"), 3, "the validation part of"),
        (("--checkpoint", "nowhere.safetensors"), 2, "--checkpoint takes a file"),
    ],
)
def test_what_cannot_be_scored_is_explained(bundle, data, tmp_path, capsys, options, code, named) -> None:
    assert run(bundle, data, tmp_path, *options) == (code, [])
    assert named in capsys.readouterr().err
