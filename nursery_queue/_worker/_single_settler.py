"""Outcomes that cannot be stored in time, each by itself, so that no other one waits for them."""

from __future__ import annotations

import logging
import math
import random

from collections.abc import Sequence

import attrs
import trio

from nursery_queue._core._error_text import refusal_of
from nursery_queue._core._errors import DatabaseRefused
from nursery_queue._core._model import Fence, Refusal, Settlement
from nursery_queue._core._retry import Backoff
from nursery_queue._core._states import Event
from nursery_queue._store import WorkerStore
from nursery_queue._trio._timeouts import answered_within
from nursery_queue._trio._wakeup import Wakeup

from ._attempt import Attempt
from ._lost_answers import AWAY, not_stored, verdict_of
from ._outcome_writer import OutcomeWriter


log = logging.getLogger("nursery_queue")

MISFITS = 3  # times that a plain failure would have been taken instead
PROBE = 2.0  # seconds
BACKOFF = Backoff(initial=0.25, maximum=30.0)
_NO_CLAIM = Settlement(
    fence=Fence(0, -1), event=Event.SUCCEED, attempt=0, lost=0, keep_for=0.0, outcome=None
)


@attrs.define(eq=False)
class _Straggler:
    attempt: Attempt
    due: float
    tries: int = 0
    misfits: int = 0


class _RollBackError(Exception):
    """Leaves a transaction that was only a question."""


@attrs.define(eq=False)
class SingleSettler:
    """Tries each of its outcomes alone, ever less often.

    One that fails although the store takes a plain failure in its place, just before and just
    after, is too much for the store: after a few times the failure is stored.
    """

    store: WorkerStore
    rng: random.Random
    writer: OutcomeWriter
    _stragglers: list[_Straggler] = attrs.field(factory=list[_Straggler], init=False)
    _bell: Wakeup = attrs.field(factory=Wakeup, init=False)

    @property
    def attempts(self) -> Sequence[Attempt]:
        """What has not been stored yet."""
        return [each.attempt for each in self._stragglers]

    def put(self, attempt: Attempt) -> None:
        """Take an outcome that has failed alone."""
        self._stragglers.append(_Straggler(attempt, trio.current_time()))
        self._bell.ring()

    async def store_is_well(self) -> bool:
        """Whether the store would settle others now; it is asked to settle a claim of no task."""
        try:
            with answered_within(PROBE, "settling nothing"):
                return await self.store.settle([_NO_CLAIM]) == {_NO_CLAIM.fence: Refusal.STALE}
        except Exception:  # noqa: BLE001  # whatever it is, no single outcome is to blame
            return False

    async def run(self) -> None:
        """Try what is due until cancelled."""
        while True:
            now = trio.current_time()
            for straggler in [each for each in self._stragglers if each.due <= now]:
                await self._try(straggler)
            due = min((each.due for each in self._stragglers), default=math.inf)
            with trio.move_on_at(due):
                await self._bell.wait()

    async def _try(self, straggler: _Straggler) -> None:
        straggler.tries += 1
        attempt = straggler.attempt
        try:
            before = await self._would_fail(attempt)
            try:
                await self.writer.write([attempt], lambda: self._leave(straggler))
            except AWAY as exc:
                if before and await self._would_fail(attempt):
                    straggler.misfits += 1
                if straggler.misfits >= MISFITS:
                    await self._fail(straggler, exc)
        except DatabaseRefused as exc:
            log.info("the outcome of %s waits: %s", attempt.claim, exc)
        except Exception as exc:  # noqa: BLE001  # it may be the outcome that is at fault
            await self._fail(straggler, exc)
        straggler.due = trio.current_time() + BACKOFF.delay(straggler.tries, self.rng)

    async def _would_fail(self, attempt: Attempt) -> bool:
        """Whether a plain failure of this very task would be stored; it is rolled back."""
        verdict = not_stored(verdict_of(attempt), "", telling=False)
        failure = attempt.decide(verdict, self.rng)
        try:
            with answered_within(self.writer.limit, "a settlement to be rolled back"):
                await self._settle_and_roll_back(failure)
        except _RollBackError:
            return True
        except Exception:  # noqa: BLE001  # whatever it is, it would not
            return False
        return False

    async def _settle_and_roll_back(self, settlement: Settlement) -> None:
        async with self.store.transaction() as tx:
            await tx.settle(settlement)
            raise _RollBackError

    async def _fail(self, straggler: _Straggler, error: Exception) -> None:
        """Store a plain failure; if that is too much with what it tells others, without that."""
        attempt, why = straggler.attempt, refusal_of(error)
        untold = f"{why}; nor could the task be stored that was to be told of its end"
        verdict = verdict_of(attempt)
        for failure in (not_stored(verdict, why), not_stored(verdict, untold, telling=False)):
            try:
                with attempt.judged_otherwise(failure):
                    await self.writer.write([attempt], lambda: self._leave(straggler))
            except Exception as exc:  # noqa: BLE001  # it stays, and is tried again
                log.info("no failure of %s can be stored: %s", attempt.claim, exc)
            else:
                log.error("the outcome of %s cannot be stored: %s", attempt.claim, why)
                return

    def _leave(self, straggler: _Straggler) -> None:
        if straggler in self._stragglers:
            self._stragglers.remove(straggler)
        if not self._stragglers:
            self.writer.outbox.bell.ring()
