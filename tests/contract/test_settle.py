from __future__ import annotations

import datetime as dt
import json

from typing import Any

import attrs
import pytest
import trio

from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import ErrorRecord, Fence, Outcome, Refusal
from nursery_queue._core._states import FINAL, TRANSITIONS, Event, State, transition
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.contract.test_enqueue import SHAPES
from tests.support.store_steps import (
    ERROR,
    LEASE,
    OUTCOMES,
    WAYS,
    a_task,
    add,
    brought_to,
    claim,
    claim_one,
    claimed_once,
    count,
    ends,
    hire,
    refusal,
    settle,
    state,
    status,
)


AGAIN = [e for e in TRANSITIONS[State.RUNNING] if transition(State.RUNNING, e) not in FINAL]
LAST = [e for e in TRANSITIONS[State.RUNNING] if transition(State.RUNNING, e) in FINAL]


async def test_nothing_to_settle(store: Store) -> None:
    """An empty batch is refused nothing."""
    assert await store.settle([]) == {}


@pytest.mark.parametrize("before", WAYS)
async def test_a_claim_is_settled_once(store: Store, before: State) -> None:
    """A second settlement of a claim is stale, whatever the first one was."""
    task = await brought_to(store, before)
    late = ends(task.fence, Event.SUCCEED, result='"late"')

    assert await store.settle([late]) == {task.fence: Refusal.STALE}
    assert (await status(store, task.id)).result is None
    assert len(await store.attempts(task.id)) == 1


