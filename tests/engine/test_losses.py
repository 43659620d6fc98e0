"""What counts as lost when a worker dies, and how often that may happen."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.recorder import ONCE, Recorder
from tests.support.workers import Longest, final, state, working


@pytest.fixture
def store(anywhere: FlakyStore) -> FlakyStore:
    return anywhere


def make_worker(app: nq.App, client: nq.Client, **options: Any) -> nq.Worker:
    return nq.Worker(app, client, lease=30, heartbeat=3, rng=Longest(), **options)


async def die(store: FlakyStore, client: nq.Client) -> None:
    """Take the row of each worker away, as if all were dead, and sweep."""
    for worker in await client.workers():
        await store.deregister(worker.id)
    while await client.sweep():
        pass


@pytest.mark.parametrize("prefetch", [11, "auto"])
async def test_only_what_runs_is_lost(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore, prefetch: Any
) -> None:
    """Of twelve tasks in the hands of a worker that dies, the one that runs is lost."""

    @app.task
    async def hold() -> None:
        await trio.sleep(1000)

    refs = [await client.enqueue(hold) for _ in range(12)]
    async with working(make_worker(app, client, concurrency=1, prefetch=prefetch)):
        await trio.sleep(0.5)
        await die(anywhere, client)
        found = await client.status_many(refs)

        assert [status.lost for status in found if status] == [1] + [0] * 11


async def test_what_was_claimed_ahead_counts_once_it_runs(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """A task that started from the backlog is lost if its worker dies after a heartbeat."""
    go = trio.Event()

    @app.task
    async def hold(first: bool) -> None:
        if first:
            await go.wait()
        else:
            await trio.sleep(1000)

    await client.enqueue(hold, True)
    ahead, behind = [await client.enqueue(hold, False) for _ in range(2)]
    async with working(make_worker(app, client, concurrency=1, prefetch=2)):
        go.set()
        await trio.sleep(4)
        await die(anywhere, client)
        found = await client.status_many([ahead, behind])

        assert [status.lost for status in found if status] == [1, 0]


async def test_a_suspect_is_noted_before_it_starts(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """What was in a dead worker's hands is known to the store before its handler is called."""
    seen: list[int] = []

    @app.task
    async def hold() -> None:
        seen.append(anywhere.calls["note_started"])

    app_of_nobody = nq.App()
    app_of_nobody.task(name=hold.name)(trio.sleep_forever)
    async with working(make_worker(app_of_nobody, client, concurrency=1, prefetch=5)):
        await client.enqueue_many([hold.bind() for _ in range(3)])
        await trio.sleep(0.5)
        await die(anywhere, client)
    anywhere.calls.clear()
    async with working(make_worker(app, client, concurrency=1, prefetch=5)):
        await trio.sleep(1)

    assert len(seen) == 3
    assert all(noted >= place for place, noted in enumerate(seen))  # the first is in the claim


async def test_a_start_that_cannot_be_noted_does_not_happen(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """The task is given back, no attempt used, and starts when the store can be told."""
    calls: list[float] = []

    @app.task
    async def note() -> None:
        calls.append(trio.current_time())

    stuck = nq.App()
    stuck.task(name=note.name)(trio.sleep_forever)
    refs = [await client.enqueue(note) for _ in range(2)]
    async with working(make_worker(stuck, client, concurrency=1, prefetch=5)):
        await trio.sleep(0.5)
        await die(anywhere, client)
    anywhere.down = {"note_started"}
    async with working(make_worker(app, client, concurrency=1, prefetch=5)):
        await trio.sleep(1)
        anywhere.down = set()
        for ref in refs:
            status = await final(client, ref)
            assert (status.state, status.attempt) == ("succeeded", 1)

    assert len(calls) == 2


async def test_a_start_that_does_not_happen_is_not_told(
    virtual_time: VirtualTime, app: nq.App, anywhere: FlakyStore
) -> None:
    """Instruments hear of the start of a suspected task when it really starts, and only then."""
    heard = Recorder()
    client = nq.Client(anywhere, instruments=[heard])

    @app.task
    async def work() -> None: ...

    stuck = nq.App()
    stuck.task(name=work.name)(trio.sleep_forever)
    refs = [await client.enqueue(work) for _ in range(3)]
    async with working(make_worker(stuck, client, concurrency=1, prefetch=5)):
        await trio.sleep(0.5)
        await die(anywhere, client)
    heard.events.clear()
    anywhere.down = {"note_started"}
    async with working(make_worker(app, client, concurrency=1, prefetch=5)):
        await trio.sleep(1)
        anywhere.down = set()
        for ref in refs:
            await final(client, ref)

    assert [heard.told_of(ref) for ref in refs] == [ONCE] * 3


async def test_a_task_type_says_how_often_it_may_be_lost(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """`max_lost` of the task type goes before that of the worker, whoever sweeps."""

    @app.task(max_lost=1)
    async def once() -> None:
        await trio.sleep(1000)

    @app.task
    async def usual() -> None:
        await trio.sleep(1000)

    refs = [await client.enqueue(once), await client.enqueue(usual)]
    async with working(make_worker(app, client, max_lost=2)):
        await trio.sleep(0.5)
        virtual_time.advance(31)
        await trio.sleep(0.1)
        # As another worker would, which knows neither of the types.
        await anywhere.sweep(max_lost=9)

        assert await state(client, refs[0]) == "failed"
        assert await state(client, refs[1]) != "failed"


@pytest.mark.parametrize(("wrong", "error"), [(0, ValueError), (True, TypeError), (1.5, TypeError)])
async def test_max_lost_is_checked(app: nq.App, client: nq.Client, wrong: Any, error: Any) -> None:
    """It is a whole number from 1 on."""
    with pytest.raises(error, match="max_lost"):
        app.task(max_lost=wrong)
    with pytest.raises(error, match="max_lost"):
        nq.Worker(app, client, max_lost=wrong)
