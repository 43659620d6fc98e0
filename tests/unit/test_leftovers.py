"""The suite notices what a worker leaves behind, of whatever kind."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import threading

from collections.abc import AsyncGenerator, Generator
from pathlib import Path
from typing import Any

import pytest
import trio

import nursery_queue as nq

from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._listener import Listener
from nursery_queue._store import Bell, Store
from nursery_queue._worker._lease_renewal import LeaseRenewal
from nursery_queue._worker._outbox import Outbox
from nursery_queue.testing import MemoryStore
from tests.support.leftovers import Watch, shift_of


HERE = Path(__file__).parents[2]


@pytest.fixture
def watch(nothing_left: Watch) -> Generator[Watch]:
    """The watch of this test; what it finds is expected, and checked by the test."""
    yield nothing_left
    nothing_left.found.clear()


@pytest.fixture(params=["memory", "postgres"])
def some_store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return MemoryStore()
    return PostgresStore(str(request.getfixturevalue("migrated")))


@pytest.fixture
async def either(some_store: Store) -> AsyncGenerator[Store]:
    yield some_store
    await some_store.aclose()


@pytest.fixture
def app() -> nq.App:
    app = nq.App()

    @app.task(name="hold")
    async def hold() -> None:
        await trio.sleep_forever()

    return app


async def work(app: nq.App, store: Store) -> None:
    """Run a worker that claims a task, and stop it."""
    client = nq.Client(store)
    ref = await client.enqueue("hold")
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(app, client, grace=0, cleanup=0)
        await nursery.start(worker.run)
        status = await client.status(ref)
        assert status is not None
        assert status.state == "running"
        worker.stop()


def touched(store: MemoryStore | PostgresStore) -> None:
    """Note that the worker whose turn it is uses this store."""
    shift = shift_of.get()
    assert shift is not None
    shift.stores.add(store)


def ignore(*args: Any, **kwargs: Any) -> None:
    """Take no notice."""


async def nothing(*args: Any, **kwargs: Any) -> None:
    await trio.lowlevel.checkpoint()


async def test_a_tidy_worker(watch: Watch, app: nq.App, either: Store) -> None:
    """A worker that leaves nothing is not accused, nor is the test for what is its own."""
    with trio.move_on_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await work(app, either)
            nursery.cancel_scope.cancel()

    assert watch.found == []


async def test_a_worker_row(
    watch: Watch, app: nq.App, either: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is not taken away is found."""
    monkeypatch.setattr(LeaseRenewal, "end", nothing)
    await work(app, either)

    assert watch.found[-1].startswith("worker ")
    assert watch.found[-1].endswith(" has a row")


@pytest.mark.parametrize("look", [True, False])
async def test_a_claim(
    watch: Watch, app: nq.App, either: Store, monkeypatch: pytest.MonkeyPatch, look: bool
) -> None:
    """A task that is not given back is found, unless the test has said that it may be left."""
    watch.look_for_claims = look
    monkeypatch.setattr(Outbox, "put", ignore)
    monkeypatch.setattr("nursery_queue._worker._levels.FLUSH", 0.0)
    await work(app, either)

    assert [found[:28] for found in watch.found] == ["task 1 is claimed by worker "] * look


async def test_a_database_that_cannot_be_asked(watch: Watch) -> None:
    """Where nobody can look for claims, they count as left."""

    async def careless() -> None:
        touched(PostgresStore("host=/nowhere dbname=nothing"))

    await watch.around(careless)()

    assert ["claims, perhaps" in found for found in watch.found] == [True]


