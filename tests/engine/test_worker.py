"""What a worker claims, and when."""

from __future__ import annotations

import datetime as dt

from collections.abc import Mapping, Sequence

import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue._core._model import Claimed
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import Longest, outcomes, state, working


async def test_a_ring_starts_a_task_at_once(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, starts: list[float]
) -> None:
    """A listening worker starts a task when it is enqueued, not at its next poll."""
    async with working(nq.Worker(app, either, poll_interval=100)):
        await trio.sleep(10)
        await either.enqueue("note")
        await trio.sleep(1)

    assert starts == [10]


async def test_a_poll_finds_what_no_ring_told_of(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, starts: list[float]
) -> None:
    """Without a listener, a task starts at the next poll."""
    async with working(nq.Worker(app, either, poll_interval=4, listen=False, rng=Longest())):
        await trio.sleep(10)
        await either.enqueue("note")
        await trio.sleep(10)

    assert starts == [pytest.approx(4.4 * 3)]


async def test_no_poll_and_no_listener(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, starts: list[float]
) -> None:
    """With `poll_interval=0` and no listener, only what is there at the start is claimed."""
    await client.enqueue("note")
    async with working(nq.Worker(app, client, poll_interval=0, listen=False)):
        await trio.sleep(10)
        late = await client.enqueue("note")
        await trio.sleep(10_000)

        assert await state(client, late) == "ready"
    assert starts == [0]


