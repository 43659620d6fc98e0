"""The SQL functions and views: the public rest, for any client."""

from __future__ import annotations

import datetime as dt

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from psycopg import errors

from nursery_queue._core._errors import TransientError
from nursery_queue._core._model import Refusal
from nursery_queue._core._states import Event, State
from nursery_queue._pg._postgres_store import PostgresStore
from tests.pg.queries import Session, call, rows
from tests.support.store_steps import claim_one, claimed_once, ends, hire, settle, status


async def test_enqueue(session: Session, store: PostgresStore) -> None:
    """The function takes every option by name, and answers the id and that it is new."""
    at = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
    options = {
        "task_type": "work",
        "params": '{"x": [1]}',
        "queue": "q",
        "priority": 7,
        "run_at": at,
        "max_attempts": 3,
        "backoff": '{"initial": 1, "maximum": 2, "factor": 3, "jitter": 0}',
        "timeout": 1.5,
        "keep_for": 60,
        "dedup_key": "k",
    }
    task_id, created = call(session, "enqueue", options)
    session.commit()
    one = await claim_one(store, await hire(store))

    assert created
    assert (one.fence.task_id, one.queue, one.params) == (task_id, "q", '{"x": [1]}')
    assert (one.max_attempts, one.timeout, one.keep_for) == (3, 1.5, 60)
    assert (await status(store, task_id)).run_at == at
    assert (await status(store, task_id)).priority == 7
    assert call(session, "enqueue", {"task_type": "work", "dedup_key": "k"}) == (task_id, False)


async def test_enqueue_after(session: Session, store: PostgresStore) -> None:
    """`run_after` counts from now; the type alone is enough; positions work too."""
    later, _ = call(session, "enqueue", {"task_type": "a", "run_after": 90})
    plain, _ = call(session, "enqueue", {"task_type": "a"})
    session.execute("select nursery_queue.enqueue('a', '{}', 'q', 1)")
    session.commit()
    found = await status(store, later)

    assert found.run_at - found.created_at == dt.timedelta(seconds=90)
    assert (await status(store, plain)).state is State.READY


def test_enqueue_refuses_like_the_table(session: Session) -> None:
    """The function checks what the table checks."""
    with pytest.raises(errors.CheckViolation, match="task_timeout_check"):
        call(session, "enqueue", {"task_type": "a", "timeout": float("nan")})


def test_one_key_from_many_sessions(migrated: str) -> None:
    """Of many who enqueue one key at once each gets one answer, all the same task."""

    def enqueue(_: int) -> list[tuple[Any, ...]]:
        with psycopg.connect(migrated) as session:
            return [
                call(session, "enqueue", {"task_type": "a", "dedup_key": "k"}) for _ in range(2)
            ]

    with ThreadPoolExecutor(8) as executor:
        answers = [answer for both in executor.map(enqueue, range(16)) for answer in both]

    assert len({task_id for task_id, _ in answers}) == 1
    assert sum(created for _, created in answers) == 1
    with psycopg.connect(migrated) as session:
        assert rows(session, "task") == 1


def test_a_key_that_the_transaction_cannot_see(session: Session, migrated: str) -> None:
    """In REPEATABLE READ a key taken since is a serialization failure, not an endless search."""
    session.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    session.execute("select from nursery_queue.task")
    with psycopg.connect(migrated) as other:
        call(other, "enqueue", {"task_type": "a", "dedup_key": "k"})
    with pytest.raises(errors.SerializationFailure, match="dedup_key"):
        call(session, "enqueue", {"task_type": "a", "dedup_key": "k"})


def test_other_conflicts_are_not_searched_for(session: Session) -> None:
    """An index of somebody's own that refuses the row is reported as such."""
    session.execute("create unique index my_own on nursery_queue.task (task_type)")
    call(session, "enqueue", {"task_type": "a"})
    with pytest.raises(errors.UniqueViolation, match="my_own"):
        call(session, "enqueue", {"task_type": "a"})


async def test_cancel(session: Session, store: PostgresStore) -> None:
    """The function cancels what waits, asks for what runs, and says when there is nothing."""
    running = await claimed_once(store)
    waiting, _ = call(session, "enqueue", {"task_type": "a"})

    assert call(session, "cancel", {"id": waiting}) == (True,)
    assert call(session, "cancel", {"id": waiting}) == (False,)
    assert call(session, "cancel", {"id": running.id, "running": False}) == (True,)
    assert call(session, "cancel", {"id": 10**15}) == (False,)

    session.commit()
    beat = await store.heartbeat(running.worker, draining=False)

    assert (await status(store, waiting)).state is State.CANCELLED
    assert [request.interrupt for request in beat.cancel_requests] == [False]


def test_cancelling_a_task_that_is_nowhere(session: Session) -> None:
    """A task without a position, as a restore without triggers makes it, is no endless search."""
    session.execute("set local session_replication_role = replica")
    session.execute(
        "insert into nursery_queue.task (task_type, queue, priority, on_complete)"
        " values ('a', 'default', 0, null)"
    )

    assert session.execute(
        "select nursery_queue.cancel(id) from nursery_queue.task"
    ).fetchall() == [(False,)]


async def test_the_views(session: Session, store: PostgresStore) -> None:
    """State and log of every task can be read in SQL, a running attempt included."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.INTERRUPT)
    await claim_one(store, task.worker)
    state = session.execute("select state, attempt from nursery_queue.task_status").fetchall()
    log = session.execute(
        "select number, outcome, finished_at is null from nursery_queue.task_attempt"
        " order by number"
    ).fetchall()

    assert state == [("running", 2)]
    assert log == [(1, "interrupted", False), (2, "running", True)]


async def test_a_cancel_in_an_open_transaction(session: Session, store: PostgresStore) -> None:
    """Who settles or gives back a task that somebody is cancelling is told to try again."""
    task = await claimed_once(store)
    call(session, "cancel", {"id": task.id})

    assert await store.settle([ends(task.fence, Event.SUCCEED)]) == {task.fence: Refusal.LOCKED}
    with pytest.raises(TransientError, match="try again"):
        await store.give_back_all_but(task.worker, set())
    with pytest.raises(TransientError):
        async with store.transaction() as tx:
            await tx.settle(ends(task.fence, Event.SUCCEED))
    session.commit()

    assert await store.give_back_all_but(task.worker, set()) == 1
    assert (await status(store, task.id)).state is State.CANCELLED
