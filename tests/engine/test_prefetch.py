"""What a worker claims ahead of need, and what it does with what it cannot start."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import outcomes, state, working


@pytest.fixture
def limits(store: FlakyStore) -> list[int]:
    """Gets the limit of each claim that is asked for."""
    limits: list[int] = []

    def note(verb: str, *_: Any, **options: Any) -> None:
        if verb == "claim":
            limits.append(options["limit"])

    store.tell = note
    return limits


async def test_nothing_ahead(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, limits: list[int]
) -> None:
    """With `prefetch=0` no more is ever held than may run."""
    held: list[int] = []

    @app.task(name="quick")
    async def quick() -> None:
        held.append(worker.health().held)
        await trio.sleep(0.001)

    await client.enqueue_many([quick.bind()] * 40)
    worker = nq.Worker(app, client, concurrency=4, prefetch=0)
    await worker.run_until_idle()

    assert len(held) == 40
    assert max(held) == max(limits) == 4


async def test_so_many_ahead(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, limits: list[int]
) -> None:
    """With `prefetch=6` six more are held than may run."""
    held: list[int] = []
    running: list[int] = []

    @app.task(name="quick")
    async def quick() -> None:
        held.append(worker.health().held)
        running.append(worker.health().running)
        await trio.sleep(0.001)

    await client.enqueue_many([quick.bind()] * 40)
    worker = nq.Worker(app, client, concurrency=4, prefetch=6)
    await worker.run_until_idle()

    assert len(held) == 40
    assert max(running) == 4
    assert max(held) == max(limits) == 10


async def test_quick_handlers_are_claimed_in_batches(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, limits: list[int]
) -> None:
    """Handlers that take no time are claimed hundreds at a time, whatever the concurrency."""

    @app.task(name="no-op")
    async def no_op() -> None:
        pass

    await client.enqueue_many([no_op.bind()] * 1000)
    await nq.Worker(app, client, concurrency=2).run_until_idle()

    assert len(limits) < 10
    assert max(limits) > 500


async def test_as_many_as_the_slots_that_turn(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """With all slots but one taken for long, no more is held than that one will soon have done."""
    held: list[int] = []

    @app.task(name="long", priority=-1)
    async def takes_long() -> None:
        await trio.sleep(1000)

    @app.task(name="short")
    async def short() -> None:
        held.append(worker.health().held)
        await trio.sleep(0.005)

    worker = nq.Worker(app, client, concurrency=8, grace=0)
    await client.enqueue_many([short.bind()] * 200 + [takes_long.bind()] * 7)
    async with working(worker):
        await trio.sleep(1)
        with_eight = max(held)
        held.clear()
        await client.enqueue_many([short.bind()] * 200)
        await trio.sleep(2)

        assert len(held) == 200
        assert (with_eight > 8 + 40, max(held) <= 8 + 20) == (True, True)


@pytest.mark.parametrize("seconds", [0.01, 0.3])
async def test_handlers_do_not_wait_for_a_store_that_takes_long(
    autojump_clock: MockClock, app: nq.App, seconds: float
) -> None:
    """What is claimed ahead lasts until the next claim is answered, and waits in no hand for long.

    With handlers that take a while little is claimed ahead all the same.
    """
    # As one at the end of a long line, or a busy one.
    client = nq.Client(FlakyStore(late={"claim": 0.2, "settle": 0.1}))
    held: list[int] = []

    @app.task(name="quick")
    async def quick() -> None:
        held.append(worker.health().held)
        await trio.sleep(seconds)

    count, concurrency = round(20 / seconds), 4
    await client.enqueue_many([quick.bind()] * count)
    worker = nq.Worker(app, client, concurrency=concurrency)
    began = trio.current_time()
    await worker.run_until_idle()
    took = trio.current_time() - began

    assert len(held) == count
    assert took < 1.6 * count * seconds / concurrency
    assert max(held) <= concurrency * (1 + 1 / seconds)  # what one second is enough for


@pytest.fixture
def starts(app: nq.App) -> list[tuple[float, str]]:
    """Declares `short`, which takes 0.6 s; collects when it starts, and of which queue."""
    found: list[tuple[float, str]] = []

    @app.task(name="short")
    async def short(ctx: nq.TaskContext) -> None:
        found.append((trio.current_time(), ctx.queue))
        await trio.sleep(0.6)

    return found


@pytest.mark.parametrize("change", ["pause", "max_running"])
@pytest.mark.parametrize("listen", [True, False])
async def test_what_is_claimed_ahead_of_a_queue_that_is_paused(
    virtual_time: VirtualTime,
    app: nq.App,
    either: nq.Client,
    starts: list[tuple[float, str]],
    change: str,
    listen: bool,
) -> None:
    """It is given back, by a worker that only polls at its next poll; others' tasks start."""
    short = app["short"]
    refs = await either.enqueue_many([short.bind().options(queue="pool", priority=1)] * 9)
    await either.enqueue_many([short.bind()] * 2)
    worker = nq.Worker(app, either, concurrency=2, prefetch=20, listen=listen, poll_interval=0.3)
    async with working(worker):
        await trio.sleep(0.1)
        assert Counter([await state(either, ref) for ref in refs]) == {"running": 9}
        if change == "pause":
            await either.pause("pool")
        else:
            await either.configure_queue("pool", max_running=0)
        await trio.sleep(10)
        assert [queue for _, queue in starts] == ["pool"] * 2 + ["default"] * 2
        statuses = await either.status_many(refs)
        assert Counter((each.state, each.attempt) for each in statuses if each) == {
            ("succeeded", 1): 2,
            ("ready", 0): 7,
        }
        await either.resume("pool")
        await either.configure_queue("pool", max_running=None)
        await trio.sleep(10)
        assert Counter([await state(either, ref) for ref in refs]) == {"succeeded": 9}


