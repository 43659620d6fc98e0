"""A task is given up here before anybody else may have it, whatever goes wrong, on one clock."""

from __future__ import annotations

import contextlib
import datetime as dt
import itertools
import random

from collections import defaultdict
from collections.abc import Callable

import attrs
import pytest
import trio

import nursery_queue as nq

from nursery_queue.testing import MemoryStore, VirtualTime, deterministic
from tests.support.flaky_store import FlakyStore
from tests.support.workers import Longest, final, working


VERBS = [
    *("register", "heartbeat", "deregister", "claim", "settle", "give_back_all_but"),
    *("promote", "sweep"),
]
TROUBLES, PEACE = ["down", "deaf", "stuck", "late"], ["none"] * 4


def down(store: FlakyStore, _: VirtualTime) -> None:
    store.down = {"heartbeat"}


def deaf(store: FlakyStore, _: VirtualTime) -> None:
    store.deaf = {"heartbeat"}


def stuck(store: FlakyStore, _: VirtualTime) -> None:
    store.stuck = {"heartbeat"}


def frozen(_: FlakyStore, clock: VirtualTime) -> None:
    clock.advance(31)


@pytest.mark.parametrize(
    ("late", "trouble", "lost_at"),
    [
        (0, down, 39),  # a renewal was sent at 9
        (0, deaf, 39),
        (0, stuck, 39),
        (2, down, 40),  # sent at 10 and answered at 12
        (2, stuck, 40),
        (0, frozen, 41.5),  # from 10.5 on: the lease has ended meanwhile
    ],
)
async def test_given_up_here_before_others_may_have_it(
    virtual_time: VirtualTime,
    app: nq.App,
    anywhere: FlakyStore,
    late: float,
    trouble: Callable[[FlakyStore, VirtualTime], None],
    lost_at: float,
) -> None:
    """Handlers are cancelled the instant the lease ends; no sweep gets their tasks before."""
    client, cancelled = nq.Client(anywhere), list[tuple[float, str]]()

    @app.task(name="hold")
    async def hold(ctx: nq.TaskContext) -> None:
        try:
            await trio.sleep(1000)
        finally:
            cancelled.append((trio.current_time(), str(ctx.cancel_reason)))

    anywhere.late = {"heartbeat": late}
    ref = await client.enqueue("hold")
    async with working(nq.Worker(app, client, lease=30, heartbeat=3, rng=Longest())):
        await trio.sleep_until(10.5)
        trouble(anywhere, virtual_time)
        while (await client.attempts(ref))[0].outcome != "lost":
            await trio.sleep(0.25)
            await anywhere.inner.sweep(max_lost=3)  # as others would, without end
        anywhere.down, anywhere.deaf, anywhere.stuck = set(), set(), set()

    assert cancelled[0] == (lost_at, "lease_lost")
    lost, *_ = await client.attempts(ref)
    assert lost.finished_at is not None
    assert lost.finished_at >= virtual_time.start + dt.timedelta(seconds=lost_at)


# -- anything may go wrong ---------------------------------------------------------------


@attrs.define
class Run:
    """One execution of a task by some worker."""

    worker: int
    started: float
    ended: float = float("inf")
    reason: nq.CancelReason | None = None


@attrs.define(eq=False)
class Chaos:
    """Workers on one store, each with a network of its own that fails at random."""

    rng: random.Random
    clock: VirtualTime
    inner: MemoryStore = attrs.field(factory=MemoryStore)
    runs: defaultdict[int, list[Run]] = attrs.field(factory=lambda: defaultdict(list))

    def make_worker(self, number: int, store: FlakyStore) -> nq.Worker:
        app = nq.App()

        @app.task(name="work", retry=nq.RetryPolicy(max_attempts=1))
        async def work(ctx: nq.TaskContext, seconds: float, blocks: float) -> str:
            run = Run(number, trio.current_time())
            self.runs[ctx.task_id].append(run)
            try:
                await trio.sleep(seconds)
                self.clock.advance(blocks)
            finally:
                run.ended, run.reason = trio.current_time(), ctx.cancel_reason
            return f"{number} at {run.started}"

        return nq.Worker(
            app, nq.Client(store), lease=9, heartbeat=3, concurrency=4, grace=5, cleanup=1
        )

    async def misbehave(self, store: FlakyStore, until: float) -> None:
        """Let calls fail, get lost, hang and come late, now this one and now that."""
        while trio.current_time() < until:
            store.down, store.deaf, store.stuck, store.late = set(), set(), set(), {}
            await trio.sleep(self.rng.uniform(0, 5))
            for verb in VERBS:
                match self.rng.choice([*TROUBLES, *PEACE]):
                    case "down":
                        store.down.add(verb)
                    case "deaf":
                        store.deaf.add(verb)
                    case "stuck":
                        store.stuck.add(verb)
                    case "late":
                        store.late[verb] = self.rng.uniform(0, 9)
                    case _:
                        pass
            await trio.sleep(self.rng.uniform(0, 15))
        store.down, store.deaf, store.stuck, store.late = set(), set(), set(), {}

    def overlaps(self) -> list[tuple[int, Run, Run]]:
        """Return what was begun by one while another one was still at it."""
        return [
            (task_id, one, other)
            for task_id, runs in self.runs.items()
            for one, other in itertools.pairwise(runs)
            if other.started < one.ended
        ]


@pytest.mark.parametrize("seed", range(20))
async def test_never_twice_at_a_time(virtual_time: VirtualTime, seed: int) -> None:
    """Whatever fails, no task is begun while another worker has not given it up.

    Each task ends, at most one of its attempts succeeded, and its result is from that.
    """
    with deterministic(seed) as rng:
        chaos = Chaos(rng, virtual_time)
        client = nq.Client(chaos.inner)
        refs = [
            await client.enqueue(
                "work",
                seconds=rng.choice([0, 1, 5, 12]),
                blocks=rng.choice([0] * 20 + [4, 12]),
            )
            for _ in range(40)
        ]
        stores = [FlakyStore(chaos.inner) for _ in range(3)]
        async with contextlib.AsyncExitStack() as stack:
            for number, store in enumerate(stores):
                await stack.enter_async_context(working(chaos.make_worker(number, store)))
            async with trio.open_nursery() as nursery:
                for store in stores:
                    nursery.start_soon(chaos.misbehave, store, 120)
            found = [await final(client, ref, within=1000) for ref in refs]

        assert chaos.overlaps() == []
        for status in found:
            outcomes = [attempt.outcome.value for attempt in await client.attempts(status.id)]
            assert set(outcomes) <= {"lost", "succeeded"}
            if status.state is nq.State.SUCCEEDED:
                assert outcomes.count("succeeded") == 1
                assert status.result in {
                    f"{run.worker} at {run.started}" for run in chaos.runs[status.id]
                }
            else:
                assert (status.error_type, status.lost) == ("worker_lost", 3)
