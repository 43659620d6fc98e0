"""Claims by key cost the same however many keys there are, and wait for nobody's turn."""

from __future__ import annotations

import random
import uuid

from collections import Counter
from collections.abc import Generator
from typing import Any

import psycopg
import pytest
import trio

from nursery_queue._core._model import Claimed
from nursery_queue._core._rate import Rate
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._pg._sql import query
from tests.pg.test_many_queues import FLUSH, READ, params
from tests.support.store_steps import TYPE, hire


# Without triggers; `each` tasks of every key.
FILL = """
    set session_replication_role = replica;
    with stored as (
        insert into nursery_queue.task (task_type, queue, priority, key, on_complete)
        select %(task_type)s, 'default', 0, 'k' || lpad((i %% %(keys)s)::text, 6, '0'), null
          from generate_series(0, %(keys)s * %(each)s - 1) as i
        returning id, queue, priority, task_type, key
    )
    insert into nursery_queue.ready (task_id, queue, priority, task_type, key)
    select id, queue, priority, task_type, key from stored;
    set session_replication_role = origin;
"""
KEYS_OF = "select key from nursery_queue.task where id = any(%s)"
ROWS = 5000  # that a claim by key may read, at most


@pytest.fixture
def session(migrated: str) -> Generator[psycopg.Connection[Any]]:
    """Give a session as a worker has it."""
    with psycopg.connect(migrated, autocommit=True) as session:
        session.execute(query("keep_to_indexes", "nursery_queue"), {"once": False})
        yield session


def fill(session: psycopg.Connection[Any], keys: int, each: int) -> None:
    with psycopg.ClientCursor(session) as cursor:
        cursor.execute(FILL, {"task_type": TYPE, "keys": keys, "each": each})


def keys_of(session: psycopg.Connection[Any], claimed: Claimed) -> list[str]:
    ids = [one.fence.task_id for one in claimed.claims]
    return [key for (key,) in session.execute(KEYS_OF, [ids])]


async def walk(store: PostgresStore, worker: uuid.UUID, limit: int) -> list[Claimed]:
    """Claim until one walk has come to its end."""
    found = [await store.claim(worker, [TYPE], limit=limit)]
    while found[-1].resume is not None:
        found.append(await store.claim(worker, [TYPE], limit=limit, after=found[-1].resume))
    return found


# The same lanes, shared out in the way for a single level, and in the one for any.
SHARED = """
    with lanes as (
        select array_agg('default'::text) as queues, array_agg(%(task_type)s::text) as types,
               array_agg(0) as levels, array_agg(key order by key) as keys,
               array_agg(allowed order by key) as allowed,
               array_agg(%(limits)s::boolean) as limits, array_agg(1) as pairs,
               array_agg(%(slots)s::int) as slots, array_agg(at_most order by key) as at_most
          from unnest(%(keys)s::text[], %(allowed)s::int[], %(at_most)s::int[])
                    as lane (key, allowed, at_most)
    )
    select one.*, several.*
      from lanes,
           nursery_queue.share_keys('default', %(task_type)s, 0, keys, allowed, %(limits)s,
                                    %(slots)s, %(total)s, %(deep)s, at_most) as one,
           nursery_queue.share_levels(queues, types, levels, keys, allowed, limits, pairs, slots,
                                      %(total)s, %(deep)s, at_most) as several
"""


def test_shares_of_a_single_level(session: psycopg.Connection[Any]) -> None:
    """The short way to share out the lanes of one level comes to the same as the long one."""
    rng = random.Random(15)
    fill(session, 12, each=1)
    fill(session, 5, each=4)
    for _ in range(1000):
        count = rng.choice([1, 2, 3, 7, 12])
        known = rng.random() < 0.4  # how many there are, to be had
        asked = {
            "task_type": TYPE,
            "keys": [f"k{number:06}" for number in rng.sample(range(12), count)],
            "allowed": [rng.choice([1, 2, 3, 1_000_000]) for _ in range(count)],
            "at_most": [rng.choice([None, 0, 1, 3]) if known else None for _ in range(count)],
            "limits": rng.random() < 0.5,
            "slots": rng.choice([1, 3, 10, 1000]),
            "total": rng.choice([1, 3, 10, 1000]),
            "deep": rng.choice([1, 2, 4, 100]),
        }
        (row,) = session.execute(SHARED, asked).fetchall()
        assert row[:3] == row[3:], asked


