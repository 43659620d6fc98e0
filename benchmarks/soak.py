"""Let one worker run millions of tasks, and see whether anything grows.

    python -m benchmarks.soak [--dsn DSN] [--tasks 3000000] [--keep-for 30] [--json]

In the root of a clone. The worker is `nursery-queue worker` with its defaults. Tasks of mixed kinds
(soak_tasks.py) are enqueued while it works, so that about 100,000 wait (--backlog); they are kept
for 30 seconds, so that it prunes, too. For each 100,000 that are done (--every) there is a line:
tasks a second, the CPU of worker and server, the worker's memory, what is stored, what vacuum did,
the age of the oldest snapshot. The CPU of the server is that of enqueuing and pruning as well; what
enqueues is this process, which shares the machine.

When all are done and pruned, it is verified that each ran as often as it should, that nothing is
left, and, of one in a thousand that are kept, how they ended and what the log has. The exit code is
0 if so, 1 if not. In a database of its own, which is dropped; without a DSN on a server of its own,
with PostgreSQL's settings. Linux only, as it reads /proc.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time

from collections.abc import AsyncGenerator, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import trio

import nursery_queue as nq

from benchmarks.beside_peers import server
from benchmarks.soak_tasks import (
    KEEP_FOR,
    LEDGER,
    Ledger,
    is_flaky,
    is_sample,
    requests,
    result,
)
from nursery_queue._connect._scratch import Scratch, scratch
from nursery_queue._core._exception_groups import leaves
from nursery_queue.cli._interpreter import python
from nursery_queue.cli._measuring._server_cpu import ServerCpu


PORTION = 5000  # tasks that are enqueued at once
LOOK_EVERY = 0.05  # seconds between looks at the ledger
STALL = 60.0  # seconds without a task that is done, or a row that is pruned, until it has failed
PATIENCE = 40.0  # seconds for the worker to end when it is told to
MB: Final = 1024 * 1024
TABLES: Final = """
    select c.relname::text, pg_table_size(c.oid), pg_indexes_size(c.oid), s.n_live_tup,
           s.n_dead_tup, s.autovacuum_count, s.autoanalyze_count, s.seq_scan, s.seq_tup_read,
           s.idx_tup_fetch
      from pg_class as c join pg_stat_user_tables as s on s.relid = c.oid
     where s.schemaname = 'nursery_queue' and pg_table_size(c.oid) > 65536
     order by 2 desc
"""
OLDEST: Final = """
    select coalesce(max(age(backend_xmin)), 0),
           coalesce(extract(epoch from max(clock_timestamp() - xact_start)), 0)::float8
      from pg_stat_activity
     where datname = current_database() and backend_type = 'client backend'
"""
STORED: Final = "select count(*) from nursery_queue.finished"
LEFT: Final = {
    table: f"select count(*) from nursery_queue.{table}"  # noqa: S608  # ours
    for table in ("ready", "scheduled", "running", "parked", "dedup")
}
ENDED: Final = """
    select (t.params ->> 'i')::int, f.state, f.attempt, f.result,
           array(select outcome from nursery_queue.attempt as a
                  where a.task_id = t.id order by epoch)
      from nursery_queue.task as t left join nursery_queue.finished as f on f.task_id = t.id
"""
LOGGED: Final = "select count(*) from nursery_queue.attempt"


class SoakFailed(Exception):
    """The worker has ended, or nothing goes on."""


@attrs.frozen(eq=False)
class Soaked:
    """A worker process, its ledger, and the database that it works on."""

    place: Scratch
    server: ServerCpu
    worker: trio.Process
    ledger: Ledger
    tasks: int

    def alive(self) -> None:
        """Raise `SoakFailed` if the worker has ended."""
        if self.worker.poll() is not None:
            raise SoakFailed(f"the worker has ended with {self.worker.returncode}")

    def worker_cpu(self) -> float:
        """Return the seconds that the worker has used."""
        stat = Path(f"/proc/{self.worker.pid}/stat").read_text(encoding="utf-8")
        fields = stat.rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def worker_memory(self) -> float:
        """Return its resident set, in megabytes."""
        pages = Path(f"/proc/{self.worker.pid}/statm").read_text(encoding="utf-8").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / MB

    async def count(self, statement: str) -> int:
        """Return the only number that it answers."""
        ((number,),) = await self.place.ask(statement)
        return int(number)


@contextlib.asynccontextmanager
async def soaked(dsn: str, tasks: int, keep_for: float) -> AsyncGenerator[Soaked]:
    """Start the worker on a database of its own; both are gone after the block."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        ledger = Ledger.create(path, tasks)
        async with scratch(dsn) as place:
            ((pid, database),) = await place.ask("select pg_backend_pid(), current_database()")
            on_server = ServerCpu.of_backend(pid, database)
            if on_server is None:
                raise SoakFailed("the server is not on this machine")
            command = [*python(), "-m", "nursery_queue", "worker", "benchmarks.soak_tasks:app"]
            ours = {"DATABASE_URL": place.dsn, LEDGER: str(path), KEEP_FOR: str(keep_for)}
            worker = await trio.lowlevel.open_process(
                [*command, "--schema", place.schema, "--log-level", "WARNING"],
                env=os.environ | ours,
                process_group=0,  # Ctrl-C is for us; it is ended below
            )
            try:
                yield Soaked(place, on_server, worker, ledger, tasks)
            finally:
                with trio.CancelScope(shield=True):
                    await end(worker)


