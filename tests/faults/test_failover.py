"""Several hosts: one that hangs, a standby that takes over, names with several addresses."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import os
import socket
import time

from collections.abc import Generator

import attrs
import psycopg
import pytest
import trio
import trio.testing

from psycopg.abc import ConnDict
from psycopg.conninfo import conninfo_to_dict, make_conninfo

import nursery_queue as nq

from nursery_queue._embedded._server import Server
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._hosts import CONNECT_TIMEOUT, Address, Hosts, address_of
from tests.support.own_server import OwnServer, own_server
from tests.support.proxy import Proxy
from tests.support.waits import eventually
from tests.support.workers import final, outcomes, working


# -- a host that hangs ------------------------------------------------------------------------


@pytest.fixture
def silent() -> Generator[int]:
    """A port that takes connections and says nothing."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def behind(silent: int, dsn: str, **options: str) -> str:
    """Return a DSN that leads to a silent host first, and then to that of *dsn*."""
    port = conninfo_to_dict(dsn)["port"]
    return make_conninfo(dsn, host="127.0.0.1,127.0.0.1", port=f"{silent},{port}", **options)


async def test_the_second_host_gets_its_turn(silent: int, proxy: Proxy) -> None:
    """A host that says nothing keeps nobody from the next one for more than a few seconds."""
    began = trio.current_time()
    async with await Connection.connect(behind(silent, proxy.dsn)) as conn:
        assert await conn.fetch("select 1") == [(1,)]
    assert trio.current_time() - began < CONNECT_TIMEOUT + 3


async def test_the_time_that_the_caller_has_is_shared(silent: int, proxy: Proxy) -> None:
    """Each host gets its share of what the caller can wait, whatever `connect_timeout` says."""
    with trio.fail_after(10):
        dsn = behind(silent, proxy.dsn, connect_timeout="60")
        async with await Connection.connect(dsn) as conn:
            assert await conn.fetch("select 1") == [(1,)]


async def test_the_host_that_answered_last_comes_first(silent: int, proxy: Proxy) -> None:
    """Only the first connection waits for a host that hangs."""
    hosts, dsn = Hosts(), behind(silent, proxy.dsn, connect_timeout="5")
    (await Connection.connect_to(hosts, dsn)).abort()
    with trio.fail_after(4.5):
        (await Connection.connect_to(hosts, dsn)).abort()


async def test_the_users_connect_timeout(
    silent: int, proxy: Proxy, autojump_clock: trio.testing.MockClock
) -> None:
    """`connect_timeout` in the DSN, or in the environment, is how long each host has."""
    proxy.blackhole()
    dsn = behind(silent, proxy.dsn, connect_timeout="7")
    with pytest.raises(psycopg.OperationalError, match=r"(?s)within 7 s.*within 7 s"):
        await Connection.connect(dsn)
    assert trio.current_time() == pytest.approx(14)
    assert autojump_clock.rate == 0


async def test_a_standby_is_passed_over(proxy: Proxy) -> None:
    """Of several hosts one that takes no writes is not taken, unless the DSN asks for any."""
    port = conninfo_to_dict(proxy.dsn)["port"]
    read_only = "-c default_transaction_read_only=on"
    dsn = make_conninfo(
        proxy.dsn, host="127.0.0.1,127.0.0.1", port=f"{port},{port}", options=read_only
    )
    with pytest.raises(psycopg.OperationalError, match="read-only"):
        await Connection.connect(dsn)
    async with await Connection.connect(dsn, target_session_attrs="any") as conn:
        assert await conn.fetch("select 1") == [(1,)]


