"""`tasks watch`: what a task writes in one process, a person sees in another."""

from __future__ import annotations

import json
import signal

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.cli.doors import Doors
from tests.cli.printed import objects
from tests.cli.runs import Run, Start
from tests.cli.terminals import left_by_its_reader, read_until, terminal
from tests.support.command_line import PATIENCE, rows


INT, TERM = signal.SIGINT, signal.SIGTERM
ONCE = ("--max-attempts", "1")
APP = '''
import trio

import nursery_queue as nq

app = nq.App()


@app.task(name="script", retry=nq.RetryPolicy(max_attempts=2, initial=0.01))
async def script(
    ctx: nq.TaskContext, steps: list, options: dict = {}, again: list | None = None
) -> None:
    """Do what the test has written down; *again*, if it is tried again."""
    stream = ctx.stream(**options)
    for step in steps if ctx.attempt == 1 or again is None else again:
        match step:
            case ["write", data]:
                await stream.write(data)
            case ["bytes", text]:
                await stream.write(text.encode("latin-1"))
            case ["until", file]:
                while not await trio.Path(file).exists():
                    await trio.sleep(0.01)
            case ["close"]:
                await stream.close()
            case ["fail", words]:
                raise ValueError(words)
            case ["lines", count]:
                await stream.write_many(["line"] * count)
'''


@pytest.fixture
def project(project: Path) -> Path:
    """The project, with an application whose handler writes what a test tells it to."""
    (project / "pen.py").write_text(APP)
    return project


def write(*pieces: object) -> list[list[object]]:
    return [["write", data] for data in pieces]


def gate_at(file: Path) -> list[list[object]]:
    return [["until", str(file)]]


