"""Tasks in memory, on trio's clock: for fast tests and for simulation."""

from __future__ import annotations

import contextlib

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, NoReturn
from uuid import UUID

import attrs
import trio

from nursery_queue._core._errors import Closed, StaleClaim, TransientError
from nursery_queue._core._model import (
    Attempt,
    Beat,
    Claimed,
    Fence,
    Lane,
    NewTask,
    Refusal,
    Settlement,
    Stats,
    TaskFilter,
    TaskRef,
    TaskStatus,
    WorkerInfo,
)
from nursery_queue._core._states import State

from . import Bell, StoreTransaction
from ._rows import check_settlement, check_task
from ._tables import Tables


@attrs.define(eq=False)
class MemoryStore:
    """A `Store` that keeps everything in this process and forgets it with the process.

    Behaves like PostgreSQL at this boundary, except that there is no SQL: a transaction's
    `execute` and `connection` raise `TypeError`. Every verb is one checkpoint and then one
    atomic step, so a cancelled verb had no effect.
    """

    _tables: Tables = attrs.field(factory=Tables, init=False)
    _rings: list[Callable[[Bell], None]] = attrs.field(
        factory=list[Callable[[Bell], None]], init=False
    )
    _closed: bool = attrs.field(default=False, init=False)

    async def check(self) -> None:
        """Memory is always in shape."""
        await self._turn()

    async def aclose(self) -> None:
        """Refuse further use."""
        self._closed = True
        await trio.lowlevel.checkpoint()

    # -- what applications do ----------------------------------------------------

    async def enqueue(self, tasks: Sequence[NewTask]) -> list[TaskRef]:
        """Store tasks, all or none, and answer in their order."""
        await self._turn()
        for task in tasks:
            check_task(task)
        refs = [self._tables.insert(task) for task in tasks]
        self._ring(Bell.WORK)
        return refs

    def transaction(self) -> AbstractAsyncContextManager[StoreTransaction]:
        """Open a transaction; what is done in it is applied when the block ends well."""
        return self._transaction()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[StoreTransaction]:
        await self._turn()
        tx = _Transaction(self._tables)
        yield tx
        await self._turn()
        tx.commit()
        for bell in Bell:
            self._ring(bell)

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        """Cancel a waiting task, or ask for a running one to be."""
        await self._turn()
        done = self._tables.cancel(task_id, running=running)
        self._ring(Bell.CANCEL)
        self._ring(Bell.FINISHED)
        return done

    async def retry(self, task_id: int) -> bool:
        """Make a failed or cancelled task ready again."""
        await self._turn()
        done = self._tables.retry(task_id)
        self._ring(Bell.WORK)
        return done

    async def status_many(self, task_ids: Sequence[int]) -> list[TaskStatus | None]:
        """Say where tasks are, in the order asked."""
        await self._turn()
        return [self._tables.status(task_id) for task_id in task_ids]

    async def attempts(self, task_id: int) -> list[Attempt]:
        """Return the whole log of a task, oldest first, a running attempt included."""
        await self._turn()
        return self._tables.attempts(task_id)

    async def list_tasks(self, which: TaskFilter) -> list[TaskStatus]:
        """Return a page of tasks, newest first."""
        await self._turn()
        return self._tables.list_tasks(which)

    async def stats(self) -> Stats:
        """Count tasks and list workers."""
        await self._turn()
        return self._tables.stats()

    # -- what a worker does ------------------------------------------------------

    async def register(self, worker: WorkerInfo) -> None:
        """Make a worker known; only known workers may claim."""
        await self._turn()
        self._tables.register(worker)

    async def heartbeat(self, worker_id: UUID, *, draining: bool) -> Beat:
        """Renew a lease; never registers anew."""
        await self._turn()
        return self._tables.heartbeat(worker_id, draining=draining)

    async def deregister(self, worker_id: UUID) -> None:
        """Forget a worker. What it still holds may be swept at once."""
        await self._turn()
        self._tables.workers.pop(worker_id, None)

    async def claim(
        self,
        worker_id: UUID,
        task_types: Sequence[str],
        *,
        limit: int,
        lanes: Sequence[Lane] | None = None,
    ) -> Claimed:
        """Take at most *limit* ready tasks; *lanes*: only these queues (None: all)."""
        await self._turn()
        return self._tables.claim(worker_id, task_types, limit=limit, lanes=lanes)

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        """Write what became of claims; return those not applied, and why."""
        await self._turn()
        for settlement in settlements:
            check_settlement(settlement)
        refused: dict[Fence, Refusal] = {}
        for settlement in settlements:
            if (refusal := self._tables.refusal(settlement)) is not None:
                refused[settlement.fence] = refusal
            else:
                self._tables.apply(settlement)
        self._ring(Bell.FINISHED)
        if not all(settlement.state.is_final for settlement in settlements):
            self._ring(Bell.WORK)
        return refused

    async def give_back_all_but(self, worker_id: UUID, fences: set[Fence]) -> int:
        """Release what the store thinks this worker holds, except *fences*."""
        await self._turn()
        return self._rung(self._tables.give_back_all_but(worker_id, fences))

    async def promote(self) -> int:
        """Make scheduled tasks that are due ready, in bulk; return how many."""
        await self._turn()
        return self._rung(self._tables.promote())

    async def sweep(self, *, max_lost: int) -> int:
        """Settle as lost what dead workers hold; return how many."""
        await self._turn()
        return self._rung(self._tables.sweep(max_lost=max_lost))

    async def prune(self) -> int:
        """Delete a batch of tasks that ended longer ago than they are kept; return how many."""
        await self._turn()
        return self._tables.prune()

    async def listen(
        self,
        ring: Callable[[Bell], object],
        bells: Sequence[Bell],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call *ring* for each of *bells* when there may be news, until cancelled."""
        await self._turn()

        def relay(bell: Bell) -> None:
            if bell in bells:
                ring(bell)

        self._rings.append(relay)
        try:
            for bell in bells:
                ring(bell)
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._rings.remove(relay)

    # -- helpers -----------------------------------------------------------------

    async def _turn(self) -> None:
        if self._closed:
            msg = "this MemoryStore has been closed"
            raise Closed(msg)
        await trio.lowlevel.checkpoint()

    def _ring(self, bell: Bell) -> None:
        for ring in list(self._rings):
            ring(bell)

    def _rung(self, moved: int) -> int:
        if moved:
            self._ring(Bell.WORK)
            self._ring(Bell.FINISHED)
        return moved


@attrs.define(eq=False)
class _Draft:
    """What an open transaction has done so far."""

    steps: list[Callable[[], object]] = attrs.field(factory=list[Callable[[], object]])
    settlements: dict[int, Settlement] = attrs.field(factory=dict[int, Settlement])
    keys: dict[str, int] = attrs.field(factory=dict[str, int])  # of its own new tasks
    waiting: set[int] = attrs.field(factory=set[int])  # its own new tasks
    ended: set[int] = attrs.field(factory=set[int])

    def copy(self) -> _Draft:
        return _Draft(
            list(self.steps),
            dict(self.settlements),
            dict(self.keys),
            set(self.waiting),
            set(self.ended),
        )


@attrs.define(eq=False)
class _Transaction:
    """Steps kept until the block ends, then applied in one go."""

    _tables: Tables
    _draft: _Draft = attrs.field(factory=_Draft, init=False)

    @property
    def connection(self) -> NoReturn:
        """There is none."""
        msg = "a MemoryStore has no database connection: use PostgreSQL for your own SQL"
        raise TypeError(msg)

    async def execute(self, query: Any, params: Any = None) -> NoReturn:
        """There is no SQL."""
        del params
        await trio.lowlevel.checkpoint()
        msg = f"a MemoryStore runs no SQL: use PostgreSQL for {query!r}"
        raise TypeError(msg)

    async def enqueue(self, tasks: Sequence[NewTask]) -> list[TaskRef]:
        """Store tasks when the block ends well; their ids are known now."""
        await trio.lowlevel.checkpoint()
        for task in tasks:
            check_task(task)
        return [self._enqueue(task) for task in tasks]

    def _enqueue(self, task: NewTask) -> TaskRef:
        draft, key = self._draft, task.dedup_key
        if key is not None:
            existing = draft.keys.get(key) or self._tables.live_key(task)
            if existing is not None and existing not in draft.ended:
                return TaskRef(existing, created=False)
        task_id, now = next(self._tables.ids), self._tables.now()
        if key is not None:
            draft.keys[key] = task_id
        draft.waiting.add(task_id)
        draft.steps.append(lambda: self._tables.insert(task, task_id, now))
        return TaskRef(task_id)

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        """Cancel when the block ends well."""
        await trio.lowlevel.checkpoint()
        draft, place = self._draft, self._tables.places.get(task_id)
        waiting = task_id in draft.waiting if place is None else not place.state.is_final
        if not waiting or task_id in draft.ended:
            return False
        if place is None or place.state is not State.RUNNING:
            draft.ended.add(task_id)
        draft.steps.append(lambda: self._tables.cancel(task_id, running=running))
        return True

    async def settle(self, settlement: Settlement) -> None:
        """Settle one claim when the block ends well."""
        await trio.lowlevel.checkpoint()
        check_settlement(settlement)
        draft, task_id = self._draft, settlement.fence.task_id
        _insist(settlement, Refusal.STALE if task_id in draft.settlements else None)
        _insist(settlement, self._tables.refusal(settlement))
        draft.settlements[task_id] = settlement
        if settlement.state.is_final:
            draft.ended.add(task_id)
        draft.steps.append(lambda: self._tables.apply(settlement))

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None]:
        """A block that can fail alone."""
        kept = self._draft.copy()
        try:
            yield
        except BaseException:
            self._draft = kept
            raise

    def commit(self) -> None:
        """Apply everything, or raise and apply nothing."""
        for settlement in self._draft.settlements.values():
            _insist(settlement, self._tables.refusal(settlement))
        for key in self._draft.keys:
            if self._tables.dedup.get(key, 0) not in {0, *self._draft.ended}:
                msg = f"dedup key {key!r} was taken while the transaction was open"
                raise TransientError(msg)
        for step in self._draft.steps:
            step()


def _insist(settlement: Settlement, refusal: Refusal | None) -> None:
    if refusal is not None:
        msg = f"{settlement.fence} cannot be settled: {refusal}"
        raise (StaleClaim if refusal is Refusal.STALE else TransientError)(msg)
