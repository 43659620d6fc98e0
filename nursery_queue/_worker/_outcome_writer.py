"""Writes verdicts into the store, in one statement for all of them."""

from __future__ import annotations

import logging
import random

from collections.abc import Callable, Mapping, Sequence

import attrs

from nursery_queue._core._model import Claim, Fence, Refusal, Settlement
from nursery_queue._core._states import ENDS, Event
from nursery_queue._store import WorkerStore
from nursery_queue._trio._timeouts import answered_within

from ._attempt import Attempt
from ._lost_answers import look_up, verdict_of
from ._outbox import Outbox
from ._recorder import Recorder
from ._slots import Slots
from ._work_signal import WorkSignal


log = logging.getLogger("nursery_queue")


@attrs.define(eq=False)
class OutcomeWriter:
    """Settles attempts, and lets go of their claims."""

    store: WorkerStore
    limit: float  # seconds to wait for an answer
    rng: random.Random
    slots: Slots
    outbox: Outbox
    recorder: Recorder
    work: WorkSignal

    def decide(self, attempt: Attempt) -> Settlement:
        """Decide what an attempt's verdict means, without writing it."""
        return attempt.decide(verdict_of(attempt), self.rng)

    async def write(self, batch: Sequence[Attempt], leave: Callable[[], None]) -> None:
        """Settle these and call *leave*, unless that fails; what has to be tried again comes back.

        If it fails, or is cancelled, each of them may be stored: that is looked up the next time.
        """
        settlements = [self.decide(attempt) for attempt in batch]
        try:
            # So that a call that hangs leaves time for another one.
            with answered_within(self.limit, f"settling {len(batch)} tasks"):
                refused = await self.store.settle(settlements)
                found = await look_up(self.store, batch, refused, self.rng) if refused else {}
            for fence in found:
                del refused[fence]
            if found:
                settlements = [found.get(each.fence, each) for each in settlements]
            # No checkpoint from here to `leave`: a cancellation between the two would settle claims
            # twice.
            self.slots.settled(self._sort(batch, settlements, refused))
            leave()
        except BaseException:
            # It may be stored all the same, since only the answer is missing
            # (tests/faults/test_lost_answers.py).
            for attempt in batch:
                attempt.verdict = attrs.evolve(verdict_of(attempt), unanswered=True)
            raise
        self._keep(batch, refused)
        self.recorder.stored(batch, settlements, refused)
        # A task that goes back to ready may be claimed here at once; no notification tells this
        # worker what it has done itself, if it does not listen.
        if not {settlement.event for settlement in settlements} <= ENDS:
            self.work.ring()

    def _sort(
        self,
        batch: Sequence[Attempt],
        settlements: Sequence[Settlement],
        refused: Mapping[Fence, Refusal],
    ) -> list[Fence]:
        """Tell each attempt what the store said; return the claims that need not be held."""
        done: list[Fence] = []
        for attempt, settlement in zip(batch, settlements, strict=True):
            match refused.get(attempt.fence) if refused else None:
                case None:
                    _log(attempt.claim, settlement)
                    attempt.stored(settlement)
                    done.append(attempt.fence)
                case Refusal.STALE:
                    if attempt.settlement is None:  # else its own transaction has stored it
                        log.warning("lost the claim on %s; its outcome is dropped", attempt.claim)
                        attempt.drop()
                    done.append(attempt.fence)
                case _:
                    pass
        return done

    def _keep(self, batch: Sequence[Attempt], refused: Mapping[Fence, Refusal]) -> None:
        """Put back what the store would not take now."""
        for attempt in batch if refused else ():
            match refused.get(attempt.fence):
                case Refusal.CANCEL_REQUESTED:
                    verdict = attrs.evolve(verdict_of(attempt), cancel_requested=True)
                    attempt.verdict = verdict
                    self.outbox.waiting.append(attempt)
                case Refusal.LOCKED:
                    self.outbox.locked.append(attempt)
                case _:
                    pass


def _log(claim: Claim, settlement: Settlement) -> None:
    """Log what went wrong; what went well is in the table."""
    if settlement.error is None:
        return
    error = f"{settlement.error.type}: {settlement.error.message}"
    match settlement.event:
        case Event.FAIL:
            log.error("%s %s, for good: %s", claim, settlement.outcome, error)
        case Event.DEFER:
            delay = settlement.delay
            log.info("%s failed and is given back, again in %.3g s: %s", claim, delay, error)
        case Event.RETRY:
            delay = settlement.delay
            log.info("%s %s, again in %.3g s: %s", claim, settlement.outcome, delay, error)
        case _:
            log.info("%s %s: %s", claim, settlement.outcome, error)
