"""Who holds a task, when the store cannot be asked and when workers die."""

from __future__ import annotations

import contextlib
import datetime as dt
import logging

from collections.abc import AsyncGenerator

import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.store_steps import hire
from tests.support.workers import Longest, outcomes, state, working


@pytest.fixture
def store(anywhere: FlakyStore) -> FlakyStore:
    return anywhere


@pytest.fixture
def cancels(app: nq.App) -> list[tuple[float, str]]:
    """Names the task type `hold`, and collects when and why its attempts are cancelled."""
    seen: list[tuple[float, str]] = []

    @app.task(name="hold")
    async def hold(ctx: nq.TaskContext) -> None:
        try:
            await trio.sleep(1000)
        finally:
            seen.append((trio.current_time(), str(ctx.cancel_reason)))

    return seen


def make_worker(app: nq.App, client: nq.Client) -> nq.Worker:
    return nq.Worker(app, client, lease=30, heartbeat=3, rng=Longest())


@contextlib.asynccontextmanager
async def holding(
    app: nq.App, client: nq.Client, *, lease: float = 30, heartbeat: float = 3
) -> AsyncGenerator[tuple[nq.Worker, nq.TaskRef]]:
    """A worker that has a task of the type `hold` to run while the block lasts."""
    ref = await client.enqueue("hold")
    worker = nq.Worker(app, client, lease=lease, heartbeat=heartbeat, rng=Longest())
    async with working(worker):
        yield worker, ref


async def test_a_lease_that_is_not_renewed_ends_here_first(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    cancels: list[tuple[float, str]],
) -> None:
    """Handlers are cancelled when the local lease ends, before others may have their tasks."""
    async with holding(app, client) as (_, ref):
        await trio.sleep(10)  # the last renewal was sent at 9
        store.down = {"heartbeat"}
        await trio.sleep_until(38.9)
        assert cancels == []
        assert await store.sweep(max_lost=3) == 0
        await trio.sleep_until(39)
        assert await store.sweep(max_lost=3) == 0
        await trio.sleep(0.001)

        assert cancels == [(39, "lease_lost")]
        assert await outcomes(client, ref) == ["running"]  # nothing was settled
        assert await store.sweep(max_lost=3) == 1
        (lost,) = await client.attempts(ref)
        assert lost.finished_at == virtual_time.start + dt.timedelta(seconds=39.001)


