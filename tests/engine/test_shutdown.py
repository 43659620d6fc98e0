"""How a worker ends."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from psycopg.conninfo import make_conninfo
from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue._pg._connection import Connection
from tests.engine.support import FlakyStore, eventually, outcomes, state, working


@pytest.fixture
def trace(app: nq.App, store: FlakyStore) -> list[str]:
    """Names the task type `work`, which notes in the store's trace what happens to it."""

    @app.task(name="work")
    async def work(ctx: nq.TaskContext, seconds: float, cleanup: float = 0) -> None:
        store.trace.append(f"start {trio.current_time():g}")
        try:
            await trio.sleep(seconds)
            store.trace.append(f"end {trio.current_time():g}")
        except trio.Cancelled:
            store.trace.append(f"{ctx.cancel_reason} {trio.current_time():g}")
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup)
            store.trace.append(f"clean {trio.current_time():g}")
            raise

    return store.trace


async def run_and_stop(worker: nq.Worker, at: float) -> float:
    """Run, stop at an instant, and return when `run()` has ended."""
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        await trio.sleep_until(at)
        worker.stop()
    return trio.current_time()


async def run_and_cancel(worker: nq.Worker, at: float) -> float:
    """Run, cancel the scope around it at an instant, and return when `run()` has ended."""
    with trio.CancelScope(deadline=at):
        await worker.run()
    return trio.current_time()


def events(trace: list[str]) -> list[str]:
    """Return what happened, without what happens all the time."""
    return [event for event in trace if event not in {"heartbeat", "status_many", "promote"}]


End = Callable[[nq.Worker, float], Awaitable[float]]


async def test_order(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    trace: list[str],
) -> None:
    """Nothing is claimed any more, then handlers end, then outcomes are stored, then it is gone."""
    await client.enqueue("work", seconds=8)
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(app, client, heartbeat=3)
        await nursery.start(worker.run)
        await trio.sleep(5)
        del trace[:]
        worker.stop()
        await client.enqueue("work", seconds=8)

    assert events(trace) == ["end 8", "settle", "deregister"]
    assert trace.index("heartbeat") < trace.index("end 8")  # the lease is kept meanwhile


