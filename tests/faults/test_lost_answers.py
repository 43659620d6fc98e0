"""Claims and settlements that PostgreSQL answers late, never, or into a connection that is gone."""

from __future__ import annotations

import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.faults.loops import Holding, loop_health, unwell
from tests.support.network import pass_time
from tests.support.proxy import Proxy
from tests.support.workers import Longest, outcomes, working


# What only a claim says, once the worker is registered; and what only one settlement says.
CLAIM, RESULT = b"unmistakable_type", b"unmistakable result"


@pytest.fixture
def starts(app: nq.App) -> list[float]:
    """Names the task type with the unmistakable name and result; collects when it is run."""
    times: list[float] = []

    @app.task(name=CLAIM.decode())
    async def unmistakable() -> str:
        times.append(trio.current_time())
        return RESULT.decode()

    return times


@pytest.mark.parametrize("needle", [CLAIM, RESULT], ids=["claim", "settle"])
@pytest.mark.parametrize("answered", [False, True], ids=["not applied", "applied"])
async def test_a_connection_that_dies(
    virtual_time: VirtualTime,
    app: nq.App,
    pg: nq.Client,
    proxy: Proxy,
    holding: Holding,
    starts: list[float],
    needle: bytes,
    answered: bool,
) -> None:
    """Whether or not the call had its effect, each task runs once, and soon."""
    async with nq.connect(proxy.dsn) as client:
        worker = nq.Worker(app, client, poll_interval=0, rng=Longest())
        async with working(worker):
            await pg.enqueue("hold")
            await trio.sleep(1)
            proxy.drop_at(needle, answered=answered)
            refs = await pg.enqueue_many([nq.TaskRequest.by_name(CLAIM.decode())] * 5)
            await trio.sleep(2)
            restarts = {"claimer": 0, "settler": 0}
            restarts["claimer" if needle == CLAIM else "settler"] = 1
            assert {name: loop_health(worker, name).restarts for name in restarts} == restarts
            assert (worker.health().held, holding.running, unwell(worker)) == (1, 1, set())

    assert len(starts) == 5
    assert [await outcomes(pg, ref) for ref in refs] == [["succeeded"]] * 5


@pytest.mark.parametrize("answered", [False, True], ids=["not applied", "applied"])
async def test_an_end_is_told_once(
    virtual_time: VirtualTime,
    app: nq.App,
    pg: nq.Client,
    proxy: Proxy,
    starts: list[float],
    answered: bool,
) -> None:
    """Whether or not the settlement had its effect, who is told of an end is told once."""
    told: list[tuple[int, object]] = []

    @app.task(name="told")
    async def hear(task_id: int, context: None, result: nq.Result) -> None:
        told.append((task_id, result))

    async with nq.connect(proxy.dsn) as client:
        worker = nq.Worker(app, client, poll_interval=0, rng=Longest())
        async with working(worker):
            await trio.sleep(1)
            proxy.drop_at(RESULT, answered=answered)
            request = nq.TaskRequest.by_name(CLAIM.decode(), on_complete="told")
            refs = await pg.enqueue_many([request] * 5)
            await trio.sleep(2)
            assert loop_health(worker, "settler").restarts == 1

    assert sorted(told, key=lambda each: each[0]) == [
        (ref.id, nq.Success(RESULT.decode())) for ref in refs
    ]
    assert len(await pg.list_tasks(task_type="told")) == len(starts) == 5


@pytest.mark.parametrize("needle", [CLAIM, RESULT], ids=["claim", "settle"])
@pytest.mark.parametrize("late", [False, True], ids=["never", "late"])
async def test_silence(
    virtual_time: VirtualTime,
    app: nq.App,
    pg: nq.Client,
    proxy: Proxy,
    holding: Holding,
    starts: list[float],
    needle: bytes,
    late: bool,
) -> None:
    """A call without an answer is given up, and made on another connection; a late one is not."""
    async with nq.connect(proxy.dsn) as client:
        worker = nq.Worker(app, client, poll_interval=0, rng=Longest())
        async with working(worker):
            await pg.enqueue("hold")
            await trio.sleep(1)
            proxy.blackhole_at(needle, alone=True)
            refs = await pg.enqueue_many([nq.TaskRequest.by_name(CLAIM.decode())] * 5)
            await pass_time(virtual_time, proxy, 8)
            if late:
                proxy.heal()
            await pass_time(virtual_time, proxy, 12)
            loop = "claimer" if needle == CLAIM else "settler"
            assert loop_health(worker, loop).restarts == (0 if late else 1)
            assert (worker.health().held, unwell(worker)) == (1, set())
            assert (holding.running, holding.cancelled) == (1, [])
            proxy.heal()

    assert len(starts) == 5
    assert [await outcomes(pg, ref) for ref in refs] == [["succeeded"]] * 5


async def test_a_backlog_found_at_the_start(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client
) -> None:
    """A thousand tasks found without notifications or polls fill all slots in one turn."""
    running: list[int] = [0]

    @app.task(name="slow")
    async def slow() -> None:
        running.append(running[-1] + 1)
        await trio.sleep(1)
        running.append(running[-1] - 1)

    await pg.enqueue_many([nq.TaskRequest.by_name("slow")] * 1000)
    worker = nq.Worker(app, pg, concurrency=50, listen=False, poll_interval=0, rng=Longest())
    async with working(worker):
        await trio.sleep(0.001)
        assert running == list(range(51))
        await trio.sleep(21)
        stats = await pg.stats()

    assert stats.queues["default"] == {nq.State.SUCCEEDED: 1000}
    assert max(running) == 50
