"""The group of all commands."""

from __future__ import annotations

import importlib.metadata

import click

from ._bench import bench
from ._dev import dev
from ._enqueue import enqueue
from ._migrate import migrate
from ._queues import queues
from ._status import status
from ._tasks import tasks
from ._worker_command import worker


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    try:
        click.echo(f"nursery-queue {importlib.metadata.version('nursery-queue')}")
    except importlib.metadata.PackageNotFoundError:
        click.echo("nursery-queue (not installed: a source directory)")
    ctx.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and exit.",
)
def commands() -> None:
    """Background tasks in PostgreSQL, run by trio.

    Try it without a server:  nursery-queue dev mymodule:app

    \b
    A setting comes from the first of:
      1. its flag, such as --poll-interval 2
      2. the environment: NURSERY_QUEUE_POLL_INTERVAL=2
         (for the database also DATABASE_URL, then PGHOST and the like)
      3. pyproject.toml here or above: [tool.nursery_queue] poll_interval = 2
      4. its default

    \b
    Exit codes: 0 clean, 1 a problem or a forced stop, 2 usage or configuration,
    69 the database could not be reached at the start, 130 interrupted while starting.
    """  # noqa: D301  # click needs the control character itself


for command in (worker, dev, migrate, enqueue, tasks, queues, status, bench):
    commands.add_command(command)
