"""Charts that stay readable at every width: shapes in a stretched SVG, words beside and above it as text.

:func:`bars` and :func:`points` compare named values: their words are part of the SVG, which shrinks as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from engine.contract.page.markup import tag, together

MOST_COLUMNS = 1200
"""More tiles than this are drawn several to a column."""
ROOM_FOR_WORDS = 0.04
"""Share of a lane's width below which nothing is written on a stretch."""
HEADROOM = 1.3
"""Height of a histogram over its highest column, for what rulers say."""
BINS = 48
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9")
"""Told apart by colour-blind readers (Okabe and Ito, https://jfly.uni-koeln.de/color/)."""
ROW_PX, LABEL_PX, PLOT_PX, VALUE_PX = 18, 330, 460, 130
"""Of bars and points: height of a row, width of its label, of the plot and of the words behind it."""


@dataclass(frozen=True, kw_only=True)
class Ruler:
    """A labelled line across a plot."""

    at: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a value is drawn in a lane: colour, height as a share of the lane, and what it means."""

    colour: str
    height: float
    name: str
    short: str = ""
    """The name where there is little room."""


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A labelled bar; ``series`` picks its colour."""

    label: str
    value: float
    text: str
    series: int = 0


def columns(tiles: int) -> NDArray[np.intp]:
    """First tile of every column of a chart over that many tiles."""
    return np.unique(np.linspace(0, tiles, min(tiles, MOST_COLUMNS), endpoint=False).astype(np.intp))


def lane(
    values: NDArray[np.int8], looks: Mapping[int, Look], *, words: Mapping[int, str] | None = None, slim: bool = False
) -> Markup:
    """Small numbers over tiles, as stretches of one colour; where a column holds several tiles, the largest of them.

    Args:
        values: of each tile.
        looks: of each value; what has none is left blank.
        words: what a stretch is about, by its first tile; else its value's name.
        slim: too low for words.
    """
    firsts = columns(len(values))
    shown = np.maximum.reduceat(values, firsts)
    ends = [*firsts[1:].tolist(), len(values)]
    shapes, texts = [], []
    for first, last in stretches(shown):
        look = looks.get(int(shown[first]))
        if look is None:
            continue
        start, stop = int(firsts[first]), ends[last]
        about = (words or {}).get(start)
        title = f"{tiles_in_words(start, stop - 1)}: {about or look.name}"
        shapes.append(_rect(start, 1 - look.height, stop - start, look.height, look.colour, title))
        if not slim and look.height == 1 and stop - start >= ROOM_FOR_WORDS * len(values):
            place = f"left:{_percent(start, len(values))};width:{_percent(stop - start, len(values))}"
            texts.append(tag("b", tag("span", about or look.short or look.name), style=place))
    return tag("div", _svg(len(values), 1, shapes), texts, class_="chart lane slim" if slim else "chart lane")


def line(values: NDArray[np.float64], *, top: float, colour: str, levels: Iterable[Ruler] = ()) -> Markup:
    """Numbers over tiles, in a column of several the largest of them. Levels above the top are left out."""
    firsts = columns(len(values))
    highest = np.minimum(np.maximum.reduceat(values, firsts) / top, 1)
    ends = [*firsts[1:].tolist(), len(values)]
    steps = " ".join(f"H{start}V{1 - y:.4f}H{stop}" for start, stop, y in zip(firsts, ends, highest, strict=True))
    area = tag("path", d=f"M0 1{steps}V1Z", fill=colour, opacity="0.22")
    outline = tag("path", d=f"M0 {1 - highest[0]:.4f}{steps}", fill="none", stroke=colour, stroke_width="1.2")
    drawn = [
        tag("div", tag("span", level.label), class_="level", style=f"top:{100 * (1 - level.at / top):.2f}%")
        for level in levels
        if level.at <= top
    ]
    return tag("div", _svg(len(values), 1, [area, outline]), drawn, class_="chart plot")


