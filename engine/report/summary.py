"""The top of the page: are the maps whole, what happened, the numbers one looks for first."""

from __future__ import annotations

import math
from collections.abc import Iterator

from markupsafe import Markup

from engine.contract.page import tag
from engine.contract.page.charts import tiles_in_words
from engine.report.data import Finished
from engine.report.seams import SeamSurvey
from engine.report.words import SENSOR_NAMES, count, faults_in_words, milliseconds, times

MOST_STRETCHES = 5
"""Outages of a sensor that are told one by one."""


def verdict(run: Finished) -> Markup:
    """One line: are the maps whole?"""
    tiles, lost, dropped = len(run), run.record.tiles_lost, run.record.tiles_dropped
    what = f"{count(len(run.frames), 'frame')}, {count(tiles, 'tile')}" if run.frames else count(tiles, "tile")
    if not lost:
        return tag("p", f"{what}, none lost.", class_="verdict good")
    blind = lost - dropped
    reasons = [f"{dropped} dropped because inference was behind"] if dropped else []
    reasons += [f"{blind} because no sensor was usable"] if blind else []
    return tag("p", f"{what}, {lost} lost: {', '.join(reasons)}.", class_="verdict bad")


def story(run: Finished) -> Markup:
    """What happened, in a few sentences."""
    sentences = list(_outages_in_words(run)) if run.watched else ["The sensors were trusted: nobody watched them."]
    switches = run.record.result.switch_count
    sentences.append(f"The engine was switched {times(switches)}." if switches else "The engine was never switched.")
    if run.record.injected is not None:
        seen = [each.detected for each in run.record.injected.outcomes if each.tiles]
        sentences.append(f"Faults were injected on purpose: {sum(seen)} of {len(seen)} were seen.")
    if run.record.backend_events:
        events = count(len(run.record.backend_events), "event")
        sentences.append(f"The backend did not run through: {events}, listed under Backend.")
    return tag("ul", [tag("li", sentence) for sentence in sentences], class_="story")


def facts(run: Finished, seen: SeamSurvey | None) -> Markup:
    """The numbers one looks for first."""
    record = run.record
    cards: list[tuple[str, str, str]] = [("tiles", f"{len(run):,}", _area(run))]
    cards.append(("tiles lost", f"{record.tiles_lost:,}", f"{record.tiles_dropped} of them dropped"))
    cards.append(("switches", f"{record.result.switch_count:,}", "of the engine"))
    latency = record.latency_ms
    if latency.p50 is not None and latency.p99 is not None:
        cards.append(("latency p50", milliseconds(latency.p50), f"p99 {milliseconds(latency.p99)}"))
    deadline = run.deadline
    if deadline.limit_ms is not None:
        cards.append(("deadline misses", f"{deadline.misses:,}", f"later than {milliseconds(deadline.limit_ms)}"))
    speed = record.performance
    cards.append(("speed", f"{speed.tiles_per_s:.1f} tiles/s", f"{speed.mpx_per_s:.2f} Mpx/s with publishing"))
    if seen is not None and not math.isnan(seen.same_sensors.score):
        cards.append(("seam score", f"{seen.same_sensors.score:.2f}", "1 is invisible"))
    cards.append(("peak memory", f"{speed.peak_rss_mib:.0f} MiB", "resident"))
    blocks = [
        tag("div", tag("dt", name), tag("dd", tag("b", value), tag("small", more))) for name, value, more in cards
    ]
    return tag("dl", blocks, class_="facts")


def _outages_in_words(run: Finished) -> Iterator[str]:
    for sensor in run.sensors:
        outages = list(run.outages(sensor))
        if not outages:
            yield f"{SENSOR_NAMES[sensor]} was usable in every tile."
            continue
        told = [
            f"{tiles_in_words(out.first, out.last)} ({faults_in_words(out.faults)})" for out in outages[:MOST_STRETCHES]
        ]
        rest = f" and {len(outages) - len(told)} more" if len(outages) > len(told) else ""
        tiles = sum(out.tiles for out in outages)
        yield f"{SENSOR_NAMES[sensor]} was not usable in {tiles} of {count(len(run), 'tile')}: {'; '.join(told)}{rest}."


def _area(run: Finished) -> str:
    grid = run.grid
    if grid is None:
        return f"in {count(len(run.frames), 'frame')}"
    assert run.record.grid is not None
    gsd_m, pixels = run.record.grid.gsd_m, grid.height * grid.width
    return f"{pixels / 1e6:.1f} Mpx" + (f", {pixels * gsd_m**2 / 1e4:.1f} ha" if gsd_m else "")
