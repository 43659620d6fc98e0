"""Waiting for PostgreSQL with trio: psycopg's generators name the event, this waits for it."""

from __future__ import annotations

import contextlib
import select
import time

from collections.abc import Awaitable, Callable
from typing import TypeVar

import psycopg
import trio

from psycopg.abc import PQGen
from psycopg.pq.abc import PGconn
from psycopg.waiting import Ready, Wait

from nursery_queue._core._exception_groups import leaves
from nursery_queue._trio._clock import held, timekeeper


T = TypeVar("T")

_NOTHING: contextlib.nullcontext[None] = contextlib.nullcontext()

READ, WRITE = int(Ready.R), int(Ready.W)
NOTHING_YET = int(Ready.NONE)  # a generator that is told so says again what it waits for
LONGEST_TURN = 0.005  # seconds a generator that never has to wait may keep other tasks waiting


class Lock:
    """One user at a time; no scheduler pass when it is free.

    Unlike `trio.Lock` it may be released by another task than the one that took it, as
    happens when an async generator is closed elsewhere. Its holder waits for the database
    anyway, so taking it needs no checkpoint of its own.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting = trio.lowlevel.ParkingLot()

    def locked(self) -> bool:
        return self._taken

    async def __aenter__(self) -> None:
        if self._taken:
            await self._waiting.park()  # the task that wakes us leaves us the lock, still held
        self._taken = True

    async def __aexit__(self, *exc: object) -> None:
        if self._waiting:
            self._waiting.unpark()  # the lock stays held: no third task can come in between
        else:
            self._taken = False


def ready_now(fd: int, want: int) -> int:
    """Return the part of *want* that the socket is ready for now; an error counts as both."""
    # Not `select.select`, which takes no file numbers above 1023: a process with many connections
    # has them.
    poll = select.poll()
    poll.register(
        fd, (select.POLLIN if want & READ else 0) | (select.POLLOUT if want & WRITE else 0)
    )
    ready = 0
    for _, events in poll.poll(0):
        if events & ~select.POLLOUT:
            ready |= READ
        if events & ~select.POLLIN:
            ready |= WRITE
    return ready & want


async def wait_ready(fd: int, want: int) -> int:
    """Wait until the socket is ready for a part of *want*, and return that.

    Raises the error of one wait, also where it waits for both: no group.
    """
    if want == READ:
        await trio.lowlevel.wait_readable(fd)
        return READ
    if want == WRITE:
        await trio.lowlevel.wait_writable(fd)
        return WRITE
    ready = 0

    async def one(wait: Callable[[int], Awaitable[None]], flag: int) -> None:
        nonlocal ready
        await wait(fd)
        ready |= flag
        nursery.cancel_scope.cancel()

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, trio.lowlevel.wait_readable, READ)
            nursery.start_soon(one, trio.lowlevel.wait_writable, WRITE)
    except BaseExceptionGroup as group:
        raise _foremost(group) from None
    return ready


def _foremost(group: BaseException) -> BaseException:
    """Return the error of a group that matters most: Ctrl-C, else any that is no `Cancelled`."""

    def rank(error: BaseException) -> int:
        return 2 * isinstance(error, trio.Cancelled) - isinstance(error, KeyboardInterrupt)

    return min(leaves(group), key=rank)


class Turn:
    """Since when a connection has kept other tasks waiting.

    A COPY whose buffers never fill waits for nothing: without a bound it stalled the loop for 45 ms
    (tests/pg/test_connection.py, a busy connection lets others run).
    """

    def __init__(self) -> None:
        self.began = 0.0

    def over(self) -> bool:
        return time.monotonic() - self.began > LONGEST_TURN

    def renew(self) -> None:
        self.began = time.monotonic()


async def drive(gen: PQGen[T], pgconn: PGconn, turn: Turn, *, begun: bool = False) -> T:
    """Run *gen* to its end.

    `trio.Cancelled` and Ctrl-C at a checkpoint leave it suspended: call again, and say that it
    has *begun*, to go on. Let Ctrl-C come at checkpoints only (`_connection.py`), as in the
    midst of a generator of Python's it would end that.
    """
    keeper = timekeeper.get()
    try:
        # Not `next()`: compiled generators insist on a number once they have begun
        # (tests/pg/test_large_statements.py).
        want = gen.send(NOTHING_YET) if begun else next(gen)
        fd = pgconn.socket
        while True:
            # Only the waiting is guarded: a generator may call user code, such as a loader, and an
            # OSError of that is not the loss of the connection.
            try:
                if want == Wait.R:
                    with _NOTHING if keeper is None else keeper.hold():
                        await trio.lowlevel.wait_readable(fd)
                    ready = READ
                    turn.renew()
                else:
                    ready = await _sendable(fd, want, turn)
            except (OSError, trio.ClosedResourceError) as exc:
                pgconn.finish()
                msg = "the connection was closed while waiting for the database"
                raise psycopg.OperationalError(msg) from exc
            want = gen.send(ready)
    except StopIteration as stop:
        if turn.over():  # rows or buffers were there all along
            # Shielded: the statement has taken effect, so the call has to return.
            await trio.lowlevel.cancel_shielded_checkpoint()
            turn.renew()
        result: T = stop.value
        return result


async def _sendable(fd: int, want: int, turn: Turn) -> int:
    # Nearly always writable already: asking the kernel costs less than waiting.
    if turn.over():
        await trio.lowlevel.checkpoint()
        turn.renew()
    if not (ready := ready_now(fd, want)):
        with held():
            ready = await wait_ready(fd, want)
        turn.renew()
    return ready
