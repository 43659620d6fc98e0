"""Behind a pooler that lends sessions by the transaction, everything works but notifications."""

# pyright: reportPrivateUsage=false
# That nothing is left in a session can only be seen from beneath.

from __future__ import annotations

import contextlib
import logging

from collections import Counter
from collections.abc import AsyncGenerator

import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue._connect import _admin
from nursery_queue._core._errors import NotifyUnavailable
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._psycopg._pooler import connect
from nursery_queue._store import Bell
from nursery_queue.testing import VirtualTime
from tests.support.pooler import Pooler, pooled
from tests.support.store_steps import claim, hire
from tests.support.waits import eventually
from tests.support.workers import final, outcomes, state


LEFT_BEHIND = """
    select 'prepared', name from pg_prepared_statements
    union all
    select 'set', name from pg_settings where source = 'session' and name <> 'application_name'
    union all
    select 'set', now from current_setting('nursery_queue.now', true) as now where now <> ''
    union all
    select 'listening', channel from pg_listening_channels() as channel
    union all
    select 'locked', locktype from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'
"""

SPY = """
    create table seen (seqscan text, bitmapscan text, jit text);
    create function spy() returns trigger language plpgsql as $$
    begin
        insert into public.seen select current_setting('enable_seqscan'),
               current_setting('enable_bitmapscan'), current_setting('jit');
        return null;
    end $$;
    create trigger spy after insert on nursery_queue.running execute function spy();
"""


@pytest.fixture
async def pooler(migrated: str) -> AsyncGenerator[Pooler]:
    async with pooled(migrated) as pooler:
        yield pooler


@pytest.fixture
async def client(pooler: Pooler) -> AsyncGenerator[nq.Client]:
    async with nq.connect(pooler.dsn) as client:
        yield client


@pytest.fixture
def app() -> nq.App:
    app = nq.App()

    @app.task(name="double")
    async def double(number: int) -> int:
        return 2 * number

    return app


def worker(app: nq.App, client: nq.Client, poll_interval: float = 5) -> nq.Worker:
    return nq.Worker(app, client, poll_interval=poll_interval)


@contextlib.asynccontextmanager
async def at_work(worker: nq.Worker) -> AsyncGenerator[None]:
    """Run a worker, which might never begin, while the block lasts."""
    async with trio.open_nursery() as nursery:
        with trio.fail_after(100):
            await nursery.start(worker.run)
        yield
        worker.stop()


async def nothing_left_behind(pooler: Pooler) -> None:
    left = await pooler.on_each_session(LEFT_BEHIND)
    assert left
    assert not any(left)


async def test_every_verb_works(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, pooler: Pooler
) -> None:
    """Enqueue, run, transaction, retry, cancel, result and maintenance: as without it."""
    attempts: Counter[str] = Counter()

    @app.task(name="flaky", retry=nq.RetryPolicy(initial=0.01))
    async def flaky() -> None:
        attempts["flaky"] += 1
        if attempts["flaky"] < 3:
            raise ValueError("not yet")

    @app.task(name="writes", transactional=True)
    async def writes(ctx: nq.TaskContext) -> str:
        cursor = await ctx.tx.execute("select current_database()")
        await ctx.tx.enqueue("double", number=8)
        return str((await cursor.fetchone())[0])

    @app.task(name="endless")
    async def endless() -> None:
        await trio.sleep_forever()

    async with at_work(worker(app, client)):
        refs = await client.enqueue_many([app["double"].bind(n) for n in range(20)])
        assert [await client.result(ref, timeout=20) for ref in refs] == [2 * n for n in range(20)]
        async with client.transaction() as tx:
            await tx.execute("select set_config('work_mem', '5MB', true)")
            inside = await tx.enqueue("double", number=7)
            assert not await client.status(inside)
        assert await client.result(inside, timeout=20) == 14
        again = await client.enqueue("flaky")
        assert (await final(client, again)).state == "succeeded"
        assert await outcomes(client, again) == ["failed", "failed", "succeeded"]
        assert await client.result(await client.enqueue("writes"), timeout=20)
        stopped = await client.enqueue("endless")

        async def running() -> bool:
            return await state(client, stopped) == "running"

        await eventually(running)
        assert await client.cancel(stopped)
        assert (await final(client, stopped)).state == "cancelled"
        assert await client.retry(stopped)
        assert await client.cancel(stopped)
        assert (await final(client, stopped)).state == "cancelled"

    keyed = app["double"].options(dedup_key="k", run_after=3600)
    assert (await client.enqueue(keyed, 1)).created
    assert not (await client.enqueue(keyed, 1)).created
    assert (await client.promote(), await client.sweep(), await client.prune()) == (0, 0, 0)
    assert sum((await client.stats()).queues["default"].values()) == 26
    await nothing_left_behind(pooler)


