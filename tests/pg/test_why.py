"""Asking why: what only a server has, and that it is bounded whatever the tables hold."""

from __future__ import annotations

import time

from collections.abc import Generator
from typing import Any

import psycopg
import pytest

from nursery_queue._core._rate import Rate
from nursery_queue._core._reasons import ReasonCode, Why
from nursery_queue._core._states import State
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._pg._sql import query
from tests.pg.queries import Session
from tests.pg.test_lanes import fill as fill_keys
from tests.pg.test_many_queues import FLUSH
from tests.support.store_steps import TYPE, add, hire


# Without triggers.
FILL = """
    set session_replication_role = replica;
    with stored as (
        insert into nursery_queue.task (task_type, queue, priority, key, on_complete)
        select %(task_type)s, format(%(queue)s::text, i %% %(queues)s), 0, null, null
          from generate_series(1, %(tasks)s) as i
        returning id, queue, priority, task_type
    )
    insert into nursery_queue.ready (task_id, queue, priority, task_type)
    select id, queue, priority, task_type from stored;
    set session_replication_role = origin;
"""
READ = """
    select coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::int
      from pg_stat_xact_user_tables where schemaname = 'nursery_queue'
"""
LOCKS = "select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'"
NEWEST = "select max(id) from nursery_queue.task"
MOST_BEFORE = 10_000
LOOK = 200


@pytest.fixture
def asking(migrated: str) -> Generator[psycopg.Connection[Any]]:
    """Give a session as any client has it: the planner may do as it likes."""
    with psycopg.connect(migrated, autocommit=True) as session:
        yield session


def only(session: psycopg.Connection[Any], statement: str, *params: Any) -> Any:
    row = session.execute(statement.encode(), params).fetchone()
    assert row is not None
    return row[0]


def fill(
    session: psycopg.Connection[Any], tasks: int, *, queues: int = 1, queue: str = "q%s"
) -> None:
    params = {"tasks": tasks, "queues": queues, "queue": queue, "task_type": TYPE}
    with psycopg.ClientCursor(session) as cursor:
        cursor.execute(FILL, params)


async def why(store: PostgresStore, task_id: int) -> Why:
    (found,) = await store.why([task_id])
    return found


def test_plain_sql(session: Session) -> None:
    """The function is for anyone's SQL: the state, and each reason with its code, text and data."""
    task_id = only(session, "insert into nursery_queue.task (task_type) values ('a') returning id")

    assert only(session, "select nursery_queue.why(%s)", task_id) == {
        "state": "ready",
        "reasons": [{"code": "no_workers", "text": "no worker is alive", "draining": 0}],
    }
    assert only(session, "select nursery_queue.why(id => null)")["state"] is None


async def test_a_queue_that_is_being_changed(store: PostgresStore, session: Session) -> None:
    """While a transaction that sets the queue is open, it is the reason; no other queue is held."""
    await hire(store)
    held, free = await add(store), await add(store, queue="other")
    session.execute("insert into nursery_queue.queue (name, max_running) values ('default', 9)")

    reason = (await why(store, held)).reasons[0]

    assert reason.code is ReasonCode.QUEUE_BEING_CHANGED
    assert reason.text == "queue default is being changed in a transaction that has not ended"
    assert reason.details == {"queue": "default"}
    assert (await why(store, free)).codes == (ReasonCode.BEHIND,)
    session.commit()
    assert (await why(store, held)).codes == (ReasonCode.BEHIND,)


async def test_who_asks_holds_no_change_up(store: PostgresStore, session: Session) -> None:
    """An open transaction that has asked has no lock left, on the queue or on anything else."""
    task_id = await add(store)
    only(session, "select nursery_queue.why(%s)", task_id)

    assert only(session, LOCKS) == 0
    await store.configure("default", max_running=3)


async def test_a_task_without_a_position(store: PostgresStore, session: Session) -> None:
    """A task whose position was deleted by hand has no state, and a reason all the same."""
    task_id = await add(store)
    session.execute("delete from nursery_queue.ready")
    session.commit()

    found = await why(store, task_id)

    assert (found.state, found.codes) == (None, (ReasonCode.UNKNOWN,))


