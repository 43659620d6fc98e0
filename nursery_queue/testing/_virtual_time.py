"""A clock that tests own: trio's and the database's, in step, jumping from deadline to deadline."""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import time

from collections.abc import Generator

import attrs
import trio

from nursery_queue._core._checks import duration
from nursery_queue._trio._clock import ClockStuck, Watched, timekeeper


LONG = 3600.0  # real seconds to sleep when there is nothing to do; whatever happens wakes us


@attrs.define(eq=False)
class _Hold:
    """Something real that is being waited for."""

    limit: float  # real seconds
    since: float = attrs.field(factory=time.monotonic)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    @property
    def left(self) -> float:
        return self.since + self.limit - time.monotonic()


@attrs.define(eq=False)
class _Upkeep:
    """A timer of a loop that looks for what it may have missed."""

    since: float  # what has been due from then on makes it worth a look
    due: float
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)


@attrs.define(eq=False)
class VirtualTime(trio.abc.Clock):
    """A trio clock that jumps to the next deadline as soon as nothing real is going on.

    Use it as `trio.run(main, clock=VirtualTime())`, or name the pytest fixture `virtual_time`
    as an argument of the test itself: through another fixture pytest-trio does not see it.

    It moves trio's time and, in this process, that of `nursery_queue.now()` in SQL, of column
    defaults and triggers with it, and of `MemoryStore`. It never moves while a task can run,
    while an answer of the database is awaited, while a connection is being opened, while a
    handler runs in a thread, or while a notification of this process is under way. Other real
    things (your own threads, HTTP, other processes) need `hold()`. Timers of the server such
    as `statement_timeout` and `pg_sleep` stay real. One clock is for one run.

    Loops that only look for what they may have missed (a waiting client, a listener that probes
    its connection, the reports of a worker) do so once after every other event, and not again
    and again while nothing else happens: days in which a task waits cost nothing.

    Args:
        start: The instant at which it begins, with a time zone; 2030-01-01 UTC.
        max_hold: Real seconds that one wait may keep time from moving, then it gets `ClockStuck`:
            it probably waits for something that only happens later.
    """

    start: dt.datetime = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    max_hold: float = 10.0
    _now: float = attrs.field(default=0.0, init=False)
    _slept: float = attrs.field(default=LONG, init=False)
    _holds: dict[_Hold, None] = attrs.field(factory=dict["_Hold", None], init=False)
    _watched: dict[Watched, None] = attrs.field(factory=dict[Watched, None], init=False)
    # Something real has happened since the last flush: a notification may be under way.
    _dirty: bool = attrs.field(default=False, init=False)
    _upkeep: dict[_Upkeep, None] = attrs.field(factory=dict[_Upkeep, None], init=False)
    # When something other than upkeep was due last.
    _moved: float = attrs.field(default=0.0, init=False)

    def __attrs_post_init__(self) -> None:
        if self.start.utcoffset() is None:
            raise ValueError(f"start must have a time zone, not {self.start!r}")
        duration(self.max_hold, "max_hold", positive=True)

    # -- for tests -------------------------------------------------------------------

    def now(self) -> dt.datetime:
        """Return the virtual instant, in UTC; the same as `nursery_queue.now()` in SQL."""
        return self.start.astimezone(dt.UTC) + dt.timedelta(seconds=self._now)

    @contextlib.contextmanager
    def hold(self, limit: float | None = None) -> Generator[None]:
        """Keep time from moving while the block waits for something real.

        After *limit* real seconds (None: `max_hold`) the block is cancelled and raises
        `ClockStuck`. May be nested, and used by any number of tasks at once.
        """
        seconds = self.max_hold if limit is None else duration(limit, "limit", positive=True)
        try:
            with self._holding(seconds) as held:
                yield
        finally:
            self._dirty = True
        if held.cancelled_caught:
            raise ClockStuck(
                f"virtual time stood still for {seconds:g} s (real): what this waits for has not"
                " come, and may need time to move on"
            )

    def advance(self, seconds: float) -> None:
        """Move time on at once, whatever is going on: what is due happens at the next checkpoint.

        For a database that does not answer, and, called from a handler, for one that blocks
        the event loop for so long.
        """
        self._now += duration(seconds, "seconds")
        self._moved = self._now
        if trio.lowlevel.in_trio_run():  # else as soon as nothing can run
            self._end_upkeep()

    # -- for trio --------------------------------------------------------------------

    def start_clock(self) -> None:
        """Take over the clock of this run."""
        timekeeper.set(self)
        trio.lowlevel.add_instrument(_WhenIdle(self, trio.lowlevel.current_trio_token()))

    def current_time(self) -> float:
        """Return virtual seconds since the start."""
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Return how long trio is to wait for what is real."""
        if deadline <= self._now:
            self._slept = 0.0
        else:
            self._slept = max(0.001, min((hold.left for hold in self._holds), default=LONG))
        return self._slept

    # -- for the timekeeper's users ----------------------------------------------------

    @contextlib.contextmanager
    def watch(self, watched: Watched) -> Generator[None]:
        """Flush *watched* before time moves, while the block lasts."""
        self._watched[watched] = None
        try:
            yield
        finally:
            del self._watched[watched]

    @contextlib.contextmanager
    def upkeep(self, seconds: float, *, eager: bool = True) -> Generator[None]:
        """Leave the block *seconds* later, if something else has been due since it was entered.

        Else, or if it is not *eager*, it is left when the next thing is due. For loops that look
        for what they may have missed: where nothing has happened since they last looked, they
        would find nothing.
        """
        timer = _Upkeep(self._now if eager else math.inf, self._now + seconds)
        self._upkeep[timer] = None
        try:
            with timer.scope:
                yield
        finally:
            del self._upkeep[timer]

    # -- when nothing can run ------------------------------------------------------------

    def on_idle(self, sleep: float, token: trio.lowlevel.TrioToken) -> None:
        """Do what is next; called when trio is about to wait, for *sleep* real seconds."""
        if sleep <= 0:
            return  # there are tasks that can run
        if sleep < self._slept:
            return  # `wait_all_tasks_blocked` goes first
        if self._end_upkeep():
            token.run_sync_soon(_wake_up, idempotent=True)  # a thread has moved time
        elif self._holds:
            if self._free_the_stuck():
                token.run_sync_soon(_wake_up, idempotent=True)
        elif self._dirty and self._watched:
            self._dirty = False
            token.run_sync_soon(trio.lowlevel.spawn_system_task, self._flush)
        elif self._jump():
            token.run_sync_soon(_wake_up, idempotent=True)

    def _jump(self) -> bool:
        """Move to the next deadline, or to upkeep before it that may find something."""
        step = trio.lowlevel.current_statistics().seconds_to_next_deadline
        if step <= 0:
            return False
        upkeep = self._next_upkeep(forced=step == math.inf)
        if step == upkeep == math.inf:
            return False
        if upkeep < self._now + step:
            self._now = upkeep
        else:
            self._moved = self._now = self._now + step
        self._end_upkeep()
        return True

    def _next_upkeep(self, *, forced: bool) -> float:
        wanted = (each.due for each in self._upkeep if forced or self._moved >= each.since)
        return min(wanted, default=math.inf)

    def _end_upkeep(self) -> bool:
        """End what is due, unless that has been done; tell whether there was something."""
        ended = [
            each for each in self._upkeep if each.due <= self._now and not each.scope.cancel_called
        ]
        for each in ended:
            each.scope.cancel("its time has come")
        return bool(ended)

    def _free_the_stuck(self) -> bool:
        stuck = [hold for hold in self._holds if hold.left <= 0]
        for hold in stuck:
            hold.scope.cancel("virtual time is stuck")
        return bool(stuck)

    async def _flush(self) -> None:
        """Hear every notification that was committed before; they come after the commit."""
        for watched in list(self._watched):
            with self._holding(self.max_hold):  # a dead connection may keep us waiting for ever
                await watched.flushed()

    @contextlib.contextmanager
    def _holding(self, seconds: float) -> Generator[trio.CancelScope]:
        hold = _Hold(seconds)
        self._holds[hold] = None
        try:
            with hold.scope:
                yield hold.scope
        finally:
            del self._holds[hold]


class _WhenIdle(trio.abc.Instrument):
    """Tells the clock when no task can run."""

    def __init__(self, clock: VirtualTime, token: trio.lowlevel.TrioToken) -> None:
        self._clock, self._token = clock, token

    def before_io_wait(self, timeout: float) -> None:
        self._clock.on_idle(timeout, self._token)


def _wake_up() -> None:
    """Make trio look at its deadlines again."""
