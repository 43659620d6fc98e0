"""The tasks in hand: what this worker has claimed and not yet settled."""

from __future__ import annotations

import itertools
import math

from collections import Counter, deque
from collections.abc import Callable, Container, Iterable, Mapping

import attrs
import trio

from nursery_queue._client._callbacks import Pending
from nursery_queue._client._context import CancelReason
from nursery_queue._core._model import CancelRequest, Claim, Fence, Settlement
from nursery_queue._core._outcome import AttemptOutcome, Policy
from nursery_queue._core._states import Event
from nursery_queue._declare._task_type import TaskType
from nursery_queue._trio._connection_use import ConnectionUse

from ._afterwards import Afterwards


@attrs.frozen
class Doubt:
    """A success that may be committed. *committed* tells what its transaction has enqueued."""

    committed: Callable[[], None]
    otherwise: AttemptOutcome  # if it is not


@attrs.define(eq=False)
class Execution:
    """One claimed task, from the claim until its settlement is stored."""

    claim: Claim
    task_type: TaskType[..., object]
    policy: Policy
    claimed_at: float
    started_at: float = math.inf  # on trio's clock, as is claimed_at
    ended_at: float = math.inf  # the handler, whatever became of it
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    reason: CancelReason | None = None
    cancelled_at: float = math.inf  # by `cancel`; a time limit is the deadline of the scope
    cancel_requested: bool = False
    # The store has been told that it has started, so that it counts if this worker dies; of a
    # claim that starts at once it knows from the beginning.
    noted: bool = False
    begun_at: float = math.inf  # when its handler was called: a sync one waits for a thread first
    told: bool = False  # whoever wants to hear of its start has heard of it
    released: bool = False  # given back although the handler has not ended
    stored: bool = False  # its success has been committed with its transaction
    in_doubt: Doubt | None = None  # the COMMIT of its transaction got no answer
    settlement: Settlement | None = None  # what the store has of it
    dropped: bool = False  # the claim was not ours any more: its outcome never will be stored
    ended: bool = False  # the handler has; what the clocks say from now on does not concern it
    connections: ConnectionUse | None = None  # what the attempt holds of them, once it has begun
    unconnected: bool = False  # its time was up while it waited for a connection
    pending: Pending | None = None  # what `ctx.after` was given
    afterwards: Afterwards | None = None  # the same, if the handler has succeeded

    def cancel(self, reason: CancelReason) -> None:
        """Cancel the handler, or keep it from starting; the greatest reason is kept."""
        if self.why() is not CancelReason.TIMED_OUT:
            self.scope.deadline = math.inf  # its clean-up is not what the time limit is for
        self.note(reason)
        self.cancelled_at = min(self.cancelled_at, trio.current_time())
        self.scope.cancel(f"task {self.claim.fence.task_id}: {reason}")

    def why(self) -> CancelReason | None:
        """The greatest reason so far. That the time is up, nobody tells: we look."""
        if trio.current_time() >= self.scope.deadline:
            self.note(CancelReason.TIMED_OUT)
        return self.reason

    def has_stored(self, settlement: Settlement) -> None:
        """Note what the store has, and let those who wait for a success hear of it."""
        self.settlement = settlement
        if self.in_doubt is not None and settlement.event is Event.SUCCEED:
            self.in_doubt.committed()
        if self.afterwards is not None:
            self.afterwards.settled(success=settlement.event is Event.SUCCEED)

    def drop(self) -> None:
        """Note that the store will never have an outcome of ours."""
        self.dropped = True
        if self.afterwards is not None:
            self.afterwards.settled(success=False)

    def note(self, reason: CancelReason) -> None:
        """Record a reason."""
        self.reason = reason if self.reason is None else max(self.reason, reason)


@attrs.define(eq=False)
class Pace:
    """How long handlers take, and so how many tasks to claim ahead.

    As many as will be started within the horizon: thousands of no-ops, none of those that
    take seconds, since a task waiting in our hands is one that nobody else can run. Where the
    store takes long to answer, the horizon is as far as some of its answers, so that handlers
    need not wait for the next claim; but never so far that tasks would have to be handed back.
    """

    nearest: float = 0.05  # seconds
    farthest: float = 0.75  # seconds, less than a task may wait in our hands
    answers: float = 3.0  # one comes while half of what is in hand is worked off
    most: int = 2000
    _seconds: float = 2.0  # slow, until a number of them have been quick
    _known: int = 0  # of how many we know
    _claim: float = 0.0  # seconds that one takes
    _settle: float = 0.0  # seconds from the end of a handler until that is stored

    @property
    def horizon(self) -> float:
        """How many seconds to look ahead."""
        return min(self.farthest, max(self.nearest, self.answers * (self._claim + self._settle)))

    def claimed(self, seconds: float) -> None:
        """Note how long a claim took."""
        self._claim += 0.2 * (min(seconds, self.farthest) - self._claim)

    def stored(self, seconds: float) -> None:
        """Note how long it took from the end of a handler until its outcome was stored."""
        self._settle += 0.2 * (min(seconds, self.farthest) - self._settle)

    def took(self, seconds: float) -> None:
        """Note how long a handler took."""
        # Slows down at once and speeds up slowly: holding too many is what does harm.
        self._known += 1
        weight = 0.05 if seconds < self._seconds and self._known > 16 else 0.5
        self._seconds += weight * (seconds - self._seconds)

    def stalled(self, seconds: float) -> None:
        """Note that handlers have been running for so long and have not ended."""
        self._seconds = max(self._seconds, seconds)

    def ahead(self, turning: int) -> int:
        """How many tasks to hold beyond those that run, if so many at once are soon over."""
        return int(min(self.most, turning * self.horizon / max(self._seconds, 1e-6)))


