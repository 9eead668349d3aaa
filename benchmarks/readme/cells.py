"""Parts that tables are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from benchmarks.readme.results import Result, Row
from engine.contract.sensors import Scenario

SCENARIOS = (Scenario.FULL, Scenario.MISSING_NDSM, Scenario.MISSING_RGIR)
TITLES = ("both sensors", "nDSM missing", "RGIR missing")
SIDE_BY_SIDE = "Cells with slashes: both sensors / nDSM missing / RGIR missing."


def markdown(head: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """A Markdown table, no line feed at its end."""
    rows = [list(head), ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in rows)


def grouped(rows: Iterable[Row], *columns: str) -> dict[tuple[str, ...], dict[str, Row]]:
    """Rows by the values of some columns, in the file's order; in each group by scenario."""
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in columns), {})[row["scenario"]] = row
    return groups


def in_group(result: Result, group: str) -> list[Row]:
    """The rows of one group."""
    return [row for row in result.rows if row["group"] == group]


def triple(mine: dict[str, Row], column: str, form: str, *, scale: float = 1) -> str:
    """A column's values, full / missing nDSM / missing RGIR; a dash where one was not measured."""
    cells = [mine[scenario][column] if scenario in mine else "" for scenario in SCENARIOS]
    return " / ".join(form.format(scale * float(cell)) if cell else "-" for cell in cells)


def number(row: Row, column: str) -> float:
    """A value of a row."""
    return float(row[column])


def total(rows: Iterable[Row], column: str) -> int:
    """The sum of a column of counts."""
    return sum(int(row[column]) for row in rows)
