"""Notifications only wake: lost, doubled, early or forged, readers get what is in the table."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import gc
import threading

from collections.abc import Awaitable, Callable

import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue._client._notifier import WakePolicy
from nursery_queue._core._streams import Chunk, ChunkKind, StreamWrite
from nursery_queue._trio._supervisor import LoopState
from nursery_queue.testing import VirtualTime
from tests.streams.authors import (
    Audience,
    Author,
    Clerk,
    author,
    clerk,
    everything,
    first,
    listeners,
    nothing_left,
    system_tasks,
    timers,
)
from tests.support.flaky_store import FlakyStore
from tests.support.network import sockets_to
from tests.support.proxy import Proxy
from tests.support.waits import eventually


LISTEN = b'LISTEN "nursery_queue_'


def hears(client: nq.Client) -> bool:
    listening = client._notifier._listening
    return listening is not None and listening.listener.state is LoopState.HEALTHY


# -- lost, doubled, early, forged ----------------------------------------------------------


async def test_some_are_lost(virtual_time: VirtualTime, deaf: nq.Client, at_desk: Clerk) -> None:
    """One notification brings all that was written before it, told or not."""
    audience = Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, deaf.read_stream(at_desk.fence.task_id))
        await eventually(lambda: hears(deaf))
        for number in range(30):
            await at_desk.write(number, silently=number % 3 != 2)
            await trio.sleep(0.01)
            assert len(audience.got) == (number + 1) // 3 * 3
        await at_desk.write(close=True)
    assert audience.got == list(range(30))


@pytest.mark.parametrize("interval", [5.0, 0.5, 60.0])
async def test_all_are_lost(
    virtual_time: VirtualTime, migrated: str, at_desk: Clerk, interval: float
) -> None:
    """Without any notification all is delivered within an interval, and the end, too."""
    audience, closed = Audience(), 0.0
    async with nq.connect(migrated, stream_poll_interval=interval) as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(audience.read, client.read_stream(at_desk.fence.task_id))
            await eventually(lambda: hears(client))
            written: list[float] = []
            for number in range(20):
                await trio.sleep(interval * 0.3)
                written.append(trio.current_time())
                await at_desk.write(number, silently=True)
            await trio.sleep(2 * interval)
            closed = trio.current_time()
            await at_desk.write(close=True, silently=True)
        assert trio.current_time() - closed <= interval
        assert audience.got == list(range(20))
        late = [at - since for at, since in zip(audience.at, written, strict=True)]
        assert max(late) <= interval
        assert max(late) > interval / 2  # nobody has told


async def test_polling_is_off(virtual_time: VirtualTime, deaf: nq.Client, at_desk: Clerk) -> None:
    """With the interval 0 nothing comes that nobody tells of, and all with the next one told."""
    audience = Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, deaf.read_stream(at_desk.fence.task_id))
        await eventually(lambda: hears(deaf))
        await at_desk.write(*range(100), silently=True)
        await trio.sleep(1000)
        assert audience.got == []
        told = trio.current_time()
        await at_desk.write(100)
        await eventually(lambda: len(audience.got) == 101)
        assert audience.at[-1] == told
        nursery.cancel_scope.cancel()
    assert audience.got == list(range(101))


async def test_told_three_times(virtual_time: VirtualTime, deaf: nq.Client, at_desk: Clerk) -> None:
    """However often a chunk is told of it comes once."""
    audience = Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, deaf.read_stream(at_desk.fence.task_id))
        await eventually(lambda: hears(deaf))
        for number in range(20):
            await at_desk.write(number)
            for _ in range(2):
                await at_desk.notify(str(at_desk.fence.task_id))
        await at_desk.write(close=True)
    assert audience.got == list(range(20))


async def test_told_too_early(
    virtual_time: VirtualTime, migrated: str, deaf: nq.Client, at_desk: Clerk
) -> None:
    """A notification before the chunk can be seen does no harm; the next one brings it."""
    audience = Audience()
    async with trio.open_nursery() as nursery, clerk(migrated, at_desk.fence) as stranger:
        nursery.start_soon(audience.read, deaf.read_stream(at_desk.fence.task_id))
        await eventually(lambda: hears(deaf))
        for number in range(5):
            async with at_desk.conn.transaction():
                await at_desk.write(number)
                await stranger.notify(str(at_desk.fence.task_id))
                await trio.sleep(0.1)
                assert audience.got == list(range(number))
            await eventually(lambda: len(audience.got) == number + 1)  # noqa: B023  # awaited here
        await at_desk.write(close=True)
    assert audience.got == list(range(5))


@pytest.mark.parametrize(
    "payload", ["", "garbage", "-1", "0x10", "1e9", "9" * 30, "null", "\u2603", "1 2", "x" * 7999]
)
async def test_garbage(
    virtual_time: VirtualTime, deaf: nq.Client, at_desk: Clerk, payload: str
) -> None:
    """What names no task may mean any of them: all look."""
    audience = Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, deaf.read_stream(at_desk.fence.task_id))
        await eventually(lambda: hears(deaf))
        await at_desk.write(1, silently=True)
        await trio.sleep(1)
        assert audience.got == []
        await at_desk.notify(payload)
        await eventually(lambda: audience.got == [1])
        await at_desk.write(close=True)


async def test_news_of_another_task(
    virtual_time: VirtualTime, migrated: str, at_desk: Clerk
) -> None:
    """Who reads another task's stream is not disturbed."""
    async with nq.connect(migrated) as inner:
        store = FlakyStore(inner.store)
        async with nq.Client(store, stream_poll_interval=0) as client:
            other = await author(store)
            audiences = [Audience(), Audience()]
            async with trio.open_nursery() as nursery:
                for each, who in zip(audiences, (other.fence, at_desk.fence), strict=True):
                    nursery.start_soon(each.read, client.read_stream(who.task_id))
                await eventually(lambda: hears(client))
                await trio.sleep(0.01)
                await at_desk.write("silent", silently=True)
                asked = store.calls["read_streams"]
                for number in range(10):
                    await other.write(number)
                    await eventually(lambda: audiences[0].got == list(range(number + 1)))  # noqa: B023  # awaited here
                assert audiences[1].got == []
                assert store.calls["read_streams"] - asked == 10
                nursery.cancel_scope.cancel()


