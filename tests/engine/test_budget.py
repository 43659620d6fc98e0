"""How long the end of a worker takes when the database, or a handler, does not play along."""

from __future__ import annotations

import logging

import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import outcomes, state, working


VERBS = (
    *("check", "register", "heartbeat", "deregister", "claim", "settle", "promote", "sweep"),
    *("listen", "give_back_all_but"),
)
STOP_AT, GRACE, CLEANUP = 5.0, 7.0, 3.0
# In the start, before the stop, in the grace, in the clean-up, and just before the last outcomes.
PHASES = (0.0, 4.0, 6.0, 13.0, 14.9)


@pytest.fixture(autouse=True)
def work(app: nq.App) -> None:
    """Names the task type `work`, which takes its time, also to clean up."""

    @app.task(name="work")
    async def work(cleanup: float = CLEANUP) -> None:
        try:
            await trio.sleep(1000)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup)


def break_down(store: FlakyStore, verbs: set[str], how: str) -> None:
    if how == "late":
        store.late = dict.fromkeys(verbs, 9.0)
    else:
        setattr(store, how, verbs)


async def time_to_end(
    app: nq.App, store: FlakyStore, verbs: set[str], how: str, at: float, *, cancelled: bool
) -> tuple[float, nq.Worker]:
    """Return how many seconds after its stop a worker has ended whose store broke."""
    client = nq.Client(store)
    await client.enqueue("work")
    worker = nq.Worker(app, client, grace=GRACE, cleanup=CLEANUP)
    began = trio.current_time()

    async def run() -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            try:
                await worker.run()
            except nq.TransientError:
                assert at == 0  # the only one that is told

    scopes: list[trio.CancelScope] = []
    async with trio.open_nursery() as nursery:
        if at == 0:
            break_down(store, verbs, how)
        nursery.start_soon(run)
        for instant in sorted({at, STOP_AT}):
            await trio.sleep_until(began + instant)
            if instant == at:
                break_down(store, verbs, how)
                await client.enqueue("work")  # so that a claim is under way
            if instant == STOP_AT:
                scopes[0].cancel() if cancelled else worker.stop()
    return trio.current_time() - began - STOP_AT, worker


@pytest.mark.leaves_claims("the store cannot be told that they are over")
@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("how", ["down", "stuck", "deaf", "late"])
@pytest.mark.parametrize("verb", [*VERBS, "all"])
async def test_nothing_hangs(
    virtual_time: VirtualTime, app: nq.App, verb: str, how: str, cancelled: bool
) -> None:
    """`run()` ends within its budget, whatever the store does, and from when on it does it."""
    verbs = set(VERBS) if verb == "all" else {verb}
    for at in PHASES:
        took, worker = await time_to_end(app, FlakyStore(), verbs, how, at, cancelled=cancelled)
        handlers = CLEANUP if cancelled else GRACE + CLEANUP
        assert took <= max(handlers, 10) + 5 + 2 + 2, f"broken at {at}"
        assert took <= worker.budget(cancelled=cancelled)
        report = worker.exit_report
        assert report is not None
        assert report.seconds <= took


@pytest.mark.leaves_claims("the store cannot be told that they are over")
@pytest.mark.parametrize(("grace", "budget"), [(7, 7 + 3 + 5 + 4), (2, 10 + 5 + 4), (0, 19)])
async def test_the_budget_is_no_more_than_it_takes(
    virtual_time: VirtualTime, app: nq.App, grace: float, budget: float
) -> None:
    """With a store that goes silent during a claim, every part of the budget is used up."""
    store = FlakyStore()
    client = nq.Client(store)
    await client.enqueue("work")
    worker = nq.Worker(app, client, grace=grace, cleanup=CLEANUP)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        await trio.sleep_until(STOP_AT)
        store.stuck = set(VERBS)
        await client.enqueue("work")
        await trio.sleep(0.001)
        worker.stop()

    assert worker.budget() == budget
    assert trio.current_time() == pytest.approx(STOP_AT + budget, abs=0.01)


