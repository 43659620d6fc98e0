"""A database of its own, or else a schema, that is there only while it is used."""

from __future__ import annotations

import contextlib
import logging
import secrets

from collections.abc import AsyncGenerator
from typing import Any, Final

import attrs
import psycopg
import trio

from psycopg.conninfo import make_conninfo

from nursery_queue._core._error_text import one_line
from nursery_queue._core._errors import NurseryQueueError, TransientError
from nursery_queue._pg import _migrator
from nursery_queue._pg._sql import DEFAULT_SCHEMA, render
from nursery_queue._psycopg._connection import Connection

from ._admin import connected, readable_dsn


log = logging.getLogger("nursery_queue")

PREFIX: Final = "nursery_queue_bench_"
PATIENCE = 30.0  # seconds for its removal; who holds it open has been told to end by then


@attrs.frozen(kw_only=True)
class Scratch:
    """A place with our tables, empty at first, and a session there."""

    dsn: str = attrs.field(repr=False)
    schema: str
    _session: Connection = attrs.field(alias="session", repr=False)

    async def ask(self, statement: str) -> list[tuple[Any, ...]]:
        """Run one of our own statements; it calls the schema `nursery_queue`."""
        return await self._session.fetch(render(statement, self.schema))


def scratch_name() -> str:
    """Return a name that no other database or schema has."""
    return PREFIX + secrets.token_hex(6)


@contextlib.asynccontextmanager
async def scratch(dsn: str, name: str | None = None) -> AsyncGenerator[Scratch]:
    """Make a database on the server of *dsn*, with our tables, and drop it when the block ends.

    A role that may not create databases gets a schema in the database of *dsn*, and so does one
    that cannot connect to a database that it has created: a pooler, or pg_hba.conf, may know some
    databases only. However the block ends, by cancellation too, nothing is left; if it cannot be
    removed, the error says what to remove by hand. *name*: from `scratch_name`, for who wants to
    know it before.
    """
    name = name or scratch_name()
    async with contextlib.AsyncExitStack() as stack:
        async with connected(dsn) as session:
            stack.push_async_callback(_remove, dsn, name)  # from here on there may be something
            try:
                # Not of template1, which need not be empty, nor can be copied while it is in use.
                await _do(session, f"create database {name} template template0 encoding 'UTF8'")
                place, schema = make_conninfo(readable_dsn(dsn), dbname=name), DEFAULT_SCHEMA
            except psycopg.errors.InsufficientPrivilege:
                place, schema = dsn, name
            except psycopg.Error as exc:
                if exc.sqlstate is not None:  # the server has answered: nothing was made
                    stack.pop_all()
                raise
        if place != dsn and (why := await _closed(place)) is not None:
            await _remove(dsn, name)
            log.warning(
                "the database %s was created, and dropped again, as it cannot be connected to (%s);"
                " a schema of that name does instead, in the database that the DSN names. If the"
                " DSN leads to a pooler, give one that leads to the server itself",
                name,
                one_line(why),
            )
            place, schema = dsn, name
        session = await stack.enter_async_context(connected(place))
        if schema == name:
            await _do(session, f"create schema {name}")
        await _migrator.up(session, schema)
        yield Scratch(dsn=place, schema=schema, session=session)


async def _closed(dsn: str) -> str | None:
    """Return why this database cannot be connected to; None: it can."""
    try:
        async with connected(dsn):
            return None
    except (psycopg.Error, TransientError) as exc:
        return str(exc) or type(exc).__name__


async def _remove(dsn: str, name: str) -> None:
    """Drop whichever of the two there is; shielded."""
    statements = f"drop database if exists {name}", f"drop schema if exists {name} cascade"
    try:
        with trio.CancelScope(shield=True), trio.fail_after(PATIENCE):
            async with connected(dsn) as session:
                await _do(session, "set client_min_messages = warning")  # not "does not exist"
                try:
                    # Not by force at once: that wants rights over an autovacuum that is there,
                    # which the server ends by itself.
                    await _do(session, statements[0])
                except psycopg.errors.ObjectInUse:
                    await _do(session, f"{statements[0]} with (force)")
                await _do(session, statements[1])
    except (psycopg.Error, TransientError, trio.TooSlowError) as exc:
        why = str(exc).strip() or type(exc).__name__
        raise NurseryQueueError(
            f"what was made for this run could not be removed ({why}); remove it by hand, one of"
            f" these does it: {'; '.join(statements)}"
        ) from exc


async def _do(session: Connection, statement: str) -> None:
    await session.execute(statement.encode())
