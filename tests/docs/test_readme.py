"""What the README shows is executed, in the order in which it is read, and what goes on from it.

A Python block is a program of its own, unless the line above it says otherwise, which readers
do not see: a fragment is run with what the program before it has defined, and with a `client`;
a pytest block is run by pytest. SQL blocks are executed. The fragments
of pages that go on from the program are run after it.
"""

from __future__ import annotations

import inspect
import re
import sys

from pathlib import Path
from typing import Any

import click
import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue.cli._commands import commands
from tests.docs.pages import README, ROOT, TOUR, Block, blocks, passes, run


COMMAND_LINE = ROOT / "docs" / "command-line.md"


def test_every_python_block_is_executed() -> None:
    """A block with a mark that no test knows, or none that a test finds, would go unnoticed."""
    known = blocks(README, "python", "fragment", "pytest")

    assert len(known) == README.read_text(encoding="utf-8").count("```python")
    assert {block.kind for block in known} == {"python", "fragment", "pytest"}


def test_the_two_commands_come_first() -> None:
    """The first things to run are the demo and the tests, by these very commands."""
    demo, tests, *_ = blocks(README, "sh")

    assert demo.source == "python -m pip install nox && python -m nox -s demo\n"
    assert tests.source == "python -m pip install nox && python -m nox -s tests\n"
    assert demo.line < 10


def test_it_is_short() -> None:
    """A newcomer reads at most 250 lines; all else is in docs/."""
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 250


def test_the_commands_are_there(tmp_path: Path) -> None:
    """The command line has every command that the README and its own page name."""
    text = README.read_text() + COMMAND_LINE.read_text()
    named = set(re.findall(r"nursery-queue ((?:migrate |tasks )?[a-z]+)", text))

    assert {"worker", "dev", "migrate up", "enqueue", "tasks list", "status"} <= named
    for command in named:
        run(sys.executable, "-m", "nursery_queue", *command.split(), "--help", cwd=tmp_path)


def test_every_command_is_in_the_table() -> None:
    """The command line has no command, or command of a group, that its page leaves out."""
    context = click.Context(commands)
    for name in commands.list_commands(context):
        command = commands.get_command(context, name)
        (first, *_) = re.findall(
            rf"^\| `nursery-queue {name} ?.*$", COMMAND_LINE.read_text(), re.MULTILINE
        )
        for each in command.commands if isinstance(command, click.Group) else ():
            assert re.search(rf"(`|{name} ){each}\b", first), f"{name} {each}"


async def test_the_tour(migrated: str, tmp_path: Path) -> None:
    """Program, SQL and fragments run as they stand, and every task they enqueue ends well."""
    tour: dict[str, Any] = {"__name__": "mail"}
    async with nq.connect(migrated) as client:
        tour["client"] = client
        shown = ("python", "fragment", "sql")
        for block in (block for page in TOUR for block in blocks(page, *shown)):
            match block.kind:
                case "sql":
                    await trio.to_thread.run_sync(execute, migrated, block.source)
                case "python":
                    await trio.to_thread.run_sync(run_program, block, migrated, tmp_path)
                    exec(block.code, tour)  # noqa: S102  # that is the point
                case _:
                    running = eval(block.code, tour)  # noqa: S307  # as above
                    if inspect.isawaitable(running):
                        await running
        await finish(client, tour)


def run_program(block: Block, dsn: str, folder: Path) -> None:
    """Run the tour's program as the reader would; it prints what its comment says."""
    (folder / "mail.py").write_text(block.source, encoding="utf-8")
    (promised,) = re.findall(r"print\(.*\)  # (.*)", block.source)

    assert run(sys.executable, "mail.py", cwd=folder, DATABASE_URL=dsn) == f"{promised}\n"


def execute(dsn: str, source: str) -> None:
    with psycopg.connect(dsn) as conn:
        conn.execute(source.encode())


async def finish(client: nq.Client, tour: dict[str, Any]) -> None:
    """Use the handlers that the tour declares; they must do what it says of them."""
    fetch, forget = tour["fetch"], tour["forget"]
    urls = ["https://busy.example", "https://gone.example", "https://closed.example"]
    refs = [await client.enqueue(fetch, url) for url in urls]
    forgotten = await client.enqueue(forget, "ann@example.org")
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(tour["app"], client)
        await nursery.start(worker.run)
        assert await client.result(refs[0]) == 200
        with pytest.raises(nq.TaskFailed, match="there is no such page"):
            await client.result(refs[1])
        await client.result(forgotten)
        assert (await client.result(tour["joe"])) == "Welcome, joe@example.org!"
        (told,) = await client.list_tasks(task_type=tour["follow_up"].name)
        assert await client.result(told.id) == "Joe got: Welcome, joe@example.org!"
        worker.stop()
    later = await client.status(refs[2])
    assert later is not None
    assert (later.state, later.attempt) == (nq.State.SCHEDULED, 0)
    async with client.transaction() as tx:
        cursor = await tx.execute("select count(*) from person")
        assert await cursor.fetchone() == (0,)
    await nq.Worker(tour["app"], client).run_until_idle()
    outcomes = {task.state for task in await client.list_tasks(task_type="send_welcome")}
    assert outcomes == {nq.State.SUCCEEDED, nq.State.SCHEDULED}


@pytest.mark.parametrize("block", blocks(README, "pytest"), ids=lambda block: f"line {block.line}")
def test_the_test_examples(block: Block, nursery_queue_server: str, tmp_path: Path) -> None:
    """The tests that the README shows pass under pytest."""
    passes(block, nursery_queue_server, tmp_path)
