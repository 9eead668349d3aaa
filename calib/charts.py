"""Charts as inline SVG and pictures as data: they need no script, no font and no file beside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from calib.samples import CalibrationList
from calib.scenes import SceneTile
from engine.contract.bundle import ClassSpec

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
"""Told apart by colour-blind readers (Okabe and Ito, https://jfly.uni-koeln.de/color/)."""
ROW_PX = 18
LABEL_PX = 330
PLOT_PX = 460
VALUE_PX = 130
THUMBNAIL_PX = 64
THUMBNAIL_COLUMNS = 4
TALL_M = 20.0
"""Height that a thumbnail draws white."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar; ``series`` picks its colour."""

    label: str
    value: float
    text: str
    series: int = 0


def bars(title: str, rows: Sequence[Bar], *, mark: float | None = None, mark_text: str = "") -> str:
    """Horizontal bars from zero, to the left where negative.

    Args:
        title: read out by screen readers.
        rows: top to bottom.
        mark: where a vertical line stands.
        mark_text: what it means.
    """
    values = [row.value for row in rows] + [0.0] + ([mark] if mark is not None else [])
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return LABEL_PX + PLOT_PX * (value - low) / span

    parts = []
    for i, row in enumerate(rows):
        top = i * ROW_PX
        left, right = sorted((x(0.0), x(row.value)))
        colour = COLOURS[row.series % len(COLOURS)]
        parts.append(
            f'<text x="{LABEL_PX - 8}" y="{top + 13}" text-anchor="end">{escape(row.label)}</text>'
            f'<rect x="{left:.1f}" y="{top + 3}" width="{max(right - left, 0.5):.1f}" height="{ROW_PX - 6}" '
            f'fill="{colour}"/><text x="{right + 5:.1f}" y="{top + 13}">{escape(row.text)}</text>'
        )
    height = len(rows) * ROW_PX
    parts.append(_line(x(0.0), height, "#888"))
    if mark is not None:
        parts.append(_line(x(mark), height, "#d55e00") + _caption(x(mark), height, mark_text))
    return _svg(title, parts, height + ROW_PX)


def points(title: str, rows: Sequence[tuple[str, Mapping[str, float]]], unit: str) -> str:
    """Several positive values per row on one logarithmic axis, a colour for each name.

    Args:
        title: read out by screen readers.
        rows: label and values by name, top to bottom; the same names in every row.
        unit: of the axis.
    """
    names = list(rows[0][1])
    logs = np.log10([max(value, 1e-9) for _, values in rows for value in values.values()])
    low, high = float(np.floor(logs.min())), float(np.ceil(logs.max()))
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return LABEL_PX + PLOT_PX * (float(np.log10(max(value, 1e-9))) - low) / span

    parts = []
    for i, (label, values) in enumerate(rows):
        top = i * ROW_PX
        places = [x(value) for value in values.values()]
        parts.append(
            f'<text x="{LABEL_PX - 8}" y="{top + 13}" text-anchor="end">{escape(label)}</text>'
            f'<line x1="{min(places):.1f}" x2="{max(places):.1f}" y1="{top + 9}" y2="{top + 9}" stroke="#bbb"/>'
        )
        for k, (name, value) in enumerate(values.items()):
            parts.append(
                f'<circle cx="{x(value):.1f}" cy="{top + 9}" r="4" fill="{COLOURS[k % len(COLOURS)]}" '
                f'fill-opacity="0.85"><title>{escape(name)} {value:.4g}</title></circle>'
            )
    height = len(rows) * ROW_PX
    for power in range(int(low), int(high) + 1):
        parts.append(_line(x(10.0**power), height, "#ddd") + _caption(x(10.0**power), height, f"{10.0**power:g}"))
    legend = "".join(
        f'<circle cx="{LABEL_PX + 110 * k}" cy="{height + 32}" r="4" fill="{COLOURS[k % len(COLOURS)]}"/>'
        f'<text x="{LABEL_PX + 110 * k + 9}" y="{height + 36}">{escape(name)}</text>'
        for k, name in enumerate(names)
    )
    parts.append(legend + f'<text x="{LABEL_PX - 8}" y="{height + 36}" text-anchor="end">{escape(unit)}</text>')
    return _svg(title, parts, height + 2 * ROW_PX + 6)


def contact_sheet(chosen: CalibrationList, classes: Sequence[ClassSpec]) -> str:
    """The calibration tiles side by side, each as optical image, heights and labels: a PNG as a data URI."""
    cells = [_thumbnail(tile, classes) for tile in chosen.tiles]
    rows = -(-len(cells) // THUMBNAIL_COLUMNS)
    cells += [np.full_like(cells[0], 255)] * (rows * THUMBNAIL_COLUMNS - len(cells))
    sheet = np.concatenate(
        [np.concatenate(cells[i : i + THUMBNAIL_COLUMNS], axis=1) for i in range(0, len(cells), THUMBNAIL_COLUMNS)]
    )
    buffer = io.BytesIO()
    Image.fromarray(sheet).quantize(colors=255).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _line(x: float, height: int, colour: str) -> str:
    return f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}" stroke="{colour}"/>'


def _caption(x: float, height: int, text: str) -> str:
    return f'<text x="{x:.1f}" y="{height + 13}" text-anchor="middle">{escape(text)}</text>'


def _svg(title: str, parts: Sequence[str], height: int) -> str:
    width = LABEL_PX + PLOT_PX + VALUE_PX
    return (
        f'<svg role="img" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="12"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def _thumbnail(tile: SceneTile, classes: Sequence[ClassSpec]) -> np.ndarray:
    """uint8 [S + 4, 3 S + 8, 3]."""
    sample = tile.read()
    step = max(1, tile.size_px // THUMBNAIL_PX)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(classes)] = [spec.rgb for spec in classes]
    optical = sample.rgir[:, ::step, ::step].transpose(1, 2, 0)
    share = np.sqrt(np.clip(sample.ndsm[0, ::step, ::step], 0, TALL_M) / TALL_M)
    grey = np.repeat((share * 255).astype(np.uint8)[..., None], 3, axis=2)
    cell = np.concatenate((optical, grey, palette[sample.labels[::step, ::step]]), axis=1)
    return np.pad(cell, ((0, 4), (0, 8), (0, 0)), constant_values=255)
