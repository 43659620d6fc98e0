"""Everywhere a transaction may be, so that one test can be held against all of them."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import inspect

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Mapping
from typing import Any, ClassVar, TypeVar

import attrs
import django.db
import psycopg
import sqlalchemy as sa
import trio

from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads
from psycopg.types.string import TextLoader
from sqlalchemy import exc
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

import nursery_queue as nq


T = TypeVar("T")
AS_DICTS: Any = dict_row


@attrs.define(eq=False)
class Side(abc.ABC):
    """A connection or session of somebody's, and what its owner does with it."""

    given: Any  # what a producer is made of

    errors: ClassVar[type[Exception]] = psycopg.Error

    async def call(self, verb: str, /, *args: Any, **kwargs: Any) -> Any:
        """Do something through a producer."""
        return await self.call_with({}, verb, *args, **kwargs)

    async def call_with(
        self, options: Mapping[str, Any], verb: str, /, *args: Any, **kwargs: Any
    ) -> Any:
        """Do something through a producer that was made with *options*."""
        producer: Any = nq.producer
        made = producer(self.given, **options)
        return await resolved(getattr(made, verb)(*args, **kwargs))

    async def enqueue(self, *args: Any, **kwargs: Any) -> nq.TaskRef:
        ref: nq.TaskRef = await self.call("enqueue", *args, **kwargs)
        return ref

    @abc.abstractmethod
    async def execute(self, statement: str) -> Any:
        """Run a statement of the owner's own."""

    async def commit(self) -> None:
        await resolved(self.given.commit())

    async def rollback(self) -> None:
        await resolved(self.given.rollback())


Scenario = Callable[[Side], Coroutine[Any, Any, T]]


@attrs.frozen
class World:
    """How to get a `Side`, and what runs its coroutines."""

    name: str
    open: Callable[[str], contextlib.AbstractAsyncContextManager[Side]]
    run: Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]

    def play(self, dsn: str, scenario: Scenario[T]) -> T:
        async def main() -> T:
            async with self.open(dsn) as side:
                return await scenario(side)

        result: T = self.run(main)
        return result