async def test_handlers_may_finish_within_grace(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """A handler that ends before the grace does has succeeded, and nobody waits any longer."""
    ref = await client.enqueue("work", seconds=5 + 6.9)
    ended = await run_and_stop(nq.Worker(app, client, grace=7), 5)

    assert ended == 11.9
    assert await outcomes(client, ref) == ["succeeded"]


async def test_after_grace(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """Then handlers are cancelled, may clean up, and their tasks are ready again, unharmed."""
    ref = await client.enqueue("work", seconds=100, cleanup=2)
    async with working(nq.Worker(app, client, grace=7, cleanup=3)):
        await trio.sleep(5)
    status = await client.status(ref)

    assert events(trace)[-4:] == ["shutdown 12", "clean 14", "settle", "deregister"]
    assert trio.current_time() == 14
    assert await outcomes(client, ref) == ["interrupted"]
    assert status is not None
    assert (status.state, status.attempt) == ("ready", 0)


async def test_a_cancelled_scope(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """Cancelling the scope around `run()` does the same without the grace."""
    ref = await client.enqueue("work", seconds=100, cleanup=2)
    ended = await run_and_cancel(nq.Worker(app, client, grace=7, cleanup=3), 5)
    status = await client.status(ref)

    assert events(trace)[-4:] == ["shutdown 5", "clean 7", "settle", "deregister"]
    assert ended == 7
    assert await outcomes(client, ref) == ["interrupted"]
    assert status is not None
    assert (status.state, status.attempt) == ("ready", 0)


async def test_a_scope_cancelled_while_draining(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """A cancellation cuts a grace short that has begun."""
    await client.enqueue("work", seconds=100)
    worker = nq.Worker(app, client, grace=50)
    with trio.CancelScope(deadline=9):
        await run_and_stop(worker, 5)

    assert events(trace)[-4:] == ["shutdown 9", "clean 9", "settle", "deregister"]


@pytest.mark.parametrize(("cancelled", "released_at"), [(False, 5 + 7 + 3), (True, 5 + 3)])
async def test_a_handler_that_ignores_cancellation(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    trace: list[str],
    cancelled: bool,
    released_at: float,
) -> None:
    """Its task is released when the time for cleaning up is over; another worker can have it."""
    ref = await client.enqueue("work", seconds=100, cleanup=50)
    worker = nq.Worker(app, client, grace=7, cleanup=3, lease=9)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_and_cancel if cancelled else run_and_stop, worker, 5.0)
        await trio.sleep_until(released_at - 0.01)
        assert await state(client, ref) == "running"
        await trio.sleep(0.02)
        assert await state(client, ref) == "ready"
        assert await outcomes(client, ref) == ["interrupted"]
        await trio.sleep(20)  # longer than the lease: nobody has taken the worker for dead
        async with working(nq.Worker(app, client, grace=0)):
            await trio.sleep(20)
            assert await outcomes(client, ref) == ["interrupted", "running"]

    assert await outcomes(client, ref) == ["interrupted", "interrupted"]


async def test_the_backlog_goes_back_at_once(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """What has not been started is ready for others as soon as the worker is stopped."""
    first, *others = [await client.enqueue("work", seconds=5) for _ in range(4)]
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(app, client, concurrency=1, prefetch=3)
        await nursery.start(worker.run)
        assert [await state(client, ref) for ref in others] == ["running"] * 3
        worker.stop()
        await trio.sleep(0.001)
        assert [await state(client, ref) for ref in others] == ["ready"] * 3
        assert await state(client, first) == "running"

    assert [await outcomes(client, ref) for ref in others] == [[]] * 3
    assert await state(client, first) == "succeeded"


@pytest.mark.parametrize("end", [run_and_stop, run_and_cancel])
@pytest.mark.parametrize("how", ["down", "stuck"])
async def test_the_store_cannot_be_reached(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    trace: list[str],
    end: End,
    how: str,
) -> None:
    """`run()` ends within its budget, whether the store refuses or keeps quiet."""
    await client.enqueue("work", seconds=100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end, nq.Worker(app, client, grace=7, cleanup=3), 5.0)
        await trio.sleep(4)
        store.break_down()
        if how == "stuck":
            store.stuck, store.down = store.down, set()

    # A claim that hangs is shielded for 10 s; after clean-up come the last outcomes and the row.
    assert trio.current_time() <= 5 + 10 + 3 + 5 + 2 + 2


async def test_an_outcome_is_stored_when_the_store_is_back(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    trace: list[str],
) -> None:
    """A stopped worker keeps trying to store its outcomes for a few seconds."""
    ref = await client.enqueue("work", seconds=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_and_stop, nq.Worker(app, client), 4.0)
        await trio.sleep(3)
        store.down = {"settle"}
        await trio.sleep(4)
        store.down = set()

    assert await outcomes(client, ref) == ["succeeded"]


async def test_claims_of_unknown_fate(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    trace: list[str],
) -> None:
    """A worker that stops right after a claim without an answer gives back what may be its own."""
    async with working(nq.Worker(app, client)):
        await trio.sleep(1)
        store.deaf = {"claim"}
        ref = await client.enqueue("work", seconds=5)
        await trio.sleep(0.001)
        assert await state(client, ref) == "running"

    assert await state(client, ref) == "ready"
    assert await outcomes(client, ref) == []


async def test_a_claim_under_way(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    trace: list[str],
) -> None:
    """A claim that is under way when the worker is stopped is awaited, and what it took is kept."""
    async with working(nq.Worker(app, client, concurrency=1, prefetch=1)):
        await trio.sleep(1)
        store.late = {"claim": 2}
        refs = [await client.enqueue("work", seconds=5) for _ in range(2)]
        await trio.sleep(1)

    assert [await state(client, ref) for ref in refs] == ["succeeded", "ready"]
    assert store.calls["give_back_all_but"] == 0


async def test_the_database_cannot_be_reached_at_the_start(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """`run()` raises `TransientError` itself, not a group of it."""
    for verb in ("check", "register"):
        store.down = {verb}
        with pytest.raises(nq.TransientError, match=verb):
            await nq.Worker(app, client).run()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_nothing_is_left_behind(app: nq.App, migrated: str, cancelled: bool) -> None:
    """On PostgreSQL no worker row, no running row and no connection of ours remain."""
    running = trio.Event()

    @app.task(name="hold")
    async def hold() -> None:
        running.set()
        await trio.sleep_forever()

    db = await Connection.connect(migrated)
    name = "nothing left behind"
    async with nq.connect(make_conninfo(migrated, application_name=name)) as client:
        ref = await client.enqueue(hold)
        async with trio.open_nursery() as nursery:
            worker = nq.Worker(app, client, grace=0)
            await nursery.start(worker.run)
            await running.wait()
            if cancelled:
                nursery.cancel_scope.cancel()
            worker.stop()
        assert await state(client, ref) == "ready"
    assert await db.fetch("select * from nursery_queue.worker") == []
    assert await db.fetch("select * from nursery_queue.running") == []

    async def gone() -> bool:
        query = "select count(*) from pg_stat_activity where application_name = %(name)s"
        return await db.fetch(query, {"name": name}) == [(0,)]

    await eventually(gone)
    db.abort()
