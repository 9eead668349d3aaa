"""What a signal does to a run: see engine.interrupt. Run by test_interrupt.py in a process of their own."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType

import pytest

from engine import job_queue
from engine.interrupt import first_signal
from engine.job_queue import JobQueue

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.mark.parametrize("number", BOTH)
def test_the_first_signal_finishes_and_does_not_raise(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in BOTH]
    finished = threading.Event()
    with first_signal(finished.set) as received:
        os.kill(os.getpid(), number)
        assert finished.wait(10)
    assert received == [number]
    assert [signal.getsignal(each) for each in BOTH] == before


def test_the_second_signal_does_what_it_did_before() -> None:
    # Not whatever this process was started with: one in the background of a script finds SIGINT ignored.
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        finished = threading.Event()
        with first_signal(finished.set):
            os.kill(os.getpid(), signal.SIGINT)
            assert finished.wait(10)
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, outside)


def test_without_a_signal_nothing_is_called_and_no_thread_stays() -> None:
    threads = threading.active_count()
    with first_signal(lambda: pytest.fail("called")) as received:
        pass
    assert received == []
    assert threading.active_count() == threads


def test_finish_may_take_a_lock_that_the_main_thread_holds() -> None:
    lock, taken = threading.Lock(), threading.Event()

    def finish() -> None:
        with lock:
            taken.set()

    with first_signal(finish) as received:
        with lock:
            os.kill(os.getpid(), signal.SIGINT)
            while not received:  # the handler has run, in this thread
                pass
            assert not taken.is_set()
        assert taken.wait(10)


def signalled_at(moment: int, call: Callable[[], object]) -> bool:
    """Call with a SIGINT before the given line that runs in the queue or its condition; False when it ran fewer."""
    lines = 0

    def trace(frame: FrameType, event: str, _argument: object):
        nonlocal lines
        if frame.f_code.co_filename not in (job_queue.__file__, threading.__file__):
            return None
        if event == "line":
            lines += 1
            if lines == moment:
                os.kill(os.getpid(), signal.SIGINT)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return lines >= moment


def test_a_signal_at_any_moment_leaves_the_queue_that_is_waited_on_whole() -> None:
    """With a handler that raises, a wait that is hit in its lock's release ends in a RuntimeError."""
    moment = 0
    while True:
        moment += 1
        queue = JobQueue(1, drop_oldest=False)
        late = threading.Timer(0.05, queue.end, [None])  # for the moments after the wait
        late.start()
        with first_signal(partial(queue.end, None)) as received:
            reached = signalled_at(moment, partial(queue.wait, lambda: False))
        late.join()
        assert queue.get() is None
        if not reached:
            break
        assert received == [signal.SIGINT]
    assert moment > 15, "the wait is looked at line by line"


def test_another_thread_hears_nothing_and_installs_nothing() -> None:
    handler = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def work() -> None:
        with first_signal(lambda: None) as received:
            seen.extend([received, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [[], handler]
