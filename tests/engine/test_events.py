"""What instruments hear of tasks, and when."""

from __future__ import annotations

import contextlib
import logging
import types

from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import attrs
import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.recorder import ONCE, Recorder
from tests.support.store_steps import claim, hire
from tests.support.workers import Longest, final, outcomes, working


RETRY = nq.RetryPolicy(max_attempts=3, initial=7, maximum=7, jitter=0)


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest.fixture
async def told(somewhere: str | None, heard: Recorder) -> AsyncGenerator[nq.Client]:
    """A client of each kind of store, with an instrument."""
    if somewhere is None:
        yield nq.Client(FlakyStore(), instruments=[heard])
    else:
        async with nq.connect(somewhere, instruments=[heard]) as client:
            yield client


@pytest.fixture
async def pg_told(migrated: str, heard: Recorder) -> AsyncGenerator[nq.Client]:
    """A client of a real database, with an instrument."""
    async with nq.connect(migrated, instruments=[heard]) as client:
        yield client


@pytest.fixture(autouse=True)
def tasks(app: nq.App) -> None:
    @app.task(name="sleep", retry=RETRY)
    async def sleep(seconds: float) -> None:
        await trio.sleep(seconds)

    @app.task(name="fail", retry=RETRY)
    async def fail(ctx: nq.TaskContext, times: int) -> None:
        if ctx.attempt <= times:
            msg = f"attempt {ctx.attempt}"
            raise ValueError(msg)


# -- lag -------------------------------------------------------------------------------


