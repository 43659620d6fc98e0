"""Handlers that would take the worker with them: each is one failed attempt, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import sys

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import AsyncExitStack
from typing import Any, NoReturn

import pytest
import trio
import trio.testing

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue.testing import MemoryStore
from tests.support.workers import outcomes, state, working


class Odd(BaseException):
    pass


class Speechless(BaseException):
    def __str__(self) -> str:
        raise KeyboardInterrupt

    __repr__ = __str__


class Classless(Exception):
    @property
    def __class__(self) -> Any:
        raise KeyboardInterrupt

    @__class__.setter
    def __class__(self, _: Any) -> None:
        raise KeyboardInterrupt


class Attributeless(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise LookupError(name)


class Unpicklable(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__("not what it takes")
        self.what = lambda: (one, two)

    def __reduce__(self) -> NoReturn:
        raise TypeError


ERRORS: dict[str, Callable[[], BaseException]] = {
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "SystemExit": SystemExit,
    "StopAsyncIteration": StopAsyncIteration,
    "CancelledError": asyncio.CancelledError,
    "TrioInternalError": trio.TrioInternalError,
    "odd": Odd,
    "speechless": Speechless,
    "classless": Classless,
    "attributeless": Attributeless,
    "unpicklable": lambda: Unpicklable(1, 2),
}
Child = Callable[[], Awaitable[None]]


async def _in_its_nursery(ctx: nq.TaskContext, child: Child) -> None:
    ctx.nursery.start_soon(child)


async def _in_one_of_its_own(_: nq.TaskContext, child: Child) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)


async def _below(ctx: nq.TaskContext, child: Child) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_in_one_of_its_own, ctx, child)


async def _started(ctx: nq.TaskContext, child: Child) -> None:
    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await _in_one_of_its_own(ctx, child)

    async with trio.open_nursery() as nursery:
        await nursery.start(run)


async def _in_the_block(_: nq.TaskContext, child: Child) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await child()


NURSERIES = {
    "nursery": _in_its_nursery,
    "own nursery": _in_one_of_its_own,
    "below": _below,
    "started": _started,
    "block": _in_the_block,
}
WHERE = [*NURSERIES, *("trio", "group", "transactional", "thread", "asyncio", "asyncio task")]


# What carries errors out of threads and asyncio looks at their attributes; if it cannot, the
# attempt waits for its time limit.
BEYOND_US = {
    *(("attributeless", where) for where in ("thread", "asyncio", "asyncio task")),
}


@pytest.mark.parametrize(
    ("error", "where"), sorted(set(itertools.product(ERRORS, WHERE)) - BEYOND_US)
)
async def test_what_it_raises_fails_the_attempt(
    app: nq.App, client: nq.Client, caplog: pytest.LogCaptureFixture, error: str, where: str
) -> None:
    """Whatever a handler raises, its attempt has failed, the log names it, and others go on."""
    started, go = trio.Event(), trio.Event()

    def fail() -> NoReturn:
        error_of_its = ERRORS[error]()
        raise error_of_its

    async def child() -> None:
        await started.wait()
        fail()

    async def poison(ctx: nq.TaskContext) -> None:
        await (asyncio if where.startswith("asyncio") else trio).sleep(0)
        if where in NURSERIES:
            await NURSERIES[where](ctx, child)
        elif where == "group":
            raise BaseExceptionGroup("both", [ValueError(), ERRORS[error]()])
        elif where == "asyncio task":
            await asyncio.create_task(fails())
        else:
            fail()

    async def fails() -> None:
        fail()

    handler: Any = fail if where == "thread" else poison
    app.task(
        name="poison",
        retry=None,
        asyncio=where.startswith("asyncio"),
        nursery=where == "nursery",
        transactional=where == "transactional",
    )(handler)

    @app.task(name="innocent")
    async def innocent() -> str:
        started.set()
        await go.wait()
        return "well"

    good = await client.enqueue(innocent)
    async with working(nq.Worker(app, client, concurrency=4)):
        with trio.fail_after(20):
            await started.wait()
            bad = await client.enqueue("poison")
            status = await client.wait(bad)
            go.set()
            assert await client.result(good) == "well"
            assert await client.result(await client.enqueue(innocent)) == "well"

    assert status.state == "failed"
    assert [await outcomes(client, ref) for ref in (bad, good)] == [["failed"], ["succeeded"]]
    (attempt,) = await client.attempts(bad)
    assert attempt.error_type
    if error in {"KeyboardInterrupt", "GeneratorExit", "SystemExit", "odd", "speechless"}:
        raised = f"task {bad.id} (poison, attempt 1) raised"
        told = where.startswith("asyncio") or raised in caplog.text
        assert told or "Speechless" in str(attempt.error_traceback)


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, Odd])
async def test_nothing_of_its_transaction_is_left(
    app: nq.App, either: nq.Client, error: type[BaseException]
) -> None:
    """What it did in ctx.tx is rolled back, whatever it raises."""

    @app.task(name="poison", retry=None, transactional=True)
    async def poison(ctx: nq.TaskContext) -> None:
        await ctx.tx.enqueue("never")
        raise error

    bad = await either.enqueue(poison)
    await nq.Worker(app, either).run_until_idle()

    assert await outcomes(either, bad) == ["failed"]
    assert await either.list_tasks(task_type="never") == []


# -- what is left open -------------------------------------------------------------------------


async def _numbers() -> AsyncGenerator[int]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        for number in range(3):
            yield number


KEPT: list[object] = []


async def _leave_a_nursery() -> None:
    manager = trio.open_nursery()
    nursery = await manager.__aenter__()
    nursery.start_soon(trio.sleep_forever)
    KEPT.append(manager)


async def _leave_a_nursery_that_fails() -> None:
    async def fail() -> None:
        with contextlib.suppress(trio.Cancelled):
            await trio.sleep_forever()
        raise ValueError("its child")

    nursery = await trio.open_nursery().__aenter__()
    nursery.start_soon(fail)
    await trio.testing.wait_all_tasks_blocked()
    raise KeyError("the handler")


async def _leave_a_scope() -> None:
    trio.CancelScope().__enter__()
    await trio.lowlevel.checkpoint()


async def _keep_a_generator() -> None:
    numbers = _numbers()
    KEPT.append(numbers)
    async for _ in numbers:
        return


async def _drop_a_generator() -> None:
    async for _ in _numbers():
        return


async def _close_in_the_wrong_order() -> None:
    outer, inner = trio.CancelScope(), trio.CancelScope()
    outer.__enter__()
    inner.__enter__()
    outer.__exit__(None, None, None)
    await trio.lowlevel.checkpoint()


async def _leave_all_of_it() -> None:
    stack = AsyncExitStack()
    KEPT.append(stack)
    for _ in range(3):
        await stack.enter_async_context(trio.open_nursery())
        stack.enter_context(trio.CancelScope())


class Garbage:
    def __await__(self) -> Generator[Any]:
        yield "nothing that trio knows"


async def _yield_garbage() -> None:
    await Garbage()


LEFT = [
    _leave_a_nursery,
    _leave_a_nursery_that_fails,
    _leave_a_scope,
    _keep_a_generator,
    _drop_a_generator,
    _close_in_the_wrong_order,
    _leave_all_of_it,
    _yield_garbage,
]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # trio tells of generators left to it
@pytest.mark.parametrize("handler", LEFT, ids=lambda handler: handler.__name__)
async def test_what_it_leaves_open(app: nq.App, client: nq.Client, handler: Any) -> None:
    """A nursery or scope that a handler leaves open fails its attempt, and nobody else's."""
    app.task(name="sloppy", retry=None)(handler)

    @app.task(name="innocent")
    async def innocent() -> str:
        await trio.lowlevel.checkpoint()
        return "well"

    bad = await client.enqueue("sloppy")
    async with working(nq.Worker(app, client, concurrency=1)):
        with trio.fail_after(20):
            assert (await client.wait(bad)).state == "failed"
            assert await client.result(await client.enqueue(innocent)) == "well"
    KEPT.clear()

    (attempt,) = await client.attempts(bad)
    assert str(attempt.outcome) == "failed"
    assert attempt.error_message


