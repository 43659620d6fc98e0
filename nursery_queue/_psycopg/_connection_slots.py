"""Slots: the right to hold a connection of a pool, by the purpose that it is wanted for."""

from __future__ import annotations

import itertools

from collections.abc import Iterator
from typing import Final

import attrs
import trio

from nursery_queue._core._errors import Closed
from nursery_queue._trio._connection_use import noting_cancellation


# The purposes of a connection: a single statement, or a transaction of some level. Each
# transaction that the same attempt or task has open already makes the level higher by one.
SINGLE: Final = -1
FIRST_OF_ATTEMPT, FIRST = 0, 1  # the first transaction of an attempt, or of an application


@attrs.define(eq=False)
class _Waiter:
    """A call that waits for a slot; *number* is its place in the order of coming."""

    number: int
    slot: trio.Event = attrs.field(factory=trio.Event)


@attrs.define(eq=False)
class ConnectionSlots:
    """At most *max_size* slots, given in the order in which they were asked for.

    A transaction never takes the last slots: they are for single statements, which give them back
    soon, and for transactions within transactions, which others may be waiting for. So open
    transactions that ask for more, however many, cannot bring each other to a stop (failures.md
    F10). *kept*: how many slots the first transactions of attempts leave. See `most`.
    """

    max_size: int
    kept: int
    in_use: int = attrs.field(default=0, init=False)
    in_transactions: int = attrs.field(default=0, init=False)  # of the slots in use
    # By purpose, in the order of their coming.
    _waiting: dict[int, dict[_Waiter, None]] = attrs.field(
        factory=dict[int, dict[_Waiter, None]], init=False
    )
    _numbers: Iterator[int] = attrs.field(factory=itertools.count, init=False)
    _closed: bool = attrs.field(default=False, init=False)

    @property
    def waiting(self) -> int:
        """How many calls wait for a slot."""
        return sum(map(len, self._waiting.values()))

    def resize(self, max_size: int, kept: int) -> None:
        """From now on have other bounds; slots in use beyond them are given back in time."""
        self.max_size, self.kept = max_size, kept
        self._serve()

    def most(self, level: int) -> int:
        """Return how many connections transactions may hold once one of *level* is open.

        Each level leaves a third of the slots that the one below it leaves: at least one to single
        statements, and the first ones another to a transaction within theirs. With one or two
        connections in all there is not enough for that, and the last one may be taken.
        """
        left = self.kept
        for _ in range(min(level, 5)):
            left = -(-left // 3)
        least, here = (2, 1) if level <= FIRST else (1, 2)
        return self.max_size - max(0, min(max(least, left), self.max_size - here))

    async def take(self, purpose: int) -> None:
        """Wait for a slot, and take it. Cancelled, it has taken none; raises `Closed`."""
        self.refuse_if_closed()
        # If there is one for this purpose, no call waits that could have it: `_serve` runs whenever
        # a slot becomes free. So taking it at once keeps the order of coming.
        if self._may_have(purpose):
            self._take(purpose)
            return
        waiter = _Waiter(next(self._numbers))
        self._waiting.setdefault(purpose, {})[waiter] = None
        try:
            with noting_cancellation():
                await waiter.slot.wait()
        except BaseException:
            # Cancelled in the moment in which it was served: the slot has to go on to the next call
            # (tests/pg/test_pool.py, cancelled at every moment).
            if not self._still_waits(waiter, purpose):
                self.give(purpose)
            raise
        if self._still_waits(waiter, purpose):  # woken without a slot
            self.refuse_if_closed()

    def give(self, purpose: int) -> None:
        """Give a slot back, and on to a call that may have it."""
        self.in_use -= 1
        self.in_transactions -= purpose != SINGLE
        self._serve()

    def close(self) -> None:
        """Wake the calls that wait: they get `Closed`."""
        self._closed = True
        for waiters in self._waiting.values():
            for waiter in waiters:
                waiter.slot.set()

    def refuse_if_closed(self) -> None:
        """Raise `Closed` after `close`."""
        if self._closed:
            raise Closed("this pool is closed")

    def shortage(self, purpose: int) -> str:
        """Say why there may be none to be had."""
        used = f"{self.in_use} of {self.max_size} are in use"
        if purpose == SINGLE:
            return used
        most = self.most(purpose)
        return f"{used}, {self.in_transactions} by transactions, which may have {most}"

    def _may_have(self, purpose: int) -> bool:
        """Tell whether there is a slot, in general and for this purpose."""
        if self.in_use >= self.max_size:
            return False
        return purpose == SINGLE or self.in_transactions < self.most(purpose)

    def _take(self, purpose: int) -> None:
        self.in_use += 1
        self.in_transactions += purpose != SINGLE

    def _still_waits(self, waiter: _Waiter, purpose: int) -> bool:
        """Tell whether *waiter* has not been given a slot, and take it off the list."""
        waiters = self._waiting[purpose]
        return waiter in waiters and waiters.pop(waiter) is None

    def _serve(self) -> None:
        """Give free slots to the calls that may have them, in the order of their coming."""
        while self.in_use < self.max_size:
            heads = [
                (next(iter(waiters)).number, purpose)
                for purpose, waiters in self._waiting.items()
                if waiters and self._may_have(purpose)
            ]
            if not heads or self._closed:
                break
            _, purpose = min(heads)
            waiter = next(iter(self._waiting[purpose]))
            del self._waiting[purpose][waiter]
            self._take(purpose)
            waiter.slot.set()
