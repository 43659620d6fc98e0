"""Infinity, which trio's users write for "no limit", is one wherever a time limit is taken."""

from __future__ import annotations

import math

import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from tests.support.workers import final, working


async def test_infinity_is_no_limit(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """A task, a wait for its result, a worker's grace and callbacks may take as long as they do."""

    @app.task(name="long", timeout=math.inf)
    async def long(ctx: nq.TaskContext) -> float:
        await trio.sleep(80_000)
        return ctx.deadline == math.inf

    refs = [await client.enqueue(long), await client.enqueue(long.options(timeout=math.inf))]
    async with working(nq.Worker(app, client, grace=math.inf)):
        await trio.sleep(1)
    async with nq.AfterCommit(timeout=math.inf) as after:
        await after.aclose(grace=math.inf)

    assert [await client.result(ref, timeout=math.inf) for ref in refs] == [True, True]
    assert nq.Worker(app, client, grace=math.inf).budget() == math.inf


@pytest.mark.parametrize("bad", [-math.inf, math.nan, -1])
async def test_other_numbers_are_refused(client: nq.Client, bad: float) -> None:
    """What is no time limit is refused at the call."""
    ref = await client.enqueue("nobody knows")

    with pytest.raises(ValueError, match="timeout must be"):
        await client.result(ref, timeout=bad)


async def test_a_first_wait_alone(
    autojump_clock: MockClock, app: nq.App, client: nq.Client
) -> None:
    """A policy that only says its first wait waits for so long."""

    @app.task(name="fail", retry=nq.RetryPolicy(max_attempts=2, initial=600, jitter=0))
    async def fail() -> None:
        raise ValueError

    ref = await client.enqueue(fail)
    async with working(nq.Worker(app, client)):
        await final(client, ref, within=1000)

    assert trio.current_time() == pytest.approx(600, abs=1)


async def test_a_first_wait_from_sql(app: nq.App, pg: nq.Client) -> None:
    """In plain SQL, too, the maximum of a backoff may be left out, and not be too small."""
    app.task(name="fail")(lambda: 1 / 0)
    async with pg.transaction() as tx:
        await tx.execute(
            """insert into nursery_queue.task (task_type, params, backoff)
               values ('fail', '{}', '{"initial": 600}'), ('fail', '{}', '{"factor": 3}')"""
        )
    await nq.Worker(app, pg).run_until_idle()
    tasks = await pg.list_tasks(task_type="fail")

    assert [str(task.state) for task in tasks] == ["scheduled"] * 2
    later = max((task.run_at - task.created_at).total_seconds() for task in tasks)
    assert 300 <= later < 700
    with pytest.raises(Exception, match="task_backoff_check"):
        async with pg.transaction() as tx:
            await tx.execute(
                """insert into nursery_queue.task (task_type, params, backoff)
                   values ('fail', '{}', '{"initial": 600, "maximum": 60}')"""
            )
