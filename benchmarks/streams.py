"""What a durable stream costs beside a plain table with NOTIFY, in the same run.

    python benchmarks/streams.py [--dsn DSN] [--chunks 2000] [--paced 500] [--rate 100]

One writer, in a process of its own, and 1, 10 and 100 readers in another one. Ours: a handler that
awaits `write` for each chunk, and readers of one client. Plain: `insert` and `pg_notify` for each
chunk in one statement, awaited, on a bare psycopg connection in autocommit; one connection that
listens; one `select` for each reader, when it has heard something.

First flat out, for chunks a second: of the writer, and from the first write until the last reader
has the last chunk. CPU is that of the two processes, and of the server's sessions if it is on this
machine. Then --rate chunks a second, for the latency from just before a write until its reader
has it, over all readers.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time

from collections.abc import Callable, Generator
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

import attrs
import psycopg
import trio

from psycopg.conninfo import make_conninfo

import nursery_queue as nq


DATABASE = "nursery_queue_streams"
READERS = (1, 10, 100)
PADDING = "x" * 40  # a token, a line, a step: chunks are small
TICKS = os.sysconf("SC_CLK_TCK")
spawning = multiprocessing.get_context("spawn")

app = nq.App()


@attrs.frozen
class Load:
    """What is to be written and read. *rate* chunks a second; 0: flat out. *batch*: at once."""

    chunks: int
    readers: int
    rate: float = 0
    batch: int = 1

    def until(self, begun: float, index: int) -> float:
        """Return the seconds until the chunk of this index is due."""
        return begun + index / self.rate - time.monotonic() if self.rate else 0


def chunk() -> str:
    """Return a chunk that says when it was made."""
    return f"{time.monotonic_ns()} {PADDING}"


def age(data: str) -> float:
    """Return how many milliseconds ago a chunk was made."""
    return (time.monotonic_ns() - int(data.split(" ", 1)[0])) / 1e6


# -- ours -----------------------------------------------------------------------------------


@app.task(name="pen")
async def pen(ctx: nq.TaskContext, chunks: int, rate: float, batch: int) -> dict[str, float]:
    """Write, and say how that went."""
    load = Load(chunks, 0, rate, batch)
    stream = ctx.stream()
    await ctx.client.stats()  # so that a connection is there
    begun, cpu = time.monotonic(), time.process_time()
    for index in range(0, chunks, batch):
        if (pause := load.until(begun, index)) > 0:
            await trio.sleep(pause)
        if batch == 1:
            await stream.write(chunk())
        else:
            await stream.write_many([chunk() for _ in range(batch)])
    return {
        "begun": begun,
        "took": time.monotonic() - begun,
        "cpu": time.process_time() - cpu,
    }


def our_writer(dsn: str, load: Load, pipe: Pipe) -> None:
    """Work off one task, once told its id, and say what it returned."""

    async def work() -> None:
        async with nq.connect(dsn) as client, trio.open_nursery() as nursery:
            await nursery.start(nq.Worker(app, client).run)
            pipe.send("ready")
            pipe.recv()
            task = await client.enqueue(pen, load.chunks, load.rate, load.batch)
            pipe.send(task.id)
            pipe.send(await client.result(task))
            await trio.to_thread.run_sync(
                pipe.recv
            )  # the server's part of it is counted while we are connected
            nursery.cancel_scope.cancel("counted")

    trio.run(work)


def our_readers(dsn: str, load: Load, pipe: Pipe) -> None:
    """Read a task's stream as often as there are readers."""
    ages: list[float] = []

    async def read(client: nq.Client, task: int) -> None:
        async for data in client.read_stream(task):
            ages.append(age(data))  # noqa: PERF401  # as each of them comes

    async def work() -> None:
        async with nq.connect(dsn) as client:
            await client.stats()
            pipe.send("ready")
            task = pipe.recv()
            cpu = time.process_time()
            async with trio.open_nursery() as nursery:
                for _ in range(load.readers):
                    nursery.start_soon(read, client, task)
            ended, spent = time.monotonic(), time.process_time() - cpu
            pipe.send({"ended": ended, "cpu": spent, "ages": ages})
            await trio.to_thread.run_sync(pipe.recv)

    trio.run(work)


# -- plain ----------------------------------------------------------------------------------

TABLE = "create table plain (seq bigint primary key, data bytea not null)"
INSERT = """
    with written as (insert into plain select * from unnest(%s::bigint[], %s::bytea[]))
    select pg_notify('plain', '')
"""


