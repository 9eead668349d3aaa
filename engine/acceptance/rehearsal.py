"""Flights with faults through the real pipeline, their maps held against flights without; for :mod:`engine.acceptance`.

Three reference flights come first: both sensors trusted, and each sensor alone. They say, tile by tile, what the map
has to be for every set of sensors that is left. A flight with faults is compared with them while it lasts, so that
nothing of it has to be kept.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from engine.backends.base import Backend, Outputs
from engine.buffers import BufferPool
from engine.contract.bundle import NODATA_CLASS, Manifest
from engine.contract.errors import OutputError
from engine.contract.health import HealthLimits
from engine.contract.sensors import Provenance, Scenario, Sensor, scenario_for
from engine.frames import RasterFrames
from engine.grid import Tile, TileGrid, Window
from engine.health.audit import auditor_of
from engine.health.detection import detection
from engine.health.faults import Injection, Injector, Kind
from engine.health.monitor import Fault, Monitor, State, Verdict
from engine.job import Job, TileReport
from engine.rasters.raster import SensorRasters
from engine.reader import FaultyReader, JobSource, Reader, TileReader
from engine.stitcher import CropStitcher
from engine.stream import jobs_alive, stream

DRIFT = 7
"""A flight over a mirrored raster moves down by a seventh of what it moves right, so that it sees all of it."""
LAYERS = 3
"""Classes, confidence, provenance."""
_GOOD = Verdict(state=State.ALIVE)
"""A tile that speaks for its sensor."""


@dataclass(frozen=True, kw_only=True)
class Flight:
    """Where the tiles of a flight lie on the rasters."""

    rasters: SensorRasters
    tile_px: int
    halo_px: int
    tiles: int

    @property
    def _grid(self) -> TileGrid:
        size = self.rasters.grid
        return TileGrid(height=size.height, width=size.width, tile_px=self.tile_px, halo_px=self.halo_px)

    @property
    def about(self) -> str:
        """In words."""
        own = len(self._grid)
        if own >= self.tiles:
            return f"the first of {own} of the rasters"
        return f"over the rasters and their mirror images (they hold {own})"

    def __iter__(self) -> Iterator[Tile]:
        """The rasters' own tiles if they are enough; else a line that goes on beyond their borders."""
        if len(self._grid) >= self.tiles:
            yield from islice(self._grid.tiles(), self.tiles)
            return
        stride, side = self._grid.rows.stride, self.tile_px
        for index in range(self.tiles):
            row, col = index * (stride // DRIFT), index * stride
            yield Tile(
                index=index,
                reads=Window(row=row, col=col, height=side, width=side),
                target=Window(row=row + self.halo_px, col=col + self.halo_px, height=stride, width=stride),
            )


class _FlightStitcher(CropStitcher):
    """Lays the tiles of a flight."""

    def __init__(self, flight: Flight) -> None:
        size = flight.rasters.grid
        super().__init__(height=size.height, width=size.width, tile_px=flight.tile_px, halo_px=flight.halo_px)
        self._flight = flight

    def __len__(self) -> int:
        return self._flight.tiles

    def tiles(self, start: int = 0) -> Iterator[Tile]:
        """See :meth:`engine.stitcher.Stitcher.tiles`."""
        return islice(self._flight, start, None)


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """How one flight with faults went."""

    tiles: int
    spoiling: int
    """Faults that had something to spoil: where the raster has no data, none has."""
    detected: int
    delay_tiles: int | None
    """The longest, of those that were seen; None: none was."""
    hard: int
    """Hard faults among them, and how many made their sensor dead in the tile where they start."""
    hard_at_once: int
    false_alarms: int
    """Tiles in which a sensor that was left alone was blamed."""
    lost: int
    """Tiles without a usable sensor, but where both were made to fail."""
    outside_tiles: int
    outside_equal: float | None
    """Share of map bytes that equal the flight without faults."""
    inside_tiles: int
    """Tiles that have to be mapped without a sensor: failing, or not believed yet."""
    inside_equal: float | None
    """Share of map bytes that equal the other sensor alone."""
    poisoned: int
    """Tiles mapped from a sensor that was failing hard."""

    @property
    def why(self) -> str:
        """What is wrong; empty if the flight passes."""
        wrong = []
        if self.hard_at_once < self.hard:
            wrong.append(f"{self.hard - self.hard_at_once} hard faults missed or late")
        if self.poisoned:
            wrong.append(f"{self.poisoned} tiles poisoned")
        if self.false_alarms:
            wrong.append(f"{self.false_alarms} false alarms")
        if self.lost:
            wrong.append(f"{self.lost} tiles lost")
        if self.outside_equal not in (None, 1.0):
            wrong.append("the map differs outside")
        if self.inside_equal not in (None, 1.0):
            wrong.append("the map differs inside")
        return ", ".join(wrong)

    @property
    def passed(self) -> bool:
        """Nothing is wrong."""
        return not self.why


class Rehearsal:
    """Flies the same flight again and again. A context manager: the references lie in a temporary folder.

    Args:
        flight: where.
        backend: with the graphs of all scenarios; it stays the caller's.
        manifest: of the bundle it runs.
        limits: of the sensors' health.

    Raises:
        OutputError: there is no room for them.
    """

    references = 3
    """Flights that :meth:`prepare` makes."""

    def __init__(
        self, flight: Flight, backend: Backend, manifest: Manifest, limits: Mapping[Sensor, HealthLimits]
    ) -> None:
        self._flight, self._backend, self._manifest, self._limits = flight, backend, manifest, limits
        self._folder = tempfile.TemporaryDirectory(prefix="engine-acceptance-")
        shape = (len(Scenario), flight.tiles, LAYERS, flight.tile_px, flight.tile_px)
        try:
            self._maps = _reserve(Path(self._folder.name) / "references", shape)
        except OutputError:
            self._folder.cleanup()
            raise
        self._clean: list[Mapping[Sensor, Verdict]] = []
        self.shares = np.zeros((flight.tiles, len(Sensor)))
        """Of the pixels of each tile, how many each sensor has data in; known after :meth:`prepare`."""

    def __len__(self) -> int:
        return self._flight.tiles

    def prepare(self, tile_done: Callable[[], object] = lambda: None) -> None:
        """Fly the references; call before :meth:`fly`."""
        for number, scenario in enumerate(Scenario):
            hidden = [sensor for sensor in Sensor if sensor not in scenario.sensors]
            absent = tuple(Injection(sensor=sensor, kind=Kind.LATE, first=0, last=None) for sensor in hidden)
            recording = _Recording(self._stitcher(), self._maps[number])
            self._stream(recording, absent, None, tile_done)
            self.shares = np.maximum(self.shares, recording.shares)

    def fly(self, injections: Sequence[Injection], tile_done: Callable[[], object] = lambda: None) -> CaseResult:
        """One flight with these faults, its sensors watched. The first must have none: others are held to it."""
        sink = _Comparing(self._stitcher(), self._maps)
        monitor = Monitor(self._limits, auditor_of(self._backend, self._manifest))
        verdicts = self._stream(sink, injections, monitor, tile_done)
        if not injections:
            self._clean = verdicts
        return self._judge(injections, verdicts, sink)

    def _stitcher(self) -> _FlightStitcher:
        return _FlightStitcher(self._flight)

    def _stream(
        self,
        sink: _Recording | _Comparing,
        injections: Sequence[Injection],
        monitor: Monitor | None,
        tile_done: Callable[[], object],
    ) -> list[Mapping[Sensor, Verdict]]:
        """The verdicts of every tile."""
        verdicts: list[Mapping[Sensor, Verdict]] = []

        def report(done: TileReport) -> None:
            verdicts.append(done.verdicts)
            tile_done()

        reader: Reader = TileReader(
            RasterFrames(self._flight.rasters),
            stitch=lambda _grid: self._stitcher(),
            pool=BufferPool(
                map(self._manifest.sensor, Sensor),
                tile_px=self._flight.tile_px,
                count=jobs_alive(self._backend.info.slots) + 1,
            ),
            tile_px=self._flight.tile_px,
        )
        if injections:
            reader = FaultyReader(reader, Injector(injections))
        source = JobSource(reader, monitor=monitor, strict=True)
        stream(source, backend=self._backend, sink=sink, report=report)
        return verdicts

    def _judge(
        self, injections: Sequence[Injection], verdicts: Sequence[Mapping[Sensor, Verdict]], sink: _Comparing
    ) -> CaseResult:
        seen = detection(injections, verdicts)
        spoiling = [outcome for outcome in seen.outcomes if outcome.tiles]
        hard = [outcome for outcome in spoiling if outcome.expected_hard]
        delays = [outcome.delay_tiles for outcome in spoiling if outcome.delay_tiles is not None]
        failing = {sensor: self._failing(sensor, injections) for sensor in Sensor}
        soft = {each.sensor for each in injections if not each.expected_hard}
        outside, inside = [0, 0], [0, 0]
        counts = {"outside": 0, "inside": 0, "lost": 0, "poisoned": 0}
        for tile, (of_tile, clean) in enumerate(zip(verdicts, self._clean, strict=True)):
            usable = {sensor for sensor, verdict in of_tile.items() if verdict.usable}
            whole = {sensor for sensor, verdict in clean.items() if verdict.usable}
            hit = {each.sensor for each in injections if tile in each}
            left = {each for each in whole if not failing[each][tile] and (each not in soft or each in usable)}
            if not left:  # what is not believed yet is better than nothing
                left = {each for each in whole - hit if clean[each] == _GOOD}
            counts["lost"] += bool(left) and not usable
            counts["poisoned"] += any(failing[each][tile] for each in hit & usable)
            if hit & usable & soft:  # used until it is proven: the map is neither flight's
                continue
            place, name = (outside, "outside") if left == whole else (inside, "inside")
            place[0] += int(sink.differing[tile, _reference(scenario_for(left))])
            place[1] += int(sink.bytes[tile])
            counts[name] += 1
        return CaseResult(
            tiles=len(verdicts),
            spoiling=len(spoiling),
            detected=sum(outcome.detected for outcome in spoiling),
            delay_tiles=max(delays, default=None),
            hard=len(hard),
            hard_at_once=sum(outcome.dead_delay_tiles == 0 for outcome in hard),
            false_alarms=sum(seen.false_alarms.values()),
            lost=counts["lost"],
            outside_tiles=counts["outside"],
            outside_equal=_equal(*outside),
            inside_tiles=counts["inside"],
            inside_equal=_equal(*inside),
            poisoned=counts["poisoned"],
        )

    def _failing(self, sensor: Sensor, injections: Sequence[Injection]) -> NDArray[np.bool_]:
        """Tiles in which the sensor must not be used: those of hard faults, and those until it is believed again.

        What the hysteresis ought to do, said once more and without it: a sensor is believed with so many tiles that
        are good in the flight without faults; one without data is not good, and leaves no doubt behind either.
        """
        mine = [each for each in injections if each.sensor is sensor and each.expected_hard]
        failing = np.zeros(len(self), np.bool_)
        distrusted, good = False, 0
        for tile, clean in enumerate(self._clean):
            kinds = {each.kind for each in mine if tile in each}
            data = clean[sensor].fault is not Fault.NO_DATA
            if kinds & {Kind.LATE, Kind.ERROR} or (data and kinds - {Kind.DEAD}):
                distrusted, good = True, 0
            elif distrusted and not kinds and clean[sensor] == _GOOD:
                good += 1
                distrusted = good < self._limits[sensor].alive_after_tiles
            failing[tile] = bool(kinds) or distrusted
        return failing

    def __enter__(self) -> Rehearsal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._folder.cleanup()


def _equal(differing: int, size: int) -> float | None:
    return 1 - differing / size if size else None


def _reserve(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """A memory-mapped array whose every byte is on the disk: a full disk is an error here, not a crash later."""
    size = math.prod(shape)
    try:
        with path.open("wb") as file:
            file.truncate(size)
            if hasattr(os, "posix_fallocate"):  # Linux
                os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        raise OutputError(
            f"the maps of three flights need {size / 1e6:,.0f} MB in {path.parent.parent} ({error.strerror}): free "
            "space, set TMPDIR to another folder, or pass fewer --tiles"
        ) from error
    return np.memmap(path, np.uint8, mode="r+", shape=shape)


def _reference(scenario: Scenario | None) -> int:
    """Its place among the references; the last is a map of nothing."""
    return len(Scenario) if scenario is None else list(Scenario).index(scenario)


class _Recording:
    """A sink that keeps the map of every tile, uint8 [tiles, layers, T, T]."""

    def __init__(self, stitcher: CropStitcher, maps: NDArray[np.uint8]) -> None:
        self._stitcher, self._maps = stitcher, maps
        self.shares = np.zeros((len(maps), len(Sensor)))

    def add(self, job: Job, outputs: Mapping[Scenario, Outputs]) -> None:
        for number, sensor in enumerate(Sensor):
            if sensor in job.observations:
                self.shares[job.tile.index, number] = job.observations[sensor].valid.mean()
        for layer, values in enumerate(_layers(self._stitcher, job, outputs)):
            height, width = values.shape
            self._maps[job.tile.index, layer, :height, :width] = values

    def written(self, report: TileReport) -> None:
        """Nothing is logged."""


class _Comparing:
    """A sink that counts the bytes in which each tile differs from each reference, int64 [tiles, references]."""

    def __init__(self, stitcher: CropStitcher, maps: NDArray[np.uint8]) -> None:
        self._stitcher, self._maps = stitcher, maps
        self.differing = np.zeros((maps.shape[1], len(maps) + 1), np.int64)
        self.bytes = np.zeros(maps.shape[1], np.int64)

    def add(self, job: Job, outputs: Mapping[Scenario, Outputs]) -> None:
        tile = job.tile.index
        for layer, (values, nothing) in enumerate(
            zip(_layers(self._stitcher, job, outputs), (NODATA_CLASS, 0, Provenance.NONE), strict=True)
        ):
            height, width = values.shape
            for number, reference in enumerate(self._maps[:, tile, layer, :height, :width]):
                self.differing[tile, number] += np.count_nonzero(values != reference)
            self.differing[tile, -1] += np.count_nonzero(values != nothing)
            self.bytes[tile] += values.size

    def written(self, report: TileReport) -> None:
        """Nothing is logged."""


def _layers(
    stitcher: CropStitcher, job: Job, outputs: Mapping[Scenario, Outputs]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint8]]:
    (block,) = stitcher.add(job.tile, job.provenance, outputs)
    return block.classes, block.confidence, block.provenance