@attrs.define(eq=False)
class Slots:
    """Every claim this worker holds. At most *concurrency* of them run.

    *start* begins an execution, in a task of its own; *taken* is called when there are new ones,
    *freed* when room was made.
    """

    concurrency: int
    queues: Mapping[str, int] | None
    prefetch: int | None  # None: adapt
    # How many may hold `ctx.tx` at once; as many as run, unless the worker says otherwise.
    transactions: int = attrs.field(
        default=attrs.Factory(lambda self: self.concurrency, takes_self=True), kw_only=True
    )
    start: Callable[[Execution], None]
    taken: Callable[[], None]
    freed: Callable[[], None]
    held: dict[Fence, Execution] = attrs.field(factory=dict[Fence, Execution], init=False)
    # Like a set, but in the order of their start.
    _running: dict[Execution, None] = attrs.field(factory=dict[Execution, None], init=False)
    # Those of them that are settled, and stay for what is to be called afterwards.
    _staying: set[Execution] = attrs.field(factory=set[Execution], init=False)
    curtailed: bool = attrs.field(default=False, init=False)  # there is no time for that any more
    _backlog: deque[Execution] = attrs.field(factory=deque[Execution], init=False)
    _by_queue: Counter[str] = attrs.field(factory=Counter[str], init=False)
    _transactional: int = attrs.field(default=0, init=False)  # of those that are held
    _quiet: trio.Event = attrs.field(factory=trio.Event, init=False)
    pace: Pace = attrs.field(factory=Pace, init=False)
    # Claims had to be handed back unstarted: until a handler ends, we would only take them again.
    _stalled: bool = attrs.field(default=False, init=False)

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
        return self.concurrency - len(self._running)  # whoever waits keeps none of these free

    @property
    def wants_more(self) -> bool:
        """Whether a claim is worth a statement: something would start at once, or half is free."""
        return self.room > 0 and (self.idle > 0 or self.room >= self.capacity // 2)

    @property
    def busy(self) -> bool:
        """Whether there is anything in hand, or to be called afterwards."""
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
    def running(self) -> list[Execution]:
        """Those whose handler, or what is called after it, has not ended."""
        return list(self._running)

    # -- coming and going ------------------------------------------------------------

    def take(self, executions: Iterable[Execution]) -> None:
        """Hold claims; start as many as may run."""
        for execution in executions:
            self.held[execution.claim.fence] = execution
            self._by_queue[execution.claim.queue] += 1
            self._transactional += execution.task_type.transactional
            self._backlog.append(execution)
        if self._backlog:
            self.taken()
        self._start_next()

    def finished(self, execution: Execution) -> None:
        """Note that an execution needs its place no more; its claim is held until settled."""
        self._running.pop(execution, None)
        self.pace.took(trio.current_time() - execution.started_at)
        self._stalled = False
        self._start_next()
        if not self._running:
            self._quiet.set()
        if execution in self._staying:
            self._staying.remove(execution)
            self.freed()

    async def quiet(self) -> None:
        """Wait until no handler runs."""
        while self._running:
            self._quiet = trio.Event()
            await self._quiet.wait()

    def settled(self, fences: Iterable[Fence]) -> None:
        """Let go of claims whose settlement is stored, or that are not ours any more."""
        ended_at = math.inf
        for fence in fences:
            if (execution := self.held.pop(fence, None)) is not None:
                ended_at = min(ended_at, execution.ended_at)
                self._by_queue[execution.claim.queue] -= 1
                self._transactional -= execution.task_type.transactional
                if execution.afterwards is not None and execution in self._running:
                    self._staying.add(execution)
        if ended_at < math.inf:
            self.pace.stored(trio.current_time() - ended_at)
        self.freed()

    @property
    def oldest(self) -> float:
        """When the first in the backlog was claimed, on trio's clock; math.inf: it is empty."""
        return self._backlog[0].claimed_at if self._backlog else math.inf

    def unstarted(self, *, waiting: float = 0.0) -> list[Execution]:
        """Take out of the backlog what has waited for so many seconds; nobody is to start it."""
        now, stale = trio.current_time(), list[Execution]()
        while self.oldest + waiting <= now:
            stale.append(self._backlog.popleft())
        if stale:
            self.pace.stalled(now - min((e.started_at for e in self._running), default=now))
            self._stalled = True
        return stale

    @property
    def waiting(self) -> set[str]:
        """The queues of what is in the backlog."""
        return {execution.claim.queue for execution in self._backlog}

    def withdraw(self, queues: Container[str]) -> list[Execution]:
        """Take out of the backlog what is of these queues; nobody is to start it."""
        withdrawn = [each for each in self._backlog if each.claim.queue in queues]
        self._backlog = deque(each for each in self._backlog if each.claim.queue not in queues)
        return withdrawn

    def _start_next(self) -> None:
        while self._backlog and len(self._running) < self.concurrency:
            execution = self._backlog.popleft()
            execution.started_at = trio.current_time()
            self._running[execution] = None
            self.start(execution)

    # -- cancelling ------------------------------------------------------------------

    def cancel_all(self, reason: CancelReason) -> None:
        """Cancel every handler, and keep what waits from starting."""
        for execution in self.held.values():
            execution.cancel(reason)

    def curtail(self) -> None:
        """Cancel what is called after handlers; whatever comes later comes too late."""
        self.curtailed = True
        for execution in self._running:
            if execution.afterwards is not None:
                execution.afterwards.cancel()

    def obey(self, request: CancelRequest) -> None:
        """Do what somebody asked of one of our tasks."""
        if (execution := self.held.get(request.fence)) is not None:
            execution.cancel_requested = True
            if request.interrupt:
                execution.cancel(CancelReason.CANCELLED)
