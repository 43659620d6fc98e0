"""A transaction block tells the truth about COMMIT."""

from __future__ import annotations

import contextlib

from collections.abc import AsyncGenerator, Callable

import psycopg
import pytest

from psycopg.errors import InFailedSqlTransaction, SerializationFailure, UniqueViolation

from nursery_queue._core._errors import CommitOutcomeUnknown
from nursery_queue._psycopg._connection import Connection
from tests.support.proxy import Proxy, proxied


@contextlib.asynccontextmanager
async def block(conn: Connection) -> AsyncGenerator[None]:
    async with conn.transaction():
        yield


@contextlib.asynccontextmanager
async def explicit(conn: Connection) -> AsyncGenerator[None]:
    await conn.set_autocommit(False)
    yield
    await conn.commit()


@contextlib.asynccontextmanager
async def block_in_pipeline(conn: Connection) -> AsyncGenerator[None]:
    async with conn.pipeline(), conn.transaction():
        yield


@contextlib.asynccontextmanager
async def pipeline_in_block(conn: Connection) -> AsyncGenerator[None]:
    async with conn.transaction(), conn.pipeline():
        yield


Block = Callable[[Connection], contextlib.AbstractAsyncContextManager[None]]
blocks = pytest.mark.parametrize("way", [block, explicit, block_in_pipeline, pipeline_in_block])


@pytest.fixture
async def proxy(dsn: str) -> AsyncGenerator[Proxy]:
    async with proxied(dsn) as proxy:
        yield proxy


@pytest.fixture
async def table(conn: Connection) -> str:
    await conn.execute("create table t (i int unique deferrable initially deferred)")
    return "t"


async def rows(conn: Connection) -> list[int]:
    return [i for (i,) in await conn.fetch("select i from t order by i")]


@blocks
@pytest.mark.parametrize("answered", [True, False])
async def test_connection_lost_during_commit(
    proxy: Proxy, conn: Connection, table: str, way: Block, answered: bool
) -> None:
    """`CommitOutcomeUnknown` when COMMIT got no answer, be it committed or not."""
    client = await Connection.connect(proxy.dsn)
    proxy.drop_at(b"COMMIT", answered=answered)
    with pytest.raises(CommitOutcomeUnknown):
        async with way(client):
            await client.execute("insert into t values (1)")

    assert client.closed
    assert await rows(conn) == ([1] if answered else [])


@blocks
async def test_commit_without_answer_in_time(proxy: Proxy, table: str, way: Block) -> None:
    """COMMIT is bounded, and no answer in time is an unknown outcome."""
    client = await Connection.connect(proxy.dsn)
    client.finish_timeout = client.cancel_timeout = 0.2
    proxy.blackhole_at(b"COMMIT")
    with pytest.raises(CommitOutcomeUnknown):
        async with way(client):
            await client.execute("insert into t values (1)")

    assert client.closed


@blocks
async def test_error_at_commit(conn: Connection, table: str, way: Block) -> None:
    """An error the server reports at COMMIT is a definite rollback, and says what it was."""
    with pytest.raises(UniqueViolation):
        async with way(conn):
            await conn.execute("insert into t values (1), (1)")

    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert await rows(conn) == []


async def test_serialization_failure_at_commit(
    conn: Connection, other: Connection, table: str
) -> None:
    """A serialization failure is a definite rollback."""
    for each in (conn, other):
        await each.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
    with pytest.raises(SerializationFailure):
        async with conn.transaction():
            await rows(conn)
            await conn.execute("insert into t values (1)")
            async with other.transaction():
                await rows(other)
                await other.execute("insert into t values (2)")

    assert await rows(other) == [2]


@blocks
async def test_connection_lost_before_commit(
    conn: Connection, other: Connection, table: str, way: Block
) -> None:
    """A connection known to be lost before COMMIT is a definite rollback."""
    with pytest.raises(psycopg.OperationalError):
        async with way(conn):
            await conn.execute("insert into t values (1)")
            await conn.sync_pipeline()
            pid = conn.info.backend_pid
            await other.fetch("select pg_terminate_backend(%s, 10000)", (pid,))

    assert await rows(other) == []


async def test_connection_closed_before_commit(conn: Connection, table: str) -> None:
    """A block whose connection was closed inside does not end as if it had committed."""
    with pytest.raises(psycopg.OperationalError, match="nothing was committed"):
        async with conn.transaction():
            await conn.execute("insert into t values (1)")
            conn.abort()


@blocks
async def test_failed_transaction_does_not_commit_quietly(
    conn: Connection, table: str, way: Block
) -> None:
    """A block that swallowed a statement's error raises: COMMIT would roll back and succeed."""
    with pytest.raises(InFailedSqlTransaction):
        async with way(conn):
            await conn.execute("insert into t values (1)")
            with contextlib.suppress(psycopg.errors.DivisionByZero):
                await conn.execute("select 1 / 0")
                await conn.sync_pipeline()

    assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
    assert await rows(conn) == []


async def test_failed_savepoint(conn: Connection, table: str) -> None:
    """A savepoint that swallowed an error raises; the outer transaction can go on."""
    async with conn.transaction():
        await conn.execute("insert into t values (1)")
        with pytest.raises(InFailedSqlTransaction):
            async with conn.transaction():
                with contextlib.suppress(psycopg.errors.DivisionByZero):
                    await conn.execute("select 1 / 0")
        await conn.execute("insert into t values (2)")

    assert await rows(conn) == [1, 2]


async def test_explicit_rollback(conn: Connection, table: str) -> None:
    """`Rollback` and `force_rollback` still work as in psycopg."""

    async def give_up() -> None:
        raise psycopg.Rollback

    async with conn.transaction():
        await conn.execute("insert into t values (1)")
        await give_up()
    async with conn.transaction(force_rollback=True):
        await conn.execute("insert into t values (2)")

    assert await rows(conn) == []
