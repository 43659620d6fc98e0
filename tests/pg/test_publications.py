"""A database whose tables are published, as for logical replication or change data capture."""

from __future__ import annotations

import pytest

import nursery_queue as nq

from tests.pg.queries import Session
from tests.support.waits import eventually
from tests.support.workers import working


@pytest.mark.timeout(60)
async def test_tasks_run_where_all_tables_are_published(
    app: nq.App, pg: nq.Client, session: Session
) -> None:
    """A publication of all tables keeps no row from moving on, nor from being deleted."""
    session.execute("create publication everything for all tables")
    session.commit()

    @app.task(name="known", keep_for=0)
    async def known(ctx: nq.TaskContext) -> None:
        await ctx.stream().write("here")

    async def parked() -> bool:
        return session.execute("select count(*) from nursery_queue.parked").fetchall() == [(1,)]

    async def is_gone(task: nq.TaskRef) -> bool:
        return await pg.status(task) is None

    async with working(nq.Worker(app, pg)):
        ref = await pg.enqueue("new")
        await eventually(parked)
        session.rollback()

        @app.task(name="new")
        async def new() -> str:
            return "run"

    async with working(nq.Worker(app, pg)):
        assert await pg.result(ref) == "run"
        gone = await pg.enqueue(known.options(run_after=0.05))
        await eventually(lambda: is_gone(gone))


def test_each_row_can_be_told_from_the_others(session: Session) -> None:
    """Every table has a replica identity, by which a subscriber finds a row that was deleted."""
    without = session.execute(
        "select relname from pg_class"
        " where relnamespace = 'nursery_queue'::regnamespace and relkind = 'r'"
        " and not exists (select from pg_index where indrelid = pg_class.oid"
        "                 and (indisreplident or relreplident = 'd' and indisprimary))"
    )
    assert without.fetchall() == []
