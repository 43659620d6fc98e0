"""ResultWaiter for tasks to end."""

from __future__ import annotations

import math

import attrs
import trio

from nursery_queue._core._errors import TransientError
from nursery_queue._core._model import TaskStatus
from nursery_queue._store import Bell, ClientStore
from nursery_queue._trio._batcher import Batcher, question_batcher

from ._notifier import Notifier, Subscription, WakePolicy


FIRST_LOOK = 5.0  # seconds for the first question, however little time there is to wait
AT_ONCE = 1000  # tasks in one question
# While we hear nothing once a second, else by and by once a minute.
ENDS = WakePolicy(frozenset({Bell.FINISHED}), deaf=1.0, hearing=60.0)


@attrs.define(eq=False)
class ResultWaiter:
    """All who wait for tasks of one client."""

    _store: ClientStore
    _notifier: Notifier
    _questions: Batcher[int, TaskStatus | None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._notifier.ring_for(ENDS)
        self._questions = question_batcher(
            self._store.status_many, what="asking for results", most=AT_ONCE
        )

    async def final(self, task_id: int, timeout: float = math.inf) -> TaskStatus | None:  # noqa: ASYNC109  # the first look has a limit of its own
        """Wait until the task has ended; None if there is none of that id.

        Looks once in any case. Raises `TooSlowError` when it has not ended in time, and
        `TransientError` when nothing could be seen in time.
        """
        deadline = trio.current_time() + timeout
        subscription = self._notifier.subscribe(task_id, ENDS)  # first: what ends from now on rings
        try:
            status, ended = await self._first_look(subscription, max(timeout, FIRST_LOOK), deadline)
            with trio.fail_at(deadline):
                while not ended:
                    await subscription.changed()
                    status = await self._questions.call(task_id)
                    ended = _has_ended(status)
            return status
        finally:
            subscription.leave()

    def close(self, why: str) -> None:
        """Tell whoever waits `Closed`, and why."""
        self._questions.close(why)

    async def _first_look(
        self, subscription: Subscription, limit: float, deadline: float
    ) -> tuple[TaskStatus | None, bool]:
        """Look alone, for who has no time to wait for others; tell what there was, and if ended."""
        try:
            with trio.fail_after(limit):
                (status,) = await self._store.status_many([subscription.task_id])
        except TransientError:
            if trio.current_time() >= deadline:
                raise
            subscription.ring()  # nothing was seen: look again at once
            return None, False
        return status, _has_ended(status)


def _has_ended(status: TaskStatus | None) -> bool:
    return status is None or status.state.is_final
