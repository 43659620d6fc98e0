"""The statement of each application's verb, and how to read its answer. No I/O."""

from __future__ import annotations

import datetime as dt
import json

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, LiteralString, TypeVar
from uuid import UUID

import attrs

from nursery_queue._core._json_text import from_text
from nursery_queue._core._model import NewTask, TaskRef, TaskStatus
from nursery_queue._core._states import State

from ._rows import IDS, Row, enqueue_params
from ._sql import query


T = TypeVar("T")


@attrs.frozen
class Plan(Generic[T]):
    """One statement, and how to read its rows; without a statement there is nothing to ask."""

    read: Callable[[Sequence[Row]], T]
    statement: LiteralString | None = None
    params: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
    writes: bool = False


def enqueue(schema: str, tasks: Sequence[NewTask]) -> Plan[list[TaskRef]]:
    """Store tasks, all or none, and answer in their order."""
    if not tasks:
        return Plan(_refs)
    name = "enqueue" if all(task.dedup_key is None for task in tasks) else "enqueue_dedup"
    return Plan(_refs, query(name, schema), enqueue_params(tasks), writes=True)


def cancel(schema: str, task_id: int, *, running: bool) -> Plan[bool]:
    """Ask for a task to be cancelled; False: unknown, or it has ended."""
    if task_id not in IDS:
        return Plan(_truth)
    params = {"id": task_id, "running": running}
    return Plan(_truth, query("cancel", schema), params, writes=True)


def status(
    schema: str, task_ids: Sequence[int], *, payloads: bool
) -> Plan[list[TaskStatus | None]]:
    """Say where tasks are, in the order asked.

    Each comes as text, so that it can be read from any connection (`for_any_connection`).
    """

    def read(rows: Sequence[Row]) -> list[TaskStatus | None]:
        found = {status.id: status for status in map(_status, rows)}
        return [found.get(task_id) for task_id in task_ids]

    ids = [task_id for task_id in task_ids if task_id in IDS]
    if not ids:
        return Plan(read)
    asked = query("status", schema)
    statement = f"select row_to_json(status)::text from ({asked}) as status"  # noqa: S608  # ours
    return Plan(read, statement, {"ids": ids, "payloads": payloads})


def for_any_connection(plan: Plan[T]) -> Plan[T]:
    """Return *plan* for a connection of the application's, whose settings and loaders are not ours.

    An application may have psycopg turn numbers, texts, JSON and so on into values of its own, and
    may have another client encoding. So the whole answer comes as one text of hexadecimal digits,
    which is the same in all encodings, as `str` or as `bytes` (tests/producers/test_settings.py).
    """
    if plan.statement is None:
        return plan
    statement = (
        "select encode(convert_to(coalesce(json_agg(answer), '[]')::text, 'UTF8'), 'hex')"  # noqa: S608  # ours
        f" from ({plan.statement}) as answer"
    )

    def read(rows: Sequence[Row]) -> T:
        return plan.read(_told(rows))

    return attrs.evolve(plan, statement=statement, read=read)


def _told(rows: Sequence[Row]) -> list[Row]:
    ((digits,),) = rows
    text = digits if isinstance(digits, str) else bytes(digits).decode("ascii")
    return [tuple(row.values()) for row in json.loads(bytes.fromhex(text))]


def _refs(rows: Sequence[Row]) -> list[TaskRef]:
    return [TaskRef(*row) for row in rows]


def _truth(rows: Sequence[Row]) -> bool:
    return any(row[0] for row in rows)


def _status(row: Row) -> TaskStatus:
    values = from_text(row[0])
    for name, read in _READ.items():
        if values[name] is not None:
            values[name] = read(values[name])
    return TaskStatus(**values)


def _instant(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).astimezone(dt.UTC)


_READ: Mapping[str, Callable[[str], Any]] = {
    "state": State,
    "worker_id": UUID,
    "created_at": _instant,
    "run_at": _instant,
    "started_at": _instant,
    "finished_at": _instant,
}
