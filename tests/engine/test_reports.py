"""Reports of workers: when they come, and that they add up to what the log says."""

from __future__ import annotations

import random

from collections.abc import AsyncGenerator, Sequence

import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._outcome import MAX_LOST
from nursery_queue._core._tally import counters_of
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.recorder import Recorder, without_instants
from tests.support.store_steps import claim, hire
from tests.support.workers import working


@pytest.fixture
def heard() -> Recorder:
    return Recorder()


@pytest.fixture
async def flaky(somewhere: str | None, heard: Recorder) -> AsyncGenerator[FlakyStore]:
    """A store of each kind, whose verbs fail when told to."""
    if somewhere is None:
        yield FlakyStore()
    else:
        async with nq.connect(somewhere) as client:
            yield FlakyStore(client.store)


@pytest.fixture
def told(flaky: FlakyStore, heard: Recorder) -> nq.Client:
    return nq.Client(flaky, instruments=[heard])


@pytest.fixture(autouse=True)
def tasks(app: nq.App) -> None:
    @app.task(name="sleep")
    async def sleep(seconds: float) -> None:
        await trio.sleep(seconds)


def told_at(heard: Recorder) -> list[tuple[float, int, int, bool]]:
    """Return of each report when it came, what had been completed, what ran, and the last."""
    at, found = 0.0, list[tuple[float, int, int, bool]]()
    for each in heard.reports:
        at += each.seconds
        found.append((round(at, 3), each.counters.completed, each.counters.running, each.last))
    return found


