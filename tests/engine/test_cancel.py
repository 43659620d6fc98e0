"""Cancelling tasks, wherever they are."""

from __future__ import annotations

import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import final, outcomes, state, working


@pytest.fixture
def reasons(app: nq.App) -> list[str]:
    """Names the task type `hold`, and collects why its attempts are cancelled."""
    seen: list[str] = []

    @app.task(name="hold")
    async def hold(ctx: nq.TaskContext, cleanup: float = 0) -> None:
        assert ctx.cancel_reason is None
        try:
            await trio.sleep(1000)
        finally:
            seen.append(str(ctx.cancel_reason))
            with trio.CancelScope(shield=True):
                await trio.sleep(cleanup)

    return seen


@pytest.mark.parametrize("later", [0, 60])
async def test_a_waiting_task_never_starts(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    reasons: list[str],
    later: float,
) -> None:
    """A task that is ready or scheduled is cancelled at once, and never starts."""
    ref = await client.enqueue(app["hold"].options(run_after=later))

    assert await client.cancel(ref)
    assert await state(client, ref) == "cancelled"
    assert not await client.cancel(ref)
    async with working(nq.Worker(app, client)):
        await trio.sleep(100)
    assert await outcomes(client, ref) == []
    with pytest.raises(nq.TaskCancelled):
        await client.result(ref)