def tile_axis(tiles: int) -> Markup:
    """Numbers below lanes and lines over tiles."""
    ticks = [tick for tick in _round_ticks(0, tiles, 6) if tick < 0.96 * tiles]
    return _axis([(tick / tiles, f"{tick:g}") for tick in ticks])


def histogram(groups: Sequence[tuple[str, NDArray[np.float64]]], *, unit: str, rulers: Sequence[Ruler] = ()) -> Markup:
    """How often values occur, groups stacked on each other; the axis is logarithmic where they span more than tenfold.

    Args:
        groups: colour and values; all positive.
        unit: of the values.
        rulers: drawn where they lie within the values.
    """
    values = np.concatenate([each for _, each in groups])
    low, high = float(values.min()), float(values.max())
    if high <= low * 1.001:
        low, high = low * 0.95, high * 1.05
    logarithmic = high > 10 * low
    scale = np.log if logarithmic else np.asarray
    first, last = float(scale(low)), float(scale(high))

    def place(value: float) -> float:
        return (float(scale(value)) - first) / (last - first)

    bins = int(min(BINS, max(8, 2 * math.sqrt(len(values)))))
    counts = np.array([np.histogram(scale(each), bins, (first, last))[0] for _, each in groups])
    below = np.cumsum(counts, axis=0) - counts
    top = HEADROOM * float(counts.sum(axis=0).max())
    shapes = [
        _rect(column + 0.04, top - float(below[group, column]) - count, 0.92, count, colour)
        for group, (colour, _) in enumerate(groups)
        for column in range(bins)
        if (count := int(counts[group, column]))
    ]
    lines = [
        tag(
            "div",
            tag("span", ruler.label, style=f"top:{1.2 * number}rem"),
            class_="ruler left" if place(ruler.at) > 0.6 else "ruler",
            style=f"left:{100 * place(ruler.at):.2f}%",
        )
        for number, ruler in enumerate(rulers)
        if low <= ruler.at <= high
    ]
    ticks = _log_ticks(low, high) if logarithmic else _round_ticks(low, high, 6)
    axis = _axis([(place(tick), f"{tick:g}") for tick in ticks], unit=unit)
    return together(tag("div", _svg(bins, top, shapes), lines, class_="chart plot tall"), axis)


def spark(counts: NDArray[np.int64], colour: str) -> Markup:
    """The shape of a distribution, small."""
    top = max(1, int(counts.max()))
    shapes = [_rect(column, top - int(count), 1, int(count), colour) for column, count in enumerate(counts) if count]
    return tag("div", _svg(len(counts), top, shapes), class_="chart plot spark")


def bar(parts: Sequence[tuple[str, float, str]], *, whole: float) -> Markup:
    """Lengths one after the other: colour, length and name of each, ``whole`` being the full width."""
    return tag(
        "div",
        [
            tag("i", style=f"background:{colour};width:{100 * length / whole:.3f}%", title=name)
            for colour, length, name in parts
            if length > 0
        ],
        class_="chart bar",
    )


def bars(title: str, rows: Sequence[Bar], *, mark: Ruler | None = None) -> Markup:
    """Horizontal bars from zero, to the left where negative.

    Args:
        title: read out by screen readers.
        rows: top to bottom.
        mark: a vertical line.
    """
    values = [row.value for row in rows] + [0.0] + ([mark.at] if mark is not None else [])
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def x(value: float) -> float:
        return LABEL_PX + PLOT_PX * (value - low) / span

    parts = []
    for number, row in enumerate(rows):
        top = number * ROW_PX
        left, right = sorted((x(0.0), x(row.value)))
        parts += [
            _text(LABEL_PX - 8, top + 13, row.label, anchor="end"),
            _rect(left, top + 3, max(right - left, 0.5), ROW_PX - 6, SERIES[row.series % len(SERIES)]),
            _text(right + 5, top + 13, row.text),
        ]
    height = len(rows) * ROW_PX
    parts.append(_upright(x(0.0), height, "var(--faint)"))
    if mark is not None:
        parts += [_upright(x(mark.at), height, "var(--dead)"), _text(x(mark.at), height + 13, mark.label, "middle")]
    return _figure(title, parts, height + ROW_PX)