async def test_told_while_we_look(
    virtual_time: VirtualTime, store: FlakyStore, writer: Author
) -> None:
    """What is written after we have looked, and told before we have the answer, is looked for."""
    client, audience = nq.Client(store, stream_poll_interval=0), Audience()
    store.late["read_streams"] = 1.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, client.read_stream(writer.task_id))
        await trio.sleep(0.5)
        await writer.write("first look")  # nobody listens yet
        await trio.sleep(2)
        assert audience.got == ["first look"]
        for number in range(5):
            await writer.write(number)
            await trio.sleep(0.5)
            await writer.write(number + 0.5)
            await trio.sleep(1.6)
            assert audience.got[-2:] == [number, number + 0.5]
            assert trio.current_time() - audience.at[-1] <= 0.2
        await writer.end()
    await nothing_left(client)


async def test_ended_while_we_look(
    virtual_time: VirtualTime, store: FlakyStore, client: nq.Client, writer: Author
) -> None:
    """A task that ends after we have looked, and before we have the answer, is looked at again."""
    stays = await author(store)
    store.late["status_many"] = 0.8
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.wait, stays.task_id)
        await eventually(lambda: hears(client), within=5)
        await trio.sleep(5.1)
        begun = trio.current_time()
        nursery.start_soon(writer_ends, writer, 0.4)
        await client.wait(writer.task_id)
        assert (
            trio.current_time() - begun <= 2.1
        )  # three answers, of which one is for the other one
        await stays.end()


