"""Which libraries are measured how, with how many tasks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import attrs

from benchmarks.peers import measures
from benchmarks.peers.measures import SLEEP, Place, Row
from benchmarks.peers.systems import GRAPHILE, OURS, PG_BOSS, PGQUEUER, PROCRASTINATE, Entry


@attrs.frozen
class Measure:
    """One thing to measure, of each entry in turn."""

    run: Callable[[Place, Entry, int], Awaitable[Sequence[Row]]]
    tasks: int
    entries: Sequence[Entry]


def ours(concurrency: int = 32, **options: object) -> Entry:
    """Return ours. 32 is the default of `nursery-queue worker`, as is all else."""
    return Entry(OURS, f"concurrency {concurrency}", {"concurrency": concurrency, **options})


def graphile(concurrency: int, **options: object) -> Entry:
    """Return Graphile Worker, fetching and completing in batches."""
    settings = {"concurrency": concurrency, "batched": True, **options}
    return Entry(GRAPHILE, f"batched, concurrency {concurrency}", settings)


def pg_boss(workers: int, batch: int, note: str = "", **options: object) -> Entry:
    """Return pg-boss: workers in the process, each with a batch."""
    settings = {"concurrency": workers, "batch": batch, **options}
    return Entry(PG_BOSS, f"{workers} x {batch}{note}", settings)


def pgqueuer(managers: int, batch: int, **options: object) -> Entry:
    """Return pgqueuer: managers in the process, each with a batch."""
    run = {"batch_size": batch, "max_concurrent_tasks": max(1000, 2 * batch)}
    settings = {"managers": managers, "options": run, **options}
    return Entry(PGQUEUER, f"{managers} x {batch}", settings)


# As they come. Graphile Worker would run one job at a time, which is no default to keep: as many as
# its pool has connections. pg-boss is not among them: it would fetch one job every two seconds.
DEFAULTS: Final = (
    ours(),
    Entry(GRAPHILE, "defaults, concurrency 10", {"concurrency": 10}, share=1 / 3),
    Entry(PGQUEUER, "defaults", {}, share=1 / 3),
    Entry(PROCRASTINATE, "defaults", {}, share=1 / 60),
)
BEST: Final = (
    ours(),
    graphile(24),
    pg_boss(4, 100),
    pgqueuer(2, 500),
    Entry(PROCRASTINATE, "concurrency 100", {"options": {"concurrency": 100}}, share=1 / 30),
)
# What waits for single tasks is set otherwise than what works off a backlog.
IDLE: Final = (
    ours(),
    Entry(GRAPHILE, "defaults, concurrency 10", {"concurrency": 10}),
    graphile(24),
    pg_boss(10, 1),
    Entry(PGQUEUER, "defaults", {}),
    Entry(PROCRASTINATE, "defaults", {}),
)
IO: Final = (
    ours(100, sleep=SLEEP),
    graphile(100, sleep=SLEEP),
    pg_boss(4, 25, sleep=SLEEP),
    pgqueuer(1, 100, sleep=SLEEP),
    pgqueuer(2, 500, sleep=SLEEP),
)
# One that has its success stored in a handler's own transaction: of pg-boss for a batch at a time,
# since what fetches single jobs waits for its poll.
EXACTLY_ONCE: Final = (
    ours(transactional=True),
    pg_boss(4, 100, ", a transaction a batch", transactional=True),
)
PLAIN: Final = tuple(
    Entry(system, "one process", {"concurrency": 1, "batch": 1})
    for system in (OURS, GRAPHILE, PG_BOSS, PGQUEUER, PROCRASTINATE)
)

PLAN: Final = {
    "drain": Measure(measures.drain, 60_000, BEST),
    "defaults": Measure(measures.drain, 60_000, DEFAULTS),
    "processes": Measure(measures.processes, 60_000, BEST[:-1]),
    "io": Measure(measures.drain, 20_000, IO),
    "latency": Measure(measures.latency, 1_000, IDLE),
    "trickle": Measure(measures.trickle, 1_000, IDLE),
    "enqueue": Measure(measures.enqueue, 50_000, PLAIN),
    "transactional": Measure(measures.transactional, 5_000, EXACTLY_ONCE),
    "snapshot": Measure(
        measures.snapshot, 200_000, (ours(), graphile(24), pg_boss(4, 100), pgqueuer(2, 500))
    ),
    "memory": Measure(measures.memory, 200_000, BEST[:-1]),
}