async def end(worker: trio.Process) -> None:
    """Tell it to end; kill it if it does not."""
    if worker.poll() is None:
        worker.terminate()
        with trio.move_on_after(PATIENCE):
            await worker.wait()
    if worker.poll() is None:
        worker.kill()
        await worker.wait()


def portions(tasks: int, backlog: int) -> Iterator[range]:
    """Yield the numbers of all tasks, as many at once as there may be and as is of use."""
    size = min(PORTION, backlog)
    for first in range(0, tasks, size):
        yield range(first, min(first + size, tasks))


async def enqueue(it: Soaked, backlog: int) -> None:
    """Enqueue all, a portion whenever no more than *backlog* are left to do with it."""
    async with nq.connect(it.place.dsn, schema=it.place.schema) as client:
        for portion in portions(it.tasks, backlog):
            while portion.stop - it.ledger.done > backlog:  # noqa: ASYNC110  # no event tells
                await trio.sleep(LOOK_EVERY)
            copied, keyed = requests(portion)
            await client.enqueue_many(copied, copy=True)
            refs = await client.enqueue_many(keyed)
            if [ref.created for ref in refs] != [True, False] * (len(keyed) // 2):
                raise SoakFailed("of two tasks with one dedup key, not just the first was created")


async def until_done(it: Soaked, every: int, as_json: bool) -> None:
    """Wait until the worker has done all; show a line for each *every* tasks."""
    told, began, cpu, used = 0, time.monotonic(), it.worker_cpu(), it.server.seconds()
    last, moved = 0, time.monotonic()
    while last < it.tasks:
        await trio.sleep(LOOK_EVERY)
        it.alive()
        if (done := it.ledger.done) > last:
            last, moved = done, time.monotonic()
        elif time.monotonic() > moved + STALL:
            raise SoakFailed(f"{last} of {it.tasks} are done, and none since {STALL:g} s")
        if done - told < every and done < it.tasks:
            continue
        now, cpu_now, used_now = time.monotonic(), it.worker_cpu(), it.server.seconds()
        row = {
            "what": "soak",
            "done": done,
            "seconds": round(now - began, 2),
            "rate": round((done - told) / (now - began), 1),
            "worker_cpu_us": round((cpu_now - cpu) / (done - told) * 1e6, 1),
            "server_cpu_us": round((used_now - used) / (done - told) * 1e6, 1),
        }
        show(row | await stored(it), as_json)
        told, began, cpu, used = done, now, cpu_now, used_now


async def stored(it: Soaked) -> dict[str, Any]:
    """Return what the worker and the tables take now."""
    ((age, transaction),) = await it.place.ask(OLDEST)
    names = (
        *("bytes", "index_bytes", "live", "dead", "autovacuums", "autoanalyzes"),
        *("sequential_scans", "rows_read_by_them", "rows_fetched_by_index"),
    )
    return {
        "worker_mb": round(it.worker_memory(), 1),
        "oldest_xmin": age,
        "oldest_transaction_s": round(transaction, 2),
        "tables": {
            name: dict(zip(names, row, strict=True)) for name, *row in await it.place.ask(TABLES)
        },
    }


def show(row: dict[str, Any], as_json: bool) -> None:
    """Print one row; of each table megabytes with indexes, thousands of dead rows, vacuums."""
    if as_json:
        print(json.dumps(row), flush=True)
        return
    tables = ", ".join(
        f"{name} {(of['bytes'] + of['index_bytes']) / MB:.0f}/{of['dead'] / 1000:.0f}k"
        f"/{of['autovacuums']}"
        for name, of in row["tables"].items()
    )
    cpu = (
        ""
        if row["what"] == "soaked"
        else (f"worker {row['worker_cpu_us']:.0f} us, server {row['server_cpu_us']:.0f} us; ")
    )
    print(
        f"{row['done']:>9,}: {row['rate']:,.0f}/s; {cpu}{row['worker_mb']} MB; oldest snapshot"
        f" {row['oldest_xmin']} ({row['oldest_transaction_s']} s); {tables}",
        flush=True,
    )


async def until_pruned(it: Soaked, keep_for: float) -> None:
    """Wait until all but the samples are pruned, which the worker does each minute."""
    samples = sum(map(is_sample, range(it.tasks)))
    last, moved = -1, time.monotonic()
    while (now := await it.count(STORED)) > samples:
        it.alive()
        if now != last:
            last, moved = now, time.monotonic()
        elif time.monotonic() > moved + keep_for + 2 * STALL:
            raise SoakFailed(f"{now} finished tasks are there, {samples} of them are to be kept")
        await trio.sleep(1)


async def verify(it: Soaked) -> list[str]:
    """Return what is not as it should be, once all are done and pruned."""
    wrong = [
        f"{table} has {left} rows"
        for table, statement in LEFT.items()
        if (left := await it.count(statement))
    ]
    ran = it.ledger.attempts()
    often = [number for number in range(it.tasks) if ran[number] != 1 + is_flaky(number)]
    if often:
        wrong.append(f"{len(often)} tasks ran not as often as they should, such as {often[:5]}")
    found = {number: rest for number, *rest in await it.place.ask(ENDED)}
    kept = [number for number in range(it.tasks) if is_sample(number)]
    if sorted(found) != kept:
        wrong.append(f"{len(found)} tasks are stored, and {len(kept)} are to be kept")
    odd = [number for number, rest in found.items() if rest != ending(number)]
    if odd:
        wrong.append(f"{len(odd)} ended otherwise: {odd[0]} with {found[odd[0]]}")
    log = await it.count(LOGGED)
    if log != (expected := sum(len(ending(number)[3]) for number in kept)):
        wrong.append(f"the log has {log} attempts, and not {expected}")
    return wrong


def ending(number: int) -> Sequence[Any]:
    """Return how a task ends: its state, its attempts, its result, their outcomes."""
    outcomes = ["failed", "succeeded"] if is_flaky(number) else ["succeeded"]
    return ["succeeded", len(outcomes), result(number), outcomes]


async def stop_at_signals(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Cancel all on SIGTERM and Ctrl-C: the worker is to end, too, and the database to go."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            scope.cancel("a signal came")


async def run(dsn: str, options: argparse.Namespace) -> list[str]:
    """Soak until it is done or a signal comes."""
    wrong = ["a signal came before it was done"]
    async with trio.open_nursery() as nursery:
        await nursery.start(stop_at_signals, nursery.cancel_scope)
        wrong = await soak(dsn, options)
        nursery.cancel_scope.cancel("done")
    return wrong


async def soak(dsn: str, options: argparse.Namespace) -> list[str]:
    """Do all of it; return what is wrong."""
    async with soaked(dsn, options.tasks, options.keep_for) as it:
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(enqueue, it, options.backlog)
            await until_done(it, options.every, options.json)
        seconds = time.monotonic() - began
        await until_pruned(it, options.keep_for)
        wrong = await verify(it)
        rest = await stored(it)
        await end(it.worker)
        if it.worker.returncode:
            wrong.append(f"the worker has ended with {it.worker.returncode}")
        row = {
            "what": "soaked",
            "done": it.ledger.done,
            "seconds": round(seconds, 1),
            "rate": round(it.tasks / seconds, 1),
            "wrong": wrong,
        }
        show(row | rest, options.json)
    return wrong


def parsed() -> argparse.Namespace:
    """Return what the command line says."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--dsn", help="a server on this machine whose role may create databases")
    parser.add_argument("--tasks", type=int, default=3_000_000)
    parser.add_argument("--backlog", type=int, default=100_000, help="tasks that wait")
    parser.add_argument("--every", type=int, default=100_000, help="tasks to a line")
    parser.add_argument("--keep-for", type=float, default=30.0, help="seconds")
    parser.add_argument("--json", action="store_true", help="an object a line")
    options = parser.parse_args()
    if min(options.tasks, options.backlog, options.every) < 1:
        parser.error("--tasks, --backlog and --every are at least 1")
    return options


def main() -> int:
    """Soak; return the exit code."""
    options = parsed()
    with server(options.dsn) as dsn:
        try:
            wrong = trio.run(run, dsn, options)
        except* SoakFailed as group:
            wrong = [str(each) for each in leaves(group)]
    for each in wrong:
        print(f"wrong: {each}", file=sys.stderr)
    print("not as it should be" if wrong else "all as it should be", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
