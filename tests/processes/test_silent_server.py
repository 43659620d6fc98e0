"""The end of a worker process whose PostgreSQL answers nothing any more."""

from __future__ import annotations

import contextlib
import signal

from collections.abc import Generator
from pathlib import Path

import pytest

from tests.support.command_line import Running, rows, started, until
from tests.support.own_server import OwnServer, own_server
from tests.support.shop import APP


# Two transactions, each of which takes its time to be given up.
ASKS = """
@app.task(name="asks", transactional=True)
async def asks(ctx: nq.TaskContext) -> None:
    await ctx.tx.execute("select 1")
    while True:
        async with ctx.transaction() as tx:
            await tx.execute("select 1")
        await trio.sleep(0.05)
"""
NEW = "insert into nursery_queue.task (task_type) values (%s)"
RUNS = "select exists (select from nursery_queue.running)"


@pytest.fixture(scope="module")
def server() -> Generator[OwnServer]:
    with own_server() as server:
        yield server


@contextlib.contextmanager
def stopped_while_silent(server: OwnServer, project: Path, *names: str) -> Generator[Running]:
    """Run tasks of these types, let the server fall silent, and ask the worker to end."""
    project.mkdir()
    (project / "shop.py").write_text(APP + ASKS)
    options = ("--dsn", server.dsn, "--grace", "0.2", "--cleanup", "0", "--poll-interval", "0")
    with started("worker", "shop:app", *options, cwd=project) as worker:
        worker.line("ready: ")
        for name in names:
            rows(server.dsn, NEW, [name])
            until(lambda: rows(server.dsn, RUNS) == [(True,)], "a start")
        server.freeze()
        try:
            worker.send(signal.SIGTERM)
            yield worker
        finally:
            server.thaw()


def test_nothing_in_hand(server: OwnServer, tmp_path: Path) -> None:
    """The log says that the worker's row is left behind, and why."""
    with stopped_while_silent(server, tmp_path / "project") as worker:
        code = worker.code()

    assert code == 0
    worker.line("could not deregister; the lease will run out: no answer within 2 s")


def test_a_handler_that_waits_for_the_database(server: OwnServer, tmp_path: Path) -> None:
    """The log blames the database, and not the handler that cannot end for its silence."""
    with stopped_while_silent(server, tmp_path / "project", "asks") as worker:
        code = worker.code()

    assert code == 1
    assert "still running, its task" not in worker.stderr
    assert "its task released" not in worker.stderr
    assert "ignore" not in worker.stderr
    # The first if the handler is not over when the worker has to go, the second if it just was.
    blamed = ("the database does not answer a statement", "the database took no outcome of 1 task")
    assert any(words in worker.stderr for words in blamed)
