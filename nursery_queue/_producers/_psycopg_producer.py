"""psycopg's own connections: blocking, on asyncio, and ours on trio.

All send their statements by one coroutine; on a blocking connection that never has to wait, so
that it is run like a function.
"""

from __future__ import annotations

import contextlib
import threading

from collections.abc import Coroutine, Generator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from typing import Any, LiteralString, Protocol, TypeVar

import attrs
import psycopg

from psycopg.pq import PipelineStatus, TransactionStatus

from nursery_queue._pg._rows import Row
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._cursors import OwnAsyncCursor, OwnCursor
from nursery_queue._psycopg._database_errors import leaves_unknown, unknown

from ._connection_locks import lock_of
from ._producer import AsyncProducer, Producer
from ._statement_producer import AsyncStatementProducer, Planner, StatementProducer


T = TypeVar("T")
Params = Mapping[str, Any] | None


def made_for(connection: Any, planner: Planner) -> Producer | AsyncProducer | None:
    """Return a producer for a connection of psycopg's."""
    kind = connection.__class__
    if issubclass(kind, psycopg.Connection):
        return SyncPsycopg(planner, connection)
    if issubclass(kind, Connection):
        return AsyncPsycopg(planner, connection, _TrioWire(connection))
    if issubclass(kind, psycopg.AsyncConnection):
        return AsyncPsycopg(planner, connection, _AsyncWire(connection))
    return None


def is_alone(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    """Whether a statement would be a transaction by itself: no savepoint is needed."""
    idle = connection.pgconn.transaction_status == TransactionStatus.IDLE
    return idle and connection.autocommit


class _Wire(Protocol):
    """How statements are sent on a kind of connection."""

    @property
    def connection(self) -> psycopg.Connection[Any] | psycopg.AsyncConnection[Any]: ...

    async def is_alone(self) -> bool: ...

    async def execute(self, statement: LiteralString, params: Params = None) -> list[Row]: ...

    async def mark(self, statement: LiteralString) -> None:
        """Run a statement about a savepoint; on trio not even cancelling stops it."""


@contextlib.contextmanager
def truthful(
    connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
) -> Generator[None]:
    """Raise `CommitOutcomeUnknown` for a write that commits by itself and whose answer is lost."""
    try:
        yield
    except psycopg.Error as exc:
        if not leaves_unknown(exc, closed=connection.closed):
            raise
        raise unknown(exc) from exc


async def _in_savepoint(
    wire: _Wire, statement: LiteralString, params: Mapping[str, Any], *, writes: bool
) -> list[Row]:
    """Run *statement*; if it fails, the transaction is as it was before.

    Without autocommit the first savepoint has psycopg begin a transaction, which stays open.
    """
    if await wire.is_alone():
        with truthful(wire.connection) if writes else contextlib.nullcontext():
            return await wire.execute(statement, params)
    await wire.mark("savepoint nursery_queue_producer")
    try:
        rows = await wire.execute(statement, params)
    except BaseException:
        with contextlib.suppress(psycopg.Error):  # the first error is raised
            await wire.mark("rollback to savepoint nursery_queue_producer")
            await wire.mark("release savepoint nursery_queue_producer")
        raise
    await wire.mark("release savepoint nursery_queue_producer")
    return rows


@attrs.define(eq=False)
class SyncPsycopg(StatementProducer):
    """On a `psycopg.Connection`."""

    _connection: psycopg.Connection[Any]

    def _fetch(
        self, statement: LiteralString, params: Mapping[str, Any], *, writes: bool
    ) -> list[Row]:
        wire = _SyncWire(self._connection)
        with lock_of(self._connection, threading.Lock()):
            return _without_waiting(_in_savepoint(wire, statement, params, writes=writes))


@attrs.frozen
class _SyncWire:
    connection: psycopg.Connection[Any]

    async def is_alone(self) -> bool:
        with self._synced(), self.connection.lock:  # no statement is under way
            return is_alone(self.connection)

    async def execute(self, statement: LiteralString, params: Params = None) -> list[Row]:
        with OwnCursor(self.connection) as cursor:
            with self._synced():
                cursor.run(statement, params)
            return cursor.fetchall() if cursor.description else []

    async def mark(self, statement: LiteralString) -> None:
        await self.execute(statement)

    def _synced(self) -> AbstractContextManager[object]:
        """Return a block that reads all answers at both ends, should there be a pipeline."""
        return self.connection.pipeline() if _is_pipelined(self.connection) else nullcontext()


@attrs.define(eq=False)
class AsyncPsycopg(AsyncStatementProducer):
    """On a `psycopg.AsyncConnection`, on asyncio, or on that of a `Transaction`, on trio."""

    _connection: psycopg.AsyncConnection[Any]
    _wire: _Wire

    async def _fetch(
        self, statement: LiteralString, params: Mapping[str, Any], *, writes: bool
    ) -> list[Row]:
        # The connection's own lock is of the kind that its event loop wants.
        async with lock_of(self._connection, type(self._connection.lock)()):
            return await _in_savepoint(self._wire, statement, params, writes=writes)


@attrs.frozen
class _AsyncWire:
    connection: psycopg.AsyncConnection[Any]

    async def is_alone(self) -> bool:
        async with self._synced(), self.connection.lock:  # no statement is under way
            return is_alone(self.connection)

    async def execute(self, statement: LiteralString, params: Params = None) -> list[Row]:
        async with OwnAsyncCursor(self.connection) as cursor:
            async with self._synced():
                await cursor.run(statement, params)
            return await cursor.fetchall() if cursor.description else []

    async def mark(self, statement: LiteralString) -> None:
        await self.execute(statement)

    def _synced(self) -> AbstractAsyncContextManager[object]:
        """Return a block that reads all answers at both ends, should there be a pipeline."""
        return self.connection.pipeline() if _is_pipelined(self.connection) else nullcontext()


@attrs.frozen
class _TrioWire(_AsyncWire):
    connection: Connection

    async def mark(self, statement: LiteralString) -> None:
        with self.connection.finishing(statement):
            await self.execute(statement)


def _is_pipelined(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    return connection.pgconn.pipeline_status != PipelineStatus.OFF


def _without_waiting(course: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never waits."""
    try:
        course.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError
