"""Numbered SQL files, applied in order, each in a transaction under one advisory lock."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.resources
import re

from collections.abc import AsyncGenerator, Mapping, Sequence

import attrs
import psycopg
import trio

from psycopg import errors

from nursery_queue._core._error_text import one_line
from nursery_queue._core._errors import SchemaError
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._isolation import READ_COMMITTED, USUAL
from nursery_queue._psycopg._pooler import connect

from ._sql import DEFAULT_SCHEMA, checked_schema, query, render


# The longest role is called by eight letters more.
_PREFIX = re.compile(r"(?!pg_)[a-z_][a-z0-9_]{0,53}")
_ALREADY_THERE = (
    errors.DuplicateTable,
    errors.DuplicateFunction,
    errors.DuplicateColumn,
    errors.DuplicateObject,
)


@attrs.frozen(kw_only=True)
class Migration:
    """A step from one version of the schema to the next, and back."""

    version: int
    name: str
    up: str
    down: str

    @property
    def checksum(self) -> str:
        """A digest by which an applied migration is told from an edited one."""
        return hashlib.sha256(self.up.encode()).hexdigest()[:16]


@functools.cache
def migrations() -> Sequence[Migration]:
    """Return the migrations this code knows, oldest first."""
    folder = importlib.resources.files("nursery_queue._pg") / "migrations"
    return [
        Migration(
            version=int(file.name.partition("_")[0]),
            name=file.name.removesuffix(".up.sql").partition("_")[2],
            up=file.read_text(encoding="utf-8"),
            down=(folder / file.name.replace(".up.", ".down.")).read_text(encoding="utf-8"),
        )
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".up.sql")
    ]


async def applied(conn: Connection, schema: str = DEFAULT_SCHEMA) -> dict[int, str]:
    """Return the checksum of each version that has been applied; empty if there is no schema."""
    if await conn.fetch(query("migration_table_exists", checked_schema(schema))) != [(True,)]:
        return {}
    return dict(await conn.fetch(query("applied_migrations", schema)))


async def check(conn: Connection, schema: str = DEFAULT_SCHEMA) -> None:
    """Raise `SchemaError`, saying what to do, unless *schema* is exactly what this code needs.

    The database has to be in UTF8, too.
    """
    await _check_encoding(conn)
    have = await applied(conn, schema)
    _refuse_others(conn, schema, have)
    if not have:
        problem = f"is not there: run `nursery-queue migrate up{_schema_flag(schema)}`"
    elif missing := {migration.version for migration in migrations()} - have.keys():
        problem = (
            f"is older (version {max(have)}, lacks {sorted(missing)}) than this code needs:"
            f" run `nursery-queue migrate up{_schema_flag(schema)}`"
        )
    else:
        return
    raise _error(conn, schema, problem)


def _refuse_others(conn: Connection, schema: str, have: Mapping[int, str]) -> None:
    """Raise `SchemaError`, saying what to do, if other code has made *schema*.

    That is, if it has a version that this code does not know, or a version with another checksum.
    """
    need = {migration.version: migration.checksum for migration in migrations()}
    newest = max(need)
    flag = _schema_flag(schema)
    if have and max(have) > newest:
        problem = (
            f"is newer (version {max(have)}) than this code knows ({newest}): upgrade nursery-queue"
        )
    elif edited := sorted(v for v in have.keys() & need.keys() if have[v] != need[v]):
        problem = (
            f"had other files applied as version {edited} than this code has, perhaps those of an"
            " unreleased version: use that one, or make the schema anew with"
            f" `nursery-queue migrate down --yes{flag}`, which deletes its tasks, and then"
            f" `nursery-queue migrate up{flag}`"
        )
    else:
        return
    raise _error(conn, schema, problem)


def _error(conn: Connection, schema: str, problem: str) -> SchemaError:
    return SchemaError(f"the schema {schema!r} in database {conn.info.dbname!r} {problem}")


async def _check_encoding(conn: Connection) -> None:
    """Raise `SchemaError` in a database that is not in UTF8 (tests/pg/test_encodings.py).

    Other encodings hold text that cannot be sent to a client, which then gets none of the rows of a
    statement, and refuse text that JSON and errors have.
    """
    ((found,),) = await conn.fetch(query("encoding", DEFAULT_SCHEMA))
    if found != "UTF8":
        raise SchemaError(
            f"the database {conn.info.dbname!r} has the encoding {found}, and tasks need UTF8:"
            " use a database in UTF8"
        )


async def up(conn: Connection, schema: str = DEFAULT_SCHEMA) -> list[Migration]:
    """Apply the missing migrations and return them. Any number of processes may do so at once.

    Raises `SchemaError`, and applies nothing, where other code has made the schema.
    """
    checked_schema(schema)
    await _check_encoding(conn)
    done: list[Migration] = []
    for migration in migrations():
        async with _locked(conn, schema):
            have = await applied(conn, schema)
            if not have:
                await conn.execute(query("create_migration_table", schema))
            _refuse_others(conn, schema, have)
            if migration.version in have:
                continue
            try:
                await conn.execute(render(migration.up, schema))
                await conn.execute(query("end_migration", schema))
            except _ALREADY_THERE as exc:
                raise _unrecorded(conn, schema, migration, exc) from exc
            await conn.fetch(
                query("record_migration", schema),
                {
                    "version": migration.version,
                    "name": migration.name,
                    "checksum": migration.checksum,
                },
            )
            done.append(migration)
    return done


def _unrecorded(
    conn: Connection, schema: str, migration: Migration, exc: psycopg.Error
) -> SchemaError:
    return _error(
        conn,
        schema,
        f"does not record version {migration.version} ({migration.name}), and has what that makes:"
        f" {one_line(str(exc))}. If the row of version {migration.version} was deleted from"
        f" {schema}.migration, put it back: {_record(migration, schema).strip()}",
    )


async def down(conn: Connection, schema: str = DEFAULT_SCHEMA, *, to: int = 0) -> list[Migration]:
    """Undo everything above version *to* and return it. Tasks in dropped tables are gone."""
    checked_schema(schema)
    done: list[Migration] = []
    for migration in reversed(migrations()):
        if migration.version <= to:
            break
        async with _locked(conn, schema):
            have = await applied(conn, schema)
            if migration.version not in have:
                continue
            await conn.execute(render(migration.down, schema))
            await conn.fetch(query("forget_migration", schema), {"version": migration.version})
            done.append(migration)
    return done


def sql(schema: str = DEFAULT_SCHEMA) -> str:
    """Return all of `up` as one script, to be applied by other means."""
    checked_schema(schema)
    parts = [query("begin_migration", schema), query("create_migration_table", schema)]
    for migration in migrations():
        parts.append(render(migration.up, schema))
        parts.append(query("end_migration", schema))
        parts.append(_record(migration, schema))
    return "begin isolation level read committed;\n\n" + "\n".join(parts) + "\ncommit;\n"


def _record(migration: Migration, schema: str) -> str:
    """Return a statement that notes *migration* as applied."""
    return render(
        "insert into nursery_queue.migration (version, name, checksum) values"  # noqa: S608  # our own files' names
        f" ({migration.version}, '{migration.name}', '{migration.checksum}');\n",
        schema,
    )


def roles(schema: str = DEFAULT_SCHEMA, prefix: str | None = None) -> str:
    """Return a script that makes roles for programs that use *schema*, and gives it an owner.

    Their names begin with *prefix*; None: with the schema's name and an underscore.
    """
    checked_schema(schema)
    prefix = f"{schema}_" if prefix is None else prefix
    if not _PREFIX.fullmatch(prefix):
        raise ValueError(
            "a prefix of roles must be at most 54 lower-case letters, digits and underscores, and"
            f" must not begin with a digit or pg_; not {prefix!r}"
        )
    text = importlib.resources.files("nursery_queue._pg").joinpath("roles.sql")
    named = re.sub(r"\bnursery_queue_(?=[a-z])", prefix, text.read_text(encoding="utf-8"))
    return render(named, schema)


def up_sync(dsn: str, schema: str = DEFAULT_SCHEMA) -> None:
    """Apply the missing migrations, outside of trio: for fixtures and scripts."""
    trio.run(_up_once, dsn, schema)


async def _up_once(dsn: str, schema: str) -> None:
    async with await connect(dsn) as conn:
        await up(conn, schema)


@contextlib.asynccontextmanager
async def _locked(conn: Connection, schema: str) -> AsyncGenerator[None]:
    async with conn.transaction():
        if conn.isolation != USUAL:  # after waiting for another migration, see it
            await conn.execute(READ_COMMITTED)
        await conn.execute(query("begin_migration", schema))
        await conn.execute(query("lock_migrations", schema))
        yield


def _schema_flag(schema: str) -> str:
    return "" if schema == DEFAULT_SCHEMA else f" --schema {schema}"
