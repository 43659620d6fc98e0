"""What is in nobody's way: a row that is refused, locked, deleted by hand, or too long."""

from __future__ import annotations

import json
import random

import psycopg
import pytest
import trio

from nursery_queue._core._errors import DatabaseRefused, TransientError
from nursery_queue._core._model import Held, Outcome, Settlement
from nursery_queue._core._states import Event, State
from nursery_queue._pg import _sweeper
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._store import Bell
from nursery_queue.testing import VirtualTime
from tests.pg.queries import Session, rows
from tests.support.listening import listening
from tests.support.store_steps import (
    LEASE,
    TYPE,
    a_task,
    add,
    claim,
    ends,
    hire,
    settle,
    state,
    status,
)


# A trigger of the application's own, which refuses the tasks in a table.
REFUSE = """
    create table public.refused (id bigint);
    create function public.refuse() returns trigger language plpgsql as $$
    begin
        if exists (select from public.refused where id = new.task_id) then
            raise exception 'not this one';
        end if;
        return new;
    end $$;
"""


def refuse(session: Session, task_id: int, *tables: str) -> None:
    """Let a trigger of the application's own refuse what is to be stored of a task."""
    session.execute(REFUSE)
    session.execute("insert into public.refused values (%s)", [task_id])
    for table in tables:
        session.execute(
            f"create trigger refuse before insert on nursery_queue.{table}"
            " for each row execute function public.refuse()".encode()
        )
    session.commit()


async def orphaned(store: PostgresStore, virtual_time: VirtualTime, count: int) -> list[int]:
    """Let a worker die with so many tasks, all of which have started."""
    refs = await store.enqueue([a_task() for _ in range(count)])
    await claim(store, await hire(store))
    virtual_time.advance(LEASE + 1)
    return [ref.id for ref in refs]


# -- rows that are refused -----------------------------------------------------------------


