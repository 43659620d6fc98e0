"""The one boundary: what applications and workers need from wherever tasks are kept."""

from __future__ import annotations

import enum

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Literal, Protocol
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
from nursery_queue._core._streams import StreamPage, StreamRequest, StreamWrite


class Bell(enum.Enum):
    """What a store can ring for. A ring is a hint; the tables are the truth."""

    WORK = enum.auto()  # there may be something to claim, or a new due time
    CANCEL = enum.auto()  # somebody wants a running task cancelled, or a queue has been changed
    FINISHED = enum.auto()  # a task has ended
    STREAM = enum.auto()  # a task has written to a stream, or closed one


class Ring(Protocol):
    """Called when a bell rings. *task_id*: only this task's streams have news; None: any."""

    def __call__(self, bell: Bell, task_id: int | None = None, /) -> object: ...


# Called with each attempt that a sweep has settled, and with what was decided.
TellLost = Callable[[Held, Settlement], object]


def tell_nobody(held: Held, settlement: Settlement) -> None:
    """Nobody wants to hear of it."""


# What a transaction sees of others, as PostgreSQL calls it.
Isolation = Literal["read committed", "repeatable read", "serializable"]


class StoreTransaction(Protocol):
    """One open transaction: all that is done through it, or nothing."""

    @property
    def connection(self) -> Any:
        """The connection underneath, for the application's own statements."""
        ...

    async def execute(self, query: Any, params: Any = None) -> Any:
        """Run a statement of the application's own."""
        ...

    async def enqueue(self, tasks: Sequence[NewTask], *, copy: bool = False) -> list[TaskRef]:
        """Store tasks; nobody sees them before the commit. See `Store.enqueue`."""
        ...

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        """Ask for a task to be cancelled; nobody sees it before the commit."""
        ...

    async def status_many(
        self, task_ids: Sequence[int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        """Say where tasks are, as this transaction sees them. See `Store.status_many`."""
        ...

    async def settle(self, settlement: Settlement) -> None:
        """Settle one claim, with the commit.

        Raises `StaleClaim` if it is not ours any more, `ClaimLocked` if another transaction
        holds it for the moment: then this one is as good as before, and may ask again.
        Raises `TransientError` if it must not go round again.
        """
        ...

    async def write_stream(self, write: StreamWrite) -> None:
        """Store chunks with the commit; nobody sees them before. See `Store.write_stream`."""
        ...

    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """A block that can fail alone."""
        ...


class Store(Protocol):
    """Verbs of the domain, not of SQL. Batches in, batches out.

    A verb raises `TransientError` when trying again may help, and lets everything else
    through; one that is for workers raises `DatabaseRefused` when whatever it were asked would
    be refused. A cancelled verb had no effect, unless its docstring says otherwise. A write of
    applications whose answer was lost with the connection raises `CommitOutcomeUnknown`; one of
    workers, which bears being repeated, raises `TransientError`.
    """

    async def check(self) -> None:
        """Raise `SchemaError` if the tables are not what this code needs."""
        ...

    async def aclose(self) -> None:
        """Close the connections. Using the store afterwards raises `Closed`."""
        ...

    # -- what applications do ----------------------------------------------------

    async def enqueue(self, tasks: Sequence[NewTask], *, copy: bool = False) -> list[TaskRef]:
        """Store tasks, all or none, and answer in their order.

        *copy*: in whatever way is best for very many; none of them has a dedup key.
        """
        ...

    def transaction(
        self, *, isolation: Isolation | None = None
    ) -> AbstractAsyncContextManager[StoreTransaction]:
        """Open a transaction; it commits when the block ends well.

        *isolation* None: as the database has it. All other verbs are read committed, whatever it
        has.

        Raises `CommitOutcomeUnknown` if the connection died during the commit.
        """
        ...

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        """Cancel a waiting task, or ask for a running one to be. False: unknown or finished."""
        ...

    async def cancel_some(
        self, which: CancelFilter, *, after: int, upto: int, dry_run: bool
    ) -> tuple[int | None, int]:
        """Do the next page of a walk through all tasks with an id above *after*, up to *upto*.

        Cancels those that fit, as `cancel` does, or counts them (*dry_run*); those that have
        ended do not fit. Returns the last id it has looked at, None if there was none, and
        how many did fit.
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

    async def pause(self, queue: str, *, paused: bool) -> None:
        """Let nothing of a queue start, or let it start again. What runs is not touched."""
        ...

    async def notify(self, queue: str, *, notify: bool) -> None:
        """Have enqueues to a queue wake workers, or leave its tasks to their polls.

        It is about tasks that are new; all else that makes work wakes them in any case.
        """
        ...

    async def limit(self, queue: str, max_running: int | None) -> None:
        """Set how many tasks of a queue may run over all workers; None: no limit.

        Exact at every commit, except that nothing is stopped when the limit is lowered.
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

    async def read_streams(self, requests: Sequence[StreamRequest]) -> list[StreamPage | None]:
        """Return a page for each request, in their order; None: there is no such task."""
        ...

    # -- what a worker does ------------------------------------------------------

    def room_for(self, handlers: int) -> AbstractContextManager[int]:
        """Prepare for so many handlers at once while the block lasts.

        Yields how many of them may have a transaction open at the same time.
        """
        ...

    async def register(self, worker: WorkerInfo) -> None:
        """Make a worker known; only known workers may claim."""
        ...

    async def heartbeat(self, worker_id: UUID, *, draining: bool) -> Beat:
        """Renew a lease; never registers anew."""
        ...

    async def deregister(self, worker_id: UUID) -> None:
        """Forget a worker. What it still holds may be swept at once."""
        ...

    async def claim(
        self,
        worker_id: UUID,
        task_types: Sequence[str],
        *,
        limit: int,
        queue_slots: Sequence[QueueSlots] | None = None,
        at_once: int | None = None,
        after: Spot | None = None,
    ) -> Claimed:
        """Take at most *limit* ready tasks; *queue_slots*: only these queues (None: all).

        A store may look at no more than some of the queues: those that come *after* (None: the
        first). `Claimed.resume` says where the next claim is to go on; of *queue_slots* those that
        come after it, beginning with its queue, in their order. Of the queues it looks at it
        takes the best: highest priority first, oldest first.
        No more than *at_once* of any queue with a limit: what has to wait here, others could
        run. Cancelled or failed, it may have taken some: reconcile with `held`.
        """
        ...

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        """Write what became of claims; return those not applied, and why.

        Cancelled or failed, it may have had its effect: what is stale afterwards may have been
        written by that very call. `outcomes` tells.
        """
        ...

    async def outcomes(self, fences: Sequence[Fence]) -> Mapping[Fence, Outcome | None]:
        """Return with which outcome claims have been closed; None: the task is gone.

        What is not in the answer is held, or was given back without having been started.
        """
        ...

    async def write_stream(self, write: StreamWrite) -> None:
        """Store chunks of an attempt at the end of one of its streams, all or none.

        Ignored if an earlier attempt has closed the stream and this one goes on with it.
        Raises `StaleClaim` if the claim is not ours any more, `Closed` if this attempt has
        closed the stream, `StreamFull` if it would have too many chunks. Cancelled or failed,
        it may have had its effect.
        """
        ...

    async def give_back_all_but(self, worker_id: UUID, fences: set[Fence]) -> int:
        """Release what the store thinks this worker holds, except *fences*."""
        ...

    async def closed_queues(self, queues: Sequence[str]) -> set[str]:
        """Return which of these queues are paused, or have more tasks running than they may.

        What has been claimed of them and not been started is to be given back.
        """
        ...

    async def promote(self) -> int:
        """Make scheduled tasks that are due ready, in bulk; return how many."""
        ...

    async def note_started(self, worker_id: UUID, fences: Collection[Fence]) -> set[Fence]:
        """Note that claims that were held ahead start; return those that this worker still holds.

        Only what is known to have started counts as lost if its worker dies. A claim that an
        open transaction is in the way of is not among those returned.
        """
        ...

    async def sweep(
        self,
        *,
        max_lost: int,
        max_lost_of: Mapping[str, int] | None = None,
        seen: Sequence[Seen] | None = None,
        tell: TellLost = tell_nobody,
    ) -> int:
        """Settle a batch of what dead workers hold; return how many, *tell* of each loss.

        Dead is whose lease has run out by the store's clock. Where that may have jumped, *seen*
        says which heartbeats somebody has seen, by a clock of his own, and only of these workers
        one is newly taken for dead: if it has sent no other since, and either that was for the
        time from one heartbeat to the next and `MARGIN`, or for its whole lease, and then whatever
        the store's clock says.

        A task fails with its last loss allowed: as *max_lost_of* says for its type, or as the
        worker said that held it, or else *max_lost*. What was only held ahead goes back as it
        was. A task that cannot be settled keeps none of the others waiting; nor does one that
        an open transaction holds, whose turn comes with a later call.
        """
        ...

    async def prune(self) -> int:
        """Delete a batch of tasks that ended longer ago than they are kept; return how many."""
        ...

    async def backlog(
        self, task_types: Sequence[str], *, queues: Sequence[str] | None, most: int
    ) -> int:
        """Count tasks of these types that are due in these queues, up to *most*.

        Queues None: all. What is parked is not counted: nobody knows its type.
        """
        ...

    async def park(self) -> int:
        """Put ready tasks of types that no live worker knows out of the way of claims.

        One batch, where the last one stopped; returns how many. They are ready all the same.
        """
        ...

    async def unpark(self, task_types: Sequence[str]) -> int:
        """Bring a batch of parked tasks of these types back; return how many."""
        ...

    async def listen(
        self,
        ring: Ring,
        bells: Sequence[Bell],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call *ring* for each of *bells* when there may be news, until cancelled.

        Hints only: they may be late, merged or missing. All ring as soon as we can hear, for
        whatever was missed before. `Bell.STREAM` may name the task; no other one does.
        Raises `NotifyUnavailable` if there will never be any.
        """
        ...
