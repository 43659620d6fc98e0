"""A PostgreSQL that takes no more connections: `max_connections` is reached."""

from __future__ import annotations

import contextlib

from collections.abc import Generator

import psycopg
import pytest
import trio

import nursery_queue as nq

from tests.faults.loops import lines, logged, unwell
from tests.support.own_server import OwnServer, own_server
from tests.support.waits import eventually
from tests.support.workers import final, outcomes, working


PLACES = 14


@pytest.fixture(scope="module")
def server() -> Generator[OwnServer]:
    with own_server() as server:
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            connection.execute(f"alter system set max_connections = {PLACES}".encode())
            connection.execute("alter system set superuser_reserved_connections = 0")
            with contextlib.suppress(psycopg.errors.UndefinedObject):  # PostgreSQL 15 has none
                connection.execute("alter system set reserved_connections = 0")
        server.restart("fast")
        yield server


@contextlib.contextmanager
def all_taken(dsn: str) -> Generator[None]:
    """Take every place that is left, as another program may do."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(psycopg.connect(dsn, autocommit=True))
        yield


async def test_fewer_places_than_handlers(
    app: nq.App, server: OwnServer, caplog: pytest.LogCaptureFixture
) -> None:
    """More transactions than the server has places for: all succeed at the first attempt."""

    @app.task(transactional=True, retry=None)
    async def hold(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute("select 1")
        await ctx.client.enqueue("another")
        await trio.sleep(0.05)

    async with nq.connect(server.dsn) as client:
        refs = await client.enqueue_many([hold.bind() for _ in range(100)])
        worker = nq.Worker(app, client)
        with logged(caplog):
            async with working(worker):
                for ref in refs:
                    await final(client, ref, within=60)
        assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 100
    assert lines(caplog, "waiting for a connection: ")


async def test_no_place_at_all(app: nq.App, server: OwnServer) -> None:
    """A worker whose handlers get no place keeps its lease, and goes on when there is one."""

    @app.task(transactional=True, retry=None)
    async def hold(ctx: nq.TaskContext) -> None:
        await ctx.tx.execute("select 1")
        started.set()
        await go.wait()

    started, go = trio.Event(), trio.Event()
    async with nq.connect(server.dsn) as client:
        worker = nq.Worker(app, client, heartbeat=0.2, lease=2)
        async with working(worker):
            first = await client.enqueue(hold)
            await started.wait()
            before = worker.health().worker_id
            with all_taken(server.dsn):
                refs = await client.enqueue_many([hold.bind() for _ in range(5)])

                async def waits() -> bool:
                    return worker.health().running == 6

                await eventually(waits)
                go.set()
                assert (await final(client, first)).state == "succeeded"
                # One after the other, on the connection that the first has given back.
                for ref in refs:
                    assert (await final(client, ref)).state == "succeeded"
                assert not unwell(worker)
            assert worker.health().worker_id == before
        assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 5
