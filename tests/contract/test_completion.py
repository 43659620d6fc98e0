"""Who asked for it is told how a task ended: exactly once for each end, together with it."""

from __future__ import annotations

import json

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._errors import StaleClaim, TransientError
from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._model import Claim, NewTask, Refusal, Settlement
from nursery_queue._core._retry import RetryPolicy
from nursery_queue._core._states import Event, State
from nursery_queue._store import Bell, Store
from nursery_queue.testing import VirtualTime
from tests.contract.test_enqueue import SHAPES
from tests.support.listening import Step, listening
from tests.support.store_steps import (
    DAY,
    ERROR,
    WAYS,
    Known,
    a_task,
    add,
    claim,
    claim_one,
    claimed_once,
    count,
    ends,
    hire,
    settle,
    state,
)


DONE = "done"
ASKED = json.dumps({"task_type": DONE, "queue": "default", "priority": 0})
CONTEXT = {"order": [5, None]}
TELL: dict[str, Any] = {"on_complete": ASKED, "context": json.dumps(CONTEXT)}

FAILED = {"status": "failed", "error": "ValueError: no good", "error_type": "ValueError"}
# How each way to end is told.
ENDINGS: dict[Event, tuple[dict[str, Any], dict[str, Any]]] = {
    Event.SUCCEED: ({"result": '{"a": [1]}'}, {"status": "succeeded", "value": {"a": [1]}}),
    Event.FAIL: ({"error": ERROR}, FAILED),
    Event.CANCEL: ({}, {"status": "cancelled", "reason": "cancelled while running"}),
}
WAITING = {"status": "cancelled", "reason": "cancelled while waiting"}


def tells(which: Claim | Known, event: Event, **changes: Any) -> Settlement:
    """Return a settlement of a task somebody asked to be told of."""
    usual = ENDINGS[event][0] if event in ENDINGS else {}
    return ends(which.fence, event, on_complete=True, **{**usual, **changes})


def about(task_id: int, ending: dict[str, Any], context: Any = CONTEXT) -> dict[str, Any]:
    return {"task_id": task_id, "context": context, "result": ending}


async def completions(store: Store) -> int:
    """Count the tasks that tell of an end, whatever has become of them."""
    return len(await store.list_tasks(TaskFilter(task_type=DONE)))


async def told(store: Store) -> list[dict[str, Any]]:
    """Run all tasks that tell of an end, and return what each says; there are no others."""
    claims = await claim(store, await hire(store, task_types=[DONE]), task_types=[DONE])
    assert await store.settle([ends(one, Event.SUCCEED, keep_for=0) for one in claims]) == {}
    assert await completions(store) == 0
    params = [json.loads(one.params) for one in claims]
    assert [one.completes for one in claims] == [each["task_id"] for each in params]
    return params


# -- every way to end ----------------------------------------------------------------------


@pytest.mark.parametrize("keep_for", [DAY, 0])
@pytest.mark.parametrize("event", ENDINGS)
async def test_a_task_that_has_run(store: Store, event: Event, keep_for: float) -> None:
    """When a claim is settled for good there is one task that says how, kept or not."""
    task = await claimed_once(store, **TELL)

    assert await store.settle([tells(task, event, keep_for=keep_for)]) == {}
    assert await completions(store) == 1
    assert await told(store) == [about(task.id, ENDINGS[event][1])]
    assert await count(store) == (0 if keep_for == 0 else 1)


@pytest.mark.parametrize("event", [Event.RETRY, Event.SNOOZE, Event.INTERRUPT, Event.LOSE])
async def test_a_task_that_goes_round_again(
    store: Store, virtual_time: VirtualTime, event: Event
) -> None:
    """As long as a task may be run again nothing is told; when it ends it is, once."""
    task = await claimed_once(store, **TELL)
    assert await store.settle([tells(task, event)]) == {}

    assert await completions(store) == 0

    virtual_time.advance(60)
    await store.promote()
    again = await claim_one(store, task.worker)
    assert await store.settle([tells(again, Event.FAIL)]) == {}

    assert await told(store) == [about(task.id, FAILED)]


async def waiting(store: Store, **changes: Any) -> int:
    return await add(store, **changes)


async def scheduled(store: Store, **changes: Any) -> int:
    return await add(store, run_after=60, **changes)


async def between_retries(store: Store, **changes: Any) -> int:
    task = await claimed_once(store, **changes)
    assert await store.settle([tells(task, Event.RETRY)]) == {}
    return task.id


async def of_an_unknown_type(store: Store, **changes: Any) -> int:
    task_id = await add(store, task_type="nobody", **changes)
    await store.park()
    return task_id


