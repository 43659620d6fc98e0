"""Where handlers run, in production and in tests: one attempt in its scope, from call to end."""

from __future__ import annotations

import contextlib
import functools
import logging
import math

from collections.abc import Awaitable, Callable
from typing import Any, cast

import attrs
import trio

from nursery_queue._client._callbacks import PendingCallbacks
from nursery_queue._client._client import Client
from nursery_queue._client._context import CancelReason, TaskContext
from nursery_queue._client._stream_writer import Send
from nursery_queue._client._transaction import Transaction
from nursery_queue._core._errors import (
    ClaimLocked,
    CommitOutcomeUnknown,
    DatabaseRefused,
    DoNotRetry,
    RetryAfter,
    Snooze,
    StaleClaim,
    TransientError,
)
from nursery_queue._core._exception_groups import is_a, leaves
from nursery_queue._core._excuses import Excuse, excuse
from nursery_queue._core._outcome import Succeeded
from nursery_queue._core._streams import StreamWrite
from nursery_queue._declare._task_type import TaskType
from nursery_queue._trio._connection_use import ConnectionUse, connection_use
from nursery_queue._trio._printable import printable
from nursery_queue._trio._signals import interrupted
from nursery_queue._trio._timeouts import answered_within

from ._asyncio_bridge import AsyncioBridge
from ._attempt import Attempt, Step
from ._lease import Lease
from ._recorder import Recorder
from ._threads import NoThread, Threads


log = logging.getLogger("nursery_queue")

_ENDED = "this attempt has ended: call ctx.after before the handler returns"

SETTLE_WITHIN = 5.0  # seconds, in the transaction of a handler that has returned
_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.1  # seconds between two looks whether a lock is gone
NOTE_WITHIN = 5.0  # seconds, that a task starts which may kill its worker


@attrs.frozen
class Raised:
    """The handler failed, or says what is to become of its task."""

    error: BaseException


@attrs.frozen
class Stopped:
    """The handler was cancelled; *error* is what came of its clean-up."""

    reason: CancelReason | None
    error: BaseException | None = None
    unconnected: bool = False  # its time was up while it waited for a connection


@attrs.frozen
class Unsure:
    """The handler succeeded, and the COMMIT of its transaction got no answer.

    *committed* tells what the transaction has enqueued, should it turn out to be committed.
    """

    success: Succeeded
    error: CommitOutcomeUnknown
    committed: Callable[[], None]


@attrs.frozen
class NotBegun:
    """The handler was not called.

    The store could not be told that it starts, or there was no thread for it.
    """


HandlerEnd = Succeeded | Raised | Stopped | Unsure | NotBegun

# Settles an attempt in the transaction that it has opened.
Settle = Callable[[Transaction, Attempt, Succeeded], Awaitable[None]]


