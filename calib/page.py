"""The report as a page of HTML that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

import msgspec

from calib.charts import Bar, bars, contact_sheet, points
from calib.findings import Study
from calib.report import Report
from calib.samples import CalibrationList
from engine.contract.errors import OutputError

JSON_NAME, HTML_NAME = "report.json", "report.html"

RANKED = 20
"""Layers that a ranking draws; the JSON has all."""
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { font-size: 1.6rem } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd } h3 { margin-bottom: .3rem }
table { border-collapse: collapse; margin: .5rem 0 } td, th { padding: .2rem .7rem; text-align: right }
td:first-child, th:first-child { text-align: left } tr { border-bottom: 1px solid #eee } th { font-weight: 600 }
svg, img { max-width: 100%; height: auto } code { font-size: .85em; overflow-wrap: anywhere } small { color: #666 }
"""


def write_report(report: Report, chosen: CalibrationList, folder: Path) -> Path:
    """Write ``report.json`` and ``report.html``; returns the page's path.

    Raises:
        OutputError: the folder cannot be written.
    """
    path = folder / HTML_NAME
    try:
        (folder / JSON_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n")
        path.write_text(page(report, contact_sheet(chosen, report.classes)), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the report could not be written to {folder}: {error}") from error
    return path


def page(report: Report, sheet: str) -> str:
    """The whole page.

    Args:
        report: what it says.
        sheet: the calibration tiles, a picture as a data URI.
    """
    tools = ", ".join(f"{name.removeprefix('calib/')} {number}" for name, number in report.tools.items())
    body = [
        f"<h1>INT8 calibration of {escape(report.bundle)}</h1>",
        f"<p><code>{escape(report.command)}</code><br><small>{report.created_utc}, {escape(report.cpu)}; "
        f"{escape(tools)}</small></p>",
        "<h2>Result</h2>",
        _summary(report),
        "<h2>Accuracy</h2>",
        _accuracy(report),
        "<h2>Confidence</h2>",
        _confidence(report),
        "<h2>Latency</h2>",
        _latency(report),
        *(part for study in report.studies for part in _scenario(study)),
        "<h2>Calibration tiles</h2>",
        _tiles(report, sheet),
        "<h2>Provenance</h2>",
        _provenance(report),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>INT8 calibration of '
        f"{escape(report.bundle)}</title><style>{_STYLE}</style></head><body>{''.join(body)}</body></html>\n"
    )


def _summary(report: Report) -> str:
    rows = []
    for study, timing in zip(report.studies, report.timings, strict=True):
        by = {(one.precision, one.floating): one.median_ms for one in timing.latencies}
        faster = by["fp32", "f32"] / by["int8", "f32"]
        verdict = f"{faster:.2f} x fp32" if faster > 1 else f"SLOWER than fp32 ({faster:.2f} x)"
        rows.append(
            (
                study.scenario,
                f"{study.loss_points:+.2f}",
                f"{study.int8_share:.1%}",
                f"{sum(layer.int8 for layer in study.layers)} of {len(study.layers)}",
                ", ".join(study.steps[-1].released) or "none",
                study.method,
                verdict,
            )
        )
    head = (
        "scenario",
        "mF1 lost, points",
        "INT8 share of MACs",
        "INT8 layers",
        "left floating by the search",
        "ranges",
    )
    return (
        f"<p>Budget: {report.budget_points:g} points of mF1 against fp32, on tiles that took no part in any choice. "
        f"What stays floating is {report.studies[0].floating}.</p>" + _table((*head, "OpenVINO, one tile"), rows)
    )


def _accuracy(report: Report) -> str:
    drawn, lost, rows = [], [], []
    for study in report.studies:
        fp32 = study.evaluations[0].mean_f1
        for series, one in enumerate(study.evaluations):
            label = f"{study.scenario}, {one.precision} in {one.runtime}"
            drawn.append(Bar(label=label, value=one.mean_f1, text=f"{one.mean_f1:.2f}", series=series))
            if one.precision != "fp32":
                lost.append(
                    Bar(label=label, value=fp32 - one.mean_f1, text=f"{fp32 - one.mean_f1:+.3f}", series=series)
                )
            rows.append(
                (
                    label,
                    f"{one.mean_f1:.2f}",
                    *(f"{100 * value:.1f}" for value in one.class_f1),
                    f"{one.agreement:.3%}",
                )
            )
    head = ("scenario, graph", "mF1", *(spec.name for spec in report.classes), "same class as fp32")
    return (
        f"<p>{len(report.evaluation)} evaluation tiles; F1 in percent from one confusion matrix over all pixels. "
        "<em>onnxruntime</em> computes Q and DQ one by one as they are written, <em>openvino</em> runs this CPU's INT8 "
        "kernels.</p>"
        + bars("mF1", drawn)
        + _table(head, rows)
        + "<h3>Points of mF1 lost against fp32</h3>"
        + bars("mF1 lost", lost, mark=report.budget_points, mark_text="budget")
    )


def _confidence(report: Report) -> str:
    if not report.confidence:
        return "<p>Not fitted: <code>python -m train.temperature</code> does that before export.</p>"
    rows = [
        (
            each.scenario,
            each.data,
            f"{each.temperature:.2f}",
            f"{100 * each.error_before:.1f}",
            "" if each.error_after is None else f"{100 * each.error_after:.1f}",
        )
        for each in report.confidence
    ]
    return (
        "<p>Expected calibration error in percent (15 bins) on held-out scenes of each source, without the temperature "
        "that is in the graphs and with one fitted on other scenes.</p>"
        + _table(("scenario", "scenes", "temperature", "before", "after"), rows)
    )


def _latency(report: Report) -> str:
    drawn, rows = [], []
    for timing in report.timings:
        for series, one in enumerate(timing.latencies):
            label = f"{timing.scenario}, {one.label}"
            drawn.append(Bar(label=label, value=one.median_ms, text=f"{one.median_ms:.1f} ms", series=series))
            rows.append(
                (label, one.computed, f"{one.int8_nodes} of {one.nodes}", f"{one.median_ms:.1f}", f"{one.p90_ms:.1f}")
            )
    lacks = any(one.computed != one.floating for timing in report.timings for one in timing.latencies)
    lacking = (
        " This CPU has no bfloat16 arithmetic, and OpenVINO stays with float32 when asked for it." if lacks else ""
    )
    first = report.timings[0]
    head = (
        "scenario, graph as asked",
        "floating layers computed in",
        "convolutions in INT8 kernels",
        "median ms",
        "p90 ms",
    )
    return (
        f"<p>OpenVINO {report.tools['calib/openvino']} on {escape(report.cpu)}, {first.threads} threads, one tile at a "
        f"time, classes and confidence out; {first.rounds} rounds, every graph once in each. Load average before: "
        f"{', '.join(f'{timing.load:.1f}' for timing in report.timings)}.{lacking}</p>"
        + bars("latency", drawn)
        + _table(head, rows)
    )


def _scenario(study: Study) -> Iterable[str]:
    yield f"<h2>{study.scenario}</h2>"
    yield "<h3>Methods, every layer INT8, on the search tiles</h3>"
    yield _table(
        ("method", "mF1", "mean change of a probability"),
        [(one.method, f"{one.mean_f1:.3f}", f"{one.damage:.2e}") for one in study.methods],
    )
    yield "<h3>Search</h3>"
    yield _table(
        ("left floating", "mF1", "points lost", "INT8 share"),
        [
            (
                ", ".join(step.released) or "none",
                f"{step.mean_f1:.3f}",
                f"{step.loss_points:+.3f}",
                f"{step.int8_share:.1%}",
            )
            for step in study.steps
        ],
    )
    ranked = study.sensitivity[:RANKED]
    yield (
        f"<h3>Sensitivity, leaving one out: the {len(ranked)} highest of {len(study.sensitivity)}</h3>"
        "<p>Mean change of a probability that goes away when one layer stays floating.</p>"
    )
    yield bars(
        f"sensitivity of {study.scenario}",
        [Bar(label=one.layer, value=one.spared, text=f"{one.spared:.1e}") for one in ranked],
    )
    yield "<details><summary>Activation ranges: where each method clips a layer's input</summary>"
    yield points(
        f"ranges of {study.scenario}",
        [(one.layer, {str(method): at for method, at in one.thresholds.items()}) for one in study.ranges],
        "clipped at",
    )
    yield "</details>"


def _tiles(report: Report, sheet: str) -> str:
    rows = [
        (name, str(report.strata_covered[name]), str(available)) for name, available in report.strata_available.items()
    ]
    return (
        f"<p>{len(report.calibration)} tiles; list <code>{report.calibration_sha256}</code>. Each as NIR-R-G, height "
        f'and labels, in the order chosen.</p><img alt="calibration tiles" src="{sheet}">'
        + _table(("what a tile shows", "in the list", "available"), rows)
    )


def _provenance(report: Report) -> str:
    files = _table(
        ("INT8 graph", "SHA-256"),
        [(scenario, f"<code>{digest}</code>") for scenario, digest in report.graph_sha256.items()],
        raw=True,
    )
    lists = "".join(
        f"<details><summary>{len(records)} {title} tiles</summary><p><code>"
        + "<br>".join(f"{escape(record.name)} {record.sha256}" for record in records)
        + "</code></p></details>"
        for title, records in (
            ("calibration", report.calibration),
            ("search", report.search),
            ("evaluation", report.evaluation),
        )
    )
    return f"<p>Bundle <code>{report.bundle_sha256}</code>; nothing here is drawn at random.</p>{files}{lists}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], *, raw: bool = False) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{cell if raw else escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(head, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"