async def test_a_name_of_several_addresses(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name whose first address, of IPv6, answers nobody: the next one is taken in time."""
    port = int(str(conninfo_to_dict(proxy.dsn)["port"]))
    with socket.socket(socket.AF_INET6) as six:
        six.bind(("::1", port))
        six.listen()
        both = [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

        def look_up(*_args: object, **_options: object) -> object:
            return both

        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        hosts, dsn = Hosts(), make_conninfo(proxy.dsn, host="db.example", connect_timeout="5")
        (await Connection.connect_to(hosts, dsn)).abort()
        with trio.fail_after(4.5):
            (await Connection.connect_to(hosts, dsn)).abort()


async def test_a_name_that_nobody_looks_up(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name server that hangs keeps nobody from a host whose address is known."""
    port = conninfo_to_dict(proxy.dsn)["port"]
    asked = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def hang(*_args: object, **_options: object) -> None:
        token.run_sync_soon(asked.set)
        time.sleep(8)  # a thread, which nothing interrupts

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    dsn = make_conninfo(
        proxy.dsn, host="db.example,127.0.0.1", port=f"{port},{port}", connect_timeout="2"
    )
    with trio.fail_after(7.5):
        async with await Connection.connect(dsn) as conn:
            assert await conn.fetch("select 1") == [(1,)]
    assert asked.is_set()


def test_the_order_of_hosts() -> None:
    """What answered last is first, what failed of late is last, and nothing is left out."""

    async def check() -> None:
        attempts: list[ConnDict] = [{"host": name, "port": "1"} for name in "abcd"]
        first, _, third, fourth = map(address_of, attempts)
        hosts = Hosts()

        def order(*, shuffled: bool = False) -> str:
            ordered = hosts.in_order(attempts, shuffled=shuffled)
            return "".join(str(each["host"]) for each in ordered)

        assert order() == "abcd"
        hosts.failed(first)
        hosts.answered(third, primary=True)
        assert order() == "cbda"
        hosts.failed(third)
        assert order() == "bdac"
        hosts.answered(fourth, primary=True)
        assert {order(shuffled=True)[:2] for _ in range(50)} == {"bd", "db"}
        clock.jump(61)
        assert order() == "dabc"

    clock = trio.testing.MockClock()
    trio.run(check, clock=clock)


def test_what_is_cut_off() -> None:
    """An address that fell silent is told of once, when another one has to be the primary."""

    async def check() -> None:
        moved: list[Address] = []
        hosts, first, second = Hosts(moved.append), ("a", "1"), ("b", "1")
        hosts.failed(first)  # it has said no, and may say yes
        hosts.answered(second, primary=True)
        hosts.failed(first, silent=True)
        hosts.answered(second, primary=False)
        assert moved == []
        hosts.answered(second, primary=True)
        hosts.answered(second, primary=True)
        assert moved == [first]
        hosts.failed(first, silent=True)
        hosts.answered(first, primary=True)
        hosts.answered(second, primary=True)
        assert moved == [first]

    trio.run(check)


# -- a standby that takes over --------------------------------------------------------------------


@attrs.frozen
class Pair:
    """A primary, and a standby that has all of it."""

    primary: OwnServer
    standby: Server
    dsn: str  # of both

    @property
    def standby_dsn(self) -> str:
        return self.standby.dsn()

    def catch_up(self) -> None:
        """Wait until the standby has what the primary has."""
        with psycopg.connect(self.primary.dsn, autocommit=True) as connection:
            deadline = time.monotonic() + 20
            while connection.execute(
                "select count(*) from pg_stat_replication where replay_lsn >= pg_current_wal_lsn()"
            ).fetchall() != [(1,)]:
                assert time.monotonic() < deadline, "the standby does not catch up"

    def freeze(self) -> None:
        """Stop all processes of the primary, as when its machine hangs."""
        self.primary.freeze()

    def thaw(self) -> None:
        self.primary.thaw()

    def promote(self) -> None:
        done = self.standby._run("pg_ctl", "promote", "-D", ".", "-w")  # a test
        assert done.returncode == 0, done.stderr


@pytest.fixture
def pair() -> Generator[Pair]:
    with own_server() as primary, contextlib.ExitStack() as stack:
        first = primary._server  # as above
        folder = str(conninfo_to_dict(primary.dsn)["host"])
        standby = attrs.evolve(first, data=first.data.with_name("standby"))
        standby.data.mkdir(mode=0o700)
        if first.account is not None:
            os.chown(standby.data, first.account.uid, first.account.gid)
        copied = first._run(  # as above
            "pg_basebackup", "-R", "-X", "stream", "-c", "fast", "-D", str(standby.data),
            "-d", f"host={folder} user=postgres",
        )  # fmt: skip
        assert copied.returncode == 0, copied.stderr
        for lock in standby.data.glob(".s.*"):  # of the primary's socket
            lock.unlink()
        standby.prepare()
        standby.start()
        stack.callback(standby.stop)
        both = f"{folder},{conninfo_to_dict(standby.dsn())['host']}"
        pair = Pair(primary, standby, make_conninfo(primary.dsn, host=both, port="5432,5432"))
        stack.callback(pair.thaw)
        yield pair


LEASE = 6.0


async def test_failover_to_a_standby(app: nq.App, pair: Pair) -> None:
    """When the primary hangs and its standby is promoted, the worker goes on there in time."""
    done: list[str] = []
    freeze = trio.Event()

    @app.task(name="note")
    async def note(text: str) -> None:
        await trio.lowlevel.checkpoint()
        done.append(text)

    @app.task(name="hold", transactional=True, retry=nq.RetryPolicy(initial=0.1))
    async def hold(ctx: nq.TaskContext) -> str:
        await ctx.tx.execute("select 1")
        if not freeze.is_set():
            holding.set()
            await freeze.wait()
            await ctx.tx.execute("select 2")  # on a connection to a host that hangs
        return "done"

    holding = trio.Event()
    async with nq.connect(pair.dsn) as client:
        worker = nq.Worker(app, client, lease=LEASE, heartbeat=1)
        async with working(worker):
            for number in range(20):
                await final(client, await client.enqueue("note", text=f"before {number}"))
            held = await client.enqueue("hold")
            await holding.wait()
            later = await client.enqueue(note.options(run_after=1), "later")
            await trio.to_thread.run_sync(pair.catch_up)
            pair.freeze()
            freeze.set()
            began = trio.current_time()
            await trio.to_thread.run_sync(pair.promote)
            async with nq.connect(pair.standby_dsn) as there:
                after = await there.enqueue("note", text="after")
                status = await final(there, after, within=LEASE + 10)
                took = trio.current_time() - began
                assert status.state == "succeeded"
                assert (await final(there, later, within=10)).state == "succeeded"
                # The handler that hung was cut off, or its lease had run out; it has run again.
                assert (await final(there, held, within=60)).state == "succeeded"
                assert set(await outcomes(there, held)) <= {"failed", "lost", "succeeded"}
                stats = await there.stats()
                assert stats.completed >= 23
            with trio.fail_after(LEASE + 10):  # so do verbs of the client
                assert (await client.status(after)) is not None

            async def healthy() -> bool:
                return worker.health().notify == "listening"

            await eventually(healthy, within=40)
    assert took <= LEASE + 10
    assert done.count("after") == 1
