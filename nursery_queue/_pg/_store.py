"""Tasks in PostgreSQL."""

from __future__ import annotations

import contextlib
import logging

from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

import attrs
import psycopg
import trio

from nursery_queue._core._errors import Closed, NotifyUnavailable, TransientError
from nursery_queue._core._model import (
    Attempt,
    Beat,
    CancelRequest,
    Claimed,
    Fence,
    Lane,
    NewTask,
    Refusal,
    Settlement,
    Stats,
    TaskFilter,
    TaskRef,
    TaskStatus,
    WorkerInfo,
)
from nursery_queue._core._outcome import give_back, settle_lost
from nursery_queue._core._states import Event, State, sources
from nursery_queue._store import Bell, StoreTransaction

from . import _migrate, _rows
from ._cancelling import expendable
from ._connection import Connection
from ._errors import is_refusal, translated, translated_for_workers
from ._listener import NO_NOTIFICATIONS, Listener
from ._pool import Pool
from ._pooler import connect
from ._session_clock import SessionClock
from ._sql import DEFAULT_SCHEMA, checked_schema, query
from ._transaction import PostgresTransaction, insert_tasks, settle_rows


log = logging.getLogger("nursery_queue")

BATCH = 1000
# Of the pool's connections, for claiming and settling while a worker is registered: however
# many transactions handlers hold open, the worker itself is never kept waiting.
CONTROL = 2
CONTROL_CANCEL = 2.0  # seconds to cancel a statement of ours; then its connection is closed


