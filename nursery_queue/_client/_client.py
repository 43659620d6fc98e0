"""The client, which applications call: enqueue, ask, cancel, read streams."""

from __future__ import annotations

import contextlib
import math

from collections.abc import AsyncGenerator, Sequence
from contextlib import nullcontext
from typing import Any, Self

import attrs

from nursery_queue._core import _events
from nursery_queue._core._checks import limit, whole
from nursery_queue._core._errors import TaskCancelled, TaskFailed, UnknownTask
from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._log_level import log_level
from nursery_queue._core._model import Attempt, Held, Settlement, Stats, TaskRef, TaskStatus
from nursery_queue._core._outcome import MAX_LOST
from nursery_queue._core._reasons import ReasonCode, Why, reason_code
from nursery_queue._core._states import State
from nursery_queue._core._streams import stream_name
from nursery_queue._declare._app import App
from nursery_queue._declare._task_type import MAX_RESULT_BYTES, TaskRequest, TaskType
from nursery_queue._store import Isolation
from nursery_queue._trio._lifetime import Lifetime

from ._after_commit import AfterCommit, AfterCommitBatch
from ._callbacks import CallbackCounts, CallbackTally, PendingCallbacks, call_all
from ._enqueuer import Enqueuer, new_tasks, task_id
from ._instruments import EventTopics, Instrument, LogEvents
from ._notifier import Notifier
from ._queue_administration import CLOSED, name_of
from ._reason_search import held_by
from ._result_waiter import ResultWaiter
from ._schedule_administration import ScheduleAdministration
from ._stream_reader import FURTHEST, POLL, ClientStreams, StreamInfo, StreamReader, poll_interval
from ._transaction import Transaction, already_open, check_options


