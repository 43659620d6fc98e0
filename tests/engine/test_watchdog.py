"""Who blocks the event loop, and where: on the real clock, since it is a real thread that looks."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import threading
import time

from collections.abc import Generator
from pathlib import Path

import attrs
import pytest
import trio

from trio.testing import MockClock

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.waits import eventually
from tests.support.workers import final, working


LEASE = 3.0  # seconds; a tenth of it is how long the loop may stand still
LIMIT = LEASE / 10
PATIENCE = 20.0  # real seconds until a test gives up
SOURCE = Path(__file__).read_text().splitlines()


@attrs.define(eq=False)
class Ear(logging.Handler):
    """Hears what the watchdog says.

    A busy machine may keep the loop waiting for longer than the limit, too: what does not speak
    of the task type `wanted` is not what the test is about.
    """

    wanted: str = ""
    lines: list[str] = attrs.field(factory=list[str])
    blocked: threading.Event = attrs.field(factory=threading.Event)
    over: threading.Event = attrs.field(factory=threading.Event)

    def __attrs_pre_init__(self) -> None:
        super().__init__()

    def emit(self, record: logging.LogRecord) -> None:
        """Take down a line."""
        if record.threadName != "nursery_queue watchdog":
            return
        line = record.getMessage()
        if "runs again" not in line:
            if self.wanted in line:
                self.lines.append(line)
                self.blocked.set()
        elif self.blocked.is_set() and not self.over.is_set():
            self.lines.append(line)
            self.over.set()

    def block(self) -> None:
        """Block the loop until the watchdog has said so."""
        self.blocked.wait(4 * LIMIT)  # waits here

    async def all_clear(self) -> None:
        """Wait until it has said that the blockage is over."""
        with trio.fail_after(PATIENCE):
            await trio.to_thread.run_sync(self.over.wait, abandon_on_cancel=True)

    async def provoke(self, client: nq.Client, name: str) -> list[str]:
        """Run tasks that block the loop until one is noticed; return what they may be called."""
        self.wanted = f"({name}, attempt 1)"
        self.blocked.clear()
        self.over.clear()
        names: list[str] = []
        with trio.fail_after(PATIENCE):
            while not self.blocked.is_set():
                ref = await client.enqueue(name)
                names.append(f" by task {ref.id} ({name}, attempt 1), at ")
                await final(client, ref)
                # It may have seen that, and be about to say so.
                await trio.to_thread.run_sync(self.blocked.wait, 3 * LIMIT)
        await self.all_clear()
        return names


@pytest.fixture
def ear() -> Generator[Ear]:
    log, ear = logging.getLogger("nursery_queue"), Ear()
    log.addHandler(ear)
    yield ear
    log.removeHandler(ear)


def place(comment: str) -> str:
    """Name the line of this file that ends in *comment*, as the watchdog does."""
    (number,) = (i for i, line in enumerate(SOURCE, 1) if line.endswith(comment))
    return f"{__file__}:{number} "


def watchdogs() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "nursery_queue watchdog"]


@pytest.fixture
def worker(app: nq.App, client: nq.Client) -> nq.Worker:
    return nq.Worker(app, client, lease=LEASE, heartbeat=LEASE / 3)


@pytest.fixture
def sinners(app: nq.App, ear: Ear) -> nq.App:
    """Task types that block the loop, each in a way of its own."""
    # Neither too short to be noticed nor longer than a lease, on whatever machine.
    forever, sizes = itertools.repeat(0), itertools.cycle(range(22, 27))

    def helper() -> None:
        ear.block()  # by a helper

    @app.task(name="itself")
    async def itself() -> None:
        ear.block()  # by itself

    @app.task(name="busy")
    async def busy() -> None:
        end = time.monotonic() + 4 * LIMIT
        any(ear.blocked.is_set() or time.monotonic() > end for _ in forever)  # by being busy

    @app.task(name="called")
    async def called() -> None:
        await trio.lowlevel.checkpoint()
        helper()

    @app.task(name="child", nursery=True)
    async def child(ctx: nq.TaskContext) -> None:
        async def run() -> None:
            await trio.lowlevel.checkpoint()
            ear.block()  # by a child

        ctx.nursery.start_soon(run)

    @app.task(name="greedy")
    async def greedy() -> None:
        # In C, which lets no other thread run until it is through.
        re.match("(a+)+$", "a" * next(sizes) + "b")  # by a regular expression

    return app


@pytest.fixture
def asyncio_sinners(app: nq.App, ear: Ear) -> nq.App:
    """Task types for asyncio that block the loop."""

    @app.task(name="asyncio", asyncio=True)
    async def with_asyncio() -> None:
        await asyncio.sleep(0)
        ear.block()  # by asyncio

    @app.task(name="asyncio child", asyncio=True)
    async def asyncio_child() -> None:
        async def run() -> None:
            await asyncio.sleep(0)
            ear.block()  # by a child of asyncio

        await asyncio.create_task(run())

    return app


@pytest.mark.parametrize(
    ("name", "comment"),
    [
        ("itself", "# by itself"),
        ("busy", "# by being busy"),
        ("called", "# by a helper"),
        ("child", "# by a child"),
        ("greedy", "# by a regular expression"),
    ],
)
async def test_a_blocking_handler_is_named(
    sinners: nq.App, client: nq.Client, worker: nq.Worker, ear: Ear, name: str, comment: str
) -> None:
    """Task, type, attempt and line are named, wherever in the handler it is that blocks."""
    async with working(worker):
        names = await ear.provoke(client, name)

    # On a slow machine it may block for longer than the lease; then it does so again.
    blocked, over, *_ = ear.lines
    assert any(each in blocked for each in names)
    assert place(comment) in blocked
    assert re.fullmatch(r"the event loop runs again, after \d+\.\d s", over)


@pytest.mark.parametrize(
    ("name", "comment"),
    [("asyncio", "# by asyncio"), ("asyncio child", "# by a child of asyncio")],
)
async def test_a_blocking_asyncio_handler_is_named(
    asyncio_sinners: nq.App, client: nq.Client, worker: nq.Worker, ear: Ear, name: str, comment: str
) -> None:
    """So it is in the loop that asyncio handlers share, whichever of its tasks it is."""
    async with working(worker):
        names = await ear.provoke(client, name)

    assert any(each in ear.lines[0] for each in names)
    assert place(comment) in ear.lines[0]


async def test_the_way_to_the_blocking_line_is_told(
    sinners: nq.App, client: nq.Client, worker: nq.Worker, ear: Ear
) -> None:
    """The innermost line comes first, then its callers up to the handler, and nothing of ours."""
    async with working(worker):
        await ear.provoke(client, "called")

    places = re.findall(r"/([^/]+\.py):\d+ in (\w+)", ear.lines[0])
    assert places[-3:] == [
        ("test_watchdog.py", "block"),
        ("test_watchdog.py", "helper"),
        ("test_watchdog.py", "called"),
    ]
    assert {file for file, _ in places} == {"threading.py", "test_watchdog.py"}


async def test_a_deep_stack_is_cut_short(
    app: nq.App, client: nq.Client, worker: nq.Worker, ear: Ear
) -> None:
    """Of a deep stack the innermost lines are told, and where the handler was."""

    def descend(levels: int) -> None:
        if levels:
            descend(levels - 1)
        else:
            ear.block()

    @app.task(name="deep")
    async def deep() -> None:
        descend(500)  # into the deep

    async with working(worker):
        await ear.provoke(client, "deep")

    assert place("# into the deep") in ear.lines[0]
    assert len(ear.lines[0]) < 1000


async def test_each_blockage_is_told_once(
    app: nq.App, client: nq.Client, worker: nq.Worker, ear: Ear
) -> None:
    """However long one lasts, there is one line when it is noticed and one when it is over."""

    @app.task(name="long")
    async def long() -> None:
        ear.block()
        threading.Event().wait(2 * LIMIT)  # as long again as it takes to notice, at the least

    async with working(worker):
        for _ in range(2):
            await ear.provoke(client, "long")

    assert ["runs again" in each for each in ear.lines] == [False, True] * 2


async def test_blocked_by_something_else(client: nq.Client, worker: nq.Worker, ear: Ear) -> None:
    """Code that is no handler's is not charged to one, but its lines are told."""
    ear.wanted = "no handler, at "
    async with working(worker):
        ear.block()  # by the test itself
        await ear.all_clear()

    assert ear.lines[0].startswith("the event loop has been blocked for ")
    assert place("# by the test itself") in ear.lines[0]