async def test_short_outages_are_ridden_out(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    cancels: list[tuple[float, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Failed heartbeats are repeated soon; the log has one line when it begins, one at the end."""
    caplog.set_level(logging.INFO, "nursery_queue")
    async with holding(app, client):
        for _ in range(5):
            store.break_down()
            await trio.sleep(20)
            store.down = set()
            await trio.sleep(10)

        assert cancels == []
    lines = [record.message for record in caplog.records if "heartbeat" in record.message]
    assert len(lines) == 10
    lines = [record.message for record in caplog.records if "maintenance" in record.message]
    assert len(lines) <= 10


@pytest.mark.parametrize(
    ("loop", "verbs"),
    [
        ("listener", {"listen"}),
        ("claimer", {"claim", "promote", "give_back_all_but", "closed_queues"}),
        ("settler", {"settle"}),
    ],
)
async def test_the_heartbeat_is_hurried_by_whatever_else_is_answered_again(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    cancels: list[tuple[float, str]],
    loop: str,
    verbs: set[str],
) -> None:
    """When any loop of the worker is back after an outage, the lease need not wait for its turn."""

    @app.task(name="quick")
    async def quick() -> None:
        await trio.sleep(1)

    async with holding(app, client) as (worker, _):
        await trio.sleep(10)
        store.down = {"heartbeat"}
        await trio.sleep_until(28)  # it failed at 27.75, and is to be tried again at 35.75
        assert worker.health().loops["heartbeat"].state == "backing_off"
        await client.enqueue("quick")
        await trio.sleep(0.9)
        store.break_down()
        await client.enqueue("quick")
        await trio.sleep(0.1)
        store.hang_up()
        await trio.sleep(0.1)
        assert worker.health().loops[loop].state == "backing_off"
        store.down -= {"heartbeat", *verbs}
        await trio.sleep(1)

        assert worker.health().loops[loop].state == "healthy"
        assert worker.health().loops["heartbeat"].state == "healthy"
        assert cancels == []
        store.down = set()


async def test_a_heartbeat_that_hangs_is_given_up(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    cancels: list[tuple[float, str]],
) -> None:
    """A heartbeat without an answer leaves time for another before the lease ends."""
    async with holding(app, client):
        store.stuck = {"heartbeat"}
        await trio.sleep(4)
        store.stuck = set()
        await trio.sleep(60)

        assert cancels == []


async def test_a_worker_works_on_after_losing_its_lease(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    cancels: list[tuple[float, str]],
) -> None:
    """It registers anew under another id, claims again, and what it had held is swept as lost."""

    @app.task(name="quick")
    async def quick() -> None:
        pass

    async with holding(app, client) as (worker, lost):
        old = worker.health().worker_id
        store.break_down()
        await trio.sleep(40)
        assert worker.health().lease_left == 0
        claims = store.calls["claim"]
        store.down = set()
        await trio.sleep(60)

        assert worker.health().worker_id != old
        assert store.calls["claim"] > claims
        assert (await outcomes(client, lost))[:2] == ["lost", "running"]
        await client.result(await client.enqueue(quick), timeout=5)
    assert [reason for _, reason in cancels] == ["lease_lost", "shutdown"]


async def test_what_was_lost_is_swept_soon(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    cancels: list[tuple[float, str]],
) -> None:
    """A worker that begins anew has what it had held swept, not only in the regular round.

    After an outage that is one heartbeat later: others need to renew their leases first.
    """
    async with holding(app, client, lease=9) as (_, ref):
        await trio.sleep(4)  # the first sweep was at 3, the next is due at 39
        store.down = {"heartbeat", "register", "deregister"}
        await trio.sleep_until(13)  # the lease ended at 12; the next attempt is made at 15.75
        store.down = set()
        await trio.sleep_until(15.75 + 2.9)
        assert await outcomes(client, ref) == ["running"]
        await trio.sleep(0.2)

        assert await outcomes(client, ref) == ["lost", "running"]


async def test_no_claims_without_a_lease(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """A worker that has lost its lease claims nothing until it is registered again."""

    @app.task(name="quick")
    async def quick() -> None:
        pass

    async with working(make_worker(app, client)):
        store.down = {"heartbeat", "register", "deregister"}
        await trio.sleep(31)
        ref = await client.enqueue(quick)
        await trio.sleep(60)
        assert await state(client, ref) == "ready"
        store.down = set()
        await client.result(ref, timeout=10)


async def test_an_answer_that_comes_too_late(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    cancels: list[tuple[float, str]],
) -> None:
    """A renewal that is answered after the local lease has ended does not bring it back."""
    async with holding(app, client, lease=3, heartbeat=1) as (_, ref):
        await trio.sleep(1.5)  # renewed at 1, so the lease ends at 4
        store.down = {"heartbeat"}
        await trio.sleep_until(3)  # the next beat is sent at 3.75
        store.down, store.late = set(), {"heartbeat": 0.9}
        await trio.sleep_until(4.7)
        assert cancels == [(4, "lease_lost")]
        store.late = {}
        await trio.sleep(60)

        # Otherwise the store would think that it still runs, here and for ever.
        assert await outcomes(client, ref) == ["lost", "running"]


async def test_taken_for_dead(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    cancels: list[tuple[float, str]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker that others have declared dead notices at its next heartbeat, and says so once."""
    async with holding(app, client) as (worker, ref):
        dead = worker.health().worker_id
        assert dead is not None
        await trio.sleep(1)
        await store.deregister(dead)
        await store.sweep(max_lost=3)
        await trio.sleep(2.1)

        assert cancels == [(3, "lease_lost")]
        await trio.sleep(40)
        assert worker.health().worker_id != dead
        assert await outcomes(client, ref) == ["lost", "running"]
    assert len([r for r in caplog.records if "lost the lease" in r.message]) == 1


async def test_a_dead_workers_tasks_are_swept(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """A living worker takes over what a dead one held, when the lease has ended and not before."""
    starts: list[float] = []

    @app.task(name="quick")
    async def quick() -> None:
        starts.append(trio.current_time())

    ref = await client.enqueue(quick)
    dead = await hire(store, task_types=["hold", "quick"], lease=20)
    await store.claim(dead, ["quick"], limit=1)
    async with working(make_worker(app, client)):
        await client.result(ref, timeout=60)

        assert 20 < starts[0] < 24
        await store.deregister(dead)
    assert await outcomes(client, ref) == ["lost", "succeeded"]
    status = await client.status(ref)
    assert status is not None
    assert (status.attempt, status.lost) == (1, 1)


async def test_the_first_sweep_waits(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """Living workers get the time of one heartbeat to renew their leases before the first sweep."""
    dead = await hire(store, task_types=["hold", "quick"], lease=1)
    await trio.sleep(2)
    async with working(make_worker(app, client)):
        await trio.sleep(2.9)
        assert store.calls["sweep"] == 0
        await trio.sleep(0.2)
        assert store.calls["sweep"] >= 1
        await store.deregister(dead)


async def test_losses_have_a_budget(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """A task whose workers died three times fails for good, whatever attempts are left."""
    ref = await client.enqueue("quick")
    for _ in range(3):
        await store.claim(
            await hire(store, task_types=["hold", "quick"], lease=1), ["quick"], limit=1
        )
        await trio.sleep(2)
        await store.sweep(max_lost=3)

    status = await client.status(ref)
    assert status is not None
    assert (status.state, status.error_type) == ("failed", "worker_lost")


async def test_a_lost_claim_answer_is_reconciled(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """Tasks claimed by a call whose answer was lost are released, and run; the log has one run."""
    starts: list[float] = []

    @app.task(name="quick")
    async def quick() -> None:
        starts.append(trio.current_time())

    async with working(nq.Worker(app, client, poll_interval=0)):
        await trio.sleep(1)
        store.deaf = {"claim"}
        refs = await client.enqueue_many([quick.bind()] * 3)
        await trio.sleep(0.01)
        assert [await state(client, ref) for ref in refs] == ["running"] * 3
        store.deaf = set()
        await trio.sleep(1)

    assert len(starts) == 3
    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 3


async def test_a_claim_that_commits_late_is_reconciled(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """Tasks that the store gave us long after we had asked are found within a minute or so."""

    @app.task(name="quick")
    async def quick() -> None: ...

    worker = nq.Worker(app, client, listen=False)  # so that it does not claim it at once
    async with working(worker):
        ref = await client.enqueue("quick")
        worker_id = worker.health().worker_id
        assert worker_id is not None
        stray = await store.claim(worker_id, ["quick"], limit=1)
        assert len(stray.claims) == 1
        await trio.sleep(70)

    assert await outcomes(client, ref) == ["succeeded"]


async def test_a_claim_that_commits_late_is_reconciled_by_a_worker_that_is_full(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    cancels: list[tuple[float, str]],
) -> None:
    """Others get such tasks within a minute or so, however long the worker has no room itself."""

    @app.task(name="quick")
    async def quick() -> None: ...

    worker = nq.Worker(app, client, listen=False, concurrency=1, prefetch=0)
    await client.enqueue("hold")
    async with working(worker):
        await trio.sleep(1)
        ref = await client.enqueue("quick")
        worker_id = worker.health().worker_id
        assert worker_id is not None
        stray = await store.claim(worker_id, ["quick"], limit=1)
        assert len(stray.claims) == 1
        await trio.sleep(70)

        assert await state(client, ref) == "ready"
        assert cancels == []


async def test_a_claim_that_hangs(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    cancels: list[tuple[float, str]],
) -> None:
    """A claim without an answer is given up after ten seconds; running handlers are not hurt."""

    @app.task(name="quick")
    async def quick() -> None:
        pass

    async with holding(app, client):
        store.stuck = {"claim"}
        ref = await client.enqueue(quick)
        await trio.sleep(9)
        store.stuck = set()
        await client.result(ref, timeout=5)

        assert cancels == []
