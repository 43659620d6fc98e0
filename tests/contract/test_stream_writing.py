"""Streams: what an attempt writes is stored once, in order, under its fence."""

# pyright: reportPrivateUsage=false
# One test looks at what is left in memory.

from __future__ import annotations

import contextlib

import pytest

from nursery_queue._core._errors import Closed, StaleClaim, StreamFull
from nursery_queue._core._model import Fence, Refusal
from nursery_queue._core._states import Event, State
from nursery_queue._core._streams import (
    PAGE,
    PAGE_BYTES,
    StreamPage,
    StreamRequest,
)
from nursery_queue._memory._memory_store import MemoryStore
from nursery_queue._store import Store
from tests.support.store_steps import (
    Known,
    a_task,
    add,
    claim_one,
    claimed_once,
    count,
    ends,
    settle,
)
from tests.support.stream_steps import NAME, a_write, read, values, write


async def again(store: Store, task: Known, event: Event = Event.INTERRUPT) -> Fence:
    """End the attempt so that there is another one, and begin that."""
    await settle(store, task.fence, event)
    return (await claim_one(store, task.worker)).fence


# -- what is written ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0\xff",
        bytes(range(256)) * 100,
        "",
        "a\0b",
        "äöü \N{SNOWMAN}",
        "null",
        None,
        True,
        0,
        -1.5,
        10**100,
        [],
        {"a": [1, {"b": None}], "ä": "\N{SNOWMAN}"},
    ],
)
async def test_readers_get_what_was_written(store: Store, data: object) -> None:
    """Bytes, text and JSON come back as what they were."""
    task = await claimed_once(store)
    await write(store, task.fence, data)
    (value,) = values(await read(store, task.id))

    assert value == data
    assert type(value) is type(data)


async def test_in_the_order_of_the_writes(store: Store) -> None:
    """Whatever is written in one call or in many has one number after the other."""
    task = await claimed_once(store)
    for batch in [[0], [1, 2, 3], [4], [5, 6]]:
        await write(store, task.fence, *batch)
    page = await read(store, task.id)

    assert values(page) == list(range(7))
    assert (page.start, page.length, page.restarts, page.closed) == (0, 7, 0, False)


async def test_streams_are_apart(store: Store) -> None:
    """Other names and other tasks have streams of their own."""
    one, other = await claimed_once(store), await claimed_once(store)
    await write(store, one.fence, "a")
    await write(store, one.fence, "b", name="log")
    await write(store, other.fence, "c")

    assert values(await read(store, one.id)) == ["a"]
    assert values(await read(store, one.id, name="log")) == ["b"]
    assert values(await read(store, other.id)) == ["c"]
    assert await read(store, other.id, name="log") == StreamPage(
        start=0, length=0, restarts=0, closed=False, chunks=[]
    )


async def test_when_it_was_last_written_to(store: Store) -> None:
    """The instant of the last chunk is known; closing does not count."""
    task = await claimed_once(store)
    assert (await read(store, task.id)).last_write is None
    await write(store, task.fence, name="closed", close=True)
    assert (await read(store, task.id, name="closed")).last_write is None
    await write(store, task.fence, "a")
    first = (await read(store, task.id)).last_write
    assert first is not None
    assert first.tzinfo is not None
    await write(store, task.fence, "b")
    second = (await read(store, task.id)).last_write
    assert second is not None
    assert second > first
    await write(store, task.fence, close=True)
    assert (await read(store, task.id)).last_write == second


# -- pages --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "first"),
    [
        *((start, start) for start in (0, 64, 100, 199, 200, 215)),
        *((-5, 195), (-64, 136), (-200, 0), (-1000, 0), (-(2**70), 0)),
        (2**70, None),
    ],
)
async def test_a_page_from_anywhere(store: Store, start: int, first: int | None) -> None:
    """A page begins where it was asked to, also counted from the end, and is not too long."""
    task = await claimed_once(store)
    await write(store, task.fence, *range(200))
    page = await read(store, task.id, start=start)

    assert page.length == 200
    assert values(page) == list(range(200))[page.start : page.start + PAGE]
    assert page.start == first if first is not None else page.start > 200


