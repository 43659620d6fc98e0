"""Workers on queues with limits: what starts, and when. Polling is off, unless a test says so."""

from __future__ import annotations

import datetime as dt
import uuid

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._model import Claimed, WorkerInfo
from nursery_queue._core._states import Event
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.store_steps import ends
from tests.support.workers import Longest, final, outcomes, state, working


@attrs.define(eq=False)
class Gauge:
    """What runs, what has started and when, and how many ran at once at most."""

    running: Counter[str] = attrs.field(factory=Counter[str])
    most: Counter[str] = attrs.field(factory=Counter[str])  # by the names below
    starts: list[tuple[float, int]] = attrs.field(factory=list[tuple[float, int]])
    cancelled: list[tuple[float, str]] = attrs.field(factory=list[tuple[float, str]])

    async def run(self, ctx: nq.TaskContext, seconds: float) -> None:
        self.starts.append((trio.current_time(), ctx.task_id))
        for name in (ctx.queue, f"{ctx.queue} {ctx.worker_id}"):
            self.running[name] += 1
            self.most[name] = max(self.most[name], self.running[name])
        try:
            await trio.sleep(seconds)
        except trio.Cancelled:
            self.cancelled.append((trio.current_time(), str(ctx.cancel_reason)))
            raise
        finally:
            for name in (ctx.queue, f"{ctx.queue} {ctx.worker_id}"):
                self.running[name] -= 1

    @property
    def times(self) -> list[float]:
        return [time for time, _ in self.starts]

    def most_of_a_worker(self, queue: str) -> int:
        return max(most for name, most in self.most.items() if name.startswith(f"{queue} "))


@pytest.fixture
def gauge(app: nq.App) -> Gauge:
    """Declares the task type `hold`, of queue `pool`, which takes some seconds."""
    gauge = Gauge()

    @app.task(name="hold", queue="pool")
    async def hold(ctx: nq.TaskContext, seconds: float) -> None:
        await gauge.run(ctx, seconds)

    return gauge


def other_app(gauge: Gauge, name: str) -> nq.App:
    """Return an application that knows one task type, of queue `pool`, and no other."""
    app = nq.App()

    @app.task(name=name, queue="pool")
    async def other(ctx: nq.TaskContext, seconds: float) -> None:
        await gauge.run(ctx, seconds)

    return app


def quiet(app: nq.App, client: nq.Client, **options: Any) -> nq.Worker:
    """Return a worker that never polls."""
    usual: dict[str, Any] = {"poll_interval": 0, "rng": Longest()}
    return nq.Worker(app, client, **(usual | options))


async def fill(
    app: nq.App, client: nq.Client, count: int, seconds: float = 1.0, **options: Any
) -> list[nq.TaskRef]:
    """Enqueue so many tasks, of queue `pool` unless *options* say otherwise."""
    task = app["hold"].options(**options)
    return await client.enqueue_many([task.bind(seconds=seconds) for _ in range(count)])


async def states(client: nq.Client, refs: list[nq.TaskRef]) -> Counter[str]:
    return Counter([await state(client, ref) for ref in refs])


# -- at most so many ---------------------------------------------------------------------------


