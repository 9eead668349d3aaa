"""What has been computed already, by the content it was computed from: the reason a run can be stopped and repeated.

Nothing in the store is named after a step, only after the SHA-256 of everything a result depends on. The same command
therefore goes on where it was stopped, another budget reuses every score, and another bundle reuses none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from engine.contract.atomic import write_whole
from engine.contract.errors import OutputError
from engine.contract.formats import MalformedError, from_json, read_file

Value = TypeVar("Value")


def key_of(*parts: object) -> str:
    """One key for what a result depends on; byte strings count by content, anything else by its text."""
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else str(part).encode()
        digest.update(f"{len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()


class TensorStore:
    """A folder of results.

    Raises:
        OutputError: the folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"--work must be a folder that can be written; {root}: {error}") from error

    def value(self, kind: str, key: str, of: type[Value], compute: Callable[[], Value]) -> Value:
        """A result that JSON can hold: read if it is there, else computed and written whole."""
        path = self.root / f"{kind}-{key[:32]}.json"
        try:
            return from_json(read_file(path), of)
        except FileNotFoundError:
            pass
        except MalformedError:
            path.unlink(missing_ok=True)  # of another version of this program
        found = compute()
        self._write(path, msgspec.json.encode(found))
        return found

    def blob(self, kind: str, key: str, compute: Callable[[], bytes]) -> bytes:
        """Bytes: read if they are there, else computed and written whole."""
        path = self.root / f"{kind}-{key[:32]}.bin"
        try:
            return path.read_bytes()
        except FileNotFoundError:
            pass
        found = compute()
        self._write(path, found)
        return found

    def _write(self, path: Path, content: bytes) -> None:
        try:
            write_whole(path, content)
        except OSError as error:
            raise OutputError(f"a result could not be kept: {path}: {error}: free space or choose --work") from error
