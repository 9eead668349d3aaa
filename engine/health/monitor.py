"""Is this sensor alive in this tile, and if not, why: one verdict per tile and sensor, with a memory.

::

    Sighting -> symptoms -> the worst fault of the tile -> hysteresis -> Verdict
                            hard: beyond use               ALIVE, DEGRADED or DEAD
                            soft: suspicious

A **hard** fault makes a sensor DEAD in the tile that shows it. A **soft** one makes it DEGRADED, which is still used,
and DEAD after ``dead_after_tiles`` in a row. A DEAD sensor whose tile is good again is held DEAD until
``alive_after_tiles`` in a row have been good, so that a loose plug does not switch engines with every tile; but where
no other sensor is usable such a tile is DEGRADED, for a good tile that is held back would be lost.

Having no data at all is no failure of the sensor: rasters end somewhere. Such a tile is done without the sensor and
nothing is remembered of it; for a sensor that is DEAD for another reason it is not a good tile either.

**Flat heights.** A height raster that shows one height all over a tile may be dead, or look at a lake or at a plain
clipped to zero. One height other than the ground's (:data:`GROUND_M`) cannot be true: a hard fault. At the ground it
is held against the image of the same tile: strong edges as a town has them contradict it; under a calm image the
sensor is believed, though a DEAD one does not recover by such tiles. Without an image to ask it is a soft fault.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeAlias

from engine.contract.health import HealthLimits, Limit
from engine.contract.sensors import Sensor
from engine.health.symptoms import Symptoms, measure, strong_edges

if TYPE_CHECKING:  # the reader of rasters may import this file
    from engine.rasters.raster import Observation

GROUND_M = 1.0
UNITS = {Sensor.RGIR: "DN", Sensor.NDSM: "m"}
REMEMBERED_TILES = 15
"""Clean tiles whose noise is the measure for the next one's."""


class Fault(StrEnum):
    """Why a sensor is not alive. The value is what logs and tables say."""

    NO_DATA = "no_data"
    """Not a single valid pixel."""
    HOLES = "holes"
    """Pixels without data, scattered over the tile."""
    CONSTANT = "constant"
    """One value everywhere."""
    FROZEN = "frozen"
    """The same bytes as the tile before."""
    SATURATED = "saturated"
    """Too many values at the upper end of the range."""
    DARK = "dark"
    """Hardly any light."""
    STUCK_COLUMNS = "stuck_columns"
    """Columns, or rows, that show one value from end to end."""
    OUT_OF_RANGE = "out_of_range"
    """Heights that do not exist."""
    NOISE = "noise"
    """Noise far above the sensor's own."""
    LATE = "late"
    """Nothing arrived before the deadline."""
    READ_ERROR = "read_error"
    """The tile cannot be read."""


class State(StrEnum):
    """What a sensor is worth in a tile."""

    ALIVE = "alive"
    DEGRADED = "degraded"
    """Suspicious, or recovering with nothing else to use: used."""
    DEAD = "dead"
    """Not used."""


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A sensor that delivered nothing for a tile: it came late or could not be read.

    Raises:
        ValueError: ``fault`` is neither LATE nor READ_ERROR.
    """

    fault: Fault
    detail: str

    def __post_init__(self) -> None:
        if self.fault not in (Fault.LATE, Fault.READ_ERROR):
            raise ValueError(f"a sensor is absent because of {Fault.LATE} or {Fault.READ_ERROR}, received {self.fault}")


Sighting: TypeAlias = "Observation | Absent"
"""What there is of one sensor in one tile."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a sensor is worth in one tile, and why."""

    state: State
    fault: Fault | None = None
    """None while ALIVE."""
    detail: str = ""
    """Numbers and limits, for people."""
    recovering: bool = False
    """This tile shows no fault, but the sensor had one, and not enough tiles have been good since."""

    @property
    def usable(self) -> bool:
        """The sensor may be used in this tile."""
        return self.state is not State.DEAD


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """One fault of one tile."""

    fault: Fault
    hard: bool
    detail: str


@dataclass(kw_only=True)
class _Memory:
    """What is remembered of one sensor from tile to tile."""

    dead: Fault | None = None
    """Why it is held DEAD."""
    suspicious: int = 0
    """Tiles in a row with a soft fault."""
    good: int = 0
    """Good tiles in a row since it was DEAD."""
    checksum: int | None = None
    """Of the last tile with data."""
    noise: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED_TILES))
    """Of the last clean tiles."""

    @property
    def usual_noise(self) -> float | None:
        """The median of the clean tiles'; None before the first one."""
        return statistics.median(self.noise) if self.noise else None


