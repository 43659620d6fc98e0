"""The one boundary: the verbs that the client and the worker need of a store of tasks.

`ClientStore` and `WorkerStore` are the two roles; a `Store` plays both. Promises are made here:
an implementation of a verb has a docstring only where it promises more.
"""

from __future__ import annotations

import enum

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal, Protocol, Unpack
from uuid import UUID

import trio

from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._heartbeat import Beat, Seen
from nursery_queue._core._model import (
    Attempt,
    Claimed,
    Fence,
    Held,
    NewTask,
    Outcome,
    QueueSlots,
    QueueStatus,
    Refusal,
    Settlement,
    Spot,
    Stats,
    TaskRef,
    TaskStatus,
    WorkerInfo,
    WorkerStatus,
)
from nursery_queue._core._queue_changes import Declared, QueueChanges
from nursery_queue._core._streams import StreamPage, StreamRequest, StreamWrite

from ._reason_store import ClientReasonStore, WorkerReasonStore
from ._schedule_store import ClientScheduleStore, WorkerScheduleStore


class Bell(enum.Enum):
    """The reasons for which a store rings. A ring is a hint; the tables are the truth."""

    WORK = enum.auto()  # there may be something to claim, or a new due time
    CANCEL = enum.auto()  # a running task is to be cancelled, or a queue has been changed
    FINISHED = enum.auto()  # a task has ended
    STREAM = enum.auto()  # a task has written to a stream, or closed one
    SCHEDULE = enum.auto()  # a schedule has been stored, changed or resumed


class Ring(Protocol):
    """Called when a bell rings. *task_id*: only the streams of this task; None: any."""

    def __call__(self, bell: Bell, task_id: int | None = None, /) -> object: ...


# Called with each attempt that a sweep has settled, and with the decision.
TellLost = Callable[[Held, Settlement], object]


def tell_nobody(held: Held, settlement: Settlement) -> None:
    """Ignore a loss: the default of `WorkerStore.sweep`."""


# How much a transaction sees of others, in PostgreSQL's words.
Isolation = Literal["read committed", "repeatable read", "serializable"]


