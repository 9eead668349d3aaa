"""How well, and what survives: one function per table, a result in, a short Markdown table out."""

from __future__ import annotations

import statistics

from benchmarks.readme.cells import SCENARIOS, TITLES, grouped, markdown, number, total, triple
from benchmarks.readme.results import Result
from engine.contract.sensors import Scenario

# --- what survives


def acceptance(result: Result) -> str:
    """All cases in a line."""
    rows = result.rows
    line = [
        f"{total(rows, 'passed')} of {len(rows)}",
        f"{total(rows, 'detected')} of {total(rows, 'spoiling')}",
        f"{total(rows, 'hard_at_once')} of {total(rows, 'hard')}",
        f"{total(rows, 'false_alarms')} in {total(rows, 'tiles')} tiles",
        total(rows, "lost"),
        total(rows, "poisoned"),
    ]
    head = ["cases passed", "faults found", "hard faults found in the tile where they start", "false alarms"]
    return markdown([*head, "tiles lost", "tiles poisoned"], [line])


def kill_resume(result: Result) -> str:
    """All kills in a line."""
    rows = result.rows
    resumed = sum(row["resumed"] == "True" for row in rows)
    equal = sum(row["equal"] == "True" for row in rows)
    line = [len(rows), resumed, f"{equal} of {len(rows)}"]
    return markdown(["kills", "of a run that had been killed before", "maps equal to the last byte"], [line])


# --- accuracy


def agreement(result: Result) -> str:
    """A line per backend and graph."""
    lines = [
        [
            library,
            graph,
            triple(mine, "class_agreement", "{:.2f}", scale=100),
            f"{max(number(row, 'max_probability_difference') for row in mine.values()):.1g}",
            result.document["reference"],
        ]
        for (library, graph), mine in grouped(result.rows, "library", "graph").items()
    ]
    head = ["library", "graph", "same class, %", "largest difference of a probability", "against"]
    return markdown(head, lines)


def accuracy(result: Result) -> str:
    """A line per backend and precision, and what the floating-point part of the graph is computed in."""
    lines = [
        [
            backend,
            precision,
            arithmetic,
            triple(mine, "mf1_percent", "{:.1f}"),
            triple(mine, "miou_percent", "{:.1f}"),
            "" if backend == "reference" else triple(mine, "drop_mf1_points", "{:+.2f}"),
            "" if backend == "reference" else triple(mine, "same_class_percent", "{:.2f}"),
        ]
        for (backend, precision, arithmetic), mine in grouped(result.rows, "backend", "precision", "arithmetic").items()
    ]
    head = ["backend", "graph", "computed in", "mF1, %", "mIoU, %", "points of mF1 lost", "same class, %"]
    return markdown(head, lines)


def calibration(result: Result) -> str:
    """A line per scenario: what int8 costs and gains in OpenVINO."""
    studies = {study["scenario"]: study for study in result.document["studies"]}
    timings = {timing["scenario"]: timing["latencies"] for timing in result.document["timings"]}
    lines = []
    for scenario, title in zip(SCENARIOS, TITLES, strict=True):
        study = studies[scenario]
        f1 = {one["precision"]: one["mean_f1"] for one in study["evaluations"] if one["runtime"] == "openvino"}
        ms = {one["precision"]: one["median_ms"] for one in timings[scenario] if one["floating"] == "f32"}
        lines.append(
            [
                title,
                *(f"{f1[precision]:.1f}" for precision in ("fp32", "fp16", "int8")),
                f"{100 * study['int8_share']:.0f} %",
                f"{ms['fp32'] / ms['int8']:.2f}",
            ]
        )
    head = ["sensors", "mF1 fp32, %", "fp16", "int8", "multiply-accumulates in int8", "int8 times as fast as fp32"]
    return markdown(head, lines)


# --- models


def sweep(result: Result) -> str:
    """A line per variant."""
    lines = []
    for (variant,), mine in grouped(result.rows, "variant").items():
        first = mine[Scenario.FULL]
        lines.append(
            [
                f"**{variant}**" if first["pareto"] == "True" else variant,
                first["encoder_widths"],
                f"1/{first['stem_stride']}, 1/{first['token_stride_px']}",
                f"{number(first, 'parameters') / 1e6:.1f}",
                triple(mine, "gmac", "{:.1f}"),
                triple(mine, "latency_ms", "{:.0f}"),
                triple(mine, "latency_over_reference", "{:.2f}"),
                f"{first['steps']} steps of {first['batch']} x {first['crop']}² px",
                triple(mine, "mean_f1", "{:.1f}", scale=100),
            ]
        )
    head = ["variant", "encoder widths", "stem, tokens", "parameters, M", "GMAC", "latency, ms"]
    return markdown([*head, f"of {result.document['reference']}", "trained on", "mF1, %"], lines)


def table1(result: Result) -> str:
    """A line per system, means over seeds, with the range of mF1 where there are several."""
    lines = []
    for preset in dict.fromkeys(row["preset"] for row in result.rows):
        rows = [row for row in result.rows if row["preset"] == preset]
        by_scenario = {scenario: [row for row in rows if row["scenario"] == scenario] for scenario in SCENARIOS}
        first = {scenario: mine[0] for scenario, mine in by_scenario.items()}
        cells = []
        for mine in by_scenario.values():
            f1, iou = ([100 * number(row, name) for row in mine] for name in ("mean_f1", "mean_iou"))
            spread = f" ({min(f1):.1f}..{max(f1):.1f})" if len(f1) > 1 else ""
            cells.append(f"{statistics.fmean(f1):.1f}{spread} / {statistics.fmean(iou):.1f}")
        parameters = f"{number(rows[0], 'parameters') / 1e6:.1f}"
        lines.append([preset, rows[0]["system"], parameters, triple(first, "gmac", "{:.1f}"), *cells])
    head = ["preset", "system", "parameters, M", "GMAC", *(f"{title}, mF1 / mIoU" for title in TITLES)]
    return markdown(head, lines)
