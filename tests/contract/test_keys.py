"""A task's key: what is said, what is declared, and where it goes with the task."""

from __future__ import annotations

import uuid

from typing import Any

import attrs
import psycopg
import pytest
import trio

from nursery_queue._core._declaration import AS_DECLARED, KEY_AS_DECLARED, Declaration
from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._keys import LONGEST_KEY
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    TYPE,
    a_task,
    add,
    brought_to,
    claim,
    claim_one,
    claimed_once,
    ends,
    hire,
    settle,
    state,
    status,
)


DECLARED = Declaration(name=TYPE, key_parameter="customer_id")
LEFT_OUT: dict[str, Any] = {
    "queue": None,
    "priority": None,
    "key": KEY_AS_DECLARED,
    "on_complete": AS_DECLARED,
}
HOW = ["alone", "copied", "keyed", "transaction", "copied in a transaction"]


async def key_of(store: Store, how: str = "alone", **changes: Any) -> str | None:
    """Store a task in some way and return its key."""
    task = a_task(**({"dedup_key": "k"} if "keyed" in how else {}), **changes)
    if "transaction" in how:
        async with store.transaction() as tx:
            (ref,) = await tx.enqueue([task], copy="copied" in how)
    else:
        (ref,) = await store.enqueue([task], copy="copied" in how)
    return (await status(store, ref.id)).key


@pytest.mark.parametrize("how", HOW)
async def test_what_is_said_is_the_key(store: Store, how: str) -> None:
    """A key is stored as it is said, and no key is none, whatever is declared."""
    await hire(store, declared=[DECLARED])
    params = '{"customer_id": 7}'

    assert await key_of(store, how, params=params, key="c-17") == "c-17"
    assert await key_of(store, "alone", params=params, key=None) is None


@pytest.mark.parametrize("how", HOW)
async def test_a_declared_parameter_is_the_key(store: Store, how: str) -> None:
    """Left out, the key is the value of the parameter that the newest worker has declared."""
    await hire(store, declared=[DECLARED])

    assert await key_of(store, how, params='{"customer_id": 7}', **LEFT_OUT) == "7"


@pytest.mark.parametrize(
    ("value", "key"),
    [
        ('"c-17"', "c-17"),
        ('"é ∞"', "é ∞"),
        ("7", "7"),
        ("-12345678901234567890", "-12345678901234567890"),
        ("1.50", "1.50"),
        ("1e3", "1000"),
        ("-2.5e-7", "-0.00000025"),
        ("true", "true"),
        ("null", None),
        (f'"{"x" * LONGEST_KEY}"', "x" * LONGEST_KEY),
    ],
)
async def test_values_as_keys(store: Store, value: str, key: str | None) -> None:
    """Each value is written in one way, by both stores; null is no key."""
    await hire(store, declared=[DECLARED])

    assert await key_of(store, params=f'{{"customer_id": {value}}}', **LEFT_OUT) == key


async def test_a_parameter_that_is_left_out(store: Store) -> None:
    """A task without the parameter has the key that its default makes; without one, none."""
    assert await key_of(store, **LEFT_OUT) is None

    await hire(store, declared=[DECLARED])

    assert await key_of(store, **LEFT_OUT) is None

    await hire(store, declared=[attrs.evolve(DECLARED, key_default="eu")])

    assert await key_of(store, **LEFT_OUT) == "eu"
    assert await key_of(store, params='{"customer_id": null}', **LEFT_OUT) is None


@pytest.mark.parametrize("value", ['""', f'"{"x" * 201}"', f'"{"é" * 101}"', "{}", "[1]"])
async def test_values_that_are_no_keys(store: Store, value: str) -> None:
    """A value that is empty, too long or no text is refused, and nothing is stored."""
    await hire(store, declared=[DECLARED])
    bad = a_task(params=f'{{"customer_id": {value}}}', **LEFT_OUT)
    with pytest.raises((ValueError, TypeError, psycopg.errors.DataError, psycopg.IntegrityError)):
        await store.enqueue([a_task(), bad])

    assert await store.list_tasks(TaskFilter()) == []


@pytest.mark.parametrize("key", ["", "x" * 201, "é" * 101])
async def test_keys_out_of_bounds(store: Store, key: str) -> None:
    """A key has 1 to 200 bytes."""
    with pytest.raises((ValueError, psycopg.IntegrityError), match="key"):
        await store.enqueue([a_task(key=key)])


