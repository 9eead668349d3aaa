"""Frames: what the sensors delivered at one moment, and where frames come from.

A raster is a flight of one frame. Everything behind a :class:`FrameSource` is the same for a pair of rasters
(:class:`RasterFrames`), a folder in which frames land (:class:`engine.live.frames.FolderFrames`) and arrays in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.contract.errors import RasterOpenError
from engine.contract.sensors import Sensor
from engine.health.monitor import Absent
from engine.rasters.georeference import Grid
from engine.rasters.names import RasterName
from engine.rasters.raster import Observation, SensorRasters
from engine.stitcher import Stitcher


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What there is of one moment."""

    stamp: str = ""
    """Its name, and that of the folder of its maps. Empty for a raster, whose maps go where the run's results go."""
    files: Mapping[Sensor, RasterName] = field(default_factory=dict)
    """Whole, as far as can be told without decoding."""
    absent: Mapping[Sensor, Absent] = field(default_factory=dict)
    """Sensors that delivered nothing to the whole frame."""
    first_at: float | None = None
    """``time.monotonic()`` when the first of its files was whole (or given up)."""
    available_at: float | None = None
    """When the last of them was, or the wait for it was over. None: it was always there, and each tile is available
    when its reading begins."""
    dropped: bool = False
    """It is left out because the maps are too far behind."""


class Rasters(Protocol):
    """The sensors' pixels of one frame on one grid; :class:`engine.rasters.raster.SensorRasters` is one."""

    @property
    def grid(self) -> Grid:
        """The grid."""

    def read_into(self, row: int, col: int, out: Mapping[Sensor, Observation]) -> dict[Sensor, RasterOpenError]:
        """One window of every sensor, which may reach beyond the grid; returns what could not be read."""

    def describe(self) -> dict[str, dict[str, Any]]:
        """What the raster of each sensor is, as :class:`engine.record.RasterUsed` holds it."""


@dataclass(frozen=True, kw_only=True)
class OpenFrame:
    """A frame that is being mapped.

    ``grid`` and ``stitcher`` are None for a frame without a map: none of its files could be used, or it was dropped.
    It passes the pipeline as one tile without pixels, so that it is judged, counted and logged in its turn.
    """

    frame: Frame
    absent: Mapping[Sensor, Absent] = field(default_factory=dict)
    """Sensors that deliver nothing to the whole frame."""
    grid: Grid | None = None
    inputs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What its rasters are, see :meth:`Rasters.describe`."""
    stitcher: Stitcher | None = None

    @property
    def tiles(self) -> int:
        """How many jobs it makes."""
        return 1 if self.stitcher is None else len(self.stitcher)


class FrameSource(Protocol):
    """Where frames come from; iterated once, in the read thread."""

    live: bool
    """Frames come from the world, for as long as it likes. So a signal is a good end and not an interruption, a frame
    is published as soon as it is mapped, an interrupted run goes on with the next frame rather than within one, and a
    sensor that cannot be read costs its share of a frame and never the run."""

    def frames(self, waits: Callable[[bool], None]) -> Iterator[Frame]:
        """Frames in order.

        Args:
            waits: told when the source begins (True) and ceases (False) to wait for a frame.
        """

    def open(self, frame: Frame) -> AbstractContextManager[tuple[Rasters | None, Mapping[Sensor, Absent]]]:
        """For the block: the rasters of a frame that can be used together, and why the others cannot."""

    def finish(self) -> None:
        """Begin no other frame, from any thread: whatever the source waits for, it wakes up."""

    def done(self, stamp: str) -> None:
        """The frame has been dealt with."""

    def identity(self) -> Mapping[str, Any]:
        """What must be the same for a run to be resumed; JSON values."""


class RasterFrames:
    """One frame that is there from the start: a pair of rasters, or one.

    Args:
        rasters: opened; whoever opened them closes them.
        paths: where they are.
    """

    live = False

    def __init__(self, rasters: Rasters, paths: Mapping[Sensor, RasterName] | None = None) -> None:
        self.rasters = rasters
        self._frame = Frame(files=paths or {})
        self._finishing = False

    def frames(self, waits: Callable[[bool], None] = lambda _: None) -> Iterator[Frame]:
        """The one frame."""
        if not self._finishing:
            yield self._frame

    def open(self, frame: Frame) -> AbstractContextManager[tuple[Rasters, Mapping[Sensor, Absent]]]:
        """The rasters, which stay open."""
        return nullcontext((self.rasters, {}))

    def finish(self) -> None:
        """Do not begin."""
        self._finishing = True

    def done(self, stamp: str) -> None:
        """There is no other."""

    def identity(self) -> Mapping[str, Any]:
        """The files and how they are read."""
        assert isinstance(self.rasters, SensorRasters)
        return self.rasters.identity()
