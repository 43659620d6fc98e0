"""Every verb of the store boundary, done to both stores and held to what it has to do."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import datetime as dt
import json
import random

from collections.abc import Mapping, Sequence
from typing import Any, Unpack
from uuid import UUID

import attrs

from nursery_queue._core._errors import StaleClaim, TransientError
from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._heartbeat import Beat
from nursery_queue._core._model import (
    Claim,
    Claimed,
    Fence,
    Held,
    NewTask,
    QueueSlots,
    Refusal,
    Settlement,
    WorkerInfo,
)
from nursery_queue._core._outcome import KEEP_FOR, AttemptOutcome, Policy, settle
from nursery_queue._core._queue_changes import QueueChanges
from nursery_queue._core._retry import RetryPolicy
from nursery_queue._core._states import Event
from nursery_queue.testing import VirtualTime
from tests.model import expectations as expect, transactions as tx
from tests.model.ledger import GONE, Done, Ledger
from tests.model.picture import PARKED, Picture, of_memory, of_postgres
from tests.model.pools import Pool
from tests.model.questions import ask
from tests.model.sides import Side, Sides
from tests.model.wishes import CREW, Wish


LEASE = 30.0
POLICY = RetryPolicy(max_attempts=2, initial=4, factor=2, jitter=0)


@attrs.define(eq=False)
class Verbs:
    """What can be done; each method is one step."""

    sides: Sides
    clock: VirtualTime
    ledger: Ledger = attrs.field(factory=Ledger)
    claims: list[Claim] = attrs.field(factory=list[Claim])  # every one there ever was
    ticked: set[dt.datetime] = attrs.field(factory=set[dt.datetime])  # that have had their task

    @property
    def picture(self) -> Picture:
        return self.ledger.picture

    async def done(self, verb: str, **what: Any) -> None:
        """End a step: both stores must know the same, and all rules be kept."""
        found = await of_postgres(self.sides.postgres)
        if self.sides.memory is not None:
            expected, alike = of_memory(self.sides.memory), _unparked(found)
            if expected != alike:
                lines = ["the stores disagree; memory, postgres:", *expected.differences(alike)]
                raise AssertionError("\n  ".join(lines))
        self.ledger.check(Done(verb=verb, **what), found, self.clock.now())

    # -- what applications do ------------------------------------------------------------

    async def enqueue(self, wishes: Sequence[Wish]) -> None:
        tasks = [self.new(wish) for wish in wishes]
        copy = len(tasks) > 1 and not any(task.dedup_key for task in tasks)
        refs = await self.sides.both(lambda side: side.store.enqueue(tasks, copy=copy))
        effects = tx.Effects(self.picture, self.clock.now(), dict(self.picture.keys))
        effects.enqueue(tasks, refs)
        await self.done("enqueue", **effects.come_to())

    async def debounce(self, task: NewTask) -> None:
        """Replace the task that has the key, if it has not started; else store a new one."""
        assert task.dedup_key is not None
        assert task.debounce is not None
        (ref,) = await self.sides.both(lambda side: side.store.enqueue([task]))
        holder = self.picture.keys.get(task.dedup_key)
        waiting = None if holder is None else self.picture.tasks[holder]
        if waiting is not None and not expect.replaceable(waiting):
            waiting = None
        due = {ref.id: expect.debounced(waiting, task.debounce, self.clock.now())}
        assert (ref.created, ref.id == holder) == (waiting is None, waiting is not None)
        if waiting is not None:
            what: dict[str, Any] = {"to": {ref.id: "scheduled"}, "replaced": {ref.id: task}}
        else:
            told = task.on_complete and json.loads(task.on_complete)
            what = {"born": {ref.id: "scheduled"}, "telling": {ref.id: told}}
            what["overtaken"] = frozenset({holder} - {None})
        await self.done("debounce", due=due, **what)

    def new(self, wish: Wish) -> NewTask:
        if wish.at is None:
            return wish.task
        return attrs.evolve(wish.task, run_at=self.clock.now() + dt.timedelta(seconds=wish.at))

    async def cancel(self, number: int, *, running: bool) -> None:
        done = await self.sides.both(
            lambda side: side.store.cancel(side.id(number), running=running)
        )
        task = self.picture.tasks.get(number)
        assert done == (task is not None and task.live)
        await self.done("cancel", to={number: expect.cancelled(task)} if done and task else {})

    async def cancel_some(self, which: CancelFilter, first: int, last: int, *, dry: bool) -> None:
        """Walk through the tasks from *first* to *last*."""

        async def walk(side: Side) -> Any:
            after, upto = side.id(first) - 1, side.id(last)
            return await side.store.cancel_some(which, after=after, upto=upto, dry_run=dry)

        async def cancel_some(side: Side) -> Any:
            looked_at, count = await walk(side)
            return looked_at and side.number(looked_at), count

        looked_at, count = await self.sides.both(cancel_some)
        walked = self._walked(first, last)
        assert looked_at == (walked[-1] if walked else None)
        fitting = {
            number: expect.cancelled(task)
            for number in walked
            if (task := self.picture.tasks[number]).live and expect.fits(task, which)
        }
        assert count == len(fitting)
        await self.done("cancel", to={} if dry else fitting)

    def _walked(self, first: int, last: int) -> list[int]:
        """Return the tasks from *first* to *last*, in the order of their ids."""
        side = self.sides.postgres
        ids = sorted((side.id(number), number) for number in self.picture.tasks)
        return [number for task_id, number in ids if side.id(first) <= task_id <= side.id(last)]

    async def retry(self, number: int) -> None:
        done = await self.sides.both(lambda side: side.store.retry(side.id(number)))
        task = self.picture.tasks.get(number)
        assert done == (
            task is not None
            and task.place in {"failed", "cancelled"}
            and task.asked.dedup_key not in self.picture.keys
        )
        moved = {"to": {number: "ready"}, "due": {number: self.clock.now()}} if done else {}
        await self.done("retry", **moved)

    async def set_queue(self, queue: str, **changes: Unpack[QueueChanges]) -> None:
        before, wanted = self.picture.pools.get(queue, Pool()), dict[str, Any](changes)
        await self.sides.both(lambda side: side.store.configure(queue, **changes))
        await self.done("set_queue")
        assert self.picture.pools[queue] == attrs.evolve(before, **wanted)

    async def ask(self, what: str, numbers: Sequence[int], which: TaskFilter) -> None:
        """Ask something; it changes nothing."""
        await ask(self.sides, self.picture, what, numbers, which)
        await self.done("ask")

    async def transaction(self, steps: Sequence[tx.Step], *, commits: bool) -> None:
        """Do several things in one transaction, which may be rolled back."""

        async def perform(side: Side) -> Any:
            answers: list[Any] = []
            try:
                async with side.store.transaction() as transaction:
                    await tx.perform(side, transaction, steps, answers)
                    tx.end(commits=commits)
            except (tx.RolledBack, StaleClaim, TransientError) as exc:
                return answers, type(exc).__name__
            return answers, None

        answers, raised = await self.sides.both(perform)
        effects = tx.Effects(self.picture, self.clock.now(), dict(self.picture.keys))
        try:
            effects = effects.follow(steps, iter(answers), [])
            expected = None if commits else "RolledBack"
        except tx.Refused as exc:
            expected = "StaleClaim" if exc.why is Refusal.STALE else "TransientError"
        assert raised == expected
        await self.done("transaction", **(effects.come_to() if raised is None else {}))

    # -- what workers do -----------------------------------------------------------------

    async def register(self, worker_id: UUID, kind: int) -> None:
        """Begin work; whoever does so brings back what it knows."""
        info = WorkerInfo(
            id=worker_id, name="w", host="h", pid=1, task_types=list(CREW[kind]), lease=LEASE
        )
        await self.sides.both(lambda side: side.store.register(info))
        await self.done("register")
        if any(task.place == PARKED for task in self.picture.tasks.values()):
            await self.unpark(CREW[kind])

    async def heartbeat(self, *worker_ids: UUID, draining: bool) -> None:
        picture = self.picture
        for worker_id in worker_ids:

            async def heartbeat(side: Side, who: UUID = worker_id) -> Beat:
                return await side.store.heartbeat(who, draining=draining)

            beat = await self.sides.both(heartbeat)
            assert beat.registered == (worker_id in picture.workers)
            held = expect.held(picture, worker_id).items() if beat.registered else ()
            asked = [
                (number, task.position.cancel_interrupts)
                for number, task in held
                if task.position.cancel_requested
            ]
            told = [(one.fence.task_id, one.interrupt) for one in beat.cancel_requests]
            assert told == sorted(asked)
        await self.done("heartbeat")

    async def deregister(self, worker_id: UUID) -> None:
        await self.sides.both(lambda side: side.store.deregister(worker_id))
        await self.done("deregister")
        assert worker_id not in self.picture.workers

    async def claim(
        self,
        worker_id: UUID,
        task_types: Sequence[str],
        *,
        limit: int,
        queue_slots: Sequence[QueueSlots] | None,
        at_once: int | None,
    ) -> None:
        known = worker_id in self.picture.workers
        limits_keys = any(
            pool.max_running_per_key is not None for pool in self.picture.pools.values()
        )

        async def claim(side: Side) -> Claimed:
            found = await side.store.claim(
                worker_id, task_types, limit=limit, queue_slots=queue_slots, at_once=at_once
            )
            assert not found.contended, "nobody else is there"
            # In memory unknown types are not in the way; an unknown worker is not told the rest.
            # Of a key that is full PostgreSQL does not find out whether it has any more.
            held_back = known and not limits_keys and found.held_back
            return attrs.evolve(found, unknown_types=False, held_back=held_back)

        claims: list[Claim] = (await self.sides.both(claim)).claims
        assert known or not claims
        expect.check_claims(self.picture, claims, task_types, limit)
        self._check_order(claims)
        self.claims += claims
        await self.done("claim", to={one.fence.task_id: "running" for one in claims})
        noted = [self.picture.tasks[one.fence.task_id].position.started for one in claims]
        first = len(claims) if at_once is None else min(at_once, len(claims))
        assert noted == [one.started for one in claims]
        assert noted == [True] * first + [False] * (len(claims) - first)

    def _check_order(self, claims: Sequence[Claim]) -> None:
        tasks = [(one, self.picture.tasks[one.fence.task_id]) for one in claims]
        ids = self.sides.postgres.id
        order = [(-task.asked.priority, ids(one.fence.task_id)) for one, task in tasks]
        assert order == sorted(set(order)), f"not the order of the queue: {claims}"

    def decide(self, claim: Claim, outcome: AttemptOutcome) -> Settlement:
        """Decide what an outcome means, as a worker does that knows what it could know."""
        keep_for = KEEP_FOR if claim.keep_for is None else claim.keep_for
        most = claim.max_attempts or POLICY.max_attempts
        retry = attrs.evolve(POLICY, max_attempts=most)
        policy = Policy(retry=retry, timeout=30.0, keep_for=keep_for)
        return settle(claim, outcome, policy, rng=random.Random(0))  # there is no jitter

    def stopped(self, settlement: Settlement) -> Settlement:
        """Decide anew, if the task must not go round again."""
        if expect.refusal(self.picture, settlement) is Refusal.CANCEL_REQUESTED:
            return attrs.evolve(settlement, event=Event.CANCEL, delay=0.0)
        return settlement

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        refused = await self.sides.both(
            lambda side: side.store.settle([side.settlement(each) for each in settlements])
        )
        expected = {each.fence: expect.refusal(self.picture, each) for each in settlements}
        assert refused == {fence: why for fence, why in expected.items() if why is not None}
        accepted = [each for each in settlements if each.fence not in refused]
        await self.done("settle", **self._settled(accepted))

    def _settled(self, accepted: Sequence[Settlement]) -> dict[str, Any]:
        now = self.clock.now()
        return {
            "to": {each.fence.task_id: expect.settled(each) for each in accepted},
            "logged": frozenset(
                each.fence.task_id for each in accepted if each.outcome is not None
            ),
            "used": {each.fence.task_id: (each.attempt, each.lost) for each in accepted},
            "due": {
                each.fence.task_id: now + dt.timedelta(seconds=each.delay)
                for each in accepted
                if not each.state.is_final
            },
        }

    async def give_back_all_but(self, worker_id: UUID, kept: set[Fence]) -> None:
        held = expect.held(self.picture, worker_id)
        strays = {
            number: task
            for number, task in held.items()
            if Fence(number, task.position.epoch) not in kept
        }
        moved = await self.sides.both(
            lambda side: side.store.give_back_all_but(
                worker_id, {side.fence(fence) for fence in kept}
            )
        )
        assert moved == len(strays)
        to = {
            number: expect.ended("cancelled", task.asked.keep_for)
            if task.position.cancel_requested
            else "ready"
            for number, task in strays.items()
        }
        used = {number: expect.given_back(task, lost=0) for number, task in strays.items()}
        await self.done("give_back", to=to, used=used, due=self._from_now(to))

    # -- what the maintenance does -----------------------------------------------------------

    async def promote(self) -> None:
        due = expect.due(self.picture, self.clock.now())
        assert await self.sides.both(lambda side: side.store.promote()) == len(due)
        await self.done("promote", to=dict.fromkeys(due, "ready"))

    async def sweep(self, *, max_lost: int) -> None:
        abandoned = expect.abandoned(self.picture, self.clock.now())

        async def sweep(side: Side) -> Any:
            told: list[tuple[Held, Settlement]] = []
            swept = await side.store.sweep(
                max_lost=max_lost, tell=lambda held, settlement: told.append((held, settlement))
            )
            told.sort(key=lambda each: each[0].fence.task_id)
            return swept, told

        swept, told = await self.sides.both(sweep)
        begun = {number for number, task in abandoned.items() if task.position.started}
        assert (swept, len(told)) == (len(abandoned), len(begun))
        to = {number: expect.lost(task, max_lost) for number, task in abandoned.items()}
        used = {
            number: expect.given_back(task, lost=int(number in begun))
            for number, task in abandoned.items()
        }
        await self.done("sweep", to=to, logged=frozenset(begun), used=used, due=self._from_now(to))
        for number, task in self.picture.tasks.items():
            if number in abandoned and task.place == "ready":
                was = abandoned[number].position
                assert task.position.suspect == (was.suspect or not was.started)

    async def prune(self) -> None:
        old = expect.expired(self.picture, self.clock.now())
        assert await self.sides.both(lambda side: side.store.prune()) == len(old)
        await self.done("prune", to=dict.fromkeys(old, GONE))

    async def park(self) -> None:
        """Put aside what nobody knows; in memory nothing has to be."""
        known = expect.known(self.picture, self.clock.now())
        strange = [
            number
            for number, task in self.picture.tasks.items()
            if task.place == "ready" and task.asked.task_type not in known
        ]
        if self.sides.memory is not None:
            assert await self.sides.memory.store.park() == 0
        assert await self.sides.postgres.store.park() == len(strange)
        await self.done("park", to=dict.fromkeys(strange, PARKED))

    async def unpark(self, task_types: Sequence[str]) -> None:
        known = [
            number
            for number, task in self.picture.tasks.items()
            if task.place == PARKED and task.asked.task_type in task_types
        ]
        if self.sides.memory is not None:
            assert await self.sides.memory.store.unpark(task_types) == 0
        assert await self.sides.postgres.store.unpark(task_types) == len(known)
        await self.done("unpark", to=dict.fromkeys(known, "ready"))

    def _from_now(self, to: Mapping[int, str]) -> dict[int, dt.datetime]:
        return {number: self.clock.now() for number, place in to.items() if place == "ready"}


def _unparked(picture: Picture) -> Picture:
    """Return a picture as it would be if nothing had to be put aside."""
    if not any(task.place == PARKED for task in picture.tasks.values()):
        return picture
    tasks = {
        number: attrs.evolve(task, position=attrs.evolve(task.position, place="ready"))
        if task.place == PARKED
        else task
        for number, task in picture.tasks.items()
    }
    return attrs.evolve(picture, tasks=tasks)