async def test_a_refunded_attempt_does_not_revive_the_old_claim(store: Store) -> None:
    """The same attempt number again is another claim: the late one cannot write for it."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.INTERRUPT, attempt=0)
    new = await claim_one(store, task.worker)
    late = ends(task.fence, Event.SUCCEED)

    assert new.attempt == 1
    assert await store.settle([late]) == {task.fence: Refusal.STALE}
    assert await state(store, task.id) is State.RUNNING

    await settle(store, new, Event.SUCCEED)


async def test_stale_and_valid_in_one_batch(store: Store) -> None:
    """Each settlement is judged by itself, also two for one task; the refused are named."""
    old = await claimed_once(store)
    await settle(store, old.fence, Event.INTERRUPT)
    new = await claim_one(store, old.worker)
    good = await claimed_once(store)
    unknown = Fence(10**12, 1)
    future = Fence(good.id, good.fence.epoch + 1)
    fences = [old.fence, unknown, new.fence, future, good.fence]
    refused = await store.settle([ends(fence, Event.SUCCEED) for fence in fences])

    assert refused == dict.fromkeys([old.fence, unknown, future], Refusal.STALE)
    assert await state(store, old.id) is State.SUCCEEDED
    assert await state(store, good.id) is State.SUCCEEDED
    assert len(await store.attempts(old.id)) == 2


async def test_a_large_batch(store: Store) -> None:
    """A batch is settled whole, each task its own way."""
    await store.enqueue([a_task() for _ in range(600)])
    claims = await claim(store, await hire(store), 600)
    events = [Event.SUCCEED, Event.FAIL, Event.RETRY, Event.INTERRUPT]

    assert await store.settle([ends(c, events[i % 4]) for i, c in enumerate(claims)]) == {}
    for event in events:
        assert await count(store, transition(State.RUNNING, event)) == 150


@pytest.mark.parametrize(
    "bad",
    [
        {"result": "{"},
        {"result": r'"\u0000"'},
        {"error": attrs.evolve(ERROR, details="no JSON")},
    ],
    ids=str,
)
async def test_one_bad_row(store: Store, bad: dict[str, Any]) -> None:
    """If one outcome cannot be stored none is, and the others can be settled without it."""
    await store.enqueue([a_task() for _ in range(3)])
    claims = await claim(store, await hire(store))
    batch = [ends(one, Event.SUCCEED) for one in claims]
    with refusal():
        await store.settle([batch[0], attrs.evolve(batch[1], **bad), batch[2]])

    assert await count(store, State.RUNNING) == 3
    assert await store.settle([batch[0], batch[2]]) == {}
    assert await count(store, State.RUNNING) == 1


@pytest.mark.parametrize("value", SHAPES, ids=repr)
async def test_results_and_details_of_every_shape(store: Store, value: Any) -> None:
    """A result, and the details of an error, come out as they went in."""
    good, bad = await claimed_once(store), await claimed_once(store)
    text = json.dumps(value)
    await settle(store, good.fence, Event.SUCCEED, result=text)
    await settle(store, bad.fence, Event.FAIL, error=attrs.evolve(ERROR, details=text))
    ((attempt,), result) = (await store.attempts(bad.id), (await status(store, good.id)).result)

    assert (result, type(result)) == (value, type(value))
    assert attempt.error_details == value


@pytest.mark.parametrize("event", LAST)
async def test_the_end(store: Store, virtual_time: VirtualTime, event: Event) -> None:
    """A task that has ended says how, when, after how many attempts, and who ran it."""
    task = await claimed_once(store)
    virtual_time.advance(2)
    await settle(store, task.fence, event, attempt=4, lost=2, error=ERROR)
    found = await status(store, task.id)

    assert (found.state, found.attempt, found.lost) == (
        transition(State.RUNNING, event),
        4,
        2,
    )
    assert found.finished_at == found.created_at + dt.timedelta(seconds=2)
    assert found.started_at == found.created_at
    assert found.worker_id == task.worker
    assert found.error == "ValueError: no good"


@pytest.mark.parametrize("event", AGAIN)
async def test_round_again(store: Store, virtual_time: VirtualTime, event: Event) -> None:
    """A task that goes round again keeps its counts, and is due when the settlement says."""
    task = await claimed_once(store)
    virtual_time.advance(2)
    await settle(store, task.fence, event, attempt=4, lost=2, delay=5, error=ERROR)
    found = await status(store, task.id)
    scheduled = found.state is State.SCHEDULED

    assert (found.attempt, found.lost, found.error) == (4, 2, None)
    assert (found.started_at, found.finished_at, found.worker_id) == (None, None, None)
    assert found.run_at == found.created_at + dt.timedelta(seconds=7 if scheduled else 0)

    virtual_time.advance(5)

    assert await store.promote() == scheduled

    await store.heartbeat(task.worker, draining=False)
    one = await claim_one(store, task.worker)

    assert (one.attempt, one.lost) == (5, 2)


@pytest.mark.parametrize("event", AGAIN)
async def test_a_task_to_be_cancelled_does_not_go_round_again(store: Store, event: Event) -> None:
    """Once a cancel was asked for, only an end is accepted."""
    task = await claimed_once(store)
    await store.cancel(task.id)
    other = await claimed_once(store)
    refused = await store.settle([ends(task.fence, event), ends(other.fence, event)])

    assert refused == {task.fence: Refusal.CANCEL_REQUESTED}
    assert await state(store, task.id) is State.RUNNING
    assert await state(store, other.id) is not State.RUNNING

    await settle(store, task.fence, Event.CANCEL)

    assert await state(store, task.id) is State.CANCELLED


@pytest.mark.parametrize("event", LAST)
async def test_a_task_to_be_cancelled_may_end_otherwise(store: Store, event: Event) -> None:
    """A handler that came to its end before the cancel reached it has come to its end."""
    task = await claimed_once(store)
    await store.cancel(task.id)
    await settle(store, task.fence, event)

    assert await state(store, task.id) is transition(State.RUNNING, event)


async def test_the_same_twice_in_a_batch(store: Store) -> None:
    """A settlement that is there twice is applied, once."""
    task = await claimed_once(store)
    ended = ends(task.fence, Event.SUCCEED)

    assert await store.settle([ended, ended]) == {}
    assert len(await store.attempts(task.id)) == 1


async def test_the_order_of_those_that_tell(store: Store) -> None:
    """Tasks that tell how others have ended are stored in the order of these, not of the batch."""
    claims = [await claimed_once(store, on_complete='{"task_type": "tell"}') for _ in range(3)]
    batch = [ends(one.fence, Event.SUCCEED, on_complete=True) for one in reversed(claims)]

    assert await store.settle(batch) == {}

    newest = await store.list_tasks(TaskFilter(limit=3))

    assert [one.completes for one in reversed(newest)] == [one.id for one in claims]


async def test_two_at_the_same_time(store: Store) -> None:
    """Of two who settle one claim at the same moment, one is told that it was too late."""
    for _ in range(20):
        task = await claimed_once(store)
        answers: list[dict[Fence, Refusal]] = []

        async def finish(fence: Fence, answers: list[dict[Fence, Refusal]]) -> None:
            answers.append(await store.settle([ends(fence, Event.SUCCEED)]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(finish, task.fence, answers)
            nursery.start_soon(finish, task.fence, answers)

        assert sorted(map(len, answers)) == [0, 1]
        assert len(await store.attempts(task.id)) == 1


async def test_texts_are_kept_as_they_are(store: Store) -> None:
    """Long, foreign and odd texts of errors come back unchanged."""
    text = "é😀%s{}\\\n\t'\"" * 500
    task = await claimed_once(store)
    error = ErrorRecord(type=text, message=text, traceback=text)
    await settle(store, task.fence, Event.FAIL, error=error)
    (attempt,) = await store.attempts(task.id)

    assert (attempt.error_type, attempt.error_message, attempt.error_traceback) == (text,) * 3
    assert (await status(store, task.id)).error == f"{text}: {text}"


async def test_settling_touches_no_other_task(store: Store) -> None:
    """Tasks beside the settled one stay where they are."""
    waiting, running = await add(store), await claimed_once(store, priority=1)
    other = await claimed_once(store, priority=1)
    await settle(store, running.fence, Event.SUCCEED, keep_for=0)

    assert await state(store, waiting) is State.READY
    assert await state(store, other.id) is State.RUNNING


# -- how claims were closed ------------------------------------------------------------------


@pytest.mark.parametrize("event", TRANSITIONS[State.RUNNING])
async def test_a_closed_claim_is_known_by_its_outcome(store: Store, event: Event) -> None:
    """Whoever got no answer to a settlement can ask what is stored, for this very claim."""
    task = await claimed_once(store)
    assert await store.outcomes([task.fence]) == {}

    await settle(store, task.fence, event)
    other = Fence(task.id, task.fence.epoch + 1)

    assert await store.outcomes([task.fence, other]) == {task.fence: OUTCOMES[event]}


async def test_a_claim_of_a_task_that_is_gone(store: Store) -> None:
    """A task that was not kept, or that never was, is told apart from one that is there."""
    gone, given_back = await claimed_once(store), await claimed_once(store)
    await settle(store, gone.fence, Event.SUCCEED, keep_for=0)
    await settle(store, given_back.fence, Event.INTERRUPT, outcome=None)
    never = Fence(10**12, 1)

    found = await store.outcomes([gone.fence, given_back.fence, never])

    assert found == {gone.fence: None, never: None}
    assert await store.outcomes([]) == {}


async def test_a_claim_that_was_swept(store: Store, virtual_time: VirtualTime) -> None:
    """A sweep closes the claim of a dead worker as lost, and the next claim is another."""
    task = await claimed_once(store)
    virtual_time.advance(LEASE + 1)
    await store.sweep(max_lost=3)
    new = await claim_one(store, await hire(store))
    await settle(store, new, Event.SUCCEED)

    assert await store.outcomes([task.fence, new.fence]) == {
        task.fence: Outcome.LOST,
        new.fence: Outcome.SUCCEEDED,
    }


async def test_nothing_is_closed_before_the_commit(store: Store) -> None:
    """A settlement in a transaction counts when it is committed, and never if it is not."""
    kept, dropped = await claimed_once(store), await claimed_once(store)
    async with store.transaction() as tx:
        await tx.settle(ends(kept.fence, Event.SUCCEED))
        assert await store.outcomes([kept.fence]) == {}
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as tx:
            await tx.settle(ends(dropped.fence, Event.SUCCEED))
            raise ZeroDivisionError

    assert await store.outcomes([kept.fence, dropped.fence]) == {kept.fence: Outcome.SUCCEEDED}


async def test_two_claims_of_one_task(store: Store) -> None:
    """Of two successes of one task in one call, the one whose claim is held counts."""
    await store.enqueue([a_task()])
    worker = await hire(store)
    first = await claim_one(store, worker)
    await settle(store, first.fence, Event.INTERRUPT)
    second = await claim_one(store, worker)
    batch = [
        ends(each, Event.SUCCEED, result=str(each.epoch)) for each in (first.fence, second.fence)
    ]

    assert await store.settle(batch) == {first.fence: Refusal.STALE}
    assert (await status(store, second.fence.task_id)).result == second.fence.epoch
