"""The contract: who gets `Cancelled` had no effect, and the connection is as good as before.

The moments of cancellation come from seeded random numbers; what the server is doing at that
moment is up to the machine.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import cast

import psycopg
import pytest
import trio
import trio.testing

from psycopg import pq

from nursery_queue._core._errors import CommitOutcomeUnknown
from nursery_queue._psycopg._connection import Connection
from tests.support.proxy import Proxy, proxied


# How long the server works on a statement, in seconds: mostly not at all, at times for ever.
NAPS = (0, 0, 0, 0.0005, 0.001, 30)
LONGEST_DELAY = 0.004

Work = Callable[[Connection, int, random.Random], Awaitable[object]]

INSERT = "insert into t select %s from pg_sleep(%s)"


async def insert(conn: Connection, key: int, rng: random.Random) -> None:
    await conn.execute(INSERT, (key, rng.choice(NAPS)))


async def fetch(conn: Connection, key: int, rng: random.Random) -> None:
    nap = rng.choice(NAPS)
    await conn.fetch(
        "insert into t select i from pg_sleep(%s), generate_series(%s::int, %s) i returning k",
        (nap, key, key + 2),
    )


async def executemany(conn: Connection, key: int, rng: random.Random) -> None:
    values = [(key + i, rng.choice(NAPS)) for i in range(5)]
    await conn.cursor().executemany(INSERT, values)


async def transaction(conn: Connection, key: int, rng: random.Random) -> None:
    async with conn.transaction():
        await conn.execute(INSERT, (key, 0))
        await conn.execute(INSERT, (key + 1, rng.choice(NAPS)))


async def savepoint(conn: Connection, key: int, rng: random.Random) -> None:
    async with conn.transaction():
        await conn.execute(INSERT, (key, 0))
        async with conn.transaction():
            await conn.execute(INSERT, (key + 1, rng.choice(NAPS)))
        with contextlib.suppress(ZeroDivisionError):
            async with conn.transaction():
                await conn.execute(INSERT, (key + 2, 0))
                raise ZeroDivisionError


async def pipeline(conn: Connection, key: int, rng: random.Random) -> None:
    async with conn.pipeline():
        for i in range(3):
            await conn.execute(INSERT, (key + i, rng.choice(NAPS)))


async def pipeline_with_answers(conn: Connection, key: int, rng: random.Random) -> None:
    async with conn.pipeline():
        cursor = await conn.execute(INSERT + " returning k", (key, rng.choice(NAPS)))
        await cursor.fetchall()
        await trio.lowlevel.checkpoint()
        await conn.execute(INSERT, (key + 1, rng.choice(NAPS)))


async def pipeline_in_transaction(conn: Connection, key: int, rng: random.Random) -> None:
    async with conn.transaction(), conn.pipeline():
        for i in range(3):
            await conn.execute(INSERT, (key + i, rng.choice(NAPS)))


async def transaction_in_pipeline(conn: Connection, key: int, rng: random.Random) -> None:
    async with conn.pipeline(), conn.transaction():
        for i in range(3):
            await conn.execute(INSERT, (key + i, rng.choice(NAPS)))


async def copy_in(conn: Connection, key: int, rng: random.Random) -> None:
    async with conn.cursor().copy("copy t from stdin") as copy:
        for i in range(3):
            await copy.write_row((key + i,))
            await trio.sleep(rng.choice((0, 0.0005)))


async def copy_out(conn: Connection, _key: int, rng: random.Random) -> None:
    query = "copy (select pg_sleep(%s) from generate_series(1, 500)) to stdout"
    async with conn.cursor().copy(query, (rng.choice((0, 0.00002)),)) as copy:
        async for _ in copy:
            pass


async def stream(conn: Connection, _key: int, rng: random.Random) -> None:
    query = "select pg_sleep(%s) from generate_series(1, 200)"
    rows = conn.cursor().stream(query, (rng.choice((0, 0.00002)),))
    async with contextlib.aclosing(cast("AsyncGenerator[object]", rows)) as each:
        async for _ in each:
            pass


async def server_cursor(conn: Connection, key: int, rng: random.Random) -> None:
    async with conn.transaction(), conn.cursor("c") as cursor:
        cursor.itersize = 20
        await conn.execute(INSERT, (key, 0))
        await cursor.execute(
            "select pg_sleep(%s) from generate_series(1, 100)", (rng.choice((0, 0.00002)),)
        )
        async for _ in cursor:
            pass


async def explicit(conn: Connection, key: int, rng: random.Random) -> None:
    await conn.set_autocommit(False)
    try:
        await conn.execute(INSERT, (key, 0))
        await conn.execute(INSERT, (key + 1, rng.choice(NAPS)))
        await conn.commit()
    finally:
        await conn.rollback()
        with trio.CancelScope(shield=True):
            await conn.set_autocommit(True)


# How many rows each kind of work leaves behind, and how often it is tried.
KINDS: dict[str, tuple[Work, int, int]] = {
    "insert": (insert, 1, 1000),
    "fetch": (fetch, 3, 500),
    "executemany": (executemany, 5, 300),
    "transaction": (transaction, 2, 700),
    "savepoint": (savepoint, 2, 500),
    "pipeline": (pipeline, 3, 500),
    "pipeline_with_answers": (pipeline_with_answers, 2, 300),
    "pipeline_in_transaction": (pipeline_in_transaction, 3, 300),
    "transaction_in_pipeline": (transaction_in_pipeline, 3, 300),
    "copy_in": (copy_in, 3, 300),
    "copy_out": (copy_out, 0, 100),
    "stream": (stream, 0, 100),
    "server_cursor": (server_cursor, 1, 100),
    "explicit": (explicit, 2, 300),
}


@pytest.fixture
async def table(conn: Connection) -> None:
    await conn.execute("create table t (k int primary key)")


async def rows_from(conn: Connection, key: int) -> int:
    rows = await conn.fetch("select count(*) from t where k >= %s", (key,))
    count: int = rows[0][0]
    return count


def assert_as_new(conn: Connection) -> None:
    assert not conn.closed
    assert conn.info.transaction_status == pq.TransactionStatus.IDLE
    assert conn.info.pipeline_status == pq.PipelineStatus.OFF
    assert not conn.lock.locked()


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_means_no_effect(
    conn: Connection, other: Connection, table: None, kind: str
) -> None:
    """After `Cancelled` nothing was written, else everything was; the connection works."""
    work, expected, trials = KINDS[kind]
    rng = random.Random(f"cancel {kind}")
    cancelled = completed = 0
    for key in range(0, 10 * trials, 10):
        returned = False
        with trio.move_on_after(rng.uniform(0, LONGEST_DELAY)) as scope:
            await work(conn, key, rng)
            returned = True

        assert returned != scope.cancelled_caught
        assert_as_new(conn)
        assert await rows_from(other, key) == (expected if returned else 0)
        assert await conn.fetch("select %s::int", (key,)) == [(key,)]
        cancelled += scope.cancelled_caught
        completed += returned

    assert cancelled > trials / 20


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_begins_in_a_cancelled_scope(
    conn: Connection, other: Connection, table: None, kind: str
) -> None:
    """In a scope that is cancelled already the same promise holds."""
    returned = False
    with trio.CancelScope() as scope:
        scope.cancel()
        await KINDS[kind][0](conn, 0, random.Random(0))
        returned = True

    assert_as_new(conn)
    assert await rows_from(other, 0) == (KINDS[kind][1] if returned else 0)


async def test_cancelled_while_waiting_for_the_connection(
    conn: Connection, other: Connection, table: None
) -> None:
    """A task cancelled while another one uses the connection leaves that one alone."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(conn.fetch, "insert into t select 1 from pg_sleep(0.1)")
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.move_on_after(0.01) as scope:
            await conn.execute("insert into t values (2)")
        assert scope.cancelled_caught

    assert await other.fetch("select k from t") == [(1,)]


