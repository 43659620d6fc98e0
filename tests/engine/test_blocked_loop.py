"""A handler that blocks the event loop, for less and for longer than the lease.

In virtual time it does so by `advance`: to everybody else it looks as if the loop had stood still.
"""

from __future__ import annotations

import logging
import threading

from uuid import UUID

import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import Longest, final, outcomes, working


@pytest.fixture
def client(anywhere: FlakyStore) -> nq.Client:
    """A client of each kind of store."""
    return nq.Client(anywhere)


def make_worker(app: nq.App, client: nq.Client, *, concurrency: int = 10) -> nq.Worker:
    return nq.Worker(app, client, lease=30, heartbeat=3, concurrency=concurrency, rng=Longest())


async def test_for_less_than_the_lease(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """Three seconds lose nothing: neither the task itself nor those beside it, nor the lease."""

    @app.task(name="block")
    async def block() -> None:
        virtual_time.advance(3)

    @app.task(name="beside")
    async def beside() -> None:
        await trio.sleep(2)

    worker = make_worker(app, client)
    async with working(worker):
        me = worker.health().worker_id
        refs = [await client.enqueue(name) for name in ("beside", "beside")]
        await trio.sleep(0.001)
        refs.append(await client.enqueue("block"))
        for ref in refs:
            await final(client, ref)
        await trio.sleep(10)

        assert worker.health().worker_id == me
    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 3


async def test_longer_than_the_lease(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """What it returns is dropped, the task is lost and run again by the worker under a new id."""
    runs: list[tuple[float, UUID]] = []

    @app.task(name="block")
    async def block(ctx: nq.TaskContext) -> int:
        runs.append((trio.current_time(), ctx.worker_id))
        if len(runs) == 1:
            virtual_time.advance(31)
        return len(runs)

    worker = make_worker(app, client)
    async with working(worker):
        old = worker.health().worker_id
        await trio.sleep(1)
        ref = await client.enqueue(block)
        status = await final(client, ref, within=100)
        new = worker.health().worker_id

    assert (status.result, status.attempt, status.lost) == (2, 1, 1)
    assert await outcomes(client, ref) == ["lost", "succeeded"]
    assert [worker_id for _, worker_id in runs] == [old, new]
    assert runs[0][0] == 1
    assert runs[1][0] >= 32


async def test_a_handler_that_lives_on(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """It is cancelled with reason `lease_lost` at its next checkpoint, and so are those beside it.

    One that ends in the same instant has its outcome dropped, too.
    """
    cancelled: list[tuple[str, float, str]] = []

    def once(ctx: nq.TaskContext) -> bool:
        return not any(name == ctx.task_type for name, _, _ in cancelled)

    @app.task(name="block")
    async def block(ctx: nq.TaskContext) -> str:
        if once(ctx):
            virtual_time.advance(40)
        try:
            await trio.sleep(0.5)
        finally:
            if ctx.cancel_reason is not None:
                cancelled.append(("block", trio.current_time(), str(ctx.cancel_reason)))
        return "again"

    @app.task(name="beside")
    async def beside(ctx: nq.TaskContext) -> str:
        try:
            await trio.sleep(100 if once(ctx) else 0)
        finally:
            if ctx.cancel_reason is not None:
                cancelled.append(("beside", trio.current_time(), str(ctx.cancel_reason)))
        return "again"

    @app.task(name="ends")
    async def ends() -> str:
        await trio.sleep(2)  # awakes when the loop does, perhaps before it is told
        return "in the nick of time"

    async with working(make_worker(app, client)):
        await trio.sleep(1)
        refs = [await client.enqueue(name) for name in ("beside", "ends")]
        await trio.sleep(0.001)
        refs.append(await client.enqueue("block"))
        found = [await final(client, ref, within=100) for ref in refs]

    assert sorted(cancelled) == [("beside", 41.001, "lease_lost"), ("block", 41.001, "lease_lost")]
    assert [status.lost for status in found] == [1, 1, 1]
    assert [await outcomes(client, ref) for ref in refs] == [["lost", "succeeded"]] * 3


async def test_what_was_claimed_ahead_is_not_started(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """With the lease, tasks that wait in the worker's hands are lost: none begins to run."""
    runs: list[tuple[int, float, UUID]] = []

    @app.task(name="block")
    async def block(ctx: nq.TaskContext, i: int) -> None:
        runs.append((i, trio.current_time(), ctx.worker_id))
        if len(runs) == 1:
            virtual_time.advance(31)

    worker = nq.Worker(app, client, lease=30, heartbeat=3, concurrency=1, prefetch=5)
    async with working(worker):
        old = worker.health().worker_id
        refs = await client.enqueue_many([block.bind(i) for i in range(4)])
        for ref in refs:
            await final(client, ref, within=100)

    first, *others = runs
    assert first == (0, first[1], old)
    assert sorted(i for i, _, _ in others) == [0, 1, 2, 3]
    assert old not in {worker_id for _, _, worker_id in others}


async def test_taken_for_dead_meanwhile(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """Somebody sweeps while it blocks; it keeps on for a while, and what it returns is dropped."""
    runs: list[float] = []

    @app.task(name="block")
    async def block() -> int:
        runs.append(trio.current_time())
        if len(runs) > 1:
            return 2
        virtual_time.advance(31)
        with trio.CancelScope(shield=True):
            await anywhere.sweep(max_lost=3)
            await trio.sleep(20)
        return 1

    worker = make_worker(app, client, concurrency=2)
    async with working(worker):
        old = worker.health().worker_id
        ref = await client.enqueue(block)
        status = await final(client, ref, within=100)
        await trio.sleep_until(runs[0] + 60)

        assert worker.health().worker_id != old
        assert worker.health().held == 0
    assert (status.result, status.lost) == (2, 1)
    assert runs[1] < runs[0] + 31 + 20  # not kept waiting for the one that is still at it
    assert await outcomes(client, ref) == ["lost", "succeeded"]


async def test_a_task_that_always_blocks_fails_for_good(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """Three leases lost over one task are enough, whatever attempts it has left."""
    runs: list[float] = []

    @app.task(name="block")
    async def block() -> None:
        runs.append(trio.current_time())
        virtual_time.advance(31)

    async with working(make_worker(app, client)):
        status = await final(client, await client.enqueue(block), within=200)

    assert len(runs) == 3
    assert (status.state, status.error_type, status.lost) == ("failed", "worker_lost", 3)


async def test_for_real(app: nq.App, client: nq.Client, caplog: pytest.LogCaptureFixture) -> None:
    """On the real clock: warned of long before the lease ends, then lost, and run again."""
    warned = threading.Event()
    left: list[float] = []
    worker = nq.Worker(app, client, lease=1, heartbeat=1 / 3)

    class Ear(logging.Handler):
        """Hears the watchdog."""

        def emit(self, record: logging.LogRecord) -> None:
            """Note that it has warned."""
            if "by task 1 (block, attempt 1)" in record.getMessage():
                warned.set()

    @app.task(name="block")
    async def block() -> str:
        if not left:
            assert warned.wait(20)
            left.append(worker.health().lease_left)
            while worker.health().lease_left:
                pass
            return "first"
        return "second"

    log, ear = logging.getLogger("nursery_queue"), Ear()
    log.addHandler(ear)
    try:
        async with working(worker):
            ref = await client.enqueue(block)
            status = await final(client, ref)
    finally:
        log.removeHandler(ear)

    assert (status.result, status.lost) == ("second", 1)
    assert await outcomes(client, ref) == ["lost", "succeeded"]
    assert left[0] > 0.3
    assert "lost the lease" in caplog.text
