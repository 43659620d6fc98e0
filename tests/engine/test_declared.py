"""Tasks that are enqueued by name are as their type is declared."""

from __future__ import annotations

from typing import Any

import pytest
import trio

import nursery_queue as nq


LOUD = "declared"
Seen = tuple[str, int, str | None]


@pytest.fixture
def client(either: nq.Client) -> nq.Client:
    return either


@pytest.fixture
def app() -> nq.App:
    """Declare a handler with a queue, a priority and somebody to be told."""
    app = nq.App()

    @app.task(name="told", queue="books", priority=7)
    async def told(task_id: int, context: Any, result: nq.Result) -> None:
        """Hear of it."""

    @app.task(name=LOUD, queue="mail", priority=3, on_complete="told")
    async def declared(number: int = 0) -> int:
        return number

    return app


async def seen(client: nq.Client, ref: nq.TaskRef) -> Seen:
    status = await client.status(ref)
    assert status is not None
    return status.queue, status.priority, status.on_complete


DECLARED: Seen = ("mail", 3, "told")


async def test_a_client_that_has_the_app(client: nq.Client, app: nq.App) -> None:
    """What the App declares counts by name, before any worker has run."""
    client.app = app
    assert await seen(client, await client.enqueue(LOUD, number=1)) == DECLARED
    requests = [nq.TaskRequest.by_name(LOUD) for _ in range(2)]
    for copy in (False, True):
        for ref in await client.enqueue_many(requests, copy=copy):
            assert await seen(client, ref) == DECLARED
    async with client.transaction() as tx:
        ref = await tx.enqueue(LOUD)
    assert await seen(client, ref) == DECLARED


async def test_what_is_said_counts_more_than_the_app(client: nq.Client, app: nq.App) -> None:
    """Options count, also those that say what is so by default."""
    client.app = app
    request = nq.TaskRequest.by_name(LOUD).options(queue="default", priority=0, on_complete=None)
    (ref,) = await client.enqueue_many([request])

    assert await seen(client, ref) == ("default", 0, None)


async def test_what_a_named_one_declares(client: nq.Client, app: nq.App) -> None:
    """Who is told by name is as the App declares it, for tasks of any type."""
    client.app = app
    request = nq.TaskRequest.by_name("elsewhere").options(on_complete="told")
    (ref,) = await client.enqueue_many([request])
    bound = await client.enqueue(app[LOUD], 5)
    for each in (ref, bound):
        await client.cancel(each)
    tellers = await client.list_tasks(task_type="told")

    assert [(each.queue, each.priority) for each in tellers] == [("books", 7)] * 2


async def test_a_worker_stores_what_is_declared(client: nq.Client, app: nq.App) -> None:
    """Programs without the App get what the worker that started last has stored."""
    ref = await client.enqueue(LOUD)
    assert await seen(client, ref) == ("default", 0, None)
    await nq.Worker(app, client).run_until_idle()
    elsewhere = nq.Client(client.store)
    ref = await elsewhere.enqueue(LOUD)

    assert elsewhere.app is None
    assert await seen(client, ref) == DECLARED


async def test_a_worker_gives_its_client_its_app(client: nq.Client, app: nq.App) -> None:
    """A handler that enqueues by name gets what its own code declares, also in `ctx.tx`."""
    refs: list[nq.TaskRef] = []

    @app.task(name="enqueues", transactional=True)
    async def enqueues(ctx: nq.TaskContext) -> None:
        refs.append(await ctx.client.enqueue(LOUD))
        refs.append(await ctx.tx.enqueue(LOUD))
        async with ctx.transaction() as tx:
            refs.append(await tx.enqueue(LOUD))

    await client.enqueue(enqueues)
    await nq.Worker(app, client).run_until_idle()

    assert client.app is app
    assert [await seen(client, ref) for ref in refs] == [DECLARED] * 3


async def test_a_client_keeps_the_app_it_has(client: nq.Client, app: nq.App) -> None:
    """A worker does not replace what the client was given."""
    client.app = other = nq.App()
    nq.Worker(app, client)

    assert client.app is other


async def test_a_limit_of_the_declared_queue_holds(client: nq.Client) -> None:
    """Tasks enqueued by name run in the queue that their handler declares, so its limit holds."""
    app, running, most = nq.App(), 0, 0

    @app.task(name="alone", queue="alone")
    async def alone() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(5):
            await trio.lowlevel.checkpoint()
        running -= 1

    await client.configure_queue("alone", max_running=1)
    await nq.Worker(app, client).run_until_idle()
    elsewhere = nq.Client(client.store)
    for _ in range(5):
        await elsewhere.enqueue("alone")
    await nq.Worker(app, client).run_until_idle()

    assert most == 1
