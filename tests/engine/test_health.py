"""What a worker says of itself."""

from __future__ import annotations

import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from tests.support.flaky_store import FlakyStore
from tests.support.workers import Longest, working


async def test_health(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """`health()` can be asked before, during and after; it tells what runs and what fails."""
    worker = nq.Worker(app, client, lease=30, heartbeat=3, rng=Longest())

    @app.task(name="wait")
    async def wait() -> None:
        await trio.sleep(10)

    before = worker.health()
    assert (before.running, before.held, before.lease_left, before.worker_id) == (0, 0, 0, None)
    assert {each.state for each in before.loops.values()} == {"off"}
    async with working(worker):
        await client.enqueue(wait)
        await trio.sleep(5)
        during = worker.health()
        store.down = {"heartbeat"}
        await trio.sleep(2)
        failing = worker.health().loops["heartbeat"]
        store.down = set()
        await trio.sleep(1)
        worker.stop()
        await trio.sleep(1)
        assert worker.health().draining
    after = worker.health()

    assert (during.running, during.held, during.notify) == (1, 1, "listening")
    assert during.lease_left == pytest.approx(28)
    assert {each.state for each in during.loops.values()} == {"healthy"}
    assert (failing.state, failing.restarts > 0) == ("backing_off", True)
    assert failing.last_error is not None
    assert "heartbeat: the store is down" in failing.last_error
    assert {each.state for each in after.loops.values()} == {"off"}
    assert (after.running, after.worker_id, after.draining) == (0, None, False)
