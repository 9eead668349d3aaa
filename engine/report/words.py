"""How numbers, names and states are written and coloured throughout the page."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from engine.contract.page.charts import Look
from engine.contract.sensors import PROVENANCE_LABELS, PROVENANCE_RGB, Scenario, Sensor
from engine.health.monitor import Fault
from engine.report.data import Shown

SENSOR_NAMES = {Sensor.RGIR: "RGIR", Sensor.NDSM: "nDSM"}
MOST_ROWS = 200
"""Of a table; run.json has the rest."""


def css(rgb: tuple[int, int, int]) -> str:
    """A colour as style sheets write it."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


STATE_LOOKS: Mapping[int, Look] = {
    Shown.ALIVE: Look(colour="var(--alive)", height=0.35, name="alive"),
    Shown.NO_DATA: Look(colour="var(--nodata)", height=1, name="no data"),
    Shown.DEGRADED: Look(colour="var(--degraded)", height=0.7, name="degraded"),
    Shown.DEAD: Look(colour="var(--dead)", height=1, name="dead"),
    Shown.UNWATCHED: Look(colour="var(--unwatched)", height=0.35, name="not watched"),
}
LOST, NOTHING = len(Scenario) + 1, 0
"""Beside the scenarios, which count from 1."""
SCENARIO_LOOKS: Mapping[int, Look] = {
    **{
        number: Look(
            colour=css(PROVENANCE_RGB[scenario.provenance]),
            height=1,
            name=PROVENANCE_LABELS[scenario.provenance],
            short="both" if scenario is Scenario.FULL else SENSOR_NAMES[next(iter(scenario.sensors))],
        )
        for number, scenario in enumerate(Scenario, start=1)
    },
    LOST: Look(colour="var(--mark)", height=1, name="lost"),
    NOTHING: Look(colour="var(--nodata)", height=0.35, name="nothing to map"),
}


def count(number: int, noun: str) -> str:
    """``1 tile``, ``2 tiles``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def percent(share: float, digits: int = 1) -> str:
    """A share of 1 in per cent."""
    return f"{100 * share:.{digits}f} %"


def milliseconds(value: float) -> str:
    """A time in the unit in which it is read most easily."""
    return f"{value / 1e3:.2f} s" if value >= 1000 else f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms"


def times(number: int) -> str:
    """``once``, ``twice``, ``3 times``."""
    return {1: "once", 2: "twice"}.get(number, f"{number:,} times")


def faults_in_words(faults: Iterable[Fault | str]) -> str:
    """``frozen, no data``."""
    return ", ".join(fault.replace("_", " ") for fault in faults)
