"""Tasks of types that nobody knows: they wait, are in nobody's way, and run when somebody does."""

from __future__ import annotations

import uuid

from collections import Counter
from collections.abc import AsyncGenerator

import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._model import WorkerInfo
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import outcomes, state, working


@pytest.fixture
def ran(app: nq.App) -> list[tuple[float, int]]:
    """Declares the task type `known`; collects when which task of it starts."""
    starts: list[tuple[float, int]] = []

    @app.task(name="known")
    async def known(ctx: nq.TaskContext) -> None:
        starts.append((trio.current_time(), ctx.task_id))

    return starts


def app_with(*names: str) -> nq.App:
    """Return an application that knows these types; their handlers do nothing."""
    app = nq.App()
    for name in names:

        @app.task(name=name, retry=None)
        async def nothing() -> None: ...

    return app


async def fill(
    client: nq.Client, count: int, name: str = "new", *, priority: int = 0
) -> list[nq.TaskRef]:
    """Enqueue so many tasks of a type by its name."""
    request = nq.TaskRequest.by_name(name, priority=priority)
    return await client.enqueue_many([request] * count)


async def parked(client: nq.Client) -> list[int]:
    """Return the ids of those that have been put aside."""
    async with client.transaction() as tx:
        cursor = await tx.execute("select task_id from nursery_queue.parked order by task_id")
        return [task_id for (task_id,) in await cursor.fetchall()]


async def test_they_wait_and_then_run(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, ran: list[tuple[float, int]]
) -> None:
    """They stay ready for an hour, use up nothing, and run once somebody knows them."""
    refs = await fill(either, 20, priority=5)
    async with working(nq.Worker(app, either)):
        await trio.sleep(3600)
        (known,) = await fill(either, 1, "known")
        await trio.sleep(1)
        assert ran == [(3600, known.id)]
        assert Counter([await state(either, ref) for ref in refs]) == {"ready": 20}
        async with working(nq.Worker(app_with("new"), either, poll_interval=0)):
            await trio.sleep(1)

    assert [await outcomes(either, ref) for ref in refs] == [["succeeded"]] * 20
    assert {status.attempt for status in await either.status_many(refs) if status} == {1}


async def test_they_are_counted(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, ran: list[tuple[float, int]]
) -> None:
    """`stats` and `queues` count them whether or not they have been put aside."""
    await fill(either, 3)
    before = await either.stats(), await either.queues()
    async with working(nq.Worker(app, either)):
        await trio.sleep(60)
        during = await either.stats(), await either.queues()

    assert during[0].unknown_task_types.keys() == {"new"}
    assert during[0].queues == before[0].queues
    assert during[1] == before[1]


async def test_only_what_nobody_knows_is_put_aside(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client, ran: list[tuple[float, int]]
) -> None:
    """What another live worker knows stays where it is, however busy that one is."""
    busy = nq.App()

    @busy.task(name="busy")
    async def takes_long() -> None:
        await trio.sleep_forever()

    strange = await fill(pg, 3)
    await fill(pg, 3, "busy")
    alone = nq.Worker(busy, pg, concurrency=1, grace=0)
    async with working(alone), working(nq.Worker(app, pg)):
        await trio.sleep(60)

        assert await parked(pg) == [ref.id for ref in strange]


async def test_put_aside_they_are_as_ready_as_before(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client, ran: list[tuple[float, int]]
) -> None:
    """Put aside, a task is ready in every list, can be cancelled, and is then gone for good."""
    refs = await fill(pg, 3)
    async with working(nq.Worker(app, pg)):
        await trio.sleep(60)
        assert await parked(pg) == [ref.id for ref in refs]

        assert [task.state for task in await pg.list_tasks(state="ready")] == ["ready"] * 3
        assert await pg.cancel(refs[1])
        assert not await pg.cancel(refs[1])
        assert await pg.cancel_all(task_type="new") == 2
        assert await parked(pg) == []
    await nq.Worker(app_with("new"), pg).run_until_idle()
    assert [await state(pg, ref) for ref in refs] == ["cancelled"] * 3
    assert [await outcomes(pg, ref) for ref in refs] == [[]] * 3


