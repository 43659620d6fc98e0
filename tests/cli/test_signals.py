"""Signals to worker processes with tasks in hand, and what the attempt log says afterwards."""

from __future__ import annotations

import json
import os
import re
import signal

from collections.abc import Generator
from pathlib import Path

import pytest

from nursery_queue import ExitOutcome, ExitReport, TaskExit
from nursery_queue.cli._worker_process import exit_code
from tests.cli.runs import Start
from tests.cli.tasks import STATES, WORKERS, enqueue, in_hand
from tests.support.command_line import Running, rows, until


INT, TERM = signal.SIGINT, signal.SIGTERM
HUP, KILL = signal.SIGHUP, signal.SIGKILL
USR1, USR2 = signal.SIGUSR1, signal.SIGUSR2
SHORT_LEASE = ("--lease", "1.5", "--heartbeat", "0.3")


def outcomes(dsn: str) -> list[str]:
    log = "select outcome from nursery_queue.task_attempt order by task_id, number, started_at"
    return [outcome for (outcome,) in rows(dsn, log)]


def is_released(dsn: str) -> bool:
    """Whether the task is ready, the attempt not counted, and nobody takes it for running."""
    return (rows(dsn, STATES), outcomes(dsn)) == ([("ready", 0)], ["interrupted"])


def send_again(worker: Running) -> bool:
    """Send SIGTERM and say whether the process has ended: pending signals of a kind merge."""
    worker.send(TERM)
    return worker.process.poll() is not None


def has_ended(worker: Running) -> bool:
    return worker.process.poll() is not None


@pytest.fixture
def hangups_ignored() -> Generator[None]:
    """What nohup does for its command."""
    before = signal.signal(HUP, signal.SIG_IGN)
    yield
    signal.signal(HUP, before)


# -- the first, the second, the third ------------------------------------------------------------


@pytest.mark.parametrize("signum", [TERM, INT, HUP])
def test_the_first_signal_drains(
    start: Start, migrated: str, project: Path, mark: Path, signum: signal.Signals
) -> None:
    """What is in hand is finished, nothing more is claimed, and the exit code is 0."""
    enqueue(migrated, "waits_for_file", mark=mark, file=project / "go")
    with start("worker", "shop:app") as worker:
        in_hand(worker, mark)
        worker.send(signum)
        worker.line(signum.name)
        enqueue(migrated, "hello")
        (project / "go").touch()
        code = worker.code()

    assert code == 0
    assert "tasks in hand: 1 (1 succeeded)" in worker.stderr
    assert rows(migrated, STATES) == [("succeeded", 1), ("ready", 0)]
    assert outcomes(migrated) == ["succeeded"]
    assert rows(migrated, WORKERS) == [(0,)]


def test_a_hangup_that_is_ignored_stays_so(start: Start, hangups_ignored: None) -> None:
    """A worker that is started with nohup works on when its terminal is gone."""
    with start("worker", "shop:app") as worker:
        worker.line("ready: ")
        worker.send(HUP)
        worker.send(USR2)
        worker.line("task tree:")
        worker.send(TERM)
        code = worker.code()

    assert code == 0
    assert "SIGHUP" not in worker.stderr


@pytest.mark.parametrize("signals", [[TERM, TERM], [INT, INT], [TERM, INT], [USR1, TERM, TERM]])
def test_the_second_signal_cancels_and_releases(
    start: Start, migrated: str, mark: Path, signals: list[signal.Signals]
) -> None:
    """Handlers are cancelled now; their tasks are ready again, the attempt not counted."""
    enqueue(migrated, "waits", mark=mark)
    with start("worker", "shop:app", "--grace", "1h") as worker:
        in_hand(worker, mark)
        for number, signum in enumerate(signals[:-1]):
            worker.send(signum)
            worker.line("SIG(TERM|INT|USR1): ", count=number + 1)
        worker.send(signals[-1])
        code = worker.code()

    assert code == 1
    assert "cancelling handlers (1)" in worker.stderr
    assert "tasks in hand: 1 (1 released)" in worker.stderr
    assert "task 1 (waits, attempt 1): released" in worker.stderr
    assert "Traceback" not in worker.stderr
    assert is_released(migrated)
    assert rows(migrated, WORKERS) == [(0,)]


