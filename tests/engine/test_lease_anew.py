"""A worker that has lost its lease: what becomes of its tasks, and how it begins anew."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
import trio

import nursery_queue as nq

from nursery_queue._client._context import CancelReason
from nursery_queue._core._model import WorkerInfo
from nursery_queue._core._outcome import MAX_LOST
from nursery_queue._worker._slots import Slots
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import Longest, final, outcomes, state, working


@pytest.fixture
def client(anywhere: FlakyStore) -> nq.Client:
    """A client of each kind of store."""
    return nq.Client(anywhere)


def make_worker(app: nq.App, client: nq.Client, **options: Any) -> nq.Worker:
    return nq.Worker(app, client, lease=9, heartbeat=3, rng=Longest(), **options)


async def bury(worker: nq.Worker, store: FlakyStore) -> UUID:
    """Have somebody else take *worker* for dead, tasks and all."""
    dead = worker.health().worker_id
    assert dead is not None
    await store.inner.deregister(dead)
    await store.inner.sweep(max_lost=MAX_LOST)
    return dead


async def test_those_who_clean_up_keep_their_slots(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """Registered anew, a worker waits for old handlers to end, and drops what they say."""
    running: list[tuple[str, float]] = []
    most = 0

    @app.task(name="slow")
    async def slow(ctx: nq.TaskContext) -> str:
        nonlocal most
        running.append((str(ctx.worker_id), trio.current_time()))
        most = max(most, worker.health().running)
        if trio.current_time() >= 1:
            return "new"
        with trio.CancelScope(shield=True):
            await trio.sleep(20)
        return "old"

    worker = make_worker(app, client, concurrency=2)
    async with working(worker):
        refs = await client.enqueue_many([slow.bind()] * 3)
        await trio.sleep(1)
        old = await bury(worker, anywhere)
        await trio.sleep(10)
        assert worker.health().worker_id != old
        assert (worker.health().running, worker.health().lease_left > 0) == (2, True)
        found = [await final(client, ref, within=60) for ref in refs]

    assert most == 2
    assert [at for _, at in running] == [0, 0, 20, 20, 20]
    assert {worker_id for worker_id, at in running if at} & {str(old)} == set()
    assert [status.result for status in found] == ["new"] * 3
    logs = [await outcomes(client, ref) for ref in refs]
    assert logs == [["lost", "succeeded"], ["lost", "succeeded"], ["succeeded"]]


async def test_nothing_is_said_of_a_task_without_a_lease(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """An outcome that comes after the lease has ended is dropped, though nobody has swept yet."""

    @app.task(name="stubborn")
    async def stubborn() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(15)
        return "too late"

    async with working(make_worker(app, client)):
        await trio.sleep(1)
        ref = await client.enqueue(stubborn)
        await trio.sleep(0.1)
        anywhere.down = {"heartbeat", "register", "deregister", "sweep"}
        await trio.sleep_until(17)

        assert anywhere.calls["settle"] == 0
        assert await state(client, ref) == "running"
        anywhere.down = set()
        await trio.sleep_until(60)
    assert (await outcomes(client, ref))[0] == "lost"


async def test_an_outcome_from_before_is_still_written(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """What was handed in before the lease ended is stored, if the store will still have it."""

    @app.task(name="quick")
    async def quick() -> str:
        return "in time"

    async with working(make_worker(app, client)):
        await trio.sleep(1)
        anywhere.down = {"heartbeat", "register", "deregister", "sweep", "settle"}
        ref = await client.enqueue(quick)
        await trio.sleep_until(12)
        assert await state(client, ref) == "running"
        anywhere.down.discard("settle")
        status = await final(client, ref)
        anywhere.down = set()

    assert status.result == "in time"
    assert await outcomes(client, ref) == ["succeeded"]


@pytest.mark.parametrize("back_at", [9.5, 20])  # so that it has registered anew by then, or not
async def test_a_claim_that_is_answered_after_the_lease(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore, back_at: float
) -> None:
    """Tasks that come when the lease they were claimed under is over are not begun."""
    runs: list[tuple[float, UUID]] = []

    @app.task(name="slow")
    async def slow(ctx: nq.TaskContext) -> None:
        runs.append((trio.current_time(), ctx.worker_id))
        await trio.sleep(5)

    worker = make_worker(app, client)
    async with working(worker):
        await trio.sleep(1)
        old = worker.health().worker_id
        anywhere.late = {"claim": 9.5}
        anywhere.down = {"heartbeat", "register", "deregister"}
        ref = await client.enqueue(slow)  # claimed at 1, answered at 10.5; the lease ends at 9
        await trio.sleep_until(5)
        anywhere.late = {}
        await trio.sleep_until(back_at)
        anywhere.down = set()
        await final(client, ref, within=60)

    (run,) = runs
    assert run[1] != old
    assert await outcomes(client, ref) == ["lost", "succeeded"]


async def test_a_lost_claim_answer_and_a_lost_lease(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """Tasks that the store gave to the old id unbeknown to us are run once, by the new one."""
    runs: list[UUID] = []

    @app.task(name="quick")
    async def quick(ctx: nq.TaskContext) -> None:
        runs.append(ctx.worker_id)

    worker = make_worker(app, client)
    async with working(worker):
        await trio.sleep(1)
        anywhere.deaf = {"claim"}
        anywhere.down = {"give_back_all_but"}
        refs = await client.enqueue_many([quick.bind()] * 3)
        await trio.sleep(0.1)
        assert [await state(client, ref) for ref in refs] == ["running"] * 3
        await anywhere.inner.deregister(worker.health().worker_id or uuid4())
        await trio.sleep_until(3.5)
        anywhere.deaf, anywhere.down = set(), set()
        for ref in refs:
            await final(client, ref)
        new = worker.health().worker_id

    assert runs == [new] * 3
    assert [await outcomes(client, ref) for ref in refs] == [["lost", "succeeded"]] * 3


@pytest.mark.parametrize("verb", ["deregister", "register"])
@pytest.mark.parametrize("trouble", ["down", "deaf", "stuck"])
async def test_beginning_anew_is_tried_until_it_works(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    anywhere: FlakyStore,
    verb: str,
    trouble: str,
) -> None:
    """Whatever fails on the way, the worker works on in the end, and has one row in the table."""

    @app.task(name="quick")
    async def quick() -> None: ...

    worker = make_worker(app, client)
    async with working(worker):
        await trio.sleep(1)
        old = await bury(worker, anywhere)
        setattr(anywhere, trouble, {verb})
        await trio.sleep(20)
        assert worker.health().lease_left == 0
        assert anywhere.calls[verb] > 3  # none of them waited for long
        setattr(anywhere, trouble, set())
        await final(client, await client.enqueue(quick), within=5)
        (row,) = (await client.stats()).workers

        assert row.id == worker.health().worker_id != old


async def test_never_anew_before_the_old_tasks_are_given_up(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    anywhere: FlakyStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If cancelling them goes wrong, there is no new lease until it has been done."""
    cancelled: list[tuple[float, str]] = []
    cancel_all, failures = Slots.cancel_all, [RuntimeError("a bug")] * 2

    def failing(slots: Slots, reason: CancelReason) -> None:
        if failures:
            raise failures.pop()
        cancel_all(slots, reason)

    @app.task(name="hold")
    async def hold(ctx: nq.TaskContext) -> None:
        try:
            await trio.sleep(1000)
        finally:
            cancelled.append((worker.health().lease_left, str(ctx.cancel_reason)))

    monkeypatch.setattr(Slots, "cancel_all", failing)
    worker = make_worker(app, client)
    async with working(worker):
        await client.enqueue("hold")
        await trio.sleep(1)
        virtual_time.advance(10)
        await trio.sleep(0.2)
        assert failures == []
        await trio.sleep(5)

        assert cancelled == [(0, "lease_lost")]
        assert worker.health().lease_left > 0


