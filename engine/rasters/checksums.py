"""Checksums of what has been written into the unfinished maps, so that damage shows before it is published.

First the SHA-256 of what the maps' files say of themselves; then a record per window and per time that it was written,
little-endian numbers of 4 bytes: row, column, height and width, and the CRC-32 of each map
in it. The journal vouches for the first of them (:class:`engine.digested_file.FilePrefix`).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.digested_file import DigestedFile, FilePrefix, check_mark

NAME = "windows.crc"
HEAD_BYTES = 32

Place = tuple[int, int, int, int]
"""Row, column, height and width."""
Sums = tuple[int, ...]
"""CRC-32 of each map."""


class Checksums:
    """Writes the records. Use from one thread at a time.

    Args:
        folder: of the unfinished maps.
        head: SHA-256 of what the maps' files say of themselves, 32 bytes.
        mark: what the journal vouches for, when resuming; None starts anew.
        layers: how many maps there are.

    Raises:
        OSError: the system refuses.
        ResumeError: the file is not what the journal vouches for.
    """

    def __init__(self, folder: Path, head: bytes, mark: FilePrefix | None = None, *, layers: int = 3) -> None:
        self._path, self._record = folder / NAME, _record(layers)
        if mark is not None:
            check_mark(self._path, mark)
        self._file = DigestedFile(self._path, None if mark is None else mark.size_bytes)
        if mark is None:
            self._file.write(head)

    @property
    def mark(self) -> FilePrefix:
        """What has been written, for the journal."""
        return self._file.mark

    def add(self, row: int, col: int, layers: Sequence[NDArray[Any]]) -> None:
        """Note a window."""
        height, width = layers[0].shape
        self._file.write(self._record.pack(row, col, height, width, *checksums(layers)))

    def sync(self) -> None:
        """Wait until the records are on the disk."""
        self._file.sync()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._file.close()


def read_checksums(folder: Path, mark: FilePrefix, *, layers: int = 3) -> tuple[bytes, dict[Place, Sums]]:
    """What a journal vouches for: the head, and the windows; of one written twice, what was written last.

    Raises:
        OSError: it cannot be read.
        ValueError: it ends within a record.
    """
    content = (folder / NAME).read_bytes()[: mark.size_bytes]
    try:
        records = list(_record(layers).iter_unpack(content[HEAD_BYTES:]))
    except struct.error as error:
        raise ValueError(f"{folder / NAME} ends within a record") from error
    return content[:HEAD_BYTES], {record[:4]: record[4:] for record in records}


def checksums(layers: Sequence[NDArray[Any]]) -> Sums:
    """CRC-32 of each array."""
    return tuple(zlib.crc32(np.ascontiguousarray(layer).data) for layer in layers)


def _record(layers: int) -> struct.Struct:
    return struct.Struct(f"<{4 + layers}I")
