"""A process that stops an embedded server when all programs that use it have ended.

It is started as a script, with nothing but the standard library, since it waits for as long as
the server runs: for a lock that each of those programs shares, and that the kernel takes back
from one that ends by SIGKILL, a crash or `os._exit`. A server that has been stopped it leaves
alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO


if sys.platform != "win32":
    import fcntl

ALIVE, TURN, USERS, WATCHER = "alive.lock", "turn.lock", "users.lock", "watcher.lock"
STARTING = "starting"  # is there while a program starts the server
STOP_SECONDS = 30
START_SECONDS = 5.0  # for what a program had begun to start when it was killed


def watch(home: Path, programs: Path, uid: int, gid: int, sockets: Path) -> None:
    """Wait until no program uses the server of *home*, and see to it that it does not run.

    *uid* and *gid*: the owner of the server; -1: the user's of this process.
    """
    with contextlib.ExitStack() as stack:
        alive, turn, users, watcher = (
            stack.enter_context((home / name).open("ab")) for name in (ALIVE, TURN, USERS, WATCHER)
        )
        try:
            fcntl.flock(watcher, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another one watches
        if os.fork() > 0:
            return  # the program that has started this one goes on
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            fcntl.flock(alive, fcntl.LOCK_EX)
            fcntl.flock(alive, fcntl.LOCK_UN)
            with _locked(turn):
                if _unused(users):
                    _stop(home, programs, uid, gid, sockets)
                    # Inside the turn: the next to start the server needs a new watcher.
                    fcntl.flock(watcher, fcntl.LOCK_UN)
                    return


@contextlib.contextmanager
def _locked(file: BinaryIO) -> Generator[None]:
    fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)


def _unused(users: BinaryIO) -> bool:
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stop(home: Path, programs: Path, uid: int, gid: int, sockets: Path) -> None:
    data = home / "data"
    pid_file, starting = data / "postmaster.pid", home / STARTING
    deadline = time.monotonic() + START_SECONDS
    # Nor can pg_ctl stop a server whose file is still empty.
    while starting.exists() and not _is_written(pid_file) and time.monotonic() < deadline:
        time.sleep(0.05)
    for mode in ("fast", "immediate"):
        if not pid_file.exists():
            break
        command = [programs / "pg_ctl", "stop", "-D", ".", "-w", "-t", str(STOP_SECONDS)]
        subprocess.run(
            [*map(str, command), "-m", mode],
            cwd=data,
            env={name: value for name, value in os.environ.items() if name[:2] != "PG"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            user=None if uid < 0 else uid,
            group=None if gid < 0 else gid,
            extra_groups=None if uid < 0 else [],
            check=False,
        )
    starting.unlink(missing_ok=True)
    if sockets != data:
        with contextlib.suppress(OSError):
            sockets.rmdir()


def _is_written(file: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return file.stat().st_size > 0
    return False


if __name__ == "__main__":
    _home, _programs, _uid, _gid, _sockets = sys.argv[1:]
    watch(Path(_home), Path(_programs), int(_uid), int(_gid), Path(_sockets))
