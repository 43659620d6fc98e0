from __future__ import annotations

import json
import os
import re
import signal

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from nursery_queue.cli._processes import WorkerProcesses
from tests.cli.doors import Doors
from tests.cli.runs import Run, Start
from tests.cli.tasks import STATES, WORKERS, enqueue
from tests.support.command_line import PATIENCE, is_alive, rows, until


INT, TERM, KILL = signal.SIGINT, signal.SIGTERM, signal.SIGKILL


def pids(dsn: str, count: int) -> list[int]:
    """Wait until *count* workers are registered and return their process ids."""
    found = "select pid from nursery_queue.worker order by name"
    until(lambda: len(rows(dsn, found)) == count, f"{count} workers")
    return [pid for (pid,) in rows(dsn, found)]


@pytest.mark.parametrize("signum", [TERM, INT])
def test_two_processes_stop_cleanly(start: Start, migrated: str, signum: signal.Signals) -> None:
    """A signal to the parent drains all children; the exit code is 0."""
    with start("worker", "shop:app", "--processes", "2", "--name", "ada") as parent:
        children = pids(migrated, 2)
        names = rows(migrated, "select name from nursery_queue.worker order by name")
        parent.line("ready: ", count=2)
        parent.send(signum)
        code = parent.code()

    assert code == 0
    assert parent.pid not in children
    assert names == [("ada-1",), ("ada-2",)]
    assert rows(migrated, WORKERS) == [(0,)]
    assert not any(map(is_alive, children))


def test_usr1_and_usr2_are_passed_on(start: Start, migrated: str, mark: Path) -> None:
    """All children tell what they do, all stop claiming, and none ends before it is stopped."""
    enqueue(migrated, "waits", mark=mark)
    settings = ("--processes", "2", "--grace", "0", "--heartbeat", "0.3")
    with start("worker", "shop:app", *settings) as parent:
        children = pids(migrated, 2)
        parent.line("ready: ", count=2)
        until(mark.exists)
        parent.send(signal.SIGUSR2)
        parent.line("task tree:", count=2)
        parent.line(r"^ +task 1 waits: \S+shop\.py:\d+ in waits$")
        parent.send(signal.SIGUSR1)
        parent.line("claiming nothing more", count=2)
        enqueue(migrated, "hello")
        until(lambda: rows(migrated, f"{WORKERS} where draining") == [(2,)], "heartbeats")
        assert all(map(is_alive, children))
        parent.send(TERM)
        assert parent.code() == 0

    assert rows(migrated, STATES) == [("ready", 0), ("ready", 0)]


def test_usr1_before_they_can_hear(start: Start, migrated: str) -> None:
    """A child that is still starting is told later, and the others are not started at all."""
    with start("worker", "shop:app", "--processes", "3") as parent:
        until(lambda: catches(parent.pid, signal.SIGUSR1), "the parent")
        parent.send(signal.SIGUSR1)
        pids(migrated, 1)
        parent.line("claiming nothing more")
        parent.line("ready: ")
        parent.send(TERM)
        parent.line("passing it on to 1 workers")
        assert parent.code() == 0

    assert parent.stderr.count("ready: ") == 1


def catches(pid: int, signum: signal.Signals) -> bool:
    """Whether a process has a handler for a signal."""
    (mask,) = re.findall(
        r"^SigCgt:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE
    )
    return bool(int(mask, 16) & 1 << (signum - 1))


def test_all_processes_work(cli: Run, migrated: str, mark: Path) -> None:
    """--drain with several processes does everything once and ends."""
    for _ in range(100):
        enqueue(migrated, "write", mark=mark)

    done = cli("worker", "shop:app", "--drain", "--processes", "2")

    assert done.returncode == 0
    assert len(mark.read_text().splitlines()) == 100
    assert set(rows(migrated, STATES)) == {("succeeded", 1)}


