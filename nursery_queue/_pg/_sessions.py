"""The connections of one store: which there are, and how a verb borrows one."""

from __future__ import annotations

import contextlib
import functools
import logging

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any
from uuid import UUID

import attrs
import psycopg
import trio

from nursery_queue._core._errors import Closed, NotifyUnavailable, TransientError
from nursery_queue._psycopg._cancelling import expendable
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._database_errors import (
    CallTimeout,
    is_refusal,
    leaves_unknown,
    translated,
    translated_for_workers,
    unconnected,
    unknown,
)
from nursery_queue._psycopg._hosts import Address, Hosts
from nursery_queue._psycopg._isolation import READ_COMMITTED
from nursery_queue._psycopg._listener import NO_NOTIFICATIONS, Listener
from nursery_queue._psycopg._pool import Pool
from nursery_queue._psycopg._pooler import connect
from nursery_queue._psycopg._session_clock import SessionClock
from nursery_queue._store import Bell, Ring
from nursery_queue._trio._connection_use import connection_use

from ._rows import NamedRow, Row
from ._sql import DEFAULT_SCHEMA, checked_schema, query


log = logging.getLogger("nursery_queue")

# How many connections the application's part may have: so many, and with a worker as many more
# as it runs handlers, within bounds: four workers at the defaults leave room in the 100 places of
# a PostgreSQL as it comes. Handlers without a transaction need none of these
# (tests/engine/test_connections.py).
APPLICATION = 10
MOST_FOR_HANDLERS = 8
# Of an explicit number, the connections that the transactions of handlers leave to single
# statements, to transactions within transactions and to the application: a quarter, within bounds.
LEAST_KEPT = 2
# For claiming and settling, besides: however many transactions handlers hold open, the worker
# itself is never kept waiting. It has another one for its heartbeat, and one to listen.
CONTROL = 2
_LONGEST_ID = 20  # characters, and one more
CONTROL_CANCEL = 2.0  # seconds to cancel a statement of ours; then its connection is closed


