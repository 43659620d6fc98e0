from __future__ import annotations

import os
import re
import subprocess
import sys

from pathlib import Path

import pytest

from tests.cli.runs import Run
from tests.cli.terminals import in_terminal, left_by_its_reader
from tests.support.command_line import PATIENCE, command, environment, rows


@pytest.fixture
def many(migrated: str) -> str:
    """DSN of a database with 3,000 tasks."""
    rows(
        migrated,
        "insert into nursery_queue.task (task_type) select 'a.task.with.quite_a_name'"
        " from generate_series(1, 3000)",
    )
    return migrated


@pytest.mark.parametrize(
    "args", [("tasks", "list"), ("tasks", "show", "1"), ("status",), ("migrate", "list")]
)
def test_a_terminal_gets_a_table(project: Path, many: str, args: tuple[str, ...]) -> None:
    """On a terminal there are headings and colours, and no line is too long for it."""
    code, shown = in_terminal(*args, cwd=project, dsn=many, NO_COLOR="1")

    assert code == 0
    assert "\x1b" not in shown
    assert "\t" not in shown
    assert max(len(line.rstrip("\r")) for line in shown.splitlines()) <= 80


@pytest.mark.parametrize("args", [("queues", "list"), ("status",)])
def test_a_limit_of_0_is_shown_as_what_it_is(
    project: Path, migrated: str, args: tuple[str, ...]
) -> None:
    """A terminal shows what is set, as JSON does: a queue that is not paused, and its limit."""
    rows(migrated, "insert into nursery_queue.queue (name, max_running) values ('mail', 0)")

    _, shown = in_terminal(*args, cwd=project, dsn=migrated, NO_COLOR="1")

    assert re.search(r"mail +open +0 ", shown)


@pytest.mark.parametrize(
    ("args", "before"), [(("queues", "list"), "state"), (("status",), "limits")]
)
def test_limits_have_their_columns_where_they_are_set(
    project: Path, migrated: str, args: tuple[str, ...], before: str
) -> None:
    """A terminal shows the limits that some queue has, and not a column for each there could be."""
    rows(
        migrated,
        "insert into nursery_queue.queue (name, max_running, key_rate_count, key_rate_per)"
        " values ('calls', 5, 10, 60), ('mail', 1, null, null)",
    )

    _, shown = in_terminal(*args, cwd=project, dsn=migrated, NO_COLOR="1")

    assert re.search(before + " +limit +rate per key", shown)
    assert re.search(r"calls( +open)? +5 +10/60", shown)
    assert re.search(r"mail( +open)? +1 +· ", shown)


def test_colours_are_for_terminals_that_want_them(project: Path, many: str) -> None:
    """A terminal gets colours, unless NO_COLOR is set."""
    args = ("tasks", "list", "--limit", "3")
    _, coloured = in_terminal(*args, cwd=project, dsn=many)
    _, plain = in_terminal(*args, cwd=project, dsn=many, NO_COLOR="1")

    assert "\x1b[" in coloured
    assert "\x1b" not in plain
    assert "there may be more: --after 2998" in plain


def test_a_file_gets_no_table(cli: Run, many: str) -> None:
    """Without a terminal there are tab-separated lines, as many as were asked for."""
    text = cli("tasks", "list", "--limit", "2500").stdout

    assert "\x1b" not in text
    assert len(text.splitlines()) == 2500
    assert {line.count("\t") for line in text.splitlines()} == {9}


def test_the_log_has_colours_on_a_terminal_only(project: Path, migrated: str) -> None:
    """The level of a warning is coloured on a terminal, unless NO_COLOR is set."""
    (project / "bare.py").write_text("import nursery_queue\napp = nursery_queue.App()\n")
    args = ("worker", "bare:app", "--drain")
    _, coloured = in_terminal(*args, cwd=project, dsn=migrated)
    _, plain = in_terminal(*args, cwd=project, dsn=migrated, NO_COLOR="1")

    assert "\x1b[33mWARNING" in coloured
    assert "WARNING" in plain
    assert "\x1b" not in plain


@pytest.mark.parametrize("args", [("--json",), ()])
def test_a_reader_that_leaves_early_is_no_problem(
    project: Path, many: str, args: tuple[str, ...]
) -> None:
    """`| head -1` ends the command quietly, with exit code 0."""
    first, *end = left_by_its_reader(
        "tasks", "list", "--limit", "3000", *args, cwd=project, dsn=many
    )

    assert "3000" in first
    assert end == [0, ""]


@pytest.mark.parametrize("args", [("--help",), ("migrate", "sql"), ("status",)])
def test_a_reader_that_is_not_there_is_no_problem(
    project: Path, many: str, args: tuple[str, ...]
) -> None:
    """A pipe that is closed from the start is noticed at the end, and causes no noise."""
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run(
            command(*args),
            cwd=project,
            env=environment({"NURSERY_QUEUE_DSN": many}),
            stdout=theirs,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        os.close(theirs)

    assert (done.returncode, done.stderr) == (0, "")


def test_a_full_disk_is_a_problem(project: Path, many: str) -> None:
    """Output that cannot be written is told, not lost."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("tasks", "list"),
            cwd=project,
            env=environment({"NURSERY_QUEUE_DSN": many}),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    assert done.returncode == 1
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    "args", [("enqueue", "hello"), ("worker", "shop:app", "--drain", "--processes", "2")]
)
def test_what_is_closed_counts_as_dev_null(
    project: Path, migrated: str, args: tuple[str, ...], closed: str
) -> None:
    """A command that was started without input, output or error does its work all the same."""
    done = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {closed}', "sh", *command(*args)],
        cwd=project,
        env=environment({"NURSERY_QUEUE_DSN": migrated}),
        stderr=subprocess.PIPE,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_without_the_extra_it_says_what_to_install(project: Path, missing: str) -> None:
    """Without click or rich there is one line, and exit code 2."""
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from nursery_queue.cli import main\nsys.exit(main(['status']))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=project,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "pip install 'nursery-queue[cli]'" in line


def test_the_version(cli: Run) -> None:
    """`--version` needs no database."""
    done = cli("--version", env={"NURSERY_QUEUE_DSN": "host=nowhere.invalid"})

    assert done.returncode == 0
    assert done.stdout.startswith("nursery-queue ")
