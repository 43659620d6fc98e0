"""A PostgreSQL that cannot be connected to, or not for long, and one that is restarted."""

from __future__ import annotations

import contextlib
import random

from collections.abc import AsyncGenerator, Generator
from typing import Literal

import attrs
import pytest
import trio

from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.faults.loops import Holding, lines, logged, loop_health, unwell
from tests.support.own_server import OwnServer, own_server
from tests.support.proxy import DETOURS, Proxy
from tests.support.workers import Longest, outcomes, working


LOOPS = ("heartbeat", "settler", "listener", "claimer", "scheduler", "maintenance")


@attrs.define(eq=False)
class Gate:
    """A way to the server that can be shut, like the port of one that does not run."""

    proxy: Proxy
    _nursery: trio.Nursery
    port: int = 0
    _listening: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def open(self) -> None:
        self._listening = trio.CancelScope()
        self.port = await self._nursery.start(self._listen)

    def shut(self) -> None:
        """Refuse connections and end those there are."""
        self._listening.cancel()
        self.proxy.drop()

    async def _listen(self, *, task_status: trio.TaskStatus[int]) -> None:
        with self._listening:
            async with trio.open_nursery() as nursery:
                listeners: list[trio.SocketListener] = await nursery.start(self._serve)
                task_status.started(listeners[0].socket.getsockname()[1])

    async def _serve(self, *, task_status: trio.TaskStatus[list[trio.SocketListener]]) -> None:
        await trio.serve_tcp(
            self.proxy.serve,
            self.port,
            host="127.0.0.1",
            handler_nursery=self._nursery,
            task_status=task_status,
        )


@pytest.fixture
async def gate(migrated: str) -> AsyncGenerator[Gate]:
    async with trio.open_nursery() as nursery:
        gate = Gate(Proxy(migrated), nursery)
        await gate.open()
        gate.proxy.dsn = make_conninfo(migrated, host="127.0.0.1", port=gate.port)
        DETOURS[gate.proxy.dsn] = migrated
        yield gate
        nursery.cancel_scope.cancel()


@pytest.fixture
def brief(app: nq.App) -> None:
    """Names the task type `brief`."""

    @app.task(name="brief")
    async def brief(seconds: float) -> None:
        await trio.sleep(seconds)


