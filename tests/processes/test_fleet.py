"""Several worker processes on one database."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys

from collections import Counter
from collections.abc import AsyncGenerator
from pathlib import Path

import psycopg
import trio

import nursery_queue as nq


FLEET = Path(__file__).with_name("fleet.py")


@contextlib.asynccontextmanager
async def fleet(dsn: str, size: int) -> AsyncGenerator[list[str]]:
    """Run *size* workers that are ready; afterwards, what each wrote on stderr is in the list."""
    logs: list[str] = []
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_start(dsn)) for _ in range(size)]
        for process in processes:
            stack.callback(process.kill)
            assert process.stdout is not None
            assert await trio.to_thread.run_sync(process.stdout.readline) == "ready\n"
        yield logs
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            _, errors = await trio.to_thread.run_sync(process.communicate)
            logs.append(errors)
            assert process.returncode == 0, errors


def _start(dsn: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(FLEET), dsn],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def until_finished(dsn: str, count: int, *, within: float) -> None:
    """Wait until so many tasks have ended."""
    async with nq.connect(dsn) as client:
        with trio.fail_after(within):
            while True:
                stats = await client.stats()
                states = Counter[nq.State]()
                for of_queue in stats.queues.values():
                    states.update(of_queue)
                if count == sum(states[state] for state in nq.State if state.is_final):
                    return
                await trio.sleep(0.05)


async def test_four_workers_run_each_task_exactly_once(migrated: str) -> None:
    """Four processes share 5,000 tasks: each runs once, each claim goes to one, no error line."""
    with psycopg.connect(migrated, autocommit=True) as conn:
        conn.execute("create table ran (i int, pid int)")
        async with fleet(migrated, 4) as logs:
            async with nq.connect(migrated) as client:
                requests = [nq.TaskRequest.by_name("count", {"i": i}) for i in range(4_000)]
                requests += [nq.TaskRequest.by_name("ran", {"i": i}) for i in range(1_000)]
                await client.enqueue_many(requests)
            await until_finished(migrated, 5_000, within=120)

        outcomes = conn.execute(
            "select outcome, count(*), count(distinct task_id), count(distinct worker_id)"
            " from nursery_queue.task_attempt group by outcome"
        ).fetchall()
        ran = conn.execute("select count(*), count(distinct i) from ran").fetchall()
        deadlocks = conn.execute(
            "select deadlocks from pg_stat_database where datname = current_database()"
        ).fetchone()
        left = conn.execute("select count(*) from nursery_queue.worker").fetchone()

    assert outcomes == [("succeeded", 5_000, 5_000, 4)]
    assert ran == [(1_000, 1_000)]
    assert deadlocks == (0,)
    assert left == (0,)
    assert [line for log in logs for line in log.splitlines() if not line.startswith("INFO")] == []


async def test_starts_soon_after_commit_and_never_before(migrated: str) -> None:
    """A task enqueued in an open transaction waits for COMMIT, then for no poll."""
    app, started = nq.App(), trio.Event()

    @app.task
    async def note() -> None:
        started.set()

    async with nq.connect(migrated) as client, trio.open_nursery() as nursery:
        await nursery.start(nq.Worker(app, client, poll_interval=60).run)
        async with client.transaction() as tx:
            await tx.enqueue(note)
            # Another task that could overtake it, and a claim that looks at the table.
            await client.wait(await client.enqueue(note.options(queue="other")))
            assert started.is_set()
            started = trio.Event()
            with trio.move_on_after(0.2) as waited:
                await started.wait()
        assert waited.cancelled_caught
        with trio.fail_after(30):  # half the time until the next poll
            await started.wait()
        nursery.cancel_scope.cancel()


async def test_rolled_back_enqueues_leave_nothing(migrated: str) -> None:
    """Ten transactions that enqueue and roll back leave no row anywhere."""
    app = nq.App()

    @app.task
    async def never() -> None:
        raise AssertionError

    async with nq.connect(migrated) as client:
        for _ in range(10):
            with contextlib.suppress(ZeroDivisionError):
                async with client.transaction() as tx:
                    await tx.enqueue_many([never.bind() for _ in range(5)])
                    await tx.enqueue(never.options(run_after=60, dedup_key="a"))
                    raise ZeroDivisionError
        await nq.Worker(app, client).run_until_idle()

    with psycopg.connect(migrated) as conn:
        for table in ("task", "ready", "scheduled", "running", "finished", "attempt", "dedup"):
            assert conn.execute(f"select count(*) from nursery_queue.{table}").fetchone() == (0,)


async def test_idle_worker_holds_no_transaction(migrated: str) -> None:
    """An idle worker has few connections, none of them in a transaction."""
    query = (
        "select state, count(*)::int from pg_stat_activity"
        " where datname = current_database() and application_name = 'nursery_queue' group by state"
    )
    async with nq.connect(migrated) as client, trio.open_nursery() as nursery:
        await nursery.start(nq.Worker(nq.App(), client, heartbeat=0.05, lease=1).run)
        with psycopg.connect(migrated, autocommit=True, application_name="watcher") as conn:
            for _ in range(50):
                states: dict[str, int] = dict(conn.execute(query).fetchall())
                assert set(states) <= {"idle", "active"}
                # To listen, for heartbeats, two to claim and settle; the application's first.
                assert sum(states.values()) <= 5
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
