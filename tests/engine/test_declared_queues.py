"""Queues are set as code declares them when a worker starts."""

from __future__ import annotations

import logging

import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._queue_changes import Declared
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import Longest, working


@pytest.fixture
def client(anywhere: FlakyStore) -> nq.Client:
    """A client of each kind of store."""
    return nq.Client(anywhere)


@pytest.fixture
def most() -> list[int]:
    """How many tasks of the queue ran at once, at each start."""
    return []


@pytest.fixture
def app(most: list[int]) -> nq.App:
    """Declare a queue of which one task may run at a time, and tasks of it."""
    app, running = nq.App(), 0
    app.queue("pool", max_running=1, rate_per_key=nq.Rate(5, per=60))

    @app.task(name="pooled", queue="pool")
    async def pooled() -> None:
        nonlocal running
        running += 1
        most.append(running)
        await trio.sleep(1)
        running -= 1

    return app


async def limit(client: nq.Client) -> int | None:
    (queue,) = await client.queues()
    assert queue.name == "pool"
    return queue.max_running


async def start(app: nq.App, client: nq.Client) -> None:
    """Start a worker, and let it end at once."""
    async with working(nq.Worker(app, client, rng=Longest())):
        pass


def changed(most: int) -> nq.App:
    """Return another version of the code."""
    app = nq.App()
    app.queue("pool", max_running=most)
    return app


async def test_before_the_first_task_starts(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, most: list[int]
) -> None:
    """Tasks that wait when the first worker starts meet the limits that its code declares."""
    await client.enqueue_many([nq.TaskRequest.by_name("pooled", queue="pool") for _ in range(4)])
    await nq.Worker(app, client).run_until_idle()

    assert most == [1, 1, 1, 1]
    (queue,) = await client.queues()
    assert (queue.max_running, queue.rate_per_key) == (1, nq.Rate(5, per=60))


async def test_what_was_set_at_run_time(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """It outlives starts of the same code, and gives way to code that declares something else."""
    seen: list[int | None] = []
    for code in (app, app, changed(5), app):
        await start(code, client)
        seen.append(await limit(client))
        await client.configure_queue("pool", max_running=3)

    assert seen == [1, 3, 5, 1]


async def test_two_versions_at_once(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """Only starts declare: while both versions live, heartbeats change nothing."""
    async with working(nq.Worker(app, client)):
        assert await limit(client) == 1
        async with working(nq.Worker(changed(5), client)):
            for _ in range(5):
                assert await limit(client) == 5
                await trio.sleep(20)


async def test_a_lost_lease_declares_nothing(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """A worker that registers anew leaves queues alone: newer code may have been declared since."""
    async with working(nq.Worker(app, client, lease=9, rng=Longest())) as _:
        await start(changed(5), client)
        anywhere.down = {"heartbeat"}
        await trio.sleep(20)
        anywhere.mend()
        await trio.sleep(20)
        assert anywhere.calls["register"] > 2

        assert (await limit(client), anywhere.calls["declare_queues"]) == (5, 2)


async def test_an_app_without_queues_asks_nothing(
    virtual_time: VirtualTime, client: nq.Client, anywhere: FlakyStore
) -> None:
    """Who declares no queue has no statement more at the start, and a loop that is well."""
    worker = nq.Worker(nq.App(), client)
    async with working(worker):
        assert worker.health().loops["declarations"].state == "healthy"

    assert anywhere.calls["declare_queues"] == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Declared(left={"pool": "an open transaction is changing it"}), "pool: an open trans"),
        (nq.DatabaseRefused("no right"), "no right"),
        (ValueError("a bug"), "a bug"),
    ],
)
async def test_what_cannot_be_stored_keeps_no_task_waiting(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    anywhere: FlakyStore,
    caplog: pytest.LogCaptureFixture,
    answer: Declared | Exception,
    said: str,
) -> None:
    """The worker works, says in log and health what is missing, once, and tries until it is not."""
    caplog.set_level(logging.INFO, "nursery_queue")
    if isinstance(answer, Exception):
        anywhere.raises["declare_queues"] = answer
    else:
        anywhere.instead["declare_queues"] = answer
    worker = nq.Worker(app, client, rng=Longest())
    begun = trio.current_time()
    async with working(worker):
        ref = await client.enqueue("pooled", queue="pool")
        await client.wait(ref)
        assert trio.current_time() < begun + 3
        await trio.sleep(60)
        loop = worker.health().loops["declarations"]
        assert loop.state == "backing_off"
        assert said in (loop.last_error or "")
        assert loop.restarts > 10
        anywhere.mend()
        await trio.sleep(5)
        assert worker.health().loops["declarations"].state == "healthy"
        assert await limit(client) == 1

    words = ("declarations", "as the code declares")
    told = [line for line in caplog.messages if any(word in line for word in words)]
    assert [said in line for line in told] == [True, False, False]
    assert told[1:] == ["queue pool is set as the code declares it", "declarations is back"]


async def test_a_store_that_is_away(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    anywhere: FlakyStore,
    most: list[int],
) -> None:
    """While it takes no declaration, nothing is claimed; nor for ever, if it takes claims."""
    await client.enqueue_many([nq.TaskRequest.by_name("pooled", queue="pool") for _ in range(3)])
    anywhere.down = {"declare_queues"}
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(app, client, rng=Longest())
        nursery.start_soon(worker.run)
        await trio.sleep(29)
        assert (anywhere.calls["claim"], most) == (0, [])
        await trio.sleep(2)
        assert most == [1, 2, 3]
        worker.stop()


async def test_back_before_the_first_claim(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    anywhere: FlakyStore,
    most: list[int],
) -> None:
    """After an outage at the start the limits are stored first, and then tasks start."""
    await client.enqueue_many([nq.TaskRequest.by_name("pooled", queue="pool") for _ in range(3)])
    anywhere.down = {"declare_queues", "claim", "heartbeat"}
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(app, client, rng=Longest())
        nursery.start_soon(worker.run)
        await trio.sleep(8)
        anywhere.mend()
        await trio.sleep(12)
        worker.stop()

    assert most == [1, 1, 1]
