"""Schedules to parameters of statements, and rows back to values."""

from __future__ import annotations

import datetime as dt
import json

from collections.abc import Sequence

from nursery_queue._core._firing import DueSchedule, Firing
from nursery_queue._core._schedules import ScheduleStatus, as_it_stands

from ._rows import NamedRow


def due_schedule(row: NamedRow) -> DueSchedule:
    """Read a row of `take_schedules.sql`."""
    del row["declared"]
    return DueSchedule(**_in_utc(row))


def schedule_status(row: NamedRow) -> ScheduleStatus:
    """Read a row of `schedules.sql`."""
    return as_it_stands(**_in_utc(row))


def firings_param(firings: Sequence[Firing]) -> str:
    """Return *firings* as one text, which means the same in any session."""
    return json.dumps(
        [
            {
                "name": each.name,
                "since": each.since.isoformat(),
                "next_at": None if each.next_at is None else each.next_at.isoformat(),
                "look_at": each.look_at.isoformat(),
                "skipped": each.skipped,
                "cancels": each.cancels,
                "error": each.error,
                "ticks": [
                    {
                        "at": tick.at.isoformat(),
                        "run_at": None if tick.run_at is None else tick.run_at.isoformat(),
                    }
                    for tick in each.ticks
                ],
            }
            for each in firings
        ]
    )


def _in_utc(row: NamedRow) -> NamedRow:
    """Return *row* with its instants in UTC, whatever the session's time zone is."""
    return {
        name: value.astimezone(dt.UTC) if isinstance(value, dt.datetime) else value
        for name, value in row.items()
    }
