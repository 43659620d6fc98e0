"""`tasks`: look at tasks."""

from __future__ import annotations

import json

from collections.abc import Sequence

import click

from nursery_queue._client._client import Client
from nursery_queue._core._model import Attempt, TaskStatus
from nursery_queue._core._reasons import ReasonCode, Why
from nursery_queue._core._states import State

from ._database import Database
from ._failures import CLEAN, PROBLEM, say
from ._output import (
    harmless,
    on_terminal,
    plain,
    short,
    write,
    write_fields,
    write_json,
    write_rows,
)
from ._shared_options import BIGINT, database, ids, json_lines
from ._tasks_change import cancel, retry
from ._tasks_watch import watch
from ._types import integer
from ._why import reasons_of


PAGE = 1000


@click.group()
def tasks() -> None:
    """Look at tasks and steer them."""


@tasks.command("list")
@click.option("--state", type=click.Choice([each.value for each in State]), help="Only these.")
@click.option("--queue", metavar="NAME", help="Only of this queue.")
@click.option("--type", "task_type", metavar="NAME", help="Only of this task type.")
@click.option(
    "--reason",
    type=click.Choice([each.value for each in ReasonCode]),
    help="Only what waits for this reason, as `why` has it; of the newest 2000 of each state.",
)
@click.option("--limit", type=integer(1), default=100, show_default=True, help="At most so many.")
@click.option("--after", type=integer(1, BIGINT), metavar="ID", help="Go on below this id.")
@click.option(
    "-l", "--long", is_flag=True, help="With key, dedup key, attempts allowed and worker, too."
)
@database
@json_lines
def list_(
    database: Database,
    state: str | None,
    queue: str | None,
    task_type: str | None,
    reason: str | None,
    limit: int,
    after: int | None,
    long: bool,
    as_json: bool,
) -> None:
    """List tasks, newest first.

    Without a terminal: id, state, task type, queue, attempt, created, run at, started,
    finished and error, separated by tabs, one task a line; with --long, then key, dedup key,
    attempts allowed and worker.
    """

    async def show(client: Client) -> None:
        left, last = limit, after
        while left:
            size = min(left, limit if on_terminal() else PAGE, 10_000)
            page = await client.list_tasks(
                state=state,
                queue=queue,
                task_type=task_type,
                reason=reason,
                limit=size,
                after=last,
            )
            _show_page(page, as_json=as_json, long=long)
            if len(page) < size:
                return
            left, last = left - len(page), page[-1].id
        if on_terminal():
            say(f"there may be more: --after {last}")

    database.ask(show)


def _show_page(page: Sequence[TaskStatus], *, as_json: bool, long: bool) -> None:
    if as_json:
        for task in page:
            write_json(plain(task))
    elif not on_terminal():
        write_rows((), ((*_whole_line(task), *_more(task, long)) for task in page))
    elif page:
        columns = ["#id", "state", "task type", "queue", "#attempt", "when", "what"]
        columns += ["key", "dedup key", "#attempts", "worker"] if long else []
        write_rows(columns, ((*_short_line(task), *_more(task, long)) for task in page))
    else:
        say("no tasks")


def _whole_line(task: TaskStatus) -> Sequence[object]:
    instants = (task.created_at, task.run_at, task.started_at, task.finished_at)
    return task.id, task.state, task.task_type, task.queue, task.attempt, *instants, task.error


def _short_line(task: TaskStatus) -> Sequence[object]:
    when = task.finished_at or task.started_at or task.run_at
    what = task.error or ("cancel requested" if task.cancel_requested else "")
    what = what if len(what) <= 60 else f"{what[:59]}…"
    return task.id, task.state, task.task_type, task.queue, task.attempt, when, what


def _more(task: TaskStatus, long: bool) -> Sequence[object]:
    return (task.key, task.dedup_key, task.max_attempts, task.worker_name) if long else ()


@tasks.command()
@ids
@database
@json_lines
def show(database: Database, ids: Sequence[int], as_json: bool) -> int:
    """Show all that is known of tasks, with each of their attempts.

    Of one that has not ended also why it is where it is: see `nursery-queue why`.

    Exits with 1 if there is no task of one of the ids.
    """

    async def ask(client: Client) -> list[tuple[TaskStatus | None, list[Attempt], Why]]:
        return [
            (status, await client.attempts(task_id) if status else [], await client.why(task_id))
            for task_id, status in zip(
                ids, await client.status_many(ids, payloads=True), strict=True
            )
        ]

    code = CLEAN
    for number, (task_id, shown) in enumerate(zip(ids, database.ask(ask), strict=True)):
        task, attempts, why = shown
        if task is None:
            say(f"Error: there is no task {task_id}: it never existed, or has been pruned")
            code = PROBLEM
        elif as_json:
            log = [plain(attempt) for attempt in attempts]
            write_json(plain(task) | {"attempts": log, "reasons": reasons_of(why)})
        else:
            if number:
                write("")
            _show_task(task, attempts, why)
    return code


def _show_task(task: TaskStatus, attempts: Sequence[Attempt], why: Why) -> None:
    fields = plain(task) | {"why": None if task.state.is_final else str(why)}
    fields["cancel_requested"] = task.cancel_requested or None
    fields["lost"] = task.lost or None
    for name in ("params", "context", "result"):
        value = fields.pop(name)  # to the end: they can be long
        fields[name] = None if value is None else json.dumps(value, ensure_ascii=False)
    del fields["error_type"], fields["error_message"]
    write_fields({name.replace("_", " "): value for name, value in fields.items()})
    for attempt in attempts:
        took = ""
        if attempt.finished_at is not None:
            seconds = (attempt.finished_at - attempt.started_at).total_seconds()
            took = f", took {seconds:.3f} s"
        write("")
        write_fields(
            {
                f"attempt {attempt.number}": attempt.outcome,
                "  started": f"{short(attempt.started_at)}{took}",
                "  worker": _worker(attempt),
            }
        )
        for line in _error_lines(attempt):
            write(f"  {harmless(line)}")


def _worker(attempt: Attempt) -> str:
    name = attempt.worker_name
    return str(attempt.worker_id) if name is None else f"{name} ({attempt.worker_id})"


def _error_lines(attempt: Attempt) -> list[str]:
    if attempt.error_traceback:
        return attempt.error_traceback.splitlines()
    if attempt.error_type is None:
        return []
    return f"{attempt.error_type}: {attempt.error_message}".splitlines()


for command in (watch, cancel, retry):
    tasks.add_command(command)
