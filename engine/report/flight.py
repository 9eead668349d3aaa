"""The flight: sensors, scenarios and times, tile after tile."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from engine.contract.page import Content, Section, charts, legend, note, section, swatch, table, tag, together
from engine.contract.page.charts import Look, Ruler
from engine.contract.sensors import PROVENANCE_LABELS, Scenario
from engine.health.detection import InjectionOutcome
from engine.health.monitor import State
from engine.record import TileQuantiles
from engine.report.data import Finished, Shown
from engine.report.words import (
    LOST,
    MOST_ROWS,
    NOTHING,
    SCENARIO_LOOKS,
    SENSOR_NAMES,
    STATE_LOOKS,
    count,
    faults_in_words,
    milliseconds,
)
from engine.tile_log import STAGES

INJECTED = {1: Look(colour="var(--mark)", height=1, name="fault injected")}
STAGE_COLOURS = dict(zip(STAGES, ("var(--nodata)", "#56b4e9", "#e69f00", "#0072b2", "#cc79a7"), strict=True))
STAGE_WORDS = {
    "wait": "available, not yet read",
    "read": "reading and judging",
    "queue": "read, not yet submitted",
    "infer": "inference and waiting for a free slot",
    "write": "composing and writing",
}


def timeline(run: Finished) -> Section:
    """Sensors, scenarios and latency over tiles."""
    tiles = len(run)
    rows: list[Markup] = []
    for sensor in run.sensors:
        injected = np.zeros(tiles, np.int8)
        for each in run.injections:
            if each.sensor is sensor:
                injected[each.first : None if each.last is None else each.last + 1] = 1
        if injected.any():
            rows += [tag("span", "injected"), charts.lane(injected, INJECTED, slim=True)]
        words = {out.first: faults_in_words(out.faults) for out in run.outages(sensor)}
        rows += [tag("span", SENSOR_NAMES[sensor]), charts.lane(run.shown[sensor], STATE_LOOKS, words=words)]
    rows += [tag("span", "mapped from"), charts.lane(mapped_from(run), SCENARIO_LOOKS)]
    latency = run.times.latency_ms
    if len(latency) and latency.max() > 0:
        top = float(latency.max())
        levels = [Ruler(at=float(np.percentile(latency, 50)), label=f"p50 {milliseconds(np.percentile(latency, 50))}")]
        limit = run.deadline.limit_ms
        if limit is not None:
            levels = [Ruler(at=limit, label=f"deadline {milliseconds(limit)}")]
        rows += [
            tag("span", "latency", tag("br"), f"0 to {milliseconds(top)}"),
            charts.line(latency, top=top, colour="var(--trace)", levels=levels),
        ]
    rows += [tag("span", "tile"), charts.tile_axis(tiles)]
    states = {state for sensor in run.sensors for state in np.unique(run.shown[sensor]).tolist()}
    scenarios = set(np.unique(mapped_from(run)).tolist())
    keys = [(STATE_LOOKS[state].colour, STATE_LOOKS[state].name) for state in STATE_LOOKS if state in states]
    keys += [(look.colour, look.name) for number, look in SCENARIO_LOOKS.items() if number in scenarios]
    bunched = f" A column holds up to {-(-tiles // charts.MOST_COLUMNS)} tiles and shows the worst of them."
    return section(
        "timeline",
        "Timeline",
        tag("div", rows, class_="lanes"),
        legend(keys),
        note(
            "Tiles in the order in which they were mapped. The higher a bar, the worse the sensor.",
            bunched if tiles > charts.MOST_COLUMNS else "",
        ),
    )


def health(run: Finished) -> Section:
    """What every sensor was worth, and each change with its reason."""
    told = run.record.health
    if not run.watched:
        return section("health", "Sensor health", tag("p", "Not watched in this run: its sensors were named."))
    rows: list[list[Content]] = []
    for sensor in run.sensors:
        states, faults = told.states.get(sensor, {}), told.faults.get(sensor, {})
        blamed = faults_in_words(f"{name} {tiles}" for name, tiles in faults.items()) or "none"
        rows.append([SENSOR_NAMES[sensor], *(states.get(state, 0) for state in State), blamed])
    counts = table(["sensor", "alive", "degraded", "dead", "tiles by fault"], rows, numbers=(1, 2, 3))
    told_before = [note(f"Before the flight: {advice}.") for advice in told.advice]
    changes = told.changes
    if not changes:
        return section("health", "Sensor health", counts, *told_before, tag("p", "No sensor changed its state."))
    events: list[list[Content]] = [
        [
            run.tile_of(change.frame, change.tile),
            *([change.frame] if run.frames else []),
            SENSOR_NAMES[change.sensor],
            together(swatch(STATE_LOOKS[Shown[change.state.name]].colour), change.state),
            faults_in_words([change.fault or ""]),
            change.detail,
        ]
        for change in changes[:MOST_ROWS]
    ]
    more = told.change_count - len(events)
    return section(
        "health",
        "Sensor health",
        counts,
        *told_before,
        tag("h3", "Changes"),
        table(["tile", *(["frame"] if run.frames else []), "sensor", "is now", "fault", "why"], events),
        note(f"{more} more changes are counted; run.json lists the first 1000.") if more else None,
        note("A tile without any data changes nothing: rasters end somewhere, and the sensor is well."),
    )


def injected(run: Finished) -> Section | None:
    """Faults made on purpose, and how they were seen."""
    told = run.record.injected
    if told is None:
        return None
    rows = [
        [
            tag("code", outcome.injection),
            "hard" if outcome.expected_hard else "soft",
            outcome.tiles,
            _seen(outcome),
            _delay(outcome.delay_tiles),
            _delay(outcome.dead_delay_tiles),
            faults_in_words([outcome.fault or ""]),
        ]
        for outcome in told.outcomes
    ]
    alarms = ", ".join(f"{SENSOR_NAMES[sensor]} {told.false_alarms[sensor]}" for sensor in run.sensors)
    headings = ["fault", "kind", "tiles", "seen", "delay", "delay to dead", "called"]
    return section(
        "injected",
        "Injected faults",
        table(headings, rows, numbers=(2,)),
        tag("p", f"Tiles without an injected fault in which the sensor was blamed all the same: {alarms}."),
        note(
            "These are false alarms, unless the sensor really failed there. Delays are in tiles; a hard fault has to "
            "make its sensor dead in the very tile where it starts. Tiles in which the raster itself has no data are "
            "not counted: there was nothing to spoil."
        ),
    )


def latency(run: Finished) -> Section | None:
    """Percentiles and distribution by scenario, and where the time goes."""
    times, told = run.times, run.record.latency_ms
    mapped = ~times.skipped
    if told.p50 is None or told.p99 is None or times.latency_ms[mapped].min() <= 0:
        return None
    groups, keys, bars = [], [], []
    for number in range(len(Scenario)):
        mine = mapped & (times.scenario == number)
        if mine.any():
            look = SCENARIO_LOOKS[number + 1]
            groups.append((look.colour, times.latency_ms[mine]))
            keys.append((look.colour, f"{look.name}, {count(int(mine.sum()), 'tile')}"))
            bars.append((look.name, {stage: float(times.stages_ms[stage][mine].mean()) for stage in STAGES}))
    nothing = mapped & (times.scenario == len(Scenario))
    if nothing.any():
        groups.append(("var(--nodata)", times.latency_ms[nothing]))
        keys.append(("var(--nodata)", f"not mapped, {count(int(nothing.sum()), 'tile')}"))
    rulers = [Ruler(at=at, label=f"{name} {milliseconds(at)}") for name, at in (("p50", told.p50), ("p99", told.p99))]
    limit = run.deadline.limit_ms
    if limit is not None:
        rulers.append(Ruler(at=limit, label=f"deadline {milliseconds(limit)}"))
    names: dict[str, TileQuantiles] = {"": told, **told.by_scenario, "switch": told.switches}
    words = {
        "": "all tiles",
        **{scenario.value: PROVENANCE_LABELS[scenario.provenance] for scenario in Scenario},
        "none": "not mapped",
        "switch": "the engine was switched",
    }
    quantiles = ("p50", "p90", "p95", "p99", "max")
    percentiles = table(
        ["ms", "tiles", *quantiles],
        [
            [words[name], each.tiles, *(f"{getattr(each, quantile):.1f}" for quantile in quantiles)]
            for name, each in names.items()
            if each.tiles
        ],
        numbers=range(1, 7),
    )
    return section(
        "latency",
        "Latency",
        charts.histogram(groups, unit="ms", rulers=rulers),
        legend(keys),
        percentiles,
        note("From the moment a tile was available to the moment it was written. ", _pace(run)),
        tag("h3", "Where the time goes"),
        _stages(run, bars),
    )


def mapped_from(run: Finished) -> NDArray[np.int8]:
    """Keys of SCENARIO_LOOKS, int8 [tiles]."""
    scenario = run.times.scenario
    shown = np.where(scenario < len(Scenario), scenario + 1, NOTHING)
    return np.asarray(np.where(run.times.lost, LOST, shown), np.int8)


def _stages(run: Finished, bars: Sequence[tuple[str, dict[str, float]]]) -> Markup:
    """Mean time of each stage by scenario, as bars, and percentiles over all tiles."""
    whole = max((sum(means.values()) for _, means in bars), default=1.0)
    rows: list[Markup] = []
    for name, means in bars:
        parts = [(STAGE_COLOURS[stage], ms, f"{stage} {milliseconds(ms)}") for stage, ms in means.items()]
        total = milliseconds(sum(means.values()))
        rows += [tag("span", name, tag("br"), f"mean {total}"), charts.bar(parts, whole=whole)]
    mapped = ~run.times.skipped
    percentiles = [
        [
            together(swatch(STAGE_COLOURS[stage]), stage),
            *(f"{np.percentile(run.times.stages_ms[stage][mapped], q):.1f}" for q in (50, 90, 99)),
            STAGE_WORDS[stage],
        ]
        for stage in STAGES
    ]
    return together(
        tag("div", rows, class_="lanes") if rows else None,
        table(["stage, ms", "p50", "p90", "p99", "what it is"], percentiles, numbers=(1, 2, 3)),
    )


def _pace(run: Finished) -> str:
    if run.frames:
        return "A frame is available once it is whole and its partner is there."
    pace = run.record.pace
    if pace.rate_hz is None:
        return "Tiles were read as fast as they were mapped, so most of it is waiting for the tiles ahead."
    policy = "waited" if pace.when_behind == "block" else "made room by dropping the oldest"
    return f"Replayed at {pace.rate_hz:g} tiles a second; tiles that came too fast {policy}."


def _seen(outcome: InjectionOutcome) -> Markup | str:
    if not outcome.tiles:
        return "no tile to spoil"
    if outcome.detected:
        return tag("span", "yes", class_="good")
    return tag("span", "no", class_="bad" if outcome.expected_hard else None)


def _delay(tiles: int | None) -> str:
    return "" if tiles is None else str(tiles)
