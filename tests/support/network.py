"""Time and sockets, for tests of a network that fails."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import os
import socket

from collections.abc import Callable, Iterator
from pathlib import Path

import trio

from psycopg.conninfo import conninfo_to_dict

from nursery_queue.testing import VirtualTime
from tests.support.proxy import Proxy


async def pass_time(clock: VirtualTime, proxy: Proxy, seconds: float) -> None:
    """Let time pass although answers are awaited, if these are ones that never come."""
    end = trio.current_time() + seconds
    await proxy.quiet()
    while trio.current_time() < end:
        await _step(clock, proxy, end)


async def pass_time_until(
    clock: VirtualTime, proxy: Proxy, holds: Callable[[], bool], *, within: float
) -> float:
    """Let time pass until *holds*; return how long that took."""
    begun = trio.current_time()
    await proxy.quiet()
    while not holds():
        assert trio.current_time() < begun + within
        await _step(clock, proxy, begun + within)
    return trio.current_time() - begun


async def _step(clock: VirtualTime, proxy: Proxy, end: float) -> None:
    """Move on to the next deadline of anybody, or to *end*."""
    now = trio.current_time()
    upkeep = clock._next_upkeep(forced=True) - now
    step = trio.lowlevel.current_statistics().seconds_to_next_deadline
    clock.advance(max(0.0, min(step, upkeep, end - now)))
    await proxy.quiet()


def sockets_to(dsn: str) -> Iterator[socket.socket]:
    """Yield a copy of every socket of this process that is connected to the server of *dsn*."""
    port = int(conninfo_to_dict(dsn)["port"] or 0)
    for name in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if not name.readlink().name.startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name.name))) as copy:
                if copy.family == socket.AF_INET and copy.getpeername()[1] == port:
                    yield copy
