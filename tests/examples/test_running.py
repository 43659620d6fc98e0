"""How the applications are run: by the commands that their docstrings give."""

from __future__ import annotations

import contextlib
import re
import socket
import sys
import tempfile

from collections.abc import Generator, Mapping
from pathlib import Path

import httpx
import pytest

from examples.__main__ import COMMANDS, commands
from tests.examples.serving import Site, docstring, free_port, process, url
from tests.support.command_line import CHECKOUT, PATIENCE, rows


@pytest.mark.parametrize("name", COMMANDS)
def test_the_docstring_has_the_commands(name: str) -> None:
    """What it tells people to run is what we run, but for the port."""
    told = docstring(name)

    for command in [["examples", name], *(command[2:] for command in commands(name, 0))]:
        plain = " ".join(each for each in command if each not in {"--port", "--noreload", "0"})
        line = re.sub("^examples", "python -m examples", plain).replace("nursery_", "nursery-", 1)
        assert re.search(rf"^    {re.escape(line)}(  .*)?$", told, re.MULTILINE), line


def test_every_application_can_be_run() -> None:
    """No file of examples/ is left out."""
    files = {each.stem for each in (CHECKOUT / "examples").glob("*.py")} - {"__main__"}

    assert files == set(COMMANDS)


@pytest.fixture
def temporary() -> Generator[Path]:
    """A directory that the user who runs the server can enter, which pytest's are not."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o711)
        yield Path(path)


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_has_to_be_set_up(name: str, temporary: Path) -> None:
    """Without a database there is one, and a worker; SIGTERM ends all that, and nothing is left."""
    with launched(name, {"TMPDIR": str(temporary)}) as site:
        ask(site)

    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("variable", ["NURSERY_QUEUE_DSN", "DATABASE_URL"])
def test_a_database_that_is_named_is_used(variable: str, dsn: str) -> None:
    """The tables are made in it, however often, and what has been done is there afterwards."""
    for email in ("ann@example.org", "bob@example.org"):
        with launched("starlette_signup", {variable: url(dsn)}, dsn) as site:
            site.sign_up(email)

    assert site.people == site.mails == ["ann@example.org", "bob@example.org"]


def test_a_server_that_cannot_start_ends_it_all(dsn: str) -> None:
    """If one of the processes fails, the others are stopped, and the exit code says so."""
    port = free_port()
    command = [sys.executable, "-m", "examples", "flask_signup", str(port)]
    with (
        socket.create_server(("127.0.0.1", port)),
        process(command, {"DATABASE_URL": url(dsn)}) as running,
    ):
        assert running.code() == 1

    assert f"Port {port} is in use" in running.stderr
    assert rows(dsn, "select from nursery_queue.worker") == []


@contextlib.contextmanager
def launched(name: str, changes: Mapping[str, str], dsn: str = "") -> Generator[Site]:
    """Run an application with all that it needs while the block runs, and stop it well."""
    port = free_port()
    command = [sys.executable, "-m", "examples", name, str(port)]
    with process(command, changes) as running:
        site = Site(name, port, dsn, running)
        try:
            site.wait_until_it_listens()
            yield site
        finally:  # or what it has started would outlive it
            code = site.stop()

    assert (code, site.is_listening) == (0, False)


def ask(site: Site) -> None:
    """Make a request, and wait for what is done about it in the end."""
    if site.name == "push_batches":
        issue = {"id": 1, "title": "It rains"}
        site.push({"clientID": "c", "id": 1, "name": "create", "args": [issue]})
        site.running.line("^telling: opened: It rains", of="stdout")
    elif site.name == "sse_tokens":
        asked = httpx.post(f"{site.url}/ask", json={"question": "one two"}).json()
        answer = httpx.get(f"{site.url}/tokens/{asked['task']}", timeout=PATIENCE)
        assert "ONE" in answer.text
    else:
        assert site.sign_up("ann@example.org").status_code == 201
        site.running.line("^Welcome, ann@example.org!", of="stdout")
