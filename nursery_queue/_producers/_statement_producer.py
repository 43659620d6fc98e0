"""Producers that send statements; how one is sent, subclasses say."""

from __future__ import annotations

import abc

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString, TypeVar

import attrs

from nursery_queue._client._enqueuer import new_tasks, task_id
from nursery_queue._core._model import TaskRef, TaskStatus
from nursery_queue._declare._app import App
from nursery_queue._declare._task_type import TaskRequest
from nursery_queue._pg import _plan
from nursery_queue._pg._plan import Plan
from nursery_queue._pg._rows import Row

from ._producer import AsyncProducer, Producer


T = TypeVar("T")
TaskIds = Sequence[TaskRef | int]


@attrs.frozen
class Planner:
    """Makes plans, which are statements and how to read their rows, for users' connections."""

    schema: str
    max_params_bytes: int
    app: App | None = None

    def enqueue(self, requests: Sequence[TaskRequest]) -> Plan[list[TaskRef]]:
        tasks = new_tasks(requests, self.max_params_bytes, self.app, copy=False)
        return _plan.for_any_connection(_plan.enqueue(self.schema, tasks))

    def cancel(self, task: TaskRef | int, *, running: bool) -> Plan[bool]:
        return _plan.for_any_connection(_plan.cancel(self.schema, task_id(task), running=running))

    def status(self, tasks: TaskIds, *, payloads: bool) -> Plan[list[TaskStatus | None]]:
        ids = [task_id(task) for task in tasks]
        return _plan.for_any_connection(_plan.status(self.schema, ids, payloads=payloads))


@attrs.define(eq=False)
class StatementProducer(Producer):
    """Does by statements all that a producer does; a subclass says how to run one."""

    _planner: Planner

    def enqueue_many(self, requests: Sequence[TaskRequest]) -> list[TaskRef]:
        return self._carry_out(self._planner.enqueue(requests))

    def cancel(self, task: TaskRef | int, *, running: bool = True) -> bool:
        return self._carry_out(self._planner.cancel(task, running=running))

    def status_many(self, tasks: TaskIds, *, payloads: bool = False) -> list[TaskStatus | None]:
        return self._carry_out(self._planner.status(tasks, payloads=payloads))

    def _carry_out(self, plan: Plan[T]) -> T:
        if plan.statement is None:
            return plan.read([])
        return plan.read(self._fetch(plan.statement, plan.params, writes=plan.writes))

    @abc.abstractmethod
    def _fetch(
        self, statement: LiteralString, params: Mapping[str, Any], *, writes: bool
    ) -> Sequence[Row]:
        """Run *statement*; if it fails, the transaction is as it was before.

        Raises `CommitOutcomeUnknown` if it *writes*, commits by itself, and its answer is lost.
        """


@attrs.define(eq=False)
class AsyncStatementProducer(AsyncProducer):
    """Does by statements all that a producer does; a subclass says how to run one."""

    _planner: Planner

    async def enqueue_many(self, requests: Sequence[TaskRequest]) -> list[TaskRef]:
        return await self._carry_out(self._planner.enqueue(requests))

    async def cancel(self, task: TaskRef | int, *, running: bool = True) -> bool:
        return await self._carry_out(self._planner.cancel(task, running=running))

    async def status_many(
        self, tasks: TaskIds, *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        return await self._carry_out(self._planner.status(tasks, payloads=payloads))

    async def _carry_out(self, plan: Plan[T]) -> T:
        if plan.statement is None:
            return plan.read([])
        return plan.read(await self._fetch(plan.statement, plan.params, writes=plan.writes))

    @abc.abstractmethod
    async def _fetch(
        self, statement: LiteralString, params: Mapping[str, Any], *, writes: bool
    ) -> Sequence[Row]:
        """Run *statement*; if it fails or is cancelled, the transaction is as it was before.

        Raises `CommitOutcomeUnknown` if it *writes*, commits by itself, and its answer is lost.
        """
