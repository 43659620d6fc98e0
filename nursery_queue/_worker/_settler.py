"""The loop that stores outcomes, in batches while it can."""

from __future__ import annotations

import logging
import math

from collections.abc import Sequence

import attrs
import trio

from nursery_queue._core._error_text import refusal_of
from nursery_queue._core._errors import DatabaseRefused

from ._attempt import Attempt
from ._lost_answers import AWAY, not_stored, verdict_of
from ._outbox import Outbox
from ._outcome_writer import OutcomeWriter
from ._single_settler import SingleSettler


log = logging.getLogger("nursery_queue")

BATCH = 500  # settlements in one statement
PIECES = 16  # into so many goes a batch that was too much for one statement
LOCKED_WAIT = 0.1  # seconds before trying a row again that another transaction holds


@attrs.define(eq=False)
class Settler:
    """Takes all that is in the outbox and writes it in one statement; meanwhile the next gathers.

    Whatever goes wrong in here, the outbox has what is not stored, and `run` can be started again.
    """

    writer: OutcomeWriter
    outbox: Outbox
    single: SingleSettler
    _most: int = attrs.field(default=BATCH, init=False)  # in the next statement
    _careful: int = attrs.field(default=0, init=False)  # so many are to be written in small ones
    _all_written: trio.Event = attrs.field(factory=trio.Event, init=False)

    @property
    def unwritten(self) -> Sequence[Attempt]:
        """What has been handed in and is not known to be stored."""
        return [*self.outbox.locked, *self.single.attempts, *self.outbox.waiting]

    async def all_written(self) -> None:
        """Wait until the outbox is closed and everything stored. Bound it with a cancel scope."""
        await self._all_written.wait()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Write what is handed in until cancelled. Ready means: what there was could be written.

        Raises what keeps outcomes from being stored; they are kept for the next `run`.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.single.run)
            self._try_locked()
            if self.outbox.waiting:
                await self._write()
            task_status.started()
            while True:
                while self.outbox.waiting:
                    await self._write()
                if self.outbox.closed and not (self.outbox.locked or self.single.attempts):
                    self._all_written.set()
                with trio.move_on_after(LOCKED_WAIT if self.outbox.locked else math.inf):
                    await self.outbox.bell.wait()
                self._try_locked()

    def _try_locked(self) -> None:
        # However long such a transaction lasts, only the tasks that it holds wait for it.
        self.outbox.waiting[:0], self.outbox.locked = self.outbox.locked, []

    async def _write(self) -> None:
        """Settle the first in one statement, or one by one if they are refused so."""
        # A slice and not a swap: what is handed in during the statement is appended behind it, and
        # if the statement fails nothing has left the outbox (tests/faults/test_bugs.py).
        batch = self.outbox.waiting[: self._most]
        try:
            await self._write_first(batch)
        except AWAY:
            if len(batch) > 1:  # it may be too much for one statement
                self._most = max(1, len(batch) // PIECES)
                self._careful = max(self._careful, len(batch))
                raise
            if not await self.single.store_is_well():
                raise
            log.warning("%s is settled aside, for that takes long", batch[0].claim)
            self.outbox.waiting.remove(batch[0])
            self.single.put(batch[0])
        except Exception as exc:
            if len(batch) == 1 and isinstance(exc, DatabaseRefused):
                raise
            await self._write_each(len(batch))  # one bad row must not keep the others waiting
        self._careful = max(0, self._careful - len(batch))
        if not self._careful:
            self._most = BATCH

    async def _write_each(self, count: int) -> None:
        waiting = self.outbox.waiting
        trouble: Exception | None = None
        for _ in range(count):
            try:
                await self._write_alone(waiting[0])
            except AWAY:
                raise
            except Exception as exc:  # noqa: BLE001  # raised below, when the others are written
                waiting.append(waiting.pop(0))  # next time, too, the others go first
                trouble = exc
                if isinstance(exc, DatabaseRefused):
                    break
        if trouble is not None:
            raise trouble

    async def _write_alone(self, attempt: Attempt) -> None:
        """Settle one; if that is refused and a plain failure is not, it fails with the reason."""
        try:
            await self._write_first([attempt])
        except (*AWAY, DatabaseRefused):
            raise
        except Exception as exc:  # it may be the outcome that is at fault
            # Raises if not even that can be stored.
            with attempt.judged_otherwise(not_stored(verdict_of(attempt), refusal_of(exc))):
                await self._write_first([attempt])
            log.exception("the outcome of %s cannot be stored", attempt.claim)

    async def _write_first(self, batch: Sequence[Attempt]) -> None:
        """Settle the first in the outbox, which *batch* has to be."""

        def leave() -> None:
            del self.outbox.waiting[: len(batch)]

        await self.writer.write(batch, leave)