async def test_two_workers_keep_to_one_limit(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """Over two workers at most three run, and always three: each end starts the next at once."""
    await either.configure_queue("pool", max_running=3)
    refs = await fill(app, either, 20)
    async with working(quiet(app, either)), working(quiet(app, either)):
        await trio.sleep(8)

        assert gauge.times == pytest.approx([n // 3 for n in range(20)], abs=0.5)
        assert gauge.most["pool"] == 3
    assert await states(either, refs) == {"succeeded": 20}


async def test_other_queues_do_not_mind(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """Behind a thousand tasks of better priority that may not start, another queue goes on."""
    await either.configure_queue("pool", max_running=1)
    await fill(app, either, 1000, seconds=100, priority=5)
    others = await fill(app, either, 10, queue="other")
    async with working(quiet(app, either, concurrency=11)):
        await trio.sleep(1)

    assert await states(either, others) == {"succeeded": 10}
    assert gauge.most["pool"] == 1


async def test_limits_of_a_worker_apply_on_top(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """With two at most on each worker and three at most in all, three run: two here, one there."""
    await either.configure_queue("pool", max_running=3)
    await fill(app, either, 12)
    workers = [quiet(app, either, queues={"pool": 2}) for _ in range(2)]
    async with working(workers[0]), working(workers[1]):
        await trio.sleep(5)

    assert len(gauge.starts) == 12
    assert (gauge.most["pool"], gauge.most_of_a_worker("pool")) == (3, 2)


async def test_what_waits_in_a_worker_takes_no_slot(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """A worker that claims ahead leaves the slots of a pool to those who could start at once."""
    await either.configure_queue("pool", max_running=2)
    await fill(app, either, 10)
    workers = [quiet(app, either, concurrency=1, prefetch=10) for _ in range(2)]
    async with working(workers[0]), working(workers[1]):
        await trio.sleep(6)

    # Where several are after one slot, who comes too late looks again a little later.
    assert gauge.times == pytest.approx([n // 2 for n in range(10)], abs=0.5)


@pytest.mark.parametrize("prefetch", ["auto", 0, 20])
async def test_quick_tasks_of_another_queue_leave_a_limited_one_its_share(
    virtual_time: VirtualTime,
    app: nq.App,
    either: nq.Client,
    gauge: Gauge,
    prefetch: str | int,
) -> None:
    """Beside a backlog of quick tasks that is claimed ahead, a queue with a limit is at its limit.

    It is offered no more than would start; where all slots are refilled from what is claimed ahead
    that must not mean none: it once started six tasks in twelve seconds.
    """
    await either.configure_queue("pool", max_running=3)
    limited = await fill(app, either, 150, seconds=0.02)
    await fill(app, either, 2000, seconds=0.01, queue="other")
    async with working(quiet(app, either, concurrency=8, prefetch=prefetch)):
        await trio.sleep(1)
        done = await states(either, limited)

    assert done["succeeded"] >= 50  # three at a time could do 150; about every other claim has some
    assert gauge.most["pool"] == 3


async def test_a_busy_worker_comes_back_for_what_it_left(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """What was not claimed because nothing could start at once starts when something can."""
    await either.configure_queue("pool", max_running=2)
    async with working(quiet(app, either, concurrency=1, prefetch=10)):
        await fill(app, either, 1, seconds=10, queue="other")
        await trio.sleep(1)
        await fill(app, either, 2)
        await trio.sleep(20)

    assert gauge.times == [0, 10, 11]


@pytest.mark.parametrize("listen", [True, False])
async def test_a_worker_alone_needs_no_ring(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge, listen: bool
) -> None:
    """A slot that a worker has freed itself it takes again at once, even if it does not listen."""
    await either.configure_queue("pool", max_running=1)
    await fill(app, either, 5)
    async with working(quiet(app, either, listen=listen)):
        await trio.sleep(5)

    assert gauge.times == [0, 1, 2, 3, 4]


async def test_drained_with_a_limit(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """`run_until_idle` works a limited queue off to its end, one after the other."""
    await either.configure_queue("pool", max_running=1)
    refs = await fill(app, either, 5)
    await quiet(app, either, listen=False).run_until_idle()

    assert (await states(either, refs), gauge.most["pool"]) == ({"succeeded": 5}, 1)


# -- changes -----------------------------------------------------------------------------------

Change = Callable[[nq.Client], Awaitable[object]]

STOPS: dict[str, Change] = {
    "pause": lambda client: client.pause("pool"),
    "limit of 0": lambda client: client.configure_queue("pool", max_running=0),
}
STARTS: dict[str, Change] = {
    "pause": lambda client: client.resume("pool"),
    "limit of 0": lambda client: client.configure_queue("pool", max_running=None),
}


@pytest.mark.parametrize("way", STOPS)
async def test_a_stop_touches_nothing_that_runs(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge, way: str
) -> None:
    """Paused, nothing starts; what runs ends as ever, and that is stored. Then all goes on."""
    refs = await fill(app, either, 3, seconds=10)
    async with working(quiet(app, either, concurrency=2)):
        await trio.sleep(5)
        await STOPS[way](either)
        await trio.sleep(45)

        assert await states(either, refs) == {"succeeded": 2, "ready": 1}
        assert [a.finished_at for a in await either.attempts(refs[0])] == [
            virtual_time.now() - dt.timedelta(seconds=40)
        ]
        await STARTS[way](either)
        await trio.sleep(10)

    assert gauge.times == [0, 0, 50]
    assert (await states(either, refs), gauge.cancelled) == ({"succeeded": 3}, [])


async def test_a_paused_queue_keeps_its_limit(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """To pause and to limit are two things: after `resume` the limit is what it was."""
    await either.configure_queue("pool", max_running=2)
    await either.pause("pool")
    await fill(app, either, 6)
    async with working(quiet(app, either)):
        await trio.sleep(10)
        assert gauge.starts == []
        await either.resume("pool")
        await trio.sleep(3)

    assert gauge.times == [10, 10, 11, 11, 12, 12]


async def test_lowering_kills_nothing(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """With five at work and a new limit of two, all five end, and two follow when there is room."""
    await either.configure_queue("pool", max_running=5)
    refs = await fill(app, either, 7, seconds=10)
    async with working(quiet(app, either)):
        await trio.sleep(5)
        await either.configure_queue("pool", max_running=2)
        await trio.sleep(15)

    assert gauge.times == [0, 0, 0, 0, 0, 10, 10]
    assert (await states(either, refs), gauge.cancelled) == ({"succeeded": 7}, [])


async def test_a_limit_counts_what_runs_already(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """A first limit counts what was started when there was none."""
    async with working(quiet(app, either)):
        for seconds in (10, 20, 30):
            await fill(app, either, 1, seconds=seconds)
        await trio.sleep(5)
        await either.configure_queue("pool", max_running=2)
        await fill(app, either, 2)
        await trio.sleep(40)

    assert gauge.times == [0, 0, 0, 20, 21]


async def test_raising_starts_at_once(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """A higher limit starts as many more at once, with no other event; no limit starts the rest."""
    await either.configure_queue("pool", max_running=1)
    await fill(app, either, 6, seconds=100)
    async with working(quiet(app, either)):
        await trio.sleep(10)
        await either.configure_queue("pool", max_running=4)
        await trio.sleep(10)
        await either.configure_queue("pool", max_running=None)
        await trio.sleep(10)

        assert gauge.times == [0, 10, 10, 10, 20, 20]


async def test_a_change_by_plain_sql(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client, gauge: Gauge
) -> None:
    """Who changes the table by hand has the same effect, at once, with the commit."""
    await fill(app, pg, 4, seconds=100)
    await sql(pg, "insert into nursery_queue.queue (name, max_running) values ('pool', 1)")
    async with working(quiet(app, pg)):
        await trio.sleep(10)
        await sql(pg, "update nursery_queue.queue set max_running = 2")
        await trio.sleep(10)
        await sql(pg, "update nursery_queue.queue set paused = true, max_running = 3")
        await trio.sleep(10)
        await sql(pg, "update nursery_queue.queue set paused = false")
        await trio.sleep(10)
        await sql(pg, "delete from nursery_queue.queue")
        await trio.sleep(10)

        assert gauge.times == [0, 10, 30, 40]


async def sql(client: nq.Client, statement: str) -> None:
    async with client.transaction() as tx:
        await tx.execute(statement)


# -- slots and who gets them ---------------------------------------------------------------------


async def test_a_slot_freed_here_starts_a_task_there(
    virtual_time: VirtualTime, either: nq.Client, gauge: Gauge
) -> None:
    """A worker that found the queue full learns at once that another one has freed a slot."""
    here, there = other_app(gauge, "here"), other_app(gauge, "there")
    await either.configure_queue("pool", max_running=1)
    await either.enqueue(here["here"], 10)
    async with working(quiet(here, either)), working(quiet(there, either)):
        await trio.sleep(1)
        await either.enqueue(there["there"], 10)
        await trio.sleep(30)

    assert gauge.times == [0, 10]


async def test_a_slot_freed_by_a_transaction_that_began_before(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, elsewhere: Store, gauge: Gauge
) -> None:
    """Who finds the queue full while a settlement waits for its commit learns of the commit."""
    await either.configure_queue("pool", max_running=1)
    await fill(app, either, 1)
    (claim,) = (await claim_for_nobody(elsewhere)).claims
    async with working(quiet(app, either)):
        async with elsewhere.transaction() as tx:
            await tx.settle(ends(claim.fence, Event.SUCCEED))
            await fill(app, either, 1)
            await trio.sleep(10)
        await trio.sleep(10)

    assert gauge.times == [10]


async def test_a_cancelled_task_frees_its_slot(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """A running task that is cancelled on its worker makes room within a second."""
    await either.configure_queue("pool", max_running=1)
    first, _ = await fill(app, either, 2, seconds=100)
    async with working(quiet(app, either)):
        await trio.sleep(10)
        await either.cancel(first)
        await trio.sleep(1)

        assert [time for time, _ in gauge.cancelled] == [10]
        assert gauge.times == [0, 10]


async def test_claims_of_the_dead_stop_counting(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, elsewhere: Store, gauge: Gauge
) -> None:
    """A killed worker's claims hold their slots until its lease has ended, and no longer.

    Then they are lost, and done by others.
    """
    await either.configure_queue("pool", max_running=2)
    refs = await fill(app, either, 4)
    assert len((await claim_for_nobody(elsewhere, lease=30)).claims) == 2
    async with working(quiet(app, either, heartbeat=3)):
        await trio.sleep(29)
        assert gauge.starts == []
        await trio.sleep(10)

    assert len(gauge.starts) == 4
    assert 30 < gauge.times[0] <= 34
    assert gauge.most["pool"] == 2
    assert Counter([(await outcomes(either, ref))[0] for ref in refs]) == {
        "lost": 2,
        "succeeded": 2,
    }


@pytest.fixture
async def elsewhere(somewhere: str | None, either: nq.Client) -> AsyncGenerator[Store]:
    """The same tables as those of `either`, as another process has them."""
    if somewhere is None:
        yield either.store
    else:
        async with nq.connect(somewhere) as client:
            yield client.store


async def claim_for_nobody(store: Store, *, lease: float = 3600) -> Claimed:
    """Claim all there is for a worker that then does nothing."""
    nobody = uuid.uuid4()
    await store.register(
        WorkerInfo(id=nobody, name="n", host="h", pid=1, task_types=["hold"], lease=lease)
    )
    return await store.claim(nobody, ["hold"], limit=100)


async def test_rings_for_a_full_queue_are_answered_ever_more_slowly(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, elsewhere: Store, gauge: Gauge
) -> None:
    """Whoever finds a queue full again and again does not look at each ring, but soon after it."""
    client = nq.Client(store := FlakyStore(either.store))
    await client.configure_queue("pool", max_running=1)
    await fill(app, client, 1)
    (claim,) = (await claim_for_nobody(elsewhere)).claims
    async with working(quiet(app, client)):
        before = store.calls["claim"]
        for _ in range(200):
            await fill(app, client, 1)
            await trio.sleep(0.01)
        assert 20 < store.calls["claim"] - before < 40
        await elsewhere.settle([ends(claim.fence, Event.SUCCEED)])
        await trio.sleep(0.1)

        assert len(gauge.starts) == 1


# -- retries -------------------------------------------------------------------------------------


@pytest.fixture
def retried(app: nq.App) -> list[tuple[float, int]]:
    """Declares `fails_once`, of queue `pool`, tried again after 0.1 s; collects its attempts."""
    tries: list[tuple[float, int]] = []

    @app.task(name="fails_once", queue="pool", retry=nq.RetryPolicy(initial=0.1, jitter=0))
    async def fails_once(ctx: nq.TaskContext) -> None:
        tries.append((trio.current_time(), ctx.attempt))
        if ctx.attempt == 1:
            raise ValueError

    return tries


async def test_a_waiting_retry_holds_no_slot(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """While a failed task waits for its next attempt, others have its slot."""

    @app.task(name="fails", queue="pool", retry=nq.RetryPolicy(initial=60, jitter=0))
    async def fails(ctx: nq.TaskContext) -> None:
        if ctx.attempt == 1:
            raise ValueError

    await either.configure_queue("pool", max_running=1)
    ref = await either.enqueue(fails)
    await fill(app, either, 3)
    async with working(quiet(app, either)):
        await trio.sleep(59)
        assert (gauge.times, await state(either, ref)) == ([0, 1, 2], "scheduled")
        await trio.sleep(1)
        assert (await final(either, ref)).state == "succeeded"


@pytest.mark.parametrize("limit", [None, 1])
async def test_a_retry_is_punctual_on_an_idle_worker(
    virtual_time: VirtualTime,
    app: nq.App,
    either: nq.Client,
    retried: list[tuple[float, int]],
    limit: int | None,
) -> None:
    """A retry due in 100 ms starts then, not at the next poll a minute later."""
    await either.configure_queue("pool", max_running=limit)
    async with working(quiet(app, either, poll_interval=60)):
        await trio.sleep(10)
        await either.enqueue(app["fails_once"])
        await trio.sleep(2)

    assert retried == [(10, 1), (10.1, 2)]


@pytest.mark.parametrize("listen", [True, False])
async def test_a_retry_is_punctual_on_a_busy_worker(
    virtual_time: VirtualTime,
    app: nq.App,
    either: nq.Client,
    gauge: Gauge,
    retried: list[tuple[float, int]],
    listen: bool,
) -> None:
    """A retry due in 100 ms starts within a second while others come, go and run for long."""
    await fill(app, either, 7, seconds=1000, queue="other")
    await fill(app, either, 500, seconds=0.007, priority=-1)
    await either.enqueue(app["fails_once"])
    async with working(quiet(app, either, poll_interval=60, listen=listen, concurrency=8)):
        await trio.sleep(2)

        assert [attempt for _, attempt in retried] == [1, 2]
        assert retried[1][0] - retried[0][0] <= 1
        assert len(gauge.starts) > 200


# -- cancelling ----------------------------------------------------------------------------------


async def test_a_cancel_reaches_whoever_holds_the_task(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, gauge: Gauge
) -> None:
    """Of two workers, each with a task, both stop theirs within a second of being asked to."""
    await either.configure_queue("pool", max_running=2)
    refs = await fill(app, either, 2, seconds=1000)
    workers = [quiet(app, either, concurrency=1, heartbeat=10) for _ in range(2)]
    async with working(workers[0]), working(workers[1]):
        await trio.sleep(5)
        assert gauge.most_of_a_worker("pool") == 1
        for ref in refs:
            assert await either.cancel(ref)
        await trio.sleep(1)

        assert await states(either, refs) == {"cancelled": 2}
    assert gauge.cancelled == [(5, "cancelled")] * 2


# -- contention ----------------------------------------------------------------------------------


async def test_what_somebody_else_looks_at_is_looked_at_again(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client, gauge: Gauge
) -> None:
    """A ready task locked by another transaction starts soon after that has let go of it."""
    await pg.pause("pool")
    await fill(app, pg, 1)
    async with working(quiet(app, pg)):
        async with pg.transaction() as tx:
            await tx.execute("select from nursery_queue.ready for update")
            await pg.resume("pool")
            await trio.sleep(10)
            assert gauge.starts == []
        await trio.sleep(1)

    assert len(gauge.times) == 1
    assert 10 <= gauge.times[0] <= 10.2