@pytest.mark.parametrize("limit", [None, 2])
async def test_ten_thousand_keys(
    store: PostgresStore, session: psycopg.Connection[Any], limit: int | None
) -> None:
    """A claim reads few rows, and the next ones take of other keys until each has had its turn."""
    worker = await hire(store)
    fill(session, 10_000, each=3)
    if limit is not None:
        await store.configure("default", max_running_per_key=limit)
    session.execute(FLUSH)
    with session.transaction(force_rollback=True):
        session.execute(query("claim", "nursery_queue"), params(worker))
        read = session.execute(READ).fetchone()
    found: Counter[str] = Counter()
    for _ in range(20):
        found.update(keys_of(session, await store.claim(worker, [TYPE], limit=50)))

    assert read is not None
    assert read[0] <= ROWS
    assert len(found) == found.total() == 20 * 50


async def test_keys_that_are_full(store: PostgresStore, session: psycopg.Connection[Any]) -> None:
    """Thousands of keys that may start nothing are stepped over in bounded claims, all of them."""
    worker = await hire(store)
    fill(session, 3000, each=2)
    await store.configure("default", max_running_per_key=1)
    session.execute(
        "insert into nursery_queue.running (task_id, worker_id, attempt, epoch, lost, started_at,"
        "                                   pool, key)"
        " select -i, %s, 1, 1, 0, now(), 'default', 'k' || lpad(i::text, 6, '0')"
        "   from generate_series(0, 2998) as i",
        [worker],
    )
    session.execute(FLUSH)
    with session.transaction(force_rollback=True):
        session.execute(query("claim", "nursery_queue"), params(worker))
        read = session.execute(READ).fetchone()
    found = await walk(store, worker, limit=10)

    assert read is not None
    assert read[0] <= ROWS
    assert 2 <= len(found) <= 3000 / 500 + 2
    assert [key for each in found for key in keys_of(session, each)] == ["k002999"]
    assert all(each.held_back for each in found)


async def test_nobody_waits_for_a_turn(
    store: PostgresStore, session: psycopg.Connection[Any]
) -> None:
    """While a claim by key is not committed, another takes of the same keys, without limits."""
    worker = await hire(store)
    fill(session, 5, each=10)
    await store.claim(worker, [TYPE], limit=3)  # from now on it is noted whose turn it is
    with session.transaction(force_rollback=True):
        session.execute(query("claim", "nursery_queue"), params(worker, limit=7))
        with trio.fail_after(20):
            claimed = await store.claim(worker, [TYPE], limit=7)

    assert len(claimed.claims) == 7


async def test_what_is_known_of_rates_and_turns_goes(
    store: PostgresStore, session: psycopg.Connection[Any]
) -> None:
    """Rates that are not used and turns of long ago are forgotten, and no others."""
    worker = await hire(store)
    fill(session, 3, each=4)
    await store.configure("default", rate_per_key=Rate(1, per=3600))
    assert len((await store.claim(worker, [TYPE], limit=9)).claims) == 3
    await store.prune()
    kept = session.execute("select count(*) from nursery_queue.rate").fetchone()
    session.execute("update nursery_queue.rate set next_at = now() - interval '1 s'")
    session.execute("update nursery_queue.turn set served_at = now() - interval '2 days'")
    await store.prune()
    left = session.execute(
        "select (select count(*) from nursery_queue.rate),"
        "       (select count(*) from nursery_queue.turn)"
    ).fetchone()

    assert kept == (3,)
    assert left == (0, 0)
