"""`status`: what is there to do, and who does it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
import trio

from nursery_queue._core._model import Stats, WorkerStatus
from nursery_queue._core._states import State

from ._database import Database
from ._errors import say
from ._options import database, json_lines
from ._output import on_terminal, plain, write, write_json, write_rows


@click.command()
@database
@json_lines
def status(database: Database, as_json: bool) -> None:
    """Count tasks by queue and state, list workers, name task types nobody knows.

    With --json each object has a "kind": queue, worker or unknown_task_type. Without a
    terminal the kind is the first of the tab-separated cells.
    """

    async def fetch() -> Stats:
        async with database.client() as client:
            return await client.stats()

    stats = trio.run(fetch)
    if as_json:
        for record in _records(stats):
            write_json(record)
    elif on_terminal():
        _show(stats)
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
    for task_type, ready in stats.unknown_task_types.items():
        yield {"kind": "unknown_task_type", "task_type": task_type, "ready": ready}


def _cells(record: dict[str, Any]) -> list[object]:
    return [
        ",".join(map(str, value)) if isinstance(value, list | tuple) else value  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]  # a worker's names
        for value in record.values()
    ]


def _show(stats: Stats) -> None:
    if stats.queues:
        write_rows(
            ["queue", *(f"#{state}" for state in State)],
            [
                (queue, *(counts.get(state) or "·" for state in State))
                for queue, counts in stats.queues.items()
            ],
        )
    else:
        say("no tasks")
    write("")
    if stats.workers:
        write_rows(
            ["worker", "queues", "#types", "#running", "started", "heartbeat", "state"],
            [_worker_cells(worker) for worker in stats.workers],
        )
    else:
        say("no workers")
    if stats.unknown_task_types:
        write("")
        write_rows(["task type nobody knows", "#ready"], list(stats.unknown_task_types.items()))


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
