"""The database's clock judges leases: what becomes of them when it jumps."""

from __future__ import annotations

import datetime as dt

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.store_steps import hire
from tests.support.workers import Longest, outcomes, working


LEASE, HEARTBEAT = 30.0, 3.0
PATIENCE = HEARTBEAT + 1  # for so long others must see the same heartbeat of a worker
SOON = 0.5


@pytest.fixture
def client(anywhere: FlakyStore) -> nq.Client:
    """A client of each kind of store."""
    return nq.Client(anywhere)


@attrs.define
class Held:
    """Tasks that run for as long as they are let."""

    client: nq.Client
    refs: list[nq.TaskRef]
    cancels: list[str]

    async def run_on(self) -> bool:
        """Whether every one is still in its first attempt."""
        found = [await outcomes(self.client, ref) for ref in self.refs]
        return found == [["running"]] * len(self.refs) and self.cancels == []


@pytest.fixture
def cancels(app: nq.App) -> list[str]:
    """Let there be a type of tasks that run on; says why they were cancelled, if they were."""
    found: list[str] = []

    @app.task(name="hold")
    async def hold(ctx: nq.TaskContext) -> None:
        try:
            await trio.sleep_forever()
        finally:
            found.append(str(ctx.cancel_reason))

    @app.task(name="quick")
    async def quick() -> None: ...

    return found


def make_worker(
    app: nq.App, client: nq.Client, lease: float = LEASE, heartbeat: float = HEARTBEAT
) -> nq.Worker:
    return nq.Worker(
        app,
        client,
        queues=["default"],
        lease=lease,
        heartbeat=heartbeat,
        poll_interval=600,
        rng=Longest(),
    )


@asynccontextmanager
async def holding(
    worker: nq.Worker, client: nq.Client, cancels: list[str], tasks: int = 5
) -> AsyncGenerator[Held]:
    """Let a worker hold tasks while the block lasts; it has had the time to begin them."""
    async with working(worker):
        refs = [await client.enqueue("hold") for _ in range(tasks)]
        await trio.sleep(1)
        yield Held(client, refs, cancels)


async def leave_behind(store: FlakyStore, client: nq.Client) -> nq.TaskRef:
    """Have a worker that never sends a heartbeat hold a task, of a queue that is its alone."""
    dead = await hire(store, task_types=["quick"], lease=LEASE)
    (ref,) = await client.enqueue_many([nq.TaskRequest.by_name("quick").options(queue="left")])
    assert (await store.claim(dead, ["quick"], limit=1)).claims
    return ref


async def rescued(client: nq.Client, ref: nq.TaskRef, *, within: float) -> float:
    """Wait until a task has been taken from the dead; return when, on trio's clock."""
    with trio.fail_after(within):
        while await outcomes(client, ref) == ["running"]:  # noqa: ASYNC110  # it is in a database
            await trio.sleep(0.25)
    return trio.current_time()


def jump(virtual_time: VirtualTime, seconds: float) -> None:
    """Set the database's clock, and not trio's."""
    virtual_time.start += dt.timedelta(seconds=seconds)


# -- the living --------------------------------------------------------------------------------


# Between heartbeats, which come at multiples of 3 s and, of the other worker, 1 s later; and
# just before the second sweep of each, at 39 s and 40 s.
@pytest.mark.parametrize("at", [10.1, 11.5, 12.5, 38.9, 39.5, 39.9])
@pytest.mark.parametrize("by", [29, 3600])
async def test_no_living_worker_is_taken_for_dead(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    cancels: list[str],
    at: float,
    by: float,
) -> None:
    """When the clock jumps ahead, by less than a lease or more, what runs is lost to nobody."""
    workers = [make_worker(app, client) for _ in range(2)]
    async with holding(workers[0], client, cancels) as held, working(workers[1]):
        await trio.sleep_until(at)
        jump(virtual_time, by)
        await trio.sleep(60)

        assert await held.run_on()
        assert all(worker.health().lease_left > 20 for worker in workers)


@pytest.mark.parametrize(
    ("mine", "others", "at", "by"),
    [((300, 60), (30, 3), 20, 3600), ((30, 3), (300, 60), 60.5, 50), ((30, 3), (60, 20), 60.5, 35)],
)
async def test_nor_by_one_with_another_lease(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    cancels: list[str],
    mine: tuple[float, float],
    others: tuple[float, float],
    at: float,
    by: float,
) -> None:
    """Each is given the time of its own heartbeat to show that it is alive."""
    async with (
        holding(make_worker(app, client, *mine), client, cancels) as held,
        working(make_worker(app, client, *others)),
    ):
        await trio.sleep_until(at)
        jump(virtual_time, by)
        await trio.sleep(200)

        assert await held.run_on()


@pytest.mark.parametrize("after", [0.01, 1])
async def test_nor_by_one_that_has_just_started(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    cancels: list[str],
    after: float,
) -> None:
    """Who was not there before the jump does not trust the clock any more than others do."""
    async with holding(make_worker(app, client, 60, 9), client, cancels) as held:
        await trio.sleep_until(9.1)
        jump(virtual_time, 3600)
        await trio.sleep(after)
        async with working(make_worker(app, client)):
            await trio.sleep(60)

            assert await held.run_on()