@pytest.mark.parametrize("keep_for", [None, 0])
@pytest.mark.parametrize("place", [waiting, scheduled, between_retries, of_an_unknown_type])
async def test_a_task_cancelled_while_it_waits(
    store: Store, place: Callable[..., Awaitable[int]], keep_for: float | None
) -> None:
    """A task that will never start tells so at once, wherever it waited; twice is once."""
    task_id = await place(store, keep_for=keep_for, **TELL)

    assert await store.cancel(task_id)
    assert not await store.cancel(task_id)
    assert await told(store) == [about(task_id, WAITING)]


async def test_many_cancel_at_once(store: Store) -> None:
    """Of all who cancel a task one succeeds, and it is told once."""
    task_id, answers = await add(store, **TELL), list[bool]()

    async def cancel() -> None:
        answers.append(await store.cancel(task_id))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(cancel)

    assert sorted(answers) == [False] * 7 + [True]
    assert await told(store) == [about(task_id, WAITING)]


@pytest.mark.parametrize("running", [True, False])
async def test_a_task_cancelled_while_it_runs(store: Store, running: bool) -> None:
    """Asking a running task to end tells nothing; what becomes of it does, once."""
    task = await claimed_once(store, **TELL)
    await store.cancel(task.id, running=running)

    assert await completions(store) == 0
    assert await store.settle([tells(task, Event.RETRY)]) == {task.fence: Refusal.CANCEL_REQUESTED}
    assert await completions(store) == 0
    assert await store.settle([tells(task, Event.CANCEL)]) == {}
    assert await told(store) == [about(task.id, ENDINGS[Event.CANCEL][1])]


async def test_a_task_that_is_lost(store: Store) -> None:
    """A task whose worker died is told of when its losses are used up, and not before."""
    task = await claimed_once(store, **TELL)
    await store.deregister(task.worker)
    await store.sweep(max_lost=2)

    assert await state(store, task.id) is State.READY
    assert await completions(store) == 0

    worker = await hire(store)
    await claim_one(store, worker)
    await store.deregister(worker)
    await store.sweep(max_lost=2)
    (one,) = await told(store)

    assert await state(store, task.id) is State.FAILED
    assert one["result"]["error_type"] == "worker_lost"
    assert one["result"]["error"].startswith(f"worker_lost: worker {worker} went away")
    assert (one["task_id"], one["context"]) == (task.id, CONTEXT)


@pytest.mark.parametrize("how", ["swept", "given back"])
async def test_a_task_to_be_cancelled_that_nobody_runs(store: Store, how: str) -> None:
    """A task that must not go round again ends where its claim is found, and is told of."""
    task = await claimed_once(store, **TELL)
    await store.cancel(task.id)
    if how == "swept":
        await store.deregister(task.worker)
        assert await store.sweep(max_lost=9) == 1
    else:
        assert await store.give_back_all_but(task.worker, set()) == 1

    assert await state(store, task.id) is State.CANCELLED
    assert await told(store) == [about(task.id, ENDINGS[Event.CANCEL][1])]


@pytest.mark.parametrize("goal", [State.FAILED, State.CANCELLED])
async def test_a_task_that_ends_again(store: Store, goal: State) -> None:
    """A task that is retried after its end tells of its next end, too."""
    task = await claimed_once(store, **TELL)
    assert await store.settle([tells(task, WAYS[goal])]) == {}
    first = await told(store)
    assert await store.retry(task.id)

    assert await completions(store) == 0

    again = await claim_one(store, task.worker)
    assert await store.settle([tells(again, Event.SUCCEED)]) == {}

    assert first == [about(task.id, ENDINGS[WAYS[goal]][1])]
    assert await told(store) == [about(task.id, ENDINGS[Event.SUCCEED][1])]


async def test_an_end_is_not_told_again(store: Store, virtual_time: VirtualTime) -> None:
    """Neither a second cancel nor the end of its keeping tells anything of a finished task."""
    task = await claimed_once(store, **TELL)
    await store.settle([tells(task, Event.FAIL)])
    assert len(await told(store)) == 1

    assert not await store.cancel(task.id)
    virtual_time.advance(DAY)
    assert await store.prune() == 1

    assert await count(store) == 0


# -- what tells nothing --------------------------------------------------------------------


@pytest.mark.parametrize("event", ENDINGS)
async def test_nobody_asked(store: Store, event: Event) -> None:
    """A task that nobody asked to be told of ends quietly, however it ends."""
    ran, waits = await claimed_once(store), await add(store)

    assert await store.settle([tells(ran, event)]) == {}
    assert await store.cancel(waits)
    assert await count(store) == 2


