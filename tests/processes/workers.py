"""Worker processes of the command line, and somebody who watches what they do to the tables."""

from __future__ import annotations

import contextlib
import re
import threading
import time

from collections import deque
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Final
from uuid import UUID

import attrs
import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._outcome import MAX_LOST
from nursery_queue.cli._failures import UNREACHABLE
from tests.processes import evidence
from tests.support.command_line import CHECKOUT, Running, rows, started, until


LEASE_LOST: Final = re.compile(r"lost the lease of worker ([0-9a-f-]{36})")
LOUD: Final = re.compile(r" (ERROR|CRITICAL) |Traceback|Exception ignored")
FINISHED: Final = "select count(*)::int from nursery_queue.finished"
# Lost once more, a task is given up. That is not what is drilled here.
LOST_ENOUGH: Final = """
    select pid from nursery_queue.running join nursery_queue.worker on worker.id = worker_id
     where lost >= %s
"""
CONNECTIONS: Final = """
    select count(*)::int from pg_stat_activity
     where application_name = 'nursery_queue' and datname = current_database()
"""


@attrs.define(eq=False)
class Fleet:
    """Worker processes; one that cannot start because the database is away is started again."""

    dsn: str
    trace: Path
    options: tuple[str, ...]
    stack: contextlib.ExitStack
    alive: deque[Running] = attrs.field(factory=deque[Running], init=False)  # the oldest first
    dead: list[Running] = attrs.field(factory=list[Running], init=False)
    killed: dict[int, float] = attrs.field(factory=dict[int, float], init=False)  # pid: when

    def add(self) -> Running:
        command = ("worker", "tests.processes.drill:app", *self.options)
        env = {"NURSERY_QUEUE_DSN": self.dsn, "DRILL_TRACE": str(self.trace)}
        worker = self.stack.enter_context(started(*command, cwd=CHECKOUT, env=env))
        self.alive.append(worker)
        return worker

    def add_ready(self, size: int) -> None:
        """Add so many and wait until they are at work."""
        for worker in [self.add() for _ in range(size)]:
            worker.line("ready: ")

    def replace_unborn(self) -> None:
        """Do what a service manager does: start again what ended because there is no database."""
        for worker in list(self.alive):
            if worker.process.poll() is not None:
                assert (worker.code(), "ready: " in worker.stderr) == (UNREACHABLE, False)
                self.alive.remove(worker)
                self.dead.append(worker)
                self.add()

    @property
    def ready(self) -> bool:
        return self.at_work == len(self.alive)

    @property
    def at_work(self) -> int:
        """How many have said that they are."""
        return sum("ready: " in worker.stderr for worker in self.alive)

    @property
    def all_at_work(self) -> bool:
        """Whether the database knows all of them, and nobody else any more."""
        known = sorted(pid for (pid,) in rows(self.dsn, "select pid from nursery_queue.worker"))
        return self.ready and known == sorted(worker.pid for worker in self.alive)

    def victim(self) -> Running | None:
        """Choose the oldest whose death would make no task fail for good."""
        spared = {pid for (pid,) in rows(self.dsn, LOST_ENOUGH, [MAX_LOST - 1])}
        return next((each for each in self.alive if each.pid not in spared), None)

    def kill(self, worker: Running) -> None:
        self.alive.remove(worker)
        self.dead.append(worker)
        self.killed[worker.pid] = time.monotonic()  # it has not ended before that
        worker.process.kill()

    def dismiss(self) -> None:
        """Stop all, the ordinary way; nothing of ours is left in the database."""
        for worker in self.alive:
            worker.process.terminate()
        for worker in self.alive:
            assert worker.code() == 0, worker.stderr
        assert rows(self.dsn, "select id from nursery_queue.worker") == []
        until(lambda: rows(self.dsn, CONNECTIONS) == [(0,)], "the end of all connections")

    @property
    def log(self) -> list[str]:
        return [line for each in [*self.dead, *self.alive] for line in each.stderr.splitlines()]

    @property
    def leases_lost(self) -> set[UUID]:
        """Which workers say that they have lost their lease."""
        return {UUID(found) for found in LEASE_LOST.findall("\n".join(self.log))}

    @property
    def complaints(self) -> list[str]:
        """What the log has of errors; that a lease was lost is told elsewhere."""
        return [line for line in self.log if LOUD.search(line) and not LEASE_LOST.search(line)]


@attrs.define(eq=False)
class Witness:
    """Looks at the tables again and again, through outages."""

    dsn: str
    every: float = 0.1  # seconds
    looks: int = attrs.field(default=0, init=False)
    found: list[str] = attrs.field(factory=list[str], init=False)  # what must never be
    _pids: dict[UUID, int] = attrs.field(factory=dict[UUID, int], init=False)
    _over: threading.Event = attrs.field(factory=threading.Event, init=False)

    @contextlib.contextmanager
    def looking(self) -> Generator[None]:
        """Look on while the block runs."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            thread.join()

    def ids_of(self, pids: Iterable[int]) -> set[UUID]:
        """Return as what workers these processes have been known."""
        return {worker_id for worker_id, pid in self._pids.items() if pid in set(pids)}

    def _run(self) -> None:
        while not self._over.wait(0.05):
            with contextlib.suppress(psycopg.OperationalError):
                self._look_on()

    def _look_on(self) -> None:
        with psycopg.connect(self.dsn, autocommit=True, application_name="witness") as connection:
            while not self._over.wait(self.every):
                for what, query in evidence.NEVER.items():
                    self.found += [f"{what}: {row}" for row in connection.execute(query.encode())]
                workers = connection.execute("select id, pid from nursery_queue.worker")
                self._pids.update(workers.fetchall())
                self.looks += 1


def paced(*, within: float) -> Generator[float]:
    """Yield the time, some times a second; fail when it has not been enough."""
    deadline = time.monotonic() + within
    while (now := time.monotonic()) < deadline:
        yield now
        time.sleep(0.05)
    pytest.fail(f"not done after {within:g} s")


def enqueue(dsn: str, requests: Iterable[nq.TaskRequest]) -> None:
    async def enqueue_all() -> None:
        async with nq.connect(dsn) as client:
            await client.enqueue_many(list(requests))

    trio.run(enqueue_all)
