"""Looking at many tasks, at their payloads, and at ids that no task has."""

from __future__ import annotations

from typing import Any

import pytest

from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import DAY, a_task, add, brought_to, claimed_once, hire, settle


async def pages(store: Store, size: int, **which: Any) -> list[list[int]]:
    found: list[list[int]] = []
    after: int | None = None
    while page := await store.list_tasks(TaskFilter(limit=size, after=after, **which)):
        found.append([one.id for one in page])
        after = found[-1][-1]

        assert all(after not in page for page in found[:-1])
    return found


async def test_a_great_many_states(store: Store) -> None:
    """However many ids are asked for, each has its answer, in order."""
    refs = await store.enqueue([a_task() for _ in range(11_000)])
    ids = [ref.id for ref in reversed(refs)] + [refs[0].id, refs[-1].id + 1]
    found = await store.status_many(ids)

    assert [one and one.id for one in found] == [*ids[:-1], None]


@pytest.mark.parametrize("task_id", [2**63, -(2**63) - 1, 10**40, 0, -1])
async def test_ids_that_no_task_has(store: Store, task_id: int) -> None:
    """An id beyond what the database can hold is an unknown task like any other."""
    known = await add(store)
    await claimed_once(store, priority=1)

    assert [one and one.id for one in await store.status_many([task_id, known])] == [None, known]
    assert await store.attempts(task_id) == []
    assert not await store.cancel(task_id)
    assert not await store.retry(task_id)
    async with store.transaction() as tx:
        assert not await tx.cancel(task_id)

    listed = await store.list_tasks(TaskFilter(after=task_id))

    assert len(listed) == (2 if task_id > known else 0)


async def test_a_task_that_was_pruned(store: Store, virtual_time: VirtualTime) -> None:
    """A task that has been deleted is as unknown as one that never was."""
    task = await brought_to(store, State.SUCCEEDED)
    virtual_time.advance(DAY + 1)
    await store.prune()

    assert await store.status_many([task.id, task.id + 1]) == [None, None]


@pytest.mark.parametrize("ended", [False, True])
async def test_payloads_are_shown_if_asked_for(store: Store, ended: bool) -> None:
    """Params and context are shown if asked for; a list has results in the same case alone."""
    task = await claimed_once(
        store, params='{"a": [1]}', context='{"c": null}', on_complete='{"task_type": "tell"}'
    )
    if ended:
        await settle(store, task.fence, Event.SUCCEED, result='"r"')
    result = "r" if ended else None
    for asked in (False, True):
        (found,) = await store.status_many([task.id], payloads=asked)
        (one,) = await store.list_tasks(TaskFilter(payloads=asked))

        assert found is not None
        assert (found.params, found.context) == (one.params, one.context)
        assert (one.params, one.context) == (({"a": [1]}, {"c": None}) if asked else (None, None))
        assert found.result == result
        assert one.result == (result if asked else None)
        assert (one.on_complete, one.completes) == ("tell", None)


async def test_what_tells_of_another_says_so(store: Store) -> None:
    """A task that tells how another one ended names it."""
    task_id = await add(store, on_complete='{"task_type": "tell"}')
    await store.cancel(task_id)
    (tells, told) = await store.list_tasks(TaskFilter())

    assert (tells.task_type, tells.completes, tells.on_complete) == ("tell", task_id, None)
    assert (told.id, told.completes) == (task_id, None)


@pytest.mark.parametrize("which", [{}, {"state": State.READY}, {"queue": "a"}])
async def test_pages_while_tasks_come(store: Store, which: dict[str, Any]) -> None:
    """Going on below the last id, nothing comes twice and nothing is left out."""
    first = [ref.id for ref in await store.enqueue([a_task(queue="a") for _ in range(30)])]
    seen: list[int] = []
    after: int | None = None
    while page := await store.list_tasks(TaskFilter(limit=4, after=after, **which)):
        seen += [one.id for one in page]
        after = seen[-1]

        assert len(seen) <= len(first)

        await store.enqueue([a_task(queue="a") for _ in range(5)])

    assert seen == first[::-1]


@pytest.mark.parametrize("goal", State)
async def test_pages_of_every_state(store: Store, goal: State) -> None:
    """Pages of one state have all that is in it, newest first, and nothing else."""
    every = [*State] * 3
    # Each outranks those before it, so it is the one that is claimed.
    tasks = [await brought_to(store, each, priority=i) for i, each in enumerate(every)]
    wanted = [task.id for task, each in zip(tasks, every, strict=True) if each is goal]

    assert await pages(store, 2, state=goal) == [[wanted[2], wanted[1]], [wanted[0]]]
    assert await pages(store, 9) == [[one.id for one in tasks[::-1]][i : i + 9] for i in (0, 9)]


@pytest.mark.parametrize("goal", State)
async def test_filters_of_every_state(store: Store, goal: State) -> None:
    """Queue and type are looked at whatever the state."""
    asked = [{"queue": queue, "priority": i} for i, queue in enumerate(["a", "b", "a"])]
    tasks = [await brought_to(store, goal, **each) for each in asked]

    assert await pages(store, 5, state=goal, queue="a") == [[tasks[2].id, tasks[0].id]]
    assert await pages(store, 5, state=goal, queue="c") == []
    assert await pages(store, 5, state=goal, queue="b", task_type="work") == [[tasks[1].id]]
    assert await pages(store, 5, state=goal, task_type="other") == []


async def test_what_is_out_of_the_way_is_listed(store: Store) -> None:
    """A ready task of a type that nobody knows is in the list, whether it is parked or not."""
    parked = await add(store, task_type="strange", queue="a")
    await hire(store)
    await store.park()
    ready = await add(store, queue="a")

    assert await pages(store, 5, state=State.READY, queue="a") == [[ready, parked]]
    assert await pages(store, 5, state=State.READY, task_type="strange") == [[parked]]


async def test_workers(store: Store, virtual_time: VirtualTime) -> None:
    """Workers are listed by age, whether they are alive or not, until somebody sweeps."""
    first = await hire(store, lease=1)
    virtual_time.advance(2)
    second = await hire(store)

    assert [(one.id, one.alive) for one in await store.workers()] == [
        (first, False),
        (second, True),
    ]
    assert await store.workers() == (await store.stats()).workers
