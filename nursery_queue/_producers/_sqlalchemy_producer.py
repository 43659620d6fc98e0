"""SQLAlchemy's sessions and connections; the async ones run the code of the others."""

from __future__ import annotations

import asyncio
import contextlib

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, LiteralString, TypeVarTuple

import attrs

from sqlalchemy import Connection, CursorResult
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from nursery_queue._pg._rows import Row
from nursery_queue._psycopg._database_errors import leaves_unknown, unknown

from . import _session_callbacks
from ._committed_call import plain
from ._connection_locks import lock_of
from ._producer import AsyncProducer, Producer
from ._psycopg_producer import is_alone
from ._statement_producer import AsyncStatementProducer, Planner, StatementProducer


Ts = TypeVarTuple("Ts")


def made_for(connection: object, planner: Planner) -> Producer | AsyncProducer | None:
    """Return a producer for a session or a connection of SQLAlchemy's."""
    match connection:
        case Session() | scoped_session():
            return SessionProducer(planner, connection)
        case Connection():
            return CoreProducer(planner, connection)
        case AsyncSession() | async_scoped_session():
            return AsyncSessionProducer(planner, connection)
        case AsyncConnection():
            return AsyncCoreProducer(planner, connection)
        case _:
            return None


def fetch(
    connection: Connection, statement: LiteralString, params: Mapping[str, Any], *, writes: bool
) -> Sequence[Row]:
    """Run *statement*; if it fails, the transaction is as it was before."""
    dialect = connection.dialect
    if dialect.driver != "psycopg":
        raise TypeError(
            f"tasks are enqueued with psycopg, and this engine's driver is {dialect.name}+"
            f"{dialect.driver}: create it with a URL that begins with postgresql+psycopg://"
        )
    driver: Any = connection.connection.driver_connection
    if is_alone(driver):
        with _truthful(driver) if writes else contextlib.nullcontext():
            return _execute(connection, statement, params).all()
    # A savepoint of our own, as one of the session would flush it, and one of the connection would
    # be streamed like its results.
    _execute(connection, "savepoint nursery_queue_producer")
    try:
        rows = _execute(connection, statement, params).all()
    except BaseException:
        with contextlib.suppress(SQLAlchemyError):  # the first error is raised
            _execute(connection, "rollback to savepoint nursery_queue_producer")
            _execute(connection, "release savepoint nursery_queue_producer")
        raise
    _execute(connection, "release savepoint nursery_queue_producer")
    return rows


def _execute(
    connection: Connection, statement: LiteralString, params: Mapping[str, Any] | None = None
) -> CursorResult[Any]:
    """Run *statement* with a cursor of the client, whatever is usual on *connection*."""
    at_once: dict[str, Any] = {"stream_results": False, "yield_per": None}
    return connection.exec_driver_sql(statement, params, execution_options=at_once)


@contextlib.contextmanager
def _truthful(driver: Any) -> Generator[None]:
    """Raise `CommitOutcomeUnknown` for a write that commits by itself and whose answer is lost."""
    try:
        yield
    except DBAPIError as exc:
        if exc.orig is None or not leaves_unknown(exc.orig, closed=driver.closed):
            raise
        raise unknown(exc.orig) from exc


@attrs.define(eq=False)
class CoreProducer(StatementProducer):
    """On a `Connection`."""

    _connection: Connection

    def _fetch(
        self, statement: LiteralString, params: Mapping[str, Any], *, writes: bool
    ) -> Sequence[Row]:
        return fetch(self._connection, statement, params, writes=writes)


@attrs.define(eq=False)
class SessionProducer(StatementProducer):
    """On a `Session`, or on that which a `scoped_session` stands for at each call."""

    _given: Session | scoped_session[Any]

    def after(self, fn: Callable[[*Ts], object], /, *args: *Ts) -> None:
        call = self._call(plain(fn), args)
        _session_callbacks.add(self._session(), call, on_asyncio=False)

    def _fetch(
        self, statement: LiteralString, params: Mapping[str, Any], *, writes: bool
    ) -> Sequence[Row]:
        return fetch(self._session().connection(), statement, params, writes=writes)

    def _session(self) -> Session:
        return self._given if isinstance(self._given, Session) else self._given()


@attrs.define(eq=False)
class AsyncCoreProducer(AsyncStatementProducer):
    """On an `AsyncConnection`."""

    _connection: AsyncConnection

    async def _fetch(
        self, statement: LiteralString, params: Mapping[str, Any], *, writes: bool
    ) -> Sequence[Row]:
        async with lock_of(self._connection, asyncio.Lock()):
            return await self._connection.run_sync(fetch, statement, params, writes=writes)


@attrs.define(eq=False)
class AsyncSessionProducer(AsyncStatementProducer):
    """On an `AsyncSession`, or on that which an `async_scoped_session` stands for at each call."""

    _given: AsyncSession | async_scoped_session[Any]

    def after(self, fn: Callable[[*Ts], object], /, *args: *Ts) -> None:
        call = self._call(fn, args)
        _session_callbacks.add(self._session().sync_session, call, on_asyncio=True)

    async def _fetch(
        self, statement: LiteralString, params: Mapping[str, Any], *, writes: bool
    ) -> Sequence[Row]:
        session = self._session()
        async with lock_of(session, asyncio.Lock()):
            return await session.run_sync(
                lambda inner: fetch(inner.connection(), statement, params, writes=writes)
            )

    def _session(self) -> AsyncSession:
        return self._given if isinstance(self._given, AsyncSession) else self._given()
