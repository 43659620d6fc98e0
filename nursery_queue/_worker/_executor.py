"""Runs attempts, and says what became of each: exactly once, whatever happens."""

from __future__ import annotations

import contextvars
import logging
import random

from typing import assert_never, cast

import attrs
import trio

from nursery_queue._client._callbacks import PendingCallbacks
from nursery_queue._client._context import CancelReason
from nursery_queue._client._transaction import Transaction
from nursery_queue._core._errors import (
    DoNotRetry,
    NoConnection,
    ParamsError,
    ResultError,
    RetryAfter,
    Snooze,
    TryLater,
)
from nursery_queue._core._exception_groups import is_a, leaves
from nursery_queue._core._excuses import Excuse, excuse, excused
from nursery_queue._core._model import ErrorRecord
from nursery_queue._core._outcome import AttemptOutcome, Failed, Interrupted, Snoozed, Succeeded
from nursery_queue._json._error_record import error_record

from ._afterwards import Afterwards
from ._asyncio_bridge import AsyncioBridge
from ._attempt import Attempt, Doubt, Phase, Step
from ._attempt_runner import AttemptRunner, HandlerEnd, NotBegun, Raised, Stopped, Unsure
from ._outbox import INTERRUPTED, NOT_STARTED, Outbox, meaning
from ._recorder import Recorder
from ._refunds import Refunds
from ._slots import Slots


log = logging.getLogger("nursery_queue")

_NO_CONNECTION = error_record(NoConnection("its time was up while it waited for a connection"))


