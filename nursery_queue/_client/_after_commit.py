"""Callbacks of several transactions, called once these are committed."""

from __future__ import annotations

import contextlib
import logging

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from types import TracebackType
from typing import Self

import attrs
import trio

from nursery_queue._core._checks import limit, whole
from nursery_queue._core._errors import Closed
from nursery_queue._core._exception_groups import unwrapped

from ._callbacks import (
    MOST,
    TIMEOUT,
    Callback,
    CallbackCounts,
    CallbackRunner,
    CallbackTally,
    PendingCallbacks,
)


log = logging.getLogger("nursery_queue")

CLEANUP = 5.0  # seconds for callbacks that shield their clean-up

_CLOSED = "this AfterCommit has been closed: it takes no more callbacks and transactions"


@attrs.frozen
class Drained:
    """How the callbacks ended that were pending when `AfterCommit.aclose` was called.

    Attributes:
        finished: They ended in time, also if they failed or ran into their time limit.
        cancelled: They were cancelled, or will never begin.
    """

    finished: int
    cancelled: int


class AfterCommit:
    """Calls the functions that `tx.after` was given, for any number of transactions.

    `async with AfterCommit() as after:` collects: the callbacks of all transactions opened by
    `client.transaction(after=after)` that were committed run when the block ends, also if it
    raised, and not before, unless `aclose` comes first. In the background they start at each
    commit, or at the end of a `batch`. Either way they start in the order of the commits, and the
    end of the block waits for them; cancelled, it cancels them. Errors are logged and counted,
    never raised.

    Args:
        nursery: Run them in this one, in the background; then no block is needed.
        background: Start them at the commit, in a nursery of the block.
        max_concurrency: How many run at once, over all transactions.
        timeout: Seconds that each may take, from its start; then it is cancelled. May be infinity.

    Raises:
        ValueError, TypeError: A number out of its bounds, or not a number; not a nursery.
    """

    def __init__(
        self,
        nursery: trio.Nursery | None = None,
        *,
        background: bool = False,
        max_concurrency: int = MOST,
        timeout: float = TIMEOUT,
    ) -> None:
        self._given = _checked_nursery(nursery)
        self._at_commit = background or nursery is not None
        self._tally = CallbackTally()
        self._runner = CallbackRunner(
            self._tally,
            most=whole(max_concurrency, "max_concurrency", minimum=1),
            timeout=limit(timeout, "timeout", positive=True),
            nursery=nursery,
        )
        self._block: AbstractAsyncContextManager[None] | None = None
        self._collected = list[Callback]()
        self._open = set[PendingCallbacks]()  # of transactions that have not ended
        self._closed = False

    @property
    def counts(self) -> CallbackCounts:
        """How many callbacks have ended, by outcome."""
        return self._tally.counts

    # -- the block ---------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        self._check_open()
        if self._block is not None:
            raise RuntimeError("this AfterCommit has been entered before: make another one")
        self._block = self._in_nursery()
        await self._block.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._block is not None
        return await self._block.__aexit__(exc_type, exc, traceback)

    @contextlib.asynccontextmanager
    async def _in_nursery(self) -> AsyncGenerator[None]:
        error: BaseException | None = None
        own = trio.open_nursery() if self._given is None else nullcontext(self._given)
        try:
            async with own as nursery:
                self._runner.nursery = nursery
                try:
                    yield
                except BaseException as exc:  # noqa: BLE001  # raised below
                    error = exc  # the nursery must not hear of it: it would cancel the callbacks
                await self._end()
        except BaseExceptionGroup as group:  # the nursery is an implementation detail
            raise unwrapped(group)  # noqa: B904  # it is the same error, not another one
        if error is not None:
            raise error

    async def _end(self) -> None:
        self._close()
        try:
            await self._all_over()
        finally:
            self._runner.cancel()  # a later commit is too late

    # -- the end -----------------------------------------------------------------------

    async def aclose(self, grace: float = 20.0) -> Drained:
        """Take no new work, let what has been accepted run, and cancel what is left of it.

        A callback is accepted when it is registered; it runs if its transaction is committed
        in time. `tx.after` and `client.transaction` raise `Closed` at once. May be called
        again, also at the same time. Cancelled, it cancels the callbacks.

        Args:
            grace: Seconds until it cancels; infinity: never. Callbacks that shield their clean-up
                are waited for 5 s more; then they are named in the log.

        Raises:
            ValueError, TypeError: *grace* is not a number of seconds.
        """
        grace = limit(grace, "grace")
        before = self.counts
        self._close()
        try:
            with trio.move_on_after(grace):
                await self._all_over()
        finally:
            self._runner.cancel()
        await self._all_cancelled()
        after = self.counts
        return Drained(
            finished=_ended(after) - _ended(before),
            cancelled=after.cancelled - before.cancelled + self._runner.pending + self._registered,
        )

    def _close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for pending in self._open:
            pending.refusal = _CLOSED
        self._runner.add(self._collected)

    async def _all_over(self) -> None:
        await trio.lowlevel.checkpoint()
        while self._runner.pending or self._registered:
            await self._runner.ends.park()

    async def _all_cancelled(self) -> None:
        with trio.move_on_after(CLEANUP) as cleanup:
            while self._runner.pending:
                await self._runner.ends.park()
        if cleanup.cancelled_caught:
            for callback in self._runner.running:
                log.warning("cancelled, but still running after a commit: %s", callback)

    @property
    def _registered(self) -> int:
        """How many callbacks belong to transactions that have not ended."""
        return sum(len(pending.callbacks) for pending in self._open)

    @contextlib.contextmanager
    def batch(self) -> Generator[AfterCommitBatch]:
        """Keep back the callbacks of some transactions until all of these have ended.

        `with after.batch() as batch:`, and in it `client.transaction(after=batch)` as often as
        you like. When the block ends, also if it raises, the callbacks of those that were
        committed go on to this `AfterCommit`, together and in order. It waits for nothing.

        Raises:
            Closed: This has been closed. Raised by `client.transaction` if it is closed later.
            RuntimeError: It has not been entered, and has no nursery.
        """
        with self.taking(self.accept) as pending:
            batch = AfterCommitBatch(self, pending)
            try:
                yield batch
            finally:
                batch.over = True
                pending.committed = True  # its callbacks are of committed transactions only

    # -- for the client ----------------------------------------------------------------

    def registering(self) -> AbstractContextManager[PendingCallbacks]:
        """Take the callbacks of one transaction, if it is committed when the block ends."""
        return self.taking(self.accept)

    @contextlib.contextmanager
    def taking(self, accept: Callable[[list[Callback]], None]) -> Generator[PendingCallbacks]:
        """As `registering`; *accept* gets the callbacks of a committed transaction."""
        self._check_open()
        if self._runner.nursery is None:
            msg = "enter the AfterCommit before you use it: async with nq.AfterCommit() as after"
            raise RuntimeError(msg)
        self._open.add(pending := PendingCallbacks())
        try:
            yield pending
        finally:
            self._open.discard(pending)
            if pending.committed:
                accept(pending.callbacks)
            self._runner.ends.unpark_all()

    def accept(self, callbacks: list[Callback]) -> None:
        """Call these, as soon as it is time."""
        if self._at_commit or self._closed:
            self._runner.add(callbacks)
        else:
            self._collected += callbacks

    def _check_open(self) -> None:
        if self._closed:
            raise Closed(_CLOSED)


@attrs.define(eq=False)
class AfterCommitBatch:
    """Some transactions whose callbacks are called together; made by `AfterCommit.batch`."""

    _whole: AfterCommit
    _pending: PendingCallbacks  # what has been committed so far
    over: bool = attrs.field(default=False, init=False)

    def registering(self) -> AbstractContextManager[PendingCallbacks]:
        """Take the callbacks of one transaction, if it is committed when the block ends."""
        if self.over:
            raise Closed("this batch is over: open another one with after.batch()")
        return self._whole.taking(self._take)

    def _take(self, callbacks: list[Callback]) -> None:
        if self.over:  # of a transaction that has outlived it
            self._whole.accept(callbacks)
        else:
            self._pending.callbacks += callbacks


def _ended(counts: CallbackCounts) -> int:
    return counts.finished + counts.failed + counts.timed_out


def _checked_nursery(nursery: object) -> trio.Nursery | None:
    if nursery is not None and not isinstance(nursery, trio.Nursery):
        raise TypeError(f"nursery must be a trio.Nursery or None, not {nursery!r:.100}")
    return nursery
