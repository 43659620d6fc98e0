"""The threads of handlers without `async`: who has one, who waits, and who will not let go."""

from __future__ import annotations

import logging

from collections.abc import Callable
from typing import Any, cast

import attrs
import trio

from nursery_queue._trio._clock import held

from ._attempt import Attempt
from ._work_signal import WorkSignal


log = logging.getLogger("nursery_queue")

WAIT = 1.0  # seconds an attempt waits for a thread before other workers may have its task
_NAMED = 10  # handlers in one line of the log


class NoThread(Exception):  # says what happened
    """No thread became free in time; the handler was not called."""


@attrs.define(eq=False)
class Threads:
    """At most *limit* threads at once, counting those of abandoned attempts that go on.

    A cancelled attempt ends at once, and a thread cannot be stopped: it keeps its place here
    until the handler returns. There are as many threads as handlers may run at once, so an
    attempt waits for a thread only if abandoned ones have too many of them. *work* is rung when
    a thread is free that was missed before.
    """

    limit: int
    work: WorkSignal = attrs.field(factory=WorkSignal)
    _limiter: trio.CapacityLimiter = attrs.field(init=False)
    # Whose thread has begun and not ended, in the order of their start.
    _taken: dict[Attempt, None] = attrs.field(factory=dict[Attempt, None], init=False)
    _waiting: set[Attempt] = attrs.field(factory=set[Attempt], init=False)
    _told: bool = attrs.field(default=False, init=False)  # the log, that there is none left
    _wanted: bool = attrs.field(default=False, init=False)  # one was missed

    def __attrs_post_init__(self) -> None:
        self._limiter = trio.CapacityLimiter(self.limit)

    async def run(
        self,
        attempt: Attempt,
        begun: Callable[[], None],
        function: Callable[..., Any],
        *args: Any,
    ) -> Any:
        """Call *function* in a thread; *begun* is called here when there is one for it.

        Cancelled, it abandons the thread and returns: the log tells the truth at once, and
        neither a time limit nor a shutdown hangs on it.

        Raises:
            NoThread: There was none for a second; nothing has been called.
        """
        place = _ThreadSlot(self, attempt, begun)
        with held():
            return await trio.to_thread.run_sync(
                function,
                *args,
                abandon_on_cancel=True,
                limiter=cast("trio.CapacityLimiter", place),  # trio's documentation allows it
            )

    @property
    def abandoned(self) -> list[Attempt]:
        """The attempts that have ended while their threads go on, the oldest first."""
        return [attempt for attempt in self._taken if attempt.over]

    @property
    def exhausted(self) -> bool:
        """Whether no thread is free, and some are with attempts that have ended."""
        return self._limiter.available_tokens <= 0 and any(each.over for each in self._taken)

    def waits(self, attempt: Attempt) -> bool:
        """Whether an attempt waits for a thread."""
        return attempt in self._waiting

    def turn_away(self) -> None:
        """Ring when a thread is free, and log why there is none.

        There is one line, until an abandoned thread has ended.
        """
        self._wanted = True
        if self._told:
            return
        self._told = True
        now, abandoned = trio.current_time(), self.abandoned
        names = [f"{each.claim} for {now - each.started_at:.3g} s" for each in abandoned[:_NAMED]]
        if len(abandoned) > _NAMED:
            names.append(f"{len(abandoned) - _NAMED} more")
        log.warning(
            "no thread is free, so no handler without `async` can start: %d of %d are taken by"
            " attempts that were cancelled and whose handlers still run: %s",
            len(abandoned),
            self.limit,
            ", ".join(names),
        )

    async def acquire(self, attempt: Attempt, borrower: object) -> None:
        """Take a thread, for `_ThreadSlot`."""
        try:
            self._limiter.acquire_on_behalf_of_nowait(borrower)
        except trio.WouldBlock:
            await self._wait(attempt, borrower)
        self._taken[attempt] = None

    async def _wait(self, attempt: Attempt, borrower: object) -> None:
        self.turn_away()
        self._waiting.add(attempt)
        try:
            with trio.move_on_after(WAIT) as patience:
                await self._limiter.acquire_on_behalf_of(borrower)
        finally:
            self._waiting.remove(attempt)
        if patience.cancelled_caught:
            raise NoThread

    def release(self, attempt: Attempt, borrower: object) -> None:
        """Give a thread back, for `_ThreadSlot`; called by trio when its function has ended."""
        self._limiter.release_on_behalf_of(borrower)
        del self._taken[attempt]
        if attempt.over:
            self._told = False
        if self._wanted:
            self._wanted = False
            self.work.ring()


@attrs.define(eq=False)
class _ThreadSlot:
    """The place of one attempt, as trio's threads want to have it: both are called by trio."""

    _threads: Threads
    _attempt: Attempt
    _begun: Callable[[], None]

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self._threads.acquire(self._attempt, borrower)
        self._begun()

    def release_on_behalf_of(self, borrower: object) -> None:
        self._threads.release(self._attempt, borrower)
