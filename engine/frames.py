"""Frames: what the sensors delivered at one moment, and where frames come from.

A raster is a flight of one frame. Everything behind a :class:`FrameSource` is the same for a pair of rasters
(:class:`RasterFrames`), a folder in which frames land (:class:`engine.live.frames.FolderFrames`) and arrays in memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from engine.contract.bands import SensorSpec
from engine.contract.errors import GridError, RasterOpenError, RasterSilentError
from engine.contract.sensors import Sensor
from engine.deadline import MOST_HANGING, Caller, DeadlineError, too_many_hang
from engine.grid import Window
from engine.health.monitor import Absent
from engine.rasters.georeference import Grid
from engine.rasters.height_models import HeightModels
from engine.rasters.names import local_file, short_name
from engine.rasters.raster import RasterInput, SensorRasters
from engine.rasters.sources import Observation
from engine.rasters.stretch import Stretch
from engine.resolution import Resolution
from engine.stitcher import Stitcher


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What there is of one moment."""

    stamp: str = ""
    """Its name, and that of the folder of its maps. Empty for a raster, whose maps go where the run's results go."""
    files: Mapping[Sensor, RasterInput] = field(default_factory=dict)
    """Of a landing folder: whole, as far as can be told without decoding."""
    absent: Mapping[Sensor, Absent] = field(default_factory=dict)
    """Sensors that delivered nothing to the whole frame."""
    first_at: float | None = None
    """``time.monotonic()`` when the first of its files was whole (or given up)."""
    available_at: float | None = None
    """When the last of them was, or the wait for it was over. None: it was always there, and each tile is available
    when its reading begins."""
    dropped: bool = False
    """It is left out because the maps are too far behind."""


def name_of(given: RasterInput) -> str:
    """The last part of a raster's name, for logs and records; empty for an array."""
    if isinstance(given, np.ndarray):
        return ""
    if isinstance(given, HeightModels):
        return " minus ".join(map(short_name, given.files))
    return short_name(given if isinstance(given, str | Path) else given.name)


class Rasters(Protocol):
    """The sensors' pixels of one frame on one grid; :class:`engine.rasters.raster.SensorRasters` is one."""

    @property
    def grid(self) -> Grid:
        """The grid."""

    def read_into(
        self, window: Window, out: Mapping[Sensor, Observation]
    ) -> tuple[dict[Sensor, Observation], dict[Sensor, RasterOpenError]]:
        """One window of every sensor, which may reach beyond the grid, and what could not be read."""

    def in_order(self, windows: Callable[[], Iterator[Window]], *, readers: int = 1) -> AbstractContextManager[Rasters]:
        """For the block: the same, to be read by these windows and in this order."""

    def inside(self, window: Window) -> NDArray[np.bool_] | None:
        """Which pixels of a window are to be mapped, bool [h, w]; None: all."""

    def identity(self) -> Mapping[str, Any]:
        """What must be unchanged for a run to be resumed; plain values, ready for JSON."""

    def describe(self) -> dict[str, dict[str, Any]]:
        """What the raster of each sensor is, as :class:`engine.record.RasterUsed` holds it."""


TOUCHED_BYTES = 64 << 10


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


@dataclass(frozen=True, kw_only=True)
class RasterOpener:
    """How the rasters of every frame are opened; see :meth:`engine.rasters.raster.SensorRasters.open`."""

    specs: Mapping[Sensor, SensorSpec]
    tile_px: int
    rgir_bands: tuple[int, int, int] | None = None
    ndsm_scale_m: float | None = None
    stretch: Stretch | None = None
    drivers: tuple[str, ...] | None = None
    """Of GDAL, for files from outside: nothing but a regular file of this machine is opened then, by one of them."""
    max_px: int | None = None
    """The largest frame that is mapped; None maps any."""
    resolution: Resolution | None = None
    """At which they are to be mapped."""
    limit_s: float | None = None
    """Longest wait for the disk of a file that is to be opened; None waits without end."""
    goes_on: bool = False
    """A file that takes longer for a window is an error then and ever after: whoever reads goes on without it."""

    def open(self, files: Mapping[Sensor, RasterInput]) -> SensorRasters:
        """The rasters on one grid.

        Raises:
            InputError: one cannot be used, or they do not fit together.
        """
        if self.limit_s is not None:
            self._await(files, self.limit_s)
        rasters = SensorRasters.open(
            files,
            self.specs,
            rgir_bands=self.rgir_bands,
            ndsm_scale_m=self.ndsm_scale_m,
            stretch=self.stretch,
            window_px=self.tile_px,
            ordered=True,
            drivers=self.drivers,
            limit_s=self.limit_s if self.goes_on else None,
        )
        grid = rasters.grid
        if self.max_px is not None and grid.width * grid.height > self.max_px:
            rasters.close()
            raise GridError(
                f"a frame has at most {self.max_px / 1e6:,.0f} Mpx; {', '.join(map(name_of, files.values()))} "
                f"says {grid.width} x {grid.height} px: map it as a raster"
            )
        if self.resolution is not None:
            try:
                self.resolution.scale(grid.gsd_m)
            except GridError:
                rasters.close()
                raise
        return rasters

    def _await(self, files: Mapping[Sensor, RasterInput], limit_s: float) -> None:
        """See that the disks answer. While GDAL opens a file, rasterio lets no other thread of Python run: a disk that
        hangs would stop the whole process, and whoever watches it.

        Raises:
            RasterSilentError: one does not.
        """
        if self.goes_on and too_many_hang():
            raise RasterSilentError(f"{MOST_HANGING} reads hang already: see whether the disk of the frames answers")
        with closing(Caller(limit_s)) as within:
            for sensor, given in files.items():
                for name in given.files if isinstance(given, HeightModels) else (given,):
                    path = local_file(name) if isinstance(name, str | Path) else None
                    try:
                        within(partial(_touch, path))
                    except DeadlineError as error:
                        raise RasterSilentError(
                            f"{path} cannot be opened: {error}; see whether its disk answers", sensor
                        ) from error


def _touch(path: Path | None) -> None:
    """Read a file's first and last bytes; what is wrong with it is for GDAL to say."""
    if path is None:
        return
    with suppress(OSError):
        if path.is_file():  # else opening might wait for a partner
            with path.open("rb") as stream:
                stream.read(TOUCHED_BYTES)
                stream.seek(-min(TOUCHED_BYTES, path.stat().st_size), os.SEEK_END)
                stream.read(TOUCHED_BYTES)


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

    def __init__(self, rasters: Rasters, paths: Mapping[Sensor, RasterInput] | None = None) -> None:
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
        return self.rasters.identity()
