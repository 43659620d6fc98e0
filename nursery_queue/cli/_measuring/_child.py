"""A process of a run, `python -m nursery_queue.cli._measuring._child`; it ends with its parent.

The first message on stdin names its role and what that needs, the DSN among it, which is so in no
list of processes. It answers "ready" as soon as it could begin, and begins when it hears "go".
"""

from __future__ import annotations

import contextlib
import logging
import os
import time

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import attrs
import trio

from nursery_queue._client._client import Client
from nursery_queue._connect import connect
from nursery_queue._core._exception_groups import leaves
from nursery_queue._worker._worker import Worker
from nursery_queue.cli._garbage import freeze_the_start

from ._bench_tasks import app, nothing, started, write
from ._messages import Messages


BACKLOG_REPORTS = 0.01  # seconds between reports, each of which costs some microseconds
IDLE_REPORTS = 0.25  # an idle worker is not to be woken for them


@attrs.frozen(eq=False)
class Parent:
    """The process that has started this one, and what it wants."""

    messages: Messages
    job: Mapping[str, Any]
    heard: trio.MemoryReceiveChannel[str]

    async def ready(self) -> float:
        """Wait until it is time to begin; return the CPU time used until then."""
        await self.messages.send(ready=True)
        await self.heard.receive()
        return time.process_time()

    async def report(self, done: int) -> None:
        """Tell how far it is."""
        await self.messages.send(done=done)

    async def finish(self, cpu: float, **result: Any) -> None:
        """Tell the result, and that of all that was used since *cpu*."""
        await self.messages.send(result=result | {"cpu": time.process_time() - cpu})


async def work(parent: Parent, client: Client) -> None:
    """Run tasks until it hears "stop"; say when they started.

    An idle worker is at work before it is ready, one with "backlog" begins when it hears "go".
    """
    freeze_the_start()  # as `nursery-queue worker` does
    worker = Worker(app, client, concurrency=parent.job["concurrency"])
    async with trio.open_nursery() as nursery:
        if parent.job["backlog"]:
            cpu = await parent.ready()
            await nursery.start(worker.run)
        else:
            await nursery.start(worker.run)
            cpu = await parent.ready()
        nursery.start_soon(_report_starts, parent)
        await parent.heard.receive()
        worker.stop()
        first = min(started.values(), default=None)
        each = [] if parent.job["backlog"] else list(started.items())
        await parent.finish(cpu, first=first, started=each)


async def _report_starts(parent: Parent) -> None:
    told, pause = 0, BACKLOG_REPORTS if parent.job["backlog"] else IDLE_REPORTS
    while True:
        if (now := len(started)) > told:
            await parent.report(told := now)
        await trio.sleep(pause)


async def enqueue(parent: Parent, client: Client) -> None:
    """Enqueue in one way, as fast as it goes."""
    count, way = parent.job["tasks"], parent.job["way"]
    await client.stats()  # so that a connection is there
    cpu = await parent.ready()
    begun = time.monotonic_ns()
    if way == "one":
        for i in range(count):
            await client.enqueue(nothing, i)
            if i % 100 == 99:
                await parent.report(i + 1)
    else:
        await client.enqueue_many([nothing.bind(i) for i in range(count)], copy=way == "copy")
    await parent.finish(cpu, begun=begun, ended=time.monotonic_ns())


async def enqueue_slowly(parent: Parent, client: Client) -> None:
    """Enqueue one by one, each so long after the last one; say when each was called and returned.

    Some come before it is ready, to warm up; their numbers are below 0.
    """
    gap, called, returned = parent.job["gap"], list[int](), list[int]()
    for i in range(-parent.job["warm_up"], 0):
        await client.enqueue(nothing, i)
    cpu = await parent.ready()
    due = trio.current_time()
    for i in range(parent.job["tasks"]):
        await trio.sleep_until(due)
        due = trio.current_time() + gap
        called.append(time.monotonic_ns())
        await client.enqueue(nothing, i)
        returned.append(time.monotonic_ns())
    await parent.finish(cpu, called=called, returned=returned)


async def read(parent: Parent, client: Client) -> None:
    """Have a stream written, and read it to its end; say when that was."""
    chunks = parent.job["tasks"]
    await client.stats()
    cpu = await parent.ready()
    task, seen = await client.enqueue(write, chunks), 0
    async for data in client.read_stream(task):
        if not data.startswith(f"{seen} "):
            raise RuntimeError(f"chunk {seen} of the stream is {data!r}")
        seen += 1
        if seen % 100 == 0:
            await parent.report(seen)
        if seen == chunks:
            break
    ended = time.monotonic_ns()
    await parent.finish(cpu, seen=seen, ended=ended, written=await client.result(task))


class ToParent(logging.Handler):
    """Tells the parent what is logged: it shows each line once, and none when it has had enough."""

    def __init__(self, messages: Messages, nursery: trio.Nursery) -> None:
        super().__init__()
        self._messages = messages
        self._nursery = nursery

    def emit(self, record: logging.LogRecord) -> None:
        """Send it as soon as the loop comes to it."""
        try:
            self._nursery.start_soon(self._send, record.levelno, record.getMessage())
        except Exception:  # noqa: BLE001  # as logging has it: what logs is not to fail
            self.handleError(record)

    async def _send(self, level: int, text: str) -> None:
        with contextlib.suppress(trio.BrokenResourceError):  # the parent has gone
            await self._messages.send(level=level, log=text)


Role = Callable[[Parent, Client], Awaitable[None]]
ROLES: Final[Mapping[str, Role]] = {
    role.__name__: role for role in (work, enqueue, enqueue_slowly, read)
}


async def main(roles: Mapping[str, Role] = ROLES) -> None:
    """Do one job; then, or when the parent is gone before, end."""
    messages = Messages(trio.lowlevel.FdStream(os.dup(0)), trio.lowlevel.FdStream(os.dup(1)))
    if (job := await messages.receive()) is None:
        return
    send, heard = trio.open_memory_channel[str](10)
    async with trio.open_nursery() as nursery:

        async def listen() -> None:
            while (message := await messages.receive()) is not None:
                await send.send(message["do"])
            nursery.cancel_scope.cancel("the parent wants no more")

        nursery.start_soon(listen)
        log = logging.getLogger("nursery_queue")
        log.addHandler(ToParent(messages, nursery))
        log.propagate = False
        try:
            async with connect(job["dsn"], schema=job["schema"]) as client:
                await roles[job["role"]](Parent(messages, job, heard), client)
                await trio.sleep_forever()  # connected, so that the parent can count what it used
        except Exception as exc:  # noqa: BLE001  # the parent tells the user
            error = next(leaves(exc))
            await messages.send(error=f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    trio.run(main)
