"""What passes with time is told from what does not, by SQLSTATE."""

from __future__ import annotations

import socket

from collections.abc import AsyncGenerator

import psycopg
import pytest
import trio

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from nursery_queue._core._errors import CommitOutcomeUnknown, DatabaseRefused, TransientError
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._database_errors import (
    CallTimeout,
    PoolTimeout,
    is_transient,
    translated,
    translated_for_workers,
)
from tests.support.proxy import proxied


TRANSIENT = [
    "08000", "08003", "08006", "08P01",
    "25006", "25P03", "25P04",
    "40001", "40P01",
    "53000", "53100", "53200", "53300", "53400",
    "55P03",
    "57014", "57P01", "57P02", "57P03", "57P05",
]  # fmt: skip
PERMANENT = [
    "0A000", "22012", "22P02", "23503", "23505", "25001", "25P02", "28000", "28P01", "3D000",
    "40002", "40003", "42501", "42601", "42703", "42P01", "57P04", "P0001", "XX000",
]  # fmt: skip


async def failure(conn: Connection, *statements: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        for statement in statements:
            await conn.execute(statement.encode())
    return caught.value


@pytest.mark.parametrize(
    ("sqlstate", "transient"),
    [(state, True) for state in TRANSIENT] + [(state, False) for state in PERMANENT],
)
async def test_by_sqlstate(conn: Connection, sqlstate: str, transient: bool) -> None:
    """An error raised by the server is judged by its SQLSTATE."""
    error = await failure(conn, f"do $$ begin raise sqlstate '{sqlstate}'; end $$")

    assert error.sqlstate == sqlstate
    assert is_transient(error) == transient


OF_THE_ROWS = ["22012", "22P02", "23503", "23505", "P0001"]


@pytest.mark.parametrize("sqlstate", [*TRANSIENT, *PERMANENT, "21000", "44000", "54000", "XX001"])
async def test_for_workers(conn: Connection, sqlstate: str) -> None:
    """What a worker is refused is about the rows, or `DatabaseRefused`, or passes with time."""
    with pytest.raises(Exception) as caught, translated_for_workers():  # noqa: PT011  # told below
        await conn.execute(f"do $$ begin raise sqlstate '{sqlstate}'; end $$".encode())

    if sqlstate in TRANSIENT:
        assert caught.type is TransientError
    elif sqlstate in {*OF_THE_ROWS, "21000", "44000", "54000"}:
        assert isinstance(caught.value, psycopg.Error)
    else:
        assert caught.type is DatabaseRefused
        assert isinstance(caught.value.__cause__, psycopg.Error)


@pytest.mark.parametrize("error", [psycopg.DataError("x"), ValueError("x"), OSError("x")])
def test_for_workers_without_sqlstate(error: Exception) -> None:
    """What did not come from the server is no refusal."""
    with pytest.raises((type(error), TransientError)) as caught, translated_for_workers():
        raise error
    assert (caught.type is TransientError) == isinstance(error, OSError)


async def test_translated(conn: Connection) -> None:
    """A transient error becomes `TransientError` with its text and its cause; others do not."""
    with pytest.raises(TransientError, match="deadlock") as caught, translated():
        await conn.execute("do $$ begin raise 'deadlock' using errcode = '40P01'; end $$")
    assert isinstance(caught.value.__cause__, psycopg.errors.DeadlockDetected)

    with pytest.raises(psycopg.errors.UndefinedTable), translated():
        await conn.execute("select * from missing")


@pytest.mark.parametrize(
    "error",
    [
        OSError("x"),
        psycopg.OperationalError("lost"),
        CallTimeout("x"),
        PoolTimeout("x"),
        psycopg.errors.ConnectionTimeout("x"),
    ],
)
def test_transient_without_sqlstate(error: Exception) -> None:
    """Lost connections, time limits and network errors are transient."""
    with pytest.raises(TransientError), translated():
        raise error


@pytest.mark.parametrize(
    "error",
    [
        CommitOutcomeUnknown("x"),
        psycopg.ProgrammingError("x"),
        psycopg.InterfaceError("x"),
        psycopg.InternalError("x"),
        ValueError("x"),
    ],
)
def test_not_translated(error: Exception) -> None:
    """Everything else goes through `translated()` as it is."""
    with pytest.raises(type(error)) as caught, translated():
        raise error
    assert caught.value is error
    assert not is_transient(error)


# -- the real thing ----------------------------------------------------------------------------


async def test_statement_timeout(conn: Connection) -> None:
    """A statement the server timed out is transient."""
    error = await failure(conn, "set statement_timeout = '10ms'", "select pg_sleep(60)")

    assert isinstance(error, psycopg.errors.QueryCanceled)
    assert is_transient(error)


async def test_lock_timeout(conn: Connection, other: Connection) -> None:
    """A lock that could not be had in time is transient."""
    await other.execute("create table t (i int)")
    async with other.transaction():
        await other.execute("lock table t")
        error = await failure(conn, "set lock_timeout = '10ms'", "select * from t")

    assert is_transient(error)


async def test_read_only(conn: Connection) -> None:
    """Writing on a server that only reads is transient: it may be a standby after a failover."""
    error = await failure(conn, "set default_transaction_read_only = on", "create table t ()")

    assert is_transient(error)


async def test_killed(conn: Connection, other: Connection) -> None:
    """A connection closed by the server is transient, now and at the next use."""
    await other.execute("select pg_terminate_backend(%s, 10000)", (conn.info.backend_pid,))
    for _ in range(2):
        assert is_transient(await failure(conn, "select 1"))


async def test_dropped_by_the_network(dsn: str) -> None:
    """A connection that the network drops is transient."""
    async with proxied(dsn) as proxy, await Connection.connect(proxy.dsn) as conn:
        proxy.drop()
        assert is_transient(await failure(conn, "select 1"))


# -- connecting ----------------------------------------------------------------------------------


async def refusal(conninfo: str) -> psycopg.Error:
    with pytest.raises(psycopg.Error) as caught:
        await Connection.connect(conninfo)
    return caught.value


async def test_nobody_there(dsn: str) -> None:
    """A server that does not run, or whose name is unknown, is transient."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        assert is_transient(await refusal(make_conninfo(dsn, host="127.0.0.1", port=port)))
    assert is_transient(await refusal(make_conninfo(dsn, host="nobody.invalid")))


async def test_unknown_database(dsn: str) -> None:
    """A database that does not exist is not transient."""
    error = await refusal(make_conninfo(dsn, dbname="nowhere"))

    assert error.sqlstate == "3D000"
    assert not is_transient(error)


async def test_unknown_role(dsn: str) -> None:
    """A role that does not exist is not transient."""
    error = await refusal(make_conninfo(dsn, user="nobody_at_all", password="x"))

    assert error.sqlstate in {"28000", "28P01"}
    assert not is_transient(error)


async def test_bad_conninfo() -> None:
    """A conninfo that cannot be read is not transient."""
    for conninfo in ("no conninfo", "connect_timeout=soon", "port=x host=127.0.0.1"):
        assert not is_transient(await refusal(conninfo))


async def test_too_many_connections(dsn: str, conn: Connection, role: str) -> None:
    """A role that has all the connections it may have is transient."""
    await conn.execute(f"alter role {role} connection limit 0".encode())

    assert is_transient(await refusal(make_conninfo(dsn, user=role, password="right")))


@pytest.fixture
async def role(conn: Connection) -> AsyncGenerator[str]:
    """Make a role that has to log in with its password, which is `right`."""
    name = f"nq_{conn.info.backend_pid}"
    [(path, rules)] = await conn.fetch(
        "select current_setting('hba_file'), pg_read_file(current_setting('hba_file'))"
    )
    lines = f"local all {name} scram-sha-256\nhost all {name} all scram-sha-256\n"
    await conn.execute(f"create role {name} login password 'right'".encode())
    await configure(conn, path, lines + rules)
    yield name
    await configure(conn, path, rules)
    await conn.execute(f"drop role {name}".encode())


async def configure(conn: Connection, path: str, rules: str) -> None:
    before = await loaded_at(conn)
    [(file,)] = await conn.fetch("select lo_from_bytea(0, convert_to(%s, 'UTF8'))", (rules,))
    await conn.fetch("select lo_export(%s, %s)", (file, path))
    await conn.fetch("select pg_reload_conf()")
    with trio.fail_after(10):
        while await loaded_at(conn) == before:  # noqa: ASYNC110  # nothing tells us when
            await trio.sleep(0.01)


async def loaded_at(conn: Connection) -> object:
    return await conn.fetch("select pg_conf_load_time()")


async def test_password(dsn: str, role: str) -> None:
    """A wrong or missing password is not transient; the right one works."""
    for password in ("wrong", ""):
        error = await refusal(make_conninfo(dsn, user=role, password=password, passfile="/none"))
        assert error.sqlstate == "28P01"
        assert not is_transient(error)
    async with await Connection.connect(dsn, user=role, password="right"):
        pass


async def test_one_host_of_several_may_come_back(dsn: str) -> None:
    """When one host refuses us for good and another is away, waiting may help."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        away = sock.getsockname()[1]
        async with proxied(dsn) as proxy:
            port = conninfo_to_dict(proxy.dsn)["port"]
            for ports in (f"{away},{port}", f"{port},{away}"):
                conninfo = make_conninfo(
                    proxy.dsn, host="127.0.0.1,127.0.0.1", port=ports, dbname="nowhere"
                )
                assert is_transient(await refusal(conninfo))
            both = make_conninfo(
                proxy.dsn, host="127.0.0.1,127.0.0.1", port=f"{port},{port}", dbname="nowhere"
            )
            assert (await refusal(both)).sqlstate == "3D000"
