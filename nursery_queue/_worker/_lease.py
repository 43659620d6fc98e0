"""The lease of a worker: whether it holds one, until when, and under which name."""

from __future__ import annotations

import math
import uuid

import attrs
import trio

from nursery_queue._core._model import WorkerInfo
from nursery_queue._core._retry import Backoff


@attrs.define(eq=False)
class Lease:
    """Until when others leave this worker's tasks alone; without one the worker claims nothing.

    Counted on trio's clock from the moment that the last successful renewal was sent, so it ends
    here before it ends for any other worker. That clock goes on while the process is stopped, but
    not while the machine sleeps: a worker that wakes up with it believes in its lease until its
    next heartbeat, and until then only fences stop it.
    """

    info: WorkerInfo
    until: float = -math.inf
    _renewed: trio.Event = attrs.field(factory=trio.Event, init=False)

    @property
    def worker_id(self) -> uuid.UUID:
        """The name under which this worker is registered, or was last."""
        return self.info.id

    @property
    def holds(self) -> bool:
        """Whether there is a lease."""
        return self.holds_at(trio.current_time())

    def holds_at(self, now: float) -> bool:
        """Whether there is a lease, for who has read trio's clock already."""
        # Strictly before: at the instant from which others may have the tasks, nothing of ours goes
        # on (tests/engine/test_lease_order.py).
        return now < self.until

    @property
    def left(self) -> float:
        """Seconds until the lease runs out; 0: there is none."""
        return max(0.0, self.until - trio.current_time())

    @property
    def impatience(self) -> Backoff:
        """How to restart a loop that has no time for long waits, since the lease is running.

        One statement that went through is all the health it takes, or else a server that is away
        every other second would cost the lease.
        """
        return Backoff(maximum=self.info.lease / 3, healthy_after=0.0)

    def extend(self, sent: float) -> None:
        """Renew it: the request that the store has granted was sent at *sent*."""
        # From the request and not from its answer: the store counts from a moment between the two,
        # so what is held here always ends first, however slow the network is.
        self.until = sent + self.info.lease
        self._renewed.set()

    async def renewed(self) -> None:
        """Wait for the next renewal."""
        self._renewed = trio.Event()
        await self._renewed.wait()
