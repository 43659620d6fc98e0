"""Readers get all of a stream, in order, once: what was there, and what comes."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import attrs
import pytest
import trio

import nursery_queue as nq

from nursery_queue._core._states import Event
from nursery_queue.testing import VirtualTime
from tests.streams.authors import Audience, Author, author, everything, first, nothing_left
from tests.support.flaky_store import FlakyStore
from tests.support.store_steps import add, claim_one, hire


HUNDREDS = range(200)
STARTS = [0, 64, 100, 199, 200, -5, -1000]
VALUES = [
    b"",
    b"\x00\xff",
    "",
    "snow \u2603",
    0,
    None,
    True,
    1.5,
    [1, [2]],
    {"done": 1, "total": 2},
]


async def again(writer: Author, **options: object) -> Author:
    """End an attempt that is to be tried again, and begin the next one."""
    await writer.end(Event.INTERRUPT)
    claim = await claim_one(writer.store, await hire(writer.store))
    assert claim.fence.task_id == writer.task_id
    return attrs.evolve(writer, fence=claim.fence)


# -- what was there, and what comes -----------------------------------------------------------


async def test_as_it_was_written(
    virtual_time: VirtualTime, client: nq.Client, writer: Author
) -> None:
    """Bytes, text and JSON come back as what they were, one by one, however they were written."""
    await writer.write(*VALUES)
    for value in VALUES:
        await writer.write(value)
    await writer.close()
    got = await everything(client.read_stream(writer.task_id))
    assert [(type(value), value) for value in got] == [(type(v), v) for v in VALUES * 2]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("when", ["before", "while", "after"])
async def test_two_hundred_chunks(
    virtual_time: VirtualTime, client: nq.Client, writer: Author, start: int, when: str
) -> None:
    """Reading begins anywhere, and ends at the close, be that before, while or after we read."""
    await writer.write(*HUNDREDS)
    expected = list(HUNDREDS)[start:]
    reader = client.read_stream(writer.task_id, start=start)
    assert reader.position == start
    if when == "before":
        await writer.close()
        got = await everything(reader)
    elif when == "while":
        got = await first(reader, min(len(expected), 70))
        await writer.close()
        got += await everything(reader)
    else:
        got = await first(reader, len(expected))
        with trio.move_on_after(100):
            await anext(reader)
        await writer.write(200)
        await writer.close()
        got += await everything(reader)
        expected += [200]
    assert got == expected
    assert reader.position == 200 + (when == "after")


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 127, 128, 129])
async def test_around_the_ends_of_pages(
    virtual_time: VirtualTime, client: nq.Client, writer: Author, length: int
) -> None:
    """A length that fills pages exactly, nearly or just not is like any other, live or not."""
    audience = Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, client.read_stream(writer.task_id))
        await trio.sleep(0.001)
        if length:
            await writer.write(*range(length))
        await trio.sleep(0.001)
        assert (audience.got, audience.ended) == (list(range(length)), False)
        await writer.close()
    assert audience.got == list(range(length))
    assert await everything(client.read_stream(writer.task_id)) == list(range(length))


@pytest.mark.parametrize("written", [10, 15, 16, 20])
async def test_waiting_for_an_index(
    virtual_time: VirtualTime, client: nq.Client, writer: Author, written: int
) -> None:
    """A start beyond the end is waited for; what comes before it is not read."""
    await writer.write(*range(10))
    audience, reader = Audience(), client.read_stream(writer.task_id, start=15)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, reader)
        for number in range(10, written):
            await trio.sleep(0.01)
            assert audience.got == list(range(15, number))
            await writer.write(number)
        await trio.sleep(0.01)
        assert not audience.ended
        await writer.close()
    assert audience.got == list(range(15, written))


async def test_written_while_it_is_read(
    virtual_time: VirtualTime, client: nq.Client, writer: Author
) -> None:
    """From what was there to what comes there is no gap, and nothing comes twice."""
    await writer.write(*range(100))
    reader, got = client.read_stream(writer.task_id), list[object]()
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            for number in range(100, 150):
                await writer.write(number)
            await writer.close()

        nursery.start_soon(write)
        async for number in reader:
            got.append(number)
            await trio.sleep(0.0001)
    assert got == list(range(150))


async def test_from_the_end_of_what_is_not_there(
    virtual_time: VirtualTime, client: nq.Client, writer: Author
) -> None:
    """The end that a negative start counts from is the one when reading begins; then it stays."""
    reader = client.read_stream(writer.task_id, start=-3)
    await writer.write(0, 1)
    assert await anext(reader) == 0
    await writer.write(2, 3, 4, 5)
    await writer.close()
    assert await everything(reader) == [1, 2, 3, 4, 5]


async def test_before_there_is_anything(
    virtual_time: VirtualTime, client: nq.Client, store: FlakyStore
) -> None:
    """A stream may be read before its first chunk, and before its task has begun."""
    task_id, audience = await add(store), Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, client.read_stream(task_id, "later"))
        await trio.sleep(10)
        writer = Author(store, (await claim_one(store, await hire(store))).fence)
        await writer.write("another stream")
        await trio.sleep(10)
        assert not audience.ended
        written = trio.current_time()
        await writer.write(1, name="later")
        await writer.close(name="later")
    assert (audience.got, trio.current_time()) == ([1], written)


async def test_large_chunks(virtual_time: VirtualTime, client: nq.Client, writer: Author) -> None:
    """Pages of large chunks are shorter, and nothing is left out."""
    chunks = [bytes([number]) * 400_000 for number in range(9)]
    for chunk in chunks:
        await writer.write(chunk)
    await writer.close()
    assert await everything(client.read_stream(writer.task_id)) == chunks


# -- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [Event.SUCCEED, Event.FAIL, Event.CANCEL])
async def test_the_task_ends(
    virtual_time: VirtualTime, client: nq.Client, writer: Author, event: Event
) -> None:
    """The end of the task is the end of its streams, at once, and of those that never were."""
    one, none = Audience(), Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.read, client.read_stream(writer.task_id))
        nursery.start_soon(none.read, client.read_stream(writer.task_id, "none"))
        await writer.write(1, 2)
        await trio.sleep(3)
        assert not one.ended
        ended = trio.current_time()
        await writer.end(event)
    assert (one.got, none.got, trio.current_time()) == ([1, 2], [], ended)
    assert await everything(client.read_stream(writer.task_id, "none", start=7)) == []


async def test_a_stream_that_outlives_its_attempts(
    virtual_time: VirtualTime, client: nq.Client, writer: Author
) -> None:
    """An attempt that goes on with the stream adds to it; readers see one stream."""
    audience = Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, client.read_stream(writer.task_id))
        await writer.write(0, 1)
        await trio.sleep(0.01)
        writer = await again(writer)
        await trio.sleep(0.01)
        await writer.write(2)
        await writer.end()
    assert audience.got == [0, 1, 2]


async def test_write_after_close(
    virtual_time: VirtualTime, client: nq.Client, writer: Author
) -> None:
    """For readers there is nothing after the first close, whoever writes."""
    audience = Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, client.read_stream(writer.task_id))
        await writer.write(0, 1)
        await writer.close()
        with pytest.raises(nq.Closed):
            await writer.write(2)
    writer = await again(writer)
    await writer.write(3)
    assert audience.got == [0, 1]
    assert await everything(client.read_stream(writer.task_id)) == [0, 1]
    assert await everything(client.read_stream(writer.task_id, start=5)) == []


async def test_three_readers(virtual_time: VirtualTime, client: nq.Client, writer: Author) -> None:
    """A close ends all who read, wherever they are."""
    audiences = [Audience() for _ in range(3)]
    await writer.write(*range(100))
    async with trio.open_nursery() as nursery:
        for audience, start in zip(audiences, (0, 99, 100), strict=True):
            nursery.start_soon(audience.read, client.read_stream(writer.task_id, start=start))
        await trio.sleep(0.01)
        closed = trio.current_time()
        await writer.close()
    assert [len(audience.got) for audience in audiences] == [100, 1, 0]
    assert trio.current_time() == closed


async def test_after_the_end(virtual_time: VirtualTime, client: nq.Client, writer: Author) -> None:
    """A reader that has come to the end stays there, and asks no more."""
    await writer.write(1)
    await writer.close()
    reader = client.read_stream(writer.task_id)
    assert await everything(reader) == [1]
    assert await everything(reader) == []
    assert await anext(reader, "over") == "over"
    await nothing_left(client)


# -- what keeps one from reading ------------------------------------------------------------


async def test_no_such_task(virtual_time: VirtualTime, client: nq.Client) -> None:
    """Reading what no task writes raises `UnknownTask`, whatever the number."""
    for task_id in (4711, 0, -1, 2**80):
        with pytest.raises(nq.UnknownTask, match=f"no task {task_id}"):
            await anext(client.read_stream(task_id))
    await nothing_left(client)


async def test_pruned_meanwhile(
    virtual_time: VirtualTime, client: nq.Client, writer: Author
) -> None:
    """When the task is deleted a reader keeps what it has, and then raises `UnknownTask`."""
    await writer.write(*range(100))
    reader = client.read_stream(writer.task_id)
    assert await first(reader, 10) == list(range(10))
    await writer.end(keep_for=0)
    assert await first(reader, 54) == list(range(10, 64))
    with pytest.raises(nq.UnknownTask):
        await anext(reader)
    await nothing_left(client)


async def test_begun_anew(virtual_time: VirtualTime, client: nq.Client, writer: Author) -> None:
    """A restart is told to who has read of what is hidden now; others see the new one alone."""
    reader, late = client.read_stream(writer.task_id), client.read_stream(writer.task_id, start=9)
    await writer.write("old", "older")
    assert await first(reader, 2) == ["old", "older"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_restarted, reader)
        nursery.start_soon(_restarted, late)
        await trio.sleep(0.01)
        writer = await again(writer)
        await writer.write(*range(3), restart=True)
    await _restarted(reader)  # again
    await nothing_left(client)
    await writer.close()
    assert await everything(client.read_stream(writer.task_id)) == [0, 1, 2]


async def test_going_on_elsewhere(client: nq.Client, store: FlakyStore) -> None:
    """Who goes on where another reader stopped hears of a restart in between, if it wants to."""
    writer = await author(store)
    await writer.write(*range(5))
    assert client.read_stream(writer.task_id).restarts is None
    reader = client.read_stream(writer.task_id)
    assert [await anext(reader) for _ in range(2)] == [0, 1]
    assert (reader.position, reader.restarts) == (2, 0)
    assert await anext(client.read_stream(writer.task_id, start=2, restarts=0)) == 2
    writer = await again(writer)
    await writer.write(*"abc", restart=True)

    await _restarted(client.read_stream(writer.task_id, start=2, restarts=0))
    assert await anext(client.read_stream(writer.task_id, start=2)) == "c"
    assert await anext(client.read_stream(writer.task_id, restarts=0)) == "a"
    with pytest.raises(ValueError, match="restarts"):
        client.read_stream(writer.task_id, restarts=-1)


async def _restarted(reader: nq.StreamReader) -> None:
    with pytest.raises(nq.StreamRestarted, match=r"'default' of task .* read again from 0"):
        await anext(reader)


async def test_begun_anew_before_anything_was_read(
    virtual_time: VirtualTime, client: nq.Client, store: FlakyStore, writer: Author
) -> None:
    """Who waits for the first chunk waits for that of whatever attempt."""
    await writer.write("hidden")
    await writer.write("old", name="other")
    writer = await again(writer)
    await writer.write(restart=True, name="other")
    audience = Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, client.read_stream(writer.task_id, "other"))
        await trio.sleep(0.01)
        writer = await again(writer)
        await writer.write("new", name="other", restart=True)
        await writer.close(name="other")
    assert audience.got == ["new"]


async def test_the_client_is_closed(
    virtual_time: VirtualTime, client: nq.Client, writer: Author
) -> None:
    """Whoever reads gets `Closed` at once, itself; who has something in hand, after that."""
    await writer.write(1, 2)
    idle = client.read_stream(writer.task_id)
    assert await anext(idle) == 1

    async def read() -> None:
        with pytest.raises(nq.Closed, match="client has been closed"):
            await anext(client.read_stream(writer.task_id, start=2))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(read)
        await trio.sleep(1)
        closed = trio.current_time()
        await client.aclose()
    assert trio.current_time() == closed
    assert await anext(idle) == 2
    with pytest.raises(nq.Closed):
        await anext(idle)
    with pytest.raises(nq.Closed):
        client.read_stream(writer.task_id)
    with pytest.raises(nq.Closed):
        await client.stream_info(writer.task_id)
    await nothing_left(client)


async def test_the_reader_is_closed(
    virtual_time: VirtualTime, client: nq.Client, writer: Author
) -> None:
    """A closed reader reads no more; a task that waits in it is told so at once."""
    await writer.write(1, 2)
    async with client.read_stream(writer.task_id) as reader:
        assert await anext(reader) == 1
    with pytest.raises(nq.Closed, match="this reader"):
        await anext(reader)
    waiting = client.read_stream(writer.task_id, start=2)
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(nq.Closed, match="this reader"):
                await anext(waiting)

        nursery.start_soon(read)
        await trio.sleep(1)
        closed = trio.current_time()
        await waiting.aclose()
    assert trio.current_time() == closed
    await waiting.aclose()
    await nothing_left(client)


async def test_one_task_at_a_time(
    virtual_time: VirtualTime, client: nq.Client, writer: Author
) -> None:
    """Two tasks cannot read with one reader; the first goes on undisturbed."""
    reader, audience = client.read_stream(writer.task_id), Audience()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(audience.read, reader)
        await trio.sleep(0.01)
        with pytest.raises(trio.BusyResourceError, match="one for each"):
            await anext(reader)
        written = trio.current_time()
        await writer.write(1)
        await writer.close()
    assert (audience.got, trio.current_time()) == ([1], written)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("1",), TypeError),
        ((1, None), TypeError),
        ((1, ""), ValueError),
        ((1, "x" * 201), ValueError),
        ((1, "a\0b"), ValueError),
        ((1, "x", 1.5), TypeError),
        ((1, "x", True), TypeError),
        ((1, "x", 2**63), ValueError),
        ((1, "x", -(2**63)), ValueError),
    ],
)
def test_what_is_no_stream(arguments: tuple[object, ...], error: type[Exception]) -> None:
    """What cannot be a task, a name or an index is refused where it is given."""
    with pytest.raises(error):
        nq.Client(FlakyStore()).read_stream(*arguments)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("interval", [-1, float("nan"), float("inf")])
def test_what_is_no_interval(interval: float) -> None:
    """An interval must be a number of seconds."""
    with pytest.raises(ValueError, match="stream_poll_interval"):
        nq.Client(FlakyStore(), stream_poll_interval=interval)


# -- cancelled, slow, gone -------------------------------------------------------------------


@pytest.mark.parametrize("read", [0, 10, 64, 100])
async def test_cancelled(
    virtual_time: VirtualTime, client: nq.Client, writer: Author, read: int
) -> None:
    """Who is cancelled, in the middle of a page or of waiting, leaves nothing, and can go on."""
    await writer.write(*range(100))
    reader = client.read_stream(writer.task_id)
    got = await first(reader, read)
    with trio.CancelScope() as scope:
        scope.cancel()
        await anext(reader)
    assert scope.cancelled_caught
    await nothing_left(client)
    got += await first(reader, 100 - read)
    with trio.move_on_after(1):
        await anext(reader)
    await nothing_left(client)
    await writer.write(100)
    got += await first(reader, 1)
    await writer.close()
    assert [*got, *await everything(reader)] == list(range(101))


async def test_cancelled_again_and_again(
    virtual_time: VirtualTime, client: nq.Client, writer: Author
) -> None:
    """Whatever the moment of a cancellation, no chunk is lost by it or comes twice."""
    await writer.write(*range(130))
    await writer.close()
    reader, got, turns = client.read_stream(writer.task_id), list[object](), 0
    while reader.position < 130:
        turns = turns % 12 + 1
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_cancel_after, turns, scope)
                while reader.position < 130:
                    got.append(await anext(reader))
                scope.cancel()
    assert got == list(range(130))
    await nothing_left(client)


async def _cancel_after(turns: int, scope: trio.CancelScope) -> None:
    for _ in range(turns):
        await trio.lowlevel.checkpoint()
    scope.cancel()


async def test_a_slow_reader(
    virtual_time: VirtualTime, client: nq.Client, store: FlakyStore, writer: Author
) -> None:
    """The next page is asked for only when this one has been taken."""
    await writer.write(*range(200))
    reader = client.read_stream(writer.task_id)
    for taken in range(1, 201):
        assert await anext(reader) == taken - 1
        await trio.sleep(1)
        assert store.calls["read_streams"] == 1 + (taken - 1) // 64
        assert len(reader._chunks) < 64
    assert store.calls["listen"] == 0


async def test_a_closed_stream(
    virtual_time: VirtualTime, client: nq.Client, store: FlakyStore, writer: Author
) -> None:
    """Reading what is closed starts nothing: as many questions as pages, and that is all."""
    await writer.write(*range(128))
    await writer.close()
    store.calls.clear()
    assert await everything(client.read_stream(writer.task_id)) == list(range(128))
    assert store.calls == {"read_streams": 2}
    await nothing_left(client)


# -- how far it has come ------------------------------------------------------------------------


async def test_info(virtual_time: VirtualTime, client: nq.Client, store: FlakyStore) -> None:
    """A stream has a length, an end, restarts and a last write; that of no task has nothing."""
    writer = await author(store)
    nothing_yet = nq.StreamInfo(length=0, closed=False, restarts=0, last_write=None)
    assert await client.stream_info(4711) is None
    assert await client.stream_info(writer.task_id) == nothing_yet
    await trio.sleep(5)
    await writer.write(*range(100))
    written = virtual_time.now()
    await trio.sleep(5)
    info = await client.stream_info(writer.task_id)
    assert info == nq.StreamInfo(length=100, closed=False, restarts=0, last_write=written)
    assert await client.stream_info(writer.task_id, "other") == nothing_yet
    writer = await again(writer)
    await writer.write(1, restart=True)
    await writer.end()
    info = await client.stream_info(writer.task_id)
    assert info == nq.StreamInfo(length=1, closed=True, restarts=1, last_write=virtual_time.now())


async def test_info_during_an_outage(client: nq.Client, store: FlakyStore) -> None:
    """A question whose answer is wanted now raises `TransientError`, like all of them."""
    store.down = {"read_streams"}
    with pytest.raises(nq.TransientError):
        await client.stream_info(1)
