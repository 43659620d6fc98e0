"""Options that several commands share."""

from __future__ import annotations

import functools

from collections.abc import Callable
from typing import Any, TypeVar

import click

from nursery_queue._connect._admin import DEFAULT_SCHEMA

from ._database import Database
from ._failures import Session
from ._logging import be_verbose
from ._settings import DsnSetting, setting
from ._types import LABEL, integer


F = TypeVar("F", bound=Callable[..., Any])

BIGINT = 2**63 - 1

# Of what a command is about: a queue, a schedule.
one_name = click.argument("name", type=LABEL)
some_names = click.argument("names", metavar="NAME...", nargs=-1, required=True, type=LABEL)


def _note_verbose(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Session).verbose = True
        be_verbose()


def verbose(command: F) -> F:
    """Give *command* `-v`; it needs not take it."""
    return setting(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_note_verbose,
        help="Say more; tracebacks with errors.",
    )(command)


def dsn(command: F) -> F:
    """Give *command* `--dsn`, as a `Dsn`."""
    return setting(
        "--dsn",
        cls=DsnSetting,
        type=click.UNPROCESSED,  # what it means is for the database side to say
        default="",
        show_default=False,
        metavar="DSN",
        help="URL or keywords of libpq. Else DATABASE_URL, else PG* variables.",
    )(command)


def schema(command: F) -> F:
    """Give *command* `--schema`."""
    return setting(
        "--schema", default=DEFAULT_SCHEMA, metavar="NAME", help="Where the tables are."
    )(command)


def json_lines(command: F) -> F:
    """Give *command* `--json`, as *as_json*."""
    return click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")(command)


def ids(command: F) -> F:
    """Give *command* the ids of tasks, at least one."""
    return some_ids(required=True)(command)


def some_ids(*, required: bool) -> Callable[[F], F]:
    """Return the decorator that gives a command ids of tasks."""
    metavar = "ID..." if required else "[ID...]"
    return click.argument(
        "ids", metavar=metavar, nargs=-1, required=required, type=integer(1, BIGINT)
    )


def database(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give *command* `--dsn`, `--schema` and `-v`; it gets a `Database` as first argument."""

    @functools.wraps(command)
    def with_database(*args: Any, dsn: Any, schema: str, **kwargs: Any) -> Any:
        return command(Database.of(dsn, schema), *args, **kwargs)

    return dsn(schema(verbose(with_database)))
