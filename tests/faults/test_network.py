"""A worker whose connections are cut or fall silent, one after the other or all at once."""

from __future__ import annotations

import contextlib

from collections import Counter
from collections.abc import AsyncGenerator

import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue._psycopg._connection import Connection
from nursery_queue._worker._claimer import CLAIM_TIMEOUT
from nursery_queue._worker._lease_renewal import GOODBYE
from nursery_queue.testing import VirtualTime
from tests.faults.loops import Holding, lines, logged, loop_health, unwell
from tests.support.network import pass_time, pass_time_until, sockets_to
from tests.support.proxy import Link, Proxy
from tests.support.workers import final, outcomes, working


# What is said on each connection, and on no other.
LISTEN = b'LISTEN "nursery_queue'
HEARTBEAT = b"set heartbeat_at = nursery_queue.now()"
CLAIM = b"nursery_queue.claim("
SETTLE = b"with settled as materialized"
HANDLER = b"select 'by the handler'"

VICTIMS = {
    "listener": "query like 'LISTEN%' or query = ''",  # the latter asks whether it is alive
    "heartbeat": "query like '%set heartbeat_at%'",
    "claims and outcomes": "query like '%nursery_queue.claim(%' or query like '%with settled%'",
    "pool": "query = 'select ''by the handler'''",
}
KILL = """
    select count(pg_terminate_backend(pid)) from pg_stat_activity
     where datname = current_database() and pid <> pg_backend_pid()
"""


@pytest.fixture
def app(app: nq.App) -> nq.App:
    @app.task(name="echo")
    async def echo(value: object) -> object:
        return value

    return app


@pytest.fixture
async def client(proxy: Proxy) -> AsyncGenerator[nq.Client]:
    """A client whose connections may fall silent; `pg` has others."""
    async with nq.connect(proxy.dsn) as client:
        yield client