async def test_a_stale_claim(store: Store) -> None:
    """Who does not hold the task any more ends nothing, and tells nothing."""
    task = await claimed_once(store, **TELL)
    await settle(store, task.fence, Event.INTERRUPT)
    again = await claim_one(store, task.worker)

    assert await store.settle([tells(task, Event.SUCCEED)]) == {task.fence: Refusal.STALE}
    assert await completions(store) == 0
    assert await store.settle([tells(again, Event.FAIL)]) == {}
    assert await told(store) == [about(task.id, FAILED)]


@pytest.mark.parametrize("keep_for", [DAY, 0])
async def test_an_answer_that_was_lost(store: Store, keep_for: float) -> None:
    """A settlement that is sent again because nobody heard the answer tells nothing more."""
    task = await claimed_once(store, **TELL)
    once = tells(task, Event.SUCCEED, keep_for=keep_for)
    await store.settle([once])

    assert await store.settle([once]) == {task.fence: Refusal.STALE}
    assert await told(store) == [about(task.id, ENDINGS[Event.SUCCEED][1])]


async def test_a_task_enqueued_by_hand(store: Store) -> None:
    """A task of the same type that is enqueued like any other completes nothing."""
    await add(store, task_type=DONE, params='{"task_id": 1, "context": 2, "result": 3}')
    worker = await hire(store, task_types=[DONE])
    (one,) = await claim(store, worker, task_types=[DONE])

    assert (one.completes, one.on_complete) == (None, False)


# -- batches and transactions --------------------------------------------------------------