async def test_health_tells_the_lag(
    app: nq.App, client: nq.Client, worker: nq.Worker, ear: Ear
) -> None:
    """`loop_lag` grows while the loop is blocked, and is what it took when it is back."""
    lags: list[float] = []

    @app.task(name="look")
    async def look() -> None:
        ear.block()
        lags.append(worker.health().loop_lag)

    async def quick() -> bool:
        return worker.health().loop_lag < LIMIT

    assert worker.health().loop_lag == 0
    async with working(worker):
        await ear.provoke(client, "look")
        await eventually(quick)
    assert worker.health().loop_lag == 0

    assert LIMIT <= lags[-1] < PATIENCE


async def test_the_watchdog_ends_with_the_run(client: nq.Client, worker: nq.Worker) -> None:
    """Its thread has a name, keeps no process alive, and is gone when `run` has returned."""
    assert watchdogs() == []
    async with working(worker):
        (thread,) = watchdogs()
        assert thread.daemon
    assert watchdogs() == []

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            assert len(watchdogs()) == 1
            scope.cancel()
    assert watchdogs() == []


async def test_no_watchdog_in_virtual_time(
    virtual_time: VirtualTime, client: nq.Client, worker: nq.Worker
) -> None:
    """Where time is virtual, nobody measures the real delays of the loop."""
    async with working(worker):
        assert watchdogs() == []
        assert worker.health().loop_lag == 0


async def test_no_watchdog_on_a_mock_clock(
    mock_clock: MockClock, client: nq.Client, worker: nq.Worker
) -> None:
    """Nor on trio's own mock clock: its ticks would disturb the order of tasks."""
    async with working(worker):
        assert watchdogs() == []