async def test_nor_by_one_that_registers_anew(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    cancels: list[str],
    anywhere: FlakyStore,
) -> None:
    """Who has lost its own lease sweeps at once, and takes nobody else's."""
    async with holding(make_worker(app, client), client, cancels) as held:
        other = make_worker(app, client)
        async with working(other):
            await trio.sleep_until(27.5)  # the other's next heartbeat comes first
            jump(virtual_time, 3600)
            lost = other.health().worker_id
            assert lost is not None
            await anywhere.deregister(lost)
            await trio.sleep(60)

            assert other.health().worker_id != lost
            assert await held.run_on()


async def corrected(virtual_time: VirtualTime, by: float) -> None:
    """Set the clock back, and to what it was: a heartbeat stored meanwhile looks old afterwards."""
    await trio.sleep_until(24.5)
    jump(virtual_time, -by)
    await trio.sleep_until(26.5)
    jump(virtual_time, by)
    await trio.sleep(60)


async def flap(virtual_time: VirtualTime, by: float) -> None:
    """Set the clock ahead and back in turns, until cancelled."""
    while True:
        await trio.sleep(3.1)
        jump(virtual_time, by)
        by = -by


async def flapping(virtual_time: VirtualTime, by: float) -> None:
    """Set the clock ahead and back in turns, for two minutes."""
    with trio.move_on_after(120):
        await flap(virtual_time, by)


@pytest.mark.parametrize(
    ("trouble", "by"),
    [
        *((corrected, by) for by in (25, 60, 3600)),
        *((flapping, by) for by in (4, 20, 3600)),
    ],
)
async def test_nor_when_the_clock_is_set_time_and_again(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    cancels: list[str],
    trouble: Callable[[VirtualTime, float], Awaitable[None]],
    by: float,
) -> None:
    """However often it is set ahead and back, a worker that sends heartbeats is alive."""
    async with (
        holding(make_worker(app, client), client, cancels) as held,
        holding(make_worker(app, client), client, cancels) as others,
    ):
        await trouble(virtual_time, by)

        assert await held.run_on()
        assert await others.run_on()


# -- the dead ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("cancels")
async def test_the_dead_are_found_when_their_lease_is_over(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """They are known to be late long before, so it takes no more than the next heartbeat."""
    async with working(make_worker(app, client)):
        await trio.sleep(1.5)
        died = trio.current_time()
        ref = await leave_behind(anywhere, client)
        found = await rescued(client, ref, within=2 * LEASE)

        assert LEASE <= found - died <= LEASE + HEARTBEAT + SOON


@pytest.mark.usefixtures("cancels")
async def test_after_a_restart_of_everything_they_are_found_one_heartbeat_later(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """Who has just started sees them with its first heartbeat, and waits for one of theirs."""
    ref = await leave_behind(anywhere, client)
    virtual_time.advance(2 * LEASE)
    began = trio.current_time()
    async with working(make_worker(app, client)):
        found = await rescued(client, ref, within=LEASE)

        assert PATIENCE <= found - began <= HEARTBEAT + PATIENCE + SOON


@pytest.mark.usefixtures("cancels")
async def test_after_a_jump_they_are_found_one_heartbeat_later(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore
) -> None:
    """Nobody can tell them from the living any sooner."""
    ref = await leave_behind(anywhere, client)
    async with working(make_worker(app, client)):
        await trio.sleep(5)
        jump(virtual_time, 3600)
        found = await rescued(client, ref, within=LEASE)

        assert 6 + PATIENCE <= found <= 6 + PATIENCE + SOON


@pytest.mark.usefixtures("cancels")
@pytest.mark.parametrize("by", [4, 3600])
async def test_they_are_found_also_while_the_clock_flaps(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore, by: float
) -> None:
    """What has been seen of them is not forgotten while the clock says that they are not late."""
    ref = await leave_behind(anywhere, client)
    async with working(make_worker(app, client)), trio.open_nursery() as nursery:
        nursery.start_soon(flap, virtual_time, by)
        found = await rescued(client, ref, within=10 * LEASE)
        nursery.cancel_scope.cancel()

        assert found <= LEASE + 3 * HEARTBEAT + by % 3600


@pytest.mark.usefixtures("cancels")
@pytest.mark.parametrize("by", [5, 20, 3600])
async def test_they_are_found_when_the_clock_has_been_set_back(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, anywhere: FlakyStore, by: float
) -> None:
    """Whose heartbeat is from the future is dead once it has been seen for a whole lease."""
    ref = await leave_behind(anywhere, client)
    async with working(make_worker(app, client)):
        await trio.sleep(5)
        jump(virtual_time, -by)
        found = await rescued(client, ref, within=10 * LEASE)

        assert LEASE <= found <= LEASE + 3 * HEARTBEAT


async def test_nor_are_the_living_taken_then(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, cancels: list[str]
) -> None:
    """Their next heartbeat goes by the clock as it is now."""
    async with (
        holding(make_worker(app, client), client, cancels) as held,
        holding(make_worker(app, client, 90, 30), client, cancels) as others,
    ):
        await trio.sleep_until(25)
        jump(virtual_time, -3600)
        await trio.sleep(200)

        assert await held.run_on()
        assert await others.run_on()
