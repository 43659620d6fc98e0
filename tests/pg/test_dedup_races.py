"""Two transactions that want the same dedup keys at the same time."""

from __future__ import annotations

import contextlib
import random

from collections.abc import Awaitable, Callable, Sequence

import psycopg
import pytest
import trio

from nursery_queue._core._errors import TransientError
from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import NewTask, TaskRef
from nursery_queue._core._states import State
from nursery_queue._pg._postgres_store import PostgresStore
from tests.pg.queries import Session, call, rows
from tests.support.store_steps import a_task, count, state
from tests.support.waits import until_blocked


FORTH = ["a", "m", "z"]
BACK = ["z", "m", "a"]
INSERT = """
    insert into nursery_queue.task (task_type, dedup_key)
    select 'work', unnest(%s::text[])
"""


def keyed(keys: Sequence[str | None]) -> list[NewTask]:
    return [a_task(dedup_key=key) for key in keys]


async def enqueue(store: PostgresStore, keys: Sequence[str], found: list[list[TaskRef]]) -> None:
    found.append(await store.enqueue(keyed(keys)))


async def enqueue_in_a_transaction(
    store: PostgresStore, keys: Sequence[str], found: list[list[TaskRef]]
) -> None:
    async with store.transaction() as tx:
        found.append(await tx.enqueue(keyed(keys)))


async def insert(store: PostgresStore, keys: Sequence[str], found: list[list[TaskRef]]) -> None:
    """Store tasks with a plain insert, which is refused if one of the keys is taken."""
    with contextlib.suppress(psycopg.errors.UniqueViolation):
        async with store.transaction() as tx:
            await tx.execute(INSERT, [list(keys)])
        found.append([])


Way = Callable[[PostgresStore, Sequence[str], list[list[TaskRef]]], Awaitable[None]]


@pytest.mark.parametrize("second", [enqueue, enqueue_in_a_transaction, insert])
@pytest.mark.parametrize("first", [enqueue, insert])
async def test_opposite_orders(
    store: PostgresStore, session: Session, migrated: str, first: Way, second: Way
) -> None:
    """Two lists with the same keys in opposite orders cannot wait for each other."""
    session.execute(INSERT, [["m"]])  # both wait for this one, with what they have by then
    found: list[list[TaskRef]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first, store, FORTH, found)
        nursery.start_soon(second, store, BACK, found)
        await until_blocked(migrated, 2)
        session.rollback()

    assert found  # of two plain inserts one is refused
    assert rows(session, "dedup") == rows(session, "task") == 3


async def test_many_lists(store: PostgresStore) -> None:
    """Whatever the orders and however many at once, each key has one task, and all say which."""
    rng = random.Random(7)
    keys = [f"k{i}" for i in range(20)]
    found: list[dict[str, TaskRef]] = []

    async def some(seed: int) -> None:
        order = random.Random(seed).sample(keys, 12)
        refs = await store.enqueue(keyed(order))
        found.append(dict(zip(order, refs, strict=True)))

    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(some, rng.randrange(10**6))

    for key in keys:
        refs = [refs[key] for refs in found if key in refs]

        assert len({ref.id for ref in refs}) == 1
        assert [ref.created for ref in refs].count(True) == 1
    assert await count(store) == len(keys)


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("many", [True, False])
async def test_the_first_of_two(
    store: PostgresStore, session: Session, migrated: str, commits: bool, many: bool
) -> None:
    """Who comes second waits: for the id of the first if that commits, else for the key."""
    first, _ = call(session, "enqueue", {"task_type": "work", "dedup_key": "k"})
    found: list[list[TaskRef]] = []
    keys = ["j", "k", "l"] if many else ["k"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(enqueue_in_a_transaction, store, keys, found)
        await until_blocked(migrated)
        (session.commit if commits else session.rollback)()
    ref = found[0][keys.index("k")]

    assert ref.created is not commits
    assert (ref.id == first) is commits
    assert await state(store, ref.id) is State.READY
    assert [one.created for one in found[0]].count(True) == len(keys) - commits
    assert await count(store) == len(keys)


async def test_the_caller_goes_on(store: PostgresStore, session: Session, migrated: str) -> None:
    """A key that somebody took meanwhile does not abort the transaction it was wanted in."""
    call(session, "enqueue", {"task_type": "work", "dedup_key": "k"})
    done = trio.Event()

    async def transaction() -> None:
        async with store.transaction() as tx:
            await tx.enqueue([a_task(priority=1)])
            await tx.enqueue(keyed(["k", None]))
            await tx.execute("select 1")
            await tx.enqueue([a_task(priority=2)])
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(transaction)
        await until_blocked(migrated)
        session.commit()

    assert done.is_set()
    assert [one.priority for one in await store.list_tasks(TaskFilter())] == [2, 0, 1, 0]


async def test_a_running_task_is_not_waited_for(store: PostgresStore, session: Session) -> None:
    """The key of a task that a worker holds is looked up without any wait, or lock on it."""
    first, _ = call(session, "enqueue", {"task_type": "work", "dedup_key": "k"})
    session.commit()
    session.execute("update nursery_queue.task set priority = 0 where id = %s", [first])
    session.execute("select from nursery_queue.dedup for update")
    with trio.fail_after(20):
        refs = await store.enqueue(keyed([None, "k"]))

    assert refs[1] == TaskRef(first, created=False)


@pytest.mark.parametrize("keys", [["k"], ["j", "k"]])
async def test_a_key_that_the_transaction_cannot_see(
    store: PostgresStore, session: Session, keys: list[str]
) -> None:
    """In REPEATABLE READ a key taken since is transient: the transaction is to be made anew."""
    with pytest.raises((TransientError, psycopg.errors.SerializationFailure), match="dedup_key"):
        async with store.transaction() as tx:
            await tx.execute("set transaction isolation level repeatable read")
            await tx.execute("select from nursery_queue.task")
            call(session, "enqueue", {"task_type": "work", "dedup_key": "k"})
            session.commit()
            await tx.enqueue(keyed(keys))

    assert await count(store) == 1


async def test_other_conflicts_are_not_searched_for(store: PostgresStore, session: Session) -> None:
    """An index of somebody's own that refuses a row is reported as such, and nothing is kept."""
    session.execute("create unique index my_own on nursery_queue.task (queue)")
    session.commit()
    with pytest.raises(psycopg.errors.UniqueViolation, match="my_own"):
        await store.enqueue(keyed(["a", "b"]))

    assert await count(store) == rows(session, "dedup") == 0
