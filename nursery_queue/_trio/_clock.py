"""The seam where a test's clock takes over: nothing in production ever sets it."""

from __future__ import annotations

import contextlib
import datetime as dt

from collections.abc import Generator
from contextlib import AbstractContextManager
from typing import Protocol

import trio


class ClockStuck(Exception):  # says what happened
    """Something real has kept a virtual clock from moving for too long.

    Usually a statement that waits for a lock whose owner sleeps in virtual time. Raised in the
    task that waits; a connection it waited for is closed.
    """

    __module__ = "nursery_queue.testing"  # where users find it


class Watched(Protocol):
    """Something that hears of events which PostgreSQL delivers after the fact."""

    async def flushed(self) -> None:
        """Return when all that was committed before the call has been heard, or cannot be."""
        ...


class Timekeeper(Protocol):
    """A clock that moves trio's time and the database's together."""

    def now(self) -> dt.datetime:
        """Return the instant that `nursery_queue.now()` is to give in SQL."""
        ...

    def hold(self, limit: float | None = None) -> AbstractContextManager[object]:
        """Keep time from moving while the block waits for something real.

        After *limit* real seconds (None: as many as it likes) it raises `ClockStuck`.
        """
        ...

    def watch(self, watched: Watched) -> AbstractContextManager[object]:
        """Flush *watched* before time moves, while the block lasts."""
        ...

    def upkeep(self, seconds: float, *, eager: bool = True) -> AbstractContextManager[object]:
        """Leave the block *seconds* later, or later than that if nothing happens until then."""
        ...


timekeeper: trio.lowlevel.RunVar[Timekeeper | None] = trio.lowlevel.RunVar("timekeeper", None)

_NOTHING: contextlib.nullcontext[None] = contextlib.nullcontext()


def held() -> AbstractContextManager[object]:
    """Return what to enter around waiting for something real, such as a reply or a thread."""
    keeper = timekeeper.get()
    return _NOTHING if keeper is None else keeper.hold()


@contextlib.contextmanager
def really_move_on_after(seconds: float) -> Generator[None]:
    """Leave a block that waits for something real, by real time even if a test's clock rules."""
    keeper = timekeeper.get()
    if keeper is None:
        with trio.move_on_after(seconds):
            yield
    else:
        with contextlib.suppress(ClockStuck), keeper.hold(seconds):
            yield


def upkeep_after(seconds: float, *, eager: bool = True) -> AbstractContextManager[object]:
    """Return what to enter to leave a wait *seconds* later, in a loop that looks again and again.

    A test's clock moves for that once after other events, if *eager*, and not again while
    nothing else happens: there is nothing that the loop could have missed.
    """
    keeper = timekeeper.get()
    return trio.move_on_after(seconds) if keeper is None else keeper.upkeep(seconds, eager=eager)


async def upkeep_sleep(seconds: float) -> None:
    """Sleep until a loop is to look again; `upkeep_after` says when that is."""
    with upkeep_after(seconds):
        await trio.sleep_forever()


def watched(listener: Watched) -> AbstractContextManager[object]:
    """Return what to enter for as long as *listener* hears."""
    keeper = timekeeper.get()
    return _NOTHING if keeper is None else keeper.watch(listener)
