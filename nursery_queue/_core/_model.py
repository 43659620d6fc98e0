"""The values that cross the store boundary."""

from __future__ import annotations

import datetime as dt
import enum

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import attrs

from ._retry import RetryPolicy
from ._states import Event, State, transition


@attrs.frozen
class TaskRef:
    """A stored task: its id, and whether this call created it."""

    id: int
    created: bool = True


@attrs.frozen(kw_only=True)
class NewTask:
    """A task to be stored. None in a policy field means: as the handler's code says today."""

    task_type: str
    params: str  # a JSON object, as text
    queue: str = "default"
    priority: int = 0
    run_at: dt.datetime | None = None
    run_after: float = 0.0  # seconds from now, by the store's clock; ignored if run_at is set
    max_attempts: int | None = None
    backoff: RetryPolicy | None = None
    timeout: float | None = None  # math.inf: no limit
    keep_for: float | None = None
    dedup_key: str | None = None


@attrs.frozen
class Fence:
    """Proof of tenancy: what is written for a claim lands only while it is still the claim.

    Not the attempt number: attempts are given back after an interruption, and a fence must
    never be the same twice.
    """

    task_id: int
    epoch: int


@attrs.frozen(kw_only=True)
class Claim:
    """A task this worker holds. Only `Store.claim` makes one."""

    fence: Fence
    attempt: int  # this one included
    lost: int
    task_type: str
    queue: str
    params: str
    max_attempts: int | None = None
    backoff: RetryPolicy | None = None
    timeout: float | None = None
    keep_for: float | None = None

    def __str__(self) -> str:
        return f"task {self.fence.task_id} ({self.task_type}, attempt {self.attempt})"


@attrs.frozen(kw_only=True)
class Lane:
    """A queue a worker takes from, and how many it can take now."""

    queue: str
    slots: int


@attrs.frozen(kw_only=True)
class Claimed:
    """The answer to a claim, with the seconds until a scheduled task is due (None: none is)."""

    claims: Sequence[Claim]
    next_due: float | None = None


class Outcome(enum.StrEnum):
    """What became of an attempt, as the attempt log has it."""

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


@attrs.frozen(kw_only=True)
class Settlement:
    """What is to be written for a claim; decided by `settle()`, applied by a store."""

    fence: Fence
    event: Event
    attempt: int  # attempts used up, from now on
    lost: int
    keep_for: float
    outcome: Outcome | None  # None: it was never started, so there is nothing to log
    delay: float = 0.0
    result: str | None = None  # JSON text
    error: ErrorRecord | None = None

    @property
    def state(self) -> State:
        """Where the task goes."""
        return transition(State.RUNNING, self.event)


class Refusal(enum.StrEnum):
    """Why a store did not apply a settlement."""

    STALE = "stale"  # the claim is not ours any more; drop it
    CANCEL_REQUESTED = "cancel_requested"  # it must not go round again; decide anew
    LOCKED = "locked"  # somebody's open transaction is in the way; try again


@attrs.frozen(kw_only=True)
class WorkerInfo:
    """What a worker says of itself when it registers."""

    id: UUID
    name: str
    host: str
    pid: int
    task_types: Sequence[str]
    lease: float
    queues: Sequence[str] | None = None  # None: all


@attrs.frozen(kw_only=True)
class CancelRequest:
    """Somebody wants a running task stopped, or (interrupt False) not tried again."""

    fence: Fence
    interrupt: bool


@attrs.frozen(kw_only=True)
class Beat:
    """The answer to a heartbeat."""

    registered: bool  # False: others took this worker for dead
    cancel_requests: Sequence[CancelRequest] = ()
    somebody_died: bool = False


@attrs.frozen(kw_only=True)
class Held:
    """A running position in the store: what a sweep or a reconciliation works on."""

    fence: Fence
    attempt: int
    lost: int
    worker_id: UUID
    cancel_requested: bool
    keep_for: float | None


@attrs.frozen(kw_only=True)
class TaskStatus:
    """A task as it stands. Instants are timezone-aware; `run_at` is when it is or was due."""

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

    @property
    def error(self) -> str | None:
        """The error it ended with, as one line; None if there was none."""
        return None if self.error_type is None else f"{self.error_type}: {self.error_message}"


@attrs.frozen(kw_only=True)
class Attempt:
    """One execution of a task. Numbers count executions from 1, also refunded ones."""

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


@attrs.frozen(kw_only=True)
class TaskFilter:
    """Which tasks to list: newest first, those with an id below *after*."""

    state: State | None = None
    queue: str | None = None
    task_type: str | None = None
    limit: int = 100
    after: int | None = None


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


@attrs.frozen(kw_only=True)
class Stats:
    """How many tasks there are, by queue and state, and who works on them.

    `unknown_task_types` counts ready tasks whose type no live worker knows: they wait.
    """

    queues: Mapping[str, Mapping[State, int]]
    workers: Sequence[WorkerStatus]
    unknown_task_types: Mapping[str, int]