async def test_finished_and_unknown_tasks(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """Cancelling what has ended, or never was, says False and changes nothing."""

    @app.task(name="quick")
    async def quick() -> str:
        return "done"

    ref = await client.enqueue(quick)
    await nq.Worker(app, client).run_until_idle()

    assert not await client.cancel(ref)
    assert await client.result(ref) == "done"
    assert not await client.cancel(123_456)


async def test_a_running_task_is_cancelled_promptly(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, reasons: list[str]
) -> None:
    """A running handler is cancelled when asked for, not at the next heartbeat; no retry."""
    ref = await client.enqueue("hold")
    async with working(nq.Worker(app, client)):
        await trio.sleep(0.5)
        assert await client.cancel(ref)
        status = await final(client, ref)

        assert trio.current_time() == 0.5
        assert (status.state, reasons) == ("cancelled", ["cancelled"])
        await trio.sleep(100)
    assert await outcomes(client, ref) == ["cancelled"]


async def test_without_a_listener_the_heartbeat_tells(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, reasons: list[str]
) -> None:
    """A worker that does not listen hears of a cancel with its next heartbeat."""
    ref = await client.enqueue("hold")
    async with working(nq.Worker(app, client, listen=False, heartbeat=3)):
        await trio.sleep(0.5)
        await client.cancel(ref)
        await final(client, ref)

        assert 2.5 < trio.current_time() <= 4


async def test_let_it_finish(autojump_clock: MockClock, app: nq.App, client: nq.Client) -> None:
    """With `running=False` an attempt may finish: success counts, a failure is the last."""

    @app.task(name="wait")
    async def wait(fails: bool) -> str:
        await trio.sleep(10)
        if fails:
            raise ValueError
        return "finished"

    good, bad = await client.enqueue(wait, False), await client.enqueue(wait, True)
    async with working(nq.Worker(app, client)):
        await trio.sleep(1)
        for ref in (good, bad):
            assert await client.cancel(ref, running=False)
        assert await client.result(good) == "finished"
        assert (await final(client, bad)).state == "cancelled"
        assert trio.current_time() == 10
    assert await outcomes(client, bad) == ["failed"]


async def test_a_cancel_between_the_end_and_its_settlement(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """A cancel that arrives when a failed attempt is about to be stored prevents the retry."""

    @app.task(name="fail")
    async def fail() -> None:
        raise ValueError

    ref = await client.enqueue(fail)
    store.down = {"settle"}
    async with working(nq.Worker(app, client, listen=False)):
        await trio.sleep(1)
        await client.cancel(ref)
        store.down = set()
        assert (await final(client, ref)).state == "cancelled"
    assert await outcomes(client, ref) == ["failed"]


async def test_in_the_backlog(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, reasons: list[str]
) -> None:
    """A task that is cancelled while it waits for a slot in a worker's hands never starts."""
    first, second = [await client.enqueue("hold") for _ in range(2)]
    async with working(nq.Worker(app, client, concurrency=1, prefetch=1)):
        assert await state(client, second) == "running"
        await client.cancel(second)
        await client.cancel(first)
        assert (await final(client, second)).state == "cancelled"
    assert await outcomes(client, second) == []
    assert reasons == ["cancelled"]


async def test_in_the_backlog_behind_a_long_task(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, reasons: list[str]
) -> None:
    """It does not have to wait for a slot to be recorded as cancelled."""
    _, second = [await client.enqueue("hold") for _ in range(2)]
    async with working(nq.Worker(app, client, concurrency=1, prefetch=1)):
        await client.cancel(second)
        assert (await final(client, second)).state == "cancelled"
        assert trio.current_time() <= 2
    assert await outcomes(client, second) == []


async def test_between_claim_and_start(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    reasons: list[str],
) -> None:
    """A cancel that comes before the answer to the claim is obeyed with the next heartbeat."""
    async with working(nq.Worker(app, client)):
        await trio.sleep(0.1)  # it has looked again for what came while it began to listen
        store.late = {"claim": 1}
        ref = await client.enqueue("hold")
        await trio.sleep(0.5)
        assert (await state(client, ref), reasons) == ("running", [])
        await client.cancel(ref)
        assert (await final(client, ref)).state == "cancelled"
        assert trio.current_time() <= 4
    assert (await outcomes(client, ref), reasons) == (["cancelled"], ["cancelled"])


@pytest.mark.parametrize("ends", ["fails", "asks for another time", "snoozes", "returns"])
async def test_when_the_settlement_meets_the_cancel(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client, ends: str
) -> None:
    """An outcome that would bring the task back cancels it instead, and stays what it is."""
    errors = {
        "fails": ValueError("again"),
        "asks for another time": nq.RetryAfter(5),
        "snoozes": nq.Snooze(5),
    }

    @app.task(name="late")
    async def late(ctx: nq.TaskContext) -> str:
        # The worker does not hear of it: the store alone knows when the outcome comes.
        await either.cancel(ctx.task_id)
        if ends in errors:
            raise errors[ends]
        return "done"

    ref = await either.enqueue(late)
    async with working(nq.Worker(app, either, listen=False)):
        status = await final(either, ref)
        await trio.sleep(60)

    outcome = {"snoozes": "snoozed", "returns": "succeeded"}.get(ends, "failed")
    assert await outcomes(either, ref) == [outcome]
    assert status.state == ("succeeded" if ends == "returns" else "cancelled")


async def test_between_two_attempts(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """A task that waits for its next attempt is cancelled at once, and its log is left alone."""

    @app.task(name="fail", retry=nq.RetryPolicy(initial=60))
    async def fail() -> None:
        raise ValueError("the first time")

    ref = await either.enqueue(fail)
    async with working(nq.Worker(app, either)):
        await trio.sleep(1)
        assert await state(either, ref) == "scheduled"
        assert await either.cancel(ref)
        assert await state(either, ref) == "cancelled"
        await trio.sleep(100)
    assert await outcomes(either, ref) == ["failed"]


async def test_timeout_and_cancel(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, reasons: list[str]
) -> None:
    """If a task is cancelled while it cleans up after its time limit, the cancel is recorded."""
    ref = await client.enqueue(app["hold"].options(timeout=5), 4)
    async with working(nq.Worker(app, client)):
        await trio.sleep(6)
        assert reasons == ["timed_out"]
        await client.cancel(ref)
        assert (await final(client, ref)).state == "cancelled"
    assert await outcomes(client, ref) == ["cancelled"]


async def test_shutdown_and_cancel(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, reasons: list[str]
) -> None:
    """If a task is cancelled while its worker shuts down, it does not go back to the queue."""
    ref = await client.enqueue("hold", cleanup=2)
    worker = nq.Worker(app, client, grace=1)
    async with working(worker):
        worker.stop()
        await trio.sleep(2)
        assert reasons == ["shutdown"]
        assert await client.cancel(ref)
    assert await state(client, ref) == "cancelled"
    assert await outcomes(client, ref) == ["cancelled"]


async def test_timeout_during_shutdown(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, reasons: list[str]
) -> None:
    """A clean-up at shutdown that outlives the time limit is still an interruption, refunded."""
    ref = await client.enqueue(app["hold"].options(timeout=3), 4)
    worker = nq.Worker(app, client, grace=1)
    async with working(worker):
        pass

    assert (reasons, await outcomes(client, ref)) == (["shutdown"], ["interrupted"])
    status = await client.status(ref)
    assert status is not None
    assert (status.state, status.attempt) == ("ready", 0)


async def test_a_cancel_is_seen_through_notify(pg: nq.Client, migrated: str) -> None:
    """On PostgreSQL, a cancel by another client is heard long before the next heartbeat."""
    app = nq.App()
    running, reasons = trio.Event(), list[str]()

    @app.task(name="hold")
    async def hold(ctx: nq.TaskContext) -> None:
        running.set()
        try:
            await trio.sleep_forever()
        finally:
            reasons.append(str(ctx.cancel_reason))

    async with (
        nq.connect(migrated) as other,
        working(nq.Worker(app, pg, heartbeat=60, lease=600)),
    ):
        ref = await other.enqueue(hold)
        await running.wait()
        asked = trio.current_time()
        assert await other.cancel(ref)
        status = await final(other, ref)

        assert trio.current_time() - asked < 5
        assert (status.state, reasons) == ("cancelled", ["cancelled"])
        assert await outcomes(other, ref) == ["cancelled"]
