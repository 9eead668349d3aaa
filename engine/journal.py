"""What an unfinished run leaves behind, so that ``resume`` ends with the bytes of an uninterrupted one.

While a run is under way its output folder holds ``.unfinished/``::

    journal.json   the run's key (everything its bytes depend on), how many tiles are safely in the maps, the
                   statistics so far and what the health monitor knew
    tiles.csv      the tile log
    frame/         the uncompressed maps and the preview of the frame under way

The journal is replaced last, once the maps and the tile log are on the disk, and is on the disk itself when the
checkpoint ends: what it promises survives a power cut, not just a killed process.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from operator import add
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.contract.atomic import sync, write_whole
from engine.contract.bundle import NODATA_CLASS
from engine.contract.errors import OutputError, ResumeError
from engine.contract.formats import MalformedError, from_json, read_file
from engine.contract.sensors import PROVENANCE_LABELS, Provenance, Scenario, Sensor
from engine.digested_file import FilePrefix
from engine.health.history import SensorHistory
from engine.job import Job, pixels_of
from engine.map_block import MapBlock
from engine.ownership import clear_marked, is_marked, is_unmarked, mark

FOLDER = ".unfinished"
_MARK = "unfinished run"
_HEAD, _NECK = b'{"sha256":"', b'",'
MAX_SWITCHES = 1000


@dataclass(frozen=True, kw_only=True)
class Switch:
    """From this tile on most pixels are mapped by another scenario."""

    tile: int
    row: int
    col: int
    scenario: Scenario
    reason: str


@dataclass(kw_only=True)
class PixelCounts:
    """Finished map pixels, by what they were mapped from and by class."""

    provenance: list[int] = field(default_factory=lambda: [0] * len(Provenance))
    """By value of :class:`~engine.contract.sensors.Provenance`."""
    classes: list[int] = field(default_factory=lambda: [0] * 256)
    """By class index; the last is no class."""

    @classmethod
    def of(cls, block: MapBlock) -> PixelCounts:
        """Those of a block."""
        provenance = pixels_of(block.provenance)
        classes, left = [0] * 256, block.classes.size
        for value in (NODATA_CLASS, *range(NODATA_CLASS)):  # until all are found: they are few
            if not left:
                break
            classes[value] = int(np.count_nonzero(block.classes == value))
            left -= classes[value]
        return cls(provenance=[provenance[source] for source in Provenance], classes=classes)

    def add(self, more: PixelCounts) -> None:
        """Count these too."""
        self.provenance = list(map(add, self.provenance, more.provenance))
        self.classes = list(map(add, self.classes, more.classes))

    @property
    def by_provenance(self) -> dict[str, int]:
        """As files name them."""
        return {source.name.lower(): self.provenance[source] for source in Provenance}


@dataclass(kw_only=True)
class Statistics:
    """Counts that ``run.json`` reports; they go on across a resume."""

    inferences: dict[Scenario, int] = field(default_factory=lambda: dict.fromkeys(Scenario, 0))
    pixels: PixelCounts = field(default_factory=PixelCounts)
    switch_count: int = 0
    switches: list[Switch] = field(default_factory=list)
    """The first :data:`MAX_SWITCHES` of them."""
    scenario: Scenario | None = None
    """The scenario of most pixels of the last tile that had any."""
    sensors: SensorHistory = field(default_factory=SensorHistory)

    def add_tile(self, job: Job) -> Switch | None:
        """Count a tile's inferences, and note it when a sensor changed or most of its pixels changed scenario.

        Returns:
            The switch, if this tile is one.
        """
        self.sensors.add(job.tile.index, job.verdicts, frame=job.stamp)
        for scenario in job.scenarios:
            self.inferences[scenario] += 1
        if not job.scenarios or job.scenarios[0] is self.scenario:
            return None
        switch = None if self.scenario is None else _switch(job)
        if switch is not None:
            self.switch_count += 1
            if len(self.switches) < MAX_SWITCHES:
                self.switches.append(switch)
        self.scenario = job.scenarios[0]
        return switch


def _switch(job: Job) -> Switch:
    target = job.tile.target
    alive = {
        sensor: sum(n for source, n in job.pixels.items() if source and sensor in Scenario[source.name].sensors)
        for sensor in Sensor
    }
    shares = ", ".join(f"{sensor} valid in {100 * n / target.pixels:.0f} %" for sensor, n in alive.items())
    return Switch(
        tile=job.tile.index,
        row=target.row,
        col=target.col,
        scenario=job.scenarios[0],
        reason=f"{shares} of the tile: most pixels are mapped from {PROVENANCE_LABELS[job.scenarios[0].provenance]}",
    )


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The journal's content."""

    key: Mapping[str, Any]
    tiles_done: int
    """Rows of the tile log whose tiles are in the maps."""
    statistics: Statistics
    monitor: Mapping[str, Any] | None = None
    """The health monitor's state after those tiles."""
    tiles: FilePrefix | None = None
    """What the tile log held then; None before there was one."""
    frames: FilePrefix | None = None
    """The same of the frame log of a live run."""
    windows: FilePrefix | None = None
    """The same of the maps' checksums (:mod:`engine.rasters.checksums`); None where no frame was under way."""

    def encode(self) -> bytes:
        """As it is written: its own SHA-256 comes first."""
        encoded = msgspec.json.encode(self)
        return _HEAD + hashlib.sha256(encoded).hexdigest().encode() + _NECK + encoded[1:]

    @classmethod
    def decode(cls, content: bytes) -> Entry:
        """The entry that was encoded.

        Raises:
            MalformedError: these are not its bytes.
        """
        digest, rest = content[len(_HEAD) : len(_HEAD) + 64], content[len(_HEAD) + 64 :]
        encoded = b"{" + rest[len(_NECK) :]
        whole = content.startswith(_HEAD) and rest.startswith(_NECK)
        if not whole or hashlib.sha256(encoded).hexdigest().encode() != digest:
            raise MalformedError("it is not what was written")
        return from_json(encoded, cls)