async def test_back_after_a_cancellation(
    virtual_time: VirtualTime, deaf: nq.Client, at_desk: Clerk
) -> None:
    """Who was cancelled, and goes on reading, looks first: it has heard nothing meanwhile."""
    reader = deaf.read_stream(at_desk.fence.task_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(Audience().read, deaf.read_stream(at_desk.fence.task_id, "other"))
        await eventually(lambda: hears(deaf))
        await at_desk.write(1)
        assert await anext(reader) == 1
        with trio.move_on_after(1):
            await anext(reader)
        await at_desk.write(2)
        await trio.sleep(1)
        with trio.fail_after(1):
            assert await anext(reader) == 2
        nursery.cancel_scope.cancel()


async def test_rows_that_are_gone(virtual_time: VirtualTime, migrated: str, at_desk: Clerk) -> None:
    """Chunks that somebody has deleted are not asked for without end."""
    await at_desk.write(*range(10))
    await at_desk.conn.fetch(b"delete from nursery_queue.chunk where seq > 4")
    async with nq.connect(migrated) as inner:
        store = FlakyStore(inner.store)
        async with nq.Client(store) as client:
            reader = client.read_stream(at_desk.fence.task_id)
            assert await first(reader, 5) == list(range(5))
            with trio.move_on_after(100):
                await anext(reader)
            assert store.calls["read_streams"] <= 3 + 100 / 5


async def writer_ends(writer: Author, after: float) -> None:
    await trio.sleep(after)
    await writer.end()


async def test_two_writers(
    virtual_time: VirtualTime, migrated: str, deaf: nq.Client, at_desk: Clerk
) -> None:
    """Who writes second waits for the first, so nobody reads over what is not committed."""
    audience, done = Audience(), list[str]()
    async with trio.open_nursery() as nursery, clerk(migrated, at_desk.fence) as second:
        nursery.start_soon(audience.read, deaf.read_stream(at_desk.fence.task_id))

        async def write() -> None:
            await second.write("second")
            done.append("second")

        await at_desk.write("zero")
        async with trio.open_nursery() as writing, at_desk.conn.transaction():
            await at_desk.write("first")
            writing.start_soon(write)
            for _ in range(5):
                await at_desk.notify("any")
                await trio.lowlevel.checkpoint()
            assert done == []
        await at_desk.write(close=True)
    assert audience.got == ["zero", "first", "second"]


async def test_another_stream_commits_first(
    virtual_time: VirtualTime, migrated: str, deaf: nq.Client, at_desk: Clerk
) -> None:
    """Two writers whose transactions commit in the other order each have readers who get all."""
    a, b = Audience(), Audience()
    task_id = at_desk.fence.task_id
    async with trio.open_nursery() as nursery, clerk(migrated, at_desk.fence) as second:
        nursery.start_soon(a.read, deaf.read_stream(task_id, "a"))
        nursery.start_soon(b.read, deaf.read_stream(task_id, "b"))
        for number in range(5):
            async with at_desk.conn.transaction():
                await at_desk.write(number, name="a")
                async with second.conn.transaction():
                    await second.write(number, name="b")
                await eventually(lambda: b.got == list(range(number + 1)))  # noqa: B023  # awaited here
                assert a.got == list(range(number))
            await eventually(lambda: a.got == b.got)
        for name in "ab":
            await second.write(close=True, name=name)


async def test_rolled_back(virtual_time: VirtualTime, deaf: nq.Client, at_desk: Clerk) -> None:
    """What is rolled back was never there, and leaves no gap."""
    audience = Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, deaf.read_stream(at_desk.fence.task_id))
        for number in range(5):
            await at_desk.write(number)
            with pytest.raises(ZeroDivisionError):
                async with at_desk.conn.transaction():
                    await at_desk.write("never")
                    raise ZeroDivisionError
        await at_desk.write(close=True)
    assert audience.got == list(range(5))


# -- hearing again -----------------------------------------------------------------------------


async def test_the_listener_is_killed(
    virtual_time: VirtualTime, migrated: str, deaf: nq.Client, at_desk: Clerk
) -> None:
    """Writes go on while the LISTEN backend is killed again and again; readers get all."""
    audience = Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, deaf.read_stream(at_desk.fence.task_id))
        for number in range(60):
            await at_desk.write(number)
            if number % 10 == 5:
                await eventually(lambda: hears(deaf), within=30)
                for pid in await listeners(migrated):
                    await at_desk.conn.fetch(b"select pg_terminate_backend(%s)", [pid])
                with virtual_time.hold():
                    while hears(deaf):
                        await trio.lowlevel.checkpoint()
            await trio.sleep(0.02)
        await at_desk.write(close=True)
        news = deaf._notifier._listening
        assert news is not None
    assert audience.got == list(range(60))
    assert news.listener.restarts >= 3


async def test_written_while_nobody_listened(
    virtual_time: VirtualTime, migrated: str, at_desk: Clerk, proxy: Proxy
) -> None:
    """Whoever listens again looks again: for what was told when nobody could hear it."""
    audience, me = Audience(), at_desk.fence.task_id
    async with nq.connect(proxy.dsn, stream_poll_interval=0) as client, trio.open_nursery() as n:
        n.start_soon(audience.read, client.read_stream(me))
        await eventually(lambda: hears(client))
        for number in range(3):
            await trio.sleep(100)
            with virtual_time.hold():  # no time passes, so it is not restarted yet
                proxy.link(LISTEN).scope.cancel()
                while hears(client):
                    await trio.lowlevel.checkpoint()
                await at_desk.write(number)
            written = trio.current_time()
            await trio.sleep(1)
            assert audience.got == list(range(number + 1))
            assert audience.at[-1] - written <= 0.25
        await at_desk.write(close=True)


