"""What an outcome means for a task: one pure decision, `settle()`."""

from __future__ import annotations

import random

from collections.abc import Mapping
from typing import assert_never

import attrs

from ._model import Claim, ErrorRecord, Fence, Held, Outcome, Settlement
from ._retry import RetryPolicy
from ._states import Event


KEEP_FOR = 86_400.0  # seconds; for tasks whose type nobody here knows
MAX_LOST = 3


@attrs.frozen
class Succeeded:
    """The handler returned; *result* is JSON text."""

    result: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class Failed:
    """The handler raised. *after*: the wait it asked for; *retry* False: it wants no other."""

    error: ErrorRecord
    retry: bool = True
    after: float | None = None


@attrs.frozen
class TimedOut:
    """The handler was cancelled at its time limit, in seconds."""

    limit: float
    error: ErrorRecord | None = None  # what it raised while being cancelled


@attrs.frozen
class Cancelled:
    """Somebody asked for it, and the handler was cancelled."""

    error: ErrorRecord | None = None


@attrs.frozen
class Interrupted:
    """The attempt is given back through no fault of its handler, so none is used up.

    *delay* None: the worker stops, or lost its lease, and any other may run the task at once.
    Else the handler failed for want of something that comes with time, in so many seconds.
    """

    error: ErrorRecord | None = None
    delay: float | None = None


@attrs.frozen
class NotStarted:
    """Claimed ahead and given back; there is nothing to log."""


@attrs.frozen
class Snoozed:
    """The handler asked to be called again in *delay* seconds."""

    delay: float


AttemptOutcome = Succeeded | Failed | TimedOut | Cancelled | Interrupted | NotStarted | Snoozed


@attrs.frozen(kw_only=True)
class Policy:
    """What applies to one claim: the code's defaults, with the row's overrides."""

    retry: RetryPolicy
    timeout: float  # seconds; math.inf: no limit
    keep_for: float


@attrs.frozen(kw_only=True)
class _Position:
    """The part of a claim that a decision needs."""

    fence: Fence
    attempt: int
    lost: int
    keep_for: float
    on_complete: bool

    def to(
        self,
        event: Event,
        outcome: Outcome | None,
        *,
        error: ErrorRecord | None = None,
        result: str | None = None,
        delay: float = 0.0,
        refund: bool = False,
        lost: int = 0,
    ) -> Settlement:
        return Settlement(
            fence=self.fence,
            event=event,
            attempt=self.attempt - refund,
            lost=self.lost + lost,
            keep_for=self.keep_for,
            outcome=outcome,
            delay=delay,
            result=result,
            error=error,
            on_complete=self.on_complete,
        )


def settle(
    claim: Claim,
    outcome: AttemptOutcome,
    policy: Policy,
    *,
    rng: random.Random,
    cancel_requested: bool = False,
) -> Settlement:
    """Decide what *outcome* means for the task. No I/O, no clock.

    *cancel_requested*: somebody asked for the task to be cancelled, so it does not go
    round again; what has ended for good ends as it would have.
    """
    here = _Position(
        fence=claim.fence,
        attempt=claim.attempt,
        lost=claim.lost,
        keep_for=policy.keep_for,
        on_complete=claim.on_complete,
    )
    decided = _decide(here, outcome, policy.retry, rng)
    return _stopped(decided) if cancel_requested else decided


def allowed_losses(
    held: Held, *, max_lost: int, max_lost_of: Mapping[str, int] | None = None
) -> int:
    """Return at how many losses a task fails: as the code here says, or else its worker's did."""
    here = None if max_lost_of is None else max_lost_of.get(held.task_type)
    return here or held.max_lost or max_lost


def settle_lost(held: Held, *, max_lost: int = MAX_LOST) -> Settlement:
    """Decide what becomes of a task whose worker is gone. Losses have a budget of their own.

    A claim that was held ahead is no loss: it goes back as it was.
    """
    if not held.started:
        return give_back(held)
    here = _held_position(held)
    error = ErrorRecord(
        type="worker_lost", message=f"worker {held.worker_id} went away while running this task"
    )
    event = Event.FAIL if held.lost + 1 >= max_lost else Event.LOSE
    decided = here.to(event, Outcome.LOST, error=error, lost=1, refund=True)
    return _stopped(decided) if held.cancel_requested else decided


def give_back(held: Held) -> Settlement:
    """Return what the store thinks this worker holds, but it does not: it never started."""
    here = _held_position(held)
    decided = here.to(Event.INTERRUPT, None, refund=True)
    return _stopped(decided) if held.cancel_requested else decided


def _held_position(held: Held) -> _Position:
    return _Position(
        fence=held.fence,
        attempt=held.attempt,
        lost=held.lost,
        keep_for=KEEP_FOR if held.keep_for is None else held.keep_for,
        on_complete=held.on_complete,
    )


def _decide(  # noqa: PLR0911  # one return a case
    here: _Position, outcome: AttemptOutcome, retry: RetryPolicy, rng: random.Random
) -> Settlement:
    match outcome:
        case Succeeded(result):
            return here.to(Event.SUCCEED, Outcome.SUCCEEDED, result=result)
        case Failed():
            again = outcome.retry and here.attempt < retry.max_attempts
            delay = retry.delay(here.attempt, rng) if outcome.after is None else outcome.after
            return _failed(here, Outcome.FAILED, outcome.error, delay if again else None)
        case TimedOut(limit, error):
            error = error or ErrorRecord(
                type="TimedOut", message=f"cancelled at its time limit of {limit:g} s"
            )
            again = here.attempt < retry.max_attempts
            delay = retry.delay(here.attempt, rng)
            return _failed(here, Outcome.TIMED_OUT, error, delay if again else None)
        case Cancelled(error):
            return here.to(Event.CANCEL, Outcome.CANCELLED, error=error)
        case Interrupted(error, later):
            event = Event.INTERRUPT if later is None else Event.DEFER
            wait = later or 0.0
            return here.to(event, Outcome.INTERRUPTED, error=error, delay=wait, refund=True)
        case NotStarted():
            return here.to(Event.INTERRUPT, None, refund=True)
        case Snoozed(delay):
            return here.to(Event.SNOOZE, Outcome.SNOOZED, delay=delay, refund=True)
        case _:
            assert_never(outcome)


def _failed(
    here: _Position, outcome: Outcome, error: ErrorRecord, delay: float | None
) -> Settlement:
    if delay is None:
        return here.to(Event.FAIL, outcome, error=error)
    return here.to(Event.RETRY, outcome, error=error, delay=delay)


def _stopped(decided: Settlement) -> Settlement:
    """Turn a settlement that would bring the task back into one that cancels it."""
    if decided.state.is_final:
        return decided
    # What is logged and counted stays: the attempt was lost, or interrupted, all the same.
    return attrs.evolve(decided, event=Event.CANCEL, delay=0.0)
