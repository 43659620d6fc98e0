"""What every test may use: databases on a real server, named for short."""

from __future__ import annotations

import os

import pytest

from nursery_queue.testing import _pytest_plugin


pytest_plugins = ["pytester"]


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


@pytest.fixture
def dsn(nursery_queue_database: str) -> str:
    """DSN of a fresh, empty database."""
    return nursery_queue_database


@pytest.fixture
def migrated(nursery_queue_dsn: str) -> str:
    """DSN of a fresh database with the schema in it."""
    return nursery_queue_dsn