def points(title: str, rows: Sequence[tuple[str, Mapping[str, float]]], unit: str) -> Markup:
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
    for number, (label, values) in enumerate(rows):
        y, places = number * ROW_PX + 9, [x(value) for value in values.values()]
        ends = {"x1": f"{min(places):.1f}", "x2": f"{max(places):.1f}"}
        parts.append(_text(LABEL_PX - 8, y + 4, label, anchor="end"))
        parts.append(tag("line", **ends, y1=y, y2=y, stroke="var(--faint)"))
        for series, (name, value) in enumerate(values.items()):
            about = tag("title", f"{name} {value:.4g}")
            parts.append(tag("circle", about, **_spot(x(value), y, series), fill_opacity="0.85"))
    height = len(rows) * ROW_PX
    for power in range(int(low), int(high) + 1):
        parts.append(_upright(x(10.0**power), height, "var(--line)"))
        parts.append(_text(x(10.0**power), height + 13, f"{10.0**power:g}", anchor="middle"))
    for series, name in enumerate(names):
        left = LABEL_PX + 110 * series
        parts += [tag("circle", **_spot(left, height + 32, series)), _text(left + 9, height + 36, name)]
    parts.append(_text(LABEL_PX - 8, height + 36, unit, anchor="end"))
    return _figure(title, parts, height + 2 * ROW_PX + 6)


def stretches(values: NDArray[Any]) -> list[tuple[int, int]]:
    """First and last index of every run of equal values, in order."""
    if not len(values):
        return []
    ends = np.flatnonzero(np.diff(values.astype(np.int64))).tolist()
    return list(zip([0, *(end + 1 for end in ends)], [*ends, len(values) - 1], strict=True))


def tiles_in_words(first: int, last: int) -> str:
    """``tile 7`` or ``tiles 7 to 9``."""
    return f"tile {first}" if first == last else f"tiles {first} to {last}"


def _text(x: float, y: int, text: str, anchor: str | None = None) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=y, text_anchor=anchor)


def _upright(x: float, height: int, colour: str) -> Markup:
    return tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=0, y2=height, stroke=colour)


def _spot(x: float, y: int, series: int) -> dict[str, str | int]:
    return {"cx": f"{x:.1f}", "cy": y, "r": 4, "fill": SERIES[series % len(SERIES)]}


def _figure(title: str, parts: Sequence[Markup], height: int) -> Markup:
    width = LABEL_PX + PLOT_PX + VALUE_PX
    return tag(
        "svg",
        tag("title", title),
        *parts,
        role="img",
        viewBox=f"0 0 {width} {height}",
        width=width,
        height=height,
        class_="figure",
    )


def _svg(width: float, height: float, shapes: Sequence[Markup]) -> Markup:
    return tag("svg", *shapes, viewBox=f"0 0 {width:g} {height:g}", preserveAspectRatio="none", aria_hidden="true")


def _rect(x: float, y: float, width: float, height: float, colour: str, title: str = "") -> Markup:
    return tag(
        "rect",
        tag("title", title) if title else None,
        x=f"{x:g}",
        y=f"{y:g}",
        width=f"{width:g}",
        height=f"{height:g}",
        fill=colour,
    )


def _axis(ticks: Sequence[tuple[float, str]], *, unit: str = "") -> Markup:
    """Labels at shares of the width; the unit behind the last."""
    spans = [
        tag(
            "span",
            f"{label} {unit}" if unit and number == len(ticks) - 1 else label,
            style=f"left:{100 * place:.2f}%",
            class_="last" if place > 0.95 else None,
        )
        for number, (place, label) in enumerate(ticks)
    ]
    return tag("div", spans, class_="axis")


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3f}%"


def _round_ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers from ``low`` to ``high``, roughly so many."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    if float(low).is_integer() and float(high).is_integer():
        step = max(1.0, step)
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5, 10, 20, ... within the range."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if high < 1000 * low else (1,)
    return [tick for power in powers for factor in factors if low <= (tick := factor * 10.0**power) <= high]
