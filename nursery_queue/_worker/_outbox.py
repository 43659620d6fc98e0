"""Outcomes on their way to the store: handed in by handlers, taken by the settler."""

from __future__ import annotations

import logging

from collections.abc import Iterable

import attrs
import trio

from nursery_queue._client._context import CancelReason
from nursery_queue._core._model import ErrorRecord
from nursery_queue._core._outcome import (
    AttemptOutcome,
    Cancelled,
    Interrupted,
    NotStarted,
    TimedOut,
)
from nursery_queue._trio._wakeup import Wakeup

from ._attempt import Attempt, Phase, Step
from ._recorder import Recorder
from ._slots import Slots


log = logging.getLogger("nursery_queue")

NOT_STARTED, INTERRUPTED = NotStarted(), Interrupted()


@attrs.define(eq=False)
class Outbox:
    """Attempts whose verdict is to be stored. One leaves only when what became of it is known.

    So whatever goes wrong with storing, no outcome is lost.
    """

    slots: Slots
    recorder: Recorder
    waiting: list[Attempt] = attrs.field(factory=list[Attempt], init=False)
    # Held by the transaction of another program for the moment.
    locked: list[Attempt] = attrs.field(factory=list[Attempt], init=False)
    closed: bool = attrs.field(default=False, init=False)
    bell: Wakeup = attrs.field(factory=Wakeup, init=False)

    def put(
        self, attempt: Attempt, outcome: AttemptOutcome, now: float, *, racing: bool = False
    ) -> None:
        """Hand in an outcome, unless others may have the task. Neither blocks nor is cancelled."""
        # Even if others may have the task: the store knows whether they do, or we committed.
        if attempt.in_doubt is not None or not attempt.lost(now):
            if outcome is not NOT_STARTED:
                self.recorder.ends(attempt)
            attempt.verdict = attempt.judged(outcome, racing=racing)
            self.waiting.append(attempt)
            self.bell.ring()
            return
        if outcome not in {NOT_STARTED, INTERRUPTED}:
            log.warning("lost the claim on %s; its outcome is dropped", attempt.claim)
        # Not even a cancelled attempt is told to the store: another worker may run the task
        # already, and its fence would refuse it at best (tests/engine/test_lease_order.py).
        attempt.drop()
        self.slots.settled([attempt.fence])

    def release(self, attempts: Iterable[Attempt]) -> None:
        """Let go of claims whose handler has not started, or will not end in time."""
        now = trio.current_time()
        for attempt in attempts:
            if attempt.phase is Phase.WAITING:
                self.put(attempt, NOT_STARTED, now)
            elif attempt.phase is Phase.RUNNING:
                outcome = meaning(attempt, attempt.why())
                self.put(attempt, outcome, now, racing=attempt.task_type.transactional)
            else:
                continue
            if not attempt.dropped:
                attempt.take(Step.RELEASE)

    def close(self) -> None:
        """Say that nothing more will come."""
        self.closed = True
        self.bell.ring()


def meaning(
    attempt: Attempt, reason: CancelReason | None, error: ErrorRecord | None = None
) -> AttemptOutcome:
    """Return what it means that an attempt was cancelled."""
    match reason:
        case CancelReason.TIMED_OUT:
            return TimedOut(attempt.policy.timeout, error)
        case CancelReason.CANCELLED:
            return Cancelled(error)
        case _:
            return Interrupted(error)