@attrs.define(eq=False)
class Sessions:
    """The connections of an application, at most *pool_size*, and of its workers.

    None: 10, and as many more as workers run handlers at once, 8 at most for each. Workers add
    four: two to claim and settle, one for heartbeats, one to listen.
    """

    conninfo: str = attrs.field(repr=False)  # may hold a password
    schema: str = attrs.field(default=DEFAULT_SCHEMA, kw_only=True)
    pool_size: int | None = attrs.field(default=None, kw_only=True)
    call_timeout: float = attrs.field(default=30.0, kw_only=True)
    _hosts: Hosts = attrs.field(init=False)
    _pool: Pool = attrs.field(init=False)
    _control: Pool = attrs.field(init=False)
    _heartbeat: Pool = attrs.field(init=False)
    _registered: set[UUID] = attrs.field(factory=set[UUID], init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _pooled: bool = attrs.field(default=False, init=False)  # and the log says so

    def __attrs_post_init__(self) -> None:
        checked_schema(self.schema)
        most = APPLICATION if self.pool_size is None else self.pool_size
        # A connection that is found dead makes the others suspect: ask them before they are lent.
        make = functools.partial(
            Pool, self.conninfo, on_loss=self._doubt, on_demotion=self._demoted
        )
        self._hosts = Hosts(self._fell_silent)
        self._pool = make(max_size=most, kept=self._kept, connect=self._connect)
        self._control = make(max_size=CONTROL, connect=self._connect_to_control)
        self._heartbeat = make(max_size=1, connect=self._connect_to_control)

    async def aclose(self) -> None:
        """Close the connections. Using the store afterwards raises `Closed`."""
        self._closed = True
        with trio.CancelScope(shield=True):  # closing waits for no answer
            for pool in self._pools:
                await pool.aclose()

    @contextlib.contextmanager
    def room_for(self, handlers: int) -> Generator[int]:
        """Let the pool grow for so many handlers; yield how many may hold a transaction at once."""
        more = 0 if self.pool_size is not None else min(handlers, MOST_FOR_HANDLERS)
        self._pool.resize(self._pool.max_size + more, self._kept)
        try:
            yield min(handlers, more or self._pool.most_transactions())
        finally:
            self._pool.resize(self._pool.max_size - more, self._kept)

    async def listen(
        self,
        ring: Ring,
        bells: Sequence[Bell],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen as the protocol says, on a connection of its own.

        Raises `NotifyUnavailable` behind a pooler.
        """
        if self._closed:
            raise Closed("this store has been closed")
        channels = {channel_of(bell, self.schema): bell for bell in bells}

        def hear(channel: str, payload: bytes) -> None:
            bell = channels[channel]
            ring(bell, _task_id(payload) if bell is Bell.STREAM else None)

        with translated_for_workers():
            listener = await self._open_listener(channels)
            try:
                # Listening first and ringing after, so nothing falls in between.
                for bell in bells:
                    ring(bell)
                task_status.started()
                await listener.run(hear)
            finally:
                listener.close()

    # -- for the verbs -----------------------------------------------------------

    @property
    def _pools(self) -> tuple[Pool, ...]:
        return self._pool, self._control, self._heartbeat

    @property
    def _kept(self) -> int:
        if self.pool_size is None:
            return APPLICATION
        return min(APPLICATION, max(LEAST_KEPT, self.pool_size // 4))

    @property
    def _for_statements(self) -> Pool:
        """Return where a verb of the application gets its connection from."""
        use = connection_use.get()
        if self._pool.max_size == 1 and self._registered and use is not None:
            # A handler may hold the only one itself; a single statement does not keep us long.
            return self._control if use.open.get(self._pool) else self._pool
        return self._pool

    def _doubt(self) -> None:
        for pool in self._pools:
            pool.doubt()

    def _demoted(self, address: Address) -> None:
        """Leave a server that takes no writes any more, and look for the one that does."""
        self._hosts.failed(address)
        for pool in self._pools:
            pool.abandon(address, in_use=False)

    def _fell_silent(self, address: Address) -> None:
        """Give up connections to a server that is silent, now that another one is the primary."""
        left = sum(pool.abandon(address, in_use=True) for pool in self._pools)
        if left:
            log.warning("gave up %d connections to %s: it is silent", left, ":".join(address))

    async def _connect(self) -> Connection:
        conn = await connect(self.conninfo, self._hosts)
        if conn.pooled:  # then nothing may be set in the session, which is others' too
            self._warn_of_pooler()
            return conn
        conn.clock = SessionClock(f"{self.schema}.now")
        if conn.unusual:
            await self._set(conn, "pin_settings")
        return conn

    async def _connect_to_control(self) -> Connection:
        """Connect for our own statements alone: plans are kept to the ones that suit them."""
        conn = await self._connect()
        conn.cancel_timeout = CONTROL_CANCEL
        if not conn.pooled:
            await self._set(conn, "keep_to_indexes")
        return conn

    async def _set(self, conn: Connection, name: str) -> None:
        try:
            with expendable(conn):
                await conn.fetch(query(name, self.schema), {"once": False})
        except BaseException:
            conn.abort()
            raise

    async def _open_listener(self, channels: Iterable[str]) -> Listener:
        if self._pooled:
            raise NotifyUnavailable(NO_NOTIFICATIONS)
        try:
            return await Listener.open(self.conninfo, channels, self._hosts)
        except NotifyUnavailable:
            self._warn_of_pooler()
            raise

    def _warn_of_pooler(self) -> None:
        if not self._pooled:
            self._pooled = True
            log.warning(
                "a pooler stands between us and PostgreSQL: it passes no notifications on, so new"
                " tasks are found by polling alone; give workers a DSN that leads there directly"
            )

    async def _run(
        self,
        pool: Pool,
        name: str,
        params: Mapping[str, Any] | None = None,
        *,
        writes: bool = False,
    ) -> list[Row]:
        async with self._lent(pool, writes=writes) as conn:
            return await conn.fetch(query(name, self.schema), params)

    async def _read(self, name: str, params: Mapping[str, Any] | None = None) -> list[NamedRow]:
        """Run a read of the application's, and return its rows by the names of their columns."""
        async with self._lent(self._for_statements) as conn:
            return await conn.fetch_named(query(name, self.schema), params)

    @contextlib.asynccontextmanager
    async def _lent(
        self, pool: Pool, *, calls: int = 1, writes: bool = False, as_it_is: bool = False
    ) -> AsyncGenerator[Connection]:
        """Lend a connection for a verb, which may take the time of that many *calls*.

        *writes*: it is one statement, which commits by itself and is not to be repeated
        blindly. If its answer is lost, `CommitOutcomeUnknown` is raised. *as_it_is*: it cannot be
        part of a transaction.
        """
        translating = translated if pool is self._pool else translated_for_workers
        seconds, lent, sent = calls * self.call_timeout, False, False
        with translating():
            with trio.move_on_after(seconds) as limit:
                async with pool.connection() as conn:
                    lent = True
                    try:
                        usual = as_it_is or not (conn.pooled and conn.unusual)
                        async with nullcontext() if usual else self._as_usual(conn):
                            yield conn
                    except trio.Cancelled:
                        sent = conn.closed  # else it was answered, or never sent
                        raise
                    except psycopg.Error as exc:
                        if writes and leaves_unknown(exc, closed=conn.closed):
                            raise unknown(exc) from exc
                        if is_refusal(exc):  # a new one may fare better, as after a migration
                            conn.abort()
                        raise
            if limit.cancelled_caught and not lent:
                raise unconnected(f"no connection within {seconds:g} s: {pool.shortage()}")
            if limit.cancelled_caught:
                raise _no_answer(seconds, unsure=writes and sent)

    @contextlib.asynccontextmanager
    async def _as_usual(self, conn: Connection) -> AsyncGenerator[None]:
        """Let our own statements run as they do elsewhere, also if the role has other defaults.

        In a session of our own that is set already. Behind a pooler it is set for one transaction:
        then a verb takes more round trips.
        """
        async with conn.transaction():
            await conn.execute(READ_COMMITTED)
            await conn.fetch(query("pin_settings", self.schema), {"once": True})
            yield


def _no_answer(seconds: float, *, unsure: bool) -> Exception:
    msg = f"the database gave no answer within {seconds:g} s"
    if unsure:
        return unknown(CallTimeout(f"{msg}; it was closed"))
    return TransientError(msg)


def _task_id(payload: bytes) -> int | None:
    """Read a payload that any session may have sent: an id, or else nothing."""
    return int(payload) if len(payload) < _LONGEST_ID and payload.isdigit() else None


def channel_of(bell: Bell, schema: str) -> str:
    """Return the name of the NOTIFY channel that rings *bell*."""
    return schema if bell is Bell.WORK else f"{schema}_{bell.name.lower()}"
