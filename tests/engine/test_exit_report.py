"""What a worker says, at its end, of the tasks it had in hand."""

from __future__ import annotations

import logging

from collections.abc import Awaitable, Callable

import attrs
import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import outcomes, working


ExitOutcome = nq.ExitOutcome


@pytest.fixture(autouse=True)
def handlers(app: nq.App) -> None:
    """Names a task type for each way to end; all of them take a second after the stop."""

    @app.task(name="returns")
    async def returns() -> None:
        await trio.sleep(6)

    @app.task(name="raises")
    async def raises() -> None:
        await trio.sleep(6)
        raise ValueError

    @app.task(name="times_out", timeout=6)
    async def times_out() -> None:
        await trio.sleep_forever()

    @app.task(name="snoozes")
    async def snoozes() -> None:
        await trio.sleep(6)
        raise nq.Snooze(60)

    @app.task(name="hangs")
    async def hangs() -> None:
        await trio.sleep_forever()

    @app.task(name="commits", transactional=True)
    async def commits(ctx: nq.TaskContext) -> None:
        await ctx.tx.enqueue("nobody")
        await trio.sleep(6)


async def stopped_at_5(
    app: nq.App,
    client: nq.Client,
    *names: str,
    meanwhile: Callable[[nq.Worker], Awaitable[None]] | None = None,
    grace: float = 7,
    prefetch: int = 0,
    concurrency: int = 10,
    heartbeat: float = 3,
) -> nq.ExitReport:
    """Run a worker with a task of each name in hand, stop it at 5, and return its report."""
    await client.enqueue_many([nq.TaskRequest.by_name(name) for name in names])
    worker = nq.Worker(
        app,
        client,
        grace=grace,
        cleanup=3,
        prefetch=prefetch,
        concurrency=concurrency,
        heartbeat=heartbeat,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        await trio.sleep_until(4.5)
        before = worker.exit_report
        if meanwhile is not None:
            await meanwhile(worker)
        await trio.sleep_until(5)
        worker.stop()
    assert before is None
    assert worker.exit_report is not None
    return worker.exit_report


def fates(report: nq.ExitReport) -> list[tuple[str, str]]:
    return [(task.task_type, task.outcome.value) for task in report.tasks]


async def test_stored_outcomes(virtual_time: VirtualTime, app: nq.App, either: nq.Client) -> None:
    """Handlers that ended by themselves within the grace are reported with their outcomes."""
    names = ["returns", "raises", "times_out", "snoozes", "commits"]
    report = await stopped_at_5(app, either, *names)

    expected = ["succeeded", "failed", "timed_out", "snoozed", "succeeded"]
    assert fates(report) == list(zip(names, expected, strict=True))
    assert all((task.started, task.ended, task.attempt) == (True, True, 1) for task in report.tasks)
    assert report.seconds == 1
    assert report.clean
    assert str(report) == ("tasks in hand: 5 (2 succeeded, 1 failed, 1 timed out, 1 snoozed); 1 s")


async def test_released(virtual_time: VirtualTime, app: nq.App, either: nq.Client) -> None:
    """What was cancelled, and what was never started, is reported as released."""

    async def claim_another(worker: nq.Worker) -> None:
        await either.enqueue("returns")  # stays in the backlog

    report = await stopped_at_5(
        app, either, "hangs", concurrency=1, prefetch=1, meanwhile=claim_another
    )

    assert fates(report) == [("hangs", "released"), ("returns", "released")]
    assert [task.started for task in report.tasks] == [True, False]
    assert report.counts == {ExitOutcome.RELEASED: 2}
    assert report.clean
    assert report.seconds == 7


async def test_released_without_an_answer(
    virtual_time: VirtualTime,
    app: nq.App,
    anywhere: FlakyStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was never started leaves no trace in the log; that it is given back is known anyway."""
    client = nq.Client(anywhere)

    async def claim_another(worker: nq.Worker) -> None:
        await client.enqueue("returns")  # stays in the backlog
        await trio.sleep(0.4)
        anywhere.deaf = {"settle"}

    async def hear_again() -> None:
        await trio.sleep_until(5.2)
        assert anywhere.calls["settle"] > 0
        anywhere.deaf = set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hear_again)
        report = await stopped_at_5(
            app, client, "hangs", concurrency=1, prefetch=1, meanwhile=claim_another
        )

    assert fates(report) == [("hangs", "released"), ("returns", "released")]
    assert [task.started for task in report.tasks] == [True, False]
    assert report.clean
    assert "dropped" not in caplog.text


async def test_cancelled(virtual_time: VirtualTime, app: nq.App, either: nq.Client) -> None:
    """What somebody cancelled meanwhile is reported as cancelled."""

    async def cancel(worker: nq.Worker) -> None:
        worker.stop()
        await either.cancel(1)

    report = await stopped_at_5(app, either, "hangs", meanwhile=cancel)

    assert fates(report) == [("hangs", "cancelled")]


@pytest.mark.leaves_claims("the store cannot be told that they are over")
async def test_unsettled(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """Outcomes that could not be stored are not claimed to be."""

    async def go_away(worker: nq.Worker) -> None:
        store.down = {"settle"}

    report = await stopped_at_5(app, client, "returns", "hangs", meanwhile=go_away)

    assert fates(report) == [("returns", "unsettled"), ("hangs", "unsettled")]
    assert not report.clean
    assert report.seconds == 7 + 5


@pytest.mark.parametrize("heartbeat", [3, 9])
async def test_the_lease_is_lost(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    heartbeat: float,
) -> None:
    """What others may have is reported as such, whether a heartbeat tells us or the settling."""

    async def die(worker: nq.Worker) -> None:
        worker_id = worker.health().worker_id
        assert worker_id is not None
        await store.deregister(worker_id)
        await store.sweep(max_lost=3)

    report = await stopped_at_5(app, client, "returns", "hangs", meanwhile=die, heartbeat=heartbeat)

    assert fates(report) == [("returns", "lease_lost"), ("hangs", "lease_lost")]
    assert not report.clean


async def test_only_what_was_in_hand(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """What had ended before the stop is not reported, nor is what comes after it."""

    @app.task(name="brief")
    async def brief() -> None: ...

    async def come_late(worker: nq.Worker) -> None:
        worker.stop()
        await either.enqueue("brief")

    report = await stopped_at_5(app, either, "brief", "returns", meanwhile=come_late)

    assert fates(report) == [("returns", "succeeded")]


async def test_what_is_being_stored(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """A task whose outcome is on its way to the store at the stop is in hand."""

    @app.task(name="just_ended")
    async def just_ended() -> None:
        await trio.sleep(4.9)

    async def slow(worker: nq.Worker) -> None:
        store.late = {"settle": 2}

    report = await stopped_at_5(app, client, "just_ended", meanwhile=slow)

    assert fates(report) == [("just_ended", "succeeded")]
    assert report.seconds == pytest.approx(1.9)


async def test_what_came_with_the_last_claim(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """A claim that is answered after the stop brings tasks that are reported, too."""

    async def claim_late(worker: nq.Worker) -> None:
        store.late = {"claim": 2}
        await client.enqueue("hangs")

    report = await stopped_at_5(app, client, meanwhile=claim_late)

    assert fates(report) == [("hangs", "released")]


async def test_nothing_in_hand(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An idle worker reports nothing, and logs nothing of it."""
    caplog.set_level(logging.INFO, "nursery_queue")
    worker = nq.Worker(app, client)
    before = worker.exit_report
    await worker.run_until_idle()

    assert before is None
    assert worker.exit_report == nq.ExitReport()
    assert "in hand" not in caplog.text


async def test_the_log(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The log has a summary, and a line for each task whose handler did not end by itself."""
    caplog.set_level(logging.INFO, "nursery_queue")

    async def claim_another(worker: nq.Worker) -> None:
        await client.enqueue("returns")

    await stopped_at_5(
        app, client, "returns", "hangs", concurrency=2, prefetch=1, meanwhile=claim_another
    )

    assert caplog.messages[-2:] == [
        "tasks in hand: 3 (1 succeeded, 2 released); 7 s",
        "task 2 (hangs, attempt 1): released",
    ]


async def test_a_report_of_each_run(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """The report is of the last run; while the next is going on, there is none."""
    await client.enqueue("hangs")
    worker = nq.Worker(app, client, grace=0)
    async with working(worker):
        await trio.sleep_until(1)
    first = worker.exit_report
    async with working(worker):
        meanwhile = worker.exit_report
        await trio.sleep_until(2)

    assert meanwhile is None
    assert first is not None
    assert first == worker.exit_report
    assert await outcomes(client, nq.TaskRef(1)) == ["interrupted", "interrupted"]


def test_it_is_a_value() -> None:
    """A report cannot be changed, and compares by what it says."""
    task = nq.TaskExit(
        task_id=1, task_type="a", attempt=2, outcome=ExitOutcome.UNSETTLED, started=True, ended=True
    )
    report = nq.ExitReport(tasks=(task,), seconds=0.5)

    assert report == nq.ExitReport(tasks=(attrs.evolve(task),), seconds=0.5)
    assert str(task) == "task 1 (a, attempt 2): unsettled"
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        report.seconds = 1  # type: ignore[misc]  # that is what this is about
