"""One claimed task in a worker, and its life: phases and edges in one table."""

from __future__ import annotations

import contextlib
import enum
import logging
import math
import random

from collections.abc import Callable, Generator, Mapping

import attrs
import trio

from nursery_queue._client._callbacks import PendingCallbacks
from nursery_queue._client._context import CancelReason
from nursery_queue._core._model import Claim, Fence, Settlement
from nursery_queue._core._outcome import KEEP_FOR, AttemptOutcome, Policy, settle
from nursery_queue._core._states import Event
from nursery_queue._declare._task_type import TaskType
from nursery_queue._trio._connection_use import ConnectionUse

from ._afterwards import Afterwards
from ._lease import Lease


log = logging.getLogger("nursery_queue")


class Phase(enum.StrEnum):
    """Where an attempt is between its claim and its end. It moves along `EDGES` and nowhere else.

    The claim and the handler end apart: a handler that ignores cancellation outlives its claim,
    and a claim outlives its handler until the outcome is stored.
    """

    WAITING = "waiting"  # claimed; its handler has not begun
    RUNNING = "running"  # it has a slot
    COMMITTED = "committed"  # its transaction has stored its success, and its handler is about done
    RELEASED = "released"  # its outcome is on its way to the store although its handler runs on
    CLOSED = "closed"  # the same, and the store has that outcome, or that of its transaction
    TAKEN = "taken"  # its handler runs on, and the store takes no outcome of ours any more
    ENDED = "ended"  # no handler runs; the outcome is on its way to the store
    SETTLED = "settled"  # the store has the outcome
    LOST = "lost"  # the claim is not ours any more


class Step(enum.StrEnum):
    """What happens to an attempt."""

    START = "start"  # it gets a slot
    COMMIT = "commit"  # its transaction has committed, its settlement with it
    RELEASE = "release"  # an outcome is handed in without waiting for its handler
    END = "end"  # its handler has ended
    STORE = "store"  # the store has an outcome
    LOSE = "lose"  # the store never will have an outcome of ours


EDGES: Mapping[Step, Mapping[Phase, Phase]] = {
    Step.START: {Phase.WAITING: Phase.RUNNING},
    Step.COMMIT: {
        Phase.RUNNING: Phase.COMMITTED,
        # The transaction was faster than the release, whose answer says so later on.
        Phase.RELEASED: Phase.CLOSED,
        Phase.CLOSED: Phase.CLOSED,
        Phase.TAKEN: Phase.CLOSED,
    },
    Step.RELEASE: {Phase.WAITING: Phase.ENDED, Phase.RUNNING: Phase.RELEASED},
    Step.END: {
        Phase.RUNNING: Phase.ENDED,
        Phase.COMMITTED: Phase.SETTLED,
        Phase.RELEASED: Phase.ENDED,
        Phase.CLOSED: Phase.SETTLED,
        Phase.TAKEN: Phase.LOST,
    },
    Step.STORE: {
        Phase.ENDED: Phase.SETTLED,
        Phase.RELEASED: Phase.CLOSED,
        Phase.CLOSED: Phase.CLOSED,
        Phase.COMMITTED: Phase.COMMITTED,
    },
    Step.LOSE: {
        Phase.WAITING: Phase.LOST,
        Phase.RUNNING: Phase.TAKEN,
        Phase.RELEASED: Phase.TAKEN,
        Phase.CLOSED: Phase.CLOSED,
        Phase.ENDED: Phase.LOST,
    },
}
_OVER = frozenset({Phase.ENDED, Phase.SETTLED, Phase.LOST})
_RUNS = frozenset({Phase.RUNNING, Phase.COMMITTED, Phase.RELEASED, Phase.CLOSED, Phase.TAKEN})
_NOT_OURS = frozenset({Phase.TAKEN, Phase.LOST})


class IllegalEdgeError(BaseException):
    """An attempt was to take a step that its phase does not allow.

    No loop may take it for an outcome at fault, or for an outage: tests are to end with it.
    """


# Tests set it. In production a worker goes on, and its log has the error: to end it would harm all
# the handlers beside this one.
strict = False


@attrs.frozen
class Doubt:
    """A success that may be committed. *committed* tells what its transaction has enqueued."""

    committed: Callable[[], None]
    otherwise: AttemptOutcome  # if it is not


@attrs.frozen(kw_only=True)
class Verdict:
    """What is to be stored of an attempt, with all that is needed to decide it again."""

    outcome: AttemptOutcome
    cancel_requested: bool = False
    # What is to be written in its place: a success may be committed already, and if not it
    # cannot be any more; another outcome may be more than the store takes.
    instead: AttemptOutcome | None = None
    telling: bool = True  # False: no other task is told, for that cannot be stored
    unanswered: bool = False  # it was sent and got no answer, so it may be stored
    racing: bool = False  # a transaction of its handler may store another one first

    @property
    def in_doubt(self) -> bool:
        """Whether a claim that is not ours any more may have been closed by ourselves."""
        return self.unanswered or self.racing


