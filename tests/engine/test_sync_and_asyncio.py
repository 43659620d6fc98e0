"""Handlers that are plain functions, and handlers that need asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import signal
import threading
import weakref

from collections.abc import AsyncGenerator

import pytest
import trio
import trio.testing

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.workers import Longest, final, outcomes, state, working


# -- threads ---------------------------------------------------------------------------------


async def test_a_function_runs_in_a_thread(app: nq.App, client: nq.Client) -> None:
    """A `def` handler runs in another thread, with the context's plain fields; errors count."""
    threads: list[threading.Thread] = []

    @app.task(retry=None)
    def convert(ctx: nq.TaskContext, value: int) -> list[int]:
        threads.append(threading.current_thread())
        assert ctx.cancel_reason is None
        return [ctx.attempt, ctx.task_id, value // ctx.params["value"]]

    good, bad = await client.enqueue(convert, 7), await client.enqueue(convert, 0)
    await nq.Worker(app, client).run_until_idle()

    assert await client.result(good) == [1, good.id, 1]
    with pytest.raises(nq.TaskFailed, match="ZeroDivisionError"):
        await client.result(bad)
    assert threading.main_thread() not in threads


async def test_what_a_function_raises(app: nq.App, client: nq.Client) -> None:
    """`DoNotRetry`, `Snooze`, `SystemExit` and a stray `StopIteration` work from a thread, too."""
    errors: list[BaseException] = [nq.DoNotRetry(), nq.Snooze(60), SystemExit(3), StopIteration()]

    @app.task(retry=None)
    def fail(which: int) -> None:
        raise errors[which]

    refs = [await client.enqueue(fail, n) for n in range(len(errors))]
    await nq.Worker(app, client).run_until_idle()

    assert [await outcomes(client, ref) for ref in refs] == [
        ["failed"],
        ["snoozed"],
        ["failed"],
        ["failed"],
    ]


async def test_a_thread_cannot_be_stopped(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """A time limit is recorded although the thread goes on; it learns the reason if it asks."""
    started, go, ended = threading.Event(), threading.Event(), threading.Event()
    reasons: list[object] = []

    @app.task(timeout=60, retry=None)
    def endless(ctx: nq.TaskContext) -> None:
        started.set()
        go.wait(30)
        reasons.append(ctx.cancel_reason)
        try:
            trio.from_thread.check_cancelled()
        except trio.Cancelled:
            reasons.append("told")
            raise
        finally:
            ended.set()

    ref = await client.enqueue(endless)
    async with working(nq.Worker(app, client, lease=1000)):
        await trio.to_thread.run_sync(started.wait)
        virtual_time.advance(60)  # by itself it would wait for the thread
        assert (await final(client, ref)).error_type == "TimedOut"
        assert not ended.is_set()
        go.set()
        await trio.to_thread.run_sync(ended.wait)
        assert reasons == [nq.CancelReason.TIMED_OUT, "told"]
    assert await outcomes(client, ref) == ["timed_out"]


async def test_threads_are_bounded(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """At most `concurrency` threads run at once, those that were given up included."""
    lock, go = threading.Lock(), threading.Event()
    running, most = 0, 0

    @app.task(timeout=60, retry=None)
    def slow() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go.wait(30)
        with lock:
            running -= 1

    refs = [await client.enqueue(slow) for _ in range(9)]
    async with working(nq.Worker(app, client, concurrency=3, lease=1000)):
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked(0.02)
            virtual_time.advance(60)
        assert [await outcomes(client, ref) for ref in refs] == [["timed_out"]] * 3 + [[]] * 6
        go.set()
        with virtual_time.hold():  # threads end in real time, however busy the machine is
            for ref in refs[3:]:
                assert (await final(client, ref)).state == "succeeded"

    assert most == 3

    with virtual_time.hold():
        while running:
            await trio.lowlevel.checkpoint()


# -- asyncio -------------------------------------------------------------------------------


async def test_an_asyncio_handler(app: nq.App, client: nq.Client) -> None:
    """Everything of asyncio works: futures, time limits, task groups, threads."""

    @app.task(asyncio=True)
    async def everything(ctx: nq.TaskContext, value: int) -> list[object]:
        async def double(n: int) -> int:
            await asyncio.sleep(0)
            return 2 * n

        async with asyncio.TaskGroup() as group:
            children = [group.create_task(double(n)) for n in range(3)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await asyncio.sleep(60)
        name = await asyncio.to_thread(lambda: threading.current_thread().name)
        assert name != threading.main_thread().name
        gathered = await asyncio.gather(double(5), asyncio.sleep(0, value))
        return [ctx.attempt, [child.result() for child in children], gathered]

    ref = await client.enqueue(everything, 7)
    await nq.Worker(app, client).run_until_idle()

    assert await client.result(ref) == [1, [0, 2, 4], [10, 7]]


@pytest.mark.parametrize("cause", ["timed_out", "cancelled", "interrupted"])
async def test_cancellation_crosses_the_border(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, cause: str
) -> None:
    """Time limits, cancels and shutdowns arrive as `CancelledError`, and it may clean up."""
    seen: list[object] = []

    @app.task(asyncio=True, timeout=5, retry=None)
    async def hang(ctx: nq.TaskContext) -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            seen.append(ctx.cancel_reason)
            await asyncio.sleep(0.5)
            seen.append("clean")
            raise

    ref = await client.enqueue(hang)
    async with working(nq.Worker(app, client, grace=0)):
        await trio.sleep(1)
        if cause == "cancelled":
            await client.cancel(ref)
        await trio.sleep(5 if cause != "interrupted" else 0)

    expected = {"interrupted": "shutdown"}.get(cause, cause)
    assert [str(each) for each in seen] == [expected, "clean"]
    assert await outcomes(client, ref) == [cause]


async def test_an_error_while_being_cancelled(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """What an asyncio handler raises in its clean-up is stored with the reason."""

    @app.task(asyncio=True, timeout=5, retry=None)
    async def messy() -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            raise ValueError("in the clean-up")

    ref = await client.enqueue(messy)
    await nq.Worker(app, client).run_until_idle()
    (attempt,) = await client.attempts(ref)

    assert (str(attempt.outcome), attempt.error_message) == ("timed_out", "in the clean-up")


@pytest.mark.parametrize("clean_up", [0, 3])
async def test_background_tasks_end_with_the_attempt(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, clean_up: float
) -> None:
    """What a handler leaves running is cancelled, and awaited before the attempt is settled."""
    events: list[str] = []

    @app.task(asyncio=True)
    async def careless() -> str:
        async def background() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                await asyncio.sleep(clean_up)
                events.append(f"ended {trio.current_time():g}")

        tasks.append(asyncio.create_task(background()))
        await asyncio.sleep(1)
        return "done"

    tasks: list[asyncio.Task[None]] = []
    ref = await client.enqueue(careless)
    async with working(nq.Worker(app, client)):
        assert await client.result(ref) == "done"
        assert events == [f"ended {1 + clean_up}"]


async def test_background_tasks_do_not_survive_the_time_limit(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """Also when the limit comes while they clean up, nothing of them is left running."""
    events: list[str] = []

    @app.task(asyncio=True, timeout=2, retry=None)
    async def careless() -> None:
        async def background() -> None:
            try:
                await asyncio.sleep(1000)
            finally:
                for _ in range(4):
                    try:
                        await asyncio.sleep(1)
                    except asyncio.CancelledError:
                        events.append("cancelled again")
                events.append("ended")

        tasks.append(asyncio.create_task(background()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    ref = await client.enqueue(careless)
    async with working(nq.Worker(app, client)):
        assert (await final(client, ref)).state == "failed"
        assert events[-1] == "ended"
        assert all(task.done() for task in tasks)
    assert await outcomes(client, ref) == ["timed_out"]


@pytest.mark.parametrize("how", ["task", "callback"])
async def test_errors_in_the_background_are_the_attempts(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, how: str
) -> None:
    """An error nobody awaited fails the attempt it belongs to, and no other."""

    @app.task(name="careless", asyncio=True, retry=None)
    async def careless() -> str:
        def fail() -> None:
            raise ValueError("behind your back")

        async def fail_later() -> None:
            fail()

        if how == "task":
            tasks.append(asyncio.create_task(fail_later()))
        else:
            asyncio.get_running_loop().call_soon(fail)
        await asyncio.sleep(1)
        return "fine, as far as I know"

    @app.task(name="fine", asyncio=True)
    async def fine() -> str:
        await asyncio.sleep(2)
        return "fine"

    tasks: list[asyncio.Task[None]] = []
    bad, good = await client.enqueue(careless), await client.enqueue(fine)
    await nq.Worker(app, client).run_until_idle()

    with pytest.raises(nq.TaskFailed, match="ValueError: behind your back"):
        await client.result(bad)
    assert await client.result(good) == "fine"


async def test_errors_that_were_handled(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """Errors of child tasks that the handler has dealt with are not charged to it."""

    @app.task(asyncio=True, retry=None)
    async def careful() -> int:
        async def fail() -> None:
            raise ValueError

        with pytest.raises(ValueError, match=r"^$"):
            await asyncio.create_task(fail())
        results = await asyncio.gather(fail(), fail(), return_exceptions=True)
        return len(results)

    ref = await client.enqueue(careful)
    await nq.Worker(app, client).run_until_idle()

    assert await client.result(ref) == 2


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, ValueError, BaseException])
@pytest.mark.parametrize("where", ["handler", "child"])
async def test_what_it_raises_does_not_hurt_the_worker(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    error: type[BaseException],
    where: str,
) -> None:
    """Whatever an asyncio handler raises is its own failure; other handlers do not notice."""

    @app.task(name="raise", asyncio=True, retry=None)
    async def raises() -> None:
        async def fail() -> None:
            raise error

        await (asyncio.create_task(fail()) if where == "child" else fail())

    @app.task(name="fine", asyncio=True)
    async def fine() -> str:
        await asyncio.sleep(2)
        return "fine"

    bad, good = await client.enqueue(raises), await client.enqueue(fine)
    async with working(nq.Worker(app, client, rng=Longest())):
        assert await client.result(good) == "fine"
        assert await client.result(await client.enqueue(fine)) == "fine"
        assert await state(client, bad) == "failed"
    assert len(await outcomes(client, bad)) == 1


async def test_declared_too_late(autojump_clock: MockClock, app: nq.App, client: nq.Client) -> None:
    """An asyncio task type declared while the worker runs fails, and says what to do."""
    async with working(nq.Worker(app, client)):

        @app.task(asyncio=True, retry=None)
        async def late() -> None: ...

        status = await final(client, await client.enqueue(late))

    assert "declared after the worker had started" in str(status.error)


@pytest.mark.parametrize("how", ["commands", "shared executor", "task factory", "errors"])
async def test_the_loop_belongs_to_all(app: nq.App, client: nq.Client, how: str) -> None:
    """A handler cannot end the loop or its threads for the others, nor change what it does."""

    @app.task(asyncio=True, retry=None)
    async def selfish() -> None:
        loop = asyncio.get_running_loop()
        if how == "commands":
            loop.stop()
        elif how == "task factory":
            loop.set_task_factory(None)
        elif how == "errors":
            loop.set_exception_handler(None)
        else:
            await loop.shutdown_default_executor()

    @app.task(asyncio=True, retry=None)
    async def fine() -> int:
        return await asyncio.to_thread(int, "42")

    bad = await client.enqueue(selfish)
    async with working(nq.Worker(app, client)):
        assert "shared by all handlers" in str((await final(client, bad)).error)
        assert await client.result(await client.enqueue(fine)) == 42


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
async def test_a_callback_that_exits(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, error: type[BaseException]
) -> None:
    """What a callback raises fails the attempt that asked for it, and ends nothing else."""

    def leave() -> None:
        raise error

    @app.task(name="exits", asyncio=True, retry=None)
    async def exits() -> None:
        asyncio.get_running_loop().call_later(1, leave)
        await asyncio.sleep(2)

    @app.task(name="fine", asyncio=True)
    async def fine() -> str:
        await asyncio.sleep(3)
        return "fine"

    bad, good = await client.enqueue(exits), await client.enqueue(fine)
    await nq.Worker(app, client).run_until_idle()

    assert await client.result(good) == "fine"
    with pytest.raises(nq.TaskFailed, match=error.__name__):
        await client.result(bad)


class Unspeakable:
    def __repr__(self) -> str:
        raise KeyboardInterrupt


async def test_a_callback_that_cannot_be_described(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """Not even what fails while its error is reported ends the loop."""

    def fail(_: object) -> None:
        raise ValueError("no")

    @app.task(name="bad", asyncio=True, retry=None)
    async def bad() -> None:
        asyncio.get_running_loop().call_soon(fail, Unspeakable())
        await asyncio.sleep(1)

    ref = await client.enqueue(bad)
    await nq.Worker(app, client).run_until_idle()

    assert await state(client, ref) == "failed"


async def test_a_signal_that_a_handler_has_asked_for(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """It is the attempt's while that lasts, and then its owner's again."""

    @app.task(asyncio=True, retry=None)
    async def listens() -> str:
        heard = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.set)
        signal.raise_signal(signal.SIGUSR1)
        await heard.wait()
        return "heard"

    before = signal.getsignal(signal.SIGUSR1)
    ref = await client.enqueue(listens)
    async with working(nq.Worker(app, client)):
        assert await client.result(ref) == "heard"
        assert signal.getsignal(signal.SIGUSR1) is before


async def test_a_callback_after_the_end(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that comes when the attempt it belongs to has ended is logged."""

    def fail() -> None:
        raise ValueError("too late")

    @app.task(name="hasty", asyncio=True)
    async def hasty() -> None:
        asyncio.get_running_loop().call_later(1, fail)

    @app.task(name="slow", asyncio=True)
    async def slow() -> None:
        await asyncio.sleep(2)

    refs = [await client.enqueue(hasty), await client.enqueue(slow)]
    await nq.Worker(app, client).run_until_idle()

    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 2
    assert "ValueError: too late" in caplog.text


async def test_a_generator_that_somebody_else_finds(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, caplog: pytest.LogCaptureFixture
) -> None:
    """What a generator raises that is closed as garbage is not charged to who collected it."""

    @app.task(name="careless", asyncio=True)
    async def careless() -> None:
        async def numbers() -> AsyncGenerator[int]:
            try:
                yield 1
            finally:
                raise ValueError("in the clean-up")

        generator = numbers()
        await anext(generator)
        cycle: list[object] = [generator]
        cycle.append(cycle)

    @app.task(name="tidy", asyncio=True, retry=None)
    async def tidy() -> None:
        gc.collect()
        await asyncio.sleep(1)

    gc.disable()
    try:
        refs = [await client.enqueue(careless), await client.enqueue(tidy)]
        await nq.Worker(app, client, concurrency=1).run_until_idle()
    finally:
        gc.enable()

    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 2
    gc.collect()
    assert "ValueError: in the clean-up" in caplog.text


class Page:
    pass


async def test_the_memory_of_a_handler_with_many_tasks(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """What its tasks have returned is let go of when the handler has done so."""
    pages = weakref.WeakSet[Page]()

    @app.task(asyncio=True)
    async def crawl() -> int:
        async def fetch() -> Page:
            await asyncio.sleep(0)
            pages.add(page := Page())
            return page

        for _ in range(100):
            await asyncio.gather(*(fetch() for _ in range(5)))
        return len(pages)

    ref = await client.enqueue(crawl)
    async with working(nq.Worker(app, client)):
        assert await client.result(ref) < 100


async def test_a_server_left_running(app: nq.App, client: nq.Client) -> None:
    """Connections of a server that a handler has left end with it, which is no failure of it."""

    @app.task(asyncio=True, retry=None)
    async def careless() -> bytes:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                writer.write(await reader.readline())
                await asyncio.sleep(60)
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        line = await reader.readline()
        writer.close()
        server.close()
        return line

    ref = await client.enqueue(careless)
    await nq.Worker(app, client).run_until_idle()

    assert await client.result(ref) == "aGVsbG8K"


async def test_what_is_to_outlive_the_attempt(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """A task started in an empty context goes on after the attempt, until the worker ends."""
    events: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def forever() -> None:
        try:
            await asyncio.sleep(10_000)
        finally:
            await asyncio.sleep(1)
            events.append("cleaned up")

    @app.task(asyncio=True)
    async def opens() -> None:
        loop = asyncio.get_running_loop()
        tasks.append(loop.create_task(forever(), context=contextvars.Context()))
        await asyncio.sleep(0)

    async with working(nq.Worker(app, client)):
        await client.result(await client.enqueue(opens))
        await trio.sleep(5)
        assert not tasks[0].done()
    assert events == ["cleaned up"]


async def test_a_task_that_outlives_even_the_worker(
    autojump_clock: MockClock,
    app: nq.App,
    client: nq.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A stray task that ignores its cancellation does not keep the worker from ending."""

    async def stubborn() -> None:
        while True:
            try:
                await asyncio.sleep(10_000)
            except asyncio.CancelledError:
                if trio.current_time() > 1000:
                    raise

    @app.task(asyncio=True)
    async def opens() -> None:
        loop = asyncio.get_running_loop()
        tasks.append(loop.create_task(stubborn(), context=contextvars.Context()))
        await asyncio.sleep(0)

    tasks: list[asyncio.Task[None]] = []
    async with working(nq.Worker(app, client)):
        await client.result(await client.enqueue(opens))

    assert trio.current_time() < 20
    assert "ignore their cancellation" in caplog.text
    tasks[0]._log_destroy_pending = False  # type: ignore[attr-defined]  # as is meant here


async def test_a_thread_that_was_left_behind(app: nq.App, client: nq.Client) -> None:
    """A handler cancelled while it waits for a thread ends at once; so does the worker."""
    go = threading.Event()

    @app.task(asyncio=True, timeout=0.1, retry=None)
    async def waits() -> None:
        await asyncio.to_thread(go.wait, 60)

    ref = await client.enqueue(waits)
    with trio.fail_after(30):
        await nq.Worker(app, client).run_until_idle()
    go.set()

    assert await outcomes(client, ref) == ["timed_out"]


async def test_asyncio_elsewhere_is_left_alone(app: nq.App, client: nq.Client) -> None:
    """While the worker's loop runs, other threads have asyncio as it comes."""

    @app.task(asyncio=True)
    async def wait() -> None:
        await asyncio.sleep(0.01)

    @app.task
    def own() -> str:
        async def main() -> str:
            await asyncio.sleep(0)
            return type(asyncio.get_running_loop()).__module__

        return asyncio.run(main())

    await client.enqueue(wait)
    ref = await client.enqueue(own)
    await nq.Worker(app, client).run_until_idle()

    assert await client.result(ref) == "asyncio.unix_events"
    assert asyncio.get_running_loop.__module__ == "_asyncio"
