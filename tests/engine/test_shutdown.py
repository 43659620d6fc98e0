"""How a worker ends: in which order, and when. On both stores, in virtual time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from nursery_queue._psycopg._connection import Connection
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.waits import eventually
from tests.support.workers import outcomes, state, working


@pytest.fixture
def store(anywhere: FlakyStore) -> FlakyStore:
    """A store of each kind, which notes what is asked of it."""
    return anywhere


@pytest.fixture
def trace(app: nq.App, store: FlakyStore) -> list[str]:
    """Names the task type `work`, which notes in the store's trace what happens to it."""

    @app.task(name="work")
    async def work(ctx: nq.TaskContext, seconds: float, cleanup: float = 0) -> None:
        store.trace.append(f"start {trio.current_time():g}")
        try:
            await trio.sleep(seconds)
            store.trace.append(f"end {trio.current_time():g}")
        except trio.Cancelled:
            store.trace.append(f"{ctx.cancel_reason} {trio.current_time():g}")
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup)
            store.trace.append(f"clean {trio.current_time():g}")
            raise

    return store.trace


async def run_and_stop(worker: nq.Worker, at: float) -> float:
    """Run, stop at an instant, and return when `run()` has ended."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await trio.sleep_until(at)
        worker.stop()
    return trio.current_time()


async def run_and_cancel(worker: nq.Worker, at: float) -> float:
    """Run, cancel the scope around it at an instant, and return when `run()` has ended."""
    with trio.CancelScope(deadline=at):
        await worker.run()
    return trio.current_time()


End = Callable[[nq.Worker, float], Awaitable[float]]
ENDS = pytest.mark.parametrize("end", [run_and_stop, run_and_cancel])


def events(trace: list[str]) -> list[str]:
    """Return what happened, without what happens all the time."""
    usual = {"heartbeat", "enqueue", "stats", "status_many", "promote", "sweep"}
    return [event for event in trace if event not in usual]


async def released(client: nq.Client, ref: nq.TaskRef) -> bool:
    """Whether a task is as if it had never been started, but for the log."""
    status = await client.status(ref)
    assert status is not None
    log = await outcomes(client, ref)
    return (status.state, status.attempt, log) == ("ready", 0, ["interrupted"])


# -- order -------------------------------------------------------------------------------------


async def test_order(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    trace: list[str],
) -> None:
    """Nothing is claimed any more, then handlers end, then outcomes are stored, then it is gone."""
    await client.enqueue("work", seconds=8)
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(app, client, heartbeat=3)
        await nursery.start(worker.run)
        await trio.sleep_until(5)
        del trace[:]
        worker.stop()
        late = await client.enqueue("work", seconds=8)
        await trio.sleep_until(7)
        (row,) = (await client.stats()).workers
        assert row.draining

    assert events(trace) == ["end 8", "settle", "deregister"]
    assert trace.index("heartbeat") < trace.index("end 8")  # the lease is kept meanwhile
    assert trace[-1] == "deregister"
    assert await state(client, late) == "ready"
    assert (await client.stats()).workers == []


async def test_handlers_may_finish_within_grace(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """A handler that ends before the grace does has succeeded, and nobody waits any longer."""
    ref = await client.enqueue("work", seconds=5 + 19.9)
    ended = await run_and_stop(nq.Worker(app, client, grace=20), 5)

    assert ended == 24.9
    assert await outcomes(client, ref) == ["succeeded"]


@pytest.mark.parametrize(
    ("end", "grace_over"),
    [(run_and_stop, 25.0), (run_and_cancel, 5.0)],
    ids=["stopped", "cancelled"],
)
async def test_after_grace(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    trace: list[str],
    end: End,
    grace_over: float,
) -> None:
    """Then handlers are cancelled, may clean up, and their tasks are ready again, unharmed.

    Cancelling the scope around `run()` does the same without the grace.
    """
    ref = await client.enqueue("work", seconds=100, cleanup=2)
    ended = await end(nq.Worker(app, client, grace=20, cleanup=3), 5)

    cancelled, clean = f"shutdown {grace_over:g}", f"clean {grace_over + 2:g}"
    assert events(trace)[-4:] == [cancelled, clean, "settle", "deregister"]
    assert ended == grace_over + 2
    assert await released(client, ref)


async def test_a_scope_cancelled_while_draining(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """A cancellation cuts a grace short that has begun."""
    await client.enqueue("work", seconds=100)
    worker = nq.Worker(app, client, grace=50)
    with trio.CancelScope(deadline=9) as scope:
        await run_and_stop(worker, 5)

    assert events(trace)[-4:] == ["shutdown 9", "clean 9", "settle", "deregister"]
    assert scope.cancelled_caught


async def test_a_stop_while_cancelled(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """A stop that comes after a cancellation gives no time back."""
    await client.enqueue("work", seconds=100, cleanup=4)
    worker = nq.Worker(app, client, grace=50)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_and_cancel, worker, 5.0)
        await trio.sleep_until(6)
        worker.stop()

    assert events(trace)[-4:] == ["shutdown 5", "clean 9", "settle", "deregister"]


async def test_stopped_twice(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """The grace counts from the first time."""
    await client.enqueue("work", seconds=100)
    worker = nq.Worker(app, client, grace=20)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_and_stop, worker, 5.0)
        await trio.sleep_until(9)
        worker.stop()

    assert events(trace)[-4:] == ["shutdown 25", "clean 25", "settle", "deregister"]


async def test_stopped_by_a_handler(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """A handler that stops its own worker has the grace like the others, and ends well."""

    @app.task(name="last")
    async def last(seconds: float) -> None:
        worker.stop()
        await trio.sleep(seconds)

    worker = nq.Worker(app, client, grace=20)
    refs = [await client.enqueue(last, 7), await client.enqueue("work", seconds=100)]
    await worker.run()

    assert trio.current_time() == 20
    assert await outcomes(client, refs[0]) == ["succeeded"]
    assert await released(client, refs[1])


async def test_too_slow(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """`fail_after` around `run()` raises when handlers have cleaned up and all is stored."""
    ref = await client.enqueue("work", seconds=100, cleanup=2)
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(5):
            await nq.Worker(app, client).run()
        trace.append("never")

    assert events(trace)[-4:] == ["shutdown 5", "clean 7", "settle", "deregister"]
    assert await released(client, ref)


@ENDS
async def test_a_handler_that_fails_while_it_cleans_up(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, trace: list[str], end: End
) -> None:
    """Its error is in the log of an interrupted attempt; the others and the end are untouched."""

    @app.task(name="clumsy")
    async def clumsy() -> None:
        try:
            await trio.sleep(100)
        finally:
            msg = "dropped it"
            raise OSError(msg)

    refs = [await client.enqueue(clumsy), await client.enqueue("work", seconds=100, cleanup=2)]
    ended = await end(nq.Worker(app, client, grace=0), 5)
    (attempt,) = await client.attempts(refs[0])

    assert ended == 7
    assert [await released(client, ref) for ref in refs] == [True, True]
    assert (attempt.error_type, attempt.error_message) == ("OSError", "dropped it")


async def test_two_workers(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """What one worker releases another in the same nursery runs at once, undisturbed."""
    ref = await client.enqueue("work", seconds=100)
    async with trio.open_nursery() as nursery:
        first, second = (nq.Worker(app, client, grace=20, name=name) for name in "ab")
        await nursery.start(first.run)
        await trio.sleep_until(3)
        await nursery.start(second.run)
        await trio.sleep_until(5)
        first.stop()
        await trio.sleep_until(30)
        assert await outcomes(client, ref) == ["interrupted", "running"]
        second.stop()
        await trio.sleep(0.001)
        assert (first.health().claiming, second.health().draining) == (False, True)

    starts = [event for event in trace if event.startswith(("start", "shutdown"))]
    assert starts == ["start 0", "shutdown 25", "start 25", "shutdown 50"]
    assert await outcomes(client, ref) == ["interrupted", "interrupted"]


# -- claims that come with the end -------------------------------------------------------------


async def test_the_backlog_goes_back_at_once(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, trace: list[str]
) -> None:
    """What has not been started is ready for others as soon as the worker is stopped."""
    first, *others = [await client.enqueue("work", seconds=5) for _ in range(4)]
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(app, client, concurrency=1, prefetch=3)
        await nursery.start(worker.run)
        assert [await state(client, ref) for ref in others] == ["running"] * 3
        worker.stop()
        await trio.sleep(0.001)
        assert [await state(client, ref) for ref in others] == ["ready"] * 3
        assert await state(client, first) == "running"

    assert [await outcomes(client, ref) for ref in others] == [[]] * 3
    assert await state(client, first) == "succeeded"


async def test_the_backlog_does_not_wait_for_a_claim(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    trace: list[str],
) -> None:
    """It goes back at once also while a claim is under way that gets no answer."""
    refs = [await client.enqueue("work", seconds=5) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(app, client, concurrency=1, prefetch=3)
        await nursery.start(worker.run)
        await trio.sleep_until(0.5)  # it has claimed, and looked again for what came meanwhile
        store.stuck = {"claim"}
        await client.enqueue("work", seconds=5)
        await trio.sleep(0.001)
        assert [await state(client, ref) for ref in refs] == ["running", "running"]
        worker.stop()
        await trio.sleep(0.001)
        assert [await state(client, ref) for ref in refs] == ["running", "ready"]

    assert trio.current_time() == 10.5  # the claim is given up, and with it nothing


async def test_a_claim_under_way(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    trace: list[str],
) -> None:
    """A claim that is under way when the worker is stopped is awaited, and what it took is kept."""
    async with working(nq.Worker(app, client, concurrency=1, prefetch=1)):
        await trio.sleep_until(1)
        store.late = {"claim": 2}
        refs = [await client.enqueue("work", seconds=5) for _ in range(2)]
        await trio.sleep_until(2)

    assert trio.current_time() == 8
    assert [await state(client, ref) for ref in refs] == ["succeeded", "ready"]
    assert store.calls["give_back_all_but"] == 0


async def test_a_claim_under_way_when_cancelled(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    trace: list[str],
) -> None:
    """Then it is awaited, too; what it took goes back unstarted, and handlers are told before."""
    held = await client.enqueue("work", seconds=100, cleanup=1)
    worker = nq.Worker(app, client, concurrency=2, cleanup=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_and_cancel, worker, 5.0)
        await trio.sleep_until(4)
        store.late = {"claim": 3}
        refs = [await client.enqueue("work", seconds=5) for _ in range(2)]

    assert trio.current_time() == 7
    assert events(trace)[-5:] == ["shutdown 5", "clean 6", "settle", "settle", "deregister"]
    assert await released(client, held)
    assert [await state(client, ref) for ref in refs] == ["ready", "ready"]
    assert [await outcomes(client, ref) for ref in refs] == [[], []]
    assert store.calls["give_back_all_but"] == 0


@ENDS
async def test_claims_of_unknown_fate(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    trace: list[str],
    end: End,
) -> None:
    """A worker that ends right after a claim without an answer gives back what may be its own."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end, nq.Worker(app, client), 2.0)
        await trio.sleep_until(1)
        store.deaf = {"claim"}
        ref = await client.enqueue("work", seconds=5)
        await trio.sleep_until(1.001)
        assert await state(client, ref) == "running"
        await trio.sleep_until(1.9)
        store.down = {"promote", "sweep", "give_back_all_but"}  # not by then
        await trio.sleep_until(2)
        store.down = set()

    assert await state(client, ref) == "ready"
    assert await outcomes(client, ref) == []


