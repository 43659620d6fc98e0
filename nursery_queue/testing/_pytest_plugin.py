"""Fixtures for tests that need a real PostgreSQL: a throwaway server, and databases on it.

pytest loads this module in every run, whether the fixtures are used or not; therefore it
imports what it needs where it needs it.
"""

from __future__ import annotations

import contextlib
import os
import uuid

from collections.abc import Generator
from typing import TYPE_CHECKING

import pytest


if TYPE_CHECKING:
    import psycopg

    from . import VirtualTime


@pytest.fixture
def virtual_time() -> VirtualTime:
    """A virtual clock for the test, which must name it as an argument of its own."""
    from . import VirtualTime

    return VirtualTime()


@pytest.fixture(scope="session")
def nursery_queue_server() -> Generator[str]:
    """DSN of a PostgreSQL server to make databases on, for the length of the session.

    It is the server of `NURSERY_QUEUE_TEST_DSN` if that is set (a role that may create
    databases), otherwise an embedded one (extra `embedded`) that is thrown away at the end.
    """
    if dsn := os.environ.get("NURSERY_QUEUE_TEST_DSN"):
        yield dsn
        return
    import tempfile

    from nursery_queue._embedded import serve

    with (
        tempfile.TemporaryDirectory(prefix="nursery-queue-") as path,
        serve(path, programs=None, durable=False, tcp=True) as server,
    ):
        yield server.dsn


@pytest.fixture
def nursery_queue_database(nursery_queue_server: str) -> Generator[str]:
    """DSN of a fresh, empty database; it is dropped after the test, with its connections."""
    with _database(nursery_queue_server, template="template0") as dsn:
        yield dsn


@pytest.fixture(scope="session")
def nursery_queue_template(nursery_queue_server: str) -> Generator[str]:
    """Name of a migrated database for others to copy: copying is faster than migrating."""
    from psycopg.conninfo import conninfo_to_dict

    from nursery_queue._pg._migrator import up_sync

    with _database(nursery_queue_server, template="template0") as dsn:
        up_sync(dsn)
        yield str(conninfo_to_dict(dsn)["dbname"])


@pytest.fixture
def nursery_queue_dsn(nursery_queue_server: str, nursery_queue_template: str) -> Generator[str]:
    """DSN of a fresh database that has the nursery_queue schema and no rows."""
    with _database(nursery_queue_server, template=nursery_queue_template) as dsn:
        yield dsn


@contextlib.contextmanager
def _database(server: str, *, template: str) -> Generator[str]:
    from psycopg import sql
    from psycopg.conninfo import make_conninfo

    name = f"nursery_queue_test_{uuid.uuid4().hex}"
    create = sql.SQL("create database {} template {} strategy {}")
    drop = sql.SQL("drop database if exists {} with (force)")
    try:
        with _session(server) as connection:
            (durable,) = connection.execute("show fsync").fetchone() or ("on",)
            # Copying files is faster, but it makes the server write out all that it has.
            strategy = "wal_log" if durable == "on" else "file_copy"
            names = map(sql.Identifier, (name, template, strategy))
            connection.execute(create.format(*names))
        yield make_conninfo(server, dbname=name)
    finally:
        with _session(server) as connection:
            connection.execute(drop.format(sql.Identifier(name)))


@contextlib.contextmanager
def _session(server: str) -> Generator[psycopg.Connection]:
    """Connect for statements that cannot run in a transaction."""
    import psycopg

    with contextlib.closing(psycopg.connect(server, autocommit=True)) as connection:
        yield connection
