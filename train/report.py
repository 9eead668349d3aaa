"""Results as tables and pictures: text, CSV, the layout of the paper's Table 1, bar charts, and a panel of maps."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from engine.contract.atomic import replacing
from engine.contract.sensors import Scenario, Sensor
from train.checkpoint import CheckpointInfo
from train.data.labels import LabelSet
from train.data.scenes import Scene
from train.predict import tiles
from train.results import ScenarioResult
from train.system import System

matplotlib.use("Agg")
from matplotlib import pyplot

COLUMNS = (Scenario.FULL, Scenario.MISSING_RGIR, Scenario.MISSING_NDSM)
"""Table 1's order."""

PAPER_TABLE_1: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {
    "vaihingen": {
        "AE": ((77.60, 65.30), (59.81, 45.92), (74.64, 61.19)),
        "GEMMNet_AE": ((78.27, 65.77), (61.26, 47.57), (76.16, 62.62)),
        "cGAN": ((76.59, 63.90), (60.71, 46.66), (74.34, 60.46)),
        "GEMMNet_cGAN": ((79.07, 66.74), (61.89, 47.85), (74.98, 61.15)),
        "mmFormer": ((78.54, 66.10), (60.18, 46.28), (72.25, 57.88)),
        "ShaSpec": ((78.62, 65.94), (57.22, 43.40), (71.94, 57.60)),
    },
    "potsdam": {
        "AE": ((77.28, 64.15), (51.87, 39.60), (74.06, 59.44)),
        "GEMMNet_AE": ((80.65, 68.42), (56.36, 44.38), (75.63, 61.44)),
        "cGAN": ((83.04, 71.68), (56.11, 44.62), (76.69, 62.53)),
        "GEMMNet_cGAN": ((84.28, 73.42), (56.89, 44.98), (78.51, 65.05)),
        "mmFormer": ((83.11, 71.79), (56.89, 44.39), (73.32, 58.58)),
        "ShaSpec": ((81.34, 69.40), (58.46, 44.29), (76.05, 62.17)),
    },
}
"""mF1 and mIoU of the paper's Table 1, percent, in :data:`COLUMNS` order; its mIoU appears to be tile-averaged."""


