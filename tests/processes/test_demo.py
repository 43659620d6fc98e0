"""The example that a newcomer runs first, as a process on a tree with odd files in it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys

from collections.abc import AsyncGenerator, Generator
from pathlib import Path

import psycopg
import pytest

import nursery_queue as nq

from examples.checksum_tree.__main__ import find_files, prepare
from examples.checksum_tree.app import SCHEMA, app, checksum
from examples.checksum_tree.report import check


ROOT = Path(__file__).parents[2]
ODD = {  # name: what is in it, and how many lines that is
    b"empty": (b"", 0),
    b"one newline": (b"\n", 1),
    b"no newline at the end": (b"a\nb", 2),
    b"carriage returns\r": (b"a\rb\r\nc", 2),
    "größe \N{SNOWMAN} 数".encode(): (b"x\n", 1),
    b"not \xff\xfe utf-8": (b"\x00\xff\n\n", 2),
    b"with\na newline and a \\ and %s and '": (b"y\n", 1),
    b"a bit over two pieces": (b"0123456789abcde\n" * 125_001, 125_001),
}


def grow(tree: Path, *, plain: int) -> Path:
    """Make a directory of odd files and so many plain ones, and some things to be left out."""
    for number in range(plain):
        folder = tree / f"folder {number % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number}.txt").write_text("line\n" * number)
    for name, (data, _) in ODD.items():
        (tree / os.fsdecode(name)).write_bytes(data)
    (tree / "__pycache__").mkdir()
    (tree / "__pycache__" / "left.pyc").write_bytes(b"out")
    (tree / "link").symlink_to("empty")
    (tree / "dangling").symlink_to("nowhere")
    os.mkfifo(tree / "pipe")
    return tree


@contextlib.contextmanager
def demo(*arguments: str | Path) -> Generator[subprocess.Popen[str]]:
    """Run the demo; if it is still at it when the block ends, end it and what it started."""
    with subprocess.Popen(
        [sys.executable, "-m", "examples.checksum_tree", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.terminate()


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Return the output up to the line that has *text* in it."""
    assert process.stdout is not None
    assert process.stderr is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            return seen
    pytest.fail(f"{text!r} is not in the output:\n{seen}{process.stderr.read()}")


def figures(output: str) -> dict[str, int]:
    """Return the numbers of the report by their names."""
    return {name: int(n) for name, n in re.findall(r"^([a-z ]+?) +(\d+)\b", output, re.MULTILINE)}


def test_every_file_is_stored_once_though_a_worker_is_killed(dsn: str, tmp_path: Path) -> None:
    """The demo exits with 0, and the table is as it says: what was held ahead is not even lost."""
    tree = grow(tmp_path / "tree", plain=400)
    with demo(tree, "--dsn", dsn) as process:
        output, errors = process.communicate()

    assert (process.returncode, errors) == (0, "")
    report = figures(output)
    count = 400 + len(ODD)
    assert report["tasks"] == count
    assert report["attempts"] == count + report["lost attempts"]
    assert (report["duplicates"], report["unreadable files"]) == (0, 0)
    assert report["tasks per second"] > 0
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("select path, sha256, size, lines from checksum_tree.file").fetchall()
        runs = conn.execute(
            "select array_agg(outcome order by number), count(distinct worker_id)"
            " from checksum_tree.task_attempt group by task_id having count(*) > 1"
        ).fetchall()
        workers = conn.execute("select count(*) from checksum_tree.worker").fetchone()
    assert len(rows) == count
    for name, (data, lines) in ODD.items():
        path = os.fsencode(tree) + b"/" + name
        assert (path, hashlib.sha256(data).hexdigest(), len(data), lines) in rows
    assert runs == [(["lost", "succeeded"], 2)] * report["lost attempts"]
    # One that held nothing is killed between two claims, and forgotten when its lease is over.
    assert workers is not None
    assert workers[0] <= ("which held 0 tasks" in output)


