"""Keys, throttle and debounce for programs that speak SQL alone."""

from __future__ import annotations

from typing import Any

import pytest

from psycopg import errors

from nursery_queue._core._declaration import Declaration
from nursery_queue._pg._postgres_store import PostgresStore
from tests.pg.queries import Session, call, rows
from tests.support.store_steps import TYPE, hire


KEYS = "select key from nursery_queue.task order by id"
INSERT = "insert into nursery_queue.task (task_type, params) values ('work', %s)"
BY_CUSTOMER = Declaration(name=TYPE, key_parameter="customer_id", key_default="none")


async def test_a_declared_parameter(store: PostgresStore, session: Session) -> None:
    """An insert, a COPY and the function take the key from the declared parameter."""
    await hire(store, declared=[BY_CUSTOMER])
    session.execute(INSERT, ['{"customer_id": 7}'])
    with session.cursor().copy("copy nursery_queue.task (task_type, params) from stdin") as copy:
        copy.write('work\t{"customer_id": "é"}\nwork\t{}\nodd\t{"customer_id": 7}\n')
    call(session, "enqueue", {"task_type": "work", "params": '{"customer_id": 8}'})

    assert session.execute(KEYS).fetchall() == [("7",), ("é",), ("none",), (None,), ("8",)]
    assert session.execute("select key from nursery_queue.ready order by task_id").fetchall() == [
        ("7",),
        ("é",),
        ("none",),
        ("",),
        ("8",),
    ]
    assert session.execute("select key from nursery_queue.task_status order by id").fetchall() == [
        ("7",),
        ("é",),
        ("none",),
        (None,),
        ("8",),
    ]


async def test_what_is_said_counts(store: PostgresStore, session: Session) -> None:
    """A key that is said is the key, and null says that there is none."""
    await hire(store, declared=[BY_CUSTOMER])
    session.execute(
        "insert into nursery_queue.task (task_type, params, key)"
        " values ('work', '{\"customer_id\": 7}', 'a'), ('work', '{\"customer_id\": 7}', null),"
        " ('work', '{\"customer_id\": 7}', default)"
    )
    for key in ("b", None):
        given = {"task_type": "work", "params": '{"customer_id": 7}', "key": key}
        call(session, "enqueue", given)

    assert session.execute(KEYS).fetchall() == [("a",), (None,), ("7",), ("b",), (None,)]


@pytest.mark.parametrize("value", ["{}", "[]"])
async def test_a_value_that_is_no_key(store: PostgresStore, session: Session, value: str) -> None:
    """An object is no key: the error names the task type, the parameter and the value."""
    await hire(store, declared=[BY_CUSTOMER])
    with pytest.raises(errors.InvalidParameterValue) as caught:
        session.execute(INSERT, [f'{{"customer_id": {value}}}'])

    assert all(part in str(caught.value) for part in ("work", "customer_id", value))


@pytest.mark.parametrize("value", ['""', f'"{"x" * 201}"'])
async def test_a_value_out_of_bounds(store: PostgresStore, session: Session, value: str) -> None:
    """A key that is empty or too long is refused by name."""
    await hire(store, declared=[BY_CUSTOMER])
    with pytest.raises(errors.CheckViolation, match="task_key_of_1_to_200_bytes"):
        session.execute(INSERT, [f'{{"customer_id": {value}}}'])


@pytest.mark.parametrize(
    ("constraint", "columns"),
    [
        ("task_key_of_1_to_200_bytes", {"key": ""}),
        ("task_key_of_1_to_200_bytes", {"key": "x" * 201}),
        ("task_dedup_for_check", {"dedup_key": "k", "dedup_for": 0}),
        ("task_dedup_for_check", {"dedup_key": "k", "dedup_for": float("nan")}),
        ("task_dedup_for_needs_a_dedup_key", {"dedup_for": 1}),
    ],
)
def test_what_is_wrong_is_named(session: Session, constraint: str, columns: dict[str, Any]) -> None:
    """A row that makes no sense is refused, and the error names the check."""
    with pytest.raises(errors.CheckViolation, match=constraint):
        call(session, "enqueue", {"task_type": "work", **columns})


async def test_keys_that_stay_taken_are_in_nobodys_way(
    store: PostgresStore, session: Session
) -> None:
    """Pruning comes to a key that is free behind any number of keys of tasks that live longer."""
    session.execute(
        "insert into nursery_queue.task (task_type, run_at, dedup_key, dedup_for)"
        " select 'work', '2100-01-01 00:00+00', 'live' || i, 1 from generate_series(1, 2500) as i;"
        "insert into nursery_queue.task (task_type, keep_for, dedup_key, dedup_for)"
        " values ('work', 0, 'free', 1);"
        "select nursery_queue.cancel(max(id)) from nursery_queue.task;"
        "update nursery_queue.dedup set until = now() - interval '1 s',"
        " prune_at = now() - case when dedup_key = 'free' then interval '1 s'"
        "                         else interval '1 h' end"
    )
    session.commit()
    assert rows(session, "dedup") == 2501
    session.commit()

    await store.prune()

    assert rows(session, "dedup") == 2500
    assert session.execute(
        "select count(*) from nursery_queue.dedup where prune_at <= now() + interval '59 s'"
    ).fetchall() == [(0,)]


