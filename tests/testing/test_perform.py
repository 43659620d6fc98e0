"""Running one handler for a test."""

from __future__ import annotations

import asyncio
import datetime as dt
import math
import threading

import attrs
import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue.testing import MemoryStore, VirtualTime, perform, performing


@attrs.frozen
class Mail:
    to: str
    at: dt.datetime


@pytest.fixture
def app() -> nq.App:
    return nq.App()


# -- calls and results ---------------------------------------------------------------------


async def test_params_and_result_go_through_json(app: nq.App) -> None:
    """The handler gets its annotated types, made from JSON; the result is what JSON has of it."""
    at = dt.datetime(2030, 1, 1, tzinfo=dt.UTC)
    seen: list[Mail] = []

    @app.task
    async def send(mail: Mail, copies: int = 1) -> list[Mail]:
        seen.append(mail)
        return [mail] * copies

    mail = Mail("a@b.c", at)
    result = await perform(send, mail, copies=2)

    assert seen == [mail]
    assert seen[0] is not mail
    assert result == [{"to": "a@b.c", "at": at.isoformat()}] * 2


async def test_the_forms_of_a_call(app: nq.App) -> None:
    """It takes a task type with arguments, one with options, or what `bind()` returned."""

    @app.task(name="add")
    async def add(ctx: nq.TaskContext, a: int, b: int = 0) -> tuple[int, str]:
        return a + b, ctx.queue

    assert await perform(add, 1, b=2) == [3, "default"]
    assert await perform(add.options(queue="q"), 1) == [1, "q"]
    assert await perform(add.bind(3, b=4).options(queue="q")) == [7, "q"]
    assert await perform(app["add"], 5) == [5, "default"]


async def test_what_it_does_not_take(app: nq.App) -> None:
    """Names and plain functions are refused, and so are arguments that do not fit."""

    @app.task
    async def add(a: int) -> int:
        return a

    for task in ("add", nq.TaskRequest.by_name("add", {"a": 1}), add.handler):
        with pytest.raises(TypeError, match="task type"):
            await perform(task)  # type: ignore[arg-type]  # what is wrong with it
    with pytest.raises(TypeError, match="missing a required argument: 'a'"):
        await perform(add)  # type: ignore[call-overload]  # as above
    with pytest.raises(nq.ParamsError, match="parameter a"):
        await perform(add, "one")  # type: ignore[call-overload]  # as above
    with pytest.raises(ValueError, match="attempt"):
        performing(attempt=0)


async def test_none_and_no_result(app: nq.App) -> None:
    """None is None, and a result that is not JSON is refused as a worker would."""

    @app.task
    async def give(what: str) -> object:
        return None if what == "none" else object()

    assert await perform(give, "none") is None
    with pytest.raises(nq.ResultError):
        await perform(give, "object")


async def test_each_kind_of_handler(virtual_time: VirtualTime, app: nq.App) -> None:
    """Functions run in a thread, asyncio handlers on a loop of theirs, with the same context."""

    @app.task
    def function(ctx: nq.TaskContext, n: int) -> list[object]:
        return [ctx.attempt, n, threading.current_thread() is threading.main_thread()]

    @app.task(asyncio=True)
    async def foreign(ctx: nq.TaskContext, n: int) -> list[object]:
        return [ctx.attempt, await asyncio.sleep(1, n)]

    assert await perform(function, 7) == [1, 7, False]
    assert await perform(foreign, 7) == [1, 7]


# -- errors --------------------------------------------------------------------------------


@pytest.mark.parametrize("nursery", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        ValueError("it is"),
        nq.DoNotRetry("no"),
        nq.Snooze(5),
        SystemExit(3),
    ],
    ids=repr,
)
async def test_errors_come_as_they_are(app: nq.App, error: BaseException, nursery: bool) -> None:
    """What the handler raises is raised: the same object, and no group around it."""

    @app.task(nursery=nursery)
    async def fail(ctx: nq.TaskContext) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await perform(fail)

    assert caught.value is error


@pytest.mark.parametrize("nursery", [False, True])
async def test_a_group_of_its_own(app: nq.App, nursery: bool) -> None:
    """A group that the handler raises is left alone, also if there is one error in it."""

    @app.task(nursery=nursery)
    async def fail(ctx: nq.TaskContext) -> None:
        raise ExceptionGroup("its own", [ValueError("one")])

    with pytest.raises(ExceptionGroup) as caught:
        await perform(fail)

    assert caught.value.message == "its own"
    assert [str(error) for error in caught.value.exceptions] == ["one"]


