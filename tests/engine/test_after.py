"""`ctx.after`: called when the success of this very attempt is stored, and only then."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from collections.abc import Callable

import psycopg
import pytest
import sniffio
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.waits import eventually
from tests.support.workers import final, outcomes, state, working


# -- when it is called ---------------------------------------------------------------------------


async def test_success(app: nq.App, either: nq.Client) -> None:
    """It is called when everybody can see that the task has succeeded."""
    seen: list[str] = []

    async def look() -> None:
        seen.append(await state(either, ref))

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(look)
        ctx.after(look)
        await trio.lowlevel.checkpoint()
        assert seen == []

    ref = await either.enqueue(work)
    async with working(nq.Worker(app, either)):
        await final(either, ref)

    assert seen == ["succeeded", "succeeded"]
    assert either.callbacks == nq.CallbackCounts(finished=2)


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize(
    "end",
    [ValueError("no"), nq.DoNotRetry("no"), nq.Snooze(1000), nq.RetryAfter(1000)],
    ids=lambda end: type(end).__name__,
)
async def test_other_ends(
    app: nq.App, either: nq.Client, end: Exception, transactional: bool
) -> None:
    """It is not called when the handler ends in any other way."""
    called: list[Exception] = []

    @app.task(transactional=transactional)
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, end)
        if transactional:
            ctx.tx.after(called.append, end)
            await ctx.tx.enqueue("other")
        raise end

    ref = await either.enqueue(work)
    await nq.Worker(app, either).run_until_idle()

    assert await outcomes(either, ref) != ["succeeded"]
    assert called == []
    assert either.callbacks == nq.CallbackCounts()


async def test_a_result_that_cannot_be_stored(app: nq.App, either: nq.Client) -> None:
    """It is not called when the handler returned something that is not JSON."""
    called: list[int] = []

    @app.task
    async def work(ctx: nq.TaskContext) -> object:
        ctx.after(called.append, 1)
        return object()

    ref = await either.enqueue(work)
    await nq.Worker(app, either).run_until_idle()

    assert await outcomes(either, ref) == ["failed"]
    assert called == []


async def test_the_attempt_that_succeeds(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """Of several attempts only the one that succeeds has its callbacks called."""
    called: list[int] = []

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, ctx.attempt)
        if ctx.attempt < 3:
            raise ValueError

    ref = await either.enqueue(work)
    async with working(nq.Worker(app, either)):
        await final(either, ref, within=100)

    assert called == [3]


@pytest.mark.parametrize("returns", [False, True])
@pytest.mark.parametrize("reason", ["timed_out", "cancelled"])
async def test_cancelled(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, reason: str, returns: bool
) -> None:
    """It is not called when the attempt was cancelled, unless the handler returned: a success."""
    called: list[int] = []
    running = trio.Event()

    @app.task(timeout=5 if reason == "timed_out" else None, retry=None)
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, 1)
        running.set()
        try:
            await trio.sleep_forever()
        except trio.Cancelled:
            if not returns:
                raise

    ref = await either.enqueue(work)
    async with working(nq.Worker(app, either)):
        await running.wait()
        if reason == "cancelled":
            await either.cancel(ref)
        await final(either, ref, within=100)

    assert await outcomes(either, ref) == ["succeeded" if returns else reason]
    assert called == [1] * returns


async def lose_claim(ctx: nq.TaskContext, worker: nq.Worker) -> None:
    """Have the worker taken for dead when it claims nothing any more, or it would again."""

    async def intake_closed() -> bool:
        return worker.health().loops["claimer"].state == "off"

    worker.stop()
    await eventually(intake_closed)
    await ctx.client.store.deregister(ctx.worker_id)
    await ctx.client.sweep()


async def test_a_stale_fence(app: nq.App, either: nq.Client) -> None:
    """It is not called when the success is refused because others have the task by now."""
    called: list[int] = []

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, ctx.attempt)
        await lose_claim(ctx, worker)

    ref = await either.enqueue(work)
    worker = nq.Worker(app, either)
    await worker.run()

    assert await outcomes(either, ref) == ["lost"]
    assert called == []
    assert either.callbacks == nq.CallbackCounts()


@pytest.mark.leaves_claims("nobody sweeps what it has lost")
async def test_a_lost_lease(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """It is not called when the handler returned after the lease had been lost."""
    called: list[int] = []

    @app.task(timeout=None)
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, 1)
        with trio.CancelScope(shield=True):
            await trio.sleep(20)
        worker.stop()

    worker = nq.Worker(app, client, lease=9)
    await client.enqueue(work)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        store.down = {"heartbeat", "register"}

    assert called == []
    assert client.callbacks == nq.CallbackCounts()


async def test_a_success_that_the_database_refuses(
    app: nq.App, pg: nq.Client, migrated: str
) -> None:
    """It is not called when the success cannot be stored, and the attempt has failed instead."""
    called: list[int] = []
    with psycopg.connect(migrated) as conn:
        conn.execute("alter table nursery_queue.finished add check (result is distinct from '14')")

    @app.task(retry=None)
    async def work(ctx: nq.TaskContext, number: int) -> int:
        ctx.after(called.append, number)
        return 2 * number

    refs = [await pg.enqueue(work, number) for number in (6, 7, 8)]
    await nq.Worker(app, pg).run_until_idle()

    assert [await state(pg, ref) for ref in refs] == ["succeeded", "failed", "succeeded"]
    assert sorted(called) == [6, 8]


# -- transactional -------------------------------------------------------------------------------


@pytest.mark.parametrize("opened", [False, True])
async def test_with_a_transaction(app: nq.App, either: nq.Client, opened: bool) -> None:
    """`ctx.after` and `ctx.tx.after` are called in their order, also if ctx.tx was not used."""
    called: list[str] = []

    @app.task(transactional=True)
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, "one")
        ctx.tx.after(called.append, "two")
        if opened:
            await ctx.tx.enqueue("other")
        ctx.after(called.append, "three")

    ref = await either.enqueue(work)
    await nq.Worker(app, either).run_until_idle()

    assert await state(either, ref) == "succeeded"
    assert called == ["one", "two", "three"]


async def test_savepoints(app: nq.App, either: nq.Client) -> None:
    """A savepoint that is rolled back takes along what `ctx.tx` was given in it, and no more."""
    called: list[str] = []

    @app.task(transactional=True)
    async def work(ctx: nq.TaskContext) -> None:
        ctx.tx.after(called.append, "before")
        with contextlib.suppress(KeyError):
            async with ctx.tx.savepoint():
                ctx.tx.after(called.append, "in it")
                ctx.after(called.append, "of the attempt")
                raise KeyError
        async with ctx.tx.savepoint():
            ctx.tx.after(called.append, "released")

    await either.enqueue(work)
    await nq.Worker(app, either).run_until_idle()

    assert called == ["before", "of the attempt", "released"]


async def test_a_commit_that_fails(app: nq.App, pg: nq.Client, migrated: str) -> None:
    """It is not called when the commit of ctx.tx failed."""
    called: list[int] = []
    with psycopg.connect(migrated) as conn:
        conn.execute("create table note (body text unique deferrable initially deferred)")

    @app.task(transactional=True, retry=None)
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, 1)
        for _ in range(2):
            await ctx.tx.execute("insert into note values ('a')")

    ref = await pg.enqueue(work)
    await nq.Worker(app, pg).run_until_idle()

    assert await outcomes(pg, ref) == ["failed"]
    assert called == []


async def test_a_claim_lost_before_the_commit(app: nq.App, either: nq.Client) -> None:
    """It is not called when ctx.tx was rolled back because others have the task by now."""
    called: list[int] = []

    @app.task(transactional=True)
    async def work(ctx: nq.TaskContext) -> None:
        await ctx.tx.enqueue("other")
        ctx.tx.after(called.append, 1)
        await lose_claim(ctx, worker)

    ref = await either.enqueue(work)
    worker = nq.Worker(app, either)
    await worker.run()

    assert await outcomes(either, ref) == ["lost"]
    assert called == []
    assert either.callbacks == nq.CallbackCounts()


async def test_a_transaction_of_its_own(app: nq.App, either: nq.Client) -> None:
    """`ctx.transaction` calls its callbacks at its own end, or has them collected."""
    called: list[str] = []

    @app.task(retry=None)
    async def work(ctx: nq.TaskContext) -> None:
        async with ctx.transaction() as tx:
            tx.after(called.append, "at once")
        assert called == ["at once"]
        async with nq.AfterCommit() as after:
            async with ctx.transaction(after=after) as tx:
                tx.after(called.append, "collected")
            assert called == ["at once"]
        raise ValueError

    await either.enqueue(work)
    await nq.Worker(app, either).run_until_idle()

    assert called == ["at once", "collected"]


# -- handlers of other kinds ---------------------------------------------------------------------


async def test_a_handler_in_a_thread(app: nq.App, either: nq.Client) -> None:
    """A function may use it, too; what is called runs in trio's thread."""
    called: list[object] = []

    async def call(text: str) -> None:
        await trio.lowlevel.checkpoint()
        called.extend([text, threading.current_thread(), sniffio.current_async_library()])

    @app.task
    def work(ctx: nq.TaskContext) -> None:
        ctx.after(call, "a")

    await either.enqueue(work)
    await nq.Worker(app, either).run_until_idle()

    assert called == ["a", threading.current_thread(), "trio"]