# -- a real Ctrl-C --------------------------------------------------------------------------------


@pytest.fixture
def sigint() -> Generator[None]:
    """Python's own handler, which trio replaces by its own when it starts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def turned() -> None:
    try:
        ctrl_c()
    except KeyboardInterrupt:
        raise ValueError("not now") from None


def exits() -> None:
    try:
        ctrl_c()
    except KeyboardInterrupt:
        sys.exit(130)


HOW = {"turned": turned, "exits": exits}


@pytest.mark.parametrize("where", ["trio", "group", "nursery", "asyncio", *HOW])
def test_a_real_interrupt_ends_the_worker(sigint: None, app: nq.App, where: str) -> None:
    """A Ctrl-C that strikes in a handler ends the worker; the tasks go back, not counted."""
    seen: list[str] = []

    async def strike(ctx: nq.TaskContext) -> None:
        while not running.is_set():  # an event of trio's is none of asyncio's
            await (asyncio if where == "asyncio" else trio).sleep(0)
        if where == "nursery":
            ctx.nursery.start_soon(deeper)
            await trio.sleep_forever()
        elif where == "group":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(deeper)
        else:
            HOW.get(where, ctrl_c)()
            await asyncio.sleep(1000)  # where it strikes asyncio, trio's main task gets it

    async def deeper() -> None:
        await trio.lowlevel.checkpoint()
        ctrl_c()

    app.task(name="strike", asyncio=where == "asyncio", nursery=where == "nursery")(strike)

    @app.task(name="other")
    async def other(ctx: nq.TaskContext) -> None:
        running.set()
        try:
            await trio.sleep_forever()
        finally:
            seen.append(str(ctx.cancel_reason))

    running = trio.Event()

    async def main() -> None:
        client = nq.Client(MemoryStore())
        refs = [await client.enqueue("other"), await client.enqueue("strike")]
        kinds = (ValueError if where == "turned" else SystemExit, KeyboardInterrupt)
        try:
            await nq.Worker(app, client).run()
        except* kinds:
            seen.append("interrupted")
        assert [await outcomes(client, ref) for ref in refs] == [["interrupted"]] * 2
        assert [await state(client, ref) for ref in refs] == ["ready"] * 2

    trio.run(main)

    assert seen == ["shutdown", "interrupted"]


async def test_an_interrupt_of_a_callback(
    app: nq.App, client: nq.Client, interrupt: Callable[[], None]
) -> None:
    """Where a signal's handler strikes a callback on asyncio, that ends the worker, too."""

    @app.task(name="strike", asyncio=True)
    async def strike() -> None:
        asyncio.get_running_loop().call_soon(interrupt)
        await asyncio.sleep(1000)

    ref = await client.enqueue(strike)
    seen: list[str] = []
    with trio.fail_after(20):
        try:
            await nq.Worker(app, client).run()
        except* KeyboardInterrupt:
            seen.append("interrupted")

    assert seen == ["interrupted"]
    assert await outcomes(client, ref) == ["interrupted"]
    assert await state(client, ref) == "ready"


