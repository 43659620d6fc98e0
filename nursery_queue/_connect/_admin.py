"""What an administrator does: migrations, and what a DSN means. Knows no command line."""

from __future__ import annotations

import contextlib
import re

from collections.abc import AsyncGenerator, Mapping

import attrs
import psycopg
import trio

from psycopg import pq
from psycopg.conninfo import conninfo_to_dict

from nursery_queue._core._errors import TransientError
from nursery_queue._core._secrets import suspicious
from nursery_queue._pg import _migrator as _migrate
from nursery_queue._pg._sql import DEFAULT_SCHEMA, checked_schema
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._database_errors import is_answer, translated
from nursery_queue._psycopg._pooler import connect


CONNECT_TIMEOUT = 30.0  # seconds until a server that says nothing counts as not there

DatabaseError = psycopg.Error


def plain_dsn(dsn: str) -> str:
    """Return *dsn* without the name of a driver, which SQLAlchemy's URLs may have."""
    return re.sub(r"^(postgres(?:ql)?)\+\w+://", r"\1://", dsn)


def readable_dsn(dsn: str) -> str:
    """Return *dsn* as libpq reads it, or raise `psycopg.ProgrammingError` without quoting it."""
    dsn = plain_dsn(dsn)
    if (wrong := suspicious(dsn)) is None:
        try:
            dsn_params(dsn)
        except ValueError as exc:
            wrong = str(exc)
    if wrong is not None:
        raise psycopg.ProgrammingError(
            "the DSN is neither a URL (postgresql://user@host/database) nor keywords"
            f" (host=... dbname=...): {wrong}"
        )
    return dsn


def dsn_params(dsn: str) -> dict[str, str]:
    """Return what *dsn* says, by keyword. Raises `ValueError` that says what is wrong with it.

    Not in libpq's own words: they quote what it stumbled on, maybe the password.
    """
    try:
        params = conninfo_to_dict(dsn)
    except psycopg.ProgrammingError as exc:
        raise ValueError(_complaint(str(exc))) from None
    return {key: str(value) for key, value in params.items() if value is not None}


def _complaint(text: str) -> str:
    """Return what libpq says about a DSN it cannot read, without quoting any part of it."""
    for sign, meaning in (
        ('missing "="', 'a word in it has no "="'),
        ("unterminated quoted", "a quote in it is not closed"),
        ("percent-encoded", 'a "%" in it is not followed by two hex digits: write it as %25'),
        ("invalid connection option", "it has a keyword that libpq does not know"),
        ("invalid URI query parameter", 'it has a parameter after "?" that libpq does not know'),
    ):
        if sign in text:
            return meaning
    return "libpq cannot read it"


def libpq_defaults() -> dict[str, str]:
    """Return what libpq takes, from the environment or else, for what a DSN leaves out."""
    return {
        option.keyword.decode(): option.val.decode()
        for option in pq.Conninfo.get_defaults()
        if option.val is not None
    }


def sqlstate_of(exc: BaseException) -> str | None:
    """Return the SQLSTATE of *exc*, if it has one."""
    return exc.sqlstate if isinstance(exc, psycopg.Error) else None


def answer_in(exc: TransientError) -> DatabaseError | None:
    """Return what the server has answered; None: it was not reached, or was lost."""
    cause = exc.__cause__
    return cause if isinstance(cause, psycopg.Error) and is_answer(cause) else None


# -- migrations ----------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class Step:
    """A migration as the code and the database know it."""

    version: int
    name: str
    state: str  # applied | pending | edited (was other files) | unknown (newer than the code)


async def migrate_up(dsn: str, schema: str) -> list[Step]:
    """Apply what is missing and return it."""
    async with connected(dsn) as connection:
        done = await _migrate.up(connection, schema)
    return [Step(version=each.version, name=each.name, state="applied") for each in done]


async def migrate_down(dsn: str, schema: str, to: int) -> list[Step]:
    """Undo what is above version *to* and return it."""
    async with connected(dsn) as connection:
        done = await _migrate.down(connection, schema, to=to)
    return [Step(version=each.version, name=each.name, state="pending") for each in done]


async def migration_steps(dsn: str, schema: str) -> list[Step]:
    """Return every migration that the code or the database knows."""
    async with connected(dsn) as connection:
        return _steps(await _migrate.applied(connection, schema))


async def check_schema(dsn: str, schema: str) -> None:
    """Raise `SchemaError` unless the schema is what this code needs."""
    async with connected(dsn) as connection:
        await _migrate.check(connection, schema)


def migration_sql(schema: str) -> str:
    """Return all migrations as one script."""
    return _migrate.sql(schema)


def roles_sql(schema: str, prefix: str | None) -> str:
    """Return the script that makes roles for programs; `ValueError` for a bad *prefix*."""
    return _migrate.roles(schema, prefix)


@contextlib.asynccontextmanager
async def connected(dsn: str) -> AsyncGenerator[Connection]:
    """Open one connection, whatever the schema is like; its errors are ours."""
    with translated():
        try:
            with trio.fail_after(CONNECT_TIMEOUT):
                connection = await connect(readable_dsn(dsn))
        except trio.TooSlowError as exc:
            raise TransientError(f"no answer within {CONNECT_TIMEOUT:g} s") from exc
        async with connection:
            yield connection


def _steps(have: Mapping[int, str]) -> list[Step]:
    known = {each.version: each for each in _migrate.migrations()}
    steps: list[Step] = []
    for version in sorted(known.keys() | have.keys()):
        if (migration := known.get(version)) is None:
            steps.append(Step(version=version, name="?", state="unknown"))
            continue
        same = have.get(version) == migration.checksum
        state = "pending" if version not in have else "applied" if same else "edited"
        steps.append(Step(version=version, name=migration.name, state=state))
    return steps


__all__ = ["DEFAULT_SCHEMA", "checked_schema"]