async def test_errors_of_threads_and_asyncio(virtual_time: VirtualTime, app: nq.App) -> None:
    """Errors of sync and asyncio handlers come as they are, too."""

    @app.task
    def function() -> None:
        raise ValueError("in a thread")

    @app.task(asyncio=True)
    async def foreign() -> None:
        raise ValueError("in asyncio")

    for task, words in ((function, "in a thread"), (foreign, "in asyncio")):
        with pytest.raises(ValueError, match=words):
            await perform(task)


@pytest.mark.parametrize("kind", ["trio", "nursery", "asyncio", "thread"])
async def test_the_time_limit(virtual_time: VirtualTime, app: nq.App, kind: str) -> None:
    """A handler that is cancelled at its time limit raises `TooSlowError` that names it."""
    go = threading.Event()

    @app.task(name="slow trio", timeout=5)
    async def on_trio() -> None:
        await trio.sleep_forever()

    @app.task(name="slow nursery", timeout=5, nursery=True)
    async def in_a_nursery(ctx: nq.TaskContext) -> None:
        ctx.nursery.start_soon(trio.sleep_forever)

    @app.task(name="slow asyncio", timeout=5, asyncio=True)
    async def on_asyncio() -> None:
        await asyncio.sleep(1000)

    @app.task(name="slow thread", timeout=5)
    def in_a_thread() -> None:
        trio.from_thread.run_sync(virtual_time.advance, 5)
        go.wait(30)

    with pytest.raises(trio.TooSlowError, match=f"slow {kind} .*time limit of 5 s"):
        await perform(app[f"slow {kind}"])
    go.set()

    assert trio.current_time() == 5


async def test_a_limit_of_its_own(autojump_clock: MockClock, app: nq.App) -> None:
    """`options(timeout=...)` counts as it does for a worker; what is returned in time is fine."""

    @app.task(timeout=1)
    async def slow(ctx: nq.TaskContext) -> float:
        await trio.sleep(2)
        return ctx.deadline - trio.current_time()

    with pytest.raises(trio.TooSlowError):
        await perform(slow)

    assert await perform(slow.options(timeout=5)) == 3
    with pytest.raises(nq.ResultError):  # infinity is no JSON
        assert await perform(slow.options(timeout=None)) == math.inf


async def test_an_error_after_the_time_limit(autojump_clock: MockClock, app: nq.App) -> None:
    """What a handler raises because of its limit is the cause; what it says on purpose, counts."""

    @app.task(timeout=1)
    async def messy(on_purpose: bool) -> None:
        try:
            await trio.sleep(2)
        finally:
            raise nq.RetryAfter(60) if on_purpose else ValueError("clean-up")

    with pytest.raises(trio.TooSlowError) as caught:
        await perform(messy, on_purpose=False)
    with pytest.raises(nq.RetryAfter):
        await perform(messy, on_purpose=True)

    assert str(caught.value.__cause__) == "clean-up"


