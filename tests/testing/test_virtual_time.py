"""VirtualTime: nothing that is really going on is overtaken, and nothing hangs."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import threading
import time

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Final

import psycopg
import pytest
import trio
import trio.testing

import nursery_queue as nq

from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._listener import Listener
from nursery_queue.testing import ClockStuck, MemoryStore, VirtualTime


NOW: Final = "select nursery_queue.now()"
START = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)


@pytest.fixture
async def store(migrated: str) -> AsyncGenerator[PostgresStore]:
    store = PostgresStore(migrated)
    yield store
    await store.aclose()


@pytest.fixture
async def conn(store: PostgresStore) -> AsyncGenerator[Connection]:
    async with store._pool.connection() as conn:
        yield conn


@pytest.fixture(params=["memory", "postgres"])
def client_dsn(request: pytest.FixtureRequest) -> str | None:
    return None if request.param == "memory" else str(request.getfixturevalue("migrated"))


@pytest.fixture
async def client(client_dsn: str | None) -> AsyncGenerator[nq.Client]:
    if client_dsn is None:
        yield nq.Client(MemoryStore())
    else:
        async with nq.connect(client_dsn) as client:
            yield client


@contextlib.asynccontextmanager
async def ticking() -> AsyncGenerator[None]:
    """Give time a reason to move on, at every instant."""

    async def tick() -> None:
        while True:  # noqa: ASYNC110  # nothing is waited for
            await trio.sleep(0.25)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        yield
        nursery.cancel_scope.cancel()


async def told(conn: Connection) -> Any:
    ((answer,),) = await conn.fetch(NOW)
    return answer


def ignore(*_: object) -> None:
    """Take no notice."""


# -- nothing is overtaken --------------------------------------------------------------------


async def test_it_jumps(virtual_time: VirtualTime) -> None:
    """A sleep ends at its instant, however far away that is, and takes no time."""
    before = time.monotonic()
    order: list[float] = []

    async def sleep(seconds: float) -> None:
        await trio.sleep(seconds)
        order.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for seconds in (400 * 86_400, 0.001, 60, 60):
            nursery.start_soon(sleep, seconds)

    assert order == [0.001, 60, 60, 400 * 86_400]
    assert virtual_time.now() == START + dt.timedelta(days=400)
    assert time.monotonic() - before < 60


async def query(conn: Connection, dsn: str) -> None:
    await conn.execute("select pg_sleep(0.05)")


async def connect(conn: Connection, dsn: str) -> None:
    for _ in range(3):
        async with await Connection.connect(dsn):
            pass


async def copy(conn: Connection, dsn: str) -> None:
    async with conn.cursor().copy("copy (select generate_series(1, 100000)) to stdout") as rows:
        async for _ in rows:
            pass


async def pipeline(conn: Connection, dsn: str) -> None:
    async with conn.pipeline():
        for _ in range(5):
            await conn.execute("select pg_sleep(0.01)")


async def transaction(conn: Connection, dsn: str) -> None:
    async with conn.transaction():
        await conn.execute("select pg_sleep(0.02)")


@pytest.mark.parametrize("what", [query, connect, copy, pipeline, transaction])
async def test_an_answer_under_way(
    virtual_time: VirtualTime,
    migrated: str,
    conn: Connection,
    what: Callable[[Connection, str], Awaitable[None]],
) -> None:
    """Time stands still while the database works, whatever it is asked."""
    async with ticking():
        before = trio.current_time()
        await what(conn, migrated)

        assert trio.current_time() == before


@pytest.mark.parametrize("checkpoints", range(8))
async def test_a_statement_is_cancelled(
    virtual_time: VirtualTime, conn: Connection, checkpoints: int
) -> None:
    """Whatever of a statement a cancellation meets, it works, and the connection is kept."""
    async with ticking():
        await conn.execute("select 1")
        virtual_time.advance(1)  # so that the session must first be told the time
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conn.fetch, "select pg_sleep(60)")
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()

        assert await told(conn) == virtual_time.now()


async def test_a_probe_of_the_listener(
    virtual_time: VirtualTime, migrated: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A listener that has asked whether its peer is alive gets the time for the answer."""
    listener = await Listener.open(migrated, ["a"])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.run, ignore)
        for _ in range(360):
            await trio.sleep(10)
        nursery.cancel_scope.cancel()

    assert listener._answered >= 359


async def test_two_thousand_notifications(virtual_time: VirtualTime, migrated: str) -> None:
    """Every notification is heard at the instant at which it was sent."""
    heard: list[float] = []
    sent: list[float] = []
    listener = await Listener.open(migrated, ["a"])

    def hear(*_: object) -> None:
        heard.append(trio.current_time())

    async with await Connection.connect(migrated) as conn, trio.open_nursery() as nursery:
        nursery.start_soon(listener.run, hear)
        for _ in range(2000):
            await conn.execute("notify a")
            sent.append(trio.current_time())
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

    assert heard == sent


