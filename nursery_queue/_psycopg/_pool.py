"""A bounded pool of connections."""

from __future__ import annotations

import contextlib
import logging
import math
import random

from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable

import attrs
import psycopg
import trio

from psycopg import pq
from psycopg.errors import ReadOnlySqlTransaction, TooManyConnections

from nursery_queue._core._error_text import one_line
from nursery_queue._trio._connection_use import ConnectionUse, connection_use, noting_cancellation
from nursery_queue._trio._rng import new_rng

from ._cancelling import expendable
from ._connection import Connection
from ._connection_slots import FIRST, FIRST_OF_ATTEMPT, SINGLE, ConnectionSlots
from ._database_errors import NotConnected, PoolTimeout, is_transient
from ._hosts import Address, peer_of
from ._pooler import connect
from ._waiting import READ, ready_now


log = logging.getLogger("nursery_queue")

_IDLE = pq.TransactionStatus.IDLE
_OPEN_TRANSACTION = (pq.TransactionStatus.INTRANS, pq.TransactionStatus.INERROR)

PING_TIMEOUT = 5.0  # seconds an idle connection has to answer before we open another
FULL_PAUSE = (0.05, 1.0)  # seconds between attempts to connect to a server that takes no more


@attrs.frozen
class PoolStats:
    """The connections of a pool: how many so far, and now."""

    opened: int
    dead: int  # found dead, or came back unusable
    retired: int  # too old or idle for too long
    idle: int
    in_use: int
    waiting: int


