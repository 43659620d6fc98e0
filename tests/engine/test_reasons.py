"""Why an attempt was cancelled: one reason, whatever the handler does and whoever comes first."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import itertools

from collections.abc import AsyncGenerator, Iterator, Sequence

import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue import CancelReason
from nursery_queue._core._model import CancelRequest
from nursery_queue._worker._attempt import Attempt
from nursery_queue.testing import MemoryStore, VirtualTime, deterministic
from tests.engine.handlers import KINDS, Handlers, Kind
from tests.support.flaky_store import FlakyStore
from tests.support.workers import outcomes, state, working


PAIRS = list(itertools.permutations(CancelReason, 2))
TOGETHER: list[Sequence[CancelReason]] = [
    *PAIRS,
    tuple(CancelReason),
    tuple(reversed(CancelReason)),
]
RECORDED = {
    CancelReason.SHUTDOWN: "interrupted",
    CancelReason.TIMED_OUT: "timed_out",
    CancelReason.CANCELLED: "cancelled",
}


def in_hand(worker: nq.Worker) -> dict[int, Attempt]:
    """Return what the worker holds, by the task's id."""
    assert worker._parts is not None
    return {one.claim.fence.task_id: one for one in worker._parts.slots.held.values()}


def apply(worker: nq.Worker, task_id: int, reason: CancelReason) -> None:
    """Do what the engine does for that reason."""
    attempt = in_hand(worker)[task_id]
    assert worker._parts is not None
    match reason:
        case CancelReason.TIMED_OUT:
            assert attempt.why() is not None  # the clock says so, to whoever asks
        case CancelReason.CANCELLED:
            worker._parts.slots.obey(CancelRequest(fence=attempt.claim.fence, interrupt=True))
        case _:
            attempt.cancel(reason)


@contextlib.asynccontextmanager
async def crowd(somewhere: str | None) -> AsyncGenerator[nq.Client]:
    """A client with connections enough for many transactions at once."""
    if somewhere is None:
        yield nq.Client(MemoryStore())
    else:
        async with nq.connect(somewhere, pool_size=len(TOGETHER) + 4) as client:
            yield client


@pytest.fixture
def handlers(app: nq.App) -> Iterator[Handlers]:
    handlers = Handlers()
    handlers.declare(app)
    yield handlers
    handlers.go.set()


@pytest.mark.leaves_claims("what was lost is not swept, since the worker lives on")
@pytest.mark.parametrize("name", KINDS)
async def test_reasons_at_the_same_instant(
    virtual_time: VirtualTime, app: nq.App, handlers: Handlers, somewhere: str | None, name: str
) -> None:
    """Of any two, and of all four, the greatest is seen, recorded and acted upon."""
    async with crowd(somewhere) as client:
        tasks: dict[int, Sequence[CancelReason]] = {}
        for reasons in TOGETHER:
            limit = 5 if CancelReason.TIMED_OUT in reasons else None
            tasks[(await client.enqueue(app[name].options(timeout=limit))).id] = reasons
        worker = nq.Worker(app, client)
        async with working(worker):
            await handlers.all_started(len(tasks))
            virtual_time.advance(5)
            for task_id, reasons in tasks.items():
                for reason in reasons:
                    apply(worker, task_id, reason)
            await trio.sleep(10)

            for task_id, reasons in tasks.items():
                await check(client, task_id, KINDS[name], max(reasons))
                if KINDS[name].cleans_up:
                    assert set(handlers.seen[task_id]) == {str(max(reasons))}, reasons
            children = [task.id for task in await client.list_tasks(task_type="child")]
            returned = [r for r in tasks.values() if max(r) is not CancelReason.LEASE_LOST]
            again = [r for r in returned if max(r) is CancelReason.SHUTDOWN]
            if name == "transactional":
                assert len(children) == len(again)
            elif name == "transactional_returns":
                assert len(children) == len(returned)


async def check(client: nq.Client, task_id: int, kind: Kind, reason: CancelReason) -> None:
    """Assert that the log and the task say what the reason and the handler's end mean."""
    status = await client.status(task_id)
    log = await client.attempts(task_id)
    assert status is not None
    if reason is CancelReason.LEASE_LOST:
        assert [str(attempt.outcome) for attempt in log] == ["running"]  # nothing was settled
        return
    if kind.returns:
        assert [str(attempt.outcome) for attempt in log] == ["succeeded"]
        assert (status.state, status.result, status.attempt) == ("succeeded", "done", 1)
        return
    first = log[0]
    assert str(first.outcome) == RECORDED[reason]
    if kind.error is not None:
        assert (first.error_type, first.error_message) == ("ValueError", kind.error)
    match reason:
        case CancelReason.SHUTDOWN:  # it went round again, as the first attempt
            assert [str(attempt.outcome) for attempt in log[1:]] == ["succeeded"]
            assert (status.state, status.attempt) == ("succeeded", 1)
            assert kind.error is not None or first.error_type is None
        case CancelReason.TIMED_OUT:
            assert len(log) == 1
            assert (status.state, status.attempt) == ("scheduled", 1)
            assert kind.error is not None or first.error_type == "TimedOut"
        case _:
            assert len(log) == 1
            assert (status.state, status.attempt) == ("cancelled", 1)
            assert kind.error is not None or first.error_type is None


