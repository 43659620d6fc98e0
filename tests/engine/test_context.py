"""What a handler knows about its attempt, and the nursery it may have."""

from __future__ import annotations

import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from tests.support.flaky_store import FlakyStore
from tests.support.workers import final, outcomes, state, working


async def test_its_fields(autojump_clock: MockClock, app: nq.App, client: nq.Client) -> None:
    """The context tells which task and attempt it is, where, for whom, and until when."""
    seen: list[nq.TaskContext] = []

    @app.task(name="look", queue="q", timeout=30)
    async def look(ctx: nq.TaskContext, body: str, times: int = 2) -> None:
        seen.append(ctx)
        assert ctx.deadline == trio.current_time() + 30
        assert ctx.worker_id == worker.health().worker_id
        if ctx.attempt == 1:
            raise nq.RetryAfter(3)

    ref = await client.enqueue(look, "a")
    worker = nq.Worker(app, client)
    async with working(worker):
        await final(client, ref)
    first, second = seen

    assert (second.task_id, second.task_type, second.queue) == (ref.id, "look", "q")
    assert (first.attempt, second.attempt) == (1, 2)
    assert second.params == {"body": "a"}  # as it was stored
    assert (second.client, second.cancel_reason) == (client, None)
    assert (second.fence.task_id, second.fence.epoch) == (ref.id, first.fence.epoch + 1)
    assert second.deadline == pytest.approx(33, abs=1e-4)


async def test_what_was_not_declared(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """`ctx.tx` and `ctx.nursery` say how to declare them."""

    @app.task(retry=None)
    async def wish(ctx: nq.TaskContext) -> None:
        with pytest.raises(RuntimeError, match="transactional=True"):
            _ = ctx.tx
        with pytest.raises(RuntimeError, match="nursery=True"):
            _ = ctx.nursery

    ref = await client.enqueue(wish)
    await nq.Worker(app, client).run_until_idle()

    assert await state(client, ref) == "succeeded"


async def test_children_are_awaited(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """An attempt with a nursery ends, and is settled, when its children have ended."""

    @app.task(nursery=True)
    async def parent(ctx: nq.TaskContext) -> str:
        ctx.nursery.start_soon(child)
        return "returned"

    async def child() -> None:
        await trio.sleep(5)
        store.trace.append("child")

    ref = await client.enqueue(parent)
    async with working(nq.Worker(app, client)):
        assert await client.result(ref) == "returned"
        assert trio.current_time() == 5
    assert store.trace.index("child") < store.trace.index("settle")


async def test_an_error_of_a_child(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """An error of a child cancels the handler and fails the attempt, as what it is."""
    cancelled: list[bool] = []

    @app.task(nursery=True, retry=None)
    async def parent(ctx: nq.TaskContext) -> None:
        ctx.nursery.start_soon(child)
        try:
            await trio.sleep_forever()
        finally:
            cancelled.append(True)

    async def child() -> None:
        raise ValueError("child")

    ref = await client.enqueue(parent)
    await nq.Worker(app, client).run_until_idle()
    status = await client.status(ref)

    assert cancelled == [True]
    assert status is not None
    assert status.error == "ValueError: child"


@pytest.mark.parametrize("cause", ["timed_out", "cancelled", "interrupted"])
async def test_children_are_cancelled_with_the_attempt(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    cause: str,
) -> None:
    """Children are cancelled with their attempt, and it is settled after they have cleaned up."""

    @app.task(nursery=True, timeout=5, retry=None)
    async def parent(ctx: nq.TaskContext) -> None:
        ctx.nursery.start_soon(child)

    async def child() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(1)
            store.trace.append("clean")

    ref = await client.enqueue(parent)
    async with working(nq.Worker(app, client, grace=0)):
        await trio.sleep(1)
        if cause == "cancelled":
            await client.cancel(ref)
        await trio.sleep(0 if cause == "interrupted" else 6)
    assert await outcomes(client, ref) == [cause]
    assert store.trace.index("clean") < store.trace.index("settle")