# -- being cancelled -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["trio", "nursery", "asyncio"])
async def test_being_cancelled(virtual_time: VirtualTime, app: nq.App, kind: str) -> None:
    """A scope around it cancels the handler, which learns that it is for a shutdown."""
    seen: list[object] = []

    @app.task(name="trio", nursery=False)
    async def on_trio(ctx: nq.TaskContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            seen.append(ctx.cancel_reason)

    @app.task(name="nursery", nursery=True)
    async def in_a_nursery(ctx: nq.TaskContext) -> None:
        ctx.nursery.start_soon(on_trio.handler, ctx)

    @app.task(name="asyncio", asyncio=True)
    async def on_asyncio(ctx: nq.TaskContext) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            seen.append(ctx.cancel_reason)

    with trio.move_on_after(3) as scope:
        await perform(app[kind])

    assert scope.cancelled_caught
    assert seen == [nq.CancelReason.SHUTDOWN]
    assert trio.current_time() == 3


async def test_cancelled_it_may_still_return_or_fail(
    autojump_clock: MockClock, app: nq.App
) -> None:
    """A handler that returns or raises although cancelled has its result returned, or raised."""

    @app.task(nursery=True)
    async def stubborn(ctx: nq.TaskContext, fails: bool) -> str:
        ctx.nursery.start_soon(trio.sleep, 1)
        with trio.CancelScope(shield=True):
            await trio.sleep(5)
        if fails:
            raise ValueError("all the same")
        return "done"

    with trio.move_on_after(3):
        result = await perform(stubborn, fails=False)
        assert result == "done"
    with pytest.raises(ValueError, match="all the same"), trio.move_on_after(3):
        await perform(stubborn, fails=True)


# -- what it sees --------------------------------------------------------------------------


async def test_its_context(app: nq.App) -> None:
    """The context belongs to no stored task, and to the first attempt unless told otherwise."""
    seen: list[nq.TaskContext] = []

    @app.task(name="look", queue="q")
    async def look(ctx: nq.TaskContext, n: int) -> None:
        seen.append(ctx)

    client = nq.Client(MemoryStore())
    await perform(look, 1)
    await performing(client=client, attempt=3)(look, 2)
    first, second = seen

    assert (first.task_type, first.queue, first.attempt, first.params) == ("look", "q", 1, {"n": 1})
    assert (second.attempt, second.client) == (3, client)
    assert first.client is not client
    assert first.cancel_reason is None
    assert await first.client.status(first.task_id) is None


async def test_what_it_enqueues(app: nq.App) -> None:
    """What the handler enqueues is in the client that it was given, and in no other test's."""

    @app.task(name="signup")
    async def signup(ctx: nq.TaskContext, email: str) -> None:
        await ctx.client.enqueue("send_welcome", email=email)
        async with ctx.transaction() as tx:
            await tx.enqueue("send_tour", email=email)

    client = nq.Client(MemoryStore())
    await performing(client=client)(signup, "a@b.c")
    await perform(signup, "d@e.f")

    assert [task.task_type for task in await client.list_tasks()] == ["send_tour", "send_welcome"]


@pytest.mark.parametrize("fails", [False, True])
async def test_a_transactional_handler(app: nq.App, fails: bool) -> None:
    """What it does in `ctx.tx` is committed when it returns, rolled back when it raises."""

    @app.task(transactional=True)
    async def write(ctx: nq.TaskContext) -> None:
        await ctx.tx.enqueue("child")
        if fails:
            raise ValueError

    client = nq.Client(MemoryStore())
    if fails:
        with pytest.raises(ValueError, match=r"^$"):
            await performing(client=client)(write)
    else:
        await performing(client=client)(write)

    assert len(await client.list_tasks()) == (0 if fails else 1)


async def test_on_postgres(virtual_time: VirtualTime, app: nq.App, migrated: str) -> None:
    """With a client of a database, a transactional handler's statements run there."""

    @app.task(transactional=True)
    async def write(ctx: nq.TaskContext) -> list[object]:
        await ctx.tx.enqueue("child")
        cursor = await ctx.tx.execute("select nursery_queue.now()")
        return list(await cursor.fetchone())

    async with nq.connect(migrated) as client:
        (now,) = await performing(client=client)(write)
        tasks = await client.list_tasks()

    assert [task.task_type for task in tasks] == ["child"]
    assert now == virtual_time.now().isoformat()


# -- after the handler ---------------------------------------------------------------------


@pytest.mark.parametrize("asyncio", [False, True])
async def test_what_is_called_afterwards(
    virtual_time: VirtualTime, app: nq.App, asyncio: bool
) -> None:
    """What `ctx.after` and `ctx.tx.after` were given is called, and awaited, after a success."""
    called: list[str] = []
    client = nq.Client(MemoryStore())

    async def call(text: str) -> None:
        await trio.sleep(5)
        called.append(text)

    @app.task(asyncio=asyncio)
    async def work(ctx: nq.TaskContext, error: bool) -> str:
        ctx.after(call, "after")
        if error:
            raise ValueError
        return f"called so far: {called}"

    @app.task(transactional=True)
    async def write(ctx: nq.TaskContext) -> None:
        ctx.after(call, "ctx")
        ctx.tx.after(call, "tx")

    with pytest.raises(ValueError):  # noqa: PT011  # there is no text in it
        await performing(client=client)(work, error=True)
    assert called == []
    assert await performing(client=client)(work, error=False) == "called so far: []"
    assert called == ["after"]
    await performing(client=client)(write)
    assert sorted(called) == ["after", "ctx", "tx"]
    assert client.callbacks == nq.CallbackCounts(finished=3)
