"""Waiting for tasks to end: one listener and one question for all who wait."""

from __future__ import annotations

import functools
import math

from collections.abc import Sequence

import attrs
import trio

from ._core._errors import Closed, TransientError
from ._core._model import TaskStatus
from ._core._retry import Backoff
from ._runtime._chance import new_rng
from ._runtime._supervisor import Sibling, SiblingState, insist, supervise
from ._runtime._wakeup import Wakeup
from ._store import Bell, Store


FIRST_LOOK = 5.0  # seconds for the first question, however little time there is to wait
POLL = 1.0  # seconds between questions while we hear of nothing
POLL_HEARING = 60.0  # seconds; reached by and by, covers a notification that got lost
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
    # Like a set, but in the order of their coming.
    _waiters: dict[_Waiter, None] = attrs.field(factory=dict[_Waiter, None], init=False)
    _led: bool = attrs.field(default=False, init=False)
    _bell: Wakeup = attrs.field(factory=Wakeup, init=False)

    async def final(self, task_id: int, timeout: float = math.inf) -> TaskStatus | None:  # noqa: ASYNC109  # the first look has a limit of its own
        """Wait until the task has ended; None if there is none of that id.

        Looks once in any case. Raises `TooSlowError` when it has not ended in time, and
        `TransientError` when nothing could be seen in time.
        """
        deadline = trio.current_time() + timeout
        waiter = _Waiter(task_id)
        if not await self._first_look(waiter, max(timeout, FIRST_LOOK), deadline):
            with trio.fail_at(deadline):
                await self._wait(waiter)
        return waiter.status

    def ask_again(self) -> None:
        """Make whoever asks for all do so now."""
        self._bell.ring()

    async def _first_look(self, waiter: _Waiter, limit: float, deadline: float) -> bool:
        try:
            with trio.fail_after(limit):
                await self._look([waiter])
        except TransientError:
            if trio.current_time() >= deadline:
                raise
        return waiter.answered

    async def _wait(self, waiter: _Waiter) -> None:
        self._waiters[waiter] = None
        try:
            while not waiter.answered:
                if self._led:
                    await waiter.woken.wait()
                    waiter.woken = trio.Event()
                else:
                    await self._lead(waiter)
        finally:
            self._waiters.pop(waiter, None)

    async def _lead(self, me: _Waiter) -> None:
        self._led = True
        rng, listener, poll = new_rng(), Sibling("waiting"), POLL
        pause, error = Backoff(maximum=LONGEST_PAUSE), None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    functools.partial(supervise, self._listen, listener, backoff=Backoff(), rng=rng)
                )
                try:
                    while not me.answered:
                        with trio.move_on_after(poll):
                            await self._bell.wait()
                        await insist(
                            self._look_for_all, what="asking for results", backoff=pause, rng=rng
                        )
                        heard = listener.state is SiblingState.HEALTHY
                        poll = min(2 * poll, POLL_HEARING) if heard else POLL
                except Exception as exc:  # noqa: BLE001  # raised below, not in a group
                    error = exc
                nursery.cancel_scope.cancel()
        finally:
            self._led = False
            for waiter in self._waiters:
                if waiter is not me:  # somebody else leads now, and asks at once
                    waiter.woken.set()
                    self._bell.ring()
        if error is not None:
            raise error

    async def _listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            await self._store.listen(
                lambda _: self._bell.ring(), [Bell.FINISHED], task_status=task_status
            )
        except Closed:
            await trio.sleep_forever()  # whoever asks next is told so

    async def _look_for_all(self) -> None:
        await self._look(list(self._waiters))

    async def _look(self, waiters: Sequence[_Waiter]) -> None:
        statuses = await self._store.status_many([waiter.task_id for waiter in waiters])
        for waiter, status in zip(waiters, statuses, strict=True):
            if status is None or status.state.is_final:
                waiter.status, waiter.answered = status, True
                waiter.woken.set()
