"""The loop that stores what code declares of queues, once."""

from __future__ import annotations

import logging

from collections.abc import Mapping

import attrs
import trio

from nursery_queue._core._error_text import one_line
from nursery_queue._core._errors import TransientError
from nursery_queue._core._queue_changes import QueueChanges
from nursery_queue._core._retry import Backoff
from nursery_queue._store import WorkerStore


log = logging.getLogger("nursery_queue")

# Limits that are not stored hold for nobody: what is in their way is tried again soon.
IMPATIENCE = Backoff(maximum=5.0)
# Seconds that claims wait for declarations to be stored while the store gives no answer.
CLAIMS_WAIT = 30.0


@attrs.define(eq=False)
class QueueDeclarer:
    """Stores the declarations of queues when the worker starts, and rests when all are stored.

    Only a start declares. What has been stored is not stored again by the same run, whatever
    happens to the lease: newer code may have been declared since.
    """

    store: WorkerStore
    _left: Mapping[str, QueueChanges]  # what is not stored yet
    _tried: trio.Event = attrs.field(factory=trio.Event, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Store what is left, and raise what is in the way. Ready means: all of it is stored."""
        if self._left:
            await self._declare()
        self._tried.set()
        task_status.started()
        await trio.sleep_forever()

    async def tried(self) -> None:
        """Wait until the store has taken what it takes, so that no task starts without its limits.

        Not for ever: a store that gives no answer to this may give one to claims.
        """
        with trio.move_on_after(CLAIMS_WAIT):
            await self._tried.wait()

    async def _declare(self) -> None:
        try:
            answer = await self.store.declare_queues(self._left)
        except TransientError:
            raise  # claims would get no answer either
        except Exception:
            self._tried.set()  # tasks are not to wait until that is mended
            raise
        for name in answer.changed:
            log.info("queue %s is set as the code declares it", name)
        self._left = {name: self._left[name] for name in answer.left}
        if answer.left:
            self._tried.set()
            why = "; ".join(f"{name}: {one_line(text)}" for name, text in answer.left.items())
            raise TransientError(f"queues are not set as the code declares them: {why}")
