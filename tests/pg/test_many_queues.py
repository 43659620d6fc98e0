"""A claim costs the same however many queues, types and tasks of others there are."""

from __future__ import annotations

import uuid

from collections import Counter
from collections.abc import Generator
from typing import Any

import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._model import Claimed, QueueSlots, Spot
from nursery_queue._pg import _postgres_store as _store
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._pg._sql import query
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import TYPE, a_task, claim, hire
from tests.support.workers import working


# Without triggers, as its 100,000 rows are many for a test. `ready` is what a claim reads.
FILL = """
    set session_replication_role = replica;
    with stored as (
        insert into nursery_queue.task (task_type, queue, priority, on_complete)
        select %(task_type)s, format(%(queue)s::text, i %% %(queues)s), 0, null
          from generate_series(1, %(tasks)s) as i
        returning id, queue, priority, task_type
    )
    insert into nursery_queue.ready (task_id, queue, priority, task_type)
    select id, queue, priority, task_type from stored;
    set session_replication_role = origin;
"""
LOCKS = "select count(*) from pg_locks where pid = pg_backend_pid() and locktype = 'advisory'"
READ = """
    select coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::int
      from pg_stat_xact_user_tables where relname in ('ready', 'queue', 'running', 'task')
"""
# Else the counts may begin with what the session has read in the second before.
FLUSH = "select pg_stat_force_next_flush()"
ROWS = 2000  # that one claim of a few tasks may read, at most


@pytest.fixture
def session(migrated: str) -> Generator[psycopg.Connection[Any]]:
    """Give a session as a worker has it."""
    with psycopg.connect(migrated, autocommit=True) as session:
        session.execute(query("keep_to_indexes", "nursery_queue"), {"once": False})
        yield session


def fill(
    session: psycopg.Connection[Any],
    tasks: int,
    *,
    queues: int = 1,
    queue: str = "q%s",
    task_type: str = TYPE,
) -> None:
    params = {"tasks": tasks, "queues": queues, "queue": queue, "task_type": task_type}
    with psycopg.ClientCursor(session) as cursor:
        cursor.execute(FILL, params)


def params(worker: uuid.UUID, **changes: Any) -> dict[str, Any]:
    usual = {
        "worker_id": worker,
        "task_types": [TYPE],
        "limit": 100,
        "queues": None,
        "slots": None,
        "at_once": None,
        "soon": None,
        "after_queue": "",
        "after_type": "",
        "after_lane": None,
        "most_queues": _store.QUEUES,
        "most_steps": _store.PROBES,
    }
    return usual | changes


async def rounds(store: PostgresStore, worker: uuid.UUID, limit: int = 100) -> list[Claimed]:
    """Claim until one walk through all queues has come to its end."""
    found = [await store.claim(worker, [TYPE], limit=limit)]
    while found[-1].resume is not None:
        found.append(await store.claim(worker, [TYPE], limit=limit, after=found[-1].resume))
    return found


@pytest.mark.parametrize("limited", [False, True])
async def test_twenty_thousand_queues(
    store: PostgresStore, session: psycopg.Connection[Any], limited: bool
) -> None:
    """A claim reads few rows and holds few locks, and one walk of claims comes to every queue."""
    worker = await hire(store)
    fill(session, 100_000, queues=20_000)
    if limited:
        session.execute(
            "insert into nursery_queue.queue (name, max_running)"
            " select 'q' || i, 3 from generate_series(0, 19999, 100) as i"
        )
    session.execute(FLUSH)
    with session.transaction(force_rollback=True):
        session.execute(query("claim", "nursery_queue"), params(worker))
        (locks, read) = session.execute(LOCKS).fetchone(), session.execute(READ).fetchone()
    found = await rounds(store, worker, 200)

    assert locks is not None
    assert read is not None
    assert 0 < locks[0] <= 2 * _store.QUEUES
    assert 0 < read[0] <= ROWS
    taken = Counter(one.queue for each in found for one in each.claims)
    assert len(taken) == 20_000
    assert set(taken.values()) == ({3, 5} if limited else {5})
    assert session.execute("select count(*) from nursery_queue.ready").fetchone() == (
        (400,) if limited else (0,)
    )


