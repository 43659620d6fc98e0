"""News, as hints: whatever can make work runnable, or end a wait, is heard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from nursery_queue._core._errors import Closed
from nursery_queue._core._schedules import NewSchedule
from nursery_queue._core._states import Event
from nursery_queue._core._streams import Chunk, StreamWrite
from nursery_queue._core._when import Every
from nursery_queue._store import Bell, Store
from tests.support.listening import PATIENCE, Step, listening
from tests.support.store_steps import (
    Known,
    a_task,
    add,
    claim_one,
    claimed_once,
    ends,
    hire,
    settle,
)


async def until(verb: Callable[[], Awaitable[object]]) -> None:
    """Call *verb* until it finds something to do."""
    with trio.fail_after(PATIENCE):
        while not await verb():
            await trio.lowlevel.checkpoint()


# -- what can happen, up to the news and the news itself -----------------------------------


async def enqueued(store: Store) -> Step:
    return lambda: add(store)


async def enqueued_for_later(store: Store) -> Step:
    return lambda: add(store, run_after=60)


async def enqueued_with_key(store: Store) -> Step:
    return lambda: add(store, dedup_key="k")


async def committed(store: Store) -> Step:
    async def step() -> None:
        async with store.transaction() as tx:
            await tx.enqueue([a_task()])

    return step


async def promoted(store: Store) -> Step:
    await add(store, run_after=0.01)
    return lambda: until(store.promote)


async def revived(store: Store) -> Step:
    task = await claimed_once(store)
    await settle(store, task.fence, Event.FAIL)
    return lambda: store.retry(task.id)


async def released(store: Store) -> Step:
    task = await claimed_once(store)
    return lambda: settle(store, task.fence, Event.INTERRUPT)


async def to_be_retried(store: Store) -> Step:
    task = await claimed_once(store)
    return lambda: settle(store, task.fence, Event.RETRY)


async def given_back(store: Store) -> Step:
    task = await claimed_once(store)
    return lambda: store.give_back_all_but(task.worker, set())


async def swept(store: Store) -> Step:
    worker = await hire(store, lease=0.01)
    await add(store)
    await claim_one(store, worker)
    return lambda: until(lambda: store.sweep(max_lost=3))


async def asked_to_stop(store: Store) -> Step:
    task = await claimed_once(store)
    return lambda: store.cancel(task.id)


async def asked_not_to_go_on(store: Store) -> Step:
    task = await claimed_once(store)
    return lambda: store.cancel(task.id, running=False)


async def asked_to_stop_in_a_transaction(store: Store) -> Step:
    task = await claimed_once(store)

    async def step() -> None:
        async with store.transaction() as tx:
            await tx.cancel(task.id)

    return step


async def cancelled(store: Store) -> Step:
    task_id = await add(store)
    return lambda: store.cancel(task_id)


async def succeeded(store: Store) -> Step:
    task = await claimed_once(store)
    return lambda: settle(store, task.fence, Event.SUCCEED)


async def deleted(store: Store) -> Step:
    task = await claimed_once(store)
    return lambda: settle(store, task.fence, Event.FAIL, keep_for=0)


async def succeeded_in_a_transaction(store: Store) -> Step:
    task = await claimed_once(store)

    async def step() -> None:
        async with store.transaction() as tx:
            await tx.settle(ends(task.fence, Event.SUCCEED))

    return step


async def lost_for_good(store: Store) -> Step:
    worker = await hire(store, lease=0.01)
    await add(store)
    await claim_one(store, worker)
    return lambda: until(lambda: store.sweep(max_lost=1))


def one_chunk(task: Known) -> StreamWrite:
    return StreamWrite(fence=task.fence, name="s", chunks=[Chunk.of("a")])


async def written(store: Store) -> Step:
    task = await claimed_once(store)
    return lambda: store.write_stream(one_chunk(task))


async def stream_closed(store: Store) -> Step:
    task = await claimed_once(store)
    return lambda: store.write_stream(StreamWrite(fence=task.fence, name="s", close=True))


async def written_in_a_transaction(store: Store) -> Step:
    task = await claimed_once(store)

    async def step() -> None:
        async with store.transaction() as tx:
            await tx.write_stream(one_chunk(task))

    return step


async def scheduled(store: Store) -> Step:
    schedule = NewSchedule(name="s", when=Every(60), task=a_task())
    return lambda: store.set_schedule(schedule)


NEWS = [
    *[
        (Bell.WORK, step)
        for step in (
            enqueued,
            enqueued_for_later,
            enqueued_with_key,
            committed,
            promoted,
            revived,
            released,
            to_be_retried,
            given_back,
            swept,
        )
    ],
    *[
        (Bell.CANCEL, step)
        for step in (asked_to_stop, asked_not_to_go_on, asked_to_stop_in_a_transaction)
    ],
    *[
        (Bell.FINISHED, step)
        for step in (cancelled, succeeded, deleted, succeeded_in_a_transaction, lost_for_good)
    ],
    *[(Bell.STREAM, step) for step in (written, stream_closed, written_in_a_transaction)],
    (Bell.SCHEDULE, scheduled),
]


@pytest.mark.parametrize(("bell", "prepared"), NEWS)
async def test_news_is_heard(
    store: Store, bell: Bell, prepared: Callable[[Store], Awaitable[Step]]
) -> None:
    """Each kind of news rings its bell, for everybody who listens."""
    step = await prepared(store)
    async with listening(store) as ear, listening(store, [bell]) as other:
        before = ear.heard[bell], other.heard[bell]
        await step()
        await ear.hears(bell, after=before[0])
        await other.hears(bell, after=before[1])


async def test_all_bells_ring_at_the_start(store: Store) -> None:
    """Whoever begins to listen is rung for what was missed before, once it can hear."""
    async with listening(store) as ear:
        assert ear.heard == dict.fromkeys(Bell, 1)


@pytest.mark.parametrize("bell", Bell)
async def test_only_the_bells_asked_for(store: Store, bell: Bell) -> None:
    """Other bells do not ring, whatever happens."""
    task, waiting = await claimed_once(store), await add(store)
    async with listening(store, [bell]) as ear, listening(store) as all_ears:
        before = dict(all_ears.heard)
        await store.write_stream(one_chunk(task))
        await store.cancel(task.id)
        await store.cancel(waiting)
        await add(store)
        await (await scheduled(store))()
        for each in Bell:
            await all_ears.hears(each, after=before[each])
        await ear.hears(bell, after=1)

        assert set(ear.heard) == {bell}


async def test_who_has_written_is_told(store: Store) -> None:
    """The bell for streams says which task has news; at the start, any may have."""
    tasks = [await claimed_once(store) for _ in range(3)]
    async with listening(store, [Bell.STREAM]) as ear:
        for number, task in enumerate(tasks):
            await store.write_stream(one_chunk(task))
            await ear.hears(Bell.STREAM, after=number + 1)
        async with store.transaction() as tx:
            for task in tasks[:2]:
                await tx.write_stream(one_chunk(task))
                await tx.write_stream(one_chunk(task))
        await ear.hears(Bell.STREAM, after=len(tasks) + 2)

        one, two, three = (task.id for task in tasks)
        assert ear.hints == [None, one, two, three, *sorted([one, two])]


async def test_a_bell_does_not_fall_silent(store: Store) -> None:
    """News after news is heard, and hearing can begin again."""
    for _ in range(3):
        async with listening(store, [Bell.WORK]) as ear:
            for _ in range(5):
                before = ear.heard[Bell.WORK]
                await add(store)
                await ear.hears(Bell.WORK, after=before)


async def test_listening_to_a_closed_store(store: Store) -> None:
    """A closed store has no news."""
    await store.aclose()
    with pytest.raises(Closed):
        await store.listen(lambda _bell, _id=None: None, [Bell.WORK])


async def test_a_quiet_queue(store: Store) -> None:
    """An enqueue to a queue that wakes nobody is not heard; what else happens to its task is."""
    await store.configure("quiet", notify=False)
    worker = await hire(store)
    async with listening(store) as ear:
        await ear.hears(Bell.WORK, after=0)
        before = ear.heard[Bell.WORK]
        await add(store, queue="quiet")
        async with store.transaction() as tx:
            await tx.enqueue([a_task(queue="quiet")])
        await store.enqueue([a_task(queue="quiet"), a_task()])
        await ear.hears(Bell.WORK, after=before)
        assert ear.heard[Bell.WORK] == before + 1

        one = await claim_one(store, worker)
        await settle(store, one, Event.INTERRUPT)
        await ear.hears(Bell.WORK, after=before + 1)
