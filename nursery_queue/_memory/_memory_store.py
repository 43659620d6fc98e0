"""Tasks in memory, on trio's clock: for fast tests and for simulation."""

from __future__ import annotations

import contextlib

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager

import attrs
import trio

from nursery_queue._core._errors import TransientError
from nursery_queue._core._excuses import Excuse, excuse
from nursery_queue._store import Bell, Isolation, Ring, Store, StoreTransaction

from ._client_verbs import ClientVerbs
from ._memory_transaction import MemoryTransaction
from ._schedule_verbs import ScheduleVerbs
from ._stats_verbs import StatsVerbs
from ._worker_verbs import WorkerVerbs


@attrs.define(eq=False)
class MemoryStore(ClientVerbs, WorkerVerbs, ScheduleVerbs, StatsVerbs, Store):
    """A `Store` that keeps everything in this process and forgets it with the process.

    Behaves like PostgreSQL at this boundary, except that there is no SQL: a transaction's
    `execute` and `connection` raise `TypeError`. A cancelled verb had no effect.
    """

    async def check(self) -> None:
        await self._begin()

    async def aclose(self) -> None:
        self._closed = True
        await trio.lowlevel.checkpoint()

    def transaction(
        self, *, isolation: Isolation | None = None
    ) -> AbstractAsyncContextManager[StoreTransaction]:
        del isolation  # a transaction is applied in one step, so no other one is half done
        return self._transaction()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[StoreTransaction]:
        await self._begin()
        tx = MemoryTransaction(self._tables)
        yield tx
        await self._begin()
        try:
            tx.commit()
        except TransientError as exc:
            excuse(exc, Excuse.CONFLICT)
            raise
        if tx.rings:
            self._ring_all()
        for task_id in tx.written:
            self._ring(Bell.STREAM, task_id=task_id)

    async def listen(
        self,
        ring: Ring,
        bells: Sequence[Bell],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        await self._begin()

        def relay(bell: Bell, task_id: int | None = None, /) -> None:
            if bell in bells:
                ring(bell, task_id)

        self._rings.append(relay)
        try:
            for bell in bells:
                ring(bell)
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._rings.remove(relay)
