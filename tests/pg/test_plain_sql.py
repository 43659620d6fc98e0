"""Storing tasks with plain INSERT and COPY, from any client, in anybody's transaction."""

from __future__ import annotations

import uuid

from collections.abc import Generator, Mapping

import psycopg
import pytest

from psycopg import errors, sql

import nursery_queue as nq

from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._json_text import is_of
from nursery_queue._core._states import Event, State
from nursery_queue._pg._postgres_store import PostgresStore
from tests.pg.queries import BIG, Session, call, rows
from tests.support.store_steps import claim, claim_one, hire, settle


ONE = "insert into nursery_queue.task (task_type, params) values ('work', '{\"a\": 1}')"


@pytest.fixture
def role(session: Session) -> Generator[sql.Identifier]:
    """Name a role that may do nothing."""
    role = sql.Identifier(f"producer_{uuid.uuid4().hex}")
    session.execute(sql.SQL("create role {}").format(role))
    session.commit()
    yield role
    session.rollback()
    session.execute("reset role")
    session.execute(sql.SQL("drop owned by {0}; drop role {0}").format(role))
    session.commit()


# -- inserting ------------------------------------------------------------------------------


async def test_insert_alone(session: Session, store: PostgresStore) -> None:
    """Type and params are all it takes, and params may be left out."""
    session.execute(ONE)
    session.execute("insert into nursery_queue.task (task_type) values ('work')")
    session.commit()
    claims = await claim(store, await hire(store))

    assert [one.params for one in claims] == ['{"a": 1}', "{}"]
    assert [one.queue for one in claims] == ["default"] * 2


async def test_insert_with_everything(session: Session, store: PostgresStore) -> None:
    """Every column of a task can be given."""
    session.execute(
        "insert into nursery_queue.task (task_type, params, queue, priority, run_at, max_attempts,"
        " backoff, timeout, keep_for, dedup_key) values ('work', '{}', 'q', 3,"
        " now() - interval '1 hour', 2, '{\"initial\": 1, \"maximum\": 2.5}', 'Infinity', 0, 'k')"
    )
    session.commit()
    one = await claim_one(store, await hire(store))

    assert (one.queue, one.max_attempts, one.timeout, one.keep_for) == ("q", 2, float("inf"), 0)
    assert one.backoff is not None
    assert (one.backoff.initial, one.backoff.maximum) == (1, 2.5)

    await settle(store, one, Event.SUCCEED, keep_for=0)

    assert {table: rows(session, table) for table in BIG} == dict.fromkeys(BIG, 0)


async def test_insert_for_later(session: Session, store: PostgresStore) -> None:
    """By run_at a task is ready or scheduled, row by row."""
    session.execute(
        "insert into nursery_queue.task (task_type, run_at)"
        " values ('work', now() + interval '1 hour'), ('work', now()), ('work', '1999-01-01')"
    )
    session.commit()
    states = [task.state for task in await store.list_tasks(TaskFilter())]

    assert states == [State.READY, State.READY, State.SCHEDULED]


async def test_copy(session: Session, store: PostgresStore) -> None:
    """COPY places its rows like any other insert."""
    with session.cursor().copy("copy nursery_queue.task (task_type, params) from stdin") as copy:
        for i in range(1000):
            copy.write_row(("work", f'{{"i": {i}}}'))
    session.commit()
    claims = await claim(store, await hire(store), 2000)

    assert [one.params for one in claims] == [f'{{"i": {i}}}' for i in range(1000)]


async def test_branch_of_a_cte(session: Session, store: PostgresStore) -> None:
    """A task can be stored by the statement that stores what it is about."""
    session.execute("create table customer (id bigint generated always as identity, email text)")
    session.execute(
        """
        with customers as (
            insert into customer (email) values ('a@b.c'), ('d@e.f') returning id
        ), welcome as (
            insert into nursery_queue.task (task_type, params)
            select 'work', jsonb_build_object('customer', id) from customers
        )
        select count(*) from customers
        """
    )
    session.commit()
    claims = await claim(store, await hire(store))

    assert [one.params for one in claims] == ['{"customer": 1}', '{"customer": 2}']