@attrs.define(eq=False)
class Executor:
    """Runs attempts for one worker, and hands in their outcomes."""

    runner: AttemptRunner
    slots: Slots
    outbox: Outbox
    recorder: Recorder
    refunds: Refunds
    rng: random.Random
    _nursery: trio.Nursery | None = attrs.field(default=None, init=False)
    # Of which each attempt gets a copy.
    _context: contextvars.Context | None = attrs.field(default=None, init=False)

    def open(self, nursery: trio.Nursery, bridge: AsyncioBridge | None) -> None:
        """Run handlers in *nursery* from now on, each in a copy of the caller's context."""
        self.runner.bridge, self._nursery = bridge, nursery
        self._context = contextvars.copy_context()
        self._context.run(self.runner.client.lifetime.lend)

    def start(self, attempt: Attempt) -> None:
        """Begin an attempt, in a task of its own."""
        assert self._context is not None
        # Often called by the attempt that has just ended, and a nursery starts a task in the
        # context of its caller: without this, one customer's values are in another's task
        # (tests/engine/test_isolation.py).
        self._context.copy().run(self._spawn, attempt)

    def _spawn(self, attempt: Attempt) -> None:
        assert self._nursery is not None
        self._nursery.start_soon(self.execute, attempt, name=task_name(attempt))

    async def execute(self, attempt: Attempt) -> None:
        """Run one attempt and hand in its outcome."""
        outcome: AttemptOutcome = NOT_STARTED  # true until something better is known
        try:
            if attempt.reason is None and not attempt.lost(trio.current_time()):
                outcome = INTERRUPTED
                outcome = self._meaning(attempt, await self.runner.run(attempt, self._settle))
        except BaseException:
            # It ends the worker: the other handlers are to learn why they are cancelled.
            if attempt.reason is None:
                self.slots.cancel_all(CancelReason.SHUTDOWN)
            raise
        finally:
            # Nothing in here waits, so it happens also while we are being cancelled.
            self._end(attempt, outcome)
        if attempt.afterwards is not None:
            await self._call_afterwards(attempt, attempt.afterwards)

    def _end(self, attempt: Attempt, outcome: AttemptOutcome) -> None:
        attempt.ended_at = now = trio.current_time()
        if attempt.pending is not None:
            attempt.afterwards = self._afterwards(attempt, attempt.pending, outcome)
        # A released attempt has been handed in already: what its handler comes to now is of no
        # consequence, except for a commit, which came first.
        if attempt.phase is Phase.RUNNING:
            self.outbox.put(attempt, outcome, now)
        elif attempt.phase in {Phase.COMMITTED, Phase.CLOSED}:
            self._record_commit(attempt)
        attempt.take(Step.END)
        if attempt.afterwards is None:
            self.slots.finished(attempt, now)

    def _afterwards(
        self, attempt: Attempt, pending: PendingCallbacks, outcome: AttemptOutcome
    ) -> Afterwards | None:
        """Return what is to be called when the outcome is stored, if there is something."""
        released = attempt.phase not in {Phase.RUNNING, Phase.COMMITTED}
        if released or not (pending.callbacks and isinstance(outcome, Succeeded)):
            return None
        tally = self.runner.client.called_back
        afterwards = Afterwards(attempt.claim, pending.callbacks, tally)
        if self.slots.closing:
            afterwards.cancel()
        return afterwards

    async def _call_afterwards(self, attempt: Attempt, afterwards: Afterwards) -> None:
        """Call what is to be called afterwards, in the slot of the handler."""
        try:
            await afterwards.run()
        except BaseException:  # it ends the worker, as in `execute`
            self.slots.cancel_all(CancelReason.SHUTDOWN)
            raise
        finally:
            self.slots.finished(attempt, trio.current_time())

    def _record_commit(self, attempt: Attempt) -> None:
        """Let go of a claim that the handler's own transaction has settled."""
        if attempt.settlement is not None:
            return  # the settler has found it when it wanted to give the claim back
        # Without the result, which the transaction has stored: nothing below reads it.
        settlement = attempt.decide(attempt.judged(Succeeded()), self.rng)
        attempt.stored(settlement)
        self.slots.settled([attempt.fence])
        self.recorder.stored([attempt], [settlement])

    async def _settle(self, tx: Transaction, attempt: Attempt, success: Succeeded) -> None:
        await tx.settle(attempt.decide(attempt.judged(success), self.rng))

    # -- what it means -------------------------------------------------------------------

    def _meaning(self, attempt: Attempt, end: HandlerEnd) -> AttemptOutcome:
        task_id = attempt.claim.fence.task_id
        match end:  # what is frequent first
            case Succeeded():
                self.refunds.ended(task_id)
                return end
            case NotBegun():
                return NOT_STARTED
            case Raised(error):
                return self._unless_excused(attempt, error, _of_error(attempt, error))
            case Unsure(success, error, committed):
                excuse(error, Excuse.NOT_SETTLED)
                otherwise = self._unless_excused(attempt, error, _of_error(attempt, error))
                attempt.in_doubt = Doubt(committed, otherwise)
                return success
            case Stopped(CancelReason.TIMED_OUT, error, unconnected=True):
                record = _NO_CONNECTION if error is None else _record(error)
                return Interrupted(record, self._refund(attempt, Excuse.NO_CONNECTION))
            case Stopped(reason, error):
                self.refunds.ended(task_id)
                return meaning(attempt, reason, None if error is None else _record(error))
            case _:
                assert_never(end)

    def _unless_excused(
        self, attempt: Attempt, error: BaseException, outcome: AttemptOutcome
    ) -> AttemptOutcome:
        """Give the attempt back instead of failing it, if its handler cannot help it."""
        if isinstance(outcome, Failed) and outcome.retry and outcome.after is None:
            why = excused(error)
            if why is not None and (delay := self._refund(attempt, why)) is not None:
                return Interrupted(outcome.error, delay)
        self.refunds.ended(attempt.claim.fence.task_id)
        return outcome

    def _refund(self, attempt: Attempt, why: Excuse) -> float | None:
        if why is Excuse.NO_CONNECTION:
            log.warning("%s got no connection: no attempt is used up", attempt.claim)
        return self.refunds.grant(attempt.claim.fence.task_id, why)


def task_name(attempt: Attempt) -> str:
    """Return what the trio task of an attempt is called."""
    return f"task {attempt.claim.fence.task_id} {attempt.claim.task_type}"


def _of_error(attempt: Attempt, error: BaseException) -> AttemptOutcome:
    """What it means that the handler raised."""
    causes, record = list(leaves(error)), _record(error)
    if not all(is_a(cause, Exception) for cause in causes):
        what = "%s raised %s: a failure like any other, which does not end the worker"
        log.warning(what, attempt.claim, record.type)
    if any(is_a(cause, DoNotRetry, ParamsError, ResultError) for cause in causes):
        return Failed(error=record, retry=False)
    later = [cast("TryLater", cause) for cause in causes if is_a(cause, RetryAfter, Snooze)]
    if len(later) < len(causes):
        return Failed(error=record)
    longest = max(cause.seconds for cause in later)
    if all(is_a(cause, Snooze) for cause in later):
        return Snoozed(longest)
    return Failed(error=record, after=longest)


def _record(error: BaseException) -> ErrorRecord:
    causes = list(leaves(error))
    if len(causes) > 1:
        return error_record(error)
    record = error_record(causes[0])
    if causes[0] is error or record.traceback is None or "  File " in record.traceback:
        return record
    # It was put into its group without having been raised: only the group knows where.
    return attrs.evolve(record, traceback=error_record(error).traceback)
