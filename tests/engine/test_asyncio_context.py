"""What a handler on asyncio can do with its context: everything, and it ends with the attempt."""

from __future__ import annotations

import asyncio

from collections.abc import Callable
from functools import partial

import psycopg
import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue._trio._asyncio_loop import TrioHostedLoop
from tests.support.workers import final, outcomes, state, working


async def test_the_verbs_of_the_client(app: nq.App, either: nq.Client) -> None:
    """`ctx.client` enqueues, asks, steers and reads streams on asyncio, also many at once."""

    @app.task(name="twice")
    async def twice(ctx: nq.TaskContext, number: int) -> int:
        await ctx.stream().write(number)
        return 2 * number

    @app.task(asyncio=True, retry=None)
    async def asks(ctx: nq.TaskContext) -> list[object]:
        refs = await asyncio.gather(*(ctx.client.enqueue(twice, n) for n in range(3)))
        results = await asyncio.gather(*(ctx.client.result(ref) for ref in refs))
        late = await ctx.client.enqueue(twice.options(run_after=3600), 7)
        assert await ctx.client.cancel(late)
        status = await ctx.client.status(late)
        assert status is not None
        async with ctx.client.read_stream(refs[2]) as reader:
            chunks = [chunk async for chunk in reader]
        return [results, status.state.value, chunks, ctx.client.callbacks.failed]

    async with working(nq.Worker(app, either)):
        result = await either.result(await either.enqueue(asks), timeout=20)

    assert result == [[0, 2, 4], "cancelled", [2], 0]


@pytest.mark.parametrize("how", ["commits", "raises", "rolls back"])
async def test_a_transaction_of_its_own(app: nq.App, pg: nq.Client, how: str) -> None:
    """`ctx.transaction()` commits when its block ends well, and rolls back when it raises."""

    @app.task(asyncio=True, retry=None)
    async def writes(ctx: nq.TaskContext) -> None:
        async with ctx.transaction() as tx:
            await tx.execute("create table t (n int)")
            await tx.enqueue("later", n=1)
            async with tx.savepoint():
                await asyncio.sleep(0)
                await tx.execute("insert into t values (1)")
            if how == "raises":
                raise ValueError("as asked")
            if how == "rolls back":
                raise psycopg.Rollback

    async with working(nq.Worker(app, pg)):
        status = await final(pg, await pg.enqueue(writes))

    assert status.state == ("failed" if how == "raises" else "succeeded")
    async with pg.transaction() as tx:
        (row,) = await (await tx.execute("select to_regclass('t') is null")).fetchall()
    stored = await pg.list_tasks(task_type="later")
    assert (row[0], len(stored)) == ((False, 1) if how == "commits" else (True, 0))


async def test_the_transaction_of_the_attempt(app: nq.App, pg: nq.Client) -> None:
    """With `transactional=True`, what is written in `ctx.tx` commits with the success."""

    @app.task(asyncio=True, transactional=True, retry=None)
    async def writes(ctx: nq.TaskContext, fails: bool) -> None:
        await ctx.tx.execute("select 1")
        await ctx.tx.enqueue("later", fails=fails)
        await ctx.stream().write("chunk", tx=ctx.tx)
        if fails:
            raise ValueError

    good, bad = await pg.enqueue(writes, fails=False), await pg.enqueue(writes, fails=True)
    await nq.Worker(app, pg).run_until_idle()

    later = await pg.list_tasks(task_type="later", payloads=True)
    assert [task.params for task in later] == [{"fails": False}]
    infos = [await pg.stream_info(ref) for ref in (good, bad)]
    assert [info is not None and info.length for info in infos] == [1, False]


@pytest.mark.parametrize("cause", ["cancelled", "timed_out"])
async def test_a_verb_is_cancelled_with_the_attempt(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, cause: str
) -> None:
    """A call that waits in trio ends with its attempt, and so does one left in the background."""
    ended: list[str] = []

    @app.task(asyncio=True, timeout=5, retry=None)
    async def waits(ctx: nq.TaskContext, never: int) -> None:
        async def watch() -> None:
            try:
                await ctx.client.wait(never)
            finally:
                ended.append("background")

        background = asyncio.create_task(watch())
        try:
            await ctx.client.wait(never)
        finally:
            ended.append("handler")
            assert not background.done()

    never = await client.enqueue("nobody")
    ref = await client.enqueue(waits, never.id)
    async with working(nq.Worker(app, client)):
        await trio.sleep(1)
        if cause == "cancelled":
            await client.cancel(ref)
        await final(client, ref)

    assert ended == ["handler", "background"]
    assert await outcomes(client, ref) == [cause]