@pytest.mark.parametrize("analyzed", ["empty", "full", "never"])
async def test_few_rows_are_read(
    store: PostgresStore, asking: psycopg.Connection[Any], analyzed: str
) -> None:
    """However many tasks, queues and keys there are, and whatever the statistics say of them."""
    await hire(store)
    if analyzed == "empty":
        asking.execute("analyze nursery_queue.ready, nursery_queue.task, nursery_queue.finished")
    fill(asking, 40_000, queues=10_000)
    fill(asking, 40_000, queue="default")
    fill_keys(asking, 5000, 2)
    asking.execute(
        "insert into nursery_queue.queue (name, max_running)"
        " select 'q' || i, 3 from generate_series(1, 9999) as i"
    )
    asking.execute(
        "insert into nursery_queue.finished"
        " select -i, 'succeeded', 1, 1, 0, now(), now() from generate_series(1, 20000) as i"
    )
    await store.configure("default", max_running=100, rate_per_key=Rate(5, per=1))
    if analyzed == "full":
        asking.execute("analyze nursery_queue.ready, nursery_queue.task, nursery_queue.finished")
    asking.execute("set random_page_cost = 1000")  # a server that favours reading from end to end
    newest = only(asking, "select max(task_id) from nursery_queue.ready where key = ''")
    for task_id in (newest, only(asking, NEWEST), 1):
        asking.execute(FLUSH)
        with asking.transaction(force_rollback=True):
            found = only(asking, "select nursery_queue.why(%s)", task_id)
            read = only(asking, READ)

        assert found["state"] == "ready"
        assert [each["code"] for each in found["reasons"]] == ["behind"]
        assert found["reasons"][0]["ahead"] <= MOST_BEFORE
        assert read <= 2 * MOST_BEFORE + 4 * LOOK + 200


async def test_counts_end_somewhere(store: PostgresStore, asking: psycopg.Connection[Any]) -> None:
    """Of very many tasks before one no more than 10,000 are counted, and the answer says so."""
    await hire(store)
    fill(asking, 10_500, queue="default")
    task_id = await add(store)

    (reason,) = (await why(store, task_id)).reasons

    assert reason.text.startswith("before it go 10000 or more tasks of its queue")
    assert reason.details["ahead"] == MOST_BEFORE


async def test_how_fast_a_queue_is(store: PostgresStore, asking: psycopg.Connection[Any]) -> None:
    """The pace of a queue is told by a few that ended lately, and by none of another queue."""
    await hire(store)
    fill(asking, 2000, queue="default")
    fill(asking, 2000, queue="other")
    asking.execute(
        "with gone as (delete from nursery_queue.ready where queue = 'other' or task_id % 2 = 0"
        "              returning task_id)"
        " insert into nursery_queue.finished"
        " select task_id, 'succeeded', 1, 1, 0,"
        "        nursery_queue.now() - make_interval(secs => 100 - task_id / 20.0), now()"
        "   from gone"
    )
    asking.execute("delete from nursery_queue.ready where task_id < 1900")
    # One each 0.1 s, the last of them 0.1 s or so before task 1999.
    asking.execute("begin")
    first = only(asking, "select min(task_id) from nursery_queue.ready")
    pace = only(asking, "select nursery_queue.pace('default', %s)", first)
    nothing = only(asking, "select nursery_queue.pace('unheard of', %s)", first)
    asking.execute("rollback")

    assert 8 <= pace <= 11
    assert nothing == 0
    assert only(asking, "select nursery_queue.pace('default', 1)") == 0


async def test_it_is_quick(store: PostgresStore, asking: psycopg.Connection[Any]) -> None:
    """An answer takes milliseconds, also where thousands of tasks go before the one asked about."""
    await hire(store)
    fill(asking, 30_000, queue="default")
    asking.execute(query("keep_to_indexes", "nursery_queue"), {"once": False})
    newest = only(asking, NEWEST)
    times = list[float]()
    for _ in range(9):
        began = time.perf_counter()
        only(asking, "select nursery_queue.why(%s)", newest)
        times.append(time.perf_counter() - began)

    assert min(times) < 0.1  # about 3 ms on a machine of one's own
    assert TYPE in only(asking, "select task_type from nursery_queue.task where id = %s", newest)
    assert (await why(store, newest)).state is State.READY
