"""What a task costs a worker in Python: calls, objects and bytes, which are the same anywhere.

Times depend on the machine, and these do not: so a change that makes every task dearer is seen
wherever the tests are run. The bounds are what is true and a tenth more, on whichever Python from
3.11 to 3.13 has most. A change that makes a task cheaper lowers them; one that has a reason to make
it dearer raises them, and says the reason.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import tracemalloc

from collections.abc import Generator, Iterator
from pathlib import Path
from types import FrameType

import attrs
import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime, deterministic
from tests.support.flaky_store import FlakyStore
from tests.support.store_steps import a_task
from tests.support.workers import working


FEW, MANY = 500, 1500  # tasks: what a run of each has in common is not the tasks'
PACKAGE = str(Path(nq.__file__).parent)
TESTS = str(Path(__file__).parents[1])
GENERATED = "<attrs generated methods nursery_queue."


@functools.cache
def kind(file: str) -> str:
    """Say whose code is in a file: ours, a library's, or of what stands for the world outside."""
    if file.startswith(TESTS):
        return "outside"
    if not file.startswith((PACKAGE, GENERATED)):
        return "library"
    room = file.removeprefix(PACKAGE).removeprefix(GENERATED).lstrip("/").replace(".", "/")
    return "outside" if room.startswith(("_memory/", "testing/")) else "ours"


@attrs.define
class Calls:
    """How often functions written in Python were called, generators that went on included."""

    ours: int = 0
    all: int = 0
    made: int = 0  # objects, by an `__init__` written in Python

    def note(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call" and (whose := kind(frame.f_code.co_filename)) != "outside":
            self.all += 1
            self.ours += whose == "ours"
            self.made += frame.f_code.co_name == "__init__"

    @contextlib.contextmanager
    def counted(self) -> Generator[None]:
        before = sys.getprofile()
        sys.setprofile(self.note)
        try:
            yield
        finally:
            sys.setprofile(before)

    def per_task(self, fewer: Calls, tasks: int) -> Calls:
        pairs = zip(attrs.astuple(self), attrs.astuple(fewer), strict=True)
        return Calls(*[round((more - less) / tasks, 1) for more, less in pairs])


@pytest.fixture
def app() -> nq.App:
    app = nq.App()

    @app.task(name="no-op", keep_for=0)  # the store forgets what has ended
    async def no_op() -> None:
        pass

    @app.task(name="long", keep_for=0)
    async def takes_long() -> None:
        await trio.sleep(1000)

    return app


@pytest.fixture
def store() -> FlakyStore:
    """A store that answers after a millisecond of virtual time, as a database might."""
    return FlakyStore(late={"claim": 0.001, "settle": 0.001})


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Leave collecting garbage to the test."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@contextlib.contextmanager
def traced() -> Generator[None]:
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


async def drain(app: nq.App, client: nq.Client, number: int) -> Calls:
    """Count the calls of a worker that runs so many no-ops, from its start to its end."""
    calls = Calls()
    await client.store.enqueue([a_task(task_type="no-op")] * number)
    with calls.counted():
        await nq.Worker(app, client).run_until_idle()
    return calls


async def trickle(client: nq.Client, number: int) -> Calls:
    """Count the calls of a worker that gets one no-op a second."""
    calls = Calls()
    with calls.counted():
        for _ in range(number):
            await client.store.enqueue([a_task(task_type="no-op")])
            await trio.sleep(1)
    return calls


async def test_calls_for_a_task_of_many(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """A worker that drains a queue calls so many functions a task: most of the time that it takes.

    73.2 of ours, with those that attrs has written; 157.3 with trio's and all others; 15.1 objects.
    """
    with deterministic(seed=1):
        await drain(app, client, FEW)  # what is done once in a process
        few, many = [await drain(app, client, number) for number in (FEW, MANY)]
    each = many.per_task(few, MANY - FEW)

    assert each.ours <= 82
    assert each.all <= 172
    assert each.made <= 16


async def test_calls_for_a_task_alone(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client
) -> None:
    """A worker that gets one task at a time calls so many: each loop that it wakes is in it.

    247.5 of ours; 1,349 with trio's and all others.
    """
    with deterministic(seed=1):
        async with working(nq.Worker(app, client)):
            await trickle(client, 20)
            few, many = [await trickle(client, number) for number in (20, 60)]
    each = many.per_task(few, 40)

    assert each.ours <= 280
    assert each.all <= 1480


async def test_nothing_of_a_task_is_left(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, no_collection: None
) -> None:
    """When a task has ended, nothing of it is in memory, and there are no cycles to be found."""
    cycles: list[int] = []
    blocks: list[int] = []
    with deterministic(seed=1):
        for number in (FEW, FEW, MANY):
            await drain(app, client, number)
            await trio.sleep(86_400)  # trio keeps the deadline of a scope until it has passed
            cycles.append(gc.collect())
            blocks.append(sys.getallocatedblocks())

    # A worker leaves some cycles, 75, and a task none: one in ten tasks would be seen.
    assert cycles[-1] - cycles[-2] <= (MANY - FEW) / 10
    assert blocks[-1] - blocks[-2] <= MANY / 10


@pytest.mark.parametrize(
    ("concurrency", "most_objects", "most_bytes"),
    [
        pytest.param(1000, 46, 7700, id="running"),  # 43, of which many are trio's; 7,021
        pytest.param(1, 8, 1500, id="waiting"),  # 7; 1,361
    ],
)
async def test_what_a_claim_takes(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    no_collection: None,
    concurrency: int,
    most_objects: int,
    most_bytes: int,
) -> None:
    """A task that runs, or waits for its turn, has so many objects that are looked at for cycles.

    And so many bytes: what is allocated for a task all in all, since it is all there by then.
    """
    worker = nq.Worker(app, client, concurrency=concurrency, prefetch=1000 - concurrency, grace=0)
    async with working(worker):
        await trio.sleep(1)
        with traced():
            objects, (size, _) = len(gc.get_objects()), tracemalloc.get_traced_memory()
            await client.store.enqueue([a_task(task_type="long")] * 1000)
            await trio.sleep(0.5)
            objects = len(gc.get_objects()) - objects
            size = tracemalloc.get_traced_memory()[0] - size

        assert (worker.health().running, worker.health().held) == (concurrency, 1000)
        assert objects / 1000 <= most_objects
        assert size / 1000 <= most_bytes
