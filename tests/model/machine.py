"""The machine: rules that hypothesis puts in any order, each with anything it can draw."""

from __future__ import annotations

import uuid

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar
from uuid import UUID

import attrs
import trio

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from nursery_queue._core._debounce import Debounce
from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._model import Claim, Fence, QueueSlots, Settlement
from nursery_queue._core._queue_changes import QueueChanges
from tests.model import expectations as expect, schedules as schedule, transactions as tx
from tests.model.picture import PARKED, Picture
from tests.model.verbs import Verbs
from tests.model.wishes import (
    CREW,
    OUTCOMES,
    QUEUES,
    TYPES,
    Wish,
    batches,
    changes,
    debounces,
    filters,
    kinds,
    listings,
    outcomes,
    questions,
    queue_slots,
    schedules,
    steps,
    which,
    wishes,
)
from tests.model.world import World


T = TypeVar("T")
NOBODY = (UUID(int=0), 0)  # a worker that was never registered


class Machine(RuleBasedStateMachine):
    """Everything that can happen to a queue, in any order."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.verbs: Verbs = trio.from_thread.run(world.begin)
        self.crew: list[tuple[UUID, int]] = []  # all that were ever registered; the last ones work

    def do(self, verb: Callable[..., Awaitable[None]], *args: Any, **kwargs: Any) -> None:
        """Take a step, in trio's thread."""

        async def step() -> None:
            await verb(*args, **kwargs)

        trio.from_thread.run(step)

    @property
    def picture(self) -> Picture:
        return self.verbs.picture

    # -- what there is to choose from ----------------------------------------------------

    def a_task(self, index: int) -> int:
        """Return a task: rather a running one, or a live one, or one that has ended."""
        tasks = self.picture.tasks
        running = [number for number, task in tasks.items() if task.place == "running"]
        live = [number for number, task in tasks.items() if task.live and number not in running]
        rest = [number for number, task in tasks.items() if not task.live]
        gone = [number for number in self.verbs.ledger.due if number not in tasks]
        return _pick(index, [*gone[-1:], *rest[-3:], *live[-3:], *running[-2:]], 10**6)

    def a_worker(self, index: int) -> tuple[UUID, int]:
        """Return a worker: rather one that is registered."""
        former = [worker for worker in self.crew if worker[0] not in self.picture.workers]
        return _pick(index, [*former[-1:], *self.registered()], NOBODY)

    def registered(self) -> list[tuple[UUID, int]]:
        return [worker for worker in self.crew if worker[0] in self.picture.workers]

    def a_claim(self, index: int) -> Claim | None:
        """Return a claim: rather one that is held."""
        held = [one for one in self.verbs.claims if expect.current(self.picture, one.fence)]
        return _pick(index, [*self.verbs.claims[-2:], *held[-6:]], None)

    def a_settlement(self, index: int, outcome: str, *, knowing: bool) -> Settlement | None:
        if (claim := self.a_claim(index)) is None:
            return None
        decided = self.verbs.decide(claim, OUTCOMES[outcome])
        return self.verbs.stopped(decided) if knowing else decided

    def registered_ids(self) -> list[UUID]:
        return [worker_id for worker_id, _ in self.registered()]

    def somebody_is_able(self) -> bool:
        return bool(self.able())

    def able(self) -> list[tuple[UUID, int]]:
        """Return the workers for whom there is something to claim."""
        pools = {queue: expect.room(self.picture, queue) for queue in QUEUES}
        ready = {
            task.asked.task_type
            for task in self.picture.tasks.values()
            if task.place == "ready" and pools[task.asked.queue] > 0
        }
        return [worker for worker in self.registered() if not ready.isdisjoint(CREW[worker[1]])]

    def any_is(self, *places: str) -> bool:
        return any(task.place in places for task in self.picture.tasks.values())

    # -- what applications do ------------------------------------------------------------

    @rule(wishes=batches)
    def enqueue(self, wishes: list[Wish]) -> None:
        self.do(self.verbs.enqueue, wishes)

    @rule(wish=wishes)
    def enqueue_one(self, wish: Wish) -> None:
        self.do(self.verbs.enqueue, [wish])

    @rule(wish=wishes, key=st.sampled_from(["k", "k", "l"]), debounce=debounces)
    def debounce(self, wish: Wish, key: str, debounce: Debounce) -> None:
        task = attrs.evolve(wish.task, dedup_key=key, run_after=0.0, debounce=debounce)
        self.do(self.verbs.debounce, task)

    @precondition(lambda self: self.any_is("ready", "scheduled", "running", "parked"))
    @rule(which=which, running=st.sampled_from([True, True, False]))
    def cancel(self, which: int, running: bool) -> None:
        self.do(self.verbs.cancel, self.a_task(which), running=running)

    @precondition(lambda self: self.any_is("ready", "scheduled", "running", "parked"))
    @rule(fitting=filters, new=st.booleans(), first=which, last=which, dry=st.booleans())
    def cancel_some(
        self, fitting: CancelFilter, new: bool, first: int, last: int, dry: bool
    ) -> None:
        before = None if new else self.world.clock.now()
        ends = sorted((self.a_task(first), self.a_task(last)))
        self.do(self.verbs.cancel_some, attrs.evolve(fitting, before=before), *ends, dry=dry)

    @precondition(lambda self: self.any_is("failed", "cancelled"))
    @rule(which=which)
    def retry(self, which: int) -> None:
        ended = [number for number, task in self.picture.tasks.items() if not task.live]
        self.do(self.verbs.retry, _pick(which, ended[-4:], self.a_task(which)))

    @rule(queue=st.sampled_from(QUEUES), changes=changes)
    def set_queue(self, queue: str, changes: QueueChanges) -> None:
        """Pause a queue or resume it, or else set a limit or a rate."""
        self.do(self.verbs.set_queue, queue, **changes)

    @rule(every=st.sampled_from([4.0, 16.0]), changes=schedules)
    def set_schedule(self, every: float, changes: dict[str, Any]) -> None:
        self.do(schedule.set_schedule, self.verbs, every, changes)

    @precondition(lambda self: bool(self.picture.schedules))
    @rule(
        change=st.sampled_from([None, None, "pause", "resume", "trigger", "delete"]),
        seconds=st.sampled_from([None, 4.0, 16.0, 16.0]),
        worker=which,
    )
    def schedule(self, change: str | None, seconds: float | None, worker: int) -> None:
        """The schedule is changed, perhaps; time goes by; a worker fires what is due."""
        if change is not None:
            self.do(schedule.CHANGES[change], self.verbs)
        if seconds is not None:
            self.time_passes(seconds, None)
        self.do(schedule.fire, self.verbs, *self.a_worker(worker))

    @rule(steps=steps, commits=st.sampled_from([True, True, False]))
    def transaction(self, steps: list[Any], commits: bool) -> None:
        self.do(self.verbs.transaction, self._known(steps), commits=commits)

    @precondition(lambda self: self.any_is("running"))
    @rule(steps=steps, outcome=outcomes)
    def transaction_of_a_handler(self, steps: list[Any], outcome: str) -> None:
        """Whatever a handler does in its transaction, its claim is settled at the end."""
        settled = ("settle", 0, outcome, False)
        self.do(self.verbs.transaction, self._known([*steps[:2], settled]), commits=True)

    def _known(self, steps: Sequence[Any]) -> list[tx.Step]:
        """Return the steps with the tasks and claims that they are about."""
        known: list[tx.Step] = []
        for step in steps:
            match step:
                case "enqueue", batch:
                    known.append(tx.Enqueue([self.verbs.new(wish) for wish in batch]))
                case "cancel", index, running:
                    number = tx.OWN if index == 7 else self.a_task(index)
                    known.append(tx.Cancel(number, running))
                case "settle", index, outcome, knowing:
                    found = self.a_settlement(index, outcome, knowing=knowing)
                    known += [] if found is None else [tx.Settle(found)]
                case "savepoint", inner, fails:
                    known.append(tx.Savepoint(self._known(inner), fails))
                case _:
                    raise AssertionError(step)
        return known

    # -- what workers do -----------------------------------------------------------------

    @initialize(
        kinds=st.lists(kinds, max_size=3),
        wishes=st.lists(wishes, max_size=5),
        changes=st.none() | changes,
        claims=st.booleans(),
    )
    def begin(
        self, kinds: list[int], wishes: list[Wish], changes: QueueChanges | None, claims: bool
    ) -> None:
        """Begin with something to do, and with somebody who does it."""
        if changes is not None:
            self.do(self.verbs.set_queue, QUEUES[0], **changes)
        for kind in kinds:
            self._register(kind)
        if wishes:
            self.do(self.verbs.enqueue, wishes)
        for worker in self.able() if claims else ():
            self._claim(worker, limit=2)

    @rule(
        what=st.sampled_from(["register", "register", "heartbeat", "deregister"]),
        worker=which,
        kind=kinds,
        draining=st.booleans(),
    )
    def crew_changes(self, what: str, worker: int, kind: int, draining: bool) -> None:
        worker_id, _ = self.a_worker(worker)
        if what == "heartbeat":
            self.do(self.verbs.heartbeat, worker_id, draining=draining)
        elif what == "deregister":
            self.do(self.verbs.deregister, worker_id)
        elif len(self.registered()) < 3:
            self._register(kind)

    def _register(self, kind: int) -> None:
        worker_id = uuid.UUID(int=len(self.crew) + 1)
        self.crew.append((worker_id, kind))
        self.do(self.verbs.register, worker_id, kind)

    @precondition(somebody_is_able)
    @rule(worker=which)
    def claim(self, worker: int) -> None:
        self._claim(_pick(worker, self.able(), NOBODY), limit=10)

    @precondition(somebody_is_able)
    @rule(worker=which, outcomes=st.lists(outcomes, min_size=1, max_size=3))
    def work(self, worker: int, outcomes: list[str]) -> None:
        """Claim, and settle all but the last."""
        before = len(self.verbs.claims)
        self._claim(_pick(worker, self.able(), NOBODY), limit=len(outcomes) + 1)
        batch = [
            self.verbs.decide(claim, OUTCOMES[outcome])
            for claim, outcome in zip(self.verbs.claims[before:], outcomes, strict=False)
        ]
        self.do(self.verbs.settle, batch)

    @precondition(lambda self: bool(self.crew))
    @rule(
        worker=which,
        limit=st.integers(1, 4),
        queue_slots=queue_slots,
        at_once=st.sampled_from([None, None, 2, 1, 0]),
    )
    def claim_some(
        self, worker: int, limit: int, queue_slots: list[QueueSlots] | None, at_once: int | None
    ) -> None:
        self._claim(self.a_worker(worker), limit=limit, queue_slots=queue_slots, at_once=at_once)

    def _claim(
        self,
        worker: tuple[UUID, int],
        *,
        limit: int,
        queue_slots: list[QueueSlots] | None = None,
        at_once: int | None = None,
    ) -> None:
        worker_id, kind = worker
        if self.any_is(PARKED):  # while it was taken for dead: it brings back what it knows
            self.do(self.verbs.unpark, CREW[kind])
        self.do(
            self.verbs.claim,
            worker_id,
            CREW[kind],
            limit=limit,
            queue_slots=queue_slots,
            at_once=at_once,
        )

    @precondition(lambda self: self.any_is("running"))
    @rule(which=which, outcome=outcomes, knowing=st.booleans())
    def settle(self, which: int, outcome: str, knowing: bool) -> None:
        found = self.a_settlement(which, outcome, knowing=knowing)
        self.do(self.verbs.settle, [] if found is None else [found])

    @precondition(lambda self: self.any_is("running"))
    @rule(batch=st.lists(st.tuples(which, outcomes), min_size=2, max_size=4))
    def settle_many(self, batch: list[tuple[int, str]]) -> None:
        found = [self.a_settlement(index, outcome, knowing=True) for index, outcome in batch]
        decided = [one for one in found if one is not None]
        by_fence = {one.fence: one for one in decided}
        # Whoever is there twice says the same.
        self.do(self.verbs.settle, [by_fence[one.fence] for one in decided])

    @precondition(lambda self: self.any_is("ready", "scheduled", "running"))
    @rule(which=which, outcome=outcomes, epochs=st.sampled_from([-1, 1]))
    def settle_by_a_wrong_fence(self, which: int, outcome: str, epochs: int) -> None:
        """As if a claim were held that has been, or will be; or of a task that is gone."""
        number = self.a_task(which)
        task = self.picture.tasks.get(number)
        epoch = epochs + (task.position.epoch if task else 0)
        claim = Claim(
            fence=Fence(number, epoch),
            attempt=1,
            lost=0,
            task_type=TYPES[0],
            queue=QUEUES[0],
            params="{}",
            on_complete=True,
        )
        self.do(self.verbs.settle, [self.verbs.decide(claim, OUTCOMES[outcome])])

    @precondition(lambda self: self.any_is("running"))
    @rule(worker=which, kept=st.lists(which, max_size=2))
    def give_back(self, worker: int, kept: list[int]) -> None:
        claims = [claim for index in kept if (claim := self.a_claim(index)) is not None]
        fences = {claim.fence for claim in claims}
        self.do(self.verbs.give_back_all_but, self.a_worker(worker)[0], fences)

    # -- what the maintenance does, and time -------------------------------------------------

    @rule(duty=st.sampled_from(["promote", "prune", "park", "unpark"]))
    def maintenance(self, duty: str) -> None:
        if duty == "unpark":
            types = expect.known(self.picture, self.world.clock.now())
            self.do(self.verbs.unpark, sorted(types))
        else:
            self.do(getattr(self.verbs, duty))

    @precondition(lambda self: bool(self.picture.tasks))
    @rule(what=questions, which=st.lists(which, min_size=1, max_size=3), listing=listings)
    def ask(self, what: str, which: list[int], listing: TaskFilter) -> None:
        after = None if listing.after is None else self.a_task(listing.after)
        numbers = [self.a_task(index) for index in which]
        self.do(self.verbs.ask, what, numbers, attrs.evolve(listing, after=after))

    @precondition(lambda self: self.any_is("running"))
    @rule(max_lost=st.sampled_from([3, 2, 1]))
    def sweep(self, max_lost: int) -> None:
        self.do(self.verbs.sweep, max_lost=max_lost)

    @rule(
        seconds=st.sampled_from([1.0, 4.0, 16.0, 90_000.0]),
        duty=st.sampled_from(["promote", "promote", "prune", None]),
    )
    def time_passes(self, seconds: float, duty: str | None) -> None:
        """Some time goes by, through which all workers live."""
        self.world.clock.advance(seconds)
        self.do(self.verbs.heartbeat, *self.registered_ids(), draining=False)
        if duty is not None:
            self.do(getattr(self.verbs, duty))

    @precondition(lambda self: bool(self.picture.workers))
    @rule(
        worker=which,
        seconds=st.sampled_from([30.25, 30.25, 30.0, 16.0]),
        max_lost=st.sampled_from([3, 2, 1, None]),
    )
    def a_worker_falls_silent(self, worker: int, seconds: float, max_lost: int | None) -> None:
        """It has crashed, or is frozen: its lease may run out, and then others may sweep."""
        busy = [one for one in self.registered() if expect.held(self.picture, one[0])]
        silent = _pick(worker, [*self.registered(), *busy, *busy], NOBODY)
        self.world.clock.advance(seconds)
        others = [one for one in self.registered_ids() if one != silent[0]]
        self.do(self.verbs.heartbeat, *others, draining=False)
        if max_lost is not None:
            self.do(self.verbs.sweep, max_lost=max_lost)


def _pick(index: int, choice: Sequence[T], otherwise: T) -> T:
    """Return one of *choice*, counted from the end, where the newest are."""
    return choice[-1 - index % len(choice)] if choice else otherwise
