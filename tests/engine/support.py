"""Workers, stores and clocks for the tests of the engine."""

from __future__ import annotations

import contextlib
import random

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

import attrs
import trio

import nursery_queue as nq

from nursery_queue._core._model import Beat, Claimed, Fence, Lane, Refusal, Settlement, WorkerInfo
from nursery_queue._store import Bell
from nursery_queue._store._memory import MemoryStore


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
class FlakyStore(MemoryStore):
    """A store some of whose verbs fail: before they have an effect, or after it."""

    down: set[str] = attrs.field(factory=set[str])  # raise, and nothing happened
    deaf: set[str] = attrs.field(factory=set[str])  # it happened, but the answer is lost
    stuck: set[str] = attrs.field(factory=set[str])  # no answer until cancelled
    locked: bool = False  # what is due cannot be promoted
    late: dict[str, float] = attrs.field(factory=dict[str, float])  # seconds until it is answered
    calls: Counter[str] = attrs.field(factory=Counter[str])
    limits: list[int] = attrs.field(factory=list[int])  # of the claims asked for
    trace: list[str] = attrs.field(factory=list[str])

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

    async def check(self) -> None:
        async with self._verb("check"):
            await super().check()

    async def register(self, worker: WorkerInfo) -> None:
        async with self._verb("register"):
            await super().register(worker)

    async def heartbeat(self, worker_id: UUID, *, draining: bool) -> Beat:
        async with self._verb("heartbeat"):
            return await super().heartbeat(worker_id, draining=draining)

    async def deregister(self, worker_id: UUID) -> None:
        async with self._verb("deregister"):
            await super().deregister(worker_id)

    async def claim(
        self,
        worker_id: UUID,
        task_types: Sequence[str],
        *,
        limit: int,
        lanes: Sequence[Lane] | None = None,
    ) -> Claimed:
        self.limits.append(limit)
        async with self._verb("claim"):
            return await super().claim(worker_id, task_types, limit=limit, lanes=lanes)

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        async with self._verb("settle"):
            return await super().settle(settlements)

    async def give_back_all_but(self, worker_id: UUID, fences: set[Fence]) -> int:
        async with self._verb("give_back_all_but"):
            return await super().give_back_all_but(worker_id, fences)

    async def promote(self) -> int:
        async with self._verb("promote"):
            return 0 if self.locked else await super().promote()

    async def sweep(self, *, max_lost: int) -> int:
        async with self._verb("sweep"):
            return await super().sweep(max_lost=max_lost)

    async def status_many(self, task_ids: Sequence[int]) -> list[nq.TaskStatus | None]:
        async with self._verb("status_many"):
            return await super().status_many(task_ids)

    async def listen(
        self,
        ring: Callable[[Bell], Any],
        bells: Sequence[Bell],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with self._verb("listen"):
            await super().listen(ring, bells, task_status=task_status)

    def break_down(self) -> None:
        """From now on every verb fails."""
        self.down = {
            *("check", "register", "heartbeat", "deregister", "claim", "settle", "promote"),
            *("sweep", "status_many", "listen", "give_back_all_but"),
        }
