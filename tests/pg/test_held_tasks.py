"""Tasks that a transaction holds which stays open keep no others waiting."""

from __future__ import annotations

import uuid

from collections.abc import Callable, Generator
from typing import Any

import psycopg
import pytest

from nursery_queue._core._model import Claimed
from nursery_queue._core._rate import Rate
from nursery_queue._pg._postgres_store import PostgresStore
from tests.support.store_steps import TYPE, a_task, claim, hire


HOLD = "select from nursery_queue.ready where task_id = any(%s) for update"


@pytest.fixture
async def worker(store: PostgresStore) -> uuid.UUID:
    return await hire(store)


@pytest.fixture
def plain(migrated: str) -> Generator[psycopg.Connection]:
    """Give a session of somebody else, whose transactions stay open."""
    with psycopg.connect(migrated) as session:
        yield session


@pytest.mark.parametrize("held", [9, 40])
@pytest.mark.parametrize("of", ["key", "queue", "task_type", "priority"])
async def test_the_others_start(
    store: PostgresStore, plain: psycopg.Connection, of: str, held: int
) -> None:
    """With the best of many keys, queues, types or priorities held, a claim is full of others."""
    worker = await hire(store, task_types=[f"{n:02}" for n in range(held)] + [TYPE])
    ways: dict[str, Callable[[int], dict[str, Any]]] = {
        "key": lambda n: {"key": f"{n:02}"},
        "queue": lambda n: {"queue": f"{n:02}"},
        "task_type": lambda n: {"task_type": f"{n:02}"},
        "priority": lambda n: {"priority": 1 + n, "key": f"{n:02}"},
    }
    first = await store.enqueue([a_task(**ways[of](n)) for n in range(held)])
    other = {"key": "z"} if of in ("key", "priority") else {}
    await store.enqueue([a_task(**other, queue="z" if of == "queue" else "default")] * 9)
    plain.execute(HOLD, [[each.id for each in first]])

    types = [f"{n:02}" for n in range(held)] + [TYPE]
    taken = list[str]()
    spot = None
    for _ in range(3):  # a claim looks at 32 queues
        found: Claimed = await store.claim(worker, types, limit=9, after=spot)
        taken += [each.task_type for each in found.claims]
        if (spot := found.resume) is None:
            break
    assert len(taken) == 9


async def test_more_lanes_than_a_claim_looks_at(
    store: PostgresStore, worker: uuid.UUID, plain: psycopg.Connection
) -> None:
    """Claims that find all their lanes held rest, and come to others with the next."""
    first = await store.enqueue([a_task(key=f"a{n:02}") for n in range(64)])
    await store.enqueue([a_task(key=f"z{n}") for n in range(9)])
    plain.execute(HOLD, [[each.id for each in first]])

    nothing = await store.claim(worker, [TYPE], limit=9)
    assert (list(nothing.claims), nothing.more, nothing.contended) == ([], False, True)
    assert len(await claim(store, worker, 9)) == 9


async def test_a_key_that_is_full_has_more_of_another_priority(
    store: PostgresStore, worker: uuid.UUID
) -> None:
    """That is noted as held back, as is more of the same priority."""
    await store.configure("default", max_running_per_key=1)
    await store.enqueue([a_task(key="k", priority=5), a_task(key="k")])

    found = await store.claim(worker, [TYPE], limit=9)

    assert (len(found.claims), found.held_back) == (1, True)


async def test_keys_below_a_better_priority_take_turns(
    store: PostgresStore, worker: uuid.UUID
) -> None:
    """One task without a key and of a better priority changes nothing for those below it."""
    await store.enqueue([a_task(priority=5), *[a_task(key="big")] * 20, a_task(key="small")])

    taken = await claim(store, worker, 5)

    assert len(taken) == 5
    found = await store.status_many([each.fence.task_id for each in taken])
    assert "small" in {each.key for each in found if each is not None}


async def test_what_has_a_rate_is_not_held_ahead(store: PostgresStore, worker: uuid.UUID) -> None:
    """The claim is the start: it takes no more than start at once, though others end soon."""
    await store.configure("default", rate=Rate(10, per=1, burst=9))
    await store.enqueue([a_task()] * 9)

    found = await store.claim(worker, [TYPE], limit=9, at_once=3, soon=6)

    assert len(found.claims) == 3
    assert found.held_back