WAYS_BACK = {
    "retried": Event.RETRY,
    "given back": Event.INTERRUPT,
}


@pytest.mark.parametrize("way", WAYS_BACK)
async def test_the_key_stays(store: Store, virtual_time: VirtualTime, way: str) -> None:
    """A task that comes back, late, or from its end, has its key, and can be claimed."""
    worker = await hire(store)
    task_id = await add(store, key="a", run_after=1, keep_for=60)
    await trio.sleep(2)
    assert await store.promote() == 1
    assert await state(store, task_id) is State.READY  # it is found where it should be
    await settle(store, await claim_one(store, worker), WAYS_BACK[way], delay=1)
    await trio.sleep(2)
    await store.promote()
    assert await state(store, task_id) is State.READY
    await settle(store, await claim_one(store, worker), Event.FAIL)
    assert await store.retry(task_id)
    assert await state(store, task_id) is State.READY
    await store.heartbeat(worker, draining=False)
    await claim_one(store, worker)

    assert (await status(store, task_id)).key == "a"


@pytest.mark.parametrize("at", [State.SCHEDULED, State.READY])
async def test_a_task_with_a_key_can_be_cancelled(store: Store, at: State) -> None:
    """It is found where it waits."""
    task_id = await add(store, key="a", run_after=60 if at is State.SCHEDULED else 0)

    assert await state(store, task_id) is at
    assert await store.cancel(task_id)
    assert await state(store, task_id) is State.CANCELLED


async def test_a_parked_task_with_a_key(store: Store) -> None:
    """It is seen while it is parked, comes back, and can be claimed."""
    await hire(store)
    task_id = await add(store, task_type="odd", key="a")
    await store.park()

    assert await state(store, task_id) is State.READY

    worker = await hire(store, id=uuid.uuid4(), task_types=["odd"])
    await store.unpark(["odd"])
    claimed = await store.claim(worker, ["odd"], limit=10)

    assert [one.fence.task_id for one in claimed.claims] == [task_id]


async def test_a_teller_has_the_key_that_is_declared_or_said(store: Store) -> None:
    """The task that tells of an end gets its key like any other."""
    declared = Declaration(name="told", key_parameter="task_id")
    await hire(store, declared=[declared])
    tellers = ['{"task_type": "told"}', '{"task_type": "told", "key": "b"}']
    tellers.append('{"task_type": "told", "key": null}')
    ids = [await add(store, on_complete=text) for text in tellers]
    for task_id in ids:
        await store.cancel(task_id)
    told = await store.list_tasks(TaskFilter(task_type="told"))

    assert [one.key for one in reversed(told)] == [str(ids[0]), "b", None]


@pytest.mark.parametrize("context", ["[1]", f'"{"x" * 201}"'])
async def test_a_teller_whose_key_is_none(store: Store, context: str) -> None:
    """A task whose end cannot be told, since the key would be none, ends all the same."""
    await hire(store, declared=[Declaration(name="told", key_parameter="context")])
    worker = await hire(store)
    asked: dict[str, Any] = {"on_complete": '{"task_type": "told"}', "context": context}
    one = await claimed_once(store, **asked)
    await settle(store, one.fence, Event.SUCCEED, on_complete=True)
    waiting = await add(store, **asked)
    assert await store.cancel(waiting)

    assert await state(store, one.id) is State.SUCCEEDED
    assert await state(store, waiting) is State.CANCELLED
    assert await claim(store, worker, task_types=["told"]) == []


async def test_everything_is_shown(store: Store) -> None:
    """The status of a task, alone and in a list, has its key, its dedup key and its attempts."""
    task = await brought_to(store, State.FAILED, key="a", dedup_key="d", max_attempts=7)
    listed = await store.list_tasks(TaskFilter())
    found = [await status(store, task.id), listed[0]]

    assert [(one.key, one.dedup_key, one.max_attempts) for one in found] == [("a", "d", 7)] * 2


async def test_settled_in_a_batch(store: Store) -> None:
    """Tasks with different keys are claimed and settled together."""
    worker = await hire(store)
    for key in ("a", None, "b", "a"):
        await add(store, key=key)
    claims = list((await store.claim(worker, [TYPE], limit=10)).claims)

    assert len(claims) == 4
    assert await store.settle([ends(one, Event.SUCCEED) for one in claims]) == {}