@attrs.define(eq=False)
class PostgresStore:
    """A `Store` in one schema of one PostgreSQL database.

    Holds at most *pool_size* connections; a worker adds one for its heartbeat and one to
    listen. A verb that gets no answer within *call_timeout* seconds raises `TransientError`.
    """

    conninfo: str
    schema: str = attrs.field(default=DEFAULT_SCHEMA, kw_only=True)
    pool_size: int = attrs.field(default=4, kw_only=True)
    call_timeout: float = attrs.field(default=30.0, kw_only=True)
    _pool: Pool = attrs.field(init=False)
    _control: Pool = attrs.field(init=False)
    _heartbeat: Pool = attrs.field(init=False)
    _registered: set[UUID] = attrs.field(factory=set[UUID], init=False)
    _registering: trio.Lock = attrs.field(factory=trio.Lock, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _pooled: bool = attrs.field(default=False, init=False)  # and the log says so

    def __attrs_post_init__(self) -> None:
        checked_schema(self.schema)
        self._pool = Pool(self.conninfo, max_size=self.pool_size, connect=self._connect)
        self._control = Pool(self.conninfo, max_size=CONTROL, connect=self._connect_to_control)
        self._heartbeat = Pool(self.conninfo, max_size=1, connect=self._connect_to_control)

    async def check(self) -> None:
        """Raise `SchemaError` if the tables are not what this code needs."""
        async with self._lent(self._pool) as conn:
            await _migrate.check(conn, self.schema)

    async def aclose(self) -> None:
        """Close the connections. Using the store afterwards raises `Closed`."""
        self._closed = True
        with trio.CancelScope(shield=True):  # closing waits for nobody
            for pool in (self._pool, self._control, self._heartbeat):
                await pool.aclose()

    # -- what applications do ----------------------------------------------------

    async def enqueue(self, tasks: Sequence[NewTask]) -> list[TaskRef]:
        """Store tasks, all or none, and answer in their order."""
        async with self._lent(self._pool) as conn:
            return await insert_tasks(conn, self.schema, tasks)

    def transaction(self) -> AbstractAsyncContextManager[StoreTransaction]:
        """Open a transaction; it commits when the block ends well."""
        return self._transaction()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncGenerator[StoreTransaction]:
        async with contextlib.AsyncExitStack() as stack:
            # What goes wrong further on is the application's to judge: not translated.
            with translated():
                conn = await stack.enter_async_context(self._pool.connection())
                await stack.enter_async_context(conn.transaction())
            yield PostgresTransaction(conn, self.schema)

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        """Cancel a waiting task, or ask for a running one to be."""
        rows = await self._run(self._pool, "cancel", {"id": task_id, "running": running})
        return bool(rows[0][0])

    async def retry(self, task_id: int) -> bool:
        """Make a failed or cancelled task ready again."""
        states = [state.value for state in sources(Event.REVIVE)]
        rows = await self._run(self._pool, "revive", {"id": task_id, "states": states})
        return bool(rows[0][0])

    async def status_many(self, task_ids: Sequence[int]) -> list[TaskStatus | None]:
        """Say where tasks are, in the order asked."""
        rows = await self._run(self._pool, "status", {"ids": list(task_ids)})
        found = {row[0]: _rows.task_status(row) for row in rows}
        return [found.get(task_id) for task_id in task_ids]

    async def attempts(self, task_id: int) -> list[Attempt]:
        """Return the whole log of a task, oldest first, a running attempt included."""
        rows = await self._run(self._pool, "attempts", {"task_id": task_id})
        return [_rows.attempt(row) for row in rows]

    async def list_tasks(self, which: TaskFilter) -> list[TaskStatus]:
        """Return a page of tasks, newest first."""
        rows = await self._run(self._pool, "list_tasks", attrs.asdict(which))
        return [_rows.task_status(row) for row in rows]

    async def stats(self) -> Stats:
        """Count tasks and list workers."""
        async with self._lent(self._pool) as conn:
            counts = await conn.fetch(query("count_tasks", self.schema))
            unknown = await conn.fetch(query("count_unknown", self.schema))
            workers = await conn.fetch(query("list_workers", self.schema))
        queues: dict[str, dict[State, int]] = defaultdict(dict)
        for queue, state, count in counts:
            queues[queue][State(state)] = count
        return Stats(
            queues=queues,
            workers=[_rows.worker_status(row) for row in workers],
            unknown_task_types=dict(unknown),
        )

    # -- what a worker does ------------------------------------------------------

    async def register(self, worker: WorkerInfo) -> None:
        """Make a worker known; only known workers may claim."""
        async with self._registering:
            if not self._registered:
                await self._pool.reserve(self._reserved)
            self._registered.add(worker.id)
        try:
            await self._run(self._heartbeat, "register", _register_params(worker))
        except BaseException:
            self._unreserve(worker.id)
            raise

    async def heartbeat(self, worker_id: UUID, *, draining: bool) -> Beat:
        """Renew a lease; never registers anew."""
        params = {"id": worker_id, "draining": draining}
        rows = await self._run(self._heartbeat, "heartbeat", params)
        if not rows:
            return Beat(registered=False)
        ((requests, somebody_died),) = rows
        return Beat(
            registered=True,
            cancel_requests=[
                CancelRequest(fence=Fence(task_id, epoch), interrupt=interrupt)
                for task_id, epoch, interrupt in requests
            ],
            somebody_died=somebody_died,
        )

    async def deregister(self, worker_id: UUID) -> None:
        """Forget a worker. What it still holds may be swept at once."""
        self._unreserve(worker_id)
        await self._run(self._heartbeat, "deregister", {"id": worker_id})

    async def claim(
        self,
        worker_id: UUID,
        task_types: Sequence[str],
        *,
        limit: int,
        lanes: Sequence[Lane] | None = None,
    ) -> Claimed:
        """Take at most *limit* ready tasks; *lanes*: only these queues (None: all)."""
        params = {
            "worker_id": worker_id,
            "task_types": list(task_types),
            "limit": limit,
            "queues": None if lanes is None else [lane.queue for lane in lanes],
            "slots": None if lanes is None else [lane.slots for lane in lanes],
        }
        async with self._lent(self._control) as conn:
            if not conn.pooled:
                return _rows.claimed(await conn.fetch(query("claim", self.schema), params))
            async with conn.pipeline():  # one transaction, which is sent in one go
                await conn.execute(query("keep_to_indexes", self.schema), {"once": True})
                return _rows.claimed(await conn.fetch(query("claim", self.schema), params))

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        """Write what became of claims; return those not applied, and why."""
        async with self._lent(self._control) as conn:
            return await settle_rows(conn, self.schema, settlements)

    async def give_back_all_but(self, worker_id: UUID, fences: set[Fence]) -> int:
        """Release what the store thinks this worker holds, except *fences*."""
        rows = await self._run(self._control, "held", {"worker_id": worker_id})
        strays = [held for row in rows if (held := _rows.held(row)).fence not in fences]
        refused = await self.settle([give_back(held) for held in strays])
        if left := [fence for fence, why in refused.items() if why is not Refusal.STALE]:
            msg = f"open transactions are in the way of giving back {left}: try again"
            raise TransientError(msg)
        return len(strays) - len(refused)

    async def promote(self) -> int:
        """Make scheduled tasks that are due ready, in bulk; return how many."""
        rows = await self._run(self._control, "promote", {"limit": BATCH})
        return int(rows[0][0])

    async def sweep(self, *, max_lost: int) -> int:
        """Settle as lost what dead workers hold; return how many."""
        if await self._run(self._control, "overdue") == [(False,)]:
            return 0  # the usual case, without a transaction
        async with self._lent(self._control) as conn, conn.transaction():
            dead = [row[0] for row in await conn.fetch(query("dead_workers", self.schema))]
            rows = await conn.fetch(query("abandoned", self.schema), {"dead": dead})
            lost = [settle_lost(_rows.held(row), max_lost=max_lost) for row in rows]
            await settle_rows(conn, self.schema, lost)
            await conn.fetch(query("forget_workers", self.schema), {"dead": dead})
        return len(lost)

    async def prune(self) -> int:
        """Delete a batch of tasks that ended longer ago than they are kept; return how many."""
        rows = await self._run(self._control, "prune", {"limit": BATCH})
        return int(rows[0][0])

    async def listen(
        self,
        ring: Callable[[Bell], object],
        bells: Sequence[Bell],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Call *ring* for each of *bells* when there may be news, until cancelled.

        Raises `NotifyUnavailable` behind a pooler.
        """
        if self._closed:
            msg = "this store has been closed"
            raise Closed(msg)
        channels = {channel_of(bell, self.schema): bell for bell in bells}
        with translated_for_workers():
            listener = await self._open_listener(channels)
            try:
                # Listening first and ringing after, so nothing falls in between.
                for bell in bells:
                    ring(bell)
                task_status.started()
                await listener.run(lambda channel: ring(channels[channel]))
            finally:
                listener.close()

    # -- helpers -----------------------------------------------------------------

    @property
    def _reserved(self) -> int:
        return min(CONTROL, self.pool_size - 1)

    async def _connect(self) -> Connection:
        conn = await connect(self.conninfo)
        if conn.pooled:  # then nothing may be set in the session, which is others' too
            self._warn_of_pooler()
        else:
            conn.clock = SessionClock(f"{self.schema}.now")
        return conn

    async def _connect_to_control(self) -> Connection:
        """Not for the application's own statements: plans are kept to what suits ours."""
        conn = await self._connect()
        conn.cancel_timeout = CONTROL_CANCEL
        try:
            if not conn.pooled:
                with expendable(conn):
                    await conn.execute(query("keep_to_indexes", self.schema), {"once": False})
        except BaseException:
            conn.abort()
            raise
        return conn

    async def _open_listener(self, channels: Iterable[str]) -> Listener:
        if self._pooled:
            raise NotifyUnavailable(NO_NOTIFICATIONS)
        try:
            return await Listener.open(self.conninfo, channels)
        except NotifyUnavailable:
            self._warn_of_pooler()
            raise

    def _warn_of_pooler(self) -> None:
        if not self._pooled:
            self._pooled = True
            log.warning(
                "a pooler stands between us and PostgreSQL: it passes no notifications on, so new"
                " tasks are found by polling alone; give workers a DSN that leads there directly"
            )

    def _unreserve(self, worker_id: UUID) -> None:
        if worker_id in self._registered:
            self._registered.discard(worker_id)
            if not self._registered:
                self._pool.unreserve(self._reserved)

    async def _run(
        self, pool: Pool, name: str, params: Mapping[str, Any] | None = None
    ) -> list[_rows.Row]:
        async with self._lent(pool) as conn:
            return await conn.fetch(query(name, self.schema), params)

    @contextlib.asynccontextmanager
    async def _lent(self, pool: Pool) -> AsyncGenerator[Connection]:
        translating = translated if pool is self._pool else translated_for_workers
        with translating(), self._bounded():
            async with pool.connection() as conn:
                try:
                    yield conn
                except psycopg.Error as exc:
                    if is_refusal(exc):  # a new one may fare better, as after a migration
                        conn.abort()
                    raise

    @contextlib.contextmanager
    def _bounded(self) -> Generator[None]:
        with trio.move_on_after(self.call_timeout) as limit:
            yield
        if limit.cancelled_caught:
            msg = f"the database gave no answer within {self.call_timeout:g} s"
            raise TransientError(msg)


def channel_of(bell: Bell, schema: str) -> str:
    """Return the name of the NOTIFY channel that rings *bell*."""
    return schema if bell is Bell.WORK else f"{schema}_{bell.name.lower()}"


def _register_params(worker: WorkerInfo) -> dict[str, Any]:
    return {
        "id": worker.id,
        "name": worker.name,
        "host": worker.host,
        "pid": worker.pid,
        "queues": None if worker.queues is None else list(worker.queues),
        "task_types": list(worker.task_types),
        "lease": worker.lease,
    }
