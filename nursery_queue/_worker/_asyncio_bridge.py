"""asyncio handlers inside the trio worker: one loop, structured per attempt."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextvars import Context, ContextVar
from typing import Any, TypeVar

import attrs
import trio

from nursery_queue._client._context import TaskContext
from nursery_queue._trio._asyncio_loop import TrioHostedLoop, open_asyncio_loop
from nursery_queue._trio._asyncio_owners import begun_here, signals_here
from nursery_queue._trio._signals import interrupted

from ._asyncio_context import crossing


log = logging.getLogger("nursery_queue")
R = TypeVar("R")


class HandlerCancelledItself(Exception):  # says what happened
    """An asyncio handler raised `CancelledError` although its attempt was not cancelled."""

    __module__ = "nursery_queue"  # what users read in tracebacks


class HandlerExited(Exception):  # says what happened
    """An asyncio handler raised what would end the loop it shares with others.

    That is `SystemExit` or `KeyboardInterrupt`.
    """

    __module__ = "nursery_queue"  # what users read in tracebacks


@attrs.define(eq=False)
class _Attempt:
    """What one handler has started in the loop it shares with the others."""

    served: trio.lowlevel.Task = attrs.field(factory=trio.lowlevel.current_task)
    # The handler's own first, then those that it has started and that are still of interest.
    tasks: list[asyncio.Task[Any]] = attrs.field(factory=list["asyncio.Task[Any]"])
    errors: list[BaseException] = attrs.field(factory=list[BaseException])
    interrupt: BaseException | None = None  # a signal's: for those around us, when all has ended
    ended: bool = False
    _sort_out_at: int = 32

    def add(self, task: asyncio.Task[Any]) -> None:
        """Note a task. What has ended well, or has been awaited, is let go of with its result."""
        if len(self.tasks) >= self._sort_out_at:
            self.tasks[1:] = [t for t in self.tasks[1:] if not t.done() or t._log_traceback]
            self._sort_out_at = 32 + 2 * len(self.tasks)
        self.tasks.append(task)

    def struck(self, error: BaseException) -> bool:
        """End, and those around us, too, if it was a signal's handler that has raised *error*."""
        if not interrupted(error):
            return False
        self.interrupt = error
        self.tasks[0].cancel("interrupted")  # the handler itself, which may be another task
        return True


_current: ContextVar[_Attempt | None] = ContextVar("nursery_queue_asyncio_attempt", default=None)


@attrs.define(eq=False)
class AsyncioBridge:
    """Calls asyncio handlers. Cancellation and time limits cross the border both ways."""

    _loop: TrioHostedLoop

    def crossing(self, context: TaskContext) -> TaskContext:
        """Return *context* as a handler on asyncio can use it."""
        return crossing(context, self._loop)

    async def run(self, handler: Callable[..., Coroutine[Any, Any, R]], *args: Any) -> R:
        """Run an asyncio handler: nothing it started survives it, every error is its own."""
        attempt = _Attempt()
        token, begun = _current.set(attempt), begun_here.set(set())
        added = signals_here.set(signals := set[int]())
        try:
            result = await self._run(attempt, handler, *args)
        finally:
            attempt.ended = True
            for signum in signals:  # the worker's own, such as SIGTERM, are heard again
                self._loop.remove_signal_handler(signum)
            signals_here.reset(added)
            begun_here.reset(begun)
            _current.reset(token)
            if attempt.interrupt is not None:
                raise attempt.interrupt
        if attempt.errors:
            raise attempt.errors[0]
        return result

    async def _run(
        self, attempt: _Attempt, handler: Callable[..., Coroutine[Any, Any, R]], *args: Any
    ) -> R:
        try:
            task = self._loop.create_task(_supervised(attempt, handler, *args))
            return await self._loop.outcome_of(task)
        except asyncio.CancelledError as exc:
            # Ours would have arrived as trio.Cancelled.
            msg = "the handler raised asyncio.CancelledError by itself"
            raise HandlerCancelledItself(msg) from exc
        except BaseExceptionGroup as group:
            await _raise_without_cancelled(group)
            raise
        except RuntimeError as exc:
            if str(exc).startswith(_OF_TRIO):
                exc.add_note(_NOT_HERE)
            raise


