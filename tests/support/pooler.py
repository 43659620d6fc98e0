"""A transaction pooler of our own, after PgBouncer: few sessions of the server, many clients."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import struct

from collections import deque
from collections.abc import AsyncGenerator, Iterator

import attrs
import psycopg
import trio

from psycopg.conninfo import make_conninfo

from tests.support.proxy import DETOURS


SSL, GSS, CANCEL = 80877103, 80877104, 80877102  # in place of a protocol version
TOLD = ("server_version", "client_encoding", "standard_conforming_strings", "integer_datetimes")
# Each is answered by one ReadyForQuery: a query, a sync, a function call.
ROUNDS = b"QSF"


class Gone(Exception):
    """A client or a session of the server has hung up."""


@attrs.define(eq=False)
class Wire:
    """Messages on a stream."""

    stream: trio.SocketStream
    _buffer: bytearray = attrs.field(factory=bytearray, init=False)

    async def exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                data = await self.stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise Gone
            self._buffer += data
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    async def message(self) -> tuple[bytes, bytes]:
        """Return the next message's type and the whole of it."""
        head = await self.exactly(5)
        (size,) = struct.unpack("!i", head[1:])
        return head[:1], head + await self.exactly(size - 4)

    async def send(self, data: bytes) -> None:
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Gone from None


@attrs.define(eq=False)
class Session:
    """A session of the server; libpq has logged in, the bytes are ours from then on."""

    connection: psycopg.Connection
    wire: Wire
    users: set[int] = attrs.field(factory=set[int])  # the pids of clients that had it

    @classmethod
    def open(cls, dsn: str) -> Session:
        connection = psycopg.connect(dsn, autocommit=True, application_name="pooler")
        fd = os.dup(connection.fileno())
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=fd)))
        return cls(connection, Wire(stream))

    def close(self) -> None:
        self.wire.stream.socket.close()
        self.connection.close()


@attrs.define(eq=False)
class Guest:
    """A client and, while it is in a transaction, the session it has."""

    wire: Wire
    pid: int
    secret: int
    session: Session | None = None
    rounds: int = 0  # asked for and not yet answered


