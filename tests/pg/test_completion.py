"""Ends that plain SQL brings about, without any worker, and what is told of them."""

from __future__ import annotations

import json

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from psycopg import errors

import nursery_queue as nq

from nursery_queue._core._states import Event
from nursery_queue._pg._postgres_store import PostgresStore
from tests.pg.queries import Session, call, rows
from tests.support.store_steps import a_task, claimed_once, ends


ASKED = '{"task_type": "done"}'
OPTIONS = {"task_type": "work", "on_complete": ASKED, "context": '{"n": [1]}'}
TOLD = {
    "context": {"n": [1]},
    "result": {"status": "cancelled", "reason": "cancelled while waiting"},
}

INSERT = "insert into nursery_queue.task (task_type, on_complete) values ('work', %s) returning id"


def told(session: Session) -> list[Any]:
    """Return what every task that completes another is told."""
    query = "select completes, params from nursery_queue.task where completes is not null"
    found = session.execute(query + " order by id").fetchall()
    assert all(completes == params.pop("task_id") for completes, params in found)
    return [params for _, params in found]


def test_a_cancel_in_plain_sql(session: Session, migrated: str) -> None:
    """Inserted by one client and cancelled by another, without any worker: it is told at once."""
    session.execute(
        "insert into nursery_queue.task (task_type, on_complete, context)"
        " values ('work', %s, '{\"n\": [1]}')",
        [ASKED],
    )
    session.commit()
    with psycopg.connect(migrated) as other:
        other.execute("select nursery_queue.cancel(id) from nursery_queue.task")

        assert told(session) == []

    session.rollback()

    assert told(session) == [TOLD]
    assert rows(session, "ready") == 1
    assert rows(session, "finished") == 1


@pytest.mark.parametrize("keep_for", [None, 0])
@pytest.mark.parametrize("run_after", [0, 60])
def test_the_functions(session: Session, run_after: float, keep_for: float | None) -> None:
    """What the function stored and the function cancels is told, wherever it waits, kept or not."""
    options = {**OPTIONS, "run_after": run_after, "keep_for": keep_for}
    task_id, _ = call(session, "enqueue", options)
    call(session, "cancel", {"id": task_id})

    assert told(session) == [TOLD]
    assert call(session, "cancel", {"id": task_id}) == (False,)
    assert len(told(session)) == 1


def test_in_one_transaction(session: Session) -> None:
    """The end and what tells of it are written by the same transaction, and vanish with it."""
    session.execute(INSERT, [ASKED])
    session.commit()
    session.execute("select nursery_queue.cancel(id) from nursery_queue.task")
    session.rollback()

    assert told(session) == []

    session.execute("select nursery_queue.cancel(id) from nursery_queue.task")
    session.commit()
    same = session.execute(
        "select told.xmin = finished.xmin from nursery_queue.finished"
        " join nursery_queue.task as told on told.completes = finished.task_id"
    ).fetchall()

    assert same == [(True,)]


async def test_a_settlement_is_one_transaction(session: Session, store: PostgresStore) -> None:
    """The end that a worker reports and what tells of it are written by the same transaction."""
    tasks = [await claimed_once(store, on_complete=ASKED) for _ in range(3)]
    await store.settle([ends(task.fence, Event.SUCCEED, on_complete=True) for task in tasks])
    same = session.execute(
        "select told.xmin = finished.xmin from nursery_queue.finished"
        " join nursery_queue.task as told on told.completes = finished.task_id"
    ).fetchall()

    assert same == [(True,)] * 3


async def test_python_reads_what_sql_asked_for(migrated: str, session: Session) -> None:
    """A task that plain SQL enqueued and cancelled is told to a handler like any other."""
    heard: list[Any] = []
    app = nq.App()

    @app.task(name="done")
    async def done(task_id: int, context: dict[str, list[int]], result: nq.Result) -> None:
        heard.append((task_id, context, result))

    task_id, _ = call(session, "enqueue", OPTIONS)
    call(session, "cancel", {"id": task_id})
    session.commit()
    async with nq.connect(migrated) as client:
        await nq.Worker(app, client).run_until_idle()

    assert heard == [(task_id, {"n": [1]}, nq.Cancellation("cancelled while waiting"))]