def test_the_second_signal_reaches_the_children(start: Start, migrated: str, mark: Path) -> None:
    """Two signals to the parent cancel the handlers of the children, and release their tasks."""
    enqueue(migrated, "waits", mark=mark)
    with start("worker", "shop:app", "--processes", "2", "--grace", "1h") as parent:
        pids(migrated, 2)
        parent.line("ready: ", count=2)
        until(mark.exists)
        parent.send(TERM)
        parent.line("draining", count=2)
        parent.send(TERM)
        code = parent.code()

    assert code == 1
    assert rows(migrated, STATES) == [("ready", 0)]


def test_ctrl_c_on_a_terminal_counts_once(
    start: Start, migrated: str, project: Path, mark: Path
) -> None:
    """A signal to the whole group, as Ctrl-C is one, drains: children do not hear it twice."""
    enqueue(migrated, "waits_for_file", mark=mark, file=project / "go")
    with start("worker", "shop:app", "--processes", "2") as parent:
        pids(migrated, 2)
        parent.line("ready: ", count=2)
        until(mark.exists)
        os.killpg(parent.pid, INT)
        parent.line("draining", count=2)
        (project / "go").touch()
        code = parent.code()

    assert code == 0
    assert "cancelling" not in parent.stderr
    assert rows(migrated, STATES) == [("succeeded", 1)]


def test_the_third_signal_ends_them_all(start: Start, migrated: str, mark: Path) -> None:
    """Three signals leave no process behind, whatever the handlers do."""
    enqueue(migrated, "stubborn", mark=mark)
    with start("worker", "shop:app", "--processes", "2", "--grace", "1h") as parent:
        children = pids(migrated, 2)
        parent.line("ready: ", count=2)
        until(mark.exists)
        parent.send(TERM)
        parent.line("draining", count=2)
        parent.send(TERM)
        parent.line("cancelling")
        parent.send(TERM)
        code = parent.code()
        until(lambda: not any(map(is_alive, children)), "the end of the children")

    assert code == 1


