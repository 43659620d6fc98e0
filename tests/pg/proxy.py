"""A TCP proxy in front of a server, to have the network fail at will."""

from __future__ import annotations

import contextlib
import functools
import os

from collections.abc import AsyncGenerator
from pathlib import Path

import trio

from psycopg.conninfo import conninfo_to_dict, make_conninfo


class Proxy:
    """Passes bytes on until told otherwise; `dsn` leads to the server through it."""

    def __init__(self, target: str) -> None:
        self.dsn = ""
        self.accepted = 0
        self._target = conninfo_to_dict(target)
        self._passing = trio.Event()
        self._passing.set()
        self._scopes: set[trio.CancelScope] = set()
        self._edge: bytes | None = None
        self._trap: bytes | None = None
        self._answered: trio.Event | None = None

    def blackhole(self) -> None:
        """From now on accept everything and pass on nothing."""
        self._passing = trio.Event()

    def drop(self) -> None:
        """Close all connections."""
        for scope in self._scopes:
            scope.cancel()

    def drop_at(self, needle: bytes, *, answered: bool) -> None:
        """Close the connection whose client sends *needle*.

        With *answered* the server gets it and answers, but the client never hears.
        """
        self._trap = needle
        self._answered = trio.Event() if answered else None

    def blackhole_at(self, needle: bytes) -> None:
        """Become a black hole as soon as a client sends *needle*."""
        self._edge = needle

    async def serve(self, client: trio.SocketStream) -> None:
        """Pass one connection on to the server."""
        self.accepted += 1
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            async with client, await self._connect() as server, trio.open_nursery() as nursery:
                nursery.start_soon(self._up, client, server, scope)
                nursery.start_soon(self._down, client, server, scope)
        self._scopes.discard(scope)

    async def _connect(self) -> trio.SocketStream:
        host = str(self._target.get("host") or os.environ.get("PGHOST", "localhost"))
        port = int(self._target.get("port") or os.environ.get("PGPORT", "5432"))
        if host.startswith("/"):
            return await trio.open_unix_socket(str(Path(host) / f".s.PGSQL.{port}"))
        return await trio.open_tcp_stream(host, port)

    async def _up(
        self, client: trio.SocketStream, server: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in client:
                if self._edge is not None and self._edge in data:
                    self.blackhole()
                await self._passing.wait()
                if self._trap is not None and self._trap in data:
                    self._trap = None
                    if self._answered is not None:
                        await server.send_all(data)
                        await self._answered.wait()
                    break
                await server.send_all(data)
        scope.cancel()

    async def _down(
        self, client: trio.SocketStream, server: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            async for data in server:
                if self._trap is None and self._answered is not None:
                    self._answered.set()
                    await trio.sleep_forever()
                await self._passing.wait()
                await client.send_all(data)
        scope.cancel()


@contextlib.asynccontextmanager
async def proxied(dsn: str) -> AsyncGenerator[Proxy]:
    """Run a proxy in front of the server of *dsn*."""
    proxy = Proxy(dsn)
    async with trio.open_nursery() as nursery:
        serve = functools.partial(trio.serve_tcp, proxy.serve, 0, host="127.0.0.1")
        listeners: list[trio.SocketListener] = await nursery.start(serve)
        port = listeners[0].socket.getsockname()[1]
        proxy.dsn = make_conninfo(dsn, host="127.0.0.1", port=port)
        yield proxy
        nursery.cancel_scope.cancel()
