"""Calls after the commit of another library's transaction, in a thread or on asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging

from collections.abc import AsyncGenerator, Callable, Generator, Sequence

import attrs

from nursery_queue._client._callbacks import (
    MOST,
    TIMEOUT,
    Callback,
    CallbackOutcome,
    CallbackTally,
    PendingCallbacks,
)


log = logging.getLogger("nursery_queue")


@attrs.frozen(eq=False)
class CommittedCall:
    """A callback, and where its outcome is counted.

    An error of the callback is logged, except `KeyboardInterrupt`, `CancelledError` and the like,
    which go on.
    """

    callback: Callback
    tally: CallbackTally

    @classmethod
    def of(
        cls, fn: Callable[..., object], args: Sequence[object], tally: CallbackTally
    ) -> CommittedCall:
        """Return a call of *fn*. Raises `TypeError` for what cannot be called."""
        return cls(PendingCallbacks().add(fn, args), tally)

    def here(self) -> None:
        """Call it now, in this thread."""
        with self._counted():
            self.callback.context.run(self.callback.fn, *self.callback.args)

    async def on_asyncio(self, slots: asyncio.Semaphore) -> None:
        """Call it as soon as there is a slot, and await what it returns if that can be awaited."""
        with self._counted():
            async with slots, _time_limit():
                result = self.callback.fn(*self.callback.args)
                if inspect.isawaitable(result):
                    await result

    @contextlib.contextmanager
    def _counted(self) -> Generator[None]:
        end = CallbackOutcome.CANCELLED
        try:
            yield
            end = CallbackOutcome.FINISHED
        except Exception as exc:  # no error undoes the commit
            end = CallbackOutcome.TIMED_OUT if isinstance(exc, _TooSlow) else CallbackOutcome.FAILED
            log.exception("%s, called after a commit, failed", self.callback)
        finally:
            self.tally.note(end)


async def call_all(calls: Sequence[CommittedCall]) -> None:
    """Make these calls on asyncio, begun in order, some at once; cancelled, cancel them."""
    slots = asyncio.Semaphore(MOST)
    async with asyncio.TaskGroup() as group:
        for call in calls:
            group.create_task(call.on_asyncio(slots), context=call.callback.context)


def plain(fn: Callable[..., object]) -> Callable[..., object]:
    """Return *fn* if it is a function that need not be awaited, or raise `TypeError`."""
    if inspect.iscoroutinefunction(fn):
        msg = f"{fn!r:.100} is async, and nobody here could await it: after() takes plain functions"
        raise TypeError(msg)
    return fn


class _TooSlow(Exception):
    """A callback was cancelled for its time limit."""


@contextlib.asynccontextmanager
async def _time_limit() -> AsyncGenerator[None]:
    limit = asyncio.timeout(TIMEOUT)
    try:
        async with limit:
            yield
    except TimeoutError as exc:
        if not limit.expired():
            raise  # its own
        raise _TooSlow(f"it took over {TIMEOUT:g} s") from exc
