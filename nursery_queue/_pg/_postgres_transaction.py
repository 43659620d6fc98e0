"""Verbs on a connection that the caller already has: alone, or in a transaction."""

from __future__ import annotations

import contextlib
import logging

from collections.abc import AsyncGenerator, Sequence
from typing import Any, TypeVar

import attrs
import psycopg

from nursery_queue._core._model import Fence, NewTask, Refusal, Settlement, TaskRef, TaskStatus
from nursery_queue._core._outcome import insist_on_settling
from nursery_queue._core._streams import StreamWrite
from nursery_queue._psycopg._connection import Connection

from . import _plan, _stream_rows as _streams
from ._copy import copy_tasks
from ._excusing import Excuses
from ._plan import Plan
from ._rows import are_plain_successes, left_alone, settle_params, success_params
from ._sql import query


log = logging.getLogger("nursery_queue")
T = TypeVar("T")


async def carry_out(conn: Connection, plan: Plan[T]) -> T:
    """Send the statement of *plan* and return its answer, as read by the plan."""
    rows = await conn.fetch(plan.statement, plan.params) if plan.statement is not None else []
    return plan.read(rows)


async def insert_tasks(
    conn: Connection, schema: str, tasks: Sequence[NewTask], *, copy: bool = False
) -> list[TaskRef]:
    """Store tasks, all or none, and answer in their order; without *copy*, in one statement."""
    if copy and tasks:
        return await copy_tasks(conn, schema, tasks)
    return await carry_out(conn, _plan.enqueue(schema, tasks))


async def settle_rows(
    conn: Connection, schema: str, settlements: Sequence[Settlement]
) -> dict[Fence, Refusal]:
    """Apply settlements in one statement; return the ones not applied, and why.

    In a second one if plain successes were not applied, to learn why, or to apply them after all.
    """
    if settlements and are_plain_successes(settlements):
        params = success_params(settlements)
        rows = await conn.fetch(query("settle_successes", schema), params)
        settlements = left_alone(settlements, rows)
    if not settlements:
        return {}
    rows = await conn.fetch(query("settle", schema), settle_params(settlements))
    if (untold := rows[0][3]) is not None:
        for task_id, why in untold.items():
            log.error("what on_complete of task %s asks for cannot be stored: %s", task_id, why)
    return {
        Fence(task_id, epoch): Refusal(refusal)
        for task_id, epoch, refusal, _ in rows
        if refusal is not None
    }


@attrs.define(eq=False)
class PostgresTransaction:
    """A `StoreTransaction` on a connection with an open transaction."""

    connection: Connection
    _schema: str
    _excuses: Excuses

    async def execute(self, query: Any, params: Any = None) -> psycopg.AsyncCursor[Any]:
        """Run a statement of the application's own; errors are psycopg's."""
        return await self.connection.execute(query, params)

    async def enqueue(self, tasks: Sequence[NewTask], *, copy: bool = False) -> list[TaskRef]:
        return await insert_tasks(self.connection, self._schema, tasks, copy=copy)

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        plan = _plan.cancel(self._schema, task_id, running=running)
        return await carry_out(self.connection, plan)

    async def status_many(
        self, task_ids: Sequence[int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        # During a transaction the connection is the user's: client_encoding may be anything.
        plan = _plan.for_any_connection(_plan.status(self._schema, task_ids, payloads=payloads))
        return await carry_out(self.connection, plan)

    async def settle(self, settlement: Settlement) -> None:
        self._excuses.settling = True
        refused = await settle_rows(self.connection, self._schema, [settlement])
        insist_on_settling(settlement, refused.get(settlement.fence))

    async def write_stream(self, write: StreamWrite) -> None:
        await _streams.write(self.connection, self._schema, write)

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None]:
        async with self.connection.transaction():
            yield