async def test_a_listener_that_cannot_be_had(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """From the first connection on that fails, looking now and then does; waits get longer."""
    store = FlakyStore(down={"listen"})
    client, audience = nq.Client(store), Audience()
    writer = await author(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, client.read_stream(writer.task_id))
        for number in range(100):
            await trio.sleep(7)
            await writer.write(number)
        await trio.sleep(5)
        assert audience.got == list(range(100))
        # 0.25 s, doubling to 30 s, with jitter: half a minute at most in between.
        assert 5 + 700 / 30 <= store.calls["listen"] <= 8 + 700 / 22
        store.down = set()
        await trio.sleep(31)
        asked = store.calls["read_streams"]
        told = trio.current_time()
        await writer.write(100)
        await eventually(lambda: len(audience.got) == 101)
        assert (audience.at[-1], store.calls["read_streams"]) == (told, asked + 1)
        await writer.close()
    assert [each.levelname for each in caplog.records if "listening" in each.message] == ["WARNING"]
    await nothing_left(client)


async def test_an_outage(autojump_clock: MockClock) -> None:
    """Readers ride out an outage, from the first question on, and go on where they were."""
    store = FlakyStore()
    client, audience, late = nq.Client(store), Audience(), Audience()
    writer = await author(store)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, client.read_stream(writer.task_id))
        await trio.sleep(1)
        await writer.write(1)
        store.down = {"read_streams"}
        await writer.write(2)
        nursery.start_soon(late.read, client.read_stream(writer.task_id))
        await trio.sleep(600)
        assert (audience.got, late.got) == ([], [])
        store.down = set()
        await trio.sleep(5)
        assert (audience.got, late.got) == ([1, 2], [1, 2])
        await writer.close()
    await nothing_left(client)


async def test_others_end_all_the_time(autojump_clock: MockClock) -> None:
    """Tasks that end elsewhere have readers look ten times a second; their own is not missed."""
    store = FlakyStore()
    client, audience = nq.Client(store), Audience()
    writer, *others = [await author(store) for _ in range(401)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, client.read_stream(writer.task_id))
        await trio.sleep(0.5)
        store.calls.clear()
        for other in others:
            await other.end()
            await trio.sleep(0.01)
        assert 38 <= store.calls["read_streams"] <= 42
        await writer.write("at once")
        await trio.sleep(0.001)
        assert audience.got == ["at once"]
        await writer.end()
        ended = trio.current_time()
    assert trio.current_time() - ended <= 0.1
    await nothing_left(client)


async def test_a_bug(autojump_clock: MockClock, caplog: pytest.LogCaptureFixture) -> None:
    """What listens lets no error out, which would end the program, and is restarted, loudly."""
    store = FlakyStore()
    client, audience = nq.Client(store, stream_poll_interval=0), Audience()
    writer = await author(store)
    client._notifier.ring_for(
        WakePolicy(frozenset(), deaf=-1.0, hearing=1.0)
    )  # no clock can do that
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, client.read_stream(writer.task_id))
        await trio.sleep(1)
        client._notifier._policies.popitem()
        await writer.write(1)
        await trio.sleep(30)
        assert audience.got == [1]
        await writer.close()
    assert [each.levelname for each in caplog.records] == ["ERROR"]
    assert "a bug; restarting it" in caplog.text
    await nothing_left(client)


@pytest.mark.parametrize("trouble", ["stuck", "down"])
async def test_a_question_without_an_answer(autojump_clock: MockClock, trouble: str) -> None:
    """Closing the client ends readers at once, though one waits for an answer, or to ask again."""
    store = FlakyStore()
    getattr(store, trouble).add("read_streams")
    client = nq.Client(store)

    async def read() -> None:
        with pytest.raises(nq.Closed, match="client"):
            await anext(client.read_stream(1))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read)
        await trio.sleep(100)
        closed = trio.current_time()
        await client.aclose()
    assert trio.current_time() == closed
    await nothing_left(client)