async def test_cancelled_statement_is_cancelled_on_the_server(
    conn: Connection, other: Connection
) -> None:
    """The server stops working for a cancelled call before the call raises."""
    with trio.move_on_after(0.05) as scope:
        await conn.execute("select pg_sleep(60)")

    assert scope.cancelled_caught
    state = "select state from pg_stat_activity where pid = %s"
    assert await other.fetch(state, (conn.info.backend_pid,)) == [("idle",)]


async def test_cancelled_without_peer(dsn: str) -> None:
    """If the server cannot be asked, the connection is closed within `cancel_timeout`."""
    async with proxied(dsn) as proxy:
        conn = await Connection.connect(proxy.dsn)
        conn.cancel_timeout = 0.2
        proxy.blackhole()
        with trio.fail_after(10), trio.move_on_after(0.05) as scope:
            await conn.execute("select 1")

        assert scope.cancelled_caught
        assert conn.closed


async def test_rollback_without_peer(dsn: str) -> None:
    """A transaction block whose ROLLBACK gets no answer ends in time, its connection closed."""
    async with proxied(dsn) as proxy:
        conn = await Connection.connect(proxy.dsn)
        conn.cancel_timeout = conn.finish_timeout = 0.2
        with trio.fail_after(10), pytest.raises((ZeroDivisionError, psycopg.OperationalError)):
            async with conn.transaction():
                proxy.blackhole()
                raise ZeroDivisionError

        assert conn.closed