async def test_a_handler_on_asyncio(app: nq.App, either: nq.Client) -> None:
    """A handler on asyncio may use it, too; what is called runs in trio."""
    called: list[object] = []

    async def call(text: str) -> None:
        await trio.lowlevel.checkpoint()
        called.extend([text, sniffio.current_async_library()])

    @app.task(asyncio=True)
    async def work(ctx: nq.TaskContext) -> None:
        await asyncio.sleep(0)
        ctx.after(call, "a")

    await either.enqueue(work)
    await nq.Worker(app, either).run_until_idle()

    assert called == ["a", "trio"]


async def test_too_late(app: nq.App, client: nq.Client) -> None:
    """When the attempt has ended nothing can be registered, not even by a callback."""
    kept: list[nq.TaskContext] = []
    refused: list[int] = []

    def again() -> None:
        for ctx in kept:
            with pytest.raises(nq.Closed, match="attempt has ended"):
                ctx.after(print)
            refused.append(ctx.task_id)

    @app.task
    async def work(ctx: nq.TaskContext, register: bool) -> None:
        kept.append(ctx)
        if register:
            ctx.after(again)

    without = await client.enqueue(work, register=False)
    await nq.Worker(app, client).run_until_idle()
    within = await client.enqueue(work, register=True)
    await nq.Worker(app, client).run_until_idle()
    assert refused == [without.id, within.id]
    again()
    assert refused == 2 * [without.id, within.id]


