"""Says what became of each attempt: exactly once, whatever happens."""

from __future__ import annotations

import logging
import math

from collections.abc import Iterable
from typing import assert_never, cast

import attrs
import trio

from nursery_queue._client._callbacks import Pending
from nursery_queue._client._context import CancelReason
from nursery_queue._client._instruments import Topic
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
from nursery_queue._core._events import Started
from nursery_queue._core._exception_groups import is_a, leaves
from nursery_queue._core._excuses import Excuse, excuse, excused
from nursery_queue._core._model import ErrorRecord
from nursery_queue._core._outcome import (
    AttemptOutcome,
    Cancelled,
    Failed,
    Interrupted,
    NotStarted,
    Snoozed,
    Succeeded,
    TimedOut,
)
from nursery_queue._json._error_record import error_record

from ._afterwards import Afterwards
from ._entries import Entry
from ._execution import AttemptRunner, End, NotBegun, Raised, Stopped, Unsure
from ._refunds import Refunds
from ._settler import Settler
from ._slots import Doubt, Execution, Slots


log = logging.getLogger("nursery_queue")

_NOT_STARTED, _INTERRUPTED = NotStarted(), Interrupted()
_NO_CONNECTION = error_record(NoConnection("its time was up while it waited for a connection"))


@attrs.define(eq=False, kw_only=True)
class Executor:
    """Runs attempts for one worker, and hands in their outcomes."""

    stage: AttemptRunner
    slots: Slots
    settler: Settler
    refunds: Refunds
    starts: Topic[Started]  # who wants to hear of them

    async def execute(self, execution: Execution) -> None:
        """Run one attempt and hand in its outcome."""
        outcome: AttemptOutcome = _NOT_STARTED  # true until something better is known
        try:
            if execution.reason is None and not self.stage.lost(execution):
                outcome = _INTERRUPTED
                outcome = self._meaning(execution, await self.stage.run(execution, self._settle))
        except BaseException:
            # It ends the worker: the other handlers are to learn why they are cancelled.
            if execution.reason is None:
                self.slots.cancel_all(CancelReason.SHUTDOWN)
            raise
        finally:
            # Nothing in here waits, so it happens also while we are being cancelled.
            execution.ended_at = trio.current_time()
            if execution.pending is not None:
                execution.afterwards = self._afterwards(execution, execution.pending, outcome)
            if execution.stored:
                self._has_stored(execution)
            elif not execution.released:
                self._hand_in(execution, outcome)
            execution.ended = True
            if execution.afterwards is None:
                self.slots.finished(execution)
        if execution.afterwards is not None:
            await self._see_off(execution, execution.afterwards)

    def _afterwards(
        self, execution: Execution, pending: Pending, outcome: AttemptOutcome
    ) -> Afterwards | None:
        """Return what is to be called when the outcome is stored, if there is something."""
        if execution.released or not (pending.callbacks and isinstance(outcome, Succeeded)):
            return None
        afterwards = Afterwards(execution.claim, pending.callbacks, self.stage.client.called_back)
        if self.slots.curtailed:
            afterwards.cancel()
        return afterwards

    async def _see_off(self, execution: Execution, afterwards: Afterwards) -> None:
        """Call what is to be called afterwards, in the place of the handler."""
        try:
            await afterwards.run()
        except BaseException:  # as above, it ends the worker
            self.slots.cancel_all(CancelReason.SHUTDOWN)
            raise
        finally:
            self.slots.finished(execution)

    def give_back(self, executions: Iterable[Execution]) -> None:
        """Let go of claims whose handler has not started, or will not end in time."""
        for execution in executions:
            reason = self.stage.why(execution)
            started = execution.started_at < math.inf
            self._hand_in(execution, _of_reason(execution, reason) if started else _NOT_STARTED)
            execution.released = True

    def begins(self, execution: Execution) -> None:
        """Let it be known that a handler is about to be called."""
        execution.begun_at = trio.current_time()
        if self.starts.wanted:
            self._tell_start(execution)

    def _tell_start(self, execution: Execution) -> None:
        execution.told = True
        self.starts.tell(self._started(execution))

    def _hand_in(self, execution: Execution, outcome: AttemptOutcome) -> None:
        # Even if others may have the task: the store knows whether they do, or we committed.
        if execution.in_doubt is not None or not self.stage.lost(execution):
            if not execution.told and outcome is not _NOT_STARTED and self.starts.wanted:
                self._tell_start(execution)  # its end will be told, though it may not have begun
            self.settler.put(_entry(execution, outcome))
            return
        if outcome not in {_NOT_STARTED, _INTERRUPTED}:
            log.warning("lost the claim on %s; its outcome is dropped", execution.claim)
        execution.drop()
        self.slots.settled([execution.claim.fence])

    def _has_stored(self, execution: Execution) -> None:
        if execution.settlement is not None:
            return  # the settler has found it when it wanted to give the claim back
        entry = _entry(execution, Succeeded())
        settlement = self.settler.decide(entry)
        execution.has_stored(settlement)
        self.slots.settled([execution.claim.fence])
        self.settler.stored([entry], [settlement], ())

    def _started(self, execution: Execution) -> Started:
        claim = execution.claim
        return Started(
            task_id=claim.fence.task_id,
            task_type=claim.task_type,
            queue=claim.queue,
            attempt=claim.attempt,
            worker_id=self.stage.worker_id(),
            lag=claim.lag + min(execution.begun_at, trio.current_time()) - execution.claimed_at,
        )

    def _meaning(self, execution: Execution, end: End) -> AttemptOutcome:
        if isinstance(end, NotBegun):
            return _NOT_STARTED
        task_id = execution.claim.fence.task_id
        match end:
            case Raised(error):
                return self._unless_excused(execution, error, _of_error(execution, error))
            case Unsure(success, error, committed):
                excuse(error, Excuse.NOT_SETTLED)
                otherwise = self._unless_excused(execution, error, _of_error(execution, error))
                execution.in_doubt = Doubt(committed, otherwise)
                return success
            case Stopped(CancelReason.TIMED_OUT, error) if execution.unconnected:
                record = _NO_CONNECTION if error is None else _record(error)
                return Interrupted(record, self._refund(execution, Excuse.NO_CONNECTION))
            case Stopped(reason, error):
                self.refunds.ended(task_id)
                return _of_reason(execution, reason, None if error is None else _record(error))
            case Succeeded():
                self.refunds.ended(task_id)
                return end
            case _:
                assert_never(end)

    def _unless_excused(
        self, execution: Execution, error: BaseException, outcome: AttemptOutcome
    ) -> AttemptOutcome:
        """Give the attempt back instead of failing it, if its handler cannot help it."""
        if isinstance(outcome, Failed) and outcome.retry and outcome.after is None:
            why = excused(error)
            if why is not None and (delay := self._refund(execution, why)) is not None:
                return Interrupted(outcome.error, delay)
        self.refunds.ended(execution.claim.fence.task_id)
        return outcome

    def _refund(self, execution: Execution, why: Excuse) -> float | None:
        if why is Excuse.NO_CONNECTION:
            log.warning("%s got no connection: no attempt is used up", execution.claim)
        return self.refunds.grant(execution.claim.fence.task_id, why)

    async def _settle(self, tx: Transaction, execution: Execution, success: Succeeded) -> None:
        await tx.settle(self.settler.decide(_entry(execution, success)))


def _entry(execution: Execution, outcome: AttemptOutcome) -> Entry:
    doubt = execution.in_doubt
    return Entry(
        execution=execution,
        outcome=outcome,
        cancel_requested=execution.cancel_requested,
        instead=None if doubt is None else doubt.otherwise,
        unanswered=doubt is not None,
    )


def _of_reason(
    execution: Execution, reason: CancelReason | None, error: ErrorRecord | None = None
) -> AttemptOutcome:
    """What it means that the attempt was cancelled."""
    match reason:
        case CancelReason.TIMED_OUT:
            return TimedOut(execution.policy.timeout, error)
        case CancelReason.CANCELLED:
            return Cancelled(error)
        case _:
            return Interrupted(error)


def _of_error(execution: Execution, error: BaseException) -> AttemptOutcome:
    """What it means that the handler raised."""
    causes, record = list(leaves(error)), _record(error)
    if not all(is_a(cause, Exception) for cause in causes):
        what = "%s raised %s: a failure like any other, which does not end the worker"
        log.warning(what, execution.claim, record.type)
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