async def test_before_the_first_write(store: Store) -> None:
    """A stream that is not there yet has nothing, and counting from its end is counting from 0."""
    task_id = await add(store)
    assert await read(store, task_id, start=-3) == StreamPage(
        start=0, length=0, restarts=0, closed=False, chunks=[]
    )
    assert (await read(store, task_id, start=7)).start == 7


async def test_large_chunks_come_alone(store: Store) -> None:
    """A page has no more than about a megabyte, but always gets on by a chunk."""
    task = await claimed_once(store)
    half = b"x" * (PAGE_BYTES // 2)
    for data in [half + b"x", half + b"y", half, b"z" * PAGE_BYTES, b"end"]:
        await write(store, task.fence, data)
    lengths = [len((await read(store, task.id, start=start)).chunks) for start in range(6)]

    assert lengths == [2, 2, 2, 1, 1, 0]


async def test_many_readers_in_one_question(store: Store) -> None:
    """Each request has its own answer, in the order asked; nobody's is somebody else's."""
    task, other = await claimed_once(store), await claimed_once(store)
    await write(store, task.fence, *range(3))
    await write(store, other.fence, close=True)
    requests = [
        StreamRequest(task_id=task.id, name=NAME, start=2),
        StreamRequest(task_id=10**6, name=NAME),
        StreamRequest(task_id=task.id, name=NAME),
        StreamRequest(task_id=2**70, name=NAME),
        StreamRequest(task_id=other.id, name=NAME),
        StreamRequest(task_id=task.id, name=NAME),
    ]
    pages = await store.read_streams(requests)

    assert [page and values(page) for page in pages] == [[2], None, [0, 1, 2], None, [], [0, 1, 2]]
    assert [page and page.closed for page in pages] == [False, None, False, None, True, False]
    assert await store.read_streams([]) == []


# -- the fence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [Event.INTERRUPT, Event.RETRY, Event.SUCCEED, Event.FAIL])
async def test_only_the_attempt_that_runs(store: Store, event: Event) -> None:
    """Once an attempt is settled it writes no more, and nothing of the attempt is stored."""
    task = await claimed_once(store)
    await write(store, task.fence, "a")
    await settle(store, task.fence, event)
    with pytest.raises(StaleClaim, match=rf"stream '{NAME}' of task {task.id}"):
        await write(store, task.fence, "b", "c", close=True, restart=True)

    page = await read(store, task.id)
    assert values(page) == ["a"]
    assert page.closed is (event in {Event.SUCCEED, Event.FAIL})


async def test_a_stale_worker(store: Store) -> None:
    """An attempt that others have taken over cannot write beside the new one."""
    task = await claimed_once(store)
    fence = await again(store, task)
    await write(store, fence, "new")
    for options in [{}, {"close": True}, {"restart": True}]:
        with pytest.raises(StaleClaim):
            await write(store, task.fence, "old", **options)

    assert values(await read(store, task.id)) == ["new"]


async def test_a_task_that_is_not_there(store: Store) -> None:
    """Nothing is stored for a task that never was, or that waits."""
    waiting = await add(store)
    for task_id in (waiting, 10**6):
        with pytest.raises(StaleClaim):
            await write(store, Fence(task_id, 1), "a")
    assert (await read(store, waiting)).length == 0


async def test_whoever_is_to_be_cancelled_may_write(store: Store) -> None:
    """Being asked to stop is not being stopped: the handler may say what it has done."""
    task = await claimed_once(store)
    assert await store.cancel(task.id)
    await write(store, task.fence, "so far")

    assert values(await read(store, task.id)) == ["so far"]


# -- closing ------------------------------------------------------------------------------------


async def test_closed_by_hand(store: Store) -> None:
    """After a close nothing can be written; to close again is allowed."""
    task = await claimed_once(store)
    await write(store, task.fence, "a", close=True)
    await write(store, task.fence, close=True)
    with pytest.raises(Closed, match=rf"stream '{NAME}' of task {task.id}"):
        await write(store, task.fence, "b")
    with pytest.raises(Closed):
        await write(store, task.fence, "b", restart=True)  # the same attempt

    page = await read(store, task.id)
    assert (values(page), page.closed) == (["a"], True)


@pytest.mark.parametrize("event", [Event.SUCCEED, Event.FAIL, Event.CANCEL])
@pytest.mark.parametrize("written", [True, False])
async def test_closed_by_the_end_of_the_task(store: Store, event: Event, *, written: bool) -> None:
    """However a task ends, its streams are closed, also those it never wrote to."""
    task = await claimed_once(store)
    if written:
        await write(store, task.fence, "a")
    assert not (await read(store, task.id)).closed
    await settle(store, task.fence, event)

    assert (await read(store, task.id)).closed


@pytest.mark.parametrize("event", [Event.INTERRUPT, Event.RETRY])
async def test_not_closed_by_the_end_of_an_attempt(store: Store, event: Event) -> None:
    """If there is another attempt, there may be more."""
    task = await claimed_once(store)
    await write(store, task.fence, "a")
    await settle(store, task.fence, event)

    assert not (await read(store, task.id)).closed


async def test_closed_by_a_cancel(store: Store) -> None:
    """A task that is cancelled while it waits will write nothing more."""
    task = await claimed_once(store)
    await write(store, task.fence, "a")
    await settle(store, task.fence, Event.INTERRUPT)
    assert await store.cancel(task.id)

    page = await read(store, task.id)
    assert (values(page), page.closed) == (["a"], True)


async def test_not_closed_unless_asked(store: Store) -> None:
    """With close_on_finish false it stays open when the task ends, as the last write says."""
    task = await claimed_once(store)
    await write(store, task.fence, "a", close_on_finish=False)
    await write(store, task.fence, "a", name="other")
    await write(store, task.fence, "b", name="other", close_on_finish=False)
    await settle(store, task.fence, Event.SUCCEED)

    assert not (await read(store, task.id)).closed
    assert not (await read(store, task.id, name="other")).closed


async def test_a_task_that_goes_again(store: Store) -> None:
    """A stream that was closed by the end of the task goes on when the task does."""
    task = await claimed_once(store)
    await write(store, task.fence, "a")
    await settle(store, task.fence, Event.FAIL)
    assert await store.retry(task.id)
    assert not (await read(store, task.id)).closed
    fence = (await claim_one(store, task.worker)).fence
    await write(store, fence, "b")
    await settle(store, fence, Event.SUCCEED)

    page = await read(store, task.id)
    assert (values(page), page.closed, page.restarts) == (["a", "b"], True, 0)


# -- attempts -----------------------------------------------------------------------------------


async def test_the_next_attempt_goes_on(store: Store) -> None:
    """Without restart, a new attempt writes behind what there is."""
    task = await claimed_once(store)
    await write(store, task.fence, "a", "b")
    fence = await again(store, task)
    await write(store, fence, "c")

    page = await read(store, task.id)
    assert (values(page), page.restarts) == (["a", "b", "c"], 0)


async def test_what_an_earlier_attempt_has_closed(store: Store) -> None:
    """Going on with a closed stream is allowed, and changes nothing."""
    task = await claimed_once(store)
    await write(store, task.fence, "a", close=True)
    before = await read(store, task.id)
    fence = await again(store, task)
    await write(store, fence, "b")
    await write(store, fence, "c", close=True, close_on_finish=False)
    await write(store, fence, "d")

    assert await read(store, task.id) == before


async def test_the_next_attempt_begins_anew(store: Store) -> None:
    """With restart, the first write of a new attempt hides what earlier ones have written."""
    task = await claimed_once(store)
    await write(store, task.fence, "a", "b", restart=True)
    await write(store, task.fence, "c", restart=True)
    assert values(await read(store, task.id)) == ["a", "b", "c"]
    fence = await again(store, task)
    await write(store, fence, "d", restart=True)
    await write(store, fence, "e", restart=True)

    page = await read(store, task.id)
    assert (values(page), page.length, page.restarts) == (["d", "e"], 2, 1)
    assert values(await read(store, task.id, start=-1)) == ["e"]
    assert values(await read(store, task.id, start=1)) == ["e"]


async def test_a_restart_opens_what_was_closed(store: Store) -> None:
    """What an earlier attempt has closed is open again, and can be closed again."""
    task = await claimed_once(store)
    await write(store, task.fence, "a", close=True)
    fence = await again(store, task)
    await write(store, fence, "b", restart=True)
    page = await read(store, task.id)
    assert (values(page), page.closed) == (["b"], False)
    await write(store, fence, close=True, restart=True)
    with pytest.raises(Closed):
        await write(store, fence, "c", restart=True)


async def test_a_restart_by_closing(store: Store) -> None:
    """A new attempt that only closes hides what was written as well."""
    task = await claimed_once(store)
    await write(store, task.fence, "a")
    fence = await again(store, task)
    await write(store, fence, close=True, restart=True)

    page = await read(store, task.id)
    assert (values(page), page.length, page.restarts, page.closed) == ([], 0, 1, True)


async def test_readers_of_another_generation(store: Store) -> None:
    """Who has read before a restart is told of it and gets nothing, unless he is at 0."""
    task = await claimed_once(store)
    await write(store, task.fence, "a", "b", "c")
    fence = await again(store, task)
    await write(store, fence, "d", "e", restart=True)
    told = {
        (start, restarts): values(await read(store, task.id, start=start, restarts=restarts))
        for start in (0, 1)
        for restarts in (None, 0, 1)
    }

    assert told == {
        (0, None): ["d", "e"],
        (0, 0): ["d", "e"],
        (0, 1): ["d", "e"],
        (1, None): ["e"],
        (1, 0): [],
        (1, 1): ["e"],
    }
    assert (await read(store, task.id, start=1, restarts=0)).restarts == 1


# -- how much -----------------------------------------------------------------------------------


async def test_no_more_than_allowed(store: Store) -> None:
    """What would be too much is refused as a whole, and what fits is not."""
    task = await claimed_once(store)
    await write(store, task.fence, 1, 2, most=3)
    with pytest.raises(StreamFull, match=rf"stream '{NAME}' of task {task.id} may have 3"):
        await write(store, task.fence, 3, 4, most=3, close=True)
    await write(store, task.fence, 3, most=3)
    with pytest.raises(StreamFull):
        await write(store, task.fence, 4, most=3)
    await write(store, task.fence, close=True, most=3)

    page = await read(store, task.id)
    assert (values(page), page.closed) == ([1, 2, 3], True)


async def test_too_much_at_once(store: Store) -> None:
    """A first write that is too much leaves a stream without chunks, as it was."""
    task = await claimed_once(store)
    with pytest.raises(StreamFull):
        await write(store, task.fence, 1, 2, most=1)
    page = await read(store, task.id)

    assert (page.length, page.chunks, page.last_write) == (0, [], None)


async def test_what_is_hidden_does_not_count(store: Store) -> None:
    """A restart makes room; one that is too much hides nothing."""
    task = await claimed_once(store)
    await write(store, task.fence, 1, 2, 3, most=3)
    fence = await again(store, task)
    with pytest.raises(StreamFull):
        await write(store, fence, 4, 5, 6, 7, most=3, restart=True)
    assert values(await read(store, task.id)) == [1, 2, 3]
    await write(store, fence, 4, 5, 6, most=3, restart=True)

    assert values(await read(store, task.id)) == [4, 5, 6]


# -- with the task ------------------------------------------------------------------------------


async def gone(store: Store, task_id: int) -> bool:
    return await store.read_streams([StreamRequest(task_id=task_id, name=NAME)]) == [None]


async def test_streams_are_kept_with_the_task(store: Store) -> None:
    """What was written can be read as long as the task is kept, and then it is gone."""
    task, other = await claimed_once(store), await claimed_once(store)
    for each in (task, other):
        await write(store, each.fence, *range(10))
    await settle(store, task.fence, Event.SUCCEED, keep_for=0.001)
    await settle(store, other.fence, Event.SUCCEED)
    while not await store.prune():
        pass

    assert await gone(store, task.id)
    assert values(await read(store, other.id)) == list(range(10))


async def test_streams_of_what_is_not_kept(store: Store) -> None:
    """With keep_for 0 they go when the task ends, and no others."""
    task, other = await claimed_once(store), await claimed_once(store)
    for each in (task, other):
        await write(store, each.fence, "a")
    batch = [ends(task.fence, Event.SUCCEED, keep_for=0), ends(other.fence, Event.SUCCEED)]
    assert await store.settle(batch) == {}

    assert await gone(store, task.id)
    assert values(await read(store, other.id)) == ["a"]


async def test_memory_is_given_back() -> None:
    """A `MemoryStore` keeps nothing of the streams of a task that is gone."""
    store = MemoryStore()
    task = await claimed_once(store)
    await write(store, task.fence, "a")
    await settle(store, task.fence, Event.SUCCEED, keep_for=0)

    assert store._tables.streams == {}


# -- in a transaction ---------------------------------------------------------------------------


async def test_with_the_commit(store: Store) -> None:
    """What is written in a transaction is there with its commit, and not before."""
    task = await claimed_once(store)
    async with store.transaction() as tx:
        await tx.write_stream(a_write(task.fence, "a"))
        await tx.write_stream(a_write(task.fence, "b", close=True))
        assert (await read(store, task.id)).length == 0
        with pytest.raises(Closed):
            await tx.write_stream(a_write(task.fence, "c"))

    page = await read(store, task.id)
    assert (values(page), page.closed) == (["a", "b"], True)


async def test_not_with_a_rollback(store: Store) -> None:
    """What is rolled back was never written, and its numbers are given out again."""
    task = await claimed_once(store)
    await write(store, task.fence, 1)
    with pytest.raises(ZeroDivisionError):
        async with store.transaction() as tx:
            await tx.write_stream(a_write(task.fence, 2))
            raise ZeroDivisionError
    async with store.transaction() as tx:
        with pytest.raises(ZeroDivisionError):
            async with tx.savepoint():
                await tx.write_stream(a_write(task.fence, 3))
                raise ZeroDivisionError
        await tx.write_stream(a_write(task.fence, 4))

    assert values(await read(store, task.id)) == [1, 4]


async def test_refused_in_a_transaction(store: Store) -> None:
    """What is refused is refused at once, and the transaction goes on."""
    task, other = await claimed_once(store), await claimed_once(store)
    await settle(store, other.fence, Event.INTERRUPT)
    async with store.transaction() as tx:
        with pytest.raises(StaleClaim):
            await tx.write_stream(a_write(other.fence, 1))
        await tx.write_stream(a_write(task.fence, 1, most=1))
        with pytest.raises(StreamFull):
            await tx.write_stream(a_write(task.fence, 2, most=1))

    assert values(await read(store, task.id)) == [1]
    assert (await read(store, other.id)).length == 0


async def test_written_and_settled_together(store: Store) -> None:
    """The last chunks and the end of the task can be one commit; after it nothing is written."""
    task = await claimed_once(store)
    async with store.transaction() as tx:
        await tx.write_stream(a_write(task.fence, "a"))
        await tx.settle(ends(task.fence, Event.SUCCEED))
        with pytest.raises(StaleClaim):
            await tx.write_stream(a_write(task.fence, "b"))

    page = await read(store, task.id)
    assert (values(page), page.closed) == (["a"], True)
    (status,) = await store.status_many([task.id])
    assert status is not None
    assert status.state is State.SUCCEEDED


async def test_settled_by_others_meanwhile(store: Store) -> None:
    """If others settle the attempt before the commit, either they or the transaction fail whole."""
    task = await claimed_once(store)
    refused: dict[Fence, Refusal] = {}
    committed = False
    with contextlib.suppress(StaleClaim):
        async with store.transaction() as tx:
            await tx.enqueue([a_task()])
            await tx.write_stream(a_write(task.fence, "a"))
            refused = await store.settle([ends(task.fence, Event.INTERRUPT)])
        committed = True

    assert committed is bool(refused)
    assert values(await read(store, task.id)) == (["a"] if committed else [])
    assert await count(store) == 1 + committed
