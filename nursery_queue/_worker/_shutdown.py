"""The end of the work: how long handlers may go on, and what becomes of those that do."""

from __future__ import annotations

import logging

from collections.abc import Callable

import attrs
import trio

from nursery_queue._client._context import CancelReason
from nursery_queue._trio._task_tree import task_tree
from nursery_queue._trio._wakeup import Wakeup

from ._executor import Executor
from ._exit_report import Ledger
from ._settler import Settler
from ._slots import Execution, Slots


log = logging.getLogger("nursery_queue")

FLUSH = 5.0  # seconds to store the last outcomes; what is not stored then is swept as lost
REMIND_AFTER = 60.0  # seconds, and then ever longer, between lines about who is still there


@attrs.define(eq=False, kw_only=True)
class Shutdown:
    """Ends the work of one worker. Runs beside it in the same nursery, and so keeps that open.

    Beside, since a claim under way keeps intake open for a while: handlers need not wait for
    that to learn that their time is up.
    """

    slots: Slots
    executor: Executor
    settler: Settler
    grace: float
    cleanup: float
    on_idle: Callable[[], None] | None
    on_abandoned: Callable[[], None]
    ledger: Ledger = attrs.field(factory=Ledger, init=False)
    # How long handlers may go on once the worker is stopped; may be cancelled before that.
    patience: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    over: bool = attrs.field(default=False, init=False)  # nothing is to be started any more
    _closed: trio.Event = attrs.field(factory=trio.Event, init=False)  # intake
    _news: Wakeup = attrs.field(factory=Wakeup, init=False)

    def freed(self) -> None:
        """Hear that a settlement is stored."""
        self._news.ring()
        self._check_idle()

    def intake_closed(self) -> None:
        """Give back what has been claimed ahead; there will be no more."""
        self._closed.set()
        self._hand_back()
        if self.ledger.is_open:
            self.ledger.note(self.slots.held)  # came with the last claim
        self._check_idle()

    async def run(self, stop: trio.Event, work: trio.Nursery) -> None:
        """Wait for the stop; let handlers finish, then cancel them, then release what is left."""
        await stop.wait()
        self.ledger.open()
        self.ledger.note(self.slots.held)
        self._hand_back()
        self.patience.deadline = trio.current_time() + self.grace
        with self.patience:
            await self._quiet()
        self.over = True
        self.slots.cancel_all(CancelReason.SHUTDOWN)
        self.slots.curtail()
        with trio.move_on_after(self.cleanup):
            await self._quiet()
        if self.slots.running:
            await self._do_without(work)

    async def _do_without(self, work: trio.Nursery) -> None:
        """Release the tasks of handlers that ignore cancellation; say who they are, now and then.

        Their nursery waits for them all the same.
        """
        # What is called after a handler has nothing to give back: its task is settled.
        self.executor.give_back([each for each in self.slots.running if not each.ended])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._remind, work)
            await self.slots.quiet()
            nursery.cancel_scope.cancel("they have ended after all")

    async def _remind(self, work: trio.Nursery) -> None:
        due, pause = trio.current_time(), REMIND_AFTER
        # First what they hold is given back, so that the log can say whether it was.
        with trio.move_on_after(FLUSH):
            while self.slots.held:
                await self._news.wait()
        self._complain(work)
        self.on_abandoned()
        while True:
            due, pause = due + pause, 2 * pause
            await trio.sleep_until(due)
            self._complain(work)

    def _complain(self, work: trio.Nursery) -> None:
        running = {task_name(each): each for each in self.slots.running}
        for task in work.child_tasks:
            if task.name.startswith("task "):
                what, became = _trouble(running.get(task.name))
                log.warning("cancelled, but %s, its task %s: %s", what, became, task_tree(task))

    async def _quiet(self) -> None:
        await self._closed.wait()
        await self.slots.quiet()

    def _hand_back(self) -> None:
        self.executor.give_back(self.slots.unstarted())

    def _check_idle(self) -> None:
        if self.on_idle is not None and self._closed.is_set() and not self.slots.busy:
            self.on_idle()


def _trouble(execution: Execution | None) -> tuple[str, str]:
    """Say why a handler that was cancelled has not ended, and what has become of its task."""
    if execution is None:
        return "still running", "released"
    use, stored = execution.connections, execution.settlement is not None
    silent = use is not None and use.unanswered
    what = "the database does not answer a statement of its handler" if silent else "still running"
    if execution.dropped:
        return what, "lost"
    return what, "settled" if execution.ended else "released" if stored else "not released yet"


def task_name(execution: Execution) -> str:
    """Return what the trio task of an attempt is called."""
    return f"task {execution.claim.fence.task_id} {execution.claim.task_type}"