async def resolved(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


def blocking(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run what never waits, without an event loop: Django minds those."""
    coroutine = main()
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError


def on_asyncio(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(main())


# -- psycopg -------------------------------------------------------------------------


class Psycopg(Side):
    async def execute(self, statement: str) -> Any:
        cursor = await resolved(self.given.execute(statement.encode()))
        # In a pipeline what is not fetched is not waited for.
        return await resolved(cursor.fetchall()) if statement.startswith("select") else None


def make_odd(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
    """Have everything come in another way than is usual."""
    for kind in ("jsonb", "json", "timestamptz", "uuid"):
        connection.adapters.register_loader(kind, TextLoader)
    set_json_loads(lambda text: ["odd", text], connection)


@contextlib.asynccontextmanager
async def sync_psycopg(dsn: str, **options: Any) -> AsyncGenerator[Side]:
    with psycopg.connect(dsn, **options) as connection:
        yield Psycopg(connection)
        connection.rollback()


@contextlib.asynccontextmanager
async def odd_psycopg(dsn: str) -> AsyncGenerator[Side]:
    with psycopg.connect(dsn, row_factory=AS_DICTS, cursor_factory=psycopg.RawCursor) as connection:
        make_odd(connection)
        connection.execute("set timezone = 'Asia/Kathmandu'")
        connection.commit()
        yield Psycopg(connection)
        connection.rollback()


@contextlib.asynccontextmanager
async def begun_psycopg(dsn: str) -> AsyncGenerator[Side]:
    """Have no autocommit of psycopg's, but a transaction that somebody begins in words."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("begin")
        yield Psycopg(connection)
        connection.rollback()


@contextlib.asynccontextmanager
async def pipelined_psycopg(dsn: str) -> AsyncGenerator[Side]:
    with psycopg.connect(dsn) as connection:
        with connection.pipeline():
            yield Psycopg(connection)
        connection.rollback()


@contextlib.asynccontextmanager
async def async_psycopg(dsn: str) -> AsyncGenerator[Side]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        yield Psycopg(connection)
        await connection.rollback()


@contextlib.asynccontextmanager
async def odd_async_psycopg(dsn: str) -> AsyncGenerator[Side]:
    async with await psycopg.AsyncConnection.connect(
        dsn, row_factory=AS_DICTS, cursor_factory=psycopg.AsyncRawCursor
    ) as connection:
        make_odd(connection)
        yield Psycopg(connection)
        await connection.rollback()


@contextlib.asynccontextmanager
async def pipelined_async_psycopg(dsn: str) -> AsyncGenerator[Side]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        async with connection.pipeline():
            yield Psycopg(connection)
        await connection.rollback()


# -- ours ----------------------------------------------------------------------------


class Block(Side):
    """A transaction that is a block of code."""

    stack: contextlib.AsyncExitStack

    async def execute(self, statement: str) -> Any:
        cursor = await self.given.execute(statement)
        return await cursor.fetchall() if cursor.description else None

    async def commit(self) -> None:
        await self.stack.aclose()

    async def rollback(self) -> None:
        await self.stack.__aexit__(psycopg.Rollback, psycopg.Rollback(), None)


@contextlib.asynccontextmanager
async def own(dsn: str, *, connection: bool = False) -> AsyncGenerator[Side]:
    async with nq.connect(dsn) as client, contextlib.AsyncExitStack() as stack:
        tx = await stack.enter_async_context(client.transaction())
        side = Block(tx.connection if connection else tx)
        side.stack = stack
        yield side
        await side.rollback()


@contextlib.asynccontextmanager
async def own_connection(dsn: str) -> AsyncGenerator[Side]:
    async with own(dsn, connection=True) as side:
        yield side


# -- SQLAlchemy ----------------------------------------------------------------------


URL = "postgresql+psycopg://"


class SQLAlchemy(Side):
    errors: ClassVar[type[Exception]] = exc.DBAPIError

    async def execute(self, statement: str) -> Any:
        result = await resolved(self.given.execute(sa.text(statement)))
        return [tuple(row) for row in result] if result.returns_rows else None


def engine(dsn: str, **options: Any) -> sa.Engine:
    return sa.create_engine(URL, connect_args=conninfo_to_dict(dsn), poolclass=NullPool, **options)


@contextlib.asynccontextmanager
async def session(dsn: str) -> AsyncGenerator[Side]:
    with Session(engine(dsn)) as session:
        yield SQLAlchemy(session)


@contextlib.asynccontextmanager
async def scoped(dsn: str) -> AsyncGenerator[Side]:
    sessions = scoped_session(sessionmaker(engine(dsn)))
    yield SQLAlchemy(sessions)
    sessions.remove()


@contextlib.asynccontextmanager
async def core(dsn: str) -> AsyncGenerator[Side]:
    with engine(dsn).connect() as connection:
        yield SQLAlchemy(connection)


@contextlib.asynccontextmanager
async def async_core(dsn: str) -> AsyncGenerator[Side]:
    made = create_async_engine(URL, connect_args=conninfo_to_dict(dsn), poolclass=NullPool)
    async with made.connect() as connection:
        yield SQLAlchemy(connection)


@contextlib.asynccontextmanager
async def async_session(dsn: str) -> AsyncGenerator[Side]:
    made = create_async_engine(URL, connect_args=conninfo_to_dict(dsn), poolclass=NullPool)
    async with AsyncSession(made) as session:
        yield SQLAlchemy(session)


@contextlib.asynccontextmanager
async def async_scoped(dsn: str) -> AsyncGenerator[Side]:
    made = create_async_engine(URL, connect_args=conninfo_to_dict(dsn), poolclass=NullPool)
    sessions = async_scoped_session(async_sessionmaker(made), scopefunc=asyncio.current_task)
    yield SQLAlchemy(sessions)
    await sessions.remove()


# -- Django --------------------------------------------------------------------------


class Django(Side):
    errors: ClassVar[type[Exception]] = django.db.Error
    stack: contextlib.ExitStack

    async def execute(self, statement: str) -> Any:
        with self.given.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else None

    async def commit(self) -> None:
        self.stack.close()

    async def rollback(self) -> None:
        transaction.set_rollback(True)  # Django's own spelling
        self.stack.close()


@contextlib.contextmanager
def django_at(dsn: str) -> Generator[BaseDatabaseWrapper]:
    """Have Django's default connection lead to a database."""
    options = conninfo_to_dict(dsn)
    settings = connections.settings["default"]
    settings["NAME"] = options.pop("dbname")
    settings["OPTIONS"] = options
    try:
        yield connections["default"]
    finally:
        connections["default"].close()
        del connections["default"]


@contextlib.asynccontextmanager
async def atomic(dsn: str) -> AsyncGenerator[Side]:
    with django_at(dsn), contextlib.ExitStack() as stack:
        side = Django(django.db.connection)
        side.stack = stack
        stack.enter_context(transaction.atomic())
        yield side
        if django.db.connection.in_atomic_block:
            await side.rollback()


WORLDS = [
    World("psycopg", sync_psycopg, blocking),
    World("psycopg-odd", odd_psycopg, blocking),
    World("psycopg-begun", begun_psycopg, blocking),
    World("psycopg-pipeline", pipelined_psycopg, blocking),
    World("psycopg-async", async_psycopg, on_asyncio),
    World("psycopg-async-odd", odd_async_psycopg, on_asyncio),
    World("psycopg-async-pipeline", pipelined_async_psycopg, on_asyncio),
    World("nq-transaction", own, trio.run),
    World("nq-connection", own_connection, trio.run),
    World("sqlalchemy-session", session, blocking),
    World("sqlalchemy-scoped", scoped, blocking),
    World("sqlalchemy-core", core, blocking),
    World("sqlalchemy-async-session", async_session, on_asyncio),
    World("sqlalchemy-async-scoped", async_scoped, on_asyncio),
    World("sqlalchemy-async-core", async_core, on_asyncio),
    World("django", atomic, blocking),
]
