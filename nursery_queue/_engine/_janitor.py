"""Tidies up after others: dead workers' tasks, and tasks kept long enough."""

from __future__ import annotations

import logging
import math
import random

import attrs
import trio

from nursery_queue._runtime._patience import answered_within
from nursery_queue._runtime._wakeup import Wakeup
from nursery_queue._store import Store


log = logging.getLogger("nursery_queue")

SWEEP_EVERY = 10  # heartbeats; sooner when one sees a worker overdue
PRUNE_EVERY = 20  # heartbeats
TIMEOUT = 30.0  # seconds for one statement


@attrs.define(eq=False, kw_only=True)
class Janitor:
    """Sweeps and prunes. Any worker's janitor does so for all."""

    store: Store
    max_lost: int
    heartbeat: float  # seconds; after an outage, living workers renew their leases first
    rng: random.Random
    bell: Wakeup = attrs.field(factory=Wakeup, init=False)
    _not_before: float = attrs.field(default=-math.inf, init=False)
    _prune_at: float = attrs.field(default=math.inf, init=False)
    _well: bool = attrs.field(default=True, init=False)

    def hold_off(self) -> None:
        """Give living workers the time to show that they are alive: there was an outage."""
        self._not_before = trio.current_time() + self.heartbeat

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Tidy up until cancelled. Ready means: as far as we know, or the store has answered."""
        if self._well:
            task_status.started()
        self._prune_at = min(self._prune_at, self._in(PRUNE_EVERY))
        self.hold_off()
        while True:
            while trio.current_time() < self._not_before:  # noqa: ASYNC110  # it may be put off
                await trio.sleep_until(self._not_before)
            was_well, self._well = self._well, False
            await self._turn()
            self._well = True
            if not was_well:
                task_status.started()
            with trio.CancelScope(deadline=self._in(SWEEP_EVERY)):
                await self.bell.wait()

    async def _turn(self) -> None:
        with answered_within(TIMEOUT, "a sweep"):
            swept = await self.store.sweep(max_lost=self.max_lost)
        if swept:
            log.warning("swept %d tasks of dead workers", swept)
        if trio.current_time() >= self._prune_at:
            await self._prune()
            self._prune_at = self._in(PRUNE_EVERY)

    async def _prune(self) -> None:
        total, pruned = 0, math.inf
        while pruned:  # in batches, so that no statement takes long
            with answered_within(TIMEOUT, "pruning"):
                pruned = await self.store.prune()
            total += pruned
        if total:
            log.info("pruned %d tasks", total)

    def _in(self, heartbeats: float) -> float:
        return trio.current_time() + heartbeats * self.heartbeat * self.rng.uniform(0.8, 1.2)