@attrs.define(eq=False)
class Client(ScheduleAdministration, Enqueuer):
    """Enqueues tasks and asks about them. `connect()` makes one on PostgreSQL.

    Every method raises `TransientError` if the database cannot be reached or does not
    answer, and `Closed` after `aclose()`. A cancelled call had no effect, unless the server did
    not answer its cancellation either, for 5 s.

    A call that writes (enqueue, cancel, retry, pause ...) raises `CommitOutcomeUnknown` if the
    connection was lost after the write may have been sent: look before you call it again. An
    enqueue with a `dedup_key` may be repeated. `promote`, `sweep` and `prune` may be, too, and
    raise `TransientError`.

    Args:
        store: Where the tasks are, for instance `testing.MemoryStore()`.
        max_params_bytes: The largest params, and the largest context, of one task, in bytes of
            JSON; 1,000,000.
        max_result_bytes: The largest result of one task that workers with this client store,
            in bytes of JSON; 1,000,000. A larger one fails the task at once: `ResultTooLarge`.
        instruments: Are told of events of tasks, here and in workers with this client; by
            default `LogEvents()` alone.
        stream_poll_interval: Seconds between polls of a stream that is read, should a
            notification get lost; 5. 0: no polls, notifications alone.
        app: What it declares counts for what is enqueued by name; None: what workers have stored.

    Raises:
        TypeError: One of *instruments* is none.
    """

    max_result_bytes: int = attrs.field(default=MAX_RESULT_BYTES, kw_only=True)
    instruments: Sequence[Instrument] = attrs.field(
        factory=lambda: (LogEvents(),), converter=tuple[Instrument, ...], kw_only=True
    )
    stream_poll_interval: float = attrs.field(default=POLL, converter=poll_interval, kw_only=True)
    app: App | None = attrs.field(default=None, kw_only=True)
    events: EventTopics = attrs.field(init=False, repr=False)
    called_back: CallbackTally = attrs.field(factory=CallbackTally, init=False, repr=False)
    lifetime: Lifetime = attrs.field(factory=Lifetime, init=False, repr=False)
    _notifier: Notifier = attrs.field(init=False, repr=False)
    _waiting: ResultWaiter = attrs.field(init=False, repr=False)
    _streams: ClientStreams = attrs.field(init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.events = EventTopics(self.instruments)
        self._notifier = Notifier(self.store)
        self._waiting = ResultWaiter(self.store, self._notifier)
        self._streams = ClientStreams(self.store, self._notifier, self.stream_poll_interval)
        log_level.complain()

    async def __aenter__(self) -> Self:
        self.lifetime.check_owner()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections; may be called again. Using the client then raises `Closed`.

        Workers that run on it are cancelled first, and raise `Closed`. A handler may not close
        the client of its worker: `RuntimeError`.
        """
        self.lifetime.check_owner()
        self._closed = True
        for each in (self._waiting, self._streams, self._notifier):
            each.close(CLOSED)
        await self.lifetime.end()
        await self.store.aclose()
        await self._notifier.ended()

    # -- enqueuing ----------------------------------------------------------------

    async def enqueue_many(
        self, requests: Sequence[TaskRequest], *, copy: bool = False
    ) -> list[TaskRef]:
        """Store tasks, all or none; their ids come back in order.

        Args:
            requests: What `bind()` returned, of any task types, with any options.
            copy: Store them by COPY: for 100,000 at a time, which takes two thirds of the time. A
                role that may not pick ids stores 10,000 at a time.

        Raises:
            PayloadTooLarge: Params are larger than `max_params_bytes`.
            ValueError: One has a dedup key, and *copy* is given: COPY cannot look for others.
            CommitOutcomeUnknown: The answer was lost: all are stored, or none.
        """
        store = self._open_store
        tasks = new_tasks(requests, self.max_params_bytes, self.app, copy=copy)
        refs = await store.enqueue(tasks, copy=copy)
        if self.events.enqueued.wanted:
            for event in _events.enqueued(tasks, refs):
                self.events.enqueued.tell(event)
        return refs

    @contextlib.asynccontextmanager
    async def transaction(
        self,
        *,
        after: AfterCommit | AfterCommitBatch | None = None,
        isolation: Isolation | None = None,
    ) -> AsyncGenerator[Transaction]:
        """Open a transaction, in which your writes and your tasks commit together.

        Commits when the block ends well, rolls back when it raises or is cancelled. Raises
        `CommitOutcomeUnknown` if the connection is lost during the commit.

        Args:
            after: Calls the functions that `tx.after` is given. None: the block calls them after
                its commit, and waits for them; cancelled then, it cancels them.
            isolation: "read committed" (as all verbs here are), "repeatable read" or
                "serializable"; None: as the database or the role has it.

        Raises:
            ValueError: There is no such *isolation*.
            RuntimeError: *after* has not been entered, and has no nursery.
            Closed: It has been closed, or is a batch that is over.
            TypeError: It is neither an `AfterCommit` nor a batch of one.
        """
        store = self._open_store
        check_options(after, isolation)
        complete = False  # psycopg.Rollback ends the block without an error
        with nullcontext(PendingCallbacks()) if after is None else after.registering() as pending:
            async with store.transaction(isolation=isolation) as inner:
                tx = Transaction(
                    already_open, self.max_params_bytes, self.events, pending, self.app, inner
                )
                try:
                    yield tx
                    complete = True
                finally:
                    tx.end()
            if complete:
                pending.committed = True
                tx.committed()
        if after is None and complete and pending.callbacks:
            await call_all(pending.callbacks, self.called_back)

    @property
    def callbacks(self) -> CallbackCounts:
        """How many callbacks have ended, by outcome; an `AfterCommit` counts its own.

        Callbacks that handlers give to `ctx.after` count on their worker's client.
        """
        return self.called_back.counts

    # -- asking -------------------------------------------------------------------

    async def status_many(
        self, tasks: Sequence[TaskRef | int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        return await self._open_store.status_many(
            [task_id(task) for task in tasks], payloads=payloads
        )

    async def attempts(self, task: TaskRef | int) -> list[Attempt]:
        """Return every execution of a task, oldest first, a running one included."""
        return await self._open_store.attempts(task_id(task))

    async def wait(self, task: TaskRef | int) -> TaskStatus:
        """Wait until a task has ended, in whatever way. Raises `UnknownTask`.

        Woken by NOTIFY. Asks besides: once a second without NOTIFY, else ever less often, at
        last once a minute. Rides out outages of the database, however long and from the first
        question on: it never raises `TransientError`.
        """
        return await self._final(task, math.inf)

    async def result(self, task: TaskRef | int, timeout: float | None = None) -> Any:  # noqa: ASYNC109  # the contract has it
        """Wait until a task has ended and return what its handler returned, as JSON has it.

        Args:
            task: The task.
            timeout: Seconds to wait at most; None or infinity: for ever. 0 asks once whether it has
                ended: that first question may take its time, up to 5 s, whatever the timeout.

        Raises:
            TaskFailed: It failed for good; the message has its error.
            TaskCancelled: It was cancelled.
            UnknownTask: There is none of that id (any more).
            trio.TooSlowError: It has not ended within *timeout*.
            TransientError: The database could not even be asked once within *timeout*. Other
                outages are ridden out.
        """
        status = await self._final(task, math.inf if timeout is None else limit(timeout, "timeout"))
        match status.state:
            case State.FAILED:
                raise TaskFailed(f"task {status.id} ({status.task_type}) failed: {status.error}")
            case State.CANCELLED:
                raise TaskCancelled(f"task {status.id} ({status.task_type}) was cancelled")
            case _:
                return status.result

    async def _final(self, task: TaskRef | int, limit: float) -> TaskStatus:
        self._check_open()
        status = await self._waiting.final(task_id(task), limit)
        if status is None:
            msg = f"there is no task {task_id(task)}: it never existed, or has been pruned"
            raise UnknownTask(msg)
        return status

    async def list_tasks(
        self,
        *,
        state: State | str | None = None,
        queue: str | None = None,
        task_type: TaskType[..., Any] | str | None = None,
        reason: ReasonCode | str | None = None,
        limit: int = 100,
        after: TaskRef | int | None = None,
        payloads: bool = False,
    ) -> list[TaskStatus]:
        """Return a page of tasks, newest first, without what can be large.

        Args:
            state: Only tasks in this state.
            queue: Only tasks of this queue.
            task_type: Only of this type.
            reason: Only tasks that are where they are for this reason, "queue_limit" for instance:
                see `why`. Looks at the newest 2,000 tasks of each state in which it can hold, that
                fit the rest: a page with fewer than *limit* may lack older ones.
            limit: How many at most, 1 to 10,000.
            after: Only those below this id: for the next page, the last id of this one. So no
                task comes twice, whatever is enqueued meanwhile.
            payloads: With their params, contexts and results, which are not read otherwise.

        Raises:
            ValueError: There is no such *state* or *reason*; *limit* is out of its bounds.
        """
        store = self._open_store
        which = TaskFilter(
            state=None if state is None else State(state),
            queue=queue,
            task_type=None if task_type is None else str(name_of(task_type)),
            limit=whole(limit, "limit", minimum=1, maximum=10_000),
            after=None if after is None else task_id(after),
            payloads=payloads,
        )
        if reason is not None:
            return await held_by(store, reason_code(reason), which)
        return await store.list_tasks(which)

    async def why(self, task: TaskRef | int) -> Why:
        """Say in which state a task is, and every reason that keeps it there.

        By the predicates by which workers take tasks, in words and as data. A task that has not
        ended or started has one reason at least, the strongest comes first, and there may be
        several: remove them all, and it starts. An unknown id has the state None and one reason,
        `unknown`. The cost is bounded, however many tasks there are.
        """
        (found,) = await self._open_store.why([task_id(task)])
        return found

    async def stats(self) -> Stats:
        """Count tasks by queue and state, list workers, and name unknown task types."""
        return await self._open_store.stats()

    # -- streams ------------------------------------------------------------------

    def read_stream(
        self,
        task: TaskRef | int,
        name: str = "default",
        start: int = 0,
        *,
        restarts: int | None = None,
    ) -> StreamReader:
        """Read what a task writes to a stream: `async for data in client.read_stream(task)`.

        All of it comes, in order, once, as it was written, until the stream is closed; by
        default that is when the task has ended. Woken by NOTIFY; looks besides, each
        `stream_poll_interval`. Rides out outages of the database, however long: it never
        raises `TransientError`. See `StreamReader` for what it does raise.

        Args:
            task: The task; it need not have begun.
            name: The stream's name; nothing need have been written to it.
            start: Index of the first chunk wanted, of those since the last restart; waits for
                it if need be. Below 0 it counts from the end, as that is when reading begins.
            restarts: To go on where an earlier reader has stopped: its `restarts`. If the stream
                has been restarted since, the reader raises `StreamRestarted`. None: it does not.
        """
        self._check_open()
        first = whole(start, "start", minimum=-FURTHEST, maximum=FURTHEST)
        if restarts is not None:
            whole(restarts, "restarts", minimum=0, maximum=2**31 - 1)
        return self._streams.reader(task_id(task), stream_name(name), first, restarts)

    async def stream_info(self, task: TaskRef | int, name: str = "default") -> StreamInfo | None:
        """Say how far a stream has come. None: there is no such task (any more)."""
        self._check_open()
        return await self._streams.info(task_id(task), stream_name(name))

    # -- steering -----------------------------------------------------------------

    async def cancel(self, task: TaskRef | int, *, running: bool = True) -> bool:
        return await self._open_store.cancel(task_id(task), running=running)

    async def retry(self, task: TaskRef | int) -> bool:
        """Let a failed or cancelled task go again, with all its attempts before it.

        False: it is neither, or another live task has its dedup key by now.
        """
        return await self._open_store.retry(task_id(task))

    async def sweep(self, *, max_lost: int = MAX_LOST) -> int:
        """Settle as lost what dead workers hold, and return how many; better left to workers.

        A worker is dead if its lease has run out by the database's clock. Nothing else is asked:
        right after that clock was set ahead, living workers count as dead. Workers, which sweep by
        themselves, watch each other's heartbeats besides.
        """
        return await self._open_store.sweep(max_lost=max_lost, tell=self._lost)

    def _lost(self, held: Held, settlement: Settlement) -> None:
        if self.events.completed.wanted:
            self.events.completed.tell(_events.lost(held, settlement))
