"""A connection does all that psycopg's does, on trio."""

from __future__ import annotations

import contextlib
import os
import socket

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import trio
import trio.testing

from psycopg.conninfo import conninfo_to_dict, make_conninfo

from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._database_errors import CallTimeout
from tests.support.proxy import proxied


# -- statements -------------------------------------------------------------------------


async def test_fetch_returns_rows(conn: Connection) -> None:
    """`fetch()` gives the rows as tuples, for positional and for named parameters."""
    assert await conn.fetch("select %s::int, %s::text", (1, "x")) == [(1, "x")]
    assert await conn.fetch("select %(n)s::int from generate_series(1, 2)", {"n": 7}) == [(7,)] * 2


async def test_fetch_without_rows(conn: Connection) -> None:
    """`fetch()` of a statement that gives no rows returns an empty list."""
    assert await conn.fetch("create table t (i int)") == []
    assert await conn.fetch("insert into t values (1)") == []
    assert await conn.fetch("select i from t where false") == []


async def test_fetch_prepares(conn: Connection) -> None:
    """`fetch()` prepares its statement the first time."""
    await conn.fetch("select %s::int", (1,))

    assert await conn.fetch("select count(*) from pg_prepared_statements") == [(2,)]


async def test_fetch_without_prepared_statements(dsn: str) -> None:
    """`prepare_threshold=None` keeps `fetch()` from preparing, as PgBouncer may need."""
    async with await Connection.connect(dsn, prepare_threshold=None) as conn:
        await conn.fetch("select %s::int", (1,))

        assert await conn.fetch("select count(*) from pg_prepared_statements") == [(0,)]


async def test_fetch_by_many_tasks(conn: Connection) -> None:
    """Tasks that share a connection each get the answer to their own question."""
    answers: dict[int, list[tuple[int, ...]]] = {}

    async def ask(number: int) -> None:
        answers[number] = await conn.fetch("select %s::int from pg_sleep(0.001)", (number,))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(ask, number)

    assert answers == {number: [(number,)] for number in range(20)}


async def test_fetch_in_a_pipeline(conn: Connection) -> None:
    """`fetch()` works in a pipeline too, with or without rows."""
    async with conn.pipeline():
        await conn.execute("create table t (i int)")
        assert await conn.fetch("insert into t values (%s)", (1,)) == []
        assert await conn.fetch("select i from t") == [(1,)]


async def test_executemany_and_server_cursor(conn: Connection) -> None:
    """`executemany()`, server-side cursors and `stream()` work."""
    await conn.execute("create table t (i int)")
    await conn.cursor().executemany("insert into t values (%s)", [(i,) for i in range(300)])

    async with conn.transaction(), conn.cursor("c") as cursor:
        cursor.itersize = 50
        await cursor.execute("select i from t order by i")
        assert [i async for (i,) in cursor] == list(range(300))
    assert [i async for (i,) in conn.cursor().stream("select i from t order by i")] == [*range(300)]


async def test_errors_of_the_caller(conn: Connection) -> None:
    """An exception of the caller's own code in `executemany()` is passed on, whatever it is."""
    await conn.execute("create table t (i int)")

    def values() -> Iterator[tuple[int]]:
        yield (1,)
        raise OSError("mine")

    with pytest.raises(OSError, match="mine"):
        await conn.cursor().executemany("insert into t values (%s)", values())
    assert await conn.fetch("select 1") == [(1,)]


async def test_copy(conn: Connection) -> None:
    """COPY in and out work."""
    await conn.execute("create table t (i int)")
    async with conn.cursor().copy("copy t from stdin") as copy:
        for i in range(1000):
            await copy.write_row((i,))

    async with conn.cursor().copy("copy t to stdout") as copy:
        copy.set_types(["int4"])
        assert [i async for (i,) in copy.rows()] == list(range(1000))


async def test_large_values(conn: Connection) -> None:
    """A value larger than the socket's buffers gets through both ways."""
    large = b"x" * 20_000_000

    cursor = await conn.execute("select %b::bytea", (large,), binary=True)

    assert await cursor.fetchone() == (large,)