async def test_a_wait_during_an_outage(autojump_clock: MockClock) -> None:
    """Closing the client ends who waits for a task, though it is about to ask again."""
    store = FlakyStore(down={"status_many"})
    client = nq.Client(store)

    async def wait() -> None:
        with pytest.raises(nq.Closed, match="client"):
            await client.wait(1)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await trio.sleep(100)
        closed = trio.current_time()
        await client.aclose()
    assert trio.current_time() == closed
    await nothing_left(client)


async def test_a_first_look_that_fails(autojump_clock: MockClock) -> None:
    """Who has seen nothing looks again at once, though others hear and have nothing to ask."""
    store = FlakyStore()
    client = nq.Client(store)
    ended, stays = await author(store), await author(store)
    await ended.end()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.wait, stays.task_id)
        await trio.sleep(130)  # the clock for lost notifications is slow by now
        store.down = {"status_many"}
        with trio.move_on_after(2) as limit:
            nursery.start_soon(_mend, store, 0.1)
            assert (await client.wait(ended.task_id)).state == "succeeded"
        assert not limit.cancelled_caught
        await stays.end()


async def _mend(store: FlakyStore, after: float) -> None:
    await trio.sleep(after)
    store.down = set()


# -- one for all -----------------------------------------------------------------------------


async def test_a_thousand_readers(virtual_time: VirtualTime, migrated: str, at_desk: Clerk) -> None:
    """A thousand readers share one connection to listen on, and a few questions."""
    async with nq.connect(migrated) as inner:
        store = FlakyStore(inner.store)
        async with nq.Client(store) as client:
            audiences = [Audience() for _ in range(1000)]
            async with trio.open_nursery() as nursery:
                for number, audience in enumerate(audiences):
                    start = number % 20
                    reader = client.read_stream(at_desk.fence.task_id, start=start)
                    nursery.start_soon(audience.read, reader)
                await eventually(lambda: hears(client))
                assert len(await listeners(migrated)) == 1
                for number in range(40):
                    await at_desk.write(number)
                await at_desk.write(close=True)
            for number, audience in enumerate(audiences):
                assert audience.got == list(range(number % 20, 40))
            assert store.calls["listen"] == 1
            assert store.calls["read_streams"] <= 2 + 3 * 41
            await nothing_left(client)


@pytest.mark.parametrize("somewhere", ["memory"], indirect=True)
async def test_readers_of_many_streams(
    virtual_time: VirtualTime, client: nq.Client, store: FlakyStore, writer: Author
) -> None:
    """Questions for many streams go in as many statements as their answers need."""
    audiences = [Audience() for _ in range(250)]
    async with trio.open_nursery() as nursery:
        for number, audience in enumerate(audiences):
            reader = client.read_stream(writer.task_id, str(number))
            nursery.start_soon(audience.read, reader)
        await trio.sleep(1)
        store.calls.clear()
        await trio.sleep(5)
        assert store.calls["read_streams"] == 3
        await writer.end()
    assert all(audience.ended for audience in audiences)


async def test_readers_and_waiters(
    virtual_time: VirtualTime, client: nq.Client, store: FlakyStore, writer: Author
) -> None:
    """Who waits for results and who reads share one listener; each asks for itself."""
    audience, results = Audience(), list[str]()

    async def wait() -> None:
        results.append(str((await client.wait(writer.task_id)).state))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, client.read_stream(writer.task_id))
        nursery.start_soon(wait)
        await eventually(lambda: hears(client))
        await trio.sleep(0.01)
        asked = store.calls["status_many"]
        for number in range(10):
            await writer.write(number)
            await eventually(lambda: len(audience.got) == number + 1)  # noqa: B023  # awaited here
        assert store.calls["status_many"] == asked
        await writer.end()
    assert (audience.got, results) == (list(range(10)), ["succeeded"])
    assert store.calls["listen"] == 1
    await nothing_left(client)


async def test_live_chunks_cost_one_question_each(
    virtual_time: VirtualTime, client: nq.Client, store: FlakyStore, writer: Author
) -> None:
    """Who is told of a chunk asks once for it, and then waits to be told of the next."""
    audience = Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, client.read_stream(writer.task_id))
        await eventually(lambda: hears(client))
        await trio.sleep(0.01)
        store.calls.clear()
        for number in range(20):
            await writer.write(number)
            await eventually(lambda: len(audience.got) == number + 1)  # noqa: B023  # awaited here
        assert store.calls["read_streams"] == 20
        await writer.end()


