"""Runs one attempt, and says what became of it: exactly once, whatever happens."""

from __future__ import annotations

import contextlib
import logging
import math

from collections.abc import Callable, Iterable
from typing import Any, cast
from uuid import UUID

import attrs
import trio

from nursery_queue._client import Client
from nursery_queue._context import CancelReason, TaskContext
from nursery_queue._core._error_text import error_record
from nursery_queue._core._errors import (
    DoNotRetry,
    ParamsError,
    ResultError,
    RetryAfter,
    Snooze,
)
from nursery_queue._core._groups import leaves
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
from nursery_queue._transaction import Transaction

from ._asyncio_bridge import AsyncioBridge
from ._hands import Execution, Hands
from ._settler import Entry, Settler


log = logging.getLogger("nursery_queue")


@attrs.define(eq=False, kw_only=True)
class Executor:
    """Runs attempts for one worker."""

    client: Client
    worker_id: Callable[[], UUID]
    hands: Hands
    settler: Settler
    threads: trio.CapacityLimiter
    bridge: AsyncioBridge | None = None

    async def execute(self, execution: Execution) -> None:
        """Run one attempt and hand in its outcome."""
        outcome: AttemptOutcome = NotStarted()  # true until something better is known
        settled = False
        try:
            if not execution.scope.cancel_called:
                outcome = Interrupted()
                outcome, settled = await self._attempt(execution)
        finally:
            # Nothing in here waits, so it happens also while we are being cancelled.
            self._hand_in(execution, outcome, settled=settled)
            self.hands.finished(execution)

    def _hand_in(self, execution: Execution, outcome: AttemptOutcome, *, settled: bool) -> None:
        # With the lease lost, others may have the task: there is nothing we may say about it.
        if settled or execution.reason is CancelReason.LEASE_LOST:
            self.hands.settled([execution.claim.fence])
        elif not execution.released:
            self.settler.put(_entry(execution, outcome))

    def give_back(self, executions: Iterable[Execution], outcome: AttemptOutcome) -> None:
        """Release claims whose handler has not started, or will not end in time."""
        for execution in executions:
            execution.released = True
            self.settler.put(_entry(execution, outcome))

    async def _attempt(self, execution: Execution) -> tuple[AttemptOutcome, bool]:
        """Run the handler in its scope; return the outcome, and whether it is stored already."""
        scope, limit = execution.scope, execution.policy.timeout
        if limit != math.inf:
            scope.deadline = trio.current_time() + limit
        outcome: AttemptOutcome = Interrupted()
        error: BaseException | None = None
        settled = False
        try:
            with scope:
                outcome, settled = await self._run(execution)
        except BaseException as exc:  # noqa: BLE001  # a handler's errors are results
            error = _of_the_handler(exc)
        if error is not None and (not scope.cancel_called or _on_purpose(error)):
            return _of_error(error), False
        if error is not None or scope.cancelled_caught:
            # An error raised by a cancelled handler comes of its clean-up.
            if trio.current_time() >= scope.deadline:
                execution.note(CancelReason.TIMED_OUT)
            return _of_reason(execution, None if error is None else _record(error)), False
        return outcome, settled

    async def _run(self, execution: Execution) -> tuple[AttemptOutcome, bool]:
        task_type = execution.task_type
        values = task_type.load(execution.claim.params)
        if task_type.transactional:
            return await self._run_transactional(execution, values)
        context = self._context(execution, values) if _needs_context(execution) else None
        result = await self._call(execution, context, values)
        return Succeeded(task_type.dump_result(result)), False

    async def _run_transactional(
        self, execution: Execution, values: dict[str, Any]
    ) -> tuple[AttemptOutcome, bool]:
        """Run the handler; commit what it did in ctx.tx together with the settlement."""
        async with contextlib.AsyncExitStack() as stack:
            store = self.client.store
            tx = Transaction(
                lambda: stack.enter_async_context(store.transaction()),
                self.client.max_params_bytes,
            )
            stack.callback(tx.end)
            context = self._context(execution, values, tx)
            result = await self._call(execution, context, values)
            outcome = Succeeded(execution.task_type.dump_result(result))
            stored = tx.is_open
            if stored:
                await tx.settle(self.settler.decide(_entry(execution, outcome)))
        return outcome, stored

    async def _call(
        self, execution: Execution, context: TaskContext | None, values: dict[str, Any]
    ) -> Any:
        task_type = execution.task_type
        if not task_type.is_async:
            # Abandoned when cancelled: the thread runs on, but the log tells the truth at
            # once, and neither a time limit nor a shutdown hangs on it. The limiter counts
            # threads that are still running.
            return await trio.to_thread.run_sync(
                task_type.invoke, context, values, abandon_on_cancel=True, limiter=self.threads
            )
        if task_type.asyncio:
            if self.bridge is None:
                msg = (
                    f"{task_type.name} needs asyncio and was declared after the worker had started"
                )
                raise RuntimeError(msg)
            return await self.bridge.run(task_type.invoke, context, values)
        if task_type.nursery and context is not None:
            async with context.own_nursery():
                return await task_type.invoke(context, values)
        return await task_type.invoke(context, values)

    def _context(
        self, execution: Execution, values: dict[str, Any], tx: Transaction | None = None
    ) -> TaskContext:
        claim = execution.claim
        execution.context = TaskContext(
            task_id=claim.fence.task_id,
            task_type=claim.task_type,
            attempt=claim.attempt,
            queue=claim.queue,
            params=values,
            deadline=execution.scope.deadline,
            worker_id=self.worker_id(),
            fence=claim.fence,
            client=self.client,
            tx=tx,
        )
        return execution.context