async def test_notifies(conn: Connection, other: Connection) -> None:
    """`notifies()` yields what was sent, before and while it waits, and ends as asked."""
    await conn.execute("listen a")
    await other.execute("notify a, '1'")
    await conn.execute("select 1")
    await other.execute("notify a, '2'")

    seen = [(n.channel, n.payload) async for n in conn.notifies(stop_after=2)]

    assert seen == [("a", "1"), ("a", "2")]
    assert [n async for n in conn.notifies(timeout=0)] == []


async def test_a_busy_connection_lets_others_run(conn: Connection) -> None:
    """A COPY whose buffers never fill does not starve other tasks."""
    await conn.execute("create table t (i int)")
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(count)
        async with conn.cursor().copy("copy t from stdin") as copy:
            await trio.lowlevel.checkpoint()
            before = turns
            for i in range(200_000):
                await copy.write_row((i,))
            assert turns > before + 3
        nursery.cancel_scope.cancel()


# -- connecting ---------------------------------------------------------------------------


async def setting(conn: Connection, name: str) -> str:
    rows = await conn.fetch("select current_setting(%s)", (name,))
    value: str = rows[0][0]
    return value


async def test_application_name(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server sees us as nursery_queue, unless conninfo or PGAPPNAME say otherwise."""
    async with await Connection.connect(dsn) as conn:
        assert await setting(conn, "application_name") == "nursery_queue"
    async with await Connection.connect(dsn, application_name="mine") as conn:
        assert await setting(conn, "application_name") == "mine"
    monkeypatch.setenv("PGAPPNAME", "ours")
    async with await Connection.connect(dsn) as conn:
        assert await setting(conn, "application_name") == "ours"


def keepalive_of(conn: Connection) -> tuple[int, int, int]:
    with socket.socket(fileno=os.dup(conn.fileno())) as sock:
        return (
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT),
        )


async def test_keepalive(dsn: str) -> None:
    """TCP keepalive is on by default; what conninfo says goes first."""
    async with proxied(dsn) as proxy:
        async with await Connection.connect(proxy.dsn) as conn:
            assert keepalive_of(conn) == (10, 5, 3)
        async with await Connection.connect(proxy.dsn, keepalives_idle=77) as conn:
            assert keepalive_of(conn) == (77, 5, 3)


async def test_keepalive_of_a_service(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a service file says about keepalive is left alone."""
    async with proxied(dsn) as proxy:
        parts = conninfo_to_dict(proxy.dsn)
        lines = "".join(f"{key}={value}\n" for key, value in parts.items())
        (tmp_path / "services").write_text(f"[here]\n{lines}keepalives_idle=88\n")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))

        async with await Connection.connect("service=here") as conn:
            assert keepalive_of(conn)[0] == 88
            assert await setting(conn, "application_name") == "nursery_queue"
        monkeypatch.setenv("PGSERVICE", "here")
        async with await Connection.connect() as conn:
            assert keepalive_of(conn)[0] == 88


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_several_hosts(dsn: str, closed_port: int) -> None:
    """Hosts are tried in turn, names are looked up, and the first that answers is taken."""
    async with proxied(dsn) as proxy:
        port = conninfo_to_dict(proxy.dsn)["port"]
        conninfo = make_conninfo(
            proxy.dsn, host="127.0.0.1,localhost", port=f"{closed_port},{port}"
        )
        async with await Connection.connect(conninfo) as conn:
            assert await conn.fetch("select 1") == [(1,)]


async def test_no_host_answers(dsn: str, closed_port: int) -> None:
    """When no host takes us, the error names each attempt."""
    conninfo = make_conninfo(dsn, host="127.0.0.1,127.0.0.2", port=f"{closed_port},{closed_port}")
    with pytest.raises(psycopg.OperationalError, match=r"(?s)127\.0\.0\.1.*127\.0\.0\.2"):
        await Connection.connect(conninfo)


async def test_target_session_attrs(dsn: str) -> None:
    """A primary is refused when a standby is wanted."""
    with pytest.raises(psycopg.OperationalError):
        await Connection.connect(dsn, target_session_attrs="standby")
    async with await Connection.connect(dsn, target_session_attrs="prefer-standby") as conn:
        assert await conn.fetch("select 1") == [(1,)]