# -- what is left ------------------------------------------------------------------------------


async def test_after_the_end(virtual_time: VirtualTime, migrated: str, pg: nq.Client) -> None:
    """After the close there is no task, no timer and no listener, while the client is open."""
    writer, audiences = await author(pg.store), [Audience() for _ in range(3)]
    async with trio.open_nursery() as nursery:
        for audience in audiences:
            nursery.start_soon(audience.read, pg.read_stream(writer.task_id))
        await eventually(lambda: hears(pg))
        assert len(system_tasks()) == len(await listeners(migrated)) == 1
        await writer.write(1)
        await writer.close()
    await nothing_left(pg)
    assert timers() == float("inf")
    with virtual_time.hold():
        while await listeners(migrated):
            pass


async def broken_off(client: nq.Client, task_id: int) -> None:
    async for _ in client.read_stream(task_id):
        break


async def broken_off_when_waited(client: nq.Client, task_id: int) -> None:
    reader = client.read_stream(task_id)
    assert await anext(reader) == 1
    with trio.move_on_after(1):
        await anext(reader)


async def cancelled(client: nq.Client, task_id: int) -> None:
    with trio.move_on_after(1):
        await everything(client.read_stream(task_id))


async def of_no_task(client: nq.Client, task_id: int) -> None:
    with pytest.raises(nq.UnknownTask):
        await anext(client.read_stream(task_id + 1))


async def reader_closed(client: nq.Client, task_id: int) -> None:
    async with client.read_stream(task_id) as reader:
        assert await anext(reader) == 1


async def failed_by_what_is_read(client: nq.Client, task_id: int) -> None:
    reader = client.read_stream(task_id, "odd")
    for _ in range(2):
        with pytest.raises(UnicodeDecodeError):
            await anext(reader)
    assert reader.position == 0


async def in_a_circle(client: nq.Client, task_id: int) -> None:
    reader: list[object] = [client.read_stream(task_id)]
    assert isinstance(reader[0], nq.StreamReader)
    assert await anext(reader[0]) == 1
    reader.append(reader)
    del reader
    gc.collect()


async def in_a_circle_that_another_thread_finds(client: nq.Client, task_id: int) -> None:
    reader: list[object] = [client.read_stream(task_id)]
    assert isinstance(reader[0], nq.StreamReader)
    assert await anext(reader[0]) == 1
    reader.append(reader)
    del reader
    before = taken(client)
    thread = threading.Thread(target=gc.collect)
    thread.start()
    thread.join()
    assert taken(client) == before  # that thread has touched nothing of ours


async def result_given_up(client: nq.Client, task_id: int) -> None:
    with pytest.raises(trio.TooSlowError):
        await client.result(task_id, timeout=1)


WAYS = [
    broken_off,
    broken_off_when_waited,
    cancelled,
    of_no_task,
    reader_closed,
    failed_by_what_is_read,
    in_a_circle,
    in_a_circle_that_another_thread_finds,
    result_given_up,
]


@pytest.mark.parametrize("way", WAYS)
async def test_after_other_ends(
    virtual_time: VirtualTime,
    client: nq.Client,
    store: FlakyStore,
    writer: Author,
    way: Callable[[nq.Client, int], Awaitable[None]],
) -> None:
    """However one stops reading or waiting, its place is free; the last turns off the light."""
    await writer.write(1)
    await odd(store, writer)
    await way(client, writer.task_id)
    await nothing_left(client)
    assert timers() == float("inf")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Audience().read, client.read_stream(writer.task_id, "other"))
            await eventually(lambda: hears(client))
            await way(client, writer.task_id)
            with trio.fail_after(1):
                while taken(client) > 1:  # noqa: ASYNC110  # nobody is told of it
                    await trio.sleep(0.001)
            assert (taken(client), len(system_tasks()), store.calls["listen"] <= 3) == (1, 1, True)
            scope.cancel()
    await nothing_left(client)
    assert timers() == float("inf")


async def odd(store: FlakyStore, writer: Author) -> None:
    """Write what is no text, and says it is."""
    chunk = Chunk(ChunkKind.TEXT, b"\xff")
    await store.write_stream(StreamWrite(fence=writer.fence, name="odd", chunks=[chunk]))


def taken(client: nq.Client) -> int:
    return sum(map(len, client._notifier._subscriptions.values()))