async def test_an_idle_worker_asks_little(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """An idle worker makes less than one call a second."""
    async with working(nq.Worker(app, client)):
        await trio.sleep(1000)

    assert sum(store.calls.values()) < 1000


@pytest.mark.parametrize(
    ("queues", "most"),
    [
        (None, {"a": 6, "b": 6, "c": 6}),
        ({"a": 2, "b": 1}, {"a": 2, "b": 1}),
        ({"a": 1}, {"a": 1}),
        (["b", "c"], {"b": 6, "c": 6}),
    ],
)
async def test_bounds(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    queues: Mapping[str, int] | Sequence[str] | None,
    most: Mapping[str, int],
) -> None:
    """At most `concurrency` handlers run, of each queue as many as allowed, and none idles."""
    running = {"a": 0, "b": 0, "c": 0}
    seen = dict(running)
    total: list[int] = []

    @app.task(name="work")
    async def work(ctx: nq.TaskContext) -> None:
        running[ctx.queue] += 1
        seen[ctx.queue] = max(seen[ctx.queue], running[ctx.queue])
        total.append(sum(running.values()))
        await trio.sleep(10)
        running[ctx.queue] -= 1

    requests = [nq.TaskRequest.by_name("work", queue=queue) for queue in "abc" for _ in range(6)]
    refs = await client.enqueue_many(requests)
    worker = nq.Worker(app, client, queues=queues, concurrency=6, poll_interval=0)
    await worker.run_until_idle()

    assert max(total) == min(6, sum(most.values()))
    assert {queue for queue, n in seen.items() if n} == set(most)
    assert all(seen[queue] <= n for queue, n in most.items())
    done = {ref.id: await state(client, ref) for ref in refs}
    assert sum(state == "succeeded" for state in done.values()) == 6 * len(most)


async def test_a_full_queue_goes_on_when_its_slot_is_free(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """Tasks of a queue limited to one run one after the other, without waiting for a poll."""
    ends: list[float] = []

    @app.task(name="slow", queue="one")
    async def slow() -> None:
        await trio.sleep(1)
        ends.append(trio.current_time())

    for _ in range(4):
        await either.enqueue(slow)
    async with working(nq.Worker(app, either, queues={"one": 1, "other": 9}, poll_interval=0)):
        await trio.sleep(10)

    assert ends == [1, 2, 3, 4]


async def test_priority_then_age(virtual_time: VirtualTime, app: nq.App, either: nq.Client) -> None:
    """Higher priority goes first, and among equals the older."""
    order: list[str] = []

    @app.task(name="note")
    async def note(what: str) -> None:
        order.append(what)

    for priority, what in [(0, "c"), (5, "a"), (-1, "e"), (0, "d"), (5, "b")]:
        await either.enqueue(note.options(priority=priority), what)
    await nq.Worker(app, either, concurrency=1, prefetch=0).run_until_idle()

    assert "".join(order) == "abcde"


async def test_scheduled_tasks_start_when_due(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, starts: list[float]
) -> None:
    """A task starts when it is due: not earlier, and not at the next poll."""
    note = app["note"]
    async with working(nq.Worker(app, either, poll_interval=0)):
        await either.enqueue(note.options(run_after=7.25))
        await either.enqueue(note.options(run_after=dt.timedelta(seconds=3)))
        status = await either.status(await either.enqueue(note.options(run_after=100)))
        assert status is not None
        await either.enqueue(note.options(run_at=status.run_at - dt.timedelta(seconds=50)))
        await trio.sleep(200)

    assert starts == [pytest.approx(at, abs=1e-5) for at in (3, 7.25, 50, 100)]


async def test_unknown_task_types_wait(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, starts: list[float]
) -> None:
    """A task type the app does not know stays ready, harms nobody, and is named in the stats."""
    began = virtual_time.now()
    refs = await either.enqueue_many([nq.TaskRequest.by_name("unwritten")] * 3)
    async with working(nq.Worker(app, either)):
        await either.enqueue("note")
        await trio.sleep(60)

        assert [await state(either, ref) for ref in refs] == ["ready"] * 3
        assert (await either.stats()).unknown_task_types == {
            "unwritten": nq.UnknownTypeStats(3, began)
        }
        assert await either.attempts(refs[0]) == []
    assert len(starts) == 1


async def test_until_idle_returns_when_idle(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, starts: list[float]
) -> None:
    """With nothing to do `run_until_idle` returns at once, and does not wait for later tasks."""
    later = await either.enqueue(app["note"].options(run_after=1))
    await nq.Worker(app, either).run_until_idle()

    assert trio.current_time() < 1
    assert await state(either, later) == "scheduled"


async def test_until_idle_waits_for_a_slot_that_another_worker_holds(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """A ready task of a queue that is full is not left behind; one of a paused queue is."""

    @app.task(name="slow")
    async def slow(seconds: float) -> None:
        await trio.sleep(seconds)

    await either.configure_queue("full", max_running=1)
    await either.pause("closed")
    other = nq.Worker(app, either)
    async with working(other):
        await either.enqueue(slow.options(queue="full"), 20)
        await trio.sleep(1)
        other.stop_claiming()
        waits = await either.enqueue(slow.options(queue="full"), 5)
        stays = await either.enqueue(slow.options(queue="closed"), 5)
        await nq.Worker(app, either).run_until_idle()

        assert await state(either, waits) == "succeeded"
        assert await state(either, stays) == "ready"
        assert trio.current_time() == pytest.approx(25, abs=0.2)


async def test_until_idle_works_off_what_comes_up(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """It runs children that handlers enqueue, and retries that are due at once."""
    runs: list[int] = []

    @app.task(name="tree")
    async def tree(ctx: nq.TaskContext, depth: int) -> None:
        runs.append(depth)
        if ctx.attempt == 1:
            raise nq.RetryAfter(0)
        for _ in range(2 if depth else 0):
            await ctx.client.enqueue("tree", depth=depth - 1)

    await either.enqueue(tree, 3)
    await nq.Worker(app, either, listen=False, poll_interval=0).run_until_idle()

    assert len(runs) == 2 * (1 + 2 + 4 + 8)
    assert (await either.stats()).queues["default"].get(nq.State.READY, 0) == 0


async def test_a_worker_can_run_again(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, starts: list[float]
) -> None:
    """After it has ended, the same worker can run again, and registers under a new id."""
    worker = nq.Worker(app, either)
    ids: list[object] = []
    for _ in range(2):
        ref = await either.enqueue("note")
        await worker.run_until_idle()
        ids += [attempt.worker_id for attempt in await either.attempts(ref)]

    assert len(starts) == 2
    assert len(set(ids)) == 2
    assert (await either.stats()).workers == []


async def test_running_twice_at_once(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """A worker that runs refuses to run a second time, and is not disturbed by that."""
    worker = nq.Worker(app, client)
    async with working(worker):
        with pytest.raises(RuntimeError, match="running already"):
            await worker.run()
        assert worker.health().worker_id is not None


async def test_stop_before_run(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    starts: list[float],
) -> None:
    """Stopped before it runs, a worker does nothing and returns at once; the next run works."""
    ref = await client.enqueue("note")
    worker = nq.Worker(app, client)
    worker.stop()
    worker.stop()
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)

    assert (store.calls["register"], starts, await outcomes(client, ref)) == (0, [], [])
    await worker.run_until_idle()
    assert len(starts) == 1


async def test_ready_beside_a_backlog(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """A worker is ready when it has claimed once, though each claim says that there is more."""
    store.instead["claim"] = Claimed(claims=(), more=True)
    store.late["claim"] = 0.1
    worker = nq.Worker(app, client)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(20):
            await nursery.start(worker.run)
        worker.stop()


async def test_stop_from_a_handler(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """A handler may stop its worker; it finishes, and nothing is claimed after it."""

    @app.task(name="last")
    async def last() -> None:
        worker.stop()
        worker.stop()
        await trio.sleep(5)

    refs = [await either.enqueue(last) for _ in range(3)]
    worker = nq.Worker(app, either, concurrency=1)
    await worker.run()

    assert [await state(either, ref) for ref in refs] == ["succeeded", "ready", "ready"]


async def test_stop_while_the_store_is_down_at_the_start(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """A worker that cannot begin to claim or listen can be stopped."""
    store.down = {"listen", "claim"}
    worker = nq.Worker(app, client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await trio.sleep(50)
        assert worker.health().loops["claimer"].restarts > 3
        worker.stop()

    assert trio.current_time() < 60


async def test_work_goes_on_without_a_listener(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    starts: list[float],
) -> None:
    """A listener that cannot be had costs promptness, and nothing else."""
    store.down = {"listen"}
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(app, client)
        nursery.start_soon(worker.run)
        await trio.sleep(20)
        await client.enqueue("note")
        await trio.sleep(10)
        assert worker.health().notify == "polling"
        worker.stop()

    assert len(starts) == 1


async def test_a_failed_claim_is_made_again(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    starts: list[float],
) -> None:
    """A claim that failed is repeated by itself: neither a ring nor a poll has to come first."""
    async with working(nq.Worker(app, client, poll_interval=0)):
        store.down = {"claim"}
        await client.enqueue("note")
        await trio.sleep(0.1)
        store.down = set()
        await trio.sleep(1)

    assert len(starts) == 1


async def test_a_task_type_declared_late(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """A task type declared while the worker runs is served, too."""
    async with working(nq.Worker(app, either)):

        @app.task(name="late")
        async def late() -> str:
            return "served"

        ref = await either.enqueue(late)
        assert await either.result(ref, timeout=20) == "served"


async def test_a_due_task_that_is_locked(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    starts: list[float],
) -> None:
    """What is due but held by somebody's transaction is tried again soon, not in a tight loop."""
    store.instead["promote"] = 0
    await client.enqueue(app["note"].options(run_after=5))
    async with working(nq.Worker(app, client)):
        await trio.sleep(15)
        assert 10 < store.calls["promote"] < 150
        store.instead.clear()
        await trio.sleep(0.2)

    assert len(starts) == 1