def test_a_plain_insert_keeps_its_key(session: Session) -> None:
    """`dedup_for` is a column: also a plain insert has its key taken, and a second one fails."""
    insert = (
        "insert into nursery_queue.task (task_type, keep_for, dedup_key, dedup_for)"
        " values ('work', 0, 'k', 60) returning id"
    )
    (found,) = session.execute(insert).fetchall()
    session.execute("select nursery_queue.cancel(%s)", found)
    session.commit()

    assert rows(session, "task") == 0
    assert call(session, "enqueue", {"task_type": "work", "dedup_key": "k"}) == (found[0], False)

    with pytest.raises(errors.UniqueViolation, match=r"\(dedup_key\)=\(k\)"):
        session.execute(insert)
    session.rollback()
    session.execute("update nursery_queue.dedup set until = now()")
    with session.transaction(force_rollback=True):
        assert call(session, "enqueue", {"task_type": "work", "dedup_key": "k"})[1]

    assert session.execute(insert).fetchall() > [found]


def test_debounce(session: Session) -> None:
    """The function replaces the waiting task, as the call says or as is declared."""
    session.execute(
        "insert into nursery_queue.task_type (name, queue, priority, keep_for, key_parameter)"
        " values ('work', 'mail', 3, 60, 'n')"
    )
    usual = {"task_type": "work", "dedup_key": "k", "debounce_wait": 60}
    first = call(
        session,
        "enqueue",
        {**usual, "params": '{"n": 1}', "queue": "a", "timeout": "infinity", "key": "b"},
    )
    second = call(session, "enqueue", {**usual, "params": '{"n": 2}', "debounce_max_wait": 90})

    assert first[1]
    assert second == (first[0], False)
    assert session.execute(
        "select queue, priority, key, params, timeout, run_at - created_at < '61 s',"
        " run_at - created_at >= '60 s', run_at = due_at"
        " from nursery_queue.task join nursery_queue.scheduled on task_id = id"
    ).fetchall() == [("mail", 3, "2", {"n": 2}, float("inf"), True, True, True)]


@pytest.mark.parametrize(
    "columns",
    [
        {"debounce_wait": 60},
        {"debounce_wait": 0, "dedup_key": "k"},
        {"debounce_wait": float("nan"), "dedup_key": "k"},
        {"debounce_max_wait": 60, "dedup_key": "k"},
        {"debounce_wait": 60, "debounce_max_wait": 59, "dedup_key": "k"},
        {"debounce_wait": 60, "run_after": 1, "dedup_key": "k"},
        {"debounce_wait": 60, "dedup_for": 60, "dedup_key": "k"},
        {"debounce_wait": 60, "run_at": "2030-01-01 00:00+00", "dedup_key": "k"},
    ],
)
def test_no_debounce(session: Session, columns: dict[str, Any]) -> None:
    """What does not go together is refused, with what does."""
    with pytest.raises(errors.InvalidParameterValue, match="needs a dedup_key, a debounce_wait"):
        call(session, "enqueue", {"task_type": "work", **columns})


def test_debounce_in_a_query(session: Session) -> None:
    """Called for each row of a query, it leaves one task a key."""
    found = session.execute(
        "select created from generate_series(1, 6) as i, nursery_queue.enqueue("
        " 'work', jsonb_build_object('n', i), dedup_key => (i % 2)::text, debounce_wait => 60)"
    ).fetchall()

    assert [created for (created,) in found] == [True, True, False, False, False, False]
    assert session.execute(
        "select params ->> 'n' from nursery_queue.task order by id"
    ).fetchall() == [
        ("5",),
        ("6",),
    ]


def test_without_notifications(session: Session) -> None:
    """A debounced call that replaces a task rings, unless that is switched off."""
    session.execute("listen nursery_queue")
    for wait, notify in ((60, "on"), (10, "on"), (5, "off")):
        session.execute("select set_config('nursery_queue.notify', %s, false)", [notify])
        call(session, "enqueue", {"task_type": "work", "dedup_key": "k", "debounce_wait": wait})
        session.commit()
        rung = len(list(session.notifies(timeout=0)))

        assert rung == (notify == "on")