def text_table(results: Sequence[ScenarioResult], labels: LabelSet) -> str:
    """Results as aligned text, percent."""
    header = ("scenario", "missing sensor is", "mF1", "mIoU", "OA", *labels.names)
    rows = [header]
    for result in results:
        s = result.scores
        numbers = (s.mean_f1, s.mean_iou, s.overall_accuracy, *(s.class_f1[name] for name in labels.names))
        how = "-" if result.scenario is Scenario.FULL else {"generator": "synthesised"}.get(result.input, result.input)
        rows.append((result.scenario.value, how, *(f"{100 * value:.1f}" for value in numbers)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def table_1(ours: dict[str, Sequence[ScenarioResult]], source: str) -> str:
    """Markdown in the layout of the paper's Table 1, ours first, the paper's rows beside it on the same city.

    Args:
        ours: results by the name of the system.
        source: name of the data; the paper's figures appear for ``vaihingen`` and ``potsdam``.
    """
    lines = [
        "| system | " + " | ".join(f"{name} mF1 | mIoU | tile-averaged mIoU" for name in _headings()) + " |",
        "|---|" + "---|" * (3 * len(COLUMNS)),
    ]
    for name, results in ours.items():
        found = {result.scenario: result for result in results if result.input == "generator"}
        cells = []
        for scenario in COLUMNS:
            result = found.get(scenario)
            if result is None:  # no scene had the sensors
                cells += ["", "", ""]
                continue
            tile = "" if result.tile_mean_iou is None else f"{100 * result.tile_mean_iou:.2f}"
            cells += [f"{100 * result.scores.mean_f1:.2f}", f"{100 * result.scores.mean_iou:.2f}", tile]
        lines.append(f"| {name} (ours) | " + " | ".join(cells) + " |")
    for name, figures in PAPER_TABLE_1.get(source, {}).items():
        lines.append(f"| {name} (paper) | " + " | ".join(f"{f1:.2f} | | {iou:.2f}" for f1, iou in figures) + " |")
    return "\n".join(lines) + "\n"


def _headings() -> list[str]:
    return ["full", "missing RGIR", "missing nDSM"]


def as_csv(results: Sequence[ScenarioResult], labels: LabelSet) -> str:
    """One row per scenario, way and kind of boundary; fractions in 0..1, errors in raw units."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(
        ["scenario", "input", "boundaries", "mean_f1", "mean_iou", "overall_accuracy", "tile_mean_iou"]
        + ["synthesis_mae", "synthesis_ssim"]
        + [f"f1 {name}" for name in labels.names]
        + [f"iou {name}" for name in labels.names]
    )
    for result in results:
        made = result.synthesis
        for kind, scores in (("all", result.scores), ("eroded", result.eroded)):
            if scores is None:
                continue
            whole = kind == "all"
            rows.writerow(
                [result.scenario.value, result.input, kind, scores.mean_f1, scores.mean_iou, scores.overall_accuracy]
                + [result.tile_mean_iou if whole else ""]
                + ([made.mean_absolute_error, made.ssim] if made and whole else ["", ""])
                + [scores.class_f1[name] for name in labels.names]
                + [scores.class_iou[name] for name in labels.names]
            )
    return out.getvalue()


def charts(results: Sequence[ScenarioResult], labels: LabelSet, path: Path) -> None:
    """F1 per class and scenario, and mF1 by what replaces the missing sensor, as bars (the paper's Figures 1-2)."""
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(12, 4), width_ratios=(2, 1), sharey=True, layout="constrained"
    )
    own = {result.scenario: result for result in results if result.input == "generator"}
    places, width = np.arange(len(labels.names)), 0.8 / len(own)
    for i, (scenario, result) in enumerate(own.items()):
        values = [100 * result.scores.class_f1[name] for name in labels.names]
        left.bar(places + (i - (len(own) - 1) / 2) * width, values, width, label=scenario.value)
    left.set_xticks(places, labels.names)
    left.set(ylabel="F1, percent", ylim=(0, 100), title="by class")
    left.legend()
    missing = [result for result in results if result.scenario is not Scenario.FULL]
    names = [f"{result.scenario.value}\n{result.input}" for result in missing]
    bars = right.bar(names, [100 * result.scores.mean_f1 for result in missing])
    right.bar_label(bars, fmt="%.1f")
    right.tick_params(axis="x", labelsize=7)
    right.set(title="mF1 by what replaces the missing sensor")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    pyplot.close(figure)


@torch.no_grad()
def panel(model: System, scene: Scene, labels: LabelSet, path: Path) -> None:
    """Inputs, synthesised bands, truth and the three maps of a scene's first tile (the paper's Figure 4)."""
    tile = next(tiles(scene))
    device = next(model.parameters()).device
    rgir, ndsm = tile.rgir[None].to(device), tile.ndsm[None].to(device)
    no_ndsm, made_ndsm = model.forward_missing_ndsm(rgir)
    no_rgir, made_rgir = model.forward_missing_rgir(ndsm)
    colours = labels.palette()

    def classes(logits: Tensor) -> NDArray[np.uint8]:
        return colours[logits[0].argmax(0).cpu().numpy()]

    def raw(sensor: Sensor, made: Tensor | None) -> NDArray[np.float32]:
        blank = torch.zeros(1, 3 if sensor is Sensor.RGIR else 1, *ndsm.shape[-2:])
        return (blank if made is None else model.normalisation(sensor).inverse(made.float()))[0].cpu().numpy()

    top = max(float(tile.ndsm.max()), 1.0)
    height = {"cmap": "viridis", "vmin": 0, "vmax": top}
    pictures: tuple[tuple[str, NDArray[Any], dict[str, Any]], ...] = (
        ("RGIR", tile.rgir.permute(1, 2, 0).numpy(), {}),
        ("RGIR made from nDSM", raw(Sensor.RGIR, made_rgir).transpose(1, 2, 0).astype(np.uint8), {}),
        ("nDSM", tile.ndsm[0].numpy(), height),
        ("nDSM made from RGIR", raw(Sensor.NDSM, made_ndsm)[0], height),
        ("truth", colours[tile.labels], {}),
        ("full", classes(model.forward_full(rgir, ndsm)), {}),
        ("missing nDSM", classes(no_ndsm), {}),
        ("missing RGIR", classes(no_rgir), {}),
    )
    figure, axes = pyplot.subplots(2, 4, figsize=(16, 8.4), layout="constrained")
    for axis, (title, picture, how) in zip(axes.ravel(), pictures, strict=True):
        axis.imshow(picture, interpolation="nearest", **how)
        axis.set_title(title)
        axis.set_axis_off()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=80)
    pyplot.close(figure)


def write(
    folder: Path,
    results: Sequence[ScenarioResult],
    info: CheckpointInfo,
    *,
    source: str,
    model: System,
    scene: Scene | None,
) -> None:
    """metrics.csv, table.md, charts.png and, of a scene with both sensors, panel.png, each whole or not at all."""
    for name, text in (
        ("metrics.csv", as_csv(results, info.labels)),
        ("table.md", table_1({info.model.title: results}, source)),
    ):
        with replacing(folder / name) as temporary:
            temporary.write_text(text)
    charts(results, info.labels, folder / "charts.png")
    if scene is not None:
        panel(model, scene, info.labels, folder / "panel.png")
