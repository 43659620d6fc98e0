"""Enqueues that wake nobody: for the server's sake, or to be prepared for a two-phase commit."""

from __future__ import annotations

import functools
import tempfile

from collections.abc import Callable, Generator

import psycopg
import pytest
import trio

from psycopg import sql

import nursery_queue as nq

from nursery_queue._core._states import Event
from nursery_queue._embedded import serve
from nursery_queue._pg._postgres_store import PostgresStore
from tests.pg.queries import Session, rows
from tests.support.store_steps import a_task, add, claim_one, hire, settle


INSERT = "insert into nursery_queue.task (task_type, params) values ('work', '{}')"
MANY = 20_000  # queues

Heard = Callable[[], int]


@pytest.fixture
def heard(session: Session) -> Heard:
    """Count the rings since the last time."""
    session.autocommit = True
    session.execute("listen nursery_queue")

    def count() -> int:
        session.execute("notify nursery_queue, 'the last'")
        payloads = iter(notify.payload for notify in session.notifies())
        return len(list(iter(payloads.__next__, "the last")))

    return count


@pytest.mark.parametrize("value", ["off", "OFF", "false", "no", "0"])
def test_switched_off_in_a_session(heard: Heard, session: Session, value: str) -> None:
    """With the setting off an enqueue wakes nobody, in whatever way; the task is ready."""
    session.execute(f"set nursery_queue.notify = '{value}'".encode())
    session.execute(INSERT)
    session.execute("select nursery_queue.enqueue('work', '{}', dedup_key => 'k')")
    session.execute(INSERT + ", ('work', '{}')")

    assert heard() == 0
    assert rows(session, "ready") == 4


@pytest.mark.parametrize("value", ["on", "true", "", "of"])
def test_anything_else_is_on(heard: Heard, session: Session, value: str) -> None:
    """A setting that is not off is on: no enqueue fails, or is silent, for a typing error."""
    session.execute(f"set nursery_queue.notify = '{value}'".encode())
    session.execute(INSERT)

    assert heard() == 1


def test_switched_off_for_a_transaction(heard: Heard, session: Session) -> None:
    """Set for one transaction, it is on again in the next, as a pooler wants it."""
    with session.transaction():
        session.execute("set local nursery_queue.notify = off")
        session.execute(INSERT)
    assert heard() == 0

    session.execute(INSERT)
    assert heard() == 1


async def test_switched_off_for_a_database(heard: Heard, session: Session, migrated: str) -> None:
    """Set for a database, it is off for all that connect afterwards, whatever they send."""
    named = sql.Identifier(session.info.dbname)
    alter = sql.SQL("alter database {} {} nursery_queue.notify")
    session.execute(sql.SQL("{} = off").format(alter.format(named, sql.SQL("set"))))
    try:
        async with nq.connect(migrated) as client:
            worker = await hire(client.store)
            task_id = await add(client.store, on_complete='{"task_type": "told"}')
            await client.store.enqueue([a_task(dedup_key="k"), a_task()])
            await client.store.enqueue([a_task()], copy=True)
            assert heard() == 0

            one = await claim_one(client.store, worker)
            assert one.fence.task_id == task_id
            await settle(client.store, one, Event.SUCCEED, on_complete=True, result="1")
    finally:
        session.execute(alter.format(named, sql.SQL("reset")))

    assert rows(session, "ready") == 4


async def test_switched_off_for_a_queue(
    heard: Heard, session: Session, store: PostgresStore
) -> None:
    """An enqueue to a quiet queue wakes nobody, unless another queue's task is in it, too."""
    await store.configure("quiet", notify=False)
    heard()
    await store.enqueue([a_task(queue="quiet"), a_task(queue="quiet", run_after=60)])
    assert heard() == 0

    await store.enqueue([a_task(queue="quiet"), a_task()])
    assert heard() == 1

    await store.configure("quiet", notify=True)
    heard()
    await store.enqueue([a_task(queue="quiet")])
    assert heard() == 1


@pytest.mark.parametrize("quiet", [False, True])
def test_many_queues(session: Session, quiet: bool) -> None:
    """Of 20,000 queues that are set in some way, an enqueue looks at its own alone."""
    session.execute(INSERT)  # planned when there were none
    session.execute("set session_replication_role = replica")  # no locks, one for each queue
    session.execute(
        "insert into nursery_queue.queue (name, max_running, notify)"
        " select 'q' || i, 1, %s from generate_series(1, %s) as i",
        (not quiet, MANY),
    )
    session.execute("set session_replication_role = origin")
    session.execute("select pg_stat_force_next_flush()")  # the counts are to begin anew
    session.commit()
    read = (
        "select seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables"
        " where relid = 'nursery_queue.queue'::regclass"
    )
    session.execute("insert into nursery_queue.task (task_type, queue) values ('t', 'q7')")

    ((found,),) = session.execute(read).fetchall()
    assert found <= 1


@pytest.fixture
def place() -> Generator[str]:
    """Where a server of another account may be, unlike in pytest's `tmp_path`."""
    with tempfile.TemporaryDirectory(prefix="nursery-queue-") as path:
        yield path


def test_two_phase_commit(place: str) -> None:
    """An enqueue with the setting off can be prepared, and is there after its commit."""
    serving = functools.partial(serve, place, programs=None, durable=False)
    with serving() as server, psycopg.connect(server.dsn, autocommit=True) as session:
        session.execute("alter system set max_prepared_transactions = 5")
    with serving() as server, psycopg.connect(server.dsn, autocommit=True) as session:
        trio.run(nq.migrate, server.dsn)
        session.execute("begin")
        session.execute(INSERT)
        with pytest.raises(psycopg.errors.FeatureNotSupported, match="NOTIFY"):
            session.execute("prepare transaction 'loud'")

        session.execute("begin")
        session.execute("set local nursery_queue.notify = off")
        session.execute(INSERT)
        session.execute("prepare transaction 'quiet'")
        assert rows(session, "ready") == 0
        session.execute("commit prepared 'quiet'")
        assert rows(session, "ready") == 1
