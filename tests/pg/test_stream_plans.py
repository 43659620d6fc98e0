"""How the statements for streams are planned: few rows, on any statistics; and what they send."""

# pyright: reportPrivateUsage=false
# What they read is counted on a connection of the store.

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import psycopg
import pytest

from psycopg import sql

from nursery_queue._core._model import Fence
from nursery_queue._core._states import Event
from nursery_queue._core._streams import PAGE, Chunk, StreamRequest, StreamWrite
from nursery_queue._pg import _stream_rows as _streams
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._pg._postgres_transaction import settle_rows
from nursery_queue._pg._sql import query
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._pool import Pool
from tests.support.store_steps import ends


TABLES = ("task", "running", "finished", "stream", "chunk")
STREAMS, LENGTH = 2_000, 100
# Tasks that run, each with a stream; some more have ended, and each has one, too.
FILL = f"""
    set session_replication_role = replica;
    insert into nursery_queue.task (id, task_type, queue, priority, on_complete)
    overriding system value
    select i, 'a', 'default', 0, null from generate_series(1, 4000) as i;
    insert into nursery_queue.running
    select i, gen_random_uuid(), 1, 1, 0, now() from generate_series(1, {STREAMS}) as i;
    insert into nursery_queue.finished
    select i, 'succeeded', 1, 1, 0, now(), now() + (i - 3000) * interval '1 hour'
      from generate_series({STREAMS + 1}, {2 * STREAMS}) as i;
    insert into nursery_queue.stream (task_id, name, epoch, length)
    select i, 's', 1, {LENGTH} from generate_series(1, {2 * STREAMS}) as i;
    insert into nursery_queue.chunk
    select id, seq, 'b', 'x' from nursery_queue.stream, generate_series(0, {LENGTH - 1}) as seq;
    set session_replication_role = origin;
"""
EMPTY = "truncate " + ", ".join(f"nursery_queue.{table}" for table in TABLES)

Verb = Callable[[Connection], Awaitable[object]]


async def writes(conn: Connection) -> None:
    chunks = [Chunk.of("a"), Chunk.of("b")]
    asked = StreamWrite(fence=Fence(7, 1), name="s", chunks=chunks)
    await _streams.write(conn, "nursery_queue", asked)


async def restarts(conn: Connection) -> None:
    await conn.fetch("update nursery_queue.running set epoch = 2 where task_id = 7")
    asked = StreamWrite(fence=Fence(7, 2), name="s", chunks=[Chunk.of("a")], restart=True)
    await _streams.write(conn, "nursery_queue", asked)


async def reads(conn: Connection) -> None:
    requests = [
        StreamRequest(task_id=task_id, name="s", start=start)
        for task_id, start in [(1, 0), (7, 30), (2_500, -5), (3_999, LENGTH), (10**9, 0)]
    ]
    params = _streams.read_params(requests)
    await conn.fetch(query("read_streams", "nursery_queue"), params)


async def forgets(conn: Connection) -> None:
    settlements = [ends(Fence(task_id, 1), Event.SUCCEED, keep_for=0) for task_id in (5, 7)]
    await settle_rows(conn, "nursery_queue", settlements)


async def prunes(conn: Connection) -> None:
    await conn.fetch(
        query("prune", "nursery_queue"), {"limit": 2, "chunks": 1000, "attempts": 10_000}
    )


# How many rows each of them may read of any table.
VERBS: list[tuple[Verb, int]] = [
    (writes, 8),
    (restarts, LENGTH + 8),
    (reads, 3 * PAGE + 8),
    (forgets, 2 * LENGTH + 8),
    (prunes, 2 * LENGTH + 8),
]


def pool_of(store: PostgresStore, verb: Verb) -> Pool:
    """Return the connections that a verb uses: an application's, where nothing is set, or not."""
    return store._control if verb in {forgets, prunes} else store._pool


@pytest.fixture(params=["auto", "force_generic_plan", "force_custom_plan"])
async def aged(request: pytest.FixtureRequest, migrated: str) -> AsyncGenerator[PostgresStore]:
    """Give a store that has planned all when the tables were empty, and known to be."""
    with psycopg.connect(migrated, autocommit=True) as session:
        database = sql.Identifier(session.info.dbname)
        alter = sql.SQL("alter database {} set plan_cache_mode = {}")
        session.execute(alter.format(database, sql.Literal(request.param)))
        for table in TABLES:
            alter = sql.SQL("alter table nursery_queue.{} set (autovacuum_enabled = off)")
            session.execute(alter.format(sql.Identifier(table)))
        session.execute(FILL.encode())
        session.execute(EMPTY.encode())
        session.execute("analyze")
        store = PostgresStore(migrated)
        for verb, _ in VERBS:
            pool = pool_of(store, verb)
            async with pool.connection() as conn, conn.transaction(force_rollback=True):
                await conn.execute(FILL_ONE)
                await verb(conn)
        session.execute(FILL.encode())
    yield store
    await store.aclose()


FILL_ONE = """
    insert into nursery_queue.task (id, task_type) overriding system value values (7, 'a');
    insert into nursery_queue.running values (7, gen_random_uuid(), 1, 1, 0, now());
"""


@pytest.mark.parametrize(("verb", "most"), VERBS)
async def test_few_rows_are_read(aged: PostgresStore, verb: Verb, most: int) -> None:
    """With plans and statistics from empty tables, no statement reads more than it needs."""
    pool = pool_of(aged, verb)
    async with pool.connection() as conn:
        await conn.fetch("select pg_stat_force_next_flush()::text")  # the counts begin anew
    async with pool.connection() as conn, conn.transaction(force_rollback=True):
        await verb(conn)
        read = await conn.fetch(
            "select relname::text, seq_tup_read + coalesce(idx_tup_fetch, 0)"
            "  from pg_stat_xact_user_tables"
            " where schemaname = 'nursery_queue' and relname = any(%s)",
            [list(TABLES)],
        )

    assert sum(count for _, count in read) > 0
    assert [(name, count) for name, count in read if count > most] == []
