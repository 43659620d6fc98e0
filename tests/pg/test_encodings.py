"""Tasks are Unicode: databases in other encodings are refused, and sessions in others are not."""

from __future__ import annotations

import uuid

from collections.abc import Generator

import psycopg
import pytest

from psycopg import sql
from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from nursery_queue._pg import _migrator as _migrate
from nursery_queue._pg._migrator import sql as script


OTHERS = ("SQL_ASCII", "LATIN1", "WIN1252", "EUC_JP")
SESSIONS = ("SQL_ASCII", "LATIN1", "UTF8")


@pytest.fixture(params=OTHERS)
def encoded(request: pytest.FixtureRequest, nursery_queue_server: str) -> Generator[str]:
    """DSN of an empty database in another encoding."""
    name = f"nursery_queue_test_{uuid.uuid4().hex}"
    create = sql.SQL(
        "create database {} template template0 encoding {} locale 'C' locale_provider libc"
    )
    with psycopg.connect(nursery_queue_server, autocommit=True) as admin:
        admin.execute(create.format(sql.Identifier(name), sql.Literal(request.param)))
        try:
            yield make_conninfo(nursery_queue_server, dbname=name)
        finally:
            admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))


async def test_another_encoding_is_refused_by_migrations(encoded: str) -> None:
    """Neither `migrate` nor its script makes tables there, and the error says what to do."""
    with pytest.raises(nq.SchemaError, match=r"has the encoding \w+, .* UTF8"):
        await nq.migrate(encoded)
    with psycopg.connect(encoded, autocommit=True) as session:
        with pytest.raises(psycopg.Error, match=r"has the encoding \w+, .* UTF8"):
            session.execute(script().encode())
        session.execute("rollback")
        assert session.execute("select to_regnamespace('nursery_queue')").fetchone() == (None,)


async def test_another_encoding_is_refused_by_clients(encoded: str) -> None:
    """Tables that have got there all the same, as by a restore, are not used."""
    with psycopg.connect(encoded, autocommit=True) as session:
        session.execute("create schema nursery_queue")
        session.execute(
            "create table nursery_queue.migration as select 1 as version, ''::text as checksum"
        )
    with pytest.raises(nq.SchemaError, match=r"has the encoding \w+, .* UTF8"):
        async with nq.connect(encoded):
            raise AssertionError


@pytest.mark.parametrize("where", ["dsn", "options", "environment", "role"])
@pytest.mark.parametrize("encoding", SESSIONS)
async def test_the_client_encoding_of_the_user_changes_nothing(
    migrated: str, monkeypatch: pytest.MonkeyPatch, where: str, encoding: str
) -> None:
    """Whatever encoding sessions are to have, ours have UTF8."""
    app = nq.App()

    @app.task(name="echo")
    async def echo(text: str) -> str:
        return text

    dsn = migrated
    if where == "dsn":
        dsn = make_conninfo(migrated, client_encoding=encoding)
    elif where == "options":
        dsn = make_conninfo(migrated, options=f"-c client_encoding={encoding}")
    elif where == "environment":
        monkeypatch.setenv("PGCLIENTENCODING", encoding)
    else:
        with psycopg.connect(migrated, autocommit=True) as session:
            alter = sql.SQL("alter database {} set client_encoding = {}")
            session.execute(alter.format(sql.Identifier(session.info.dbname), encoding))
    async with nq.connect(dsn) as client:
        ref = await client.enqueue(echo, "€ żółw 日本")
        await nq.Worker(app, client).run_until_idle()
        assert await client.result(ref) == "€ żółw 日本"


async def test_migrations_take_any_client_encoding(dsn: str) -> None:
    """`migrate` and `check` do not mind what encoding a session is to have."""
    odd = make_conninfo(dsn, client_encoding="SQL_ASCII")
    assert await nq.migrate(odd) == [each.version for each in _migrate.migrations()]
    async with nq.connect(odd):
        assert await nq.migrate(odd) == []