@attrs.define(eq=False, kw_only=True)
class AttemptRunner:
    """Runs handlers, each in a cancel scope of its own, and says how they ended."""

    client: Client
    lease: Lease
    threads: Threads
    recorder: Recorder | None = None  # of when handlers begin
    bridge: AsyncioBridge | None = None
    send: Send | None = None  # stores what handlers write to streams; None: the client's store does

    async def run(self, attempt: Attempt, settle: Settle) -> HandlerEnd:
        """Run one attempt, in a context of its own.

        Raises only what is not its business, as being cancelled around it.
        """
        now = trio.current_time()
        # The time limit of a sync one runs from when it has a thread.
        scope = attempt.limit(now) if attempt.task_type.is_async else attempt.scope
        error: BaseException | None = None
        # For good: the context is the attempt's own, and so is what it still calls afterwards.
        connection_use.set(use := ConnectionUse(in_attempt=True))
        attempt.connections = use
        try:
            with scope:
                try:
                    if attempt.claim.wary:
                        if not await self._noted(attempt):
                            return NotBegun()
                        now = trio.current_time()
                    if attempt.task_type.is_async:
                        self._begins(attempt, now)
                    return await self._perform(attempt, settle)
                except NoThread:
                    return NotBegun()
                finally:
                    if (task := trio.lowlevel.current_task()).child_nurseries:
                        _abandon_nurseries(task)
        except BaseException as exc:
            if _is_for_others(exc):
                raise
            error = _without_own_nursery(exc, attempt.task_type)
        finally:
            if attempt.pending is not None:
                attempt.pending.refusal = _ENDED
        unconnected = use.gave_up_at >= scope.deadline
        reason = attempt.why()
        if error is not None and (not scope.cancel_called or _counts(error, reason)):
            return Raised(error)
        return Stopped(reason, error, unconnected=unconnected)

    def _begins(self, attempt: Attempt, now: float) -> None:
        if self.recorder is not None:
            self.recorder.begins(attempt, now)

    async def _noted(self, attempt: Attempt) -> bool:
        """Let the store know of a start before it happens: it may be this worker's end."""
        fence = attempt.claim.fence
        try:
            with answered_within(NOTE_WITHIN, f"noting that {attempt.claim} starts"):
                held = await self.client.store.note_started(self.lease.worker_id, [fence])
        except (TransientError, DatabaseRefused) as exc:
            log.info("%s is given back: %s", attempt.claim, exc)
            return False
        attempt.noted = fence in held
        return attempt.noted

    async def _perform(self, attempt: Attempt, settle: Settle) -> Succeeded | Unsure:
        task_type = attempt.task_type
        values = task_type.load(attempt.claim.params)
        if task_type.transactional:
            return await self._perform_in_transaction(attempt, values, settle)
        wanted = task_type.takes_context or task_type.nursery
        context = self._context(attempt, values) if wanted else None
        value = await self._call(attempt, context, values)
        return Succeeded(task_type.dump_result(value, self.client.max_result_bytes))

    async def _perform_in_transaction(
        self, attempt: Attempt, values: dict[str, Any], settle: Settle
    ) -> Succeeded | Unsure:
        """Run the handler; commit what it did in ctx.tx together with the settlement."""
        async with contextlib.AsyncExitStack() as stack:
            store = self.client.store
            tx = Transaction(
                lambda: stack.enter_async_context(store.transaction()),
                self.client.max_params_bytes,
                self.client.events,
                _pending(attempt),
                self.client.app,
            )
            stack.callback(tx.end)
            context = self._context(attempt, values, tx)
            value = await self._call(attempt, context, values)
            limit = self.client.max_result_bytes
            success = Succeeded(attempt.task_type.dump_result(value, limit))
            if not tx.is_open:
                return success
            # Shielded: it has returned, and no time limit or cancel is to undo its work.
            with trio.CancelScope(shield=True):
                # The fence in the settlement is what makes it exactly once: if another worker has
                # the task, it is refused, and the handler's writes go with it
                # (tests/engine/test_transactional.py).
                await self._insist_on_settling(settle, tx, attempt, success)
                try:
                    await stack.aclose()  # commits, within the bounds of the store
                except CommitOutcomeUnknown as exc:
                    return Unsure(success, exc, tx.committed)
            attempt.take(Step.COMMIT)
            tx.committed()
            return success

    async def _insist_on_settling(
        self, settle: Settle, tx: Transaction, attempt: Attempt, success: Succeeded
    ) -> None:
        if attempt.lost(trio.current_time()):
            raise StaleClaim(f"the lease ran out before {attempt.claim} had ended")
        with trio.move_on_after(SETTLE_WITHIN):
            await _when_unlocked(functools.partial(settle, tx, attempt, success))
            return
        msg = f"ctx.tx could not be settled within {SETTLE_WITHIN:g} s; it is rolled back"
        late = TransientError(msg)
        excuse(late, Excuse.NOT_SETTLED)
        raise late

    async def _call(
        self, attempt: Attempt, context: TaskContext | None, values: dict[str, Any]
    ) -> Any:
        task_type = attempt.task_type
        if not task_type.is_async:

            def begun() -> None:
                now = trio.current_time()
                self._begins(attempt, now)
                attempt.limit(now)
                if context is not None:
                    context.deadline = attempt.scope.deadline

            return await self.threads.run(attempt, begun, task_type.invoke, context, values)
        if task_type.asyncio:
            if self.bridge is None:
                raise RuntimeError(
                    f"{task_type.name} needs asyncio and was declared after the worker had started"
                )
            crossing = None if context is None else self.bridge.crossing(context)
            return await self.bridge.run(task_type.invoke, crossing, values)
        if task_type.nursery and context is not None:
            async with context.own_nursery():
                return await printable(task_type.invoke(context, values))
        return await task_type.invoke(context, values)

    def _context(
        self, attempt: Attempt, values: dict[str, Any], tx: Transaction | None = None
    ) -> TaskContext:
        claim = attempt.claim
        return TaskContext(
            task_id=claim.fence.task_id,
            task_type=claim.task_type,
            attempt=claim.attempt,
            queue=claim.queue,
            params=values,
            deadline=attempt.scope.deadline,
            worker_id=self.lease.worker_id,
            fence=claim.fence,
            client=self.client,
            tick=claim.tick,
            why=attempt.why,
            pending=lambda: _pending(attempt),
            send=self.send or self._send,
            tx=tx,
        )

    async def _send(self, write: StreamWrite, tx: Transaction | None) -> None:
        await (self.client.store if tx is None else tx).write_stream(write)


