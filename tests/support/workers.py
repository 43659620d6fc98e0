"""Workers, stores and clocks for the tests of the engine."""

from __future__ import annotations

import contextlib
import random

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from uuid import UUID

import attrs
import trio

import nursery_queue as nq

from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._heartbeat import Beat, Seen
from nursery_queue._core._model import (
    Claimed,
    Fence,
    NewTask,
    Outcome,
    QueueSlots,
    QueueStatus,
    Refusal,
    Settlement,
    Spot,
    WorkerInfo,
    WorkerStatus,
)
from nursery_queue._core._streams import StreamPage, StreamRequest, StreamWrite
from nursery_queue._memory._memory_store import MemoryStore
from nursery_queue._store import (
    Bell,
    Isolation,
    Ring,
    Store,
    StoreTransaction,
    TellLost,
    tell_nobody,
)


class Longest(random.Random):
    """Draws the upper bound, so that jittered waits are known."""

    def uniform(self, a: float, b: float) -> float:
        return max(a, b)


@contextlib.asynccontextmanager
async def working(worker: nq.Worker) -> AsyncGenerator[None]:
    """Run a worker while the block lasts, then stop it and wait for its end."""
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        yield
        worker.stop()


async def eventually(holds: Callable[[], Awaitable[bool]], *, within: float = 10.0) -> None:
    """Return as soon as the condition holds; fail when it does not in time."""
    with trio.fail_after(within):
        while not await holds():  # noqa: ASYNC110  # it is in a database, where no event is
            await trio.sleep(0.01)


async def outcomes(client: nq.Client, task: nq.TaskRef) -> list[str]:
    """Return what became of each attempt, oldest first."""
    return [attempt.outcome.value for attempt in await client.attempts(task)]


async def state(client: nq.Client, task: nq.TaskRef) -> str:
    status = await client.status(task)
    assert status is not None
    return status.state.value


async def final(client: nq.Client, task: nq.TaskRef, *, within: float = 20.0) -> nq.TaskStatus:
    """Wait for the end of a task."""
    with trio.fail_after(within):
        return await client.wait(task)