@attrs.define(eq=False)
class Pool:
    """At most *max_size* connections, lent in the order in which they were asked for.

    A transaction never takes the last connections; *kept* is how many the first transactions of
    attempts leave. See `ConnectionSlots`.

    Nothing runs in the background: connections are opened when needed, and looked after
    when they are lent, when they come back and by `tend`. Times are in seconds.
    *connect* opens a connection, in autocommit mode; by default one to *conninfo*.
    *on_loss* is called when a connection is found dead, *on_demotion* with the address of a
    server that takes no writes any more.
    """

    conninfo: str = attrs.field(repr=False)  # may hold a password
    max_size: int = attrs.field(default=4, kw_only=True, validator=attrs.validators.ge(1))
    kept: int = attrs.field(default=0, kw_only=True, validator=attrs.validators.ge(0))
    max_lifetime: float = attrs.field(default=3600.0, kw_only=True)
    max_idle: float = attrs.field(default=600.0, kw_only=True)
    spare: int = attrs.field(default=2, kw_only=True)  # this many may be idle for so long
    # And the others so long: workers that fill the server between them must not hold connections
    # that they do not use (tests/processes/test_fleet.py, four at the defaults).
    max_spare_idle: float = attrs.field(default=5.0, kw_only=True)
    ping_after: float = attrs.field(default=30.0, kw_only=True)
    checkout_timeout: float = attrs.field(default=30.0, kw_only=True)
    connect: Callable[[], Awaitable[Connection]] | None = attrs.field(default=None, kw_only=True)
    on_loss: Callable[[], object] | None = attrs.field(default=None, kw_only=True)
    on_demotion: Callable[[Address], object] | None = attrs.field(default=None, kw_only=True)

    slots: ConnectionSlots = attrs.field(init=False)
    _opening: int = attrs.field(default=0, init=False)  # connections
    _lent_to_transactions: set[Connection] = attrs.field(factory=set[Connection], init=False)
    # Since when idle, and the connection; the one used last is lent first.
    _idle: deque[tuple[float, Connection]] = attrs.field(
        factory=deque[tuple[float, Connection]], init=False
    )
    _came_back: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot, init=False)
    _doubted: float = attrs.field(default=-math.inf, init=False)  # idle since then: to be asked
    _born: dict[Connection, float] = attrs.field(factory=dict[Connection, float], init=False)
    # The server takes no more connections: when to try again, and how long to wait then.
    _full_until: float = attrs.field(default=-math.inf, init=False)
    _full_pause: float = attrs.field(default=0.0, init=False)
    _full_why: str = attrs.field(default="", init=False)
    _rng: random.Random = attrs.field(factory=new_rng, init=False)
    _closed: bool = attrs.field(default=False, init=False)
    _opened: int = attrs.field(default=0, init=False)
    _dead: int = attrs.field(default=0, init=False)
    _retired: int = attrs.field(default=0, init=False)

    def __attrs_post_init__(self) -> None:
        self.slots = ConnectionSlots(self.max_size, self.kept)

    @property
    def stats(self) -> PoolStats:
        return PoolStats(
            opened=self._opened,
            dead=self._dead,
            retired=self._retired,
            idle=len(self._idle),
            in_use=self.slots.in_use,
            waiting=self.slots.waiting,
        )

    @contextlib.asynccontextmanager
    async def connection(self, purpose: int = SINGLE) -> AsyncGenerator[Connection]:
        """Lend a connection; an open transaction is rolled back when it comes back.

        Waits at most `checkout_timeout` and raises `PoolTimeout` then, `Closed` once the
        pool is closed. A failure to connect is raised at once, as `NotConnected` if it passes
        with time: trying again is up to the caller. But a server that takes no more
        connections is asked again, and a connection that comes back meanwhile is taken.
        """
        conn = await self._checkout(purpose)
        try:
            yield conn
        except ReadOnlySqlTransaction:
            self._demoted(conn)  # a primary that has become a standby: look for the new one
            raise
        finally:
            await self._checkin(conn, purpose)

    @contextlib.asynccontextmanager
    async def for_transaction(self) -> AsyncGenerator[Connection]:
        """Lend a connection for a transaction of the attempt, or task, that calls."""
        use = connection_use.get()
        if use is None:
            connection_use.set(use := ConnectionUse())
        level = use.open.get(self, 0) + FIRST
        if use.in_attempt and level == FIRST:
            level = FIRST_OF_ATTEMPT
        use.open[self] = use.open.get(self, 0) + 1
        try:
            async with self.connection(level) as conn:
                yield conn
        finally:
            use.open[self] -= 1
            # Outside of attempts the count belongs to this run of transactions: a task started from
            # here later would else count as being within one.
            if not use.in_attempt and not use.open[self] and connection_use.get() is use:
                connection_use.set(None)

    def resize(self, max_size: int, kept: int) -> None:
        """From now on have other bounds; connections in use beyond them may finish."""
        self.max_size, self.kept = max_size, kept
        self.slots.resize(max_size, kept)
        self._retire_surplus()

    def most_transactions(self) -> int:
        """Return how many attempts may have a transaction open at the same time."""
        return self.slots.most(FIRST_OF_ATTEMPT)

    def tend(self) -> None:
        """Close connections that have been idle for too long. Neither blocks nor can be cancelled.

        For a pool that is not used at all; the others are tended whenever they lend.
        """
        self._retire_stale()

    def doubt(self) -> None:
        """Ask the connections that are idle now before they are lent: their server may be gone."""
        self._doubted = trio.current_time()

    def abandon(self, address: Address, *, in_use: bool) -> int:
        """Close the connections to *address*; the lent ones only with *in_use*.

        Returns how many there were. A call on one of them raises `OperationalError`.
        """
        leads_there = [
            conn for conn in self._born if not conn.closed and peer_of(conn.pgconn) == address
        ]
        idle = {conn for _, conn in self._idle}
        for conn in leads_there:
            if in_use or conn in idle:
                conn.abort()  # an idle one is found dead before it is lent
        return len(leads_there)

    async def aclose(self) -> None:
        """Close idle connections now, and the lent ones when they come back.

        A call that waits for a connection, or asks for one later, gets `Closed`. All is done
        before the first checkpoint; may be called again.
        """
        self._closed = True
        while self._idle:
            self._retire(self._idle.pop()[1])
        self.slots.close()
        self._came_back.unpark_all()
        await trio.lowlevel.checkpoint()

    def _demoted(self, conn: Connection) -> None:
        address = None if conn.closed else peer_of(conn.pgconn)
        conn.abort()
        if address is not None and self.on_demotion is not None:
            self.on_demotion(address)

    # -- lending ---------------------------------------------------------------------

    async def _checkout(self, purpose: int) -> Connection:
        with trio.move_on_after(self.checkout_timeout):
            # First the right to hold a connection, in the order of asking, then the connection
            # itself: so a call that is cancelled while it connects gives back no more than a slot.
            await self.slots.take(purpose)
            try:
                return await self._find(purpose)
            except BaseException:
                self.slots.give(purpose)
                raise
        msg = f"no connection within {self.checkout_timeout:g} s: {self.shortage(purpose)}"
        raise PoolTimeout(msg)

    def shortage(self, purpose: int = SINGLE) -> str:
        """Say why there may be none to be had."""
        full = [self._full_why] if self._full_pause else []
        return ", ".join([self.slots.shortage(purpose), *full])

    async def _find(self, purpose: int) -> Connection:
        """Return a connection that answers: an idle one, or a new one."""
        self._retire_stale()
        while True:
            if (found := await self._find_idle(purpose)) is not None:
                if purpose != SINGLE:
                    self._lent_to_transactions.add(found)
                return found
            await trio.lowlevel.checkpoint_if_cancelled()
            self.slots.refuse_if_closed()
            pause = self._full_until - trio.current_time()
            # There may be no room for another one in spite of the slot: the idle ones are kept for
            # other purposes (`_leaves_enough`), or other calls are opening the last ones.
            if len(self._born) + self._opening >= self.max_size:
                pause = math.inf  # one is about to come back, or to be there
            if pause > 0:
                with noting_cancellation(), trio.move_on_after(pause):
                    await self._came_back.park()
            else:
                await self._open()

    async def _open(self) -> None:
        """Add a new connection to the idle ones, unless the server takes no more."""
        # A server with no room is asked by one call at a time, ever more slowly: a hundred workers
        # that all try at once would keep it from serving the connections it has (failures.md F19).
        if self._full_pause:
            self._full_until = trio.current_time() + self._full_pause
        self._opening += 1
        try:
            conn = await self._connect()
            self._note_room()
            self._opened += 1
            self._born[conn] = now = trio.current_time()
            self._idle.append((now, conn))
            if self._closed:
                self._retire(self._idle.pop()[1])
        except TooManyConnections as exc:
            self._note_full(exc)
        finally:
            self._opening -= 1
            self._came_back.unpark_all()

    def _leaves_enough(self, purpose: int) -> bool:
        """Tell whether an idle connection may be lent for *purpose*.

        The server may take no more connections later. So the connections that a transaction has to
        leave, to a single statement and to a transaction within it, must be open before it begins:
        else two handlers could each wait for the connection that the other one needs.
        """
        if purpose == SINGLE or not self._idle:
            return bool(self._idle)
        others = len(self._born) - len(self._lent_to_transactions) - 1
        least = {FIRST_OF_ATTEMPT: 2, FIRST: 0}.get(purpose, 1)
        return others >= min(least, self.max_size - self.slots.most(purpose))

    async def _find_idle(self, purpose: int) -> Connection | None:
        while self._leaves_enough(purpose):
            since, conn = self._idle.pop()
            try:
                if await self._answers(conn, since):
                    return conn
            except BaseException:
                self._lose(conn)  # cancelled while it was asked: its answer may still come
                raise
            self._lose(conn)
        return None

    async def _connect(self) -> Connection:
        try:
            if self.connect is not None:
                return await self.connect()
            return await connect(self.conninfo)
        except TooManyConnections:
            raise
        except (psycopg.Error, OSError) as exc:
            if not is_transient(exc):
                raise
            raise NotConnected(str(exc) or type(exc).__name__) from exc

    def _note_full(self, exc: TooManyConnections) -> None:
        first, last = FULL_PAUSE
        self._full_why = f"the server takes no more: {exc}"
        if not self._full_pause:
            log.warning("waiting for a connection: %s", one_line(str(exc)))
        self._full_pause = min(last, max(first, 2 * self._full_pause))
        self._full_until = trio.current_time() + self._full_pause * self._rng.uniform(0.5, 1.0)

    def _note_room(self) -> None:
        if self._full_pause:
            log.info("the server takes connections again")
            self._full_pause, self._full_until = 0.0, -math.inf

    async def _answers(self, conn: Connection, since: float) -> bool:
        # An idle connection has nothing to read: if there is something, the server has closed it.
        # Found without a round trip (tests/pg/test_pool.py, dead connection is replaced).
        if conn.closed or ready_now(conn.pgconn.socket, READ):
            return False
        if since > self._doubted and trio.current_time() - since < self.ping_after:
            return True
        # A network that drops packets leaves a connection looking open: only an answer proves it.
        with expendable(conn), trio.move_on_after(PING_TIMEOUT):
            try:
                await conn.execute("")
            except psycopg.Error:
                return False
            return True
        while self._idle:  # these have been idle for longer, and their server is the silent one
            self._lose(self._idle.pop()[1])
        return False

    async def _checkin(self, conn: Connection, purpose: int) -> None:
        # Runs in a scope that may be cancelled: without a checkpoint that is not shielded, or the
        # connection would neither come back nor be closed (tests/pg/test_pool.py, chaos).
        try:
            self._lent_to_transactions.discard(conn)
            if conn.pgconn.transaction_status in _OPEN_TRANSACTION:
                with contextlib.suppress(psycopg.Error):
                    await conn.rollback()  # shielded and bounded
            self._take_back(conn)
        finally:
            self.slots.give(purpose)
            self._came_back.unpark_all()
        self._retire_surplus()
        self._retire_stale()

    def _take_back(self, conn: Connection) -> None:
        now = trio.current_time()
        if not _as_new(conn):
            self._lose(conn)
        elif self._closed or now - self._born[conn] >= self.max_lifetime:
            self._retire(conn)
        else:
            self._idle.append((now, conn))

    def _retire_surplus(self) -> None:
        while self._idle and len(self._born) > self.max_size:
            self._retire(self._idle.popleft()[1])

    def _retire_stale(self) -> None:
        now, more = trio.current_time(), len(self._idle)
        for entry in list(self._idle):  # the one used last is at the end
            since, conn = entry
            limit = self.max_idle if more <= self.spare else self.max_spare_idle
            more -= 1
            if now - since >= min(limit, self.max_idle) or now - self._born[conn] >= (
                self.max_lifetime
            ):
                self._idle.remove(entry)
                self._retire(conn)

    def _retire(self, conn: Connection) -> None:
        self._retired += 1
        self._forget(conn)

    def _lose(self, conn: Connection) -> None:
        self._dead += 1
        self._forget(conn)
        if self.on_loss is not None:
            self.on_loss()

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
