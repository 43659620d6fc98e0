"""A PostgreSQL server of a test's own, to be restarted and killed under its users."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time

from collections.abc import Generator
from pathlib import Path
from typing import Final, Literal

import attrs
import psycopg

from nursery_queue._embedded._account import account_for
from nursery_queue._embedded._programs import installed_programs
from nursery_queue._embedded._server import Server
from nursery_queue._pg._migrator import up_sync
from tests.support.command_line import is_alive, until


Mode = Literal["fast", "immediate"]
"""How to stop a server: *fast* says goodbye to its clients, *immediate* does not, as in a crash."""

SIGNALS: Final = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


@attrs.frozen
class OwnServer:
    """A running server and its only database, which is migrated."""

    dsn: str
    _server: Server

    def stop(self, mode: Mode) -> None:
        pid = int((self._server.data / "postmaster.pid").read_text().splitlines()[0])
        os.kill(pid, SIGNALS[mode])
        until(lambda: not is_alive(pid), "the end of the server")

    def freeze(self) -> None:
        """Stop all its processes, as when its machine hangs: nothing is answered or refused."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, which: signal.Signals) -> None:
        postmaster = int((self._server.data / "postmaster.pid").read_text().splitlines()[0])
        for pid in (postmaster, *children_of(postmaster)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, which)

    def start(self) -> None:
        """Start it again, where it was."""
        self._server.start()

    def restart(self, mode: Mode) -> float:
        """Stop it and start it; return for how many seconds it was away."""
        began = time.monotonic()
        self.stop(mode)
        self.start()
        return time.monotonic() - began


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if stat.read_text().rpartition(")")[2].split()[1] == str(pid):
                found.append(int(stat.parent.name))
    return found


@contextlib.contextmanager
def own_server() -> Generator[OwnServer]:
    """Run a server of the same programs as the suite's, if these are on this machine."""
    with tempfile.TemporaryDirectory(prefix="nursery-queue-") as path:
        data = Path(path).resolve() / "data"
        server = Server(
            data=data,
            programs=_programs_of_the_suite() or installed_programs(data),
            account=account_for(data),
            durable=True,  # what it has said to have stored must be there after a crash
            tcp=False,
        )
        try:
            server.prepare()
            server.start()
            dsn = server.dsn()
            with psycopg.connect(dsn, autocommit=True) as connection:
                # The machine goes on: what the kernel has been told is not lost.
                connection.execute("alter system set fsync = off")
                connection.execute("select pg_reload_conf()")
            up_sync(dsn)
            yield OwnServer(dsn, server)
        finally:
            server.stop()


def _programs_of_the_suite() -> Path | None:
    if not (dsn := os.environ.get("NURSERY_QUEUE_TEST_DSN")):
        return None
    with psycopg.connect(dsn, autocommit=True) as connection:
        try:
            found = connection.execute("select setting from pg_config where name = 'BINDIR'")
        except psycopg.errors.InsufficientPrivilege:
            return None
        programs = Path(*(found.fetchone() or ()))
    return programs if (programs / "pg_ctl").exists() else None