class StoreTransaction(Protocol):
    """One open transaction: all that is done through it is committed together, or nothing is.

    No other transaction sees any of it before the commit.
    """

    @property
    def connection(self) -> Any:
        """The connection underneath, for the application's own statements."""
        ...

    async def execute(self, query: Any, params: Any = None) -> Any:
        """Run a statement of the application's own."""
        ...

    async def enqueue(self, tasks: Sequence[NewTask], *, copy: bool = False) -> list[TaskRef]:
        """Store tasks. See `ClientStore.enqueue`."""
        ...

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        """Ask for a task to be cancelled. See `ClientStore.cancel`."""
        ...

    async def status_many(
        self, task_ids: Sequence[int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        """Say where tasks are, as this transaction sees them. See `ClientStore.status_many`."""
        ...

    async def settle(self, settlement: Settlement) -> None:
        """Settle one claim, with the commit.

        Raises `StaleClaim` if the claim is not this worker's any more, and `TransientError` if a
        cancel was asked for and the task would go round again. Raises `ClaimLocked` if another
        transaction holds the claim: this transaction is as good as before, and may ask again.
        """
        ...

    async def write_stream(self, write: StreamWrite) -> None:
        """Store chunks with the commit. See `ClientStore.write_stream`."""
        ...

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """Open a block that can fail alone."""
        ...


class _CommonStore(Protocol):
    """The verbs that the client and the worker both need."""

    def transaction(
        self, *, isolation: Isolation | None = None
    ) -> AbstractAsyncContextManager[StoreTransaction]:
        """Open a transaction; it commits when the block ends well.

        Raises `CommitOutcomeUnknown` if the connection died during the commit.

        *isolation* None: the default of the database. All other verbs are read committed,
        whatever that default is.
        """
        ...

    async def listen(
        self,
        ring: Ring,
        bells: Sequence[Bell],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call *ring* when one of *bells* rings, until cancelled.

        Rings are hints: they may be late, merged or missing. All bells ring as soon as the store
        listens, for rings missed before. Only `Bell.STREAM` may name a task. Raises
        `NotifyUnavailable` if no ring will ever come.
        """
        ...

    async def promote(self) -> int:
        """Make a batch of scheduled tasks that are due ready; return how many."""
        ...

    async def sweep(
        self,
        *,
        max_lost: int,
        max_lost_of: Mapping[str, int] | None = None,
        seen: Sequence[Seen] | None = None,
        tell: TellLost = tell_nobody,
    ) -> int:
        """Settle a batch of the claims of dead workers; return how many, *tell* of each loss.

        A worker is dead when its lease has run out by the store's clock. That clock may have
        jumped: with *seen*, a worker is newly taken for dead only if it has sent no heartbeat
        since the one that was seen of it, by the caller's own clock, for the time from one
        heartbeat to the next and `MARGIN`; or for its whole lease, and then whatever the store's
        clock says.

        A task fails with its last loss allowed: as *max_lost_of* says for its type, or as its
        worker said, or else *max_lost*. A claim that was only held ahead goes back as it was. A
        task that cannot be settled keeps no other waiting; one that an open transaction holds is
        left for a later call. Cancelled or failed, it may have settled some.
        """
        ...

    async def prune(self) -> int:
        """Delete a batch of tasks that ended longer ago than they are kept; return how many.

        And a batch of dedup keys that were taken for longer than their tasks, and are no more.
        """
        ...


class ClientStore(_CommonStore, ClientScheduleStore, ClientReasonStore, Protocol):
    """The verbs of the client.

    A write whose answer was lost with the connection raises `CommitOutcomeUnknown`. A verb raises
    `TransientError` when trying again may help, and lets every other error through. A cancelled
    verb had no effect, unless its docstring says otherwise.
    """

    async def enqueue(self, tasks: Sequence[NewTask], *, copy: bool = False) -> list[TaskRef]:
        """Store tasks, all or none, and answer in their order.

        One whose dedup key is taken is not: the answer names the task that has it. Debounced, it
        replaces that task, if it has not started; or is stored, and the key moves to it.

        *copy*: in the way that is best for very many; none of them has a dedup key.
        """
        ...

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        """Cancel a waiting task, or ask for a running one to be. False: unknown or finished."""
        ...

    async def cancel_some(
        self, which: CancelFilter, *, after: int, upto: int, dry_run: bool
    ) -> tuple[int | None, int]:
        """Do the next page of a walk through all tasks with an id above *after*, up to *upto*.

        Cancels the tasks that fit, as `cancel` does, or counts them (*dry_run*); a task that has
        ended does not fit. Returns the last id it has looked at, None if there was none, and
        how many tasks did fit.
        """
        ...

    async def retry(self, task_id: int) -> bool:
        """Make a failed or cancelled task ready again. False: it is neither."""
        ...

    async def status_many(
        self, task_ids: Sequence[int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        """Say where tasks are, in the order asked; *payloads*: with params and context."""
        ...

    async def attempts(self, task_id: int) -> list[Attempt]:
        """Return the whole log of a task, oldest first, a running attempt included."""
        ...

    async def list_tasks(self, which: TaskFilter) -> list[TaskStatus]:
        """Return a page of tasks, newest first."""
        ...

    async def configure(self, queue: str, **changes: Unpack[QueueChanges]) -> None:
        """Set some of what can be set of a queue, all or nothing; the rest stays as it is.

        *paused*: none of its tasks starts; running ones go on. *max_running*: how many of its
        tasks may run over all workers, and *max_running_per_key* of those with one key; None: no
        limit. Exact at every commit, except that no task is stopped when a limit is lowered.
        *rate* and *rate_per_key*: how many may start in how much time; None: any number.
        *notify*: enqueues to it wake workers, or its new tasks are left to their polls; everything
        else that makes work wakes them in any case.
        """
        ...

    async def queues(self) -> list[QueueStatus]:
        """Return every queue that is set in some way or has live tasks, by name."""
        ...

    async def workers(self) -> list[WorkerStatus]:
        """Return every registered worker, the oldest first."""
        ...

    async def stats(self) -> Stats:
        """Count tasks and attempts, and list workers. Reads everything."""
        ...

    async def write_stream(self, write: StreamWrite) -> None:
        """Store chunks of an attempt at the end of one of its streams, all or none.

        Raises `StaleClaim` if the claim is not this worker's any more, `Closed` if this attempt
        has closed the stream, `StreamFull` if it would have too many chunks. Cancelled or failed,
        it may have had its effect. Ignored if an earlier attempt has closed the stream and this
        one goes on with it.
        """
        ...

    async def read_streams(self, requests: Sequence[StreamRequest]) -> list[StreamPage | None]:
        """Return a page for each request, in their order; None: there is no such task."""
        ...


class WorkerStore(_CommonStore, WorkerScheduleStore, WorkerReasonStore, Protocol):
    """The verbs of the worker.

    A verb raises `TransientError` when trying again may help, also when its answer was lost: each
    bears being repeated. It raises `DatabaseRefused` when the database would refuse any worker,
    whatever it asked. A cancelled verb had no effect, unless its docstring says otherwise.
    """

    def room_for(self, handlers: int) -> AbstractContextManager[int]:
        """Prepare for that many handlers at once while the block lasts.

        Yields how many of them may have a transaction open at the same time.
        """
        ...

    async def register(self, worker: WorkerInfo) -> None:
        """Make a worker known; only known workers may claim."""
        ...

    async def heartbeat(self, worker_id: UUID, *, draining: bool) -> Beat:
        """Renew a lease; never registers anew."""
        ...

    async def declare_queues(self, declared: Mapping[str, QueueChanges]) -> Declared:
        """Set queues as code declares them, by name, where that has changed since it last was.

        A queue whose declaration is stored already keeps what was set at run time. Otherwise it
        is set as declared; what the declaration before had, and this one leaves out, becomes as
        if never set. A queue that cannot be set, or that an open transaction is changing, keeps
        no other waiting. Cancelled or failed, it may have set some.
        """
        ...

    async def deregister(self, worker_id: UUID) -> None:
        """Forget a worker. The claims it still holds may be swept at once."""
        ...

    async def claim(
        self,
        worker_id: UUID,
        task_types: Sequence[str],
        *,
        limit: int,
        queue_slots: Sequence[QueueSlots] | None = None,
        at_once: int | None = None,
        soon: int | None = None,
        after: Spot | None = None,
    ) -> Claimed:
        """Take at most *limit* ready tasks; *queue_slots*: only these queues (None: all).

        Cancelled or failed, it may have taken some: reconcile with `give_back_all_but`.

        A store may look at only some of the queues: the ones that come *after* (None: the first).
        `Claimed.resume` says where the next claim is to go on; *queue_slots* then has the queues
        that come after it, beginning with its queue, in their order. Of the queues it looks at,
        the store takes the best tasks: highest priority first, oldest first. The first *at_once*
        start at once (None: all). It takes no more than *soon* (None: than *at_once*) of any queue
        with a limit: a task that has to wait here could run elsewhere.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        """Write the ends of claims; return the settlements not applied, and why.

        Cancelled or failed, it may have had its effect: a settlement that is stale afterwards may
        have been written by that very call. `outcomes` tells.
        """
        ...

    async def outcomes(self, fences: Sequence[Fence]) -> Mapping[Fence, Outcome | None]:
        """Return with which outcome claims have been closed; None: the task is gone.

        A claim that is not in the answer is held, or was given back without having been started.
        """
        ...

    async def give_back_all_but(self, worker_id: UUID, fences: set[Fence]) -> int:
        """Release all claims of this worker that the store has, but *fences*; return how many."""
        ...

    async def closed_queues(self, queues: Sequence[str]) -> set[str]:
        """Return which of these queues are paused, or have more tasks running than they may.

        The caller gives back the claims on them that it has not started.
        """
        ...

    async def note_started(self, worker_id: UUID, fences: Collection[Fence]) -> set[Fence]:
        """Note that claims held ahead start now; return the claims that this worker still holds.

        A claim that an open transaction is in the way of is not returned. Only a claim that is
        known to have started counts as lost if its worker dies.
        """
        ...

    async def backlog(
        self, task_types: Sequence[str], *, queues: Sequence[str] | None, most: int
    ) -> int:
        """Count tasks of these types that are due in these queues, up to *most*.

        Queues None: all. Parked tasks are not counted: no live worker knows their type.
        """
        ...

    async def park(self) -> int:
        """Put ready tasks of types that no live worker knows out of the way of claims.

        Parks one batch, from where the last one stopped, and returns how many. They stay ready.
        """
        ...

    async def unpark(self, task_types: Sequence[str]) -> int:
        """Bring a batch of parked tasks of these types back; return how many."""
        ...


class Store(ClientStore, WorkerStore, Protocol):
    """Verbs of the domain, not of SQL. Batches in, batches out."""

    async def check(self) -> None:
        """Raise `SchemaError` if the tables do not fit this code."""
        ...

    async def aclose(self) -> None:
        """Close the connections. Using the store afterwards raises `Closed`."""
        ...
