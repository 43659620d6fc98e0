"""A connection that listens, and knows whether it still hears anything."""

from __future__ import annotations

import contextlib
import math

from collections.abc import Callable, Iterable
from typing import Self

import psycopg
import trio

from psycopg import sql
from psycopg.pq import PGnotify

from nursery_queue._core._errors import NotifyUnavailable
from nursery_queue._trio._clock import held, upkeep_after, watched

from ._connection import Connection
from ._hosts import Hosts
from ._notifications import wait_for_input
from ._pooler import connect


NO_NOTIFICATIONS = "a pooler stands between us and PostgreSQL: it passes no notifications on"
_LONGEST_NAME = 63  # bytes; the server would cut off the rest


class Listener:
    """LISTENs on a connection of its own; hears names of channels, with payloads as raw bytes.

    An empty query now and then proves that the peer is alive. PostgreSQL sends a backend's
    pending notifications before the end of a query's answer, so an answer also proves that
    every notification committed before the question has been delivered.
    """

    def __init__(self, conn: Connection, channels: Iterable[str]) -> None:
        self.connection = conn
        self._names = {_checked(name).encode(): name for name in channels}
        self._heard: list[tuple[str, bytes]] = []
        self._asked = 0  # questions sent and answered; at most one is under way
        self._answered = 0
        self._asked_at = -math.inf
        self._answers = trio.lowlevel.ParkingLot()  # calls that wait for one
        # Raw: psycopg's own handler decodes the payload, and would fail on one it cannot.
        conn.pgconn.notify_handler = self._hear

    @classmethod
    async def open(cls, conninfo: str, channels: Iterable[str], hosts: Hosts | None = None) -> Self:
        """Connect and LISTEN; a notification committed after this returns will be heard.

        Raises `NotifyUnavailable` behind a pooler: the session that listens would be another
        client's the next moment. Cancelled, it leaves nothing open.
        """
        conn = await connect(conninfo, hosts)
        # Cancelled, it is closed at once: to open a new one costs less than to cancel and drain it.
        conn.cancel_timeout = 0.0
        if conn.pooled:
            conn.abort()
            raise NotifyUnavailable(NO_NOTIFICATIONS)
        try:
            listener = cls(conn, channels)
            await conn.execute(
                sql.SQL("; ").join(
                    sql.SQL("LISTEN {}").format(sql.Identifier(name))
                    for name in listener._names.values()
                )
                # A listener says nothing for hours: a role's timeout would end it again and again.
                + sql.SQL("; SET idle_session_timeout = 0")
            )
        except BaseException:
            conn.abort()
            raise
        return listener

    async def run(
        self,
        on_notify: Callable[[str, bytes], object],
        *,
        probe_every: float = 10.0,
        probe_timeout: float = 5.0,
    ) -> None:
        """Call *on_notify* with channel and payload of each notification, for ever.

        Raises `psycopg.OperationalError` when the connection dies, or has been silent for
        *probe_every* seconds and then does not answer within *probe_timeout*. When it
        ends, for whatever reason, the connection is closed.
        """
        try:
            with watched(self):
                await self._run(on_notify, probe_every, probe_timeout)
        finally:
            self.close()

    async def _run(
        self, on_notify: Callable[[str, bytes], object], probe_every: float, probe_timeout: float
    ) -> None:
        # A listener that has died without a word hears nothing, as one on a quiet night does
        # (failures.md F1): so it asks when it was silent for `probe_every`. TCP keepalive does not
        # see a middlebox that acknowledges and forwards nothing.
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

    def ask(self) -> int:
        """Send an empty query, unless one is under way; `answered()` takes the number returned.

        Never blocks.
        """
        pgconn = self.connection.pgconn
        if self._asked == self._answered:
            # An empty query opens no transaction: the session stays idle, and pins no snapshot.
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
                raise psycopg.OperationalError("the LISTEN connection was closed")
            await self._answers.park()

    async def flushed(self) -> None:
        """Wait until every notification committed before this call has been heard, or cannot be."""
        with contextlib.suppress(psycopg.OperationalError):
            # A question under way may have been asked before that commit, and proves nothing of it.
            await self.answered(self._asked)
            await self.answered(self.ask())

    def close(self) -> None:
        """Close the connection; `run()` then raises. May be called again."""
        self.connection.abort()
        self._answers.unpark_all()

    def _hear(self, notify: PGnotify) -> None:
        name = self._names.get(notify.relname)
        if name is not None:
            self._heard.append((name, notify.extra))

    def _read(self, on_notify: Callable[[str, bytes], object]) -> None:
        """Handle all that has arrived, in the order in which the server sent it."""
        pgconn = self.connection.pgconn
        self._deliver(on_notify)
        while self._asked != self._answered and not pgconn.is_busy():
            if pgconn.get_result() is None:
                self._deliver(on_notify)  # first: the answer vouches for them
                self._answered = self._asked
                self._answers.unpark_all()

    def _deliver(self, on_notify: Callable[[str, bytes], object]) -> None:
        pgconn = self.connection.pgconn
        # psycopg gives the ones that came along with an answer to the handler; these came alone.
        while notify := pgconn.notifies():
            self._hear(notify)
        heard, self._heard = self._heard, []
        for name, payload in heard:
            on_notify(name, payload)

    async def _readable(self, deadline: float) -> bool:
        """Read until *deadline*, and return as soon as something came; tell whether it did."""
        # The clock goes on between two looks at it, and none of the timers takes less than nothing.
        left = max(0.0, deadline - trio.current_time())
        if self._asked == self._answered:
            # A test's clock asks before it moves, if there is a reason to: it need not for this.
            with upkeep_after(left, eager=False):
                await wait_for_input(self.connection.pgconn)
                return True
        else:
            with trio.move_on_after(left), held():
                await wait_for_input(self.connection.pgconn)
                return True
        return False


def _checked(channel: str) -> str:
    fits = 0 < len(channel) <= _LONGEST_NAME and channel.isascii()
    if not fits or "\0" in channel:
        msg = f"a channel's name must be 1 to {_LONGEST_NAME} bytes of ASCII, not {channel!r}"
        raise ValueError(msg)
    return channel
