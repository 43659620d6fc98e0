"""The client of a worker is closed: by a handler, which may not, or under the worker."""

from __future__ import annotations

import asyncio

import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import MemoryStore, perform
from tests.support.workers import outcomes, state


async def close(client: nq.Client, how: str) -> None:
    if how == "aclose":
        await client.aclose()
    else:
        async with client:
            pass


@pytest.mark.parametrize("how", ["aclose", "async with"])
@pytest.mark.parametrize("kind", ["trio", "asyncio", "after"])
async def test_a_handler_may_not_close_the_client(
    app: nq.App, either: nq.Client, how: str, kind: str
) -> None:
    """The attempt fails and says why, or the callback does; the worker goes on."""

    @app.task(name="closes", retry=None, asyncio=kind == "asyncio")
    async def closes(ctx: nq.TaskContext) -> None:
        if kind == "after":
            ctx.after(close, ctx.client, how)
        else:
            await close(ctx.client, how)
        await (asyncio if kind == "asyncio" else trio).sleep(0)

    @app.task(name="works")
    async def works() -> str:
        return "well"

    bad, good = [await either.enqueue(name) for name in ("closes", "works")]
    await nq.Worker(app, either, concurrency=1).run_until_idle()

    assert await either.result(good) == "well"
    if kind == "after":
        assert either.callbacks == nq.CallbackCounts(failed=1)
    else:
        status = await either.status(bad)
        assert "belongs to the worker" in str(status and status.error)


async def test_performed(app: nq.App) -> None:
    """A test of the handler finds it, too."""

    @app.task
    async def closes(ctx: nq.TaskContext) -> None:
        await ctx.client.aclose()

    with pytest.raises(RuntimeError, match="belongs to the worker"):
        await perform(closes)


async def test_closed_under_the_worker(app: nq.App, somewhere: str | None) -> None:
    """The worker cancels its handlers, releases their tasks, and ends with a clear error."""
    reasons: list[str] = []
    running = trio.Event()

    @app.task(name="hold")
    async def hold(ctx: nq.TaskContext) -> None:
        running.set()
        try:
            await trio.sleep_forever()
        finally:
            reasons.append(str(ctx.cancel_reason))

    async def use(client: nq.Client, nursery: trio.Nursery) -> nq.TaskRef:
        await nursery.start(nq.Worker(app, client).run)
        ref = await client.enqueue(hold)
        await running.wait()
        return ref

    ref: nq.TaskRef | None = None
    with (
        trio.fail_after(20),
        pytest.RaisesGroup(pytest.RaisesExc(nq.Closed, match="stop the work")),
    ):
        async with trio.open_nursery() as nursery:
            if somewhere is None:
                async with nq.Client(MemoryStore()) as client:
                    ref = await use(client, nursery)
            else:
                async with nq.connect(somewhere) as client:
                    ref = await use(client, nursery)

    assert reasons == ["shutdown"]
    if somewhere is not None:
        assert ref is not None
        async with nq.connect(somewhere) as client:
            assert await outcomes(client, ref) == ["interrupted"]
            assert await state(client, ref) == "ready"
            assert await client.workers() == []