async def test_only_one_line_says_that_the_lease_is_lost(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    anywhere: FlakyStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An answer after the end that says we are taken for dead is no news."""
    worker = make_worker(app, client)
    async with working(worker):
        await trio.sleep(4)  # renewed at 3
        anywhere.down = {"heartbeat"}
        await trio.sleep_until(9)
        anywhere.down, anywhere.late = set(), {"heartbeat": 2.9}
        await bury(worker, anywhere)
        await trio.sleep_until(13)  # asked before 12, answered after
        anywhere.late = {}
        await trio.sleep(20)

        assert worker.health().lease_left > 0
    assert len([line for line in caplog.messages if "lost the lease" in line]) == 1


# -- draining ----------------------------------------------------------------------------


async def test_the_lease_is_kept_while_draining(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """Handlers finish within a grace that is much longer than the lease, and all is stored."""

    @app.task(name="slow")
    async def slow() -> str:
        await trio.sleep(40)
        return "done"

    worker = make_worker(app, client, grace=60)
    async with working(worker):
        ref = await client.enqueue(slow)
        await trio.sleep(1)
        worker.stop()
        await trio.sleep(30)
        (row,) = (await client.stats()).workers
        assert (row.draining, row.alive) == (True, True)
        assert await anywhere.inner.sweep(max_lost=MAX_LOST) == 0

    assert (await final(client, ref)).result == "done"
    assert await outcomes(client, ref) == ["succeeded"]
    assert (await client.stats()).workers == []


@pytest.mark.leaves_claims("the lease is lost, and nobody has swept")
async def test_the_lease_is_lost_while_draining(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """The handlers are cancelled for the lease, not for the shutdown, and `run` returns at once."""
    cancelled: list[tuple[float, str]] = []

    @app.task(name="hold")
    async def hold(ctx: nq.TaskContext) -> None:
        try:
            await trio.sleep(1000)
        finally:
            cancelled.append((trio.current_time(), str(ctx.cancel_reason)))

    worker = make_worker(app, client, grace=60)
    async with working(worker):
        ref = await client.enqueue("hold")
        await trio.sleep(4)  # renewed at 3
        worker.stop()
        anywhere.down = {"heartbeat"}

    assert cancelled == [(12, "lease_lost")]
    assert trio.current_time() == 12
    assert await outcomes(client, ref) == ["running"]  # released by nobody
    assert await anywhere.inner.sweep(max_lost=MAX_LOST) == 1  # and at once to be had by others


# -- the budget of losses ------------------------------------------------------------------


async def test_only_losses_use_up_the_budget_of_losses(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """Three workers that die are one too many; failures, snoozes and interruptions do not count.

    And the losses use up no attempt.
    """
    ends: list[Callable[[], Awaitable[None]]] = []

    @app.task(name="odd", retry=nq.RetryPolicy(max_attempts=3, initial=30))
    async def odd() -> None:
        await ends.pop(0)()

    async def lose() -> None:
        dead = WorkerInfo(id=uuid4(), name="", host="", pid=1, task_types=["odd"], lease=1)
        await anywhere.register(dead)
        await anywhere.promote()
        claimed = await anywhere.claim(dead.id, ["odd"], limit=1)
        assert len(claimed.claims) == 1
        virtual_time.advance(2)
        assert await anywhere.sweep(max_lost=MAX_LOST) == 1
        await anywhere.deregister(dead.id)

    async def snooze() -> None:
        await trio.lowlevel.checkpoint()
        raise nq.Snooze(30)

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError

    async def run(end: Callable[[], Awaitable[None]]) -> None:
        ends.append(end)
        async with working(nq.Worker(app, client, grace=0, prefetch=0)):
            while ends or await state(client, ref) == "running":
                await trio.sleep(0.5)
                if end is trio.sleep_forever and not ends:
                    break

    ref = await client.enqueue("odd")
    for end in (None, snooze, None, trio.sleep_forever, fail, None):
        await trio.sleep(60)
        await (lose() if end is None else run(end))

    status = await client.status(ref)
    assert status is not None
    assert (status.state, status.error_type, status.lost) == ("failed", "worker_lost", 3)
    assert status.attempt == 1
    assert await outcomes(client, ref) == [
        *("lost", "snoozed", "lost", "interrupted", "failed", "lost")
    ]


async def test_what_falls_due_meanwhile(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """Without a lease a worker waits in peace, also for what is due; then it runs that."""

    @app.task(name="later")
    async def later() -> None: ...

    ref = await client.enqueue(later.options(run_after=20))
    worker = make_worker(app, client)
    async with working(worker):
        anywhere.down.update({"heartbeat", "deregister", "register"})
        await trio.sleep(60)
        assert worker.health().lease_left == 0
        assert await state(client, ref) == "scheduled"
        anywhere.down.clear()
        await trio.sleep(15)

        assert await state(client, ref) == "succeeded"
