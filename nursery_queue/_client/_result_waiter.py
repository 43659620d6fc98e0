"""Waiting for tasks to end."""

from __future__ import annotations

import math

import attrs
import trio

from nursery_queue._core._errors import TransientError
from nursery_queue._core._model import TaskStatus
from nursery_queue._store import Bell, ClientStore
from nursery_queue._trio._batcher import Batcher, question_batcher

from ._notifier import Notifier, Subscription, WakePolicy


FIRST_LOOK = 5.0  # seconds that the first question may take, even if the timeout is shorter
AT_ONCE = 1000  # tasks in one question
# A poll a second while notifications do not come, else by and by one a minute.
ENDS = WakePolicy(frozenset({Bell.FINISHED}), deaf=1.0, hearing=60.0)


@attrs.define(eq=False)
class ResultWaiter:
    """Waits for tasks to end, for all callers of one client."""

    _store: ClientStore
    _notifier: Notifier
    _questions: Batcher[int, TaskStatus | None] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._notifier.ring_for(ENDS)
        self._questions = question_batcher(
            self._store.status_many, what="asking for results", most=AT_ONCE
        )

    async def final(self, task_id: int, timeout: float = math.inf) -> TaskStatus | None:  # noqa: ASYNC109  # the first look has a limit of its own
        """Wait until the task has ended and return its status; None: there is none of that id.

        Asks once in any case. Raises `TooSlowError` if it has not ended in *timeout* seconds,
        and `TransientError` if the store did not answer in that time.
        """
        deadline = trio.current_time() + timeout
        # Before the first question, so that an end after that wakes it.
        subscription = self._notifier.subscribe(task_id, ENDS)
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
        """Raise `Closed` to all callers, which says *why*."""
        self._questions.close(why)

    async def _first_look(
        self, subscription: Subscription, limit: float, deadline: float
    ) -> tuple[TaskStatus | None, bool]:
        """Ask in a statement of its own, as others may be slow; return the status, and if ended."""
        try:
            with trio.fail_after(limit):
                (status,) = await self._store.status_many([subscription.task_id])
        except TransientError:
            if trio.current_time() >= deadline:
                raise
            subscription.wake()  # no answer: ask again at once
            return None, False
        return status, _has_ended(status)


def _has_ended(status: TaskStatus | None) -> bool:
    return status is None or status.state.is_final
