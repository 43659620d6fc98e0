"""What it costs to ask why a task is not running, with a million others and ten thousand queues.

    python -m benchmarks.why [--dsn DSN] [--tasks 1000000] [--queues 10000] [--rounds 50]

Half of the tasks are ready in one queue, the others in all queues, each of which has a limit; a
hundred thousand tasks have ended. Asks about the oldest and the newest of the one queue, one of a
queue that is full, one that a rate holds back and one of an unknown type. Prints the first answer
of a connection and the median of the others. Exits with 1 if some median is more than 20 ms.
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

from collections.abc import Generator

import psycopg
import trio

from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from nursery_queue._core._model import QueueSlots, WorkerInfo


ENOUGH = 20.0  # ms
DATABASE = "nursery_queue_why"
# Without triggers, for the sake of time.
FILL = """
    set session_replication_role = replica;
    insert into nursery_queue.queue (name, max_running)
    select 'q' || i, 3 from generate_series(1, %(queues)s) as i;
    insert into nursery_queue.task (task_type, queue, priority, key, on_complete)
    select 'work', 'default', 0, null, null from generate_series(1, 100000) as i;
    insert into nursery_queue.finished
    select id, 'succeeded', 1, 1, 0, now(), now() + interval '1 day' from nursery_queue.task;
    with stored as (
        insert into nursery_queue.task (task_type, queue, priority, key, on_complete)
        select 'work', case when i %% 2 = 0 then 'default' else 'q' || i %% %(queues)s + 1 end,
               0, null, null
          from generate_series(1, %(tasks)s) as i
        returning id, queue, priority, task_type
    )
    insert into nursery_queue.ready (task_id, queue, priority, task_type)
    select id, queue, priority, task_type from stored;
    set session_replication_role = origin;
    analyze;
"""


def run(dsn: str, statement: str, params: dict[str, int] | None = None) -> None:
    """Run statements outside of everything."""
    with psycopg.connect(dsn, autocommit=True) as session, psycopg.ClientCursor(session) as cursor:
        cursor.execute(statement.encode(), params)


@contextlib.contextmanager
def database(dsn: str | None) -> Generator[str]:
    """Yield a fresh database on a server, named or of our own."""
    with contextlib.ExitStack() as stack:
        if dsn is None:
            path = stack.enter_context(tempfile.TemporaryDirectory())
            dsn = stack.enter_context(nq.embedded(path)).dsn
        run(dsn, f"drop database if exists {DATABASE} with (force)")
        run(dsn, f"create database {DATABASE}")
        yield make_conninfo(dsn, dbname=DATABASE)
        run(dsn, f"drop database {DATABASE} with (force)")


async def stage(client: nq.Client) -> dict[str, int]:
    """Bring about what is asked about; return the tasks, by what holds them."""
    store, worker = client.store, uuid.uuid4()
    await store.register(
        WorkerInfo(id=worker, name="b", host="b", pid=0, task_types=["work"], lease=86_400)
    )

    async def add(task_type: str, queue: str) -> int:
        (ref,) = await client.enqueue_many([nq.TaskRequest.by_name(task_type, queue=queue)])
        return ref.id

    oldest = await client.list_tasks(queue="default", state="ready", limit=1, after=100_003)
    asked = {"next": oldest[0].id, "newest": await add("work", "default")}
    await client.configure_queue("full", max_running=2)
    await client.configure_queue("slow", rate=nq.Rate(1, per=3600))
    for queue in ("full", "full", "slow"):
        await add("work", queue)
    for queue in ("full", "slow"):
        slots = [QueueSlots(queue=queue, slots=2)]
        await store.claim(worker, ["work"], limit=2, queue_slots=slots)
    asked["full queue"] = await add("work", "full")
    asked["rate"] = await add("work", "slow")
    asked["unknown type"] = await add("worq", "default")
    return asked


async def measure(dsn: str, options: argparse.Namespace) -> float:
    """Ask, print, and return the worst median in ms."""
    await nq.migrate(dsn)
    began = time.perf_counter()
    params = {"tasks": options.tasks, "queues": options.queues}
    await trio.to_thread.run_sync(run, dsn, FILL, params)
    print(f"{options.tasks:,} ready tasks stored in {time.perf_counter() - began:.0f} s")
    async with nq.connect(dsn) as client:
        asked = await stage(client)
    worst = 0.0
    for what, task_id in asked.items():
        async with nq.connect(dsn) as client:
            times: list[float] = []
            await client.status(task_id)  # the connection is open, and no answer has been asked
            for _ in range(1 + options.rounds):
                began = time.perf_counter()
                why = await client.why(task_id)
                times.append(1000 * (time.perf_counter() - began))
        median = statistics.median(times[1:])
        worst = max(worst, median)
        first, most, codes = times[0], max(times[1:]), ", ".join(why.codes)
        print(f"{what}: {median:.2f} ms (the first {first:.1f}, at most {most:.1f}): {codes}")
    return worst


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--dsn",
        default=os.environ.get("NURSERY_QUEUE_TEST_DSN"),
        help="a server to make a database on; by default one of its own",
    )
    parser.add_argument("--tasks", type=int, default=1_000_000)
    parser.add_argument("--queues", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    with database(options.dsn) as dsn:
        worst = trio.run(measure, dsn, options)
    print(f"\nat most {worst:.2f} ms, which may be {ENOUGH:g}")
    return 0 if worst <= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
