"""The decision about a task whose attempt has ended: one pure function, `settle()`."""

from __future__ import annotations

import functools
import random

from collections.abc import Mapping
from typing import assert_never

import attrs

from ._errors import ClaimLocked, StaleClaim, TransientError
from ._model import Claim, ErrorRecord, Held, Outcome, Refusal, Settlement
from ._retry import RetryPolicy
from ._states import Event


KEEP_FOR = 86_400.0  # seconds; for tasks whose type this code does not know
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
    error: ErrorRecord | None = None  # raised while it was being cancelled


@attrs.frozen
class Cancelled:
    """A cancel was asked for, and the handler was cancelled."""

    error: ErrorRecord | None = None


@attrs.frozen
class Interrupted:
    """The attempt is given back through no fault of its handler, so none is used up.

    *delay* None: the worker stops, or lost its lease, and any other may run the task at once.
    Else the handler failed for want of something that comes with time, and runs again in *delay*
    seconds.
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
    """The policy for one claim: the code's defaults, with the row's overrides."""

    retry: RetryPolicy
    timeout: float  # seconds; math.inf: no limit
    keep_for: float


def settle(
    claim: Claim,
    outcome: AttemptOutcome,
    policy: Policy,
    *,
    rng: random.Random,
    cancel_requested: bool = False,
) -> Settlement:
    """Decide how *outcome* moves the task on. No I/O, no clock.

    *cancel_requested*: a cancel was asked for, so the task does not go round again; a task that
    has ended for good ends as it would have.
    """
    decided = _decide(claim, outcome, policy, rng)
    return _stopped(decided) if cancel_requested else decided


def allowed_losses(
    held: Held, *, max_lost: int, max_lost_of: Mapping[str, int] | None = None
) -> int:
    """Return at how many losses a task fails: as the code here says, or else its worker's did."""
    here = None if max_lost_of is None else max_lost_of.get(held.task_type)
    return here or held.max_lost or max_lost


def settle_lost(held: Held, *, max_lost: int = MAX_LOST) -> Settlement:
    """Decide how a task goes on whose worker is dead. Losses have a budget of their own.

    A claim that was held ahead is no loss: it goes back as it was.
    """
    if not held.started:
        return give_back(held)
    error = ErrorRecord(
        type="worker_lost", message=f"worker {held.worker_id} went away while running this task"
    )
    event = Event.FAIL if held.lost + 1 >= max_lost else Event.LOSE
    decided = _settlement(
        held, held.keep_for, event, Outcome.LOST, error=error, lost=1, refund=True
    )
    return _stopped(decided) if held.cancel_requested else decided


def give_back(held: Held) -> Settlement:
    """Release a claim that its worker never started, or does not know."""
    decided = _settlement(held, held.keep_for, Event.INTERRUPT, None, refund=True)
    return _stopped(decided) if held.cancel_requested else decided


def _settlement(
    held: Claim | Held,
    keep_for: float | None,
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
        fence=held.fence,
        event=event,
        attempt=held.attempt - refund,
        lost=held.lost + lost,
        keep_for=KEEP_FOR if keep_for is None else keep_for,
        outcome=outcome,
        delay=delay,
        result=result,
        error=error,
        on_complete=held.on_complete,
    )


def insist_on_settling(settlement: Settlement, refusal: Refusal | None) -> None:
    """Raise for a settlement that was refused."""
    if refusal is not None:
        msg = f"{settlement.fence} cannot be settled: {refusal}"
        raise _REFUSALS[refusal](msg)


_REFUSALS = {
    Refusal.STALE: StaleClaim,
    Refusal.LOCKED: ClaimLocked,
    Refusal.CANCEL_REQUESTED: TransientError,
}


def _decide(  # noqa: PLR0911  # one return a case
    claim: Claim, outcome: AttemptOutcome, policy: Policy, rng: random.Random
) -> Settlement:
    if isinstance(outcome, Succeeded):  # of all but a few
        return _settlement(
            claim, policy.keep_for, Event.SUCCEED, Outcome.SUCCEEDED, result=outcome.result
        )
    here = functools.partial(_settlement, claim, policy.keep_for)
    retry = policy.retry
    again = claim.attempt < retry.max_attempts
    match outcome:
        case Failed():
            after = outcome.after
            delay = retry.delay(claim.attempt, rng) if after is None else after
            if again and outcome.retry:
                return here(Event.RETRY, Outcome.FAILED, error=outcome.error, delay=delay)
            return here(Event.FAIL, Outcome.FAILED, error=outcome.error)
        case TimedOut(limit, error):
            error = error or ErrorRecord(
                type="TimedOut", message=f"cancelled at its time limit of {limit:g} s"
            )
            delay = retry.delay(claim.attempt, rng)
            if again:
                return here(Event.RETRY, Outcome.TIMED_OUT, error=error, delay=delay)
            return here(Event.FAIL, Outcome.TIMED_OUT, error=error)
        case Cancelled(error):
            return here(Event.CANCEL, Outcome.CANCELLED, error=error)
        case Interrupted(error, later):
            event = Event.INTERRUPT if later is None else Event.DEFER
            wait = later or 0.0
            return here(event, Outcome.INTERRUPTED, error=error, delay=wait, refund=True)
        case NotStarted():
            return here(Event.INTERRUPT, None, refund=True)
        case Snoozed(delay):
            return here(Event.SNOOZE, Outcome.SNOOZED, delay=delay, refund=True)
        case _:
            assert_never(outcome)


def _stopped(decided: Settlement) -> Settlement:
    """Turn a settlement that would bring the task back into one that cancels it."""
    if decided.state.is_final:
        return decided
    # The log and the counts stay: the attempt was lost, or interrupted, all the same.
    return attrs.evolve(decided, event=Event.CANCEL, delay=0.0)
