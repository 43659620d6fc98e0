"""Tasks in memory, on trio's clock: for fast tests and for simulation."""

from __future__ import annotations

import contextlib
import functools

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from uuid import UUID

import attrs
import trio

from nursery_queue._core._errors import Closed, TransientError
from nursery_queue._core._excuses import Excuse, excuse
from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._heartbeat import Beat, Seen
from nursery_queue._core._model import (
    Attempt,
    Claimed,
    Fence,
    NewTask,
    Outcome,
    QueueSlots,
    QueueStatus,
    Refusal,
    Settlement,
    Spot,
    Stats,
    TaskRef,
    TaskStatus,
    WorkerInfo,
    WorkerStatus,
)
from nursery_queue._core._outcome import allowed_losses
from nursery_queue._core._streams import StreamPage, StreamRequest, StreamWrite, insist_on
from nursery_queue._store import Bell, Isolation, Ring, StoreTransaction, TellLost, tell_nobody

from . import _memory_stats as _census
from ._memory_rows import check_settlement, check_task
from ._memory_transaction import MemoryTransaction
from ._worker_verbs import WorkerVerbs


@attrs.define(eq=False)
class MemoryStore:
    """A `Store` that keeps everything in this process and forgets it with the process.

    Behaves like PostgreSQL at this boundary, except that there is no SQL: a transaction's
    `execute` and `connection` raise `TypeError`. Every verb is one checkpoint and then one
    atomic step, so a cancelled verb had no effect.
    """

    _tables: WorkerVerbs = attrs.field(factory=WorkerVerbs, init=False, repr=False)
    _rings: list[Ring] = attrs.field(factory=list[Ring], init=False)
    _closed: bool = attrs.field(default=False, init=False)

    async def check(self) -> None:
        """Memory is always in shape."""
        await self._turn()

    async def aclose(self) -> None:
        """Refuse further use."""
        self._closed = True
        await trio.lowlevel.checkpoint()

    # -- what applications do ----------------------------------------------------

    async def enqueue(self, tasks: Sequence[NewTask], *, copy: bool = False) -> list[TaskRef]:
        """Store tasks, all or none, and answer in their order."""
        del copy
        await self._turn()
        for task in tasks:
            check_task(task)
        refs = [self._tables.insert(task) for task in tasks]
        if any(self._tables.rings(task) for task in tasks):
            self._ring(Bell.WORK)
        return refs

    def transaction(
        self, *, isolation: Isolation | None = None
    ) -> AbstractAsyncContextManager[StoreTransaction]:
        """Open a transaction; what is done in it is applied when the block ends well."""
        del isolation  # there are no other transactions in the middle of something
        return self._transaction()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[StoreTransaction]:
        await self._turn()
        tx = MemoryTransaction(self._tables)
        yield tx
        await self._turn()
        try:
            tx.commit()
        except TransientError as exc:
            excuse(exc, Excuse.CONFLICT)
            raise
        if tx.rings:
            self._ring_all()
        for task_id in tx.written:
            self._ring(Bell.STREAM, task_id)

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        """Cancel a waiting task, or ask for a running one to be."""
        await self._turn()
        done = self._tables.cancel(task_id, running=running)
        self._ring_all()  # who is told of it is work
        return done

    async def cancel_some(
        self, which: CancelFilter, *, after: int, upto: int, dry_run: bool
    ) -> tuple[int | None, int]:
        """Cancel what fits on one page of a walk through all tasks, or count it."""
        await self._turn()
        page = self._tables.cancel_some(which, after=after, upto=upto, dry_run=dry_run)
        self._ring_all()  # there may be tasks that tell how they ended
        return page

    async def retry(self, task_id: int) -> bool:
        """Make a failed or cancelled task ready again."""
        await self._turn()
        done = self._tables.retry(task_id)
        self._ring(Bell.WORK)
        return done

    async def status_many(
        self, task_ids: Sequence[int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        """Say where tasks are, in the order asked."""
        await self._turn()
        return [self._tables.status(task_id, payloads=payloads) for task_id in task_ids]

    async def attempts(self, task_id: int) -> list[Attempt]:
        """Return the whole log of a task, oldest first, a running attempt included."""
        await self._turn()
        return self._tables.attempts(task_id)

    async def list_tasks(self, which: TaskFilter) -> list[TaskStatus]:
        """Return a page of tasks, newest first."""
        await self._turn()
        return self._tables.list_tasks(which)

    async def pause(self, queue: str, *, paused: bool) -> None:
        """Let nothing of a queue start, or let it start again."""
        await self._turn()
        self._tables.pause(queue, paused=paused)
        self._ring(Bell.WORK)
        self._ring(Bell.CANCEL)

    async def limit(self, queue: str, max_running: int | None) -> None:
        """Set how many tasks of a queue may run over all workers; None: no limit."""
        await self._turn()
        self._tables.limit(queue, max_running)
        self._ring(Bell.WORK)
        self._ring(Bell.CANCEL)

    async def notify(self, queue: str, *, notify: bool) -> None:
        """Have enqueues to a queue wake workers, or leave its tasks to their polls."""
        await self._turn()
        self._tables.notify(queue, notify=notify)
        self._ring(Bell.WORK)

    async def queues(self) -> list[QueueStatus]:
        """Return every queue that is set in some way or has live tasks, by name."""
        await self._turn()
        return self._tables.queues()

    async def workers(self) -> list[WorkerStatus]:
        """Return every registered worker, the oldest first."""
        await self._turn()
        return _census.workers(self._tables)

    async def stats(self) -> Stats:
        """Count tasks and attempts, and list workers."""
        await self._turn()
        return _census.stats(self._tables)

    async def read_streams(self, requests: Sequence[StreamRequest]) -> list[StreamPage | None]:
        """Return a page for each request, in their order; None: there is no such task."""
        await self._turn()
        return [self._tables.read_stream(request) for request in requests]

    # -- what a worker does ------------------------------------------------------

    def room_for(self, handlers: int) -> AbstractContextManager[int]:
        """There is room for any number of transactions."""
        return contextlib.nullcontext(handlers)

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
        queue_slots: Sequence[QueueSlots] | None = None,
        at_once: int | None = None,
        after: Spot | None = None,
    ) -> Claimed:
        """Take at most *limit* ready tasks; *queue_slots*: only these queues (None: all)."""
        del after  # it looks at all queues, every time
        await self._turn()
        return self._tables.claim(
            worker_id, task_types, limit=limit, queue_slots=queue_slots, at_once=at_once
        )

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        """Write what became of claims; return those not applied, and why."""
        await self._turn()
        for settlement in settlements:
            check_settlement(settlement)
        refused: dict[Fence, Refusal] = {}
        news = False
        # The same twice is the same once; those that tell of it are stored in this order.
        for settlement in sorted(set(settlements), key=lambda each: each.fence.task_id):
            if (refusal := self._tables.refusal(settlement)) is not None:
                refused[settlement.fence] = refusal
            else:
                news |= self._tables.apply(settlement)
        self._ring(Bell.FINISHED)
        if news:
            self._ring(Bell.WORK)
        return refused

    async def outcomes(self, fences: Sequence[Fence]) -> Mapping[Fence, Outcome | None]:
        """Return with which outcome claims have been closed; None: the task is gone."""
        await self._turn()
        return self._tables.outcomes(fences)

    async def write_stream(self, write: StreamWrite) -> None:
        """Store chunks of an attempt at the end of one of its streams, all or none."""
        await self._turn()
        insist_on(self._tables.write_stream(write), write)
        self._ring(Bell.STREAM, write.fence.task_id)

    async def give_back_all_but(self, worker_id: UUID, fences: set[Fence]) -> int:
        """Release what the store thinks this worker holds, except *fences*."""
        await self._turn()
        return self._rung(self._tables.give_back_all_but(worker_id, fences))

    async def closed_queues(self, queues: Sequence[str]) -> set[str]:
        """Return which of these queues are paused, or have more tasks running than they may."""
        await self._turn()
        return {queue for queue in queues if self._tables.not_to_start(queue)}

    async def promote(self) -> int:
        """Make scheduled tasks that are due ready, in bulk; return how many."""
        await self._turn()
        return self._rung(self._tables.promote())

    async def note_started(self, worker_id: UUID, fences: Collection[Fence]) -> set[Fence]:
        """Note that claims have started, or are about to; return those it holds."""
        await self._turn()
        return self._tables.note_started(worker_id, fences)

    async def sweep(
        self,
        *,
        max_lost: int,
        max_lost_of: Mapping[str, int] | None = None,
        seen: Sequence[Seen] | None = None,
        tell: TellLost = tell_nobody,
    ) -> int:
        """Settle what dead workers hold; return how many, *tell* of each loss."""
        await self._turn()
        allowed = functools.partial(allowed_losses, max_lost=max_lost, max_lost_of=max_lost_of)
        settled = self._tables.sweep(allowed, seen)
        for held, settlement in settled:
            if settlement.outcome is not None:
                tell(held, settlement)
        return self._rung(len(settled))

    async def prune(self) -> int:
        """Delete a batch of tasks that ended longer ago than they are kept; return how many."""
        await self._turn()
        return self._tables.prune()

    async def backlog(
        self, task_types: Sequence[str], *, queues: Sequence[str] | None, most: int
    ) -> int:
        """Count tasks of these types that are due in these queues, up to *most*."""
        await self._turn()
        return _census.backlog(self._tables, task_types, queues, most)

    async def park(self) -> int:
        """Nothing is in the way here."""
        await self._turn()
        return 0

    async def unpark(self, task_types: Sequence[str]) -> int:
        """Nothing is parked here."""
        del task_types
        await self._turn()
        return 0

    async def listen(
        self,
        ring: Ring,
        bells: Sequence[Bell],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call *ring* for each of *bells* when there may be news, until cancelled."""
        await self._turn()

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

    # -- helpers -----------------------------------------------------------------

    async def _turn(self) -> None:
        if self._closed:
            msg = "this MemoryStore has been closed"
            raise Closed(msg)
        await trio.lowlevel.checkpoint()

    def _ring(self, bell: Bell, task_id: int | None = None) -> None:
        for ring in list(self._rings):
            ring(bell, task_id)

    def _ring_all(self) -> None:
        for bell in (Bell.WORK, Bell.CANCEL, Bell.FINISHED):
            self._ring(bell)

    def _rung(self, moved: int) -> int:
        if moved:
            self._ring(Bell.WORK)
            self._ring(Bell.FINISHED)
        return moved