def _nested(depth: int) -> str:
    asked: dict[str, Any] = {"task_type": "last"}
    for _ in range(depth):
        asked = {"task_type": "x", "on_complete": asked}
    return json.dumps(asked)


@pytest.mark.parametrize(
    "asked",
    [
        "[]",
        "{}",
        '"done"',
        '{"task_type": ""}',
        '{"task_type": 5}',
        '{"task_type": "x", "queue": ""}',
        '{"task_type": "x", "queue": 5}',
        '{"task_type": "x", "priority": 1.5}',
        '{"task_type": "x", "priority": 2147483648}',
        '{"task_type": "x", "run_after": -1}',
        '{"task_type": "x", "run_after": "soon"}',
        '{"task_type": "x", "run_at": "2030-01-01"}',
        '{"task_type": "x", "dedup_key": "k"}',
        '{"task_type": "x", "max_attempts": 0}',
        '{"task_type": "x", "timeout": 0}',
        '{"task_type": "x", "timeout": "long"}',
        '{"task_type": "x", "keep_for": 1e10}',
        '{"task_type": "x", "backoff": {"initial": 0, "maximum": 1}}',
        '{"task_type": "x", "on_complete": {"task_type": ""}}',
    ],
)
def test_what_could_not_be_stored_at_the_end(session: Session, asked: str) -> None:
    """What would keep a task from ending is refused when it is asked for."""
    with pytest.raises(errors.CheckViolation, match="task_on_complete_check"):
        session.execute(INSERT, [asked])


FULL = {
    "task_type": "x",
    "queue": "q",
    "priority": -(2**31),
    "run_after": 0.5,
    "max_attempts": 2**31 - 1,
    "backoff": {"initial": 1, "maximum": 2.5, "factor": 1, "jitter": 0},
    "timeout": "infinity",
    "keep_for": 0,
    "on_complete": {"task_type": "y", "timeout": 0.25},
    "context": None,
}


@pytest.mark.parametrize("asked", [json.dumps(FULL), _nested(50)], ids=["full", "deep"])
def test_what_is_stored_at_the_end(session: Session, asked: str) -> None:
    """Whatever is taken when it is asked for can be stored in the end."""
    (row,) = session.execute(INSERT, [asked]).fetchall()
    call(session, "cancel", {"id": row[0]})

    assert told(session) == [{**TOLD, "context": None}]


OPTIONED: dict[str, Callable[[Any], Any]] = {
    "bare": lambda done: done,
    "all": lambda done: done.options(
        queue="q",
        priority=2**31 - 1,
        retry=nq.RetryPolicy(initial=1e-9, maximum=3e9, factor=1000, jitter=1),
        max_attempts=2**31 - 1,
        timeout=1e-9,
        keep_for=100 * 365 * 86_400,
        run_after=100 * 365 * 86_400,
    ),
    "no limit": lambda done: done.options(timeout=None, retry=False, priority=-(2**31)),
    "chain": lambda done: done.options(on_complete=done.options(timeout=None), context={"a": 1}),
}


@pytest.mark.parametrize("options", OPTIONED)
async def test_whatever_python_asks_for_is_taken(
    session: Session, store: PostgresStore, options: str
) -> None:
    """What the options of a task type allow, the database stores in the end."""

    async def done(task_id: int, context: Any, result: Any) -> None: ...

    app = nq.App()
    told_type = OPTIONED[options](app.task(name="done")(done))
    request = nq.TaskRequest.by_name("work", on_complete=told_type, context="é")
    (ref, _) = await store.enqueue([request.to_new_task(), a_task()])
    await store.cancel(ref.id)

    assert told(session) == [{**TOLD, "context": "é"}]
