"""The loop that tidies up: dead workers' tasks, tasks kept long enough, tasks in the way."""

from __future__ import annotations

import logging
import math
import random

import attrs
import trio

from nursery_queue._core._error_text import one_line, refusal_of
from nursery_queue._core._errors import TransientError
from nursery_queue._declare._app import App
from nursery_queue._store import WorkerStore
from nursery_queue._trio._timeouts import answered_within

from ._maintenance_requests import MaintenanceRequests
from ._recorder import Recorder
from ._sightings import Sightings
from ._unattended_tasks import UnattendedTasks
from ._work_signal import WorkSignal


log = logging.getLogger("nursery_queue")

SWEEP_EVERY = 10  # heartbeats; sooner when one sees a worker overdue
PRUNE_EVERY = 20  # heartbeats
LOOK_AFTER, LOOK_EVERY = 3, 20  # heartbeats: others that start now may be the ones to take them
TIMEOUT = 30.0  # seconds for one statement
# The parts, as errors and the log call them.
UNPARK, SWEEP = "bringing back what was put aside", "a sweep"
PARK, PRUNE = "putting aside tasks of unknown types", "pruning"
LOOK = "looking for tasks that no worker takes"
MANY = 1000  # tasks parked in one go, from which on we go on at once


@attrs.define(eq=False)
class Maintenance:
    """Sweeps, prunes, and parks tasks of unknown types. Any worker does so for all of them.

    And each warns in its log of tasks that none takes.

    What is parked and this worker knows, it brings back: when it begins, and at each sweep.
    """

    store: WorkerStore
    app: App
    max_lost: int
    rng: random.Random
    due: MaintenanceRequests  # when each part is
    sightings: Sightings  # of other workers that are late
    recorder: Recorder
    work: WorkSignal
    _unattended: UnattendedTasks = attrs.field(init=False)
    _well: bool = attrs.field(default=True, init=False)
    _failing: set[str] = attrs.field(factory=set[str], init=False)  # parts, until they succeed
    # Parts that got no answer, until they get one; the last one is the last that was asked.
    _unanswered: dict[str, None] = attrs.field(factory=dict[str, None], init=False)

    def __attrs_post_init__(self) -> None:
        self._unattended = UnattendedTasks(self.store)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Tidy up until cancelled. Ready means: as far as we know, or the store has swept.

        And every part that failed has succeeded since. Otherwise a part that is refused while the
        others go well would be told as failed and as back in turns, for as long as it lasts
        (tests/faults/test_refusals.py, the parts of the tidying up).
        """
        if told := self._well:
            task_status.started()
        self.due.prune_at = min(self.due.prune_at, self._in(PRUNE_EVERY))
        self.due.look_at = min(self.due.look_at, self._in(LOOK_AFTER))
        self.due.sweep_at = -math.inf  # first: it is not to fail with anything else
        self.due.hold_off()
        while True:
            well, self._well = self._well, False
            await self._turn()
            self._well = (well or self.due.sweep_at > trio.current_time()) and not self._failing
            if self._well and not told:
                told = True
                task_status.started()
            with trio.CancelScope(deadline=self.due.next):
                await self.due.bell.wait()

    async def _turn(self) -> None:
        """Do what is due, a batch of it: nothing of this waits for the end of another.

        Nor for its success: what fails is done again after a while, and raised at the end.
        """
        trouble: Exception | None = None
        parts = [
            (self.due.unpark_at <= trio.current_time(), UNPARK, self._unpark),
            (self._is_time(self.due.sweep_at), SWEEP, self._sweep),
            (self._is_time(self.due.park_at), PARK, self._park),
            (self._is_time(self.due.prune_at), PRUNE, self._prune),
            (self._is_time(self.due.look_at), LOOK, self._look),
        ]
        # What got no answer goes last: it may be alone in that, for one row of it.
        late = {part: place for place, part in enumerate(self._unanswered, start=1)}
        for due, part, step in sorted(parts, key=lambda each: late.get(each[1], 0)):
            if due:
                try:
                    await step()
                except TransientError:
                    self._unanswered.pop(part, None)
                    self._unanswered[part] = None
                    raise  # mostly the others would fare no better
                except Exception as exc:  # noqa: BLE001  # raised below, when the others are done
                    trouble = trouble or exc
                    self._fails(part, exc)
                else:
                    self._succeeds(part)
        if trouble is not None:
            raise trouble

    def _fails(self, part: str, error: Exception) -> None:
        """Note that *part* fails; if others do, too, the log says so here.

        The supervisor logs the first of them, and when all is well again.
        """
        if self._failing and part not in self._failing:
            why = one_line(f"{type(error).__name__}: {refusal_of(error)}")
            log.error("maintenance: %s fails, too: %s", part, why)
        self._failing.add(part)

    def _succeeds(self, part: str) -> None:
        self._unanswered.pop(part, None)
        if part in self._failing:
            self._failing.remove(part)
            if self._failing:
                log.info("maintenance: %s works again", part)

    def _is_time(self, at: float) -> bool:
        return max(at, self.due.not_before) <= trio.current_time()  # it may have been put off

    async def _sweep(self) -> None:
        # Before it begins, so that a request which comes meanwhile is not forgotten.
        self.due.sweep_at = math.inf
        with answered_within(TIMEOUT, SWEEP):
            # One batch; what is left is due at once, and the other parts have their turn in between
            # (tests/pg/test_maintenance.py).
            swept = await self.store.sweep(
                max_lost=self.max_lost,
                max_lost_of=self.app.max_lost,
                seen=self.sightings.until_now(),
                tell=self.recorder.lost,
            )
        if swept:
            log.warning("swept %d tasks of dead workers", swept)
        # There may be more than one batch.
        self.due.sweep_at = -math.inf if swept else min(self.due.sweep_at, self._in(SWEEP_EVERY))
        self.due.unpark_at = -math.inf

    async def _park(self) -> None:
        self.due.park_at = math.inf
        try:
            with answered_within(TIMEOUT, PARK):
                parked = await self.store.park()
        except Exception:
            # It may not be asked for again, and that it works is to be known then.
            self.due.park_at = -math.inf
            raise
        self.due.parked_at = trio.current_time()
        if parked:
            log.info("put aside %d tasks of types that no worker knows", parked)
        if parked >= MANY:
            self.due.park_at = -math.inf

    async def _unpark(self) -> None:
        self.due.unpark_at = math.inf
        with answered_within(TIMEOUT, UNPARK):
            brought = await self.store.unpark(list(self.app.task_types))
        if brought:
            log.info("brought back %d tasks that had been put aside", brought)
            self.due.unpark_at = -math.inf
            self.work.ring()

    async def _prune(self) -> None:
        # If it fails it stays due, so that it is not called well before it has succeeded.
        with answered_within(TIMEOUT, PRUNE):
            pruned = await self.store.prune()
            forgotten = await self.store.forget_ticks()
        if pruned:
            log.info("pruned %d tasks", pruned)
        # There may be more; others that are due have their turn first.
        self.due.prune_at = -math.inf if pruned or forgotten else self._in(PRUNE_EVERY)

    async def _look(self) -> None:
        self.due.look_at = self._in(LOOK_EVERY)  # also without an answer
        await self._unattended.look()

    def _in(self, heartbeats: float) -> float:
        return trio.current_time() + heartbeats * self.due.heartbeat * self.rng.uniform(0.8, 1.2)
