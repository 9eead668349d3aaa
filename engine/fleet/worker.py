"""Maps units one after the other with engines that stay warm; the same in one process, in a shard and on Ray."""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterable
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
from engine.fleet.marker import Marker
from engine.fleet.store import Store
from engine.fleet.units import Extras, Unit, unit_key
from engine.journal import Journal
from engine.observer import Observer
from engine.options import in_options
from engine.record import RunRecord
from engine.report import write_report
from engine.request import RunRequest
from engine.runner import Engines, open_engines, run

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""A unit that fails, or whose process dies, is tried again until it was tried so often."""
FOR_GOOD = (UsageError, RasterFormatError, GridError)
"""Failures that another attempt does not change."""


class State(StrEnum):
    """What became of a unit."""

    MAPPED = "mapped"
    THERE = "there"
    """It was published before, by the same key, and is whole."""
    FAILED = "failed"
    CLAIMED = "claimed"
    """Somebody else maps it now."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a unit, this time."""

    unit: str
    state: State
    marker: Marker | None = None
    """Where it is published."""
    reason: str = ""
    """Why it failed."""
    again: bool = False
    """Another attempt may do better."""
    seconds: float = 0.0


class Worker:
    """Maps units. A context manager; use from the main thread, which alone hears signals.

    Args:
        options: of the command, see :mod:`engine.options`.
        store: where maps are published.
        scenarios: whose graphs may be needed.

    Raises:
        BundleError: the bundle cannot be trusted.
        UsageError: polygons are asked for and cannot be made.
    """

    def __init__(self, options: argparse.Namespace, store: Store, scenarios: Iterable[Scenario]) -> None:
        self._options = argparse.Namespace(**{**vars(options), "overwrite": False, "resume": False})
        self._overwrite = options.overwrite
        self._store, self._scenarios = store, tuple(scenarios)
        self._extras = Extras.of(options)
        if self._extras.polygons is not None:  # else all units would fail where the library is missing
            replace(self._extras.polygons, path=Path(os.devnull) / self._extras.polygons.path).check()
        self.bundle = Bundle.load(options.bundle, installed_policy(options.require_signature))
        self._stack = ExitStack()
        self._engines: Engines | None = None
        self.name = f"{socket.gethostname()}:{os.getpid()}"

    def map(self, unit: Unit, observer: Observer | None = None) -> Outcome:
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
            outcome = Outcome(unit=unit.name, state=State.FAILED, reason=in_options(str(error)), again=again)
            if isinstance(error, BackendError):
                self.close()  # the next unit opens it anew
        except Exception as error:  # whatever is wrong with one unit, the others go on
            log.debug("unit %s", unit.name, exc_info=True)
            reason = one_line(f"internal error: {type(error).__name__}: {error}")
            outcome = Outcome(unit=unit.name, state=State.FAILED, reason=reason, again=True)
        return msgspec.structs.replace(outcome, seconds=round(time.perf_counter() - began, 3))

    def close(self) -> None:
        """Let go of the engines; the next unit opens them again."""
        self._engines = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _map(self, unit: Unit, observer: Observer | None) -> Outcome:
        if unit.broken:
            raise UsageError(unit.broken)
        request = unit.request(self._options, Path())
        key = unit_key(request, self.bundle, self._extras)
        if (there := self._published(unit, key)) is not None:
            return there
        with self._store.claim(key) as claim:
            if claim is None:
                return Outcome(unit=unit.name, state=State.CLAIMED)
            if (there := self._published(unit, key)) is not None:  # while this one looked
                return there
            if claim.died >= ATTEMPTS:
                reason = f"{claim.died} processes ended while they mapped it: see their logs, and the memory they had"
                return Outcome(unit=unit.name, state=State.FAILED, reason=reason)
            began = time.perf_counter()
            record = self._run(request, claim.folder, observer)
            self._add_extras(claim.folder)
            marker = Marker.of(
                unit.name,
                key=key,
                record=record,
                folder=claim.folder,
                worker=self.name,
                seconds=time.perf_counter() - began,
            )
            first = self._store.publish(claim, marker)
            return Outcome(unit=unit.name, state=State.MAPPED if first else State.THERE, marker=marker)

    def _add_extras(self, folder: Path) -> None:
        polygons = self._extras.polygons
        if polygons is not None:
            replace(polygons, path=folder / polygons.path, overwrite=True).write(folder, bar=False)
        if self._extras.report:
            write_report(folder)

    def _published(self, unit: Unit, key: str) -> Outcome | None:
        """What is there already."""
        marker = self._store.marker(unit.name)
        if marker is None:
            return None
        if marker.key != key:
            if self._overwrite:
                return None
            raise UsageError(
                f"the maps of {unit.name} were made of other rasters, by another bundle or with other options (by "
                f"version {marker.version}): pass --overwrite to replace them, or another --output"
            )
        if not self._store.whole(marker):
            log.warning("the maps of %s are not as they were published: it is mapped again", unit.name)
            return None
        return Outcome(unit=unit.name, state=State.THERE, marker=marker)

    def _run(self, request: RunRequest, folder: Path, observer: Observer | None) -> RunRecord:
        """Map into a folder of this machine, going on with what an earlier attempt left there."""
        if self._engines is None:
            self._engines = open_engines(request, self.bundle, self._scenarios, self._stack)
        if Journal(folder).ours:
            try:
                return run(replace(request, output=folder, resume=True), observer, self._engines)
            except ResumeError as error:
                log.warning("%s is begun anew: %s", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return run(replace(request, output=folder), observer, self._engines)
