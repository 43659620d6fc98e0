"""What producers say where each statement commits by itself, and its answer is lost."""

from __future__ import annotations

import asyncio
import time

from collections.abc import Callable
from contextlib import closing
from typing import Any

import django.db
import psycopg
import pytest
import sqlalchemy as sa
import trio

from django.db import connections
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import nursery_queue as nq

from nursery_queue._psycopg._connection import Connection
from tests.producers.outside import Outside
from tests.support.proxy import proxied


NAME = "the_unmistakable"


def on_psycopg(dsn: str, verb: str, *args: Any) -> None:
    with closing(psycopg.connect(dsn, autocommit=True)) as conn:
        getattr(nq.producer(conn), verb)(*args)


def on_asyncio(dsn: str, verb: str, *args: Any) -> None:
    async def main() -> None:
        conn = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        try:
            await getattr(nq.producer(conn), verb)(*args)
        finally:
            await conn.close()

    asyncio.run(main())


def on_trio(dsn: str, verb: str, *args: Any) -> None:
    async def main() -> None:
        conn = await Connection.connect(dsn)
        try:
            await getattr(nq.producer(conn), verb)(*args)
        finally:
            conn.abort()

    trio.run(main)


def engine(dsn: str) -> sa.Engine:
    return sa.create_engine(url(dsn), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)


def url(dsn: str) -> sa.URL:
    return sa.URL.create("postgresql+psycopg", query={k: str(v) for k, v in parts(dsn).items()})


def parts(dsn: str) -> dict[str, Any]:
    return dict(conninfo_to_dict(dsn))


def on_core(dsn: str, verb: str, *args: Any) -> None:
    with engine(dsn).connect() as conn:
        getattr(nq.producer(conn), verb)(*args)


def on_session(dsn: str, verb: str, *args: Any) -> None:
    with Session(engine(dsn)) as session:
        getattr(nq.producer(session), verb)(*args)


def on_async_core(dsn: str, verb: str, *args: Any) -> None:
    async def main() -> None:
        engine = create_async_engine(url(dsn), isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
        async with engine.connect() as conn:
            await getattr(nq.producer(conn), verb)(*args)

    asyncio.run(main())


def on_django(dsn: str, verb: str, *args: Any) -> None:
    with closing(connections.create_connection("default")) as conn:
        told = parts(dsn)
        # Not in place: the settings are those of every connection to come.
        conn.settings_dict = (
            conn.settings_dict
            | {
                name.upper(): str(told.pop(name, ""))
                for name in ("user", "password", "host", "port")
            }
            | {"NAME": told.pop("dbname"), "OPTIONS": told}
        )
        usual, connections["default"] = connections["default"], conn
        try:
            getattr(nq.producer(conn), verb)(*args)
        finally:
            connections["default"] = usual


KINDS: list[Callable[..., None]] = [
    on_psycopg,
    on_asyncio,
    on_trio,
    on_core,
    on_session,
    on_async_core,
    on_django,
]


@pytest.mark.parametrize("answered", [False, True], ids=["not applied", "applied"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_autocommit(outside: Outside, kind: Callable[..., None], answered: bool) -> None:
    """An enqueue whose answer is lost says that it may or may not be stored."""
    needle = b"COMMIT" if kind is on_django else NAME.encode()
    async with proxied(outside.dsn) as proxy:
        proxy.drop_at(needle, answered=answered)
        with pytest.raises(nq.CommitOutcomeUnknown, match="may or may not"):
            await trio.to_thread.run_sync(kind, proxy.dsn, "enqueue", NAME)

    assert len(outside.tasks()) == answered


KEYED = nq.TaskRequest.by_name(NAME).options(dedup_key="k")
WRITES: dict[str, tuple[Any, ...]] = {"enqueue_many": ([KEYED],), "cancel": (1,)}


@pytest.mark.parametrize("verb", WRITES)
async def test_every_write_is_one(outside: Outside, verb: str) -> None:
    """So does an enqueue with a dedup key, and a cancel."""
    async with proxied(outside.dsn) as proxy:
        proxy.drop_at(b"nursery_queue.", answered=False)
        with pytest.raises(nq.CommitOutcomeUnknown, match="may or may not"):
            await trio.to_thread.run_sync(on_psycopg, proxy.dsn, verb, *WRITES[verb])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
async def test_reads(outside: Outside, kind: Callable[..., None]) -> None:
    """A question whose answer is lost raises the library's own error."""
    async with proxied(outside.dsn) as proxy:
        proxy.drop_at(b"row_to_json", answered=False)
        with pytest.raises(Exception, match="connection") as raised:
            await trio.to_thread.run_sync(kind, proxy.dsn, "status", 1)

    assert not isinstance(raised.value, nq.NurseryQueueError)


async def test_before_the_commit(outside: Outside) -> None:
    """On Django's connection an insert that is lost before its commit is lost for sure."""
    async with proxied(outside.dsn) as proxy:
        proxy.drop_at(NAME.encode(), answered=True)
        with pytest.raises(django.db.Error):
            await trio.to_thread.run_sync(on_django, proxy.dsn, "enqueue", NAME)

    assert outside.tasks() == []


async def test_an_answer_is_an_answer_also_at_commit(outside: Outside) -> None:
    """What the server refuses only when it commits is not stored, and no other is lost with it."""
    outside.session.execute(
        "create function refuse() returns trigger language plpgsql as"
        " $$ begin raise check_violation using message = 'too late'; end $$"
    )
    outside.session.execute(
        "create constraint trigger refuse after insert on nursery_queue.task"
        " deferrable initially deferred for each row execute function refuse()"
    )
    for kind in KINDS:
        with pytest.raises(Exception, match="too late") as raised:
            await trio.to_thread.run_sync(kind, outside.dsn, "enqueue", NAME)
        assert not isinstance(raised.value, nq.CommitOutcomeUnknown), kind

    assert outside.tasks() == []


async def test_a_session_that_was_idle_too_long(outside: Outside) -> None:
    """The server says that it had nothing to do: what was sent to it is lost for sure.

    Unless libpq sees the end of the connection first: then nobody hears what the server has said.
    """

    def ended(pid: int) -> bool:
        with psycopg.connect(outside.dsn) as session:
            asked = "select from pg_stat_activity where pid = %s"
            return session.execute(asked, [pid]).fetchone() is None

    def enqueue() -> None:
        with closing(psycopg.connect(outside.dsn, autocommit=True)) as conn:
            conn.execute("set idle_session_timeout = 1")
            deadline = time.monotonic() + 20
            while not ended(conn.info.backend_pid):
                assert time.monotonic() < deadline
            nq.producer(conn).enqueue(NAME)

    with pytest.raises((psycopg.errors.IdleSessionTimeout, nq.CommitOutcomeUnknown)) as caught:
        await trio.to_thread.run_sync(enqueue)
    assert not isinstance(caught.value.__cause__, psycopg.errors.IdleSessionTimeout)

    assert outside.tasks() == []
