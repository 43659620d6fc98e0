"""Writes outcomes in batches, and lets go of the claims."""

from __future__ import annotations

import logging
import math
import random

from collections.abc import Callable, Iterable, Sequence

import attrs
import trio

from nursery_queue._core._error_text import error_record
from nursery_queue._core._model import Claim, ErrorRecord, Fence, Refusal, Settlement
from nursery_queue._core._outcome import AttemptOutcome, Failed, Policy, settle
from nursery_queue._core._retry import Backoff
from nursery_queue._core._states import Event
from nursery_queue._runtime._supervisor import insist
from nursery_queue._runtime._wakeup import Wakeup
from nursery_queue._store import Store


log = logging.getLogger("nursery_queue")

BATCH = 500  # settlements in one statement
LOCKED_WAIT = 0.1  # seconds before trying a row again that somebody's transaction holds


@attrs.frozen(eq=False, kw_only=True)
class Entry:
    """What became of a claim, with all that is needed to decide again."""

    claim: Claim
    outcome: AttemptOutcome
    policy: Policy
    cancel_requested: bool = False


@attrs.define(eq=False, kw_only=True)
class Settler:
    """Takes all that has ended and writes it in one statement; meanwhile the next gathers.

    *settled* is called with the fences that need no longer be held, *requeued* when some of
    them may be claimed again.
    """

    store: Store
    rng: random.Random
    backoff: Backoff
    settled: Callable[[Iterable[Fence]], None]
    requeued: Callable[[], None]
    _entries: list[Entry] = attrs.field(factory=list[Entry], init=False)
    _bell: Wakeup = attrs.field(factory=Wakeup, init=False)
    _locked: list[Entry] = attrs.field(factory=list[Entry], init=False)
    _closing: bool = attrs.field(default=False, init=False)

    def put(self, entry: Entry) -> None:
        """Hand in an outcome. Neither blocks nor can be cancelled."""
        self._entries.append(entry)
        self._bell.ring()

    def close(self) -> None:
        """No more will come: `run` returns once everything is written."""
        self._closing = True
        self._bell.ring()

    async def run(self) -> None:
        """Write what is handed in, until closed and empty. Bound it with a cancel scope."""
        while True:
            with trio.move_on_after(LOCKED_WAIT if self._locked else math.inf):
                await self._bell.wait()
            # However long somebody's transaction lasts, only its own tasks wait for it.
            self._entries, self._locked = self._locked + self._entries, []
            while self._entries:
                batch, self._entries = self._entries[:BATCH], self._entries[BATCH:]
                await self._write(batch)
            if self._closing and not self._locked:
                return

    async def _write(self, batch: Sequence[Entry]) -> None:
        """Settle a batch; keep what has to be tried again."""
        settlements = [self.decide(entry) for entry in batch]
        try:
            refused = await insist(
                lambda: self.store.settle(settlements),
                what=f"settling {len(batch)} tasks",
                backoff=self.backoff,
                rng=self.rng,
            )
        except Exception as exc:  # noqa: BLE001  # one bad row must not keep the others waiting
            await self._write_each(batch, exc)
            return
        done: list[Fence] = []
        for entry, settlement in zip(batch, settlements, strict=True):
            match refused.get(entry.claim.fence):
                case None:
                    _tell(entry.claim, settlement)
                    done.append(entry.claim.fence)
                case Refusal.STALE:
                    log.warning("lost the claim on %s; its outcome is dropped", _name(entry.claim))
                    done.append(entry.claim.fence)
                case Refusal.CANCEL_REQUESTED:
                    self._entries.append(attrs.evolve(entry, cancel_requested=True))
                case Refusal.LOCKED:
                    self._locked.append(entry)
        self.settled(done)
        if not all(settlement.state.is_final for settlement in settlements):
            self.requeued()

    async def _write_each(self, batch: Sequence[Entry], exc: Exception) -> None:
        """Settle one by one; what cannot be stored at all fails its task, with the reason."""
        if len(batch) > 1:
            log.error("a batch of settlements was refused; settling one by one", exc_info=exc)
            for each in batch:
                await self._write([each])
            return
        (entry,) = batch
        if isinstance(entry.outcome, Failed) and entry.outcome.error.type == _UNSTORABLE:
            log.critical("%s cannot be settled; it stays running", _name(entry.claim), exc_info=exc)
            self.settled([entry.claim.fence])
            return
        log.error("the outcome of %s cannot be stored", _name(entry.claim), exc_info=exc)
        reason = ErrorRecord(type=_UNSTORABLE, message=error_record(exc).message)
        self._entries.append(attrs.evolve(entry, outcome=Failed(error=reason, retry=False)))

    def decide(self, entry: Entry) -> Settlement:
        """Decide what an outcome means, without writing it."""
        return settle(
            entry.claim,
            entry.outcome,
            entry.policy,
            rng=self.rng,
            cancel_requested=entry.cancel_requested,
        )


_UNSTORABLE = "OutcomeNotStored"


def _tell(claim: Claim, settlement: Settlement) -> None:
    """Log what went wrong; what went well is in the table."""
    if settlement.error is None:
        return
    error = f"{settlement.error.type}: {settlement.error.message}"
    match settlement.event:
        case Event.FAIL:
            log.error("%s %s, for good: %s", _name(claim), settlement.outcome, error)
        case Event.RETRY:
            delay = settlement.delay
            log.info("%s %s, again in %.3g s: %s", _name(claim), settlement.outcome, delay, error)
        case _:
            log.info("%s %s: %s", _name(claim), settlement.outcome, error)


def _name(claim: Claim) -> str:
    return f"task {claim.fence.task_id} ({claim.task_type}, attempt {claim.attempt})"
