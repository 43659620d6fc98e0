"""`dev`: a database server and a worker, with nothing to set up."""

from __future__ import annotations

import contextlib
import signal
import sys

from collections.abc import Generator
from pathlib import Path
from typing import Any

import click
import trio

from nursery_queue._connect._admin import migrate_up
from nursery_queue._embedded import embedded

from ._database import Database
from ._failures import PROBLEM, USAGE, ProblemError, Session
from ._load import load_app
from ._logging import enable_our_loggers, level_of, log_to_stderr
from ._output import write
from ._settings import Dsn, setting
from ._shared_options import schema, verbose
from ._worker_command import worker_options, worker_settings
from ._worker_process import WorkerSpec, stop_signals, work


@click.command()
@click.argument("app")
@setting(
    "--data", default=".nursery_queue", metavar="DIRECTORY", help="Where the server keeps its data."
)
@worker_options
@schema
@verbose
@click.pass_context
def dev(
    ctx: click.Context,
    /,
    app: str,
    data: str,
    log_format: str,
    log_level: str | None,
    schema: str,
    **options: Any,
) -> int:
    """Run tasks on an embedded server, for development. APP is module:attribute.

    Starts PostgreSQL, prints its DSN on stdout, creates or upgrades the tables, and runs a
    worker. The data are there the next time. Needs the extra: nursery-queue[embedded].
    """
    settings = worker_settings(**options)
    log_to_stderr(log_format, level_of(ctx, log_level))
    ctx.ensure_object(Session).logs = log_format == "json"
    loaded = load_app(app)
    enable_our_loggers()
    directory = Path(data)
    with _interruptible(), _serving(directory) as dsn:
        write(dsn)
        sys.stdout.flush()
        database = Database.of(Dsn(dsn, "dev"), schema)
        database.run(migrate_up)
        return trio.run(
            work, WorkerSpec(app=loaded, where=app, database=database, settings=settings)
        )


@contextlib.contextmanager
def _serving(directory: Path) -> Generator[str]:
    """Run the server, or raise `ProblemError`."""
    new = not directory.exists()
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(embedded(directory))
            if new:
                (directory / ".gitignore").write_text("*\n", encoding="utf-8")
        except (ImportError, NotImplementedError) as exc:
            raise ProblemError(str(exc), code=USAGE) from exc
        except (OSError, RuntimeError) as exc:
            msg = f"the embedded server in {directory} cannot run: {exc}"
            raise ProblemError(msg, code=PROBLEM) from exc
        yield server.dsn


@contextlib.contextmanager
def _interruptible() -> Generator[None]:
    """Let whatever stops us leave the server's block, which stops the server.

    That block finishes its steps when it sees KeyboardInterrupt, and nothing else.
    """
    before = {signum: signal.getsignal(signum) for signum in stop_signals()}
    try:
        for signum in before:
            signal.signal(signum, signal.default_int_handler)
        yield
    finally:
        for signum, handler in before.items():
            if signal.getsignal(signum) is signal.default_int_handler:  # else the worker's lasts
                signal.signal(signum, handler)