def plain_writer(dsn: str, load: Load, pipe: Pipe) -> None:
    """Write, and say how that went."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        pipe.send("ready")
        pipe.recv()
        pipe.send(0)
        begun, cpu = time.monotonic(), time.process_time()
        for index in range(0, load.chunks, load.batch):
            if (pause := load.until(begun, index)) > 0:
                time.sleep(pause)
            numbers = list(range(index, index + load.batch))
            conn.execute(INSERT, [numbers, [chunk().encode() for _ in numbers]])
        took = time.monotonic() - begun
        pipe.send({"begun": begun, "took": took, "cpu": time.process_time() - cpu})
        pipe.recv()


def plain_readers(dsn: str, load: Load, pipe: Pipe) -> None:
    """Listen, and read what is new as often as there are readers."""
    ages: list[float] = []
    with psycopg.connect(dsn, autocommit=True) as conn, psycopg.connect(dsn) as ear:
        ear.autocommit = True
        ear.execute("listen plain")
        pipe.send("ready")
        pipe.recv()
        cpu = time.process_time()
        positions = [0] * load.readers
        while min(positions) < load.chunks:
            list(ear.notifies(timeout=5, stop_after=1))
            for reader, position in enumerate(positions):
                query = "select data from plain where seq >= %s order by seq limit 64"
                while rows := conn.execute(query, [position]).fetchall():
                    ages.extend(age(data.decode()) for (data,) in rows)
                    position += len(rows)  # noqa: PLW2901  # it is where this reader is
                    if len(rows) < 64:
                        break
                positions[reader] = position
        ended, spent = time.monotonic(), time.process_time() - cpu
        pipe.send({"ended": ended, "cpu": spent, "ages": ages})
        pipe.recv()


# -- both -----------------------------------------------------------------------------------

Side = Callable[[str, Load, Pipe], None]
OURS: tuple[Side, Side] = (our_writer, our_readers)
PLAIN: tuple[Side, Side] = (plain_writer, plain_readers)


@contextlib.contextmanager
def process(side: Side, dsn: str, load: Load) -> Generator[Pipe]:
    """Run one side in a process of its own while the block runs."""
    ours, theirs = spawning.Pipe()
    running = spawning.Process(target=side, args=(dsn, load, theirs))
    running.start()
    try:
        assert ours.recv() == "ready"
        yield ours
    finally:
        with contextlib.suppress(OSError):
            ours.send("that is all")
        running.join(10)
        running.kill()


def server_cpu(dsn: str) -> float | None:
    """Return the seconds that the sessions of our database have used; None: not on this machine."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        pids = conn.execute(
            "select pid from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        ).fetchall()
    total = 0.0
    for (pid,) in pids:
        try:
            stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return None
        total += (int(stat[11]) + int(stat[12])) / TICKS
    return total


def measured(dsn: str, sides: tuple[Side, Side], load: Load) -> dict[str, Any]:
    """Let one process write and one read, and return figures."""
    with psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("drop table if exists plain")
        conn.execute(TABLE)
    write, read = sides
    with process(write, dsn, load) as writer, process(read, dsn, load) as reader:
        before = server_cpu(dsn)
        writer.send("go")
        reader.send(writer.recv())
        written: dict[str, float] = writer.recv()
        got: dict[str, Any] = reader.recv()
        after = server_cpu(dsn)
    assert len(got["ages"]) == load.chunks * load.readers
    cuts = statistics.quantiles(got["ages"], n=100)
    each = 1e6 / load.chunks
    return {
        "written_per_s": load.chunks / written["took"],
        "delivered_per_s": load.chunks * load.readers / (got["ended"] - written["begun"]),
        "p50_ms": cuts[49],
        "p99_ms": cuts[98],
        "writer_cpu_us": written["cpu"] * each,
        "reader_cpu_us": got["cpu"] * each / load.readers,
        "server_cpu_us": (after - before) * each if after and before is not None else None,
    }


def compared(dsn: str, load: Load, columns: tuple[str, ...]) -> dict[str, Any]:
    """Measure both and return their figures with ratios, ours to plain; show them on stderr."""
    figures = {"plain": measured(dsn, PLAIN, load), "ours": measured(dsn, OURS, load)}
    result: dict[str, Any] = {"readers": load.readers, "batch": load.batch, "rate": load.rate}
    for column in columns:
        plain, ours = (figures[side][column] for side in ("plain", "ours"))
        if plain is not None and ours is not None:
            ratio = round(ours / plain, 2) if plain else None
            result[column] = {"plain": round(plain, 2), "ours": round(ours, 2), "ratio": ratio}
    print(f"readers {load.readers:>3}, at once {load.batch}, rate {load.rate:g}", file=sys.stderr)
    for column, value in result.items():
        if isinstance(value, dict):
            print(
                f"  {column:<16} plain {value['plain']:>11,} ours {value['ours']:>11,}"
                f" ratio {value['ratio']}",
                file=sys.stderr,
            )
    return result


@contextlib.contextmanager
def database(dsn: str | None) -> Generator[str]:
    """Yield a fresh database with our tables, on a server that is named or our own."""
    with contextlib.ExitStack() as stack:
        if dsn is None:
            path = stack.enter_context(tempfile.TemporaryDirectory())
            dsn = stack.enter_context(nq.embedded(path)).dsn
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute(f"drop database if exists {DATABASE} with (force)")
            conn.execute(f"create database {DATABASE}")
            fresh = make_conninfo(dsn, dbname=DATABASE)
            trio.run(nq.migrate, fresh)
            yield fresh
            conn.execute(f"drop database {DATABASE} with (force)")


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--dsn", help="a server to make a database on; by default one of its own")
    parser.add_argument("--chunks", type=int, default=2000, help="to write flat out")
    parser.add_argument("--paced", type=int, default=500, help="to write at a rate")
    parser.add_argument("--rate", type=float, default=100, help="chunks a second")
    options = parser.parse_args()
    cost = ("written_per_s", "delivered_per_s", "writer_cpu_us", "reader_cpu_us", "server_cpu_us")
    late = ("p50_ms", "p99_ms", "writer_cpu_us", "reader_cpu_us", "server_cpu_us")
    with database(options.dsn) as dsn:
        full = [Load(options.chunks, readers) for readers in READERS]
        full.append(Load(options.chunks // 50 * 50, 1, batch=50))
        paced = [Load(options.paced, readers, options.rate) for readers in READERS]
        json.dump(
            {
                "flat_out": [compared(dsn, load, cost) for load in full],
                "paced": [compared(dsn, load, late) for load in paced],
            },
            sys.stdout,
        )
    print()


if __name__ == "__main__":
    main()
