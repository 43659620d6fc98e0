"""A worker hears of tasks at once, and notices when it can hear no more."""

# pyright: reportPrivateUsage=false
# Which sockets are open is nobody's business but ours.

from __future__ import annotations

import functools
import random
import socket

import psycopg
import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._retry import Backoff
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._store import Bell
from nursery_queue._trio._supervisor import Loop, LoopState, supervise
from nursery_queue.testing import VirtualTime
from tests.faults.loops import Holding, lines, logged, loop_health
from tests.support.flaky_store import FlakyStore
from tests.support.network import pass_time_until, sockets_to
from tests.support.proxy import Proxy
from tests.support.workers import final, state, working


LISTEN = b'LISTEN "nursery_queue'
CHANNELS = (b"nursery_queue", b"nursery_queue_cancel", b"nursery_queue_finished", b"elsewhere")


@pytest.fixture
def app(app: nq.App) -> nq.App:
    @app.task(name="echo")
    async def echo(value: object) -> object:
        return value

    return app


def deaf_without_notify(app: nq.App, client: nq.Client) -> nq.Worker:
    """Return a worker that finds tasks by notification, or not at all."""
    return nq.Worker(app, client, poll_interval=0)


def no_news(bell: Bell, task_id: int | None = None) -> None:
    """Hear it, and do nothing."""


# -- again and again ---------------------------------------------------------------------------


async def test_written_while_nobody_listened(
    virtual_time: VirtualTime, app: nq.App, proxy: Proxy, pg: nq.Client
) -> None:
    """A task written between two LISTEN connections is run as soon as there is the second."""
    async with nq.connect(proxy.dsn) as client:
        worker = deaf_without_notify(app, client)
        async with working(worker):
            for number in range(3):
                await trio.sleep(100)
                with virtual_time.hold():  # no time passes, so it is not restarted yet
                    proxy.link(LISTEN).scope.cancel()
                    while loop_health(worker, "listener").state != "backing_off":
                        await trio.lowlevel.checkpoint()
                    ref = await pg.enqueue("echo", value=number)
                written = trio.current_time()
                assert (await final(pg, ref)).result == number
                assert trio.current_time() - written < 1
        assert loop_health(worker, "listener").restarts == 3


