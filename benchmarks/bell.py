"""What the bell costs: the NOTIFY by which an enqueue wakes workers.

    python -m benchmarks.bell [--dsn DSN] [--seconds 5] [--rounds 5] [--connections 64] [--json]

In the root of a clone. Each connection of pgbench runs, again and again, a transaction that inserts
a row into a table of the user's and, but for "no task", a task:

    no task      nothing of ours
    off          nursery_queue.notify is off
    queue off    that of the queue is off
    no notify    the trigger has no pg_notify, and no question whether there is to be one
    bell         as it comes

In turns, each round in another order, with --listeners sessions that listen, as idle workers do.
Prints medians: transactions a second, what they are of "off" and of "no task" (of ratios within a
round), the CPU of the server for each, and how many share one sync of the write-ahead log. In a
database of its own; without a DSN on a server of its own, durable, with PostgreSQL's defaults.
pgbench is looked for in the PATH, then where Debian has it. Linux only, as it reads /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import sys
import tempfile

from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import trio

from benchmarks.beside_peers import server
from nursery_queue._connect._admin import connected
from nursery_queue._connect._scratch import Scratch, scratch
from nursery_queue.cli._measuring._server_cpu import ServerCpu


USERS: Final = "create table bench_user (id bigserial primary key, email text not null)"
EMPTY: Final = "truncate bench_user, nursery_queue.task, nursery_queue.ready"
QUEUE: Final = """
    insert into nursery_queue.queue (name, notify) values ('default', %s)
        on conflict (name) do update set notify = excluded.notify
