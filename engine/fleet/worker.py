"""Maps units one after the other with a backend that stays warm; the same in one process, in a shard and on Ray."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Self

import msgspec

from engine.contract.bundle import Bundle
from engine.contract.errors import (
    BackendError,
    EngineError,
    GridError,
    InterruptedRunError,
    RasterFormatError,
    ResumeError,
    UsageError,
    one_line,
)
from engine.contract.sensors import Scenario
from engine.contract.trust import installed_policy
from engine.fleet.blocks import UnitBlocks
from engine.fleet.marker import Marker
from engine.fleet.store import Store
from engine.fleet.units import Extras, Unit, unit_key
from engine.grid import TileGrid
from engine.journal import Journal
from engine.observer import Observer
from engine.options import in_options
from engine.plan import Choose
from engine.reader import Part
from engine.record import RunRecord
from engine.report import write_report
from engine.request import RunRequest
from engine.rows import Cut
from engine.runner import OpenBundle, open_bundle, run

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""A unit that fails, or whose process dies, is tried again until it was tried so often."""
FOR_GOOD = (UsageError, RasterFormatError, GridError)
"""Failures that another attempt does not change."""


class UnitState(StrEnum):
    """What became of a unit."""

    MAPPED = "mapped"
    THERE = "there"
    """It was published before, by the same key, and is whole."""
    FAILED = "failed"
    CLAIMED = "claimed"
    """Somebody else maps it now."""
    CUT = "cut"
    """It is too large for one: its blocks come first."""


class UnitOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a unit, this time."""

    unit: str
    state: UnitState
    marker: Marker | None = None
    """Where it is published."""
    reason: str = ""
    """Why it failed."""
    again: bool = False
    """Another attempt may do better."""
    seconds: float = 0.0
    blocks: tuple[int, ...] = ()
    """Those that are to be mapped before it."""


class _TooLargeError(Exception):
    """A raster is to be cut."""

    def __init__(self, cut: Cut) -> None:
        super().__init__()
        self.cut = cut


class Worker:
    """Maps units. A context manager; use from the main thread, which alone hears signals.

    Args:
        options: of the command, see :mod:`engine.options`.
        store: where maps are published.
        scenarios: whose graphs may be needed.
        block_mpx: a raster that is larger is cut into blocks of about so many megapixels; None cuts none.

    Raises:
        BundleError: the bundle cannot be trusted.
        UsageError: polygons are asked for and cannot be made.
    """

    def __init__(
        self,
        options: argparse.Namespace,
        store: Store,
        scenarios: Iterable[Scenario],
        *,
        block_mpx: float | None = None,
    ) -> None:
        self._block_px = None if block_mpx is None else block_mpx * 1e6
        self._options = argparse.Namespace(**{**vars(options), "overwrite": False, "resume": False})
        self._overwrite = options.overwrite
        self._store, self._scenarios = store, tuple(scenarios)
        self._extras = Extras.of(options)
        if self._extras.polygons is not None:  # else all units would fail where the library is missing
            replace(self._extras.polygons, path=Path(os.devnull) / self._extras.polygons.path).check()
        self.bundle = Bundle.load(options.bundle, installed_policy(options.require_signature))
        self._stack = ExitStack()
        self._open_bundle: OpenBundle | None = None
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def map(self, unit: Unit, observer: Observer | None = None) -> UnitOutcome:
        """Map a unit and publish it, unless that is done.

        Args:
            unit: any of the list's.
            observer: watches the run.

        Raises:
            InterruptedRunError: a signal came; the unit goes on where it stopped when it is mapped again.
        """
        began = time.perf_counter()
        try:
            outcome = self._map(unit, observer)
        except InterruptedRunError:
            raise
        except EngineError as error:
            again = not isinstance(error, FOR_GOOD)
            outcome = UnitOutcome(unit=unit.name, state=UnitState.FAILED, reason=in_options(str(error)), again=again)
            if isinstance(error, BackendError):
                self.close()  # the next unit opens it anew
        except Exception as error:  # whatever is wrong with one unit, the others go on
            log.debug("unit %s", unit.name, exc_info=True)
            reason = one_line(f"internal error: {type(error).__name__}: {error}")
            outcome = UnitOutcome(unit=unit.name, state=UnitState.FAILED, reason=reason, again=True)
        return msgspec.structs.replace(outcome, seconds=round(time.perf_counter() - began, 3))

    def close(self) -> None:
        """Let go of the backend; the next unit opens it again."""
        self._open_bundle = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _map(self, unit: Unit, observer: Observer | None) -> UnitOutcome:
        if unit.broken:
            raise UsageError(unit.broken)
        request = unit.request(self._options, Path())
        key = unit_key(request, self.bundle, self._extras)
        if (there := self._published(unit.name, key)) is not None:
            return there
        if unit.block is not None:
            return self._map_block(request, key, unit, observer)
        return self._once(unit.name, key, lambda folder: self._make(request, key, unit, folder, observer))

    def _once(self, name: str, key: str, make: Callable[[Path], RunRecord | UnitOutcome]) -> UnitOutcome:
        """Have something made and published by one process at a time.

        Args:
            name: where it is published.
            key: by what it is known.
            make: makes it in a folder; an outcome says why that is not done now.
        """
        with self._store.claim(key) as claim:
            if claim is None:
                return UnitOutcome(unit=name, state=UnitState.CLAIMED)
            if (there := self._published(name, key)) is not None:  # while this one looked
                return there
            if claim.died >= ATTEMPTS:
                reason = f"{claim.died} processes ended while they mapped it: see their logs, and the memory they had"
                return UnitOutcome(unit=name, state=UnitState.FAILED, reason=reason)
            began = time.perf_counter()
            made = make(claim.folder)
            if isinstance(made, UnitOutcome):
                return made
            seconds = time.perf_counter() - began
            marker = Marker.of(name, key=key, record=made, folder=claim.folder, worker=self.name, seconds=seconds)
            first = self._store.publish(claim, marker)
            return UnitOutcome(unit=name, state=UnitState.MAPPED if first else UnitState.THERE, marker=marker)

    def _make(
        self, request: RunRequest, key: str, unit: Unit, folder: Path, observer: Observer | None
    ) -> RunRecord | UnitOutcome:
        """The maps of a unit; of one that is too large once all its blocks are there."""
        try:
            record = self._run(request, folder, observer, part=self._too_large)
        except _TooLargeError as found:
            blocks = self._blocks(request, key, found.cut)
            missing = blocks.missing(folder, self.name, observer or Observer())
            if missing:
                return UnitOutcome(unit=unit.name, state=UnitState.CUT, blocks=missing)
            blocks.compose(folder)
            record = run(replace(request, output=folder, resume=True), observer, self._open_bundle)
            blocks.forget()
        self._add_extras(folder)
        return record

    def _too_large(self, grid: TileGrid) -> None:
        """Raises where a raster is to be cut."""
        if self._block_px is not None and grid.height * grid.width > self._block_px:
            cut = Cut.of(grid, self._block_px)
            if cut.count > 1:
                raise _TooLargeError(cut)

    def _map_block(self, request: RunRequest, key: str, unit: Unit, observer: Observer | None) -> UnitOutcome:
        assert unit.block is not None
        number = unit.block

        def part(grid: TileGrid) -> Part:
            assert self._block_px is not None
            return self._blocks(request, key, Cut.of(grid, self._block_px)).part(number)

        blocks = self._blocks(request, key, None)
        made = self._once(
            blocks.place(number),
            blocks.key(number),
            lambda folder: self._run(replace(request, resume=False), folder, observer, part=part),
        )
        return msgspec.structs.replace(made, unit=unit.name)

    def _blocks(self, request: RunRequest, key: str, cut: Cut | None) -> UnitBlocks:
        assert self._block_px is not None
        return UnitBlocks(
            request=request,
            opened=self._opened(request),
            store=self._store,
            unit=f"{key}-{self._block_px:.0f}",
            cut=cut,
        )

    def _add_extras(self, folder: Path) -> None:
        polygons = self._extras.polygons
        if polygons is not None:
            replace(polygons, path=folder / polygons.path, overwrite=True).write(folder, bar=False)
        if self._extras.report:
            write_report(folder)

    def _published(self, name: str, key: str) -> UnitOutcome | None:
        """What is there already."""
        marker = self._store.marker(name)
        if marker is None:
            return None
        if marker.key != key:
            if self._overwrite:
                return None
            raise UsageError(
                f"the maps of {name} were made of other rasters, by another bundle or with other options (by "
                f"version {marker.version}): pass --overwrite to replace them, or another --output"
            )
        if not self._store.whole(marker):
            log.warning("the maps of %s are not as they were published: it is mapped again", name)
            return None
        return UnitOutcome(unit=name, state=UnitState.THERE, marker=marker)

    def _opened(self, request: RunRequest) -> OpenBundle:
        if self._open_bundle is None:
            self._open_bundle = open_bundle(request, self.bundle, self._scenarios, self._stack)
        return self._open_bundle

    def _run(self, request: RunRequest, folder: Path, observer: Observer | None, *, part: Choose) -> RunRecord:
        """Map into a folder of this machine, going on with what an earlier attempt left there."""
        opened = self._opened(request)
        if Journal(folder).ours:
            try:
                return run(replace(request, output=folder, resume=True), observer, opened, part=part)
            except ResumeError as error:
                log.warning("%s is begun anew: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return run(replace(request, output=folder), observer, opened, part=part)
