"""The slots of a worker: which tasks it has claimed and not yet settled, and which of them run."""

from __future__ import annotations

import itertools
import math

from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Mapping

import attrs
import trio

from nursery_queue._client._context import CancelReason
from nursery_queue._core._model import CancelRequest, Fence

from ._attempt import Attempt, Step
from ._pace import Pace
from ._work_signal import WorkSignal


@attrs.define(eq=False)
class Slots:
    """Every claim this worker holds. At most *concurrency* of them run.

    *start* begins an attempt, in a task of its own; *work* is rung when there is more room.
    """

    concurrency: int
    queues: Mapping[str, int] | None
    prefetch: int | None  # None: adapt
    work: WorkSignal
    start: Callable[[Attempt], None] = attrs.field(init=False)
    # How many may hold `ctx.tx` at once; as many as run, unless the worker says otherwise.
    transactions: int = attrs.field(init=False)
    held: dict[Fence, Attempt] = attrs.field(factory=dict[Fence, Attempt], init=False)
    # Set when tasks are taken; the reporter replaces it when it has reported all of them.
    used: trio.Event = attrs.field(factory=trio.Event, init=False)
    closing: bool = attrs.field(default=False, init=False)  # no time is left for any handler
    pace: Pace = attrs.field(factory=Pace, init=False)
    # Like a set, but in the order of their start.
    _running: dict[Attempt, None] = attrs.field(factory=dict[Attempt, None], init=False)
    # Those of them that are settled, and stay for what is to be called afterwards.
    _staying: set[Attempt] = attrs.field(factory=set[Attempt], init=False)
    _backlog: deque[Attempt] = attrs.field(factory=deque[Attempt], init=False)
    # The same, of queues with a limit: as they count against it while they wait, they go first.
    _limited: deque[Attempt] = attrs.field(factory=deque[Attempt], init=False)
    _by_queue: Counter[str] = attrs.field(factory=Counter[str], init=False)
    _transactional: int = attrs.field(default=0, init=False)  # of those that are held
    _changed: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    # Claims had to be given back unstarted: until a handler ends, we would only take them again.
    _stalled: bool = attrs.field(default=False, init=False)

    def __attrs_post_init__(self) -> None:
        self.transactions = self.concurrency

    # -- room ----------------------------------------------------------------------

    @property
    def capacity(self) -> int:
        """How many claims may be held."""
        if self._stalled:
            return self.concurrency
        if self.prefetch is not None:
            return self.concurrency + self.prefetch
        return self.concurrency + self.pace.ahead(self._turning)

    @property
    def _turning(self) -> int:
        """How many handlers run or could run that are not among those that take long."""
        since = trio.current_time() - self.pace.horizon
        young = itertools.takewhile(lambda one: one.started_at >= since, reversed(self._running))
        return self.idle + sum(1 for _ in young)

    @property
    def room(self) -> int:
        """How many more claims may be held now."""
        return max(0, self.capacity - len(self.held) - len(self._staying))

    @property
    def idle(self) -> int:
        """How many tasks would start at once if they came now."""
        return self.concurrency - len(self._running)  # the backlog keeps none of these free

    @property
    def soon(self) -> int:
        """How many tasks of queues with a limit would start at once or soon, if they came now.

        As they go first, each would start with the next slot that is free. If they were taken for
        slots that are free already, there would never be one for them where quick tasks are claimed
        ahead (tests/engine/test_pool.py).
        """
        turning = self._turning
        return max(self.idle, min(turning, self.pace.ahead(turning)) - len(self._limited))

    @property
    def wants_more(self) -> bool:
        """Whether a claim is worth a statement: something would start at once, or half is free."""
        return self.room > 0 and (self.idle > 0 or self.room >= self.capacity // 2)

    @property
    def busy(self) -> bool:
        """Whether any claim is held, or something is to be called after a handler."""
        return bool(self.held or self._staying)

    def room_in(self, queue: str, limit: int) -> int:
        """How many more tasks of a queue may be held."""
        return max(0, limit - self._by_queue[queue])

    @property
    def transactions_left(self) -> float:
        """How many more tasks that may open `ctx.tx` may be held; math.inf: any number."""
        if self.transactions >= self.concurrency:
            return math.inf  # then those that run at once are few enough
        return max(0, self.transactions - self._transactional)

    @property
    def running(self) -> list[Attempt]:
        """Those whose handler, or what is called after it, has not ended."""
        return list(self._running)

    # -- coming and going ------------------------------------------------------------

    def take(self, attempts: Iterable[Attempt]) -> None:
        """Hold claims; start as many as may run."""
        now = trio.current_time()
        for attempt in attempts:
            self.used.set()
            self.held[attempt.claim.fence] = attempt
            self._by_queue[attempt.claim.queue] += 1
            self._transactional += attempt.task_type.transactional
            if self.idle:  # nothing waits then
                self._start(attempt, now)
            elif attempt.claim.limited:
                self._limited.append(attempt)
            else:
                self._backlog.append(attempt)

    def finished(self, attempt: Attempt, now: float) -> None:
        """Free the slot of an attempt; its claim is held until it is settled."""
        self._running.pop(attempt, None)
        # Before the next one starts: how long handlers take decides how many are claimed ahead.
        self.pace.took(now - attempt.started_at)
        self._stalled = False
        self._start_next(now)
        if attempt in self._staying:
            self._staying.remove(attempt)
            self._freed()
        elif not self._running:
            self._changed.unpark_all()

    def settled(self, fences: Iterable[Fence]) -> None:
        """Let go of claims whose settlement is stored, or that are not ours any more."""
        ended_at = math.inf
        for fence in fences:
            if (attempt := self.held.pop(fence, None)) is not None:
                ended_at = min(ended_at, attempt.ended_at)
                self._by_queue[attempt.claim.queue] -= 1
                self._transactional -= attempt.task_type.transactional
                # Its claim is gone, and what `ctx.after` was given still runs in its slot: without
                # this the worker would claim for a slot that is not free
                # (tests/engine/test_after.py).
                if attempt.afterwards is not None and attempt in self._running:
                    self._staying.add(attempt)
        if ended_at < math.inf:
            self.pace.stored(trio.current_time() - ended_at)
        self._freed()

    def _freed(self) -> None:
        self.work.free()
        self._changed.unpark_all()

    async def quiet(self) -> None:
        """Wait until no handler runs."""
        while self._running:
            await self._changed.park()

    async def empty(self) -> None:
        """Wait until no claim is held, and nothing is to be called after a handler."""
        while self.busy:
            await self._changed.park()

    async def settled_all(self) -> None:
        """Wait until no claim is held."""
        while self.held:
            await self._changed.park()

    def _start_next(self, now: float) -> None:
        while (waiting := self._limited or self._backlog) and self.idle:
            self._start(waiting.popleft(), now)

    def _start(self, attempt: Attempt, now: float) -> None:
        attempt.take(Step.START)
        attempt.started_at = now
        self._running[attempt] = None
        if self.closing:
            attempt.cancel(CancelReason.SHUTDOWN)
        # In the order of the claims, each in a task that begins at the next checkpoint.
        self.start(attempt)

    # -- what waits for a slot -----------------------------------------------------------

    @property
    def _waiting(self) -> tuple[deque[Attempt], deque[Attempt]]:
        return self._limited, self._backlog

    @property
    def oldest(self) -> float:
        """When the first in the backlog was claimed, on trio's clock; math.inf: it is empty."""
        return min((each[0].claimed_at for each in self._waiting if each), default=math.inf)

    @property
    def waiting(self) -> set[str]:
        """The queues of what is in the backlog."""
        return {attempt.claim.queue for each in self._waiting for attempt in each}

    def unstarted(self, *, waiting: float = 0.0) -> list[Attempt]:
        """Take out of the backlog what has waited for so many seconds; it does not start here."""
        now, stale = trio.current_time(), list[Attempt]()
        for each in self._waiting:
            while each and each[0].claimed_at + waiting <= now:
                stale.append(each.popleft())
        if stale:
            self.pace.stalled(now - min((e.started_at for e in self._running), default=now))
            self._stalled = True
        return stale

    def withdraw(self, queues: Container[str]) -> list[Attempt]:
        """Take out of the backlog what is of these queues; it does not start here."""
        withdrawn = list[Attempt]()
        for each in self._waiting:
            withdrawn += [attempt for attempt in each if attempt.claim.queue in queues]
            left = [attempt for attempt in each if attempt.claim.queue not in queues]
            each.clear()
            each.extend(left)
        return withdrawn

    # -- cancelling ------------------------------------------------------------------

    def cancel_all(self, reason: CancelReason) -> None:
        """Cancel every handler, and keep what waits from starting."""
        for attempt in self.held.values():
            attempt.cancel(reason)

    def close(self) -> None:
        """Cancel everything, for a shutdown; what starts from now on is cancelled, too."""
        self.closing = True
        self.cancel_all(CancelReason.SHUTDOWN)
        for attempt in self._running:
            if attempt.afterwards is not None:
                attempt.afterwards.cancel()

    def obey(self, request: CancelRequest) -> None:
        """Cancel one of these tasks, as its owner has asked for."""
        if (attempt := self.held.get(request.fence)) is not None:
            attempt.cancel_requested = True
            if request.interrupt:
                attempt.cancel(CancelReason.CANCELLED)