async def test_paused_queues_are_in_nobodys_way(
    store: PostgresStore, session: psycopg.Connection[Any]
) -> None:
    """Behind thousands of paused queues with tasks one that is not paused is soon found."""
    worker = await hire(store)
    fill(session, 20_000, queues=5000)
    session.execute(
        "insert into nursery_queue.queue (name, paused, max_running)"
        " select 'q' || i, i % 2 = 0, case when i % 2 = 1 then 0 end"
        " from generate_series(0, 4999) as i"
    )
    await store.enqueue([a_task(queue="zzz")])
    session.execute(FLUSH)
    with session.transaction(force_rollback=True):
        session.execute(query("claim", "nursery_queue"), params(worker))
        read = session.execute(READ).fetchone()
    found = await rounds(store, worker)

    assert read is not None
    assert 0 < read[0] <= ROWS
    assert len(found) == 1 + 5000 // _store.PROBES
    assert [one.queue for each in found for one in each.claims] == ["zzz"]
    assert not any(each.held_back or each.contended for each in found)


async def test_a_paused_queue_is_one_probe(
    store: PostgresStore, session: psycopg.Connection[Any]
) -> None:
    """However many tasks of however many types a paused queue has, a claim steps over it."""
    worker = await hire(store)
    for i in range(20):
        fill(session, 1000, task_type=f"type{i}")
    await store.configure("q0", paused=True)
    await store.enqueue([a_task(queue="zzz")])
    session.execute(FLUSH)
    with session.transaction(force_rollback=True):
        session.execute(query("claim", "nursery_queue"), params(worker))
        read = session.execute(READ).fetchone()

    assert read is not None
    assert 0 < read[0] < 30
    assert len(await claim(store, worker)) == 1


async def test_behind_a_backlog_of_another_type(
    store: PostgresStore, session: psycopg.Connection[Any]
) -> None:
    """A worker that does not know 100,000 tasks ahead of its own takes that one with one claim."""
    worker = await hire(store)
    await hire(store, task_types=["b"])  # somebody knows them: they are not put aside
    fill(session, 100_000, task_type="b")
    await store.enqueue([a_task(queue="q0", priority=-9)])
    session.execute(FLUSH)
    with session.transaction(force_rollback=True):
        session.execute(query("claim", "nursery_queue"), params(worker))
        read = session.execute(READ).fetchone()

    assert read is not None
    assert 0 < read[0] < 30
    assert len(await claim(store, worker)) == 1
    assert await store.backlog([TYPE], queues=None, most=10) == 0
    assert await store.backlog(["b"], queues=None, most=10) == 10


async def test_the_best_of_several_types_and_queues(
    store: PostgresStore, session: psycopg.Connection[Any]
) -> None:
    """However tasks are spread over types and queues, no worse one goes before a better one."""
    worker = await hire(store)
    session.execute(
        "insert into nursery_queue.task (task_type, queue, priority)"
        " select 't' || i % 7, 'q' || i % 5, (i * i) % 11 from generate_series(1, 3000) as i"
    )
    session.execute(  # one lane that has all of the best, more than one claim looks at
        "insert into nursery_queue.task (task_type, queue, priority)"
        " select 't0', 'q0', 20 from generate_series(1, 500)"
    )
    best = session.execute(
        "select priority from nursery_queue.task order by priority desc, id"
    ).fetchall()
    types = [f"t{i}" for i in range(7)]
    seen: list[tuple[int, ...]] = []
    while len(seen) < 1500:
        claimed = await store.claim(worker, types, limit=90)
        ids = [one.fence.task_id for one in claimed.claims]
        assert len(ids) == 90 or claimed.more
        assert not claimed.contended
        seen += session.execute(
            "select priority from nursery_queue.task where id = any(%s) order by priority desc, id",
            [ids],
        ).fetchall()

    assert seen == best[: len(seen)]


