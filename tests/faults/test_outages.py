"""A store that is away, late, or loses its answers: when each loop tries again, and how."""

from __future__ import annotations

import itertools

from typing import Any

import pytest
import trio

import nursery_queue as nq

from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue.testing import VirtualTime
from tests.faults.loops import VERBS, Holding, lines, logged, until_well, unwell
from tests.support.flaky_store import FlakyStore, nothing
from tests.support.store_steps import hire
from tests.support.workers import Longest, outcomes, working


# -- the database is back ---------------------------------------------------------------------


async def test_a_heartbeat_that_succeeds_again_hurries_the_others(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    holding: Holding,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After an outage nobody waits longer than the heartbeat does."""
    refs = [await client.enqueue("hold") for _ in range(2)]
    worker = nq.Worker(app, client, poll_interval=1, rng=Longest())
    with logged(caplog):
        async with working(worker):
            await trio.sleep(1)
            store.break_down()
            holding.go_on.set()
            store.hang_up()
            late = await client.enqueue("hold")
            await trio.sleep_until(60)
            # The scheduler looks once a minute, and without a lease it asks for nothing.
            assert unwell(worker) == {*VERBS} - {"scheduler"}
            beats = store.calls["heartbeat"]
            back_at = trio.current_time()
            store.mend()
            await until_well(worker, "heartbeat")
            assert trio.current_time() - back_at < 10  # a third of the lease
            await trio.sleep(0.01)
            assert unwell(worker) == {"maintenance"}  # which gives others the time to come back
            assert worker.health().held <= 1
            await trio.sleep(3)
            assert unwell(worker) == set()
            assert store.calls["heartbeat"] - beats < 5

    assert lines(caplog, "scheduler") == []
    for name in VERBS.keys() - {"scheduler"}:
        failed, back = lines(caplog, name)
        assert failed.startswith(f"WARNING {name} failed, restarting it: TransientError")
        assert back == f"INFO {name} is back"
    assert await outcomes(client, late) == ["succeeded"]
    for ref in refs:
        assert "succeeded" in await outcomes(client, ref)


async def test_a_heartbeat_that_never_failed_hurries_nobody(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """A loop that fails alone, while heartbeats succeed, is not started more often for that."""
    worker = nq.Worker(app, client, rng=Longest())
    async with working(worker):
        await trio.sleep(1)
        store.down = {"claim"}
        calls = store.calls["claim"]
        await client.enqueue("nothing of ours")
        await trio.sleep(60)
        assert store.calls["claim"] - calls == 8


async def test_after_an_outage_the_living_have_time_to_show_up(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    holding: Holding,
) -> None:
    """The next sweep waits for a heartbeat of another worker that lives, so that is not swept."""
    other = await hire(store.inner, task_types=["note"], lease=30)
    for task in ("note", "hold"):
        await client.enqueue(task)
    assert len((await store.inner.claim(other, ["note"], limit=1)).claims) == 1
    worker = nq.Worker(app, client, lease=90, heartbeat=3, rng=Longest())
    async with working(worker):
        await trio.sleep(20)
        await store.inner.heartbeat(other, draining=False)
        store.down = {"heartbeat"}  # and the sweep of a maintenance that has not noticed works
        await trio.sleep_until(52)  # the other is overdue since 50
        sweeps, store.down = store.calls["sweep"], set()
        await until_well(worker, "heartbeat")
        await trio.sleep(3.9)  # its heartbeat, and the margin
        assert store.calls["sweep"] == sweeps
        await store.inner.heartbeat(other, draining=False)
        await trio.sleep(0.2)
        assert store.calls["sweep"] > sweeps
        assert (await store.inner.heartbeat(other, draining=False)).registered
        assert holding.running == 1


async def test_the_lease_sets_the_pace(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    holding: Holding,
) -> None:
    """Heartbeat and settler never wait longer than a third of the lease, the others 30 s."""
    await client.enqueue("hold")
    worker = nq.Worker(app, client, lease=15, heartbeat=5, poll_interval=1, rng=Longest())
    times: dict[str, list[float]] = {}

    def note(verb: str, *_: Any, **__: Any) -> None:
        times.setdefault(verb, []).append(trio.current_time())

    async with working(worker):
        await trio.sleep(1)
        holding.go_on.set()
        store.break_down()
        store.hang_up()
        store.tell = note
        await trio.sleep(200)
        store.tell = nothing
        store.mend()
        await trio.sleep(11)
        assert unwell(worker) == set()

    def pauses(verb: str) -> list[float]:
        # An outcome that fails alone is followed at once by a question whether the store is well.
        instants = dict.fromkeys(times[verb])
        return [round(b - a, 6) for a, b in itertools.pairwise(instants)]

    assert pauses("settle")[:8] == [0.25, 0.5, 1, 2, 4, 5, 5, 5]
    assert pauses("heartbeat") == [0.25, 0.5, 1, 2, 4]
    assert pauses("deregister")[:30] == [5] * 30  # the lease is gone, and is begun anew
    assert pauses("listen") == [0.5, 1, 2, 4, 8, 16, *[30] * 5]  # since it was told to end
    # Whoever does not know what it was given asks that first, and nothing without a lease.
    assert pauses("give_back_all_but") == [0.5, 1, 2, 4]
    assert pauses("sweep")[:3] == [0.25 + 5, 0.5 + 5, 1 + 5]  # with the grace for the others


# -- a claim, a settlement: late, without an answer, applied without an answer -----------------


@pytest.mark.parametrize("fault", ["late", "never", "lost"])
@pytest.mark.parametrize("verb", ["claim", "settle", "heartbeat"])
async def test_answers(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    starts: list[float],
    holding: Holding,
    verb: str,
    fault: str,
) -> None:
    """However a call is answered, each task runs once, and handlers do not notice."""
    await client.enqueue("hold")
    worker = nq.Worker(app, client, poll_interval=1, rng=Longest())
    async with working(worker):
        await trio.sleep(1)
        if fault == "late":
            store.late = {verb: 8.0}
        elif fault == "never":
            store.stuck = {verb}
        else:
            store.deaf = {verb}
        refs = [await client.enqueue("note") for _ in range(20)]
        await trio.sleep(12)
        store.mend()
        await trio.sleep(30)
        assert (holding.running, holding.cancelled) == (1, [])
        assert (worker.health().held, unwell(worker)) == (1, set())

    assert len(starts) == 20
    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 20


@pytest.mark.parametrize("verb", ["promote", "give_back_all_but", "sweep"])
async def test_no_call_hangs_for_ever(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    starts: list[float],
    holding: Holding,
    verb: str,
) -> None:
    """Whatever a loop asks the store, it gives up when there is no answer, and asks again."""
    await client.enqueue("hold")
    worker = nq.Worker(app, client, poll_interval=1, rng=Longest())
    async with working(worker):
        await trio.sleep(1)
        store.stuck = {verb}
        store.down = {"claim"} if verb == "give_back_all_but" else set()
        refs = [await client.enqueue(app["note"].options(run_after=5)) for _ in range(5)]
        await trio.sleep(45)
        store.mend()
        calls = store.calls[verb]
        await trio.sleep(50)
        assert store.calls[verb] > calls
        assert (holding.running, holding.cancelled, unwell(worker)) == (1, [], set())
        assert {each.restarts > 0 for each in worker.health().loops.values()} == {True, False}

    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 5


async def test_promoting_is_refused(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    starts: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What is ready is claimed as ever, the log says once what is refused, and then it is done."""
    async with working(nq.Worker(app, client, rng=Longest())):
        await trio.sleep(1)
        store.raises = {"promote": nq.DatabaseRefused("no")}
        late = await client.enqueue(app["note"].options(run_after=2))
        await trio.sleep(10)
        ready = await client.enqueue("note")
        await trio.sleep(1)
        assert await outcomes(client, ready) == ["succeeded"]
        assert await outcomes(client, late) == []
        store.mend()
        await trio.sleep(10)

    assert await outcomes(client, late) == ["succeeded"]
    assert len(lines(caplog, "what is due cannot be made ready, trying again: ")) == 1


@pytest.mark.parametrize("verb", ["sweep", "prune"])
async def test_a_part_of_the_tidying_up_hangs(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore, verb: str
) -> None:
    """The parts of it that get their answers go on, however long another one gets none."""
    async with working(nq.Worker(app, client, rng=Longest())):
        await trio.sleep(1)
        store.stuck = {verb}
        store.calls.clear()
        await trio.sleep(3600)

        assert store.calls[verb] > 20
        assert store.calls["prune" if verb == "sweep" else "sweep"] > 20


async def test_a_claim_that_outlives_the_lease(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
    starts: list[float],
) -> None:
    """Tasks that arrive when the lease they were claimed under has ended are not run for that."""
    worker = nq.Worker(app, client, lease=6, heartbeat=2, rng=Longest())
    async with working(worker):
        await trio.sleep(3)  # the last renewal was at 2, so the lease ends at 8
        store.down = {"heartbeat", "register", "deregister"}
        store.late = {"claim": 8.0}
        ref = await client.enqueue("note")
        await trio.sleep_until(9)
        store.mend()
        await trio.sleep_until(11.5)  # there is another lease since 9.75, and the claim came at 11
        assert worker.health().lease_left > 0
        assert (starts, await outcomes(client, ref)) == ([], ["running"])
        await trio.sleep(20)  # in which it is swept

    assert len(starts) == 1
    assert await outcomes(client, ref) == ["lost", "succeeded"]


async def test_more_than_the_store_can_take_at_once(
    virtual_time: VirtualTime, app: nq.App, client: nq.Client, store: FlakyStore
) -> None:
    """Outcomes that are too many for one statement are stored in smaller batches."""

    @app.task(name="sleepy")
    async def sleepy() -> None:
        await trio.sleep(1)

    def refuse_more_than_30(verb: str, *args: Any, **_: Any) -> None:
        if verb == "settle" and len(args[0]) > 30:
            msg = "these are too many"
            raise nq.TransientError(msg)

    store.tell = refuse_more_than_30
    refs = await client.enqueue_many([nq.TaskRequest.by_name("sleepy")] * 100)
    async with working(nq.Worker(app, client, concurrency=100, rng=Longest())):
        await trio.sleep(10)

    assert [await outcomes(client, ref) for ref in refs] == [["succeeded"]] * 100


# -- bells and backlogs ------------------------------------------------------------------------


async def test_ten_wakeups_are_one_claim(
    virtual_time: VirtualTime, app: nq.App, store: FlakyStore, somewhere: str | None
) -> None:
    """However often the bell rings while the claimer sleeps or claims, it claims once more."""

    @app.task(name="slow")
    async def slow() -> None:
        await trio.sleep(100)

    async def enqueue_ten() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(client.enqueue, "slow")

    if somewhere is not None:
        store.inner = PostgresStore(somewhere)
    client = nq.Client(store)
    worker = nq.Worker(app, client, poll_interval=0, rng=Longest())
    async with client, working(worker):
        await trio.sleep(1)
        before = store.calls["claim"]
        await enqueue_ten()
        await trio.sleep(0.5)
        # On PostgreSQL they are ten transactions, and commit one after the other.
        assert store.calls["claim"] - before <= (1 if somewhere is None else 10)

        before = store.calls["claim"]
        store.late = {"claim": 1}
        for _ in range(8):  # the first claim takes one, the second has room for all the others
            await client.enqueue("slow")
            await trio.sleep(0.05)
        await trio.sleep(10)
        assert store.calls["claim"] - before == 2


async def test_a_backlog_found_at_the_start(
    virtual_time: VirtualTime,
    app: nq.App,
    client: nq.Client,
    store: FlakyStore,
) -> None:
    """A thousand tasks found without notifications or polls: all slots are filled in one turn."""
    most = 0
    running = 0

    @app.task(name="slow")
    async def slow() -> None:
        nonlocal most, running
        running += 1
        most = max(most, running)
        await trio.sleep(1)
        running -= 1

    await client.enqueue_many([nq.TaskRequest.by_name("slow")] * 1000)
    worker = nq.Worker(app, client, concurrency=50, listen=False, poll_interval=0, rng=Longest())
    async with working(worker):
        await trio.sleep(0.001)
        assert (running, store.calls["claim"]) == (50, 1)
        await trio.sleep(21)
        stats = await client.stats()

    assert stats.queues["default"] == {nq.State.SUCCEEDED: 1000}
    assert most == 50