# -- the start ---------------------------------------------------------------------------------


async def test_stopped_before_the_start(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """A worker that has been stopped already asks the database nothing, and is ready at once."""
    worker = nq.Worker(app, client)
    worker.stop()
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)

    assert not store.calls
    assert worker.exit_report == nq.ExitReport()


@ENDS
@pytest.mark.parametrize("verb", ["check", "register", "listen", "claim"])
async def test_in_the_middle_of_the_start(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    trace: list[str],
    verb: str,
    end: End,
) -> None:
    """A worker whose start gets no answer can be stopped and cancelled, and leaves nothing."""
    ref = await client.enqueue("work", seconds=1)
    store.stuck = {verb}
    worker = nq.Worker(app, client, grace=0)
    ended = await end(worker, 3)
    store.stuck = set()

    assert ended <= 10  # a claim is shielded for so long
    assert verb == "claim" or ended == 3
    assert (await client.stats()).workers == []
    assert await state(client, ref) == ("succeeded" if verb == "listen" else "ready")
    assert worker.exit_report == nq.ExitReport(seconds=ended - 3 if verb == "claim" else 0)


@pytest.mark.parametrize("verb", ["check", "register"])
async def test_stopped_in_the_start_it_is_ready(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore, verb: str
) -> None:
    """Whoever waits for the worker to be ready goes on when it is stopped instead."""
    store.stuck = {verb}
    worker = nq.Worker(app, client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nursery.start, worker.run)
        await trio.sleep_until(3)
        worker.stop()

    assert trio.current_time() == 3