async def test_the_lag_of_what_is_found_at_once(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """A task that a worker takes when it is enqueued, or when it falls due, has no lag."""
    async with working(nq.Worker(app, told)):
        now = await told.enqueue("sleep", seconds=0.5)
        later = await told.enqueue(app["sleep"].options(run_after=100), 0.5)
        await trio.sleep(101)

    assert heard.lags == {now.id: [0], later.id: [0]}


async def test_the_lag_of_what_has_waited(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """Lag counts from when a task was due: its enqueue, or later if that was asked for."""
    now = await told.enqueue("sleep", seconds=0)
    later = await told.enqueue(app["sleep"].options(run_after=10), 0)
    await trio.sleep(25)
    await nq.Worker(app, told).run_until_idle()

    assert heard.lags == {now.id: [25], later.id: [15]}


async def test_the_lag_of_a_retry(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """A retry counts from the end of its pause, and is late if nobody has room then."""
    failing = await told.enqueue("fail", times=2)
    worker = nq.Worker(app, told, concurrency=1, prefetch=0, rng=Longest())
    async with working(worker):
        await trio.sleep(1)
        busy = await told.enqueue("sleep", seconds=9)  # until 10; the retries are due at 7, 17
        await final(told, failing)

    assert heard.lags == {failing.id: [0, 3, 0], busy.id: [0]}
    assert [each.attempt for each in heard.started if each.task_id == failing.id] == [1, 2, 3]


async def test_the_lag_of_what_was_claimed_ahead(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """The time in the hands of a worker counts, on top of that in the table."""
    refs = [await told.enqueue("sleep", seconds=0.75) for _ in range(2)]
    await trio.sleep(2)
    await nq.Worker(app, told, concurrency=1, prefetch=1).run_until_idle()

    assert heard.lags == {refs[0].id: [2], refs[1].id: [2.75]}


async def test_the_lag_of_what_nobody_heard_starting(
    virtual_time: VirtualTime,
    app: nq.App,
    either: nq.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who listens only from the middle of an attempt is told of its start with the lag it had."""
    caplog.set_level(logging.CRITICAL, "nursery_queue.events")
    ref = await either.enqueue("sleep", seconds=9)
    await trio.sleep(2)
    async with working(nq.Worker(app, either)):
        await trio.sleep(4)
        caplog.set_level(logging.DEBUG, "nursery_queue.events")
        await final(either, ref)
    told = [vars(each)["event"] for each in caplog.records if each.name == "nursery_queue.events"]
    (lag,) = [each["lag"] for each in told if each["kind"] == "task_started"]

    assert lag == pytest.approx(2, abs=0.1)


# -- completions -----------------------------------------------------------------------


async def test_what_is_told_of_an_attempt(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """Start and end of each attempt are told with all there is to say, in their order."""
    worker = nq.Worker(app, told, rng=Longest())
    async with working(worker):
        worker_id = worker.health().worker_id
        assert worker_id is not None
        ref = await told.enqueue(app["fail"].options(queue="mail"), times=1)
        await final(told, ref)
    attempts = [
        attrs.evolve(each, lag=round(each.lag, 4)) if isinstance(each, nq.Started) else each
        for each in heard.events
        if not isinstance(each, nq.Enqueued)
    ]
    ends = [
        (nq.Outcome.FAILED, nq.State.SCHEDULED, "ValueError: attempt 1"),
        (nq.Outcome.SUCCEEDED, nq.State.SUCCEEDED, None),
    ]

    assert heard.enqueued == [
        nq.Enqueued(task_id=ref.id, task_type="fail", queue="mail", created=True)
    ]
    assert attempts == [
        event
        for attempt, (status, state, error) in enumerate(ends, 1)
        for event in (
            nq.Started(
                task_id=ref.id,
                task_type="fail",
                queue="mail",
                attempt=attempt,
                worker_id=worker_id,
                lag=0,
            ),
            nq.Completed(
                task_id=ref.id,
                task_type="fail",
                queue="mail",
                status=status,
                state=state,
                attempt=attempt,
                worker_id=worker_id,
                took=0,
                error=error,
            ),
        )
    ]


async def test_every_outcome_is_told(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """Whatever becomes of an attempt, it is told with the time that it took and what follows."""

    @app.task(name="snooze")
    async def snooze() -> None:
        raise nq.Snooze(1000)

    cancelled = await told.enqueue("sleep", seconds=500)
    timed_out = await told.enqueue(app["sleep"].options(timeout=2, max_attempts=1), 500)
    snoozed = await told.enqueue("snooze")
    stopped = await told.enqueue("sleep", seconds=500)
    succeeded = await told.enqueue("sleep", seconds=3)
    async with working(nq.Worker(app, told, grace=1)):
        await trio.sleep(5)
        await told.cancel(cancelled)
        await trio.sleep(1)

    assert {each.task_id: (each.status.value, each.state.value) for each in heard.completed} == {
        cancelled.id: ("cancelled", "cancelled"),
        timed_out.id: ("timed_out", "failed"),
        snoozed.id: ("snoozed", "scheduled"),
        stopped.id: ("interrupted", "ready"),
        succeeded.id: ("succeeded", "succeeded"),
    }
    assert {each.task_id: each.took for each in heard.completed} == {
        cancelled.id: 5,
        timed_out.id: 2,
        snoozed.id: 0,
        stopped.id: 7,
        succeeded.id: 3,
    }
    for each in heard.completed:
        assert await outcomes(told, nq.TaskRef(each.task_id)) == [each.status]


async def test_how_long_it_took(virtual_time: VirtualTime, app: nq.App, heard: Recorder) -> None:
    """Neither waiting for a slot nor for the outcome to be stored is part of the time it took."""
    store = FlakyStore(late={"settle": 5})
    client = nq.Client(store, instruments=[heard])
    await client.enqueue_many([app["sleep"].bind(0.75)] * 2)
    await nq.Worker(app, client, concurrency=1, prefetch=1).run_until_idle()

    assert [each.took for each in heard.completed] == [0.75, 0.75]
    assert trio.current_time() > 5


async def test_what_was_never_started_has_no_end(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """Of a task that was claimed ahead and given back nothing is told."""
    first = await told.enqueue("sleep", seconds=5)
    await told.enqueue("sleep", seconds=5)
    worker = nq.Worker(app, told, concurrency=1, prefetch=1)
    async with working(worker):
        await trio.sleep(0.5)
        assert worker.health().held == 2

    assert [each.task_id for each in heard.started] == [first.id]
    assert [each.task_id for each in heard.completed] == [first.id]


async def test_an_attempt_whose_params_do_not_fit_is_told(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """What is in the log of attempts has a start and an end, though no handler was called."""

    @app.task(name="sync")
    def sync(number: int) -> int:
        return number

    refs = [await told.enqueue("sleep", seconds="many"), await told.enqueue("sync", number="many")]
    await nq.Worker(app, told).run_until_idle()

    assert [await outcomes(told, ref) for ref in refs] == [["failed"]] * 2
    assert [heard.told_of(ref) for ref in refs] == [ONCE] * 2


@pytest.mark.leaves_claims("a worker that dies leaves them")
async def test_a_lost_attempt_is_told_by_whoever_finds_it(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """The worker that sweeps tells of the attempt that the dead one cannot tell of."""
    ref = await told.enqueue("sleep", seconds=1)
    dead = await claimed_by_a_dead_worker(told, app)
    await trio.sleep(31)
    async with working(nq.Worker(app, told)):
        await final(told, ref)
    lost, done = heard.completed

    assert (lost.task_id, lost.status, lost.state) == (ref.id, "lost", "ready")
    assert (lost.worker_id, lost.attempt) == (dead, 1)
    assert (lost.queue, lost.task_type) == ("default", "sleep")
    assert lost.took == pytest.approx(31 + 3, abs=0.01)  # its first sweep waits a heartbeat
    assert lost.error == f"worker_lost: worker {dead} went away while running this task"
    assert (done.task_id, done.status, done.attempt) == (ref.id, "succeeded", 1)


async def claimed_by_a_dead_worker(client: nq.Client, app: nq.App) -> UUID:
    """Claim everything as a worker that leaves without a word about it; return its id."""
    dead = await hire(client.store, task_types=list(app.task_types))
    assert await claim(client.store, dead, task_types=list(app.task_types))
    await client.store.deregister(dead)
    return dead


async def test_an_application_that_sweeps_tells_so(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """`Client.sweep` is heard of like the sweep of a worker."""
    ref = await told.enqueue("sleep", seconds=1)
    await claimed_by_a_dead_worker(told, app)
    await trio.sleep(31)

    assert await told.sweep() == 1
    assert [(each.task_id, each.status) for each in heard.completed] == [(ref.id, "lost")]


async def test_a_refused_outcome_is_not_told(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """What the store does not take is neither told nor counted: the claim is somebody else's."""
    ref = await told.enqueue("sleep", seconds=2)
    worker = nq.Worker(app, told, heartbeat=10)
    async with working(worker):
        await trio.sleep(1)
        worker_id = worker.health().worker_id
        assert worker_id is not None
        await told.store.deregister(worker_id)
        await told.sweep()
        await final(told, ref)
    (report,) = heard.reports

    assert [each.status.value for each in heard.completed] == ["lost", "succeeded"]
    assert heard.completed[0].task_id == heard.completed[1].task_id == ref.id
    assert (report.counters.completed, report.counters.succeeded) == (1, 1)


async def test_an_outcome_that_is_decided_anew_is_told_once(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """A retry that turns out not to be wanted is told as what it became, and counted so."""

    @app.task(name="fails_later")
    async def fails_later() -> None:
        await trio.sleep(2)
        raise ValueError("no")

    ref = await told.enqueue(fails_later)
    async with working(nq.Worker(app, told, heartbeat=10, listen=False)):
        await trio.sleep(1)
        await told.cancel(ref, running=False)  # the worker does not hear of it
        await final(told, ref)
    (report,) = heard.reports

    assert [(each.status.value, each.state.value) for each in heard.completed] == [
        ("failed", "cancelled")
    ]
    assert (report.counters.failed, report.counters.completed) == (1, 1)


# -- enqueues --------------------------------------------------------------------------


def ids(heard: Recorder) -> list[int]:
    return [each.task_id for each in heard.enqueued]


async def test_an_enqueue_is_told(app: nq.App, told: nq.Client, heard: Recorder) -> None:
    """Each task is told, in order, with whether it is a new one."""
    once = app["sleep"].options(dedup_key="one", queue="mail")
    refs = await told.enqueue_many([once.bind(1), app["fail"].bind(1), once.bind(2)])

    assert heard.enqueued == [
        nq.Enqueued(task_id=refs[0].id, task_type="sleep", queue="mail", created=True),
        nq.Enqueued(task_id=refs[1].id, task_type="fail", queue="default", created=True),
        nq.Enqueued(task_id=refs[0].id, task_type="sleep", queue="mail", created=False),
    ]


async def test_a_refused_enqueue_is_not_told(app: nq.App, told: nq.Client, heard: Recorder) -> None:
    """What could not be stored is not heard of."""
    bad = nq.TaskRequest("sleep", "[]")
    with pytest.raises(Exception, match=r".") as caught:
        await told.enqueue_many([app["sleep"].bind(1), bad])

    assert not isinstance(caught.value, AssertionError)
    assert heard.enqueued == []


async def test_an_enqueue_is_told_after_the_commit(told: nq.Client, heard: Recorder) -> None:
    """While the transaction is open nobody hears of its tasks; when it is over, of all."""
    async with told.transaction() as tx:
        first = await tx.enqueue("sleep", seconds=1)
        second = await tx.enqueue("sleep", seconds=1)
        assert heard.enqueued == []

    assert ids(heard) == [first.id, second.id]


def roll_back() -> None:
    raise psycopg.Rollback


async def test_a_silent_rollback_is_not_told(pg_told: nq.Client, heard: Recorder) -> None:
    """`psycopg.Rollback` ends a transaction without an error, and there is nothing to hear of."""
    async with pg_told.transaction() as tx:
        await tx.enqueue("sleep", seconds=1)
        roll_back()

    assert heard.enqueued == []
    assert await pg_told.list_tasks() == []


async def test_a_rollback_is_not_told(told: nq.Client, heard: Recorder) -> None:
    """What an error or a cancellation takes back was never enqueued."""
    with pytest.raises(ValueError, match="no"):
        async with told.transaction() as tx:
            await tx.enqueue("sleep", seconds=1)
            raise ValueError("no")
    with trio.CancelScope() as scope:
        async with told.transaction() as tx:
            await tx.enqueue("sleep", seconds=1)
            scope.cancel()
            await trio.lowlevel.checkpoint()

    assert heard.enqueued == []


async def test_a_savepoint_is_not_told(told: nq.Client, heard: Recorder) -> None:
    """What a savepoint took back is not heard of, nor what was inside of it; the rest is."""
    async with told.transaction() as tx:
        first = await tx.enqueue("sleep", seconds=1)
        with contextlib.suppress(ValueError):
            async with tx.savepoint():
                await tx.enqueue("sleep", seconds=2)
                async with tx.savepoint():
                    await tx.enqueue("sleep", seconds=3)
                raise ValueError("no")
        async with tx.savepoint():
            second = await tx.enqueue("sleep", seconds=4)

    assert ids(heard) == [first.id, second.id]
    assert {task.id for task in await told.list_tasks()} == {first.id, second.id}


async def test_a_silent_rollback_to_a_savepoint(pg_told: nq.Client, heard: Recorder) -> None:
    """`psycopg.Rollback` ends a savepoint without an error, and its tasks are gone."""
    async with pg_told.transaction() as tx:
        async with tx.savepoint():
            await tx.enqueue("sleep", seconds=2)
            roll_back()
        kept = await tx.enqueue("sleep", seconds=1)

    assert ids(heard) == [kept.id]
    assert [task.id for task in await pg_told.list_tasks()] == [kept.id]


async def test_a_commit_that_fails_is_not_told(pg_told: nq.Client, heard: Recorder) -> None:
    """What a deferred constraint undoes at the commit was never enqueued."""
    with pytest.raises(psycopg.errors.UniqueViolation):
        async with pg_told.transaction() as tx:
            await tx.enqueue("sleep", seconds=1)
            await tx.execute("create temp table one (n int unique deferrable initially deferred)")
            await tx.execute("insert into one values (1), (1)")

    assert heard.enqueued == []


async def test_the_transaction_of_a_handler(app: nq.App, told: nq.Client, heard: Recorder) -> None:
    """`ctx.tx` tells of its tasks when it is committed, and of the attempt that it is part of."""

    @app.task(name="parent", transactional=True, retry=None)
    async def parent(ctx: nq.TaskContext, well: bool) -> int:
        child = await ctx.tx.enqueue("sleep", seconds=0)
        if not well:
            raise ValueError("no")
        return child.id

    good, bad = await told.enqueue(parent, well=True), await told.enqueue(parent, well=False)
    await nq.Worker(app, told, concurrency=1).run_until_idle()
    child = await told.result(good)

    assert ids(heard) == [good.id, bad.id, child]
    ends = {each.task_id: (each.status.value, each.error) for each in heard.completed}
    assert ends == {
        good.id: ("succeeded", None),
        bad.id: ("failed", "ValueError: no"),
        child: ("succeeded", None),
    }
    assert len(heard.completed) == 3


# -- instruments -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["task_enqueued", "task_started", "task_completed", "report"])
async def test_an_instrument_that_raises_harms_nobody(
    virtual_time: VirtualTime,
    app: nq.App,
    told: nq.Client,
    heard: Recorder,
    caplog: pytest.LogCaptureFixture,
    kind: str,
) -> None:
    """Wherever it raises, every task is run once, and there is one line about it."""
    calls: list[object] = []

    def complain(event: object) -> None:
        calls.append(event)
        raise LookupError(kind)

    broken: Any = types.SimpleNamespace(**{kind: complain})
    client = nq.Client(told.store, instruments=[broken, *told.instruments])
    async with working(worker := nq.Worker(app, client)):
        refs = [await client.enqueue("sleep", seconds=50) for _ in range(3)]
        await trio.sleep(61)
        assert {each.restarts for each in worker.health().loops.values()} == {0}

    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 3
    assert len(calls) == 1
    (line,) = [record for record in caplog.records if record.exc_info]
    assert "SimpleNamespace raised" in line.getMessage()
    assert kind in line.getMessage()
    assert {each.task_id for each in heard.completed} == {ref.id for ref in refs}


async def test_the_log_has_it_by_default(
    virtual_time: VirtualTime,
    app: nq.App,
    either: nq.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Without an instrument given, everything is logged; with none wanted, nothing is."""
    caplog.set_level(logging.DEBUG, "nursery_queue.events")
    for client in (either, nq.Client(either.store, instruments=[])):
        await client.enqueue("sleep", seconds=0)
        await nq.Worker(app, client).run_until_idle()
    lines = [each for each in caplog.records if each.name == "nursery_queue.events"]

    assert [vars(each)["event"]["kind"] for each in lines] == [
        "task_enqueued",
        "task_started",
        "task_completed",
        "report",
    ]
