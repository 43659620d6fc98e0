"""Connections to the database of the test, and a store in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator

import psycopg
import pytest

from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._psycopg._connection import Connection
from tests.pg.queries import Session


@pytest.fixture
async def conn(dsn: str) -> AsyncGenerator[Connection]:
    connection = await Connection.connect(dsn)
    yield connection
    connection.abort()


@pytest.fixture
async def other(dsn: str) -> AsyncGenerator[Connection]:
    """Give a second connection to the same database."""
    connection = await Connection.connect(dsn)
    yield connection
    connection.abort()


@pytest.fixture
def session(migrated: str) -> Generator[Session]:
    """Give a plain client, without autocommit, that does not wait for ever."""
    with psycopg.connect(migrated) as session:
        session.execute("set statement_timeout = '20s'")
        session.commit()
        yield session
        session.rollback()


@pytest.fixture
async def store(migrated: str) -> AsyncGenerator[PostgresStore]:
    store = PostgresStore(migrated)
    yield store
    await store.aclose()
