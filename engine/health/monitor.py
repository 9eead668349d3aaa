"""Is this sensor alive in this tile, and if not, why: one verdict per tile and sensor, with a memory.

::

    Sighting -> statistics -> the worst fault of the tile -> hysteresis -> Verdict
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

**Doubts.** What is hardly plausible is suspected, and where a tile has both sensors an audit decides
(:mod:`engine.health.audit`): the maps of all three graphs say which sensor is wrong, and whether that does harm. Who is
found guilty is DEAD in that tile; who is acquitted is not suspected of the same again until the next audit is due,
unless it gets worse. The first tile is audited, then one in ``every_tiles``, and as many again where there are doubts.
Without an audit a doubt is a soft fault, or nothing where it is a mere hint. Of what cheap signs do not see in every
tile an audit alone acquits.

A sensor with an implausible tile is used all the same where there is nothing else to use.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from engine.contract.health import HealthLimits
from engine.contract.sensors import Sensor
from engine.health import mends
from engine.health.agreement import edge_agreement
from engine.health.audit import Auditor, judge, suspects_heights
from engine.health.docket import Docket
from engine.health.findings import Before, tile_findings, unclear
from engine.health.memory import SensorMemory
from engine.health.novelty import at_places_of_another, likeness
from engine.health.plausibility import IMPLAUSIBLE, LOW_TOWN_M, height_findings, image_findings
from engine.health.tile_statistics import TileStatistics, measure, strong_edges
from engine.health.verdict import Absent, Fault, Finding, Sighting, State, Verdict
from engine.rasters.sources import Observation

__all__ = ["Absent", "Fault", "Monitor", "Sighting", "State", "Verdict"]

GOES_ON, BREAKS_OFF, WAVERS = 0.9, 0.35, 0.6
"""Where two tiles of a raster overlap they are the same, but for a sensor that changes between them: one that is
correlated by less than the second shows another place. By less than the third it is rather at fault than one that is
correlated by more than the first."""
LEAST_EDGES = 0.04
"""Edges of image and heights that are correlated by less are suspected of showing different places."""
HINTS = frozenset({Fault.UNITS, Fault.MISPLACED, Fault.BLURRED})
"""Doubts that open land raises without reason: they ask for an audit, and mean nothing without one."""
UNSEEN = frozenset({Fault.BANDS, Fault.UNITS, Fault.MISPLACED})
"""Faults that cheap signs do not see in every tile: an audit alone acquits of them."""
WORSE = 1.5
"""Who was acquitted is suspected again where it is so many times as bad."""


class Monitor:
    """Judges every tile of a run, in order, from one thread.

    Args:
        limits: of every sensor that will be seen.
        auditor: examines tiles with both sensors; None: doubts are soft faults.
    """

    def __init__(self, limits: Mapping[Sensor, HealthLimits], auditor: Auditor | None = None) -> None:
        self._limits = dict(limits)
        self._memory = {sensor: SensorMemory() for sensor in Sensor if sensor in limits}
        self._auditor = auditor if auditor is not None and auditor.limits.every_tiles else None
        self._docket = Docket()
        self._disputed = False
        self._revision: dict[Sensor, Verdict] | None = None

    @property
    def disputed(self) -> bool:
        """Image and heights of the last tile show different places: the next tile may tell which of them was wrong."""
        return self._disputed

    @property
    def revision(self) -> Mapping[Sensor, Verdict] | None:
        """What the tile before the last one was worth, where the last one tells that the other sensor was wrong."""
        return self._revision

    @property
    def audits(self) -> int:
        """Tiles that were audited."""
        return self._docket.audits

    @np.errstate(over="ignore", invalid="ignore")  # heights of 1e38 m are for the limits to judge
    def assess(self, seen: Mapping[Sensor, Sighting], place: tuple[int, int] | None = None) -> dict[Sensor, Verdict]:
        """Judge one tile, all its sensors together; call once per tile, in order.

        The arrays are only looked at, and not kept.

        Args:
            seen: the sensors.
            place: row and column of its upper left pixel. Tiles that overlap must go on where the last one ended.
        """
        good = {sensor: memory.good for sensor, memory in self._memory.items()}
        believed = all(memory.dead is None for memory in self._memory.values())
        self._revision = None
        there, statistics, observed, found = self._look(seen, place)
        acquitted = self._audit(observed, found)
        if acquitted is None:  # no audit: a mere hint counts for nothing
            for sensor, all_ in found.items():  # but for what the sensor was found guilty of
                hints = HINTS - {self._memory[sensor].dead}
                all_[:] = [each for each in all_ if not (each.hint or (each.doubt and each.fault in hints))]
            acquitted = frozenset()
        verdicts = {
            sensor: self._judge(sensor, statistics.get(sensor), found.get(sensor), sensor in acquitted)
            for sensor in there
        }
        if not any(verdict.usable for verdict in verdicts.values()):
            for sensor, verdict in verdicts.items():
                if self._memory[sensor].good > good[sensor] or (found.get(sensor) and verdict.fault in IMPLAUSIBLE):
                    detail = f"{verdict.detail}, but nothing else to use"
                    verdicts[sensor] = replace(verdict, state=State.DEGRADED, detail=detail)
        self._disputed = believed and any(
            memory.convicted and memory.dead is Fault.MISPLACED for memory in self._memory.values()
        )
        return verdicts

    def begin_frame(self) -> None:
        """The next tile is the first of another raster: it need not go on where the last one ended."""
        for memory in self._memory.values():
            memory.place = None

    @np.errstate(over="ignore", invalid="ignore")
    def doubts(self, seen: Mapping[Sensor, Sighting]) -> dict[Sensor, tuple[Fault, ...]]:
        """What an audit of this tile would be asked; call instead of :meth:`assess`."""
        _, _, _, found = self._look(seen)
        return {sensor: tuple(each.fault for each in all_ if each.doubt) for sensor, all_ in found.items()}

    def _look(
        self, seen: Mapping[Sensor, Sighting], place: tuple[int, int] | None = None
    ) -> tuple[
        dict[Sensor, Sighting], dict[Sensor, TileStatistics], dict[Sensor, Observation], dict[Sensor, list[Finding]]
    ]:
        """All sensors in order, what was measured of those that delivered, and what was found."""
        there = {sensor: seen[sensor] for sensor in Sensor if sensor in seen}  # RGIR first: heights are held against it
        observed = {sensor: each for sensor, each in there.items() if not isinstance(each, Absent)}
        statistics = {sensor: measure(each, self._limits[sensor]) for sensor, each in observed.items()}
        found: dict[Sensor, list[Finding]] = {}
        for sensor, each in there.items():
            if isinstance(each, Absent):
                mend = mends.LINK if each.fault is Fault.LATE else mends.FILE
                found[sensor] = [Finding(fault=each.fault, hard=True, detail=each.detail, mend=mend)]
            elif statistics[sensor].valid:
                found[sensor] = list(self._findings(sensor, statistics, observed, found))
        self._compare(statistics, observed, found, place)
        return there, statistics, observed, found

    def snapshot(self) -> dict[str, Any]:
        """All that later verdicts depend on, as JSON values."""
        kept = {str(sensor): memory.snapshot() for sensor, memory in self._memory.items()}
        return {**kept, "docket": dict(vars(self._docket))}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`snapshot`: the verdicts to come are those of an uninterrupted run."""
        self._docket = Docket(**state["docket"])
        self._memory = {Sensor(name): SensorMemory.of(kept) for name, kept in state.items() if name != "docket"}

    def _findings(
        self,
        sensor: Sensor,
        statistics: Mapping[Sensor, TileStatistics],
        observed: Mapping[Sensor, Observation],
        found: Mapping[Sensor, Sequence[Finding]],
    ) -> Iterator[Finding]:
        """What a sensor's own tile shows, held against an image that is believed."""
        limits = self._limits[sensor]
        image = observed.get(Sensor.RGIR) if sensor is Sensor.NDSM else None
        if image is not None and self._distrusted(Sensor.RGIR, found.get(Sensor.RGIR)):
            image = None
        mine = statistics[sensor]
        memory = self._memory[sensor]
        yield from tile_findings(
            sensor, mine, limits, Before(checksum=memory.checksum, noise=memory.usual_noise), image
        )
        if mine.colours is not None and limits.colours is not None:
            heights = statistics.get(Sensor.NDSM)
            yield from image_findings(mine.colours, limits.colours, None if heights is None else heights.ground)
        if mine.ground is not None and limits.ground is not None:
            town = limits.flat_under_edges
            low = town is not None and image is not None and not mine.ground.reaches(LOW_TOWN_M)
            edges = strong_edges(image) if low and image is not None else None
            yield from height_findings(mine.ground, limits.ground, edges, 1.0 if town is None else town.soft)

    def _distrusted(self, sensor: Sensor, found: Sequence[Finding] | None) -> bool:
        """This tile of the sensor will not be used, as far as can be told by itself."""
        return found is None or self._memory[sensor].dead is not None or any(each.hard for each in found)

    def _compare(
        self,
        statistics: Mapping[Sensor, TileStatistics],
        observed: Mapping[Sensor, Observation],
        found: Mapping[Sensor, list[Finding]],
        place: tuple[int, int] | None,
    ) -> None:
        """Add what only both sensors together show; remember what they saw."""
        alike: dict[Sensor, float | None] = {}
        goes_on: dict[Sensor, float | None] = {}
        for sensor, mine in statistics.items():
            memory = self._memory[sensor]
            before, place_before = memory.signature, memory.place
            if mine.signature is not None:
                if before is not None and place is not None and place_before is not None and place != place_before:
                    moved = (place[0] - place_before[0], place[1] - place_before[1])
                    side = observed[sensor].valid.shape[0]
                    if max(map(abs, moved)) < side:
                        later = at_places_of_another(mine.signature, observed[sensor], moved)
                        goes_on[sensor] = likeness(before, later, moved, side)
                new = (goes_on.get(sensor) or 0.0) > GOES_ON  # and so not the last one again
                alike[sensor] = None if before is None else 0.0 if new else likeness(before, mine.signature)
                if mine.valid:
                    memory.signature, memory.place = mine.signature, place
        for sensor, same in alike.items():
            bound = self._limits[sensor].repeats
            partner = next((each for each in alike if each is not sensor), None)
            other = None if partner is None or self._distrusted(partner, found.get(partner)) else alike[partner]
            if sensor not in found or None in (bound, same, other):  # a broken sensor moves on whatever it sees
                continue
            if same > bound and other < bound / 2:  # type: ignore[operator]
                detail = f"the last tile again but for noise (correlation {same:.2f}); the other sensor moves on"
                found[sensor].append(Finding(fault=Fault.HELD, hard=True, detail=detail, mend=mends.RESTART))
        self._break_off(goes_on, found)
        if len(observed) == len(found) == len(Sensor) and not any(map(_hard, found.values())):
            image, heights = (statistics[sensor].lattice for sensor in Sensor)
            edges = None if image is None or heights is None else edge_agreement(image, heights)
            if edges is not None and edges < LEAST_EDGES:
                detail = f"edges of image and heights do not coincide (correlation {edges:.2f})"
                found[Sensor.NDSM].append(
                    Finding(
                        fault=Fault.MISPLACED, hard=False, detail=detail, mend=mends.REGISTER, doubt=True, size=-edges
                    )
                )

    def _break_off(self, goes_on: Mapping[Sensor, float | None], found: Mapping[Sensor, list[Finding]]) -> None:
        """Find a sensor that does not go on where its last tile ended."""
        for sensor, same in goes_on.items():
            if same is None or sensor not in found or _hard(found[sensor]) or not self._memory[sensor].sound:
                continue
            other = next((each for each in goes_on if each is not sensor), None)
            partner = None if other is None or (goes_on[other] or 0.0) < GOES_ON else self._memory[other]
            accused = partner is not None and partner.dead is Fault.MISPLACED  # one of the two has to be
            if same < (WAVERS if accused else BREAKS_OFF):
                detail = f"shows another place than where its last tile ended (correlation {same:.2f})"
                finding = Finding(fault=Fault.MISPLACED, hard=True, detail=detail, mend=mends.REGISTER)
                found[sensor].append(finding)
                if accused:
                    wrong = Verdict(state=State.DEAD, fault=Fault.MISPLACED, detail=f"the next tile {finding.reason}")
                    self._revision = {sensor: wrong, other: Verdict(state=State.ALIVE)}  # type: ignore[dict-item]
                    partner.dead, partner.convicted, partner.suspicious = None, False, 0  # type: ignore[union-attr]

    def _audit(
        self, observed: Mapping[Sensor, Observation], found: Mapping[Sensor, list[Finding]]
    ) -> frozenset[Sensor] | None:
        """Have the tile examined where that is due; findings become what the audit says.

        Returns:
            Who was acquitted; None where there was no audit.
        """
        if self._auditor is None:
            return None
        pending = {
            sensor: [each for each in all_ if not _excused(each, self._memory[sensor].acquitted)]
            for sensor, all_ in found.items()
        }
        possible = len(found) == len(observed) == len(Sensor) and not any(map(_hard, found.values()))
        doubtful = any(
            self._memory[sensor].dead is None and any(each.doubt for each in all_) for sensor, all_ in pending.items()
        )
        convicted = any(memory.convicted for memory in self._memory.values())
        if not self._docket.next_tile(self._auditor.limits.every_tiles, possible, doubtful, convicted):
            for sensor, all_ in found.items():
                all_[:] = pending[sensor]
            return None
        evidence = self._auditor.examine(observed)
        if evidence is None:
            return None
        suspects = {sensor: [each.fault for each in all_ if each.doubt] for sensor, all_ in found.items()}
        guilty = self._known_liar(judge(evidence, suspects, self._auditor.limits))
        for sensor, all_ in found.items():
            memory = self._memory[sensor]
            if sensor in guilty:
                memory.acquitted.clear()
                fault = guilty[sensor].fault
                memory.convicted = guilty[sensor].hard and (fault in UNSEEN or fault not in suspects[sensor])
                hints = [each for each in all_ if each.fault is fault]
                detail = "; ".join(each.detail for each in (*hints, guilty[sensor]))
                all_[:] = [replace(guilty[sensor], detail=detail, mend=(*hints, guilty[sensor])[0].mend)]
            else:
                if not guilty:
                    memory.acquitted.update({each.fault: each.size for each in all_ if each.doubt})
                memory.convicted = memory.convicted and bool(guilty)
                all_[:] = [each for each in all_ if not each.doubt]
        again = any(not each.hard for each in guilty.values())
        left = not guilty and suspects_heights(evidence, (), self._auditor.limits)
        self._docket.judged(bool(guilty), self._auditor.limits.every_tiles, again=again, suspected=left)
        return frozenset(found) if not guilty else frozenset()

    def _known_liar(self, guilty: dict[Sensor, Finding]) -> dict[Sensor, Finding]:
        """Of two sensors that show different places the one that has been at fault before is the wrong one."""
        image, heights = self._memory[Sensor.RGIR], self._memory[Sensor.NDSM]
        finding = guilty.get(Sensor.NDSM)
        if finding is not None and finding.fault is Fault.MISPLACED and image.dead is not None and heights.dead is None:
            return {Sensor.RGIR: finding}
        return guilty

    def _judge(
        self, sensor: Sensor, statistics: TileStatistics | None, found: Sequence[Finding] | None, acquitted: bool
    ) -> Verdict:
        """The verdict on one sensor, from all that was found."""
        if statistics is None:
            assert found
            return self._settle(sensor, found[0])
        if found is None:
            return Verdict(state=State.DEAD, fault=Fault.NO_DATA, detail="no pixel of the tile has data")
        memory = self._memory[sensor]
        memory.checksum = statistics.checksum
        memory.sound = not _hard(found)
        finding = next((each for each in found if each.hard), found[0] if found else None)
        proves_nothing = unclear(statistics, self._limits[sensor]) if finding is None else ""
        if proves_nothing or (finding is None and memory.convicted):  # neither a good tile nor a bad one
            return self._held(sensor) or Verdict(state=State.ALIVE, detail=proves_nothing)
        if finding is None and acquitted and memory.dead in IMPLAUSIBLE:
            memory.good = self._limits[sensor].alive_after_tiles  # acquitted of what only an audit could see
        verdict = self._settle(sensor, finding)
        if finding is None and statistics.noise is not None:
            memory.noise.append(statistics.noise)
        return verdict

    def _settle(self, sensor: Sensor, finding: Finding | None) -> Verdict:
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
            return Verdict(state=State.DEAD, fault=finding.fault, detail=finding.reason)
        return Verdict(
            state=State.DEGRADED,
            fault=finding.fault,
            detail=f"{finding.reason}; suspicious tile {memory.suspicious} of {limits.dead_after_tiles}",
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


def _hard(found: Sequence[Finding]) -> bool:
    return any(each.hard for each in found)


def _excused(finding: Finding, acquitted: Mapping[Fault, float]) -> bool:
    """The sensor was acquitted of this, and it is not worse now."""
    before = acquitted.get(finding.fault)
    return finding.doubt and before is not None and finding.size <= before + (WORSE - 1) * abs(before) + 0.5
