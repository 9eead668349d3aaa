"""Has a TIFF landed whole? Told from its directories alone, without decoding a pixel.

A TIFF names every byte range it consists of: each directory lists its tags' values and the offset and size of every
block of pixels (TIFF 6.0, https://www.itu.int/itudoc/itu-t/com16/tiff-fx/docs/tiff6.pdf; BigTIFF as in
https://libtiff.gitlab.io/libtiff/specification/bigtiff.html). So a copy under way is told by a range beyond the end of
the file, and a writer under way by a block that has no bytes yet. GDAL would read the second kind without complaint,
with zeros where pixels are still to come.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from engine.contract.formats import MalformedError, open_regular

_BYTES_OF_TYPE = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_UNSIGNED_TYPES = {3: "u2", 4: "u4", 16: "u8"}
_BLOCK_TAGS = {273: 279, 324: 325}
"""Where a directory keeps the offsets of its strips or tiles, and where their sizes."""


class _UnfinishedError(Exception):
    """What is missing."""


def unfinished(path: Path, *, tags_only: bool = False) -> str | None:
    """Why a file is not a whole TIFF (yet), or None when every byte range that it names is there.

    Args:
        path: of the file.
        tags_only: look at the directories and the values of their tags, not at the blocks of pixels. Otherwise a block
            without bytes counts as missing, so that a sparse TIFF is never whole.
    """
    try:
        with open_regular(path) as stream:
            _Tiff(stream, tags_only=tags_only).check()
    except (_UnfinishedError, MalformedError) as missing:
        return str(missing)
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return None


class _Tiff:
    """The directories of an opened TIFF."""

    def __init__(self, stream: BinaryIO, *, tags_only: bool) -> None:
        self._stream, self._tags_only = stream, tags_only
        self._bytes = os.fstat(stream.fileno()).st_size
        magic = self._take(0, 4, "header")
        if magic not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            raise _UnfinishedError("it does not begin as a TIFF")
        self._order = "<" if magic.startswith(b"I") else ">"
        self._big = b"+" in magic
        # widths of a count of entries, of an entry, of its count of values and of an offset
        self._count, self._entry, self._offset = ("u8", 20, "u8") if self._big else ("u2", 12, "u4")

    def check(self) -> None:
        """Raise unless the file is whole."""
        at, known = self._number(8 if self._big else 4, self._offset, "header"), set[int]()
        if at == 0:
            raise _UnfinishedError("its directory is not written yet")
        while at and at not in known:
            known.add(at)
            at = self._check_directory(at)

    def _check_directory(self, at: int) -> int:
        """Check one directory; returns where the next begins, 0 after the last."""
        blocks: dict[int, NDArray[np.float64]] = {}
        entries = at + np.dtype(self._count).itemsize
        count = self._number(at, self._count, "directory")
        for entry in range(entries, entries + count * self._entry, self._entry):
            tag, kind = self._number(entry, "u2", "directory"), self._number(entry + 2, "u2", "directory")
            values = self._number(entry + 4, self._offset, "directory")
            size = _BYTES_OF_TYPE.get(kind, 0) * values
            place = entry + 4 + np.dtype(self._offset).itemsize
            if size > np.dtype(self._offset).itemsize:
                place = self._number(place, self._offset, "directory")
            self._require(place, size, f"the values of tag {tag}")
            if not self._tags_only and tag in {*_BLOCK_TAGS, *_BLOCK_TAGS.values()}:
                blocks[tag] = self._numbers(place, values, kind)
        for offsets, sizes in _BLOCK_TAGS.items():
            if offsets in blocks:
                self._check_blocks(blocks[offsets], blocks.get(sizes, np.zeros(0)))
        return self._number(entries + count * self._entry, self._offset, "directory")

    def _check_blocks(self, offsets: NDArray[np.float64], sizes: NDArray[np.float64]) -> None:
        if len(offsets) != len(sizes) or not len(offsets):
            raise _UnfinishedError("its list of blocks is not written yet")
        empty = np.flatnonzero((offsets == 0) | (sizes == 0))
        if len(empty):
            raise _UnfinishedError(f"block {empty[0] + 1} of {len(offsets)} is not written yet")
        beyond = np.flatnonzero(offsets + sizes > self._bytes)
        if len(beyond):
            raise _UnfinishedError(
                f"it ends at byte {self._bytes}, before block {beyond[0] + 1} of {len(offsets)} does"
            )

    def _numbers(self, at: int, count: int, kind: int) -> NDArray[np.float64]:
        """Offsets or sizes; float64 holds them exactly up to 2**53 bytes."""
        if kind not in _UNSIGNED_TYPES:
            raise _UnfinishedError(f"its list of blocks has the type {kind}")
        dtype = np.dtype(self._order + _UNSIGNED_TYPES[kind])
        return np.frombuffer(self._take(at, count * dtype.itemsize, "list of blocks"), dtype).astype(np.float64)

    def _number(self, at: int, dtype: str, what: str) -> int:
        width = np.dtype(dtype).itemsize
        return int.from_bytes(self._take(at, width, what), "little" if self._order == "<" else "big")

    def _take(self, at: int, size: int, what: str) -> bytes:
        self._require(at, size, f"its {what}")
        self._stream.seek(at)
        taken = self._stream.read(size)
        self._require(at, size if len(taken) == size else self._bytes + 1, f"its {what}")  # cut off since it was opened
        return taken

    def _require(self, at: int, size: int, what: str) -> None:
        if at + size > self._bytes:
            raise _UnfinishedError(f"it ends at byte {self._bytes}, before {what} does")