async def test_by_a_role_that_may_only_insert(
    session: Session, store: PostgresStore, role: sql.Identifier
) -> None:
    """USAGE on the schema and INSERT on the one table are enough, with every kind of task."""
    session.execute(
        sql.SQL(
            "grant usage on schema nursery_queue to {0}; grant insert on nursery_queue.task to {0}"
        ).format(role)
    )
    session.execute(sql.SQL("set role {}").format(role))
    session.execute(ONE)
    session.execute("insert into nursery_queue.task (task_type, dedup_key) values ('work', 'k')")
    session.execute(
        "insert into nursery_queue.task (task_type, run_at) values ('work', now() + interval '1 h')"
    )
    with session.cursor().copy("copy nursery_queue.task (task_type) from stdin") as copy:
        copy.write_row(("work",))
    session.commit()
    for table in BIG:
        select = sql.SQL("select from nursery_queue.{}").format(sql.Identifier(table))
        with pytest.raises(errors.InsufficientPrivilege):
            session.execute(select)
        session.rollback()

    assert len(await store.list_tasks(TaskFilter())) == 4
    assert len(await claim(store, await hire(store))) == 3


def test_a_statement_rings_once(session: Session, migrated: str) -> None:
    """However many rows, a statement rings once, and so does a transaction."""
    with psycopg.connect(migrated, autocommit=True) as ear:
        ear.execute("listen nursery_queue")
        for _ in range(3):
            session.execute(
                "insert into nursery_queue.task (task_type) select 'a' from generate_series(1, 99)"
            )
        session.commit()
        session.execute("notify nursery_queue, 'last'")
        session.commit()
        heard = [notify.payload for notify in ear.notifies(timeout=20, stop_after=2)]

    assert heard == ["", "last"]


async def test_uncommitted_tasks_are_not_claimed(session: Session, store: PostgresStore) -> None:
    """Until the commit a task is nobody's, and nobody waits for it."""
    worker = await hire(store)
    session.execute(ONE)

    assert await claim(store, worker) == []
    assert await store.list_tasks(TaskFilter()) == []

    session.commit()

    assert len(await claim(store, worker)) == 1


def test_rolled_back_tasks_leave_nothing(session: Session) -> None:
    """Ten transactions that enqueue in every way and roll back leave no row in any table."""
    for i in range(10):
        session.execute(ONE)
        session.execute(
            "insert into nursery_queue.task (task_type, run_at, dedup_key)"
            " values ('a', now() + interval '1 h', 'k')"
        )
        call(session, "enqueue", {"task_type": "a", "dedup_key": f"k{i % 2}"})
        call(session, "enqueue", {"task_type": "a", "keep_for": 0})
        session.execute("select nursery_queue.cancel(id) from nursery_queue.task")
        session.rollback()
    found = session.execute(
        "select relname from pg_class where relnamespace = 'nursery_queue'::regnamespace"
        " and relkind = 'r' and relname <> 'migration'"
    ).fetchall()

    assert len(found) >= 9
    assert {table: rows(session, table) for (table,) in found} == {t: 0 for (t,) in found}


WRONG = {
    "task_params_check": {"params": "[]"},
    "task_task_type_check": {"task_type": ""},
    "task_queue_check": {"queue": ""},
    "task_max_attempts_check": {"max_attempts": "0"},
    "task_timeout_check": {"timeout": "NaN"},
    "task_keep_for_check": {"keep_for": "-1"},
    "task_dedup_key_check": {"dedup_key": ""},
    "task_run_at_check": {"run_at": "infinity"},
    "task_created_at_check": {"created_at": "-infinity"},
}
MORE_WRONG = [
    *WRONG.items(),
    *[("task_timeout_check", {"timeout": value}) for value in ("0", "-1", "-Infinity")],
    *[("task_keep_for_check", {"keep_for": value}) for value in ("NaN", "Infinity", "1e10")],
    *[("task_params_check", {"params": value}) for value in ("null", "1", '"a"')],
    ("task_run_at_check", {"run_at": "20000-01-01"}),
]


def insert(session: Session, given: Mapping[str, str]) -> None:
    row = {"task_type": "a", **given}
    query = sql.SQL("insert into nursery_queue.task ({}) values ({})").format(
        sql.SQL(", ").join(map(sql.Identifier, row)), sql.SQL(", ").join(row.values())
    )
    session.execute(query)