async def test_a_notification_for_a_worker(virtual_time: VirtualTime, migrated: str) -> None:
    """A task starts at the instant of its enqueue, through a notification."""
    app, starts = nq.App(), list[float]()

    @app.task
    async def note() -> None:
        starts.append(trio.current_time())

    async with nq.connect(migrated) as client, trio.open_nursery() as nursery:
        await nursery.start(nq.Worker(app, client, poll_interval=0).run)
        enqueued: list[float] = []
        for _ in range(20):
            await trio.sleep(7.3)
            enqueued.append(trio.current_time())
            await client.enqueue(note)
        await trio.sleep(0.001)
        nursery.cancel_scope.cancel()

    assert starts == enqueued


async def test_hold(virtual_time: VirtualTime) -> None:
    """Time stands still in a hold, also a nested one or one of several."""

    async def in_thread(seconds: float) -> None:
        with virtual_time.hold():
            await trio.to_thread.run_sync(time.sleep, seconds)

    async with ticking():
        before = trio.current_time()
        with virtual_time.hold():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(in_thread, 0.02)
                nursery.start_soon(in_thread, 0.04)
            await in_thread(0.01)
            await trio.to_thread.run_sync(time.sleep, 0.02)

        assert trio.current_time() == before
        await trio.sleep(1)
        assert trio.current_time() == before + 1


async def test_a_thread_without_hold_does_not_keep_it(virtual_time: VirtualTime) -> None:
    """It is the hold that makes the difference."""
    async with ticking():
        await trio.to_thread.run_sync(time.sleep, 0.02)
        assert trio.current_time() > 10


async def test_a_function_as_handler(virtual_time: VirtualTime, client: nq.Client) -> None:
    """While a `def` handler runs in its thread, it is the same instant."""
    app = nq.App()

    @app.task
    def work() -> None:
        time.sleep(0.05)  # in a thread

    ref = await client.enqueue(work)
    await nq.Worker(app, client).run_until_idle()
    (attempt,) = await client.attempts(ref)

    assert attempt.started_at == attempt.finished_at == START


# -- nothing hangs -----------------------------------------------------------------------------


