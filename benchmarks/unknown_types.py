"""What a claim costs behind a million tasks of types that nobody knows, and a million of later.

    python benchmarks/unknown_types.py [--dsn DSN] [--unknown 1000000] [--future 1000000]

Claims 100 ready tasks in turns: from a queue where there are no others, and from one that is
headed by tasks of an unknown type, with better priority. First as that is, then while the
maintenance of a worker puts these aside, then when it has. Prints the medians, their ratio and the
plan. Exits with 1 if the ratio is more than 2 in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
import uuid

from collections.abc import AsyncGenerator, Generator, Sequence

import attrs
import psycopg
import trio

from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from nursery_queue._core._model import WorkerInfo
from nursery_queue._pg._sql import query
from nursery_queue._store import Store


CLAIM = 100
ENOUGH = 2.0  # times what it costs in an empty queue
FILL = """
    insert into nursery_queue.task (task_type, priority, run_at)
    select 'unknown', 9, nursery_queue.now() from generate_series(1, %(unknown)s)
     union all
    select 'known', 9, nursery_queue.now() + interval '1 year' from generate_series(1, %(future)s)
"""
PATIENCE = 30.0  # seconds for the vacuum after a parking
VACUUMS = "select pg_stat_get_vacuum_count('nursery_queue.ready'::regclass)"
LEFT = "select exists (select from nursery_queue.ready where task_type = 'unknown')"

other = nq.App()


@other.task(name="other")
async def nothing() -> None:
    """Be what the worker knows that parks."""


@attrs.frozen
class Side:
    """A queue with known tasks to claim, and somebody who claims them."""

    dsn: str
    store: Store
    worker_id: uuid.UUID

    async def claim(self) -> float:
        """Claim the known tasks, give them back, and return what the claim took in ms."""
        began = time.perf_counter()
        claimed = await self.store.claim(self.worker_id, ["known"], limit=CLAIM)
        took = time.perf_counter() - began
        assert len(claimed.claims) == CLAIM, "somebody else has taken some"
        await self.store.give_back_all_but(self.worker_id, set())
        return 1000 * took


@contextlib.asynccontextmanager
async def opened(dsn: str) -> AsyncGenerator[Side]:
    """Migrate, enqueue the known tasks, and register who claims them."""
    await nq.migrate(dsn)
    async with nq.connect(dsn) as client:
        await client.enqueue_many([nq.TaskRequest.by_name("known")] * CLAIM)
        worker_id = uuid.uuid4()
        await client.store.register(
            WorkerInfo(id=worker_id, name="b", host="b", pid=0, task_types=["known"], lease=86_400)
        )
        yield Side(dsn, client.store, worker_id)


def run(dsn: str, statement: str, params: dict[str, int] | None = None) -> list[tuple[object, ...]]:
    """Run a statement outside of everything."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), params)
        return cursor.fetchall() if cursor.description else []


def say(what: str, milliseconds: Sequence[float]) -> None:
    """Print what claims took."""
    worst = f", at most {max(milliseconds):.1f}" if len(milliseconds) > 1 else ""
    median = statistics.median(milliseconds)
    print(f"{what}: {median:.2f} ms (median of {len(milliseconds)}{worst})", flush=True)


async def compare(empty: Side, crowded: Side, rounds: int, when: str) -> float:
    """Claim from both in turns, print what it took, and return the ratio."""
    times = [(await empty.claim(), await crowded.claim()) for _ in range(rounds)]
    say(f"{when}, empty queue", [one for one, _ in times])
    say(f"{when}, crowded queue", [two for _, two in times])
    ratio = statistics.median(b for _, b in times) / statistics.median(a for a, _ in times)
    print(f"{when}, ratio: {ratio:.2f}\n", flush=True)
    return ratio


