"""Waiting for tasks to end: one listener and one question for all who wait."""

from __future__ import annotations

import functools
import random

import attrs
import trio

from ._core._model import TaskStatus
from ._core._retry import Backoff
from ._runtime._supervisor import Sibling, insist, supervise
from ._runtime._wakeup import Wakeup
from ._store import Bell, Store


POLL = 1.0  # seconds; covers the loss of any notification
LONGEST_PAUSE = 5.0  # seconds between questions while the database is away


@attrs.define(eq=False)
class _Waiter:
    task_id: int
    woken: trio.Event = attrs.field(factory=trio.Event)
    answered: bool = False
    status: TaskStatus | None = None


@attrs.define(eq=False)
class Waiting:
    """All who wait for tasks of one client.

    Nobody runs in the background: one of the waiters listens and asks for all of them, and
    when it leaves, another takes over.
    """

    _store: Store
    _waiters: set[_Waiter] = attrs.field(factory=set[_Waiter], init=False)
    _led: bool = attrs.field(default=False, init=False)

    async def final(self, task_id: int) -> TaskStatus | None:
        """Wait until the task has ended; None if there is none of that id."""
        (status,) = await self._store.status_many([task_id])
        if status is None or status.state.is_final:
            return status
        waiter = _Waiter(task_id)
        self._waiters.add(waiter)
        try:
            while not waiter.answered:
                if self._led:
                    await waiter.woken.wait()
                    waiter.woken = trio.Event()
                else:
                    await self._lead(waiter)
        finally:
            self._waiters.discard(waiter)
        return waiter.status

    async def _lead(self, me: _Waiter) -> None:
        self._led = True
        bell, rng = Wakeup(), random.Random()  # noqa: S311  # spreads retries, guards nothing
        listen = functools.partial(self._store.listen, lambda _: bell.ring(), [Bell.FINISHED])
        pause, error = Backoff(maximum=LONGEST_PAUSE), None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    functools.partial(
                        supervise, listen, Sibling("waiting"), backoff=Backoff(), rng=rng
                    )
                )
                try:
                    while not me.answered:
                        with trio.move_on_after(POLL):
                            await bell.wait()
                        await insist(self._look, what="asking for results", backoff=pause, rng=rng)
                except Exception as exc:  # noqa: BLE001  # raised below, not in a group
                    error = exc
                nursery.cancel_scope.cancel()
        finally:
            self._led = False
            for waiter in self._waiters:
                waiter.woken.set()  # somebody else leads now
        if error is not None:
            raise error

    async def _look(self) -> None:
        waiters = list(self._waiters)
        statuses = await self._store.status_many([waiter.task_id for waiter in waiters])
        for waiter, status in zip(waiters, statuses, strict=True):
            if status is None or status.state.is_final:
                waiter.status, waiter.answered = status, True
                waiter.woken.set()
