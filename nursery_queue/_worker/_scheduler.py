"""The loop that enqueues the tasks of schedules that are due. Each worker has one; none leads."""

from __future__ import annotations

import logging
import math
import random

from collections.abc import Iterable, Sequence
from uuid import UUID

import attrs
import trio

from nursery_queue._core._error_text import message_of, one_line
from nursery_queue._core._errors import TransientError
from nursery_queue._core._schedules import Fired, NewSchedule, Problem
from nursery_queue._declare._app import App
from nursery_queue._store import WorkerStore
from nursery_queue._trio._clock import upkeep_after
from nursery_queue._trio._timeouts import answered_within
from nursery_queue._trio._wakeup import Wakeup

from ._lease import Lease
from ._work_signal import WorkSignal


log = logging.getLogger("nursery_queue")

MOST, TICKS = 100, 1000  # schedules and ticks in one transaction
TIMEOUT = 30.0  # seconds for one of them
LOOK_AGAIN = 0.2, 0.4  # seconds until what others have locked is looked at again
POLL = 5.0  # seconds, where no notification will ever come
REASSURE = 60.0  # seconds, where they come: one that was missed is made up for when they do again


@attrs.define(eq=False)
class Scheduler:
    """Stores what the code declares, then enqueues what is due, and sleeps until the next tick.

    It needs no other worker and no memory: which ticks are to come, the store knows. What wakes it
    besides is that a schedule has been changed; should that be missed, it looks every minute.
    """

    store: WorkerStore
    lease: Lease
    work: WorkSignal
    app: App
    bell: Wakeup  # a schedule may have been changed, or there is a lease again
    interval: float  # seconds, where there are no notifications; 0: it trusts in them
    rng: random.Random
    first: bool  # whether it is to be ready before the claimer begins
    _declared_as: UUID | None = attrs.field(default=None, init=False)
    # What is not stored yet, as a transaction holds its row; when to try again, and in how long.
    _left: Sequence[NewSchedule] = attrs.field(default=(), init=False)
    _again: float = attrs.field(default=math.inf, init=False)
    _patience: float = attrs.field(default=LOOK_AGAIN[0], init=False)
    _most: int = attrs.field(default=MOST, init=False)
    _ticks: int = attrs.field(default=TICKS, init=False)
    _due: float = attrs.field(default=-math.inf, init=False)  # on trio's clock

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Fire until cancelled. Ready means: what was due at the start has its tasks."""
        # Not ready without one: that would say that the store is back
        # (tests/faults/test_outages.py). The heartbeat rings when there is one again.
        while not self.lease.holds:
            await self.bell.wait()
        await self._turn()
        task_status.started()
        while True:
            await self._wait()
            await self._turn()

    async def _wait(self) -> None:
        with (
            upkeep_after(self._interval() * self.rng.uniform(0.9, 1.1)),
            trio.move_on_at(min(self._due, self._again)),
        ):
            await self.bell.wait()

    def _interval(self) -> float:
        if self.work.deaf:
            return self.interval or POLL
        return max(self.interval, REASSURE) if self.interval else math.inf

    async def _turn(self) -> None:
        """Fire all that is due. A worker without a lease is dead to the others, and fires none."""
        if not self.lease.holds:
            self._due = math.inf  # the heartbeat rings when there is one again
            return
        if self._declared_as != self.lease.worker_id:
            await self._declare_all()
        elif trio.current_time() >= self._again:
            _tell(await self._declare(self._left))
        while self.lease.holds:
            fired = await self._fire()
            now = trio.current_time()
            self._due = math.inf if fired.next_in is None else now + fired.next_in
            if fired.tasks:
                self.work.ring()
            for problem in fired.problems:
                log.error("schedule %r cannot fire: %s", problem.name, one_line(problem.error))
            if not fired.more:
                break
            if fired.contended:
                self._due = min(self._due, now + self.rng.uniform(*LOOK_AGAIN))
                break

    async def _fire(self) -> Fired:
        try:
            with answered_within(TIMEOUT, "firing what is due"):
                fired = await self.store.fire_schedules(
                    self.lease.info, most=self._most, ticks=self._ticks
                )
        except TransientError:
            # What is too much for one transaction now would be so for ever.
            self._most, self._ticks = 1, max(self._ticks // 2, 1)
            raise
        self._most, self._ticks = MOST, min(self._ticks * 2, TICKS)
        return fired

    async def _declare_all(self) -> None:
        """Store what the code declares; under a new name, only say that it is there again."""
        worker_id = self.lease.info.id
        # Newer code may have been declared since: only a start declares.
        anew = self._declared_as is not None
        good, bad = (self._left, {}) if anew else self.app.declared_schedules()
        problems = await self._declare(good)
        if not anew:
            said = (Problem(name=name, error=message_of(exc)) for name, exc in bad.items())
            _tell([*problems, *said])
        self._declared_as = worker_id

    async def _declare(self, schedules: Sequence[NewSchedule]) -> list[Problem]:
        """Store what can be stored, and return what is wrong with the others.

        What is being changed is stored later; the others do not wait for it.
        """
        with answered_within(TIMEOUT, "storing the schedules"):
            problems = await self.store.declare_schedules(self.lease.info, schedules)
        held = {each.name for each in problems if each.held}
        names = {each.name for each in schedules}
        self._left = [each for each in schedules if each.name in held]
        self._again = trio.current_time() + self._patience if held else math.inf
        self._patience = min(self._patience * 2, POLL)
        return [each for each in problems if each.name in names and not each.held]


def _tell(problems: Iterable[Problem]) -> None:
    for each in problems:
        why = one_line(each.error)
        log.error("schedule %r of this app is not stored, and does not fire: %s", each.name, why)
