"""Enqueuing in the transactions of other libraries' connections and sessions."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol, overload

from nursery_queue._client._client import Client
from nursery_queue._core._checks import whole
from nursery_queue._declare._app import App
from nursery_queue._declare._task_type import MAX_PARAMS_BYTES
from nursery_queue._pg._sql import DEFAULT_SCHEMA, checked_schema

from . import _psycopg_producer as _psycopg, _transaction_producer as _transaction
from ._producer import AsyncProducer, Producer
from ._statement_producer import Planner


class AsyncConnection(Protocol):
    """psycopg's and SQLAlchemy's async connections and sessions, and `Transaction`."""

    def execute(self, statement: Any, /) -> Awaitable[Any]: ...


class _Answer(Protocol):
    def fetchall(self) -> Any: ...


class SyncConnection(Protocol):
    """psycopg's and SQLAlchemy's sync connections and sessions."""

    def execute(self, statement: Any, /) -> _Answer: ...


class DjangoConnection(Protocol):
    """`django.db.connection`."""

    @property
    def alias(self) -> str: ...

    @property
    def vendor(self) -> str: ...


@overload
def producer(
    connection: AsyncConnection,
    *,
    schema: str = ...,
    max_params_bytes: int = ...,
    app: App | None = ...,
) -> AsyncProducer: ...


@overload
def producer(
    connection: SyncConnection | DjangoConnection,
    *,
    schema: str = ...,
    max_params_bytes: int = ...,
    app: App | None = ...,
) -> Producer: ...


def producer(
    connection: object,
    *,
    schema: str = DEFAULT_SCHEMA,
    max_params_bytes: int = MAX_PARAMS_BYTES,
    app: App | None = None,
) -> Producer | AsyncProducer:
    """Return a producer, which enqueues tasks in the transaction that is open on *connection*.

    It commits nothing. Costs next to nothing: make one where you need it, or keep it.

    Args:
        connection: A psycopg `Connection` or `AsyncConnection`; a SQLAlchemy `Session`,
            `AsyncSession`, `scoped_session`, `async_scoped_session`, `Connection` or
            `AsyncConnection` on psycopg; Django's `connection` or `connections[alias]`; a
            `Transaction`, which has its client's schema, limit and app.
        schema: Where the tables are.
        max_params_bytes: The largest params of one task, in bytes of JSON; 1,000,000.
        app: Whose declarations count for what is enqueued by name; None: what workers have stored.

    Raises:
        TypeError: *connection* is something else.
        ValueError: *schema* is no name of a schema, or *max_params_bytes* is out of its bounds.
    """
    planner = Planner(
        checked_schema(schema), whole(max_params_bytes, "max_params_bytes", minimum=2), app
    )
    if (made := _made_for(connection, planner)) is None:
        raise TypeError(_wrong(connection))
    return made


def _made_for(connection: object, planner: Planner) -> Producer | AsyncProducer | None:
    # Asked as `isinstance` does, so that a wrapper is taken for the connection it wraps. Only
    # the library that the connection comes from is imported.
    libraries = {kind.__module__.partition(".")[0] for kind in connection.__class__.__mro__}
    if "psycopg" in libraries:
        return _psycopg.made_for(connection, planner)
    if "sqlalchemy" in libraries:
        from . import _sqlalchemy_producer as _sqlalchemy  # noqa: PLC0415  # it need not be installed

        return _sqlalchemy.made_for(connection, planner)
    if "django" in libraries:
        from . import _django_producer as _django  # noqa: PLC0415  # it need not be installed

        return _django.made_for(connection, planner)
    return _transaction.made_for(connection, planner)


def _wrong(connection: object) -> str:
    if isinstance(connection, Client):
        return "a Client opens transactions of its own: use client.enqueue(), or tx.enqueue()"
    kind = type(connection)
    return (
        f"a producer needs an open connection or session, and {kind.__module__}."
        f"{kind.__qualname__} is none it knows. It takes: psycopg.Connection, "
        f"psycopg.AsyncConnection; SQLAlchemy's Session, AsyncSession, scoped_session, "
        f"async_scoped_session, Connection, AsyncConnection (not an Engine, not a sessionmaker); "
        f"django.db.connection, django.db.connections[alias]; nursery_queue.Transaction"
    )
