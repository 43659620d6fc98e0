"""Workers are killed and the server crashes, and the log still explains everything."""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import time

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import attrs
import psycopg

import nursery_queue as nq

from tests.processes import drill, evidence
from tests.processes.workers import FINISHED, Fleet, Witness, enqueue, paced
from tests.support.command_line import Running, rows, until
from tests.support.own_server import Mode, OwnServer


KILL_EVERY: Final = 2.0
MODES: Final[tuple[Mode, ...]] = ("fast", "immediate")
OPTIONS: Final = ("-c", "4", "--lease", "3", "--heartbeat", "0.5", "--poll-interval", "1")
AWAY: Final = {  # what a handler may hear in its transaction when the server goes
    f"{each.__module__}.{each.__qualname__}"
    for each in (
        psycopg.OperationalError,
        psycopg.errors.AdminShutdown,
        psycopg.errors.CrashShutdown,
        psycopg.errors.CannotConnectNow,
        nq.CommitOutcomeUnknown,
        nq.NoConnection,
        nq.TransientError,
    )
}


def mixture(rng: random.Random) -> list[nq.TaskRequest]:
    """Make 2,000 tasks: two and a half minutes of handlers' time, in random order."""
    tasks: list[nq.TaskRequest] = []
    tasks += [drill.quick.bind() for _ in range(800)]
    tasks += [drill.quick.options(queue="other").bind() for _ in range(100)]
    tasks += [drill.slow.bind(rng.uniform(0.05, 0.3)) for _ in range(500)]
    tasks += [drill.slow.options(queue="other").bind(rng.uniform(0.05, 0.3)) for _ in range(100)]
    tasks += [drill.in_thread.bind(rng.uniform(0.02, 0.1)) for _ in range(200)]
    tasks += [drill.booked.bind(rng.uniform(0, 0.1)) for _ in range(200)]
    tasks += [drill.third_time_lucky.bind(rng.uniform(0, 0.1)) for _ in range(100)]
    rng.shuffle(tasks)
    return tasks


@attrs.define(eq=False)
class Drill:
    """Kills a worker every two seconds until all is done; in the middle, crashes the server."""

    server: OwnServer
    fleet: Fleet
    count: int
    away: tuple[dt.datetime, dt.datetime] | None = None

    def run(self) -> None:
        kill_at = time.monotonic() + KILL_EVERY
        for now in paced(within=150):
            self.fleet.replace_unborn()
            done = finished(self.server.dsn)
            if done == self.count:
                break
            if now >= kill_at and self.fleet.ready and (victim := self.fleet.victim()) is not None:
                kill_at = now + KILL_EVERY
                if self.away is None and done >= self.count / 2:
                    self.crash(victim)
                else:
                    self.fleet.kill(victim)
                    self.fleet.add()

    def crash(self, victim: Running) -> None:
        """Stop the server as a crash would; while it is away, a worker goes, too."""
        away_at = dt.datetime.now(dt.UTC)
        self.server.stop("immediate")
        self.fleet.kill(victim)
        self.fleet.add()
        self.server.start()
        self.away = (away_at, dt.datetime.now(dt.UTC))

    def excuses(self, entry: evidence.Entry, witness: Witness) -> bool:
        """Whether there is a reason for this attempt not to have been the last of its task."""
        assert self.away is not None
        if entry.outcome == "lost":
            return entry.worker_id in witness.ids_of(self.fleet.killed) | self.fleet.leases_lost
        on_purpose = (entry.task_type, entry.error_type) == ("third_time_lucky", drill.ON_PURPOSE)
        needs_the_server = entry.task_type == "booked" and entry.error_type in AWAY
        meanwhile = entry.started_at <= self.away[1] and entry.finished_at >= self.away[0]
        if needs_the_server and meanwhile:
            return entry.outcome in {"failed", "interrupted"}
        return entry.outcome == "failed" and on_purpose


def test_every_extra_execution_is_explained(server: OwnServer, trace: Path) -> None:
    """2,000 tasks, three workers, one killed every 2 s, a crash of the server: all succeed.

    Nobody ever runs a task that somebody else runs, transactional writes are there once, and
    each further attempt is one whose worker was killed, or that failed because its server was
    away or because it was meant to.
    """
    began = time.monotonic()
    rows(server.dsn, "create table booked (task_id bigint, epoch int)")
    tasks = mixture(random.Random(3))
    enqueue(server.dsn, tasks)
    witness = Witness(server.dsn)
    with contextlib.ExitStack() as stack:
        fleet = Fleet(server.dsn, trace, OPTIONS, stack)
        drilling = Drill(server, fleet, len(tasks))
        fleet.add_ready(3)
        with witness.looking():
            drilling.run()
            until(lambda: fleet.all_at_work, "the sweep of the dead")
        fleet.dismiss()

    log = evidence.read_log(server.dsn)
    executions = evidence.read_trace(trace, fleet.killed)
    extra = [entry for entry in log if entry.outcome != "succeeded"]
    print(  # noqa: T201  # pytest shows it with -rA, and when the test fails
        f"{time.monotonic() - began:.1f} s, {len(fleet.killed)} kills, {witness.looks} looks,"
        f" {len(executions)} executions, leases lost by the living: {len(fleet.leases_lost)},"
        f" extra: {Counter((entry.outcome, entry.error_type) for entry in extra)}"
    )
    assert len(log) - len(extra) == len(tasks)
    assert evidence.contradictions(log, executions) == []
    assert [entry for entry in extra if not drilling.excuses(entry, witness)] == []
    assert Counter(entry.error_type for entry in extra)[drill.ON_PURPOSE] == 2 * 100
    assert rows(server.dsn, "select * from booked order by task_id") == commits(log)
    assert (witness.found, fleet.complaints) == ([], [])
    assert len(fleet.killed) >= 4
    assert witness.looks >= 20
    assert Counter(entry.outcome for entry in extra)["lost"] > 0


def finished(dsn: str) -> int:
    ((count,),) = rows(dsn, FINISHED)
    return int(count)


def until_finished(dsn: str, count: int) -> None:
    until(lambda: finished(dsn) >= count, f"the end of {count} tasks")


def commits(log: Sequence[evidence.Entry]) -> list[tuple[int, int]]:
    """Return which executions have written a row, by what the log says."""
    booked = [each for each in log if each.task_type == "booked"]
    return [(each.task_id, each.epoch) for each in booked if each.outcome == "succeeded"]


def test_a_restart_of_the_server_costs_nothing(
    server: OwnServer, trace: Path, tmp_path: Path
) -> None:
    """Two restarts under three workers: handlers run on, every task is executed once.

    No worker process ends, no worker loses its lease or its place.
    """
    ids = "select id from nursery_queue.worker order by id"
    with contextlib.ExitStack() as stack:
        fleet = Fleet(server.dsn, trace, ("-c", "10", "--heartbeat", "0.1"), stack)
        fleet.add_ready(3)
        workers = rows(server.dsn, ids)
        enqueue(server.dsn, [drill.gate.bind(str(tmp_path / "go")) for _ in range(9)])
        until(lambda: trace.read_text().count("+") == 9, "the start of those that wait")
        away: list[float] = []
        for mode in MODES:
            before = finished(server.dsn)
            enqueue(server.dsn, [drill.slow.bind(0.01 * (i % 10)) for i in range(400)])
            until_finished(server.dsn, before + 50)
            away.append(server.restart(mode))
            until_finished(server.dsn, before + 400)
        (tmp_path / "go").touch()
        until_finished(server.dsn, 809)
        assert rows(server.dsn, ids) == workers
        fleet.dismiss()

    log = evidence.read_log(server.dsn)
    print(f"server away for {away[0]:.1f} s and {away[1]:.1f} s")  # noqa: T201  # for -rA
    assert evidence.contradictions(log, evidence.read_trace(trace, {})) == []
    assert Counter(entry.outcome for entry in log) == {"succeeded": 809}
    assert (fleet.complaints, fleet.leases_lost) == ([], set())
