"""A bounded pool of connections."""

from __future__ import annotations

import contextlib

from collections import deque
from typing import TYPE_CHECKING

import attrs
import psycopg
import trio

from psycopg import pq
from psycopg.errors import ReadOnlySqlTransaction

from nursery_queue._core._errors import Closed

from ._cancelling import expendable
from ._connection import Connection
from ._errors import PoolTimeout
from ._pooler import connect
from ._waiting import READ, ready_now


if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable

_IDLE = pq.TransactionStatus.IDLE
_OPEN_TRANSACTION = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

PING_TIMEOUT = 5.0  # seconds an idle connection has to answer before we open another


@attrs.frozen
class PoolStats:
    """What a pool has done so far and holds now."""

    opened: int
    lost: int  # found dead, or came back unusable
    retired: int  # too old or idle for too long
    idle: int
    in_use: int
    waiting: int
    reserved: int


@attrs.define(eq=False)
class Pool:
    """At most *max_size* connections, lent in the order in which they were asked for.

    Nothing runs in the background: connections are opened when needed, and looked after
    when they are lent and when they come back. Times are in seconds.
    *connect* opens a connection, in autocommit mode; by default one to *conninfo*.
    """

    conninfo: str = attrs.field(repr=False)  # may hold a password
    max_size: int = attrs.field(default=4, kw_only=True, validator=attrs.validators.ge(1))
    max_lifetime: float = attrs.field(default=3600.0, kw_only=True)
    max_idle: float = attrs.field(default=600.0, kw_only=True)
    ping_after: float = attrs.field(default=30.0, kw_only=True)
    checkout_timeout: float = attrs.field(default=30.0, kw_only=True)
    connect: Callable[[], Awaitable[Connection]] | None = attrs.field(default=None, kw_only=True)

    _free: int = attrs.field(init=False)  # slots nobody holds
    _in_use: int = attrs.field(default=0, init=False)
    _reserved: int = attrs.field(default=0, init=False)
    _queue: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    # Since when idle, and the connection; the one used last is lent first.
    _idle: deque[tuple[float, Connection]] = attrs.field(
        factory=deque[tuple[float, Connection]], init=False
    )
    _born: dict[Connection, float] = attrs.field(factory=dict[Connection, float], init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _opened: int = attrs.field(default=0, init=False)
    _lost: int = attrs.field(default=0, init=False)
    _retired: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self._free = self.max_size

    @property
    def stats(self) -> PoolStats:
        return PoolStats(
            opened=self._opened,
            lost=self._lost,
            retired=self._retired,
            idle=len(self._idle),
            in_use=self._in_use,
            waiting=len(self._queue),
            reserved=self._reserved,
        )

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[Connection]:
        """Lend a connection; an open transaction is rolled back when it comes back.

        Waits at most `checkout_timeout` and raises `PoolTimeout` then, `Closed` once the
        pool is closed. A failure to connect is raised at once: trying again is up to you.
        """
        conn = await self._checkout()
        try:
            yield conn
        except ReadOnlySqlTransaction:
            conn.abort()  # a primary that has become a standby: look for the new one
            raise
        finally:
            await self._checkin(conn)

    async def reserve(self, slots: int) -> None:
        """Take *slots* out of general use, waiting for them in line like everybody else.

        Connections opened elsewhere then stay within the same total. Cancelled, it has
        taken none; raises `Closed` once the pool is closed.
        """
        if slots < 0 or self._reserved + slots >= self.max_size:
            msg = (
                f"cannot reserve {slots} of {self.max_size} connections, {self._reserved} "
                "are reserved already: at least one must stay in general use"
            )
            raise ValueError(msg)
        self._reserved += slots
        taken = 0
        try:
            while taken < slots:
                await self._take_slot()
                taken += 1
        except BaseException:
            self._reserved -= slots
            self._give_slots(taken)
            raise
        while len(self._idle) > self._free:
            self._retire(self._idle.popleft()[1])

    def unreserve(self, slots: int) -> None:
        """Give reserved *slots* back to general use."""
        if not 0 <= slots <= self._reserved:
            msg = f"cannot give back {slots} connections: {self._reserved} are reserved"
            raise ValueError(msg)
        self._reserved -= slots
        self._give_slots(slots)

    async def aclose(self) -> None:
        """Close idle connections now and those in use when they come back.

        Whoever waits for a connection, or asks for one later, gets `Closed`. All is done
        before the first checkpoint; may be called again.
        """
        self._closed = True
        while self._idle:
            self._retire(self._idle.pop()[1])
        self._queue.unpark_all()
        await trio.lowlevel.checkpoint()

    # -- slots: the right to hold a connection ---------------------------------------

    async def _take_slot(self) -> None:
        self._refuse_if_closed()
        if self._free:  # then nobody is waiting
            self._free -= 1
            return
        await self._queue.park()  # whoever wakes us leaves us a slot, or has closed the pool
        self._refuse_if_closed()

    def _give_slots(self, slots: int) -> None:
        for _ in range(slots):
            if self._queue:
                self._queue.unpark()
            else:
                self._free += 1

    def _refuse_if_closed(self) -> None:
        if self._closed:
            msg = "this pool is closed"
            raise Closed(msg)

    # -- lending ---------------------------------------------------------------------

    async def _checkout(self) -> Connection:
        with trio.move_on_after(self.checkout_timeout):
            await self._take_slot()
            self._in_use += 1
            try:
                return await self._find()
            except BaseException:
                self._in_use -= 1
                self._give_slots(1)
                raise
        msg = (
            f"no connection within {self.checkout_timeout:g} s: "
            f"{self._in_use} of {self.max_size} are in use, {self._reserved} reserved"
        )
        raise PoolTimeout(msg)

    async def _find(self) -> Connection:
        """Return a connection that answers: an idle one, or a new one."""
        self._retire_stale()
        while self._idle:
            since, conn = self._idle.pop()
            try:
                if await self._answers(conn, since):
                    return conn
            except BaseException:
                self._lose(conn)
                raise
            self._lose(conn)
        await trio.lowlevel.checkpoint_if_cancelled()
        conn = await self._connect()
        self._opened += 1
        self._born[conn] = trio.current_time()
        if self._closed:
            self._retire(conn)
            self._refuse_if_closed()
        return conn

    async def _connect(self) -> Connection:
        if self.connect is not None:
            return await self.connect()
        return await connect(self.conninfo)

    async def _answers(self, conn: Connection, since: float) -> bool:
        # An idle connection has nothing to say: if there is something, it is a goodbye.
        if conn.closed or ready_now(conn.pgconn.socket, READ):
            return False
        if trio.current_time() - since < self.ping_after:
            return True
        with expendable(conn), trio.move_on_after(PING_TIMEOUT):
            try:
                await conn.execute("")
            except psycopg.Error:
                return False
            return True
        return False

    async def _checkin(self, conn: Connection) -> None:
        try:
            if conn.pgconn.transaction_status in _OPEN_TRANSACTION:
                with contextlib.suppress(psycopg.Error):
                    await conn.rollback()  # shielded and bounded
            self._take_back(conn)
        finally:
            self._in_use -= 1
            self._give_slots(1)
        self._retire_stale()

    def _take_back(self, conn: Connection) -> None:
        now = trio.current_time()
        if not _as_new(conn):
            self._lose(conn)
        elif self._closed or now - self._born[conn] >= self.max_lifetime:
            self._retire(conn)
        else:
            self._idle.append((now, conn))

    def _retire_stale(self) -> None:
        now = trio.current_time()
        for entry in list(self._idle):
            since, conn = entry
            if now - since >= self.max_idle or now - self._born[conn] >= self.max_lifetime:
                self._idle.remove(entry)
                self._retire(conn)

    def _retire(self, conn: Connection) -> None:
        self._retired += 1
        self._forget(conn)

    def _lose(self, conn: Connection) -> None:
        self._lost += 1
        self._forget(conn)

    def _forget(self, conn: Connection) -> None:
        del self._born[conn]
        conn.abort()


def _as_new(conn: Connection) -> bool:
    return (
        not conn.closed
        and conn.pgconn.transaction_status == _IDLE
        and not conn.pgconn.pipeline_status
        and conn.autocommit  # else the next user's statements would never be committed
    )
