"""Streams for the tests of their readers: written in SQL, so that anything can go wrong."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib

from collections.abc import AsyncGenerator, Iterator
from typing import Any

import attrs
import trio

import nursery_queue as nq

from nursery_queue._core._model import Fence
from nursery_queue._core._states import Event
from nursery_queue._core._streams import Chunk, StreamWrite
from nursery_queue._psycopg._connection import Connection
from nursery_queue._store import Store
from tests.support.store_steps import claimed_once, settle


# The function that writes, but for that it tells nobody.
SILENCE = """
    create schema if not exists silence;
    create or replace function silence.pg_notify(text, text) returns void language sql as '';
    do $$
    begin
        execute replace(replace(pg_get_functiondef('nursery_queue.write_stream'::regproc),
                                'nursery_queue.write_stream(', 'silence.write_stream('),
                        'pg_notify(', 'silence.pg_notify(');
    end
    $$;
"""
WRITE = """
    select {}.write_stream(%(task_id)s, %(epoch)s, %(name)s, %(kinds)s::"char"[],
                           %(pieces)s::bytea[], close => %(close)s)
"""
# Who listens has said so last, or has asked whether anybody is there (an empty query).
LISTENERS = """
    select pid from pg_stat_activity
     where datname = current_database() and application_name like 'nursery_queue%'
       and (query like 'LISTEN%nursery_queue_stream%' or query = '')
"""


@attrs.define(eq=False)
class Author:
    """An attempt that writes to its streams, through a store of whatever kind."""

    store: Store
    fence: Fence

    @property
    def task_id(self) -> int:
        return self.fence.task_id

    async def write(self, *pieces: object, **options: Any) -> None:
        """Write what may come next, in one statement."""
        chunks = [Chunk.of(data) for data in pieces]
        wanted: dict[str, Any] = {"name": "default", **options}
        await self.store.write_stream(StreamWrite(fence=self.fence, chunks=chunks, **wanted))

    async def close(self, **options: Any) -> None:
        await self.write(close=True, **options)

    async def end(self, event: Event = Event.SUCCEED, **options: Any) -> None:
        """End the attempt; the streams are closed along with the task."""
        await settle(self.store, self.fence, event, **options)


@attrs.define(eq=False)
class Clerk:
    """A session that writes for an attempt, and tells of it or not; may be in a transaction."""

    conn: Connection
    fence: Fence

    async def write(
        self, *pieces: object, close: bool = False, silently: bool = False, name: str = "default"
    ) -> str:
        chunks = [Chunk.of(data) for data in pieces]
        ((fate,),) = await self.conn.fetch(
            WRITE.format("silence" if silently else "nursery_queue").encode(),
            {
                "task_id": self.fence.task_id,
                "epoch": self.fence.epoch,
                "name": name,
                "kinds": [chunk.kind.value for chunk in chunks],
                "pieces": [chunk.data for chunk in chunks],
                "close": close,
            },
        )
        return str(fate)

    async def notify(self, payload: str, channel: str = "nursery_queue_stream") -> None:
        await self.conn.fetch(b"select pg_catalog.pg_notify(%s, %s)", [channel, payload])


@contextlib.asynccontextmanager
async def clerk(dsn: str, fence: Fence) -> AsyncGenerator[Clerk]:
    """Open a session that can be silent."""
    conn = await Connection.connect(dsn)
    try:
        await conn.execute(SILENCE.encode())
        yield Clerk(conn, fence)
    finally:
        conn.abort()


async def author(store: Store, **task: Any) -> Author:
    """Add a task and claim it."""
    return Author(store, (await claimed_once(store, **task)).fence)


@attrs.define(eq=False)
class Audience:
    """Reads, and notes what it got and when."""

    got: list[Any] = attrs.field(factory=list[Any])
    at: list[float] = attrs.field(factory=list[float])
    ended: bool = False

    async def read(self, reader: nq.StreamReader) -> None:
        """Read to the end."""
        async for data in reader:
            self.got.append(data)
            self.at.append(trio.current_time())
        self.ended = True


async def everything(reader: nq.StreamReader) -> list[Any]:
    return [data async for data in reader]


async def first(reader: nq.StreamReader, count: int) -> list[Any]:
    return [await anext(reader) for _ in range(count)]


# -- what may be left -----------------------------------------------------------------------


def system_tasks() -> list[str]:
    """Name our tasks that stand outside of all scopes."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    tasks = [task for nursery in root.child_nurseries for task in nursery.child_tasks]
    return [task.name for task in tasks if task.name.startswith("nursery_queue")]


def left(client: nq.Client) -> Iterator[str]:
    """Yield what stays behind in a client when everybody has gone."""
    yield from (f"a subscription to task {task_id}" for task_id in client._notifier._subscriptions)
    yield from system_tasks()
    yield from (f"a run {run!r}" for run in client._notifier._all)
    for batcher in (client._streams._questions, client._waiting._questions):
        yield from (f"a question {call.item!r}" for call in batcher._waiting)


async def nothing_left(client: nq.Client) -> None:
    """Return when nothing is left, which takes a few turns of the loop and no time."""
    begun, turns = trio.current_time(), 20
    while (found := list(left(client))) and turns:
        turns -= 1
        await trio.lowlevel.checkpoint()
    assert not found
    assert trio.current_time() == begun


def timers() -> float:
    """Return the seconds until something is due; infinite if nothing ever is."""
    return trio.lowlevel.current_statistics().seconds_to_next_deadline


async def listeners(dsn: str) -> list[int]:
    """Return who listens for streams, as the server sees it."""
    conn = await Connection.connect(dsn)
    try:
        return [pid for (pid,) in await conn.fetch(LISTENERS.encode())]
    finally:
        conn.abort()
