"""A connection that listens, and knows whether it still hears anything."""

from __future__ import annotations

import math

from typing import TYPE_CHECKING

import psycopg
import trio

from psycopg import sql

from ._connection import Connection
from ._notifications import wait_for_input
from ._waiting import guarded


if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Self

    from psycopg.pq import PGnotify

_LONGEST_NAME = 63  # bytes; the server would cut off the rest


class Listener:
    """LISTENs on a connection of its own; hears channel names, never payloads.

    An empty query now and then proves that the peer is alive. PostgreSQL sends a backend's
    pending notifications before the end of a query's answer, so an answer also proves that
    every notification committed before the question has been delivered.
    """

    def __init__(self, conn: Connection, channels: Iterable[str]) -> None:
        self.connection = conn
        encoding = conn.info.encoding
        self._names = {_checked(name).encode(encoding): name for name in channels}
        self._heard: list[str] = []
        self._asked = 0  # questions sent and answered; at most one is under way
        self._answered = 0
        self._asked_at = -math.inf
        self._news = trio.lowlevel.ParkingLot()
        # Raw: psycopg's own handler decodes the payload, and would fail on one it cannot.
        conn.pgconn.notify_handler = self._hear

    @classmethod
    async def open(cls, conninfo: str, channels: Iterable[str]) -> Self:
        """Connect and LISTEN; what is committed after this returns will be heard."""
        conn = await Connection.connect(conninfo)
        try:
            listener = cls(conn, channels)
            await conn.execute(
                sql.SQL("; ").join(
                    sql.SQL("LISTEN {}").format(sql.Identifier(name))
                    for name in listener._names.values()
                )
            )
        except BaseException:
            conn.abort()
            raise
        return listener

    async def run(
        self,
        on_notify: Callable[[str], object],
        *,
        probe_every: float = 10.0,
        probe_timeout: float = 5.0,
    ) -> None:
        """Call *on_notify* with the channel's name for each notification, for ever.

        Raises `psycopg.OperationalError` when the connection dies, or has been silent for
        *probe_every* seconds and then does not answer within *probe_timeout*. When it
        ends, for whatever reason, the connection is closed.
        """
        try:
            async with self.connection.lock:
                due = trio.current_time() + probe_every
                while True:
                    self._read(on_notify)
                    if await self._readable(due):
                        due = trio.current_time() + probe_every
                    elif self._asked == self._answered:
                        self.ask()
                        due = trio.current_time() + probe_timeout
                    elif (last_chance := self._asked_at + probe_timeout) > trio.current_time():
                        due = last_chance
                    else:
                        msg = f"the LISTEN connection did not answer within {probe_timeout:g} s"
                        raise psycopg.OperationalError(msg)
        finally:
            self.close()

    def ask(self) -> int:
        """Send an empty query, unless one is under way; `answered()` takes the number returned.

        Never blocks.
        """
        pgconn = self.connection.pgconn
        if self._asked == self._answered:
            pgconn.send_query(b"")
            if pgconn.flush():
                msg = "the LISTEN connection takes no more data: the peer is gone"
                raise psycopg.OperationalError(msg)
            self._asked += 1
            self._asked_at = trio.current_time()
        return self._asked

    async def answered(self, question: int) -> None:
        """Wait until `run()` has read the answer; raises if the connection dies first."""
        while self._answered < question:
            if self.connection.closed:
                msg = "the LISTEN connection was closed"
                raise psycopg.OperationalError(msg)
            with guarded():
                await self._news.park()

    def close(self) -> None:
        """Close the connection; `run()` then raises. May be called again."""
        self.connection.abort()
        self._news.unpark_all()

    def _hear(self, notify: PGnotify) -> None:
        name = self._names.get(notify.relname)
        if name is not None:
            self._heard.append(name)

    def _read(self, on_notify: Callable[[str], object]) -> None:
        """Handle all that has arrived, in the order in which the server sent it."""
        pgconn = self.connection.pgconn
        self._deliver(on_notify)
        while self._asked != self._answered and not pgconn.is_busy():
            if pgconn.get_result() is None:
                self._deliver(on_notify)  # first: the answer vouches for them
                self._answered = self._asked
                self._news.unpark_all()

    def _deliver(self, on_notify: Callable[[str], object]) -> None:
        pgconn = self.connection.pgconn
        while notify := pgconn.notifies():
            self._hear(notify)
        heard, self._heard = self._heard, []
        for name in heard:
            on_notify(name)

    async def _readable(self, deadline: float) -> bool:
        """Read what arrives until *deadline*; tell whether something did."""
        with trio.CancelScope(deadline=deadline):
            await wait_for_input(self.connection.pgconn)
            return True
        return False


def _checked(channel: str) -> str:
    size = len(channel.encode())
    if not 0 < size <= _LONGEST_NAME or "\0" in channel:
        msg = f"a channel's name must have 1 to {_LONGEST_NAME} bytes, not {channel!r}"
        raise ValueError(msg)
    return channel