async def test_a_lost_task_that_cannot_go_back(
    store: PostgresStore,
    session: Session,
    virtual_time: VirtualTime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It fails with the reason, and costs the other tasks of its worker nothing."""
    bad, *others = await orphaned(store, virtual_time, 20)
    refuse(session, bad, "ready")
    lost: dict[int, Outcome | None] = {}

    def tell(held: Held, settlement: Settlement) -> None:
        lost[held.fence.task_id] = settlement.outcome

    assert await store.sweep(max_lost=3, tell=tell) == 20
    assert lost == dict.fromkeys([bad, *others], Outcome.LOST)

    found = await status(store, bad)

    assert (found.state, found.error_type) == (State.FAILED, "worker_lost")
    assert "not this one" in str(found.error_message)
    assert f"task {bad} of a dead worker was set aside as failed" in caplog.text
    for task_id in others:
        assert await state(store, task_id) is State.READY
    assert await store.workers() == []
    assert await store.sweep(max_lost=3) == 0


async def test_a_sweep_is_done_in_parts(
    store: PostgresStore,
    session: Session,
    virtual_time: VirtualTime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No call settles more than it may, nor does a transaction; the next one goes on from there."""
    monkeypatch.setattr(_sweeper, "MOST", 4)
    monkeypatch.setattr(_sweeper, "BATCH", 2)
    await orphaned(store, virtual_time, 10)

    assert [await store.sweep(max_lost=3) for _ in range(4)] == [4, 4, 2, 0]
    assert session.execute(
        "select count(distinct xmin::text) from nursery_queue.ready"
    ).fetchall() == [(5,)]


async def test_a_lost_task_that_can_not_even_fail(
    store: PostgresStore,
    session: Session,
    virtual_time: VirtualTime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It stays where it is, and its worker known, until it can be settled; others are rescued."""
    bad, *others = await orphaned(store, virtual_time, 5)
    refuse(session, bad, "ready", "finished", "attempt")

    assert await store.sweep(max_lost=3) == len(others)
    assert await state(store, bad) is State.RUNNING
    assert [worker.alive for worker in await store.workers()] == [False]
    assert "not this one" in caplog.text
    assert await store.sweep(max_lost=3) == 0

    session.execute("delete from public.refused")
    session.commit()

    assert await store.sweep(max_lost=3) == 1
    assert await state(store, bad) is State.READY
    assert await store.workers() == []


async def test_a_lost_task_that_is_ready_already(
    store: PostgresStore, session: Session, virtual_time: VirtualTime
) -> None:
    """Somebody's insert by hand is in its way: it fails, and is nowhere else any more."""
    bad, other = await orphaned(store, virtual_time, 2)
    session.execute(
        "insert into nursery_queue.ready (task_id, queue, priority, task_type)"
        " select id, queue, priority, task_type from nursery_queue.task where id = %s",
        [bad],
    )
    session.commit()

    assert await store.sweep(max_lost=3) == 2
    assert await state(store, bad) is State.FAILED
    assert await state(store, other) is State.READY
    assert rows(session, "ready") == 1


async def test_a_lost_task_that_a_transaction_holds(
    store: PostgresStore,
    session: Session,
    virtual_time: VirtualTime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is left for later, and its worker is not forgotten; the others do not wait for it."""
    held, *others = await orphaned(store, virtual_time, 5)
    session.execute("select from nursery_queue.running where task_id = %s for update", [held])

    assert await store.sweep(max_lost=3) == len(others)
    assert await state(store, held) is State.RUNNING
    assert len(await store.workers()) == 1
    assert f"tried again: {held}" in caplog.text

    session.rollback()

    assert await store.sweep(max_lost=3) == 1
    assert await state(store, held) is State.READY
    assert await store.workers() == []


async def test_a_scheduled_task_that_cannot_become_ready(
    store: PostgresStore, session: Session, virtual_time: VirtualTime
) -> None:
    """It fails with the reason, and the others become ready."""
    bad, other = await add(store, run_after=5), await add(store, run_after=6)
    refuse(session, bad, "ready")
    virtual_time.advance(7)

    assert await store.promote() == 1

    found = await status(store, bad)

    assert (found.state, found.error_type, found.error_message) == (
        State.FAILED,
        "not_promoted",
        "not this one",
    )
    assert await state(store, other) is State.READY
    assert await store.promote() == 0


async def test_a_scheduled_task_that_can_not_even_fail(
    store: PostgresStore,
    session: Session,
    virtual_time: VirtualTime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It stays where it is, the log says why, and the others become ready."""
    bad, other = await add(store, run_after=5), await add(store, run_after=6)
    refuse(session, bad, "ready", "finished")
    virtual_time.advance(7)

    assert await store.promote() == 1
    assert await state(store, bad) is State.SCHEDULED
    assert await state(store, other) is State.READY
    assert f"task {bad} is refused, and left out: not this one; nor can it be set" in caplog.text


async def test_a_refusal_that_lasts_is_told_once(
    store: PostgresStore,
    session: Session,
    virtual_time: VirtualTime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However many rounds meet it; a task that is refused later is told of then."""
    first, second = await add(store, run_after=5), await add(store, run_after=60)
    refuse(session, first, "ready", "finished")
    session.execute("insert into public.refused values (%s)", [second])
    session.commit()
    for seconds in (7, 7, 60, 7):
        virtual_time.advance(seconds)
        await store.promote()

    assert [caplog.text.count(f"task {each} is refused") for each in (first, second)] == [1, 1]


async def test_a_scheduled_task_that_a_transaction_holds(
    store: PostgresStore, session: Session, virtual_time: VirtualTime
) -> None:
    """It is left for later, also where they are moved one by one; nobody waits for it."""
    held, bad, other = [await add(store, run_after=5) for _ in range(3)]
    refuse(session, bad, "ready")
    virtual_time.advance(7)
    session.execute("select from nursery_queue.scheduled where task_id = %s for update", [held])

    assert await store.promote() == 1
    assert await state(store, held) is State.SCHEDULED
    assert await state(store, bad) is State.FAILED
    assert await state(store, other) is State.READY

    session.rollback()

    assert await store.promote() == 1


async def test_a_scheduled_task_that_has_ended(
    store: PostgresStore, session: Session, virtual_time: VirtualTime
) -> None:
    """Somebody's insert by hand said that it was scheduled: its end stays what it was."""
    ended, other = [await add(store) for _ in range(2)]
    for one in await claim(store, await hire(store)):
        await settle(store, one, Event.SUCCEED)
    session.execute("insert into nursery_queue.scheduled values (%s, now())", [ended])
    session.commit()
    refuse(session, ended, "ready")
    virtual_time.advance(7)
    await store.promote()

    assert await state(store, ended) is await state(store, other) is State.SUCCEEDED
    assert rows(session, "scheduled") == 0


async def test_a_table_that_is_not_as_expected_fails_no_task(
    store: PostgresStore, session: Session, virtual_time: VirtualTime
) -> None:
    """What is refused to every row is said, and no row is blamed: it stays where it is."""
    parked = await add(store, task_type="odd")
    assert await store.park() == 1
    scheduled = await add(store, run_after=5)
    virtual_time.advance(7)
    session.execute("alter table nursery_queue.ready rename column lost to other")
    session.commit()
    with pytest.raises(DatabaseRefused):
        await store.promote()
    session.execute("alter table nursery_queue.ready rename column other to lost")
    session.execute("alter table nursery_queue.ready drop column suspect")
    session.commit()
    with pytest.raises(DatabaseRefused):
        await store.unpark(["odd"])

    assert await state(store, scheduled) is State.SCHEDULED
    assert rows(session, "parked") == 1
    assert await state(store, parked) is State.READY


async def test_a_task_that_is_set_aside_has_ended(
    store: PostgresStore, session: Session, virtual_time: VirtualTime
) -> None:
    """Its key is free, who is to be told is told, who waits hears of it, and it can be looked at.

    So also of a task that was to be kept for a moment only.
    """
    asked = {"dedup_key": "k", "on_complete": json.dumps({"task_type": "tell"}), "keep_for": 1}
    bad = await add(store, run_after=5, **asked)
    refuse(session, bad, "ready")
    virtual_time.advance(7)
    async with listening(store, [Bell.FINISHED]) as ear:
        before = ear.heard[Bell.FINISHED]
        assert await store.promote() == 0
        await ear.hears(Bell.FINISHED, after=before)
    told = "select task_type from nursery_queue.task where completes = %s"

    assert session.execute(told, [bad]).fetchall() == [("tell",)]
    assert (await store.enqueue([a_task(dedup_key="k")]))[0].created
    virtual_time.advance(86_000)
    await store.prune()
    assert await state(store, bad) is State.FAILED
    virtual_time.advance(1000)
    await store.prune()
    assert await state(store, bad) is None


async def test_a_task_that_cannot_be_put_aside(store: PostgresStore, session: Session) -> None:
    """It stays ready, and the others are put aside, but none of a type that somebody knows."""
    bad, _, _ = [await add(store, task_type="odd") for _ in range(3)]
    await hire(store)
    await add(store, priority=1)
    refuse(session, bad, "parked")

    assert await store.park() == 2
    assert await store.park() == 0
    assert rows(session, "parked") == rows(session, "ready") == 2
    assert await state(store, bad) is State.READY


async def test_a_task_that_cannot_be_brought_back(store: PostgresStore, session: Session) -> None:
    """It fails with the reason, and the others are brought back."""
    bad, other = [await add(store, task_type="odd") for _ in range(2)]
    assert await store.park() == 2
    refuse(session, bad, "ready")

    assert await store.unpark(["odd"]) == 1
    assert (await status(store, bad)).error_type == "not_brought_back"
    assert await state(store, other) is State.READY
    assert rows(session, "parked") == 0


async def test_a_task_that_cannot_be_deleted(
    store: PostgresStore,
    session: Session,
    virtual_time: VirtualTime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A table of the application's own refers to it: it is kept for another day, others go."""
    ids = [await add(store, keep_for=5) for _ in range(3)]
    worker = await hire(store)
    for one in await claim(store, worker):
        await settle(store, one, Event.SUCCEED, keep_for=5.0)
    session.execute("create table public.bill (task_id bigint references nursery_queue.task)")
    session.execute("insert into public.bill values (%s)", [ids[1]])
    session.commit()
    virtual_time.advance(6)

    assert await store.prune() == 2
    assert await store.prune() == 0
    assert caplog.text.count(f"prune: task {ids[1]} is refused") == 1
    assert [await state(store, task_id) for task_id in ids] == [None, State.SUCCEEDED, None]

    session.execute("drop table public.bill")
    session.commit()
    virtual_time.advance(86_400)

    assert await store.prune() == 1


@pytest.mark.parametrize("verb", ["promote", "prune", "park", "unpark"])
async def test_what_a_transaction_holds_keeps_no_other_waiting(
    store: PostgresStore, session: Session, virtual_time: VirtualTime, verb: str
) -> None:
    """Each step leaves out what somebody's open transaction holds, and has it the next time."""
    later = 5 if verb == "promote" else 0
    name = TYPE if verb in {"promote", "prune"} else "odd"
    held, _ = [await add(store, run_after=later, task_type=name, keep_for=5) for _ in range(2)]
    if verb == "prune":
        for one in await claim(store, await hire(store)):
            await settle(store, one, Event.SUCCEED, keep_for=5.0)
    if verb == "unpark":
        assert await store.park() == 2
    virtual_time.advance(6)
    table = {"promote": "scheduled", "prune": "finished", "park": "ready", "unpark": "parked"}[verb]
    arguments = [["odd"]] if verb == "unpark" else []
    session.execute(
        f"select from nursery_queue.{table} where task_id = %s for update".encode(), [held]
    )

    assert await getattr(store, verb)(*arguments) == 1

    session.rollback()

    assert await getattr(store, verb)(*arguments) == 1


async def ended(store: PostgresStore, virtual_time: VirtualTime, count: int) -> list[int]:
    """Let so many tasks end, and be kept for long enough."""
    refs = await store.enqueue([a_task() for _ in range(count)])
    for one in await claim(store, await hire(store)):
        await settle(store, one, Event.SUCCEED, keep_for=5.0)
    virtual_time.advance(6)
    return [ref.id for ref in refs]


async def test_a_task_that_an_open_transaction_refers_to(
    store: PostgresStore, session: Session, virtual_time: VirtualTime
) -> None:
    """It is left out, and the others are deleted at once."""
    session.execute("create table public.bill (task_id bigint references nursery_queue.task)")
    session.commit()
    ids = await ended(store, virtual_time, 3)
    session.execute("insert into public.bill values (%s)", [ids[0]])

    assert await store.prune() == 2
    assert await store.prune() == 0

    session.rollback()

    assert await store.prune() == 1


async def test_a_task_that_goes_with_a_row_in_use(
    store: PostgresStore, session: Session, virtual_time: VirtualTime
) -> None:
    """A row that its foreign key deletes is held: the task is kept for another minute."""
    session.execute(
        "create table public.bill (task_id bigint references nursery_queue.task on delete cascade)"
    )
    session.commit()
    ids = await ended(store, virtual_time, 3)
    session.execute("insert into public.bill values (%s)", [ids[0]])
    session.commit()
    session.execute("select from public.bill for update")

    assert await store.prune() == 2
    assert await store.prune() == 0

    session.rollback()
    virtual_time.advance(60)

    assert await store.prune() == 1
    assert session.execute("select from public.bill").fetchall() == []


async def test_a_task_not_to_be_kept_that_an_open_transaction_refers_to(
    store: PostgresStore, session: Session
) -> None:
    """Its outcome is stored without waiting, and it is pruned when the transaction is over."""
    session.execute("create table public.bill (task_id bigint references nursery_queue.task)")
    session.commit()
    refs = await store.enqueue([a_task() for _ in range(2)])
    held, other = await claim(store, await hire(store))
    session.execute("insert into public.bill values (%s)", [refs[0].id])

    await settle(store, held, Event.SUCCEED, keep_for=0.0)
    await settle(store, other, Event.SUCCEED, keep_for=0.0)

    assert [await state(store, ref.id) for ref in refs] == [State.SUCCEEDED, None]
    assert [one.outcome for one in await store.attempts(refs[0].id)] == [Outcome.SUCCEEDED]
    assert await store.prune() == 0

    session.rollback()

    assert await store.prune() == 1
    assert rows(session, "task") == rows(session, "finished") == rows(session, "attempt") == 0


async def test_a_refusal_that_is_not_the_rows_costs_the_others_nothing(
    store: PostgresStore, session: Session, virtual_time: VirtualTime
) -> None:
    """They are rescued first; the task stays where it is, and what refuses it is said next."""
    bad, *others = await orphaned(store, virtual_time, 5)
    refuse(session, bad, "ready")
    session.execute(
        REFUSE.replace("create function", "create or replace function")
        .replace("raise exception 'not this one'", "raise insufficient_privilege")
        .replace("create table public.refused (id bigint);", "")
    )
    session.commit()

    assert await store.sweep(max_lost=3) == len(others)
    with pytest.raises(DatabaseRefused):
        await store.sweep(max_lost=3)
    assert await state(store, bad) is State.RUNNING


async def test_what_is_refused_to_everybody_is_nobodys_fault(
    store: PostgresStore, session: Session, virtual_time: VirtualTime
) -> None:
    """Where a table is not as it should be, no task is blamed, and the sweep says so."""
    ids = await orphaned(store, virtual_time, 3)
    session.execute("alter table nursery_queue.ready rename column suspect to other")
    session.commit()

    with pytest.raises(DatabaseRefused):
        await store.sweep(max_lost=3)

    assert [await state(store, task_id) for task_id in ids] == [State.RUNNING] * 3


# -- ends that nobody can be told of -------------------------------------------------------


async def test_an_end_does_not_depend_on_who_is_to_be_told(
    store: PostgresStore, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """The end is stored though the task of on_complete is refused; the reason can be seen."""
    session.execute(
        "create function public.no_tell() returns trigger language plpgsql as $$ begin"
        " if new.task_type = 'tell' then raise exception 'no telling'; end if; return new;"
        " end $$"
    )
    session.execute(
        "create trigger no_tell before insert on nursery_queue.task"
        " for each row execute function public.no_tell()"
    )
    session.commit()
    tell = [json.dumps({"task_type": name}) for name in ("tell", "note")]
    bad, good = [await add(store, on_complete=text) for text in tell]
    cancelled = await add(store, on_complete=tell[0])
    worker = await hire(store)
    one, two = await claim(store, worker, 2)
    told = [ends(each, Event.SUCCEED, on_complete=True) for each in (one, two)]

    assert await store.settle(told) == {}
    assert await store.cancel(cancelled)
    assert await state(store, bad) is await state(store, good) is State.SUCCEEDED
    assert await state(store, cancelled) is State.CANCELLED
    assert (await status(store, bad)).completion_error == "no telling"
    assert (await status(store, cancelled)).completion_error == "no telling"
    assert (await status(store, good)).completion_error is None
    assert f"on_complete of task {bad} asks for cannot be stored: no telling" in caplog.text
    assert session.execute(
        "select task_type from nursery_queue.task where completes = %s", [good]
    ).fetchall() == [("note",)]


NOISE = random.Random(7).randbytes(20_000).hex()  # more than an index takes, also compressed

# What an application may add to the table of tasks, and what then refuses a task named tell.
ADDED = {
    "check": "alter table nursery_queue.task add constraint mine check (task_type <> 'tell')",
    "unique": "alter table nursery_queue.task add constraint mine unique (task_type)",
    "exclude": (
        "alter table nursery_queue.task add constraint mine"
        " exclude using btree (task_type with =) where (task_type = 'tell')"
    ),
    "unique index": "create unique index mine on nursery_queue.task (task_type)",
    "index": "create index mine on nursery_queue.task (((params ->> 'context')::integer))",
    "foreign key": (
        "create table public.mine (name text primary key); insert into public.mine values ('work');"
        " alter table nursery_queue.task add constraint mine foreign key (task_type)"
        " references public.mine"
    ),
    "long index": "create index mine on nursery_queue.task (context)",
    "generated column": (
        "alter table nursery_queue.task add column mine integer"
        " generated always as ((params ->> 'context')::integer) stored"
    ),
    "column": (
        "alter table nursery_queue.task add column mine text not null default '';"
        " alter table nursery_queue.task alter column mine drop default"
    ),
}


@pytest.mark.parametrize("how", ["settle", "cancel"])
@pytest.mark.parametrize("added", ADDED)
async def test_an_end_does_not_depend_on_what_was_added(
    store: PostgresStore, session: Session, added: str, how: str
) -> None:
    """Whatever an application has added to the table, an end is stored, and says so."""
    tell = json.dumps({"task_type": "tell", "context": NOISE})
    task_id = await add(store, on_complete=tell, context=json.dumps("word"), priority=1)
    if added in {"unique", "unique index", "exclude"}:
        await add(store, task_type="tell")
    worker = await hire(store)
    claimed = await claim(store, worker) if how == "settle" else []
    session.execute(ADDED[added].encode())
    session.commit()

    for one in claimed:
        await settle(store, one, Event.SUCCEED, on_complete=True)
    assert how == "settle" or await store.cancel(task_id)

    found = await status(store, task_id)
    assert found.state is (State.CANCELLED if how == "cancel" else State.SUCCEEDED)
    assert found.completion_error is not None


def test_a_policy_may_refuse_as_well(session: Session) -> None:
    """What a policy hides depends on who asks: with one on the table nothing is certain."""
    asked = "select nursery_queue.task_may_refuse()"
    assert session.execute(asked).fetchall() == [(False,)]
    session.execute("alter table nursery_queue.task enable row level security")
    assert session.execute(asked).fetchall() == [(True,)]


@pytest.mark.parametrize("keep_for", [60, 0])
async def test_what_could_not_be_told_is_kept_as_long_as_its_task(
    store: PostgresStore, session: Session, keep_for: float
) -> None:
    """It is noted of a task that is kept, until that ends anew and can be told."""
    session.execute("alter table nursery_queue.task add constraint mine check (completes is null)")
    session.commit()
    tell = json.dumps({"task_type": "tell"})
    task_id = await add(store, on_complete=tell, keep_for=keep_for)
    (one,) = await claim(store, await hire(store))
    await settle(store, one, Event.FAIL, on_complete=True, keep_for=float(keep_for))

    assert rows(session, "untold") == bool(keep_for)
    if not keep_for:
        return
    assert (await status(store, task_id)).completion_error is not None
    session.execute("alter table nursery_queue.task drop constraint mine")
    session.commit()
    assert await store.retry(task_id)
    assert await store.cancel(task_id)
    assert (await status(store, task_id)).completion_error is None
    assert rows(session, "untold") == 0


async def test_an_end_waits_for_what_passes(store: PostgresStore, session: Session) -> None:
    """If the database is only busy, the end and the task that tells of it are stored later."""
    session.execute(
        "create function public.busy() returns trigger language plpgsql as $$ begin"
        " if new.completes is not null then"
        " raise lock_not_available using message = 'busy'; end if; return new; end $$"
    )
    session.execute(
        "create trigger busy before insert on nursery_queue.task"
        " for each row execute function public.busy()"
    )
    session.commit()
    task_id = await add(store, on_complete=json.dumps({"task_type": "tell"}))
    with pytest.raises(TransientError, match="busy"):
        await store.cancel(task_id)
    assert await state(store, task_id) is State.READY
    session.execute("drop trigger busy on nursery_queue.task")
    session.commit()

    assert await store.cancel(task_id)
    assert (await status(store, task_id)).completion_error is None
    assert rows(session, "task") == 2


async def test_an_end_that_is_too_large_to_be_told(store: PostgresStore, session: Session) -> None:
    """A context and a result that are too large together: the end is stored, and says so."""
    session.execute(
        "insert into nursery_queue.task (task_type, on_complete, context)"
        " values (%s, '{\"task_type\": \"tell\"}', to_jsonb(repeat('x', 62 * 1024 * 1024)))",
        [TYPE],
    )
    session.commit()
    (one,) = await claim(store, await hire(store))
    result = json.dumps("x" * (3 * 2**20))
    await settle(store, one, Event.SUCCEED, on_complete=True, result=result)
    found = await status(store, one.fence.task_id)

    assert found.state is State.SUCCEEDED
    assert "task_params_of_at_most_64_megabytes" in str(found.completion_error)


TOLD: list[tuple[dict[str, object], bool]] = [
    ({"priority": 1.0, "max_attempts": 2.0}, True),
    ({"keep_for": 0.0, "run_after": 0}, True),
    ({"priority": 1.5}, False),
    ({"queue": "q" * 255, "task_type": "t" * 255}, True),
    ({"queue": "q" * 256}, False),
    ({"task_type": "t" * 256}, False),
    ({"on_complete": {"task_type": "t" * 256}}, False),
    # Both sides of every bound.
    ({"priority": -(2**31), "max_attempts": 2**31 - 1}, True),
    ({"priority": 2**31 - 1, "max_attempts": 1}, True),
    ({"priority": -(2**31) - 1}, False),
    ({"priority": 2**31}, False),
    ({"max_attempts": 2**31}, False),
    ({"max_attempts": 1.5}, False),
    ({"run_after": 3_155_760_000, "keep_for": 3_155_760_000, "timeout": 1e300}, True),
    ({"run_after": 3_155_760_001}, False),
    ({"keep_for": 3_155_760_001}, False),
    ({"timeout": "infinity"}, True),
    ({"queue": None}, True),
    ({"queue": ""}, False),
    ({"priority": None}, False),
    ({"backoff": {"initial": 1, "maximum": 1e10}}, False),
    ({"backoff": None}, False),
]
TINY = [
    ('{"task_type": "t", "keep_for": 1e-400}', False),
    ('{"task_type": "t", "run_after": 1e-400}', False),
    ('{"task_type": "t", "priority": 1.0}', True),
    ('{"task_type": "t", "timeout": 1e-400}', False),
    ('{"task_type": "t", "timeout": 1e400}', False),
]


@pytest.mark.parametrize(
    ("asked", "good"),
    [(json.dumps({"task_type": "t", **asked}), good) for asked, good in TOLD] + TINY,
)
async def test_what_may_be_told_is_what_can_be_stored(
    store: PostgresStore, session: Session, asked: str, good: bool
) -> None:
    """What is accepted as on_complete is stored at the end; what is not, is refused at once."""
    insert = "insert into nursery_queue.task (task_type, on_complete) values (%s, %s)"
    if not good:
        with pytest.raises(psycopg.errors.CheckViolation, match="task_on_complete_check"):
            session.execute(insert, [TYPE, asked])
        return
    session.execute(insert, [TYPE, asked])
    session.commit()
    (one,) = await claim(store, await hire(store))
    await settle(store, one, Event.SUCCEED, on_complete=True)

    assert (await status(store, one.fence.task_id)).completion_error is None
    assert rows(session, "task") == 2


# -- names and sizes -----------------------------------------------------------------------

LONG = [
    ("task_type", "é" * 256, "task_task_type_of_at_most_255_characters"),
    ("queue", "q" * 10_000, "task_queue_of_at_most_255_characters"),
    ("dedup_key", "k" * 256, "task_dedup_key_of_at_most_255_characters"),
    ("params", json.dumps({"a": "x" * (64 * 2**20)}), "task_params_of_at_most_64_megabytes"),
    ("context", json.dumps("x" * (64 * 2**20)), "task_context_of_at_most_64_megabytes"),
    (
        "on_complete",
        json.dumps({"task_type": "t", "context": "x" * (64 * 2**20)}),
        "task_on_complete_of_at_most_64_megabytes",
    ),
]


@pytest.mark.parametrize(("column", "value", "constraint"), LONG)
def test_what_is_too_long_is_refused_at_the_insert(
    session: Session, column: str, value: str, constraint: str
) -> None:
    """A name that no index could hold, or a payload that no worker could, is never stored."""
    given = {"task_type": TYPE, column: value}
    columns = ", ".join(given)
    with pytest.raises(psycopg.errors.CheckViolation, match=constraint):
        session.execute(
            f"insert into nursery_queue.task ({columns})"
            f" values ({', '.join(['%s'] * len(given))})".encode(),
            list(given.values()),
        )


@pytest.mark.parametrize("tick", ["infinity", "-infinity", "0044-03-15 BC", "9999-06-01"])
def test_a_tick_that_no_worker_can_read_is_refused(session: Session, tick: str) -> None:
    """A claim that cannot be read would come back to every worker again and again."""
    with pytest.raises(psycopg.errors.CheckViolation, match="task_tick_check"):
        session.execute(
            "insert into nursery_queue.task (task_type, tick) values ('t', %s::timestamptz)", [tick]
        )


def test_a_prune_does_more_than_one_batch_of_keys(session: Session, migrated: str) -> None:
    """Keys that are free again, and rates that are not used, go as fast as they come."""
    session.execute(
        "insert into nursery_queue.dedup (dedup_key, task_id, until, prune_at)"
        " select 'k' || i, i, nursery_queue.now(), nursery_queue.now()"
        "   from generate_series(1, 2500) as i"
    )
    session.execute(
        "insert into nursery_queue.rate (queue, key, next_at)"
        " select 'q', 'k' || i, nursery_queue.now() - interval '1 s'"
        "   from generate_series(1, 2500) as i"
    )

    session.commit()

    async def prune() -> None:
        store = PostgresStore(migrated)
        await store.prune()
        await store.aclose()

    trio.run(prune)
    left = session.execute(
        "select (select count(*) from nursery_queue.dedup), count(*) from nursery_queue.rate"
    )
    assert left.fetchall() == [(0, 0)]


def test_a_queue_that_no_task_can_have_is_not_set(session: Session) -> None:
    """The names in the table of queues are as long as those in the table of tasks."""
    insert = "insert into nursery_queue.queue (name, paused) values (%s, true)"
    session.execute(insert, ["é" * 255])
    with pytest.raises(psycopg.errors.CheckViolation, match="queue_name_of_at_most_255_characters"):
        session.execute(insert, ["q" * 256])


async def test_the_longest_names_go_through_every_table(store: PostgresStore) -> None:
    """Names of 255 characters, each of four bytes, can be stored, put aside and claimed."""
    name = "\U0001f423" * 255
    task_id = await add(store, task_type=name, queue=name, dedup_key=name)

    assert await store.park() == 1

    worker = await hire(store, task_types=[name])

    assert await store.unpark([name]) == 1
    assert [one.fence.task_id for one in await claim(store, worker, task_types=[name])] == [task_id]


# -- rows that are deleted by hand ---------------------------------------------------------

POSITIONS = (
    "scheduled",
    "ready",
    "parked",
    "running",
    "finished",
    "dedup",
    "attempt",
    "stream",
    "chunk",
    "untold",
)


async def everywhere(store: PostgresStore, session: Session) -> None:
    """Store tasks in every position."""
    worker = await hire(store)
    await store.configure("narrow", max_running=1)
    await add(store, task_type="odd")
    assert await store.park() == 1
    await add(store, run_after=60)
    await add(store, queue="ended")
    (one,) = await claim(store, worker)
    session.execute(
        "select nursery_queue.write_stream(%s, %s, 's', '{t}', '{abc}')",
        [one.fence.task_id, one.fence.epoch],
    )
    session.execute(
        "insert into nursery_queue.untold (task_id, on_complete, error_message)"
        " values (%s, '{}', '')",
        [one.fence.task_id],
    )
    session.commit()
    await settle(store, one, Event.FAIL)
    await add(store, queue="narrow", dedup_key="k")
    assert len(await claim(store, worker)) == 1
    await add(store)
    for table in POSITIONS:
        assert rows(session, table) >= 1, table


@pytest.mark.parametrize(
    "how",
    [
        "delete from nursery_queue.task",
        "truncate nursery_queue.task",
        "truncate nursery_queue.ready, nursery_queue.task, nursery_queue.chunk",
    ],
)
async def test_tasks_deleted_by_hand_leave_nothing(
    store: PostgresStore, session: Session, how: str
) -> None:
    """Whatever position they were in, nothing is left of them; and their slots are free."""
    await everywhere(store, session)
    session.execute(how.encode())
    session.commit()

    assert {table: rows(session, table) for table in POSITIONS} == dict.fromkeys(POSITIONS, 0)

    await add(store, queue="narrow", dedup_key="k")

    assert len(await claim(store, await hire(store))) == 1


async def test_tasks_deleted_by_hand_after_a_verb_of_ours_leave_nothing(
    store: PostgresStore, session: Session, migrated: str
) -> None:
    """What a verb has deleted, and seen to itself, says nothing of what is deleted after it."""
    only = PostgresStore(migrated, pool_size=1)
    delete = "delete from nursery_queue.task"
    cancelled = await add(only)
    await add(only, run_after=60)
    async with only.transaction() as tx:
        await tx.cancel(cancelled)
        await tx.execute(delete)
    assert {table: rows(session, table) for table in POSITIONS} == dict.fromkeys(POSITIONS, 0)
    session.rollback()

    await add(only)
    (one,) = await claim(only, await hire(only))
    async with only.transaction() as tx:
        await tx.settle(ends(one, Event.SUCCEED, keep_for=60.0))
    await add(only, run_after=60)
    async with only.transaction() as tx:  # on the same connection
        await tx.execute(delete)
    await only.aclose()

    assert {table: rows(session, table) for table in POSITIONS} == dict.fromkeys(POSITIONS, 0)


async def test_what_is_deleted_by_hand_is_news(store: PostgresStore, session: Session) -> None:
    """Who found a queue full hears of the free slot, and who waits for a task of its end."""
    for delete in "delete from nursery_queue.task", "truncate nursery_queue.task":
        await add(store)
        async with listening(store, [Bell.WORK, Bell.FINISHED]) as ear:
            work, finished = ear.heard[Bell.WORK], ear.heard[Bell.FINISHED]
            session.execute(delete.encode())
            session.commit()
            await ear.hears(Bell.WORK, after=work)
            await ear.hears(Bell.FINISHED, after=finished)


def delete_unnoticed(session: Session) -> None:
    """Delete all tasks where triggers are off, so that their positions are left behind."""
    session.execute("set session_replication_role = replica")
    session.execute("delete from nursery_queue.task")
    session.execute("set session_replication_role = origin")
    session.commit()


async def test_a_slot_that_a_sweep_frees_is_news(store: PostgresStore, session: Session) -> None:
    """Where triggers were off when its task was deleted, the sweep tells who found it full."""
    await everywhere(store, session)
    delete_unnoticed(session)
    async with listening(store, [Bell.WORK]) as ear:
        before = ear.heard[Bell.WORK]
        assert await store.sweep(max_lost=3) == 0
        await ear.hears(Bell.WORK, after=before)


async def test_positions_without_a_task_pass(store: PostgresStore, session: Session) -> None:
    """Even where triggers were off: no verb breaks on them, and a limit is free after a sweep."""
    await everywhere(store, session)
    delete_unnoticed(session)
    worker = await hire(store)

    session.execute("update nursery_queue.scheduled set due_at = now()")
    session.commit()

    assert await store.promote() == 0
    assert rows(session, "scheduled") == 0
    assert await claim(store, worker) == []
    assert await store.sweep(max_lost=3) == 0
    assert rows(session, "running") == 0
    await add(store, queue="narrow")
    assert len(await claim(store, worker)) == 1


async def test_what_we_delete_ourselves_is_not_looked_for_again(
    store: PostgresStore, session: Session
) -> None:
    """A task that is not kept costs no more than its own deletion."""
    session.execute("create table public.called ()")
    session.execute(
        "create or replace function nursery_queue.forget() returns trigger language plpgsql"
        " as $$ begin insert into public.called default values; return null; end $$"
    )
    session.commit()
    for _ in range(2):
        await add(store, keep_for=0)
    (one,) = await claim(store, await hire(store), 1)
    await settle(store, one, Event.SUCCEED, keep_for=0.0)
    await store.cancel(await add(store, keep_for=0))

    assert session.execute("select count(*) from public.called").fetchall() == [(0,)]

    session.execute("delete from nursery_queue.task")

    assert session.execute("select count(*) from public.called").fetchall() == [(1,)]


# -- very many attempts --------------------------------------------------------------------


async def test_a_task_with_very_many_attempts_is_deleted_bit_by_bit(
    store: PostgresStore, session: Session, virtual_time: VirtualTime
) -> None:
    """No statement deletes more attempts than it is asked to, and no task waits for the other."""
    ids = [await add(store, keep_for=5) for _ in range(3)]
    for one in await claim(store, await hire(store)):
        await settle(store, one, Event.SUCCEED, keep_for=5.0)
    session.execute(
        "insert into nursery_queue.attempt (task_id, epoch, outcome, worker_id, started_at,"
        " finished_at) select %s, i, 'snoozed', gen_random_uuid(), now(), now()"
        " from generate_series(2, 100000) as i",
        [ids[0]],
    )
    session.commit()
    virtual_time.advance(6)
    seen: list[int] = []
    while (pruned := await store.prune()) or rows(session, "task"):
        seen.append(pruned)

    assert sum(seen) == 3
    assert rows(session, "attempt") == 0
