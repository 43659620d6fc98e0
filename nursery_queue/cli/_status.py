"""`status`: what is there to do, and who does it."""

from __future__ import annotations

import datetime as dt

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click
import trio

from nursery_queue._core._counters import Counters
from nursery_queue._core._model import Stats, WorkerStatus
from nursery_queue._core._states import State

from ._database import Database
from ._options import database, json_lines
from ._output import (
    as_table,
    flush,
    on_terminal,
    plain,
    terminal,
    to_terminal,
    write,
    write_json,
    write_rows,
)
from ._types import Duration
from ._watch import Log, Screen, watch


if TYPE_CHECKING:
    from rich.console import Group, RenderableType


EVERY = 2.0  # seconds from one look to the next


@click.command()
@click.option(
    "--watch",
    "every",
    is_flag=False,
    flag_value=str(EVERY),
    type=Duration(positive=True),
    metavar="[SECONDS]",
    help=f"Again and again, every {EVERY:g} s unless said, until Ctrl-C.",
)
@database
@json_lines
def status(database: Database, every: float | None, as_json: bool) -> None:
    """Count tasks by queue and state, list workers, name task types nobody knows.

    With --json each object has a "kind": queue, worker, unknown_task_type or attempts. Without
    a terminal the kind is the first of the tab-separated cells.

    With --watch, a terminal shows the present state; without one, an empty line follows each
    block, and JSON objects have the instant instead, as "at". While the database is away, it
    says so and goes on.
    """
    if every is not None:
        _watch(database, every, as_json=as_json)
        return

    async def fetch() -> Stats:
        async with database.client() as client:
            return await client.stats()

    _write(trio.run(fetch), as_json=as_json)


def _watch(database: Database, every: float, *, as_json: bool) -> None:
    if on_terminal() and not as_json and not terminal().is_dumb_terminal:
        with Screen.opened(_picture) as screen:
            trio.run(watch, database, every, screen)
        return

    def write_block(stats: Stats) -> None:
        _write(stats, as_json=as_json, at=dt.datetime.now(dt.UTC))
        if not as_json:
            write("")
        flush()

    trio.run(watch, database, every, Log(write_block))


def _write(stats: Stats, *, as_json: bool, at: dt.datetime | None = None) -> None:
    if as_json:
        for record in _records(stats):
            write_json(record if at is None else {"at": at} | record)
    elif on_terminal():
        to_terminal(_picture(stats))
    else:
        for record in _records(stats):
            write_rows((), [_cells(record)])


def _records(stats: Stats) -> Iterator[dict[str, Any]]:
    for queue, counts in stats.queues.items():
        yield {"kind": "queue", "queue": queue} | {
            state.value: counts.get(state, 0) for state in State
        }
    for worker in stats.workers:
        yield {"kind": "worker"} | plain(worker)
    for task_type, stranded in stats.unknown_task_types.items():
        yield {
            "kind": "unknown_task_type",
            "task_type": task_type,
            "ready": stranded.count,
            "since": stranded.since,
        }
    for queue, counters in stats.counters.items():
        yield (
            {"kind": "attempts", "queue": queue, "completed": counters.completed}
            | plain(counters)
            | {
                "failure_rate": counters.failure_rate,
                "permanent_failure_rate": counters.permanent_failure_rate,
            }
        )


def _cells(record: dict[str, Any]) -> list[object]:
    return [
        ",".join(map(str, value)) if isinstance(value, list | tuple) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # a worker's names
        for value in record.values()
    ]


def _picture(stats: Stats) -> Group:
    """Return the tables that a person sees."""
    from rich.console import Group
    from rich.text import Text

    queues = as_table(
        ["queue", *(f"#{state}" for state in State)],
        [
            (queue, *(counts.get(state) or "·" for state in State))
            for queue, counts in stats.queues.items()
        ],
    )
    workers = as_table(
        ["worker", "queues", "#types", "#running", "started", "heartbeat", "state"],
        [_worker_cells(worker) for worker in stats.workers],
    )
    unknown = as_table(
        ["task type nobody knows", "#ready", "oldest due"],
        [(name, each.count, each.since) for name, each in stats.unknown_task_types.items()],
    )
    attempts = as_table(
        ["attempts", *(f"#{name}" for name in _ATTEMPTS), "failure rate", "permanent"],
        [_attempt_cells(queue, counters) for queue, counters in stats.counters.items()],
    )
    parts: list[RenderableType] = [queues if stats.queues else "no tasks"]
    if stats.total.completed or stats.total.lost:
        parts += [Text(), attempts]
    parts += [Text(), workers if stats.workers else "no workers"]
    if stats.unknown_task_types:
        parts += [Text(), unknown]
    return Group(*parts)


_ATTEMPTS = ("completed", "succeeded", "failed", "cancelled", "retries", "lost", "backlog")


def _attempt_cells(queue: str, counters: Counters) -> list[object]:
    counts = [getattr(counters, name) or "·" for name in _ATTEMPTS]
    return [
        queue,
        *counts,
        f"{counters.failure_rate:.2%}",
        f"{counters.permanent_failure_rate:.2%}",
    ]


def _worker_cells(worker: WorkerStatus) -> list[object]:
    return [
        worker.name,
        "all" if worker.queues is None else ", ".join(worker.queues),
        len(worker.task_types),
        worker.running,
        worker.started_at,
        worker.heartbeat_at,
        "dead" if not worker.alive else "draining" if worker.draining else "alive",
    ]
