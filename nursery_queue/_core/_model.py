"""The values that cross the store boundary."""

from __future__ import annotations

import datetime as dt
import enum

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import attrs

from ._counters import Counters
from ._debounce import Debounce
from ._declaration import Declaration
from ._rate import Rate
from ._retry import RetryPolicy
from ._states import Event, State, transition


@attrs.frozen
class TaskRef:
    """A stored task: its id, and whether this call created it."""

    id: int
    created: bool = True


@attrs.frozen(kw_only=True)
class NewTask:
    """A task to be stored. None in a policy field means: as the handler's code says today.

    Queue and priority None, key `KEY_AS_DECLARED` and on_complete `AS_DECLARED`: as the stored
    `Declaration` says.
    """

    task_type: str
    params: str = attrs.field(repr=False)  # a JSON object, as text; not for logs
    queue: str | None = "default"
    priority: int | None = 0
    key: str | None = None  # None: none
    run_at: dt.datetime | None = None
    run_after: float = 0.0  # seconds from now, by the store's clock; ignored if run_at is set
    max_attempts: int | None = None
    backoff: RetryPolicy | None = None
    timeout: float | None = None  # math.inf: no limit
    keep_for: float | None = None
    dedup_key: str | None = None
    dedup_for: float | None = None  # seconds from now that the dedup key stays taken at least
    debounce: Debounce | None = None  # needs a dedup key, and neither run_at nor run_after
    # A JSON object, as text: the task to be stored when this one has ended. Task type, queue,
    # priority, and the options given with it.
    on_complete: str | None = attrs.field(default=None, repr=False)
    context: str | None = attrs.field(default=None, repr=False)  # JSON text, for that task


@attrs.frozen
class Fence:
    """The name of a claim: a write for it takes effect only while the claim is held.

    Not the attempt number: attempts are given back after an interruption, and a fence is never
    handed out twice.
    """

    task_id: int
    epoch: int


# One is made of each task, and to set slots one by one takes twice as long as a dict.
@attrs.frozen(kw_only=True, slots=False)
class Claim:
    """A task this worker holds. Only `Store.claim` makes one."""

    fence: Fence
    attempt: int  # this one included
    lost: int
    task_type: str
    queue: str
    params: str = attrs.field(repr=False)
    max_attempts: int | None = None
    backoff: RetryPolicy | None = None
    timeout: float | None = None
    keep_for: float | None = None
    lag: float = 0.0  # seconds from when it was due until now, by the store's clock
    on_complete: bool = False  # another task is to tell how it ended
    completes: int | None = None  # it tells how that one ended
    started: bool = True  # the store knows that it starts at once; False: it was claimed ahead
    suspect: bool = False  # its worker died holding it, and it may have been at fault
    limited: bool = False  # it counts against the limit of its queue
    tick: dt.datetime | None = None  # the instant of a schedule that it stands for

    @property
    def wary(self) -> bool:
        """Whether the store is to know of its start before it starts: it may kill this worker."""
        return not self.started and (self.suspect or self.lost > 0)

    def __str__(self) -> str:
        return f"task {self.fence.task_id} ({self.task_type}, attempt {self.attempt})"


@attrs.frozen(kw_only=True)
class QueueSlots:
    """A queue a worker takes from, and how many it can take now."""

    queue: str
    slots: int


@attrs.frozen
class Spot:
    """Where a claim stopped looking: behind the tasks of this type in this queue.

    Or among them, at *lane*: JSON text that only the store knows how to read.
    """

    queue: str
    task_type: str = ""
    lane: str | None = None


@attrs.frozen(kw_only=True)
class Claimed:
    """The answer to a claim.

    It speaks of the queues that the claim has looked at. *next_due*: seconds until a scheduled task
    is due (None: none is). *contended*: there are more tasks, which another claim was taking at the
    same time. *held_back*: there are more tasks of a queue whose limit has been reached, or that
    would not have started at once. *unknown_types*: some queue has tasks of a type that was not
    asked for. *more*: there are more tasks where this claim looked, though it took fewer than its
    limit. *resume*: there are more queues than one claim looks at, and the next claim is to begin
    here (None: it has come to the end).
    """

    claims: Sequence[Claim]
    next_due: float | None = None
    contended: bool = False
    held_back: bool = False
    unknown_types: bool = False
    more: bool = False
    resume: Spot | None = None


