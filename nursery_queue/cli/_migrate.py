"""`migrate`: bring the tables to where the code is, and back."""

from __future__ import annotations

import click

from nursery_queue._connect._admin import (
    Step,
    check_schema,
    migrate_down,
    migrate_up,
    migration_sql,
    migration_steps,
    roles_sql,
)

from ._database import Database, schema_name
from ._failures import say
from ._output import plain, write, write_json, write_rows
from ._shared_options import database, json_lines, schema, verbose
from ._types import integer


@click.group()
def migrate() -> None:
    """Create, upgrade and check the tables."""


@migrate.command()
@database
@json_lines
def up(database: Database, as_json: bool) -> None:
    """Apply what is missing; prints each migration it applied.

    Any number of processes may do so at once. Nothing to do is fine, too. A schema that other
    code has made, which `check` refuses, is left as it is.
    """
    done = database.run(migrate_up)
    _show(done, as_json=as_json)
    if not done:
        say(f"nothing to do: schema {database.schema!r} is up to date")


@migrate.command()
@click.option("--to", type=integer(0), help="Undo all above version N.")
@click.option("--yes", is_flag=True, help="Undo everything: the schema's tasks are deleted.")
@database
@json_lines
def down(database: Database, to: int | None, yes: bool, as_json: bool) -> None:
    """Undo migrations; prints each one it undid.

    Tasks in the tables that go are deleted with them, so say how far: --to N or --yes.
    """
    if to is None and not yes:
        raise click.UsageError(
            f"this deletes tables with all their tasks in schema {database.schema!r} of"
            f" {database}: say --to N, or --yes for all of it"
        )
    done = database.run(migrate_down, to or 0)
    _show(done, as_json=as_json)
    if not done:
        say(f"nothing to do: schema {database.schema!r} has nothing above version {to or 0}")


@migrate.command("list")
@database
@json_lines
def list_(database: Database, as_json: bool) -> None:
    """Print each migration's version, name and state.

    State: applied, pending, edited (other files were applied) or unknown (newer than this
    code).
    """
    _show(database.run(migration_steps), as_json=as_json)


@migrate.command()
@click.option("--roles", is_flag=True, help="Instead, roles for producers, readers and workers.")
@click.option(
    "--prefix", metavar="TEXT", help="What names of roles begin with; else the schema's name and _."
)
@schema
@verbose
def sql(roles: bool, prefix: str | None, schema: str) -> None:
    """Print all migrations as one script, for psql or other tools. Needs no database.

    With --roles, print the script that makes roles which may do what a producer, a reader or a
    worker does and no more, and one that owns the schema. Run it after each upgrade.
    """
    if not roles:
        if prefix is not None:
            raise click.UsageError("--prefix is for names of roles: say --roles")
        write(migration_sql(schema_name(schema)))
        return
    try:
        write(roles_sql(schema_name(schema), prefix))
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc


@migrate.command()
@database
def check(database: Database) -> None:
    """Exit with 0 if the schema has the migrations of this code, else say what to do.

    Compares the versions and checksums that were recorded; does not look at the tables.
    """
    database.run(check_schema)
    say(f"schema {database.schema!r} is up to date")


def _show(steps: list[Step], *, as_json: bool) -> None:
    if as_json:
        for step in steps:
            write_json(plain(step))
    elif steps:
        write_rows(
            ["#version", "name", "state"],
            [(f"{step.version:04d}", step.name, step.state) for step in steps],
        )