async def test_a_batch(store: Store) -> None:
    """In one batch exactly those are told of that have ended and that somebody asked about."""
    tasks = [a_task(**(TELL if i % 2 else {})) for i in range(24)]
    await store.enqueue(tasks)
    claims = await claim(store, await hire(store))
    events = [*ENDINGS, Event.RETRY, Event.INTERRUPT, Event.SNOOZE]
    batch = [
        attrs.evolve(tells(one, events[i // 2 % 6]), on_complete=one.on_complete)
        for i, one in enumerate(claims)
    ]
    stale = ends(attrs.evolve(claims[1].fence, epoch=99), Event.SUCCEED, on_complete=True)
    expected = [
        about(one.fence.task_id, ENDINGS[events[i // 2 % 6]][1])
        for i, one in enumerate(claims)
        if i % 2 and events[i // 2 % 6] in ENDINGS
    ]

    assert [one.on_complete for one in claims] == [bool(i % 2) for i in range(24)]
    assert await store.settle([stale, *batch[::-1]]) == {stale.fence: Refusal.STALE}
    assert sorted(await told(store), key=lambda each: int(each["task_id"])) == expected
    assert len(expected) == 6


async def test_many_that_are_cancelled(store: Store) -> None:
    """Of those that are cancelled in one go each is told of that waited and was asked about."""
    running = await claimed_once(store, **TELL)
    refs = await store.enqueue([a_task(**(TELL if i % 2 else {})) for i in range(10)])
    upto = refs[-1].id
    await store.cancel_some(CancelFilter(), after=0, upto=upto, dry_run=True)

    assert await completions(store) == 0

    for _ in range(2):
        await store.cancel_some(CancelFilter(), after=0, upto=upto, dry_run=False)
    one = await told(store)
    await store.settle([tells(running, Event.CANCEL)])

    assert one == [about(ref.id, WAITING) for ref in refs[1::2]]
    assert await told(store) == [about(running.id, ENDINGS[Event.CANCEL][1])]


async def test_a_large_batch(store: Store) -> None:
    """Of a thousand tasks settled at once each is told of once."""
    await store.enqueue([a_task(**TELL) for _ in range(1000)])
    claims = await claim(store, await hire(store), 1000)
    assert await store.settle([tells(one, Event.SUCCEED) for one in claims]) == {}
    worker = await hire(store, task_types=[DONE])
    found = await claim(store, worker, 1001, task_types=[DONE])

    assert [one.completes for one in found] == [one.fence.task_id for one in claims]


async def test_a_settlement_that_commits(store: Store) -> None:
    """With a settlement in a transaction it is told at the commit, not before."""
    task = await claimed_once(store, **TELL)
    async with store.transaction() as tx:
        await tx.settle(tells(task, Event.SUCCEED))

        assert await completions(store) == 0

    assert await told(store) == [about(task.id, ENDINGS[Event.SUCCEED][1])]


class Oops(Exception):
    pass


async def test_what_is_rolled_back(store: Store) -> None:
    """What did not happen is not told; what happens in its place is."""
    ran, waits = await claimed_once(store, **TELL), await add(store, **TELL)
    with pytest.raises(Oops):
        async with store.transaction() as tx:
            await tx.cancel(waits)
            await tx.settle(tells(ran, Event.SUCCEED))
            raise Oops

    assert await completions(store) == 0

    async with store.transaction() as tx:
        await tx.cancel(waits)
    await store.settle([tells(ran, Event.FAIL)])

    assert await told(store) == [about(waits, WAITING), about(ran.id, FAILED)]


async def test_a_savepoint_that_is_rolled_back(store: Store) -> None:
    """Of a block that failed nothing is told, of the rest of the transaction it is."""
    first, second = await add(store, **TELL), await add(store, **TELL)
    async with store.transaction() as tx:
        await tx.cancel(first)
        with pytest.raises(Oops):
            async with tx.savepoint():
                await tx.cancel(second)
                raise Oops

    assert await told(store) == [about(first, WAITING)]


@pytest.mark.parametrize("refused", [StaleClaim, TransientError])
async def test_a_settlement_that_is_refused(store: Store, refused: type[Exception]) -> None:
    """A settlement that a transaction refuses tells nothing, even if the rest is committed."""
    task = await claimed_once(store, **TELL)
    if refused is StaleClaim:
        await settle(store, task.fence, Event.INTERRUPT)
    else:
        await store.cancel(task.id, running=False)
    event = Event.SUCCEED if refused is StaleClaim else Event.RETRY
    async with store.transaction() as tx:
        with pytest.raises(refused):
            await tx.settle(tells(task, event))

    assert await completions(store) == 0


async def test_a_task_of_the_same_transaction(store: Store) -> None:
    """A task that is enqueued and cancelled in one transaction tells of its short life."""
    async with store.transaction() as tx:
        (ref,) = await tx.enqueue([a_task(**TELL)])
        assert await tx.cancel(ref.id)

    assert await told(store) == [about(ref.id, WAITING)]


# -- what is stored ------------------------------------------------------------------------


async def done(task_id: int, context: Any, result: nq.Result) -> None: ...


async def work() -> None: ...


def new_task(on_complete: Any, **options: Any) -> NewTask:
    return (
        nq.App()
        .task(name="work")(work)
        .options(on_complete=on_complete, **options)
        .bind()
        .to_new_task()
    )


async def ended(store: Store, task: NewTask) -> int:
    """Run a task to its end."""
    (ref,) = await store.enqueue([task])
    one = await claim_one(store, await hire(store))
    assert (one.fence.task_id, one.on_complete) == (ref.id, True)
    assert await store.settle([tells(one, Event.SUCCEED)]) == {}
    return ref.id


async def test_it_is_as_was_said(store: Store, virtual_time: VirtualTime) -> None:
    """The task that tells has the queue, the priority and the policy it was asked for with."""
    policy = RetryPolicy(max_attempts=7, initial=2, maximum=9, factor=3, jitter=0.25)
    other = nq.App().task(name=DONE, queue="elsewhere", priority=4)(done)
    other = other.options(retry=policy, timeout=None, keep_for=5, run_after=60, max_attempts=3)
    task_id = await ended(store, new_task(other))
    (found,) = await store.list_tasks(TaskFilter(task_type=DONE))

    assert (found.state, found.queue, found.priority) == (State.SCHEDULED, "elsewhere", 4)
    assert (found.run_at - found.created_at).total_seconds() == 60

    virtual_time.advance(60)
    await store.promote()
    (one,) = await claim(store, await hire(store, task_types=[DONE]), task_types=[DONE])

    assert (one.max_attempts, one.timeout, one.keep_for) == (3, float("inf"), 5.0)
    assert one.backoff == attrs.evolve(policy, max_attempts=RetryPolicy().max_attempts)
    assert (one.completes, one.on_complete, one.attempt) == (task_id, False, 1)


@pytest.mark.parametrize("asked", ["done", nq.App().task(name=DONE)(done)], ids=["name", "type"])
async def test_what_was_not_said_is_as_the_code_has_it(store: Store, asked: Any) -> None:
    """Without options, the one that tells leaves its policy to the code, like any other task."""
    await ended(store, new_task(asked))
    (one,) = await claim(store, await hire(store, task_types=[DONE]), task_types=[DONE])

    assert (one.queue, one.max_attempts, one.backoff) == ("default", None, None)
    assert (one.timeout, one.keep_for) == (None, None)
    assert json.loads(one.params)["context"] is None


async def test_a_chain(store: Store) -> None:
    """One that tells is told of itself when it has ended, to the third, each with its context."""
    app = nq.App()
    third = app.task(name="third", priority=3)(done)
    second = app.task(name="second", on_complete=third)(done).options(context={"n": 2}, timeout=5)
    first = await ended(store, new_task(second, context={"n": 1}))
    worker = await hire(store)
    (two,) = await claim(store, worker, task_types=["second", "third"])
    assert await store.settle([tells(two, Event.FAIL)]) == {}
    (three,) = await claim(store, worker, task_types=["second", "third"])
    assert await store.settle([tells(three, Event.SUCCEED)]) == {}

    assert [one.task_type for one in (two, three)] == ["second", "third"]
    assert [one.completes for one in (two, three)] == [first, two.fence.task_id]
    assert [one.on_complete for one in (two, three)] == [True, False]
    assert json.loads(two.params) == about(first, ENDINGS[Event.SUCCEED][1], {"n": 1})
    assert json.loads(three.params) == about(two.fence.task_id, FAILED, {"n": 2})
    assert two.timeout == 5
    assert await count(store) == 3


async def test_a_chain_that_is_cancelled(store: Store) -> None:
    """If nobody runs the one that tells, and it is cancelled, the next one tells of that."""
    app = nq.App()
    second = app.task(name="second", on_complete=app.task(name=DONE)(done))(done)
    await ended(store, new_task(second))
    (waits,) = await store.list_tasks(TaskFilter(task_type="second"))
    await store.cancel(waits.id)

    assert await told(store) == [about(waits.id, WAITING, None)]


@pytest.mark.parametrize("value", SHAPES, ids=repr)
async def test_contexts_and_results_of_every_shape(store: Store, value: Any) -> None:
    """What is told of a task arrives as it was given, and as what it was."""
    text = json.dumps(value)
    task = await claimed_once(store, on_complete=ASKED, context=text)
    await store.settle([tells(task, Event.SUCCEED, result=text)])
    (one,) = await told(store)

    assert one == about(task.id, {"status": "succeeded", "value": value}, value)
    assert type(one["context"]) is type(one["result"]["value"]) is type(value)


async def test_a_large_context(store: Store) -> None:
    """A context and a result of a megabyte each are told whole."""
    text = json.dumps("é" * 500_000)
    task = await claimed_once(store, on_complete=ASKED, context=text)
    await store.settle([tells(task, Event.SUCCEED, result=text)])
    (one,) = await told(store)

    assert one["context"] == one["result"]["value"] == json.loads(text)


async def test_a_key_does_not_go_with_it(store: Store) -> None:
    """The key of the task that has ended is free, and the one that tells has none."""
    task = await claimed_once(store, dedup_key="k", **TELL)
    await store.settle([tells(task, Event.SUCCEED)])
    (again,) = await store.enqueue([a_task(dedup_key="k", **TELL)])
    await store.cancel(again.id)

    assert again.created
    assert [each["task_id"] for each in await told(store)] == [task.id, again.id]


@pytest.mark.parametrize("how", ["plain", "with a key", "copy", "transaction"])
async def test_however_it_was_stored(store: Store, how: str) -> None:
    """What a batch asks to be told is stored, whichever way the batch is."""
    batch = [a_task(**TELL), a_task(dedup_key="k") if how == "with a key" else a_task()]
    if how == "transaction":
        async with store.transaction() as tx:
            refs = await tx.enqueue(batch)
    else:
        refs = await store.enqueue(batch, copy=how == "copy")
    for ref in refs:
        await store.cancel(ref.id)

    assert await told(store) == [about(refs[0].id, WAITING)]


# -- who is woken --------------------------------------------------------------------------


async def cancelled(store: Store) -> Step:
    task_id = await add(store, **TELL)
    return lambda: store.cancel(task_id)


async def settled(store: Store) -> Step:
    task = await claimed_once(store, **TELL)
    return lambda: store.settle([tells(task, Event.SUCCEED)])


async def committed(store: Store) -> Step:
    task = await claimed_once(store, **TELL)

    async def step() -> None:
        async with store.transaction() as tx:
            await tx.settle(tells(task, Event.SUCCEED))

    return step


async def swept(store: Store) -> Step:
    task = await claimed_once(store, **TELL)
    await store.deregister(task.worker)
    return lambda: store.sweep(max_lost=1)


@pytest.mark.parametrize("prepared", [cancelled, settled, committed, swept])
async def test_it_is_work(store: Store, prepared: Callable[[Store], Awaitable[Step]]) -> None:
    """Whoever waits for work hears of a task that tells of an end, like of any other."""
    step = await prepared(store)
    async with listening(store, [Bell.WORK]) as ear:
        before = ear.heard[Bell.WORK]
        await step()
        await ear.hears(Bell.WORK, after=before)
