"""The report as a page of HTML that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from markupsafe import Markup

from calib.contact_sheet import contact_sheet
from calib.findings import Study
from calib.report import Report
from calib.samples import CalibrationList
from engine.contract.errors import OutputError
from engine.contract.page import Section, page, section, table, tag
from engine.contract.page.charts import Bar, Ruler, bars, points

JSON_NAME, HTML_NAME = "report.json", "report.html"

RANKED = 20
"""Layers that a ranking draws; the JSON has all."""


def write_report(report: Report, chosen: CalibrationList, folder: Path) -> Path:
    """Write ``report.json`` and ``report.html``; returns the page's path.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = folder / HTML_NAME
    try:
        (folder / JSON_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        path.write_text(_page(report, contact_sheet(chosen, report.classes)), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the report could not be written to {folder}: {error}") from error
    return path


def _page(report: Report, sheet: str) -> str:
    """The whole page; the sheet is the calibration tiles, a picture as a data URI."""
    tools = ", ".join(f"{name.removeprefix('calib/')} {number}" for name, number in report.tools.items())
    byline = [tag("code", report.command), tag("br"), tag("small", f"{report.created_utc}, {report.cpu}; {tools}")]
    sections = [_result(report), _accuracy(report), _confidence(report), _latency(report)]
    sections += [section(study.scenario, study.scenario, *_scenario(study)) for study in report.studies]
    sections += [_tiles(report, sheet), _provenance(report)]
    return page(f"INT8 calibration of {report.bundle}", byline=byline, sections=sections)


def _result(report: Report) -> Section:
    rows = []
    for study, timing in zip(report.studies, report.timings, strict=True):
        by = {(one.precision, one.floating): one.median_ms for one in timing.latencies}
        faster = by["fp32", "f32"] / by["int8", "f32"]
        rows.append(
            (
                study.scenario,
                f"{study.loss_points:+.2f}",
                f"{study.int8_share:.1%}",
                f"{sum(layer.int8 for layer in study.layers)} of {len(study.layers)}",
                ", ".join(study.steps[-1].released) or "none",
                study.method,
                f"{faster:.2f} x fp32" if faster > 1 else f"SLOWER than fp32 ({faster:.2f} x)",
            )
        )
    head = [
        "scenario",
        "mF1 lost, points",
        "INT8 share of MACs",
        "INT8 layers",
        "left floating by the search",
        "ranges",
    ]
    budget = (
        f"Budget: {report.budget_points:g} points of mF1 against fp32, on tiles that took no part in any choice. "
        f"What stays floating is {report.studies[0].floating}."
    )
    return section("result", "Result", tag("p", budget), table([*head, "OpenVINO, one tile"], rows, numbers=(1, 2, 3)))


def _accuracy(report: Report) -> Section:
    drawn, lost, rows = [], [], []
    for study in report.studies:
        fp32 = study.evaluations[0].mean_f1
        for series, one in enumerate(study.evaluations):
            label, loss = f"{study.scenario}, {one.precision} in {one.runtime}", fp32 - one.mean_f1
            drawn.append(Bar(label=label, value=one.mean_f1, text=f"{one.mean_f1:.2f}", series=series))
            if one.precision != "fp32":
                lost.append(Bar(label=label, value=loss, text=f"{loss:+.3f}", series=series))
            by_class = (f"{100 * value:.1f}" for value in one.class_f1)
            rows.append((label, f"{one.mean_f1:.2f}", *by_class, f"{one.agreement:.3%}"))
    head = ["scenario, graph", "mF1", *(spec.name for spec in report.classes), "same class as fp32"]
    return section(
        "accuracy",
        "Accuracy",
        tag(
            "p",
            f"{len(report.evaluation)} evaluation tiles; F1 in percent from one confusion matrix over all pixels. ",
            tag("em", "onnxruntime"),
            " computes Q and DQ one by one as they are written, ",
            tag("em", "openvino"),
            " runs this CPU's INT8 kernels.",
        ),
        bars("mF1", drawn),
        table(head, rows, numbers=range(1, len(head))),
        tag("h3", "Points of mF1 lost against fp32"),
        bars("mF1 lost", lost, mark=Ruler(at=report.budget_points, label="budget")),
    )


def _confidence(report: Report) -> Section:
    if not report.confidence:
        fit = tag("code", "python -m train.temperature")
        return section("confidence", "Confidence", tag("p", "Not fitted: ", fit, " does that before export."))
    rows = [
        (
            each.scenario,
            each.data,
            f"{each.temperature:.2f}",
            f"{100 * each.error_before:.1f}",
            None if each.error_after is None else f"{100 * each.error_after:.1f}",
        )
        for each in report.confidence
    ]
    words = (
        "Expected calibration error in percent (15 bins) on held-out scenes of each source, without the temperature "
        "that is in the graphs and with one fitted on other scenes."
    )
    head = ["scenario", "scenes", "temperature", "before", "after"]
    return section("confidence", "Confidence", tag("p", words), table(head, rows, numbers=(2, 3, 4)))


def _latency(report: Report) -> Section:
    drawn, rows, lacks = [], [], False
    for timing in report.timings:
        for series, one in enumerate(timing.latencies):
            label = f"{timing.scenario}, {one.label}"
            drawn.append(Bar(label=label, value=one.median_ms, text=f"{one.median_ms:.1f} ms", series=series))
            nodes = f"{one.int8_nodes} of {one.nodes}"
            rows.append((label, one.computed, nodes, f"{one.median_ms:.1f}", f"{one.p90_ms:.1f}"))
            lacks |= one.computed != one.floating
    first, loads = report.timings[0], ", ".join(f"{timing.load:.1f}" for timing in report.timings)
    head = ["scenario, graph as asked", "floating layers computed in", "convolutions in INT8 kernels", "median ms"]
    return section(
        "latency",
        "Latency",
        tag(
            "p",
            f"OpenVINO {report.tools['calib/openvino']} on {report.cpu}, {first.threads} threads, one tile at a time, "
            f"classes and confidence out; {first.rounds} rounds, every graph once in each. Load average before: "
            f"{loads}.",
            " This CPU has no bfloat16 arithmetic, and OpenVINO stays with float32 when asked for it." if lacks else "",
        ),
        bars("latency", drawn),
        table([*head, "p90 ms"], rows, numbers=(3, 4)),
    )


def _scenario(study: Study) -> Iterator[Markup]:
    yield tag("h3", "Methods, every layer INT8, on the search tiles")
    methods = [(one.method, f"{one.mean_f1:.3f}", f"{one.damage:.2e}") for one in study.methods]
    yield table(["method", "mF1", "mean change of a probability"], methods, numbers=(1, 2))
    yield tag("h3", "Search")
    steps = [
        (
            ", ".join(step.released) or "none",
            f"{step.mean_f1:.3f}",
            f"{step.loss_points:+.3f}",
            f"{step.int8_share:.1%}",
        )
        for step in study.steps
    ]
    yield table(["left floating", "mF1", "points lost", "INT8 share"], steps, numbers=(1, 2, 3))
    ranked = study.sensitivity[:RANKED]
    yield tag("h3", f"Sensitivity, leaving one out: the {len(ranked)} highest of {len(study.sensitivity)}")
    yield tag("p", "Mean change of a probability that goes away when one layer stays floating.")
    spared = [Bar(label=one.layer, value=one.spared, text=f"{one.spared:.1e}") for one in ranked]
    yield bars(f"sensitivity of {study.scenario}", spared)
    ranges = [(one.layer, {str(method): at for method, at in one.thresholds.items()}) for one in study.ranges]
    yield tag(
        "details",
        tag("summary", "Activation ranges: where each method clips a layer's input"),
        points(f"ranges of {study.scenario}", ranges, "clipped at"),
    )


def _tiles(report: Report, sheet: str) -> Section:
    rows = [(name, report.strata_covered[name], available) for name, available in report.strata_available.items()]
    return section(
        "tiles",
        "Calibration tiles",
        tag(
            "p",
            f"{len(report.calibration)} tiles; list ",
            tag("code", report.calibration_sha256),
            ". Each as NIR-R-G, height and labels, in the order chosen.",
        ),
        tag("img", alt="calibration tiles", src=sheet),
        table(["what a tile shows", "in the list", "available"], rows, numbers=(1, 2)),
    )


def _provenance(report: Report) -> Section:
    used = {"calibration": report.calibration, "search": report.search, "evaluation": report.evaluation}
    return section(
        "provenance",
        "Provenance",
        tag("p", "Bundle ", tag("code", report.bundle_sha256), "; nothing here is drawn at random."),
        table(["INT8 graph", "SHA-256"], [(name, tag("code", sha)) for name, sha in report.graph_sha256.items()]),
        [
            tag(
                "details",
                tag("summary", f"{len(records)} {title} tiles"),
                tag("p", tag("code", [[f"{each.name} {each.sha256}", tag("br")] for each in records])),
            )
            for title, records in used.items()
        ],
    )
