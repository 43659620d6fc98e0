"""Under VirtualTime, all of SQL is of one mind about what time it is."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import datetime as dt

from collections.abc import AsyncGenerator
from typing import Any, Final, LiteralString

import pytest
import trio

import nursery_queue as nq

from nursery_queue._pg import _migrator as _migrate
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._psycopg._connection import Connection
from nursery_queue.testing import VirtualTime


NOW: Final = "select nursery_queue.now()"


@pytest.fixture
async def client(migrated: str) -> AsyncGenerator[nq.Client]:
    async with nq.connect(migrated) as client:
        yield client


@pytest.fixture
async def conn(client: nq.Client) -> AsyncGenerator[Connection]:
    """A connection of the client's own."""
    assert isinstance(client.store, PostgresStore)
    async with client.store._pool.connection() as conn:
        yield conn


async def ask(conn: Connection, query: LiteralString = NOW) -> Any:
    ((answer,),) = await conn.fetch(query)
    return answer


async def test_it_follows(virtual_time: VirtualTime, conn: Connection) -> None:
    """Every statement sees the present instant, the first as well as those after sleeps."""
    for seconds in (0, 0.000001, 1, 1 / 3, 86_400 * 400):
        await trio.sleep(seconds)
        assert await ask(conn) == virtual_time.now()
        assert await ask(conn) == virtual_time.now()
    virtual_time.advance(5)
    assert await ask(conn) == virtual_time.now()


async def test_defaults_triggers_and_views(virtual_time: VirtualTime, conn: Connection) -> None:
    """A plain INSERT gets its instants, and is placed, by the virtual clock."""
    await trio.sleep(1000)
    now = virtual_time.now()
    await conn.execute(
        "insert into nursery_queue.task (task_type, run_at) values"
        " ('a', default), ('b', %s), ('c', %s)",
        [now + dt.timedelta(seconds=0.001), now - dt.timedelta(seconds=0.001)],
    )
    rows = await conn.fetch(
        "select task_type, state, created_at = %(now)s from nursery_queue.task_status order by id",
        {"now": now},
    )

    assert rows == [("a", "ready", True), ("b", "scheduled", True), ("c", "ready", True)]


async def test_functions(virtual_time: VirtualTime, conn: Connection) -> None:
    """`enqueue` and `cancel` reckon from the virtual instant."""
    await trio.sleep(1000)
    await conn.execute("select nursery_queue.enqueue('a', run_after => 60)")
    due = await ask(conn, "select run_at from nursery_queue.task")
    await trio.sleep(7)
    await conn.execute("select nursery_queue.cancel(1)")
    ended = await ask(conn, "select finished_at from nursery_queue.task_status")

    assert due == virtual_time.now() + dt.timedelta(seconds=53)
    assert ended == virtual_time.now()


async def test_in_a_transaction(virtual_time: VirtualTime, conn: Connection) -> None:
    """Also in a transaction it is as late as it is, after rollbacks of every kind too."""
    for fate in ("commit", "rollback"):
        await trio.sleep(10)
        async with conn.transaction(force_rollback=fate == "rollback"):
            assert await ask(conn) == virtual_time.now()
            await trio.sleep(10)
            assert await ask(conn) == virtual_time.now()
            async with conn.transaction(force_rollback=True):
                await trio.sleep(10)
                assert await ask(conn) == virtual_time.now()
            assert await ask(conn) == virtual_time.now()
            async with conn.transaction():
                await trio.sleep(10)
            assert await ask(conn) == virtual_time.now()
        assert await ask(conn) == virtual_time.now()


async def test_after_an_error(virtual_time: VirtualTime, conn: Connection) -> None:
    """A statement that failed takes nothing of the present with it."""
    await trio.sleep(10)
    with pytest.raises(Exception, match="division by zero"):
        await conn.execute("select 1 / 0")
    assert await ask(conn) == virtual_time.now()
    with pytest.raises(Exception, match="division by zero"):
        async with conn.transaction():
            await trio.sleep(10)
            assert await ask(conn) == virtual_time.now()
            await conn.execute("select 1 / 0")
    assert await ask(conn) == virtual_time.now()


async def test_in_a_pipeline(virtual_time: VirtualTime, conn: Connection) -> None:
    """A pipeline goes by the instant at which it began."""
    await trio.sleep(10)
    async with conn.pipeline():
        first, second = await conn.execute(NOW), await conn.execute(NOW)
        answers = [await first.fetchone(), await second.fetchone()]

    assert answers == [(virtual_time.now(),)] * 2


async def test_copy(virtual_time: VirtualTime, conn: Connection) -> None:
    """Tasks that come by COPY are of the virtual present."""
    await trio.sleep(10)
    async with conn.cursor().copy("copy nursery_queue.task (task_type) from stdin") as copy:
        for _ in range(3):
            await copy.write_row(["a"])
    rows = await conn.fetch("select created_at, state from nursery_queue.task_status")

    assert rows == [(virtual_time.now(), "ready")] * 3


async def test_server_side_cursors(virtual_time: VirtualTime, conn: Connection) -> None:
    """A named cursor and executemany see it, too."""
    await trio.sleep(10)
    async with conn.transaction(), conn.cursor("named") as cursor:
        await cursor.execute(NOW)
        assert await cursor.fetchone() == (virtual_time.now(),)
    await conn.cursor().executemany(
        "insert into nursery_queue.task (task_type) values (%s)", [["a"], ["b"]]
    )
    rows = await conn.fetch("select distinct created_at from nursery_queue.task")

    assert rows == [(virtual_time.now(),)]


async def test_in_the_transaction_of_an_application(
    virtual_time: VirtualTime, client: nq.Client
) -> None:
    """What `client.transaction()` lends goes by the virtual clock."""
    async with client.transaction() as tx:
        await trio.sleep(10)
        cursor = await tx.execute(NOW)
        assert await cursor.fetchone() == (virtual_time.now(),)
        await trio.sleep(10)
        ref = await tx.enqueue("a")
    status = await client.status(ref)

    assert status is not None
    assert status.created_at == virtual_time.now()


async def test_two_clients(virtual_time: VirtualTime, migrated: str) -> None:
    """One clock for all clients of the run, of whatever schema."""
    await trio.sleep(10)
    async with await Connection.connect(migrated) as conn:
        await _migrate.up(conn, "elsewhere")
    async with (
        nq.connect(migrated) as one,
        nq.connect(migrated) as two,
        nq.connect(migrated, schema="elsewhere") as three,
    ):
        for _ in range(3):
            await trio.sleep(10)
            for client in (one, two, three):
                status = await client.status(await client.enqueue("a"))
                assert status is not None
                assert status.created_at == virtual_time.now()


async def test_a_session_that_is_not_ours(virtual_time: VirtualTime, migrated: str) -> None:
    """A connection that no client opened goes by the real time."""
    async with await Connection.connect(migrated) as conn:
        assert abs(await ask(conn) - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)