@pytest.mark.parametrize("handler", ["stubborn", "blocks"])
def test_the_third_signal_exits_at_once(
    start: Start, migrated: str, mark: Path, handler: str
) -> None:
    """Neither a handler that will not be cancelled nor one that blocks the loop can prevent it.

    Nobody could release the task: it is lost, and taken over when the lease has run out.
    """
    enqueue(migrated, handler, mark=mark)
    settings = ("--grace", "1h", "--cleanup", "1h", *SHORT_LEASE)
    with start("worker", "shop:app", *settings) as worker:
        in_hand(worker, mark) if handler == "stubborn" else until(mark.exists)
        worker.send(TERM)
        if handler == "stubborn":
            worker.line("draining")
        worker.send(TERM)
        if handler == "stubborn":
            worker.line("cancelling")
        until(lambda: send_again(worker), "the third signal")
        code = worker.code()

    assert code == 1
    assert "exiting at once" in worker.stderr
    assert outcomes(migrated) == ["running"]
    assert rows(migrated, STATES) == [("running", 1)]
    with start("worker", "shop:app", *SHORT_LEASE) as another:
        until(lambda: outcomes(migrated) == ["lost", "running"], "another worker taking over")
        another.send(KILL)


def test_a_killed_worker_loses_its_task(start: Start, migrated: str, mark: Path) -> None:
    """After SIGKILL another worker takes the task over, as lost, when the lease has run out."""
    enqueue(migrated, "waits", mark=mark)
    with start("worker", "shop:app", *SHORT_LEASE) as worker:
        in_hand(worker, mark)
        worker.send(KILL)
        assert worker.code() == -KILL
    assert outcomes(migrated) == ["running"]
    with start("worker", "shop:app", *SHORT_LEASE, "--grace", "0") as another:
        until(lambda: outcomes(migrated) == ["lost", "running"], "another worker taking over")
        another.send(TERM)
        assert another.code() == 0

    assert outcomes(migrated) == ["lost", "interrupted"]
    assert rows(migrated, STATES) == [("ready", 0)]
    assert rows(migrated, WORKERS) == [(0,)]


def test_without_grace_one_signal_is_enough(start: Start, migrated: str, mark: Path) -> None:
    """--grace 0 cancels at the first signal; that is a clean end, not a forced one."""
    enqueue(migrated, "waits", mark=mark)
    with start("worker", "shop:app", "--grace", "0") as worker:
        in_hand(worker, mark)
        worker.send(TERM)
        code = worker.code()

    assert code == 0
    assert is_released(migrated)


def test_a_signal_stops_a_draining_worker(start: Start, migrated: str, mark: Path) -> None:
    """--drain obeys signals, too."""
    enqueue(migrated, "waits", mark=mark)
    with start("worker", "shop:app", "--drain") as worker:
        until(mark.exists)
        worker.send(TERM)
        worker.line("draining")
        worker.send(TERM)
        code = worker.code()

    assert code == 1
    assert is_released(migrated)


@pytest.mark.parametrize(
    ("fates", "forced", "code"),
    [
        ([], False, 0),
        ([ExitOutcome.SUCCEEDED, ExitOutcome.FAILED, ExitOutcome.RELEASED], False, 0),
        ([ExitOutcome.SUCCEEDED], True, 1),
        ([ExitOutcome.SUCCEEDED, ExitOutcome.UNSETTLED], False, 1),
        ([ExitOutcome.LEASE_LOST], False, 1),
    ],
)
def test_exit_codes(fates: list[ExitOutcome], forced: bool, code: int) -> None:
    """An end is a problem if it was forced, or left a task neither stored nor released."""
    tasks = [
        TaskExit(task_id=1, task_type="a", attempt=1, outcome=outcome, started=True, ended=True)
        for outcome in fates
    ]

    assert exit_code(ExitReport(tasks=tasks), forced=forced) == code
    assert exit_code(None, forced=False) == 0


