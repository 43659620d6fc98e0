"""What there is to measure. Each scenario begins with empty tables and ends with a check."""

from __future__ import annotations

import contextlib

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import trio

from nursery_queue._connect import connect
from nursery_queue._connect._scratch import scratch
from nursery_queue._declare._task_type import TaskRequest

from ._bench_tasks import insert, nothing
from ._children import BenchFailed, Child, child
from ._figures import Measured, Row
from ._round import Plan, Progress, Round
from ._server_cpu import ServerCpu


WARM_UP = 10  # tasks before those that count, one by one, until all connections are there
PORTION = 50_000  # tasks that are enqueued at once: their list is made in one step, without a break
EFFECTS: Final = "nursery_queue.bench_effect"


async def measure(
    what: str, dsn: str, plan: Plan, rounds: int, progress: Progress, *, name: str | None = None
) -> list[Row]:
    """Measure one thing, each round in a place of its own, and return a row for each of its parts.

    *name* is that of each place, one after the other. Nothing is left on the server, whatever
    happens. Raises `BenchFailed` unless the database says that all was done.
    """
    measured: dict[str, list[Measured]] = {}
    for number in range(1, rounds + 1):

        def show(part: str, done: int, total: int, number: int = number) -> None:
            progress(f"{part}, round {number} of {rounds}", done, total)

        async with scratch(dsn, name) as place:
            ((pid, database),) = await place.ask("select pg_backend_pid(), current_database()")
            server = ServerCpu.of_backend(pid, database)
            for each in await SCENARIOS[what](Round(place, plan, show, server)):
                measured.setdefault(each.what, []).append(each)
    return [Row.of(each) for each in measured.values()]


async def drain(it: Round) -> list[Measured]:
    """Tasks that do nothing, enqueued before."""
    return [await _drained(it, "drain", nothing.bind)]


async def transactional(it: Round) -> list[Measured]:
    """Tasks that were enqueued before and insert a row each, through `ctx.tx`."""
    await it.place.ask(f"create table {EFFECTS} (i int primary key)")
    table = EFFECTS.replace("nursery_queue", it.place.schema)
    measured = await _drained(it, "transactional", lambda i: insert.bind(i, table))
    if (found := await it.count(EFFECTS)) != it.plan.tasks:
        raise BenchFailed(f"{it.plan.tasks} tasks have inserted a row each, and {found} are there")
    return [measured]


async def _drained(it: Round, what: str, task: Callable[[int], TaskRequest]) -> Measured:
    tasks, plan = it.plan.tasks, it.plan
    async with connect(it.place.dsn, schema=it.place.schema, instruments=()) as client:
        for first in range(0, tasks, PORTION):
            it.progress(f"{what}: enqueuing", first, tasks)
            portion = range(first, min(first + PORTION, tasks))
            await client.enqueue_many([task(i) for i in portion], copy=True)
    await it.vacuum()
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(
                child("work", it.place, concurrency=plan.concurrency, backlog=True)
            )
            for _ in range(plan.processes)
        ]
        measured = await backlog(it, what, workers)
    await it.verify(tasks)
    return measured


async def backlog(it: Round, what: str, workers: Sequence[Child]) -> Measured:
    """Let workers do what has been enqueued, until the database says that nothing is left."""
    tasks, before = it.plan.tasks, it.server_cpu()
    for worker in workers:
        await worker.tell("go")
    await it.all_started(what, workers, tasks)
    ended, after = await it.nothing_left(), it.server_cpu()
    for worker in workers:
        await worker.tell("stop")
    results = [await worker.hear("result") for worker in workers]
    begun = min(result["first"] for result in results if result["first"] is not None)
    return Measured(
        what=what,
        tasks=tasks,
        seconds=(ended - begun) / 1e9,
        worker_cpu=sum(result["cpu"] for result in results),
        server_cpu=since(before, after),
    )


async def latency(it: Round) -> list[Measured]:
    """From the commit of one task, in another process, to its start on an idle worker."""
    return [await _one_by_one(it, "latency")]


async def trickle(it: Round) -> list[Measured]:
    """What the worker uses for a task that comes alone."""
    return [await _one_by_one(it, "trickle")]