async def _when_unlocked(settle: Callable[[], Awaitable[None]]) -> None:
    """Settle; if another transaction holds the claim for the moment, ask again and again.

    Asking does not wait for the lock, so two transactions that want each other's rows do not
    deadlock: no settlement waits for a lock.
    """
    pause = _FIRST_PAUSE
    while True:
        try:
            return await settle()
        except ClaimLocked:
            await trio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)


def _pending(attempt: Attempt) -> PendingCallbacks:
    """Return where to note what is to be called afterwards; few handlers need it."""
    if attempt.pending is None:
        attempt.pending = PendingCallbacks(refusal=_ENDED if attempt.over else None)
    return attempt.pending


def _abandon_nurseries(task: trio.lowlevel.Task) -> None:
    """Cancel the nurseries that a handler has left open, and raise an error.

    An async generator that was not closed, with a nursery in it, will do. Left alone, trio would
    make the worker fail for it, and every worker after this one (tests/engine/test_poison.py).
    It does the same with them when a task ends; waiting here could meet the generator's
    finalizer, which waits in another task for the same nursery.
    """
    for nursery in task.child_nurseries:
        nursery.cancel_scope.cancel("the handler that opened this nursery has ended")
        nursery._closed = True  # pyright: ignore[reportPrivateUsage]  # as trio does itself
    task._child_nurseries.clear()  # pyright: ignore[reportPrivateUsage]  # as above
    raise RuntimeError(
        "the handler has ended before a nursery that it had opened: leave each with `async with`,"
        " and close async generators that hold one with contextlib.aclosing"
    )


def _is_for_others(exc: BaseException) -> bool:
    """Whether there is something in *exc* that a handler does not have to answer for.

    That is a real Ctrl-C, being cancelled from around us, and the end of the run itself. What
    it raises by its own is its own failure, also `KeyboardInterrupt`: it would end every
    worker that takes the task, with all that runs beside it.
    """
    if not trio.lowlevel.in_trio_task():
        return True  # this coroutine is being closed: the run it belonged to is over
    cancelled = (
        trio.current_effective_deadline() == -math.inf
    )  # else a leftover of the handler's own
    if cancelled and any(is_a(leaf, trio.Cancelled) for leaf in leaves(exc)):
        return True
    return interrupted(exc)


def _without_own_nursery(error: BaseException, task_type: TaskType[..., Any]) -> BaseException:
    """Take a single error out of the group that the attempt's own nursery makes of it."""
    if not (task_type.nursery and is_a(error, BaseExceptionGroup)):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    return group.exceptions[0] if len(group.exceptions) == 1 else group


def _counts(error: BaseException, reason: CancelReason | None) -> bool:
    """Whether a cancelled handler says what is to become of its task, and still has a say."""
    if reason is CancelReason.CANCELLED:
        return False
    return any(is_a(leaf, DoNotRetry, RetryAfter, Snooze) for leaf in leaves(error))
