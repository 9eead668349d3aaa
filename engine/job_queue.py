"""The jobs between the read thread and the thread that submits them: few, in order, and by policy the newest."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from engine.job import Job


class JobQueue:
    """Jobs that have been read and not yet submitted.

    Args:
        depth: the most with data that wait at a time.
        drop_oldest: instead of waiting for room, :meth:`put` skips the job that waited longest.
    """

    def __init__(self, depth: int, *, drop_oldest: bool) -> None:
        self._depth, self._drop_oldest = depth, drop_oldest
        self._jobs: deque[Job] = deque()
        self._held = 0
        """Of them, those with data; skipped ones weigh nothing."""
        self._ended = self._closed = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return self._held

    def put(self, job: Job) -> bool:
        """Add a job, by policy waiting for room or making it; False when nobody takes jobs any more."""
        with self._changed:
            if self._drop_oldest and self._held >= self._depth:
                oldest = next(index for index, each in enumerate(self._jobs) if not each.skipped)
                self._jobs[oldest] = self._jobs[oldest].skip()
                self._held -= 1
            self._changed.wait_for(lambda: self._closed or self._held < self._depth)
            if self._closed:
                return False
            self._jobs.append(job)
            self._held += not job.skipped
            self._changed.notify_all()
            return True

    def end(self, error: BaseException | None) -> None:
        """No more jobs will come, because of ``error`` unless that is None."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    @property
    def ready(self) -> bool:
        """:meth:`get` has an answer."""
        return bool(self._jobs) or self._ended

    def wait(self, otherwise: Callable[[], bool]) -> None:
        """Wait until :meth:`get` has an answer, or ``otherwise`` is true; :meth:`wake` has it asked again."""
        with self._changed:
            self._changed.wait_for(lambda: self.ready or otherwise())

    def wake(self) -> None:
        """What ``otherwise`` asks for may have come true."""
        with self._changed:
            self._changed.notify_all()

    def get(self) -> Job | None:
        """The next job; None after the last. Raises the error that ended the source once its turn has come."""
        with self._changed:
            if self._jobs:
                job = self._jobs.popleft()
                self._held -= not job.skipped
                self._changed.notify_all()
                return job
            if self._error is not None:
                raise self._error
            return None

    def close(self) -> None:
        """Nobody takes jobs any more: whoever waits to put one wakes up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
