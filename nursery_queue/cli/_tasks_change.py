"""`tasks cancel` and `tasks retry`: steer tasks, one by one or all that fit a description."""

from __future__ import annotations

import datetime as dt

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import click

from nursery_queue._client._client import Client
from nursery_queue._connect._admin import DatabaseError
from nursery_queue._core._model import TaskStatus

from ._database import Database, not_allowed
from ._failures import CLEAN, PROBLEM, say
from ._output import on_terminal, write, write_json
from ._shared_options import database, ids, json_lines, some_ids
from ._types import LABEL, PAST


@click.command()
@some_ids(required=False)
@click.option("--queue", type=LABEL, help="Tasks of this queue.")
@click.option("--type", "task_type", type=LABEL, help="Tasks of this type.")
@click.option(
    "--before",
    type=PAST,
    metavar="INSTANT|AGE",
    help="Tasks enqueued earlier: 2030-01-31T08:00Z, or 2h for so long ago.",
)
@click.option("--all", "everything", is_flag=True, help="All tasks: needed if no filter is given.")
@click.option("--dry-run", is_flag=True, help="Say how many, and touch nothing.")
@click.option("--let-finish", is_flag=True, help="A running attempt may finish; no other follows.")
@database
@json_lines
def cancel(
    database: Database, ids: Sequence[int], let_finish: bool, as_json: bool, **which: Any
) -> int:
    """Cancel tasks: those with these ids, or all that have not ended and fit every filter.

    A waiting task never starts. A running one is cancelled on its worker, a moment later.

    With ids it prints each one's id and the state it is in now, if the role may see it, and
    exits with 1 if one of them has ended already, or never existed. With filters it prints how
    many they were; what is enqueued meanwhile is not touched.
    """
    filters = any(value not in {None, False} for value in which.values())
    if ids and filters:
        raise click.UsageError("give ids, or filters, not both; --dry-run and --all need no ids")
    if not ids:
        if let_finish:
            raise click.UsageError("--let-finish goes with ids alone")
        return _cancel_all(database, as_json=as_json, **which)

    def ask(client: Client, task_id: int) -> Awaitable[bool]:
        return client.cancel(task_id, running=not let_finish)

    return _steer(database, ids, ask, "has ended already", as_json=as_json)


def _cancel_all(
    database: Database,
    *,
    queue: str | None,
    task_type: str | None,
    before: dt.datetime | None,
    everything: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    no_filter = queue is None and task_type is None and before is None
    if no_filter and not everything:
        raise click.UsageError(
            "give the ids of tasks, or --queue, --type or --before; to cancel every task: --all"
        )

    count = database.ask(
        lambda client: client.cancel_all(
            queue, task_type, before, everything=no_filter, dry_run=dry_run
        )
    )
    if as_json:
        write_json({"count": count, "dry_run": dry_run})
    elif on_terminal():
        tasks = "1 task" if count == 1 else f"{count:,} tasks"
        write(f"{tasks} {'would be cancelled' if dry_run else 'cancelled'}")
    else:
        write(str(count))
    return CLEAN


@click.command()
@ids
@database
@json_lines
def retry(database: Database, ids: Sequence[int], as_json: bool) -> int:
    """Let failed or cancelled tasks go again, and print each one's id and its state now.

    They get all their attempts anew. Exits with 1 if one of them is neither failed nor
    cancelled, or if another live task has its dedup key by now.
    """
    why = "is neither failed nor cancelled, or another live task has its dedup key"
    return _steer(database, ids, Client.retry, why, as_json=as_json)


def _steer(
    database: Database,
    ids: Sequence[int],
    ask: Callable[[Client, int], Awaitable[bool]],
    why_not: str,
    *,
    as_json: bool,
) -> int:
    """Do something to each task, then say what came of it, as far as our role may see it."""

    async def steer(client: Client) -> tuple[list[bool], Sequence[TaskStatus | None] | None]:
        done = [await ask(client, task_id) for task_id in ids]
        try:
            return done, await client.status_many(ids)
        except DatabaseError as exc:
            if not_allowed(exc):
                return done, None
            raise

    asked, seen = database.ask(steer)
    gone = "never existed, or has been pruned"
    if seen is None:
        gone = f"{why_not}, {gone}"
    answers = list(zip(ids, asked, seen or [None] * len(ids), strict=True))
    for task_id, done, task in answers:
        state = "" if task is None else task.state
        if as_json:
            write_json({"id": task_id, "done": done, "state": state or None})
        elif done:
            requested = task is not None and task.cancel_requested
            cells = [str(task_id), f"{state}{', cancel requested' if requested else ''}"]
            write("\t".join(filter(None, cells)))
        if not done:
            reason = gone if task is None else why_not
            say(f"Error: task {task_id} {reason}{f' ({state})' if state else ''}")
    return CLEAN if all(done for _, done, _ in answers) else PROBLEM