@attrs.define(eq=False)
class Attempt:
    """One claimed task, from the claim until its settlement is stored."""

    claim: Claim
    task_type: TaskType[..., object]
    policy: Policy
    lease: Lease
    claimed_at: float  # on trio's clock, as all instants here
    phase: Phase = Phase.WAITING
    started_at: float = math.inf  # when it got its slot
    begun_at: float = math.inf  # when its handler was called: a sync one waits for a thread first
    ended_at: float = math.inf  # when its handler ended, whatever became of it
    cancelled_at: float = math.inf  # by `cancel`; a time limit is the deadline of the scope
    _scope: trio.CancelScope | None = None
    reason: CancelReason | None = None
    cancel_requested: bool = False
    # The store knows that it has started, so that it counts if this worker dies; of a claim that
    # starts at once it knows from the beginning.
    noted: bool = False
    told: bool = False  # instruments have heard of its start
    verdict: Verdict | None = None  # on its way to the store
    in_doubt: Doubt | None = None  # the COMMIT of its transaction got no answer
    settlement: Settlement | None = None  # what the store has of it
    connections: ConnectionUse | None = None  # what it holds of the pool, once it has begun
    pending: PendingCallbacks | None = None  # what `ctx.after` was given
    afterwards: Afterwards | None = None  # the same, if the handler has succeeded

    @property
    def scope(self) -> trio.CancelScope:
        """What cancels its handler."""
        if self._scope is None:
            self._scope = trio.CancelScope()
        return self._scope

    def limit(self, now: float) -> trio.CancelScope:
        """Let its time limit run from now on, unless it is cancelled already; return its scope."""
        if self._scope is None:  # to give one a deadline later takes four times as long
            self._scope = trio.CancelScope(deadline=now + self.policy.timeout)
        elif self.cancelled_at == math.inf:
            self._scope.deadline = now + self.policy.timeout
        return self._scope

    # -- its life ----------------------------------------------------------------------

    def take(self, step: Step) -> None:
        """Take a step. One that the table does not have changes nothing, and is an error."""
        to = EDGES[step].get(self.phase)
        if to is not None:
            self.phase = to
            return
        msg = f"{self.claim}: {step} while it is {self.phase}, which is a bug"
        if strict:
            raise IllegalEdgeError(msg)
        log.error(msg, stack_info=True)

    @property
    def over(self) -> bool:
        """Whether no handler runs and none will."""
        return self.phase in _OVER

    @property
    def runs(self) -> bool:
        """Whether its handler has begun and not ended."""
        return self.phase in _RUNS

    @property
    def dropped(self) -> bool:
        """Whether the store never will have an outcome of ours."""
        return self.phase in _NOT_OURS

    def stored(self, settlement: Settlement) -> None:
        """Note what the store has, and tell what waits for a success."""
        self.take(Step.STORE)
        self.settlement = settlement
        if self.in_doubt is not None and settlement.event is Event.SUCCEED:
            self.in_doubt.committed()
        if self.afterwards is not None:
            self.afterwards.settled(success=settlement.event is Event.SUCCEED)

    def drop(self) -> None:
        """Note that the store never will have an outcome of ours."""
        self.take(Step.LOSE)
        if self.afterwards is not None:
            self.afterwards.settled(success=False)

    # -- why it ends early -------------------------------------------------------------

    def cancel(self, reason: CancelReason) -> None:
        """Cancel the handler, or keep it from starting; the greatest reason is kept."""
        if self.by_the_clock() is not CancelReason.TIMED_OUT:
            self.scope.deadline = math.inf  # its clean-up is not what the time limit is for
        self.note(reason)
        self.cancelled_at = min(self.cancelled_at, trio.current_time())
        self.scope.cancel(f"task {self.claim.fence.task_id}: {reason}")

    def note(self, reason: CancelReason) -> None:
        """Record a reason."""
        self.reason = reason if self.reason is None else max(self.reason, reason)

    def why(self) -> CancelReason | None:
        """Return why it has been cancelled, or is about to be: the question may come first."""
        if self.over or not trio.lowlevel.in_trio_run():  # a thread cannot see the clock
            return self.reason
        now = trio.current_time()
        return CancelReason.LEASE_LOST if self.lost(now) else self.by_the_clock()

    def lost(self, now: float) -> bool:
        """Whether others may have the task. From then on nothing is to be said about it."""
        if not self.lease.holds_at(now) and self.phase not in _OVER:
            self.note(CancelReason.LEASE_LOST)
        return self.reason is CancelReason.LEASE_LOST

    def by_the_clock(self) -> CancelReason | None:
        """Return the reason so far; asking does not depend on the lease, as `why` does."""
        if trio.current_time() >= self.scope.deadline:  # of which no one tells us
            self.note(CancelReason.TIMED_OUT)
        return self.reason

    # -- what is stored of it ------------------------------------------------------------

    def judged(self, outcome: AttemptOutcome, *, racing: bool = False) -> Verdict:
        """Return what is to be stored when it has come to *outcome*."""
        doubt = self.in_doubt
        return Verdict(
            outcome=outcome,
            cancel_requested=self.cancel_requested,
            instead=None if doubt is None else doubt.otherwise,
            unanswered=doubt is not None,
            racing=racing,
        )

    def decide(self, verdict: Verdict, rng: random.Random) -> Settlement:
        """Decide what a verdict means for the task, without writing it."""
        settlement = settle(
            self.claim,
            verdict.outcome if verdict.instead is None else verdict.instead,
            self.policy,
            rng=rng,
            cancel_requested=verdict.cancel_requested,
        )
        if verdict.instead is not None:
            # What was not to be kept may have been refused for that: its row is referred to.
            kept = max(settlement.keep_for, KEEP_FOR)
            settlement = attrs.evolve(settlement, keep_for=kept)
        return settlement if verdict.telling else attrs.evolve(settlement, on_complete=False)

    @property
    def fence(self) -> Fence:
        """The claim."""
        return self.claim.fence

    @contextlib.contextmanager
    def judged_otherwise(self, verdict: Verdict) -> Generator[None]:
        """Have *verdict* stored instead; if the block fails, the one before is back."""
        before, self.verdict = self.verdict, verdict
        try:
            yield
        except BaseException:
            self.verdict = before
            raise
