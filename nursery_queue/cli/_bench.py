"""`bench`: how fast tasks go here, on a server of the user's."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import click

from nursery_queue._connect._admin import DEFAULT_SCHEMA

from ._database import Database
from ._failures import PROBLEM, root_of
from ._logging import say_at_once
from ._output import on_terminal, terminal, write_json, write_rows
from ._settings import Dsn
from ._shared_options import dsn, json_lines, verbose
from ._status_watch import SHOW_CURSOR
from ._types import integer, seconds


if TYPE_CHECKING:
    from rich.progress import TaskID

    from ._measuring._figures import Row
    from ._measuring._round import Plan


@click.group()
def bench() -> None:
    """Measure how fast tasks go on a server of yours.

    In a database made for the purpose, or in a schema if the role may not create one: it is
    removed at the end. Figures are shown only if the database says that all was done, each task
    once. Loads the server: do not use one that is in use.

    With --json, and without a terminal as tab-separated cells in this order, each row has:

    \b
    what, tasks, rounds, rate, rate_min, rate_max, worker_cpu_us, server_cpu_us;
    of latency also p50_ms, p99_ms, max_ms

    The rate is tasks, or chunks of a stream, a second; CPU is microseconds a task. All are medians
    of the rounds. That of the server is empty, or null, unless it runs on this machine. A terminal
    shows most of it in a table.
    """  # noqa: D301  # click needs the control character itself


Command = Callable[..., Any]

LEFT_BEHIND = "the server may still have a database or schema called nursery_queue_bench_*: drop it"


def _measuring(tasks: int, of: str = "Tasks") -> Callable[[Command], click.Command]:
    """Return the decorator for a scenario with so many *tasks* by default."""
    number = click.option(
        "--tasks", type=integer(1, 10_000_000), default=tasks, show_default=True, help=f"{of}."
    )
    rounds = click.option(
        "--rounds",
        type=integer(1, 1000),
        default=3,
        show_default=True,
        help="How often to measure, each time in empty tables.",
    )

    def decorate(command: Command) -> click.Command:
        return bench.command()(number(rounds(json_lines(dsn(verbose(command))))))

    return decorate


def _gap(default: str) -> Callable[[Command], Command]:
    """Return the decorator for `--gap`."""
    return click.option(
        "--gap",
        type=seconds(),
        default=default,
        show_default=True,
        help="From the begin of an enqueue to that of the next.",
    )


_concurrency = click.option(
    "--concurrency",
    type=integer(1, 10_000),
    default=32,
    show_default=True,
    help="Handlers at once of a worker.",
)
_processes = click.option(
    "--processes", type=integer(1, 1000), default=1, show_default=True, help="Worker processes."
)


@_measuring(20_000)
@_concurrency
@_processes
def drain(**options: Any) -> None:
    """Tasks that do nothing, enqueued before.

    From the first start to when the database says that nothing is left.
    """
    _run("drain", **options)


@_measuring(500)
@_gap("20ms")
def latency(**options: Any) -> None:
    """From the commit of a task to its start.

    A worker with nothing else to do; another process enqueues one by one.
    """
    _run("latency", **options)


@_measuring(20_000, "Tasks of one call; one by one a tenth of it")
def enqueue(**options: Any) -> None:
    """Enqueue one by one, in one call, and by COPY.

    There is no worker: the CPU is that of the process that enqueues.
    """
    _run("enqueue", **options)


@_measuring(5_000)
@_concurrency
@_processes
def transactional(**options: Any) -> None:
    """Tasks that insert a row each through ctx.tx.

    Enqueued before, as with `drain`.
    """
    _run("transactional", **options)


@_measuring(2_000, "Chunks")
def streams(**options: Any) -> None:
    """Chunks of a stream, written and read.

    A handler awaits each write; another process reads meanwhile. The CPU is that of the worker and
    of the reader; the server's is that of both together.
    """
    _run("streams", **options)


@_measuring(500)
@_gap("5ms")
def trickle(**options: Any) -> None:
    """What a worker uses for a task that comes alone.

    As `latency`, for the CPU a task.
    """
    _run("trickle", **options)


def _run(what: str, *, dsn: Dsn, as_json: bool, rounds: int, **plan: Any) -> None:
    from ._measuring._round import Plan

    database = Database.of(dsn, DEFAULT_SCHEMA)
    with database.explaining_errors():
        rows = _measured(what, database.dsn, Plan(**plan), rounds, bar=not as_json)
    if as_json:
        for row in rows:
            write_json(row.as_json())
        return
    cells = [row.as_json() for row in rows]
    if not on_terminal():
        write_rows((), [list(each.values()) for each in cells])
        return
    # The rate of what comes one by one is said before: its extremes are of no interest.
    paced = "p50_ms" in cells[0]
    shown = [name for name in cells[0] if name in _HEADINGS and not (paced and "rate_" in name)]
    write_rows(
        [_HEADINGS[name] for name in shown], [[each[name] for name in shown] for each in cells]
    )


_HEADINGS = {
    "what": "what",
    "tasks": "#tasks",
    "rate": "#rate",
    "rate_min": "#least",
    "rate_max": "#most",
    "worker_cpu_us": "#worker us",
    "server_cpu_us": "#server us",
    "p50_ms": "#p50 ms",
    "p99_ms": "#p99 ms",
    "max_ms": "#max ms",
}


def _measured(what: str, dsn: str, plan: Plan, rounds: int, *, bar: bool) -> list[Row]:
    """Measure until it is done or a signal comes; then, too, nothing is left on the server.

    Raises `click.Abort` after a signal. A second one ends the process at once.
    """
    import trio

    from nursery_queue._trio._signals import Escalation, obey

    from ._measuring._scenarios import measure
    from ._worker_process import stop_signals

    async def run() -> list[Row] | None:
        rows: list[Row] | None = None
        async with trio.open_nursery() as nursery:
            stop = trio.CancelScope()
            escalation = Escalation([lambda signum: stop.cancel(signum.name)], _exit)
            await nursery.start(obey, escalation, stop_signals())
            with stop, _progress(bar=bar) as progress:
                rows = await measure(what, dsn, plan, rounds, progress)
            nursery.cancel_scope.cancel("measured, or stopped")
        return rows

    try:
        rows = trio.run(run)
    except BaseExceptionGroup as group:
        raise root_of(group) from group
    if rows is None:
        raise click.Abort
    return rows


def _exit(_signum: signal.Signals) -> None:
    say_at_once(logging.CRITICAL, f"exiting at once; {LEFT_BEHIND}")
    if on_terminal():
        os.write(sys.stdout.fileno(), SHOW_CURSOR)
    os._exit(PROBLEM)


@contextlib.contextmanager
def _progress(*, bar: bool) -> Generator[Callable[[str, int, int], object]]:
    """Yield what is told of the progress: on a terminal, a bar."""
    if not bar or not on_terminal():
        yield lambda _what, _done, _total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    # It is drawn seldom: that takes CPU from what is measured.
    shown = Progress(*columns, console=terminal(), transient=True, refresh_per_second=3)
    with shown:
        row: TaskID = shown.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            shown.update(row, description=what, completed=done, total=total)

        yield show