@pytest.mark.parametrize("how", ["closed port", "hangs up"])
async def test_no_connections_for_a_minute(
    virtual_time: VirtualTime,
    app: nq.App,
    gate: Gate,
    pg: nq.Client,
    holding: Holding,
    brief: None,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    """Each loop connects at most 15 times in it, the log stays short, and then all goes on."""
    proxy = gate.proxy
    async with nq.connect(proxy.dsn) as client:
        worker = nq.Worker(app, client, poll_interval=1)
        with logged(caplog):
            async with working(worker):
                held = await pg.enqueue("hold")
                done = await pg.enqueue("brief", seconds=5)
                await trio.sleep(2)
                before = proxy.accepted
                if how == "closed port":
                    gate.shut()
                else:
                    proxy.refusing = True
                    proxy.drop()
                await trio.sleep(60)
                tried = {name: loop_health(worker, name).restarts for name in LOOPS}
                # It looks once a minute, and without a lease it asks for nothing.
                assert tried.pop("scheduler") == 0
                assert all(5 <= n <= 15 for n in tried.values()), tried
                if how == "hangs up":
                    # The settler also asks each time whether it is the store or an outcome; and
                    # what is told each minute is looked up beside the loops.
                    told = sum(
                        each.startswith(("tasks that no", "the report")) for each in caplog.messages
                    )
                    most = sum(tried.values()) + tried["settler"] + told
                    assert proxy.accepted - before <= most
                assert unwell(worker) == set(tried)
                assert [reason for _, reason in holding.cancelled] == ["lease_lost"]

                proxy.refusing = False
                if how == "closed port":
                    await gate.open()
                holding.go_on.set()
                late = await pg.enqueue("brief", seconds=1)
                await trio.sleep(10 + 3 + 2)  # a third of the lease, a heartbeat, and some
                assert unwell(worker) == set()

    for name in tried:
        assert [line.split()[0] for line in lines(caplog, name)] == ["WARNING", "INFO"]
    assert await outcomes(pg, held) == ["lost", "succeeded"]
    # It ended while the lease was good, and was stored before anybody took its task for lost.
    assert await outcomes(pg, done) == ["succeeded"]
    assert await outcomes(pg, late) == ["succeeded"]


@contextlib.asynccontextmanager
async def flapping(proxy: Proxy, how: str) -> AsyncGenerator[None]:
    """Have connections die soon, or be refused every other second."""

    async def die_soon() -> None:
        while True:
            await trio.sleep(0.01)
            proxy.drop()

    async def now_and_then() -> None:
        while True:
            proxy.refusing = not proxy.refusing
            proxy.drop()
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(die_soon if how == "dies" else now_and_then)
        yield
        nursery.cancel_scope.cancel()
    proxy.refusing = False


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("how", ["dies", "refuses now and then"])
async def test_a_server_that_flaps(
    virtual_time: VirtualTime,
    app: nq.App,
    gate: Gate,
    pg: nq.Client,
    holding: Holding,
    brief: None,
    caplog: pytest.LogCaptureFixture,
    how: str,
    seed: int,
) -> None:
    """Connections that die after 10 ms cost a bounded number of others, and a bounded log."""
    proxy = gate.proxy
    async with nq.connect(proxy.dsn) as client:
        worker = nq.Worker(app, client, rng=random.Random(seed))
        with logged(caplog):
            async with working(worker):
                held = await pg.enqueue("hold")
                await trio.sleep(2)
                before = proxy.accepted
                async with flapping(proxy, how):
                    refs = [await pg.enqueue("brief", seconds=2) for _ in range(5)]
                    await trio.sleep(60)
                    restarts = {name: loop_health(worker, name).restarts for name in LOOPS}
                    told = len(caplog.records)
                    # Beats, polls and settlements take 45 or so, and each restart takes one.
                    assert proxy.accepted - before <= 60 + sum(restarts.values())
                    assert restarts.pop("heartbeat") <= 60  # three for each one that succeeds
                    assert max(restarts.values()) <= 25, restarts
                    assert told <= 2 * (60 + sum(restarts.values()))
                    assert (holding.running, holding.cancelled) == (1, [])
                await trio.sleep(31)
                assert unwell(worker) == set()
                holding.go_on.set()

    for ref in (held, *refs):
        assert await outcomes(pg, ref) == ["succeeded"]


# -- restarts ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers() -> Generator[OwnServer]:
    with own_server() as server:
        yield server


@pytest.fixture
def server(servers: OwnServer) -> Generator[OwnServer]:
    yield servers
    servers.start()  # for the next test, if this one has stopped it


@pytest.mark.parametrize("mode", ["fast", "immediate"])
@pytest.mark.parametrize("away", [10, 60])
async def test_a_restart(
    virtual_time: VirtualTime,
    app: nq.App,
    server: OwnServer,
    holding: Holding,
    brief: None,
    caplog: pytest.LogCaptureFixture,
    mode: Literal["fast", "immediate"],
    away: float,
) -> None:
    """Handlers survive a restart that is shorter than the lease; every task succeeds in the end."""
    async with nq.connect(server.dsn) as client:
        worker = nq.Worker(app, client, concurrency=20, rng=Longest())
        with logged(caplog):
            async with working(worker):
                held = [await client.enqueue("hold") for _ in range(10)]
                briefs = [await client.enqueue("brief", seconds=1 + n / 4) for n in range(20)]
                await trio.sleep(3)
                worker_id = worker.health().worker_id
                server.stop(mode)
                await trio.sleep(away)
                assert {"heartbeat", "settler", "listener"} <= unwell(worker)
                server.start()
                late = await client.enqueue("brief", seconds=1)
                if away < 30:
                    assert (holding.running, holding.cancelled) == (10, [])
                else:
                    assert {reason for _, reason in holding.cancelled} == {"lease_lost"}
                    assert len(holding.cancelled) == 10
                await trio.sleep(31)
                assert unwell(worker) == set()
                assert (worker.health().worker_id == worker_id) == (away < 30)
                holding.go_on.set()
                await trio.sleep(10)

        lost = [] if away < 30 else ["lost"]
        for ref in held:
            assert await outcomes(client, ref) == [*lost, "succeeded"]
        for ref in (*briefs, late):
            assert await outcomes(client, ref) in ([*lost, "succeeded"], ["succeeded"])
        assert len(lines(caplog, "which is a bug")) == 0
