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
from ._output import on_terminal, write_json, write_rows
from ._progress_bar import progress_bar
from ._settings import Dsn
from ._shared_options import dsn, json_lines, verbose
from ._status_watch import SHOW_CURSOR
from ._types import integer, seconds


if TYPE_CHECKING:
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
    of the rounds. That of the server is empty, or null, unless it runs on this machine, and if it
    is too little to be counted. A terminal shows most of it in a table.
    """  # noqa: D301  # click needs the control character itself


Command = Callable[..., Any]

NO_RIGHT = (
    "allow the role to create databases (`alter role ... createdb`), or schemas in that one (`grant"
    " create on database ... to ...`)"
)


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
    with database.explaining_errors(no_right=NO_RIGHT):
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

    from nursery_queue._connect._scratch import scratch_name
    from nursery_queue._trio._signals import Escalation, obey

    from ._measuring._scenarios import measure
    from ._worker_process import stop_signals

    name = scratch_name()

    def leave(_signum: signal.Signals) -> None:
        _exit(f"the server may still have a database or schema called {name}: drop it")

    async def run() -> list[Row] | None:
        rows: list[Row] | None = None
        async with trio.open_nursery() as nursery:
            stop = trio.CancelScope()
            escalation = Escalation([lambda signum: stop.cancel(signum.name)], leave)
            await nursery.start(obey, escalation, stop_signals())
            with stop, progress_bar(bar=bar) as progress:
                rows = await measure(what, dsn, plan, rounds, progress, name=name)
            nursery.cancel_scope.cancel("measured, or stopped")
        return rows

    try:
        with _each_once():
            rows = trio.run(run)
    except BaseExceptionGroup as group:
        error = root_of(group)
        raise error from error.__cause__  # what the server has answered, maybe
    if rows is None:
        raise click.Abort
    return rows


@contextlib.contextmanager
def _each_once() -> Generator[None]:
    """Let no warning be shown twice: each round may have the same, and each process."""
    log, seen = logging.getLogger("nursery_queue"), set[str]()

    def is_new(record: logging.LogRecord) -> bool:
        text = record.getMessage()
        if record.levelno < logging.WARNING or text not in seen:
            seen.add(text)
            return True
        return False

    log.addFilter(is_new)
    try:
        yield
    finally:
        log.removeFilter(is_new)


def _exit(left: str) -> None:
    say_at_once(logging.CRITICAL, f"exiting at once; {left}")
    if on_terminal():
        os.write(sys.stdout.fileno(), SHOW_CURSOR)
    os._exit(PROBLEM)
