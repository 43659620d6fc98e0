"""What every test may use: databases on a real server, named for short."""

from __future__ import annotations

import contextlib
import os
import signal
import sys

from collections.abc import AsyncGenerator, Generator

import pytest
import trio

import nursery_queue as nq

from nursery_queue._psycopg._connection import Connection
from nursery_queue._worker import _attempt
from nursery_queue.testing import _pytest_plugin
from tests.support.databases import Stock
from tests.support.leftovers import Watch, watched
from tests.support.proxy import Proxy, proxied


pytest_plugins = ["pytester"]

# Shells start what they put into the background with both ignored, and children inherit that:
# tests that send a Ctrl-C would wait for programs that never see it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

# So does nohup with a hangup, and a worker heeds that. Here it stays without effect, but what has a
# handler is not inherited.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda _number, _frame: None)

# Containers set it for the sake of their images. Each of the many processes that tests start would
# compile all of the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# An attempt that takes a step which its table does not have ends the worker of a test.
_attempt.strict = True


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--with-server-only",
        action="store_true",
        help="leave out tests that do not use the server of this run: for another version of it",
    )
    parser.addoption(
        "--model-examples",
        type=int,
        default=200,
        help="how many sequences of steps tests/model is to try",
    )
    parser.addoption(
        "--all-flaws",
        action="store_true",
        help="also let tests/model find flaws that take it minutes (nox -s flaws)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--with-server-only"):
        kept = [item for item in items if _uses_server(item)]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
        items[:] = kept


def _uses_server(item: pytest.Item) -> bool:
    """Tell whether a fixture of this test has to do with the server, or chooses it by parameter."""
    fixtures: list[str] = getattr(item, "fixturenames", [])
    params: dict[str, object] = getattr(getattr(item, "callspec", None), "params", {})
    chosen = [param for param in params.values() if isinstance(param, str)]
    return not {"nursery_queue_server", "server"}.isdisjoint(fixtures) or "postgres" in chosen


def pytest_configure(config: pytest.Config) -> None:
    """Load our own plugin, unless the installed package has already done so."""
    if not config.pluginmanager.is_registered(_pytest_plugin):
        config.pluginmanager.register(_pytest_plugin, "nursery_queue")


def pytest_report_header() -> str:
    """Say which PostgreSQL this run is about; the embedded one starts with the first test."""
    if not (dsn := os.environ.get("NURSERY_QUEUE_TEST_DSN")):
        return "PostgreSQL: embedded"
    import psycopg  # noqa: PLC0415 - only this one line of output needs it

    with psycopg.connect(dsn) as connection:
        row = connection.execute("show server_version").fetchone()
    return f"PostgreSQL: {row[0] if row else 'unknown'} (NURSERY_QUEUE_TEST_DSN)"


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Generator[Watch]:
    """Fails a test when a worker that has returned leaves a task, a timer, a claim or the like."""
    yield from watched(request)


@pytest.fixture(scope="session")
def empty_databases(nursery_queue_server: str) -> Generator[Stock]:
    with contextlib.closing(Stock(nursery_queue_server, "template0")) as stock:
        yield stock


@pytest.fixture(scope="session")
def migrated_databases(nursery_queue_server: str, nursery_queue_template: str) -> Generator[Stock]:
    with contextlib.closing(Stock(nursery_queue_server, nursery_queue_template)) as stock:
        yield stock


@pytest.fixture
def dsn(empty_databases: Stock) -> Generator[str]:
    """DSN of an empty database."""
    with empty_databases.lend() as database:
        yield database.dsn
        assert database.connections_left() == []


@pytest.fixture
def migrated(migrated_databases: Stock) -> Generator[str]:
    """DSN of a database with the schema and no rows in it."""
    with migrated_databases.lend() as database:
        yield database.dsn
        assert database.connections_left() == []


@pytest.fixture
def app() -> nq.App:
    return nq.App()


@pytest.fixture
async def pg(migrated: str) -> AsyncGenerator[nq.Client]:
    """A client of a real database."""
    async with nq.connect(migrated) as client:
        yield client


@pytest.fixture(params=["memory", "postgres"])
def somewhere(request: pytest.FixtureRequest) -> str | None:
    """DSN of a migrated database, or None for a store in memory, which needs none."""
    return None if request.param == "memory" else str(request.getfixturevalue("migrated"))


@pytest.fixture
async def proxy(migrated: str) -> AsyncGenerator[Proxy]:
    """A way to a real database that can be cut."""
    async with proxied(migrated) as proxy:
        yield proxy


@pytest.fixture
async def db(migrated: str) -> AsyncGenerator[Connection]:
    """A connection of the test's own, with a table to write to."""
    connection = await Connection.connect(migrated)
    await connection.execute("create table note (body text unique deferrable initially deferred)")
    yield connection
    connection.abort()


@pytest.fixture
def starts(app: nq.App) -> list[float]:
    """Names the task type `note`, and collects when its tasks start, on trio's clock."""
    times: list[float] = []

    @app.task(name="note")
    async def note() -> None:
        times.append(trio.current_time())

    return times
