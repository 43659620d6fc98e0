"""What the README shows is executed, in the order in which it is read.

A Python block is a program of its own, unless the line above it says otherwise, which readers
do not see: a fragment is run with what the program before it has defined, and with a `client`;
a pytest block is run by pytest. SQL blocks are executed.
"""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import psycopg
import pytest
import trio

import nursery_queue as nq


ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(
    r"^(?:<!-- (?P<mark>\w+) -->\n)?^```(?P<language>\w+)\n(?P<source>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@attrs.frozen(kw_only=True)
class Block:
    kind: str
    source: str
    line: int

    @property
    def code(self) -> Any:
        """The block, compiled so that tracebacks show its place in the README."""
        source = "\n" * (self.line - 1) + self.source
        return compile(source, ROOT / "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def blocks(*kinds: str) -> list[Block]:
    """Return the blocks of these kinds, in their order."""
    found = [
        Block(
            kind=match["mark"] or match["language"],
            source=match["source"],
            line=README.count("\n", 0, match.start("source")) + 1,
        )
        for match in BLOCK.finditer(README)
    ]
    return [block for block in found if block.kind in kinds]


def run(*command: str, cwd: Path, **environment: str) -> str:
    """Return what a command prints; it must succeed and say nothing on stderr."""
    path = os.pathsep.join([str(ROOT), str(cwd)])
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": path, "PYTHONWARNINGS": "error", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


def test_every_python_block_is_executed() -> None:
    """A block with a mark that no test knows, or none that a test finds, would go unnoticed."""
    known = blocks("python", "fragment", "pytest")

    assert len(known) == README.count("```python")
    assert {block.kind for block in known} == {"python", "fragment", "pytest"}


def test_the_two_commands_come_first() -> None:
    """The first things to run are the demo and the tests, by these very commands."""
    demo, tests, *_ = blocks("sh")

    assert demo.source == "python -m pip install nox && python -m nox -s demo\n"
    assert tests.source == "python -m pip install nox && python -m nox -s tests\n"
    assert demo.line < 10


def test_the_commands_are_there(tmp_path: Path) -> None:
    """The command line has every command that the README names."""
    commands = set(re.findall(r"nursery-queue ((?:migrate |tasks )?[a-z]+)", README))

    assert {"worker", "dev", "migrate up", "enqueue", "tasks list", "status"} <= commands
    for command in commands:
        run(sys.executable, "-m", "nursery_queue", *command.split(), "--help", cwd=tmp_path)


async def test_the_tour(migrated: str, tmp_path: Path) -> None:
    """Program, SQL and fragments run as they stand, and every task they enqueue ends well."""
    tour: dict[str, Any] = {"__name__": "mail"}
    async with nq.connect(migrated) as client:
        tour["client"] = client
        for block in blocks("python", "fragment", "sql"):
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
    """Use the handlers the README declares; they must do what it says of them."""
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


@pytest.mark.parametrize("block", blocks("pytest"), ids=lambda block: f"line {block.line}")
def test_the_test_examples(block: Block, nursery_queue_server: str, tmp_path: Path) -> None:
    """The tests that the README shows pass under pytest."""
    (tmp_path / "test_example.py").write_text(block.source, encoding="utf-8")
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    options: Sequence[str] = ["-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", "."]

    output = run(
        *(sys.executable, "-m", "pytest", *options, "-o", "trio_mode=true", "-q"),
        cwd=tmp_path,
        NURSERY_QUEUE_TEST_DSN=nursery_queue_server,
    )

    assert "1 passed" in output
