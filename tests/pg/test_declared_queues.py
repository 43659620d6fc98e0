"""Storing what code declares of queues, while others change them, too."""

from __future__ import annotations

from collections.abc import Generator

import psycopg
import pytest
import trio

from nursery_queue._core._queue_changes import Declared, QueueChanges
from nursery_queue._pg._declared_queues import BUSY
from nursery_queue._pg._postgres_store import PostgresStore
from tests.support.store_steps import a_task, claim, hire
from tests.support.waits import until_blocked


@pytest.fixture
def plain(migrated: str) -> Generator[psycopg.Connection]:
    """Give a session of somebody else, with a transaction that stays open."""
    with psycopg.connect(migrated) as session:
        yield session


def queues(*names: str, most: int = 5) -> dict[str, QueueChanges]:
    return {name: {"max_running": most} for name in names}


async def limits(store: PostgresStore) -> dict[str, int | None]:
    return {queue.name: queue.max_running for queue in await store.queues()}


async def test_a_queue_that_is_being_changed(
    store: PostgresStore, plain: psycopg.Connection
) -> None:
    """It is left for later, soon, and with its name; the others are set."""
    plain.execute("insert into nursery_queue.queue (name, max_running) values ('b', 9), ('c', 9)")

    with trio.fail_after(20):
        answer = await store.declare_queues(queues("a", "b", "c", "d"))

    assert answer == Declared(changed=("a", "d"), left={"b": BUSY, "c": BUSY})
    assert await limits(store) == {"a": 5, "d": 5}
    plain.commit()
    assert await store.declare_queues(queues("b", "c")) == Declared(changed=("b", "c"))
    assert await limits(store) == dict.fromkeys("abcd", 5)


async def test_a_claim_under_way_is_waited_for(
    migrated: str, store: PostgresStore, plain: psycopg.Connection
) -> None:
    """Claims hold a queue for moments: a declaration has its turn between them."""
    await store.enqueue([a_task() for _ in range(9)])
    plain.execute("select nursery_queue.room(array['default'], 9, 9, 9)")
    answers: list[Declared] = []

    async def declare() -> None:
        answers.append(await store.declare_queues(queues("default")))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(declare)
        await until_blocked(migrated)
        plain.commit()

    assert answers == [Declared(changed=("default",))]
    assert len(await claim(store, await hire(store))) == 5


async def test_a_queue_that_is_refused(store: PostgresStore, plain: psycopg.Connection) -> None:
    """A check of the user's that a declaration does not pass keeps no other from being stored."""
    plain.execute("alter table nursery_queue.queue add constraint house check (max_running < 9)")
    plain.commit()

    answer = await store.declare_queues(queues("a", "c") | queues("b", most=9))

    assert answer.changed == ("a", "c")
    assert list(answer.left) == ["b"]
    assert "house" in answer.left["b"]
    assert await limits(store) == {"a": 5, "c": 5}


async def test_two_workers_that_start_at_once(migrated: str, store: PostgresStore) -> None:
    """Whatever the order in which they declare, none waits for the other for ever."""
    names = [f"q{number}" for number in range(20)]
    changed: list[str] = []

    async def declare(store: PostgresStore, names: list[str]) -> None:
        answer = await store.declare_queues(queues(*names))
        assert not answer.left
        changed.extend(answer.changed)

    other = PostgresStore(migrated)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(declare, store, names)
        nursery.start_soon(declare, other, names[::-1])
    await other.aclose()

    assert sorted(changed) == sorted(names)
    assert await limits(store) == dict.fromkeys(names, 5)


async def test_the_declaration_is_beside_the_row(
    store: PostgresStore, plain: psycopg.Connection
) -> None:
    """In plain SQL it is to be seen, by column; a row that is deleted is made anew."""
    await store.declare_queues(queues("a"))
    shown = "select max_running, declared from nursery_queue.queue"
    assert plain.execute(shown).fetchall() == [(5, {"max_running": 5})]
    plain.execute("delete from nursery_queue.queue")
    plain.commit()

    assert await store.declare_queues(queues("a")) == Declared(changed=("a",))