@pytest.mark.leaves_claims("what was lost is not swept, since the worker lives on")
async def test_another_reason_during_the_clean_up(
    virtual_time: VirtualTime, app: nq.App, handlers: Handlers
) -> None:
    """A greater reason replaces the first; a time limit that passes in the clean-up is none."""
    client = nq.Client(MemoryStore())
    tasks: dict[int, tuple[CancelReason, CancelReason]] = {}
    for first, second in PAIRS:
        limits = {first: 5.0, second: 6.0}
        task = app["shields"].options(timeout=limits.get(CancelReason.TIMED_OUT))
        tasks[(await client.enqueue(task)).id] = first, second
    worker = nq.Worker(app, client)
    async with working(worker):
        for at in (0, 1):
            await trio.sleep_until(5 + at)
            for task_id, pair in tasks.items():
                if pair[at] is not CancelReason.TIMED_OUT:
                    apply(worker, task_id, pair[at])
        await trio.sleep(10)

        for task_id, (first, second) in tasks.items():
            counts = first if second is CancelReason.TIMED_OUT else max(first, second)
            assert handlers.seen[task_id] == [str(first), str(counts)]
            await check(client, task_id, KINDS["shields"], counts)


CLOCKS = [CancelReason.SHUTDOWN, CancelReason.TIMED_OUT, CancelReason.LEASE_LOST]
BY_THE_CLOCK = [which for n in (2, 3) for which in itertools.combinations(CLOCKS, n)]


@pytest.mark.leaves_claims("the lease is lost, and nobody has swept")
@pytest.mark.parametrize("reasons", BY_THE_CLOCK, ids=lambda reasons: "+".join(map(str, reasons)))
@pytest.mark.parametrize("clean_up", [0, 1])
async def test_clocks_that_strike_together(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    reasons: Sequence[CancelReason],
    clean_up: float,
) -> None:
    """In whatever order trio runs what ends lease, time limit and grace, the greatest is it."""
    seen: list[object] = []

    @app.task(name="hold", timeout=6 if CancelReason.TIMED_OUT in reasons else None)
    async def hold(ctx: nq.TaskContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            seen.append(ctx.cancel_reason)
            with trio.CancelScope(shield=True):
                await trio.sleep(clean_up)

    lease = 6 if CancelReason.LEASE_LOST in reasons else 60
    for seed in range(10):
        ref, start = await client.enqueue(hold), trio.current_time()
        with deterministic(seed):
            worker = nq.Worker(app, client, lease=lease, heartbeat=2, grace=5)
            async with working(worker):
                store.down = {"heartbeat", "register", "sweep"}
                await trio.sleep_until(start + (1 if CancelReason.SHUTDOWN in reasons else 9))
        store.down.clear()
        await client.cancel(ref)  # it may be ready again

        recorded = {"lease_lost": "running"}.get(str(max(reasons)), str(max(reasons)))
        assert (seen.pop(), seen) == (max(reasons), []), seed
        assert await outcomes(client, ref) == [recorded], seed


# -- the end of the lease ------------------------------------------------------------------


@pytest.mark.leaves_claims("the lease is lost, and nobody has swept")
@pytest.mark.parametrize("how", ["returns", "raises", "in a transaction"])
async def test_an_outcome_at_the_end_of_the_lease(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    """Until the instant before the lease ends, an outcome counts; from the end on it is dropped."""

    @app.task(name="quick", transactional=how == "in a transaction")
    async def quick(ctx: nq.TaskContext, until: float) -> str:
        if how == "in a transaction":
            await ctx.tx.enqueue("child", parent=ctx.task_id)
        await trio.sleep(until)
        if how == "raises":
            raise nq.DoNotRetry("no")
        return "done"

    for seed in range(10):
        with deterministic(seed):
            good, bad = [await client.enqueue(quick, until) for until in (5.999, 6)]
            async with working(nq.Worker(app, client, lease=6, heartbeat=2)):
                store.down = {"heartbeat", "register", "sweep"}
                await trio.sleep(7)
            store.down.clear()

        assert await state(client, good) == ("failed" if how == "raises" else "succeeded"), seed
        assert await outcomes(client, bad) == ["running"], seed
    dropped = [r.message for r in caplog.records if "its outcome is dropped" in r.message]
    assert 0 < len(dropped) < 10  # in the other orders the handler was cancelled first
    children = len(await client.list_tasks(task_type="child"))
    assert children == (10 if how == "in a transaction" else 0)


@pytest.mark.parametrize("kind", ["blocks", "thread"])
async def test_an_outcome_long_after_the_lease(
    virtual_time: VirtualTime, app: nq.App, anywhere: FlakyStore, kind: str
) -> None:
    """A handler that blocks the loop, or a thread, past the lease has its outcome dropped."""
    client = nq.Client(anywhere)

    @app.task(name="blocks")
    async def blocks(ctx: nq.TaskContext) -> int:
        if ctx.fence.epoch == 1:
            virtual_time.advance(31)
            assert ctx.cancel_reason is CancelReason.LEASE_LOST
        return ctx.fence.epoch

    @app.task(name="thread")
    def thread(ctx: nq.TaskContext) -> int:
        if ctx.fence.epoch == 1:
            trio.from_thread.run_sync(virtual_time.advance, 31)
        return ctx.fence.epoch

    ref = await client.enqueue(kind)
    async with working(nq.Worker(app, client, lease=30)):
        assert await client.result(ref, timeout=60) == 2
    assert await outcomes(client, ref) == ["lost", "succeeded"]


async def test_an_outcome_handed_in_before(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """What came before the lease ended, and could not be stored, is stored later all the same."""

    @app.task(name="quick")
    async def quick() -> str:
        await trio.sleep(5)
        return "done"

    ref = await client.enqueue(quick)
    async with working(nq.Worker(app, client, lease=6, heartbeat=2)):
        store.down = {"heartbeat", "register", "sweep", "settle"}
        await trio.sleep(7)
        store.down = {"sweep"}
        await trio.sleep(7)
        store.down = set()
    assert await outcomes(client, ref) == ["succeeded"]
