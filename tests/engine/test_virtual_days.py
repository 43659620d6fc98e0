"""Days go by in no time, on PostgreSQL as in memory, and every instant is exact."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import time

from collections.abc import Generator

import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.workers import Longest, working


HOUR = 3600.0
DAY = 24 * HOUR
WORK = 90.0  # seconds of one attempt


@pytest.fixture(autouse=True)
def real_time() -> Generator[None]:
    """Tell how long it took, for `pytest -rP`; on a busy machine that proves nothing."""
    before = time.perf_counter()
    yield
    print(f"{time.perf_counter() - before:.2f} s in real time")  # noqa: T201  # for a person


def failing(app: nq.App, *, first_wait: float) -> nq.TaskType[[], None]:
    """Declare a handler that takes a while to fail; five attempts, ever longer waits."""
    policy = nq.RetryPolicy(max_attempts=5, initial=first_wait, maximum=30 * DAY)

    @app.task(name="fail", retry=policy)
    async def fail() -> None:
        await trio.sleep(WORK)
        raise ValueError("again")

    return fail


def planned(begun: dt.datetime, *, first_wait: float) -> list[tuple[dt.datetime, dt.datetime]]:
    """Return when each of the five attempts starts, and when it ends."""
    waits = [WORK + first_wait * 2**n for n in range(4)]
    starts = [begun + dt.timedelta(seconds=wait) for wait in itertools.accumulate([0, *waits])]
    return [(start, start + dt.timedelta(seconds=WORK)) for start in starts]


async def asked(client: nq.Client, task: nq.TaskRef) -> nq.TaskStatus:
    status = await client.status(task)
    assert status is not None
    return status


async def test_five_attempts_in_three_days(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """Each attempt starts at the instant that the one before it has fixed, and the log says so."""
    begun, first_wait = virtual_time.now(), 3 * DAY / 15  # and 2, 4 and 8 times that
    ref = await either.enqueue(failing(app, first_wait=first_wait))
    due: list[dt.datetime] = []
    while not (status := await asked(either, ref)).state.is_final:
        due.append(status.run_at)
        await trio.sleep((status.run_at - virtual_time.now()).total_seconds())
        await nq.Worker(app, either, rng=Longest()).run_until_idle()
    log = await either.attempts(ref)

    plan = planned(begun, first_wait=first_wait)
    assert due == [start for start, _ in plan]
    assert [(a.started_at, a.finished_at) for a in log] == plan
    assert [(a.number, a.outcome) for a in log] == [(n, "failed") for n in range(1, 6)]
    assert (status.state, status.attempt, status.finished_at) == ("failed", 5, plan[-1][1])
    assert virtual_time.now() == plan[-1][1] == begun + dt.timedelta(days=3, seconds=5 * WORK)


async def test_a_worker_on_duty_all_the_time(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """A worker that waits through three hours, with all that it does besides, is as punctual."""
    begun, first_wait = virtual_time.now(), 3 * HOUR / 15
    ref = await either.enqueue(failing(app, first_wait=first_wait))
    worker = nq.Worker(app, either, lease=300, heartbeat=100, poll_interval=300, rng=Longest())
    async with working(worker):
        await trio.sleep(3 * HOUR + 5 * WORK + 1)
        log = await either.attempts(ref)

    plan = planned(begun, first_wait=first_wait)
    assert [(a.started_at, a.finished_at) for a in log] == plan
    assert (await asked(either, ref)).state == "failed"


class Counted(VirtualTime):
    """Counts what it has waited for: answers of the database, for the most part."""

    waits = 0

    @contextlib.contextmanager
    def hold(self, limit: float | None = None) -> Generator[None]:
        self.waits += 1
        with super().hold(limit):
            yield


async def wait_for_days(app: nq.App, dsn: str) -> float:
    """Wait for a task that is tried for three days, with the timers that README advises."""
    begun = trio.current_time()
    async with nq.connect(dsn) as client:
        worker = nq.Worker(
            app, client, lease=36_000, heartbeat=3_600, poll_interval=3_600, rng=Longest()
        )
        async with working(worker):
            ref = await client.enqueue(failing(app, first_wait=3 * DAY / 15))
            with pytest.raises(nq.TaskFailed):
                await client.result(ref)
    return trio.current_time() - begun


def test_nothing_else_costs_time(app: nq.App, migrated: str) -> None:
    """Who waits for a result, listens and reports moves no clock: days cost a few thousand waits.

    With a look each minute and a probe each ten seconds it would be tens of thousands.
    """
    clock = Counted()

    assert trio.run(wait_for_days, app, migrated, clock=clock) >= 3 * DAY
    assert clock.waits < 5_000


async def test_a_week_of_retention(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """A task is kept for as long as it asked for, to the instant."""

    @app.task(name="quick", keep_for=7 * DAY)
    async def quick() -> None: ...

    refs = [await either.enqueue(quick), await either.enqueue(quick)]
    await nq.Worker(app, either).run_until_idle()
    ended = virtual_time.now()
    await trio.sleep(7 * DAY - 0.001)

    assert await either.prune() == 0
    assert [(await asked(either, ref)).finished_at for ref in refs] == [ended, ended]

    await trio.sleep(0.001)

    assert await either.prune() == 2
    assert await either.status_many(refs) == [None, None]


async def test_a_worker_prunes(virtual_time: VirtualTime, app: nq.App, either: nq.Client) -> None:
    """What has been kept long enough is gone two minutes later, while a worker is on duty."""

    @app.task(name="quick", keep_for=7 * DAY)
    async def quick() -> None: ...

    ref = await either.enqueue(quick)
    await nq.Worker(app, either).run_until_idle()
    await trio.sleep(7 * DAY - 600)
    async with working(nq.Worker(app, either)):
        await trio.sleep(600 - 0.001)
        assert (await asked(either, ref)).state == "succeeded"
        await trio.sleep(120)
        assert await either.status(ref) is None
        assert await either.attempts(ref) == []
