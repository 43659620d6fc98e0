"""How a schedule stands, in a form in which two stores can be compared."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import datetime as dt

from typing import Any, LiteralString

import attrs

from nursery_queue._core._when import Every
from nursery_queue._memory._memory_schedules import Schedule as Row
from tests.model.sides import Side


COLUMNS: LiteralString = """
    name, every, misfire, overlap, paused, task_type, since, next_at, look_at, last_tick,
    resumed_at, fired, skipped, error, last_task_id, earlier
"""


@attrs.frozen(kw_only=True)
class Schedule:
    every: float
    misfire: str
    overlap: str
    paused: bool
    task_type: str
    since: dt.datetime
    next_at: dt.datetime | None
    look_at: dt.datetime
    last_tick: dt.datetime | None
    resumed_at: dt.datetime | None
    fired: int
    skipped: int
    error: str | None
    before: tuple[int, ...]  # its tasks that may not have ended


def of_row(side: Side, row: list[Any]) -> Schedule:
    """Return what a row of PostgreSQL says."""
    every, misfire, overlap, paused, task_type, *instants = row[:10]
    fired, skipped, error, last, earlier = row[10:]
    names = ("since", "next_at", "look_at", "last_tick", "resumed_at")
    return Schedule(
        every=every,
        misfire=misfire,
        overlap=overlap,
        paused=paused,
        task_type=task_type,
        **{
            name: None if text is None else dt.datetime.fromisoformat(text)
            for name, text in zip(names, instants, strict=True)
        },  # type: ignore[arg-type]  # what may be null is known by the columns
        fired=fired,
        skipped=skipped,
        error=error,
        before=numbered(side, [*earlier, *([] if last is None else [last])]),
    )


def of_memory(side: Side, row: Row) -> Schedule:
    """Return the same of memory."""
    assert isinstance(row.asked.when, Every)
    names = ("paused", "since", "next_at", "look_at", "last_tick", "resumed_at")
    return Schedule(
        every=row.asked.when.seconds,
        misfire=row.asked.misfire,
        overlap=row.asked.overlap,
        task_type=row.task_type,
        **{name: getattr(row, name) for name in names},
        fired=row.fired,
        skipped=row.skipped,
        error=row.error,
        before=numbered(side, row.before),
    )


def numbered(side: Side, ids: Any) -> tuple[int, ...]:
    """Return the tasks that there are of these."""
    return tuple(sorted(side.number(task_id) for task_id in ids))
