"""Calls that can't be interrupted: one thread makes them, and nobody who cancels waits for it."""

from __future__ import annotations

import gc
import threading
import time

import pytest

from cegate_geo.errors import CancelledError
from cegate_geo.infer.progress import LEFT_BEHIND, Monitor, Progress


def test_one_thread_makes_all_calls_and_ends_with_its_monitor() -> None:
    monitor = Monitor()
    makers = {monitor.wait(threading.get_ident) for _ in range(20)}
    assert len(makers) == 1
    assert threading.get_ident() not in makers
    (maker,) = (thread for thread in threading.enumerate() if thread.ident in makers)
    del monitor
    gc.collect()
    maker.join(5)
    assert not maker.is_alive()


def test_an_error_of_a_call_is_raised_and_the_next_call_is_made() -> None:
    monitor = Monitor()
    with pytest.raises(ZeroDivisionError):
        monitor.wait(lambda: 1 // 0)
    assert monitor.wait(lambda: 7) == 7


def test_who_cancels_leaves_the_call_behind() -> None:
    began, end = threading.Event(), threading.Event()
    monitor = Monitor(cancel=began.is_set)

    makers = []

    def call() -> None:
        makers.append(threading.get_ident())
        began.set()
        end.wait(20)

    started = time.monotonic()
    with pytest.raises(CancelledError):
        monitor.wait(call)
    assert time.monotonic() - started < 10
    (left,) = (thread for thread in threading.enumerate() if thread.ident == makers[0])
    assert left.name == LEFT_BEHIND, "the process is not to wait for it"
    end.set()
    left.join(5)
    assert not left.is_alive()


def test_what_a_call_held_is_let_go_before_the_next() -> None:
    class Large:
        pass

    monitor, gone = Monitor(), threading.Event()

    def make() -> None:
        large = Large()
        import weakref

        weakref.finalize(large, gone.set)
        monitor.wait(lambda: id(large))

    make()
    assert gone.wait(5)


def test_finishing_is_told_between_the_last_tile_and_the_end() -> None:
    seen: list[Progress] = []
    monitor = Monitor(seen.append)
    monitor.start(2, finishing=0.5)
    monitor.advance(run=2, skipped=0)
    monitor.finishing(0.5)
    monitor.finish()
    assert [at.fraction for at in seen] == [0, 0.5, 0.75, 1]
