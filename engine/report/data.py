"""A finished run as the report sees it: ``run.json``, and ``tiles.csv`` as columns."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from engine.contract.errors import UsageError
from engine.contract.page.charts import stretches
from engine.contract.sensors import Sensor
from engine.grid import TileGrid
from engine.health.faults import Injection, parse_faults
from engine.health.monitor import Fault, State, Verdict
from engine.ownership import RUN_NAME
from engine.record import Deadline, RunRecord, TileTimes
from engine.tile_log import NAME as TILE_LOG_NAME
from engine.tile_log import TileRow, read_tile_log


class Shown(IntEnum):
    """A sensor's state in a tile as the report draws it, from good to bad."""

    UNWATCHED = 0
    ALIVE = 1
    NO_DATA = 2
    """Dead in this tile because it has no data there; that may be where the raster ends."""
    DEGRADED = 3
    DEAD = 4

    @classmethod
    def of(cls, verdict: Verdict | None) -> Shown:
        """How a verdict is drawn."""
        if verdict is None:
            return cls.UNWATCHED
        if verdict.fault is Fault.NO_DATA:
            return cls.NO_DATA
        return {State.ALIVE: cls.ALIVE, State.DEGRADED: cls.DEGRADED, State.DEAD: cls.DEAD}[verdict.state]


@dataclass(frozen=True, kw_only=True)
class Outage:
    """Tiles in a row in which a sensor was not used, first to last."""

    sensor: Sensor
    first: int
    last: int
    faults: tuple[Fault, ...]
    """In the order in which they came."""

    @property
    def tiles(self) -> int:
        """How many."""
        return self.last - self.first + 1


class Finished:
    """A run that has ended. Tiles are counted from 0 in the order in which they were mapped.

    Args:
        output: the folder that the run wrote.

    Attributes:
        record: ``run.json``.
        times: latencies, stages, scenarios and flags of all tiles.
        shown: values of :class:`Shown` by sensor, int8 [tiles].
        place: row, column, height and width of every tile in its raster, [tiles, 4].
        frames: of a live flight, the frames' stamps in order and the first tile of each; else empty.

    Raises:
        UsageError: the folder holds no finished run, or one of another version.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        hint = "pass the folder of a finished run (repeat an interrupted one with `resume=True`)"
        try:
            self.record = RunRecord.read(output / RUN_NAME)
            self._collect(read_tile_log(output / TILE_LOG_NAME))
        except OSError as error:
            raise UsageError(
                f"a report needs run.json and {TILE_LOG_NAME}; {error.filename} cannot be read ({error.strerror}): "
                f"{hint}"
            ) from error
        except ValueError as error:
            raise UsageError(
                f"run.json or {TILE_LOG_NAME} in {output} is not of this version ({error}): {hint}"
            ) from error

    def __len__(self) -> int:
        return len(self.times)

    @property
    def watched(self) -> bool:
        """The sensors' health was."""
        return self.record.health.watched

    @property
    def sensors(self) -> tuple[Sensor, ...]:
        """Those that the run could read."""
        used = {sensor for scenario in self.record.scenarios for sensor in scenario.sensors}
        return tuple(sensor for sensor in Sensor if sensor in used)

    @property
    def grid(self) -> TileGrid | None:
        """The tiles of the raster; None for a live run, whose frames each have their own."""
        size, tiling = self.record.grid, self.record.tiling
        if size is None or self.record.live is not None:
            return None
        return TileGrid(height=size.height, width=size.width, tile_px=tiling.tile_px, halo_px=tiling.halo_px)

    @property
    def injections(self) -> Sequence[Injection]:
        """Faults that were made on purpose."""
        injected = self.record.injected
        outcomes = () if injected is None else injected.outcomes
        return tuple(itertools.chain(*(parse_faults(outcome.injection) for outcome in outcomes)))

    @property
    def deadline(self) -> Deadline:
        """Of tiles; of a live run's frames."""
        return self.record.deadline if self.record.live is None else self.record.frames.deadline

    def outages(self, sensor: Sensor) -> Iterator[Outage]:
        """Every stretch of tiles in which the sensor was dead, for whatever reason."""
        out = np.isin(self.shown[sensor], (Shown.DEAD, Shown.NO_DATA))
        for first, last in stretches(out):
            if out[first]:
                faults = [fault for fault in self._faults[sensor][first : last + 1] if fault is not None]
                yield Outage(sensor=sensor, first=first, last=last, faults=tuple(dict.fromkeys(faults)))

    def tile_of(self, frame: str, tile: int) -> int:
        """The place in this flight's order of a tile that is numbered within its frame."""
        return self.frames.get(frame, 0) + tile

    def frame_of(self, number: int) -> str:
        """The stamp of the frame that a tile of this flight's order belongs to; empty for a raster."""
        firsts = [*self.frames.values()]
        return [*self.frames][bisect_right(firsts, number) - 1] if firsts else ""

    def _collect(self, rows: Iterable[TileRow]) -> None:
        """The columns of the tile log, in one pass."""
        shown: dict[Sensor, list[Shown]] = {sensor: [] for sensor in Sensor}
        place: list[tuple[int, int, int, int]] = []
        self._faults: dict[Sensor, list[Fault | None]] = {sensor: [] for sensor in Sensor}
        self.frames: dict[str, int] = {}

        def passing() -> Iterator[TileRow]:
            for row in rows:
                if row.frame:
                    self.frames.setdefault(row.frame, len(place))
                place.append((row.target.row, row.target.col, row.target.height, row.target.width))
                for sensor in Sensor:
                    verdict = row.verdicts.get(sensor)
                    shown[sensor].append(Shown.of(verdict))
                    self._faults[sensor].append(None if verdict is None else verdict.fault)
                yield row

        self.times = TileTimes(passing())
        self.shown = {sensor: np.array(values, np.int8) for sensor, values in shown.items()}
        self.place = np.array(place, np.int64).reshape(-1, 4)