# What asyncio and trio say when a function of trio is awaited in a task of asyncio.
_OF_TRIO = ("Task got bad yield", "must be called from async context")
_NOT_HERE = (
    "A handler with asyncio=True cannot await functions of trio. Of nursery_queue, use what the"
    " handler's own TaskContext gives it: ctx.client, ctx.stream(), ctx.transaction(), ctx.tx."
)


async def _raise_without_cancelled(group: BaseExceptionGroup[BaseException]) -> None:
    """Take `CancelledError` out if we are cancelled, as a trio scope does with its own."""
    ours, errors = group.split(asyncio.CancelledError)
    if ours is None or trio.current_effective_deadline() > -math.inf:
        return
    if errors is not None:
        raise errors
    await trio.lowlevel.checkpoint()


@contextlib.asynccontextmanager
async def open_bridge() -> AsyncGenerator[AsyncioBridge]:
    """Run an asyncio loop while the block lasts."""
    async with open_asyncio_loop() as loop:
        loop.set_task_factory(_spawn)
        loop.set_exception_handler(_uncaught)
        yield AsyncioBridge(loop)


async def _supervised(
    attempt: _Attempt, handler: Callable[..., Coroutine[Any, Any, R]], *args: Any
) -> R:
    me = asyncio.current_task()
    try:
        return await handler(*args)
    finally:
        cancelled: asyncio.CancelledError | None = None
        # A cancelled task may start others in its clean-up: until none is left.
        while leftovers := [t for t in attempt.tasks if t is not me and not t.done()]:
            for task in leftovers:
                task.cancel("the handler has ended")
            try:
                await asyncio.wait(leftovers)
            except asyncio.CancelledError as exc:  # we are, too; that makes no difference here
                cancelled = exc
        for task in attempt.tasks:
            # An error that was awaited has reached its handler already.
            if task is not me and task._log_traceback and (error := task.exception()):
                attempt.errors.append(error)
        if cancelled is not None:
            raise cancelled


def _spawn(
    loop: asyncio.AbstractEventLoop,
    coroutine: Any,
    *,
    context: Context | None = None,
    **kwargs: Any,
) -> asyncio.Task[Any]:
    """Make a task, which belongs to the attempt in whose context it is to run, if to any."""
    attempt = _current.get() if context is None else context.get(_current)
    kwargs["context"] = context
    if attempt is None:
        return asyncio.Task(coroutine, loop=loop, **kwargs)
    task = asyncio.Task(_Staying(coroutine), loop=loop, **kwargs)
    if not attempt.ended:  # else what is left of it has started another one: nobody's
        attempt.add(task)
    return task


@attrs.define(eq=False)
class _Staying(Coroutine[Any, Any, R]):
    """A coroutine that lets nothing through which would make asyncio end its loop."""

    _inner: Coroutine[Any, Any, R]

    def __await__(self) -> Generator[Any, Any, R]:
        return self._inner.__await__()

    def send(self, value: Any, /) -> Any:
        try:
            return self._inner.send(value)
        except (SystemExit, KeyboardInterrupt) as exc:
            raise _exited(exc) from exc

    def throw(self, *error: Any) -> Any:
        try:
            return self._inner.throw(*error)
        except (SystemExit, KeyboardInterrupt) as exc:
            raise _exited(exc) from exc

    def close(self) -> None:
        self._inner.close()


def _exited(exc: SystemExit | KeyboardInterrupt) -> HandlerExited:
    attempt = _current.get()
    if attempt is not None:
        attempt.struck(exc)
    return HandlerExited(f"the handler raised {exc!r}")


def served(handle: asyncio.Handle) -> trio.lowlevel.Task | None:
    """Return the trio task on whose behalf a callback runs, if it is an attempt's."""
    attempt = handle._context.get(_current)  # type: ignore[attr-defined]  # typeshed leaves it out
    return attempt.served if isinstance(attempt, _Attempt) else None


def _uncaught(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Charge an error in a callback to the attempt it belongs to; else log it."""
    del loop
    # Reported from outside, so what belongs to whom is in the callback's own context.
    handle, error = context.get("handle"), context.get("exception")
    attempt = None if handle is None else handle._context.get(_current)
    if isinstance(error, asyncio.CancelledError):
        return  # asyncio.streams, on Python 3.11, of a connection's task that was cancelled
    if attempt is not None and error is not None and not attempt.ended:
        if not attempt.struck(error):
            attempt.errors.append(error)
    else:
        log.error("asyncio: %s", context.get("message"), exc_info=error)
