"""Limits and rates, and processes that are killed: never too many at once, never too many starts.

    python -m tests.support.flow_drill limits [--claims 1000000] [--processes 4] [--seed 1]
    python -m tests.support.flow_drill rate [--seconds 60] [--processes 4] [--seed 1]

In the root of a clone, on a PostgreSQL of its own. `limits` makes random claims of random workers,
one of which is killed (SIGKILL) each second, while limits of queues and keys change several times a
second, and looks all the time at what runs. `rate` has real workers start tasks as fast as a rate
allows them, kills them in turn, and then looks at every window of the log.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import threading
import time

from collections import Counter
from collections.abc import Generator
from typing import Final

import attrs
import psycopg
import trio

import nursery_queue as nq

from nursery_queue._core._model import Claim, NewTask, QueueSlots
from nursery_queue._core._outcome import MAX_LOST
from nursery_queue._core._states import Event
from nursery_queue._pg._postgres_store import PostgresStore
from tests.support.store_steps import a_task, ends, hire


QUEUES: Final = ("one", "two", "three")
KEYS: Final = (None, "a", "b", "c", "d")
BACKLOG: Final = 500
LEASE: Final = 2.0  # seconds
NOW_AND_THEN: Final = 0.25  # seconds between two changes of a limit
# What runs of each queue and key, the limits, and which version of a queue's row they are from: all
# of one moment.
LOOK: Final = """
    select queue.name, null, count(task_id), queue.max_running, queue.xmin::text
      from nursery_queue.queue left join nursery_queue.running on queue.name = running.pool
     group by queue.name
     union all
    select running.pool, running.key, count(*), queue.max_running_per_key, queue.xmin::text
      from nursery_queue.running join nursery_queue.queue on queue.name = running.pool
     where running.key <> ''
     group by running.pool, running.key, queue.name
