"""Before the flight: what is wrong with rasters as a whole, told by a few tiles before an hour is spent on all.

A wrong order of bands, heights in decimetres, a surface model, two rasters that do not fit each other: each shows in
most tiles, and an option or a command mends it. Every sampled tile is judged for itself, without a memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from engine.contract.health import HealthLimits
from engine.contract.sensors import Sensor
from engine.grid import Window
from engine.health import mends
from engine.health.agreement import compare
from engine.health.audit import Auditor
from engine.health.monitor import Monitor
from engine.health.verdict import Fault
from engine.rasters.sources import Observation

if TYPE_CHECKING:
    from engine.contract.errors import RasterOpenError
    from engine.rasters.georeference import Grid

SAMPLED_TILES = 9
SPARING = 8
"""Of so many tiles of the raster no more than one is looked at."""
SHARE = 0.5
"""What shows in fewer of the sampled tiles is left to the flight."""
HIGH_M = 60.0
"""The highest hundredth of a tile lies lower, but among towers."""
HEIGHT_STEP_PX = 4
SURE_SIGMAS = 7.0
NEAR_PX = 6
"""Rasters that are nearer than this to each other are aligned."""


class Readable(Protocol):
    """What is looked at: :class:`engine.frames.Rasters`, or less."""

    @property
    def grid(self) -> Grid:
        """See there."""

    def read_into(
        self, window: Window, out: Mapping[Sensor, Observation]
    ) -> tuple[dict[Sensor, Observation], dict[Sensor, RasterOpenError]]:
        """See there."""


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Something that is wrong with a raster, and what mends it."""

    sensor: Sensor
    fault: Fault
    tiles: int
    of: int
    """Tiles that show it, of those with data that were looked at."""
    detail: str

    def __str__(self) -> str:
        return f"{self.sensor}: {self.fault}: {self.detail} (in {self.tiles} of {self.of} tiles looked at)"


def examine(
    rasters: Readable,
    limits: Mapping[Sensor, HealthLimits],
    *,
    tile_px: int,
    window_px: int | None = None,
    auditor: Auditor | None = None,
    tiles: int | None = None,
) -> tuple[Advice, ...]:
    """Look at some tiles of open rasters.

    Args:
        rasters: of one sensor or both.
        limits: of each.
        tile_px: side of the model's tiles.
        window_px: raster pixels that a tile covers; None is as many.
        auditor: examines each; None: cheap signs alone.
        tiles: how many to look at; None is 9, or fewer in a small raster.
    """
    found: dict[tuple[Sensor, Fault], list[str]] = {}
    counted = dict.fromkeys(Sensor, 0)
    moves: list[tuple[int, int]] = []
    tops: list[float] = []
    window_px = window_px or tile_px
    if tiles is None:
        own = -(-rasters.grid.height // window_px) * -(-rasters.grid.width // window_px)
        tiles = min(SAMPLED_TILES, max(1, own // SPARING))
    for seen in _sample(rasters, tuple(limits), tile_px, window_px, tiles):
        there = {sensor: each for sensor, each in seen.items() if each.valid.mean() > 0.25}
        monitor = Monitor({sensor: limits[sensor] for sensor in there}, auditor)
        for sensor, verdict in monitor.assess(there).items():
            counted[sensor] += 1
            if verdict.fault not in (None, Fault.NO_DATA):
                detail = verdict.detail.split("; suspicious tile")[0].removesuffix(", but nothing else to use")
                found.setdefault((sensor, verdict.fault), []).append(detail)
        if Sensor.NDSM in there:
            tops.append(float(np.quantile(there[Sensor.NDSM].values[:, ::HEIGHT_STEP_PX, ::HEIGHT_STEP_PX], 0.99)))
        alike = compare(there[Sensor.RGIR], there[Sensor.NDSM]) if len(there) == len(Sensor) else None
        if alike is not None and alike.best > SURE_SIGMAS:
            moves.append((alike.down_px, alike.across_px))
    advice = [
        Advice(sensor=sensor, fault=fault, tiles=len(details), of=counted[sensor], detail=details[len(details) // 2])
        for (sensor, fault), details in found.items()
        if len(details) >= SHARE * counted[sensor]
    ]
    high = [top for top in tops if top > HIGH_M]
    if high and len(high) >= SHARE * len(tops) and not any(each.sensor is Sensor.NDSM for each in advice):
        words = f"heights reach {np.median(high):.0f} m, if they are metres: {mends.UNITS}"
        advice.append(Advice(sensor=Sensor.NDSM, fault=Fault.UNITS, tiles=len(high), of=len(tops), detail=words))
    displaced = tuple(_displaced(moves, counted[Sensor.NDSM], window_px / tile_px))
    if displaced:  # that says more
        advice = [each for each in advice if each.fault is not Fault.MISPLACED]
    return (*advice, *displaced)


def _displaced(moves: list[tuple[int, int]], tiles: int, scale: float) -> Iterator[Advice]:
    """Heights that fit the image better elsewhere, by the same distance in most tiles; a move of one pixel is one of
    ``scale`` raster pixels."""
    if not moves or len(moves) < SHARE * tiles:
        return
    down, across = (int(each) for each in np.median(moves, axis=0))
    agreeing = sum(max(abs(each[0] - down), abs(each[1] - across)) <= NEAR_PX for each in moves)
    if max(abs(down), abs(across)) > NEAR_PX and agreeing >= SHARE * tiles:
        down, across = round(down * scale), round(across * scale)
        where = f"{_side(-down, 'up', 'down')} and {_side(-across, 'left', 'right')}"
        words = f"heights lie {where} of where the image has them"
        words = f"{words}: {mends.REGISTER}"
        yield Advice(sensor=Sensor.NDSM, fault=Fault.MISPLACED, tiles=agreeing, of=tiles, detail=words)


def _side(pixels: int, negative: str, positive: str) -> str:
    return f"{abs(pixels)} px {negative if pixels < 0 else positive}"


def _sample(
    rasters: Readable, sensors: Iterable[Sensor], tile_px: int, window_px: int, tiles: int
) -> Iterator[Mapping[Sensor, Observation]]:
    """Windows in a lattice over the raster, the middle one first; a raster smaller than a tile has one, centred."""
    height, width = rasters.grid.height, rasters.grid.width
    side = max(1, int(np.sqrt(tiles)))

    def starts(length: int) -> list[int]:
        room = length - window_px
        return [room // 2] if room <= 0 else sorted({room * place // max(1, side - 1) for place in range(side)})

    windows = [(row, col) for row in starts(height) for col in starts(width)]
    windows.sort(key=lambda at: abs(at[0] - (height - window_px) / 2) + abs(at[1] - (width - window_px) / 2))
    for row, col in windows:
        window = Window(row=row, col=col, height=window_px, width=window_px)
        # a damaged block is the flight's to report, tile by tile
        yield rasters.read_into(window, {sensor: _blank(sensor, tile_px) for sensor in sensors})[0]


def _blank(sensor: Sensor, tile_px: int) -> Observation:
    bands, dtype = (3, np.uint8) if sensor is Sensor.RGIR else (1, np.float32)
    return Observation(values=np.zeros((bands, tile_px, tile_px), dtype), valid=np.zeros((tile_px, tile_px), np.bool_))