async def test_a_list_of_queues_goes_on_where_it_stopped(
    store: PostgresStore, session: psycopg.Connection[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where queues are named, in their order, and in the middle of the types of one."""
    monkeypatch.setattr(_store, "PROBES", 3)
    worker = await hire(store)
    for queue in ("b", "a"):
        for i in range(5):
            fill(session, 1, queue=queue, task_type=f"s{i}")
        fill(session, 1, queue=queue)
    names = ["b", "none", "a"]
    found: list[str] = []
    after: Spot | None = None
    for _ in range(99):
        start = 0 if after is None else names.index(after.queue)
        queue_slots = [QueueSlots(queue=queue, slots=1) for queue in names[start:]]
        claimed = await store.claim(worker, [TYPE], limit=9, queue_slots=queue_slots, after=after)
        found += [one.queue for one in claimed.claims]
        if (after := claimed.resume) is None:
            break

    assert found == ["b", "a"]


async def test_parking_is_bounded(store: PostgresStore, session: psycopg.Connection[Any]) -> None:
    """With more queues than one statement looks at, the last of them has its turn, too."""
    await hire(store)
    fill(session, 3000, queues=3000)
    fill(session, 3, queue="zzz", task_type="strange")
    session.execute(FLUSH)
    with session.transaction(force_rollback=True):
        session.execute("select nursery_queue.park(100)")
        read = session.execute(READ).fetchone()
    parked = [await store.park() for _ in range(5)]

    assert read is not None
    assert 0 < read[0] <= ROWS
    assert sum(parked) == 3


@pytest.mark.parametrize("named", [False, True])
async def test_a_worker_comes_to_every_queue(
    virtual_time: VirtualTime,
    app: nq.App,
    pg: nq.Client,
    session: psycopg.Connection[Any],
    named: bool,
) -> None:
    """A worker finds what is in the last of many queues, and what comes where it has been."""
    ran: list[str] = []

    @app.task(name="a")
    async def handler(ctx: nq.TaskContext) -> None:
        ran.append(ctx.queue)

    fill(session, 300, queues=300, task_type="a")
    queues = {f"q{i}": 1 for i in range(300)} if named else None
    await nq.Worker(app, pg, queues=queues, concurrency=3).run_until_idle()
    assert Counter(ran) == Counter(f"q{i}" for i in range(300))

    async with working(nq.Worker(app, pg, queues=queues, concurrency=3, poll_interval=3600)):
        await trio.sleep(1)
        for queue in ("q0", "q299", "q7"):
            await pg.enqueue(nq.TaskRequest.by_name("a", queue=queue))
            await trio.sleep(0.1)
        assert ran[300:] == ["q0", "q299", "q7"]


async def test_a_rate_is_waited_for_over_many_queues(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client
) -> None:
    """What a rate holds back starts at its instant, though the walk has gone on since."""
    starts: list[float] = []

    @app.task(name="a")
    async def handler(ctx: nq.TaskContext) -> None:
        if ctx.queue == "q00":
            starts.append(trio.current_time())

    for number in range(70):
        rate = nq.Rate(1, per=2 if number == 0 else 3600)
        await pg.configure_queue(f"q{number:02}", rate=rate)
    tasks = [nq.TaskRequest.by_name("a", queue=f"q{n:02}") for n in range(70)]
    await pg.enqueue_many(tasks * 3)
    async with working(nq.Worker(app, pg, poll_interval=0)):
        await trio.sleep(5)

    assert [at - starts[0] for at in starts] == pytest.approx([0, 2, 4], abs=0.05)


async def test_full_queues_do_not_starve_the_rest(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client, session: psycopg.Connection[Any]
) -> None:
    """With a hundred full queues before it, a task is still found when it comes."""
    ran: list[tuple[float, str]] = []

    @app.task(name="a")
    async def handler(ctx: nq.TaskContext) -> None:
        ran.append((trio.current_time(), ctx.queue))
        if ctx.queue != "zzz":
            await trio.sleep(1000)

    session.execute(
        "insert into nursery_queue.queue (name, max_running)"
        " select 'q' || i, 1 from generate_series(0, 99) as i"
    )
    fill(session, 200, queues=100, task_type="a")
    async with working(nq.Worker(app, pg, concurrency=200, poll_interval=3600, grace=0)):
        await trio.sleep(10)
        assert len(ran) == 100
        await pg.enqueue(nq.TaskRequest.by_name("a", queue="zzz"))
        await trio.sleep(1)

    assert ran[100][1] == "zzz"
    assert ran[100][0] < 10.2


async def test_idle_among_many_paused_queues(
    app: nq.App, pg: nq.Client, session: psycopg.Connection[Any]
) -> None:
    """`run_until_idle` ends also where one walk through all queues takes many claims."""
    done: list[int] = []

    @app.task(name=TYPE)
    async def work(ctx: nq.TaskContext) -> None:
        done.append(ctx.task_id)

    fill(session, 3000, queues=3000)
    session.execute(
        "set session_replication_role = replica;"
        "insert into nursery_queue.queue (name, paused)"
        " select 'q' || i, true from generate_series(0, 2999) as i;"
        "set session_replication_role = origin"
    )
    ref = await pg.enqueue(work)
    with trio.fail_after(20):
        await nq.Worker(app, pg).run_until_idle()

    assert done == [ref.id]
