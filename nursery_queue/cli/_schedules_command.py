"""`schedules`: how schedules stand, when they fire, and steering them."""

from __future__ import annotations

import datetime as dt
import json
import re

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

from nursery_queue._client._client import Client
from nursery_queue._core._errors import UnknownSchedule
from nursery_queue._core._schedules import ScheduleStatus
from nursery_queue._core._when import Cron, Every, preview as next_ticks

from ._database import Database
from ._failures import CLEAN, PROBLEM, ProblemError, say
from ._output import ago, on_terminal, plain, write, write_fields, write_json, write_rows
from ._progress_bar import progress_bar
from ._shared_options import database, json_lines, one_name, some_names, verbose
from ._types import INSTANT, PAST, integer, seconds


T = TypeVar("T")

_COLUMNS = ("schedule", "when", "state", "next", "last", "#fired", "#skipped", "task type")


@click.group()
def schedules() -> None:
    """Look at schedules, pause them, fire them by hand."""


@schedules.command("list")
@database
@json_lines
def list_(database: Database, as_json: bool) -> None:
    """List all schedules.

    Without a terminal: name, when, time zone, state (on, paused, orphaned, error), next tick, last
    tick, ticks fired, ticks skipped, task type, queue, code or runtime, and the error, separated by
    tabs, one schedule a line.
    """
    if found := database.ask(Client.schedules):
        _show(found, as_json=as_json)
    elif on_terminal() and not as_json:
        say("no schedules")


@schedules.command()
@some_names
@database
@json_lines
def show(database: Database, names: Sequence[str], as_json: bool) -> int:
    """Show all that is known of schedules.

    Exits with 1 if there is none of one of the names.
    """

    async def ask(client: Client) -> list[ScheduleStatus | None]:
        return [await client.schedule(name) for name in names]

    found = dict(zip(names, database.ask(ask), strict=True))
    for number, status in enumerate(filter(None, found.values())):
        if as_json:
            write_json(_plain(status))
        else:
            if number:
                write("")
            _show_fields(status)
    return _unknown(name for name, status in found.items() if status is None)


@schedules.command()
@click.argument("when", metavar="CRON|SECONDS")
@click.option("--tz", default="UTC", show_default=True, metavar="ZONE", help="Its time zone.")
@click.option("--count", type=integer(1, 1000), default=5, show_default=True, help="How many.")
@click.option("--after", type=INSTANT, metavar="INSTANT", help="Behind it: 2030-01-31T08:00Z.")
@verbose
@json_lines
def preview(when: str, tz: str, count: int, after: dt.datetime | None, as_json: bool) -> None:
    """Print the next ticks of a cron expression, in its local time; needs no database.

    \b
    nursery-queue schedules preview "0 3 * * MON-FRI" --tz Europe/Berlin

    A duration such as 90, 10m or 2h stands for ticks at that distance.
    """  # noqa: D301  # click needs the control character itself
    try:
        ticks = next_ticks(_when(when, tz), count, after)
    except (TypeError, ValueError) as exc:
        raise click.UsageError(str(exc)) from exc
    except ImportError as exc:
        raise ProblemError(str(exc)) from exc
    for tick in ticks:
        local, utc = tick.isoformat(), tick.astimezone(dt.UTC).isoformat()
        if as_json:
            write_json({"tick": local, "utc": utc})
        elif on_terminal():
            write(f"{tick:%a} {tick.isoformat(' ')}  {ago(tick)}")
        else:
            write(local)


def _when(text: str, tz: str) -> Cron | Every:
    if re.fullmatch(r"[\d.]+\s*[a-z]*", text.strip().lower()):
        return Every(seconds(positive=True).read(text))
    return Cron(text, tz)


@schedules.command()
@some_names
@database
@json_lines
def pause(database: Database, names: Sequence[str], as_json: bool) -> int:
    """Fire no more ticks of these, and print each one as it is now.

    Tasks that are there go on. It stays paused when workers start.
    """
    return _steer(database, names, Client.pause_schedule, as_json=as_json)


@schedules.command()
@some_names
@database
@json_lines
def resume(database: Database, names: Sequence[str], as_json: bool) -> int:
    """Fire these again, and print each one as it is now.

    What passed meanwhile is dealt with as its misfire says: the newest tick has its task, or
    none, or each.
    """
    return _steer(database, names, Client.resume_schedule, as_json=as_json)


@schedules.command()
@some_names
@database
@json_lines
def delete(database: Database, names: Sequence[str], as_json: bool) -> int:
    """Delete schedules; their tasks stay. Prints the names of those that there were.

    One that code declares comes back with the next worker: pause it, or take it out of the code.
    """

    async def ask(client: Client) -> list[bool]:
        return [await client.delete_schedule(name) for name in names]

    done = dict(zip(names, database.ask(ask), strict=True))
    for name, there in done.items():
        if as_json:
            write_json({"name": name, "done": there})
        elif there:
            write(name)
    return _unknown(name for name, there in done.items() if not there)


