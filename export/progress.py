"""A build that can be watched and stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tqdm import tqdm

from engine.contract.errors import InterruptedRunError


class Stop:
    """Ctrl-C and SIGTERM as a flag: an exception must not travel through the library that calls back."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def on_signals(self) -> Iterator[Stop]:
        """Catch both signals meanwhile."""
        before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Between two pieces of work.

        Raises:
            InterruptedRunError: a signal came.
        """
        if self.asked:
            raise InterruptedRunError("stopped; what was finished stays, and the same command goes on from there")

    def _ask(self, _signal: int, _frame: FrameType | None) -> None:
        self.asked = True


class PhaseBar:
    """A build's phases as one bar on a terminal, whose end moves out as phases are announced."""

    def __init__(self, title: str, stop: Stop) -> None:
        self._stop = stop
        layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
        self._bar: Any = tqdm(desc=title, total=0, leave=False, disable=None, bar_format=layout)

    def __enter__(self) -> PhaseBar:
        return self

    def __exit__(self, *_error: object) -> None:
        self._bar.close()

    def began(self, phase: str, steps: int) -> None:
        """Announce a phase."""
        self._bar.total += steps
        self._bar.set_postfix_str(phase)

    def step(self, phase: str) -> bool:
        """Count one step; False once a signal came."""
        self._bar.update()
        return not self._stop.asked