class Monitor:
    """Judges every tile of a run, in order, from one thread.

    Args:
        limits: of every sensor that will be seen.
    """

    def __init__(self, limits: Mapping[Sensor, HealthLimits]) -> None:
        self._limits = dict(limits)
        self._memory = {sensor: _Memory() for sensor in Sensor if sensor in limits}

    def assess(self, seen: Mapping[Sensor, Sighting]) -> dict[Sensor, Verdict]:
        """Judge one tile, all its sensors together; call once per tile, in order.

        The arrays are only looked at, and not kept.
        """
        verdicts: dict[Sensor, Verdict] = {}
        image: Observation | None = None
        good = {sensor: memory.good for sensor, memory in self._memory.items()}
        for sensor in (sensor for sensor in Sensor if sensor in seen):  # RGIR first: flat heights are held against it
            sighting = seen[sensor]
            if isinstance(sighting, Absent):
                finding = _Finding(fault=sighting.fault, hard=True, detail=sighting.detail)
                verdicts[sensor] = self._settle(sensor, finding)
                continue
            symptoms = measure(sighting, self._limits[sensor])
            verdicts[sensor] = self._judge(sensor, symptoms, image)
            if sensor is Sensor.RGIR and verdicts[sensor].usable:
                image = sighting
        if not any(verdict.usable for verdict in verdicts.values()):
            for sensor, verdict in verdicts.items():
                if self._memory[sensor].good > good[sensor]:
                    detail = f"{verdict.detail}, but nothing else to use"
                    verdicts[sensor] = replace(verdict, state=State.DEGRADED, detail=detail)
        return verdicts

    def snapshot(self) -> dict[str, Any]:
        """All that later verdicts depend on, as JSON values."""
        return {
            str(sensor): {
                "dead": None if memory.dead is None else str(memory.dead),
                "suspicious": memory.suspicious,
                "good": memory.good,
                "checksum": memory.checksum,
                "noise": list(memory.noise),
            }
            for sensor, memory in self._memory.items()
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`snapshot`: the verdicts to come are those of an uninterrupted run."""
        self._memory = {
            Sensor(sensor): _Memory(
                dead=None if kept["dead"] is None else Fault(kept["dead"]),
                suspicious=kept["suspicious"],
                good=kept["good"],
                checksum=kept["checksum"],
                noise=deque(kept["noise"], maxlen=REMEMBERED_TILES),
            )
            for sensor, kept in state.items()
        }

    def _judge(self, sensor: Sensor, symptoms: Symptoms, image: Observation | None) -> Verdict:
        """The verdict on a tile that was delivered."""
        memory = self._memory[sensor]
        if not symptoms.valid:
            return Verdict(state=State.DEAD, fault=Fault.NO_DATA, detail="no pixel of the tile has data")
        found = list(_findings(sensor, symptoms, self._limits[sensor], memory, image))
        memory.checksum = symptoms.checksum
        finding = next((each for each in found if each.hard), found[0] if found else None)
        unclear = _unclear(symptoms, self._limits[sensor]) if finding is None else ""
        if unclear:  # neither a good tile nor a bad one
            return self._held(sensor) or Verdict(state=State.ALIVE, detail=unclear)
        verdict = self._settle(sensor, finding)
        if finding is None and symptoms.noise is not None:
            memory.noise.append(symptoms.noise)
        return verdict

    def _settle(self, sensor: Sensor, finding: _Finding | None) -> Verdict:
        """The verdict on a tile, by its worst fault and the tiles before it."""
        memory, limits = self._memory[sensor], self._limits[sensor]
        if finding is None:
            memory.suspicious = 0
            memory.good += 1
            if memory.dead is None or memory.good >= limits.alive_after_tiles:
                memory.dead = None
                return Verdict(state=State.ALIVE)
            held = self._held(sensor)
            assert held is not None
            return held
        memory.good = 0
        memory.suspicious += 1
        if finding.hard or memory.dead is not None or memory.suspicious >= limits.dead_after_tiles:
            memory.dead = finding.fault
            return Verdict(state=State.DEAD, fault=finding.fault, detail=finding.detail)
        return Verdict(
            state=State.DEGRADED,
            fault=finding.fault,
            detail=f"{finding.detail}; suspicious tile {memory.suspicious} of {limits.dead_after_tiles}",
        )

    def _held(self, sensor: Sensor) -> Verdict | None:
        """The verdict on a tile that shows no fault of a DEAD sensor; None if it is not."""
        memory = self._memory[sensor]
        if memory.dead is None:
            return None
        return Verdict(
            state=State.DEAD,
            fault=memory.dead,
            detail=f"{memory.good} of {self._limits[sensor].alive_after_tiles} good tiles",
            recovering=True,
        )


def _findings(
    sensor: Sensor, symptoms: Symptoms, limits: HealthLimits, memory: _Memory, image: Observation | None
) -> Iterator[_Finding]:
    """Every fault of a tile that has data, the one that explains the others first."""
    unit = UNITS[sensor]
    spread, bright = symptoms.spread, symptoms.bright
    yield from _shares(Fault.SATURATED, limits.saturated, symptoms.saturated, "of the values at 255 DN")
    if spread is not None and limits.constant_below is not None and min(spread) < limits.constant_below:
        yield from _constant(sensor, symptoms, limits.constant_below, limits.flat_under_edges, image)
    if spread is not None and max(spread) > 0 and symptoms.checksum == memory.checksum:
        yield _Finding(fault=Fault.FROZEN, hard=True, detail="the same bytes as the tile before")
    if limits.dark is not None and bright is not None and bright < limits.dark.soft:
        hard = bright < limits.dark.hard
        detail = f"the brightest band has 99 % below {bright:.0f} DN, {_bound(limits.dark, hard)} DN"
        yield _Finding(fault=Fault.DARK, hard=hard, detail=detail)
    heights = f"of the heights outside {limits.min_height_m} to {limits.max_height_m} m"
    yield from _shares(Fault.OUT_OF_RANGE, limits.out_of_range, symptoms.outside, heights)
    yield from _shares(Fault.STUCK_COLUMNS, limits.stuck, symptoms.stuck, "of the columns or rows show one value")
    holes = f"hole edges, data in {symptoms.valid:.0%} of the tile"
    yield from _shares(Fault.HOLES, limits.hole_edges, symptoms.hole_edges, holes)
    usual, noise = memory.usual_noise, symptoms.noise
    if limits.noise is None or noise is None or noise <= limits.noise.soft:
        return
    if usual is None or noise > limits.noise_ratio * usual:
        hard = noise > limits.noise.hard
        before = "" if usual is None else f" (recent clean tiles: {usual:.3g} {unit})"
        detail = f"noise of {noise:.3g} {unit}{before}, {_bound(limits.noise, hard)} {unit}"
        yield _Finding(fault=Fault.NOISE, hard=hard, detail=detail)


def _shares(fault: Fault, limit: Limit | None, share: float | None, words: str) -> Iterator[_Finding]:
    """The fault of a share that is larger than it may be."""
    if limit is not None and share is not None and share > limit.soft:
        hard = share > limit.hard
        yield _Finding(fault=fault, hard=hard, detail=f"{share:.1%} {words}, {_bound(limit, hard, percent=True)}")


def _constant(
    sensor: Sensor, symptoms: Symptoms, bound: float, flat_under_edges: Limit | None, image: Observation | None
) -> Iterator[_Finding]:
    """A tile with a band that shows one value everywhere: what follows from it."""
    assert symptoms.spread is not None
    assert symptoms.mean is not None
    if sensor is Sensor.RGIR:
        still = [str(number) for number, spread in enumerate(symptoms.spread, 1) if spread < bound]
        detail = f"band {', '.join(still)} of {len(symptoms.spread)}: standard deviation below {bound:g} DN"
        yield _Finding(fault=Fault.CONSTANT, hard=len(still) == len(symptoms.spread), detail=detail)
        return
    flat = f"heights vary by less than {bound:g} m around {symptoms.mean:.2f} m"
    if abs(symptoms.mean) > GROUND_M:
        yield _Finding(fault=Fault.CONSTANT, hard=True, detail=f"{flat}, which is not the ground")
    elif flat_under_edges is None:
        return
    elif image is None:
        yield _Finding(fault=Fault.CONSTANT, hard=False, detail=f"{flat}, and there is no image to ask")
    elif (edges := strong_edges(image)) > flat_under_edges.soft:
        hard = edges > flat_under_edges.hard
        detail = f"{flat} under an image with {edges:.1%} strong edges, {_bound(flat_under_edges, hard, percent=True)}"
        yield _Finding(fault=Fault.CONSTANT, hard=hard, detail=detail)


def _unclear(symptoms: Symptoms, limits: HealthLimits) -> str:
    """Why a tile without a fault is no proof of health; empty if it is one."""
    if symptoms.spread is None:
        return f"data in {symptoms.valid:.1%} of the tile, too few to judge"
    if limits.constant_below is not None and max(symptoms.spread) < limits.constant_below:
        return "flat ground, which the image does not contradict"
    return ""


def _bound(limit: Limit, hard: bool, *, percent: bool = False) -> str:
    """The limit that was passed, in words."""
    bound = limit.hard if hard else limit.soft
    return f"{'hard' if hard else 'soft'} limit {f'{bound:.1%}' if percent else f'{bound:g}'}"
