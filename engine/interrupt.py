"""SIGINT and SIGTERM while threads work: the first asks them to finish, nothing is torn in mid-step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from types import FrameType


@contextmanager
def first_signal(finish: Callable[[], None]) -> Iterator[list[signal.Signals]]:
    """The first SIGINT or SIGTERM calls ``finish``, a second does what it did before; yields those received.

    Python runs a signal handler in the main thread between any two of its instructions, so one that raises, or takes
    a lock, can leave a lock of that thread in pieces or wait for it forever. This handler only passes the word on, by a
    queue whose ``put`` is reentrant (https://docs.python.org/3/library/queue.html#queue.SimpleQueue.put), to a thread
    that calls ``finish``. Outside the main thread, which hears no signal, it does nothing.
    """
    received: list[signal.Signals] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    asked: SimpleQueue[bool] = SimpleQueue()

    def restore() -> None:
        for number in numbers:
            signal.signal(number, before[number] or signal.SIG_DFL)

    def hear(number: int, _frame: FrameType | None) -> None:
        received.append(signal.Signals(number))
        restore()
        asked.put(True)

    def answer() -> None:
        if asked.get():
            finish()

    answering = threading.Thread(target=answer, name="signals")
    try:
        for number in numbers:
            signal.signal(number, hear)
        answering.start()  # from here to its end no signal raises, so that it is always joined
        yield received
    finally:
        asked.put(False)
        if answering.is_alive():
            answering.join()
        restore()
