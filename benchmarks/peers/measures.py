"""What is measured of each library: one function for each measure, which returns its rows."""

from __future__ import annotations

import contextlib

from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

import attrs

from benchmarks.peers.systems import OURS, Entry, Home
from nursery_queue._connect._admin import DEFAULT_SCHEMA, connected, dsn_params
from nursery_queue._connect._scratch import scratch
from nursery_queue.cli._measuring._children import BenchFailed, Child, child_of
from nursery_queue.cli._measuring._figures import Measured, percentile
from nursery_queue.cli._measuring._round import Plan, Progress, Round
from nursery_queue.cli._measuring._scenarios import WARM_UP, backlog, one_by_one, since
from nursery_queue.cli._measuring._server_cpu import ServerCpu


Row = dict[str, Any]

SLEEP = 0.001  # seconds of a handler that waits for something
SECONDS = 3.0  # of enqueuing one by one
LATENCY_GAP, TRICKLE_GAP = 0.02, 0.005  # seconds
SLOW = 10.0  # milliseconds from which on a pickup is told by itself
SAMPLES = 10
TENTHS: Final = """
    select count(*) / extract(epoch from max(finished_at) - min(finished_at))::float8
      from (select finished_at, ntile(10) over (order by finished_at) as tenth
              from nursery_queue.finished) as f
     group by tenth order by tenth
"""


def unseen(_what: str, _done: int, _total: int) -> None:
    """Show no progress: drawing takes its share of the CPU."""


@attrs.frozen(kw_only=True)
class Bench:
    """One library on a database of its own, which is empty at first."""

    what: str
    entry: Entry
    home: Home
    round: Round

    def child(self, role: str, **job: Any) -> contextlib.AbstractAsyncContextManager[Child]:
        """Start a process of its adapter."""
        place, options = self.round.place, {"sleep": 0.0, **self.entry.options}
        return child_of(
            self.home.command(self.entry.system),
            role,
            env=self.home.environ(),
            **options | {"dsn": url(place.dsn), "schema": place.schema} | job,
        )

    async def enqueue(self, way: str, *, warm_up: int = 0, **job: Any) -> Measured:
        """Have tasks enqueued in one way."""
        async with self.child("enqueue", way=way, warm_up=warm_up, **job) as enqueuer:
            before = self.round.server_cpu()
            await enqueuer.tell("go")
            result = await enqueuer.hear("result")
            after = self.round.server_cpu()
        return Measured(
            what=f"{self.what} {way}",
            tasks=result["tasks"],
            seconds=(result["ended"] - result["begun"]) / 1e9,
            worker_cpu=result["cpu"],
            server_cpu=since(before, after),
        )

    async def load(self) -> None:
        """Enqueue what is to be done, and let the server tidy up, so that this is not measured."""
        tasks = self.round.plan.tasks
        await self.enqueue("copy" if self.entry.system is OURS else "many", tasks=tasks)
        await self.stored(tasks)
        await self.round.place.ask("vacuum (analyze)")
        await self.round.place.ask("checkpoint")

    async def stored(self, tasks: int) -> None:
        """Ask the database whether so many were enqueued. Raises `BenchFailed` otherwise."""
        ((found,),) = await self.round.place.ask(self.entry.system.stored)
        if found != tasks:
            raise BenchFailed(f"of {tasks} tasks of {self.entry.system.name}, {found} are stored")

    async def verify(self, tasks: int) -> str:
        """Ask the database whether all was done; return what it can say. Raises `BenchFailed`."""
        system = self.entry.system
        if system is OURS:
            await self.round.verify(tasks)
            return "nothing left, one row a task in the log"
        if await self.round.place.ask(system.left) != [(False,)]:
            raise BenchFailed(f"of {tasks} tasks of {system.name}, some are left")
        if system.done is None:
            return "nothing left"
        ((done,),) = await self.round.place.ask(system.done)
        if done != tasks:
            raise BenchFailed(f"of {tasks} tasks of {system.name}, {done} succeeded")
        return "nothing left, all succeeded"