async def test_handlers_do_not_wait_for_a_claim(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """A claim without an answer takes nothing away from the time that handlers have."""
    reasons: list[tuple[float, str]] = []

    @app.task(name="hold")
    async def hold(ctx: nq.TaskContext) -> None:
        try:
            await trio.sleep(1000)
        finally:
            reasons.append((trio.current_time(), str(ctx.cancel_reason)))

    ref = await client.enqueue(hold)
    async with working(nq.Worker(app, client, grace=2, cleanup=CLEANUP)):
        await trio.sleep_until(STOP_AT)
        store.stuck = {"claim"}
        await client.enqueue("work")
        await trio.sleep(0.001)

    ((at, reason),) = reasons
    assert at == pytest.approx(7.001)
    assert reason == "shutdown"
    assert await outcomes(client, ref) == ["interrupted"]


async def test_an_outcome_is_stored_when_the_store_is_back(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """A stopped worker keeps trying to store its outcomes for a few seconds."""

    @app.task(name="brief")
    async def brief() -> None:
        await trio.sleep(5)

    ref = await client.enqueue(brief)
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(app, client)
        await nursery.start(worker.run)
        await trio.sleep_until(4)
        store.down = {"settle"}
        worker.stop()
        await trio.sleep_until(7)
        store.down = set()

    assert await outcomes(client, ref) == ["succeeded"]
    assert trio.current_time() < 10


# -- handlers that ignore their cancellation -----------------------------------------------------


@pytest.mark.parametrize(("cancelled", "released_at"), [(False, 5 + 7 + 3), (True, 5 + 3)])
async def test_a_handler_that_ignores_cancellation(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    cancelled: bool,
    released_at: float,
) -> None:
    """Its task is released when the time for cleaning up is over; another worker can have it."""
    ref = await client.enqueue("work", cleanup=50)
    worker = nq.Worker(app, client, grace=7, cleanup=3, lease=9)
    async with trio.open_nursery() as nursery:
        scope = await nursery.start(run_in_scope, worker)
        await trio.sleep_until(STOP_AT)
        scope.cancel() if cancelled else worker.stop()
        await trio.sleep_until(released_at - 0.01)
        assert await state(client, ref) == "running"
        await trio.sleep(0.02)
        assert await state(client, ref) == "ready"
        assert await outcomes(client, ref) == ["interrupted"]
        await trio.sleep(20)  # longer than the lease: nobody has taken the worker for dead
        async with working(nq.Worker(app, client, grace=0)):
            await trio.sleep(20)
            assert await outcomes(client, ref) == ["interrupted", "running"]

    assert await outcomes(client, ref) == ["interrupted", "interrupted"]


async def run_in_scope(
    worker: nq.Worker, *, task_status: trio.TaskStatus[trio.CancelScope]
) -> None:
    with trio.CancelScope() as scope:
        task_status.started(scope)
        await worker.run()


async def test_who_is_still_there(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names it and the line it is at, at once and then ever more rarely, until it ends."""
    ref = await client.enqueue("work", cleanup=600)
    worker = nq.Worker(app, client, grace=7, cleanup=3)
    times: list[float] = []

    class Clerk(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "still running" in record.getMessage():
                times.append(trio.current_time())

    logger = logging.getLogger("nursery_queue")
    logger.addHandler(clerk := Clerk())
    try:
        async with working(worker):
            await trio.sleep_until(STOP_AT)
    finally:
        logger.removeHandler(clerk)

    assert times == [15, 15 + 60, 15 + 60 + 120, 15 + 60 + 120 + 240]
    assert trio.current_time() == 5 + 7 + 600
    (line, *_) = [each for each in caplog.messages if "still running" in each]
    assert f"task {ref.id} work: {__file__}:" in line
    assert line.endswith("in work")
    assert worker.exit_report is not None
    (task,) = worker.exit_report.tasks
    assert (task.outcome, task.started, task.ended) == (nq.ExitOutcome.RELEASED, True, True)


async def test_what_is_said_of_a_task_that_others_have(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A handler that goes on when the lease is lost has nothing to release any more."""
    ref = await client.enqueue("work", cleanup=100)
    worker = nq.Worker(app, client, grace=1, cleanup=1)
    async with working(worker):
        await trio.sleep(1)
        lost = worker.health().worker_id
        assert lost is not None
        await store.inner.deregister(lost)
        await store.inner.sweep(max_lost=1)
        await trio.sleep(10)
        assert await outcomes(client, ref) == ["lost"]
    (line, *_) = [each for each in caplog.messages if "still running" in each]

    assert "still running, its task lost: " in line
    assert worker.exit_report is not None
    (task,) = worker.exit_report.tasks
    assert task.outcome is nq.ExitOutcome.LEASE_LOST


async def test_the_report_is_there_before_such_a_handler_ends(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """Once nothing else is left to do, it says that the handler is still running."""
    await client.enqueue("work", cleanup=600)
    worker = nq.Worker(app, client, grace=7, cleanup=3)
    async with working(worker):
        await trio.sleep_until(STOP_AT)
        worker.stop()
        await trio.sleep_until(14.9)
        before = worker.exit_report
        await trio.sleep_until(15.1)
        report = worker.exit_report
    assert before is None
    assert report is not None
    (task,) = report.tasks
    assert (task.outcome, task.ended) == (nq.ExitOutcome.RELEASED, False)
    assert str(task).endswith("released, its handler still running")


async def test_abandoned(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """`abandoned()` returns when such handlers are all that is left, and the row is gone."""
    await client.enqueue("work", cleanup=600)
    worker = nq.Worker(app, client, grace=7, cleanup=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await trio.sleep_until(STOP_AT)
        worker.stop()
        await worker.abandoned()
        assert trio.current_time() == 15
        assert (await client.stats()).workers == []


@pytest.mark.leaves_claims("the store cannot be told that they are over")
@pytest.mark.parametrize("how", ["down", "stuck"])
async def test_abandoned_without_a_store(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore, how: str
) -> None:
    """It does so, too, when their release cannot be stored, and the report says that."""
    await client.enqueue("work", cleanup=600)
    worker = nq.Worker(app, client, grace=7, cleanup=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await trio.sleep_until(STOP_AT)
        break_down(store, set(VERBS), how)
        worker.stop()
        await worker.abandoned()
        assert 20 <= trio.current_time() <= STOP_AT + worker.budget()
        report = worker.exit_report

    assert report is not None
    assert [task.outcome for task in report.tasks] == [nq.ExitOutcome.UNSETTLED]


async def test_not_abandoned(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """Handlers that end a little late are waited for: nobody has to do without them."""
    await client.enqueue("work", cleanup=4)
    worker = nq.Worker(app, client, grace=7, cleanup=3)
    store.late = {"settle": 1.5}
    with trio.move_on_after(1000) as patience:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.abandoned)
            async with working(worker):
                await trio.sleep_until(STOP_AT)
            assert trio.current_time() == 16.5

    assert patience.cancelled_caught
