from __future__ import annotations

import math
import random

from typing import Any
from uuid import UUID

import attrs
import pytest

from hypothesis import given, strategies as st

from nursery_queue._core._model import Claim, ErrorRecord, Fence, Held, Outcome, Settlement
from nursery_queue._core._outcome import (
    KEEP_FOR,
    MAX_LOST,
    AttemptOutcome,
    Cancelled,
    Failed,
    Interrupted,
    NotStarted,
    Policy,
    Snoozed,
    Succeeded,
    TimedOut,
    give_back,
    settle,
    settle_lost,
)
from nursery_queue._core._retry import RetryPolicy
from nursery_queue._core._states import Event, State


ERROR = ErrorRecord(type="ValueError", message="no")
POLICY = Policy(
    retry=RetryPolicy(max_attempts=3, initial=10, jitter=0), timeout=math.inf, keep_for=5.0
)
FENCE = Fence(7, 42)

OUTCOMES = st.one_of(
    st.builds(Succeeded, st.none() | st.just("1")),
    st.builds(Failed, error=st.just(ERROR), retry=st.booleans(), after=st.none() | st.just(1.5)),
    st.builds(TimedOut, st.just(2.0), st.none() | st.just(ERROR)),
    st.builds(Cancelled, st.none() | st.just(ERROR)),
    st.builds(Interrupted, st.none() | st.just(ERROR)),
    st.builds(NotStarted),
    st.builds(Snoozed, st.just(3.0)),
)


def decide(
    outcome: AttemptOutcome, *, attempt: int = 1, lost: int = 0, cancel_requested: bool = False
) -> Settlement:
    claim = Claim(
        fence=FENCE, attempt=attempt, lost=lost, task_type="x", queue="default", params="{}"
    )
    return settle(claim, outcome, POLICY, rng=random.Random(1), cancel_requested=cancel_requested)


def held(**changes: Any) -> Held:
    plain = Held(
        fence=FENCE, attempt=2, lost=0, worker_id=UUID(int=1), cancel_requested=False, keep_for=None
    )
    return attrs.evolve(plain, **changes)


def test_success() -> None:
    """A success ends the task, keeps its result and logs the attempt."""
    done = decide(Succeeded('"ok"'))

    assert done == Settlement(
        fence=FENCE,
        event=Event.SUCCEED,
        attempt=1,
        lost=0,
        keep_for=5.0,
        outcome=Outcome.SUCCEEDED,
        result='"ok"',
    )
    assert done.state is State.SUCCEEDED


@pytest.mark.parametrize(("attempt", "delay"), [(1, 10.0), (2, 20.0)])
def test_a_failure_with_attempts_left(attempt: int, delay: float) -> None:
    """A failed attempt is followed by another after the wait that the policy gives."""
    done = decide(Failed(error=ERROR), attempt=attempt)

    assert (done.event, done.outcome, done.error) == (Event.RETRY, Outcome.FAILED, ERROR)
    assert (done.delay, done.attempt, done.state) == (delay, attempt, State.SCHEDULED)


@pytest.mark.parametrize("attempt", [3, 4])
def test_the_last_failure(attempt: int) -> None:
    """When the attempts are used up, or are more than the code allows by now, the task fails."""
    for outcome in (Failed(error=ERROR), Failed(error=ERROR, after=1.0), TimedOut(2.0)):
        done = decide(outcome, attempt=attempt)

        assert (done.event, done.attempt, done.delay) == (Event.FAIL, attempt, 0.0)


def test_a_failure_that_wants_no_other_attempt() -> None:
    """A handler may end the task, whatever attempts are left."""
    assert decide(Failed(error=ERROR, retry=False, after=1.0)).event is Event.FAIL


def test_a_failure_that_says_when() -> None:
    """A handler may set the wait itself, also to nothing; it still counts as an attempt."""
    done = decide(Failed(error=ERROR, after=123.0))

    assert (done.event, done.delay, done.attempt) == (Event.RETRY, 123.0, 1)
    assert decide(Failed(error=ERROR, after=0.0)).delay == 0.0


def test_a_time_limit() -> None:
    """An attempt over its time limit failed; the log says so, and what the limit was."""
    done = decide(TimedOut(2.5))

    assert (done.event, done.outcome, done.delay) == (Event.RETRY, Outcome.TIMED_OUT, 10.0)
    assert done.error == ErrorRecord(
        type="TimedOut", message="cancelled at its time limit of 2.5 s"
    )
    assert decide(TimedOut(2.5, ERROR)).error == ERROR


def test_cancelled() -> None:
    """A cancelled task has ended; its attempt was used."""
    done = decide(Cancelled(ERROR))

    assert (done.event, done.outcome) == (Event.CANCEL, Outcome.CANCELLED)
    assert (done.error, done.attempt) == (ERROR, 1)


