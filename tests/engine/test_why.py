"""Every reason staged, asked for and removed: then the task starts, on a real worker."""

from __future__ import annotations

import contextlib
import itertools

from collections.abc import AsyncGenerator, Sequence

import attrs
import pytest
import trio

import nursery_queue as nq

from nursery_queue import ReasonCode
from nursery_queue.testing import VirtualTime
from tests.support.workers import working


QUEUE, KEY = "calls", "c-17"
DUE, PER = 60.0, 100.0  # seconds
WORKER = {ReasonCode.UNKNOWN_TYPE, ReasonCode.QUEUE_NOT_SERVED, ReasonCode.NO_WORKERS}
# Causes that go together with any others of these, in the order in which they are told.
TOGETHER = [
    ReasonCode.DUE_LATER,
    ReasonCode.UNKNOWN_TYPE,
    ReasonCode.QUEUE_PAUSED,
    ReasonCode.QUEUE_LIMIT,
    ReasonCode.KEY_LIMIT,
    ReasonCode.RATE_LIMITED,
]
OTHERS = [code for code in TOGETHER if code is not ReasonCode.UNKNOWN_TYPE]
STAGED: list[Sequence[ReasonCode]] = [
    *([code] for code in TOGETHER),
    [ReasonCode.QUEUE_NOT_SERVED],
    [ReasonCode.NO_WORKERS],
    *itertools.combinations(TOGETHER, 2),
    [ReasonCode.DUE_LATER, ReasonCode.QUEUE_NOT_SERVED],
    [ReasonCode.DUE_LATER, ReasonCode.NO_WORKERS],
    *([ReasonCode.QUEUE_NOT_SERVED, code] for code in OTHERS[1:]),
    [ReasonCode.NO_WORKERS, ReasonCode.QUEUE_PAUSED],
    TOGETHER,
    [ReasonCode.DUE_LATER, ReasonCode.QUEUE_NOT_SERVED, *OTHERS[1:]],
]


@attrs.define(eq=False)
class Scene:
    """A task that `causes` hold back, and how to remove each of these."""

    client: nq.Client
    causes: set[ReasonCode]
    nursery: trio.Nursery
    started: trio.Event = attrs.field(factory=trio.Event)
    app: nq.App = attrs.field(factory=nq.App)
    workers: list[nq.Worker] = attrs.field(factory=list[nq.Worker])

    async def hire(self, app: nq.App, queue: str) -> None:
        worker = nq.Worker(app, self.client, queues=[queue])
        self.workers.append(worker)
        await self.nursery.start(worker.run)

    async def stage(self) -> nq.TaskRef:
        """Bring about all causes, and store the task."""

        @self.app.task(name="work", retry=None)
        async def work() -> None:
            self.started.set()

        await self.limit()
        if not self.causes & WORKER:
            await self.hire(self.app, QUEUE)
        elif ReasonCode.QUEUE_NOT_SERVED in self.causes:
            await self.hire(self.app, "letters")
        elif ReasonCode.UNKNOWN_TYPE in self.causes:
            await self.hire(nq.App(), QUEUE)
        later = DUE if ReasonCode.DUE_LATER in self.causes else 0.0
        request = work.options(queue=QUEUE, key=KEY, run_after=later).bind()
        (ref,) = await self.client.enqueue_many([request])
        await trio.sleep(1)
        return ref

    async def limit(self) -> None:
        """Set the queue as the causes want it, and let a task of its own take what there is."""
        blocking = nq.App()

        @blocking.task(name="block", queue=QUEUE, retry=None)
        async def block() -> None:
            await trio.sleep_forever()

        causes, client = self.causes, self.client
        if ReasonCode.RATE_LIMITED in causes:
            await client.configure_queue(QUEUE, rate=nq.Rate(1, per=PER))
        if causes & {ReasonCode.QUEUE_LIMIT, ReasonCode.KEY_LIMIT, ReasonCode.RATE_LIMITED}:
            await self.hire(blocking, QUEUE)
            key = KEY if ReasonCode.KEY_LIMIT in causes else "other"
            await client.enqueue(block.options(key=key))
            await trio.sleep(1)
        if ReasonCode.QUEUE_LIMIT in causes:
            await client.configure_queue(QUEUE, max_running=1)
        if ReasonCode.KEY_LIMIT in causes:
            await client.configure_queue(QUEUE, max_running_per_key=1)
        if ReasonCode.QUEUE_PAUSED in causes:
            await client.pause(QUEUE)

    async def remove(self, reason: nq.Reason) -> None:
        """Remove the cause that a reason names, and no other."""
        match reason.code:
            case ReasonCode.DUE_LATER:
                await self.until(reason, "at")
            case ReasonCode.RATE_LIMITED:
                await self.until(reason, "until")
            case ReasonCode.UNKNOWN_TYPE | ReasonCode.QUEUE_NOT_SERVED | ReasonCode.NO_WORKERS:
                await self.hire(self.app, QUEUE)
            case ReasonCode.QUEUE_PAUSED:
                await self.client.resume(reason.details["queue"])
            case ReasonCode.QUEUE_LIMIT:
                most = reason.details["running"] + 1
                await self.client.configure_queue(reason.details["queue"], max_running=most)
            case ReasonCode.KEY_LIMIT:
                (held,) = reason.details["held_by"]
                assert await self.client.cancel(held["task_id"])
            case _:
                raise AssertionError(reason)
        await trio.sleep(1)

    async def until(self, reason: nq.Reason, instant: str) -> None:
        seconds = (reason.details[instant] - await self.client.store.now()).total_seconds()
        assert not self.started.is_set()
        await trio.sleep(seconds)


