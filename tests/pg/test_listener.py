"""The listener hears what was committed, and notices when it can hear no more."""

# pyright: reportPrivateUsage=false
# One test asks another question than the listener's own.

from __future__ import annotations

import functools

from collections.abc import AsyncGenerator, Callable

import psycopg
import pytest
import trio
import trio.testing

from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._listener import Listener
from tests.support.proxy import proxied


QUOTED = 'a "b" C; drop'


Heard = list[tuple[str, bytes]]


def noting(heard: Heard) -> Callable[[str, bytes], object]:
    return lambda channel, payload: heard.append((channel, payload))


@pytest.fixture
async def listener(dsn: str) -> AsyncGenerator[Listener]:
    listener = await Listener.open(dsn, ["one", QUOTED])
    yield listener
    listener.close()


async def test_hears_channels_in_order(listener: Listener, conn: Connection) -> None:
    """Each notification is told with its channel's name, whatever characters that has."""
    heard: Heard = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.run, noting(heard))
        await conn.fetch("select pg_notify(%s, 'x')", ("one",))
        await conn.fetch("select pg_notify(%s, 'x')", (QUOTED,))
        await conn.fetch("select pg_notify(%s, 'x')", ("elsewhere",))
        await conn.fetch("select pg_notify(%s, 'y')", ("one",))
        await listener.answered(listener.ask())
        assert heard == [("one", b"x"), (QUOTED, b"x"), ("one", b"y")]
        nursery.cancel_scope.cancel()


async def test_hears_what_came_before_run(listener: Listener, conn: Connection) -> None:
    """What is committed after `open()` returned is heard, even if `run()` starts later."""
    await conn.fetch("select pg_notify('one', '')")
    await listener.connection.execute("select 1")  # reads the notification as well
    heard = trio.Event()

    def hear(_channel: str, _payload: bytes) -> None:
        heard.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.run, hear)
        with trio.fail_after(10):
            await heard.wait()
        nursery.cancel_scope.cancel()


async def test_answer_comes_after_the_notifications(listener: Listener, conn: Connection) -> None:
    """Once a question is answered, all that was committed before it has been heard."""
    heard: Heard = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(listener.run, noting(heard)))
        for number in range(1, 300):
            await conn.execute("notify one")
            await listener.flushed()  # a probe may be under way that was sent before
            assert len(heard) == number
        nursery.cancel_scope.cancel()


async def test_notifications_within_the_answer(listener: Listener, conn: Connection) -> None:
    """A notification that arrives in the midst of the answer is heard before the answer counts."""
    await listener.connection.execute("begin")
    await conn.execute("notify one")  # held back by the server until the transaction ends
    listener.connection.pgconn.send_query(b"select 1; commit")
    listener._asked += 1  # as if that had been the question
    heard: Heard = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.run, noting(heard))
        await listener.answered(1)
        assert heard == [("one", b"")]
        nursery.cancel_scope.cancel()


async def test_a_payload_is_bytes(dsn: str) -> None:
    """A payload is not taken for text: it is passed on as it came."""
    async with await Connection.connect(dsn) as conn:
        listener = await Listener.open(dsn, ["one"])
        await conn.execute(b"notify one, '\xc3\xa9'")
        await listener.connection.execute("select 1")
        heard: Heard = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.run, noting(heard))
            await conn.execute(b"notify one, '\xc3\xa9'")
            await listener.answered(listener.ask())
            assert heard == [("one", "é".encode())] * 2
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["", "x" * 64, "é", "a\0b"])
async def test_impossible_channel(dsn: str, name: str) -> None:
    """A channel name the server would refuse or cut off is refused, and nothing stays open."""
    with pytest.raises(ValueError, match="1 to 63 bytes of ASCII"):
        await Listener.open(dsn, [name])


async def test_killed(listener: Listener, conn: Connection) -> None:
    """`run()` raises when the server ends the connection, and so does who waits for an answer."""
    pid = listener.connection.info.backend_pid
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            with pytest.raises(psycopg.OperationalError):
                await listener.run(lambda _c, _p: None)

        async def ask() -> None:
            with pytest.raises(psycopg.OperationalError):
                await listener.answered(10**9)

        nursery.start_soon(run)
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await conn.execute("select pg_terminate_backend(%s)", (pid,))
    assert listener.connection.closed


async def test_silent_peer(dsn: str) -> None:
    """A connection that is open but dead is found by asking, and `run()` raises."""
    async with proxied(dsn) as proxy:
        listener = await Listener.open(proxy.dsn, ["one"])
        proxy.blackhole()
        with trio.fail_after(10), pytest.raises(psycopg.OperationalError, match="did not answer"):
            await listener.run(lambda _c, _p: None, probe_every=0.05, probe_timeout=0.1)
        assert listener.connection.closed


async def test_probes_do_not_disturb(dsn: str, conn: Connection) -> None:
    """A connection that answers its probes lives on and still hears."""
    listener = await Listener.open(dsn, ["one"])
    heard: Heard = []
    async with trio.open_nursery() as nursery:
        run = functools.partial(listener.run, probe_every=0.001, probe_timeout=10)
        nursery.start_soon(run, noting(heard))
        for number in range(1, 100):
            await conn.execute("notify one")
            await listener.flushed()  # a probe may be under way that was sent before
            assert len(heard) == number
        nursery.cancel_scope.cancel()


async def test_closed_from_outside(listener: Listener) -> None:
    """`close()` ends `run()`."""
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            with pytest.raises(psycopg.OperationalError):
                await listener.run(lambda _c, _p: None)

        nursery.start_soon(run)
        await trio.testing.wait_all_tasks_blocked()
        listener.close()


async def test_cancelled_run_closes(listener: Listener) -> None:
    """Cancelling `run()` closes the connection."""
    with trio.move_on_after(0.01):
        await listener.run(lambda _c, _p: None)

    assert listener.connection.closed


async def test_a_bug_in_the_callback(listener: Listener, conn: Connection) -> None:
    """An exception of the callback ends `run()` as it is."""
    await conn.execute("notify one")
    with pytest.raises(ZeroDivisionError):
        await listener.run(lambda _c, _p: 1 // 0)
