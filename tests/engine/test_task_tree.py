"""The task tree: who is there, and the line of source where each waits."""

from __future__ import annotations

import contextlib
import inspect
import re

from collections.abc import AsyncGenerator

import pytest
import trio

import nursery_queue as nq

from nursery_queue._trio._task_tree import place, task_tree
from nursery_queue.testing import VirtualTime
from tests.support.workers import working


def line_of(function: object, text: str) -> int:
    """Return the number of the line of a function that has *text* in it."""
    lines, first = inspect.getsourcelines(function)  # type: ignore[arg-type]  # any function
    return next(number for number, line in enumerate(lines, first) if text in line)


async def sleeper() -> None:
    await trio.sleep(60)


@contextlib.asynccontextmanager
async def opened() -> AsyncGenerator[trio.Nursery]:
    async with trio.open_nursery() as inside:
        yield inside


def this_task() -> trio.lowlevel.Task:
    return trio.lowlevel.current_task()


async def test_nurseries_and_tasks(virtual_time: VirtualTime) -> None:
    """Each task is on a line of its own, indented below its nursery, with the line it is at."""
    tree = ""

    async def parent() -> None:
        async with trio.open_nursery() as outer, trio.open_nursery() as inner:
            outer.start_soon(sleeper, name="task 10 b")
            outer.start_soon(sleeper, name="task 9 a")
            inner.start_soon(sleeper, name="c")
            await trio.sleep(60)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(parent, name="parent")
        await trio.sleep(1)
        (task,) = nursery.child_tasks
        tree = task_tree(task)
        nursery.cancel_scope.cancel()

    here = f"{__file__}:{line_of(sleeper, 'trio.sleep')} in sleeper"
    assert tree.splitlines() == [
        f"parent: {__file__}:{line_of(parent, 'trio.sleep')} in parent",
        "  nursery outer",
        f"    task 9 a: {here}",
        f"    task 10 b: {here}",
        "    nursery inner",
        f"      c: {here}",
    ]


async def test_a_task_that_is_running(virtual_time: VirtualTime) -> None:
    """The task that blocks the loop is told by where it is, although it waits for nothing."""
    seen: list[str] = []

    def block() -> None:
        seen.append(place(this_task(), running=inspect.currentframe()))
        seen.append(place(waiting, running=inspect.currentframe()))

    async def busy() -> None:
        await trio.lowlevel.checkpoint()
        block()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        await trio.sleep(1)
        (waiting,) = nursery.child_tasks
        nursery.start_soon(busy)
        await trio.sleep(1)
        nursery.cancel_scope.cancel()

    assert seen == [
        f"running at {__file__}:{line_of(block, 'this_task')} in block",
        f"{__file__}:{line_of(sleeper, 'trio.sleep')} in sleeper",
    ]


async def test_a_task_that_has_not_begun(virtual_time: VirtualTime) -> None:
    """A task that was just started is at the first line of its function."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper)
        (task,) = nursery.child_tasks
        assert place(task) == f"{__file__}:{line_of(sleeper, 'async def')} in sleeper"
        nursery.cancel_scope.cancel()


async def test_a_nursery_in_a_context_manager(virtual_time: VirtualTime) -> None:
    """A nursery that no variable of the task's own holds is there without a name."""
    async with opened() as nursery:
        nursery.start_soon(sleeper)
        tree = task_tree(this_task(), running=inspect.currentframe())
        nursery.cancel_scope.cancel()

    assert re.search(r"^ +nursery nursery$", tree, re.MULTILINE)


async def test_a_worker(virtual_time: VirtualTime, app: nq.App, client: nq.Client) -> None:
    """A worker's loops have names, its handlers those of their tasks and their own lines."""

    @app.task(name="send_mail")
    async def send_mail(ctx: nq.TaskContext) -> None:
        await ctx.client.wait(ctx.task_id)  # deep in our own code

    @app.task(name="fan", nursery=True)
    async def fan(ctx: nq.TaskContext) -> None:
        ctx.nursery.start_soon(sleeper, name="wing")

    ref, other = await client.enqueue(send_mail), await client.enqueue(fan)
    async with working(nq.Worker(app, client)):
        await trio.sleep(1)
        tree = task_tree(this_task(), running=inspect.currentframe())

    lines = [line.strip() for line in tree.splitlines()]
    told = [line.partition(": ")[0] for line in lines]
    loops = ("heartbeat", "lease", "settler", "listener", "claimer", "maintenance")
    for name in (*loops, "shutdown"):
        assert name in told
    nurseries = [line for line in lines if line.startswith("nursery ")]
    assert [each for each in nurseries if each.split()[1] in WORKER] == [
        f"nursery {name}" for name in WORKER
    ]
    at = f"{__file__}:{line_of(send_mail.handler, 'client.wait')} in send_mail"
    assert f"task {ref.id} send_mail: {at}" in lines
    assert f"task {other.id} fan" in told
    assert f"wing: {__file__}:{line_of(sleeper, 'trio.sleep')} in sleeper" in lines
    assert all(".py:" in line for line in lines if not line.startswith("nursery"))


WORKER = ["outside", "lease", "settling", "handlers", "claiming"]


@pytest.mark.parametrize("kind", ["sync", "asyncio"])
async def test_handlers_that_are_not_of_trio(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, kind: str
) -> None:
    """Of a handler in a thread or on asyncio the tree has the name, and where we wait for it."""
    import asyncio  # noqa: PLC0415  # for one of the two

    seen: list[str] = []

    def look() -> None:
        work = trio.lowlevel.current_root_task()
        assert work is not None
        seen.append(task_tree(work))

    if kind == "sync":

        @app.task(name="other")
        def other() -> None:
            trio.from_thread.run_sync(look)
    else:

        @app.task(name="other", asyncio=True)
        async def other() -> None:
            await asyncio.sleep(1)
            look()

    ref = await client.enqueue("other")
    await nq.Worker(app, client).run_until_idle()

    (line,) = [line for line in seen[0].splitlines() if f"task {ref.id} other: " in line]
    assert ("/nursery_queue/_worker/" if kind == "sync" else "/_asyncio_loop.py:") in line