async def test_closing_waits_for_the_listener(
    virtual_time: VirtualTime, migrated: str, at_desk: Clerk, proxy: Proxy
) -> None:
    """When closing returns nothing runs and nothing is connected, even from within a reader."""
    async with nq.connect(proxy.dsn) as client:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(nq.Closed):
                    await anext(client.read_stream(at_desk.fence.task_id))
                await client.aclose()

            for _ in range(3):
                nursery.start_soon(read)
            await eventually(lambda: hears(client))
            await client.aclose()
            assert system_tasks() == []
            assert not list(sockets_to(proxy.dsn))
        await nothing_left(client)


@pytest.mark.parametrize("moment", ["connecting", "LISTEN", "backing off"])
async def test_closing_at_any_moment(
    virtual_time: VirtualTime, at_desk: Clerk, proxy: Proxy, moment: str
) -> None:
    """Closing while the listener connects, or waits to, takes no time and leaves nothing."""
    async with nq.connect(proxy.dsn) as client, trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(nq.Closed):
                await anext(client.read_stream(at_desk.fence.task_id))

        await client.stream_info(at_desk.fence.task_id)
        if moment == "connecting":
            proxy.blackhole_at(b"pg_backend_pid", alone=True)
        elif moment == "LISTEN":
            proxy.blackhole_at(LISTEN, alone=True)
        else:
            proxy.refusing = True
        nursery.start_soon(read)
        while (news := client._notifier._listening) is None:
            await trio.lowlevel.checkpoint()
        if moment == "backing off":
            with virtual_time.hold():
                while news.listener.state is not LoopState.BACKING_OFF:
                    await trio.lowlevel.checkpoint()
        else:
            while not any(link.silent for link in proxy.links):
                await trio.lowlevel.checkpoint()
        begun = trio.current_time()
        await client.aclose()
        assert trio.current_time() == begun
        assert system_tasks() == []
        await proxy.quiet()
        assert not list(sockets_to(proxy.dsn))


async def test_leaving_and_coming_back(
    virtual_time: VirtualTime, client: nq.Client, store: FlakyStore, writer: Author
) -> None:
    """Who comes while the last listener is about to end gets another one."""
    for number in range(10):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(Audience().read, client.read_stream(writer.task_id, "none"))
                await eventually(lambda: hears(client))
                scope.cancel()
        audience = Audience()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(audience.read, client.read_stream(writer.task_id, str(number)))
            await eventually(lambda: hears(client))
            written = trio.current_time()
            await writer.write(number, name=str(number))
            await writer.close(name=str(number))
        assert (audience.got, trio.current_time()) == ([number], written)
    await nothing_left(client)


async def test_coming_at_the_last_moment(
    virtual_time: VirtualTime, client: nq.Client, writer: Author
) -> None:
    """Who sits down when the light has just been turned off turns it on again."""
    news, policy = client._notifier, client._streams._policy
    subscription = news.subscribe(writer.task_id, policy)
    with trio.fail_after(1):
        await subscription.changed()  # it rings when it hears
        subscription.leave()
        subscription = news.subscribe(writer.task_id, policy)
        await subscription.changed()
    subscription.leave()
    await nothing_left(client)


async def test_the_store_is_closed(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A store that somebody has closed under us is no bug of ours; who asks next is told so."""
    client = nq.Client(FlakyStore())
    await client.store.aclose()
    subscription = client._notifier.subscribe(1, client._streams._policy)
    with trio.move_on_after(1):
        await subscription.changed()
    subscription.leave()
    with pytest.raises(nq.Closed):
        await anext(client.read_stream(1))
    assert caplog.records == []
    await nothing_left(client)


async def test_the_program_ends(migrated: str) -> None:
    """A program that ends with a reader in its hands ends well."""

    async def main() -> nq.StreamReader:
        client = await stack.enter_async_context(nq.connect(migrated))
        writer = await author(client.store)
        await writer.write(1, 2)
        reader = client.read_stream(writer.task_id)
        assert await first(reader, 2) == [1, 2]
        with trio.move_on_after(0.01):
            await anext(reader)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(anext, reader)
            await eventually(lambda: hears(client))
            nursery.cancel_scope.cancel()
        return reader

    stack = contextlib.AsyncExitStack()
    reader = await trio.to_thread.run_sync(trio.run, main)
    del reader
    gc.collect()
