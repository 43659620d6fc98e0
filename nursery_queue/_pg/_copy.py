"""Storing very many tasks at once, by COPY."""

from __future__ import annotations

import datetime as dt

from collections.abc import Sequence

from nursery_queue._core._model import NewTask, TaskRef
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._cursors import OwnAsyncCursor

from . import _plan
from ._rows import backoff_text
from ._sql import query


AT_ONCE = 10_000  # tasks in one statement, where the role may not use COPY


async def copy_tasks(conn: Connection, schema: str, tasks: Sequence[NewTask]) -> list[TaskRef]:
    """Store tasks, which have no dedup keys, all or none, and answer in their order.

    COPY answers no ids, so they are taken before, and a row left out is an error; for a role
    that may not name ids, the tasks are stored by statements of so many each. Raises
    `CommitOutcomeUnknown` if the connection is lost during the commit, unless this is part of a
    larger transaction.
    """
    async with conn.transaction():
        ((ids, now),) = await conn.fetch(query("take_ids", schema), {"count": len(tasks)})
        if ids[0] is None:
            return await _insert(conn, schema, tasks)
        ids.sort()
        cursor = OwnAsyncCursor(conn)
        async with cursor.copy(query("copy_tasks", schema)) as copy:
            for task_id, task in zip(ids, tasks, strict=True):
                await copy.write_row(
                    (
                        task_id,
                        task.task_type,
                        task.params,
                        task.queue,
                        task.priority,
                        task.key,
                        task.run_at or now + dt.timedelta(seconds=task.run_after),
                        now,
                        task.max_attempts,
                        backoff_text(task.backoff),
                        task.timeout,
                        task.keep_for,
                        task.on_complete,
                        task.context,
                    )
                )
        await conn.fetch(query("copied", schema), {"left_out": len(tasks) - cursor.rowcount})
    return [TaskRef(task_id) for task_id in ids]


async def _insert(conn: Connection, schema: str, tasks: Sequence[NewTask]) -> list[TaskRef]:
    refs: list[TaskRef] = []
    for start in range(0, len(tasks), AT_ONCE):
        plan = _plan.enqueue(schema, tasks[start : start + AT_ONCE])
        assert plan.statement is not None
        refs += plan.read(await conn.fetch(plan.statement, plan.params))
    return refs
