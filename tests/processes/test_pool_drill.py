"""Eight workers, one of them killed each second, and a limit that holds at every instant."""

from __future__ import annotations

import contextlib
import threading
import time

from collections import Counter
from collections.abc import Generator
from pathlib import Path
from typing import Final

import attrs
import psycopg

from tests.processes import drill, evidence
from tests.processes.workers import FINISHED, Fleet, Witness, enqueue, paced
from tests.support.command_line import rows, until


WORKERS: Final = 8
LIMIT: Final = 5
ENOUGH: Final = 5  # at work, so that one of them may be killed: some machines start them slowly
TASKS: Final = 3000
KILL_EVERY: Final = 1.0  # seconds
LOOK_EVERY: Final = 0.005  # seconds
# A short lease, so that what the killed have held is free again soon. No poll: everything that
# can start is rung for.
OPTIONS: Final = ("-c", "4", "--lease", "1.5", "--heartbeat", "0.4", "--poll-interval", "0")
SET_LIMIT: Final = "insert into nursery_queue.queue (name, max_running) values ('pool', %s)"
RUNNING: Final = """
    select count(*)::int from nursery_queue.running
      join nursery_queue.task on task.id = running.task_id
     where queue = 'pool'
"""


@attrs.define(eq=False)
class Sampler:
    """Counts again and again what runs."""

    dsn: str
    found: Counter[int] = attrs.field(factory=Counter[int], init=False)
    pauses: list[float] = attrs.field(factory=list[float], init=False)
    _over: threading.Event = attrs.field(factory=threading.Event, init=False)

    @contextlib.contextmanager
    def looking(self) -> Generator[None]:
        """Count while the block runs."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def _run(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True, application_name="sampler") as connection:
            last = time.monotonic()
            while not self._over.wait(max(0.0, last + LOOK_EVERY - time.monotonic())):
                last, before = time.monotonic(), last
                self.pauses.append(last - before)
                ((count,),) = connection.execute(RUNNING.encode(), prepare=True).fetchall()
                self.found[count] += 1


def run(fleet: Fleet) -> float:
    """Kill and replace a worker each second until all is done; return how long that took."""
    began = time.monotonic()
    kill_at = began + KILL_EVERY
    for now in paced(within=120):
        if rows(fleet.dsn, FINISHED) == [(TASKS,)]:
            return now - began
        enough = fleet.at_work >= ENOUGH
        if enough and now >= kill_at and (victim := fleet.victim()) is not None:
            kill_at = now + KILL_EVERY
            fleet.kill(victim)
            fleet.add()
    raise AssertionError


def test_never_more_than_the_limit(migrated: str, trace: Path) -> None:
    """3,000 tasks, eight workers, one killed each second: five run, never six, and all end well.

    Whoever looks at the tables never finds more than five, neither do the handlers' own traces
    have more at any instant, and each further attempt is one whose worker was killed.
    """
    rows(migrated, SET_LIMIT, [LIMIT])
    task = drill.slow.options(queue="pool")
    sampler, witness = Sampler(migrated), Witness(migrated, every=0.5)
    with contextlib.ExitStack() as stack:
        fleet = Fleet(migrated, trace, OPTIONS, stack)
        fleet.add_ready(WORKERS)
        with sampler.looking(), witness.looking():
            enqueue(migrated, [task.bind(0.002 + 0.001 * (i % 5)) for i in range(TASKS)])
            took = run(fleet)
            until(lambda: fleet.all_at_work, "the sweep of the dead")
        fleet.dismiss()

    log = evidence.read_log(migrated)
    executions = evidence.read_trace(trace, fleet.killed)
    extra = [entry for entry in log if entry.outcome != "succeeded"]
    print(  # noqa: T201  # pytest shows it with -rP, and when the test fails
        f"{took:.1f} s, {len(fleet.killed)} kills, {sampler.found.total()} looks, one every"
        f" {1000 * sorted(sampler.pauses)[len(sampler.pauses) // 2]:.1f} ms (median), running:"
        f" {dict(sorted(sampler.found.items()))}; {len(executions)} executions, at most"
        f" {evidence.most_at_once(executions)} at once, by"
        f" {len({each.pid for each in executions})} processes;"
        f" extra: {Counter(entry.outcome for entry in extra)}"
    )
    assert max(sampler.found) == LIMIT
    assert evidence.most_at_once(executions) <= LIMIT
    assert len(log) - len(extra) == TASKS
    assert evidence.contradictions(log, executions) == []
    assert {entry.outcome for entry in extra} == {"lost"}
    assert {entry.worker_id for entry in extra} <= witness.ids_of(fleet.killed)
    assert (witness.found, fleet.complaints, fleet.leases_lost) == ([], [], set())
    assert len(fleet.killed) >= 3
    assert sampler.found.total() >= 300
