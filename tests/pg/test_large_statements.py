"""The contract of cancellation where a statement or its answer fills the socket's buffers.

A statement that is still being sent, or an answer that is still being read, is at a place where
small ones never are: what psycopg waits for is different there.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import cast

import psycopg
import pytest
import trio
import trio.testing

from nursery_queue._psycopg._connection import Connection
from tests.pg.test_cancellation import assert_as_new, interrupt, rows_from
from tests.support.proxy import proxied


Work = Callable[[Connection, int, str], Awaitable[object]]

LARGE = 8_000_000
VERY_LARGE = 30_000_000
SIZES = {1: 20, 1000: 20, 100_000: 30, 900_000: 40, LARGE: 8}  # bytes, and trials of each
LONGEST_STALL = 0.05  # seconds of CPU time
SLOWLY = 0.004  # seconds for each packet of the proxy's

INSERT = "insert into t values (%s, %s)"


async def insert(conn: Connection, key: int, text: str) -> None:
    await conn.execute(INSERT, (key, text))


async def fetch(conn: Connection, key: int, text: str) -> None:
    await conn.fetch(INSERT + " returning b", (key, text))


async def transaction(conn: Connection, key: int, text: str) -> None:
    async with conn.transaction():
        await conn.execute(INSERT, (key, text))


async def executemany(conn: Connection, key: int, text: str) -> None:
    await conn.cursor().executemany(INSERT, [(key, text)] * 3)


async def pipeline(conn: Connection, key: int, text: str) -> None:
    async with conn.pipeline():
        for _ in range(3):
            await conn.execute(INSERT, (key, text))


async def copy_in(conn: Connection, key: int, text: str) -> None:
    async with conn.cursor().copy("copy t from stdin") as copy:
        for _ in range(3):
            await copy.write_row((key, text))


async def copy_out(conn: Connection, _key: int, text: str) -> None:
    query = "copy (select repeat('x', 1000) from generate_series(1, %s)) to stdout"
    async with conn.cursor().copy(query, (1 + len(text) // 1000,)) as copy:
        async for _ in copy:
            pass


async def one_value(conn: Connection, _key: int, text: str) -> None:
    await conn.fetch("select repeat('x', %s)", (len(text),))


async def many_rows(conn: Connection, _key: int, text: str) -> None:
    await conn.execute(
        "select repeat('x', 1000) from generate_series(1, %s)", (1 + len(text) // 1000,)
    )


async def stream(conn: Connection, _key: int, text: str) -> None:
    query = "select repeat('x', 1000) from generate_series(1, %s)"
    rows = conn.cursor().stream(query, (1 + len(text) // 1000,))
    async with contextlib.aclosing(cast("AsyncGenerator[object]", rows)) as each:
        async for _ in each:
            pass


async def server_cursor(conn: Connection, key: int, text: str) -> None:
    async with conn.transaction(), conn.cursor("c") as cursor:
        await conn.execute(INSERT, (key, text))
        cursor.itersize = 1000
        await cursor.execute(
            "select repeat('x', 1000) from generate_series(1, %s)", (1 + len(text) // 1000,)
        )
        async for _ in cursor:
            pass


# How many rows each kind of work leaves behind.
KINDS: dict[str, tuple[Work, int]] = {
    "insert": (insert, 1),
    "fetch": (fetch, 1),
    "transaction": (transaction, 1),
    "executemany": (executemany, 3),
    "pipeline": (pipeline, 3),
    "copy_in": (copy_in, 3),
    "copy_out": (copy_out, 0),
    "one_value": (one_value, 0),
    "many_rows": (many_rows, 0),
    "stream": (stream, 0),
    "server_cursor": (server_cursor, 1),
}


@pytest.fixture
async def table(conn: Connection) -> None:
    await conn.execute("create table t (k int, b text)")
    await conn.execute("alter table t alter b set storage external")  # to press takes long


async def duration_of(work: Work, conn: Connection, text: str) -> float:
    began = time.perf_counter()
    await work(conn, -1, text)
    return time.perf_counter() - began


async def cancelled_at_random(
    conn: Connection, other: Connection, kind: str, size: int, trials: int
) -> None:
    """Cancel calls at random, and see that each had no effect or returned."""
    work, expected = KINDS[kind]
    rng = random.Random(f"large {kind} {size}")
    text = "x" * size
    longest = 1.2 * await duration_of(work, conn, text)
    await other.execute("truncate t")
    for key in range(trials):
        returned = False
        with trio.move_on_after(rng.uniform(0, longest)) as scope:
            await work(conn, key, text)
            returned = True

        assert returned != scope.cancelled_caught
        assert_as_new(conn)
        assert await rows_from(other, key) == (expected if returned else 0)
        assert await conn.fetch("select %s::int", (key,)) == [(key,)]
        await other.execute("truncate t")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_at_any_moment_of_a_large_call(
    conn: Connection, other: Connection, table: None, kind: str, size: int
) -> None:
    """Cancelled while it is sent or answered, it had no effect; nothing but `Cancelled` comes."""
    await cancelled_at_random(conn, other, kind, size, SIZES[size])


@pytest.mark.parametrize("kind", KINDS)
async def test_cancelled_at_any_moment_on_a_slow_network(
    dsn: str, other: Connection, table: None, kind: str
) -> None:
    """The same where most of the time of a call goes by with a full socket."""
    async with proxied(dsn) as proxy:
        client = await Connection.connect(proxy.dsn)
        proxy.delay = SLOWLY
        await cancelled_at_random(client, other, kind, 1_000_000, 6)
        client.abort()


async def test_cancelled_while_very_much_is_sent(conn: Connection, table: None) -> None:
    """Cancelled while 30 MB are on their way, a call leaves nothing but `Cancelled` behind."""
    await cancelled_at_random(conn, conn, "insert", VERY_LARGE, 3)


@pytest.mark.parametrize("work", [insert, copy_in])
async def test_cancelled_with_a_full_socket_and_no_peer(
    dsn: str, other: Connection, table: None, work: Work
) -> None:
    """If what is being sent is taken by nobody, the connection is closed within its time."""
    async with proxied(dsn) as proxy:
        client = await Connection.connect(proxy.dsn)
        client.cancel_timeout = client.finish_timeout = 0.2
        proxy.blackhole()
        with trio.fail_after(10), trio.move_on_after(0.2) as scope:
            await work(client, 1, "x" * LARGE)

        assert scope.cancelled_caught
        assert client.closed

    assert await rows_from(other, 0) == 0


async def test_closed_with_a_full_socket(dsn: str, table: None) -> None:
    """A call that waits for the socket in both directions is woken when that is closed."""
    async with proxied(dsn) as proxy:
        client = await Connection.connect(proxy.dsn)
        proxy.blackhole()
        with trio.fail_after(10), pytest.RaisesGroup(psycopg.OperationalError):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(insert, client, 1, "x" * LARGE)
                await trio.testing.wait_all_tasks_blocked(0.05)
                client.abort()


def test_ctrl_c_in_a_large_call(dsn: str) -> None:
    """Ctrl-C while much is sent comes out as such; the connection is as new, or closed."""

    async def main(delay: float) -> None:
        client = await Connection.connect(dsn)
        pressed = threading.Timer(delay, interrupt)
        pressed.start()
        try:
            with pytest.raises(KeyboardInterrupt):
                while True:
                    await client.execute("select %s", ("x" * LARGE,))
            if not client.closed:
                assert_as_new(client)
                assert await client.fetch("select 1") == [(1,)]
        finally:
            pressed.join()
            client.abort()

    rng = random.Random("ctrl-c")
    for _ in range(10):
        trio.run(main, rng.uniform(0.001, 0.1))


async def test_other_tasks_go_on_while_much_is_sent(conn: Connection, table: None) -> None:
    """8 MB, sent or read, cancelled or not, keep other tasks waiting for under 50 ms."""
    turns: list[float] = []

    async def take_turns() -> None:
        while True:
            turns.append(time.thread_time())
            await trio.lowlevel.checkpoint()

    text = "x" * LARGE
    await insert(conn, 0, text)  # the first one has the kernel find the memory
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_turns)
        for work in (insert, fetch, one_value, many_rows):
            for limit in (float("inf"), 0.03):
                with trio.move_on_after(limit):
                    await work(conn, 1, text)
        nursery.cancel_scope.cancel()

    gaps = [after - before for before, after in itertools.pairwise(turns)]
    assert max(gaps) < LONGEST_STALL
