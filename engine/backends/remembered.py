"""What was found out about a bundle on this machine, kept for the next start: it saves time and nothing else.

A folder of this user's own, ``GEMMNET_CACHE`` or ``gemmnet`` under ``XDG_CACHE_HOME`` (``~/.cache``); an empty
``GEMMNET_CACHE`` keeps nothing. What lies in it is used like a program: so no bundle brings it, and a folder that
another user could write to is not used. Each file's name is the hash of everything that its content depends on, and the
content's own SHA-256 stands in front of it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from engine.contract.formats import MalformedError, from_json
from engine.contract.plan_cache import load_hint, save_hint

log = logging.getLogger(__name__)

VARIABLE = "GEMMNET_CACHE"
MOST_FILES = 60
"""What was used longest ago goes first; a compiled graph takes 4 to 9 MB."""


class Remembered:
    """The folder. Any process of its user may use it at any time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @classmethod
    def here(cls) -> Remembered | None:
        """That of this user; None where there is to be none, or none that is safe."""
        told = os.environ.get(VARIABLE)
        if told == "":
            return None
        try:
            folder = Path(told) if told else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gemmnet")
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
        except (OSError, RuntimeError) as error:  # no home
            log.debug("nothing is kept for the next start: %s", error)
            return None
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            log.warning(
                "nothing is kept for the next start: others could write to %s: `chmod 700` it, or set %s to another",
                folder,
                VARIABLE,
            )
            return None
        return cls(folder)

    def content(self, kind: str, key: Mapping[str, Any]) -> bytes:
        """What was kept under that name; empty where nothing was, or it is damaged."""
        path = self._path(kind, key)
        found = load_hint(path, "the next start takes longer")
        if found:
            with suppress(OSError):
                os.utime(path)
        return found

    def keep(self, kind: str, key: Mapping[str, Any], content: bytes) -> None:
        """Keep it; where that fails the log says so."""
        save_hint(self._path(kind, key), content, "the next start takes longer")
        with suppress(OSError):
            oldest = sorted(self._folder.glob("*.kept"), key=lambda path: path.stat().st_mtime)
            for path in oldest[:-MOST_FILES]:
                path.unlink()

    def note(self, kind: str, key: Mapping[str, Any]) -> dict[str, Any]:
        """JSON values that were noted under that name; empty where nothing was."""
        try:
            return from_json(self.content(kind, key) or b"{}", dict[str, Any])
        except MalformedError:
            return {}

    def write(self, kind: str, key: Mapping[str, Any], note: Mapping[str, Any]) -> None:
        """Note JSON values."""
        self.keep(kind, key, msgspec.json.encode(dict(note)))

    def _path(self, kind: str, key: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(msgspec.json.encode(dict(key), order="sorted")).hexdigest()
        return self._folder / f"{kind}-{digest[:32]}.kept"