async def park(crowded: Side) -> None:
    """Let a worker of another application put aside what nobody knows; claim meanwhile."""
    times: list[float] = []
    async with nq.connect(crowded.dsn) as client, trio.open_nursery() as nursery:
        worker = nq.Worker(other, client, heartbeat=1, lease=30)
        began = time.perf_counter()
        await nursery.start(worker.run)
        while (await trio.to_thread.run_sync(run, crowded.dsn, LEFT)) == [(True,)]:
            times.append(await crowded.claim())
        took = time.perf_counter() - began
        await trio.to_thread.run_sync(wait_for_vacuum, crowded.dsn)
        worker.stop()
    say("while a worker parks", times)
    print(f"parked after {took:.1f} s, of which the worker waited 1 s\n", flush=True)


def wait_for_vacuum(dsn: str) -> None:
    """Wait for the worker to take away what claims would have to step over."""
    began = time.perf_counter()
    while run(dsn, VACUUMS) == [(0,)] and time.perf_counter() < began + PATIENCE:
        time.sleep(0.1)
    print(f"vacuumed {time.perf_counter() - began:.1f} s later", flush=True)


def explain(crowded: Side) -> None:
    """Print the plan of a claim, which is undone."""
    params = {
        "worker_id": crowded.worker_id,
        "task_types": ["known"],
        "limit": CLAIM,
        "queues": None,
        "slots": None,
        "at_once": None,
        "after_queue": "",
        "after_type": "",
        "most_queues": 32,
        "most_steps": 500,
    }
    with (
        psycopg.connect(crowded.dsn) as connection,
        psycopg.ClientCursor(connection) as cursor,
    ):
        cursor.execute(query("keep_to_indexes", "nursery_queue"), {"once": True})
        claim = cursor.mogrify(query("claim", "nursery_queue"), params)
        cursor.execute(f"explain (analyze, buffers, costs off) {claim}".encode())
        print("\n".join(str(line) for (line,) in cursor.fetchall()))
        connection.rollback()


async def measure(dsns: Sequence[str], options: argparse.Namespace) -> float:
    """Do it all and return the ratio in the end."""
    async with opened(dsns[0]) as empty, opened(dsns[1]) as crowded:
        await compare(empty, crowded, options.rounds, "both empty")
        began = time.perf_counter()
        await trio.to_thread.run_sync(
            run, crowded.dsn, FILL, {"unknown": options.unknown, "future": options.future}
        )
        print(
            f"{options.unknown:,} tasks of an unknown type and {options.future:,} of next year"
            f" enqueued in {time.perf_counter() - began:.1f} s\n",
            flush=True,
        )
        await compare(empty, crowded, 5, "not parked yet")
        await park(crowded)
        ratio = await compare(empty, crowded, options.rounds, "parked")
        explain(crowded)
        return ratio


@contextlib.contextmanager
def databases(dsn: str | None) -> Generator[list[str]]:
    """Yield two fresh databases on a server, named or of our own."""
    names = [f"nursery_queue_unknown_types_{which}" for which in ("empty", "crowded")]
    with contextlib.ExitStack() as stack:
        if dsn is None:
            path = stack.enter_context(tempfile.TemporaryDirectory())
            dsn = stack.enter_context(nq.embedded(path)).dsn
        for name in names:
            run(dsn, f"drop database if exists {name} with (force)")
            run(dsn, f"create database {name}")
        yield [make_conninfo(dsn, dbname=name) for name in names]
        for name in names:
            run(dsn, f"drop database {name} with (force)")


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--dsn",
        default=os.environ.get("NURSERY_QUEUE_TEST_DSN"),
        help="a server to make databases on; by default one of its own",
    )
    parser.add_argument("--unknown", type=int, default=1_000_000)
    parser.add_argument("--future", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    with databases(options.dsn) as dsns:
        ratio = trio.run(measure, dsns, options)
    print(f"\nratio {ratio:.2f}, which may be {ENOUGH:g}")
    return 0 if ratio <= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
