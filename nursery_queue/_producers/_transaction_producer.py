"""Producers on a `Transaction`, which has all the verbs itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVarTuple

import attrs

from nursery_queue._client._transaction import Transaction
from nursery_queue._core._model import TaskRef, TaskStatus
from nursery_queue._declare._task_type import MAX_PARAMS_BYTES, TaskRequest
from nursery_queue._pg._sql import DEFAULT_SCHEMA

from ._producer import AsyncProducer
from ._statement_producer import Planner


Ts = TypeVarTuple("Ts")


def made_for(connection: object, planner: Planner) -> AsyncProducer | None:
    """Return a producer for a `Transaction`."""
    if not isinstance(connection, Transaction):
        return None
    if planner != Planner(DEFAULT_SCHEMA, MAX_PARAMS_BYTES):
        raise TypeError(
            "a Transaction has its client's schema, max_params_bytes and app:"
            " give them to connect()"
        )
    return TransactionProducer(connection)


@attrs.define(eq=False)
class TransactionProducer(AsyncProducer):
    """On a `Transaction`."""

    _tx: Transaction

    async def enqueue_many(self, requests: Sequence[TaskRequest]) -> list[TaskRef]:
        async with self._tx.savepoint():
            return await self._tx.enqueue_many(requests)

    async def cancel(self, task: TaskRef | int, *, running: bool = True) -> bool:
        async with self._tx.savepoint():
            return await self._tx.cancel(task, running=running)

    async def status_many(
        self, tasks: Sequence[TaskRef | int], *, payloads: bool = False
    ) -> list[TaskStatus | None]:
        async with self._tx.savepoint():
            return await self._tx.status_many(tasks, payloads=payloads)

    def after(self, fn: Callable[[*Ts], object], /, *args: *Ts) -> None:
        self._tx.after(fn, *args)
