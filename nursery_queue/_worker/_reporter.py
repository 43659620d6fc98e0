"""The loop that reports, now and then, how many attempts have ended in which way."""

from __future__ import annotations

import logging

import attrs
import trio

from nursery_queue._core._errors import DatabaseRefused, TransientError
from nursery_queue._core._events import Report
from nursery_queue._store import WorkerStore
from nursery_queue._trio._clock import upkeep_sleep
from nursery_queue._trio._timeouts import answered_within

from ._lease import Lease
from ._recorder import Recorder
from ._slots import Slots


log = logging.getLogger("nursery_queue")

REPORT_EVERY = 60.0  # seconds, while there is something to report
MOST = 10_000  # due tasks to look at for one
TIMEOUT = 10.0  # seconds to count what is due


@attrs.define(eq=False, kw_only=True)
class Reporter:
    """Reports what this worker has stored.

    The first report comes a while after it has taken its first task, the others follow for as
    long as there is something to report. What is stored after the last one is in none.
    """

    store: WorkerStore
    slots: Slots
    lease: Lease
    recorder: Recorder
    _since: float = attrs.field(factory=trio.current_time, init=False)
    _backlog: int = attrs.field(default=0, init=False)  # as last known
    _reported: bool = attrs.field(default=False, init=False)  # ever
    _over: bool = attrs.field(default=False, init=False)

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Report until cancelled."""
        task_status.started()
        while True:
            await self.slots.used.wait()
            # An upkeep timer moves no virtual clock: days without work cost a test nothing
            # (tests/engine/test_virtual_days.py).
            await upkeep_sleep(REPORT_EVERY)
            await self._count_backlog()
            self._report(last=False)

    async def end(self, until: float) -> None:
        """Report for the last time, unless there has never been anything. Not after *until*."""
        if self._over or not (self._reported or self.slots.used.is_set()):
            return
        self._over = True
        with trio.CancelScope(deadline=until, shield=True):
            await self._count_backlog()
        self._report(last=True)

    async def _count_backlog(self) -> None:
        if not self.recorder.events.reports.wanted:
            return
        info = self.lease.info
        try:
            with answered_within(TIMEOUT, "counting what is due"):
                self._backlog = await self.store.backlog(
                    info.task_types, queues=info.queues, most=MOST
                )
        except (TransientError, DatabaseRefused) as exc:
            log.info("the report has to do without what is due: %s", exc)

    def _report(self, *, last: bool) -> None:
        now, info = trio.current_time(), self.lease.info
        counters = self.recorder.tally.take(running=len(self.slots.running), backlog=self._backlog)
        seconds, self._since = now - self._since, now
        if not self.slots.held:
            self.slots.used = trio.Event()
        self._reported = True
        if self.recorder.events.reports.wanted:
            report = Report(
                worker_id=info.id, worker=info.name, seconds=seconds, counters=counters, last=last
            )
            self.recorder.events.reports.tell(report)
