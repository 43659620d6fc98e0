"""A transaction, as applications and handlers see it."""

from __future__ import annotations

import contextlib

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, TypeVarTuple, get_args

import attrs
import trio

from nursery_queue._core._errors import TransactionEnded
from nursery_queue._core._events import Enqueued, enqueued
from nursery_queue._core._model import Settlement, TaskRef, TaskStatus
from nursery_queue._core._streams import StreamWrite
from nursery_queue._declare._app import App
from nursery_queue._declare._task_type import TaskRequest
from nursery_queue._store import Isolation, StoreTransaction

from ._after_commit import AfterCommit, AfterCommitBatch
from ._callbacks import Callback, PendingCallbacks
from ._enqueuer import Enqueuer, new_tasks, task_id
from ._instruments import EventTopics


Ts = TypeVarTuple("Ts")


@attrs.define(eq=False)
class Transaction(Enqueuer):
    """One open transaction: the application's writes and the tasks commit together.

    Use after the block has ended raises `TransactionEnded`. Not to be used by two tasks at
    the same time, except that psycopg runs one statement after the other.
    """

    _open: Callable[[], Awaitable[StoreTransaction]]
    _max_params_bytes: int
    _events: EventTopics
    _pending: PendingCallbacks  # maybe with callbacks of other transactions
    _app: App | None = None  # what it declares counts for tasks enqueued by name
    _inner: StoreTransaction | None = None
    _opening: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _ended: bool = attrs.field(default=False, init=False)
    # Events to tell when it is committed.
    _enqueued: list[Enqueued] = attrs.field(factory=list[Enqueued], init=False)
    _callbacks: list[Callback] = attrs.field(factory=list[Callback], init=False)

    @property
    def is_open(self) -> bool:
        """Whether there is a transaction in the database: `ctx.tx` opens one at first use."""
        return self._inner is not None and not self._ended

    @property
    def connection(self) -> Any:
        """The psycopg connection. In a handler's `ctx.tx`: await `begin()` or `execute` first."""
        if self._ended or self._inner is None:
            raise TransactionEnded(_ended_message() if self._ended else _UNOPENED)
        return self._inner.connection

    async def begin(self) -> None:
        """Open the transaction now, unless it is open."""
        await self._current()

    async def execute(self, query: Any, params: Any = None) -> Any:
        """Run a statement of your own and return psycopg's cursor; errors are psycopg's."""
        return await (await self._current()).execute(query, params)

    async def enqueue_many(
        self, requests: Sequence[TaskRequest], *, copy: bool = False
    ) -> list[TaskRef]:
        """Store tasks with this transaction, all or none; see `Client.enqueue_many`."""
        tasks = new_tasks(requests, self._max_params_bytes, self._app, copy=copy)
        refs = await (await self._current()).enqueue(tasks, copy=copy)
        if self._events.enqueued.wanted:
            self._enqueued += enqueued(tasks, refs)
        return refs

    async def cancel(self, task: TaskRef | int, *, running: bool = True) -> bool:
        """Cancel a task with this transaction; see `Client.cancel`."""
        return await (await self._current()).cancel(task_id(task), running=running)

    async def status_many(
        self, tasks: Sequence[TaskRef | int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        """Say where tasks are, in the order asked, as this transaction sees them."""
        ids = [task_id(task) for task in tasks]
        return await (await self._current()).status_many(ids, payloads=payloads)

    def after(self, fn: Callable[[*Ts], object], /, *args: *Ts) -> None:
        """Have *fn* called once this is committed, and only then. It is best effort.

        It is not called if the transaction, or a savepoint around this call, is rolled back, or if
        the outcome of the commit is unknown. Callbacks begin in the order of the calls, run
        concurrently, and in the context of the call; an error is logged. By default the
        transaction's block waits for them, when the connection has been given back: 10 run at
        once, each is cancelled after 30 s, and all when the block is. An `AfterCommit`, given to
        `client.transaction`, sets other limits.

        Args:
            fn: A function, async or not; it runs in trio's thread. If it blocks, let
                `trio.to_thread.run_sync` be *fn*.
            args: Its arguments.

        Raises:
            TransactionEnded: The block has ended.
            Closed: The `AfterCommit` of this transaction has been closed.
        """
        if self._ended:
            raise TransactionEnded(_ended_message())
        self._callbacks.append(self._pending.add(fn, args))

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None]:
        """A block that is rolled back alone when it raises; the error goes on."""
        enqueued, callbacks = len(self._enqueued), len(self._callbacks)
        complete = kept = False
        try:
            async with (await self._current()).savepoint():
                yield
                complete = True  # psycopg.Rollback ends the block without an error
            kept = complete
        finally:
            if not kept:
                del self._enqueued[enqueued:]
                self._pending.drop(self._callbacks[callbacks:])

    async def _current(self) -> StoreTransaction:
        if self._ended:
            raise TransactionEnded(_ended_message())
        if self._inner is None:
            async with self._opening:
                if self._inner is None:
                    self._inner = await self._open()
        return self._inner

    # -- for the worker and for streams --------------------------------------------

    async def settle(self, settlement: Settlement) -> None:
        """Settle this attempt's own claim with the transaction."""
        await (await self._current()).settle(settlement)

    async def write_stream(self, write: StreamWrite) -> None:
        """Store chunks with the transaction."""
        await (await self._current()).write_stream(write)

    def end(self) -> None:
        """Refuse further use."""
        self._ended = True

    def committed(self) -> None:
        """Tell the instruments of the tasks that were enqueued."""
        for event in self._enqueued:
            self._events.enqueued.tell(event)


async def already_open() -> StoreTransaction:
    """Open nothing: for a `Transaction` that has been given an open one."""
    raise AssertionError


def check_options(after: object, isolation: object) -> None:
    """Raise for arguments that `client.transaction` does not take."""
    if after is not None and not isinstance(after, AfterCommit | AfterCommitBatch):
        raise TypeError(
            f"transaction(after=...) takes an AfterCommit or a batch of one, not {after!r:.100}: a "
            f"function to call after the commit goes to tx.after() within the block"
        )
    if isolation is not None and isolation not in (levels := get_args(Isolation)):
        msg = f"isolation must be one of {', '.join(levels)}, or None, not {isolation!r:.100}"
        raise ValueError(msg)


_UNOPENED = "nothing has been done in this transaction yet: await its begin() first"


def _ended_message() -> str:
    return "this transaction has ended: open another one with client.transaction()"