"""


# -- limits: a process that claims -----------------------------------------------------------------


async def claim_on(dsn: str, seed: int) -> None:
    """Claim, settle and enqueue at random for ever; print how many claims had tasks."""
    rng = random.Random(seed)
    store = PostgresStore(dsn)
    worker = await hire(store, lease=LEASE)
    held: list[Claim] = []
    claims = 0
    while True:
        slots = [
            QueueSlots(queue=name, slots=rng.randint(1, 9))
            for name in rng.sample(QUEUES, rng.randint(1, 3))
        ]
        found = await store.claim(
            worker,
            ["work"],
            limit=rng.choice([1, 2, 5, 20]),
            queue_slots=rng.choice([None, slots]),
            soon=rng.choice([None, 1, 5]),
        )
        held += found.claims
        claims += 1
        rng.shuffle(held)
        done = [held.pop() for _ in range(rng.randint(0, len(held)))]
        outcomes = rng.choices(
            [Event.SUCCEED, Event.INTERRUPT, Event.RETRY], (6, 2, 1), k=len(done)
        )
        batch = [
            ends(each, event, delay=0.0, keep_for=0.0)
            for each, event in zip(done, outcomes, strict=True)
        ]
        await store.settle(batch)
        if (ended := outcomes.count(Event.SUCCEED)) or claims == 1:
            await store.enqueue([_some_task(rng) for _ in range(ended or BACKLOG // 4)])
        await store.heartbeat(worker, draining=False)
        await store.promote()
        sys.stdout.write(f"{claims}\n")
        sys.stdout.flush()


def _some_task(rng: random.Random) -> NewTask:
    return a_task(queue=rng.choice(QUEUES), key=rng.choice(KEYS), priority=rng.choice([0, 0, 5]))


# -- processes, and who kills them -----------------------------------------------------------------


@attrs.define(eq=False)
class Herd:
    """Processes of this module; in turn one is killed, and another takes its place."""

    what: str
    dsn: str
    rng: random.Random
    lines: Counter[int] = attrs.field(factory=Counter[int], init=False)  # the last, by process
    kills: int = attrs.field(default=0, init=False)
    _alive: list[subprocess.Popen[str]] = attrs.field(
        factory=list["subprocess.Popen[str]"], init=False
    )

    @contextlib.contextmanager
    def of(self, size: int) -> Generator[None]:
        """Keep so many alive while the block runs."""
        for _ in range(size):
            self._add()
        try:
            yield
        finally:
            while self._alive:
                self._kill()

    def replace_one(self, after: int) -> None:
        """Kill the oldest once it has done so much: some machines start them slowly."""
        if self.lines[self._alive[0].pid] < after:
            return
        self._kill()
        self.kills += 1
        self._add()

    def complain(self) -> None:
        """Raise if one has ended by itself."""
        for process in self._alive:
            if process.poll() is not None:
                raise AssertionError(f"process {process.pid} has ended with {process.returncode}")

    def _add(self) -> None:
        seed = str(self.rng.randrange(2**32))
        process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name, self.what, "--dsn", self.dsn, "--seed", seed],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._alive.append(process)
        threading.Thread(target=self._read, args=[process], daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.lines[process.pid] = int(line)

    def _kill(self) -> None:
        process = self._alive.pop(0)  # the oldest
        process.kill()
        process.wait()


# -- limits: who looks on --------------------------------------------------------------------------


@attrs.define(eq=False)
class Observer:
    """Compares what runs with the limits, both as of one moment."""

    session: psycopg.Connection
    looks: int = attrs.field(default=0, init=False)
    at_limit: int = attrs.field(default=0, init=False)  # how often something ran to the full
    _before: dict[tuple[str, str | None], int] = attrs.field(
        factory=dict["tuple[str, str | None]", int], init=False
    )
    _versions: dict[str, str] = attrs.field(factory=dict[str, str], init=False)

    def look(self) -> None:
        """Raise if there is more than may be: a limit that was lowered lets what runs go on."""
        found: dict[tuple[str, str | None], int] = {}
        versions: dict[str, str] = {}
        for queue, key, running, limit, version in self.session.execute(LOOK).fetchall():
            found[queue, key], versions[queue] = running, version
            if limit is None or self._versions.get(queue) != version:
                continue
            self.at_limit += running == limit > 0
            allowed = max(limit, self._before.get((queue, key), 0))
            assert running <= allowed, f"{queue}, key {key}: {running} run, {limit} may"
        self._before, self._versions = found, versions
        self.looks += 1


def change_a_limit(session: psycopg.Connection, rng: random.Random) -> None:
    column = rng.choice(["max_running", "max_running_per_key"])
    limit = rng.choice([None, 1, 2, 3, 8, 30] + [0] * (column == "max_running"))
    session.execute(
        f"update nursery_queue.queue set {column} = %s where name = %s".encode(),
        [limit, rng.choice(QUEUES)],
    )


async def sweep_always(dsn: str) -> None:
    """Give back what the killed have held."""
    store = PostgresStore(dsn)
    while True:
        await store.sweep(max_lost=MAX_LOST)
        await trio.sleep(0.2)


def drill_limits(dsn: str, claims: int, processes: int, rng: random.Random) -> str:
    with psycopg.connect(dsn, autocommit=True) as session:
        session.cursor().executemany(
            "insert into nursery_queue.queue (name, max_running) values (%s, 5)",
            [[name] for name in QUEUES],
        )
        herd, observer = Herd("claim", dsn, rng), Observer(session)
        began = kill_at = change_at = time.monotonic()
        with herd.of(processes), _sweeping(dsn):
            while sum(herd.lines.values()) < claims:
                observer.look()
                time.sleep(0.002)
                now = time.monotonic()
                if now > change_at:
                    change_a_limit(session, rng)
                    change_at = now + NOW_AND_THEN
                if now > kill_at:
                    herd.complain()
                    herd.replace_one(after=100)
                    kill_at = now + 1
        made = sum(herd.lines.values())
    return (
        f"{made} claims in {time.monotonic() - began:.0f} s, {herd.kills} processes killed,"
        f" {observer.looks} looks, {observer.at_limit} times something ran to its limit, never over"
    )


@contextlib.contextmanager
def _sweeping(dsn: str) -> Generator[None]:
    sweeper = subprocess.Popen([sys.executable, "-m", __spec__.name, "sweep", "--dsn", dsn])
    try:
        yield
    finally:
        sweeper.kill()
        sweeper.wait()


# -- rates -----------------------------------------------------------------------------------------

RATE: Final = nq.Rate(600, per=10, burst=20)
app = nq.App()


@app.task(queue="calls", key="customer", keep_for=3600)
async def call(customer: str) -> None:
    await trio.lowlevel.checkpoint()


async def work_on(dsn: str) -> None:
    async with nq.connect(dsn) as client, trio.open_nursery() as nursery:
        await nursery.start(nq.Worker(app, client, lease=LEASE, heartbeat=LEASE / 4).run)
        sys.stdout.write("1\n")
        sys.stdout.flush()


def drill_rate(dsn: str, seconds: float, processes: int, rng: random.Random) -> str:
    tasks = int(RATE.count / RATE.per * seconds * 1.5)

    async def prepare() -> None:
        async with nq.connect(dsn, app=app) as client:
            await client.configure_queue("calls", rate=RATE)
            await client.enqueue_many([call.bind(rng.choice("abcde")) for _ in range(tasks)])

    trio.run(prepare)
    herd = Herd("work", dsn, rng)
    with herd.of(processes):
        ends_at = time.monotonic() + seconds
        while (left := ends_at - time.monotonic()) > 0:
            time.sleep(min(2.0, left))  # a kill every other second
            herd.complain()
            herd.replace_one(after=1)
    with psycopg.connect(dsn) as session:
        rows = session.execute(
            "select extract(epoch from started_at)::float8 from nursery_queue.task_attempt"
            " order by started_at"
        ).fetchall()
    starts = [at for (at,) in rows]
    most = most_in_a_window(starts, RATE.per)
    assert most <= RATE.count + RATE.burst, f"{most} starts in {RATE.per} s"
    used = (len(starts) - 1 - RATE.burst) / ((starts[-1] - starts[0]) * RATE.count / RATE.per)
    return (
        f"{len(starts)} starts, {herd.kills} workers killed; at most {most} in any {RATE.per:g} s,"
        f" {RATE.count + RATE.burst} may be; {used:.0%} of the rate used"
    )


def most_in_a_window(starts: list[float], seconds: float) -> int:
    """Return the most starts in any half-open window; *starts* are in order."""
    most = first = 0
    for last, at in enumerate(starts):
        while at - starts[first] >= seconds:
            first += 1
        most = max(most, last - first + 1)
    return most


# -- the command -----------------------------------------------------------------------------------


def main() -> None:
    """Drill as the command line says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["limits", "rate", "claim", "work", "sweep"])
    parser.add_argument("--claims", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dsn", help="for the processes of the drill itself")
    asked = parser.parse_args()
    match asked.what:  # what the processes do
        case "claim":
            trio.run(claim_on, asked.dsn, asked.seed)
        case "work":
            trio.run(work_on, asked.dsn)
        case "sweep":
            trio.run(sweep_always, asked.dsn)
        case _:
            rng = random.Random(asked.seed)
            with tempfile.TemporaryDirectory() as folder, nq.embedded(folder) as server:
                trio.run(nq.migrate, server.dsn)
                if asked.what == "limits":
                    said = drill_limits(server.dsn, asked.claims, asked.processes, rng)
                else:
                    said = drill_rate(server.dsn, asked.seconds, asked.processes, rng)
            sys.stdout.write(f"{said}\n")


if __name__ == "__main__":
    main()