@pytest.mark.parametrize(("constraint", "row"), MORE_WRONG)
def test_what_is_wrong_is_named(session: Session, constraint: str, row: Mapping[str, str]) -> None:
    """A row that makes no sense is refused, and the error names the column's check."""
    with pytest.raises(errors.CheckViolation, match=constraint):
        insert(session, row)


@pytest.mark.parametrize(
    "backoff",
    [
        "5",
        "[]",
        '"a"',
        "null",
        '[{"initial": 1, "maximum": 2}]',
        '{"initial": 0, "maximum": 1}',
        '{"initial": -1, "maximum": 1}',
        '{"initial": 2, "maximum": 1}',
        '{"initial": 1, "maximum": 1e10}',
        '{"initial": 1e-400, "maximum": 1}',
        '{"initial": [1], "maximum": 2}',
        '{"initial": "1", "maximum": "2"}',
        '{"initial": "NaN", "maximum": "NaN"}',
        '{"initial": null, "maximum": 2}',
        '{"initial": 1, "maximum": 2, "factor": 0.5}',
        '{"initial": 1, "maximum": 2, "factor": 1001}',
        '{"initial": 1, "maximum": 2, "factor": null}',
        '{"initial": 1, "maximum": 2, "factor": true}',
        '{"initial": 1, "maximum": 2, "jitter": 2}',
        '{"initial": 1, "maximum": 2, "jitter": -1}',
        '{"initial": 1, "maximum": 2, "max_attempts": 3}',
    ],
)
def test_a_backoff_that_no_worker_could_read(session: Session, backoff: str) -> None:
    """A backoff must be what a retry policy takes: otherwise its row would stop every claim."""
    with pytest.raises(errors.CheckViolation, match="task_backoff_check"):
        insert(session, {"backoff": backoff})


@pytest.mark.parametrize(
    "backoff",
    [
        "{}",
        '{"initial": 100}',
        '{"maximum": 1}',
        '{"initial": 1, "maximum": 1}',
        '{"initial": 0.001, "maximum": 3155760000}',
        '{"initial": 1, "maximum": 2, "factor": 1, "jitter": 0}',
        '{"initial": 1, "maximum": 2, "factor": 1000, "jitter": 1}',
    ],
)
async def test_a_backoff_that_a_worker_can_read(
    session: Session, store: PostgresStore, backoff: str
) -> None:
    """What the table lets in becomes a policy."""
    insert(session, {"task_type": "work", "backoff": backoff})
    session.commit()

    assert (await claim_one(store, await hire(store))).backoff is not None


def test_missing_values_are_named(session: Session) -> None:
    """What must be there is asked for by its name."""
    with pytest.raises(errors.NotNullViolation, match="task_type"):
        session.execute("insert into nursery_queue.task (params) values ('{}')")


async def test_what_is_nested_too_deeply_keeps_nothing_from_being_shown(
    session: Session, migrated: str
) -> None:
    """Of params that Python cannot read, pages and statuses have the innermost as text."""
    deep = "[" * 5000 + '"]"' + "]" * 5000
    insert = "insert into nursery_queue.task (task_type, params, context) values ('work', %s, %s)"
    session.execute(insert, [f'{{"id": {"9" * 5000}, "deep": {deep}, "after": [1.5]}}', deep])
    session.execute(insert, ['{"a": 1}', None])
    session.commit()

    async with nq.connect(migrated) as client:
        other, odd = await client.list_tasks(payloads=True)
        assert other.params == {"a": 1}
        assert odd.params is not None
        assert odd.params["after"] == [1.5]
        inner = odd.params["deep"]
        while is_of(inner, list):
            (inner,) = inner
        assert isinstance(inner, str)
        assert inner in deep
        assert await client.status(odd.id, payloads=True) == odd
    told = nq.producer(session).status(odd.id, payloads=True)
    assert told is not None
    assert told.params is not None
    assert told.params["after"] == [1.5]


def test_a_key_that_is_taken(session: Session) -> None:
    """A plain insert with the key of a live task is refused: it has no way to answer."""
    insert(session, {"dedup_key": "k"})
    with pytest.raises(errors.UniqueViolation, match=r"\(dedup_key\)=\(k\) already exists"):
        insert(session, {"dedup_key": "k"})
