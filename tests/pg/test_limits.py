"""How limits stay exact between transactions, and who waits for whom."""

from __future__ import annotations

import functools
import uuid

from collections.abc import Generator

import attrs
import psycopg
import psycopg.sql
import pytest
import trio

from nursery_queue._core._model import WorkerInfo
from nursery_queue._core._rate import Rate
from nursery_queue._core._states import Event
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._pg._sql import query
from nursery_queue._store import Bell
from tests.support.listening import listening
from tests.support.store_steps import TYPE, a_task, claim, ends, hire, settle


WAITING = """
    select count(*) from pg_stat_activity
     where datname = current_database() and wait_event_type = 'Lock'
"""
CLAIM = query("claim", "nursery_queue")


@pytest.fixture
def plain(migrated: str) -> Generator[psycopg.Connection]:
    """Give a session of somebody else, with a transaction that stays open."""
    with psycopg.connect(migrated) as session:
        yield session


@pytest.fixture
def watch(migrated: str) -> Generator[psycopg.Connection]:
    with psycopg.connect(migrated, autocommit=True) as session:
        yield session


async def somebody_waits(watch: psycopg.Connection) -> None:
    """Return when a session waits for a lock."""
    with trio.fail_after(20):
        while watch.execute(WAITING).fetchone() == (0,):  # noqa: ASYNC110  # only the server knows
            await trio.sleep(0.001)


def claim_in(session: psycopg.Connection, worker: uuid.UUID, limit: int = 9) -> int:
    """Claim in a transaction that stays open; return how many."""
    params = {
        "worker_id": worker,
        "task_types": [TYPE],
        "limit": limit,
        "queues": None,
        "slots": None,
        "at_once": None,
        "soon": None,
        "after_queue": "",
        "after_type": "",
        "after_lane": None,
        "most_queues": 9,
        "most_steps": 99,
    }
    return sum(row[8] is not None for row in session.execute(CLAIM, params))


@pytest.fixture
async def worker(store: PostgresStore) -> uuid.UUID:
    return await hire(store)


async def test_a_claim_waits_for_another_of_the_same_queue(
    store: PostgresStore, worker: uuid.UUID, plain: psycopg.Connection, watch: psycopg.Connection
) -> None:
    """It then sees what that one took, though it had begun before that was committed."""
    await store.enqueue([a_task() for _ in range(9)])
    await store.configure("default", max_running=3)
    assert claim_in(plain, worker, 2) == 2
    taken: list[int] = []

    async def claim_too() -> None:
        taken.append(len(await claim(store, worker)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim_too)
        await somebody_waits(watch)
        plain.commit()

    assert taken == [1]


async def test_no_attempt_begins_before_the_last_has_ended(
    store: PostgresStore, worker: uuid.UUID, plain: psycopg.Connection, watch: psycopg.Connection
) -> None:
    """A claim that has waited takes what came back meanwhile, and says so of when it starts.

    A kill drill once found attempts in the log that overlap.
    """
    await store.enqueue([a_task(), a_task()])
    await store.configure("default", max_running=3)
    (first,) = await claim(store, worker, limit=1)
    assert claim_in(plain, worker, 1) == 1

    async def claim_too() -> None:
        await claim(store, worker, limit=1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim_too)
        await somebody_waits(watch)
        await settle(store, first, Event.INTERRUPT)
        plain.commit()

    ended, again = await store.attempts(first.fence.task_id)
    assert ended.finished_at is not None
    assert again.started_at >= ended.finished_at


@pytest.mark.parametrize("of_key", [False, True])
async def test_a_start_counts_when_it_is(
    store: PostgresStore,
    worker: uuid.UUID,
    plain: psycopg.Connection,
    watch: psycopg.Connection,
    of_key: bool,
) -> None:
    """A claim that has waited counts against the rate from its start on, not from its beginning.

    By what four workers had waited, a drill found 624 starts in a window of 620.
    """
    await store.enqueue([attrs.evolve(a_task(), key="k")])
    rate = Rate(1, per=10)
    if of_key:
        await store.configure("default", rate_per_key=rate)
    else:
        await store.configure("default", rate=rate)
    held = "pg_advisory_xact_lock(hashtextextended('nursery_queue.pool.default', 0))"
    plain.execute(f"select {held}".encode())

    async def claim_too() -> None:
        assert len(await claim(store, worker)) == 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(claim_too)
        await somebody_waits(watch)
        plain.commit()

    counted = "select next_at - interval '10 s' >= started_at from nursery_queue.rate"
    counted += " cross join nursery_queue.running"
    assert watch.execute(counted.encode()).fetchall() == [(True,)]


@pytest.mark.parametrize("of_key", [False, True])
async def test_a_clock_that_was_ahead(
    store: PostgresStore, worker: uuid.UUID, plain: psycopg.Connection, of_key: bool
) -> None:
    """What it has noted holds a rate back for a minute at most; then one starts and mends it."""
    rate = Rate(1, per=1000, burst=1)
    if of_key:
        await store.configure("default", rate_per_key=rate)
    else:
        await store.configure("default", rate=rate)
    await store.enqueue([a_task(key="k") for _ in range(9)])
    assert len(await claim(store, worker)) == 2
    plain.execute("update nursery_queue.rate set next_at = next_at + interval '1000000 days'")
    plain.commit()

    assert len(await claim(store, worker)) == 1
    assert len(await claim(store, worker)) == 0
    (left,) = plain.execute(
        "select extract(epoch from next_at - now())::float from nursery_queue.rate"
    ).fetchall()
    assert 1990 <= left[0] <= 2000


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_what_is_no_limit_is_set_from_a_snapshot_too(
    plain: psycopg.Connection, isolation: str
) -> None:
    """A queue that has a limit can be paused in any transaction; the limit is not changed in it."""
    plain.execute("insert into nursery_queue.queue (name, max_running) values ('default', 3)")
    plain.commit()
    plain.execute(f"set transaction isolation level {isolation}".encode())
    plain.execute("update nursery_queue.queue set paused = true, max_running = 3")
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState):
        plain.execute("update nursery_queue.queue set max_running = 4")