@pytest.fixture
def silent_port() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


async def test_connect_timeout(
    silent_port: socket.socket, autojump_clock: trio.testing.MockClock
) -> None:
    """`connect_timeout` bounds each attempt."""
    port = silent_port.getsockname()[1]
    conninfo = f"host=127.0.0.1,127.0.0.1 port={port},{port} connect_timeout=3"
    with silent_port, pytest.raises(psycopg.OperationalError, match="within 3 s"):
        await Connection.connect(conninfo)

    assert trio.current_time() == pytest.approx(6)


async def test_cancelled_connect_leaves_nothing_open(silent_port: socket.socket) -> None:
    """Cancelling `connect()` closes the socket."""
    with silent_port:
        conninfo = f"host=127.0.0.1 port={silent_port.getsockname()[1]}"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Connection.connect, conninfo)
            await trio.testing.wait_all_tasks_blocked(0.01)
            peer, _ = silent_port.accept()
            nursery.cancel_scope.cancel()
        with peer:
            peer.settimeout(10)
            while peer.recv(1000):
                pass


# -- closing, and time limits -------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_closing_wakes_who_waits(conn: Connection, how: str) -> None:
    """Closing a connection another task waits for raises `OperationalError` there."""

    async def wait() -> None:
        with pytest.raises(psycopg.OperationalError):
            await conn.execute("select pg_sleep(60)")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.01)
        if how == "close":
            await conn.close()
        else:
            conn.abort()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        await conn.execute("select 1")


async def test_call_timeout(conn: Connection) -> None:
    """A call longer than `call_timeout` is cancelled and raises; the connection lives on."""
    conn.call_timeout = 0.05
    with pytest.raises(CallTimeout, match=r"0\.05 s"):
        await conn.execute("select pg_sleep(60)")

    assert await conn.fetch("select 1") == [(1,)]


async def test_call_timeout_without_peer(dsn: str) -> None:
    """A call that gets no answer at all raises and closes the connection."""
    async with proxied(dsn) as proxy:
        conn = await Connection.connect(proxy.dsn)
        conn.call_timeout = 0.05
        conn.cancel_timeout = 0.2
        proxy.blackhole()
        with pytest.raises(CallTimeout):
            await conn.execute("select 1")

        assert conn.closed


async def test_leaving_closes(dsn: str) -> None:
    """`async with` closes the connection, also when cancelled inside."""
    conn = await Connection.connect(dsn)
    with trio.CancelScope() as scope:
        async with conn:
            scope.cancel()
            await trio.lowlevel.checkpoint()

    assert conn.closed


# -- pipelines ----------------------------------------------------------------------------


async def test_failed_pipeline_does_not_poison_prepared_statements(conn: Connection) -> None:
    """A statement that was to be prepared in a pipeline that failed still works later."""
    for i in range(5):
        await conn.execute("select %s::int", (i,))
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with conn.pipeline():
            await conn.execute("select 1 / %s::int", (0,), prepare=False)
            await conn.execute("select %s::int", (9,))

    cursor = await conn.execute("select %s::int", (1,))
    assert await cursor.fetchone() == (1,)


async def test_pipeline_left_by_an_exception(conn: Connection) -> None:
    """An exception in a pipeline undoes what was sent since the last sync."""
    await conn.execute("create table t (i int)")
    with pytest.raises(ZeroDivisionError):
        async with conn.pipeline() as pipeline:
            await conn.execute("insert into t values (1)")
            await pipeline.sync()
            await conn.execute("insert into t values (2)")
            raise ZeroDivisionError

    assert await conn.fetch("select i from t") == [(1,)]


async def test_exception_in_a_pipeline_in_a_transaction(conn: Connection) -> None:
    """A pipeline that fails inside a transaction leaves the rest of it alone."""
    await conn.execute("create table t (i int)")
    async with conn.transaction():
        await conn.execute("insert into t values (1)")
        with contextlib.suppress(ZeroDivisionError):
            async with conn.pipeline():
                await conn.execute("insert into t values (2)")
                raise ZeroDivisionError

    assert await conn.fetch("select i from t order by i") == [(1,), (2,)]
