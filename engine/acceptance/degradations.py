"""What every degradation, by strength, does to the map: used as it is, and with the sensors watched.

::

    for each scene:  a flight without faults         the maps of all three graphs; false alarms
                     a flight for each degradation   class agreement with the fault-free map

The yardstick is the map without the spoiled sensor: a degradation does harm by as many points of class agreement as the
map loses *beyond* that. Negative numbers are what would be lost by not using the sensor.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from engine.contract.errors import OutputError
from engine.contract.health import AuditLimits, HealthLimits
from engine.contract.sensors import Scenario, Sensor, scenario_for
from engine.health.audit import Auditor
from engine.health.degradations import DEGRADATIONS
from engine.health.faults import LATER, Injection, Injector, Kind, degradations_of, strengths_of
from engine.health.monitor import Monitor, State, Verdict
from engine.health.verdict import Fault
from engine.rasters.sources import Observation

Infer = Callable[[Scenario, Mapping[Sensor, Observation]], NDArray[np.uint8]]
"""The class map of a tile by one graph, uint8 [T, T]."""
HARMFUL, GRAVE = 3.0, 15.0
"""Points beyond dropping the sensor."""


@dataclass(frozen=True, kw_only=True)
class SceneTiles:
    """Tiles of one scene, in memory."""

    name: str
    tiles: Sequence[Mapping[Sensor, Observation]]
    places: Sequence[tuple[int, int]] | None = None
    """Row and column of each tile's upper left pixel; None where they do not lie on one raster."""


@dataclass(frozen=True, kw_only=True)
class DegradationOutcome:
    """One degradation at one strength on one scene; points of class agreement with the fault-free map."""

    sensor: Sensor
    kind: Kind
    strength: float
    scene: str
    tiles: int
    """In which the sensor was spoiled."""
    used: float
    """Points lost beyond dropping the sensor if it is used."""
    lost: float
    """Points lost beyond dropping the sensor with the sensors watched."""
    seen_after: int | None
    """Tiles to the first in which the sensor was not used; None: it was used throughout."""
    fault: Fault | None
    """What it was called."""
    reason: str
    blamed_other: bool
    """The other sensor was taken for dead."""


@dataclass(frozen=True, kw_only=True)
class CleanFlight:
    """A flight without faults."""

    scene: str
    tiles: int
    dead: int
    """Tiles in which a sensor was said to be dead though it delivered."""
    degraded: int
    audits: int

    def plus(self, other: CleanFlight) -> CleanFlight:
        """Both together."""
        return replace(
            self,
            tiles=self.tiles + other.tiles,
            dead=self.dead + other.dead,
            degraded=self.degraded + other.degraded,
            audits=self.audits + other.audits,
        )


