"""A tile on its way through the pipeline: what was read, what each pixel is mapped from, what became of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Inputs
from engine.contract.sensors import Provenance, Scenario, Sensor, scenario_for
from engine.frames import OpenFrame
from engine.grid import Tile
from engine.health.monitor import Fault, Verdict
from engine.rasters.sources import Observation


def _nothing() -> None:
    """Nothing to give back."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A tile that has been read: what each usable sensor saw, and which scenario each pixel takes."""

    tile: Tile
    frame: OpenFrame | None = None
    """The frame that the tile belongs to."""
    observations: Mapping[Sensor, Observation]
    """Of the sensors that may be used: a dead one is not among them."""
    verdicts: Mapping[Sensor, Verdict] = field(default_factory=dict)
    """Empty where health is not watched."""
    provenance: NDArray[np.uint8]
    """uint8 over the raster pixels of ``tile.reads``, values of :class:`Provenance`."""
    pixels: Mapping[Provenance, int]
    """How many pixels of ``tile.target`` take each scenario, most first."""
    skipped: bool = False
    """Dropped because the pipeline could not keep up: not inferred."""
    available_at: float
    """``time.monotonic()`` when the tile was there to be read; its due time when the source is paced."""
    wait_s: float
    """From available to the start of reading."""
    read_s: float
    monitor: Mapping[str, Any] | None = None
    """The health monitor's state after this tile, for the journal."""
    release: Callable[[], None] = _nothing
    """Gives the buffers back; called once, when nobody reads them any more."""

    @property
    def stamp(self) -> str:
        """The frame's name; empty for a raster."""
        return "" if self.frame is None else self.frame.frame.stamp

    @property
    def scenarios(self) -> tuple[Scenario, ...]:
        """Scenarios that occur in ``tile.target``, the most frequent first."""
        return tuple(Scenario[source.name] for source in self.pixels if source is not Provenance.NONE)

    def inputs(self, scenario: Scenario) -> Inputs:
        """What that scenario's graph reads: the sensors it needs and no other."""
        return {sensor: np.ascontiguousarray(self.observations[sensor].values) for sensor in scenario.sensors}

    def skip(self) -> Job:
        """This tile without its data; the buffers are given back."""
        self.release()
        nothing = np.broadcast_to(np.uint8(Provenance.NONE), self.provenance.shape)
        pixels = {Provenance.NONE: self.tile.target.pixels}
        return replace(self, observations={}, provenance=nothing, pixels=pixels, skipped=True, release=_nothing)


def make_job(
    tile: Tile,
    seen: Mapping[Sensor, Observation],
    *,
    available_at: float,
    wait_s: float,
    read_s: float,
    verdicts: Mapping[Sensor, Verdict] | None = None,
    inside: NDArray[np.bool_] | None = None,
    frame: OpenFrame | None = None,
    monitor: Mapping[str, Any] | None = None,
    release: Callable[[], None] = _nothing,
) -> Job:
    """Decide pixel by pixel which sensors a tile is mapped from.

    Args:
        tile: the tile.
        seen: what each sensor saw over ``tile.reads``; a sensor that delivered nothing is left out.
        verdicts: a sensor that is dead by them is not used, whatever it delivered.
        inside: which pixels of ``tile.reads`` are to be mapped; None: all.
        available_at, wait_s, read_s, frame, monitor, release: see :class:`Job`.
    """
    verdicts = verdicts or {}
    usable = {sensor: each for sensor, each in seen.items() if sensor not in verdicts or verdicts[sensor].usable}
    window, shape = tile.reads, (tile.reads.height, tile.reads.width)
    scenario = scenario_for(usable)
    if inside is not None and inside.all():
        inside = None
    if inside is None and scenario is not None and all(each.whole for each in usable.values()):
        provenance, counts = _everywhere(scenario.provenance, shape), {scenario.provenance: tile.target.pixels}
    else:
        provenance = provenance_of({sensor: each.valid_of(*shape) for sensor, each in usable.items()}, shape)
        if inside is not None:
            provenance = np.where(inside, provenance, np.uint8(Provenance.NONE))
        counts = pixels_of(provenance[tile.target.within(window)])
    present = sorted((source for source, count in counts.items() if count), key=lambda source: -counts[source])
    return Job(
        tile=tile,
        frame=frame,
        observations=usable,
        verdicts=verdicts,
        provenance=provenance,
        pixels={source: counts[source] for source in present},
        available_at=available_at,
        wait_s=wait_s,
        read_s=read_s,
        monitor=monitor,
        release=release,
    )


@lru_cache(maxsize=8)
def _everywhere(source: Provenance, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """One scenario in every pixel; shared, and not to be changed."""
    provenance = np.full(shape, source, np.uint8)
    provenance.flags.writeable = False
    return provenance


def provenance_of(valid: Mapping[Sensor, NDArray[np.bool_]], shape: tuple[int, int]) -> NDArray[np.uint8]:
    """Which scenario each pixel takes, uint8 [h, w], from the sensors' validity masks, bool [h, w] each."""
    scenario = scenario_for(valid)
    if scenario is not None and all(mask.all() for mask in valid.values()):  # the usual tile, a tenth of the time
        return np.full(shape, scenario.provenance, np.uint8)
    dead = np.zeros(shape, np.bool_)
    rgir, ndsm = valid.get(Sensor.RGIR, dead), valid.get(Sensor.NDSM, dead)
    table = np.empty(4, np.uint8)
    table[[0, 1, 2, 3]] = Provenance.NONE, Provenance.MISSING_NDSM, Provenance.MISSING_RGIR, Provenance.FULL
    return np.asarray(table[rgir.view(np.uint8) + 2 * ndsm.view(np.uint8)])


def pixels_of(provenance: NDArray[np.uint8]) -> dict[Provenance, int]:
    """How many pixels take each scenario; np.bincount, which widens every pixel to int64, takes six times as long."""
    lowest = int(provenance.min()) if provenance.size else 0
    if not provenance.size or provenance.max() == lowest:  # the usual tile
        return {source: provenance.size * (source == lowest) for source in Provenance}
    return {source: int(np.count_nonzero(provenance == source)) for source in Provenance}


@dataclass(frozen=True, kw_only=True)
class TileReport:
    """What became of one tile, and how long each stage took."""

    frame: str
    tile: Tile
    scenarios: tuple[Scenario, ...]
    """Those inferred, that of most pixels first; empty where there was nothing to infer."""
    verdicts: Mapping[Sensor, Verdict]
    skipped: bool
    switched: bool
    """The first of ``scenarios`` differs from that of the last tile that had one."""
    available_at: float
    wait_s: float
    read_s: float
    queue_s: float
    """From read to submitted."""
    infer_s: float
    """From submission to the last scenario's answer, waiting for a free slot and for earlier tiles included."""
    write_s: float
    latency_s: float
    """From available to written."""
    queue_depth: int
    """Jobs that had been read and not yet submitted when this one was submitted."""

    @property
    def lost(self) -> bool:
        """See :func:`is_lost`."""
        return is_lost(self.verdicts, skipped=self.skipped)


def is_lost(verdicts: Mapping[Sensor, Verdict], *, skipped: bool) -> bool:
    """No map although there was something to see: the tile was skipped, or every sensor failed.

    A sensor that has no data in the tile has not failed: rasters end somewhere.
    """
    failed = any(verdict.fault is not Fault.NO_DATA for verdict in verdicts.values())
    return skipped or (failed and not any(verdict.usable for verdict in verdicts.values()))
