"""What a transaction does, step by step: to the stores, and what is to come of it."""

from __future__ import annotations

import contextlib
import datetime as dt
import json

from collections.abc import Iterator, Sequence
from typing import Any, cast

import attrs

from nursery_queue._core._model import NewTask, Refusal, Settlement, TaskRef
from nursery_queue._store import StoreTransaction
from tests.model import expectations as expect
from tests.model.picture import LIVE, Picture
from tests.model.sides import NOBODY, Side


OWN = -1  # stands for the task that the transaction itself has stored last


class RolledBack(Exception):
    """Ends a transaction, or a savepoint, that is to have no effect."""


class Refused(Exception):
    """A settlement in the transaction should have been refused."""

    def __init__(self, why: Refusal) -> None:
        super().__init__(why)
        self.why = why


@attrs.frozen
class Enqueue:
    tasks: list[NewTask]


@attrs.frozen
class Cancel:
    number: int
    running: bool


@attrs.frozen
class Settle:
    settlement: Settlement


@attrs.frozen
class Savepoint:
    steps: list[Step]
    fails: bool


Step = Enqueue | Cancel | Settle | Savepoint


async def perform(
    side: Side, tx: StoreTransaction, steps: Sequence[Step], answers: list[Any]
) -> None:
    """Do the steps, and note the answers as they come."""
    for step in steps:
        match step:
            case Enqueue():
                answers.append(await tx.enqueue(step.tasks))
            case Cancel():
                task_id = own(answers) if step.number == OWN else side.id(step.number)
                answers.append(await tx.cancel(task_id, running=step.running))
            case Settle():
                await tx.settle(side.settlement(step.settlement))
                answers.append(None)
            case Savepoint():
                with contextlib.suppress(RolledBack):
                    async with tx.savepoint():
                        await perform(side, tx, step.steps, answers)
                        end(commits=not step.fails)


def end(*, commits: bool) -> None:
    """End a block: well, or in the way in which applications undo one."""
    if not commits:
        raise RolledBack


def own(answers: Sequence[Any]) -> int:
    """Return the task that was stored last, or one that nobody knows."""
    stored = [cast("list[TaskRef]", answer) for answer in answers if isinstance(answer, list)]
    refs = [ref for batch in stored for ref in batch]
    return refs[-1].id if refs else NOBODY


@attrs.define
class Effects:
    """What the steps of a transaction have come to so far."""

    picture: Picture
    now: dt.datetime
    keys: dict[str, int]
    to: dict[int, str] = attrs.field(factory=dict[int, str])
    born: dict[int, str] = attrs.field(factory=dict[int, str])
    asked: dict[int, NewTask] = attrs.field(factory=dict[int, NewTask])
    logged: set[int] = attrs.field(factory=set[int])
    used: dict[int, tuple[int, int]] = attrs.field(factory=dict[int, tuple[int, int]])
    due: dict[int, dt.datetime] = attrs.field(factory=dict[int, dt.datetime])
    requested: set[int] = attrs.field(factory=set[int])
    settled: set[int] = attrs.field(factory=set[int])

    def copy(self) -> Effects:
        """Return one that can go its own way."""
        mutable = ("keys", "to", "born", "asked", "logged", "used", "due", "requested", "settled")
        return attrs.evolve(self, **{name: getattr(self, name).copy() for name in mutable})

    def follow(self, steps: Sequence[Step], answers: Iterator[Any], seen: list[Any]) -> Effects:
        """Go through the steps and their answers, up to one that is refused."""
        effects = self
        for step in steps:
            match step:
                case Enqueue():
                    seen.append(next(answers))
                    effects.enqueue(step.tasks, seen[-1])
                case Cancel():
                    number = own(seen) if step.number == OWN else step.number
                    seen.append(next(answers))
                    effects.cancel(number, seen[-1])
                case Settle():
                    if (why := effects.refusal(step.settlement)) is not None:
                        raise Refused(why)
                    seen.append(next(answers))
                    effects.settle(step.settlement)
                case Savepoint():
                    inner = effects.copy().follow(step.steps, answers, seen)
                    effects = effects if step.fails else inner
        return effects

    def come_to(self) -> dict[str, Any]:
        """Return what a `Done` is to say."""
        return {
            "to": self.to,
            "born": self.born,
            "telling": {
                number: task.on_complete and json.loads(task.on_complete)
                for number, task in self.asked.items()
            },
            "logged": frozenset(self.logged),
            "used": self.used,
            "due": self.due,
        }

    def enqueue(self, tasks: Sequence[NewTask], refs: Sequence[TaskRef]) -> None:
        assert len(tasks) == len(refs)
        for task, ref in zip(tasks, refs, strict=True):
            key = task.dedup_key
            assert ref.created == (key is None or key not in self.keys)
            if not ref.created:
                assert ref.id == self.keys[key or ""]
                continue
            self.born[ref.id], self.due[ref.id] = expect.placed(task, self.now)
            self.asked[ref.id] = task
            if key is not None:
                self.keys[key] = ref.id

    def cancel(self, number: int, answer: bool) -> None:
        place = self._place(number)
        assert answer == (place in LIVE)
        if not answer:
            return
        if place == "running":
            self.requested.add(number)
            self.to[number] = "running"
            return
        keep_for = self._keep_for(number)
        self._put(number, expect.ended("cancelled", keep_for))

    def settle(self, settlement: Settlement) -> None:
        number = settlement.fence.task_id
        self._put(number, expect.settled(settlement))
        self.settled.add(number)
        self.used[number] = (settlement.attempt, settlement.lost)
        if settlement.outcome is not None:
            self.logged.add(number)
        if not settlement.state.is_final:
            self.due[number] = self.now + dt.timedelta(seconds=settlement.delay)

    def refusal(self, settlement: Settlement) -> Refusal | None:
        number = settlement.fence.task_id
        if number in self.settled:
            return Refusal.STALE
        why = expect.refusal(self.picture, settlement)
        if why is None and number in self.requested and not settlement.state.is_final:
            return Refusal.CANCEL_REQUESTED
        return why

    def _put(self, number: int, place: str) -> None:
        (self.born if number in self.born else self.to)[number] = place
        if place not in LIVE:
            self.due.pop(number, None)
            self.keys = {key: holder for key, holder in self.keys.items() if holder != number}

    def _place(self, number: int) -> str | None:
        moved = self.to.get(number) or self.born.get(number)
        task = self.picture.tasks.get(number)
        return moved if moved or task is None else task.place

    def _keep_for(self, number: int) -> float | None:
        if number in self.asked:
            return self.asked[number].keep_for
        return self.picture.tasks[number].asked.keep_for