async def test_drained_they_come_back(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client, ran: list[tuple[float, int]]
) -> None:
    """`run_until_idle` of a worker that knows them does them all, without a listener, too."""
    await fill(pg, 50)
    async with working(nq.Worker(app, pg)):
        await trio.sleep(60)
    assert len(await parked(pg)) == 50

    await nq.Worker(app_with("new"), pg, listen=False, poll_interval=0).run_until_idle()

    assert {task.state for task in await pg.list_tasks()} == {nq.State.SUCCEEDED}


async def test_known_again_after_a_lost_lease(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client, ran: list[tuple[float, int]]
) -> None:
    """A worker taken for dead, whose tasks were put aside, has them as soon as it is back."""
    store = FlakyStore(pg.store)
    alone = nq.Worker(app_with("new"), nq.Client(store), poll_interval=0, lease=1000, heartbeat=300)
    async with working(alone), working(nq.Worker(app, pg)):
        store.down = {"heartbeat", "deregister"}
        await trio.sleep(2000)
        refs = await fill(pg, 3)
        await trio.sleep(60)
        assert len(await parked(pg)) == 3
        store.down = set()
        while alone.health().lease_left == 0:  # noqa: ASYNC110  # its health is no event
            await trio.sleep(1)
        await trio.sleep(1)

        assert [await state(pg, ref) for ref in refs] == ["succeeded"] * 3


@pytest.fixture
async def elsewhere(migrated: str) -> AsyncGenerator[Store]:
    """The same tables as those of `pg`, as another process has them."""
    async with nq.connect(migrated) as client:
        yield client.store


async def test_looked_for_once_a_heartbeat(
    virtual_time: VirtualTime,
    app: nq.App,
    pg: nq.Client,
    elsewhere: Store,
    ran: list[tuple[float, int]],
) -> None:
    """However often a claim meets types that others know, they are looked at once a heartbeat."""
    store = FlakyStore(pg.store)
    await elsewhere.register(another("busy"))
    await fill(pg, 1, "busy", priority=5)
    async with working(nq.Worker(app, nq.Client(store), heartbeat=3)):
        for _ in range(200):
            await fill(pg, 1, "known")
            await trio.sleep(0.3)

    assert len(ran) == 200
    assert 18 <= store.calls["park"] <= 21


def another(*task_types: str, number: int = 1, lease: float = 3600) -> WorkerInfo:
    return WorkerInfo(
        id=uuid.UUID(int=number), name="a", host="h", pid=1, task_types=task_types, lease=lease
    )


async def test_nothing_else_stops_when_they_cannot_be_put_aside(
    virtual_time: VirtualTime,
    app: nq.App,
    pg: nq.Client,
    elsewhere: Store,
    ran: list[tuple[float, int]],
) -> None:
    """If parking fails, and bringing back, tasks run and the dead are swept all the same."""
    store = FlakyStore(pg.store)
    store.down = {"park", "unpark"}
    await fill(pg, 1, "new", priority=5)
    await elsewhere.register(another("known", lease=30))
    (lost,) = await fill(pg, 1, "known")
    await elsewhere.claim(another().id, ["known"], limit=1)
    async with working(nq.Worker(app, nq.Client(store))):
        await trio.sleep(90)

        assert await outcomes(pg, lost) == ["lost", "succeeded"]
        assert store.calls["park"] > 1


# -- who starts while another one parks ----------------------------------------------------------


async def arrive(store: Store, info: WorkerInfo) -> None:
    """Do what a worker does that begins."""
    await store.register(info)
    while await store.unpark(info.task_types):
        pass


async def test_who_starts_while_others_park(pg: nq.Client, elsewhere: Store) -> None:
    """However registrations and parkings fall together, nothing that is known stays aside."""
    left: list[list[int]] = []

    async def park_on(arrived: trio.Event) -> None:
        while not arrived.is_set():
            await pg.store.park()

    for number in range(1, 61):
        await fill(pg, 100)
        arrived = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(park_on, arrived)
            nursery.start_soon(park_on, arrived)
            await trio.sleep(0.001 * (number % 10))
            await arrive(elsewhere, another("new", number=number))
            arrived.set()
        left.append(await parked(pg))
        await pg.cancel_all(task_type="new")
        await elsewhere.deregister(another(number=number).id)

    assert left == [[]] * 60
