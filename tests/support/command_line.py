"""The command line in processes of its own, as users run it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psycopg


CHECKOUT = Path(__file__).parents[2]
PATIENCE = 90.0  # seconds for anything on a busy machine
NOT_OURS = re.compile(
    r"PG|NURSERY_QUEUE_|(DATABASE_URL|NO_COLOR|FORCE_COLOR|COLUMNS|PYTHONUNBUFFERED)$"
)


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without what would steer a command, plus *changes*."""
    kept = {name: value for name, value in os.environ.items() if not NOT_OURS.match(name)}
    kept["PYTHONPATH"] = str(CHECKOUT)
    kept["PYTHONWARNINGS"] = "error"
    return {**kept, **(changes or {})}


def command(*args: str) -> list[str]:
    return [sys.executable, "-m", "nursery_queue", *args]


def run(
    *args: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        command(*args),
        cwd=cwd,
        env=environment(env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


class Running:
    """A command that is running; its output is collected as it comes."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self._lines: dict[str, list[str]] = {"stdout": [], "stderr": []}
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=[name], daemon=True) for name in self._lines
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str) -> None:
        for line in getattr(self.process, name):
            with self._news:
                self._lines[name].append(line.rstrip("\n"))
                self._news.notify_all()

    @property
    def stderr(self) -> str:
        return "\n".join(self._lines["stderr"])

    def lines(self, of: str) -> list[str]:
        """Return what has come so far."""
        return list(self._lines[of])

    def line(self, pattern: str, *, of: str = "stderr", count: int = 1) -> str:
        """Wait for the *count*-th line that has *pattern* in it and return it."""

        def found() -> list[str]:
            return [line for line in self._lines[of] if re.search(pattern, line)]

        with self._news:
            there = self._news.wait_for(lambda: len(found()) >= count, PATIENCE)
            assert there, f"no {pattern!r} in {of}; stderr: {self.stderr}"
            return found()[count - 1]

    def send(self, signum: signal.Signals) -> None:
        self.process.send_signal(signum)

    def code(self) -> int:
        """Wait for the end and return the exit code."""
        code = self.process.wait(PATIENCE)
        for reader in self._readers:
            reader.join(PATIENCE)
        return code


@contextlib.contextmanager
def started(*args: str, cwd: Path, env: Mapping[str, str] | None = None) -> Generator[Running]:
    """Run a command while the block runs; it does not outlive it."""
    with subprocess.Popen(
        command(*args),
        cwd=cwd,
        env=environment(env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,  # its own, as a shell gives it
    ) as process:
        running = Running(process)
        try:
            yield running
        finally:
            process.kill()
            running.code()


def until(condition: Callable[[], Any], what: str = "the condition") -> Any:
    """Return what *condition* returns as soon as it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} has not come true"
        time.sleep(0.02)
    return value


def rows(dsn: str, statement: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), params or None)
        return cursor.fetchall() if cursor.description else []


def is_alive(pid: int) -> bool:
    """Whether there is such a process; one that waits to be reaped does not count."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
