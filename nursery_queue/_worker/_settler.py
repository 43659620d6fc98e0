"""Writes outcomes in batches, and lets go of the claims."""

from __future__ import annotations

import logging
import math
import random

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import attrs
import trio

from nursery_queue._core._error_text import message_of
from nursery_queue._core._errors import DatabaseRefused
from nursery_queue._core._model import Claim, Fence, Refusal, Settlement
from nursery_queue._core._states import Event
from nursery_queue._store import Store
from nursery_queue._trio._timeouts import answered_within
from nursery_queue._trio._wakeup import Wakeup

from ._entries import AWAY, Entry, look_up, not_stored
from ._unstorable import SingleSettler


log = logging.getLogger("nursery_queue")

BATCH = 500  # settlements in one statement
PIECES = 16  # into so many goes a batch that was too much for one statement
LOCKED_WAIT = 0.1  # seconds before trying a row again that somebody's transaction holds


@attrs.define(eq=False, kw_only=True)
class Settler:
    """Takes all that has ended and writes it in one statement; meanwhile the next gathers.

    An entry leaves only when what became of it is known, so whatever goes wrong in here, nothing is
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
    _entries: list[Entry] = attrs.field(factory=list[Entry], init=False)
    _locked: list[Entry] = attrs.field(factory=list[Entry], init=False)
    _single: SingleSettler = attrs.field(init=False)
    _most: int = attrs.field(default=BATCH, init=False)  # in the next statement
    _careful: int = attrs.field(default=0, init=False)  # so many are to be written in small ones
    _bell: Wakeup = attrs.field(factory=Wakeup, init=False)
    _closing: bool = attrs.field(default=False, init=False)
    _all_written: trio.Event = attrs.field(factory=trio.Event, init=False)

    def __attrs_post_init__(self) -> None:
        self._single = SingleSettler(
            store=self.store,
            limit=self.limit,
            rng=self.rng,
            settle=self._settle_aside,
            decide=self.decide,
            emptied=self._bell.ring,
        )

    def put(self, entry: Entry) -> None:
        """Hand in an outcome. Neither blocks nor can be cancelled."""
        self._entries.append(entry)
        self._bell.ring()

    @property
    def unwritten(self) -> Sequence[Entry]:
        """What has been handed in and is not known to be stored."""
        return [*self._locked, *self._single.entries, *self._entries]

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
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._single.run)
            self._try_locked()
            if self._entries:
                await self._write()
            task_status.started()
            while True:
                while self._entries:
                    await self._write()
                if self._closing and not (self._locked or self._single.entries):
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
            await self._settle_first(batch)
        except AWAY:
            if len(batch) > 1:  # it may be too much for one statement
                self._most = max(1, len(batch) // PIECES)
                self._careful = max(self._careful, len(batch))
                raise
            if not await self._single.store_is_well():
                raise
            log.warning("%s is settled aside, for that takes long", batch[0].execution.claim)
            self._entries.remove(batch[0])
            self._single.put(batch[0])
        except Exception as exc:
            if len(batch) == 1 and isinstance(exc, DatabaseRefused):
                raise
            await self._write_each(len(batch))  # one bad row must not keep the others waiting
        self._careful = max(0, self._careful - len(batch))
        if not self._careful:
            self._most = BATCH

    async def _write_each(self, count: int) -> None:
        trouble: Exception | None = None
        for _ in range(count):
            try:
                await self._write_alone(self._entries[0])
            except AWAY:
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
            await self._settle_first([entry])
        except (*AWAY, DatabaseRefused):
            raise
        except Exception as exc:  # it may be the outcome that is at fault
            # Raises if not even that can be stored.
            await self._settle_first([not_stored(entry, message_of(exc))])
            log.exception("the outcome of %s cannot be stored", entry.execution.claim)

    async def _settle_first(self, batch: Sequence[Entry]) -> None:
        """Settle the first entries, as *batch* has them; keep what has to be tried again."""

        def leave() -> None:
            del self._entries[: len(batch)]

        await self._settle(batch, leave)

    async def _settle_aside(self, entry: Entry, leave: Callable[[], None]) -> None:
        await self._settle([entry], leave)

    async def _settle(self, batch: Sequence[Entry], leave: Callable[[], None]) -> None:
        """Settle these and call *leave*, unless that fails; keep what has to be tried again."""
        settlements = [self.decide(entry) for entry in batch]
        try:
            # So that a call that hangs leaves time for another one.
            with answered_within(self.limit, f"settling {len(batch)} tasks"):
                refused = await self.store.settle(settlements)
                found = await look_up(self.store, batch, refused, self.decide) if refused else {}
            for fence in found:
                del refused[fence]
            settlements = [found.get(each.fence, each) for each in settlements]
            done, again, locked = self._sort(batch, settlements, refused)
            self.settled(done)
            leave()
        except BaseException:
            for entry in batch:
                entry.unanswered = True  # perhaps it was stored; from now on that is looked up
            raise
        self._entries += again
        self._locked += locked
        self.stored(batch, settlements, refused)
        if not all(settlement.state.is_final for settlement in settlements):
            self.requeued()

    def _sort(
        self,
        batch: Sequence[Entry],
        settlements: Sequence[Settlement],
        refused: Mapping[Fence, Refusal],
    ) -> tuple[list[Fence], list[Entry], list[Entry]]:
        """Tell of each what the store said; return the done, those to decide anew, the locked."""
        done, again, locked = list[Fence](), list[Entry](), list[Entry]()
        for entry, settlement in zip(batch, settlements, strict=True):
            execution = entry.execution
            match refused.get(entry.fence):
                case None:
                    _tell(execution.claim, settlement)
                    execution.has_stored(settlement)
                    done.append(entry.fence)
                case Refusal.STALE:
                    if execution.settlement is None:  # else its own transaction has stored it
                        log.warning("lost the claim on %s; its outcome is dropped", execution.claim)
                        execution.drop()
                    done.append(entry.fence)
                case Refusal.CANCEL_REQUESTED:
                    again.append(attrs.evolve(entry, cancel_requested=True))
                case Refusal.LOCKED:
                    locked.append(entry)
        return done, again, locked

    def decide(self, entry: Entry) -> Settlement:
        """Decide what an outcome means, without writing it."""
        return entry.decide(self.rng)


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
