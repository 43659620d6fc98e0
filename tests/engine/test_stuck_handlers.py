"""Handlers that do not end when they are told to: who they are, and what others may expect."""

from __future__ import annotations

import asyncio
import logging
import threading

from collections.abc import Generator

import attrs
import pytest
import trio
import trio.testing

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue.testing import MemoryStore, VirtualTime
from tests.support.recorder import ONCE, Recorder
from tests.support.workers import final, outcomes, state, working


@attrs.frozen
class Stuck:
    """A handler without `async` that runs until it is let go, past its time limit of 60 s."""

    started: threading.Semaphore = attrs.field(factory=lambda: threading.Semaphore(0))
    go: threading.Event = attrs.field(factory=threading.Event)

    def __call__(self) -> None:
        self.started.release()
        assert self.go.wait(60)


@pytest.fixture
def stuck(app: nq.App) -> Generator[Stuck]:
    stuck = Stuck()

    @app.task(name="stuck", timeout=60, retry=None)
    def handler() -> None:
        stuck()

    yield stuck
    stuck.go.set()


async def abandon(
    virtual_time: VirtualTime, client: nq.Client, stuck: Stuck, number: int
) -> list[nq.TaskRef]:
    """Have so many attempts time out whose threads go on."""
    refs = [await client.enqueue("stuck") for _ in range(number)]
    for _ in refs:
        await trio.to_thread.run_sync(stuck.started.acquire)
    virtual_time.advance(60)
    for ref in refs:
        assert (await final(client, ref)).error_type == "TimedOut"
    return refs


async def until(virtual_time: VirtualTime, worker: nq.Worker, states: list[str]) -> None:
    """Wait until the handlers of a worker are in these states, while no time goes by."""
    with virtual_time.hold(10):
        while sorted(each.state for each in worker.health().handlers) != states:
            await trio.lowlevel.checkpoint()


async def let_go(virtual_time: VirtualTime, worker: nq.Worker, stuck: Stuck) -> None:
    """Have the abandoned threads end, while no time goes by: nothing else waits for them."""
    stuck.go.set()
    with virtual_time.hold(10):
        while any(each.state == "abandoned" for each in worker.health().handlers):
            await trio.lowlevel.checkpoint()


def who(worker: nq.Worker, state: str) -> int:
    """Return the id of the one task whose handler is in a state."""
    (task_id,) = [each.task_id for each in worker.health().handlers if each.state == state]
    return task_id


async def test_an_abandoned_thread_is_shown(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, stuck: Stuck
) -> None:
    """`health()` shows a thread that runs on after its attempt, since when and why, to its end."""
    worker = nq.Worker(app, client, lease=1000)
    async with working(worker):
        (ref,) = await abandon(virtual_time, client, stuck, 1)
        virtual_time.advance(5)
        health = worker.health()
        (handler,) = health.handlers

        assert (health.running, health.held) == (0, 0)
        assert (handler.task_id, handler.task_type, handler.attempt) == (ref.id, "stuck", 1)
        assert (handler.state, handler.cancel_reason) == ("abandoned", nq.CancelReason.TIMED_OUT)
        assert handler.seconds == pytest.approx(65, abs=1)
        assert handler.cancelled_for == pytest.approx(5, abs=1)

        stuck.go.set()
        await until(virtual_time, worker, [])


@pytest.mark.parametrize("kind", ["trio", "asyncio"])
async def test_a_handler_that_ignores_its_cancellation_is_shown(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, kind: str
) -> None:
    """`health()` shows a cancelled handler that has not ended, since when and why."""

    async def stubborn() -> None:
        if kind == "trio":
            with trio.CancelScope(shield=True):
                await trio.sleep(100)
        for _ in range(1 if kind == "asyncio" else 0):
            try:
                await asyncio.sleep(100)
            except asyncio.CancelledError:
                await asyncio.sleep(60)

    app.task(name="stubborn", timeout=40, asyncio=kind == "asyncio")(stubborn)
    ref = await client.enqueue("stubborn")
    worker = nq.Worker(app, client)
    async with working(worker):
        await trio.sleep(30)
        (before,) = worker.health().handlers
        await trio.sleep(30)
        health = worker.health()
        (after,) = health.handlers
        await client.wait(ref)

    assert (before.state, before.cancel_reason, before.cancelled_for) == ("running", None, None)
    assert before.seconds == pytest.approx(30)
    assert health.running == 1
    assert (after.state, after.cancel_reason) == ("cancelled", nq.CancelReason.TIMED_OUT)
    assert after.seconds == pytest.approx(60)
    assert after.cancelled_for == pytest.approx(20)
    assert str(after) == (
        f"task {ref.id} (stubborn, attempt 1): cancelled, began 60 s ago,"
        " cancelled (timed_out) 20 s ago"
    )


