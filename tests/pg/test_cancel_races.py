"""Cancelling a task that is moving, as somebody's open transaction makes it wait."""

from __future__ import annotations

import pytest
import trio

from nursery_queue._core._filters import CancelFilter
from nursery_queue._core._states import Event, State
from nursery_queue._pg._postgres_store import PostgresStore
from tests.pg.queries import BIG, Session, rows
from tests.support.store_steps import a_task, add, claimed_once, settle, state, status
from tests.support.waits import until_blocked


# Somebody moves the only task from one place to another.
CLAIM = """
    with gone as (delete from nursery_queue.ready returning *)
    insert into nursery_queue.running (task_id, worker_id, attempt, epoch, lost, started_at)
    select task_id, gen_random_uuid(), 1, 1, 0, now() from gone
"""
PARK = """
    with gone as (delete from nursery_queue.ready returning *)
    insert into nursery_queue.parked select * from gone
"""
PROMOTE = """
    with gone as (delete from nursery_queue.scheduled returning *)
    insert into nursery_queue.ready (task_id, queue, priority, task_type, attempt, epoch, lost)
    select task_id, 'default', 0, 'work', attempt, epoch, lost from gone
"""
UNPARK = """
    with gone as (delete from nursery_queue.parked returning *)
    insert into nursery_queue.ready select * from gone
"""
GIVE_BACK = """
    with gone as (delete from nursery_queue.running returning *)
    insert into nursery_queue.ready (task_id, queue, priority, task_type, attempt, epoch, lost)
    select task_id, 'default', 0, 'work', attempt, epoch, lost from gone
"""
FINISH = """
    with gone as (delete from nursery_queue.running returning *)
    insert into nursery_queue.finished (task_id, state, attempt, epoch, lost, finished_at,
                                        expires_at)
    select task_id, 'succeeded', attempt, epoch, lost, now(), now() from gone
"""
MOVES: dict[str, tuple[list[str], str, State]] = {
    "claim": ([], CLAIM, State.RUNNING),
    "park": ([], PARK, State.CANCELLED),
    "promote": (["later"], PROMOTE, State.CANCELLED),
    "unpark": ([PARK], UNPARK, State.CANCELLED),
    "give back": ([CLAIM], GIVE_BACK, State.CANCELLED),
    "finish": ([CLAIM], FINISH, State.SUCCEEDED),
}


@pytest.mark.parametrize("verb", ["cancel", "cancel_some"])
@pytest.mark.parametrize("move", MOVES)
async def test_a_task_that_moves(
    store: PostgresStore, session: Session, migrated: str, move: str, verb: str
) -> None:
    """Whoever cancels waits for the move to be committed, and then finds the task again."""
    before, moving, goal = MOVES[move]
    task_id = await add(store, run_after=60 if before == ["later"] else 0)
    for step in before:
        if step != "later":
            session.execute(step.encode())
    session.commit()
    session.execute(moving.encode())
    answers: list[object] = []

    async def cancel() -> None:
        if verb == "cancel":
            answers.append(await store.cancel(task_id))
        else:
            _, count = await store.cancel_some(CancelFilter(), after=0, upto=task_id, dry_run=False)
            answers.append(bool(count))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        await until_blocked(migrated)
        session.commit()

    assert answers == [goal is not State.SUCCEEDED]
    assert await state(store, task_id) is goal
    assert (await status(store, task_id)).cancel_requested is (goal is State.RUNNING)


@pytest.mark.parametrize("verb", ["cancel", "cancel_some"])
async def test_a_move_that_is_rolled_back(
    store: PostgresStore, session: Session, migrated: str, verb: str
) -> None:
    """If the other transaction rolls back, the task is cancelled where it was."""
    task_id = await add(store)
    session.execute(CLAIM)

    async def cancel() -> None:
        if verb == "cancel":
            assert await store.cancel(task_id)
        else:
            page = await store.cancel_some(CancelFilter(), after=0, upto=task_id, dry_run=False)
            assert page == (task_id, 1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        await until_blocked(migrated)
        session.rollback()

    assert await state(store, task_id) is State.CANCELLED
    assert rows(session, "ready") == rows(session, "running") == 0


async def test_pages_take_turns(store: PostgresStore, session: Session, migrated: str) -> None:
    """Who walks through the tasks waits for another walk's page, with nothing in hand."""
    ids = [ref.id for ref in await store.enqueue([a_task() for _ in range(4)])]
    session.execute("select nursery_queue.cancel(%s)", [ids[2]])
    counts: list[int] = []

    async def cancel() -> None:
        _, count = await store.cancel_some(CancelFilter(), after=0, upto=ids[3], dry_run=False)
        counts.append(count)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancel)
        nursery.start_soon(cancel)
        await until_blocked(migrated, 2)
        waits = session.execute(
            "select count(*) from pg_locks where not granted and locktype = 'advisory'"
        ).fetchall()
        session.commit()

    assert waits == [(1,)]
    assert sorted(counts) == [0, 3]


async def test_settled_while_a_page_is_open(store: PostgresStore, session: Session) -> None:
    """What ended before its page was walked is not cancelled, nor counted."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.SUCCEED)

    assert await store.cancel_some(CancelFilter(), after=0, upto=task.id, dry_run=False) == (
        task.id,
        0,
    )


@pytest.mark.parametrize("before", ["ready", "scheduled", "parked"])
async def test_nothing_is_left_of_what_is_not_kept(
    store: PostgresStore, session: Session, before: str
) -> None:
    """A task with keep_for 0 that is cancelled leaves no row anywhere, of its past neither."""
    task = await claimed_once(store, dedup_key="k", keep_for=0)
    event = Event.RETRY if before == "scheduled" else Event.INTERRUPT
    await settle(store, task.fence, event, keep_for=0)
    if before == "parked":
        session.execute(PARK)
        session.commit()

    assert {table: rows(session, table) for table in (before, "attempt")} == {
        before: 1,
        "attempt": 1,
    }
    session.commit()
    assert await store.cancel(task.id)
    assert {table: rows(session, table) for table in BIG} == dict.fromkeys(BIG, 0)
    assert rows(session, "parked") == 0


async def test_many_by_sql(store: PostgresStore, session: Session) -> None:
    """The SQL function cancels many at once, and counts those that were live."""
    task = await claimed_once(store)
    ids = [ref.id for ref in await store.enqueue([a_task() for _ in range(3)])]
    call = "select nursery_queue.cancel_many(%s::bigint[], running => false)"

    assert session.execute(call, [[*ids, task.id, ids[0], 10**15, None]]).fetchall() == [(4,)]
    assert session.execute(call, [ids]).fetchall() == [(0,)]
    assert session.execute(call, [[]]).fetchall() == [(0,)]

    session.commit()
    beat = await store.heartbeat(task.worker, draining=False)

    assert [ask.interrupt for ask in beat.cancel_requests] == [False]