@pytest.fixture
async def slow_commit(conn: Connection, table: None) -> None:
    await conn.execute(
        "create function nap() returns trigger language plpgsql as"
        " 'begin perform pg_sleep(0.2); return null; end'"
    )
    await conn.execute(
        "create constraint trigger nap after insert on t deferrable initially deferred"
        " for each row execute function nap()"
    )


async def test_commit_is_not_cancelled(
    conn: Connection, other: Connection, slow_commit: None
) -> None:
    """A block cancelled while COMMIT is under way commits and ends as such."""
    left = False
    with trio.CancelScope() as scope:
        async with conn.transaction():
            await conn.execute("insert into t values (1)")
            scope.deadline = trio.current_time() + 0.05
        left = True

    assert left
    assert await rows_from(other, 0) == 1


async def test_call_timeout_is_not_for_commit(
    conn: Connection, other: Connection, slow_commit: None
) -> None:
    """COMMIT is bounded by `finish_timeout`, however short `call_timeout` is."""
    conn.call_timeout = 0.05
    async with conn.transaction():
        await conn.execute("insert into t values (1)")

    assert await rows_from(other, 0) == 1


async def test_cancelling_is_bounded_as_a_whole(dsn: str) -> None:
    """However often the server has to be asked, `cancel_timeout` is for all of it."""
    async with proxied(dsn) as proxy:
        conn = await Connection.connect(proxy.dsn)
        conn.cancel_timeout = 2.0
        proxy.blackhole()
        began = trio.current_time()
        with trio.move_on_after(0.01):
            await conn.execute("select 1")
        assert trio.current_time() - began < 6  # each question could take 2 s; there would be four
        assert conn.closed


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_keyboard_interrupt(dsn: str) -> None:
    """Ctrl-C during a statement cancels it on the server; the connection can be used again."""

    async def main() -> None:
        conn = await Connection.connect(dsn)
        pressed = threading.Timer(0.1, interrupt)
        pressed.start()
        with pytest.raises(KeyboardInterrupt):
            await conn.execute("select pg_sleep(60)")
        pressed.join()
        assert_as_new(conn)
        assert await conn.fetch("select 1") == [(1,)]
        conn.abort()

    trio.run(main)


@contextlib.asynccontextmanager
async def impatient(dsn: str) -> AsyncGenerator[Connection]:
    conn = await Connection.connect(dsn)
    conn.cancel_timeout = conn.finish_timeout = 0.3
    yield conn
    conn.abort()


async def drop_after(proxy: Proxy, seconds: float) -> None:
    await trio.sleep(seconds)
    proxy.drop()


@pytest.mark.parametrize("kind", ["insert", "transaction", "savepoint", "pipeline"])
async def test_cancelled_while_the_network_fails(
    dsn: str, conn: Connection, table: None, kind: str
) -> None:
    """With connections that break as well: nothing half done, and no lie about COMMIT."""
    work, expected, _ = KINDS[kind]
    rng = random.Random(f"chaos {kind}")
    seen: set[str] = set()
    for key in range(0, 6000, 10):
        if key >= 1000 and seen >= {"cancelled", "returned", "error"}:
            break
        longest = LONGEST_DELAY * 2 ** (key // 1000)  # more, if the machine is busy
        outcome = "cancelled"
        async with (
            proxied(dsn) as proxy,
            impatient(proxy.dsn) as client,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(drop_after, proxy, rng.uniform(0, longest))
            try:
                with trio.move_on_after(rng.uniform(0, 2 * longest)):
                    await work(client, key, rng)
                    outcome = "returned"
            except CommitOutcomeUnknown:
                outcome = "unknown"
            except psycopg.OperationalError:
                outcome = "error"
            nursery.cancel_scope.cancel()
            kept = not client.closed
        seen.add(outcome)
        count = await rows_from(conn, key)

        assert count in {0, expected}
        if outcome == "returned":
            assert count == expected
        if outcome == "cancelled" and kept:
            assert count == 0

    assert seen >= {"cancelled", "returned", "error"}