@attrs.define(eq=False)
class FlakyStore:
    """A store some of whose verbs fail: before they have an effect, or after it."""

    inner: Store = attrs.field(factory=MemoryStore)
    down: set[str] = attrs.field(factory=set[str])  # raise, and nothing happened
    deaf: set[str] = attrs.field(factory=set[str])  # it happened, but the answer is lost
    stuck: set[str] = attrs.field(factory=set[str])  # no answer until cancelled
    locked: bool = False  # what is due cannot be promoted
    late: dict[str, float] = attrs.field(factory=dict[str, float])  # seconds until it is answered
    calls: Counter[str] = attrs.field(factory=Counter[str])
    limits: list[int] = attrs.field(factory=list[int])  # of the claims asked for
    trace: list[str] = attrs.field(factory=list[str])
    _line: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)  # of the listener

    @contextlib.asynccontextmanager
    async def _verb(self, name: str) -> AsyncGenerator[None]:
        self.calls[name] += 1
        if name in self.stuck:
            await trio.sleep_forever()
        if name in self.down:
            await trio.lowlevel.checkpoint()
            msg = f"{name}: the store is down"
            raise nq.TransientError(msg)
        yield
        self.trace.append(name)
        await trio.sleep(self.late.get(name, 0))
        if name in self.deaf:
            msg = f"{name}: the answer is lost"
            raise nq.TransientError(msg)

    def break_down(self) -> None:
        """From now on every verb of a worker fails."""
        self.down = {
            *("check", "register", "heartbeat", "deregister", "claim", "settle", "outcomes"),
            "promote",
            *("sweep", "park", "unpark", "backlog", "status_many", "listen", "give_back_all_but"),
            "closed_queues",
        }

    def hang_up(self) -> None:
        """Whoever listens now is cut off."""
        self._line.cancel("the line is dead")

    # -- verbs that fail when told to --------------------------------------------------

    async def check(self) -> None:
        async with self._verb("check"):
            await self.inner.check()

    async def register(self, worker: WorkerInfo) -> None:
        async with self._verb("register"):
            await self.inner.register(worker)

    async def heartbeat(self, worker_id: UUID, *, draining: bool) -> Beat:
        async with self._verb("heartbeat"):
            return await self.inner.heartbeat(worker_id, draining=draining)

    async def deregister(self, worker_id: UUID) -> None:
        async with self._verb("deregister"):
            await self.inner.deregister(worker_id)

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
        self.limits.append(limit)
        async with self._verb("claim"):
            return await self.inner.claim(
                worker_id,
                task_types,
                limit=limit,
                queue_slots=queue_slots,
                at_once=at_once,
                after=after,
            )

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        async with self._verb("settle"):
            return await self.inner.settle(settlements)

    async def outcomes(self, fences: Sequence[Fence]) -> Mapping[Fence, Outcome | None]:
        async with self._verb("outcomes"):
            return await self.inner.outcomes(fences)

    async def give_back_all_but(self, worker_id: UUID, fences: set[Fence]) -> int:
        async with self._verb("give_back_all_but"):
            return await self.inner.give_back_all_but(worker_id, fences)

    async def promote(self) -> int:
        async with self._verb("promote"):
            return 0 if self.locked else await self.inner.promote()

    async def note_started(self, worker_id: UUID, fences: Collection[Fence]) -> set[Fence]:
        async with self._verb("note_started"):
            return await self.inner.note_started(worker_id, fences)

    async def sweep(
        self,
        *,
        max_lost: int,
        max_lost_of: Mapping[str, int] | None = None,
        seen: Sequence[Seen] | None = None,
        tell: TellLost = tell_nobody,
    ) -> int:
        async with self._verb("sweep"):
            return await self.inner.sweep(
                max_lost=max_lost, max_lost_of=max_lost_of, seen=seen, tell=tell
            )

    async def backlog(
        self, task_types: Sequence[str], *, queues: Sequence[str] | None, most: int
    ) -> int:
        async with self._verb("backlog"):
            return await self.inner.backlog(task_types, queues=queues, most=most)

    async def closed_queues(self, queues: Sequence[str]) -> set[str]:
        async with self._verb("closed_queues"):
            return await self.inner.closed_queues(queues)

    async def park(self) -> int:
        async with self._verb("park"):
            return await self.inner.park()

    async def unpark(self, task_types: Sequence[str]) -> int:
        async with self._verb("unpark"):
            return await self.inner.unpark(task_types)

    async def status_many(
        self, task_ids: Sequence[int], *, payloads: bool = False
    ) -> list[nq.TaskStatus | None]:
        async with self._verb("status_many"):
            return await self.inner.status_many(task_ids, payloads=payloads)

    async def read_streams(self, requests: Sequence[StreamRequest]) -> list[StreamPage | None]:
        async with self._verb("read_streams"):
            return await self.inner.read_streams(requests)

    async def write_stream(self, write: StreamWrite) -> None:
        async with self._verb("write_stream"):
            await self.inner.write_stream(write)

    async def listen(
        self,
        ring: Ring,
        bells: Sequence[Bell],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with self._verb("listen"):
            with trio.CancelScope() as self._line:
                await self.inner.listen(ring, bells, task_status=task_status)
        msg = "listen: the line is dead"
        raise nq.TransientError(msg)

    # -- the others ----------------------------------------------------------------------

    def room_for(self, handlers: int) -> AbstractContextManager[int]:
        return self.inner.room_for(handlers)

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def enqueue(self, tasks: Sequence[NewTask], *, copy: bool = False) -> list[nq.TaskRef]:
        return await self.inner.enqueue(tasks, copy=copy)

    def transaction(
        self, *, isolation: Isolation | None = None
    ) -> AbstractAsyncContextManager[StoreTransaction]:
        return self.inner.transaction(isolation=isolation)

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        return await self.inner.cancel(task_id, running=running)

    async def cancel_some(
        self, which: CancelFilter, *, after: int, upto: int, dry_run: bool
    ) -> tuple[int | None, int]:
        return await self.inner.cancel_some(which, after=after, upto=upto, dry_run=dry_run)

    async def retry(self, task_id: int) -> bool:
        return await self.inner.retry(task_id)

    async def attempts(self, task_id: int) -> list[nq.Attempt]:
        return await self.inner.attempts(task_id)

    async def list_tasks(self, which: TaskFilter) -> list[nq.TaskStatus]:
        return await self.inner.list_tasks(which)

    async def pause(self, queue: str, *, paused: bool) -> None:
        await self.inner.pause(queue, paused=paused)

    async def notify(self, queue: str, *, notify: bool) -> None:
        await self.inner.notify(queue, notify=notify)

    async def limit(self, queue: str, max_running: int | None) -> None:
        await self.inner.limit(queue, max_running)

    async def queues(self) -> list[QueueStatus]:
        return await self.inner.queues()

    async def workers(self) -> list[WorkerStatus]:
        return await self.inner.workers()

    async def stats(self) -> nq.Stats:
        return await self.inner.stats()

    async def prune(self) -> int:
        return await self.inner.prune()
