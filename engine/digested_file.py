"""A file that only grows, and knows the hash of what it holds: so that a journal can vouch for a part of it."""

from __future__ import annotations

import errno
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from engine.contract.atomic import sync
from engine.contract.errors import ResumeError
from engine.contract.formats import MalformedError, open_regular

PIECE_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class FilePrefix:
    """The first ``size_bytes`` of a file, and their SHA-256."""

    size_bytes: int
    sha256: str


class DigestedFile:
    """Appends to a file. Use from one thread at a time.

    Args:
        path: the file.
        keep_bytes: of what is there; None makes the file anew.

    Raises:
        OSError: the system refuses.
    """

    def __init__(self, path: Path, keep_bytes: int | None = None) -> None:
        self._digest = hashlib.sha256() if keep_bytes is None else _digest(path, keep_bytes)
        self._size = keep_bytes or 0
        # no buffer: what a full disk refuses would be tried again, and refused again, when the file is closed
        self._file = path.open("wb" if keep_bytes is None else "r+b", buffering=0)
        self._file.truncate(self._size)
        self._file.seek(self._size)
        if keep_bytes is None:
            sync(path.parent)

    @property
    def mark(self) -> FilePrefix:
        """What has been written."""
        return FilePrefix(size_bytes=self._size, sha256=self._digest.hexdigest())

    def write(self, content: bytes) -> None:
        """Append; it is on the disk after the next :meth:`sync`."""
        written = self._file.write(content)
        if written != len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._digest.update(content)
        self._size += len(content)

    def sync(self) -> None:
        """Wait until all of it is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


def check_mark(path: Path, mark: FilePrefix) -> None:
    """See that a file begins with what a mark vouches for.

    Raises:
        ResumeError: it does not, or cannot be read.
    """
    again = "start over with overwrite=True"
    try:
        found = _digest(path, mark.size_bytes).hexdigest()
    except (OSError, MalformedError) as error:
        raise ResumeError(
            f"{path}, which the unfinished run needs, is missing or damaged ({error}): {again}"
        ) from error
    if found != mark.sha256:
        raise ResumeError(f"{path} is not what the journal vouches for: {again}")


def _digest(path: Path, size_bytes: int) -> hashlib._Hash:
    digest, left = hashlib.sha256(), size_bytes
    with open_regular(path) as stream:
        while left and (piece := stream.read(min(PIECE_BYTES, left))):
            digest.update(piece)
            left -= len(piece)
    if left:
        raise MalformedError(f"it ends {left} bytes early")
    return digest
