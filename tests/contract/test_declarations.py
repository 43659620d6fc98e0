"""What a task type declares counts, whoever enqueues, and what is said counts more."""

from __future__ import annotations

import json

from typing import Any

import attrs
import pytest

from nursery_queue._core._declaration import AS_DECLARED, Declaration
from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import NewTask
from nursery_queue._core._states import Event
from nursery_queue._store import Store
from tests.support.store_steps import TYPE, a_task, add, claim, claim_one, ends, hire


TOLD = Declaration(name="told", queue="books", priority=7, on_complete='{"task_type": "last"}')
DECLARED = Declaration(
    name=TYPE, queue="mail", priority=3, keep_for=5.0, on_complete='{"task_type": "told"}'
)
LEFT_OUT: dict[str, Any] = {"queue": None, "priority": None, "on_complete": AS_DECLARED}
HOW = ["alone", "many", "copied", "keyed", "transaction", "copied in a transaction"]


async def stored(store: Store, how: str, task: NewTask) -> tuple[str, int, str | None]:
    """Store *task* in some way and return its queue, its priority and who is told of its end."""
    if "keyed" in how:
        task = attrs.evolve(task, dedup_key="k")
    tasks = [task] * (1 if "keyed" in how else 3)
    if "transaction" in how:
        async with store.transaction() as tx:
            refs = await tx.enqueue(tasks, copy="copied" in how)
            seen = await tx.status_many([ref.id for ref in refs])
        assert seen == await store.status_many([ref.id for ref in refs])
    else:
        refs = await store.enqueue(tasks, copy="copied" in how)
    found = {
        (status.queue, status.priority, status.on_complete)
        for status in await store.status_many([ref.id for ref in refs])
        if status is not None
    }
    (one,) = found
    return one


@pytest.mark.parametrize("how", HOW)
async def test_what_is_left_out_is_as_declared(store: Store, how: str) -> None:
    """Queue, priority and who is told are those that a worker has declared when it started."""
    await hire(store, declared=[DECLARED, TOLD])

    assert await stored(store, how, a_task(**LEFT_OUT)) == ("mail", 3, "told")


@pytest.mark.parametrize("how", HOW)
async def test_what_nobody_has_declared_is_as_ever(store: Store, how: str) -> None:
    """A type that no worker knows yet goes to `default`, with priority 0, and tells nobody."""
    await hire(store, declared=[TOLD])

    assert await stored(store, how, a_task(**LEFT_OUT)) == ("default", 0, None)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    ("said", "counts"),
    [
        ({"queue": "default"}, ("default", 3, "told")),
        ({"priority": 0}, ("mail", 0, "told")),
        ({"on_complete": None}, ("mail", 3, None)),
        ({"on_complete": '{"task_type": "other"}'}, ("mail", 3, "other")),
        ({"queue": "default", "priority": 0, "on_complete": None}, ("default", 0, None)),
    ],
    ids=["queue", "priority", "nobody", "another", "all"],
)
async def test_what_is_said_counts(
    store: Store, how: str, said: dict[str, Any], counts: tuple[str, int, str | None]
) -> None:
    """Also the words for what would be so anyway."""
    await hire(store, declared=[DECLARED, TOLD])

    assert await stored(store, how, a_task(**(LEFT_OUT | said))) == counts


async def test_the_newest_start_counts(store: Store) -> None:
    """What another worker declared before is replaced, and what it alone declares stays."""
    await hire(store, declared=[DECLARED, TOLD])
    await hire(store, declared=[Declaration(name=TYPE, queue="new")])
    await hire(store)  # one that declares nothing takes nothing away

    assert await stored(store, "many", a_task(**LEFT_OUT)) == ("new", 0, None)
    assert await stored(store, "many", a_task(task_type="told", **LEFT_OUT)) == ("books", 7, "last")


async def test_what_is_stored_already_stays(store: Store) -> None:
    """A declaration is for what is enqueued from then on."""
    before = await add(store, **LEFT_OUT)
    await hire(store, declared=[DECLARED])
    (status,) = await store.status_many([before])

    assert status is not None
    assert (status.queue, status.priority) == ("default", 0)


async def test_types_that_take_turns(store: Store) -> None:
    """In one statement each task is as its own type declares."""
    await hire(store, declared=[DECLARED, TOLD])
    names = [TYPE, "told", "unknown"] * 4
    refs = await store.enqueue([a_task(task_type=name, **LEFT_OUT) for name in names])
    found = await store.status_many([ref.id for ref in refs])

    expected = ["mail", "books", "default"] * 4
    assert [status.queue for status in found if status] == expected


# -- tasks that tell of an end ----------------------------------------------------------------


@pytest.mark.parametrize("way", ["settled", "cancelled", "in a transaction"])
async def test_a_teller_is_as_declared(store: Store, way: str) -> None:
    """The task that tells of an end has queue, priority and a teller of its own as declared."""
    worker = await hire(store, declared=[TOLD])
    task_id = await add(store, on_complete='{"task_type": "told"}')
    if way == "cancelled":
        await store.cancel(task_id)
    elif way == "settled":
        one = await claim_one(store, worker)
        await store.settle([ends(one, Event.SUCCEED, on_complete=True)])
    else:
        async with store.transaction() as tx:
            await tx.cancel(task_id)
    (teller,) = await store.list_tasks(TaskFilter(task_type="told"))

    assert (teller.queue, teller.priority, teller.on_complete) == ("books", 7, "last")


async def test_a_teller_of_which_more_is_said(store: Store) -> None:
    """What is said of a teller counts, also that nobody is told of its end."""
    await hire(store, declared=[TOLD])
    said = {"task_type": "told", "queue": "default", "priority": 0, "on_complete": None}
    await store.cancel(await add(store, on_complete=json.dumps(said)))
    (teller,) = await store.list_tasks(TaskFilter(task_type="told"))

    assert (teller.queue, teller.priority, teller.on_complete) == ("default", 0, None)


# -- ends without a worker --------------------------------------------------------------------


async def test_a_cancelled_task_is_kept_as_declared(store: Store) -> None:
    """A waiting task that is cancelled is kept for as long as its code declares."""
    await hire(store, declared=[attrs.evolve(DECLARED, keep_for=0, on_complete=None)])
    gone, kept = await add(store), await add(store, keep_for=60)
    await store.cancel(gone)
    await store.cancel(kept)

    assert [status is not None for status in await store.status_many([gone, kept])] == [False, True]


async def test_a_lost_task_is_kept_as_declared(store: Store) -> None:
    """A task that is lost for good is kept for as long as its code declares, whoever sweeps."""
    worker = await hire(store, declared=[attrs.evolve(DECLARED, keep_for=0, on_complete=None)])
    gone, kept = await add(store), await add(store, keep_for=60)
    assert len(await claim(store, worker)) == 2
    await store.deregister(worker)
    assert await store.sweep(max_lost=1) == 2

    assert [status is not None for status in await store.status_many([gone, kept])] == [False, True]


async def test_a_retried_task_stays_where_it_was(store: Store) -> None:
    """A task that is made to go again keeps what it got when it was enqueued."""
    await hire(store, declared=[DECLARED])
    task_id = await add(store, **LEFT_OUT)
    await store.cancel(task_id)
    await hire(store, declared=[Declaration(name=TYPE, queue="new")])
    assert await store.retry(task_id)
    (status,) = await store.status_many([task_id])

    assert status is not None
    assert (status.queue, status.priority) == ("mail", 3)
