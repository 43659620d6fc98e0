"""What a task costs the database: statements, rows, pages and bytes, which are the same anywhere.

As in tests/engine/test_counts.py, the bounds are what is true and a little more: a change that
makes a task cheaper lowers them, and one that makes it dearer raises them, and says the reason.
"""

from __future__ import annotations

import contextlib

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from itertools import islice
from uuid import UUID

import attrs
import psycopg
import pytest
import trio

from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from nursery_queue._core._model import Claim, Settlement
from nursery_queue._core._states import Event
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._psycopg._connection import Connection
from nursery_queue.testing import VirtualTime, deterministic
from tests.support.flaky_store import FlakyStore
from tests.support.proxy import DETOURS, Link, Proxy
from tests.support.store_steps import ERROR, a_task, claim, ends, hire
from tests.support.workers import working


# pyright: reportPrivateUsage=false

# -- what is said to the server -------------------------------------------------------------------


def messages(said: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Yield where each message of a client begins, its type, and what it says."""
    at = int.from_bytes(said[:4])  # the one that begins a session has no type
    while at < len(said):
        end = at + 1 + int.from_bytes(said[at + 1 : at + 5])
        yield at, said[at : at + 1], said[at + 5 : end]
        at = end


def parameters(bind: bytes) -> Iterator[bytes]:
    """Yield the parameters with which a statement is executed."""
    _portal, _statement, rest = bind.split(b"\0", 2)
    at = 2 + 2 * int.from_bytes(rest[:2])  # behind the formats
    for _ in range(int.from_bytes(rest[at : at + 2])):
        length = max(0, int.from_bytes(rest[at + 2 : at + 6], signed=True))  # -1: null
        yield rest[at + 6 : at + 6 + length]
        at += 4 + length


@attrs.define
class Said:
    """What clients have said to a server, besides the pings of a listener and a virtual clock."""

    executed: int = 0  # prepared statements
    parsed: list[bytes] = attrs.field(factory=list[bytes])  # how each begins
    queries: list[bytes] = attrs.field(factory=list[bytes])  # unprepared, such as BEGIN
    round_trips: int = 0
    bound: list[list[bytes]] = attrs.field(factory=list[list[bytes]])  # parameters, by execution

    def note(self, kind: bytes, body: bytes) -> None:
        match kind:
            case b"E":
                self.executed += 1
            case b"P":
                self.parsed.append(body[:80])
            case b"B":
                self.bound.append(list(parameters(body)))
            case b"Q" if not body.startswith((b"set nursery_queue.now", b"\0")):
                self.queries.append(body[:80])
                self.round_trips += 1
            case b"S":
                self.round_trips += 1
            case _:
                pass


@attrs.define(eq=False)
class Wire:
    """Hears what goes through a proxy."""

    proxy: Proxy
    _marks: dict[Link, int] = attrs.field(factory=dict[Link, int])

    def begin(self) -> None:
        """Forget what has been said so far."""
        self._marks = {link: len(link.said) for link in self.proxy.links}

    def said(self) -> Said:
        said = Said()
        for link in self.proxy.links:
            for at, kind, body in messages(bytes(link.said)):
                if at >= self._marks.get(link, 0):
                    said.note(kind, body)
        return said


@pytest.fixture
async def far(proxy: Proxy) -> AsyncGenerator[FlakyStore]:
    """A store whose words can be read on their way, and that answers a millisecond later.

    In virtual time that makes the same batches everywhere: however slow the server is, the clock
    stands still until it has answered.
    """
    dsn = make_conninfo(proxy.dsn, sslmode="disable", gssencmode="disable")
    DETOURS[dsn] = DETOURS[proxy.dsn]
    store = PostgresStore(dsn)
    yield FlakyStore(store, late={"claim": 0.001, "settle": 0.001})
    await store.aclose()


@pytest.fixture
def app() -> nq.App:
    app = nq.App()

    @app.task(name="no-op")
    async def no_op() -> None:
        pass

    return app


@contextlib.asynccontextmanager
async def warm(app: nq.App, store: FlakyStore, proxy: Proxy) -> AsyncGenerator[Wire]:
    """Run a worker that has all its connections, and has said everything once."""
    wire = Wire(proxy)
    with deterministic(seed=1):
        async with nq.Client(store) as client, working(nq.Worker(app, client)):
            await store.enqueue([a_task(task_type="no-op")] * 200)
            await trio.sleep(70)  # maintenance has been once around
            store.calls.clear()
            wire.begin()
            yield wire


def upkeep(calls: Counter[str]) -> int:
    """Return how many statements a worker may have executed besides, at most two in a verb."""
    return 2 * sum(calls[verb] for verb in set(calls) - {"enqueue", "claim", "settle"})


async def test_statements_of_a_drain(
    virtual_time: VirtualTime, app: nq.App, far: FlakyStore, proxy: Proxy
) -> None:
    """A thousand no-ops take a claim and three settlements: four statements and no others.

    Each is a transaction by itself, in one round trip, prepared once: BEGIN and COMMIT, or a
    statement that is parsed again, would be seen.
    """
    async with warm(app, far, proxy) as wire:
        await far.enqueue([a_task(task_type="no-op")] * 1000)
        await trio.sleep(0.5)
        said, calls = wire.said(), far.calls

        assert calls["claim"] <= 1
        assert calls["settle"] <= 3  # a first one that is small, and 500 at a time
        assert (said.parsed, said.queries) == ([], [])
        assert said.round_trips == said.executed <= 5 + upkeep(calls)


async def test_statements_for_a_task_alone(
    virtual_time: VirtualTime, app: nq.App, far: FlakyStore, proxy: Proxy
) -> None:
    """A task that comes alone takes one claim and one settlement, and no claim looks for more."""
    async with warm(app, far, proxy) as wire:
        for _ in range(10):
            await far.enqueue([a_task(task_type="no-op")])
            await trio.sleep(1)
        said, calls = wire.said(), far.calls

        assert (calls["claim"], calls["settle"]) == (10, 10)
        assert (said.parsed, said.queries) == ([], [])
        assert said.round_trips == said.executed <= 30 + upkeep(calls)


async def test_verbs_of_an_idle_hour(
    virtual_time: VirtualTime, app: nq.App, far: FlakyStore, proxy: Proxy
) -> None:
    """A worker with nothing to do renews its lease, looks for work now and then, and little else.

    And it opens no connection for each of them.
    """
    async with warm(app, far, proxy):
        accepted = proxy.accepted
        await trio.sleep(3600)

        assert far.calls["heartbeat"] <= 1300  # every 3 seconds or a little less
        assert far.calls["claim"] <= 800  # every 5 seconds or so
        assert far.calls["fire_schedules"] <= 70  # every minute, if no notification wakes it
        assert far.calls.total() <= 2600
        assert proxy.accepted - accepted <= 4


# -- bytes ----------------------------------------------------------------------------------------


def successes(claims: Sequence[Claim]) -> list[Settlement]:
    return [ends(one, Event.SUCCEED) for one in claims]


def mixed(claims: Sequence[Claim]) -> list[Settlement]:
    """Of every four, one goes again, one fails, one has succeeded and one is given back."""
    events = (Event.RETRY, Event.FAIL, Event.SUCCEED, Event.INTERRUPT)
    failed = {Event.RETRY, Event.FAIL}
    return [
        ends(one, event, error=ERROR if event in failed else None)
        for one, event in zip(claims, events * len(claims), strict=False)
    ]


@pytest.mark.parametrize(
    ("settlements", "most_arrays", "most_bytes"),
    [
        pytest.param(successes, 6, 1900, id="successes"),  # 1,805
        pytest.param(mixed, 15, 8800, id="mixed"),  # 8,339
    ],
)
async def test_bytes_of_a_settlement(
    far: FlakyStore,
    proxy: Proxy,
    settlements: Callable[[Sequence[Claim]], list[Settlement]],
    most_arrays: int,
    most_bytes: int,
) -> None:
    """A hundred settlements are so many arrays, and so many bytes, all in all."""
    await far.enqueue([a_task()] * 300)
    claims = await claim(far, await hire(far), 300)
    await far.settle(settlements(claims[:100]))
    wire = Wire(proxy)
    wire.begin()
    await far.settle(settlements(claims[200:]))
    (arrays,) = wire.said().bound

    assert len(arrays) <= most_arrays
    assert sum(map(len, arrays)) <= most_bytes


# -- rows and pages ----------------------------------------------------------------------------

ROUNDS = 3
FLUSH = "select pg_stat_force_next_flush()::text"  # the counts begin anew
COUNTED = """
    select sum(pg_stat_get_xact_tuples_returned(oid)
               + case relkind when 'r' then pg_stat_get_xact_tuples_fetched(oid) else 0 end)::int,
           sum(pg_stat_get_xact_tuples_inserted(oid) + pg_stat_get_xact_tuples_updated(oid)
               + pg_stat_get_xact_tuples_deleted(oid))::int,
           sum(pg_stat_get_xact_blocks_fetched(oid))::int
      from pg_class
     where relnamespace = 'nursery_queue'::regnamespace and relkind in ('r', 'i')
"""
Step = Callable[[PostgresStore, UUID, Sequence[Claim]], Awaitable[object]]


@attrs.frozen
class Work:
    """Rows that were read, rows that were written, and pages that were looked at for both."""

    read: int
    written: int
    pages: int


@attrs.define(eq=False)
class Bench:
    """A store with rows in it, one connection of which is used for all that is measured."""

    store: PostgresStore
    worker: UUID
    claims: Iterator[Claim]
    conn: Connection

    async def work(self, step: Step, size: int) -> Work:
        """Measure a step; the least of a few times, since pages are pruned and split meanwhile."""
        await self._once(step, size)
        every = [await self._once(step, size) for _ in range(ROUNDS)]
        return Work(*map(min, zip(*every, strict=True)))

    async def _once(self, step: Step, size: int) -> Sequence[int]:
        batch = list(islice(self.claims, size))
        await self.conn.fetch(FLUSH)
        async with self.conn.transaction():
            await step(self.store, self.worker, batch)
            (row,) = await self.conn.fetch(COUNTED)
        return row


@pytest.fixture
async def bench(migrated: str, monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[Bench]:
    """A thousand ready and a thousand running tasks, vacuumed, and a connection as workers have."""
    store = PostgresStore(migrated)
    await store.enqueue([a_task()] * 2000)
    worker = await hire(store)
    claims = await claim(store, worker, 1000)
    with psycopg.connect(migrated, autocommit=True) as session:
        session.execute("vacuum (freeze, analyze)")
    conn = await store._connect_to_control()

    @contextlib.asynccontextmanager
    async def lent(*_: object, **__: object) -> AsyncGenerator[Connection]:
        yield conn

    monkeypatch.setattr(PostgresStore, "_lent", lent)
    yield Bench(store, worker, iter(claims), conn)
    conn.abort()
    await store.aclose()


STEPS: dict[str, Step] = {
    "enqueue": lambda store, _, claims: store.enqueue([a_task()] * len(claims)),
    "claim": lambda store, worker, claims: claim(store, worker, len(claims)),
    "settle successes": lambda store, _, claims: store.settle(successes(claims)),
    "settle": lambda store, _, claims: store.settle(mixed(claims)),
}
# On PostgreSQL 15, and on a later one.
MOST = {
    ("enqueue", 1): (Work(read=0, written=2, pages=7), Work(read=0, written=2, pages=7)),
    ("enqueue", 100): (Work(0, 200, 609), Work(0, 200, 607)),
    # Rows that the rounds before have left behind are among those it reads: 302 to 503.
    ("claim", 1): (Work(8, 2, 34), Work(8, 2, 34)),
    ("claim", 100): (Work(503, 200, 1061), Work(503, 200, 1023)),
    ("settle successes", 1): (Work(2, 3, 16), Work(2, 3, 16)),
    ("settle successes", 100): (Work(101, 300, 1408), Work(101, 300, 1208)),
    ("settle", 1): (Work(2, 3, 14), Work(2, 3, 14)),
    ("settle", 100): (Work(126, 300, 1411), Work(126, 300, 1309)),
}


@pytest.mark.parametrize(("name", "size"), MOST)
async def test_rows_and_pages(bench: Bench, name: str, size: int) -> None:
    """A statement for one task, or for a hundred, reads and writes so many rows and pages.

    An index more, an index that is not used, a table that is looked at twice: each is in it, with
    what triggers do.
    """
    most = MOST[name, size][bench.conn.info.server_version >= 160000]

    work = await bench.work(STEPS[name], size)

    assert work.written <= most.written
    assert work.read <= most.read * 1.1
    assert work.pages <= most.pages * 1.05
