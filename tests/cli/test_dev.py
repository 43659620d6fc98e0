from __future__ import annotations

import signal

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.command_line import Running, rows, run, started, until


@pytest.fixture
def data(project: Path) -> Path:
    return project / ".nursery_queue"


@pytest.fixture
def dev(project: Path) -> Generator[Running]:
    """`nursery-queue dev` in a fresh project; it must have been stopped by the test."""
    with started("dev", "shop:app", cwd=project) as running:
        yield running


def server_runs(data: Path) -> bool:
    return (data / "data" / "postmaster.pid").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_dev_is_all_it_takes(
    dev: Running, project: Path, data: Path, signum: signal.Signals
) -> None:
    """It prints the DSN, migrates, and works; one signal ends worker and server."""
    dsn = dev.line("^postgresql://", of="stdout")
    dev.line("ready: ")
    enqueued = run("enqueue", "hello", "--dsn", dsn, cwd=project)
    state = "select state from nursery_queue.task_status"
    until(lambda: rows(dsn, state) == [("succeeded",)], "the task")
    dev.send(signum)
    code = dev.code()

    assert enqueued.stdout == "1\n"
    assert code == 0
    assert not server_runs(data)
    assert (data / ".gitignore").read_text() == "*\n"


def test_what_was_there_is_there_again(project: Path) -> None:
    """--data says where the data are; a second run finds what the first one left."""
    enqueued: list[str] = []
    found: list[tuple[object, ...]] = []
    for _ in range(2):
        with started("dev", "shop:app", "--data", "elsewhere", cwd=project) as running:
            dsn = running.line("^postgresql://", of="stdout")
            running.line("ready: ")
            enqueued.append(run("enqueue", "nobody", "--dsn", dsn, cwd=project).stdout)
            found = rows(dsn, "select id from nursery_queue.task order by id")
            running.send(signal.SIGTERM)
            assert running.code() == 0

    assert len(enqueued) == 2
    assert [f"{row[0]}\n" for row in found] == enqueued
    assert not server_runs(project / "elsewhere")


def test_a_signal_during_the_start_leaves_no_server(dev: Running, data: Path) -> None:
    """Stopped while the server is starting, it still takes the server down."""
    until(lambda: server_runs(data), "a server")
    dev.send(signal.SIGTERM)
    code = dev.code()

    assert code in {0, 130}  # 0 if it got as far as running the worker
    assert "Traceback" not in dev.stderr
    assert not server_runs(data)


def test_a_wrong_app_starts_no_server(project: Path, data: Path) -> None:
    """APP is looked at first."""
    done = run("dev", "shop:missing", cwd=project)

    assert done.returncode == 2
    assert not data.exists()


def test_a_data_directory_that_cannot_be_is_told(project: Path) -> None:
    """A file where the data should go is a problem with a name."""
    (project / "taken").touch()

    done = run("dev", "shop:app", "--data", "taken", cwd=project)

    assert done.returncode == 1
    assert "taken" in done.stderr
    assert "Traceback" not in done.stderr
