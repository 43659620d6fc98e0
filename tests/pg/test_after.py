"""Callbacks and the commit of PostgreSQL: where it fails, where nobody knows, and the pool."""

from __future__ import annotations

import pytest
import trio

from psycopg.errors import InFailedSqlTransaction, UniqueViolation

import nursery_queue as nq

from nursery_queue._psycopg._connection import Connection
from tests.support.proxy import Proxy


WRITE = "insert into note (body) values ('a')"


@pytest.mark.parametrize("background", [None, False, True])
@pytest.mark.parametrize("answered", [True, False])
async def test_a_commit_without_an_answer(
    db: Connection, proxy: Proxy, answered: bool, background: bool | None
) -> None:
    """Whether it was committed is not known: nothing is called, and a distinct error says so."""
    called: list[str] = []

    async def commit(client: nq.Client, after: nq.AfterCommit | None) -> None:
        async with client.transaction(after=after) as tx:
            tx.after(called.append, "a")
            await tx.execute(WRITE)
            proxy.drop_at(b"COMMIT", answered=answered)

    async with nq.connect(proxy.dsn) as client:
        with pytest.raises(nq.CommitOutcomeUnknown):
            if background is None:
                await commit(client, None)
            else:
                async with nq.AfterCommit(background=background) as after:
                    await commit(client, after)
        assert client.callbacks == nq.CallbackCounts()

    assert called == []
    assert len(await db.fetch("select from note")) == answered


@pytest.mark.parametrize("background", [None, False, True])
async def test_a_commit_that_fails(db: Connection, pg: nq.Client, background: bool | None) -> None:
    """A constraint that is checked at COMMIT rolls back, and nothing is called."""
    called: list[str] = []

    async def commit(after: nq.AfterCommit | None) -> None:
        async with pg.transaction(after=after) as tx:
            tx.after(called.append, "a")
            await tx.execute(WRITE)
            await tx.execute(WRITE)

    with pytest.raises(UniqueViolation):
        if background is None:
            await commit(None)
        else:
            async with nq.AfterCommit(background=background) as after:
                await commit(after)

    assert called == []


async def test_an_error_that_was_swallowed(pg: nq.Client) -> None:
    """A transaction in which a statement failed is not committed, and nothing is called."""
    called: list[str] = []
    with pytest.raises(InFailedSqlTransaction):
        async with pg.transaction() as tx:
            tx.after(called.append, "a")
            with pytest.raises(Exception, match="division by zero"):
                await tx.execute("select 1 / 0")

    assert called == []


async def test_the_connection_is_back_in_the_pool(migrated: str) -> None:
    """Callbacks may use the only connection of the pool, also all at once."""
    async with nq.connect(migrated, pool_size=1) as client:

        async def more(tasks: int) -> None:
            async with client.transaction() as tx:
                await tx.enqueue("work")
                if tasks:
                    tx.after(more, tasks - 1)

        async with client.transaction() as tx:
            for _ in range(20):
                tx.after(more, 1)
        stats = await client.stats()

    assert stats.backlog == 40
    assert client.callbacks == nq.CallbackCounts(finished=40)


async def test_the_callers_cancellation_after_the_commit(pg: nq.Client, db: Connection) -> None:
    """A commit that is under way is made, and then nothing is called for who was cancelled."""
    called: list[str] = []
    with trio.CancelScope() as scope:
        async with pg.transaction() as tx:
            tx.after(called.append, "a")
            await tx.execute(WRITE)
            scope.cancel()

    assert len(await db.fetch("select from note")) == 1
    assert called == []
    assert pg.callbacks == nq.CallbackCounts(cancelled=1)


@pytest.mark.parametrize("answered", [True, False])
async def test_a_handlers_commit_without_an_answer(
    app: nq.App, db: Connection, proxy: Proxy, answered: bool
) -> None:
    """A handler's commit without an answer is looked up, and its callbacks go by what is found."""
    called: list[int] = []

    @app.task(transactional=True, retry=None)
    async def work(ctx: nq.TaskContext) -> None:
        ctx.after(called.append, 1)
        await ctx.tx.execute(WRITE)
        proxy.drop_at(b"COMMIT", answered=answered)

    async with nq.connect(proxy.dsn) as client:
        ref = await client.enqueue(work)
        await nq.Worker(app, client).run_until_idle()
        status = await client.status(ref)

    assert status is not None
    assert (status.state, status.attempt) == (("succeeded", 1) if answered else ("scheduled", 0))
    assert len(await db.fetch("select from note")) == answered
    assert called == ([1] if answered else [])