def _entry(execution: Execution, outcome: AttemptOutcome) -> Entry:
    return Entry(
        claim=execution.claim,
        outcome=outcome,
        policy=execution.policy,
        cancel_requested=execution.cancel_requested,
    )


def _needs_context(execution: Execution) -> bool:
    return execution.task_type.takes_context or execution.task_type.nursery


def _of_the_handler(exc: BaseException) -> BaseException:
    """Return what the handler has to answer for; raise what is meant for those around it."""
    foreign: tuple[type[BaseException], ...] = (KeyboardInterrupt, GeneratorExit)
    if trio.current_effective_deadline() == -math.inf:
        foreign = (*foreign, trio.Cancelled)  # else a leftover that no scope waits for
    for_others = _only(foreign, exc)
    if for_others is not None:
        raise for_others
    return exc


def _only(kinds: tuple[type[BaseException], ...], exc: BaseException) -> BaseException | None:
    """Return what of *exc* is of these kinds."""
    if isinstance(exc, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", exc).subgroup(kinds)
    return exc if isinstance(exc, kinds) else None


def _on_purpose(error: BaseException) -> bool:
    """Whether the handler says what is to become of the task."""
    return any(isinstance(leaf, DoNotRetry | RetryAfter | Snooze) for leaf in leaves(error))


def _record(error: BaseException) -> ErrorRecord:
    causes = list(leaves(error))
    return error_record(causes[0] if len(causes) == 1 else error)


def _of_reason(execution: Execution, error: ErrorRecord | None) -> AttemptOutcome:
    """What it means that the attempt was cancelled."""
    match execution.reason:
        case CancelReason.TIMED_OUT:
            return TimedOut(execution.policy.timeout, error)
        case CancelReason.CANCELLED:
            return Cancelled(error)
        case _:
            return Interrupted(error)


def _of_error(error: BaseException) -> AttemptOutcome:
    """What it means that the handler raised."""
    causes, record = list(leaves(error)), _record(error)
    if any(isinstance(cause, DoNotRetry | ParamsError | ResultError) for cause in causes):
        return Failed(error=record, retry=False)
    later = [cause for cause in causes if isinstance(cause, RetryAfter | Snooze)]
    if len(later) < len(causes):
        return Failed(error=record)
    longest = max(cause.seconds for cause in later)
    if all(isinstance(cause, Snooze) for cause in later):
        return Snoozed(longest)
    return Failed(error=record, after=longest)
