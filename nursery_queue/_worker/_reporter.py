"""Tells how it goes: of each attempt when its outcome is stored, and now and then of all."""

from __future__ import annotations

import logging

from collections.abc import Callable, Collection, Sequence

import attrs
import trio

from nursery_queue._client._instruments import Audience
from nursery_queue._core._errors import DatabaseRefused, TransientError
from nursery_queue._core._events import Completed, Report, error_of, lost
from nursery_queue._core._model import Fence, Held, Settlement, WorkerInfo
from nursery_queue._core._tally import Tally
from nursery_queue._store import Store
from nursery_queue._trio._clock import upkeep_sleep
from nursery_queue._trio._timeouts import answered_within

from ._entries import Entry
from ._slots import Slots


log = logging.getLogger("nursery_queue")

REPORT_EVERY = 60.0  # seconds, while there is something to report
MOST = 10_000  # due tasks to look at for one
TIMEOUT = 10.0  # seconds to count what is due


@attrs.define(eq=False, kw_only=True)
class Reporter:
    """Counts what this worker stores, and reports it.

    The first report comes a while after it has taken its first task, the others follow for as
    long as there is something to report. What is stored after the last one is in none.
    """

    store: Store
    slots: Slots
    audience: Audience
    info: Callable[[], WorkerInfo]
    _tally: Tally = attrs.field(factory=Tally, init=False)
    _since: float = attrs.field(factory=trio.current_time, init=False)
    _backlog: int = attrs.field(default=0, init=False)  # as last known
    _something: trio.Event = attrs.field(factory=trio.Event, init=False)  # to report
    _reported: bool = attrs.field(default=False, init=False)  # ever
    _over: bool = attrs.field(default=False, init=False)

    def busy(self) -> None:
        """There is something to report: tasks have been taken."""
        self._something.set()

    def stored(
        self,
        entries: Sequence[Entry],
        settlements: Sequence[Settlement],
        refused: Collection[Fence],
    ) -> None:
        """These attempts of ours have ended, and the store has it, except for what it refused."""
        if refused:
            settlements = [each for each in settlements if each.fence not in refused]
            entries = [each for each in entries if each.execution.claim.fence not in refused]
        self._tally.add(settlements)
        if self.audience.completed.wanted:
            for entry, settlement in zip(entries, settlements, strict=True):
                if (event := self._completed(entry, settlement)) is not None:
                    self.audience.completed.tell(event)

    def lost(self, held: Held, settlement: Settlement) -> None:
        """We have found that an attempt of another worker was lost, and the store has it."""
        self._tally.add([settlement])
        self.busy()
        if self.audience.completed.wanted:
            self.audience.completed.tell(lost(held, settlement))

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Report until cancelled."""
        task_status.started()
        while True:
            await self._something.wait()
            await upkeep_sleep(REPORT_EVERY)
            await self._count_backlog()
            self._report(last=False)

    async def end(self, until: float) -> None:
        """Report for the last time, unless there has never been anything. Not after *until*."""
        if self._over or not (self._reported or self._something.is_set()):
            return
        self._over = True
        with trio.CancelScope(deadline=until, shield=True):
            await self._count_backlog()
        self._report(last=True)

    async def _count_backlog(self) -> None:
        if not self.audience.reports.wanted:
            return
        info = self.info()
        try:
            with answered_within(TIMEOUT, "counting what is due"):
                self._backlog = await self.store.backlog(
                    info.task_types, queues=info.queues, most=MOST
                )
        except (TransientError, DatabaseRefused) as exc:
            log.info("the report has to do without what is due: %s", exc)

    def _report(self, *, last: bool) -> None:
        now, info = trio.current_time(), self.info()
        counters = self._tally.take(running=len(self.slots.running), backlog=self._backlog)
        seconds, self._since = now - self._since, now
        if not self.slots.held:
            self._something = trio.Event()
        self._reported = True
        if self.audience.reports.wanted:
            report = Report(
                worker_id=info.id, worker=info.name, seconds=seconds, counters=counters, last=last
            )
            self.audience.reports.tell(report)

    def _completed(self, entry: Entry, settlement: Settlement) -> Completed | None:
        if settlement.outcome is None:
            return None  # it was never started
        execution, claim = entry.execution, entry.execution.claim
        return Completed(
            task_id=claim.fence.task_id,
            task_type=claim.task_type,
            queue=claim.queue,
            status=settlement.outcome,
            state=settlement.state,
            attempt=claim.attempt,
            worker_id=self.info().id,
            took=min(execution.ended_at, trio.current_time()) - execution.started_at,
            error=error_of(settlement),
        )
