from __future__ import annotations

import datetime as dt
import json
import math

from typing import Any

import pytest

from nursery_queue._core._model import TaskRef
from nursery_queue._core._retry import RetryPolicy
from nursery_queue._core._states import State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    DAY,
    a_task,
    add,
    claim,
    claim_one,
    count,
    hire,
    refusal,
    state,
    status,
)


SHAPES: list[Any] = [
    None,
    True,
    0,
    -1,
    2**70,
    0.1,
    1.0,
    "",
    'quote " backslash \\ newline \n',
    "é ☃ 😀 %s %% $1 {}",
    [],
    {},
    [1, [2, [None, {"a": []}]]],
    {"": {"b": [False, 1.5]}},
]


async def test_answers_are_in_the_order_asked(store: Store) -> None:
    """One answer a task, in order, with ids that grow."""
    priorities = [3, -2, 5, 0]
    refs = await store.enqueue([a_task(priority=priority) for priority in priorities])
    found = await store.status_many([ref.id for ref in refs])

    assert [ref.created for ref in refs] == [True] * 4
    assert sorted(refs, key=lambda ref: ref.id) == refs
    assert [one and one.priority for one in found] == priorities


async def test_nothing_is_stored_of_nothing(store: Store) -> None:
    """No tasks, no answers."""
    assert await store.enqueue([]) == []
    assert await count(store) == 0


async def test_many_at_once(store: Store) -> None:
    """A large batch is one call."""
    refs = await store.enqueue([a_task(params=json.dumps({"i": i})) for i in range(2500)])
    worker = await hire(store)
    claims = await claim(store, worker, 2500)

    assert len({ref.id for ref in refs}) == 2500
    assert [json.loads(one.params)["i"] for one in claims] == list(range(2500))


@pytest.mark.parametrize("params", ["[]", '"a"', "1", "null", "{", "", '{"a": NaN}'])
async def test_params_that_are_no_object(store: Store, params: str) -> None:
    """Params that are not a JSON object are refused, and nothing of the batch is stored."""
    with refusal():
        await store.enqueue([a_task(), a_task(params=params)])

    assert await count(store) == 0


async def test_everything_asked_reaches_the_worker(store: Store) -> None:
    """A claim has the type, queue, params and overrides as they were given."""
    backoff = RetryPolicy(initial=0.5, maximum=9, factor=3, jitter=0.25)
    asked = a_task(
        task_type="Ünlike others",
        queue="q",
        params='{"n": [1, 2]}',
        max_attempts=7,
        backoff=backoff,
        timeout=1.5,
        keep_for=2.5,
    )
    await store.enqueue([asked])
    worker = await hire(store)
    (one,) = await claim(store, worker, task_types=["Ünlike others"])

    assert (one.task_type, one.queue, json.loads(one.params)) == (
        "Ünlike others",
        "q",
        {"n": [1, 2]},
    )
    assert (one.max_attempts, one.timeout, one.keep_for) == (7, 1.5, 2.5)
    assert one.backoff == backoff
    assert (one.attempt, one.lost) == (1, 0)


async def test_what_was_not_asked_is_left_to_the_code(store: Store) -> None:
    """A claim has None for what the enqueue did not override."""
    await add(store)
    one = await claim_one(store, await hire(store))

    assert (one.max_attempts, one.backoff, one.timeout, one.keep_for) == (None,) * 4


async def test_numbers_of_any_kind(store: Store) -> None:
    """Whole numbers will do as seconds, beside fractions, none and infinity."""
    timeouts = [1, 2.5, None, math.inf]
    await store.enqueue(
        [
            a_task(timeout=timeout, keep_for=keep_for, run_after=run_after)
            for timeout, keep_for, run_after in zip(
                timeouts, [0, 0.5, None, DAY], [0, -0.5, 0.0, -1], strict=True
            )
        ]
    )
    claims = await claim(store, await hire(store))

    assert [one.timeout for one in claims] == timeouts
    assert [one.keep_for for one in claims] == [0, 0.5, None, DAY]


@pytest.mark.parametrize("value", SHAPES, ids=repr)
async def test_params_of_every_shape(store: Store, value: Any) -> None:
    """Params come out as they went in."""
    await add(store, params=json.dumps({"value": value}))
    one = await claim_one(store, await hire(store))

    assert json.loads(one.params) == {"value": value}


async def test_instants(store: Store, virtual_time: VirtualTime) -> None:
    """A task remembers when it was stored and when it is due, to the microsecond."""
    at = dt.datetime(2091, 5, 6, 7, 8, 9, 10, tzinfo=dt.timezone(dt.timedelta(hours=3)))
    later, fixed = await add(store, run_after=90), await add(store, run_at=at, run_after=5)
    now = (await status(store, later)).created_at
    found = await status(store, fixed)

    assert now.tzinfo is not None
    assert (await status(store, later)).run_at - now == dt.timedelta(seconds=90)
    assert (found.created_at, found.run_at) == (now, at)


async def test_an_instant_in_the_past_is_now(store: Store, virtual_time: VirtualTime) -> None:
    """A task due before it was stored is ready at once."""
    past = dt.datetime(1999, 12, 31, tzinfo=dt.UTC)

    assert await state(store, await add(store, run_at=past)) is State.READY
    assert await state(store, await add(store, run_after=0)) is State.READY


async def test_a_new_task_has_done_nothing(store: Store) -> None:
    """Before its first attempt a task has neither worker, result, error nor log."""
    task_id = await add(store, queue="q", priority=-3)
    found = await status(store, task_id)

    assert (found.attempt, found.lost, found.queue, found.priority) == (0, 0, "q", -3)
    assert (found.started_at, found.finished_at, found.worker_id) == (None, None, None)
    assert (found.result, found.error, found.cancel_requested) == (None, None, False)
    assert await store.attempts(task_id) == []


async def test_a_reference_is_a_value(store: Store) -> None:
    """What enqueue answers can be kept, compared and sent elsewhere."""
    (ref,) = await store.enqueue([a_task()])

    assert ref == TaskRef(ref.id, created=True)


@pytest.mark.parametrize("name", ["task_type", "queue", "dedup_key"])
@pytest.mark.parametrize("character", ["x", "\N{HATCHING CHICK}"])
async def test_names_have_at_most_255_characters(store: Store, name: str, character: str) -> None:
    """One more is refused when the task is stored, not when it is claimed or put aside."""
    await add(store, **{name: character * 255})
    with refusal():
        await add(store, **{name: character * 256})

    assert await count(store) == 1


@pytest.mark.parametrize("name", ["task_type", "queue"])
async def test_so_have_names_of_what_is_stored_at_the_end(store: Store, name: str) -> None:
    """The task that is to tell how this one ended can be stored: that is seen to now."""
    asked = {"task_type": "tell"}
    await add(store, on_complete=json.dumps({**asked, name: "x" * 255}))
    for wrong in ("x" * 256,):
        with refusal():
            await add(store, on_complete=json.dumps({**asked, name: wrong}))

    assert await count(store) == 1