@dataclass(frozen=True, kw_only=True)
class DegradationFlights:
    """Flies degradations.

    Args:
        infer: one graph over one tile.
        classes: names of the classes.
        limits, audit: of the bundle.
    """

    infer: Infer
    classes: Sequence[str]
    limits: Mapping[Sensor, HealthLimits]
    audit: AuditLimits

    def clean(self, flight: SceneTiles) -> CleanFlight:
        """Count false alarms; a scene with one sensor counts too."""
        verdicts, audits = self._watch(flight, flight.tiles, self.infer)
        blamed = [v for each in verdicts for v in each.values() if v.fault not in (None, Fault.NO_DATA)]
        return CleanFlight(
            scene=flight.name,
            tiles=len(flight.tiles),
            dead=sum(verdict.state is State.DEAD for verdict in blamed),
            degraded=sum(verdict.state is State.DEGRADED for verdict in blamed),
            audits=audits,
        )

    def outcomes(self, flight: SceneTiles, cases: Iterable[tuple[Sensor, Kind, float]]) -> Iterator[DegradationOutcome]:
        """Fly one flight for each case; the scene needs both sensors."""
        truth = [{scenario: self.infer(scenario, seen) for scenario in Scenario} for seen in flight.tiles]
        for sensor, kind, strength in cases:
            yield self._outcome(flight, truth, sensor, kind, strength)

    def _outcome(
        self,
        flight: SceneTiles,
        truth: Sequence[Mapping[Scenario, NDArray[np.uint8]]],
        sensor: Sensor,
        kind: Kind,
        strength: float,
    ) -> DegradationOutcome:
        first = int(kind in LATER)
        injector = Injector([Injection(sensor=sensor, kind=kind, first=first, last=None, strength=strength)])
        spoiled = [_observed(injector.apply(place, dict(seen))) for place, seen in enumerate(flight.tiles)]
        kept = next(scenario for scenario in Scenario if scenario.sensors == frozenset(Sensor) - {sensor})
        maps: dict[tuple[int, Scenario], NDArray[np.uint8]] = {
            (place, kept): whole[kept] for place, whole in enumerate(truth)
        }
        places = {id(seen[sensor].values): place for place, seen in enumerate(spoiled)}

        def infer(scenario: Scenario, seen: Mapping[Sensor, Observation]) -> NDArray[np.uint8]:
            key = (places[id(seen[sensor].values)], scenario)
            if key not in maps:
                maps[key] = self.infer(scenario, seen)
            return maps[key]

        verdicts, _ = self._watch(flight, spoiled, infer)
        used, lost, pixels = 0.0, 0.0, 0
        for place in range(first, len(spoiled)):
            clean, seen, judged = truth[place], spoiled[place], verdicts[place]
            both = np.logical_and.reduce([each.valid for each in flight.tiles[place].values()])
            taken = scenario_for({each for each, verdict in judged.items() if verdict.usable})
            dropped = _agreeing(clean[kept], clean[Scenario.FULL], both)
            valid = seen[sensor].valid  # pixels without data are mapped without the sensor
            full = np.where(valid, infer(Scenario.FULL, seen), clean[kept])
            mapped = {None: None, kept: clean[kept], Scenario.FULL: full}.get(taken)
            if taken is not None and mapped is None:  # the other sensor was dropped
                mapped = np.where(valid, infer(taken, seen), clean[kept])
            used += dropped - _agreeing(full, clean[Scenario.FULL], both)
            lost += dropped - (0 if mapped is None else _agreeing(mapped, clean[Scenario.FULL], both))
            pixels += int(np.count_nonzero(both))
        mine = [each[sensor] for each in verdicts[first:]]
        dead = next((place for place, verdict in enumerate(mine) if not verdict.usable), None)
        return DegradationOutcome(
            sensor=sensor,
            kind=kind,
            strength=strength,
            scene=flight.name,
            tiles=len(mine),
            used=100 * used / max(pixels, 1),
            lost=100 * lost / max(pixels, 1),
            seen_after=dead,
            fault=None if dead is None else mine[dead].fault,
            reason="" if dead is None else mine[dead].detail,
            blamed_other=any(
                not verdict.usable and verdict.fault is not Fault.NO_DATA
                for each in verdicts[first:]
                for other, verdict in each.items()
                if other is not sensor
            ),
        )

    def _watch(
        self, flight: SceneTiles, tiles: Sequence[Mapping[Sensor, Observation]], infer: Infer
    ) -> tuple[list[Mapping[Sensor, Verdict]], int]:
        monitor = Monitor(self.limits, Auditor(infer=infer, classes=self.classes, limits=self.audit))
        places: Sequence[tuple[int, int] | None] = flight.places or [None] * len(tiles)
        verdicts: list[Mapping[Sensor, Verdict]] = []
        for seen, place in zip(tiles, places, strict=True):
            disputed = monitor.disputed
            verdicts.append(monitor.assess(seen, place))
            if disputed and monitor.revision is not None:  # as engine.reader, which holds such a tile
                verdicts[-2] = monitor.revision
        return verdicts, monitor.audits


def cases() -> Iterator[tuple[Sensor, Kind, float]]:
    """Every degradation of every sensor at every strength."""
    for sensor in Sensor:
        for kind in degradations_of(sensor):
            for strength in strengths_of(kind)[sensor]:
                yield sensor, kind, strength


def render(clean: Sequence[CleanFlight], outcomes: Sequence[DegradationOutcome]) -> Iterator[str]:
    """The table, a row for each degradation and strength, and what is to be said of all."""
    scenes = list(dict.fromkeys(each.scene for each in outcomes))
    yield "points of class agreement lost beyond dropping the sensor: used as it is -> with the sensors watched"
    yield f"{'sensor, degradation, strength':<28}  {'dead':>5}  {'after':>5}  " + "  ".join(
        f"{each[:14]:>14}" for each in scenes
    )
    for (sensor, kind, strength), group in _grouped(outcomes).items():
        found = {each.scene: each for each in group}
        seen = [each.seen_after for each in group if each.seen_after is not None]
        cells = [f"{found[each].used:5.0f} -> {found[each].lost:5.0f}" if each in found else "" for each in scenes]
        after = str(max(seen)) if seen else ""
        yield (
            f"{sensor + ' ' + kind + f' {strength:g}':<28}  {f'{len(seen)}/{len(group)}':>5}  {after:>5}  "
            + "  ".join(f"{cell:>14}" for cell in cells)
        )
    yield ""
    yield from _curves(outcomes)
    yield ""
    unseen = [each for each in outcomes if DEGRADATIONS[each.kind].unseen]
    for words, cases_ in (("all", outcomes), ("of kinds that no rule was made for", unseen)):
        if cases_:
            worst = max(cases_, key=lambda each: each.lost)
            yield (
                f"{len(cases_)} cases, {words}; more than {HARMFUL:g} points lost beyond dropping: "
                f"{sum(each.used > HARMFUL for each in cases_)} if used, {sum(each.lost > HARMFUL for each in cases_)} "
                f"watched; more than {GRAVE:g}: {sum(each.used > GRAVE for each in cases_)} and "
                f"{sum(each.lost > GRAVE for each in cases_)}; worst {worst.lost:.0f} ({worst.sensor} {worst.kind} "
                f"{worst.strength:g} on {worst.scene})"
            )
    tiles = sum(each.tiles for each in clean)
    yield (
        f"{len(clean)} clean flights, {tiles} tiles: {sum(each.dead for each in clean)} dead, "
        f"{sum(each.degraded for each in clean)} degraded, {sum(each.audits for each in clean)} audits"
    )