@attrs.frozen
class Place:
    """A server to measure on, and where the peers are."""

    dsn: str
    home: Home

    @contextlib.asynccontextmanager
    async def bench(
        self, what: str, entry: Entry, plan: Plan, progress: Progress = unseen
    ) -> AsyncGenerator[Bench]:
        """Make a database, which is gone when the block ends. Our tables are in it, for peers too.

        Theirs come beside them: ours are empty then, and cost nothing.
        """
        async with scratch(self.dsn) as place:
            if place.schema != DEFAULT_SCHEMA:
                raise BenchFailed("peers need a database each, and none could be made")
            ((pid, database),) = await place.ask("select pg_backend_pid(), current_database()")
            server = ServerCpu.of_backend(pid, database)
            it = Round(place, plan, progress, server, entry.system.left)
            bench = Bench(what=what, entry=entry, home=self.home, round=it)
            await place.ask("create table effect (i int)")
            if entry.system is not OURS:
                async with bench.child("install") as installer:
                    await installer.tell("go")
                    await installer.hear("result")
            yield bench


def url(dsn: str) -> str:
    """Return *dsn* in the one form that every driver reads."""
    params = dsn_params(dsn)
    return f"postgresql:///{params.pop('dbname')}?{urlencode(params)}"


def figures(measured: Measured) -> Row:
    """Return what is told of every measurement; CPU is microseconds a task."""
    tasks = measured.tasks
    server = measured.server_cpu
    return {
        "tasks": tasks,
        "seconds": round(measured.seconds, 3),
        "rate": round(tasks / measured.seconds, 1),
        "worker_cpu_us": round(measured.worker_cpu / tasks * 1e6, 1),
        "server_cpu_us": None if server is None else round(server / tasks * 1e6, 1),
    }


async def drained(
    bench: Bench, processes: int = 1, tell: Callable[[list[int]], None] | None = None
) -> Row:
    """Have worker processes do what is there, and check that it was done. *tell* gets their ids."""
    async with contextlib.AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(bench.child("work", backlog=True))
            for _ in range(processes)
        ]
        if tell is not None:
            tell([worker.pid for worker in workers])
        measured = await backlog(bench.round, bench.what, workers)
        peak = sum(resident(worker.pid, "VmHWM") for worker in workers)
    verified = await bench.verify(measured.tasks)
    return figures(measured) | {"rss_mb": round(peak, 1), "verified": verified}


async def drain(place: Place, entry: Entry, tasks: int) -> list[Row]:
    """Tasks that do nothing, enqueued before, one worker process."""
    async with place.bench("drain", entry, Plan(tasks=tasks)) as bench:
        await bench.load()
        return [await drained(bench)]


async def processes(place: Place, entry: Entry, tasks: int) -> list[Row]:
    """The same with two worker processes."""
    async with place.bench("processes", entry, Plan(tasks=tasks)) as bench:
        await bench.load()
        return [await drained(bench, processes=2) | {"processes": 2}]


async def transactional(place: Place, entry: Entry, tasks: int) -> list[Row]:
    """Tasks that insert a row each in the transaction that stores their success."""
    async with place.bench("transactional", entry, Plan(tasks=tasks)) as bench:
        await bench.load()
        row = await drained(bench)
        effects = await bench.round.place.ask("select count(*), count(distinct i) from effect")
        if effects != [(tasks, tasks)]:
            raise BenchFailed(f"{tasks} tasks have inserted a row each, and there are {effects}")
        return [row]


