"""A busy time on MemoryStore, and what happened in which order. As a program: for many seeds."""

from __future__ import annotations

import asyncio
import functools
import sys

import attrs
import trio

import nursery_queue as nq

from nursery_queue.testing import MemoryStore, VirtualTime, deterministic


RETRY = nq.RetryPolicy(max_attempts=3, initial=0.5)


@attrs.define(eq=False)
class Busy:
    """Three workers, two producers, one who cancels and many who wait, in a hurry."""

    clock: trio.abc.Clock = attrs.field(factory=VirtualTime)
    trace: list[str] = attrs.field(factory=list[str])
    app: nq.App = attrs.field(factory=nq.App)
    client: nq.Client = attrs.field(factory=lambda: nq.Client(MemoryStore()))

    def note(self, *what: object) -> None:
        self.trace.append(f"{trio.current_time():.6f} {' '.join(map(str, what))}")

    def declare(self) -> None:
        @self.app.task(name="sleep", retry=RETRY, timeout=2)
        async def sleep(ctx: nq.TaskContext, n: int) -> int:
            self.note("start", ctx.task_id, ctx.attempt)
            try:
                await trio.sleep(n % 4)  # many at the same instant, some at the time limit
            finally:
                self.note("end", ctx.task_id, ctx.cancel_reason)
            if n % 5 == 0:
                raise ValueError(n)
            return n

        @self.app.task(name="family", nursery=True)
        async def family(ctx: nq.TaskContext, n: int) -> None:
            async def child(name: int) -> None:
                await trio.sleep(1)
                self.note("child", ctx.task_id, name)

            for name in range(n % 3 + 1):
                ctx.nursery.start_soon(child, name)

        @self.app.task(name="writer", transactional=True)
        async def writer(ctx: nq.TaskContext, n: int) -> None:
            ref = await ctx.tx.enqueue("sleep", n=n)
            self.note("writes", ctx.task_id, ref.id)

        @self.app.task(name="stubborn", timeout=1, retry=RETRY)
        async def stubborn(ctx: nq.TaskContext) -> None:
            self.note("start", ctx.task_id, ctx.attempt)
            with trio.CancelScope(shield=ctx.attempt == 1):
                await trio.sleep(20)

        @self.app.task(name="foreign", asyncio=True)
        async def foreign(ctx: nq.TaskContext, n: int) -> None:
            async def child(name: int) -> None:
                try:
                    await asyncio.sleep(name)
                finally:
                    self.note("aio", ctx.task_id, name)

            kept = [asyncio.create_task(child(name)) for name in range(3)]
            await asyncio.wait(kept, timeout=n % 2 + 0.5)

    async def produce(self, who: int) -> None:
        for n in range(8):
            kinds = ("sleep", "family", "writer", "foreign")
            requests = [nq.TaskRequest.by_name(kind, {"n": n + who}) for kind in kinds]
            refs = await self.client.enqueue_many(requests)
            self.note("enqueued", who, [ref.id for ref in refs])
            for ref in refs:
                self.waiters.start_soon(self.wait, ref)
            await trio.sleep(0.5)

    async def wait(self, ref: nq.TaskRef) -> None:
        status = await self.client.wait(ref)
        self.note("ended", ref.id, status.state)

    async def cancel(self) -> None:
        for task_id in range(9, 70, 7):
            await trio.sleep(0.5)
            self.note("cancel", task_id, await self.client.cancel(task_id))

    async def work(self, name: str, task_status: trio.TaskStatus[nq.Worker]) -> None:
        worker = nq.Worker(self.app, self.client, concurrency=9, name=name, grace=1, cleanup=1)
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            task_status.started(worker)
        self.note("gone", name)

    async def main(self) -> None:
        self.declare()
        async with trio.open_nursery() as workers:
            crew = [
                await workers.start(functools.partial(self.work, name))
                for name in ("one", "two", "three")
            ]
            async with trio.open_nursery() as self.waiters, trio.open_nursery() as nursery:
                for ref in await self.client.enqueue_many([self.app["stubborn"].bind()] * 8):
                    self.waiters.start_soon(self.wait, ref)
                for who in range(2):
                    nursery.start_soon(self.produce, who)
                nursery.start_soon(self.cancel)
                await trio.sleep(2)
                crew[0].stop()  # with stubborn tasks in hand, whose retries it then draws by lot
            for worker in crew:
                worker.stop()

    waiters: trio.Nursery = attrs.field(init=False)


def trace_of(seed: int) -> list[str]:
    """Return what happens under *seed*."""
    busy = Busy()
    with deterministic(seed):
        trio.run(busy.main, clock=busy.clock)
    return busy.trace


if __name__ == "__main__":
    for number in range(int(sys.argv[1])):
        print(*trace_of(number), sep="\n")  # noqa: T201  # its output is what it is for