async def test_the_database_cannot_be_reached_at_the_start(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """`run()` raises `TransientError` itself, not a group of it."""
    for verb in ("check", "register"):
        store.down = {verb}
        with pytest.raises(nq.TransientError, match=verb):
            await nq.Worker(app, client).run()


# -- claiming nothing more ---------------------------------------------------------------------


async def test_stop_claiming(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    trace: list[str],
) -> None:
    """It goes on with what is in hand, gives back the rest, keeps its lease, and waits."""
    first, second, third = [await client.enqueue("work", seconds=n) for n in (100, 200, 300)]
    worker = nq.Worker(app, client, concurrency=2, prefetch=1, grace=20)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        await trio.sleep_until(0.5)
        assert (worker.health().claiming, worker.health().held) == (True, 3)
        worker.stop_claiming()
        worker.stop_claiming()
        await trio.sleep(0.001)
        assert await state(client, third) == "ready"
        claims = store.calls["claim"]
        await trio.sleep_until(190)
        health = worker.health()
        assert (health.claiming, health.draining, health.running) == (False, False, 1)
        assert health.lease_left > 0
        worker.stop()

    assert events(trace)[-5:] == ["end 100", "settle", "end 200", "settle", "deregister"]
    assert store.calls["claim"] == claims
    assert await outcomes(client, third) == []
    assert worker.exit_report is not None
    assert [task.task_id for task in worker.exit_report.tasks] == [second.id]
    assert await state(client, first) == "succeeded"


async def test_stop_claiming_before_run(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore, trace: list[str]
) -> None:
    """Then it never claims; the next run does."""
    ref = await client.enqueue("work", seconds=1)
    worker = nq.Worker(app, client)
    worker.stop_claiming()
    async with working(worker):
        assert not worker.health().claiming
        await trio.sleep(60)
        assert await state(client, ref) == "ready"
        assert len((await client.stats()).workers) == 1
    assert store.calls["claim"] == 0

    await worker.run_until_idle()
    assert await state(client, ref) == "succeeded"


@pytest.mark.parametrize("asked_at", [5, None])
async def test_stop_claiming_until_idle(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    trace: list[str],
    asked_at: float | None,
) -> None:
    """`run_until_idle` ends when what is in hand has ended, be that nothing."""
    refs = [await client.enqueue("work", seconds=50) for _ in range(2)]
    worker = nq.Worker(app, client, concurrency=1)
    async with trio.open_nursery() as nursery:
        if asked_at is None:
            worker.stop_claiming()
        nursery.start_soon(worker.run_until_idle)
        await trio.sleep_until(asked_at or 0)
        worker.stop_claiming()

    assert trio.current_time() == (0 if asked_at is None else 50)
    expected = ["ready" if asked_at is None else "succeeded", "ready"]
    assert [await state(client, ref) for ref in refs] == expected


async def test_stop_claiming_while_the_store_is_silent(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore, trace: list[str]
) -> None:
    """Asked for in the middle of the start, it is ready, and can be stopped."""
    store.stuck = {"listen"}
    worker = nq.Worker(app, client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(nursery.start, worker.run)
        await trio.sleep_until(3)
        worker.stop_claiming()
        await trio.sleep_until(60)
        assert worker.health().lease_left > 0
        worker.stop()

    assert trio.current_time() == 60


# -- what is left ------------------------------------------------------------------------------


@pytest.mark.parametrize("cancelled", [False, True])
async def test_nothing_is_left_behind(
    virtual_time: VirtualTime, app: nq.App, migrated: str, cancelled: bool
) -> None:
    """On PostgreSQL no worker row, no running row and no connection of ours remain."""
    running = trio.Event()

    @app.task(name="hold")
    async def hold() -> None:
        running.set()
        await trio.sleep_forever()

    db = await Connection.connect(migrated)
    name = "nothing left behind"
    async with nq.connect(make_conninfo(migrated, application_name=name)) as client:
        ref = await client.enqueue(hold)
        async with trio.open_nursery() as nursery:
            worker = nq.Worker(app, client, grace=0)
            await nursery.start(worker.run)
            await running.wait()
            if cancelled:
                nursery.cancel_scope.cancel()
            worker.stop()
        assert await state(client, ref) == "ready"
    assert await db.fetch("select * from nursery_queue.worker") == []
    assert await db.fetch("select * from nursery_queue.running") == []

    async def gone() -> bool:
        query = "select count(*) from pg_stat_activity where application_name = %(name)s"
        return await db.fetch(query, {"name": name}) == [(0,)]

    await eventually(gone)
    db.abort()