async def test_claims_are_planned_well(client: nq.Client, pooler: Pooler, migrated: str) -> None:
    """A claim has the settings that keep its plan to the indexes, for its transaction alone."""
    with psycopg.connect(migrated, autocommit=True) as session:
        session.execute(SPY)
        for _ in range(3):
            await client.enqueue("double", number=1)
            assert await claim(client.store, await hire(client.store), task_types=["double"])
        assert session.execute("select distinct * from seen").fetchall() == [("off", "off", "off")]
    await nothing_left_behind(pooler)


async def test_dead_workers_are_swept(app: nq.App, client: nq.Client, pooler: Pooler) -> None:
    """A sweep, which takes several statements, stays in one session from BEGIN to COMMIT."""
    ref = await client.enqueue("double", number=1)
    await claim(client.store, await hire(client.store), task_types=["double"])
    async with client.transaction() as tx:
        await tx.execute("update nursery_queue.worker set heartbeat_at = now() - interval '1 day'")

    assert await client.sweep() == 1
    assert await outcomes(client, ref) == ["lost"]
    assert await state(client, ref) == "ready"
    await nothing_left_behind(pooler)


async def test_migrating_through_it(dsn: str) -> None:
    """Migrations can be applied, checked and applied again through a pooler."""
    async with pooled(dsn) as pooler:
        assert await nq.migrate(pooler.dsn)
        assert await nq.migrate(pooler.dsn) == []
        async with nq.connect(pooler.dsn) as client:
            await client.enqueue("double", number=1)
            async with client.transaction() as tx:
                await tx.execute("select 1")
        await nothing_left_behind(pooler)
        async with _admin.connected(pooler.dsn) as connection:  # if there are many of them
            assert connection.prepare_threshold is None


async def test_many_clients_share_few_sessions(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, pooler: Pooler
) -> None:
    """A worker and three producers do 500 tasks in two sessions, at which they take turns."""
    refs: list[nq.TaskRef] = []

    async def produce(start: int) -> None:
        async with nq.connect(pooler.dsn, pool_size=1) as producer:
            for number in range(start, start + 100):
                refs.append(await producer.enqueue("double", number=number))

    async with at_work(worker(app, client)):
        refs += await client.enqueue_many([app["double"].bind(n) for n in range(200)])
        async with trio.open_nursery() as nursery:
            for start in (200, 300, 400):
                nursery.start_soon(produce, start)
        results = [await client.result(ref, timeout=60) for ref in refs]

    assert sorted(results) == [2 * n for n in range(500)]
    assert pooler.most_at_once >= 4
    assert len(pooler.users) == 2
    assert min(pooler.users) >= 4
    await nothing_left_behind(pooler)


async def test_what_a_worker_says_of_it(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker polls, says so and why, and logs one line; nothing is restarted."""
    me = worker(app, client)
    async with at_work(me):
        for number in range(5):
            assert await client.result(await client.enqueue("double", number=number)) == 2 * number
        health = me.health()

    assert health.notify == "polling"
    listener = health.loops["listener"]
    assert (listener.state, listener.restarts) == ("off", 0)
    assert listener.last_error is not None
    assert "pooler" in listener.last_error
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert ["pooler" in record.getMessage() for record in warnings] == [True]
    assert not [record for record in caplog.records if "listener" in record.getMessage()]


async def test_a_worker_that_relied_on_notifications(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """With the poll switched off it polls all the same: it would find nothing otherwise."""
    me = worker(app, client, poll_interval=0)
    async with at_work(me):
        await trio.sleep(60)  # the queue has been found empty
        ref = await client.enqueue("double", number=1)
        assert (await final(client, ref, within=15)).result == 2


async def test_listening_is_refused_without_connecting_again(pooler: Pooler, migrated: str) -> None:
    """Whoever wants to listen is told that it is no use, once the store knows by a word."""
    store = PostgresStore(pooler.dsn)
    for _ in range(3):
        with trio.fail_after(10), pytest.raises(NotifyUnavailable, match="pooler"):
            await store.listen(lambda _bell, _id=None: None, [Bell.WORK])
    await store.aclose()

    assert pooler.transactions == 1
    await nothing_left_behind(pooler)


async def test_a_statement_can_be_cancelled(pooler: Pooler) -> None:
    """A cancelled statement ends on the server, and the connection is kept."""
    async with await connect(pooler.dsn) as conn:
        with trio.move_on_after(0.1):
            await conn.execute("select pg_sleep(30)")
        assert not conn.closed
        assert await conn.fetch("select 1") == [(1,)]

    assert pooler.cancels == 1


async def test_a_direct_connection_is_known_as_such(migrated: str) -> None:
    """Without a pooler statements are prepared, and notifications are listened for."""
    async with await connect(migrated) as conn:
        assert not conn.pooled
        await conn.fetch("select 1")
        assert await conn.fetch("select count(*) from pg_prepared_statements") == [(2,)]
