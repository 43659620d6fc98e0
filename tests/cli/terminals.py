"""Commands that write to a terminal, or to a reader that leaves."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios

from collections.abc import Generator
from pathlib import Path

from tests.support.command_line import PATIENCE, command, environment


@contextlib.contextmanager
def terminal(
    *args: str, cwd: Path, dsn: str, **env: str
) -> Generator[tuple[subprocess.Popen[bytes], int]]:
    """Run a command on a terminal of 80 columns while the block runs; we are at its other end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    try:
        with subprocess.Popen(
            command(*args),
            cwd=cwd,
            env=environment({"TERM": "xterm-256color", "NURSERY_QUEUE_DSN": dsn, **env}),
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
        ) as process:
            os.close(theirs)
            try:
                yield process, ours
            finally:
                process.kill()
    finally:
        os.close(ours)


def read_until(terminal: int, words: str | None, *, times: int = 1) -> str:
    """Read what is shown until it has *words* in it so many times; None: to the end."""
    shown = b""
    with contextlib.suppress(OSError):  # so Linux says that the last one at the other end has gone
        while words is None or shown.count(words.encode()) < times:
            assert select.select([terminal], [], [], PATIENCE)[0], shown
            shown += os.read(terminal, 65536)
    return shown.decode()


def in_terminal(*args: str, cwd: Path, dsn: str, **env: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; return its exit code and what it showed."""
    with terminal(*args, cwd=cwd, dsn=dsn, **env) as (process, ours):
        shown = read_until(ours, None)
        return process.wait(PATIENCE), shown


def left_by_its_reader(*args: str, cwd: Path, dsn: str) -> tuple[str, int, str]:
    """Run `command | head -1`; return the line, the exit code and the complaints."""
    with subprocess.Popen(
        command(*args),
        cwd=cwd,
        env=environment({"NURSERY_QUEUE_DSN": dsn}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        return first, process.wait(PATIENCE), process.stderr.read()
