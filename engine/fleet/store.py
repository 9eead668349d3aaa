"""Where maps are published, each unit's whole or not at all, and who maps a unit.

::

    OUTPUT/<unit>/               its maps and ``unit.json``: one rename once all are whole
    OUTPUT/.fleet/work/<key>/    maps under way; whoever maps the unit next goes on with them
    OUTPUT/.fleet/claims/<key>   locked while somebody maps the unit; holds how often that was tried

A claim is a lock of the operating system, which the kernel releases however the process ends, on file systems of a
network too (flock(2): by byte ranges on NFS).
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from engine.contract.atomic import sync, write_whole
from engine.contract.errors import OutputError, writing
from engine.contract.formats import MalformedError, read_file
from engine.fleet.marker import NAME as MARKER_NAME
from engine.fleet.marker import Marker
from engine.ownership import IN_USE

log = logging.getLogger(__name__)

FOLDER = ".fleet"
ROOM = "free space or check permissions, then repeat the command: what is done stays done"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The right to map a unit, while the block lasts that it was given for."""

    folder: Path
    """Of this machine; holds what an earlier attempt left."""
    died: int
    """How many processes ended while they mapped this unit."""


class Store(Protocol):
    """Where maps are published."""

    def marker(self, unit: str) -> Marker | None:
        """What is published of a unit.

        Raises:
            OutputError: it cannot be seen, or something else lies in its place.
        """

    def whole(self, marker: Marker) -> bool:
        """Whether what is published is as it was when it was."""

    def claim(self, key: str) -> AbstractContextManager[Claim | None]:
        """For the block: nobody else maps the unit of that key; None where somebody else does."""

    def publish(self, claim: Claim, marker: Marker) -> bool:
        """Put the maps in their place with their marker; False where somebody else has, and theirs stay."""

    def fetch(self, marker: Marker) -> Path:
        """The folder of this machine where what is published can be read.

        Raises:
            OutputError: it cannot be had.
        """

    def forget(self, place: str) -> None:
        """Delete all that is published in a folder, and it; says so where that fails."""

    @property
    def books(self) -> Path:
        """The folder of this machine where the books of the fleet are kept."""

    def keep(self, name: str) -> None:
        """A file of :attr:`books` is complete."""

    def shown(self) -> AbstractContextManager[str]:
        """For the block: a word that whoever writes to the same place can see."""

    def sees(self, word: str) -> bool:
        """Whether that word is there."""


class FolderStore:
    """A folder of this machine, or of a network's file system.

    Args:
        output: the folder; made when it is needed.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._own = output / FOLDER

    def marker(self, unit: str) -> Marker | None:
        """See :meth:`Store.marker`."""
        place = self._output / unit
        try:
            found = Marker.read(read_file(place / MARKER_NAME))
        except FileNotFoundError:
            found = None
        except (OSError, MalformedError) as error:
            raise OutputError(f"{place / MARKER_NAME} cannot be read ({error}): check permissions") from error
        if found is None and os.path.lexists(place) and (not place.is_dir() or any(place.iterdir())):
            raise OutputError(f"{place} was not made for a list: move it away, or pass another --output")
        return found

    def whole(self, marker: Marker) -> bool:
        """See :meth:`Store.whole`."""
        return marker.whole(self._output / marker.unit)

    @contextmanager
    def claim(self, key: str) -> Iterator[Claim | None]:
        """See :meth:`Store.claim`."""
        path = self._own / "claims" / key
        with writing(path, ROOM):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = _locked(path)
        if handle is None:
            yield None
            return
        try:
            told = os.pread(handle, 16, 0)
            died = int(told) if told.isdigit() else 0
            with writing(path, ROOM):
                os.pwrite(handle, b"%d" % (died + 1), 0)
            yield Claim(folder=self._own / "work" / key, died=died)
        finally:  # whatever came of the unit, the process is alive
            path.unlink(missing_ok=True)
            os.close(handle)

    def publish(self, claim: Claim, marker: Marker) -> bool:
        """See :meth:`Store.publish`."""
        place, aside = self._output / marker.unit, self._own / "replaced" / f"{marker.unit}-{os.getpid()}"
        with writing(place, ROOM):
            write_whole(claim.folder / MARKER_NAME, marker.encode(), durable=True)
            if place.exists():
                there = self.marker(marker.unit)
                if there is not None and there.key == marker.key and self.whole(there):
                    shutil.rmtree(claim.folder)
                    return False
                if there is not None:
                    aside.parent.mkdir(parents=True, exist_ok=True)
                    place.rename(aside)
                    _remove(aside, there)
            place.parent.mkdir(parents=True, exist_ok=True)
            claim.folder.rename(place)
            sync(place.parent)
        return True

    def fetch(self, marker: Marker) -> Path:
        """See :meth:`Store.fetch`."""
        return self._output / marker.unit

    def forget(self, place: str) -> None:
        """See :meth:`Store.forget`."""
        shutil.rmtree(self._output / place, onerror=lambda *error: log.warning("%s stays: %s", place, error[2][1]))

    @property
    def books(self) -> Path:
        """See :attr:`Store.books`."""
        return self._output

    def keep(self, name: str) -> None:
        """See :meth:`Store.keep`."""

    @contextmanager
    def shown(self) -> Iterator[str]:
        """See :meth:`Store.shown`."""
        word = uuid.uuid4().hex
        path = self._word(word)
        with writing(self._output):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        try:
            yield word
        finally:
            path.unlink(missing_ok=True)

    def sees(self, word: str) -> bool:
        """See :meth:`Store.sees`."""
        return self._word(word).exists()

    def _word(self, word: str) -> Path:
        return self._own / f"driver-{word}"


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock; None where somebody else does."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in IN_USE:
                os.close(handle)
                return None
            log.warning("%s cannot be locked (%s): see that nobody else maps this list", path, error.strerror)
            return handle
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        os.close(handle)  # whoever had it is done, and took it away meanwhile


def _remove(folder: Path, marker: Marker) -> None:
    """Delete what was published, and nothing else."""
    for name in (*marker.files, MARKER_NAME):
        (folder / name).unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        log.warning("%s held files that no run wrote: they lie in %s now", marker.unit, folder)