async def _one_by_one(it: Round, what: str) -> Measured:
    tasks, place = it.plan.tasks, it.place
    async with (
        child("work", place, concurrency=it.plan.concurrency, backlog=False) as worker,
        child("enqueue_slowly", place, tasks=tasks, gap=it.plan.gap, warm_up=WARM_UP) as enqueuer,
    ):
        measured = await one_by_one(it, what, worker, enqueuer)
    await it.verify(tasks + WARM_UP)
    return measured


async def one_by_one(it: Round, what: str, worker: Child, enqueuer: Child) -> Measured:
    """Have tasks enqueued, one by one, for a worker that has had those to warm up."""
    tasks = it.plan.tasks
    await it.nothing_left()
    before = it.server_cpu()
    await worker.tell("go")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(it.all_started, what, [worker], tasks, WARM_UP)
        await enqueuer.tell("go")
        enqueued: dict[str, list[int]] = await enqueuer.hear("result")
    await it.nothing_left()
    after = it.server_cpu()
    await worker.tell("stop")
    result = await worker.hear("result")
    started: dict[int, int] = dict(result["started"])

    def waits(instants: Sequence[int]) -> list[float]:
        return [(started[i] - instants[i]) / 1e6 for i in range(tasks)]

    return Measured(
        what=what,
        tasks=tasks,
        seconds=(max(started.values()) - enqueued["returned"][0]) / 1e9 + it.plan.gap,  # one each
        worker_cpu=result["cpu"],
        server_cpu=since(before, after),
        waits=waits(enqueued["returned"]) if what == "latency" else (),
        call_waits=waits(enqueued["called"]) if what == "latency" else (),
    )


async def enqueue(it: Round) -> list[Measured]:
    """One by one, all in one call, and all in one call by COPY."""
    bulk, stored, measured = it.plan.tasks, 0, list[Measured]()
    for way, tasks in (("one", max(1, bulk // 10)), ("many", bulk), ("copy", bulk)):
        what = f"enqueue {way}"
        it.progress(what, 0, tasks)
        async with child("enqueue", it.place, tasks=tasks, way=way) as enqueuer:
            before = it.server_cpu()
            await enqueuer.tell("go")
            result = await enqueuer.hear("result")
            after = it.server_cpu()
        it.progress(what, tasks, tasks)
        stored += tasks
        found = (await it.count("nursery_queue.task"), await it.count("nursery_queue.ready"))
        if found != (stored, stored):
            raise BenchFailed(
                f"of {stored} tasks, the database has {found[0]}, and {found[1]} are ready."
                " There are no figures"
            )
        measured.append(
            Measured(
                what=what,
                tasks=tasks,
                seconds=(result["ended"] - result["begun"]) / 1e9,
                worker_cpu=result["cpu"],
                server_cpu=since(before, after),
            )
        )
    return measured


async def streams(it: Round) -> list[Measured]:
    """A handler writes chunk after chunk, and another process reads them meanwhile."""
    chunks, place = it.plan.tasks, it.place
    it.progress("streams", 0, chunks)
    async with (
        child("work", place, concurrency=it.plan.concurrency, backlog=False) as worker,
        child("read", place, tasks=chunks) as reader,
    ):
        before = it.server_cpu()
        await worker.tell("go")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.hear, "nothing")  # unless it fails
            await reader.tell("go")
            read: dict[str, Any] = await reader.hear("result")
            await it.nothing_left()
            nursery.cancel_scope.cancel("it has not failed")
        after = it.server_cpu()
        await worker.tell("stop")
        result = await worker.hear("result")
    it.progress("streams", chunks, chunks)
    await it.verify(1)
    if (found := await it.count("nursery_queue.chunk")) != chunks or read["seen"] != chunks:
        raise BenchFailed(f"of {chunks} chunks {read['seen']} were read, and {found} are stored")
    begun, ended = read["written"]["begun"], read["written"]["ended"]
    both = since(before, after)
    return [
        Measured(
            what=what,
            tasks=chunks,
            seconds=(end - begun) / 1e9,
            worker_cpu=cpu,
            server_cpu=both,
        )
        for what, end, cpu in (
            ("streams write", ended, result["cpu"]),
            ("streams read", read["ended"], read["cpu"]),
        )
    ]


def since(before: float | None, after: float | None) -> float | None:
    """Return what was used in between; None: the server is not on this machine."""
    return None if before is None or after is None else after - before


SCENARIOS: Final[Mapping[str, Callable[[Round], Awaitable[list[Measured]]]]] = {
    scenario.__name__: scenario
    for scenario in (drain, latency, enqueue, transactional, streams, trickle)
}
