"""`worker`: run tasks, in this process or in several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click
import trio

from nursery_queue._core._log_level import LEVELS
from nursery_queue._core._outcome import MAX_LOST

from ._database import Database
from ._failures import Session
from ._load import load_app
from ._logging import enable_our_loggers, level_of, log_to_stderr
from ._parent_pipe import ParentPipe
from ._processes import run_processes
from ._settings import LevelSetting, setting
from ._shared_options import database
from ._types import PREFETCH, QUEUE_LIMIT, integer, seconds
from ._worker_process import WorkerSpec, work


_OPTIONS = (
    setting(
        "-q",
        "--queue",
        multiple=True,
        type=QUEUE_LIMIT,
        help="Serve this queue, with at most N of its tasks at once; may be repeated. Else all.",
    ),
    setting("-c", "--concurrency", type=integer(1, 10_000), default=32, help="Handlers at once."),
    setting(
        "--poll-interval",
        type=seconds(),
        default=5.0,
        help="How often to look for what no notification told of; 0: never.",
    ),
    setting("--no-listen", is_flag=True, help="Do without NOTIFY."),
    setting(
        "--lease",
        type=seconds(positive=True),
        default=30.0,
        help="Without a heartbeat for so long, others take its tasks.",
    ),
    setting(
        "--heartbeat",
        type=seconds(positive=True),
        default=3.0,
        help="How often; at most a third of the lease.",
    ),
    setting(
        "--grace",
        type=seconds(),
        default=20.0,
        help="For handlers to finish after the first signal.",
    ),
    setting("--cleanup", type=seconds(), default=5.0, help="For cancelled handlers to clean up."),
    setting(
        "--prefetch", type=PREFETCH, default="auto", metavar="N|auto", help="Tasks to claim ahead."
    ),
    setting(
        "--max-lost",
        type=integer(1),
        default=MAX_LOST,
        help="With how many workers that die while they run it a task fails, unless its type"
        " says so.",
    ),
    setting("--name", metavar="NAME", help="In lists of workers; host and process by default."),
    setting(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        help="Of the log, on stderr.",
    ),
    setting(
        "--log-level",
        cls=LevelSetting,
        type=click.Choice(LEVELS, case_sensitive=False),
        metavar="LEVEL",
        help=f"{', '.join(LEVELS)}; INFO by default, DEBUG with -v.",
    ),
)


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* what `Worker` can be told, `--log-format` and `--log-level`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def worker_settings(
    *, queue: Sequence[tuple[str, int | None]], no_listen: bool, **settings: Any
) -> dict[str, Any]:
    """Return keywords of `Worker`. Raises `click.UsageError`."""
    limits = {name: limit or settings["concurrency"] for name, limit in queue}
    if len(limits) < len(queue):
        raise click.UsageError(f"a queue is named twice: {', '.join(name for name, _ in queue)}")
    return {**settings, "queues": limits or None, "listen": not no_listen}


class WorkerCommand(click.Command):
    """Remembers its arguments as they were, for child processes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and keep a copy."""
        ctx.meta["nursery_queue.args"] = tuple(args)
        return super().parse_args(ctx, args)


@click.command(cls=WorkerCommand)
@click.argument("app")
@worker_options
@setting(
    "--drain",
    is_flag=True,
    help="End when nothing is ready to be done; says what is left, for later too.",
)
@setting(
    "--processes",
    type=integer(1, 1000),
    default=1,
    help="Worker processes, each with these settings; one that finds the database away, or is"
    " killed, before it is at work is started again; one that dies at work is not.",
)
@setting(
    "--pool-size",
    type=integer(1, 1000),
    help="Connections for handlers, at most; by default as many as needed, 18 at most.",
)
@click.option("--child", type=ParentPipe.parse, hidden=True)
@database
@click.pass_context
def worker(
    ctx: click.Context,
    /,
    database: Database,
    app: str,
    log_format: str,
    log_level: str | None,
    drain: bool,
    processes: int,
    pool_size: int | None,
    child: ParentPipe | None,
    **options: Any,
) -> int:
    """Run tasks. APP is module:attribute, looked for in the current directory first.

    \b
    First SIGTERM or SIGINT (Ctrl-C): finish what is in hand, then end.
    Second: cancel it, release the tasks for others, then end with 1.
    Third: exit at once; others get the tasks when the lease has run out.
    SIGUSR1: claim nothing more. SIGUSR2: print what every trio task waits for.
    """  # noqa: D301  # click needs the control character itself
    settings = worker_settings(**options)
    who = "" if child is None else str(child.number)
    log_to_stderr(log_format, level_of(ctx, log_level), who=who)
    ctx.ensure_object(Session).logs = log_format == "json"
    if child is None and processes > 1:
        return trio.run(run_processes, processes, ctx.meta["nursery_queue.args"])
    if child is not None:
        child.watch()
        if settings["name"] is not None:
            settings["name"] += f"-{child.number}"
    loaded = load_app(app)
    enable_our_loggers()
    spec = WorkerSpec(
        app=loaded,
        where=app,
        database=database,
        settings=settings,
        drain=drain,
        pool_size=pool_size,
    )
    return trio.run(work, spec if child is None else child.attached(spec))