def run(main: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> VirtualTime:
    clock = VirtualTime(**options)
    trio.run(main, *args, clock=clock, strict_exception_groups=True)
    return clock


def test_a_hold_that_takes_too_long() -> None:
    """A hold ends after its real seconds, with an error that says what may be wrong."""

    async def main() -> None:
        clock = trio.lowlevel.current_clock()
        assert isinstance(clock, VirtualTime)
        for limit in (None, 0.05):
            with pytest.raises(ClockStuck, match="stood still for"), clock.hold(limit):
                await trio.sleep(1)
        async with ticking():
            with pytest.raises(ClockStuck), clock.hold():
                await trio.sleep_forever()
        assert trio.current_time() == 0
        await trio.sleep(5)
        assert trio.current_time() == 5

    run(main, max_hold=0.1)


def test_waiting_for_a_virtual_sleeper(migrated: str) -> None:
    """A statement that waits for a lock whose owner sleeps in virtual time is reported."""
    lock = "select pg_advisory_xact_lock(1)"
    events: list[object] = []

    async def owner(conn: Connection) -> None:
        async with conn.transaction():
            await conn.execute(lock)
            await trio.sleep(10)
        events.append(("owner", trio.current_time()))

    async def main() -> None:
        conn, other = await Connection.connect(migrated), await Connection.connect(migrated)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(owner, conn)
            await trio.sleep(1)
            with pytest.raises(ClockStuck):
                await other.execute(lock)
            events.append(("stuck", trio.current_time()))
            assert other.closed
        await conn.execute("select 1")
        await conn.close()

    run(main, max_hold=0.3)

    assert events == [("stuck", 1), ("owner", 10)]


def test_a_store_whose_database_is_silent(migrated: str) -> None:
    """A verb that is stuck says so, whoever called it, and the store works on."""

    async def main() -> None:
        store = PostgresStore(migrated)
        async with await Connection.connect(migrated) as owner, owner.transaction():
            await owner.execute("lock table nursery_queue.task")
            with pytest.raises(ClockStuck):
                await store.status_many([1])
        assert await store.status_many([1]) == [None]
        await store.aclose()

    run(main, max_hold=0.3)


async def test_advance_while_it_is_held(virtual_time: VirtualTime) -> None:
    """Time that is moved by hand moves whatever is going on; what is due then happens."""
    events: list[object] = []

    async def sleeper() -> None:
        await trio.sleep(60)
        events.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        with virtual_time.hold():
            await trio.testing.wait_all_tasks_blocked()
            virtual_time.advance(59.5)
            await trio.lowlevel.checkpoint()
            assert events == []
            virtual_time.advance(0.5)
            while not events:
                await trio.lowlevel.checkpoint()

    assert events == [60]


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_bad_numbers(seconds: float) -> None:
    """Time does not go backwards, or nowhere."""
    with pytest.raises(ValueError, match="seconds"):
        VirtualTime().advance(seconds)
    with pytest.raises(ValueError, match="max_hold"):
        VirtualTime(max_hold=seconds)
    with pytest.raises(ValueError, match="time zone"):
        VirtualTime(START.replace(tzinfo=None))


def test_nothing_to_do_costs_nothing() -> None:
    """Who waits for ever does not keep a processor busy, and can be woken from a thread."""

    async def main() -> None:
        token, event = trio.lowlevel.current_trio_token(), trio.Event()
        waker = threading.Timer(0.3, lambda: token.run_sync_soon(event.set))
        waker.start()
        before = time.process_time()
        await event.wait()
        assert time.process_time() - before < 0.1
        assert trio.current_time() == 0
        waker.join()

    run(main)


def test_a_reply_that_takes_long_costs_nothing(migrated: str) -> None:
    """Nor does who waits for the database, with timers besides."""

    async def main() -> None:
        async with await Connection.connect(migrated) as conn, ticking():
            before = time.process_time()
            await conn.execute("select pg_sleep(0.3)")
            assert time.process_time() - before < 0.1

    run(main)


@pytest.mark.parametrize("cushion", [0, 0.01, 0.2])
async def test_waiting_until_all_are_blocked(virtual_time: VirtualTime, cushion: float) -> None:
    """`wait_all_tasks_blocked` returns, and time has not moved, though somebody sleeps."""
    async with ticking():
        before = trio.current_time()
        await trio.testing.wait_all_tasks_blocked(cushion)

        assert trio.current_time() == before


async def test_a_connection_that_dies_while_it_is_flushed(
    virtual_time: VirtualTime, migrated: str
) -> None:
    """A listener that is gone does not keep time from moving."""
    listener = await Listener.open(migrated, ["a"])
    pid = listener.connection.pgconn.backend_pid
    async with await Connection.connect(migrated) as conn, trio.open_nursery() as nursery:

        async def listen() -> None:
            with pytest.raises(psycopg.OperationalError):
                await listener.run(ignore)

        nursery.start_soon(listen)
        await trio.sleep(1)
        await conn.execute("select pg_terminate_backend(%s)", [pid])
        await trio.sleep(86_400)


# -- wherever it is used -----------------------------------------------------------------------


async def test_asyncio_handlers(virtual_time: VirtualTime, client: nq.Client) -> None:
    """A handler that sleeps in asyncio goes by the same clock."""
    app = nq.App()

    @app.task(asyncio=True, timeout=None)
    async def nap() -> None:
        await asyncio.sleep(600)

    ref = await client.enqueue(nap)
    await nq.Worker(app, client).run_until_idle()
    (attempt,) = await client.attempts(ref)

    assert attempt.finished_at == START + dt.timedelta(minutes=10)


def test_one_after_another(migrated: str) -> None:
    """Each run has its clock; a run without one goes by the real time, in SQL too."""

    async def main() -> dt.datetime:
        async with nq.connect(migrated) as client:
            await trio.sleep(0.01)
            status = await client.status(await client.enqueue("any"))
            assert status is not None
            return status.created_at

    later = dt.datetime(2077, 7, 7, 7, tzinfo=dt.timezone(dt.timedelta(hours=7)))
    assert trio.run(main, clock=VirtualTime(later)) == later + dt.timedelta(seconds=0.01)
    assert trio.run(main, clock=VirtualTime()) == START + dt.timedelta(seconds=0.01)
    real = trio.run(main)
    assert abs(real - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)


def test_the_same_every_time(migrated: str) -> None:
    """Twenty runs of a busy worker on PostgreSQL have the same instants in their logs."""

    async def main() -> list[tuple[float, float, str]]:
        app = nq.App()

        @app.task(name="work", retry=nq.RetryPolicy(max_attempts=3, initial=2, jitter=0))
        async def work(n: int) -> None:
            await trio.sleep(n * 0.7)
            if n % 3 == 0:
                raise ValueError

        async with nq.connect(migrated) as client:
            begun = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
            refs = list[nq.TaskRef]()
            async with trio.open_nursery() as nursery:
                worker = nq.Worker(app, client, concurrency=3)
                await nursery.start(worker.run)
                for n in range(8):
                    refs.append(await client.enqueue(work.options(run_after=n % 4), n=n))
                    await trio.sleep(0.3)
                await trio.sleep(40)
                worker.stop()
            return [
                (
                    (attempt.started_at - begun).total_seconds(),
                    (attempt.finished_at - begun).total_seconds(),
                    attempt.outcome.value,
                )
                for ref in refs
                for attempt in await client.attempts(ref)
                if attempt.finished_at is not None
            ]

    traces = {tuple(trio.run(main, clock=VirtualTime())) for _ in range(20)}

    assert len(traces) == 1
    (trace,) = traces
    assert len(trace) == 5 + 3 * 3
