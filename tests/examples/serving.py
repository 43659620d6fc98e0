"""An application of examples/ in processes of its own, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import attrs
import httpx
import psycopg

from psycopg.conninfo import conninfo_to_dict

from examples.__main__ import commands
from tests.support.command_line import CHECKOUT, PATIENCE, Running, environment, rows, until


TAKES_FORMS = {"flask_signup", "django_signup"}
WAITING = """
    select pid from pg_stat_activity
     where datname = current_database() and wait_event_type = 'Lock'
       and strpos(query, %s) > 0
"""

Serve = Callable[[str], AbstractContextManager["Site"]]
"""Starts the server of the application of that name, on a fresh database with its tables."""


@attrs.frozen
class Site:
    """An application that is being served."""

    name: str
    port: int
    dsn: str
    running: Running

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_listening(self) -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", self.port), PATIENCE).close()
            return True
        return False

    def wait_until_it_listens(self) -> None:
        def ready() -> bool:
            assert self.running.process.poll() is None, f"it has ended: {self.running.stderr}"
            return self.is_listening

        until(ready, "a server that listens")

    @property
    def body(self) -> str:
        """How it wants to be told: the parameter of `httpx.post`."""
        return "data" if self.name in TAKES_FORMS else "json"

    def sign_up(self, email: str, **more: str) -> httpx.Response:
        options: dict[str, Any] = {self.body: {"email": email, **more}}
        return httpx.post(f"{self.url}/people", timeout=PATIENCE, **options)

    def push(self, *mutations: Mapping[str, object]) -> httpx.Response:
        return httpx.post(f"{self.url}/push", json={"mutations": mutations}, timeout=PATIENCE)

    def rows(self, statement: str, params: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        return rows(self.dsn, statement, params)

    @property
    def people(self) -> list[str]:
        return [email for (email,) in self.rows("select email from person order by email")]

    @property
    def mails(self) -> list[str]:
        """Who is to be welcomed, or has been."""
        mails = "select params ->> 'email', task_type from nursery_queue.task order by id"
        return [email for email, name in self.rows(mails) if name.endswith("send_welcome")]

    def waits(self, words: str) -> bool:
        """Whether a statement with these words in it waits for a lock."""
        return bool(self.rows(WAITING, [words]))

    def stop(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.running.send(signal.SIGTERM)
        return self.running.code()


@contextlib.contextmanager
def served(name: str, dsn: str) -> Generator[Site]:
    """Run the server of the application *name* while the block runs."""
    port = free_port()
    command, *_ = commands(name, port)
    with process(command, {"DATABASE_URL": dsn, "PORT": str(port)}) as running:
        site = Site(name, port, dsn, running)
        site.wait_until_it_listens()
        yield site


@contextlib.contextmanager
def process(command: Sequence[str], changes: Mapping[str, str]) -> Generator[Running]:
    """Run a command while the block runs; it does not outlive it."""
    with subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=environment(changes),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as popen:
        running = Running(popen)
        try:
            yield running
        finally:
            popen.kill()
            running.code()


def drain(site: Site) -> list[str]:
    """Run what there is to do in a worker, as the docstring says; return what it prints."""
    worker = [sys.executable, "-m", "nursery_queue", "worker", f"examples.{site.name}:tasks"]
    with process([*worker, "--drain"], {"DATABASE_URL": site.dsn}) as running:
        assert running.code() == 0, running.stderr
        return running.lines("stdout")


@contextlib.contextmanager
def locked(dsn: str, statement: str) -> Generator[None]:
    """Hold the locks that *statement* takes while the block runs."""
    with psycopg.connect(dsn) as connection:
        connection.execute(statement.encode())
        yield


def free_port() -> int:
    """Return a port below those that systems give to whoever names none: it stays free."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def url(dsn: str) -> str:
    """Return *dsn* in the form that every library reads."""
    params = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    return f"postgresql:///{quote(params.pop('dbname'))}?{urlencode(params)}"


def docstring(name: str) -> str:
    """Return how *name* is run, by its own words."""
    source = (Path(CHECKOUT) / "examples" / f"{name}.py").read_text(encoding="utf-8")
    return source.split('"""')[1]