def _curves(outcomes: Sequence[DegradationOutcome]) -> Iterator[str]:
    """For every kind: from which strength it is detected on every scene that it harms, and the harm below."""
    yield (
        f"{'sensor, degradation':<20}  {'harmful from':>12}  {'dead where harmful':>18}  {'most harm left':>14}  "
        "strength is"
    )
    for sensor in Sensor:
        for kind in degradations_of(sensor):
            mine = [each for each in outcomes if each.sensor is sensor and each.kind is kind]
            if not mine:
                continue
            order = strengths_of(kind)[sensor]
            harmful = [each for each in mine if each.used > HARMFUL]
            begins = min((order.index(each.strength) for each in harmful), default=None)
            caught = sum(each.seen_after is not None for each in harmful)
            yield (
                f"{sensor + ' ' + kind:<20}  {'never' if begins is None else f'{order[begins]:g}':>12}  "
                f"{f'{caught} of {len(harmful)}' if harmful else '':>18}  {max(each.lost for each in mine):>14.0f}  "
                f"{DEGRADATIONS[kind].means}"
            )


def write_csv(path: Path, clean: Sequence[CleanFlight], outcomes: Sequence[DegradationOutcome]) -> None:
    """One row per case, and one per clean flight.

    Raises:
        OutputError: the system refuses.
    """
    names = [each.name for each in fields(DegradationOutcome)]
    try:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            for outcome in outcomes:
                row = asdict(outcome)
                writer.writerow({**row, "used": f"{outcome.used:.2f}", "lost": f"{outcome.lost:.2f}"})
            for each in clean:
                reason = f"{each.dead} dead, {each.degraded} degraded, {each.audits} audits"
                writer.writerow({"kind": "clean", "scene": each.scene, "tiles": each.tiles, "reason": reason})
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): pass another --csv") from error


def write_picture(path: Path, outcomes: Sequence[DegradationOutcome]) -> None:
    """Strength against harm as SVG: for every degradation the worst scene, used and watched.

    Raises:
        OutputError: the system refuses.
    """
    rows = []
    for (sensor, kind, strength), group in _grouped(outcomes).items():
        label = f"{sensor} {kind} {strength:g}"
        rows.append((label, max(each.used for each in group), max(each.lost for each in group)))
    left, wide, line = 190, 520, 15

    def at(points: float) -> float:
        return left + wide * (min(max(points, -50.0), 100.0) + 50) / 150

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + wide + 20}" height="{line * (len(rows) + 3)}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="100%" height="100%" fill="white"/><text x="{left}" y="12">points lost beyond dropping the '
        'sensor, worst scene: <tspan fill="#d55e00">used</tspan>, <tspan fill="#0072b2">watched</tspan></text>',
    ]
    for tick in range(-50, 101, 25):
        parts.append(
            f'<line x1="{at(tick)}" x2="{at(tick)}" y1="{line * 2}" y2="{line * (len(rows) + 2)}" '
            f'stroke="{"#333" if tick == 0 else "#ddd"}"/>'
            f'<text x="{at(tick)}" y="{line * 2 - 3}" text-anchor="middle">{tick}</text>'
        )
    for place, (label, used, lost) in enumerate(rows):
        y = line * (place + 2.6)
        parts.append(
            f'<text x="{left - 6}" y="{y + 4}" text-anchor="end">{label}</text>'
            f'<line x1="{at(used)}" x2="{at(lost)}" y1="{y}" y2="{y}" stroke="#999"/>'
            f'<circle cx="{at(used)}" cy="{y}" r="4" fill="#d55e00"/>'
            f'<circle cx="{at(lost)}" cy="{y}" r="3" fill="#0072b2"/>'
        )
    try:
        path.write_text("\n".join([*parts, "</svg>"]) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}): pass another --plot") from error


def _grouped(outcomes: Sequence[DegradationOutcome]) -> dict[tuple[Sensor, Kind, float], list[DegradationOutcome]]:
    groups: dict[tuple[Sensor, Kind, float], list[DegradationOutcome]] = {}
    for each in outcomes:
        groups.setdefault((each.sensor, each.kind, each.strength), []).append(each)
    return groups


def _agreeing(one: NDArray[np.uint8], other: NDArray[np.uint8], where: NDArray[np.bool_]) -> int:
    return int(np.count_nonzero((one == other) & where))


def _observed(seen: Mapping[Sensor, object]) -> dict[Sensor, Observation]:
    """Degradations leave nothing out."""
    return {sensor: each for sensor, each in seen.items() if isinstance(each, Observation)}
