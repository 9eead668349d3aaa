"""Who watches a run: one interface, whose methods default to nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from engine.backends.base import BackendInfo
from engine.backends.resilient import BackendEvent
from engine.contract.sensors import Sensor
from engine.frame_log import FrameRecord
from engine.job import TileReport
from engine.journal import Switch
from engine.map_block import MapBlock

if TYPE_CHECKING:  # what a run is planned from and what it leaves: nobody who only watches tiles needs them
    from engine.plan import Plan
    from engine.record import GridUsed, RasterUsed, RunRecord


class Observer:
    """Watches a run. Called in the thread that called :func:`engine.runner.run`, unless a method says otherwise."""

    sees_pixels = False
    """Whether :meth:`mapped` is to be told of what a resumed run had mapped before."""

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """All checks passed and the backend is warm; a resumed run goes on with ``first_tile``."""

    def waiting(self, waits: bool) -> None:
        """The run begins (True) or ceases (False) to wait for the world: for a frame, or for a tile to be due.

        Called from the read thread.
        """

    def frame_begun(self, stamp: str, grid: GridUsed, inputs: Mapping[Sensor, RasterUsed]) -> None:
        """The maps of a frame begin. Called from the write thread; a resumed run's hold pixels already."""

    def mapped(self, block: MapBlock) -> None:
        """More pixels of that frame's maps are finished. Called from the write thread; copy what is to be kept."""

    def switched(self, stamp: str, switch: Switch) -> None:
        """The next tile is the first that another scenario maps. Called from the write thread."""

    def tile_done(self, report: TileReport) -> None:
        """One more tile is in the maps."""

    def frame_done(self, record: FrameRecord) -> None:
        """The maps of one more frame are in place, or it is known that there are none.

        Called from the write thread while a live run lasts.
        """

    def backend_changed(self, event: BackendEvent, backend: BackendInfo) -> None:
        """Something happened to a backend; ``backend`` is what infers now. Before the next tile is done."""

    def publishing(self) -> None:
        """All tiles are done; maps are being written as Cloud-Optimised GeoTIFF."""

    def finished(self, record: RunRecord) -> None:
        """The results are in place."""


class Observers(Observer):
    """Several observers as one, told in this order."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)
        self.sees_pixels = any(each.sees_pixels for each in self._observers)

    def started(self, plan: Plan, backend: BackendInfo, *, first_tile: int) -> None:
        """See :meth:`Observer.started`."""
        for each in self._observers:
            each.started(plan, backend, first_tile=first_tile)

    def waiting(self, waits: bool) -> None:
        """See :meth:`Observer.waiting`."""
        for each in self._observers:
            each.waiting(waits)

    def frame_begun(self, stamp: str, grid: GridUsed, inputs: Mapping[Sensor, RasterUsed]) -> None:
        """See :meth:`Observer.frame_begun`."""
        for each in self._observers:
            each.frame_begun(stamp, grid, inputs)

    def mapped(self, block: MapBlock) -> None:
        """See :meth:`Observer.mapped`."""
        for each in self._observers:
            each.mapped(block)

    def switched(self, stamp: str, switch: Switch) -> None:
        """See :meth:`Observer.switched`."""
        for each in self._observers:
            each.switched(stamp, switch)

    def tile_done(self, report: TileReport) -> None:
        """See :meth:`Observer.tile_done`."""
        for each in self._observers:
            each.tile_done(report)

    def frame_done(self, record: FrameRecord) -> None:
        """See :meth:`Observer.frame_done`."""
        for each in self._observers:
            each.frame_done(record)

    def backend_changed(self, event: BackendEvent, backend: BackendInfo) -> None:
        """See :meth:`Observer.backend_changed`."""
        for each in self._observers:
            each.backend_changed(event, backend)

    def publishing(self) -> None:
        """See :meth:`Observer.publishing`."""
        for each in self._observers:
            each.publishing()

    def finished(self, record: RunRecord) -> None:
        """See :meth:`Observer.finished`."""
        for each in self._observers:
            each.finished(record)
