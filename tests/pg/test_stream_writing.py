"""Streams on PostgreSQL: order of commits, locks, races, retention, and what others can see."""

from __future__ import annotations

import contextlib

from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
import trio

from nursery_queue._core._errors import StaleClaim
from nursery_queue._core._model import Refusal
from nursery_queue._core._states import Event
from nursery_queue._pg import _postgres_store as _store
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._store import Bell
from tests.pg.queries import Session, rows
from tests.support.listening import listening
from tests.support.store_steps import Known, add, claim_one, claimed_once, ends, hire, settle
from tests.support.stream_steps import a_write, read, values, write
from tests.support.waits import until_blocked


@contextlib.asynccontextmanager
async def open_write(store: PostgresStore, task: Known, data: object) -> AsyncGenerator[None]:
    """Write in a transaction that is open as long as the block lasts."""
    async with store.transaction() as tx:
        await tx.write_stream(a_write(task.fence, data))
        yield


def numbers(session: Session) -> list[int]:
    """Return the numbers of all chunks that are stored."""
    return [seq for (seq,) in session.execute("select seq from nursery_queue.chunk order by 1")]


# -- the order of commits -----------------------------------------------------------------------


async def test_a_second_writer_waits_for_the_first(
    store: PostgresStore, session: Session, migrated: str
) -> None:
    """Numbers are given out in the order of the commits: no reader sees a gap that is filled."""
    task = await claimed_once(store)
    async with trio.open_nursery() as nursery, open_write(store, task, "first"):
        nursery.start_soon(write, store, task.fence, "second")
        await until_blocked(migrated)
        assert rows(session, "chunk") == 0

    assert values(await read(store, task.id)) == ["first", "second"]


async def test_a_second_writer_after_a_rollback(store: PostgresStore, migrated: str) -> None:
    """If the first is rolled back, the second has its number."""
    task = await claimed_once(store)
    await write(store, task.fence, "zero")
    async with trio.open_nursery() as nursery:
        with pytest.raises(ZeroDivisionError):
            async with open_write(store, task, "first"):
                nursery.start_soon(write, store, task.fence, "second")
                await until_blocked(migrated)
                raise ZeroDivisionError

    assert values(await read(store, task.id)) == ["zero", "second"]


async def test_many_writers_at_once(store: PostgresStore, session: Session) -> None:
    """However many write at once, each chunk has a number of its own and none is left out."""
    task = await claimed_once(store)

    async def many(writer: int) -> None:
        for number in range(25):
            await write(store, task.fence, [writer, number])

    async with trio.open_nursery() as nursery:
        for writer in range(4):
            nursery.start_soon(many, writer)
    seen = [each for start in (0, 64) for each in values(await read(store, task.id, start=start))]

    assert numbers(session) == list(range(100))
    assert sorted(seen) == [[writer, number] for writer in range(4) for number in range(25)]
    for writer in range(4):
        assert [number for who, number in seen if who == writer] == list(range(25))


# -- fence against the others -------------------------------------------------------------------


async def test_nobody_settles_while_something_is_written(store: PostgresStore) -> None:
    """While a write is not committed, its attempt cannot be ended by others."""
    task = await claimed_once(store)
    async with open_write(store, task, "a"):
        refused = await store.settle([ends(task.fence, Event.LOSE)])
        assert refused == {task.fence: Refusal.LOCKED}
    await settle(store, task.fence, Event.LOSE)

    assert values(await read(store, task.id)) == ["a"]


async def test_a_cancel_is_not_kept_waiting(store: PostgresStore) -> None:
    """While a write is not committed, the attempt can be asked to stop."""
    task = await claimed_once(store)
    async with open_write(store, task, "a"):
        with trio.fail_after(5):
            assert await store.cancel(task.id)
    beat = await store.heartbeat(task.worker, draining=False)

    assert [request.fence for request in beat.cancel_requests] == [task.fence]


async def test_written_while_others_settle(store: PostgresStore, migrated: str) -> None:
    """A write waits for a settlement that is under way, and is then too late."""
    task = await claimed_once(store)
    async with trio.open_nursery() as nursery:

        async def too_late() -> None:
            with pytest.raises(StaleClaim):
                await write(store, task.fence, "a")

        async with store.transaction() as tx:
            await tx.settle(ends(task.fence, Event.INTERRUPT))
            nursery.start_soon(too_late)
            await until_blocked(migrated)

    assert (await read(store, task.id)).length == 0


