"""Handlers whose writes commit with their success, on PostgreSQL."""

from __future__ import annotations

import contextlib

import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue._psycopg._connection import Connection
from tests.support.waits import eventually
from tests.support.workers import final, outcomes, state, working


async def notes(db: Connection) -> list[str]:
    return [body for (body,) in await db.fetch("select body from note order by body")]


WRITE = "insert into note (body) values (%s)"


async def test_writes_and_completion_commit_together(
    app: nq.App, pg: nq.Client, db: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """The writes, the tasks enqueued and the success become visible in one instant."""
    written, go = trio.Event(), trio.Event()

    @app.task(transactional=True)
    async def write(ctx: nq.TaskContext, body: str) -> str:
        await ctx.tx.execute(WRITE, [body])
        await ctx.tx.enqueue("child")
        written.set()
        await go.wait()
        return "written"

    ref = await pg.enqueue(write, "a")
    async with working(nq.Worker(app, pg)):
        await written.wait()
        assert await notes(db) == []
        assert (await pg.stats()).unknown_task_types == {}
        go.set()
        status = await final(pg, ref)

    assert (status.state, status.result) == ("succeeded", "written")
    assert await notes(db) == ["a"]
    assert (await pg.list_tasks(task_type="child"))[0].state == "ready"
    assert await outcomes(pg, ref) == ["succeeded"]
    ((same,),) = await db.fetch(
        "select task.xmin = finished.xmin from nursery_queue.task, nursery_queue.finished "
        "where task.task_type = 'child'"
    )
    assert same
    assert caplog.records == []  # a second settlement would be refused, and logged


async def test_an_error_rolls_back(app: nq.App, pg: nq.Client, db: Connection) -> None:
    """What failed attempts wrote vanishes; what the good one wrote is there once."""

    @app.task(transactional=True, retry=nq.RetryPolicy(initial=0.01))
    async def write(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute(WRITE, ["a"])
        if ctx.attempt < 3:
            raise ValueError

    ref = await pg.enqueue(write)
    async with working(nq.Worker(app, pg)):
        await final(pg, ref)

    assert await notes(db) == ["a"]
    assert await outcomes(pg, ref) == ["failed", "failed", "succeeded"]


async def test_a_failed_statement_that_was_swallowed(
    app: nq.App, pg: nq.Client, db: Connection
) -> None:
    """A handler that hides a failed statement has not succeeded: nothing could be committed."""

    @app.task(transactional=True, retry=None)
    async def write(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute(WRITE, ["a"])
        with pytest.raises(psycopg.errors.UndefinedTable):
            await ctx.tx.execute("select * from nowhere")

    ref = await pg.enqueue(write)
    async with working(nq.Worker(app, pg)):
        assert (await final(pg, ref)).state == "failed"

    assert await notes(db) == []


async def test_a_cancel_rolls_back(app: nq.App, pg: nq.Client, db: Connection) -> None:
    """What a cancelled attempt wrote vanishes."""
    written = trio.Event()

    @app.task(transactional=True)
    async def write(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute(WRITE, ["a"])
        written.set()
        await ctx.tx.execute("select pg_sleep(60)")

    ref = await pg.enqueue(write)
    async with working(nq.Worker(app, pg)):
        await written.wait()
        await pg.cancel(ref)
        assert (await final(pg, ref)).state == "cancelled"

    assert await notes(db) == []
    assert await outcomes(pg, ref) == ["cancelled"]


async def test_a_handler_that_returns_although_cancelled_commits(
    app: nq.App, pg: nq.Client, db: Connection
) -> None:
    """It has done its work: neither its settlement nor its commit is cancelled with it."""
    running = trio.Event()

    @app.task(name="write", transactional=True, retry=None)
    async def write(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute(WRITE, ["a"])
        running.set()
        with contextlib.suppress(trio.Cancelled):
            await trio.sleep_forever()

    ref = await pg.enqueue(write)
    async with working(nq.Worker(app, pg)):
        await running.wait()
        await pg.cancel(ref)
        await final(pg, ref)

    assert await outcomes(pg, ref) == ["succeeded"]
    assert await notes(db) == ["a"]


async def test_a_stale_claim_cannot_commit(
    app: nq.App, pg: nq.Client, db: Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its claim an attempt's writes vanish, and the task is settled by the new holder."""
    written, go = trio.Event(), trio.Event()
    bodies = iter("ab")

    @app.task(transactional=True, name="write")
    async def write(ctx: nq.TaskContext) -> str:
        body = next(bodies)
        await ctx.tx.execute(WRITE, [body])
        if body == "a":
            written.set()
            await go.wait()
        return body

    ref = await pg.enqueue(write)
    async with working(nq.Worker(app, pg, heartbeat=60, lease=600)) as _:
        await written.wait()
        # As a sweep would, were this worker dead.
        await db.execute(
            "with gone as (delete from nursery_queue.running returning *)"
            " insert into nursery_queue.ready (task_id, queue, priority, task_type, epoch)"
            " select task_id, 'default', 0, 'write', epoch from gone"
        )
        await nq.Worker(app, pg).run_until_idle()
        go.set()
        await eventually(lambda: _logged(caplog, "lost the claim"))

    assert await notes(db) == ["b"]
    status = await pg.status(ref)
    assert status is not None
    assert (status.state, status.result) == ("succeeded", "b")
    assert await outcomes(pg, ref) == ["succeeded"]


async def _logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in record.message for record in caplog.records)


async def test_no_transaction_until_asked(app: nq.App, pg: nq.Client, db: Connection) -> None:
    """No transaction is open while the handler has not used `ctx.tx`, nor when it never does."""
    running, go = trio.Event(), trio.Event()

    @app.task(transactional=True)
    async def patient(ctx: nq.TaskContext) -> str:
        assert not ctx.tx.is_open
        running.set()
        await go.wait()
        return "unused"

    ref = await pg.enqueue(patient)
    async with working(nq.Worker(app, pg)):
        await running.wait()
        rows = await db.fetch(
            "select query from pg_stat_activity where datname = current_database()"
            " and pid <> pg_backend_pid() and state like 'idle in transaction%'"
        )
        assert rows == []
        go.set()
        assert (await final(pg, ref)).result == "unused"


async def test_a_commit_that_fails(app: nq.App, pg: nq.Client, db: Connection) -> None:
    """A constraint checked at COMMIT fails the attempt: nothing is written, the error is stored."""
    await db.execute(WRITE, ["a"])

    @app.task(transactional=True, retry=None)
    async def write(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute(WRITE, ["a"])

    ref = await pg.enqueue(write)
    async with working(nq.Worker(app, pg)):
        status = await final(pg, ref)

    assert status.state == "failed"
    assert "UniqueViolation" in (status.error_type or "")
    assert await notes(db) == ["a"]
    assert await outcomes(pg, ref) == ["failed"]


async def test_a_result_that_is_not_json_rolls_back(
    app: nq.App, pg: nq.Client, db: Connection
) -> None:
    """A result that cannot be stored takes the writes with it."""

    @app.task(transactional=True)
    async def write(ctx: nq.TaskContext) -> object:
        await ctx.tx.execute(WRITE, ["a"])
        return object()

    ref = await pg.enqueue(write)
    await nq.Worker(app, pg).run_until_idle()

    assert await state(pg, ref) == "failed"
    assert await notes(db) == []


async def test_a_transaction_of_its_own(app: nq.App, pg: nq.Client, db: Connection) -> None:
    """`ctx.transaction()` commits at the end of its block, whatever becomes of the attempt."""

    @app.task(retry=None)
    async def write(ctx: nq.TaskContext) -> None:
        async with ctx.transaction() as tx:
            await tx.execute(WRITE, ["a"])
        with pytest.raises(nq.TransactionEnded):
            await tx.execute(WRITE, ["b"])
        async with ctx.transaction() as tx:
            await tx.execute(WRITE, ["c"])
            raise ValueError

    ref = await pg.enqueue(write)
    await nq.Worker(app, pg).run_until_idle()

    assert await state(pg, ref) == "failed"
    assert await notes(db) == ["a"]


async def test_another_transaction_in_the_way(app: nq.App, pg: nq.Client, migrated: str) -> None:
    """While somebody's transaction holds one task, the worker settles all the others."""
    running, go = trio.Event(), trio.Event()

    @app.task(name="wait")
    async def wait() -> None:
        running.set()
        await go.wait()

    @app.task(name="quick")
    async def quick() -> None:
        pass

    ref = await pg.enqueue(wait)
    async with nq.connect(migrated) as other, working(nq.Worker(app, pg, concurrency=2)):
        await running.wait()
        async with other.transaction() as tx:
            await tx.cancel(ref, running=False)
            go.set()
            for _ in range(20):
                await final(pg, await pg.enqueue(quick), within=5)
            assert await state(pg, ref) == "running"
        assert (await final(pg, ref)).state == "succeeded"
