"""The stores that the contract is held to, and a clock that moves them all."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import datetime as dt
import functools

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

import psycopg
import pytest
import trio

from nursery_queue._pg._connection import Connection
from nursery_queue._pg._store import PostgresStore
from nursery_queue._store import Store
from nursery_queue._store._memory import MemoryStore
from nursery_queue.testing import _pytest_plugin


EMPTY = """
    truncate nursery_queue.task, nursery_queue.scheduled, nursery_queue.ready,
             nursery_queue.running, nursery_queue.finished, nursery_queue.attempt,
             nursery_queue.dedup, nursery_queue.worker
"""


class Clock(trio.abc.Clock):
    """Stands still until a test moves it: trio's clock, and with it that of the sessions.

    Only in a test that asks for it; the others run on real time.
    """

    def __init__(self) -> None:
        self._runs = False
        self._wall = dt.datetime.now(dt.UTC)
        self._passed = 0.0
        self._sessions: list[Connection] = []

    def start_clock(self) -> None:
        self._runs = True

    def current_time(self) -> float:
        return self._passed

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return 0.0 if deadline <= self._passed else 3600.0

    @property
    def now(self) -> dt.datetime:
        return self._wall + dt.timedelta(seconds=self._passed)

    async def advance(self, seconds: float) -> None:
        """Let so much time pass, for everybody."""
        self._passed += seconds
        self._sessions = [session for session in self._sessions if not session.closed]
        for session in self._sessions:
            await self._set(session)
        await trio.lowlevel.checkpoint()

    async def connect(self, connect: Callable[[], Awaitable[Connection]]) -> Connection:
        """Open a session that goes by this clock."""
        session = await connect()
        if self._runs:
            await self._set(session)
            self._sessions.append(session)
        return session

    async def _set(self, session: Connection) -> None:
        now = self.now.isoformat()
        await session.execute("select set_config('nursery_queue.now', %s, false)", [now])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def shared_dsn(nursery_queue_server: str, nursery_queue_template: str) -> Generator[str]:
    """DSN of one database for all these tests: emptying one is faster than making one."""
    with _pytest_plugin._database(nursery_queue_server, template=nursery_queue_template) as dsn:
        yield dsn


@pytest.fixture(params=["memory", "postgres"])
def new_store(request: pytest.FixtureRequest, clock: Clock) -> Store:
    if request.param == "memory":
        return MemoryStore()
    dsn = str(request.getfixturevalue("shared_dsn"))
    with psycopg.connect(dsn) as session:
        session.execute(EMPTY)
    store = PostgresStore(dsn)
    for pool in (store._pool, store._control, store._heartbeat):
        connect = pool.connect or functools.partial(Connection.connect, dsn)
        pool.connect = functools.partial(clock.connect, connect)
    return store


@pytest.fixture
async def store(new_store: Store) -> AsyncGenerator[Store]:
    yield new_store
    await new_store.aclose()