@attrs.define(eq=False)
class Pooler:
    """Lends each session for one transaction; `dsn` leads through it."""

    target: str
    size: int = 2
    dsn: str = ""
    most_at_once: int = 0  # clients connected
    transactions: int = 0
    cancels: int = 0
    _idle: deque[Session] = attrs.field(factory=deque[Session], init=False)
    _sessions: list[Session] = attrs.field(factory=list[Session], init=False)
    _free: trio.Semaphore = attrs.field(init=False)
    _guests: dict[int, Guest] = attrs.field(factory=dict[int, Guest], init=False)
    # Far from the pids of the server's processes.
    _pids: Iterator[int] = attrs.field(factory=lambda: iter(range(1_000_000_000, 2**31)))

    def __attrs_post_init__(self) -> None:
        self._free = trio.Semaphore(self.size)

    def close(self) -> None:
        for session in self._sessions:
            session.close()

    async def on_each_session(self, query: str) -> list[list[tuple[object, ...]]]:
        """Run *query* on every session there is, none of which may be lent."""
        with trio.fail_after(10):
            for _ in range(self.size):
                await self._free.acquire()
        assert len(self._idle) == len(self._sessions)
        answers = [session.connection.execute(query.encode()).fetchall() for session in self._idle]
        for _ in range(self.size):
            self._free.release()
        return answers

    @property
    def users(self) -> list[int]:
        """How many clients have had each session."""
        return [len(session.users) for session in self._sessions]

    async def serve(self, stream: trio.SocketStream) -> None:
        """Serve one client until it leaves."""
        async with stream:
            with contextlib.suppress(Gone):
                if (guest := await self._welcome(Wire(stream))) is not None:
                    await self._entertain(guest)

    # -- the door ----------------------------------------------------------------------

    async def _welcome(self, wire: Wire) -> Guest | None:
        while True:
            (size,) = struct.unpack("!i", await wire.exactly(4))
            body = await wire.exactly(size - 4)
            (code,) = struct.unpack("!i", body[:4])
            if code == CANCEL:
                await self._cancel(*struct.unpack("!ii", body[4:12]))
                return None
            if code not in {SSL, GSS}:
                break
            await wire.send(b"N")
        guest = Guest(wire, next(self._pids), secret=int.from_bytes(os.urandom(3)))
        async with self._borrowed() as session:
            info = session.connection.info
            told = [(name, info.parameter_status(name) or "") for name in TOLD]
        greeting = _message(b"R", struct.pack("!i", 0))
        for name, value in told:
            greeting += _message(b"S", f"{name}\0{value}\0".encode())
        greeting += _message(b"K", struct.pack("!ii", guest.pid, guest.secret))
        await wire.send(greeting + _message(b"Z", b"I"))
        return guest

    async def _cancel(self, pid: int, secret: int) -> None:
        guest = self._guests.get(pid)
        if guest is not None and guest.secret == secret and guest.session is not None:
            self.cancels += 1
            await trio.to_thread.run_sync(guest.session.connection.cancel_safe)

    # -- sessions ----------------------------------------------------------------------

    async def _borrow(self) -> Session:
        await self._free.acquire()
        if self._idle:
            return self._idle.popleft()  # the one unused for longest, to mix them well
        self._sessions.append(session := Session.open(self.target))
        return session

    def _return(self, session: Session) -> None:
        self._idle.append(session)
        self._free.release()

    def _discard(self, session: Session) -> None:
        self._sessions.remove(session)
        session.close()
        self._free.release()

    @contextlib.asynccontextmanager
    async def _borrowed(self) -> AsyncGenerator[Session]:
        session = await self._borrow()
        try:
            yield session
        finally:
            self._return(session)

    # -- traffic -----------------------------------------------------------------------

    async def _entertain(self, guest: Guest) -> None:
        self._guests[guest.pid] = guest
        self.most_at_once = max(self.most_at_once, len(self._guests))
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._up, guest, nursery)
        except* Gone:
            pass
        finally:
            del self._guests[guest.pid]
            if guest.session is not None:  # left in the midst of a transaction
                self._discard(guest.session)

    async def _up(self, guest: Guest, nursery: trio.Nursery) -> None:
        while True:
            kind, message = await guest.wire.message()
            if kind == b"X":
                raise Gone
            if guest.session is None:
                guest.session = await self._borrow()
                guest.session.users.add(guest.pid)
                self.transactions += 1
                nursery.start_soon(self._down, guest, guest.session)
            if kind in ROUNDS:
                guest.rounds += 1
            await guest.session.wire.send(message)

    async def _down(self, guest: Guest, session: Session) -> None:
        """Pass on what the server says, until the transaction is over."""
        while True:
            kind, message = await session.wire.message()
            if kind == b"Z":
                guest.rounds -= 1
                if message[-1:] == b"I" and not guest.rounds:
                    guest.session = None
                    self._return(session)
                    await guest.wire.send(message)
                    return
            await guest.wire.send(message)


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


@contextlib.asynccontextmanager
async def pooled(dsn: str, *, size: int = 2) -> AsyncGenerator[Pooler]:
    """Run a pooler in front of the server of *dsn*."""
    pooler = Pooler(make_conninfo(dsn, sslmode="disable", gssencmode="disable"), size)
    async with trio.open_nursery() as nursery:
        serve = functools.partial(trio.serve_tcp, pooler.serve, 0, host="127.0.0.1")
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        pooler.dsn = make_conninfo(dsn, host="127.0.0.1", port=port, sslmode="prefer")
        DETOURS[pooler.dsn] = dsn
        try:
            yield pooler
        finally:
            pooler.close()
            nursery.cancel_scope.cancel()