@pytest.fixture
def processes(
    clean: Path, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[WorkerProcesses]:
    """A parent of worker processes in this process; none has been started yet."""
    monkeypatch.setenv("NURSERY_QUEUE_DSN", migrated)
    processes = WorkerProcesses(["shop:app"])
    yield processes
    processes.end()


async def test_a_stop_reaches_one_that_is_being_started(processes: WorkerProcesses) -> None:
    """A child that the operating system has not handed over yet is stopped as the others are."""
    starts = trio.to_thread.current_default_thread_limiter()
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(processes.keep_running, 1)
            while not starts.borrowed_tokens:  # a thread makes the process
                await trio.lowlevel.checkpoint()
            processes.stop(TERM)

    assert processes.codes == [0]


async def test_none_is_started_after_a_stop(processes: WorkerProcesses) -> None:
    """A child whose turn comes after the stop is not started at all."""
    processes.stop(TERM)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            await nursery.start(processes.keep_running, 1)
            nursery.start_soon(processes.keep_running, 2)

    assert processes.codes == []


def test_one_that_dies_is_not_restarted(start: Start, migrated: str) -> None:
    """The others go on; at the end the worst exit code is the parent's."""
    with start("worker", "shop:app", "--processes", "2") as parent:
        children = pids(migrated, 2)
        parent.line("ready: ", count=2)
        os.kill(children[0], KILL)
        parent.line("was killed by SIGKILL")
        assert is_alive(children[1])
        parent.send(TERM)
        code = parent.code()

    assert code == 1
    assert parent.stderr.count("ready: ") == 2


# The module of the second child waits for a file, so that the first is at work before it connects.
SECOND_WAITS = """
import sys

if any(each.startswith("2:") for each in sys.argv):
    Path("second").write_text(f"{os.getpid()}\\n")
    while not Path("go").exists():
        time.sleep(0.01)
"""


@pytest.fixture
def second_waits(project: Path) -> Path:
    with (project / "shop.py").open("a") as file:
        file.write(SECOND_WAITS)
    return project


@pytest.mark.parametrize("comes_back", [True, False])
def test_one_that_finds_the_database_away_is_started_again(
    start: Start, migrated: str, second_waits: Path, doors: Doors, comes_back: bool
) -> None:
    """Until the database lets it in, if it has let in another one before; a stop ends that, too."""
    with start("worker", "shop:app", "--processes", "2") as parent:
        until((second_waits / "second").exists, "the second")
        parent.line("ready: ")
        doors.shut()
        (second_waits / "go").touch()
        if comes_back:
            parent.line("worker 2 .* could not reach the database: starting it again in ")
            doors.open()
            parent.line("ready: ", count=2)
        else:
            parent.line("starting it again in ", count=2)
            doors.open()
        parent.send(TERM)
        code = parent.code()

    assert code == 0


def test_one_that_is_killed_at_its_start_is_started_again(
    start: Start, migrated: str, second_waits: Path
) -> None:
    """It had nothing in hand, and what has killed it may be over: memory that ran short, say."""
    with start("worker", "shop:app", "--processes", "2") as parent:
        until(lambda: complete(second_waits / "second"), "the second")
        parent.line("ready: ")
        os.kill(int((second_waits / "second").read_text()), KILL)
        parent.line("worker 2 .* was killed by SIGKILL .*: starting it again in ")
        (second_waits / "go").touch()
        parent.line("ready: ", count=2)
        parent.send(TERM)
        code = parent.code()

    assert code == 0


def complete(file: Path) -> bool:
    """Whether there is a whole line in *file*."""
    return file.exists() and file.read_text().endswith("\n")


def test_one_that_never_can_start_ends_them_all(
    start: Start, migrated: str, second_waits: Path
) -> None:
    """What no waiting cures ends the parent with its exit code; the others finish their work."""
    with start("worker", "shop:app", "--processes", "2") as parent:
        until((second_waits / "second").exists, "the second")
        parent.line("ready: ")
        rows(migrated, "alter table nursery_queue.migration rename to away")
        try:
            (second_waits / "go").touch()
            parent.line("worker 2 .* ended with exit code 2")
            code = parent.code()
        finally:  # the database is used again
            rows(migrated, "alter table nursery_queue.away rename to migration")

    assert code == 2
    assert rows(migrated, WORKERS) == [(0,)]


@pytest.mark.parametrize("handler", ["waits", "blocks"])
def test_children_do_not_outlive_a_killed_parent(
    start: Start, migrated: str, mark: Path, handler: str
) -> None:
    """A parent that is SIGKILLed takes its children along; what can be released is."""
    enqueue(migrated, handler, mark=mark)
    with start(
        "worker", "shop:app", "--processes", "2", "--grace", "1h", "--cleanup", "1"
    ) as parent:
        children = pids(migrated, 2)
        until(mark.exists)
        parent.send(KILL)
        parent.process.wait()
        try:
            until(lambda: not any(map(is_alive, children)), "the end of the children")
        finally:
            for pid in filter(is_alive, children):
                os.kill(pid, KILL)

    assert parent.process.returncode == -KILL
    expected = ("ready", 0) if handler == "waits" else ("running", 1)
    assert rows(migrated, STATES) == [expected]


def test_what_is_wrong_with_all_is_told_once(cli: Run, project: Path) -> None:
    """An APP that cannot be loaded is told by the first child; the others are not started."""
    done = cli("worker", "shop:missing", "--processes", "3")

    assert done.returncode == 2
    assert done.stderr.count("has no 'missing'") == 1


def test_the_log_of_children_is_json_too(start: Start, migrated: str) -> None:
    """With --log-format json the lines of all processes are objects, and say whose they are."""
    with start("worker", "shop:app", "--processes", "2", "--log-format", "json") as parent:
        parent.line("ready: ", count=2)
        parent.send(TERM)
        assert parent.code() == 0

    records = [json.loads(line) for line in parent.stderr.splitlines()]
    ready = [record for record in records if record["message"].startswith("ready: ")]
    assert sorted(record["worker"] for record in ready) == ["1", "2"]
