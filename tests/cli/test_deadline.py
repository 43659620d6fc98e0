"""The end of a process that does not end by itself."""

from __future__ import annotations

import threading

from nursery_queue.cli._deadline import Deadline
from tests.support.command_line import PATIENCE


LONG = 3600.0


def test_when_the_time_is_up() -> None:
    """It acts by itself, in a thread, whatever the others are doing."""
    late = threading.Event()
    with Deadline(late.set) as deadline:
        deadline.within(0)
        assert late.wait(PATIENCE)


def test_the_last_word_counts() -> None:
    """A deadline can be brought forward and put off."""
    late = threading.Event()
    with Deadline(late.set) as deadline:
        deadline.within(LONG)
        deadline.within(0)
        assert late.wait(PATIENCE)
    late.clear()
    with Deadline(late.set) as deadline:
        deadline.within(LONG)
        deadline.within(2 * LONG)
    assert not late.is_set()


def test_in_time() -> None:
    """Once the block has ended nothing happens any more, and no thread is left."""
    before = set(threading.enumerate())
    late = threading.Event()
    for seconds in (None, LONG):
        with Deadline(late.set) as deadline:
            assert set(threading.enumerate()) - before
            if seconds is not None:
                deadline.within(seconds)

    assert set(threading.enumerate()) <= before
    assert not late.is_set()