def test_a_wrong_row_makes_the_demo_fail(dsn: str, tmp_path: Path) -> None:
    """A row that somebody changes while the demo waits for the lost tasks is found at the end."""
    with demo(grow(tmp_path / "tree", plain=400), "--dsn", dsn) as process:
        read_until(process, "killed worker")
        with psycopg.connect(dsn) as conn:
            conn.execute(
                "update checksum_tree.file set size = size + 1"
                " where path = (select path from checksum_tree.file limit 1)"
            )
        output, _ = process.communicate()

    assert process.returncode == 1
    assert output.count("WRONG: ") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_running_after_an_interrupt(
    dsn: str, tmp_path: Path, number: signal.Signals
) -> None:
    """Interrupted or terminated in the middle, the demo takes its workers with it."""
    with demo(grow(tmp_path / "tree", plain=400), "--dsn", dsn, "--workers", "3") as process:
        read_until(process, "3 workers")
        with psycopg.connect(dsn) as conn:
            pids = [pid for (pid,) in conn.execute("select pid from checksum_tree.worker")]
        process.send_signal(number)
        _, errors = process.communicate()

    assert process.returncode == 130
    assert errors == "interrupted\n"
    assert len(pids) == 3
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere"], 2, "'nowhere' is not a directory"),
        (["LICENSE"], 2, "'LICENSE' is not a directory"),
        (["--workers", "0"], 2, "--workers must be at least 1, not 0"),
        (["--dsn", "nonsense"], os.EX_UNAVAILABLE, "the database cannot be used: "),
        (
            ["--dsn", "postgresql://me:secret@127.0.0.1:1/x"],
            os.EX_UNAVAILABLE,
            "the database cannot be used: ",
        ),
    ],
)
def test_bad_arguments_are_told_plainly(arguments: list[str], code: int, message: str) -> None:
    """Wrong arguments lead to a message and an exit code of their own, without a traceback."""
    with demo(*arguments) as process:
        output, errors = process.communicate()

    assert (process.returncode, output) == (code, "")
    assert message in errors
    assert "Traceback" not in errors
    assert "secret" not in errors


def test_a_directory_without_files_is_refused(tmp_path: Path) -> None:
    """A directory in which there is nothing to read is a wrong argument."""
    (tmp_path / "folder").mkdir()
    with demo(tmp_path) as process:
        _, errors = process.communicate()

    assert process.returncode == 2
    assert "there are no files in" in errors


class TestCheck:
    """The check at the end sees every difference."""

    @pytest.fixture
    def files(self, dsn: str, tmp_path: Path) -> list[Path]:
        prepare(dsn)
        return find_files(grow(tmp_path / "tree", plain=3))

    @pytest.fixture
    async def client(self, dsn: str, files: list[Path]) -> AsyncGenerator[nq.Client]:
        """A client of a database in which the tasks of all files have been run."""
        async with nq.connect(dsn, schema=SCHEMA) as client:
            await client.enqueue_many([checksum.bind(os.fsencode(file)) for file in files])
            await nq.Worker(app, client).run_until_idle()
            yield client

    async def test_what_is_right_is_no_problem(self, client: nq.Client, files: list[Path]) -> None:
        """A table that nobody has touched is as it should be."""
        report = await check(client, files)

        assert (report.tasks, report.problems, report.exit_code) == (len(files), [], 0)

    @pytest.mark.parametrize(
        ("tampering", "problem"),
        [
            ("update file set sha256 = repeat('0', 64) where {}", "stored Contents"),
            ("update file set size = size + 1 where {}", "stored Contents"),
            ("update file set lines = lines + 1 where {}", "stored Contents"),
            ("delete from file where {}", "stored None"),
            ("insert into file select * from file where {}", "rows that are there again: 1"),
            ("insert into file select '/x', sha256, 0, 0 from file where {}", "should be None"),
        ],
    )
    async def test_tampering_is_found(
        self, client: nq.Client, files: list[Path], tampering: str, problem: str
    ) -> None:
        """One row that is wrong, gone, or there twice makes the demo exit with 1."""
        one = "path = (select path from file limit 1)"
        async with client.transaction() as tx:
            await tx.execute(f"set local search_path to {SCHEMA}")
            await tx.execute(tampering.format(one))

        report = await check(client, files)

        assert report.exit_code == 1
        (found,) = report.problems
        assert problem in found

    async def test_a_file_that_cannot_be_read_fails_for_good(
        self, client: nq.Client, files: list[Path]
    ) -> None:
        """Its task fails at the first attempt, with the reason, which the report expects."""
        gone = files[0].with_name("gone")
        ref = await client.enqueue(checksum, os.fsencode(gone))
        await nq.Worker(app, client).run_until_idle()

        status = await client.status(ref)
        report = await check(client, [*files, gone])

        assert status is not None
        assert (status.state, status.attempt) == (nq.State.FAILED, 1)
        assert "DoNotRetry: it cannot be read: " in str(status.error)
        assert "No such file" in str(status.error)
        assert (report.unreadable, report.problems) == (1, [])

    async def test_a_file_that_can_be_read_must_not_fail(
        self, client: nq.Client, files: list[Path]
    ) -> None:
        """A task that failed although its file is there is a problem."""
        gone = files[0].with_name("gone")
        await client.enqueue(checksum, os.fsencode(gone))
        await nq.Worker(app, client).run_until_idle()
        gone.write_text("back again")

        report = await check(client, [*files, gone])

        assert (report.unreadable, report.exit_code) == (0, 1)
