"""Tidies up after others: dead workers' tasks, and tasks kept long enough."""

from __future__ import annotations

import logging
import math
import random

import attrs
import trio

from nursery_queue._runtime._wakeup import Wakeup
from nursery_queue._store import Store


log = logging.getLogger("nursery_queue")

SWEEP_EVERY = 30.0  # seconds; sooner when a heartbeat sees a worker overdue
PRUNE_EVERY = 60.0  # seconds


@attrs.define(eq=False, kw_only=True)
class Janitor:
    """Sweeps and prunes. Any worker's janitor does so for all."""

    store: Store
    max_lost: int
    first_after: float  # seconds: after an outage, living workers renew their leases first
    rng: random.Random
    bell: Wakeup = attrs.field(factory=Wakeup, init=False)
    _well: bool = attrs.field(default=True, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Tidy up until cancelled."""
        if self._well:
            task_status.started()
        prune_at = trio.current_time() + self._soon(PRUNE_EVERY)
        await trio.sleep(self.first_after)
        while True:
            was_well, self._well = self._well, False
            if swept := await self.store.sweep(max_lost=self.max_lost):
                log.warning("swept %d tasks of dead workers", swept)
            if trio.current_time() >= prune_at:
                await self._prune()
                prune_at = trio.current_time() + self._soon(PRUNE_EVERY)
            self._well = True
            if not was_well:
                task_status.started()
            with trio.move_on_after(self._soon(SWEEP_EVERY)):
                await self.bell.wait()

    async def _prune(self) -> None:
        total, pruned = 0, math.inf
        while pruned:  # in batches, so that no statement takes long
            pruned = await self.store.prune()
            total += pruned
        if total:
            log.info("pruned %d tasks", total)

    def _soon(self, seconds: float) -> float:
        return seconds * self.rng.uniform(0.8, 1.2)