@contextlib.asynccontextmanager
async def scene(client: nq.Client, causes: Sequence[ReasonCode]) -> AsyncGenerator[Scene]:
    async with trio.open_nursery() as nursery:
        found = Scene(client, set(causes), nursery)
        yield found
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("causes", STAGED, ids=" ".join)
async def test_each_cause(
    virtual_time: VirtualTime, either: nq.Client, causes: Sequence[ReasonCode]
) -> None:
    """Exactly the causes that are there are told, until they are removed and the task starts."""
    async with scene(either, causes) as staged:
        ref = await staged.stage()
        left = [*causes]
        while left:
            why = await either.why(ref)
            assert [*why.codes] == left
            assert not staged.started.is_set()
            await staged.remove(why.reasons[0])
            del left[0]

        assert staged.started.is_set()
        assert (await either.why(ref)).codes == (ReasonCode.FINISHED,)


async def test_the_way_of_a_task(virtual_time: VirtualTime, app: nq.App, either: nq.Client) -> None:
    """One runs, one is claimed ahead of its turn, one is next, one is behind it, one is unknown."""
    gates = [trio.Event() for _ in range(4)]

    @app.task(name="work", retry=None)
    async def work(number: int) -> None:
        await gates[number].wait()

    refs = [await either.enqueue(work, number) for number in range(4)]
    worker = nq.Worker(app, either, concurrency=1, prefetch=1, name="vera")
    async with working(worker):
        await trio.sleep(0.01)  # what does not start soon goes back
        found = [await either.why(ref) for ref in refs]

        assert [each.codes for each in found] == [
            (ReasonCode.RUNNING,),
            (ReasonCode.HELD_AHEAD,),
            (ReasonCode.BEHIND,),
            (ReasonCode.BEHIND,),
        ]
        assert [each.reasons[0].details.get("ahead") for each in found] == [None, None, 0, 1]
        assert found[0].reasons[0].details["worker"] == "vera"
        for number, gate in enumerate(gates):
            gate.set()
            await trio.sleep(4)  # a heartbeat later its start is known
            codes = [(await either.why(ref)).codes[0].value for ref in refs]
            assert codes[: number + 1] == ["finished"] * (number + 1)
            assert codes[number + 1 : number + 2] in ([], ["running"])

    assert (await either.why(12345)).codes == (ReasonCode.UNKNOWN,)


async def test_a_queue_that_is_being_changed(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client, starts: list[float]
) -> None:
    """As long as a transaction that changes it is open, it is the reason, and then it starts."""
    async with working(nq.Worker(app, pg)):
        async with pg.transaction() as tx:
            await tx.execute("insert into nursery_queue.queue (name) values ('default')")
            ref = await pg.enqueue("note")
            await trio.sleep(1)
            assert (await pg.why(ref)).codes == (ReasonCode.QUEUE_BEING_CHANGED,)
            assert starts == []
        await trio.sleep(1)

        assert len(starts) == 1


async def test_a_worker_that_shuts_down(
    virtual_time: VirtualTime, app: nq.App, either: nq.Client
) -> None:
    """It takes nothing any more, and is no worker for who waits."""
    busy = trio.Event()

    @app.task(name="work", retry=None)
    async def work() -> None:
        await busy.wait()

    await either.enqueue(work)
    worker = nq.Worker(app, either, grace=60)
    async with working(worker):
        await trio.sleep(1)
        worker.stop()
        await trio.sleep(4)
        (reason,) = (await either.why(await either.enqueue(work))).reasons
        busy.set()

    assert (reason.code, reason.details) == (ReasonCode.NO_WORKERS, {"draining": 1})


async def test_lists(virtual_time: VirtualTime, either: nq.Client) -> None:
    """A list can be of the tasks that one reason holds, combined with all else that it filters."""
    await either.pause("mail")
    request = nq.TaskRequest.by_name("write", queue="mail")
    mail = await either.enqueue_many([request] * 250)
    later = await either.enqueue_many([nq.TaskRequest.by_name("write", run_after=60)])
    await either.enqueue_many([nq.TaskRequest.by_name("write")] * 3)
    ids = [ref.id for ref in reversed(mail)]

    async def listed(reason: str, **how: object) -> list[int]:
        found = await either.list_tasks(reason=reason, **how)  # type: ignore[arg-type]
        return [task.id for task in found]

    assert await listed("queue_paused", limit=300) == ids
    assert await listed("queue_paused", limit=120) == ids[:120]
    assert await listed("queue_paused", limit=120, after=ids[119]) == ids[120:240]
    assert await listed("queue_paused", state="scheduled") == []
    assert await listed("due_later") == [later[0].id]
    assert await listed("finished") == await listed("unknown") == []
    assert len(await listed("no_workers", limit=1000)) == 254
    (first,) = await either.list_tasks(reason=ReasonCode.DUE_LATER, payloads=True)
    assert first.params == {}
    (lean,) = await either.list_tasks(reason=ReasonCode.DUE_LATER)
    assert lean.params is None


@pytest.mark.parametrize("wrong", ["laziness", 3, ""])
async def test_a_reason_that_there_is_not(either: nq.Client, wrong: object) -> None:
    """It is refused with the names of all that there are."""
    with pytest.raises(ValueError, match=r"due_later, .*, unknown, not ") as caught:
        await either.list_tasks(reason=wrong)  # type: ignore[arg-type]

    assert repr(wrong) in str(caught.value)