async def test_what_is_claimed_ahead_of_a_queue_that_is_limited(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, starts: list[tuple[float, str]]
) -> None:
    """What has started goes on; from then on no more start than the limit allows."""
    refs = await either.enqueue_many([app["short"].bind().options(queue="pool")] * 6)
    async with working(nq.Worker(app, either, concurrency=2, prefetch=20)):
        await trio.sleep(0.1)
        await either.configure_queue("pool", max_running=1)
        await trio.sleep(10)
        assert Counter([await state(either, ref) for ref in refs]) == {"succeeded": 6}

    assert [at for at, _ in starts] == pytest.approx([0, 0, 0.6, 1.2, 1.8, 2.4], abs=0.2)


async def test_slow_handlers_are_not_claimed_ahead(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """Handlers that take seconds leave what they cannot start to others."""
    held: list[int] = []

    @app.task(name="slow")
    async def slow() -> None:
        held.append(worker.health().held)
        await trio.sleep(3)

    await either.enqueue_many([slow.bind()] * 20)
    worker = nq.Worker(app, either, concurrency=4)
    await worker.run_until_idle()

    assert len(held) == 20
    assert max(held) == 4


@pytest.mark.parametrize("poll_interval", [0, 5])
async def test_what_waits_in_hand_goes_back(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, poll_interval: float
) -> None:
    """What has waited a second for a slot is handed back, as if it had never been claimed."""

    @app.task(name="long")
    async def long() -> None:
        await trio.sleep(1000)

    first, *others = await either.enqueue_many([long.bind()] * 4)
    hoarder = nq.Worker(
        app, either, concurrency=1, prefetch=3, listen=False, poll_interval=poll_interval
    )
    async with working(hoarder):
        assert [await state(either, ref) for ref in others] == ["running"] * 3
        await trio.sleep(0.9)
        assert [await state(either, ref) for ref in others] == ["running"] * 3
        await trio.sleep(0.11)
        async with working(nq.Worker(app, either, prefetch=0)):
            await trio.sleep(0.5)
            assert hoarder.health().held == 1
            assert [await state(either, ref) for ref in others] == ["running"] * 3
        statuses = await either.status_many(others)
        assert [status and status.attempt for status in statuses] == [0, 0, 0]
    assert await outcomes(either, first) == ["interrupted"]


async def test_a_slow_handler_after_many_quick_ones(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """Having handed back what it had claimed too many of, a worker does not claim them again."""

    @app.task(name="mixed")
    async def mixed(seconds: float) -> None:
        await trio.sleep(seconds)

    await client.enqueue_many([mixed.bind(0.0)] * 100)
    async with working(nq.Worker(app, client, concurrency=2)) as _:
        await trio.sleep(1)
        await client.enqueue_many([mixed.bind(60.0)] * 50)
        await trio.sleep(5)
        before = store.calls["claim"]
        await trio.sleep(50)
        assert store.calls["claim"] - before < 20

        ready = (await client.stats()).queues["default"][nq.State.READY]
        assert ready >= 46


@pytest.mark.parametrize("prefetch", [0, 7, "auto"])
async def test_thousands_run_once(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    prefetch: int | Literal["auto"],
) -> None:
    """Each of 5,000 tasks runs exactly once, on two workers."""
    ran: Counter[int] = Counter()

    @app.task(name="count")
    async def count(ctx: nq.TaskContext) -> None:
        ran[ctx.task_id] += 1
        if ctx.task_id % 7 == 0:
            await trio.sleep(0.01)

    refs = await client.enqueue_many([count.bind()] * 5000)
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            worker = nq.Worker(app, client, concurrency=100, prefetch=prefetch)
            nursery.start_soon(worker.run_until_idle)

    assert len(ran) == 5000
    assert set(ran.values()) == {1}
    statuses = await client.status_many(refs)
    assert {status and status.state for status in statuses} == {nq.State.SUCCEEDED}
