"""The database's clock judges leases: what becomes of them when it jumps."""

from __future__ import annotations

import datetime as dt
import logging

import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.contract.steps import hire
from tests.engine.support import FlakyStore, Longest, outcomes, working


@pytest.fixture
def client(anywhere: FlakyStore) -> nq.Client:
    """A client of each kind of store."""
    return nq.Client(anywhere)


def make_worker(app: nq.App, client: nq.Client) -> nq.Worker:
    return nq.Worker(app, client, lease=30, heartbeat=3, rng=Longest())


# Between heartbeats, which come at multiples of 3 s and, of the other worker, 1 s later; and
# just before the second sweep of each, at 39 s and 40 s.
@pytest.mark.parametrize("at", [10.1, 11.5, 12.5, 38.9, 39.5, 39.9])
@pytest.mark.parametrize("by", [29, 3600])
async def test_no_living_worker_is_taken_for_dead(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, at: float, by: float
) -> None:
    """When the clock jumps ahead, by less than a lease or more, what runs is lost to nobody."""
    cancels: list[str] = []

    @app.task(name="hold")
    async def hold(ctx: nq.TaskContext) -> None:
        try:
            await trio.sleep(1000)
        finally:
            cancels.append(str(ctx.cancel_reason))

    workers = [make_worker(app, client) for _ in range(2)]
    async with working(workers[0]):
        await trio.sleep(1)
        async with working(workers[1]):
            refs = [await client.enqueue(hold) for _ in range(40)]
            await trio.sleep_until(at)
            virtual_time.start += dt.timedelta(seconds=by)
            await trio.sleep(60)

            assert cancels == []
            assert all(worker.health().lease_left > 20 for worker in workers)
            assert [await outcomes(client, ref) for ref in refs] == [["running"]] * 40


async def test_the_dead_are_found_all_the_same(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    anywhere: FlakyStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A dead worker's tasks are rescued two heartbeats after the jump has been noticed."""
    caplog.set_level(logging.INFO, "nursery_queue")

    @app.task(name="quick")
    async def quick() -> None: ...

    dead = await hire(anywhere, task_types=["quick"], lease=100)
    ref = await client.enqueue("quick")
    assert (await anywhere.claim(dead, ["quick"], limit=1)).claims
    async with working(make_worker(app, client)):
        await trio.sleep(10)
        virtual_time.start += dt.timedelta(seconds=3600)
        await trio.sleep_until(12 + 2 * 3 - 0.1)
        assert await outcomes(client, ref) == ["running"]
        await trio.sleep(0.2)

        assert await outcomes(client, ref) == ["lost", "succeeded"]
    assert len([line for line in caplog.messages if "clock" in line]) == 1
