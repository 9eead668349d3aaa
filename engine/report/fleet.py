"""``fleet.html``: what became of a list of rasters, with a map of where they lie."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from engine.contract.atomic import write_whole
from engine.contract.errors import writing
from engine.contract.formats import csv_rows, open_regular
from engine.contract.page import Section, legend, note, page, section, table, tag
from engine.fleet.book import DEGREES, FleetRecord
from engine.fleet.worker import UnitState
from engine.report.words import MOST_ROWS, count

NAME = "fleet.html"
MOST_DRAWN = 10_000
SIDE = 1000.0
"""Width of the drawing, in its own units."""
INCOMPLETE = "incomplete"
LOOKS: Mapping[str, tuple[str, str, str]] = {
    UnitState.MAPPED: ("var(--trace)", "0", "mapped this time"),
    UnitState.THERE: ("var(--alive)", "0", "there already"),
    INCOMPLETE: ("var(--dead)", "4 3", "lacks tiles (dashed)"),
}
"""Colour, dashes of the border and words, by what became of a unit."""
_Row = Mapping[str, str]


def write_fleet_report(folder: Path, record: FleetRecord, units: str) -> Path:
    """Write ``fleet.html``, replacing an older one.

    Args:
        folder: of the books.
        record: ``fleet.json``.
        units: the name of ``units.csv``.

    Raises:
        OutputError: it cannot be written.
    """
    target = folder / NAME
    with writing(target):
        with open_regular(folder / units) as file:
            placed = (row for _, row in csv_rows(file, (), others=True) if isinstance(row, dict) and _degrees(row))
            rows = list(itertools.islice(placed, MOST_DRAWN))  # of millions
        write_whole(target, _page(folder.resolve().name, record, rows).encode())
    return target


def _page(name: str, record: FleetRecord, rows: Sequence[_Row]) -> str:
    states = record.states
    failed, whole = states[UnitState.FAILED], record.ended == "complete" and not record.incomplete
    verdict = f"{count(record.units, 'unit')}, {failed:,} failed, {record.incomplete:,} lack tiles."
    if record.ended != "complete":
        verdict = f"Stopped after {sum(states.values()):,} of {record.units:,} units."
    cards = [
        ("mapped", f"{states[UnitState.MAPPED]:,}", f"{states[UnitState.THERE]:,} there already"),
        ("failed", f"{failed:,}", f"{count(record.retries, 'retry').replace('retrys', 'retries')} before"),
        ("area", f"{record.mpx:,.1f} Mpx", "mapped this time"),
        ("speed", f"{record.mpx_per_s:.2f} Mpx/s", f"{record.seconds:,.0f} s, {len(record.workers)} workers"),
    ]
    sections = [_map(rows, sum(states.values())), _failed(record), _workers(record)]
    facts = [tag("div", tag("dt", what), tag("dd", tag("b", value), tag("small", more))) for what, value, more in cards]
    return page(
        f"Fleet report: {name}",
        byline=f"gemmnet-edge {record.version}, bundle {record.bundle[:12]}, started {record.started_utc}",
        lead=[
            tag("p", verdict, class_="verdict good" if whole and not failed else "verdict bad"),
            tag("dl", facts, class_="facts"),
        ],
        sections=[each for each in sections if each is not None],
    )


def _map(rows: Sequence[_Row], units: int) -> Section:
    """Where the units lie, north up; a degree of longitude is as wide as it is in the middle of the map."""
    if not rows:
        return section("map", "Map", note("No unit has a place on the earth."))
    boxes = [_degrees(row) for row in rows]
    west, south = (min(box[side] for box in boxes) for side in (0, 1))
    east, north = (max(box[side] for box in boxes) for side in (2, 3))
    across = math.cos(math.radians((south + north) / 2))
    scale = SIDE / max((east - west) * across, (north - south), 1e-9)
    shapes = [_box(row, box, west, north, scale, across) for row, box in zip(rows, boxes, strict=True)]
    width, height = max((east - west) * across * scale, 1.0), max((north - south) * scale, 1.0)
    svg = tag(
        "svg",
        shapes,
        viewBox=f"-4 -4 {width + 8:.1f} {height + 8:.1f}",
        role="img",
        aria_label="Where the units lie",
        style=f"display:block;width:100%;max-height:38rem;max-width:{62 * width / max(width, height):.0f}rem",
    )
    seen = frozenset(map(_state, rows))
    entries = [(LOOKS[state][0], LOOKS[state][2]) for state in LOOKS if state in seen]
    extent = f"{west:.4f} to {east:.4f} degrees east, {south:.4f} to {north:.4f} degrees north."
    hidden = units - len(shapes)
    more = (
        f" {count(hidden, 'unit')} not shown: failed, without a place, or beyond the first {MOST_DRAWN:,}."
        if hidden
        else ""
    )
    return section("map", "Map", tag("figure", svg, legend(entries), tag("figcaption", extent, more)))


def _degrees(row: _Row) -> list[float]:
    """West, south, east, north; east is above 180 beyond the antimeridian. Empty where there is no place."""
    sides = [row.get(side) or "" for side in DEGREES]
    if not all(sides):
        return []
    west, south, east, north = map(float, sides)
    return [west, south, east + 360 * (east < west), north]


def _state(row: _Row) -> str:
    lost = row.get("tiles_lost") or "0"
    return INCOMPLETE if lost != "0" else row["state"]


def _box(row: _Row, box: Sequence[float], west: float, north: float, scale: float, across: float) -> Markup:
    colour, dashes, words = LOOKS.get(_state(row), LOOKS[UnitState.THERE])
    return tag(
        "rect",
        tag("title", f"{row['unit']}: {words}, {float(row.get('mpx') or 0):.1f} Mpx"),
        x=f"{(box[0] - west) * across * scale:.2f}",
        y=f"{(north - box[3]) * scale:.2f}",
        width=f"{max((box[2] - box[0]) * across * scale, 2):.2f}",
        height=f"{max((box[3] - box[1]) * scale, 2):.2f}",
        fill=colour,
        fill_opacity="0.35",
        stroke=colour,
        stroke_dasharray=dashes,
    )


def _failed(record: FleetRecord) -> Section | None:
    if not record.failed:
        return None
    shown = list(record.failed.items())[:MOST_ROWS]
    more = (
        note(f"{len(record.failed) - len(shown):,} more are in fleet.json.")
        if len(record.failed) > len(shown)
        else None
    )
    return section("failed", "Failed", table(["unit", "reason"], shown), more)


def _workers(record: FleetRecord) -> Section | None:
    if not record.workers:
        return None
    rows = sorted(record.workers.items(), key=lambda each: -each[1])[:MOST_ROWS]
    return section(
        "workers", "Workers", table(["worker", "units"], [(name, f"{units:,}") for name, units in rows], numbers=[1])
    )
