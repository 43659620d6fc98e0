"""Writes outcomes in batches, and lets go of the claims."""

from __future__ import annotations

import logging
import math
import random

from collections.abc import Callable, Collection, Iterable, Sequence

import attrs
import trio

from nursery_queue._core._error_text import error_record
from nursery_queue._core._errors import DatabaseRefused, TransientError
from nursery_queue._core._model import Claim, ErrorRecord, Fence, Refusal, Settlement
from nursery_queue._core._outcome import AttemptOutcome, Failed, settle
from nursery_queue._core._states import Event
from nursery_queue._runtime._patience import answered_within
from nursery_queue._runtime._wakeup import Wakeup
from nursery_queue._store import Store

from ._exit_report import Fate, Ledger
from ._hands import Execution


log = logging.getLogger("nursery_queue")

BATCH = 500  # settlements in one statement
LOCKED_WAIT = 0.1  # seconds before trying a row again that somebody's transaction holds


@attrs.frozen(eq=False, kw_only=True)
class Entry:
    """What became of a claim, with all that is needed to decide again."""

    execution: Execution
    outcome: AttemptOutcome
    cancel_requested: bool = False


@attrs.define(eq=False, kw_only=True)
class Settler:
    """Takes all that has ended and writes it in one statement; meanwhile the next gathers.

    An entry leaves only when its fate is known, so whatever goes wrong in here, nothing is
    lost, and `run` can be started again. *settled* is called with the fences that need no
    longer be held, *stored* with what was written and what of it was refused, *requeued* when
    some of them may be claimed again.
    """

    store: Store
    limit: float  # seconds to wait for an answer
    rng: random.Random
    settled: Callable[[Iterable[Fence]], None]
    stored: Callable[[Sequence[Entry], Sequence[Settlement], Collection[Fence]], None]
    requeued: Callable[[], None]
    ledger: Ledger | None = attrs.field(default=None, init=False)  # once the worker is stopped
    _entries: list[Entry] = attrs.field(factory=list[Entry], init=False)
    _locked: list[Entry] = attrs.field(factory=list[Entry], init=False)
    _most: int = attrs.field(default=BATCH, init=False)  # in the next statement
    _bell: Wakeup = attrs.field(factory=Wakeup, init=False)
    _closing: bool = attrs.field(default=False, init=False)
    _all_written: trio.Event = attrs.field(factory=trio.Event, init=False)

    def put(self, entry: Entry) -> None:
        """Hand in an outcome. Neither blocks nor can be cancelled."""
        self._entries.append(entry)
        self._bell.ring()

    @property
    def unwritten(self) -> Sequence[Entry]:
        """What has been handed in and is not known to be stored."""
        return [*self._locked, *self._entries]

    def close(self) -> None:
        """No more will come."""
        self._closing = True
        self._bell.ring()

    async def all_written(self) -> None:
        """Wait until it is closed and everything is stored. Bound it with a cancel scope."""
        await self._all_written.wait()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Write what is handed in until cancelled. Ready means: what there was could be written.

        Raises what keeps outcomes from being stored; they are kept for the next `run`.
        """
        self._try_locked()
        if self._entries:
            await self._write()
        task_status.started()
        while True:
            while self._entries:
                await self._write()
            if self._closing and not self._locked:
                self._all_written.set()
            with trio.move_on_after(LOCKED_WAIT if self._locked else math.inf):
                await self._bell.wait()
            self._try_locked()

    def _try_locked(self) -> None:
        # However long somebody's transaction lasts, only its own tasks wait for it.
        self._entries[:0], self._locked = self._locked, []

    async def _write(self) -> None:
        """Settle the first entries in one statement, or one by one if they are refused so."""
        batch = self._entries[: self._most]
        try:
            await self._settle(batch)
        except TransientError:
            self._most = max(1, len(batch) // 2)  # it may be too much for one statement
            raise
        except Exception as exc:
            if len(batch) == 1 and isinstance(exc, DatabaseRefused):
                raise
            await self._write_each(len(batch))  # one bad row must not keep the others waiting
        self._most = BATCH

    async def _write_each(self, count: int) -> None:
        trouble: Exception | None = None
        for _ in range(count):
            try:
                await self._write_alone(self._entries[0])
            except TransientError:
                raise
            except Exception as exc:  # noqa: BLE001  # raised below, when the others are written
                self._entries.append(self._entries.pop(0))  # next time, too, the others go first
                trouble = exc
                if isinstance(exc, DatabaseRefused):
                    break
        if trouble is not None:
            raise trouble

    async def _write_alone(self, entry: Entry) -> None:
        """Settle one; if that is refused and a plain failure is not, it fails with the reason."""
        try:
            await self._settle([entry])
        except (TransientError, DatabaseRefused):
            raise
        except Exception as exc:  # it may be the outcome that is at fault
            reason = ErrorRecord(type="OutcomeNotStored", message=error_record(exc).message)
            failed = attrs.evolve(entry, outcome=Failed(error=reason, retry=False))
            await self._settle([failed])  # raises if it is not
            log.exception("the outcome of %s cannot be stored", entry.execution.claim)

    async def _settle(self, batch: Sequence[Entry]) -> None:
        """Settle the first entries, as *batch* has them; keep what has to be tried again."""
        settlements = [self.decide(entry) for entry in batch]
        # So that a call that hangs leaves time for another one.
        with answered_within(self.limit, f"settling {len(batch)} tasks"):
            refused = await self.store.settle(settlements)
        done, again, locked = list[Fence](), list[Entry](), list[Entry]()
        for entry, settlement in zip(batch, settlements, strict=True):
            claim = entry.execution.claim
            match refused.get(claim.fence):
                case None:
                    _tell(claim, settlement)
                    entry.execution.settled(success=settlement.event is Event.SUCCEED)
                    done.append(claim.fence)
                    if self.ledger is not None:
                        self.ledger.stored(settlement)
                case Refusal.STALE:
                    log.warning("lost the claim on %s; its outcome is dropped", claim)
                    entry.execution.settled(success=False)
                    done.append(claim.fence)
                    if self.ledger is not None:
                        self.ledger.failed(claim.fence, Fate.LEASE_LOST)
                case Refusal.CANCEL_REQUESTED:
                    again.append(attrs.evolve(entry, cancel_requested=True))
                case Refusal.LOCKED:
                    locked.append(entry)
        self.settled(done)
        del self._entries[: len(batch)]
        self._entries += again
        self._locked += locked
        self.stored(batch, settlements, refused)
        if not all(settlement.state.is_final for settlement in settlements):
            self.requeued()

    def decide(self, entry: Entry) -> Settlement:
        """Decide what an outcome means, without writing it."""
        return settle(
            entry.execution.claim,
            entry.outcome,
            entry.execution.policy,
            rng=self.rng,
            cancel_requested=entry.cancel_requested,
        )


def _tell(claim: Claim, settlement: Settlement) -> None:
    """Log what went wrong; what went well is in the table."""
    if settlement.error is None:
        return
    error = f"{settlement.error.type}: {settlement.error.message}"
    match settlement.event:
        case Event.FAIL:
            log.error("%s %s, for good: %s", claim, settlement.outcome, error)
        case Event.DEFER:
            delay = settlement.delay
            log.info("%s failed and is given back, again in %.3g s: %s", claim, delay, error)
        case Event.RETRY:
            delay = settlement.delay
            log.info("%s %s, again in %.3g s: %s", claim, settlement.outcome, delay, error)
        case _:
            log.info("%s %s: %s", claim, settlement.outcome, error)
