"""Faults of one tile of one sensor, by its statistics, hard and soft: the one that explains the others first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.contract.health import HealthLimits, Limit
from engine.contract.sensors import Sensor
from engine.health import mends
from engine.health.tile_statistics import TileStatistics, strong_edges
from engine.health.verdict import Fault, Finding
from engine.rasters.sources import Observation

GROUND_M = 1.0
UNITS = {Sensor.RGIR: "DN", Sensor.NDSM: "m"}


@dataclass(frozen=True, kw_only=True)
class Before:
    """What is known of a sensor from the tiles before."""

    checksum: int | None
    """Of the last tile with data."""
    noise: float | None
    """The usual one of its clean tiles; None before the first."""


def tile_findings(
    sensor: Sensor, statistics: TileStatistics, limits: HealthLimits, before: Before, image: Observation | None
) -> Iterator[Finding]:
    """Every fault of a tile that has data, the one that explains the others first."""
    unit = UNITS[sensor]
    spread, bright = statistics.spread, statistics.bright
    levels = "of the values at the highest grey level"
    yield from _shares(Fault.SATURATED, limits.saturated, statistics.saturated, levels, mends.EXPOSE_SHORTER)
    if spread is not None and limits.constant_below is not None and min(spread) < limits.constant_below:
        yield from _constant(sensor, statistics, limits.constant_below, limits.flat_under_edges, image)
    if spread is not None and max(spread) > 0 and statistics.checksum == before.checksum:
        yield Finding(fault=Fault.FROZEN, hard=True, detail="the same bytes as the tile before", mend=mends.RESTART)
    if limits.dark is not None and bright is not None and bright < limits.dark.soft:
        hard = bright < limits.dark.hard
        detail = f"the brightest band has 99 % below {bright:.0f} DN, {_bound(limits.dark, hard)} DN"
        yield Finding(fault=Fault.DARK, hard=hard, detail=detail, mend=mends.EXPOSE_LONGER)
    heights = f"of the heights outside {limits.min_height_m} to {limits.max_height_m} m"
    yield from _shares(Fault.OUT_OF_RANGE, limits.out_of_range, statistics.outside, heights, mends.RANGE)
    lines = "of the columns or rows show one value"
    yield from _shares(Fault.STUCK_COLUMNS, limits.stuck, statistics.stuck, lines, mends.DETECTOR)
    holes = f"hole edges, data in {statistics.valid:.0%} of the tile"
    yield from _shares(Fault.HOLES, limits.hole_edges, statistics.hole_edges, holes, mends.HOLES)
    usual, noise = before.noise, statistics.noise
    if limits.noise is None or noise is None or noise <= limits.noise.soft:
        return
    if usual is None or noise > limits.noise_ratio * usual:
        hard = noise > limits.noise.hard
        earlier = "" if usual is None else f" (recent clean tiles: {usual:.3g} {unit})"
        detail = f"noise of {noise:.3g} {unit}{earlier}, {_bound(limits.noise, hard)} {unit}"
        yield Finding(fault=Fault.NOISE, hard=hard, detail=detail, mend=mends.QUIET)


def _shares(fault: Fault, limit: Limit | None, share: float | None, words: str, mend: str) -> Iterator[Finding]:
    """The fault of a share that is larger than it may be."""
    if limit is not None and share is not None and share > limit.soft:
        hard = share > limit.hard
        detail = f"{share:.1%} {words}, {_bound(limit, hard, percent=True)}"
        yield Finding(fault=fault, hard=hard, detail=detail, mend=mend)


def _constant(
    sensor: Sensor, statistics: TileStatistics, bound: float, flat_under_edges: Limit | None, image: Observation | None
) -> Iterator[Finding]:
    """A tile with a band that shows one value everywhere: what follows from it."""
    assert statistics.spread is not None
    assert statistics.mean is not None
    if sensor is Sensor.RGIR:
        still = [str(number) for number, spread in enumerate(statistics.spread, 1) if spread < bound]
        detail = f"band {', '.join(still)} of {len(statistics.spread)}: standard deviation below {bound:g} DN"
        hard = len(still) == len(statistics.spread)
        yield Finding(fault=Fault.CONSTANT, hard=hard, detail=detail, mend=mends.CAMERA)
        return
    flat = f"heights vary by less than {bound:g} m around {statistics.mean:.2f} m"
    if abs(statistics.mean) > GROUND_M:
        yield Finding(fault=Fault.CONSTANT, hard=True, detail=f"{flat}, which is not the ground", mend=mends.FLAT)
    elif flat_under_edges is None:
        return
    elif image is None:
        detail = f"{flat}, and there is no image to ask"
        yield Finding(fault=Fault.CONSTANT, hard=False, detail=detail, mend=mends.FLAT)
    elif (edges := strong_edges(image)) > flat_under_edges.soft:
        hard = edges > flat_under_edges.hard
        detail = f"{flat} under an image with {edges:.1%} strong edges, {_bound(flat_under_edges, hard, percent=True)}"
        yield Finding(fault=Fault.CONSTANT, hard=hard, detail=detail, mend=mends.FLAT)


def unclear(statistics: TileStatistics, limits: HealthLimits) -> str:
    """Why a tile without a fault is no proof of health; empty if it is one."""
    if statistics.spread is None:
        return f"data in {statistics.valid:.1%} of the tile, too few to judge"
    if limits.constant_below is not None and max(statistics.spread) < limits.constant_below:
        return "flat ground, which the image does not contradict"
    return ""


def _bound(limit: Limit, hard: bool, *, percent: bool = False) -> str:
    """The limit that was passed, in words."""
    bound = limit.hard if hard else limit.soft
    return f"{'hard' if hard else 'soft'} limit {f'{bound:.1%}' if percent else f'{bound:g}'}"
