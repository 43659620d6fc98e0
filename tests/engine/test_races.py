"""The end of an attempt races with that of its worker: what is told is told once, and is true."""

from __future__ import annotations

import contextlib

from collections.abc import AsyncGenerator

import pytest
import trio

import nursery_queue as nq

from nursery_queue._store import Isolation, StoreTransaction
from nursery_queue.testing import MemoryStore, VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import Longest, working


class Late(MemoryStore):
    """A store whose COMMIT is answered a while after it has had its effect."""

    @contextlib.asynccontextmanager
    async def transaction(
        self, *, isolation: Isolation | None = None
    ) -> AsyncGenerator[StoreTransaction]:
        async with MemoryStore.transaction(self, isolation=isolation) as tx:
            yield tx
        with trio.CancelScope(shield=True):
            await trio.sleep(0.3)


class Told(nq.Instrument):
    """Keeps the ends of attempts that it hears of."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    def task_completed(self, event: nq.Completed) -> None:
        self.ends.append(event.status.value)


@pytest.mark.leaves_claims("the store took nothing")
@pytest.mark.parametrize("until", ["idle", "stopped", "cancelled"])
async def test_a_stop_while_the_store_is_away(virtual_time: VirtualTime, until: str) -> None:
    """However a worker was told to work, stopped in an outage it ends within its budget."""
    app, store, stopped_at = nq.App(), FlakyStore(), 0.0

    @app.task(name="quick")
    async def quick() -> None:
        await trio.sleep(1)

    async with nq.Client(store) as client:
        worker = nq.Worker(app, client, grace=5, cleanup=1, rng=Longest())
        await client.enqueue("quick")
        with trio.CancelScope() as around:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(worker.run if until == "stopped" else worker.run_until_idle)
                await trio.sleep(0.5)
                store.down = {"settle"}
                stopped_at = trio.current_time()
                if until == "cancelled":
                    around.cancel()
                else:
                    worker.stop()
        assert trio.current_time() - stopped_at <= worker.budget()
        assert worker.exit_report is not None
        counts = worker.exit_report.counts
        # Cancelled, it ends the handler at once, which leaves nothing to be stored but a release.
        assert counts == {nq.ExitOutcome.UNSETTLED: 1}


@pytest.mark.parametrize(("store_settles", "store_looks_up"), [(0.0, 0.5), (0.8, 0.5), (0.0, 0.0)])
async def test_a_commit_that_is_answered_after_the_release(
    virtual_time: VirtualTime, store_settles: float, store_looks_up: float
) -> None:
    """A transaction that was faster than the release is a success, told once, calling nothing."""
    app, store, told, called = nq.App(), FlakyStore(Late()), Told(), list[str]()
    stop_at = trio.current_time() + 0.5

    @app.task(name="work", transactional=True)
    async def work(ctx: nq.TaskContext) -> None:
        assert ctx.tx is not None
        with trio.CancelScope(shield=True):
            await ctx.tx.enqueue("other")
            ctx.after(called.append, "after")
            await trio.sleep_until(stop_at + 1.9)

    async with nq.Client(store, instruments=[told]) as client:
        worker = nq.Worker(app, client, grace=1, cleanup=1, rng=Longest())
        await client.enqueue("work")
        async with working(worker):
            await trio.sleep_until(stop_at)
            store.late = {"settle": store_settles, "outcomes": store_looks_up}
        assert told.ends == ["succeeded"]
        assert called == []
        assert client.called_back.counts == nq.CallbackCounts()
        assert worker.exit_report is not None
        assert worker.exit_report.counts == {nq.ExitOutcome.SUCCEEDED: 1}


@pytest.mark.leaves_claims("the store took nothing")
async def test_who_asks_after_the_end_changes_nothing(virtual_time: VirtualTime) -> None:
    """A question for the worker's health does not turn a shutdown into a lost lease."""
    app, store, go_on = nq.App(), FlakyStore(), trio.Event()

    @app.task(name="stubborn")
    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await go_on.wait()

    async with nq.Client(store) as client:
        worker = nq.Worker(app, client, grace=1, cleanup=1, rng=Longest())
        await client.enqueue("stubborn")
        async with working(worker):
            await trio.sleep(0.5)
            store.down = {"settle"}
            worker.stop()
            await worker.abandoned()
            (handler,) = worker.health().handlers
            assert str(handler.cancel_reason) == "shutdown"
            report = worker.exit_report
            assert report is not None
            await trio.sleep(10)
            assert worker.exit_report is report  # as it was when the rest was given up
            go_on.set()
        assert report.counts == {nq.ExitOutcome.UNSETTLED: 1}
        assert worker.exit_report is not None
        assert worker.exit_report.counts == {nq.ExitOutcome.UNSETTLED: 1}
