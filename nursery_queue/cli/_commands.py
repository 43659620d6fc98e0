"""The group of all commands."""

from __future__ import annotations

import importlib

import click

from nursery_queue._quiet_start import disarm


# Each is imported when it is run. So the first sentence of its help stands here once more.
SENTENCES = {
    "bench": "Measure how fast tasks go on a server of yours.",
    "dev": "Run tasks on an embedded server, for development.",
    "enqueue": "Store one task of type NAME and print its id.",
    "migrate": "Create, upgrade and check the tables.",
    "queues": "Look at queues, pause them, limit them.",
    "schedules": "Look at schedules, pause them, fire them by hand.",
    "status": "Count tasks by queue and state, list workers, name task types nobody knows.",
    "tasks": "Look at tasks and steer them.",
    "why": "Say why tasks are where they are.",
    "worker": "Run tasks.",
}
MODULES = {
    "worker": "_worker_command",
    "schedules": "_schedules_command",
}  # others have the name of their command


class CommandsOnDemand(click.Group):
    """Imports a command when it is run, and lists all of them without importing any."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # as click has it
        """Return the names of all commands, in the order in which `--help` has them."""
        return sorted(SENTENCES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, unless it is here already. Ctrl-C ends the process meanwhile."""
        if cmd_name in SENTENCES and cmd_name not in self.commands:
            module = MODULES.get(cmd_name, f"_{cmd_name}")
            found = getattr(importlib.import_module(f".{module}", __package__), cmd_name)
            self.add_command(found)
        elif cmd_name not in SENTENCES and not ctx.resilient_parsing:
            for name in SENTENCES:  # click looks among them for one that may be meant
                self.get_command(ctx, name)
        disarm()
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands as any group does, but from their first sentences."""
        named = [click.Command(name, help=sentence) for name, sentence in SENTENCES.items()]
        click.Group(commands=named).format_commands(ctx, formatter)


def _print_version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    import importlib.metadata

    try:
        click.echo(f"nursery-queue {importlib.metadata.version('nursery-queue')}")
    except importlib.metadata.PackageNotFoundError:
        click.echo("nursery-queue (not installed: a source directory)")
    ctx.exit()


@click.group(
    cls=CommandsOnDemand,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
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
