"""The attempt log."""

from __future__ import annotations

import datetime as dt

import pytest

from nursery_queue._core._model import ErrorRecord, Outcome
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import (
    ERROR,
    OUTCOMES,
    add,
    claim_one,
    claimed_once,
    hire,
    settle,
    state,
    status,
)


def error(message: str) -> ErrorRecord:
    return ErrorRecord(type="ValueError", message=message)


async def test_every_attempt_has_its_own_entry(store: Store, virtual_time: VirtualTime) -> None:
    """Fail "A", fail "B", succeed: three entries, and the first two stay what they were."""
    task_id, began = await add(store), virtual_time.now()
    workers = [await hire(store, lease=1000) for _ in range(3)]
    for worker, message in zip(workers, ("A", "B"), strict=False):
        one = await claim_one(store, worker)
        virtual_time.advance(1)
        await settle(store, one, Event.RETRY, delay=10, error=error(message))
        virtual_time.advance(10)
        await store.promote()
    before = await store.attempts(task_id)
    one = await claim_one(store, workers[2])

    assert (await store.attempts(task_id))[:2] == before

    virtual_time.advance(2)
    await settle(store, one, Event.SUCCEED, attempt=3)
    after = await store.attempts(task_id)

    assert after[:2] == before
    assert [attempt.number for attempt in after] == [1, 2, 3]
    assert [attempt.outcome for attempt in after] == ["failed", "failed", "succeeded"]
    assert [attempt.error_message for attempt in after] == ["A", "B", None]
    assert [attempt.error_type for attempt in after] == ["ValueError", "ValueError", None]
    assert [attempt.worker_id for attempt in after] == workers
    assert [(a.started_at - after[0].started_at).total_seconds() for a in after] == [0, 11, 22]
    assert [a.finished_at and (a.finished_at - a.started_at).total_seconds() for a in after] == [
        1,
        1,
        2,
    ]
    assert abs(after[0].started_at - began) < dt.timedelta(minutes=5)


async def test_the_running_attempt_is_in_the_log(store: Store, virtual_time: VirtualTime) -> None:
    """A running attempt is the last entry, without an end."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.INTERRUPT, attempt=0, error=ERROR)
    virtual_time.advance(1)
    await claim_one(store, task.worker)
    first, running = await store.attempts(task.id)

    assert (first.number, first.outcome) == (1, Outcome.INTERRUPTED)
    assert (running.number, running.outcome) == (2, Outcome.RUNNING)
    assert (running.worker_id, running.task_id) == (task.worker, task.id)
    assert (running.finished_at, running.error_type, running.error_details) == (None, None, None)
    assert running.started_at == (await status(store, task.id)).started_at
    assert running.started_at - first.started_at == dt.timedelta(seconds=1)


@pytest.mark.parametrize("event", OUTCOMES)
async def test_an_entry_has_everything(store: Store, event: Event) -> None:
    """Whatever the outcome, the entry has it, with the error and its details."""
    task = await claimed_once(store)
    await settle(store, task.fence, event, error=ERROR)
    (attempt,) = await store.attempts(task.id)

    assert attempt.outcome is OUTCOMES[event]
    assert (attempt.error_type, attempt.error_message) == ("ValueError", "no good")
    assert (attempt.error_traceback, attempt.error_details) == ("line 1", {"a": 1})


@pytest.mark.parametrize("outcome", [Outcome.TIMED_OUT, Outcome.LOST])
async def test_the_outcome_is_apart_from_the_event(store: Store, outcome: Outcome) -> None:
    """The log keeps the outcome it was given, whichever way the task went."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.FAIL, outcome=outcome)
    (attempt,) = await store.attempts(task.id)

    assert attempt.outcome is outcome


async def test_what_never_started_is_not_logged(store: Store) -> None:
    """A claim given back unused leaves no entry, whatever happens to the task then."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.INTERRUPT, attempt=0, outcome=None)

    assert await store.attempts(task.id) == []
    assert (await status(store, task.id)).attempt == 0

    await store.cancel(task.id)
    found = await status(store, task.id)

    assert (found.state, found.started_at, found.worker_id) == (State.CANCELLED, None, None)


async def test_a_claim_that_never_started_can_end(store: Store) -> None:
    """A claimed task that is cancelled before it started has ended without an entry."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.CANCEL, attempt=0, outcome=None)
    found = await status(store, task.id)

    assert (found.state, found.started_at, found.worker_id) == (State.CANCELLED, None, None)
    assert await store.attempts(task.id) == []


async def test_retrying_keeps_the_log(store: Store) -> None:
    """A task made ready again counts attempts anew, and its log goes on."""
    task = await claimed_once(store)
    await settle(store, task.fence, Event.FAIL, attempt=3, lost=2, error=ERROR)
    await store.retry(task.id)
    found = await status(store, task.id)

    assert (found.state, found.attempt, found.lost) == (State.READY, 0, 0)
    assert (found.error, found.finished_at) == (None, None)

    one = await claim_one(store, task.worker)

    assert (one.attempt, one.lost) == (1, 0)
    assert [attempt.number for attempt in await store.attempts(task.id)] == [1, 2]


async def test_an_unknown_task_has_no_log(store: Store) -> None:
    """Nothing is logged of a task that is not there."""
    assert await store.attempts(10**12) == []
    assert await state(store, 10**12) is None


async def test_the_log_of_a_task_does_not_grow_without_end(
    store: Store, virtual_time: VirtualTime
) -> None:
    """Of a task that is put off again and again the newest attempts are kept, and all counted."""
    task_id, worker = await add(store), await hire(store, lease=1e6)
    for number in range(1, 321):
        one = await claim_one(store, worker)
        await settle(store, one, Event.RETRY, attempt=0, delay=1.0)
        assert number % 100 or len(await store.attempts(task_id)) >= 100
        virtual_time.advance(1)
        assert await store.promote() == 1
    await claim_one(store, worker)
    log = await store.attempts(task_id)
    stats = await store.stats()

    assert 100 < len(log) <= 200
    assert [attempt.number for attempt in log] == list(range(322 - len(log), 322))
    assert [attempt.outcome for attempt in log[-2:]] == ["failed", "running"]
    assert stats.counters["default"].retries == 320


async def test_attempts_of_other_tasks_are_not_counted_in(
    store: Store, virtual_time: VirtualTime
) -> None:
    """Each task has numbers of its own; failures for good are counted as such when they are old."""
    task_id, worker = await add(store), await hire(store, lease=1e6)
    other = await claimed_once(store, priority=9)
    for _ in range(210):
        one = await claim_one(store, worker)
        await settle(store, one, Event.FAIL)
        assert await store.retry(task_id)
    await settle(store, other.fence, Event.FAIL)

    assert [attempt.number for attempt in await store.attempts(other.id)] == [1]
    assert (await store.attempts(task_id))[-1].number == 210
    assert (await store.stats()).counters["default"].failed == 211