@pytest.mark.parametrize("attempt", [1, 3, 9])
def test_interrupted(attempt: int) -> None:
    """An interruption is nobody's fault: ready at once, and the attempt is given back."""
    done = decide(Interrupted(), attempt=attempt)

    assert (done.event, done.outcome, done.state) == (
        Event.INTERRUPT,
        Outcome.INTERRUPTED,
        State.READY,
    )
    assert (done.attempt, done.delay) == (attempt - 1, 0.0)


def test_never_started() -> None:
    """What was claimed ahead and given back leaves no trace in the log."""
    done = decide(NotStarted())

    assert (done.event, done.outcome, done.attempt) == (Event.INTERRUPT, None, 0)


@pytest.mark.parametrize("attempt", [1, 3, 9])
def test_snoozed(attempt: int) -> None:
    """A snooze is no attempt, so it can be repeated for ever."""
    done = decide(Snoozed(60.0), attempt=attempt)

    assert (done.event, done.outcome, done.delay) == (Event.SNOOZE, Outcome.SNOOZED, 60.0)
    assert done.attempt == attempt - 1


@given(OUTCOMES, st.integers(1, 5), st.integers(0, 5))
def test_a_cancelled_task_never_goes_round_again(
    outcome: AttemptOutcome, attempt: int, lost: int
) -> None:
    """Once somebody asked for its end, a task ends; if it would have anyhow, as it would have."""
    normal = decide(outcome, attempt=attempt, lost=lost)
    asked = decide(outcome, attempt=attempt, lost=lost, cancel_requested=True)

    assert asked.state.is_final
    if normal.state.is_final:
        assert asked == normal
    else:
        assert asked.state is State.CANCELLED
        assert (asked.outcome, asked.error) == (normal.outcome, normal.error)
        assert (asked.attempt, asked.lost) == (normal.attempt, normal.lost)
        assert asked.delay == 0.0


@given(OUTCOMES, st.integers(1, 5), st.integers(0, 5), st.booleans())
def test_every_settlement(outcome: AttemptOutcome, attempt: int, lost: int, asked: bool) -> None:
    """A settlement is fenced, leaves `running`, and gives back one attempt at most."""
    done = decide(outcome, attempt=attempt, lost=lost, cancel_requested=asked)

    assert done.fence == FENCE
    assert done.state is not State.RUNNING
    assert attempt - 1 <= done.attempt <= attempt
    assert (done.lost, done.keep_for) == (lost, 5.0)
    assert done.delay >= 0
    assert (done.outcome is None) == isinstance(outcome, NotStarted)
    assert done.result is None or done.state is State.SUCCEEDED


@pytest.mark.parametrize("lost", range(MAX_LOST + 2))
def test_the_budget_of_losses(lost: int) -> None:
    """A task whose worker died is run again, without using an attempt, until losses run out."""
    done = settle_lost(held(lost=lost))
    last = lost + 1 >= MAX_LOST

    assert done.event is (Event.FAIL if last else Event.LOSE)
    assert (done.outcome, done.lost, done.attempt) == (Outcome.LOST, lost + 1, 1)
    assert done.error is not None
    assert done.error.type == "worker_lost"
    assert str(UUID(int=1)) in done.error.message


def test_another_budget_of_losses() -> None:
    """The budget is the caller's; one means that the first loss is the last."""
    assert settle_lost(held(), max_lost=1).event is Event.FAIL
    assert settle_lost(held(lost=4), max_lost=9).event is Event.LOSE


def test_a_lost_task_that_was_to_be_cancelled() -> None:
    """A task that somebody asked to cancel is not run again because its worker died."""
    done = settle_lost(held(cancel_requested=True))

    assert (done.event, done.outcome) == (Event.CANCEL, Outcome.LOST)
    assert (done.attempt, done.lost) == (1, 1)
    assert settle_lost(held(cancel_requested=True, lost=MAX_LOST)).event is Event.FAIL


def test_how_long_a_lost_task_is_kept() -> None:
    """The row decides; where it says nothing, the default does, as the code is not at hand."""
    assert settle_lost(held()).keep_for == KEEP_FOR
    assert settle_lost(held(keep_for=0.0)).keep_for == 0.0


def test_given_back() -> None:
    """What the store thinks we hold, and we do not, is ready again as if never claimed."""
    done = give_back(held(lost=2))

    assert (done.event, done.outcome) == (Event.INTERRUPT, None)
    assert (done.attempt, done.lost, done.state) == (1, 2, State.READY)
    assert give_back(held(cancel_requested=True)).state is State.CANCELLED
