"""Handlers that hold connections: none waits in vain, and the worker has its own."""

from __future__ import annotations

import contextlib

from collections.abc import AsyncGenerator
from uuid import UUID

import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._outcome import MAX_LOST
from nursery_queue._core._states import State
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import Longest, final, outcomes, working


AT_ONCE = 8  # transactions of handlers, by default
APPLICATION = 10  # connections, besides those for the transactions of handlers
QUEUES = 32  # that one claim looks at
OWN = 4  # connections of a worker: two to claim and settle, a heartbeat, a listener
PLACES = 97  # for programs, in a PostgreSQL as it comes: 100, of which 3 are for superusers


def sessions(dsn: str) -> int:
    """Count our sessions on the server."""
    with psycopg.connect(dsn, autocommit=True, application_name="a test") as connection:
        (row,) = connection.execute(
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and application_name like 'nursery\\_queue%'"
        ).fetchall()
    return int(row[0])


class Everybody:
    """Opens when so many have come."""

    def __init__(self, number: int) -> None:
        self._missing = number
        self._come = trio.Event()

    async def wait(self) -> None:
        self._missing -= 1
        if self._missing <= 0:
            self._come.set()
        await self._come.wait()


async def test_transactional_tasks_at_the_defaults(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client
) -> None:
    """Forty transactions of three seconds each, at the defaults, take one attempt each."""

    @app.task(transactional=True)
    async def hold(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute("select 1")
        await trio.sleep(3)

    refs = await pg.enqueue_many([hold.bind() for _ in range(40)])
    async with working(nq.Worker(app, pg)):
        for ref in refs:
            await final(pg, ref)
    assert virtual_time.now() is not None
    assert [await outcomes(pg, ref) for ref in refs] == [["succeeded"]] * 40
    assert trio.current_time() < 30


@pytest.mark.parametrize("pool_size", [None, 3, 4, 8, 42])
async def test_every_verb_of_a_handler_that_holds_a_transaction(
    app: nq.App, migrated: str, pool_size: int | None
) -> None:
    """As many handlers as may hold `ctx.tx` do so, and each gets a connection for what it does."""
    together = {None: AT_ONCE, 42: 32}.get(pool_size)
    number = together or 2 * (pool_size or 0)
    everybody = Everybody(together or 1)

    @app.task(transactional=True, retry=None)
    async def busy(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute("select 1")
        await everybody.wait()
        await ctx.stream().write("a word")
        await ctx.client.enqueue("another")
        async with ctx.transaction() as tx:
            await tx.enqueue("another")
            await ctx.client.status(ctx.task_id)
        await ctx.tx.enqueue("another")

    async with nq.connect(migrated, pool_size=pool_size) as client:
        refs = await client.enqueue_many([busy.bind() for _ in range(number)])
        most = 0
        async with working(nq.Worker(app, client)):
            for ref in refs:
                assert (await final(client, ref)).state == "succeeded"
                most = max(most, sessions(migrated))
        assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * number
        # One more listens, for whoever waits for the end of a task.
        assert most <= (pool_size or APPLICATION + AT_ONCE) + OWN + 1


@pytest.mark.parametrize("pool_size", [1, 2])
async def test_a_verb_in_a_transaction_with_hardly_any_connections(
    app: nq.App, migrated: str, pool_size: int
) -> None:
    """Also the smallest pool has a connection for the verb of a handler that holds `ctx.tx`."""

    @app.task(transactional=True, retry=None, timeout=20)
    async def busy(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute("select 1")
        await ctx.stream().write("a word")
        await ctx.client.enqueue("another")
        await ctx.client.pause("elsewhere")
        await ctx.client.configure_queue("elsewhere", max_running=1)
        await ctx.client.configure_queue("elsewhere", notify=False)

    async with nq.connect(migrated, pool_size=pool_size) as client:
        refs = await client.enqueue_many([busy.bind() for _ in range(20)])
        async with working(nq.Worker(app, client)):
            for ref in refs:
                await final(client, ref)
        assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 20


async def test_many_more_handlers_than_connections(app: nq.App, migrated: str) -> None:
    """A thousand handlers at once open no thousand connections; other tasks run meanwhile."""
    holding, go = 0, trio.Event()

    @app.task(transactional=True, retry=None)
    async def hold(ctx: nq.TaskContext) -> None:
        nonlocal holding
        await ctx.tx.execute("select 1")
        holding += 1
        await go.wait()

    @app.task
    async def plain() -> None: ...

    async with nq.connect(migrated) as client:
        refs = await client.enqueue_many([hold.bind() for _ in range(100)])
        others = await client.enqueue_many([plain.bind() for _ in range(100)])
        worker = nq.Worker(app, client, concurrency=1000)
        async with working(worker):
            for ref in others:
                await final(client, ref)
            assert holding == worker.health().held == AT_ONCE
            assert sessions(migrated) <= AT_ONCE + APPLICATION + OWN + 1 <= PLACES // 4
            go.set()
            for ref in refs:
                await final(client, ref)
        assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 100


async def test_priorities_among_few_transactions(app: nq.App, migrated: str) -> None:
    """What is more urgent starts first, also where transactions are counted."""
    order: list[str] = []

    @app.task(transactional=True, retry=None)
    async def urgent(ctx: nq.TaskContext) -> None:
        order.append("urgent")
        await ctx.tx.execute("select 1")

    @app.task
    async def plain() -> None:
        order.append("plain")

    async with nq.connect(migrated, pool_size=3) as client:
        await client.enqueue_many([plain.bind() for _ in range(20)])
        await client.enqueue_many([urgent.options(priority=1).bind() for _ in range(5)])
        await nq.Worker(app, client, concurrency=2, prefetch=0).run_until_idle()
    assert len(order) == 25
    assert order.index("urgent") <= 1


async def test_many_queues_and_few_transactions(app: nq.App, migrated: str) -> None:
    """Each queue has its turn, however much there is in those before it in the walk."""
    order: list[str] = []

    @app.task(transactional=True, retry=None)
    async def write(ctx: nq.TaskContext) -> None:
        order.append(ctx.queue)

    queues = [f"q{number:02}" for number in range(QUEUES + 1)]
    async with nq.connect(migrated, pool_size=4) as client:
        for _ in range(8):
            await client.enqueue_many([write.options(queue=each).bind() for each in queues])
        await nq.Worker(app, client, concurrency=4, prefetch=0).run_until_idle()
    assert len(order) == 8 * len(queues)
    assert order.index(queues[-1]) < 2 * len(queues)


@contextlib.asynccontextmanager
async def all_held(app: nq.App, client: nq.Client, number: int) -> AsyncGenerator[trio.Event]:
    """Enqueue handlers that hold a transaction each until told, whether cancelled or not."""
    go = trio.Event()

    @app.task(name="hold", transactional=True)
    async def hold(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute("select 1")
        with trio.CancelScope(shield=True):
            await go.wait()

    await client.enqueue_many([hold.bind() for _ in range(number)])
    try:
        yield go
    finally:
        go.set()


@pytest.mark.leaves_claims("the lease is lost, and nobody has swept")
@pytest.mark.parametrize("pool_size", [None, 4])
async def test_registering_anew_while_handlers_hold_all_connections(
    virtual_time: VirtualTime, app: nq.App, migrated: str, pool_size: int | None
) -> None:
    """A worker that has lost its lease registers anew, however long handlers hold connections."""
    async with nq.connect(migrated, pool_size=pool_size) as client:
        async with all_held(app, client, AT_ONCE) as go:
            worker = nq.Worker(app, client, lease=9, heartbeat=3, grace=0)
            async with working(worker):
                await trio.sleep(1)
                first = worker.health().worker_id
                assert isinstance(first, UUID)
                with psycopg.connect(migrated, autocommit=True) as other:
                    other.execute("delete from nursery_queue.worker")
                await trio.sleep(4)
                assert worker.health().worker_id not in {None, first}
                assert worker.health().lease_left > 0
                go.set()
        assert await client.store.sweep(max_lost=MAX_LOST) >= 0
    assert virtual_time.now() is not None


async def test_no_attempt_is_used_up_for_want_of_a_connection(
    virtual_time: VirtualTime, app: nq.App, migrated: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An attempt that got no connection in time is given back, and the log says why."""
    runs = 0

    @app.task(retry=None)
    async def work(ctx: nq.TaskContext) -> None:
        nonlocal runs
        runs += 1
        async with ctx.transaction() as tx:
            await tx.execute("select 1")

    async with nq.connect(migrated, pool_size=3) as client:
        async with working(nq.Worker(app, client)):
            async with client.transaction(), client.transaction():
                ref = await client.enqueue(work)
                await trio.sleep(60)
                assert runs >= 2
            assert (await final(client, ref)).state == "succeeded"
        log = await outcomes(client, ref)
        assert log == ["interrupted"] * (runs - 1) + ["succeeded"]
        status = await client.status(ref)
        assert status is not None
        assert status.attempt == 1
        first = (await client.attempts(ref))[0]
        assert (first.error_type or "").endswith("NoConnection")
    assert "no attempt is used up" in caplog.text
    assert virtual_time.now() is not None


async def test_a_time_limit_that_ends_a_wait_for_a_connection(
    virtual_time: VirtualTime, app: nq.App, migrated: str
) -> None:
    """A handler whose time is up while it waits for a connection is given back, too."""

    @app.task(retry=None, timeout=10)
    async def work(ctx: nq.TaskContext) -> None:
        async with ctx.transaction() as tx:
            await tx.execute("select 1")

    async with nq.connect(migrated, pool_size=3) as client:
        async with working(nq.Worker(app, client)):
            async with client.transaction(), client.transaction():
                ref = await client.enqueue(work)
                await trio.sleep(25)
            assert (await final(client, ref)).state == "succeeded"
        log = await outcomes(client, ref)
        assert log == ["interrupted"] * (len(log) - 1) + ["succeeded"]
        assert len(log) >= 2
    assert virtual_time.now() is not None


async def test_idle_connections_are_closed_while_nothing_happens(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client, migrated: str
) -> None:
    """What a burst has opened is closed a while after it, although nobody asks for a connection."""
    everybody = Everybody(AT_ONCE)

    @app.task(transactional=True)
    async def hold(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute("select 1")
        await everybody.wait()

    refs = await pg.enqueue_many([hold.bind() for _ in range(AT_ONCE)])
    async with working(nq.Worker(app, pg)):
        for ref in refs:
            await final(pg, ref)
        with virtual_time.hold():
            assert sessions(migrated) > AT_ONCE
        await trio.sleep(120)
        with virtual_time.hold():
            assert sessions(migrated) <= OWN + 3


@pytest.mark.parametrize("transactional", [False, True])
async def test_one_at_a_time_takes_a_claim_each(
    virtual_time: VirtualTime, app: nq.App, migrated: str, transactional: bool
) -> None:
    """There are fewer connections than slots: that is no reason to claim again when one is free."""

    @app.task(transactional=transactional)
    async def quick() -> None:
        pass

    @app.task
    async def other() -> None:
        pass

    store = FlakyStore(PostgresStore(migrated))
    client = nq.Client(store)
    async with client, working(nq.Worker(app, client, poll_interval=0, rng=Longest())):
        await trio.sleep(1)
        store.calls.clear()
        for each in (quick, other) * 5:
            await final(client, await client.enqueue(each))
            await trio.sleep(1)

        assert store.calls["claim"] == 10


async def test_a_backlog_without_transactions_is_claimed_in_one_go(
    virtual_time: VirtualTime, app: nq.App, migrated: str
) -> None:
    """Where no task type is transactional, a claim asks for as many as there are slots."""

    @app.task
    async def slow() -> None:
        await trio.sleep(100)

    store = FlakyStore(PostgresStore(migrated))
    async with nq.Client(store) as client:
        await client.enqueue_many([slow.bind() for _ in range(32)])
        async with working(nq.Worker(app, client, poll_interval=0, rng=Longest())):
            await trio.sleep(50)

            assert (await client.stats()).queues["default"][State.RUNNING] == 32
            assert store.calls["claim"] == 1
