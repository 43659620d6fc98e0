"""Django's database connections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, LiteralString, TypeVarTuple

import attrs

from django.db import Error, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.connection import ConnectionProxy

from nursery_queue._pg._rows import Row
from nursery_queue._psycopg._database_errors import leaves_unknown, unknown

from ._committed_call import plain
from ._producer import Producer
from ._statement_producer import Planner, StatementProducer


Ts = TypeVarTuple("Ts")


def made_for(connection: Any, planner: Planner) -> Producer | None:
    """Return a producer for `django.db.connection` or one of `connections`."""
    if not issubclass(connection.__class__, BaseDatabaseWrapper | ConnectionProxy):
        return None
    vendor, alias = getattr(connection, "vendor", None), getattr(connection, "alias", None)
    if alias is None:  # the proxy of a cache, perhaps
        return None
    if vendor != "postgresql":
        raise TypeError(
            f"tasks are in PostgreSQL, and Django's database {alias!r} is {vendor}: give the "
            f"connections[alias] of one whose ENGINE is django.db.backends.postgresql"
        )
    return DjangoProducer(planner, alias)


@attrs.define(eq=False)
class DjangoProducer(StatementProducer):
    """On the connection that Django has under an alias in the thread of each call."""

    _alias: str

    def after(self, fn: Callable[[*Ts], object], /, *args: *Ts) -> None:
        call = self._call(plain(fn), args)
        transaction.on_commit(call.here, using=self._alias, robust=True)

    def _fetch(
        self, statement: LiteralString, params: Mapping[str, Any], *, writes: bool
    ) -> Sequence[Row]:
        connection = connections[self._alias]
        commits = writes and connection.get_autocommit() and not connection.in_atomic_block
        complete = False
        try:
            # Inside of another one it is a savepoint.
            with transaction.atomic(using=self._alias), connection.cursor() as cursor:
                cursor.execute(statement, params)
                rows: Sequence[Row] = cursor.fetchall()
                complete = True
        except Error as exc:
            cause = exc.__cause__ or exc
            if not (commits and complete and leaves_unknown(cause, closed=True)):
                raise
            raise unknown(cause) from exc  # COMMIT was under way
        return rows
