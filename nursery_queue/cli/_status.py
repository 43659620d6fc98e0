"""`status`: what is there to do, and who does it."""

from __future__ import annotations

import datetime as dt

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs
import click
import trio

from nursery_queue._core._counters import Counters
from nursery_queue._core._model import QueueStatus, WorkerStatus
from nursery_queue._core._states import State

from ._database import Database
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
from ._overview import (
    LIMITS,
    USUAL,
    Overview,
    is_limited,
    limit_cells,
    limits_of,
    open_or_paused,
    overview,
)
from ._shared_options import database, json_lines
from ._status_watch import Log, Screen, watch
from ._types import seconds


if TYPE_CHECKING:
    from rich.console import Group, RenderableType


EVERY = 2.0  # seconds from one look to the next


@click.command()
@click.option(
    "--watch",
    "every",
    is_flag=False,
    flag_value=str(EVERY),
    type=seconds(positive=True),
    metavar="[SECONDS]",
    help=f"Again and again, every {EVERY:g} s unless said, until Ctrl-C.",
)
@database
@json_lines
def status(database: Database, every: float | None, as_json: bool) -> None:
    """Count tasks by queue and state, list workers, name task types nobody knows.

    A queue that is paused starts nothing; one with a limit (max_running) runs at most so many tasks
    over all workers, one with a rate starts at most so many in so much time; both may hold per key.
    A worker is alive, draining (it claims nothing more) or dead (its lease has run out, and others
    take its tasks). Tasks of an unknown task type are ready and wait for a worker that knows it,
    and so are tasks of a queue that no worker serves, though some are alive: `nursery-queue why ID`
    tells all that keeps a task where it is. Attempts are those of tasks that are still stored: of
    those that were completed each succeeded, failed for good, was cancelled, or failed and is
    followed by another (retries); besides, some were lost with their worker, some run, and the
    backlog is what is due. The failure rate is that of attempts, the permanent one leaves retries
    out.

    With --json each object has a "kind". Without a terminal the kind is the first of the
    tab-separated cells, and the others are, in this order, as the keys of the object are called:

    \b
    queue: queue, scheduled, ready, running, succeeded, failed, cancelled,
        paused, max_running, max_running_per_key, rate, rate_per_key
    worker: id, name, host, pid, queues, task_types, started_at,
        heartbeat_at, draining, alive, running
    unknown_task_type: task_type, ready, since
    queue_not_served: queue, ready
    attempts: queue, completed, succeeded, failed, cancelled, retries, lost,
        running, backlog, failure_rate, permanent_failure_rate

    With --watch, a terminal shows the present state; without one, an empty line follows each
    block, and JSON objects have the instant instead, as "at". While the database is away, it
    says so and goes on.
    """  # noqa: D301  # click needs the control character itself
    if every is not None:
        _watch(database, every, as_json=as_json)
        return

    _write(database.ask(overview), as_json=as_json)


def _watch(database: Database, every: float, *, as_json: bool) -> None:
    if on_terminal() and not as_json and not terminal().is_dumb_terminal:
        with Screen.opened(_picture) as screen:
            trio.run(watch, database, every, screen)
        return

    def write_block(seen: Overview) -> None:
        _write(seen, as_json=as_json, at=dt.datetime.now(dt.UTC))
        if not as_json:
            write("")
        flush()

    trio.run(watch, database, every, Log(write_block))


def _write(seen: Overview, *, as_json: bool, at: dt.datetime | None = None) -> None:
    if as_json:
        for record in records(seen, as_json=True):
            write_json(record if at is None else {"at": at} | record)
    elif on_terminal():
        to_terminal(_picture(seen))
    else:
        for record in records(seen):
            write_rows((), [_cells(record)])


def records(seen: Overview, *, as_json: bool = False) -> Iterator[dict[str, Any]]:
    """Yield what a program gets to read, a line each."""
    stats = seen.stats
    for name, queue in seen.queues.items():
        counts = {state.value: seen.count(name, state) for state in State}
        set_to = attrs.asdict(queue, recurse=as_json)
        settings = {key: set_to[key] for key in ("paused", *LIMITS.values())}
        yield {"kind": "queue", "queue": name} | counts | settings
    for worker in stats.workers:
        yield {"kind": "worker"} | plain(worker)
    for task_type, unknown in stats.unknown_task_types.items():
        yield {
            "kind": "unknown_task_type",
            "task_type": task_type,
            "ready": unknown.count,
            "since": unknown.since,
        }
    for name, ready in seen.not_served.items():
        yield {"kind": "queue_not_served", "queue": name, "ready": ready}
    for name, counters in stats.counters.items():
        yield (
            {"kind": "attempts", "queue": name, "completed": counters.completed}
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


def _picture(seen: Overview) -> Group:
    """Return the tables that a person sees."""
    from rich.console import Group
    from rich.text import Text

    stats = seen.stats
    queues = as_table(
        ["queue", "state", "#limit", *(f"#{state}" for state in State)],
        [_queue_cells(seen, queue) for queue in seen.queues.values()],
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
    parts: list[RenderableType] = [queues if seen.queues else "no tasks"]
    # A table of its own: beside the counts there is no room for them.
    if (limits := limits_of(seen.queues.values())) != USUAL:
        limited = [queue for queue in seen.queues.values() if is_limited(queue)]
        cells = [(queue.name, *limit_cells(queue, limits)) for queue in limited]
        parts += [Text(), as_table(["limits", *limits], cells)]
    if stats.total.completed or stats.total.lost:
        parts += [Text(), attempts]
    parts += [Text(), workers if stats.workers else "no workers"]
    if stats.unknown_task_types:
        parts += [Text(), unknown]
    return Group(*parts)


def _queue_cells(seen: Overview, queue: QueueStatus) -> list[object]:
    counts = [seen.count(queue.name, state) or "·" for state in State]
    state = open_or_paused(queue)
    if queue.name in seen.not_served and not queue.paused:
        state = "not served"
    return [queue.name, state, *limit_cells(queue, USUAL), *counts]


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