async def test_a_connection(
    watch: Watch, app: nq.App, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that is neither closed nor in a pool is found."""
    left: list[Connection] = []

    def forget(listener: Listener) -> None:
        left.append(listener.connection)

    monkeypatch.setattr(Listener, "close", forget)
    store = PostgresStore(migrated)
    await work(app, store)
    await store.aclose()
    for connection in left:
        connection.abort()

    assert ["Connection" in found for found in watch.found] == [True]


async def test_a_connection_that_is_not_given_back(watch: Watch, migrated: str) -> None:
    """A connection of a pool that stays lent is found, and so is what was made of room."""
    store = PostgresStore(migrated)
    async with contextlib.AsyncExitStack() as stack:

        async def careless() -> None:
            touched(store)
            await stack.enter_async_context(store._control.connection())
            stack.enter_context(store.room_for(1))

        await watch.around(careless)()
    await store.aclose()

    assert [found.split()[0:2] for found in watch.found] == [
        ["a", "connection"],
        ["room", "in"],
    ]


async def test_somebody_who_listens(watch: Watch) -> None:
    """In memory, an ear is what a connection is on PostgreSQL."""
    store = MemoryStore()

    async def careless() -> None:
        touched(store)
        store._rings.append(ignore)

    await watch.around(careless)()

    assert watch.found == ["somebody listens"]


async def test_a_task_in_a_foreign_nursery(watch: Watch) -> None:
    """A task that a worker has started outside of itself is found, and one of the test is not."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever, name="the test's")

        async def careless() -> None:
            nursery.start_soon(trio.sleep_forever, name="the worker's")
            await trio.lowlevel.checkpoint()

        await watch.around(careless)()
        nursery.cancel_scope.cancel()

    assert ["the worker's" in found for found in watch.found] == [True]


async def test_a_system_task(watch: Watch) -> None:
    """A task of ours outside of all nurseries is found."""
    store = MemoryStore()

    async def careless() -> None:
        trio.lowlevel.spawn_system_task(store.listen, ignore, list(Bell))
        await trio.lowlevel.checkpoint()

    await watch.around(careless)()

    assert ["MemoryStore.listen" in found for found in watch.found] == [True]


async def test_a_timer(watch: Watch) -> None:
    """A scope with a deadline that was entered and not left is found."""
    scope = trio.CancelScope(deadline=trio.current_time() + 1000)

    async def careless() -> None:
        scope.__enter__()
        await trio.lowlevel.checkpoint()

    await watch.around(careless)()
    scope.__exit__(None, None, None)

    assert [found.startswith("timer of") for found in watch.found] == [True]


@pytest.mark.parametrize("name", ["nursery_queue watchdog", "somebody's"])
async def test_a_thread(watch: Watch, name: str) -> None:
    """A thread with our name is found; others are none of our business."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait, name=name)

    async def careless() -> None:
        thread.start()
        await trio.lowlevel.checkpoint()

    await watch.around(careless)()
    end.set()
    thread.join()

    expected = [f"thread {name!r}"] if name.startswith("nursery_queue") else []
    assert watch.found == expected


async def test_two_workers_at_a_time(watch: Watch, app: nq.App, either: Store) -> None:
    """What belongs to a worker that goes on is not left behind by one that ends."""
    client = nq.Client(either)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            await client.enqueue("hold")
        first, second = (nq.Worker(app, client, grace=0, concurrency=1) for _ in range(2))
        await nursery.start(first.run)
        await nursery.start(second.run)
        first.stop()
        await trio.lowlevel.checkpoint()
        await client.status(1)
        second.stop()

    assert watch.found == []


def test_what_is_found_fails_the_test(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test during which something was left fails, unless it has said why; it must say why."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    pytester.makeini("""
        [pytest]
        markers = leaves_claims(why): may be left
    """)
    pytester.makeconftest("""
        import pytest
        from tests.support.leftovers import watched
        nothing_left = pytest.fixture(autouse=True)(watched)
    """)
    pytester.makepyfile("""
        import pytest, trio, uuid
        import nursery_queue as nq
        from nursery_queue.testing import MemoryStore
        from nursery_queue._worker._lease_renewal import LeaseRenewal

        @pytest.fixture(autouse=True)
        def broken(monkeypatch):
            async def end(tenancy):
                await trio.lowlevel.checkpoint()
            monkeypatch.setattr(LeaseRenewal, "end", end)

        def work():
            trio.run(nq.Worker(nq.App(), nq.Client(MemoryStore())).run_until_idle)

        def test_a_row():
            work()

        @pytest.mark.leaves_claims("on purpose")
        def test_with_a_reason():
            work()

        @pytest.mark.leaves_claims
        def test_without_one():
            work()
    """)

    result = pytester.runpytest_subprocess("-p", "no:nursery_queue")

    result.assert_outcomes(passed=2, errors=2)
    result.stdout.fnmatch_lines(["a worker has left behind:", "worker * has a row"])
    result.stdout.fnmatch_lines(["*say why: @pytest.mark.leaves_claims*"])