async def memory(place: Place, entry: Entry, tasks: int) -> list[Row]:
    """What the worker process has resident, in megabytes, at each tenth of the way."""
    seen, pids = dict[int, float](), list[int]()

    def sample(_what: str, done: int, total: int) -> None:
        seen.setdefault(SAMPLES * done // total, resident(pids[0], "VmRSS"))

    async with place.bench("memory", entry, Plan(tasks=tasks), sample) as bench:
        await bench.load()
        row = await drained(bench, tell=pids.extend)
    return [row | {"rss_tenths_mb": [round(seen[each], 1) for each in sorted(seen)]}]


async def snapshot(place: Place, entry: Entry, tasks: int) -> list[Row]:
    """As `drain`, with and without a transaction that keeps its snapshot all the while."""
    rows: list[Row] = []
    for held in (False, True):
        async with (
            place.bench("snapshot", entry, Plan(tasks=tasks)) as bench,
            connected(bench.round.place.dsn) as holder,
        ):
            await bench.load()
            if held:
                await holder.execute(b"begin isolation level repeatable read")
                await holder.execute(b"select count(*) from nursery_queue.queue")
            row = await drained(bench)
            if entry.system is OURS:
                tenths = [round(rate) for (rate,) in await bench.round.place.ask(TENTHS)]
                row |= {"rate_last_tenth": tenths[-1], "rate_tenths": tenths}
        settings = f"{entry.settings}, snapshot {'held' if held else 'not held'}"
        rows.append({"settings": settings, **row})
    rows[1]["kept"] = round(rows[1]["rate"] / rows[0]["rate"], 3)
    return rows


async def latency(place: Place, entry: Entry, tasks: int) -> list[Row]:
    """From the return of an enqueue in another process, and from its call, to the start."""
    async with place.bench("latency", entry, Plan(tasks=tasks, gap=LATENCY_GAP)) as bench:
        measured = await paced(bench)
    row = figures(measured)
    for prefix, waits in (("", measured.waits), ("call_", measured.call_waits)):
        ordered = sorted(waits)
        for name, percent in (("p50", 50), ("p95", 95), ("p99", 99), ("max", 100)):
            row[f"{prefix}{name}_ms"] = percentile(ordered, percent)
    pairs = enumerate(zip(measured.waits, measured.call_waits, strict=True))
    slow = [(i, round(wait, 1), round(call, 1)) for i, (wait, call) in pairs if call > SLOW]
    return [row | {"slow_ms": slow}]  # with its number, from the return and from the call


async def trickle(place: Place, entry: Entry, tasks: int) -> list[Row]:
    """What worker and server use for a task that comes alone, without that of enqueuing it."""
    plan = Plan(tasks=tasks, gap=TRICKLE_GAP)
    async with (
        place.bench("trickle", entry, plan) as bench,
        bench.child("enqueue_slowly", tasks=tasks, gap=plan.gap, warm_up=WARM_UP) as enqueuer,
    ):
        before = bench.round.server_cpu()
        await enqueuer.tell("go")
        await enqueuer.hear("result")
        alone = since(before, bench.round.server_cpu())
    async with place.bench("trickle", entry, plan) as bench:
        row = figures(await paced(bench))
    if alone is not None:
        enqueuing = round(alone / tasks * 1e6, 1)
        net = round(row["server_cpu_us"] - enqueuing, 1)
        row |= {"server_cpu_us": net, "enqueue_server_cpu_us": enqueuing}
    return [row]


async def paced(bench: Bench) -> Measured:
    """Have an idle worker, and another process that enqueues one task after the other."""
    plan = bench.round.plan
    pace = {"tasks": plan.tasks, "gap": plan.gap, "warm_up": WARM_UP}
    async with (
        bench.child("work", backlog=False) as worker,
        bench.child("enqueue_slowly", **pace) as enqueuer,
    ):
        measured = await one_by_one(bench.round, bench.what, worker, enqueuer)
    await bench.verify(plan.tasks + WARM_UP)
    return measured


async def enqueue(place: Place, entry: Entry, tasks: int) -> list[Row]:
    """One by one for a while; many in one call; twice as many by COPY, if there is that."""
    ways: list[tuple[str, int]] = [("one", 0), ("many", tasks)]
    if entry.system is OURS:
        ways.append(("copy", 2 * tasks))
    rows, stored = list[Row](), 0
    async with place.bench("enqueue", entry, Plan(tasks=tasks)) as bench:
        for way, count in ways:
            measured = await bench.enqueue(way, warm_up=WARM_UP, tasks=count, seconds=SECONDS)
            stored += measured.tasks + WARM_UP
            await bench.stored(stored)
            rows.append({"what": measured.what, **figures(measured), "verified": "stored"})
    return rows


def resident(pid: int, line: str) -> float:
    """Return what a process has resident, now or at most, in megabytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    found = next(each for each in status.splitlines() if each.startswith(f"{line}:"))
    return int(found.split()[1]) / 1024
