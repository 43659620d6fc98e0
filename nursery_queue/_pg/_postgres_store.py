"""Tasks in PostgreSQL."""

from __future__ import annotations

import contextlib
import functools
import logging

from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Unpack
from uuid import UUID

import attrs
import psycopg

from nursery_queue._core._errors import DatabaseRefused, TransientError
from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._heartbeat import Beat, Seen
from nursery_queue._core._model import (
    Attempt,
    Claimed,
    Fence,
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
from nursery_queue._core._outcome import allowed_losses, give_back
from nursery_queue._core._queue_changes import Declared, QueueChanges
from nursery_queue._core._reasons import Unattended, Why, unknown
from nursery_queue._core._states import Event, sources
from nursery_queue._core._streams import StreamPage, StreamRequest, StreamWrite
from nursery_queue._psycopg._cursors import OwnAsyncCursor
from nursery_queue._psycopg._database_errors import translated
from nursery_queue._psycopg._isolation import ISOLATION, USUAL
from nursery_queue._store import Isolation, Store, StoreTransaction, TellLost, tell_nobody

from . import _migrator as _migrate, _plan, _rows, _stream_rows as _streams
from ._declared_queues import declare_queues
from ._excusing import Excuses
from ._postgres_schedules import ScheduleVerbs
from ._postgres_transaction import PostgresTransaction, carry_out, insert_tasks, settle_rows
from ._rows import Row
from ._sql import query
from ._sweeper import Sweeper


log = logging.getLogger("nursery_queue")

BATCH = 1000
PRUNES = 50  # batches of one kind, in one turn
COPY = 100_000  # tasks that are stored in the time of one call
WALK = 5000  # tasks to look at in one statement
PARK = 10_000  # positions to put aside in one statement
# Queues that one claim looks at. It holds a lock for each, and a second one for each that has a
# limit: as many as the server has room for in each of its sessions by default
# (max_locks_per_transaction, 64; tests/pg/test_many_queues.py).
QUEUES = 32
PROBES = 500  # of the index, to find them among paused queues and types that were not asked for
EACH = 1000  # tasks to move one by one in one statement
ATTEMPTS = 10_000  # closed attempts to delete in one statement, or all of one task
CHUNKS = 50_000  # of streams to delete in one statement, and all of one task
VACUUM_AFTER = 10_000  # positions parked, once hardly any others are left to park


@attrs.define(eq=False)
class PostgresStore(ScheduleVerbs, Store):
    """A `Store` in one schema of one PostgreSQL database.

    `Sessions` says how many connections it holds. A verb that gets no answer within
    *call_timeout* seconds raises `TransientError`, `NoConnection` if it could not even ask, or
    `CommitOutcomeUnknown` if it is a write whose answer was lost.
    """

    _gone: int = attrs.field(default=0, init=False)  # parked since the last vacuum
    _park_after: Spot = attrs.field(default=Spot(""), init=False)  # where parking goes on
    # The refusals of the last round, by statement and task: each is logged once.
    _refused: dict[str, dict[str, str]] = attrs.field(factory=dict[str, dict[str, str]], init=False)
    _sweeper: Sweeper = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self._sweeper = Sweeper(self.schema, lambda: self._lent(self._control))

    async def check(self) -> None:
        async with self._lent(self._for_statements) as conn:
            await _migrate.check(conn, self.schema)

    # -- for the client ----------------------------------------------------------

    async def enqueue(self, tasks: Sequence[NewTask], *, copy: bool = False) -> list[TaskRef]:
        calls = 1 + len(tasks) // COPY if copy else 1
        # By COPY it is a transaction, and that says itself when an answer was lost.
        async with self._lent(self._for_statements, calls=calls, writes=not copy) as conn:
            return await insert_tasks(conn, self.schema, tasks, copy=copy)

    def transaction(
        self, *, isolation: Isolation | None = None
    ) -> AbstractAsyncContextManager[StoreTransaction]:
        return self._transaction(isolation)

    @contextlib.asynccontextmanager
    async def _transaction(self, isolation: Isolation | None) -> AsyncGenerator[StoreTransaction]:
        async with contextlib.AsyncExitStack() as stack:
            # Further on and at COMMIT, errors are for the application to judge: not translated.
            excuses = Excuses()
            stack.enter_context(excuses.marking())
            with translated():
                conn = await stack.enter_async_context(self._pool.for_transaction())
                await stack.enter_async_context(conn.transaction())
                asked = isolation or conn.isolation
                # In a session of ours the default is what our own verbs need.
                if asked != (conn.isolation if conn.pooled else USUAL):
                    await conn.execute(ISOLATION[asked])
            yield PostgresTransaction(conn, self.schema, excuses)

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        async with self._lent(self._for_statements, writes=True) as conn:
            return await carry_out(conn, _plan.cancel(self.schema, task_id, running=running))

    async def cancel_some(
        self, which: CancelFilter, *, after: int, upto: int, dry_run: bool
    ) -> tuple[int | None, int]:
        bounds = {"after": after, "upto": upto, "most": WALK, "dry_run": dry_run}
        params = attrs.asdict(which) | bounds
        ((last, count),) = await self._run(
            self._for_statements, "cancel_some", params, writes=not dry_run
        )
        return last, count

    async def retry(self, task_id: int) -> bool:
        if task_id not in _rows.IDS:
            return False
        states = [state.value for state in sources(Event.REVIVE)]
        rows = await self._write("revive", id=task_id, states=states)
        return bool(rows[0][0])

    async def status_many(
        self, task_ids: Sequence[int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        ids = [task_id for task_id in task_ids if task_id in _rows.IDS]
        rows = await self._read("status", {"ids": ids, "payloads": payloads})
        found = {row["id"]: _rows.task_status(row) for row in rows}
        return [found.get(task_id) for task_id in task_ids]

    async def attempts(self, task_id: int) -> list[Attempt]:
        if task_id not in _rows.IDS:
            return []
        return [_rows.attempt(row) for row in await self._read("attempts", {"task_id": task_id})]

    async def why(self, task_ids: Sequence[int]) -> list[Why]:
        ids = [task_id for task_id in task_ids if task_id in _rows.IDS]
        rows = await self._run(self._for_statements, "why", {"ids": ids})
        found = {task_id: _rows.why(answer) for task_id, (answer,) in zip(ids, rows, strict=True)}
        return [found.get(task_id) or unknown(task_id) for task_id in task_ids]

    async def list_tasks(self, which: TaskFilter) -> list[TaskStatus]:
        params = attrs.asdict(which)
        if which.after is not None:
            params["after"] = min(max(which.after, _rows.IDS[0]), _rows.IDS[-1])
        return [_rows.task_status(row) for row in await self._read("list_tasks", params)]

    async def configure(self, queue: str, **changes: Unpack[QueueChanges]) -> None:
        await self._write("configure", queue=queue, changes=_rows.queue_text(changes))

    async def queues(self) -> list[QueueStatus]:
        return [_rows.queue_status(row) for row in await self._read("queues")]

    async def workers(self) -> list[WorkerStatus]:
        return [WorkerStatus(**row) for row in await self._read("list_workers")]

    async def stats(self) -> Stats:
        names = ("count_tasks", "count_attempts", "count_unknown", "list_workers")
        async with self._lent(self._for_statements) as conn:
            return _rows.stats(*[await conn.fetch_named(query(n, self.schema)) for n in names])

    async def read_streams(self, requests: Sequence[StreamRequest]) -> list[StreamPage | None]:
        asked = _streams.read_params(requests)
        rows = await self._run(self._for_statements, "read_streams", asked)
        return _streams.pages(rows, len(requests))

    # -- for the worker ----------------------------------------------------------

    async def register(self, worker: WorkerInfo) -> None:
        await self._run(self._heartbeat, "register", _rows.register_params(worker))
        self._registered.add(worker.id)

    async def declare_queues(self, declared: Mapping[str, QueueChanges]) -> Declared:
        return await declare_queues(self._do, declared)

    async def heartbeat(self, worker_id: UUID, *, draining: bool) -> Beat:
        self._pool.tend()
        params = {"id": worker_id, "draining": draining}
        rows = await self._run(self._heartbeat, "heartbeat", params)
        return _rows.beat(rows)

    async def deregister(self, worker_id: UUID) -> None:
        self._registered.discard(worker_id)
        await self._run(self._heartbeat, "deregister", {"id": worker_id})

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
        after = after or Spot("")
        params = {
            "worker_id": worker_id,
            "task_types": list(task_types),
            "limit": limit,
            "queues": None if queue_slots is None else [each.queue for each in queue_slots],
            "slots": None if queue_slots is None else [each.slots for each in queue_slots],
            "at_once": at_once,
            "soon": at_once if soon is None else soon,
            "after_queue": after.queue,
            "after_type": after.task_type,
            "after_lane": after.lane,
            "most_queues": QUEUES,
            "most_steps": PROBES,
        }
        async with self._lent(self._control) as conn:
            if not conn.pooled:
                rows = await conn.fetch(query("claim", self.schema), params)
                return _rows.claimed(rows, at_once)
            async with conn.pipeline():  # one transaction, which is sent in one go
                await OwnAsyncCursor(conn).run(
                    query("keep_to_indexes", self.schema), {"once": True}
                )
                rows = await conn.fetch(query("claim", self.schema), params)
                return _rows.claimed(rows, at_once)

    async def settle(self, settlements: Sequence[Settlement]) -> dict[Fence, Refusal]:
        async with self._lent(self._control) as conn:
            return await settle_rows(conn, self.schema, settlements)

    async def outcomes(self, fences: Sequence[Fence]) -> Mapping[Fence, Outcome | None]:
        rows = await self._do("outcomes", **_rows.fence_params(fences))
        return {
            Fence(task_id, epoch): None if outcome is None else Outcome(outcome)
            for task_id, epoch, outcome in rows
        }

    async def write_stream(self, write: StreamWrite) -> None:
        async with self._lent(self._for_statements, writes=True) as conn:
            await _streams.write(conn, self.schema, write)

    async def give_back_all_but(self, worker_id: UUID, fences: set[Fence]) -> int:
        async with self._lent(self._control) as conn:
            rows = await conn.fetch_named(query("held", self.schema), {"worker_id": worker_id})
        strays = [held for row in rows if (held := _rows.held(row)).fence not in fences]
        refused = await self.settle([give_back(held) for held in strays])
        if left := [fence for fence, why in refused.items() if why is not Refusal.STALE]:
            msg = f"open transactions are in the way of giving back {left}: try again"
            raise TransientError(msg)
        return len(strays) - len(refused)

    async def closed_queues(self, queues: Sequence[str]) -> set[str]:
        return {name for (name,) in await self._do("closed_queues", queues=list(queues))}

    async def promote(self) -> int:
        return await self._moved("promote", limit=BATCH)

    async def note_started(self, worker_id: UUID, fences: Collection[Fence]) -> set[Fence]:
        rows = await self._do("note_started", worker_id=worker_id, **_rows.fence_params(fences))
        return {Fence(task_id, epoch) for task_id, epoch in rows}

    async def sweep(
        self,
        *,
        max_lost: int,
        max_lost_of: Mapping[str, int] | None = None,
        seen: Sequence[Seen] | None = None,
        tell: TellLost = tell_nobody,
    ) -> int:
        allowed = functools.partial(allowed_losses, max_lost=max_lost, max_lost_of=max_lost_of)
        return await self._sweeper.sweep(allowed, tell, seen)

    async def prune(self) -> int:
        while True:
            try:
                ((pruned, shortened, *_),) = await self._do(
                    "prune", limit=BATCH, chunks=CHUNKS, attempts=ATTEMPTS
                )
            except TransientError as exc:
                if not isinstance(exc.__cause__, psycopg.errors.LockNotAvailable):
                    raise
                return await self._move_each("prune", {"limit": BATCH}, exc)
            except (psycopg.Error, DatabaseRefused) as exc:
                return await self._move_each("prune", {"limit": BATCH}, exc)
            if pruned or not shortened:
                await self._prune_all("prune_keys")
                await self._prune_all("prune_turns")
                return int(pruned)

    async def _prune_all(self, statement: str) -> None:
        """Repeat it while there is a batch, and no more often than is reasonable in one turn."""
        for _ in range(PRUNES):
            ((found,),) = await self._do(statement, limit=BATCH)
            if found < BATCH:
                break

    async def backlog(
        self, task_types: Sequence[str], *, queues: Sequence[str] | None, most: int
    ) -> int:
        named = None if queues is None else list(queues)
        rows = await self._do("backlog", task_types=list(task_types), queues=named, most=most)
        return int(rows[0][0])

    async def unattended(self, *, most: int) -> Unattended:
        rows = await self._do("unattended", most=most)
        queues, task_types = rows[0] if rows else ((), ())
        return Unattended(queues=tuple(queues), task_types=tuple(task_types))

    async def park(self) -> int:
        after = self._park_after
        try:
            ((parked, queue, task_type),) = await self._do(
                "park", most=PARK, after_queue=after.queue, after_type=after.task_type
            )
        except (psycopg.Error, DatabaseRefused) as exc:
            return await self._move_each("park", {"most": EACH}, exc)
        self._park_after = Spot("") if queue is None else Spot(queue, task_type)
        self._gone += parked
        if parked < PARK / 10 and self._gone >= VACUUM_AFTER:
            async with self._lent(self._control, as_it_is=True) as conn:
                await conn.fetch(query("vacuum", self.schema))
            self._gone = 0
        return int(parked)

    async def unpark(self, task_types: Sequence[str]) -> int:
        return await self._moved("unpark", task_types=list(task_types), most=PARK)

    async def _write(self, name: str, **params: Any) -> list[Row]:
        """Run a write of the application's."""
        return await self._run(self._for_statements, name, params, writes=True)

    async def _do(self, name: str, **params: Any) -> list[Row]:
        """Run a statement of the worker's, which bears being repeated."""
        return await self._run(self._control, name, params)

    async def _moved(self, name: str, **params: Any) -> int:
        """Move tasks on in one statement; one by one if a row of them is refused."""
        try:
            rows = await self._do(name, **params)
        except (psycopg.Error, DatabaseRefused) as exc:
            return await self._move_each(name, params, exc)
        return int(rows[0][0])

    async def _move_each(self, name: str, params: Mapping[str, Any], trouble: Exception) -> int:
        """Move tasks one by one, since *trouble* came of moving them together."""
        params = {key: min(EACH, most) if most == PARK else most for key, most in params.items()}
        ((moved, refused),) = await self._do(f"{name}_each", **params)
        told, self._refused[name] = self._refused.get(name, {}), refused
        for task_id, why in sorted(refused.items() - told.items()):
            log.error("%s: task %s is refused, and left out: %s", name, task_id, why)
        if not moved and isinstance(trouble, DatabaseRefused):
            raise trouble
        return int(moved)