async def test_children_are_what_they_were(app: nq.App, client: nq.Client) -> None:
    """`ctx.nursery` starts, names and waits for children as any nursery does, and says the same."""
    names: list[str] = []

    async def child(*, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        names.append(trio.lowlevel.current_task().name)
        task_status.started(7)
        await trio.lowlevel.checkpoint()

    @app.task(name="family", nursery=True, retry=None)
    async def family(ctx: nq.TaskContext) -> int:
        ctx.nursery.start_soon(child)
        ctx.nursery.start_soon(child, name="second")
        with pytest.raises(TypeError, match="coroutine object"):
            ctx.nursery.start_soon(child())  # type: ignore[arg-type]  # a common mistake
        value: int = await ctx.nursery.start(child, name="third")
        return value

    ref = await client.enqueue(family)
    await nq.Worker(app, client).run_until_idle()

    assert await client.result(ref) == 7
    first = f"{child.__module__}.{child.__qualname__}"
    assert sorted(names) == sorted([first, "second", "third"])


async def test_a_callback_that_exits(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """What `ctx.after` was given ends nclient the worker nor the other callbacks."""
    called: list[str] = []

    async def stay() -> None:
        await trio.sleep(1)
        called.append("stay")

    @app.task(name="work")
    async def work(ctx: nq.TaskContext, error: str) -> None:
        async def fail() -> None:
            await trio.lowlevel.checkpoint()
            wrong = ERRORS[error]()
            raise wrong

        async def fail_below() -> None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail)

        ctx.after(stay)
        ctx.after(fail)
        ctx.after(fail_below)

    wrong = ("KeyboardInterrupt", "SystemExit", "odd", "speechless")
    refs = [await client.enqueue(work, name) for name in wrong]
    await nq.Worker(app, client, concurrency=1).run_until_idle()

    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 4
    assert called == ["stay"] * 4
    assert client.callbacks == nq.CallbackCounts(finished=4, failed=8)
    assert "Odd" in caplog.text


class Exits(nq.Instrument):
    def task_started(self, event: nq.Started) -> None:
        del event
        sys.exit(3)


async def test_an_instrument_that_exits(app: nq.App, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged and not called again; the task goes on unharmed."""

    @app.task(name="work")
    async def work() -> str:
        return "well"

    client = nq.Client(MemoryStore(), instruments=[Exits()])
    refs = [await client.enqueue(work) for _ in range(2)]
    await nq.Worker(app, client).run_until_idle()

    assert [await client.result(ref) for ref in refs] == ["well"] * 2
    assert caplog.text.count("the instrument Exits raised") == 1