def enqueue(cli: Run, steps: Sequence[Sequence[object]], *flags: str, **more: object) -> str:
    """Store a task of these steps and return its id."""
    done = cli("enqueue", "script", json.dumps({"steps": steps, **more}), *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def done(cli: Run, steps: Sequence[Sequence[object]], *flags: str, **more: object) -> str:
    """Have a task of these steps run to its end, in a process of its own; return its id."""
    task = enqueue(cli, steps, *flags, **more)
    drained = cli("worker", "pen:app", "--drain")
    assert drained.returncode == 0, drained.stderr
    return task


def test_lines_as_they_come(cli: Run, start: Start, tmp_path: Path) -> None:
    """Who watches before the task begins sees each line while it goes on, and then its end."""
    gate = tmp_path / "gate"
    task = enqueue(cli, [*write("one", {"two": 2}), *gate_at(gate), *write("three")])
    with start("tasks", "watch", task) as watching, start("worker", "pen:app"):
        watching.line("^one$", of="stdout")
        watching.line('^{"two": 2}$', of="stdout")
        assert watching.process.poll() is None
        assert watching.lines("stderr") == []
        gate.touch()
        code = watching.code()

    assert code == 0
    assert watching.lines("stdout") == ["one", '{"two": 2}', "three"]
    assert watching.stderr == f"task {task} succeeded"


def test_what_was_written_before(cli: Run, quick: Run) -> None:
    """A task that has ended is shown as one that goes on, more chunks than a page too."""
    task = done(cli, write(*range(2, 202)))

    watched = quick("tasks", "watch", task)

    assert (watched.returncode, watched.stderr) == (0, f"task {task} succeeded\n")
    assert watched.stdout.splitlines() == [str(i) for i in range(2, 202)]


@pytest.mark.parametrize(
    ("first", "expected"), [("0", "abcde"), ("3", "de"), ("-2", "de"), ("-9", "abcde"), ("9", "")]
)
def test_where_to_start(cli: Run, quick: Run, first: str, expected: str) -> None:
    """It starts at an index, which may be counted from the end, or lie beyond it."""
    task = done(cli, write(*"abcde"), options={"name": "letters"})

    watched = quick("tasks", "watch", task, "--stream", "letters", "--start", first)

    assert watched.returncode == 0
    assert watched.stdout.splitlines() == list(expected)


def test_a_task_that_failed(cli: Run, quick: Run) -> None:
    """A failure is told with its error, harmlessly, and the exit code is 1."""
    task = done(cli, [*write("one"), ["fail", "no \x1b[31mink"]], *ONCE)

    watched = quick("tasks", "watch", task)

    assert (watched.returncode, watched.stdout) == (1, "one\n")
    assert watched.stderr == f"task {task} failed: ValueError: no \\x1b[31mink\n"


def test_a_cancelled_task(cli: Run, start: Start, tmp_path: Path) -> None:
    """A task that is cancelled while it is watched is told as such; the exit code is 1."""
    task = enqueue(cli, [*write("one"), *gate_at(tmp_path / "never")])
    with start("tasks", "watch", task) as watching, start("worker", "pen:app"):
        watching.line("^one$", of="stdout")
        assert cli("tasks", "cancel", task).returncode == 0
        assert watching.code() == 1

    assert watching.stderr.startswith(f"task {task} cancelled")


def test_as_json(cli: Run, quick: Run) -> None:
    """Each chunk has its index, bytes are in base 64, and the last object is the task."""
    texts = write("skipped", "two\nlines", [1, None])
    task = done(cli, [*texts, ["bytes", "\xff\x01"], ["fail", "enough"]], *ONCE)

    watched = quick("tasks", "watch", task, "--json", "--start", "1")

    assert (watched.returncode, watched.stderr) == (1, "")
    assert objects(watched.stdout) == [
        {"kind": "chunk", "index": 1, "data": "two\nlines"},
        {"kind": "chunk", "index": 2, "data": [1, None]},
        {"kind": "chunk", "index": 3, "base64": "/wE="},
        {"kind": "task", "id": int(task), "state": "failed", "error": "ValueError: enough"},
    ]


def test_a_chunk_is_one_line_for_a_program(cli: Run, quick: Run) -> None:
    """Line ends and control characters in a chunk are spelled out, and bytes that are no text."""
    task = done(cli, [*write("a\nb\x1b[2J", {"c": "\x9b"}, ""), ["bytes", "d\xff"]])

    watched = quick("tasks", "watch", task)

    assert watched.stdout == 'a\\nb\\x1b[2J\n{"c": "\\x9b"}\n\nd\\xff\n'


RESTART: Mapping[str, object] = {
    "options": {"on_retry": "restart"},
    "again": write("three"),
}


def test_a_stream_that_is_begun_anew(cli: Run, start: Start, tmp_path: Path) -> None:
    """When a new attempt hides what was seen, that is said, and what it writes is shown."""
    gate = tmp_path / "gate"
    task = enqueue(cli, [*write("one", "two"), *gate_at(gate), ["fail", "x"]], **RESTART)
    with (
        start("tasks", "watch", task) as watching,
        start("tasks", "watch", task, "--json", "--start", "1") as program,
        start("worker", "pen:app"),
    ):
        watching.line("^two$", of="stdout")
        program.line("two", of="stdout")
        gate.touch()
        assert (watching.code(), program.code()) == (0, 0)

    assert watching.lines("stdout") == ["one", "two", "three"]
    assert "begun the stream anew" in watching.lines("stderr")[0]
    assert objects("\n".join(program.lines("stdout"))) == [
        {"kind": "chunk", "index": 1, "data": "two"},
        {"kind": "restart"},
        {"kind": "chunk", "index": 0, "data": "three"},
        {"kind": "task", "id": int(task), "state": "succeeded", "error": None},
    ]


def test_the_stream_may_end_before_the_task(cli: Run, start: Start, tmp_path: Path) -> None:
    """When the handler has closed the stream and goes on, its end is waited for."""
    gate = tmp_path / "gate"
    script: list[list[object]] = [*write("one"), ["close"], *gate_at(gate), ["fail", "late"]]
    task = enqueue(cli, script, *ONCE)
    with start("tasks", "watch", task) as watching, start("worker", "pen:app"):
        watching.line("^one$", of="stdout")
        assert watching.lines("stderr") == []
        gate.touch()
        assert watching.code() == 1

    assert watching.lines("stderr") == [f"task {task} failed: ValueError: late"]


@pytest.mark.parametrize("first", ["0", "-1", "2", "5"])
def test_a_stream_that_is_left_open(cli: Run, quick: Run, first: str) -> None:
    """What nobody has closed ends with its task all the same: nothing can come any more."""
    task = done(cli, write("one", "two"), options={"close_on_finish": False})

    watched = quick("tasks", "watch", task, "--start", first)

    assert (watched.returncode, watched.stderr) == (0, f"task {task} succeeded\n")
    assert watched.stdout.split() == ["one", "two"][slice(int(first), None)]


def test_a_stream_that_was_never_written(cli: Run, quick: Run) -> None:
    """The stream that nobody has written to is empty, and the end of the task is told."""
    task = done(cli, write("one"))

    watched = quick("tasks", "watch", task, "--stream", "other")

    assert (watched.returncode, watched.stdout) == (0, "")
    assert watched.stderr == f"task {task} succeeded\n"


@pytest.mark.parametrize("signum", [INT, TERM])
def test_an_interrupt(cli: Run, start: Start, tmp_path: Path, signum: signal.Signals) -> None:
    """Ctrl-C ends it without a traceback, says how to go on, and the exit code is 1."""
    gate = tmp_path / "gate"
    task = enqueue(cli, [*write("one", "two"), *gate_at(gate), *write("three")])
    with start("worker", "pen:app"):
        with start("tasks", "watch", task) as watching:
            watching.line("^two$", of="stdout")
            watching.send(signum)
            assert watching.code() == 1
        assert watching.stderr == "the task has not ended: --start 2 goes on from here"
        gate.touch()
        later = cli("tasks", "watch", task, "--start", "2")

    assert (later.returncode, later.stdout) == (0, "three\n")


def test_there_is_no_such_task(quick: Run) -> None:
    """An id that never was is an error that says so."""
    watched = quick("tasks", "watch", "77")

    assert (watched.returncode, watched.stdout) == (1, "")
    assert watched.stderr.startswith("Error: there is no task 77: it never existed, or has been")


def test_a_task_that_is_not_kept(cli: Run, start: Start, tmp_path: Path) -> None:
    """When task and stream are deleted at its end, that is an error of its own."""
    gate = tmp_path / "gate"
    task = enqueue(cli, [*write("one"), *gate_at(gate)], "--keep-for", "0")
    with start("tasks", "watch", task) as watching, start("worker", "pen:app"):
        watching.line("^one$", of="stdout")
        gate.touch()
        assert watching.code() == 1

    assert watching.stderr.startswith(f"Error: task {task} has ended and is not kept")


@pytest.mark.parametrize(
    "args",
    [
        ["1", "--stream", ""],
        ["1", "--stream", "x" * 201],
        ["1", "--stream", "a\nb"],
        ["1", "--start", "first"],
        ["1", "--start", str(2**63)],
        ["0"],
        ["one"],
        [],
    ],
)
def test_what_makes_no_sense(quick: Run, args: Sequence[str]) -> None:
    """Bad ids, indices and names are usage errors, before anybody asks the database."""
    watched = quick("tasks", "watch", *args, env={"NURSERY_QUEUE_DSN": "host=/nowhere"})

    assert (watched.returncode, watched.stdout) == (2, "")
    assert "Usage:" in watched.stderr


def test_no_database(quick: Run) -> None:
    """A database that cannot be reached is an error with a code of its own."""
    watched = quick("tasks", "watch", "1", env={"NURSERY_QUEUE_DSN": "host=/nowhere"})

    assert watched.returncode == 69


def test_an_outage(cli: Run, start: Start, migrated: str, doors: Doors, tmp_path: Path) -> None:
    """An outage in the midst of it is ridden out: what comes after it is shown, and once."""
    gate = tmp_path / "gate"
    task = enqueue(cli, [*write("one"), *gate_at(gate), *write("two", "three")])
    with start("tasks", "watch", task) as watching, start("worker", "pen:app"):
        watching.line("^one$", of="stdout")
        doors.shut()
        doors.open()
        assert rows(migrated, "select state from nursery_queue.task_status") == [("running",)]
        gate.touch()
        code = watching.code()

    assert code == 0, watching.stderr
    assert watching.lines("stdout") == ["one", "two", "three"]
    assert "Traceback" not in watching.stderr


def test_a_bar_on_a_terminal(cli: Run, start: Start, migrated: str, project: Path) -> None:
    """Progress is a bar that is drawn over; lines go above it, and the end of the task below.

    The cursor is as it was when it has ended.
    """
    gates = [project / "gate 1", project / "gate 2"]
    script = [
        *write({"done": 3, "total": 8}, "copying\nthe \x1b[31mred [b]one[/b]"),
        *gate_at(gates[0]),
        *write({"done": 1, "total": 0}, {"done": 6, "total": 8}),
        *gate_at(gates[1]),
        *write(0.915),
    ]
    task = enqueue(cli, script)
    with (
        start("worker", "pen:app"),
        terminal("tasks", "watch", task, cwd=project, dsn=migrated) as (
            process,
            ours,
        ),
    ):
        shown = read_until(ours, "3/8")
        shown += read_until(ours, "[b]one[/b]") if "[b]one[/b]" not in shown else ""
        assert "38%" in shown
        gates[0].touch()
        shown += read_until(ours, "6/8")
        gates[1].touch()
        shown += read_until(ours, None)
        code = process.wait(PATIENCE)

    assert code == 0
    assert "copying\r\n" in shown
    assert "the \\x1b[31mred [b]one[/b]" in shown
    assert '{"done": 1, "total": 0}' in shown
    assert {'{"done": 6', "0.915"} & set(shown.split('"total"')) == set()
    assert shown.rindex("92%") < shown.rindex(f"task {task} succeeded")
    assert "\x1b[2K" in shown  # a line was deleted, to be drawn anew
    assert shown.rindex("\x1b[?25h") > shown.rindex("92%")


def test_an_interrupted_bar(cli: Run, start: Start, migrated: str, project: Path) -> None:
    """Ctrl-C leaves the bar, and the cursor as it was."""
    task = enqueue(cli, [*write(0.5), *gate_at(project / "never")])
    with (
        start("worker", "pen:app"),
        terminal("tasks", "watch", task, cwd=project, dsn=migrated) as (
            process,
            ours,
        ),
    ):
        shown = read_until(ours, "50%")
        process.send_signal(INT)
        shown += read_until(ours, None)
        code = process.wait(PATIENCE)

    assert code == 1
    assert "--start 1 goes on from here" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert "Traceback" not in shown


def test_a_reader_that_leaves(cli: Run, migrated: str, project: Path) -> None:
    """`| head -1` ends it, quietly, with exit code 0."""
    task = done(cli, [["lines", 50_000]])
    end = left_by_its_reader("tasks", "watch", task, cwd=project, dsn=migrated)

    assert end == ("line\n", 0, "")
