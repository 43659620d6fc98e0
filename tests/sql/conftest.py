"""A database with a table of the application's own beside the queue's, and who looks at it."""

from __future__ import annotations

import contextlib

from collections.abc import Callable, Generator

import psycopg
import pytest

import nursery_queue as nq

from tests.support.psql import Psql


USR = """
    create table usr (
        id    bigint generated always as identity primary key,
        email text not null unique
    )
"""
TABLES = """
    select relname from pg_class
     where relnamespace = 'nursery_queue'::regnamespace and relkind = 'r' and relname <> 'migration'
    union all
    select 'usr'
"""


@pytest.fixture
def psql(migrated: str) -> Psql:
    psql = Psql(migrated)
    psql(USR + ";")
    return psql


@pytest.fixture
def nothing_stored(migrated: str) -> Callable[[], bool]:
    """Tells whether each table of the queue, and `usr`, is empty."""

    def look() -> bool:
        with psycopg.connect(migrated) as session:
            tables = [table for (table,) in session.execute(TABLES)]
            session.execute("set search_path = nursery_queue, public")
            filled = [
                table
                for table in tables
                if session.execute(f"select from {table} limit 1".encode()).fetchall()
            ]
        assert len(tables) > 9
        return not filled

    return look


@pytest.fixture
def bell(migrated: str, psql: Psql) -> Generator[Callable[[], int]]:
    """Tells how often workers were notified since the test began."""
    with psycopg.connect(migrated, autocommit=True) as ear:
        ear.execute("listen nursery_queue")

        def count() -> int:
            psql("notify nursery_queue, 'asked';")
            heard: list[str] = []
            with contextlib.closing(ear.notifies(timeout=20)) as notifies:
                for notify in notifies:
                    if notify.payload == "asked":
                        return len(heard)
                    heard.append(notify.payload)
            pytest.fail(f"the question itself was not heard after {heard}")

        yield count


@pytest.fixture
def sent() -> list[str]:
    """Whom the welcome mail was sent to, in this order."""
    return []


@pytest.fixture
def app(sent: list[str]) -> nq.App:
    app = nq.App()

    @app.task(name="SEND_EMAIL_WELCOME")
    async def send_email_welcome(email: str) -> str:
        sent.append(email)
        return f"welcomed {email}"

    return app


@pytest.fixture
def worker(app: nq.App, pg: nq.Client) -> nq.Worker:
    """A worker that runs what has been committed, one by one: `await worker.run_until_idle()`."""
    return nq.Worker(app, pg, concurrency=1)
