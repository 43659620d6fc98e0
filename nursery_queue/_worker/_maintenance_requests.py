"""What other loops ask of maintenance: when each of its parts is due."""

from __future__ import annotations

import math

import attrs
import trio

from nursery_queue._trio._wakeup import Wakeup


@attrs.define(eq=False)
class MaintenanceRequests:
    """When the parts of maintenance are due, on trio's clock. Level-triggered, as a signal is."""

    heartbeat: float  # seconds
    not_before: float = attrs.field(default=-math.inf, init=False)  # what is done for all workers
    unpark_at: float = attrs.field(default=-math.inf, init=False)
    sweep_at: float = attrs.field(default=-math.inf, init=False)
    park_at: float = attrs.field(default=math.inf, init=False)
    prune_at: float = attrs.field(default=math.inf, init=False)
    look_at: float = attrs.field(default=math.inf, init=False)
    parked_at: float = attrs.field(default=-math.inf, init=False)  # for the last time
    bell: Wakeup = attrs.field(factory=Wakeup, init=False)

    def hold_off(self) -> None:
        """Give living workers the time to show that they are alive: there was an outage."""
        self.not_before = trio.current_time() + self.heartbeat

    def sweep_by(self, at: float) -> None:
        """Sweep at that instant: another worker is dead by then unless it shows up."""
        self.sweep_at = min(self.sweep_at, at)
        self.bell.ring()

    def park_soon(self) -> None:
        """Park: tasks of types that this worker does not know are first in line."""
        # Not more often: it may be that others know them, and are busy.
        self.park_at = min(self.park_at, self.parked_at + self.heartbeat)
        self.bell.ring()

    def bring_back(self) -> None:
        """Unpark: while this worker had no lease, what only it knows may have been parked."""
        self.unpark_at = -math.inf
        self.bell.ring()

    @property
    def next(self) -> float:
        """When the first of them is due."""
        for_all = min(self.sweep_at, self.park_at, self.prune_at, self.look_at)
        return min(self.unpark_at, max(self.not_before, for_all))