@pytest.mark.parametrize("victim", VICTIMS)
async def test_connections_killed_by_an_operator(
    virtual_time: VirtualTime,
    app: nq.App,
    pg: nq.Client,
    migrated: str,
    victim: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """`pg_terminate_backend` of any connection, again and again, loses and repeats nothing."""
    done: Counter[int] = Counter()

    @app.task(name="count")
    async def count(ctx: nq.TaskContext, number: int) -> None:
        done[number] += 1
        await trio.sleep(0.1)

    @app.task(name="query", retry=nq.RetryPolicy(initial=0.1, max_attempts=50))
    async def query(ctx: nq.TaskContext) -> None:
        async with ctx.transaction() as tx:
            await tx.execute("select 'by the handler'")
            await trio.sleep(0.5)

    worker = nq.Worker(app, pg, concurrency=4, poll_interval=0, heartbeat=0.1)
    kill = f"{KILL} and ({VICTIMS[victim]})"
    killed = 0
    with psycopg.connect(migrated, autocommit=True) as operator, logged(caplog):
        async with working(worker):
            refs = await pg.enqueue_many([app["query"].bind() for _ in range(20)])
            refs += await pg.enqueue_many([app["count"].bind(n) for n in range(100)])
            for _ in range(5):
                await trio.sleep(0.4)
                with virtual_time.hold():
                    killed += operator.execute(kill.encode()).fetchall()[0][0]
            for ref in refs:
                assert (await final(pg, ref)).state == "succeeded"
            await trio.sleep(10)
            assert not unwell(worker)
            assert worker.health().notify == "listening"
            restarts = {name: each.restarts for name, each in worker.health().loops.items()}

    assert killed >= 2
    assert done == dict.fromkeys(range(100), 1)
    for name, number in restarts.items():
        assert len(lines(caplog, f"{name} failed")) <= number
        assert len(lines(caplog, f"{name} is back")) == len(lines(caplog, f"{name} failed"))
    # The others are found dead before they are used, and replaced without a word.
    assert restarts["listener"] == (killed if victim == "listener" else 0)
    assert not lines(caplog, "lease")


# -- silence ---------------------------------------------------------------------------------


def silence(link: Link, *, applied: bool) -> None:
    """Let a connection fall silent before the server gets the next statement, or after that."""
    if applied:
        link.swallow_answers()
    else:
        link.blackhole()


async def test_silent_heartbeat(
    virtual_time: VirtualTime, app: nq.App, holding: Holding, proxy: Proxy, client: nq.Client
) -> None:
    """A heartbeat that gets no answer is given up early enough for another to keep the lease."""
    worker = nq.Worker(app, client)
    async with working(worker):
        ref = await client.enqueue("hold")
        await trio.sleep(4)
        least = 30.0
        for _ in range(3):
            proxy.link(HEARTBEAT).blackhole()
            for _ in range(20):
                await pass_time(virtual_time, proxy, 1)
                least = min(least, worker.health().lease_left)
            assert not unwell(worker)
        assert loop_health(worker, "heartbeat").restarts == 3
        assert 12 < least < 20
        holding.go_on.set()
        assert (await final(client, ref)).state == "succeeded"

    assert holding.cancelled == []


async def test_all_silent_for_longer_than_the_lease(
    virtual_time: VirtualTime,
    app: nq.App,
    holding: Holding,
    proxy: Proxy,
    client: nq.Client,
    pg: nq.Client,
) -> None:
    """Handlers are cancelled before others may take their tasks; later the worker works on."""
    worker = nq.Worker(app, client)
    async with working(worker):
        ref = await client.enqueue("hold")
        await trio.sleep(4)
        was = worker.health().worker_id
        left, began = worker.health().lease_left, trio.current_time()
        proxy.blackhole()
        await pass_time(virtual_time, proxy, 60)
        ((when, why),) = holding.cancelled
        assert why == "lease_lost"
        assert when == pytest.approx(began + left, abs=0.01)
        assert left <= 30

        proxy.heal()
        proxy.drop()  # so that what was said in the meantime is not heard later
        await trio.sleep(45)
        assert not unwell(worker)
        assert worker.health().worker_id not in {None, was}
        holding.go_on.set()
        assert (await final(pg, ref)).state == "succeeded"
        assert await outcomes(pg, ref) == ["lost", "succeeded"]


@pytest.mark.parametrize("applied", [False, True])
async def test_silent_claim(
    virtual_time: VirtualTime,
    app: nq.App,
    proxy: Proxy,
    client: nq.Client,
    pg: nq.Client,
    applied: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A claim that gets no answer is given up; what it may have taken is given back and run."""
    worker = nq.Worker(app, client, poll_interval=0)
    async with working(worker):
        await trio.sleep(4)
        await pg.resume("another")  # rings, so that the connection that was used last claims
        await trio.sleep(1)
        silence(link := proxy.last_used(CLAIM), applied=applied)
        ref = await pg.enqueue("echo", value=1)
        with virtual_time.hold():
            while not link.busy:  # the notification is under way
                await trio.lowlevel.checkpoint()
        took = await pass_time_until(
            virtual_time, proxy, lambda: loop_health(worker, "claimer").restarts == 1, within=60
        )
        assert 10 <= took <= 13
        await trio.sleep(4)
        assert (await final(pg, ref)).state == "succeeded"
        assert not unwell(worker)
        assert await outcomes(pg, ref) == ["succeeded"]
        assert worker.health().held == 0
    assert len(lines(caplog, "gave back 1 ")) == applied


@pytest.mark.parametrize("applied", [False, True])
async def test_silent_settlement(
    virtual_time: VirtualTime,
    app: nq.App,
    holding: Holding,
    proxy: Proxy,
    client: nq.Client,
    pg: nq.Client,
    applied: bool,
) -> None:
    """An outcome whose storing gets no answer is stored on another connection, once."""
    worker = nq.Worker(app, client, poll_interval=0)
    async with working(worker):
        refs = await pg.enqueue_many([app["echo"].bind(1), app["hold"].bind()])
        await trio.sleep(4)
        for link in proxy.links:
            if CLAIM in link.said or SETTLE in link.said:
                silence(link, applied=applied)
        holding.go_on.set()
        for _ in range(60):
            if not worker.health().held:
                break
            await pass_time(virtual_time, proxy, 1)
        assert worker.health().held == 0
        assert [await outcomes(pg, ref) for ref in refs] == [["succeeded"]] * 2
        assert (await final(pg, await pg.enqueue("echo", value=2))).result == 2

    assert holding.ended == 1


async def test_silent_transaction_of_a_handler(
    virtual_time: VirtualTime, app: nq.App, proxy: Proxy, client: nq.Client
) -> None:
    """A handler whose own statement gets no answer ends at its time limit; the next one works."""

    @app.task(name="query", timeout=20, retry=nq.RetryPolicy(initial=1))
    async def query(ctx: nq.TaskContext) -> None:
        async with ctx.transaction() as tx:
            if ctx.attempt == 1:
                proxy.blackhole_at(HANDLER, alone=True)
            await tx.execute(HANDLER)

    worker = nq.Worker(app, client)
    async with working(worker):
        ref = await client.enqueue("query")
        await pass_time(virtual_time, proxy, 60)
        assert await outcomes(client, ref) == ["timed_out", "succeeded"]
        first = (await client.attempts(ref))[0]
        assert first.finished_at is not None
        assert first.started_at is not None
        assert 20 <= (first.finished_at - first.started_at).total_seconds() <= 26
        assert not unwell(worker)


# -- the end, in silence -----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def on_duty(
    worker: nq.Worker, clock: VirtualTime, proxy: Proxy
) -> AsyncGenerator[trio.Event]:
    """Run a worker; the event tells that `run` has returned.."""
    ended = trio.Event()

    async def run() -> None:
        await worker.run()
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await pass_time(clock, proxy, 1)
        yield ended


UNANSWERED = 2.0  # seconds to give up a statement of ours
SILENT = {
    "listener": [LISTEN],
    "heartbeat": [HEARTBEAT],
    "claims and outcomes": [CLAIM, SETTLE],
    "handler": [HANDLER],
    "everything": [b""],
}


@pytest.mark.leaves_claims("the database cannot be told: it is silent")
@pytest.mark.parametrize("silent", SILENT)
async def test_stopping_in_silence(
    virtual_time: VirtualTime,
    app: nq.App,
    holding: Holding,
    proxy: Proxy,
    client: nq.Client,
    silent: str,
) -> None:
    """`run` ends within its budget after `stop`, whichever connection has fallen silent."""

    @app.task(name="query")
    async def query(ctx: nq.TaskContext) -> None:
        async with ctx.transaction() as tx:
            while True:
                await tx.execute(HANDLER)
                await trio.sleep(1)

    worker = nq.Worker(app, client, grace=3, cleanup=2)
    async with on_duty(worker, virtual_time, proxy) as ended:
        await client.enqueue_many([app["query"].bind(), app["hold"].bind(), app["echo"].bind(1)])
        await trio.sleep(4)
        if silent == "everything":
            proxy.blackhole()
        for link in proxy.links:
            if any(needle in link.said for needle in SILENT[silent]):
                link.blackhole()
        await pass_time(virtual_time, proxy, 1.5)
        worker.stop()
        took = await pass_time_until(virtual_time, proxy, ended.is_set, within=60)

    assert took <= worker.budget() + 4 * UNANSWERED


@pytest.mark.leaves_claims("the database cannot be asked")
@pytest.mark.parametrize(
    ("stage", "within"),
    [
        (None, 0),  # it accepts the connection and says nothing
        (b"pg_backend_pid", 0),
        (b"to_regclass", Connection.cancel_timeout),
        (b"insert into nursery_queue.worker", UNANSWERED + GOODBYE),
        (CLAIM, CLAIM_TIMEOUT + 2 * GOODBYE + 2 * UNANSWERED),
    ],
    ids=str,
)
async def test_stopping_before_it_has_begun(
    virtual_time: VirtualTime, app: nq.App, proxy: Proxy, stage: bytes | None, within: float
) -> None:
    """A worker that is told to stop while it still waits for the server does not wait on."""
    async with nq.connect(proxy.dsn) as client:
        worker = nq.Worker(app, client)
        proxy.drop()
        await proxy.quiet()
        if stage is None:
            proxy.blackhole()
        else:
            proxy.blackhole_at(stage)
        async with on_duty(worker, virtual_time, proxy) as ended:
            worker.stop()
            took = await pass_time_until(virtual_time, proxy, ended.is_set, within=60)
    assert took <= within
    assert not list(sockets_to(proxy.dsn))


@pytest.mark.leaves_claims("the database cannot be asked")
async def test_stopping_while_the_database_is_away(
    virtual_time: VirtualTime,
    app: nq.App,
    holding: Holding,
    proxy: Proxy,
    client: nq.Client,
) -> None:
    """`stop` in the midst of an outage ends `run` within its budget, too."""
    worker = nq.Worker(app, client, grace=3, cleanup=2)
    async with on_duty(worker, virtual_time, proxy) as ended:
        await client.enqueue("hold")
        await trio.sleep(4)
        proxy.refusing = True
        proxy.drop()
        await pass_time(virtual_time, proxy, 15)
        assert unwell(worker) >= {"listener", "heartbeat"}
        worker.stop()
        took = await pass_time_until(virtual_time, proxy, ended.is_set, within=60)

    assert took <= worker.budget()
    assert [reason for _, reason in holding.cancelled] == ["shutdown"]
