"""The end of the handlers: how long they may go on, and what becomes of those that do."""

from __future__ import annotations

import logging

from collections.abc import Mapping

import attrs
import trio

from nursery_queue._core._model import Fence
from nursery_queue._trio._task_tree import task_tree

from ._attempt import Attempt
from ._executor import task_name
from ._exit_report import ExitReport, exit_report
from ._outbox import Outbox
from ._slots import Slots
from ._stop_signal import StopSignal


log = logging.getLogger("nursery_queue")

FLUSH = 5.0  # seconds to store the last outcomes; what is not stored then is swept as lost
REMIND_AFTER = 60.0  # seconds, and then ever longer, between lines about handlers that go on


@attrs.define(eq=False)
class Shutdown:
    """Ends the handlers of one worker. Runs beside them in the same nursery, and keeps that open.

    Beside, since a claim under way keeps claiming open for a while: handlers need not wait for
    that to learn that their time is up.
    """

    slots: Slots
    outbox: Outbox
    stop: StopSignal
    grace: float
    cleanup: float
    # How long handlers may go on once the worker is stopped; may be cancelled before that.
    grace_scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)
    # What there was to report when all that was left were handlers that ignore cancellation.
    abandoned_with: ExitReport | None = attrs.field(default=None, init=False)
    _stopped_at: float | None = attrs.field(default=None, init=False)
    # What the exit report is about: all that has been held since the stop.
    _in_hand: dict[Fence, Attempt] = attrs.field(factory=dict[Fence, Attempt], init=False)
    _claims_closed: trio.Event = attrs.field(factory=trio.Event, init=False)

    def close_claims(self) -> None:
        """Give back what has been claimed ahead; there will be no more."""
        self._claims_closed.set()
        self._give_back_unstarted()
        if self._stopped_at is not None:
            self._note(self.slots.held)  # came with the last claim

    def report(self) -> ExitReport:
        """Say what became of the tasks in hand."""
        began = self._stopped_at
        seconds = 0.0 if began is None else trio.current_time() - began
        return exit_report(self._in_hand.values(), seconds=seconds)

    async def run(self, handlers: trio.Nursery) -> None:
        """Wait for the stop; let handlers finish, then cancel them, then release what is left."""
        async with trio.open_nursery() as nursery:
            if self.stop.when_idle:
                nursery.start_soon(self._stop_when_idle, name="end when idle")
            await self.stop.requested.wait()
            # It would wait for the store, however long that is down (tests/engine/test_races.py).
            nursery.cancel_scope.cancel("the worker was asked to stop")
        self._stopped_at = trio.current_time()
        self._note(self.slots.held)
        self._give_back_unstarted()
        # A scope and not a timeout: a second signal, or the owner of the client, ends it early.
        self.grace_scope.deadline = trio.current_time() + self.grace
        with self.grace_scope:
            await self._quiet()
        self.slots.close()
        with trio.move_on_after(self.cleanup):
            await self._quiet()
        if self.slots.running:
            await self._do_without(handlers)

    async def _stop_when_idle(self) -> None:
        """Stop when nothing is claimed any more and nothing is in hand."""
        await self._claims_closed.wait()
        await self.slots.empty()
        self.stop.stop()

    async def _do_without(self, handlers: trio.Nursery) -> None:
        """Release the tasks of handlers that ignore cancellation; name them, now and then.

        Their nursery waits for them all the same.
        """
        # What `ctx.after` was given has nothing to give back: its task is settled.
        self.outbox.release(self.slots.running)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._remind, handlers)
            await self.slots.quiet()
            nursery.cancel_scope.cancel("they have ended after all")

    async def _remind(self, handlers: trio.Nursery) -> None:
        due, pause = trio.current_time(), REMIND_AFTER
        # First what they hold is given back, so that the log can say whether it was.
        with trio.move_on_after(FLUSH):
            await self.slots.settled_all()
        self._complain(handlers)
        self.abandoned_with = self.report()
        self.stop.abandoned.set()
        while True:
            due, pause = due + pause, 2 * pause
            await trio.sleep_until(due)
            self._complain(handlers)

    def _complain(self, handlers: trio.Nursery) -> None:
        running = {task_name(each): each for each in self.slots.running}
        for task in handlers.child_tasks:
            if task.name.startswith("task "):
                what, became = _trouble(running.get(task.name))
                log.warning("cancelled, but %s, its task %s: %s", what, became, task_tree(task))

    async def _quiet(self) -> None:
        await self._claims_closed.wait()
        await self.slots.quiet()

    def _give_back_unstarted(self) -> None:
        self.outbox.release(self.slots.unstarted())

    def _note(self, held: Mapping[Fence, Attempt]) -> None:
        self._in_hand |= held


def _trouble(attempt: Attempt | None) -> tuple[str, str]:
    """Say why a handler that was cancelled has not ended, and what has become of its task."""
    if attempt is None:
        return "still running", "released"
    use, stored = attempt.connections, attempt.settlement is not None
    silent = use is not None and use.unanswered
    what = "the database does not answer a statement of its handler" if silent else "still running"
    if attempt.dropped:
        return what, "lost"
    return what, "settled" if attempt.over else "released" if stored else "not released yet"
