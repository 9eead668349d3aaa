"""Calls that may never return, each with a deadline: what hangs is left behind, and the process ends without it.

A thread inside a library or the kernel, at a disk that does not answer, cannot be stopped. It can be left to itself.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, TypeVar

_T = TypeVar("_T")

left_behind = threading.Event()
"""Set once a call hangs and is left to itself: the process must then end without waiting for its threads."""
MOST_HANGING = 16
"""Calls that a service leaves behind, each with a thread and what it read into, before it asks such disks no more."""
STEP_S = 1.0
_hanging: set[Future[Any]] = set()


def too_many_hang() -> bool:
    """Whether :data:`MOST_HANGING` calls have not come back yet."""
    return len(_hanging) >= MOST_HANGING


class DeadlineError(Exception):
    """There was no answer in time; the call goes on in a thread of its own."""


class Caller:
    """Makes calls in a thread of its own and waits for each so long and no longer. Use from one thread at a time.

    Args:
        limit_s: longest wait for a call.
    """

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._calls: queue.SimpleQueue[Any] | None = None

    def __call__(self, function: Callable[[], _T]) -> _T:
        """What ``function`` returns or raises.

        Raises:
            DeadlineError: it takes longer. The next call begins in another thread.
        """
        if self._calls is None:
            self._calls = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(self._calls,), name="call", daemon=True).start()
        answer: Future[_T] = Future()
        self._calls.put((function, answer))
        left_s = self._limit_s
        while left_s > 0:
            # step by step: time in which the whole process was stopped counts for one step at most
            step_s = min(left_s, STEP_S)
            try:
                return answer.result(step_s)
            except TimeoutError:
                if answer.done():
                    return answer.result()  # it came meanwhile, or the error is the function's own
                left_s -= step_s
        self.close()
        left_behind.set()
        _hanging.add(answer)
        answer.add_done_callback(_hanging.discard)
        raise DeadlineError(f"no answer for {self._limit_s:g} s")

    def close(self) -> None:
        """Let the thread end; a second call does nothing."""
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None


class Patience:
    """Makes calls about one thing, each with a deadline, until one hangs: then it is asked no more.

    Args:
        limit_s: longest wait for a call.
    """

    def __init__(self, limit_s: float) -> None:
        self._within = Caller(limit_s)
        self.lost = False
        """A call hangs."""

    def __call__(self, function: Callable[[], _T]) -> _T:
        """What ``function`` returns or raises.

        Raises:
            DeadlineError: it takes longer, or an earlier call did.
        """
        if self.lost:
            raise DeadlineError("no answer to an earlier call")
        try:
            return self._within(function)
        except DeadlineError:
            self.lost = True
            raise

    def close(self) -> None:
        """Let the thread end."""
        self._within.close()


@contextmanager
def watched(busy_with: Callable[[], object | None], limit_s: float, silent: Callable[[], None]) -> Iterator[None]:
    """For the block: somebody looks now and then whether another thread is busy with the same thing for too long.

    Args:
        busy_with: what the thread is busy with now; None for nothing that can hang.
        limit_s: longest time with one thing. Time in which the whole process was stopped hardly counts.
        silent: called once, from a thread of its own, when it takes longer; the block then ends without that thread.
    """
    ended, step_s = threading.Event(), min(STEP_S, limit_s / 4)

    def watch() -> None:
        last, spent_s = None, 0.0
        while not ended.wait(step_s):
            now = busy_with()
            spent_s = spent_s + step_s if now is not None and now is last else 0.0
            last = now
            if spent_s >= limit_s:
                left_behind.set()
                silent()
                return

    threading.Thread(target=watch, name="read watchdog", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _serve(calls: queue.SimpleQueue[Any]) -> None:
    while (call := calls.get()) is not None:
        function, answer = call
        try:
            answer.set_result(function())
        except BaseException as error:
            answer.set_exception(error)
        del call, function, answer  # nothing of it stays alive while the next is waited for
