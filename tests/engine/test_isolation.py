"""What a handler leaves behind in its context: for itself, and for nobody else."""

from __future__ import annotations

import asyncio
import contextvars

import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import MemoryStore, perform, performing
from tests.support.waits import eventually
from tests.support.workers import outcomes, working


tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody")


async def look(seen: list[str]) -> None:
    seen.append(tenant.get())
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("kind", ["trio", "thread", "asyncio", "nursery", "transactional"])
@pytest.mark.parametrize("concurrency", [1, 8])
async def test_no_handler_sees_the_context_of_another(
    app: nq.App, either: nq.Client, kind: str, concurrency: int
) -> None:
    """Each attempt begins in the context that the worker runs in, whatever others have set."""
    seen: list[str] = []

    async def serve(ctx: nq.TaskContext, name: str) -> None:
        seen.append(tenant.get())
        tenant.set(name)
        if kind == "nursery":
            ctx.nursery.start_soon(look, own)
        await (asyncio if kind == "asyncio" else trio).sleep(0)
        assert tenant.get() == name
        if len(seen) % 3 == 0:
            raise ValueError

    def serve_in_thread(name: str) -> None:
        seen.append(tenant.get())
        tenant.set(name)

    own: list[str] = []
    task = app.task(
        name="serve",
        retry=None,
        asyncio=kind == "asyncio",
        nursery=kind == "nursery",
        transactional=kind == "transactional",
    )(serve_in_thread if kind == "thread" else serve)
    await either.enqueue_many([task.bind(str(n)) for n in range(60)])
    tenant.set("the worker")
    await nq.Worker(app, either, concurrency=concurrency).run_until_idle()

    assert seen == ["the worker"] * 60
    assert tenant.get() == "the worker"
    assert "the worker" not in own


async def test_what_asyncio_handlers_start(app: nq.App, client: nq.Client) -> None:
    """Tasks, callbacks and threads have the context of their own handler."""
    seen: list[tuple[str, str]] = []

    @app.task(name="serve", asyncio=True)
    async def serve(name: str) -> None:
        def note() -> None:
            seen.append((name, tenant.get()))

        async def child() -> None:
            await asyncio.sleep(0)
            note()

        note()
        tenant.set(name)
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        future.add_done_callback(lambda _: note())
        loop.call_soon(note)
        loop.call_later(0.001, note)
        loop.call_soon_threadsafe(future.set_result, None)
        await asyncio.gather(child(), asyncio.to_thread(note), future)
        await asyncio.sleep(0.01)

    names = [str(n) for n in range(20)]
    refs = await client.enqueue_many([serve.bind(name) for name in names])
    await nq.Worker(app, client, concurrency=4).run_until_idle()

    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 20
    assert sorted(seen) == sorted(
        [(name, "nobody") for name in names] + [(n, n) for n in names] * 5
    )


@pytest.mark.parametrize("kind", ["trio", "thread", "asyncio"])
async def test_what_is_called_after_the_handler(app: nq.App, client: nq.Client, kind: str) -> None:
    """A callback has the context of the place that asked for it, and leaves nothing in it."""
    seen: list[tuple[str, str]] = []

    def note(name: str) -> None:
        seen.append((name, tenant.get()))
        tenant.set("a callback")

    def in_thread(ctx: nq.TaskContext, name: str) -> None:
        tenant.set(name)
        ctx.after(note, name)
        ctx.after(note, name)

    async def serve(ctx: nq.TaskContext, name: str) -> None:
        in_thread(ctx, name)

    handler = in_thread if kind == "thread" else serve
    task = app.task(name="serve", asyncio=kind == "asyncio")(handler)
    await client.enqueue_many([task.bind(str(n)) for n in range(20)])
    await nq.Worker(app, client, concurrency=2).run_until_idle()

    assert sorted(seen) == sorted([(str(n), str(n)) for n in range(20)] * 2)


class Sets(nq.Instrument):
    """Sets a value whenever it hears of something, and notes what was there."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def task_started(self, event: nq.Started) -> None:
        self.heard.append(tenant.get())
        tenant.set(f"started {event.task_id}")

    def task_completed(self, event: nq.Completed) -> None:
        del event
        self.heard.append(tenant.get())


async def test_instruments(app: nq.App) -> None:
    """What an instrument sets when a task starts is for its handler; none hears another's."""
    seen: list[bool] = []

    @app.task(name="serve")
    async def serve(ctx: nq.TaskContext) -> None:
        seen.append(tenant.get() == f"started {ctx.task_id}")
        tenant.set("a handler")

    instrument = Sets()
    client = nq.Client(MemoryStore(), instruments=[instrument])
    await client.enqueue_many([serve.bind()] * 40)
    await nq.Worker(app, client, concurrency=4).run_until_idle()

    assert seen == [True] * 40
    assert instrument.heard == ["nobody"] * 80


async def test_what_clients_start_for_a_handler(app: nq.App, pg: nq.Client) -> None:
    """What reads and waits in the background for all has nothing of whom it was begun by."""
    values: set[str] = set()

    @app.task(name="wait")
    async def wait(other: int) -> None:
        tenant.set("a handler")
        await pg.wait(other)

    other = await pg.enqueue("unknown")
    await pg.enqueue(wait, other.id)
    async with working(nq.Worker(app, pg)):

        async def begun() -> bool:
            root = trio.lowlevel.current_root_task()
            assert root is not None
            news = [
                task
                for nursery in root.child_nurseries
                for task in nursery.child_tasks
                if task.name == "nursery_queue news"
            ]
            values.update(task.context.get(tenant, "nobody") for task in news)
            return bool(news)

        await eventually(begun)
        await pg.cancel(other)

    assert values == {"nobody"}


async def test_perform_leaves_nothing_behind(app: nq.App) -> None:
    """A handler that is performed sees the test's context, and sets nothing in it."""
    seen: list[str] = []

    @app.task
    async def serve(name: str) -> None:
        seen.append(tenant.get())
        tenant.set(name)

    tenant.set("the test")
    await perform(serve, "a")
    await performing(attempt=2)(serve, "b")

    assert seen == ["the test", "the test"]
    assert tenant.get() == "the test"
