"""Tells a session the time, when a test's clock rules."""

from __future__ import annotations

import datetime as dt

from collections.abc import Generator
from typing import Any, TypeVar

import attrs

from psycopg import AsyncConnection, pq
from psycopg.abc import PQGen

from nursery_queue._trio._clock import timekeeper


T = TypeVar("T")

_IDLE, _INTRANS = pq.TransactionStatus.IDLE, pq.TransactionStatus.INTRANS


@attrs.define(eq=False)
class SessionClock:
    """Keeps the session variable that `now()` in SQL reads in step with the clock of the test.

    Without such a clock it does nothing.
    """

    variable: str
    _told: dt.datetime | None = attrs.field(default=None, init=False)

    def before(self, conn: AsyncConnection[Any], gen: PQGen[T]) -> PQGen[T]:
        """Return the generator to run instead of *gen*."""
        keeper = timekeeper.get()
        return gen if keeper is None else self._tell(conn, keeper.now(), gen)

    def _tell(self, conn: AsyncConnection[Any], now: dt.datetime, gen: PQGen[T]) -> PQGen[T]:
        status = conn.pgconn.transaction_status
        # A rollback, to a savepoint too, takes the variable back: so in a transaction it is set
        # before every statement. Outside of one a SET costs a round trip only when the time has
        # moved.
        if status == _INTRANS or (status == _IDLE and now != self._told):
            self._told = None
            command = f"set {self.variable} = '{now.isoformat()}'".encode()
            yield from conn._exec_command(command)  # pyright: ignore[reportPrivateUsage]  # a test knows
            if status == _IDLE:
                self._told = now
        return (yield from gen)


def nothing() -> Generator[Any, Any, None]:
    """Ask the server for nothing."""
    yield from ()
