"""What became of claims, on the way into the store, and what the store has of them already."""

from __future__ import annotations

import math
import random

from collections.abc import Callable, Iterator, Mapping, Sequence

import attrs

from nursery_queue._client._context import CancelReason
from nursery_queue._core._errors import CommitOutcomeUnknown, TransientError
from nursery_queue._core._model import ErrorRecord, Fence, Outcome, Refusal, Settlement
from nursery_queue._core._outcome import KEEP_FOR, AttemptOutcome, Failed, Succeeded, settle
from nursery_queue._store import Store

from ._slots import Execution


# The store is away, or a settlement got no answer; no outcome is to blame for either.
AWAY = (TransientError, CommitOutcomeUnknown)
NOT_STORED = "OutcomeNotStored"  # the type of the error that takes the place of an outcome


@attrs.define(eq=False, kw_only=True)
class Entry:
    """What became of a claim, with all that is needed to decide again."""

    execution: Execution
    outcome: AttemptOutcome
    cancel_requested: bool = False
    # What is to be written in its place: a success may be committed already, and if not it
    # cannot be any more; another outcome may be more than the store takes.
    instead: AttemptOutcome | None = None
    telling: bool = True  # False: no other task is told, for that cannot be stored
    unanswered: bool = False  # it may have been stored: nobody has said that it was not

    @property
    def fence(self) -> Fence:
        """The claim."""
        return self.execution.claim.fence

    @property
    def in_doubt(self) -> bool:
        """Whether a claim that is not ours any more may have been closed by ourselves.

        We sent it and got no answer, or have given up a handler whose transaction committed.
        """
        execution = self.execution
        committing = execution.task_type.transactional and execution.started_at < math.inf
        return self.unanswered or (execution.released and committing)

    def decide(self, rng: random.Random) -> Settlement:
        """Decide what the outcome means, without writing it."""
        settlement = settle(
            self.execution.claim,
            self.outcome if self.instead is None else self.instead,
            self.execution.policy,
            rng=rng,
            cancel_requested=self.cancel_requested,
        )
        if self.instead is not None:
            # What was not to be kept may have been refused for that: its row is referred to.
            kept = max(settlement.keep_for, KEEP_FOR)
            settlement = attrs.evolve(settlement, keep_for=kept)
        return settlement if self.telling else attrs.evolve(settlement, on_complete=False)


def not_stored(entry: Entry, why: str, *, telling: bool = True) -> Entry:
    """Return the plain failure that takes the place of an outcome which cannot be stored."""
    error = ErrorRecord(type=NOT_STORED, message=why)
    return attrs.evolve(entry, instead=Failed(error=error, retry=False), telling=telling)


async def look_up(
    store: Store,
    entries: Sequence[Entry],
    refused: Mapping[Fence, Refusal],
    decide: Callable[[Entry], Settlement],
) -> dict[Fence, Settlement]:
    """Return what of the refused is stored all the same, by ourselves, and as what.

    An epoch is never handed out twice, and only the holder of a claim closes it, or a sweep
    as lost: any other outcome in the log is ours. Where even the task is gone, as with
    ``keep_for=0``, nobody else can have had it before the lease was lost.
    """
    doubtful = [
        entry
        for entry in entries
        if refused.get(entry.fence) is Refusal.STALE
        and entry.in_doubt
        and entry.execution.settlement is None
    ]
    if not doubtful:
        return {}
    outcomes = await store.outcomes([entry.fence for entry in doubtful])
    found: dict[Fence, Settlement] = {}
    for entry in doubtful:
        ours = _ours(entry, outcomes, decide)
        if ours is not None:
            found[entry.fence] = decide(ours)
    return found


def _ours(
    entry: Entry,
    outcomes: Mapping[Fence, Outcome | None],
    decide: Callable[[Entry], Settlement],
) -> Entry | None:
    """Return what we wrote for a claim; None: it was not us."""
    outcome = outcomes.get(entry.fence)
    if outcome is not None:
        wrote = (each for each in _candidates(entry) if decide(each).outcome is outcome)
        return next(wrote, None)
    gone = entry.fence in outcomes
    unlogged = entry.unanswered and decide(entry).outcome is None  # given back, never started
    lost = entry.execution.reason is CancelReason.LEASE_LOST
    return next(_candidates(entry)) if (gone or unlogged) and not lost else None


def _candidates(entry: Entry) -> Iterator[Entry]:
    """Yield all that we may have written, what is most likely first."""
    plain = attrs.evolve(entry, instead=None, telling=True)
    success = attrs.evolve(plain, outcome=Succeeded())
    if entry.unanswered:
        yield plain
    yield success  # with the transaction of a handler
    yield entry
    yield not_stored(plain, "it could not be stored in time")