# What an application may do when its process ends, each time until a file is there: a hook, and an
# object that goes with the interpreter, after which Python runs no signal handler any more.
LAST_WORDS = """
import atexit
import signal


def linger(name: str) -> None:
    Path(f"{name}-{os.getpid()}").touch()
    while not Path(f"{name}-over").exists():
        time.sleep(0.01)


class Last:
    def __del__(self, there=os.path.exists, sleep=time.sleep) -> None:
        os.close(os.open(f"last-{os.getpid()}", os.O_CREAT))
        while not there("last-over"):
            sleep(0.01)


atexit.register(linger, "hook")
signal.last = Last()  # in a module that is there to the end
"""


@pytest.mark.parametrize("signum", [TERM, INT, HUP, USR1, USR2])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_signal_at_the_very_end_changes_nothing(
    start: Start, migrated: str, project: Path, signum: signal.Signals, processes: str
) -> None:
    """Until the process is gone a late signal asks for nothing, and the exit code stays."""
    with (project / "shop.py").open("a") as file:
        file.write(LAST_WORDS)
    with start("worker", "shop:app", "--processes", processes) as worker:
        worker.line("ready: ", count=int(processes))
        pids = [pid for (pid,) in rows(migrated, "select pid from nursery_queue.worker")]
        worker.send(TERM)
        for name in ("hook", "last"):
            for pid in pids:  # each when it is there: before, a second signal has a meaning
                until((project / f"{name}-{pid}").exists, f"the {name}")
                os.kill(pid, signum)
            (project / f"{name}-over").touch()
        code = worker.code()

    assert code == 0
    assert "killed by" not in worker.stderr


def test_the_third_signal_ends_even_the_end(start: Start, project: Path) -> None:
    """What an application does when its process ends cannot keep it for ever."""
    with (project / "shop.py").open("a") as file:
        file.write(LAST_WORDS)
    with start("worker", "shop:app") as worker:
        worker.line("ready: ")
        worker.send(TERM)
        until((project / f"hook-{worker.pid}").exists, "the hook")
        until(lambda: send_again(worker), "the third signal")
        code = worker.code()

    assert code == 1
    assert "exiting at once" in worker.stderr


# -- handlers that will not end ------------------------------------------------------------------


@pytest.mark.parametrize(("grace", "signals"), [("0", 1), ("1h", 2)])
def test_a_handler_that_ignores_cancellation(
    start: Start, migrated: str, mark: Path, grace: str, signals: int
) -> None:
    """When its time is over its task is released, and the process ends without it, with 1.

    The log says who it was, at which line, and what became of all tasks in hand.
    """
    enqueue(migrated, "stubborn", mark=mark)
    with start("worker", "shop:app", "--grace", grace, "--cleanup", "0.2") as worker:
        in_hand(worker, mark)
        for _ in range(signals):
            worker.send(TERM)
            worker.line("SIGTERM: draining")
        code = worker.code()

    assert code == 1
    assert re.search(
        r"still running, .*: task 1 stubborn: \S+shop\.py:\d+ in stubborn$",
        worker.stderr,
        re.MULTILINE,
    )
    assert re.search(
        r"^ +task 1 stubborn: \S+shop\.py:\d+ in stubborn$", worker.stderr, re.MULTILINE
    )
    assert "exiting without" in worker.stderr
    assert "tasks in hand: 1 (1 released)" in worker.stderr
    assert "task 1 (stubborn, attempt 1): released, its handler still running" in worker.stderr
    assert is_released(migrated)
    assert rows(migrated, WORKERS) == [(0,)]


def test_a_handler_that_blocks_the_loop(start: Start, migrated: str, mark: Path) -> None:
    """It does not keep the process either, which could not begin to stop; the log names it."""
    enqueue(migrated, "blocks", mark=mark)
    with start("worker", "shop:app", "--grace", "0", "--cleanup", "0.2") as worker:
        until(mark.exists)
        worker.send(TERM)
        code = worker.code()

    assert code == 1
    assert re.search(
        r"^ +task 1 blocks: running at \S+shop\.py:\d+ in blocks$", worker.stderr, re.MULTILINE
    )
    assert "longer than it may" in worker.stderr
    assert outcomes(migrated) == ["running"]


