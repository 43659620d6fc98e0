"""Settles the claims of dead workers, in small transactions; row by row where one is refused."""

from __future__ import annotations

import logging

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any
from uuid import UUID

import attrs
import psycopg

from nursery_queue._core._error_text import refusal_of
from nursery_queue._core._errors import DatabaseRefused
from nursery_queue._core._heartbeat import Seen
from nursery_queue._core._model import ErrorRecord, Held, Settlement
from nursery_queue._core._outcome import settle_lost
from nursery_queue._core._states import Event
from nursery_queue._psycopg._connection import Connection
from nursery_queue._psycopg._database_errors import is_of_the_rows
from nursery_queue._store import TellLost

from . import _rows
from ._postgres_transaction import settle_rows
from ._sql import query


log = logging.getLogger("nursery_queue")

LOOK_AT = 10_000  # running positions in one statement
BATCH = 500  # tasks in one transaction
MOST = 5000  # tasks in one call
# An error that passes with time has become a TransientError by now.
_REFUSED = (psycopg.Error, DatabaseRefused)


Allowed = Callable[[Held], int]  # losses until a task fails
Settled = list[tuple[Held, Settlement]]


@attrs.define(eq=False)
class Walk:
    """A walk through all that runs, in the order of the tasks. It may take several calls.

    *left*: tasks that were not settled; a worker that holds one of them is not forgotten.
    """

    dead: Sequence[UUID]  # when it began
    after: int = _rows.IDS[0]
    left: list[int] = attrs.field(factory=list[int])


@attrs.define(eq=False)
class Sweeper:
    """Settles claims that no live worker holds. Each step is a short transaction of its own.

    A call that is cancelled or fails has settled some, or none; the next one goes on from there.
    A row that the database refuses costs the others nothing: its task fails with the reason, or
    stays where it is if not even that can be stored, and the log says so.
    """

    schema: str
    lent: Callable[[], AbstractAsyncContextManager[Connection]]
    _walk: Walk | None = attrs.field(default=None, init=False)  # not at its end yet
    _trouble: Exception | None = attrs.field(default=None, init=False)

    async def sweep(self, allowed: Allowed, tell: TellLost, seen: Sequence[Seen] | None) -> int:
        """Try up to `MOST` tasks and return how many were settled; *tell* of each loss."""
        self._trouble = None
        swept = tried = 0
        resumed = True
        while resumed and tried < MOST:  # a worker that died since that walk began needs one, too
            resumed = self._walk is not None
            walk = self._walk = self._walk or Walk(await self._declare_dead(seen))
            more, tries = await self._go_on(walk, allowed, tell, MOST - tried)
            swept, tried = swept + more, tried + tries
        if not swept:
            self._raise_trouble()
        return swept

    def _raise_trouble(self) -> None:
        if self._trouble is not None:
            raise self._trouble

    async def _go_on(
        self, walk: Walk, allowed: Allowed, tell: TellLost, most: int
    ) -> tuple[int, int]:
        """Walk to the end, or until *most* have been tried; return how many were settled, tried."""
        swept = tried = 0
        while True:
            upto, ids = await self._look(walk.after)
            while ids:
                batch, ids = ids[:BATCH], ids[BATCH:]
                settled = await self._settle(batch, allowed)
                for held, settlement in settled:
                    if settlement.outcome is not None:  # else it was only held ahead
                        tell(held, settlement)
                done = {held.fence.task_id for held, _ in settled}
                walk.left += [task_id for task_id in batch if task_id not in done]
                walk.after = batch[-1]
                swept, tried = swept + len(settled), tried + len(batch)
                if tried >= most:
                    return swept, tried
            if upto is None:
                await self._forget(walk)
                self._walk = None
                return swept, tried
            walk.after = upto

    async def _declare_dead(self, seen: Sequence[Seen] | None) -> list[UUID]:
        params = {
            "ids": None if seen is None else [one.id for one in seen],
            "heartbeats": None if seen is None else [one.heartbeat_at for one in seen],
            "seconds": None if seen is None else [float(one.seconds) for one in seen],
        }
        return [row[0] for row in await self._ask("declare_dead", params)]

    async def _look(self, after: int) -> tuple[int | None, list[int]]:
        ((upto, ids),) = await self._ask("abandoned", {"after": after, "look_at": LOOK_AT})
        return upto, ids

    async def _forget(self, walk: Walk) -> None:
        if not (walk.dead or walk.left):
            return
        ((left,),) = await self._ask("forget_workers", {"dead": walk.dead, "left": walk.left})
        if left:
            log.warning(
                "%d tasks of dead workers cannot be settled yet (open transactions, or the errors"
                " above) and are tried again: %s",
                len(left),
                ", ".join(map(str, left[:10])),
            )

    async def _ask(self, name: str, params: Mapping[str, Any]) -> list[_rows.Row]:
        async with self.lent() as conn:
            return await conn.fetch(query(name, self.schema), params)

    async def _settle(self, ids: Sequence[int], allowed: Allowed) -> Settled:
        """Settle these at once; if that is refused, in halves, down to the row that is at fault."""
        try:
            return await self._settle_at_once(ids, allowed)
        except _REFUSED as exc:
            if len(ids) == 1:
                return await self._settle_bad_one(ids[0], exc, allowed)
        middle = len(ids) // 2
        first = await self._settle(ids[:middle], allowed)
        return first + await self._settle(ids[middle:], allowed)

    async def _settle_at_once(self, ids: Sequence[int], allowed: Allowed) -> Settled:
        async with self.lent() as conn, conn.transaction():
            held = await self._take(conn, ids)
            settlements = [settle_lost(each, max_lost=allowed(each)) for each in held]
            await settle_rows(conn, self.schema, settlements)
        return list(zip(held, settlements, strict=True))

    async def _settle_bad_one(self, task_id: int, exc: Exception, allowed: Allowed) -> Settled:
        """Let a task fail whose row is refused, unless the refusal is not about the row."""
        if not is_of_the_rows(exc):
            self._trouble = exc
            log.error("task %d of a dead worker cannot be settled: %s", task_id, exc)
            return []
        try:
            async with self.lent() as conn, conn.transaction():
                settled = [
                    (each, _failed(each, exc, allowed))
                    for each in await self._take(conn, [task_id])
                ]
                for each, settlement in settled:
                    assert settlement.error is not None
                    params = {
                        "id": each.fence.task_id,
                        "error_type": settlement.error.type,
                        "error_message": settlement.error.message,
                    }
                    await conn.fetch(query("set_aside", self.schema), params)
        except _REFUSED as worse:
            # Two lines say it all; a traceback of ours would say nothing more.
            log.error("task %d of a dead worker cannot be settled: %s; %s", task_id, exc, worse)  # noqa: TRY400
            return []
        log.error("task %d of a dead worker was set aside as failed: %s", task_id, exc)
        return settled

    async def _take(self, conn: Connection, ids: Sequence[int]) -> list[Held]:
        rows = await conn.fetch_named(query("take_abandoned", self.schema), {"ids": list(ids)})
        return [_rows.held(row) for row in rows]


def _failed(held: Held, exc: Exception, allowed: Allowed) -> Settlement:
    decided = settle_lost(held, max_lost=allowed(held))
    error = ErrorRecord(
        type="worker_lost",
        message=f"worker {held.worker_id} went away, and what became of this task cannot be"
        f" stored: {refusal_of(exc)}",
    )
    return attrs.evolve(decided, event=Event.FAIL, error=error)
