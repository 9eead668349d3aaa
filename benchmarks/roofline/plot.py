"""The roofline as a picture: what each product reaches under what the machine can do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.roofline.machine import Peaks
from benchmarks.roofline.profiling import ProfileRow
from engine.contract.atomic import replacing
from engine.contract.bundle import Precision
from engine.contract.sensors import Scenario

COLOURS: Mapping[Precision, str] = {"fp32": "#0072b2", "fp16": "#009e73", "int8": "#d55e00"}
"""Okabe and Ito, https://jfly.uni-koeln.de/color/."""

Profiled = Mapping[tuple[str, Precision, Scenario], Sequence[ProfileRow]]
"""Executed nodes by backend, precision and scenario."""


def draw(path: Path, profiled: Profiled, peaks: Peaks, title: str) -> None:
    """Write a PNG or SVG: a row per backend, a column per scenario, a point per node that holds a product.

    The area of a point is its share of the tile's time; what has no product (resizing, softmax, reordering) has no
    place on a roofline, and its share stands in the corner.
    """
    backends = list(dict.fromkeys(backend for backend, _, _ in profiled))
    scenarios = list(dict.fromkeys(scenario for _, _, scenario in profiled))
    with mpl.rc_context({"font.size": 8, "svg.hashsalt": "roofline"}):
        figure = Figure(figsize=(4.2 * len(scenarios) + 0.8, 3.6 * len(backends) + 0.6), layout="constrained")
        grid = figure.subplots(len(backends), len(scenarios), sharex=True, sharey=True, squeeze=False)
        for axes, backend in zip(grid, backends, strict=True):
            for axis, scenario in zip(axes, scenarios, strict=True):
                mine = {p: rows for (b, p, s), rows in profiled.items() if (b, s) == (backend, scenario)}
                _panel(axis, mine, peaks)
                axis.set_title(f"{backend}, {scenario}")
            axes[0].set_ylabel("GFLOP/s (2 per MAC)")
        for axis in grid[-1]:
            axis.set_xlabel("FLOP per byte read or written by the layer")
        figure.suptitle(title)
        with replacing(path) as temporary:
            figure.savefig(temporary, format=path.suffix.removeprefix(".") or "png", dpi=140)


def _panel(axis: Axes, rows: Mapping[Precision, Sequence[ProfileRow]], peaks: Peaks) -> None:
    axis.set_xscale("log")
    axis.set_yscale("log")
    notes = []
    for precision, nodes in rows.items():
        total = sum(row.node.ms for row in nodes)
        points = [row for row in nodes if row.owns and row.node.ms]
        intensity = [2 * row.macs / sum(layer.traffic_bytes for layer in row.owns) for row in points]
        reached = [2 * row.macs / row.node.ms / 1e6 for row in points]
        area = [4 + 1500 * row.node.ms / total for row in points]
        colour = COLOURS[precision]
        axis.scatter(intensity, reached, area, color=colour, alpha=0.45, linewidths=0.4, edgecolors="white")
        without = sum(row.node.ms for row in nodes if not row.owns) / total
        notes.append((f"{precision}: {total:.0f} ms, {without:.0%} without products", colour))
    across = np.geomspace(0.3, 1000, 200)
    best = max(peaks.gflops.values())
    fastest = max(peaks.copy_gbs.values())
    for rate, style, name in ((peaks.memory_gbs, "-", "memory"), (fastest, ":", "cache")):
        axis.plot(across, np.minimum(across * rate, best), style, color="0.35", linewidth=0.9)
        axis.text(0.36, min(0.36 * rate, best), f"{name} {rate:.0f} GB/s", ha="left", va="bottom", color="0.35")
    for arithmetic, gflops in peaks.gflops.items():
        axis.axhline(gflops, color="0.35", linewidth=0.6, linestyle="--")
        axis.text(1000, gflops, f"{arithmetic} {gflops:.0f} GFLOP/s", ha="right", va="bottom", color="0.35")
    for line, (note, colour) in enumerate(notes):
        axis.text(0.98, 0.03 + 0.07 * line, note, color=colour, ha="right", transform=axis.transAxes)
    axis.set_xlim(0.3, 1000)
