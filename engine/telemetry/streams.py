"""Standard streams that never end a run: what cannot be written is left unsaid.

A terminal goes away, a log partition fills, a service is started with closed descriptors. None of it is a reason to
lose a map.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class Steady:
    """A text stream whose writes and flushes do not fail: after the first that would, nothing more is written.

    Args:
        stream: what is written to; None, as Python has it for a closed descriptor, takes nothing.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self._lost = stream, stream is None

    def write(self, text: str) -> int:
        """Write, if it is still possible."""
        if not self._lost and self._stream is not None:
            try:
                self._stream.write(text)
            except (OSError, ValueError):  # ValueError: closed, or a name that its encoding lacks
                self._lost = True
        return len(text)

    def flush(self) -> None:
        """Flush, if it is still possible."""
        if not self._lost and self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._lost = True

    def isatty(self) -> bool:
        """Whether a person looks at it."""
        try:
            return not self._lost and self._stream is not None and self._stream.isatty()
        except (OSError, ValueError):
            return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def steady_streams() -> Iterator[None]:
    """For the block: standard output and error do not fail, and no file is given one of their descriptors."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file to be opened, a map perhaps, would get what libraries print
            os.open(os.devnull, os.O_RDWR)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, Steady(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


def let_go_of_streams() -> None:
    """Flush both streams for the last time; one that cannot be flushed is not tried again when the process ends."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            setattr(sys, name, None)
