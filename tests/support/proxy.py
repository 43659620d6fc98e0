"""A TCP proxy in front of a server, to have the network fail at will."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os

from collections.abc import AsyncGenerator
from pathlib import Path

import attrs
import trio
import trio.testing

from psycopg.conninfo import conninfo_to_dict, make_conninfo


# DSNs that lead to a server by way of a task, and those that lead there directly: for whoever
# keeps that task from running while he asks.
DETOURS: dict[str, str] = {}


def _set() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


_turns = itertools.count(1)


@attrs.define(eq=False)
class Link:
    """One connection through the proxy."""

    said: bytearray = attrs.field(factory=bytearray)  # by the client
    told: int = 0  # bytes, by the server
    busy: bool = True  # the server has not answered what was said last
    spoke: int = 0  # as the how-manieth of all
    asking: trio.Event = attrs.field(factory=_set)  # what the client says is passed on
    answering: trio.Event = attrs.field(factory=_set)  # and what the server says
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    _tail: bytes = b""
    _swallowing: bool = False
    answered: trio.Event | None = None  # set with the next answer, which is not passed on

    @property
    def silent(self) -> bool:
        return not self.answering.is_set()

    def blackhole(self) -> None:
        """From now on pass on nothing."""
        self.asking, self.answering = trio.Event(), trio.Event()

    def swallow_answers(self) -> None:
        """Pass on the next statement that has parameters, but no answer from then on."""
        self._swallowing = True

    def hear(self, data: bytes | bytearray) -> None:
        """Note what the client says."""
        self.said += data
        self.busy = True
        self.spoke = next(_turns)
        if self._swallowing and bytes(data[:1]) in {b"P", b"B"}:  # Parse, Bind
            self.answering = trio.Event()

    def tell(self, data: bytes | bytearray) -> None:
        """Note what the server says: ReadyForQuery is the end of an answer."""
        self.busy = self.busy and b"Z\0\0\0\x05" not in self._tail + data
        self._tail = bytes(data[-4:])


class Proxy:
    """Passes bytes on until told otherwise; `dsn` leads to the server through it."""

    def __init__(self, target: str) -> None:
        self.dsn = ""
        self.accepted = 0
        self._target = conninfo_to_dict(target)
        self.links: list[Link] = []  # those that are open
        self.refusing = False  # to take connections
        self.delay = 0.0  # seconds for each packet that is passed on, after it
        self._passing = _set()
        self._edge: bytes | None = None
        self._edge_alone = False
        self._trap: bytes | None = None
        self._trap_answered = False

    def blackhole(self) -> None:
        """From now on accept everything and pass on nothing."""
        self._passing = trio.Event()

    def heal(self) -> None:
        """Pass everything on again, and what was held back first."""
        self._passing.set()
        for link in self.links:
            link.asking.set()
            link.answering.set()

    def link(self, needle: bytes) -> Link:
        """Return the newest connection on which a client has said *needle*."""
        return next(link for link in reversed(self.links) if needle in link.said)

    def last_used(self, needle: bytes) -> Link:
        """Return, of the connections on which a client has said *needle*, the one used last."""
        said = [link for link in self.links if needle in link.said]
        return max(said, key=lambda link: link.spoke)

    def drop(self) -> None:
        """Close all connections."""
        for link in self.links:
            link.scope.cancel()

    def drop_at(self, needle: bytes, *, answered: bool) -> None:
        """Close the connection whose client sends *needle*.

        With *answered* the server gets it and answers, but the client never hears.
        """
        self._trap, self._trap_answered = needle, answered

    def blackhole_at(self, needle: bytes, *, alone: bool = False) -> None:
        """Become a black hole as soon as a client sends *needle*; or *alone* its connection."""
        self._edge, self._edge_alone = needle, alone

    async def quiet(self) -> None:
        """Wait until nobody waits for an answer, but those who will not get one."""
        while True:
            await trio.testing.wait_all_tasks_blocked(0.002)
            if not self._passing.is_set():
                return
            if not any(link.busy and not link.silent for link in self.links):
                return

    async def serve(self, client: trio.SocketStream) -> None:
        """Pass one connection on to the server."""
        self.accepted += 1
        if self.refusing:
            await client.aclose()
            return
        self.links.append(link := Link())
        with link.scope:
            async with client, await self._connect() as server, trio.open_nursery() as nursery:
                nursery.start_soon(self._up, client, server, link)
                nursery.start_soon(self._down, client, server, link)
        self.links.remove(link)

    async def _connect(self) -> trio.SocketStream:
        host = str(self._target.get("host") or os.environ.get("PGHOST", "localhost"))
        port = int(self._target.get("port") or os.environ.get("PGPORT", "5432"))
        if host.startswith("/"):
            return await trio.open_unix_socket(str(Path(host) / f".s.PGSQL.{port}"))
        return await trio.open_tcp_stream(host, port)

    async def _up(self, client: trio.SocketStream, server: trio.SocketStream, link: Link) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in client:
                link.hear(data)
                if self._edge is not None and self._edge in data:
                    self._edge = None
                    (link if self._edge_alone else self).blackhole()
                await self._passing.wait()
                await link.asking.wait()
                if self._trap is not None and self._trap in data:
                    self._trap = None
                    if self._trap_answered:
                        link.answered = trio.Event()
                        await server.send_all(data)
                        await link.answered.wait()
                    break
                await server.send_all(data)
                await self._take_time()
        link.scope.cancel()

    async def _take_time(self) -> None:
        if self.delay:
            await trio.sleep(self.delay)

    async def _down(self, client: trio.SocketStream, server: trio.SocketStream, link: Link) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in server:
                if link.answered is not None:
                    link.answered.set()
                    await trio.sleep_forever()
                await self._passing.wait()
                await link.answering.wait()
                link.told += len(data)
                await client.send_all(data)
                link.tell(data)
                await self._take_time()
        link.scope.cancel()


@contextlib.asynccontextmanager
async def proxied(dsn: str) -> AsyncGenerator[Proxy]:
    """Run a proxy in front of the server of *dsn*."""
    proxy = Proxy(dsn)
    async with trio.open_nursery() as nursery:
        serve = functools.partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1")
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        proxy.dsn = make_conninfo(dsn, host="127.0.0.1", port=port)
        DETOURS[proxy.dsn] = dsn
        yield proxy
        nursery.cancel_scope.cancel()