async def test_to_set_a_queue_gives_back_no_starts_of_another(
    store: PostgresStore, worker: uuid.UUID, plain: psycopg.Connection, watch: psycopg.Connection
) -> None:
    """What a queue has used of its rate stays used, also where the setting had to wait."""
    await store.enqueue([a_task() for _ in range(9)])
    await store.configure("default", rate=Rate(1, per=10, burst=2))
    await store.configure("other", max_running=3)
    plain.execute("update nursery_queue.queue set paused = true where name = 'other'")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(store.configure, "other", max_running=4))
        await somebody_waits(watch)
        assert len(await claim(store, worker)) == 3
        (used,) = watch.execute("select next_at from nursery_queue.rate").fetchall()
        plain.commit()

    assert watch.execute("select next_at from nursery_queue.rate").fetchall() == [used]


async def test_whatever_the_server_has_as_default(
    migrated: str, plain: psycopg.Connection, watch: psycopg.Connection
) -> None:
    """Where transactions see one moment unless told otherwise, a claim still sees the others'."""
    database = psycopg.sql.Identifier(watch.info.dbname)
    alter = "alter database {} set default_transaction_isolation = 'repeatable read'"
    watch.execute(psycopg.sql.SQL(alter).format(database))
    store = PostgresStore(migrated)
    worker = await hire(store)
    await test_a_claim_waits_for_another_of_the_same_queue(store, worker, plain, watch)
    await store.aclose()


async def test_queues_without_a_limit_wait_for_nobody(
    store: PostgresStore, worker: uuid.UUID, plain: psycopg.Connection
) -> None:
    """Beside a claim that is not committed another one takes what is left at once."""
    await store.enqueue([a_task() for _ in range(9)])
    await store.configure("other", max_running=3)

    assert claim_in(plain, worker, 2) == 2
    with trio.fail_after(5):
        assert len(await claim(store, worker)) == 7


