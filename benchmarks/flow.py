"""What limits, rates and keys cost a drain that they do not slow down.

    python -m benchmarks.flow [--dsn DSN] [--tasks 60000] [--keys 10000] [--each 10] [--rounds 5]

In the root of a clone. Tasks that do nothing are enqueued, then a worker begins with its defaults,
as `nursery-queue bench drain` does it; then the same in a queue with a limit or a rate that never
binds, and with keys of which each may have two running. In turns, each time in a database of its
own; nothing counts unless the database says that each task has run once. Prints medians: tasks a
second, microseconds of CPU a task, and the ratio to the drain beside it, as the median of the
ratios within rounds. Without a DSN on a server of its own, with PostgreSQL's settings.
"""

from __future__ import annotations

import argparse
import statistics
import sys

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs
import trio

import nursery_queue as nq

from benchmarks.beside_peers import server
from nursery_queue._connect._scratch import scratch
from nursery_queue.cli._measuring._bench_tasks import nothing
from nursery_queue.cli._measuring._children import child
from nursery_queue.cli._measuring._figures import Measured
from nursery_queue.cli._measuring._round import Plan, Round
from nursery_queue.cli._measuring._scenarios import backlog
from nursery_queue.cli._measuring._server_cpu import ServerCpu


PORTION = 50_000  # tasks that are enqueued at once
FAST = nq.Rate(1_000_000, per=1, burst=1_000_000)


@attrs.frozen(kw_only=True)
class Case:
    """A queue as it is set, and the keys of its tasks."""

    settings: Mapping[str, Any] = attrs.field(factory=dict[str, Any])
    keyed: bool = False
    beside: str = "plain"


CASES: Final[Mapping[str, Case]] = {
    "plain": Case(),
    "max_running=1000000": Case(settings={"max_running": 1_000_000}),
    "max_running=100": Case(settings={"max_running": 100}),
    "rate": Case(settings={"rate": FAST}),
    "keys": Case(keyed=True),
    "keys, max_running_per_key=2": Case(settings={"max_running_per_key": 2}, keyed=True),
    "keys, rate_per_key": Case(settings={"rate_per_key": FAST}, keyed=True),
}


async def drain(dsn: str, name: str, options: argparse.Namespace) -> Measured:
    """Let one worker do all tasks of a case, in a place of its own."""
    case = CASES[name]
    tasks = options.keys * options.each if case.keyed else options.tasks
    key: Callable[[int], str | None] = (
        (lambda i: str(i % options.keys)) if case.keyed else (lambda _: None)
    )
    async with scratch(dsn, None) as place:
        ((pid, database),) = await place.ask("select pg_backend_pid(), current_database()")
        cpu = ServerCpu.of_backend(pid, database)
        it = Round(place, Plan(tasks=tasks), lambda *_: None, cpu)
        async with nq.connect(place.dsn, schema=place.schema, instruments=()) as client:
            if case.settings:
                await client.configure_queue("default", **case.settings)
            for first in range(0, tasks, PORTION):
                portion = range(first, min(first + PORTION, tasks))
                await client.enqueue_many(
                    [nothing.bind(i).options(key=key(i)) for i in portion], copy=True
                )
        await it.vacuum()
        async with child("work", place, concurrency=it.plan.concurrency, backlog=True) as worker:
            measured = await backlog(it, name, [worker])
        await it.verify(tasks)
    return measured


def show(taken: Mapping[str, list[Measured]]) -> None:
    """Print a line for each case."""
    for name, rounds in taken.items():
        plain = taken[CASES[name].beside]
        rate = statistics.median(each.tasks / each.seconds for each in rounds)
        ratio = statistics.median(
            (one.tasks / one.seconds) / (two.tasks / two.seconds)
            for one, two in zip(rounds, plain, strict=True)
        )
        more = statistics.median(
            cpu_of(one) / cpu_of(two) for one, two in zip(rounds, plain, strict=True)
        )
        worker = statistics.median(each.worker_cpu / each.tasks for each in rounds) * 1e6
        both = statistics.median(map(cpu_of, rounds)) * 1e6
        print(
            f"{name:30} {rate:8.0f} tasks/s {ratio:6.2f}"
            f"   worker {worker:5.1f} + server {both - worker:5.1f} us {more - 1:+7.1%}"
        )


def cpu_of(measured: Measured) -> float:
    """Return the seconds of CPU that a task took, of worker and server."""
    return (measured.worker_cpu + (measured.server_cpu or 0)) / measured.tasks


def main() -> int:
    """Measure in turns and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dsn")
    parser.add_argument("--tasks", type=int, default=60_000)
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=10, help="tasks of each key")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=CASES, default=[*CASES])
    options = parser.parse_args()
    names = list(dict.fromkeys(["plain", *options.only]))
    taken: defaultdict[str, list[Measured]] = defaultdict(list)
    with server(options.dsn) as dsn:
        for number in range(options.rounds):
            turn = names[number % len(names) :] + names[: number % len(names)]
            for name in turn:
                taken[name].append(trio.run(drain, dsn, name, options))
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    show({name: taken[name] for name in names})
    return 0


if __name__ == "__main__":
    sys.exit(main())