@pytest.mark.parametrize("why", ["timeout", "cancel"])
async def test_a_handler_that_ignores_its_cancellation_keeps_its_place(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, why: str
) -> None:
    """As long as it has not ended no other handler starts in its place, claimed ahead or not."""
    starts: list[float] = []

    @app.task(name="stubborn", timeout=40 if why == "timeout" else None)
    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    @app.task(name="next")
    async def next_() -> None:
        starts.append(trio.current_time())
        await trio.lowlevel.checkpoint()

    began = trio.current_time()
    first = await client.enqueue(stubborn)
    worker = nq.Worker(app, client, concurrency=1, prefetch=1)
    async with working(worker):
        await trio.sleep(40)
        if why == "cancel":
            await client.cancel(first)
        await trio.sleep(10)
        ref = await client.enqueue(next_)
        await trio.sleep(40)
        assert [each.state for each in worker.health().handlers] == ["cancelled"]
        assert (await final(client, ref, within=60)).state == "succeeded"

    assert starts == [pytest.approx(began + 100, abs=1)]


async def test_a_handler_is_shown_since_its_start(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """`health()` counts from the start of an attempt, not from a claim ahead of it."""

    @app.task(name="work")
    async def work() -> None:
        await trio.sleep(0.5)

    await client.enqueue_many([work.bind(), work.bind()])
    worker = nq.Worker(app, client, concurrency=1, prefetch=1)
    async with working(worker):
        await trio.sleep(0.75)
        (handler,) = worker.health().handlers

    assert handler.seconds == pytest.approx(0.25, abs=0.05)


async def test_why_it_was_cancelled(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """`health()` counts from the moment a cancel arrived, whatever is said after that."""

    @app.task(name="stubborn", timeout=40)
    async def stubborn() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)

    ref = await client.enqueue(stubborn)
    worker = nq.Worker(app, client)
    async with working(worker):
        await trio.sleep(10)
        await client.cancel(ref)
        await trio.sleep(50)
        (handler,) = worker.health().handlers

    assert (handler.state, handler.cancel_reason) == ("cancelled", nq.CancelReason.CANCELLED)
    assert handler.cancelled_for == pytest.approx(50, abs=1)


async def test_what_is_called_after_it_is_shown(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """`health()` shows a handler that has ended and keeps its place for `ctx.after`."""

    @app.task(name="work")
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(trio.sleep, 10)

    await client.enqueue(work)
    worker = nq.Worker(app, client)
    async with working(worker):
        await trio.sleep(5)
        (handler,) = worker.health().handlers

    assert (handler.state, handler.cancel_reason) == ("after", None)


async def test_waiting_for_a_thread_uses_nothing_up(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    stuck: Stuck,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An attempt that gets no thread is given back: no time limit, no attempt, one line of log."""

    @app.task(name="quick", timeout=0.5, retry=None)
    def quick() -> str:
        return "well"

    worker = nq.Worker(app, client, concurrency=2, lease=1000)
    async with working(worker):
        first = [await client.enqueue("stuck") for _ in range(2)]
        for _ in first:
            await trio.to_thread.run_sync(stuck.started.acquire)
        ahead = [await client.enqueue("quick") for _ in range(4)]
        virtual_time.advance(60)
        for ref in first:
            await final(client, ref)
        later = [await client.enqueue("quick") for _ in range(4)]
        for _ in range(10):
            await trio.testing.wait_all_tasks_blocked(0.01)
            virtual_time.advance(1)
        refs = [*ahead, *later]
        assert [await state(client, ref) for ref in refs] == ["ready"] * 8
        assert [await outcomes(client, ref) for ref in refs] == [[]] * 8
        assert [each.state for each in worker.health().handlers] == ["abandoned"] * 2
        warnings = [
            each.message
            for each in caplog.records
            if each.levelno >= logging.WARNING and "no thread is free" in each.message
        ]
        (line,) = warnings
        assert "2 of 2" in line
        for ref in first:
            assert f"task {ref.id} (stuck, attempt 1) for 6" in line

        await let_go(virtual_time, worker, stuck)
        for ref in refs:
            assert (await final(client, ref)).state == "succeeded"
        status = await client.status(refs[0])

    assert status is not None
    assert status.attempt == 1


async def test_a_time_limit_begins_with_the_thread(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, stuck: Stuck
) -> None:
    """An attempt that waits for a thread is shown, and its time limit begins when it has one."""
    deadlines: list[float] = []
    second = Stuck()

    @app.task(name="slow", timeout=0.6, retry=None)
    def slow(ctx: nq.TaskContext) -> None:
        deadlines.append(ctx.deadline)
        second()

    worker = nq.Worker(app, client, concurrency=2, lease=1000)
    async with working(worker):
        await abandon(virtual_time, client, stuck, 1)
        claimed = trio.current_time()
        refs = await client.enqueue_many([slow.bind(), slow.bind()])
        await until(virtual_time, worker, ["abandoned", "running", "waiting"])
        first, later = who(worker, "running"), who(worker, "waiting")
        virtual_time.advance(0.5)
        stuck.go.set()
        await until(virtual_time, worker, ["running", "running"])
        await trio.to_thread.run_sync(second.started.acquire)
        await trio.to_thread.run_sync(second.started.acquire)
        virtual_time.advance(0.2)
        assert {first, later} == {ref.id for ref in refs}
        assert (await client.wait(first)).error_type == "TimedOut"
        second.go.set()
        assert (await client.wait(later)).state == "succeeded"

    assert sorted(deadlines) == [pytest.approx(claimed + 0.6), pytest.approx(claimed + 1.1)]


async def one_waits(
    virtual_time: VirtualTime, worker: nq.Worker, client: nq.Client, stuck: Stuck, name: str
) -> tuple[nq.TaskRef, nq.TaskRef]:
    """Have two handlers started where there is one thread; name first the task that has it."""
    await abandon(virtual_time, client, stuck, 1)
    refs = [await client.enqueue(name) for _ in range(2)]
    await until(virtual_time, worker, ["abandoned", "running", "waiting"])
    runs, waits = sorted(refs, key=lambda ref: ref.id == who(worker, "waiting"))
    return runs, waits


@pytest.fixture
def second(app: nq.App) -> Generator[Stuck]:
    """Names the task type `slow`, without a time limit."""
    second = Stuck()

    @app.task(name="slow", retry=None)
    def slow() -> None:
        second()

    yield second
    second.go.set()


async def test_waiting_for_a_thread_has_an_end(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, stuck: Stuck, second: Stuck
) -> None:
    """After a second without a thread a task is ready again for any worker, as if never claimed."""
    worker = nq.Worker(app, client, concurrency=2, lease=1000)
    async with working(worker):
        refs = await one_waits(virtual_time, worker, client, stuck, "slow")
        virtual_time.advance(1.1)
        await until(virtual_time, worker, ["abandoned", "running"])
        assert await eventual_state(virtual_time, client, refs[1]) == "ready"
        assert await outcomes(client, refs[1]) == []

        second.go.set()
        for ref in refs:
            assert (await final(client, ref)).state == "succeeded"
            assert await outcomes(client, ref) == ["succeeded"]


async def test_a_start_is_told_when_there_is_a_thread(
    virtual_time: VirtualTime, app: nq.App, stuck: Stuck, second: Stuck
) -> None:
    """An attempt that waits for a thread in vain has not started; one that is cancelled has."""
    heard = Recorder()
    client = nq.Client(MemoryStore(), instruments=[heard])
    worker = nq.Worker(app, client, concurrency=2, lease=1000)
    async with working(worker):
        runs, waits = await one_waits(virtual_time, worker, client, stuck, "slow")
        virtual_time.advance(1.1)
        assert await eventual_state(virtual_time, client, waits) == "ready"
        assert [heard.told_of(ref) for ref in (runs, waits)] == [[("started", 1)], []]
        await client.cancel(waits)
        other = await client.enqueue("slow")
        second.go.set()
        for ref in (runs, other):
            await final(client, ref)

    assert [heard.told_of(ref) for ref in (runs, waits, other)] == [ONCE, [], ONCE]


async def test_an_attempt_cancelled_before_it_has_a_thread_is_told(
    virtual_time: VirtualTime, app: nq.App, stuck: Stuck
) -> None:
    """It is in the log of attempts, so its start and its end are heard of."""
    heard = Recorder()
    client = nq.Client(MemoryStore(), instruments=[heard])
    worker = nq.Worker(app, client, concurrency=2, lease=1000)
    async with working(worker):
        refs = await one_waits(virtual_time, worker, client, stuck, "stuck")
        waits = refs[1]
        await client.cancel(waits)
        await final(client, waits)
        stuck.go.set()
        for ref in refs:
            await final(client, ref)

    assert await outcomes(client, waits) == ["cancelled"]
    assert [heard.told_of(ref) for ref in refs] == [ONCE] * 2


async def eventual_state(virtual_time: VirtualTime, client: nq.Client, ref: nq.TaskRef) -> str:
    """Return the state of a task once it is not running, while no time goes by."""
    with virtual_time.hold(10):
        while (now := await state(client, ref)) == "running":
            await trio.lowlevel.checkpoint()
    return now


async def test_async_handlers_go_on_without_threads(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, stuck: Stuck
) -> None:
    """When all threads are abandoned, tasks that need none are still claimed and run."""

    @app.task(name="needs none")
    async def needs_none() -> str:
        await trio.lowlevel.checkpoint()
        return "well"

    worker = nq.Worker(app, client, concurrency=2, lease=1000)
    async with working(worker):
        await abandon(virtual_time, client, stuck, 2)
        waiting = [await client.enqueue("stuck") for _ in range(50)]
        refs = [await client.enqueue(needs_none) for _ in range(3)]
        for ref in refs:
            with trio.fail_after(10):  # of virtual time, though: it is not to take any
                assert await client.result(ref) == "well"
        assert {await state(client, ref) for ref in waiting} == {"ready"}
        await let_go(virtual_time, worker, stuck)
        for ref in waiting:
            await final(client, ref)
