"""How long from the commit of an enqueue, in another process, to the start of the handler.

    python benchmarks/pickup_latency.py [--dsn DSN] [--tasks 1000] [--gap 0.02]

Also says how long the enqueue itself took, and what an idle worker asks of the server: the
transactions and statements a second, and whether it held one open.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import multiprocessing
import statistics
import sys
import tempfile
import time

from collections.abc import Generator
from multiprocessing.connection import Connection as Pipe
from typing import LiteralString

import psycopg
import trio

from psycopg.conninfo import make_conninfo

import nursery_queue as nq


DATABASE = "nursery_queue_pickup_latency"
IDLE_FOR = 60.0  # seconds; long enough for every timer of the worker to have gone off
STATISTICS_LAG = 11.0  # seconds after which an idle backend has told what it did

app = nq.App()
started: dict[int, int] = {}


@app.task(name="note", keep_for=0)
async def note(i: int) -> None:
    """Note when we were started."""
    started[i] = time.monotonic_ns()


def worker(dsn: str, count: int, pipe: Pipe) -> None:
    """Work in a process of its own until all have started; send the instants back."""
    trio.run(work, dsn, count, pipe)


async def work(dsn: str, count: int, pipe: Pipe) -> None:
    """Run the worker; say when it is ready."""
    async with nq.connect(dsn) as client, trio.open_nursery() as nursery:
        await nursery.start(nq.Worker(app, client).run)
        pipe.send("ready")
        while len(started) < count:  # noqa: ASYNC110  # an event would cost what we measure
            await trio.sleep(0.05)
        pipe.send(started)
        nursery.cancel_scope.cancel()


async def enqueue(dsn: str, count: int, gap: float) -> dict[int, tuple[int, int]]:
    """Enqueue one by one; note when each call began and when it returned."""
    stamps: dict[int, tuple[int, int]] = {}
    async with nq.connect(dsn) as client:
        for i in range(count):
            began = time.monotonic_ns()
            await client.enqueue(note, i)
            stamps[i] = (began, time.monotonic_ns())
            await trio.sleep(gap)
    return stamps


def idle(server: str, database: str) -> dict[str, float]:
    """Watch the idle worker, from another database, so that we do not count ourselves."""
    counter = "select xact_commit + xact_rollback from pg_stat_database where datname = %s"
    open_now = (
        "select count(*) from pg_stat_activity"
        " where datname = %s and state like 'idle in transaction%%'"
    )
    with psycopg.connect(server, autocommit=True) as conn:

        def ask(query: LiteralString) -> int:
            row = conn.execute(query, [database]).fetchone()
            assert row is not None
            return int(row[0])

        time.sleep(STATISTICS_LAG)
        before, seen_open = ask(counter), 0
        end = time.monotonic() + IDLE_FOR
        while time.monotonic() < end:
            seen_open += ask(open_now)
            time.sleep(0.1)
        rate = (ask(counter) - before) / IDLE_FOR
    return {"transactions_per_second": round(rate, 2), "seen_in_transaction": seen_open}


def percentiles(milliseconds: list[float]) -> dict[str, float]:
    """Return the figures that are quoted."""
    cuts = statistics.quantiles(milliseconds, n=100)
    return {"p50": round(cuts[49], 2), "p95": round(cuts[94], 2), "p99": round(cuts[98], 2)}


@contextlib.contextmanager
def databases(dsn: str | None) -> Generator[tuple[str, str]]:
    """Yield a server, named or of our own, and a fresh database on it."""
    with contextlib.ExitStack() as stack:
        if dsn is None:
            path = stack.enter_context(tempfile.TemporaryDirectory())
            dsn = stack.enter_context(nq.embedded(path)).dsn
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(f"drop database if exists {DATABASE} with (force)")
            conn.execute(f"create database {DATABASE}")
            yield dsn, make_conninfo(dsn, dbname=DATABASE)
            conn.execute(f"drop database {DATABASE} with (force)")


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dsn", help="a server to make a database on; by default one of its own")
    parser.add_argument("--tasks", type=int, default=1000)
    parser.add_argument("--gap", type=float, default=0.02, help="seconds between enqueues")
    options = parser.parse_args()
    with databases(options.dsn) as (server, dsn):
        trio.run(nq.migrate, dsn)
        ours, theirs = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(
            target=worker, args=(dsn, options.tasks, theirs)
        )
        process.start()
        try:
            assert ours.recv() == "ready"
            quiet = idle(server, DATABASE)
            stamps = trio.run(functools.partial(enqueue, dsn, options.tasks, options.gap))
            starts: dict[int, int] = ours.recv()
        finally:
            process.join(10)
            process.kill()
    from_commit = [(starts[i] - returned) / 1e6 for i, (_, returned) in stamps.items()]
    from_call = [(starts[i] - began) / 1e6 for i, (began, _) in stamps.items()]
    json.dump(
        {
            "tasks": options.tasks,
            "commit_to_start_ms": percentiles(from_commit),
            "call_to_start_ms": percentiles(from_call),
            "idle": quiet,
        },
        sys.stdout,
    )
    print()


if __name__ == "__main__":
    main()
