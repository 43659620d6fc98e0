"""An application in a directory of its own, and a command line to run it with."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from nursery_queue.cli import main
from tests.cli.doors import Doors
from tests.cli.runs import Run, Start
from tests.support.command_line import NOT_OURS, Running, run, started
from tests.support.shop import APP


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A directory with `shop.py` in it, whose App is `shop:app`."""
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "shop.py").write_text(APP)
    return directory


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, project: Path) -> Path:
    """The project as the current directory, and no variable that would steer a command."""
    for name in list(os.environ):
        if NOT_OURS.match(name):
            monkeypatch.delenv(name)
    monkeypatch.chdir(project)
    return project


@pytest.fixture
def cli(migrated: str, project: Path) -> Run:
    """Runs a command in the project, on a fresh migrated database, to its end."""

    def run_here(
        *args: str, env: Mapping[str, str] | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return run(
            *args, cwd=project, env={"NURSERY_QUEUE_DSN": migrated, **(env or {})}, stdin=stdin
        )

    return run_here


@pytest.fixture
def quick(migrated: str, clean: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Like `cli`, but in this process: for commands where a process of its own adds nothing."""

    def run_inside(
        *args: str, env: Mapping[str, str] | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        out, err = io.StringIO(), io.StringIO()
        with (
            monkeypatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            patch.setattr(sys, "stdin", io.StringIO(stdin or ""))
            for name, value in {"NURSERY_QUEUE_DSN": migrated, **(env or {})}.items():
                patch.setenv(name, value)
            before = {
                signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)
            }
            try:
                code = main(args)
            finally:  # what watches goes on to hear signals until its process ends
                for signum, handler in before.items():
                    signal.signal(signum, handler)
        return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())

    return run_inside


@pytest.fixture
def start(migrated: str, project: Path) -> Start:
    """Starts a command in the project, on a fresh migrated database."""

    def start_here(
        *args: str, env: Mapping[str, str] | None = None
    ) -> AbstractContextManager[Running]:
        return started(*args, cwd=project, env={"NURSERY_QUEUE_DSN": migrated, **(env or {})})

    return start_here


@pytest.fixture
def mark(project: Path) -> Path:
    """The file that a handler writes to when it has started."""
    return project / "mark"


@pytest.fixture
def doors(migrated: str) -> Generator[Doors]:
    """The database, whose doors can be shut."""
    name = str(conninfo_to_dict(migrated)["dbname"])
    doors = Doors(make_conninfo(migrated, dbname="postgres"), name)
    yield doors
    doors.open()