# -- USR1 and USR2 -------------------------------------------------------------------------------


def test_usr1_stops_claiming(start: Start, migrated: str, project: Path, mark: Path) -> None:
    """The worker finishes what is in hand, claims nothing more, and lives until it is stopped."""
    enqueue(migrated, "waits_for_file", mark=mark, file=project / "go")
    with start("worker", "shop:app", "--heartbeat", "0.3") as worker:
        in_hand(worker, mark)
        worker.send(USR1)
        worker.line("SIGUSR1: claiming nothing more; tasks in hand: 1")
        enqueue(migrated, "hello")
        (project / "go").touch()
        until(lambda: rows(migrated, STATES)[0] == ("succeeded", 1), "the end of the task")
        until(lambda: rows(migrated, f"{WORKERS} where draining") == [(1,)], "a heartbeat")
        assert not has_ended(worker)
        worker.send(TERM)
        worker.line("SIGTERM: draining; tasks in hand: 0")
        code = worker.code()

    assert code == 0
    assert rows(migrated, STATES) == [("succeeded", 1), ("ready", 0)]


def test_usr1_ends_a_draining_worker(
    start: Start, migrated: str, project: Path, mark: Path
) -> None:
    """With --drain there is nothing to live on for: it ends with what is in hand."""
    enqueue(migrated, "waits_for_file", mark=mark, file=project / "go")
    with start("worker", "shop:app", "--drain") as worker:
        until(mark.exists)
        worker.send(USR1)
        worker.line("claiming nothing more")
        for _ in range(10):  # a claim that was under way by then may take the first ones
            enqueue(migrated, "hello")
        (project / "go").touch()
        assert worker.code() == 0

    found = rows(migrated, STATES)
    assert (found[0], found[-1]) == (("succeeded", 1), ("ready", 0))


@pytest.mark.parametrize(("handler", "does"), [("waits", ""), ("blocks", "running at ")])
def test_usr2_shows_the_task_tree(
    start: Start, migrated: str, mark: Path, handler: str, does: str
) -> None:
    """It names every task and its line, also while a handler blocks the loop, and harms nobody."""
    enqueue(migrated, handler, mark=mark)
    with start("worker", "shop:app", "--grace", "0") as worker:
        in_hand(worker, mark) if handler == "waits" else until(mark.exists)
        where = f"({handler}|started)"  # which leaves the mark, and may not have returned yet
        for count in (1, 2):
            worker.send(USR2)
            worker.line("task tree:", count=count)
            worker.line(rf"^ +task 1 {handler}: {does}\S+shop\.py:\d+ in {where}$", count=count)
        for name in ("nursery lease", "heartbeat: ", "nursery handlers", "claimer: ", "signals: "):
            worker.line(rf"^ +{name}")
        assert outcomes(migrated) == ["running"]
        if handler == "waits":
            worker.send(TERM)
            assert worker.code() == 0


def test_usr2_shows_abandoned_threads(start: Start, migrated: str, mark: Path) -> None:
    """It names a handler that runs on in its thread, although no trio task knows of it."""
    enqueue(migrated, "abandoned", mark=mark)
    with start("worker", "shop:app") as worker:
        until(lambda: outcomes(migrated) == ["timed_out"])
        worker.send(USR2)
        worker.line(r"in a thread: task 1 \(abandoned, attempt 1\): abandoned, began \S+ s ago")
        worker.send(TERM)
        assert worker.code() == 0


def test_usr2_with_a_log_for_machines(start: Start, migrated: str, mark: Path) -> None:
    """With --log-format json the tree is one object, too."""
    enqueue(migrated, "waits", mark=mark)
    with start("worker", "shop:app", "--grace", "0", "--log-format", "json") as worker:
        in_hand(worker, mark)
        worker.send(USR2)
        line = worker.line("task tree:")
        worker.send(TERM)
        assert worker.code() == 0

    assert "task 1 waits: " in json.loads(line)["message"]
    assert all(isinstance(json.loads(each), dict) for each in worker.stderr.splitlines())
