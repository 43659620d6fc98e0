"""Connections to the database of the test."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest

from nursery_queue._pg._connection import Connection


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
