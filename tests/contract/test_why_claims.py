"""What is said of ready tasks is what claims do: held to one another in random states."""

from __future__ import annotations

import random

from collections.abc import Sequence
from uuid import UUID

import attrs
import pytest

from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import Claim, QueueSlots, Spot
from nursery_queue._core._rate import Rate
from nursery_queue._core._reasons import ReasonCode
from nursery_queue._core._states import Event, State
from nursery_queue._store import Store
from nursery_queue.testing import VirtualTime
from tests.support.store_steps import a_task, ends, hire


QUEUES, TYPES, KEYS = ("calls", "default", "mail"), ("x", "y", "z"), ("a", "b", None)
MANY = 1000
NEXT = (ReasonCode.BEHIND,)


@attrs.define(eq=False)
class Round:
    """Workers of a store, each with the types and the queues it serves, and what they hold."""

    store: Store
    rng: random.Random
    workers: dict[UUID, tuple[Sequence[str], Sequence[str] | None]] = attrs.field(
        factory=dict[UUID, "tuple[Sequence[str], Sequence[str] | None]"]
    )
    held: list[Claim] = attrs.field(factory=list[Claim])

    def some(self, names: Sequence[str]) -> list[str]:
        return sorted(self.rng.sample(names, self.rng.randint(1, len(names))))

    async def hire(self) -> None:
        types = self.some(TYPES)
        queues = self.rng.choice([None, self.some(QUEUES)])
        worker = await hire(self.store, task_types=types, queues=queues, lease=1e6)
        self.workers[worker] = (types, queues)

    async def leave(self) -> None:
        """Let a worker take nothing any more."""
        worker = self.rng.choice([*self.workers])
        del self.workers[worker]
        await self.store.heartbeat(worker, draining=True)

    async def set_queue(self) -> None:
        pick = self.rng.choice
        await self.store.configure(
            pick(QUEUES),
            paused=pick([False, False, False, True]),
            max_running=pick([None, None, 0, 2, 5]),
            max_running_per_key=pick([None, None, 1, 2]),
            rate=pick([None, None, Rate(3, per=60, burst=2)]),
            rate_per_key=pick([None, None, Rate(1, per=30)]),
        )

    async def add(self) -> None:
        pick = self.rng.choice
        tasks = [
            a_task(
                task_type=pick(TYPES),
                queue=pick(QUEUES),
                key=pick(KEYS),
                priority=pick([0, 0, 1]),
                run_after=pick([0.0, 0.0, 40.0]),
            )
            for _ in range(self.rng.randint(1, 12))
        ]
        await self.store.enqueue(tasks)

    async def settle(self) -> None:
        self.rng.shuffle(self.held)
        ended, self.held = self.held[:5], self.held[5:]
        events = [Event.SUCCEED, Event.RETRY, Event.INTERRUPT]
        settlements = [ends(one, self.rng.choice(events), delay=20.0) for one in ended]
        await self.store.settle(settlements)

    async def reasons(self) -> dict[int, tuple[ReasonCode, ...]]:
        """Return the codes of all ready tasks."""
        ready = await self.store.list_tasks(TaskFilter(state=State.READY, limit=MANY))
        ids = [task.id for task in ready]
        return {id_: why.codes for id_, why in zip(ids, await self.store.why(ids), strict=True)}

    async def claim_all(self) -> set[int]:
        """Let all workers take what they can, again and again; return the ids."""
        taken: list[Claim] = []
        found = True
        while found:
            found = False
            for worker, (types, queues) in self.workers.items():
                slots: list[QueueSlots] | None = None
                if queues is not None:
                    slots = [QueueSlots(queue=each, slots=MANY) for each in queues]
                claims = await self.claim(worker, types, slots)
                found = found or bool(claims)
                taken += claims
        self.held += taken
        return {one.fence.task_id for one in taken}

    async def claim(
        self, worker: UUID, types: Sequence[str], slots: Sequence[QueueSlots] | None
    ) -> list[Claim]:
        claims: list[Claim] = []
        after: Spot | None = None
        while True:
            claimed = await self.store.claim(
                worker, types, limit=MANY, queue_slots=slots, after=after
            )
            claims += claimed.claims
            if claimed.resume is None:
                return claims
            after = claimed.resume


@pytest.mark.parametrize("seed", range(4))
async def test_claims_agree(store: Store, virtual_time: VirtualTime, seed: int) -> None:
    """A claim takes none that has another reason than its turn, and leaves none without one."""
    round_ = Round(store, random.Random(seed))  # no secret
    steps = [round_.hire, round_.set_queue, round_.set_queue, round_.add, round_.add, round_.settle]
    seen: set[ReasonCode] = set()
    for _ in range(25):
        for step in round_.rng.choices(steps, k=4):
            await step()
        if len(round_.workers) > 2:
            await round_.leave()
        virtual_time.advance(round_.rng.choice([0.0, 3.0, 50.0]))
        await store.promote()
        if round_.rng.random() < 0.3:
            await store.park()
        before = await round_.reasons()
        for types, _ in round_.workers.values():
            await store.unpark(types)
        taken = await round_.claim_all()
        after = await round_.reasons()
        seen.update(code for codes in (*before.values(), *after.values()) for code in codes)

        assert {before[task_id] for task_id in taken} <= {NEXT}
        assert {task_id: codes for task_id, codes in after.items() if codes == NEXT} == {}

    assert len(seen) >= 6