async def test_swept_while_something_is_written(store: PostgresStore) -> None:
    """A sweep takes what dead workers hold; what they write afterwards is not stored."""
    worker = await hire(store, lease=0.001)
    task_id = await add(store)
    fence = (await claim_one(store, worker)).fence
    await write(store, fence, "a")
    while not await store.sweep(max_lost=3):
        pass
    with pytest.raises(StaleClaim):
        await write(store, fence, "b")

    assert values(await read(store, task_id)) == ["a"]


# -- restarts -----------------------------------------------------------------------------------


async def test_what_is_hidden_is_deleted(store: PostgresStore, session: Session) -> None:
    """A restart leaves nothing of earlier attempts, and numbers go on."""
    task = await claimed_once(store)
    await write(store, task.fence, *range(100))
    await settle(store, task.fence, Event.INTERRUPT)
    fence = (await claim_one(store, task.worker)).fence
    await write(store, fence, "a", "b", restart=True)

    assert numbers(session) == [100, 101]


# -- retention ----------------------------------------------------------------------------------


async def written(store: PostgresStore, *, names: int = 1, count: int = 3) -> Known:
    task = await claimed_once(store, keep_for=0)
    for name in range(names):
        await write(store, task.fence, *range(count), name=f"s{name}")
    return task


async def by_settling(store: PostgresStore) -> None:
    task = await written(store, names=2)
    await settle(store, task.fence, Event.SUCCEED, keep_for=0)


async def by_settling_in_a_transaction(store: PostgresStore) -> None:
    task = await written(store)
    async with store.transaction() as tx:
        await tx.write_stream(a_write(task.fence, "a"))
        await tx.settle(ends(task.fence, Event.SUCCEED, keep_for=0))


async def by_cancelling(store: PostgresStore) -> None:
    task = await written(store, names=2)
    await settle(store, task.fence, Event.INTERRUPT)
    assert await store.cancel(task.id)


async def by_pruning(store: PostgresStore) -> None:
    for _ in range(3):
        task = await written(store, names=2)
        await settle(store, task.fence, Event.SUCCEED, keep_for=0.001)
    pruned = 0
    while pruned < 3:
        pruned += await store.prune()


@pytest.mark.parametrize(
    "deleted", [by_settling, by_settling_in_a_transaction, by_cancelling, by_pruning]
)
async def test_nothing_is_left(
    store: PostgresStore, session: Session, deleted: Callable[[PostgresStore], Awaitable[None]]
) -> None:
    """Wherever a task is deleted, its streams and their chunks are, and no others."""
    kept = await written(store)
    await deleted(store)

    assert (rows(session, "task"), rows(session, "stream")) == (1, 1)
    assert rows(session, "chunk") == 3
    assert (await read(store, kept.id, name="s0")).length == 3


async def test_pruned_a_bit_at_a_time(
    store: PostgresStore, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many chunks are not deleted in one statement, but each prune gets on by a task."""
    monkeypatch.setattr(_store, "CHUNKS", 10)
    for names, count in [(1, 50), (0, 0), (2, 6), (1, 1), (0, 0)]:
        task = await written(store, names=names, count=count)
        await settle(store, task.fence, Event.SUCCEED, keep_for=0.001)
    left: list[tuple[int, int]] = []
    while rows(session, "task"):
        session.rollback()
        await store.prune()
        left.append((rows(session, "task"), rows(session, "chunk")))

    assert left[-1] == (0, 0)
    assert [step for step in dict.fromkeys(left) if step[0] < 4] == [(2, 13), (1, 1), (0, 0)]


# -- hints --------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", ["", "x", "-7", "1 2", "9" * 30, "7" * 7000])
async def test_a_garbage_hint(store: PostgresStore, session: Session, payload: str) -> None:
    """Whatever anybody sends on the channel, it is news of any task, and does no harm."""
    async with listening(store, [Bell.STREAM]) as ear:
        session.execute("select pg_notify('nursery_queue_stream', %s)", [payload])
        session.commit()
        await ear.hears(Bell.STREAM, after=1)

    assert ear.hints == [None, None]
