"""`status --watch`: again and again, until somebody has seen enough."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess

from collections.abc import Generator
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.cli.conftest import Run, Start
from tests.support.command_line import PATIENCE, Running, command, environment, rows, until


INT, TERM = signal.SIGINT, signal.SIGTERM
OFTEN = ("status", "--watch", "50ms")
NEW = "insert into nursery_queue.task (task_type, queue) values ('hello', %s)"


def blocks(watching: Running) -> list[list[str]]:
    """Return what it has shown so far, an incomplete block at the end included."""
    text = "\n".join(watching.lines("stdout"))
    return [block.splitlines() for block in text.split("\n\n")]


@pytest.mark.parametrize("signum", [INT, TERM])
def test_a_block_after_the_other(start: Start, migrated: str, signum: signal.Signals) -> None:
    """A reader gets block after block, as soon as each is there; an interrupt ends it with 0."""
    rows(migrated, NEW, ["mail"])
    with start(*OFTEN) as watching:
        watching.line("^queue\tmail\t0\t1\t", of="stdout", count=2)
        rows(migrated, NEW, ["mail"])
        watching.line("^queue\tmail\t0\t2\t", of="stdout", count=2)
        watching.send(signum)
        code = watching.code()

    assert (code, watching.stderr) == (0, "")
    queues = [[line for line in block if line.startswith("queue")] for block in blocks(watching)]
    assert {len(each) for each in queues} <= {0, 1}


def test_nothing_is_kept_from_the_reader(start: Start, migrated: str) -> None:
    """The first block is there long before the second one; nobody waits for that to end it."""
    rows(migrated, NEW, ["mail"])
    with start("status", "--watch", "1h") as watching:
        watching.line("^queue\tmail", of="stdout")
        watching.send(INT)
        code = watching.code()

    assert (code, len(blocks(watching))) == (0, 1)


def test_as_json(start: Start, migrated: str) -> None:
    """Each object has the instant at which it was true, and no line is without an object."""
    rows(migrated, NEW, ["mail"])
    with start(*OFTEN, "--json") as watching:
        watching.line("mail", of="stdout", count=5)
        watching.send(INT)
        assert watching.code() == 0

    found: list[dict[str, Any]] = [json.loads(line) for line in watching.lines("stdout")]
    looks = [each["at"] for each in found if each["kind"] == "queue"]
    assert sorted(set(looks)) == looks
    assert {each["ready"] for each in found if each["kind"] == "queue"} == {1}


@attrs.frozen
class Doors:
    """Lets nobody into a database, as if there were none."""

    server: str
    name: str

    def shut(self) -> None:
        self._do(f"alter database {self.name} allow_connections false")
        self._do(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            f" where datname = '{self.name}' and application_name like 'nursery_queue%'"
        )

    def open(self) -> None:
        self._do(f"alter database {self.name} allow_connections true")

    def _do(self, statement: str) -> None:
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(statement.encode())


@pytest.fixture
def doors(migrated: str) -> Generator[Doors]:
    """The database, whose doors can be shut."""
    name = str(conninfo_to_dict(migrated)["dbname"])
    doors = Doors(make_conninfo(migrated, dbname="postgres"), name)
    yield doors
    doors.open()


def test_an_outage(start: Start, migrated: str, doors: Doors) -> None:
    """While the database is away it says so, once, and goes on when it is back."""
    rows(migrated, NEW, ["mail"])
    with start(*OFTEN) as watching:
        watching.line("^queue", of="stdout")
        doors.shut()
        watching.line("trying again")
        doors.open()
        watching.line("answers again")
        seen = len(watching.lines("stdout"))
        until(lambda: len(watching.lines("stdout")) > seen + 4, "the next blocks")
        watching.send(INT)
        assert watching.code() == 0

    assert "cannot reach database" in watching.stderr
    assert watching.stderr.count("trying again") == 1
    assert "Traceback" not in watching.stderr


def test_a_terminal_is_drawn_over(project: Path, migrated: str, doors: Doors) -> None:
    """On a terminal there is one picture, which changes; in an outage it stays, and says why.

    An interrupt leaves the last picture, and the cursor as it was.
    """
    rows(migrated, NEW, ["mail"])
    with terminal(*OFTEN, cwd=project, dsn=migrated) as (process, ours):
        shown = read_until(ours, "Ctrl-C ends", times=3)
        doors.shut()
        shown += read_until(ours, "cannot reach database", times=2)
        doors.open()
        shown += read_until(ours, "Ctrl-C ends", times=3)
        process.send_signal(INT)
        shown += read_until(ours, None)
        code = process.wait(PATIENCE)

    assert code == 0
    assert shown.count("\x1b[1A\x1b[2K") > 10  # a line up, and deleted
    assert shown.rindex("\x1b[?25h") > shown.rindex("Ctrl-C ends")
    assert "mail" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("every", ["0", "-1", "often", "none"])
def test_how_often_must_make_sense(quick: Run, every: str) -> None:
    """What is no time from one look to the next is a usage error."""
    done = quick("status", f"--watch={every}")

    assert (done.returncode, done.stdout) == (2, "")


def test_a_reader_that_leaves(project: Path, migrated: str) -> None:
    """`| head -1` ends it, quietly, with exit code 0."""
    rows(migrated, NEW, ["mail"])
    with subprocess.Popen(
        command(*OFTEN),
        cwd=project,
        env=environment({"NURSERY_QUEUE_DSN": migrated}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("queue")
        process.stdout.close()
        assert (process.wait(PATIENCE), process.stderr.read()) == (0, "")


def test_a_second_signal_ends_it_at_once(project: Path, migrated: str) -> None:
    """Also where it waits for a reader that reads nothing; the exit code is that of a problem."""
    rows(migrated, NEW, ["mail"])
    with subprocess.Popen(
        command("status", "--watch=0.001"),
        cwd=project,
        env=environment({"NURSERY_QUEUE_DSN": migrated}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            writes = Path(f"/proc/{process.pid}/wchan")
            until(lambda: "pipe_write" in writes.read_text(), "a full pipe")

            def ended() -> bool:
                process.send_signal(TERM)  # two that are sent at once may be heard as one
                return process.poll() is not None

            until(ended, "its end")
            assert process.returncode == 1
        finally:
            process.kill()


@contextlib.contextmanager
def terminal(*args: str, cwd: Path, dsn: str) -> Generator[tuple[subprocess.Popen[bytes], int]]:
    """Run a command on a terminal of its own while the block runs; we are at its other end."""
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            command(*args),
            cwd=cwd,
            env=environment({"TERM": "xterm-256color", "NURSERY_QUEUE_DSN": dsn}),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            try:
                yield process, ours
            finally:
                process.kill()
    finally:
        os.close(ours)


def read_until(terminal: int, words: str | None, *, times: int = 1) -> str:
    """Read what is shown until it has *words* in it so many times; None: to the end."""
    shown = b""
    with contextlib.suppress(OSError):  # so Linux says that the last one at the other end has gone
        while words is None or shown.count(words.encode()) < times:
            assert select.select([terminal], [], [], PATIENCE)[0], shown
            shown += os.read(terminal, 65536)
    return shown.decode()
