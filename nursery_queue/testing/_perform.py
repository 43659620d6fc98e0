"""Runs one handler as a worker would, for a test to look at what it does."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import math
import uuid

from contextlib import nullcontext
from typing import Any, ParamSpec, assert_never, cast, overload

import attrs
import trio

from nursery_queue._client._callbacks import call_all
from nursery_queue._client._client import Client
from nursery_queue._client._context import CancelReason
from nursery_queue._core._checks import instant, whole
from nursery_queue._core._model import Claim, Fence, NewTask, WorkerInfo
from nursery_queue._core._outcome import Succeeded
from nursery_queue._declare._task_type import TaskRequest, TaskType, as_request
from nursery_queue._first_use import import_all
from nursery_queue._memory._memory_store import MemoryStore
from nursery_queue._trio._connection_use import connection_use
from nursery_queue._trio._printable import attempts_guarded
from nursery_queue._worker._asyncio_bridge import open_bridge
from nursery_queue._worker._attempt import Attempt, Step
from nursery_queue._worker._attempt_runner import (
    AttemptRunner,
    HandlerEnd,
    NotBegun,
    Raised,
    Stopped,
    Unsure,
)
from nursery_queue._worker._lease import Lease
from nursery_queue._worker._threads import Threads


P = ParamSpec("P")


@overload
async def perform(task: TaskType[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Any: ...


@overload
async def perform(task: TaskRequest, /) -> Any: ...


async def perform(task: object, /, *args: Any, **kwargs: Any) -> Any:
    """Run one attempt of a task here and now, without a store; return its result as JSON has it.

    The code is the worker's: params go through JSON and are checked, time limit, `ctx.tx`,
    `ctx.nursery`, threads and asyncio are as declared or as `options()` says. There is one
    attempt, and no retry. `ctx.client` and `ctx.tx` lead to a new `MemoryStore`; `performing()`
    gives handlers a client that you can look at afterwards. Functions that `ctx.after` was given
    are called when the handler has succeeded, and awaited; an error of theirs is logged. Data that
    the handler writes to streams are checked and dropped.

    Being cancelled cancels the handler, with reason SHUTDOWN; a handler that returns all the
    same has its result returned.

    Args:
        task: A task type, followed by the handler's arguments without the context; or what
            `bind()` returned.
        args: The handler's positional arguments.
        kwargs: The handler's arguments by name.

    Raises:
        BaseException: What the handler raised, as it is; `DoNotRetry` and its like, too.
        ParamsError, ResultError: Params or result cannot go through JSON, or do not fit.
        trio.TooSlowError: It was cancelled at its time limit; its own error is the cause.
        TypeError: *task* is neither, or the arguments do not fit its signature.
    """
    return await Performer().perform(as_request(task, *args, **kwargs), _task_type(task))


def performing(
    *, client: Client | None = None, attempt: int = 1, tick: dt.datetime | None = None
) -> Performer:
    """Return a `perform` for the same calls, with another context for the handlers.

    Args:
        client: What `ctx.client` is, and where `ctx.tx` commits to; a new one on a new
            `MemoryStore` for each call by default.
        attempt: What `ctx.attempt` is; 1 is the first.
        tick: What `ctx.tick` is, as if a schedule had enqueued it; None: none has.
    """
    return Performer(
        client=client,
        attempt=whole(attempt, "attempt", minimum=1),
        tick=None if tick is None else instant(tick, "tick"),
    )


@attrs.frozen(kw_only=True)
class Performer:
    """Runs handlers; call it as you would call `perform`."""

    client: Client | None = None
    attempt: int = 1
    tick: dt.datetime | None = None

    @overload
    async def __call__(
        self, task: TaskType[P, Any], /, *args: P.args, **kwargs: P.kwargs
    ) -> Any: ...

    @overload
    async def __call__(self, task: TaskRequest, /) -> Any: ...

    async def __call__(self, task: object, /, *args: Any, **kwargs: Any) -> Any:
        """Run one attempt; see `perform`."""
        return await self.perform(as_request(task, *args, **kwargs), _task_type(task))

    async def perform(self, request: TaskRequest, task_type: TaskType[..., Any]) -> Any:
        """Run one attempt of this call."""
        import_all()
        client = self.client or Client(MemoryStore())
        claim = self._claim(request.to_new_task(client.max_params_bytes))
        lease = _endless_lease(claim.task_type)
        attempt = Attempt(
            claim=claim,
            task_type=task_type,
            policy=task_type.policy(claim),
            lease=lease,
            claimed_at=trio.current_time(),
        )
        attempt.take(Step.START)
        async with open_bridge() if task_type.asyncio else nullcontext() as bridge:
            runner = AttemptRunner(
                client=client,
                lease=lease,
                threads=Threads(1),
                bridge=bridge,
                send=_dropped,
            )
            before = connection_use.set(None)  # the context is the caller's
            try:
                end = await _cancellable(runner, attempt)
            finally:
                connection_use.reset(before)
        if isinstance(end, Succeeded) and attempt.pending and attempt.pending.callbacks:
            await call_all(attempt.pending.callbacks, client.called_back)
        return await _result(end, attempt)

    def _claim(self, task: NewTask) -> Claim:
        return Claim(
            fence=Fence(task_id=0, epoch=1),  # of no task in any store
            attempt=self.attempt,
            lost=0,
            task_type=task.task_type,
            queue=task.queue or "default",  # never None: it was bound
            params=task.params,
            timeout=task.timeout,
            tick=self.tick,
        )


def _task_type(task: object) -> TaskType[..., Any]:
    if isinstance(task, TaskType):
        return cast("TaskType[..., Any]", task)
    if isinstance(task, TaskRequest) and task.made_by is not None:
        return task.made_by
    raise TypeError(
        f"perform takes a task type, or what its bind() returned, not {task!r:.100}:"
        " the handler must be here (app[name] is the task type of that name)"
    )


def _endless_lease(task_type: str) -> Lease:
    """Return the lease of a worker that no other will take for dead."""
    info = WorkerInfo(
        id=uuid.uuid4(), name="perform", host="", pid=0, task_types=[task_type], lease=math.inf
    )
    return Lease(info, until=math.inf)


async def _cancellable(runner: AttemptRunner, attempt: Attempt) -> HandlerEnd:
    """Run the handler. When we are cancelled it is told why, as by a worker that is."""

    async def heed() -> None:
        with contextlib.suppress(trio.Cancelled):  # comes again at the next checkpoint
            await trio.sleep_forever()
        if not attempt.over:
            attempt.cancel(CancelReason.SHUTDOWN)

    end: HandlerEnd = Stopped(CancelReason.SHUTDOWN)  # true until something better is known

    async def run() -> None:
        nonlocal end
        runner.client.lifetime.lend()
        with trio.CancelScope(shield=True), attempts_guarded():
            end = await runner.run(attempt, _nothing_to_settle)
        attempt.take(Step.END)
        nursery.cancel_scope.cancel("the handler has ended")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(heed)
        # A task of its own has a context of its own, as in a worker.
        nursery.start_soon(run, name=f"perform {attempt.claim.task_type}")
    return end


async def _dropped(*_: object) -> None:
    """Let what the handler writes to streams be: there is no task to keep it with."""
    await trio.lowlevel.checkpoint()


async def _nothing_to_settle(*_: object) -> None:
    """Let what the handler did in its transaction be committed alone."""


async def _result(end: HandlerEnd, attempt: Attempt) -> Any:
    match end:
        case Succeeded(result):
            return None if result is None else json.loads(result)
        case Stopped(CancelReason.TIMED_OUT, error):
            name, limit = attempt.claim.task_type, attempt.policy.timeout
            msg = f"{name} did not end within its time limit of {limit:g} s"
            raise trio.TooSlowError(msg) from error
        case Raised(error) | Stopped(_, BaseException() as error) | Unsure(_, error):
            raise error
        case Stopped() | NotBegun():
            await trio.lowlevel.checkpoint()
            raise AssertionError  # we are cancelled
        case _:
            assert_never(end)