class Outcome(enum.StrEnum):
    """How an attempt ended, as the attempt log has it."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    LOST = "lost"
    INTERRUPTED = "interrupted"
    SNOOZED = "snoozed"


@attrs.frozen(kw_only=True)
class ErrorRecord:
    """An error as it is stored: text that any store can hold."""

    type: str
    message: str
    traceback: str | None = None
    details: str | None = None  # JSON text


# Without slots for the same reason as a claim.
@attrs.frozen(kw_only=True, slots=False)
class Settlement:
    """The end of a claim, to be written; decided by `settle()`, applied by a store."""

    fence: Fence
    event: Event
    attempt: int  # attempts used up, from now on
    lost: int
    keep_for: float
    outcome: Outcome | None  # None: it was never started, so there is nothing to log
    delay: float = 0.0
    result: str | None = attrs.field(default=None, repr=False)  # JSON text
    error: ErrorRecord | None = None
    on_complete: bool = False  # if it ends, another task tells how

    @property
    def state(self) -> State:
        """Where the task goes."""
        return transition(State.RUNNING, self.event)


class Refusal(enum.StrEnum):
    """Why a store did not apply a settlement."""

    STALE = "stale"  # the claim is not held any more; drop it
    CANCEL_REQUESTED = "cancel_requested"  # it must not go round again; decide anew
    LOCKED = "locked"  # an open transaction is in the way; try again


@attrs.frozen(kw_only=True)
class WorkerInfo:
    """A worker, as it registers."""

    id: UUID
    name: str
    host: str
    pid: int
    task_types: Sequence[str]
    lease: float
    heartbeat: float = attrs.Factory(lambda self: self.lease / 10, takes_self=True)  # seconds
    queues: Sequence[str] | None = None  # None: all
    declared: Sequence[Declaration] = ()  # replaces the stored declarations of these types
    max_lost: Mapping[str, int] = attrs.field(factory=dict[str, int])  # by task type, if said
    app: str = "main"  # the name of its App, and the schedules that this declares
    schedules: Sequence[str] = ()


@attrs.frozen(kw_only=True)
class CancelRequest:
    """A request to stop a running task, or (interrupt False) not to try it again."""

    fence: Fence
    interrupt: bool


@attrs.frozen(kw_only=True)
class Held:
    """A running position in the store, as a sweep or a reconciliation reads it."""

    fence: Fence
    attempt: int
    lost: int
    worker_id: UUID
    cancel_requested: bool
    keep_for: float | None
    on_complete: bool = False
    task_type: str = ""
    queue: str = ""
    age: float = 0.0  # seconds since it was claimed, by the store's clock
    started: bool = True  # False: claimed ahead, and not known to have started
    max_lost: int | None = None  # losses that its worker's code allowed, if it said so


@attrs.frozen(kw_only=True)
class TaskStatus:
    """A task as it stands. Instants are timezone-aware; `run_at` is when it is or was due.

    `params` and `context` are None unless they were asked for; so is `result` in a list.
    """

    id: int
    task_type: str
    queue: str
    state: State
    attempt: int  # attempts used up, a running one included
    created_at: dt.datetime
    run_at: dt.datetime
    started_at: dt.datetime | None = None
    finished_at: dt.datetime | None = None
    worker_id: UUID | None = None
    result: Any = None
    error_type: str | None = None
    error_message: str | None = None
    priority: int = 0
    lost: int = 0
    cancel_requested: bool = False
    on_complete: str | None = None  # type of the task that is to tell how it ended
    completes: int | None = None  # it tells how that one ended
    params: Any = attrs.field(default=None, repr=False)  # not for logs
    context: Any = attrs.field(default=None, repr=False)
    completion_error: str | None = None  # why no task could tell how it ended
    key: str | None = None  # what divides its queue; None: it has none
    dedup_key: str | None = None
    max_attempts: int | None = None  # None: as the handler's code says
    worker_name: str | None = None  # None: it is not known any more

    @property
    def error(self) -> str | None:
        """The error it ended with, as one line; None if there was none."""
        return None if self.error_type is None else f"{self.error_type}: {self.error_message}"


@attrs.frozen(kw_only=True)
class Attempt:
    """One execution of a task. Numbers count executions from 1, also refunded ones.

    `final`: the task ended with it; a `retry` may have made it go again since.
    """

    task_id: int
    number: int
    outcome: Outcome
    worker_id: UUID
    started_at: dt.datetime
    finished_at: dt.datetime | None = None
    error_type: str | None = None
    error_message: str | None = None
    error_traceback: str | None = None
    error_details: Any = None
    final: bool = False
    worker_name: str | None = None  # None: it was not registered any more


@attrs.frozen(kw_only=True)
class QueueStatus:
    """A queue: how it is set, and how many live tasks it has."""

    name: str
    paused: bool  # nothing starts
    max_running: int | None  # over all workers; None: no limit
    scheduled: int
    ready: int
    running: int
    notify: bool = True  # an enqueue wakes the workers; else they find its task when they poll
    max_running_per_key: int | None = None  # of the tasks with one key; None: no limit
    rate: Rate | None = None  # of starts, over all workers; None: as many as may run
    rate_per_key: Rate | None = None  # of starts of the tasks with one key


@attrs.frozen(kw_only=True)
class WorkerStatus:
    """A registered worker."""

    id: UUID
    name: str
    host: str
    pid: int
    queues: Sequence[str] | None
    task_types: Sequence[str]
    started_at: dt.datetime
    heartbeat_at: dt.datetime
    draining: bool
    alive: bool  # its lease has not run out
    running: int  # tasks it holds


@attrs.frozen
class UnknownTypeStats:
    """Ready tasks of one type that no live worker knows."""

    count: int
    since: dt.datetime  # when the oldest of them fell due


@attrs.frozen(kw_only=True)
class Stats(Counters):
    """How many tasks there are, which workers are registered, and how attempts ended.

    Counted anew from the stored tasks, so deleted ones are not in it: a day after their end unless
    `keep_for` says otherwise. Its own counters are those of all queues together.

    Attributes:
        queues: How many tasks are in each state, by queue.
        workers: The registered workers.
        unknown_task_types: Ready tasks whose type no live worker knows: they wait.
        counters: How attempts ended, and how many tasks run and are due, by queue.
    """

    queues: Mapping[str, Mapping[State, int]]
    workers: Sequence[WorkerStatus]
    unknown_task_types: Mapping[str, UnknownTypeStats]
    counters: Mapping[str, Counters] = attrs.field(factory=dict[str, Counters])

    def __attrs_post_init__(self) -> None:
        for name, number in attrs.asdict(self.total).items():
            object.__setattr__(self, name, number)  # as attrs does itself

    @property
    def total(self) -> Counters:
        """The counters of all queues together."""
        return sum(self.counters.values(), Counters())