@schedules.command()
@one_name
@database
@json_lines
def trigger(database: Database, name: str, as_json: bool) -> None:
    """Enqueue the task of a schedule now, and print its id. The next tick comes as ever."""
    ref = database.ask(lambda client: _known(client.trigger(name)))
    if as_json:
        write_json(plain(ref))
    else:
        write(str(ref.id))


@schedules.command()
@one_name
@click.option(
    "--since",
    type=PAST,
    required=True,
    metavar="INSTANT|AGE",
    help="From: 2030-01-31T00:00Z, or 2d.",
)
@click.option("--until", type=PAST, metavar="INSTANT|AGE", help="Up to, without it; else now.")
@click.option("--dry-run", is_flag=True, help="Say how many, and enqueue nothing.")
@click.option("--repeat", is_flag=True, help="Also more than 30 days ago: those may run again.")
@database
@json_lines
def backfill(
    database: Database,
    name: str,
    since: dt.datetime,
    until: dt.datetime | None,
    dry_run: bool,
    repeat: bool,
    as_json: bool,
) -> None:
    """Enqueue tasks for the ticks of a time that have had none, and print how many.

    Whatever pause and overlap say, and each tick at most once: it may be stopped, and called
    again. At most 10,000 ticks.
    """
    end = until or dt.datetime.now(dt.UTC)
    if since > end:
        raise click.UsageError(f"--since is later than --until: {since} than {end}")

    async def ask(client: Client) -> int:
        with progress_bar(bar=not as_json) as progress:
            return await _known(
                client.backfill(
                    name,
                    since,
                    end,
                    dry_run,
                    repeat=repeat,
                    progress=lambda done, total: progress(name, done, total),
                )
            )

    count = database.ask(ask)
    if as_json:
        write_json({"count": count, "dry_run": dry_run})
    elif on_terminal():
        tasks = "1 task" if count == 1 else f"{count:,} tasks"
        write(f"{tasks} {'would be enqueued' if dry_run else 'enqueued'}")
    else:
        write(str(count))


async def _known(call: Awaitable[T]) -> T:
    try:
        return await call
    except (UnknownSchedule, ValueError) as exc:
        raise ProblemError(str(exc)) from exc


def _steer(
    database: Database,
    names: Sequence[str],
    ask: Callable[[Client, str], Awaitable[bool]],
    *,
    as_json: bool,
) -> int:
    """Do something to each schedule, then show them."""
    wanted = list(dict.fromkeys(names))

    async def change(client: Client) -> Mapping[str, ScheduleStatus]:
        for name in wanted:
            await ask(client, name)
        return {status.name: status for status in await client.schedules()}

    found = database.ask(change)
    if there := [found[name] for name in wanted if name in found]:
        _show(there, as_json=as_json)
    return _unknown(name for name in wanted if name not in found)


def _unknown(names: Iterable[str]) -> int:
    code = CLEAN
    for name in names:
        say(f"Error: there is no schedule {name!r}")
        code = PROBLEM
    return code


def _show(found: Sequence[ScheduleStatus], *, as_json: bool) -> None:
    if as_json:
        for status in found:
            write_json(_plain(status))
    elif on_terminal():
        write_rows(_COLUMNS, [_short_line(status) for status in found])
        for status in found:
            if status.error is not None:
                say(f"{status.name}: {status.error}")
    else:
        write_rows((), [_whole_line(status) for status in found])


def _show_fields(status: ScheduleStatus) -> None:
    fields = _plain(status) | {"state": _state(status), "jitter": status.jitter or None}
    for name in ("paused", "orphaned"):
        del fields[name]
    fields["params"] = json.dumps(fields.pop("params"), ensure_ascii=False)
    write_fields({name.replace("_", " "): value for name, value in fields.items()})


def _plain(status: ScheduleStatus) -> dict[str, Any]:
    return plain(status) | {"when": _rule(status)}


def _rule(status: ScheduleStatus) -> str | None:
    match status.when:
        case Cron(expression=expression):
            return expression
        case Every():
            return str(status.when)
        case None:
            return None


def _state(status: ScheduleStatus) -> str:
    if status.orphaned:
        return "orphaned"
    if status.paused:
        return "paused"
    return "on" if status.error is None else "error"


def _short_line(status: ScheduleStatus) -> Sequence[object]:
    rule = _rule(status) or "unreadable"
    if status.tz != "UTC":
        rule = f"{rule} {status.tz}"
    instants = (None if status.paused else status.next_at, status.last_tick)
    counts = (status.fired or "·", status.skipped or "·")
    return status.name, rule, _state(status), *instants, *counts, status.task_type


def _whole_line(status: ScheduleStatus) -> Sequence[object]:
    return (
        status.name,
        _rule(status),
        status.tz,
        _state(status),
        status.next_at,
        status.last_tick,
        status.fired,
        status.skipped,
        status.task_type,
        status.queue,
        status.source,
        status.error,
    )