# -- how it runs ---------------------------------------------------------------------------------


async def test_errors(app: nq.App, client: nq.Client, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that fails is logged and counted; the task has succeeded all the same."""

    def fail() -> None:
        raise ValueError("no chat today")

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(fail)

    ref = await client.enqueue(work)
    await nq.Worker(app, client).run_until_idle()

    assert await outcomes(client, ref) == ["succeeded"]
    assert client.callbacks == nq.CallbackCounts(failed=1)
    assert "ValueError: no chat today" in caplog.text


async def test_an_interrupt(app: nq.App, client: nq.Client, interrupt: Callable[[], None]) -> None:
    """A Ctrl-C that strikes in a callback ends the worker, whose other handlers are told."""
    reasons: list[str] = []
    running = trio.Event()

    async def strike() -> None:
        await running.wait()
        interrupt()

    @app.task(name="work")
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(strike)

    @app.task(name="other")
    async def other(ctx: nq.TaskContext) -> None:
        running.set()
        try:
            await trio.sleep_forever()
        finally:
            reasons.append(str(ctx.cancel_reason))

    await client.enqueue(work)
    await client.enqueue(other)
    with pytest.RaisesGroup(KeyboardInterrupt, flatten_subgroups=True):
        await nq.Worker(app, client).run()

    assert reasons == ["shutdown"]


async def test_it_keeps_its_place(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """While callbacks run, the attempt counts among those at once; the next ones stay ready."""
    started: list[float] = []

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        started.append(round(trio.current_time(), 2))
        ctx.after(trio.sleep, 5)

    refs = [await client.enqueue(work) for _ in range(3)]
    worker = nq.Worker(app, client, concurrency=1, prefetch=0)
    async with working(worker):
        await trio.sleep(2)
        assert (worker.health().running, worker.health().held) == (1, 0)
        assert await state(client, refs[0]) == "succeeded"
        assert await state(client, refs[1]) == "ready"
        await final(client, refs[2], within=100)

    assert started == [0, 5, 10]


async def test_run_until_idle_waits(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """`run_until_idle` returns when the callbacks have ended, too."""

    @app.task(transactional=True)
    async def work(ctx: nq.TaskContext, seconds: float, opened: bool) -> None:
        ctx.after(trio.sleep, seconds)
        if opened:
            await ctx.tx.begin()

    await either.enqueue(work, 28, opened=True)
    await either.enqueue(work, 25, opened=False)
    began = trio.current_time()
    await nq.Worker(app, either).run_until_idle()

    assert trio.current_time() - began == pytest.approx(28, abs=0.5)
    assert either.callbacks == nq.CallbackCounts(finished=2)


async def test_run_until_idle_waits_without_claiming(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """Also when it has been told to claim no more, and for longer than its grace."""

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        worker.stop_claiming()
        ctx.after(trio.sleep, 28)

    await client.enqueue(work)
    worker = nq.Worker(app, client, grace=5)
    await worker.run_until_idle()

    assert client.callbacks == nq.CallbackCounts(finished=1)
    assert trio.current_time() == pytest.approx(28, abs=0.01)


async def test_callbacks_that_enqueue(app: nq.App, either: nq.Client) -> None:
    """`run_until_idle` also does what the last callback has enqueued."""
    done: list[int] = []

    @app.task(name="work")
    async def work(ctx: nq.TaskContext, more: int) -> None:
        done.append(more)
        if more:
            ctx.after(either.enqueue, work.bind(more - 1))

    await either.enqueue(work, 5)
    await nq.Worker(app, either).run_until_idle()

    assert done == [5, 4, 3, 2, 1, 0]


async def test_later_cancellations(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A cancel between the handler's end and its settlement, or a lost lease later, is too late."""
    ended: list[float] = []

    async def call() -> None:
        await trio.sleep(25)
        ended.append(round(trio.current_time()))

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(call)

    store.late["settle"] = 2
    worker = nq.Worker(app, client, lease=9)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        ref = await client.enqueue(work)
        await trio.sleep(1)
        await client.cancel(ref)
        await trio.sleep(4)
        assert await outcomes(client, ref) == ["succeeded"]
        store.down = {"heartbeat"}
        await trio.sleep(15)
        assert "lost the lease" in caplog.text
        store.down = set()
        await trio.sleep(15)
        worker.stop()

    assert ended == [27]


# -- shutdown ------------------------------------------------------------------------------------


async def stopped(worker: nq.Worker, at: float, *, cancelled: bool) -> float:
    """Run a worker, stop it, and return how many seconds that took."""
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            await trio.sleep_until(at)
            scope.cancel() if cancelled else worker.stop()
    return trio.current_time() - at


@pytest.mark.parametrize(("cancelled", "took", "ended"), [(False, 4, 1), (True, 0, 0)])
async def test_the_grace_is_for_callbacks_too(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    cancelled: bool,
    took: float,
    ended: int,
) -> None:
    """Stopped, a worker lets callbacks end within its grace; cancelled, it cancels them."""

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(trio.sleep, 5)

    ref = await client.enqueue(work)
    worker = nq.Worker(app, client, grace=7)

    assert await stopped(worker, 1, cancelled=cancelled) == pytest.approx(took, abs=0.01)
    assert await outcomes(client, ref) == ["succeeded"]
    assert client.callbacks == nq.CallbackCounts(finished=ended, cancelled=1 - ended)


async def test_callbacks_that_outlive_the_grace(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """They are cancelled at its end, and can clean up; their task is not touched by that."""
    cleaned: list[float] = []

    async def call() -> None:
        try:
            await trio.sleep(28)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(2)
            cleaned.append(trio.current_time())

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        for _ in range(11):
            ctx.after(call)

    ref = await client.enqueue(work)
    worker = nq.Worker(app, client, grace=7, cleanup=3)

    assert await stopped(worker, 1, cancelled=False) == pytest.approx(9, abs=0.01)
    assert len(cleaned) == 10
    assert client.callbacks == nq.CallbackCounts(cancelled=11)
    assert await outcomes(client, ref) == ["succeeded"]
    assert worker.exit_report is not None
    assert worker.exit_report.tasks == ()


@pytest.mark.parametrize("seconds", [0, 3])
async def test_callbacks_that_ignore_cancellation(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    caplog: pytest.LogCaptureFixture,
    seconds: float,
) -> None:
    """They are waited for, as handlers are, and named; their task stays as it is stored."""
    abandoned: list[tuple[float, list[str]]] = []

    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep_until(40)

    @app.task(name="work")
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(stubborn)
        await trio.sleep(seconds)

    async def watch() -> None:
        await worker.abandoned()
        report = worker.exit_report
        assert report is not None
        abandoned.append((round(trio.current_time()), [str(each) for each in report.tasks]))

    ref = await client.enqueue(work)
    worker = nq.Worker(app, client, grace=7, cleanup=3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await stopped(worker, 1, cancelled=False)

    # In hand was only what still ran at the stop; its handler has ended, if not its callback.
    in_hand = ["task 1 (work, attempt 1): succeeded"] if seconds else []
    assert abandoned == [(11, in_hand)]
    assert trio.current_time() == pytest.approx(40, abs=0.01)
    assert await outcomes(client, ref) == ["succeeded"]
    (line, *_) = [each for each in caplog.messages if "still running" in each]
    assert "its task settled: task 1 work" in line
    assert "stubborn" in line
    assert "lost the claim" not in caplog.text


@pytest.mark.parametrize("opened", [False, True])
async def test_handlers_that_end_after_the_grace(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    caplog: pytest.LogCaptureFixture,
    opened: bool,
) -> None:
    """A handler that returns when it is cancelled has succeeded; its callbacks come too late."""
    begun: list[int] = []

    @app.task(transactional=True)
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(begun.append, 1)
        if opened:
            await ctx.tx.begin()
        with contextlib.suppress(trio.Cancelled):
            await trio.sleep(100)

    ref = await client.enqueue(work)
    worker = nq.Worker(app, client, grace=2, cleanup=3)

    assert await stopped(worker, 1, cancelled=False) == pytest.approx(2, abs=0.01)
    assert await outcomes(client, ref) == ["succeeded"]
    assert begun == []
    assert client.callbacks == nq.CallbackCounts(cancelled=1)
    assert ("success is not stored yet" in caplog.text) is not opened


@pytest.mark.leaves_claims("the store cannot be told that they are over")
@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("how", ["down", "stuck", "late"])
async def test_a_success_that_is_never_stored(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    caplog: pytest.LogCaptureFixture,
    how: str,
    cancelled: bool,
) -> None:
    """With the database away, callbacks are not called, and the worker ends within its budget."""
    called: list[int] = []

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, 1)
        setattr(store, how, dict.fromkeys(verbs, 100.0) if how == "late" else verbs)

    verbs = {"heartbeat", "settle", "deregister"}
    await client.enqueue(work)
    worker = nq.Worker(app, client, grace=4, cleanup=3)
    took = await stopped(worker, 2, cancelled=cancelled)

    assert took <= worker.budget(cancelled=cancelled)
    assert called == []
    assert client.callbacks == nq.CallbackCounts(cancelled=1)
    assert "1 callbacks are not called" in caplog.text


@pytest.mark.leaves_claims("the store cannot be told that they are over")
async def test_a_failure_that_is_never_stored(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """Nobody waits for the callbacks of an attempt that failed, and they do not count."""

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(trio.sleep, 1)
        store.down = {"settle"}
        raise ValueError

    await client.enqueue(work)
    worker = nq.Worker(app, client, grace=20)

    assert await stopped(worker, 2, cancelled=False) == pytest.approx(5, abs=0.01)
    assert client.callbacks == nq.CallbackCounts()


async def test_a_handler_whose_task_was_released(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """A handler that returns after its task was given back has not succeeded."""
    called: list[int] = []

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, 1)
        with trio.CancelScope(shield=True):
            await trio.sleep(30)

    ref = await client.enqueue(work)
    worker = nq.Worker(app, client, grace=2, cleanup=3)
    await stopped(worker, 1, cancelled=False)

    assert await outcomes(client, ref) == ["interrupted"]
    assert called == []
    assert client.callbacks == nq.CallbackCounts()


async def test_a_success_that_is_stored_late(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """It is called when the database is back and has the success, also while the worker ends."""
    called: list[float] = []

    @app.task
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(lambda: called.append(trio.current_time()))

    store.down = {"settle"}
    ref = await client.enqueue(work)
    worker = nq.Worker(app, client)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        await trio.sleep(2)
        worker.stop()
        await trio.sleep(2)
        assert called == []
        store.down = set()

    assert await outcomes(client, ref) == ["succeeded"]
    assert len(called) == 1
    assert 4 <= called[0] < 20
