"""A transaction of `MemoryStore`: steps that are kept until its block ends."""

from __future__ import annotations

import contextlib
import copy

from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, NoReturn

import attrs
import trio

from nursery_queue._core._errors import TransientError
from nursery_queue._core._model import NewTask, Refusal, Settlement, TaskRef, TaskStatus
from nursery_queue._core._outcome import insist_on_settling
from nursery_queue._core._states import State
from nursery_queue._core._streams import StreamWrite, insist_on

from ._memory_rows import check_settlement, check_task
from ._tables import Tables


Step = Callable[[Tables], object]


@attrs.define(eq=False)
class Draft:
    """The steps of an open transaction so far."""

    steps: list[Step] = attrs.field(factory=list[Step])
    settlements: dict[int, Settlement] = attrs.field(factory=dict[int, Settlement])
    keys: dict[str, int] = attrs.field(factory=dict[str, int])  # of its own new tasks
    moved: set[int] = attrs.field(factory=set[int])  # tasks that have lost their key to these
    replaced: set[int] = attrs.field(factory=set[int])  # by a debounced one; not to start
    waiting: dict[int, NewTask] = attrs.field(factory=dict[int, NewTask])  # its own new tasks
    ended: set[int] = attrs.field(factory=set[int])
    stopped: set[int] = attrs.field(factory=set[int])  # running, and not to go round again
    written: set[int] = attrs.field(factory=set[int])  # with new chunks in a stream

    def copy(self) -> Draft:
        return Draft(*map(copy.copy, attrs.astuple(self, recurse=False)))


@attrs.define(eq=False)
class MemoryTransaction:
    """Steps kept until the block ends, then applied in one go."""

    _tables: Tables
    _draft: Draft = attrs.field(factory=Draft, init=False)
    rings: bool = attrs.field(default=False, init=False)  # the commit rings

    @property
    def connection(self) -> NoReturn:
        """There is none."""
        raise TypeError("a MemoryStore has no database connection: use PostgreSQL for your own SQL")

    async def execute(self, query: Any, params: Any = None) -> NoReturn:
        """There is no SQL."""
        del params
        await trio.lowlevel.checkpoint()
        raise TypeError(f"a MemoryStore runs no SQL: use PostgreSQL for {query!r}")

    async def enqueue(self, tasks: Sequence[NewTask], *, copy: bool = False) -> list[TaskRef]:
        del copy  # it is stored in one way here
        await trio.lowlevel.checkpoint()
        tasks = [self._tables.as_declared(task) for task in tasks]
        for task in tasks:
            check_task(task)
        return [self._enqueue(task) for task in tasks]

    def _enqueue(self, task: NewTask) -> TaskRef:
        draft, key = self._draft, task.dedup_key
        now = self._tables.now()
        existing = None if key is None else self._holder(key)
        if existing is not None and task.debounce is None:
            return TaskRef(existing, created=False)
        if existing is not None and self._waits(existing):
            draft.replaced.add(existing)
            self.rings = True
            draft.steps.append(lambda tables: tables.insert(task, now=now))
            return TaskRef(existing, created=False)
        if existing is not None:
            draft.moved.add(existing)
        task_id = next(self._tables.ids)
        if key is not None:
            draft.keys[key] = task_id
        draft.waiting[task_id] = task
        self.rings = self.rings or self._tables.rings(task)
        draft.steps.append(lambda tables: tables.insert(task, task_id, now))
        return TaskRef(task_id)

    def _holder(self, key: str) -> int | None:
        """Return the task that has a dedup key in this transaction, if it is taken."""
        draft = self._draft
        if (mine := draft.keys.get(key)) is not None:
            kept = draft.waiting[mine].dedup_for is not None
            return mine if kept or mine not in draft.ended else None
        existing = self._tables.holder(key)
        return None if existing in draft.ended and not self._tables.is_kept(key) else existing

    def _waits(self, task_id: int) -> bool:
        """Whether a task has not started, nor ended, in this transaction."""
        own = task_id in self._draft.waiting
        return task_id not in self._draft.ended and (own or not self._tables.has_started(task_id))

    async def cancel(self, task_id: int, *, running: bool = True) -> bool:
        await trio.lowlevel.checkpoint()
        draft, place = self._draft, self._tables.places.get(task_id)
        waiting = task_id in draft.waiting if place is None else not place.state.is_final
        if not waiting or task_id in draft.ended:
            return False
        self.rings, teller = True, None
        held = place is not None and place.state is State.RUNNING
        if held and task_id not in draft.settlements:
            draft.stopped.add(task_id)
        else:
            draft.ended.add(task_id)
            teller = self._teller(task_id)
        draft.steps.append(lambda tables: tables.cancel(task_id, running=running, teller=teller))
        return True

    async def status_many(
        self, task_ids: Sequence[int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        await trio.lowlevel.checkpoint()
        tables = self._tried()
        return [tables.status(task_id, payloads=payloads) for task_id in task_ids]

    async def settle(self, settlement: Settlement) -> None:
        await trio.lowlevel.checkpoint()
        check_settlement(settlement)
        draft, task_id = self._draft, settlement.fence.task_id
        insist_on_settling(settlement, Refusal.STALE if task_id in draft.settlements else None)
        insist_on_settling(settlement, self._tables.refusal(settlement))
        if task_id in draft.stopped and not settlement.state.is_final:
            insist_on_settling(settlement, Refusal.CANCEL_REQUESTED)
        draft.settlements[task_id] = settlement
        self.rings, teller = True, None
        if settlement.state.is_final:
            draft.ended.add(task_id)
            teller = self._teller(task_id) if settlement.on_complete else None
        draft.steps.append(lambda tables: tables.apply(settlement, teller))

    async def write_stream(self, write: StreamWrite) -> None:
        await trio.lowlevel.checkpoint()

        def step(tables: Tables) -> None:
            insist_on(tables.write_stream(write), write)

        step(self._tried())
        self._draft.steps.append(step)
        self._draft.written.add(write.fence.task_id)

    @property
    def written(self) -> set[int]:
        """The tasks with new chunks in a stream."""
        return self._draft.written

    def _tried(self) -> Tables:
        """Return the tables as they would be if the block ended now."""
        tables = self._tables.copy()
        for step in self._draft.steps:
            step(tables)
        return tables

    def _teller(self, task_id: int) -> int | None:
        """Return the id of the task that will tell how this one has ended, if one will.

        Ids are in the order in which things were done, not that of the commit.
        """
        mine = self._draft.waiting.get(task_id)
        asked = self._tables.tasks[task_id].asked if mine is None else mine
        return None if asked.on_complete is None else next(self._tables.ids)

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[None]:
        kept = self._draft.copy()
        try:
            yield
        except BaseException:
            self._draft = kept
            raise

    def commit(self) -> None:
        """Apply everything, or raise and apply nothing."""
        for settlement in self._draft.settlements.values():
            insist_on_settling(settlement, self._tables.refusal(settlement))
        draft, tables = self._draft, self._tables
        for task_id in draft.replaced - draft.waiting.keys():
            if tables.has_started(task_id):
                raise TransientError(f"task {task_id} has started while the transaction was open")
        for key in draft.keys:
            if tables.holder(key) not in {None, *draft.ended, *draft.moved}:
                raise TransientError(f"dedup key {key!r} was taken while the transaction was open")
        if self._draft.written:
            self._tried()  # raises if a claim is stale or a stream has been closed
        for step in self._draft.steps:
            step(self._tables)
