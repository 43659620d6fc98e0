"""Settlements whose answer was lost: finding out what the store has of them."""

from __future__ import annotations

import random

from collections.abc import Iterator, Mapping, Sequence

import attrs

from nursery_queue._client._context import CancelReason
from nursery_queue._core._errors import CommitOutcomeUnknown, TransientError
from nursery_queue._core._model import ErrorRecord, Fence, Outcome, Refusal, Settlement
from nursery_queue._core._outcome import Failed, Succeeded
from nursery_queue._store import WorkerStore

from ._attempt import Attempt, Verdict


# The store is away, or a settlement got no answer; no outcome is to blame for either.
AWAY = (TransientError, CommitOutcomeUnknown)
NOT_STORED = "OutcomeNotStored"  # the type of the error that takes the place of an outcome


def verdict_of(attempt: Attempt) -> Verdict:
    """Return what is to be stored of an attempt that has been handed in."""
    assert attempt.verdict is not None
    return attempt.verdict


def not_stored(verdict: Verdict, why: str, *, telling: bool = True) -> Verdict:
    """Return the plain failure that takes the place of an outcome which cannot be stored."""
    error = ErrorRecord(type=NOT_STORED, message=why)
    return attrs.evolve(verdict, instead=Failed(error=error, retry=False), telling=telling)


async def look_up(
    store: WorkerStore,
    attempts: Sequence[Attempt],
    refused: Mapping[Fence, Refusal],
    rng: random.Random,
) -> dict[Fence, Settlement]:
    """Return what of the refused is stored all the same, by ourselves, and as what.

    An epoch is never handed out twice, and only the holder of a claim closes it, or a sweep
    as lost: any other outcome in the log is ours. Where even the task is gone, as with
    ``keep_for=0``, no other worker can have had it before the lease was lost.
    """
    doubtful = [
        attempt
        for attempt in attempts
        if refused.get(attempt.fence) is Refusal.STALE
        and verdict_of(attempt).in_doubt
        and attempt.settlement is None
    ]
    if not doubtful:
        return {}
    outcomes = await store.outcomes([attempt.fence for attempt in doubtful])
    # Not again what an attempt has heard of its own COMMIT meanwhile (tests/engine/test_races.py).
    open_ones = [attempt for attempt in doubtful if attempt.settlement is None]
    found = {attempt.fence: _ours(attempt, outcomes, rng) for attempt in open_ones}
    return {fence: settlement for fence, settlement in found.items() if settlement is not None}


def _ours(
    attempt: Attempt, outcomes: Mapping[Fence, Outcome | None], rng: random.Random
) -> Settlement | None:
    """Return what we wrote for a claim; None: it was not us."""
    wrote = (attempt.decide(verdict, rng) for verdict in _candidates(verdict_of(attempt)))
    outcome = outcomes.get(attempt.fence)
    if outcome is not None:
        return next((each for each in wrote if each.outcome is outcome), None)
    verdict = verdict_of(attempt)
    gone = attempt.fence in outcomes
    # Given back, never started.
    unlogged = verdict.unanswered and attempt.decide(verdict, rng).outcome is None
    lost = attempt.reason is CancelReason.LEASE_LOST
    return next(wrote) if (gone or unlogged) and not lost else None


def _candidates(verdict: Verdict) -> Iterator[Verdict]:
    """Yield all that we may have written, what is most likely first."""
    plain = attrs.evolve(verdict, instead=None, telling=True)
    if verdict.unanswered:
        yield plain
    yield attrs.evolve(plain, outcome=Succeeded())  # with the transaction of a handler
    yield verdict
    yield not_stored(plain, "it could not be stored in time")