async def test_a_time_limit_of_asyncio_around_a_verb(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """`asyncio.timeout` around a call of ours raises `TimeoutError`, and the handler goes on."""

    @app.task(asyncio=True, retry=None)
    async def patient(ctx: nq.TaskContext, never: int) -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await ctx.client.wait(never)
        with pytest.raises(trio.TooSlowError):
            await ctx.client.result(never, timeout=2)
        assert asyncio.get_running_loop().time() < ctx.deadline
        return f"at {asyncio.get_running_loop().time():g}"

    never = await client.enqueue("nobody")
    ref = await client.enqueue(patient, never.id)
    async with working(nq.Worker(app, client)):
        assert await client.result(ref) == "at 5"


async def test_a_time_limit_that_ends_during_a_commit(app: nq.App, pg: nq.Client) -> None:
    """A block that is cancelled while it commits has been left well, and nothing comes after."""

    @app.task(asyncio=True, retry=None)
    async def writes(ctx: nq.TaskContext) -> str:
        loop, left = asyncio.get_running_loop(), "with an error"
        async with asyncio.timeout(None) as limit:
            async with ctx.transaction() as tx:
                await tx.execute("insert into slow values (1)")
                limit.reschedule(loop.time() + 0.1)
            left = "well"
        await asyncio.sleep(0)
        return left

    async with pg.transaction() as tx:
        await tx.execute("create table slow (n int)")
        await tx.execute(
            "create function slow() returns trigger language plpgsql as"
            " 'begin perform pg_sleep(0.5); return null; end'"
        )
        await tx.execute(
            "create constraint trigger slow after insert on slow deferrable initially deferred"
            " for each row execute function slow()"
        )
    ref = await pg.enqueue(writes)
    async with working(nq.Worker(app, pg)):
        assert (await final(pg, ref)).error is None
        assert await pg.result(ref) == "well"

    async with pg.transaction() as tx:
        assert await (await tx.execute("select n from slow")).fetchall() == [(1,)]


async def test_a_call_that_succeeds_although_it_is_cancelled(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """Its result is not lost, also where it is the whole of a task of asyncio."""

    async def succeed() -> str:
        with trio.CancelScope(shield=True):
            await trio.sleep(2)
        return "done"

    @app.task(asyncio=True, retry=None)
    async def impatient() -> list[str]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, TrioHostedLoop)
        task = asyncio.create_task(loop.call_trio(succeed))
        loop.call_later(1, task.cancel)
        got = [await task, await asyncio.wait_for(loop.call_trio(succeed), 1)]
        async with asyncio.timeout(1):
            got.append(await loop.call_trio(succeed))
        await asyncio.sleep(1)
        return got

    ref = await client.enqueue(impatient)
    async with working(nq.Worker(app, client)):
        assert (await final(client, ref)).error is None
        assert await client.result(ref) == ["done"] * 3


@pytest.mark.parametrize(
    "call",
    [trio.lowlevel.checkpoint, partial(trio.sleep, 1), trio.sleep_forever, trio.Lock().acquire],
)
async def test_trio_awaited_on_asyncio(
    autojump_clock: MockClock, app: nq.App, client: nq.Client, call: Callable[[], object]
) -> None:
    """A handler that awaits a function of trio fails, is told what to do, and harms nobody."""

    @app.task(name="mixes", asyncio=True, retry=None)
    async def mixes() -> None:
        await call()  # type: ignore[misc]

    @app.task(name="fine", asyncio=True)
    async def fine() -> str:
        await asyncio.sleep(2)
        return "fine"

    bad, good = await client.enqueue(mixes), await client.enqueue(fine)
    async with working(nq.Worker(app, client)):
        assert await client.result(good) == "fine"
        assert await client.result(await client.enqueue(fine)) == "fine"
        assert await state(client, bad) == "failed"

    (attempt,) = await client.attempts(bad)
    assert "use what the handler's own TaskContext gives it" in (attempt.error_traceback or "")


async def test_the_client_itself_on_asyncio(app: nq.App, either: nq.Client) -> None:
    """A client that is not the context's fails in a handler on asyncio, with the same advice."""

    @app.task(asyncio=True, retry=None)
    async def mixes() -> None:
        await either.enqueue("later")

    ref = await either.enqueue(mixes)
    await nq.Worker(app, either).run_until_idle()

    (attempt,) = await either.attempts(ref)
    assert "use what the handler's own TaskContext gives it" in (attempt.error_traceback or "")


async def test_what_is_called_afterwards(app: nq.App, client: nq.Client) -> None:
    """`ctx.after` runs its function in trio, when the success is stored."""
    told: list[str] = []

    async def tell(text: str) -> None:
        await trio.lowlevel.checkpoint()
        told.append(text)

    @app.task(asyncio=True)
    async def announces(ctx: nq.TaskContext) -> None:
        ctx.after(tell, "done")
        assert told == []

    await client.enqueue(announces)
    await nq.Worker(app, client).run_until_idle()

    assert told == ["done"]
