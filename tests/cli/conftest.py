"""An application in a directory of its own, and a command line to run it with."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest

from nursery_queue.cli import main
from tests.support.command_line import NOT_OURS, Running, run, started


APP = """
import os
import time

from pathlib import Path

import trio

import nursery_queue as nq

app = nq.App()
number = 7


def started(mark: str) -> None:
    with Path(mark).open("a") as file:
        file.write(f"{os.getpid()}\\n")


@app.task(name="hello")
async def hello(name: str = "you") -> str:
    return f"hello {name}"


@app.task(name="write")
async def write(mark: str) -> None:
    started(mark)


@app.task(name="fails", retry=None)
async def fails() -> None:
    raise ValueError("tab\\there, escape\\x1b[31m, markup [red]x[/red]")


@app.task(name="waits_for_file")
async def waits_for_file(mark: str, file: str) -> None:
    started(mark)
    while not await trio.Path(file).exists():
        await trio.sleep(0.01)


@app.task(name="waits")
async def waits(mark: str) -> None:
    started(mark)
    await trio.sleep_forever()


@app.task(name="stubborn")
async def stubborn(mark: str) -> None:
    started(mark)
    with trio.CancelScope(shield=True):
        await trio.sleep_forever()


@app.task(name="blocks")
async def blocks(mark: str) -> None:
    started(mark)
    time.sleep(3600)


@app.task(name="abandoned", timeout=0.1, retry=None)
def abandoned(mark: str) -> None:
    started(mark)
    time.sleep(3600)
"""


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


class Run(Protocol):
    def __call__(
        self, *args: str, env: Mapping[str, str] | None = None, stdin: str | None = None
    ) -> subprocess.CompletedProcess[str]: ...


class Start(Protocol):
    def __call__(
        self, *args: str, env: Mapping[str, str] | None = None
    ) -> AbstractContextManager[Running]: ...


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