@pytest.mark.parametrize("change", ["limit", "pause"])
async def test_a_change_waits_for_claims_under_way(
    store: PostgresStore,
    worker: uuid.UUID,
    plain: psycopg.Connection,
    watch: psycopg.Connection,
    change: str,
) -> None:
    """When it returns nobody starts anything by the old rules; what did before counts."""
    await store.enqueue([a_task() for _ in range(9)])
    assert claim_in(plain, worker, 4) == 4
    done = trio.Event()

    async def change_it() -> None:
        if change == "limit":
            await store.configure("default", max_running=5)
        else:
            await store.configure("default", paused=True)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(change_it)
        await somebody_waits(watch)
        assert not done.is_set()
        plain.commit()

    assert len(await claim(store, worker)) == (1 if change == "limit" else 0)


@pytest.mark.parametrize("change", ["max_running = 3", "paused = true"])
async def test_a_claim_leaves_alone_what_is_being_changed(
    store: PostgresStore, worker: uuid.UUID, plain: psycopg.Connection, change: str
) -> None:
    """Who changes a queue in plain SQL is as exact; other queues go on, and it is asked again."""
    await store.enqueue([a_task(queue=queue) for queue in ("a", "b") for _ in range(9)])
    await store.configure("a", max_running=None)
    plain.execute(f"update nursery_queue.queue set {change} where name = 'a'".encode())

    with trio.fail_after(5):
        beside = await store.claim(worker, [TYPE], limit=5)
        full = await store.claim(worker, [TYPE], limit=9)
    plain.commit()
    after = await store.claim(worker, [TYPE], limit=20)

    assert {one.queue for one in beside.claims} == {one.queue for one in full.claims} == {"b"}
    assert [each.contended for each in (beside, full, after)] == [True, True, False]
    assert len(after.claims) == (3 if change.startswith("max") else 0)


async def test_a_queue_that_is_being_made(
    store: PostgresStore, worker: uuid.UUID, plain: psycopg.Connection
) -> None:
    """Nothing of a queue starts while somebody gives it its first limit."""
    await store.enqueue([a_task() for _ in range(9)])
    plain.execute("insert into nursery_queue.queue (name, max_running) values ('default', 2)")

    assert await claim(store, worker) == []
    plain.commit()
    assert len(await claim(store, worker)) == 2


async def test_plain_sql_is_news(store: PostgresStore, plain: psycopg.Connection) -> None:
    """A queue that is changed or forgotten in plain SQL rings like any other change."""
    await store.configure("a", max_running=1)
    async with listening(store, [Bell.WORK]) as ear:
        for statement in (
            "update nursery_queue.queue set max_running = 2",
            "delete from nursery_queue.queue",
            "insert into nursery_queue.queue (name, paused) values ('b', true)",
        ):
            before = ear.heard[Bell.WORK]
            plain.execute(statement.encode())
            plain.commit()
            await ear.hears(Bell.WORK, after=before)


async def test_where_there_is_no_limit_room_is_no_news(
    store: PostgresStore, worker: uuid.UUID, plain: psycopg.Connection
) -> None:
    """In queues without a limit the end of a task wakes nobody."""
    await store.enqueue([a_task(queue="unlimited") for _ in range(3)])
    await store.configure("default", max_running=1)
    claims = await claim(store, worker, 2)
    async with listening(store) as ear:
        # What rang before we listened may come late, but not later than this.
        plain.execute("select pg_notify('nursery_queue_cancel', '')")
        plain.commit()
        await ear.hears(Bell.CANCEL, after=1)
        before = dict(ear.heard)
        assert await store.settle([ends(one, Event.SUCCEED) for one in claims]) == {}
        await ear.hears(Bell.FINISHED, after=before[Bell.FINISHED])

        assert ear.heard[Bell.WORK] == before[Bell.WORK]


async def test_each_schema_has_locks_of_its_own(
    store: PostgresStore, worker: uuid.UUID, plain: psycopg.Connection
) -> None:
    """Whoever holds the same queue of another schema of this database is nobody to wait for."""
    await store.enqueue([a_task()])
    await store.configure("default", max_running=1)
    plain.execute("select pg_advisory_xact_lock(hashtextextended('other.pool.default', 0))")
    plain.execute("select pg_advisory_xact_lock(hashtextextended('other.queue.default', 0))")

    with trio.fail_after(5):
        assert len(await claim(store, worker)) == 1


