"""What TensorRT calls back: a logger that keeps what errors and audits need, and a monitor that can stop a build."""

from __future__ import annotations

import functools
import logging
from typing import Any, Protocol

from export.built_layers import LIST_TITLES

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Who watches a build. Called from the thread that builds; must not raise."""

    def began(self, phase: str, steps: int) -> None:
        """A phase of so many steps starts, perhaps inside another one."""

    def step(self, phase: str) -> bool:
        """One step is done; False stops the build."""


@functools.cache
def logger_of(trt: Any) -> Any:
    """Keeps errors for the exception that follows them, and the list of layers; all goes to Python's log at DEBUG.

    One per library, and never freed: TensorRT registers the first logger it meets for the whole process and goes on
    calling it when the objects it was given for are long gone.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]  # a class of whatever library was imported
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.clear()

        def clear(self) -> None:
            self.errors: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                self.errors.append(message.strip())
            elif message.lstrip().startswith(LIST_TITLES):
                self.layers = message
            log.debug("%s: %s", severity.name, message)

        def reasons(self) -> str:
            found = "; ".join(dict.fromkeys(self.errors))
            self.errors.clear()
            return found or "it gives no reason"

    return Logger()


def monitor_of(trt: Any, progress: Progress) -> Any:
    """Passes a build's phases on, and its answer back; ``stopped`` once it was told to stop."""

    class BuildMonitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.stopped = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            progress.began(phase, steps)

        def phase_finish(self, phase: str) -> None:
            pass

        def step_complete(self, phase: str, step: int) -> bool:
            self.stopped = self.stopped or not progress.step(phase)
            return not self.stopped

    return BuildMonitor()
