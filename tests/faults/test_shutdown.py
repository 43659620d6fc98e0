"""How long the end of a worker takes when every connection has fallen silent."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.network import pass_time, pass_time_until
from tests.support.proxy import Proxy


STOP_AT, GRACE, CLEANUP = 5.0, 7.0, 3.0
CLAIM = b"nursery_queue.claim("
SETTLE = b"with settled as materialized"
SILENT = 20.0  # seconds to give up statements under way, on connections that say nothing


@pytest.fixture
async def client(proxy: Proxy) -> AsyncGenerator[nq.Client]:
    async with nq.connect(proxy.dsn) as client:
        yield client


@pytest.fixture(autouse=True)
def work(app: nq.App) -> None:
    @app.task(name="work")
    async def work() -> None:
        try:
            await trio.sleep(1000)
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(CLEANUP)

    @app.task(name="writes", transactional=True)
    async def writes(ctx: nq.TaskContext) -> None:
        while True:
            await ctx.tx.execute("select 1")
            await trio.sleep(0.5)


@pytest.mark.leaves_claims("the database cannot be told that they are over")
@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("at", [1.0, 4.9, 5.0, 6.0, 11.9, 14.9, CLAIM, SETTLE])
async def test_a_black_hole(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    pg: nq.Client,
    proxy: Proxy,
    at: float | bytes,
    cancelled: bool,
) -> None:
    """`run()` ends within its budget and what it takes to give up the statements under way."""
    ended: list[float] = []
    scopes: list[trio.CancelScope] = []

    async def run() -> None:
        with trio.CancelScope() as scope:
            scopes.append(scope)
            await worker.run()
        ended.append(trio.current_time())

    worker = nq.Worker(app, client, grace=GRACE, cleanup=CLEANUP)
    await pg.enqueue("work")
    await pg.enqueue("writes")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        for instant in sorted({STOP_AT, at} if isinstance(at, float) else {STOP_AT}):
            await pass_time(virtual_time, proxy, instant - trio.current_time())
            if isinstance(at, bytes):
                proxy.blackhole_at(at)
            elif instant == at:
                proxy.blackhole()
            await pg.enqueue("work")  # so that a claim is under way
            await proxy.quiet()
            if instant == STOP_AT:
                scopes[0].cancel() if cancelled else worker.stop()
        await pass_time_until(virtual_time, proxy, lambda: bool(ended), within=100)

    assert ended[0] - STOP_AT <= worker.budget(cancelled=cancelled) + SILENT
