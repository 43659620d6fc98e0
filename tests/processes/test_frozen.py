"""A worker process that is stopped by SIGSTOP for longer than its lease, and continued."""

from __future__ import annotations

import contextlib
import signal

from collections.abc import Generator
from pathlib import Path
from uuid import UUID

import attrs
import pytest

from tests.processes import freezer
from tests.processes.workers import enqueue
from tests.support.command_line import CHECKOUT, Running, rows, started, until


LEASE = 2.0  # seconds
OPTIONS = ("--lease", str(LEASE), "--heartbeat", "0.3", "--concurrency", "10")
NAP = 3.0  # seconds; it is over while the worker is frozen
TOLD = ["book", "hold", "nap", "stubborn"]  # can say how they ended; a thread is left alone
KINDS = sorted([*TOLD, "thread"])


@attrs.define(eq=False)
class Scene:
    """A database, and what handlers wait for."""

    dsn: str
    stack: contextlib.ExitStack
    go: Path

    def hire(self) -> Running:
        """Start a worker and wait until it is at work."""
        command = ("worker", "tests.processes.freezer:app", *OPTIONS)
        env = {"NURSERY_QUEUE_DSN": self.dsn}
        worker = self.stack.enter_context(started(*command, cwd=CHECKOUT, env=env))
        worker.line("ready: ")
        return worker

    def dismiss(self, worker: Running) -> None:
        worker.process.terminate()
        assert worker.code() == 0, worker.stderr

    def hand_out(self) -> None:
        """Enqueue a task of each kind that waits."""
        go = str(self.go)
        waiting = [each.bind(go) for each in (freezer.hold, freezer.stubborn, freezer.thread)]
        enqueue(self.dsn, [*waiting, freezer.book.bind(go), freezer.nap.bind(NAP)])

    def id_of(self, worker: Running) -> UUID:
        ((worker_id,),) = rows(
            self.dsn, "select id from nursery_queue.worker where pid = %s", [worker.pid]
        )
        assert isinstance(worker_id, UUID)
        return worker_id

    def until(self, condition: str, what: str, *params: object) -> None:
        until(lambda: rows(self.dsn, f"select {condition}", params) == [(True,)], what)

    def freeze(self, worker: Running, worker_id: UUID) -> None:
        """Stop it once all its handlers are at work."""
        for kind in KINDS:
            worker.line(f"^{kind} {worker_id} begins", of="stdout")
        worker.send(signal.SIGSTOP)

    def log(self) -> dict[str, list[tuple[str, UUID]]]:
        """Return the attempts at each kind of task."""
        found: dict[str, list[tuple[str, UUID]]] = {}
        for kind, outcome, worker_id in rows(
            self.dsn,
            "select task_type, outcome, worker_id from nursery_queue.task_attempt"
            " join nursery_queue.task on task.id = task_id order by task_id, number",
        ):
            found.setdefault(kind, []).append((outcome, worker_id))
        return found


@pytest.fixture
def scene(migrated: str, tmp_path: Path) -> Generator[Scene]:
    rows(migrated, "create table booked (worker_id uuid)")
    with contextlib.ExitStack() as stack:
        yield Scene(migrated, stack, tmp_path / "go")


def assert_given_up(worker: Running, old: UUID) -> None:
    """Assert that its handlers were told why, and that the log says what has happened."""
    worker.line(f"lost the lease of worker {old}")
    for kind in TOLD:
        told = worker.line(f"^{kind} {old} ends", of="stdout")
        # The nap may be over before anybody is told anything.
        assert told.endswith("lease_lost") or (kind == "nap" and told.endswith("None"))


def assert_works_on(scene: Scene, worker: Running, old: UUID) -> UUID:
    """Assert that it has one row, under a new id, and that new tasks succeed on it."""
    scene.until(
        "count(*) = 1 and bool_and(id <> %s) from nursery_queue.worker where pid = %s",
        "a new id",
        *(old, worker.pid),
    )
    enqueue(scene.dsn, [freezer.quick.bind() for _ in range(3)])
    scene.until(
        "count(*) = 3 from nursery_queue.finished join nursery_queue.task on id = task_id"
        " where task_type = 'quick' and state = 'succeeded' and result = %s::jsonb",
        "the end of the new tasks",
        str(worker.pid),
    )
    return scene.id_of(worker)


def test_frozen_while_another_works(scene: Scene) -> None:
    """The other one does its tasks; continued, it settles nothing, gives up, and works on."""
    frozen = scene.hire()
    old = scene.id_of(frozen)
    scene.hand_out()
    scene.freeze(frozen, old)
    other = scene.hire()
    taker = scene.id_of(other)
    scene.go.touch()
    scene.until("count(*) = 5 from nursery_queue.finished", "the end of all tasks")
    frozen.send(signal.SIGCONT)
    assert_given_up(frozen, old)
    scene.dismiss(other)
    new = assert_works_on(scene, frozen, old)
    log = scene.log()
    assert log.pop("quick") == [("succeeded", new)] * 3
    assert log == {kind: [("lost", old), ("succeeded", taker)] for kind in KINDS}
    assert rows(scene.dsn, "select * from booked") == [(taker,)]
    results = rows(scene.dsn, "select distinct result from nursery_queue.finished")
    assert sorted(results) == sorted([(frozen.pid,), (other.pid,)])
    scene.dismiss(frozen)
    assert rows(scene.dsn, "select * from nursery_queue.worker") == []


def test_frozen_alone(scene: Scene) -> None:
    """With nobody to take them its tasks are lost all the same, and done by itself, once more."""
    frozen = scene.hire()
    old = scene.id_of(frozen)
    scene.hand_out()
    scene.freeze(frozen, old)
    scene.until(
        "bool_and(heartbeat_at < now() - make_interval(secs => lease)"
        " and running.started_at < now() - make_interval(secs => %s))"
        " from nursery_queue.worker join nursery_queue.running on worker_id = id",
        "the end of the lease, and of the nap",
        NAP,
    )
    assert scene.id_of(frozen) == old
    frozen.send(signal.SIGCONT)
    assert_given_up(frozen, old)
    scene.go.touch()
    new = assert_works_on(scene, frozen, old)
    scene.until("count(*) = 8 from nursery_queue.finished", "the end of all tasks")
    log = scene.log()
    assert log.pop("quick") == [("succeeded", new)] * 3
    assert log == {kind: [("lost", old), ("succeeded", new)] for kind in KINDS}
    assert rows(scene.dsn, "select * from booked") == [(new,)]
    scene.dismiss(frozen)
    assert rows(scene.dsn, "select * from nursery_queue.worker") == []
