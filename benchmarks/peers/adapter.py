"""What the adapters of asyncio libraries share; it is to adapter.js as Python is to Node.js.

They run in an environment of their own, without ours: of the standard library only.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol


BACKLOG_REPORTS, IDLE_REPORTS = 0.01, 0.25  # seconds, as those of our own worker
SETTLE = 2.0  # seconds until an idle worker listens: libraries do not tell

Handle = Callable[[int], Awaitable[None]]


class Peer(Protocol):
    """What a library can do."""

    async def install(self) -> None:
        """Make its tables."""

    async def work(self, handle: Handle) -> None:
        """Run tasks for ever."""

    async def enqueue(self, i: int) -> None:
        """Enqueue one task."""

    async def enqueue_many(self, count: int) -> None:
        """Enqueue many, by what it has for that."""


def say(**message: Any) -> None:
    """Tell the parent something."""
    print(json.dumps(message), flush=True)


async def hear() -> dict[str, Any]:
    """Return what the parent says next; end if it is gone, or wants no more."""
    if not (line := await asyncio.to_thread(sys.stdin.readline)):
        os._exit(0)
    message: dict[str, Any] = json.loads(line)
    return message


async def ready() -> float:
    """Wait until it is time to begin; return the CPU time used until then."""
    say(ready=True)
    await hear()
    return time.process_time()


def finish(cpu: float, **result: Any) -> None:
    """Tell the result, and that of all that was used since *cpu*."""
    say(result=result | {"cpu": time.process_time() - cpu})


async def install(peer: Peer, _job: Mapping[str, Any]) -> None:
    """Make the tables."""
    cpu = await ready()
    await peer.install()
    finish(cpu)


async def work(peer: Peer, job: Mapping[str, Any]) -> None:
    """Run tasks until the parent says stop; say when they started."""
    started: dict[int, int] = {}
    backlog, pause = job["backlog"], job["sleep"]

    async def handle(i: int) -> None:
        started[i] = time.monotonic_ns()
        if pause:
            await asyncio.sleep(pause)

    cpu = await ready() if backlog else 0.0
    working = asyncio.ensure_future(peer.work(handle))
    if not backlog:
        await asyncio.wait([working], timeout=SETTLE)
        cpu = await ready()
    stop, told = asyncio.ensure_future(hear()), 0
    while not stop.done():
        await asyncio.wait([stop, working], timeout=BACKLOG_REPORTS if backlog else IDLE_REPORTS)
        if working.done():
            working.result()
            raise RuntimeError("its worker has ended")
        if len(started) > told:
            say(done=(told := len(started)))
    each = [] if backlog else list(started.items())
    finish(cpu, first=min(started.values(), default=None), started=each)


async def enqueue(peer: Peer, job: Mapping[str, Any]) -> None:
    """Enqueue in one way, as fast as it goes."""
    for i in range(-job["warm_up"], 0):
        await peer.enqueue(i)
    cpu = await ready()
    begun, tasks = time.monotonic_ns(), 0
    if job["way"] == "one":
        while time.monotonic_ns() - begun < job["seconds"] * 1e9:
            await peer.enqueue(tasks)
            tasks += 1
    else:
        await peer.enqueue_many(tasks := job["tasks"])
    finish(cpu, begun=begun, ended=time.monotonic_ns(), tasks=tasks)


async def enqueue_slowly(peer: Peer, job: Mapping[str, Any]) -> None:
    """Enqueue one by one, each so long after the last one; say when each call returned."""
    called, returned = list[int](), list[int]()
    for i in range(-job["warm_up"], 0):
        await peer.enqueue(i)
    cpu = await ready()
    due = time.monotonic()
    for i in range(job["tasks"]):
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        due = time.monotonic() + job["gap"]
        called.append(time.monotonic_ns())
        await peer.enqueue(i)
        returned.append(time.monotonic_ns())
    finish(cpu, called=called, returned=returned)


ROLES = {role.__name__: role for role in (install, work, enqueue, enqueue_slowly)}


async def serve(connect: Callable[[dict[str, Any]], AbstractAsyncContextManager[Peer]]) -> None:
    """Do one job, and end when the parent says so, or is gone."""
    try:
        job = await hear()
        async with connect(job) as peer:
            await ROLES[job["role"]](peer, job)
            await hear()  # connected until then, so that the parent can count what it used
    except Exception as exc:  # noqa: BLE001  # the parent tells the user
        say(error=f"{type(exc).__name__}: {exc}")
        os._exit(1)