"""
USER: Final = "insert into bench_user (email) values ('ann@example.org');"
TASK: Final = "insert into nursery_queue.task (task_type, params) values ('nothing', '{\"i\": 1}');"
PLACE: Final = "select pg_get_functiondef('nursery_queue.place'::regproc)"
RINGS: Final = re.compile(r"perform pg_notify\('nursery_queue', ''\)[^;]*;")
# Since PostgreSQL 18 the one, before it the other.
SYNCS: Final = (
    "select sum(fsyncs)::bigint from pg_stat_io where object = 'wal'",
    "select wal_sync from pg_stat_wal",
)
RATE: Final = re.compile(r"^tps = ([0-9.]+) \(without initial connection time\)", re.MULTILINE)
DONE: Final = re.compile(r"^number of transactions actually processed: ([0-9]+)", re.MULTILINE)


@attrs.frozen(kw_only=True)
class Way:
    """A way to enqueue, or not."""

    name: str
    task: bool = True
    notify: bool = True
    queue: bool = True
    pg_notify: bool = True


WAYS: Final = (
    Way(name="no task", task=False),
    Way(name="off", notify=False),
    Way(name="queue off", queue=False),
    Way(name="no notify", pg_notify=False),
    Way(name="bell"),
)


@attrs.frozen(eq=False, kw_only=True)
class Tables:
    """A database with our tables and one of the user's, and what rings in it."""

    place: Scratch
    server: ServerCpu
    pgbench: str
    trigger: str  # place(), as it comes
    version: int

    @classmethod
    async def of(cls, place: Scratch, pgbench: str) -> Tables:
        """Make the user's table."""
        ((pid, database),) = await place.ask("select pg_backend_pid(), current_database()")
        on_server = ServerCpu.of_backend(pid, database)
        if on_server is None:
            sys.exit("the server is not on this machine")
        await place.ask(USERS)
        ((trigger,),) = await place.ask(PLACE)
        ((version,),) = await place.ask("select current_setting('server_version_num')::int")
        assert RINGS.search(trigger)
        return cls(place=place, server=on_server, pgbench=pgbench, trigger=trigger, version=version)

    async def run(self, way: Way, options: argparse.Namespace) -> dict[str, Any]:
        """Let all connections commit for some seconds."""
        await self.place.ask(self.trigger if way.pg_notify else RINGS.sub("", self.trigger))
        await self.place.ask(QUEUE % ("true" if way.queue else "false"))
        await self.place.ask(EMPTY)
        with tempfile.TemporaryDirectory() as folder:
            script = Path(folder) / "script.sql"
            script.write_text("\n".join(["begin;", USER, TASK * way.task, "commit;"]))
            syncs, used = await self.syncs(), self.server.seconds()
            told = await self.bench(script, way, options)
        done, used = int(_found(DONE, told)), self.server.seconds() - used
        syncs = await self.syncs() - syncs
        return {
            "what": way.name,
            "rate": float(_found(RATE, told)),
            "server_cpu_us": round(used / done * 1e6, 1),
            "transactions_per_sync": round(done / max(syncs, 1), 1),
        }

    async def bench(self, script: Path, way: Way, options: argparse.Namespace) -> str:
        """Run pgbench; return what it says."""
        command = [self.pgbench, "--no-vacuum", f"--file={script}", "--protocol=prepared"]
        command += [f"--client={options.connections}", "--jobs=2", f"--time={options.seconds}"]
        settings = f"-c nursery_queue.notify={'on' if way.notify else 'off'}"
        done = await trio.run_process(
            [*command, self.place.dsn],
            env=os.environ | {"PGOPTIONS": settings},
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        if done.returncode:
            sys.exit(done.stderr.decode())
        return done.stdout.decode()

    async def syncs(self) -> int:
        """Return how often the log has been synced."""
        ((count,),) = await self.place.ask(SYNCS[self.version < 180000])
        return int(count)


def _found(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    assert found, text
    return found[1]


@contextlib.asynccontextmanager
async def listeners(dsn: str, count: int) -> AsyncGenerator[None]:
    """Have so many sessions that listen to the bell."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            session = await stack.enter_async_context(connected(dsn))
            await session.execute(b"listen nursery_queue")
        yield


async def measure(dsn: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all ways in turns; return the rows of all rounds."""
    rows = list[dict[str, Any]]()
    async with scratch(dsn) as place, listeners(place.dsn, options.listeners):
        tables = await Tables.of(place, options.pgbench)
        for turn in range(options.rounds):
            for each in range(len(WAYS)):
                way = WAYS[(turn + each) % len(WAYS)]
                row = {"round": turn + 1, **await tables.run(way, options)}
                rows.append(row)
                print(json.dumps(row), file=sys.stdout if options.json else sys.stderr, flush=True)
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the medians, and those of the ratios within a round."""

    def rates(name: str) -> list[float]:
        return [row["rate"] for row in rows if row["what"] == name]

    def ratio(name: str, other: str) -> float:
        pairs = zip(rates(name), rates(other), strict=True)
        return statistics.median(a / b for a, b in pairs)

    lines = ["             rate/s  of off  of no task  CPU us  per sync"]
    for way in WAYS:
        of = [row for row in rows if row["what"] == way.name]
        cpu, shared = (
            statistics.median(row[key] for row in of)
            for key in ("server_cpu_us", "transactions_per_sync")
        )
        lines.append(
            f"{way.name:<11}{statistics.median(rates(way.name)):>8.0f}"
            f"{ratio(way.name, 'off'):>8.2f}{ratio(way.name, 'no task'):>12.2f}{cpu:>8.0f}"
            f"{shared:>10.1f}"
        )
    return "\n".join(lines)


def pgbench() -> str | None:
    """Return where pgbench is."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    return shutil.which("pgbench") or (str(debian[-1]) if debian else None)


def main() -> None:
    """Measure, and print the table."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--dsn", help="a server on this machine whose role may create databases")
    parser.add_argument("--seconds", type=int, default=5, help="of each way in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--listeners", type=int, default=1)
    parser.add_argument("--pgbench", default=pgbench(), metavar="PATH")
    parser.add_argument("--json", action="store_true", help="an object a line")
    options = parser.parse_args()
    if options.pgbench is None:
        parser.error("there is no pgbench; say where with --pgbench")
    with server(options.dsn) as dsn:
        rows = trio.run(measure, dsn, options)
    if not options.json:
        print(table(rows))


if __name__ == "__main__":
    main()