# -- types that nobody knows -------------------------------------------------------------------


async def test_parked_and_brought_back(store: PostgresStore, worker: uuid.UUID) -> None:
    """Only types that no live worker knows are parked; they are ready, and keep their order."""
    await store.enqueue([a_task(task_type="strange", priority=i % 2) for i in range(6)])
    await store.enqueue([a_task() for _ in range(2)])

    assert await store.park() == 6
    assert await store.park() == 0
    assert [queue.ready for queue in await store.queues()] == [8]
    assert len(await claim(store, worker)) == 2
    expert = await hire(store, task_types=["strange"])
    assert await claim(store, expert, task_types=["strange"]) == []
    assert await store.unpark(["strange"]) == 6
    found = await claim(store, expert, task_types=["strange"])
    assert [one.fence.task_id for one in found] == [2, 4, 6, 1, 3, 5]
    assert {one.attempt for one in found} == {1}


async def test_whoever_brings_back_sees_what_is_being_parked(
    store: PostgresStore, plain: psycopg.Connection, watch: psycopg.Connection
) -> None:
    """A worker that registers while its tasks are being parked gets them all back."""
    await store.enqueue([a_task() for _ in range(5)])
    assert plain.execute("select moved from nursery_queue.park(100)").fetchone() == (5,)
    worker = await hire(store)
    back: list[int] = []

    async def bring_back() -> None:
        back.append(await store.unpark([TYPE]))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(bring_back)
        await somebody_waits(watch)
        plain.commit()

    assert back == [5]
    assert len(await claim(store, worker)) == 5
    assert await store.park() == 0


async def test_after_many_have_gone_claims_need_not_step_over_them(
    store: PostgresStore, watch: psycopg.Connection
) -> None:
    """Once a mass of tasks is parked, what they have left is taken away, once; a few are not."""
    vacuumed = "select pg_stat_get_vacuum_count('nursery_queue.ready'::regclass)"
    found: list[object] = []
    for count in (5, 25_000, 5):
        watch.execute(
            "insert into nursery_queue.task (task_type)"
            " select 'strange' from generate_series(1, %s)",
            [count],
        )
        while await store.park():
            pass
        found += watch.execute(vacuumed).fetchall()

    assert found == [(0,), (1,), (1,)]


async def test_what_is_held_by_others_is_not_waited_for(
    store: PostgresStore, plain: psycopg.Connection
) -> None:
    """A transaction that has cancelled one of the tasks keeps nobody from parking the others."""
    refs = await store.enqueue([a_task(task_type="strange") for _ in range(3)])
    plain.execute("select nursery_queue.cancel(%s)", [refs[1].id])

    with trio.fail_after(5):
        assert await store.park() == 2
    plain.rollback()
    assert await store.park() == 1


async def test_beside_what_was_asked_for(store: PostgresStore) -> None:
    """A claim says that some queue has tasks of a type it was not asked for."""
    worker = uuid.uuid4()
    await store.register(
        WorkerInfo(id=worker, name="w", host="h", pid=1, task_types=[TYPE], lease=30.0)
    )
    await store.enqueue([a_task(), a_task(task_type="strange")])
    first = await store.claim(worker, [TYPE], limit=9)
    second = await store.claim(worker, [TYPE], limit=9)
    await store.park()
    third = await store.claim(worker, [TYPE], limit=9)

    assert [each.unknown_types for each in (first, second, third)] == [True, True, False]


async def test_more_than_we_got(
    store: PostgresStore, worker: uuid.UUID, plain: psycopg.Connection
) -> None:
    """A claim says so when somebody else held what it would have taken."""
    await store.enqueue([a_task(), a_task(queue="b")])
    assert claim_in(plain, worker, 1) == 1
    beside = await store.claim(worker, [TYPE], limit=9)
    plain.rollback()
    alone = await store.claim(worker, [TYPE], limit=9)
    for one in [*beside.claims, *alone.claims]:
        await settle(store, one, Event.SUCCEED)
    after = await store.claim(worker, [TYPE], limit=9)

    assert len(beside.claims) + len(alone.claims) == 2
    assert [each.contended for each in (beside, alone, after)] == [True, False, False]