async def test_dead_but_silent(
    virtual_time: VirtualTime,
    app: nq.App,
    proxy: Proxy,
    pg: nq.Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A connection on which nothing arrives any more is replaced within 15 seconds."""
    async with nq.connect(proxy.dsn) as client:
        worker = deaf_without_notify(app, client)
        async with working(worker):
            await trio.sleep(3)
            proxy.link(LISTEN).blackhole()
            missed = await pg.enqueue("echo", value=1)
            with logged(caplog):
                took = await pass_time_until(
                    virtual_time,
                    proxy,
                    lambda: loop_health(worker, "listener").restarts == 1,
                    within=60,
                )
                assert (await final(pg, missed)).result == 1
            assert 5 <= took <= 15
            assert (await final(pg, await pg.enqueue("echo", value=2))).result == 2
            assert worker.health().notify == "listening"

    assert [line.split(":")[0] for line in lines(caplog, "listener")] == [
        "WARNING listener failed, restarting it",
        "INFO listener is back",
    ]


async def test_alive_but_idle(virtual_time: VirtualTime, app: nq.App, pg: nq.Client) -> None:
    """A connection on which there is nothing to hear for a day is kept."""
    worker = deaf_without_notify(app, pg)
    async with working(worker):
        await trio.sleep(3600)
        assert loop_health(worker, "listener").restarts == 0
        written = trio.current_time()
        assert (await final(pg, await pg.enqueue("echo", value=2))).result == 2
        assert trio.current_time() == written


async def test_without_listening(virtual_time: VirtualTime, app: nq.App, proxy: Proxy) -> None:
    """With `listen=False` nothing listens: tasks are found by polling."""
    async with (
        nq.connect(proxy.dsn) as client,
        working(nq.Worker(app, client, listen=False)),
    ):
        ref, begun = await client.enqueue("echo", value=1), trio.current_time()
        while await state(client, ref) != "succeeded":  # noqa: ASYNC110  # to wait is to listen
            await trio.sleep(0.1)
        assert trio.current_time() - begun <= 5.6
        assert not [link for link in proxy.links if LISTEN in link.said]


# -- sockets ---------------------------------------------------------------------------------------


async def test_keepalive(
    virtual_time: VirtualTime, app: nq.App, holding: Holding, proxy: Proxy
) -> None:
    """The kernel watches every connection of a worker, whatever it is used for."""

    @app.task(name="in_transaction", transactional=True)
    async def in_transaction(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute("select 1")
        await holding.go_on.wait()

    options = {
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 10,
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 5,
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 3,
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 20_000,
    }
    async with nq.connect(proxy.dsn) as client, working(nq.Worker(app, client)):
        await client.enqueue("in_transaction")
        await trio.sleep(1)
        found = [
            {option: each.getsockopt(*option) for option in options}
            for each in sockets_to(proxy.dsn)
        ]
        holding.go_on.set()
    assert len(found) >= 4  # listener, heartbeat, claims, the handler's
    assert found == [options] * len(found)


@pytest.mark.parametrize("moment", ["connecting", "first question", "LISTEN", "listening"])
async def test_cancelled_at_any_moment(
    virtual_time: VirtualTime, proxy: Proxy, moment: str
) -> None:
    """Cancelling `listen` closes its connection at once, though the server is silent."""
    store = PostgresStore(proxy.dsn)
    if moment == "connecting":
        proxy.blackhole()
    elif moment == "first question":
        proxy.blackhole_at(b"pg_backend_pid")
    elif moment == "LISTEN":
        proxy.blackhole_at(LISTEN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.listen, no_news, [Bell.WORK])
        while not proxy.links:
            await trio.lowlevel.checkpoint()
        await proxy.quiet()
        assert len(list(sockets_to(proxy.dsn))) == 1
        begun = trio.current_time()
        nursery.cancel_scope.cancel()

    assert trio.current_time() == begun
    await proxy.quiet()
    assert proxy.accepted == 1  # not even one to ask for the end of a statement
    assert not list(sockets_to(proxy.dsn))


async def test_cancelled_between_two_connections(virtual_time: VirtualTime, proxy: Proxy) -> None:
    """A listener that waits to be restarted has no connection, and none after it is cancelled."""
    store, me = PostgresStore(proxy.dsn), Loop("listener")
    listen = functools.partial(store.listen, no_news, [Bell.WORK])
    rng = random.Random(1)
    async with trio.open_nursery() as nursery:
        await nursery.start(functools.partial(supervise, listen, me, backoff=Backoff(), rng=rng))
        with virtual_time.hold():
            proxy.link(LISTEN).scope.cancel()
            while me.state is not LoopState.BACKING_OFF:
                await trio.lowlevel.checkpoint()
            assert not list(sockets_to(proxy.dsn))
            nursery.cancel_scope.cancel()
    assert not list(sockets_to(proxy.dsn))


# -- notifications of anybody ----------------------------------------------------------------------


PAYLOADS = {
    "empty": [b""],
    "as long as can be": [b"x" * 7999],
    "json": [b'{"task_id": 1}', b"[]", b"null"],
    "quotes": [b"'\"$$\\ ;drop", b"%s %(a)s {}"],
    "control characters": [bytes(range(1, 32))],
    "ten thousand": [str(number).encode() for number in range(10_000)],
}


@pytest.mark.parametrize("payloads", PAYLOADS.values(), ids=PAYLOADS)
async def test_payloads_of_anybody(
    virtual_time: VirtualTime,
    app: nq.App,
    migrated: str,
    payloads: list[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever anybody sends, on whatever channel, wakes the worker at most and does no harm."""
    with psycopg.connect(migrated, autocommit=True) as stranger:
        await _is_unmoved(
            virtual_time, app, FlakyStore(PostgresStore(migrated)), stranger, payloads
        )
    assert lines(caplog, "") == []


async def _is_unmoved(
    clock: VirtualTime,
    app: nq.App,
    store: FlakyStore,
    stranger: psycopg.Connection,
    payloads: list[bytes],
) -> None:
    async with nq.Client(store) as client:
        worker = deaf_without_notify(app, client)
        async with working(worker):
            await trio.sleep(1)
            before = store.calls["claim"]
            with clock.hold(), stranger.transaction():
                for channel in CHANNELS:
                    quoted = (payload.replace(b"'", b"''") for payload in payloads)
                    stranger.execute(b";".join(b"notify %b, '%b'" % (channel, q) for q in quoted))
            await trio.sleep(1)
            assert 1 <= store.calls["claim"] - before <= 100  # one ring is like many
            written = trio.current_time()
            assert (await final(client, await client.enqueue("echo", value=1))).result == 1
            assert trio.current_time() == written
            assert {each.restarts for each in worker.health().loops.values()} == {0}
