"""The blocks of a raster that is too large for one worker: where they are published, and what becomes of them.

::

    OUTPUT/.fleet/blocks/<key>/survey/   what the health of the sensors is in every tile (:mod:`engine.rows`)
    OUTPUT/.fleet/blocks/<key>/<n>/      the maps of a block of rows, with a marker as any unit has

Whoever takes the unit first makes the survey. Then blocks are units for whoever is free, and who takes the unit once
all are there composes and publishes it; the blocks are deleted.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from engine.contract.errors import InterruptedRunError, OutputError
from engine.fleet.marker import Marker, Published
from engine.fleet.store import FOLDER, Claim, Store
from engine.observer import Observer
from engine.reader import Part
from engine.record import GridUsed
from engine.request import RunRequest
from engine.rows import Cut, compose, part_of, survey
from engine.runner import OpenBundle
from engine.version import own_version


@dataclass(frozen=True, kw_only=True)
class UnitBlocks:
    """Those of one unit.

    Attributes:
        request: that maps the whole.
        opened: of the worker.
        store: where they are published.
        unit: the key of the whole, and how it is cut.
        cut: the blocks; None where only their names matter.
    """

    request: RunRequest
    opened: OpenBundle
    store: Store
    unit: str
    cut: Cut | None

    @property
    def folder(self) -> str:
        """Of all that belongs to the unit."""
        return f"{FOLDER}/blocks/{self.unit}"

    def place(self, number: int) -> str:
        """Where a block is published."""
        return f"{self.folder}/{number:05d}"

    def key(self, number: int) -> str:
        """By what a block is known."""
        return f"{self.unit}-{number:05d}"

    def missing(self, folder: Path, worker: str, watcher: Observer) -> tuple[int, ...]:
        """UnitBlocks that are still to be mapped; makes the survey where there is none.

        Args:
            folder: of this machine, of whoever has claimed the unit.
            worker: by its name.
            watcher: is told of each tile of the survey.

        Raises:
            InterruptedRunError: a signal came during the survey, which begins anew then.
        """
        assert self.cut is not None
        if self._there(f"{self.folder}/survey") is None:
            self._survey(folder.with_name(f"{folder.name}-survey"), worker, watcher)
        return tuple(number for number in range(self.cut.count) if self._there(self.place(number)) is None)

    def part(self, number: int) -> Part:
        """A block as a run takes it.

        Raises:
            OutputError: the survey is gone.
        """
        assert self.cut is not None
        return part_of(self.cut, number, self._fetched(f"{self.folder}/survey"))

    def compose(self, folder: Path) -> None:
        """Put all blocks into the unfinished run of the whole, see :func:`engine.rows.compose`."""
        assert self.cut is not None
        blocks = [self._fetched(self.place(number)) for number in range(self.cut.count)]
        shutil.rmtree(folder, ignore_errors=True)  # of a worker that died over it
        surveyed = self._fetched(f"{self.folder}/survey")
        compose(replace(self.request, output=folder), self.opened, self.cut, surveyed, blocks)

    def forget(self) -> None:
        """Delete them all."""
        self.store.forget(self.folder)

    def _there(self, place: str) -> Marker | None:
        marker = self.store.marker(place)
        return marker if marker is not None and self.store.whole(marker) else None

    def _fetched(self, place: str) -> Path:
        marker = self.store.marker(place)
        if marker is None:
            raise OutputError(f"{place} is gone: somebody else has published its unit, or deleted it")
        return self.store.fetch(marker)

    def _survey(self, folder: Path, worker: str, watcher: Observer) -> None:
        assert self.cut is not None
        grid = self.cut.grid
        shutil.rmtree(folder, ignore_errors=True)
        began = datetime.now(UTC)
        try:
            survey(self.request, self.opened, folder, watcher)
        except KeyboardInterrupt as error:
            raise InterruptedRunError("stopped during the survey of a large raster: it begins anew") from error
        marker = Marker(
            unit=f"{self.folder}/survey",
            key=f"{self.unit}-survey",
            version=own_version(),
            bundle=self.opened.bundle.digest,
            files={path.name: Published.of(path) for path in sorted(folder.iterdir())},
            published_utc=datetime.now(UTC).isoformat(timespec="seconds"),
            worker=worker,
            seconds=round((datetime.now(UTC) - began).total_seconds(), 3),
            mpx=grid.height * grid.width / 1e6,
            tiles=len(grid),
            tiles_lost=0,
            grid=GridUsed(width=grid.width, height=grid.height, crs=None, transform=None, gsd_m=None),
            degrees=None,
            class_pixels={},
        )
        self.store.publish(Claim(folder=folder, died=0), marker)
