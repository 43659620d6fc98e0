"""`status --watch`: again and again, until somebody has seen enough."""

from __future__ import annotations

import json
import signal
import subprocess

from pathlib import Path
from typing import Any

import pytest

from tests.cli.doors import Doors
from tests.cli.runs import Run, Start
from tests.cli.terminals import left_by_its_reader, read_until, terminal
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
    first, *end = left_by_its_reader(*OFTEN, cwd=project, dsn=migrated)

    assert first.startswith("queue")
    assert end == [0, ""]


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
