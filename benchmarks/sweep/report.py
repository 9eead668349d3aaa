"""What a sweep found: rows of a CSV, a table, and the Pareto front as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.sweep.latency import Timed
from benchmarks.sweep.training import Scores
from benchmarks.tables import TABLES
from engine.contract.atomic import replacing
from engine.contract.sensors import Scenario

matplotlib.use("Agg")
from matplotlib import pyplot

Row = dict[str, object]


def rows(timed: Sequence[Timed], scores: Scores, budget: Mapping[str, Any]) -> list[Row]:
    """One row per variant and scenario; mF1 in 0..1, mean over seeds, empty where nothing was trained.

    Args:
        timed: all scenarios of the first variant, which is the reference of the ratios, then of the others.
        scores: mF1 of each seed.
        budget: further columns; a variant's own come first.
    """
    reference = {row.scenario: row for row in timed[: len(Scenario)]}
    points = {name: (_mean_latency_ms(timed, name), _mean_f1(by_scenario)) for name, by_scenario in scores.items()}
    best = front(points)
    found: list[Row] = []
    for row in timed:
        variant, model = row.variant, row.variant.model
        seeds = scores[variant.name][row.scenario] if scores else ()
        found.append(
            {
                "variant": variant.name,
                "base": variant.base,
                "changes": variant.described(),
                "encoder_widths": "-".join(map(str, model.encoder_widths)),
                "encoder_refinements": "-".join(map(str, model.encoder_refinements)),
                "generator_widths": "-".join(map(str, model.generator_widths)),
                "stem_stride": model.stem_stride,
                "pixel_shuffle": model.pixel_shuffle,
                "token_stride_px": variant.token_stride_px,
                "token_depth": variant.token_depth,
                "parameters": row.parameters,
                "scenario": row.scenario.value,
                "gmac": round(row.gmac, 3),
                "latency_ms": round(row.latency_ms, 3),
                "latency_over_reference": round(row.over(reference[row.scenario]), 4),
                "reference": timed[0].variant.name,
                "mean_f1": round(statistics.fmean(seeds), 5) if seeds else "",
                "mean_f1_min": round(min(seeds), 5) if seeds else "",
                "mean_f1_max": round(max(seeds), 5) if seeds else "",
                "pareto": variant.name in best if seeds else "",
                "class_agreement": round(row.class_agreement, 6),
                **budget,
                **(variant.budget if budget else {}),
                "rounds": len(row.rounds_ms),
                "threads": row.threads,
                "precision": "fp32",
            }
        )
    return found


def front(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """The names that no other beats, by latency: none is at least as fast and at least as good, and better in one.

    Args:
        points: (latency, mF1) by name.
    """
    kept = [
        name
        for name, (latency, f1) in points.items()
        if not any(a <= latency and b >= f1 and (a, b) != (latency, f1) for a, b in points.values())
    ]
    return sorted(kept, key=lambda name: points[name])


def markdown(found: Sequence[Row]) -> str:
    """A line per variant, as on the page; without scores where nothing was trained."""
    table = TABLES["sweep"]
    if found[0]["mean_f1"] == "":
        table = replace(table, cells=dict(list(table.cells.items())[:-2]))
    return table.markdown(found) + "\n"


def plot(found: Sequence[Row], path: Path) -> None:
    """Mean mF1 against mean latency, each variant labelled, the front drawn.

    Bars reach from the mean of the scenarios' worst seeds to that of their best.
    """
    groups = [found[at : at + len(Scenario)] for at in range(0, len(found), len(Scenario))]

    def mean(group: Sequence[Row], column: str) -> float:
        return statistics.fmean(float(str(row[column])) for row in group)

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    best = sorted((mean(group, "latency_ms"), 100 * mean(group, "mean_f1")) for group in groups if group[0]["pareto"])
    axes.plot(
        *zip(*best, strict=True), color="tab:blue", linewidth=1, drawstyle="steps-post", zorder=1, label="Pareto front"
    )
    for group in groups:
        x, y = mean(group, "latency_ms"), 100 * mean(group, "mean_f1")
        spread = [[y - 100 * mean(group, "mean_f1_min")], [100 * mean(group, "mean_f1_max") - y]]
        colour = "tab:blue" if group[0]["pareto"] else "tab:gray"
        axes.errorbar(x, y, yerr=spread, fmt="o", color=colour, capsize=2, zorder=2)
        axes.annotate(str(group[0]["variant"]), (x, y), xytext=(5, 5), textcoords="offset points", fontsize=8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.tick_params(axis="x", which="minor", labelsize=7)
    axes.set_xlabel(f"latency, ms per tile (OpenVINO, float32, {found[0]['threads']} threads; log scale)")
    axes.set_ylabel("mF1, % (procedural scenes)")
    budgets = " or ".join(dict.fromkeys(map(_trained_on, found)))
    axes.set_title(f"Mean of the three scenarios after {budgets}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.margins(x=0.12, y=0.1)
    axes.legend(loc="lower right")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    pyplot.close(figure)


def _trained_on(row: Row) -> str:
    return f"{row['steps']} steps of {row['batch']} crops of {row['crop']} px"


def _mean_latency_ms(timed: Sequence[Timed], name: str) -> float:
    return statistics.fmean(row.latency_ms for row in timed if row.variant.name == name)


def _mean_f1(by_scenario: Mapping[Scenario, Sequence[float]]) -> float:
    return statistics.fmean(statistics.fmean(seeds) for seeds in by_scenario.values())
