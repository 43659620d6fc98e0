"""Counts attempts as their outcomes are stored, and tells instruments of their start and end."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import attrs
import trio

from nursery_queue._client._instruments import EventTopics
from nursery_queue._core._events import Completed, Started, error_of, lost
from nursery_queue._core._model import Fence, Held, Settlement
from nursery_queue._core._tally import Tally

from ._attempt import Attempt
from ._lease import Lease
from ._slots import Slots


@attrs.define(eq=False)
class Recorder:
    """What this worker has stored since it was last reported."""

    slots: Slots
    lease: Lease
    events: EventTopics
    tally: Tally = attrs.field(factory=Tally, init=False)

    def begins(self, attempt: Attempt, now: float) -> None:
        """Record that a handler is about to be called."""
        attempt.begun_at = now
        if self.events.started.wanted:
            self._tell_start(attempt)

    def ends(self, attempt: Attempt) -> None:
        """Record that an end will be told: no instrument hears of one without a start."""
        if not attempt.told and self.events.started.wanted:
            self._tell_start(attempt)

    def stored(
        self,
        attempts: Sequence[Attempt],
        settlements: Sequence[Settlement],
        refused: Collection[Fence] = (),
    ) -> None:
        """Record that the store has these outcomes, except for those that it refused."""
        if refused:
            settlements = [each for each in settlements if each.fence not in refused]
            attempts = [each for each in attempts if each.fence not in refused]
        self.tally.add(settlements)
        if self.events.completed.wanted:
            for attempt, settlement in zip(attempts, settlements, strict=True):
                if settlement.outcome is not None:  # else it was never started
                    self.events.completed.tell(self._completed(attempt, settlement))

    def lost(self, held: Held, settlement: Settlement) -> None:
        """Record that this worker has settled an attempt of a dead worker as lost."""
        self.tally.add([settlement])
        self.slots.used.set()
        if self.events.completed.wanted:
            self.events.completed.tell(lost(held, settlement))

    def _tell_start(self, attempt: Attempt) -> None:
        attempt.told = True
        claim = attempt.claim
        waited = min(attempt.begun_at, trio.current_time()) - attempt.claimed_at
        self.events.started.tell(
            Started(
                task_id=claim.fence.task_id,
                task_type=claim.task_type,
                queue=claim.queue,
                attempt=claim.attempt,
                worker_id=self.lease.worker_id,
                lag=claim.lag + waited,
            )
        )

    def _completed(self, attempt: Attempt, settlement: Settlement) -> Completed:
        claim = attempt.claim
        assert settlement.outcome is not None
        return Completed(
            task_id=claim.fence.task_id,
            task_type=claim.task_type,
            queue=claim.queue,
            status=settlement.outcome,
            state=settlement.state,
            attempt=claim.attempt,
            worker_id=self.lease.worker_id,
            took=min(attempt.ended_at, trio.current_time()) - attempt.started_at,
            error=error_of(settlement),
        )