async def test_a_report_a_minute_while_there_is_something(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """The first comes a minute after the first task, then one a minute, none while it is idle."""
    async with working(nq.Worker(app, told, name="w1")):
        await trio.sleep(30)
        await told.enqueue("sleep", seconds=100)  # until 130
        await trio.sleep(370)
        await told.enqueue("sleep", seconds=1)  # at 400
        await trio.sleep(100)

    assert told_at(heard) == [
        (90, 0, 1, False),
        (150, 1, 0, False),
        (460, 1, 0, False),
        (500, 0, 0, True),
    ]
    assert {each.worker for each in heard.reports} == {"w1"}
    assert [each.seconds for each in heard.reports] == [90, 60, 310, 40]


async def test_a_worker_that_did_nothing_has_nothing_to_report(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """Without a task there is no report, not even a last one."""
    async with working(nq.Worker(app, told)):
        await trio.sleep(200)

    assert heard.reports == []


async def test_what_was_running_is_reported(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """An attempt that does not count, as a snoozed one, makes for a report all the same."""

    @app.task(name="snooze")
    async def snooze() -> None:
        raise nq.Snooze(100)

    async with working(nq.Worker(app, told)):
        await told.enqueue("snooze")
        await trio.sleep(80)

    assert told_at(heard) == [(60, 0, 0, False), (80, 0, 0, True)]


async def test_outcomes_of_the_last_moment_are_reported(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """The last report comes when the last outcome is stored, however late that is."""
    async with working(nq.Worker(app, told, grace=100)):
        await told.enqueue("sleep", seconds=80)
        await trio.sleep(1)

    assert told_at(heard) == [(60, 0, 1, False), (80, 1, 0, True)]


async def test_a_worker_that_runs_again_reports_anew(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """Each run has its own reports and its own last one."""
    worker = nq.Worker(app, told)
    for _ in range(2):
        await told.enqueue("sleep", seconds=5)
        await worker.run_until_idle()

    assert [(each.seconds, each.counters.succeeded) for each in heard.reports] == [(5, 1), (5, 1)]
    assert [each.last for each in heard.reports] == [True, True]
    assert len({each.worker_id for each in heard.reports}) == 2


# -- what is due -----------------------------------------------------------------------


async def test_the_backlog_is_of_queues_and_types_that_it_serves(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """What others could do, or what is due later, is not this worker's backlog."""
    sleep = app["sleep"]
    for queue in ("mine", "theirs"):
        await told.enqueue_many([sleep.options(queue=queue).bind(1000) for _ in range(5)])
    await told.enqueue(sleep.options(queue="mine", run_after=2000), 1)
    await told.enqueue(nq.TaskRequest.by_name("unknown", queue="mine"))
    async with working(nq.Worker(app, told, queues={"mine": 2}, prefetch=0, grace=0)):
        await trio.sleep(70)
        assert (await told.stats()).backlog == 9
    first, last = heard.reports

    assert (first.counters.running, first.counters.backlog) == (2, 3)
    assert (last.counters.running, last.counters.backlog) == (0, 5)


async def test_a_report_without_the_database(
    virtual_time: VirtualTime,
    app: nq.App,
    told: nq.Client,
    flaky: FlakyStore,
    heard: Recorder,
) -> None:
    """If what is due cannot be counted, the report has what was last known, and is in time."""
    await told.enqueue_many([app["sleep"].bind(1000) for _ in range(3)])
    async with working(nq.Worker(app, told, concurrency=1, prefetch=0, grace=0)):
        await trio.sleep(61)
        flaky.down = {"backlog"}
        await trio.sleep(60)
        flaky.down, flaky.stuck = set(), {"backlog"}
        await trio.sleep(70)  # it gives up after 10 s
        flaky.stuck = set()

    assert [(round(each.seconds, 3), each.counters.backlog) for each in heard.reports] == [
        (60, 2),
        (60, 2),
        (70, 2),
        (1, 3),
    ]


async def test_the_last_report_does_not_keep_the_worker(
    virtual_time: VirtualTime,
    app: nq.App,
    told: nq.Client,
    flaky: FlakyStore,
    heard: Recorder,
) -> None:
    """A database that does not say what is due costs no more than leaving may take."""
    await told.enqueue("sleep", seconds=1)
    worker = nq.Worker(app, told)
    async with working(worker):
        await trio.sleep(2)
        flaky.stuck = {"backlog"}
        stopped_at = trio.current_time()

    assert trio.current_time() == stopped_at + 2
    assert told_at(heard) == [(4, 1, 0, True)]


async def test_nobody_is_asked_for_a_report_that_nobody_reads(
    virtual_time: VirtualTime, app: nq.App, flaky: FlakyStore
) -> None:
    """While nobody wants reports, what is due is not counted."""
    client = nq.Client(flaky, instruments=[])
    await client.enqueue("sleep", seconds=100)
    async with working(nq.Worker(app, client)):
        await trio.sleep(200)

    assert flaky.calls["backlog"] == 0


# -- the sum ---------------------------------------------------------------------------


async def recount(client: nq.Client, refs: Sequence[nq.TaskRef]) -> nq.Counters:
    """Count what the log of attempts says, one by one."""
    ways: dict[tuple[nq.Outcome, bool], int] = {}
    for ref in refs:
        for attempt in await client.attempts(ref):
            way = attempt.outcome, attempt.final
            ways[way] = ways.get(way, 0) + 1
    return counters_of(ways)


def declare_all_fates(app: nq.App, rng: random.Random) -> None:
    """Declare task types that end in every way there is, sooner or later."""
    retry = nq.RetryPolicy(max_attempts=3, initial=2, maximum=20)

    @app.task(name="chance", retry=retry, timeout=15)
    async def chance() -> str:
        await trio.sleep(rng.uniform(0, 20))
        match rng.randrange(6):
            case 0:
                raise ValueError("no luck")
            case 1:
                raise nq.DoNotRetry("no way")
            case 2:
                raise nq.Snooze(5)
            case _:
                return "well"

    @app.task(name="together", retry=retry, transactional=True)
    async def together(ctx: nq.TaskContext) -> None:
        await ctx.tx.begin()
        await trio.sleep(rng.uniform(0, 3))
        if rng.randrange(3) == 0:
            raise ValueError("no luck")


async def hire_and_fire(app: nq.App, client: nq.Client, rng: random.Random) -> None:
    """Run three workers; stop one now and then, and let another take its place."""

    async def employ(seconds: float) -> None:
        worker = nq.Worker(app, client, concurrency=4, grace=rng.choice([0, 3]), rng=rng)
        async with working(worker):
            await trio.sleep(seconds)

    async def position() -> None:
        for _ in range(4):
            await employ(rng.uniform(20, 100))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(position)


@pytest.mark.parametrize("seed", range(3))
async def test_the_reports_add_up(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder, seed: int
) -> None:
    """Whatever becomes of tasks and workers, all reports together are a recount of the log."""
    rng = random.Random(seed)
    declare_all_fates(app, rng)
    refs = await told.enqueue_many([nq.TaskRequest.by_name("chance") for _ in range(80)])
    refs += await told.enqueue_many([app["together"].bind() for _ in range(20)])

    async def interfere() -> None:
        for ref in rng.sample(refs, 30):
            await trio.sleep(rng.uniform(0, 4))
            await told.cancel(ref, running=rng.random() < 0.5)
            for running in (await told.list_tasks(state="running"))[:1]:
                await told.cancel(running.id)
        for ref in refs:
            await told.retry(ref)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(interfere)
        nursery.start_soon(hire_and_fire, app, told, rng)
    await nq.Worker(app, told).run_until_idle()
    stats = await told.stats()

    assert heard.total == without_instants(stats.total) == await recount(told, refs)
    assert min(stats.succeeded, stats.failed, stats.cancelled, stats.retries) > 0
    assert {each.last for each in heard.reports} == {True, False}


async def test_losses_add_up(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, flaky: FlakyStore, heard: Recorder
) -> None:
    """What one worker loses another one counts, in its sweep; the loser says nothing of it."""
    ref = await told.enqueue("sleep", seconds=40)
    other = nq.Client(flaky.inner, instruments=[heard])
    async with working(nq.Worker(app, told, name="loser", queues=["default"])):
        await trio.sleep(1)
        flaky.down = {"heartbeat", "register", "sweep"}
        async with working(nq.Worker(app, other, name="finder")):
            await trio.sleep(120)
        flaky.down = set()
    by: dict[str, nq.Counters] = {"loser": nq.Counters(), "finder": nq.Counters()}
    for each in heard.reports:
        by[each.worker] += without_instants(each.counters)

    assert by == {"loser": nq.Counters(), "finder": nq.Counters(lost=1, succeeded=1)}
    assert heard.total == await recount(told, [ref])


async def test_a_loss_for_good_adds_up(
    virtual_time: VirtualTime, app: nq.App, told: nq.Client, heard: Recorder
) -> None:
    """The loss after which a task fails counts as a failure, too."""
    ref = await told.enqueue("sleep", seconds=1)
    async with working(nq.Worker(app, told, queues=["elsewhere"])):
        for _ in range(MAX_LOST):
            dead = await hire(told.store)
            await claim(told.store, dead, task_types=["sleep"])
            await told.store.deregister(dead)
            await trio.sleep(45)  # until somebody sweeps
    stats = await told.stats()

    assert without_instants(stats.total) == nq.Counters(lost=MAX_LOST, failed=1)
    assert heard.total == without_instants(stats.total) == await recount(told, [ref])