class Journal:
    """The journal of one output folder."""

    def __init__(self, output: Path) -> None:
        self.folder = output / FOLDER
        self._path = self.folder / "journal.json"

    @property
    def ours(self) -> bool:
        """The folder of the unfinished run is there, and one that this project made."""
        return is_marked(self.folder, _MARK) or (not self.folder.is_symlink() and self._path.is_file())

    @property
    def begun(self) -> bool:
        """There is an entry to go on from; a run that was killed before its first checkpoint left none."""
        return self._path.exists()

    @property
    def backend(self) -> str | None:
        """What the unfinished run computes with; None where that cannot be told: :meth:`read` then says why."""
        try:
            return str(Entry.decode(read_file(self._path)).key["backend"])
        except (OSError, MalformedError, KeyError):
            return None

    def read(self, key: Mapping[str, Any]) -> Entry:
        """The entry of the unfinished run, provided it is the run that ``key`` describes.

        Raises:
            ResumeError: there is none, it cannot be read, or its key differs; the message names what differs.
        """
        try:
            entry = Entry.decode(read_file(self._path))
        except FileNotFoundError as error:
            raise ResumeError(
                f"resume=True needs an unfinished run; {self._path} does not exist: start without it"
            ) from error
        except (OSError, MalformedError) as error:
            raise ResumeError(f"{self._path} cannot be read ({error}): start over with overwrite=True") from error
        mine = from_json(msgspec.json.encode(key), dict[str, Any])  # as the entry came: a tuple is a list there
        differing = sorted(name for name in {*mine, *entry.key} if mine.get(name) != entry.key.get(name))
        if differing:
            changes = "; ".join(f"{name} was {entry.key.get(name)!r}, now {mine.get(name)!r}" for name in differing)
            raise ResumeError(
                f"the unfinished run in {self.folder} differs: {changes}: repeat its options, or pass overwrite=True"
            )
        return entry

    def write(self, encoded: bytes) -> None:
        """Replace the journal by an encoded :class:`Entry`; what it promises must already be in the maps."""
        write_whole(self._path, encoded, durable=True)

    def make(self) -> None:
        """Make the folder of an unfinished run; a power cut leaves it, or nothing of it.

        Raises:
            OSError: the system refuses.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        mark(self.folder, _MARK)
        sync(self.folder.parent)

    def forget(self) -> None:
        """Take the entry away, for good: what it promises may be taken away next.

        Raises:
            OutputError: the folder is not one that this project made.
        """
        if not os.path.lexists(self.folder):
            return
        if not (self.ours or is_unmarked(self.folder)):
            raise OutputError(f"{self.folder} was not made by this project: move it away, or pass another `output`")
        with suppress(OSError):
            if not is_marked(self.folder, _MARK):  # of an older version: the entry alone shows that it is ours
                mark(self.folder, _MARK)
            self._path.unlink(missing_ok=True)
            sync(self.folder)

    def remove(self) -> None:
        """:meth:`forget`, and take the folder away.

        Raises:
            OutputError: the folder is not one that this project made.
        """
        self.forget()
        with suppress(OSError):  # what stays is swept by the next run
            clear_marked(self.folder)
