"""Claims tasks: the only one who does."""

from __future__ import annotations

import logging
import math
import random

from collections.abc import Callable, Sequence
from uuid import UUID

import attrs
import trio

from nursery_queue._core._errors import TransientError
from nursery_queue._core._model import Claim, Claimed, QueueSlots
from nursery_queue._declare._app import App
from nursery_queue._store import Store
from nursery_queue._trio._timeouts import answered_within
from nursery_queue._trio._wakeup import Wakeup

from ._queue_walk import Walk
from ._slots import Execution, Slots


log = logging.getLogger("nursery_queue")

CLAIM_TIMEOUT = 10.0  # seconds; a claim is shielded for so long
# A claim whose connection was cut may commit after we have reconciled: look again now and then.
RECONCILE_EVERY = 60.0  # seconds
LOCKED_WAIT = 0.1  # seconds before trying again to promote what is due and does not move
REFUSED_WAIT = 5.0  # seconds before trying to promote again what the database would not take
CONTENDED_WAIT = 0.1  # seconds before looking again at what somebody else was just looking at
# A slot of a queue that is full rings for everybody when it is free, and one of them gets it:
# the others come ever more slowly, at last after so long.
HELD_BACK_WAIT = (0.005, 0.08)  # seconds
HAND_BACK_AFTER = 1.0  # seconds a task may wait in our hands before others may have it


@attrs.define(eq=False, kw_only=True)
class Claimer:
    """Claims when rung, when something falls due, and every *interval* seconds (0: never)."""

    store: Store
    app: App
    task_types: Callable[[], list[str]]  # of which tasks could start
    slots: Slots
    interval: float
    rng: random.Random
    worker_id: Callable[[], UUID | None]  # None: not registered, so nothing may be claimed
    hand_back: Callable[[Sequence[Execution]], None]
    on_strangers: Callable[[], None]  # tasks of types that we do not know are first in line
    on_idle: Callable[[], None] | None = None
    _bell: Wakeup = attrs.field(factory=Wakeup, init=False)
    _maybe_more: bool = attrs.field(default=True, init=False)
    _due: float = attrs.field(default=math.inf, init=False)  # on trio's clock
    _look_again: float = attrs.field(default=math.inf, init=False)  # on trio's clock
    # Set before a claim and cleared when what it gave us is in hand: else the store may have
    # given us tasks that we do not know of.
    must_reconcile: bool = attrs.field(default=False, init=False)
    _reconciled_at: float = attrs.field(factory=trio.current_time, init=False)
    _stuck: bool = attrs.field(default=False, init=False)  # what is due could not be promoted
    _refused: str | None = attrs.field(default=None, init=False)  # why, if it is refused
    _left_out: bool = attrs.field(default=False, init=False)  # what opens transactions
    _only_others: bool = attrs.field(default=False, init=False)  # the last claim was for them
    _others_next: bool = attrs.field(default=False, init=False)  # and so is the next one
    _full: set[str] = attrs.field(factory=set[str], init=False)  # queues at our limit of them
    # Through the queues, for everything and for what opens no transaction: each goes on where it
    # was, whatever was wanted in between.
    _whole_walk: Walk = attrs.field(init=False)
    _others_walk: Walk = attrs.field(init=False)
    _ask_for_closed: bool = attrs.field(default=False, init=False)
    _calm: float = attrs.field(default=0.0, init=False)  # seconds to wait after the last claim
    _not_before: float = attrs.field(default=-math.inf, init=False)  # on trio's clock

    def __attrs_post_init__(self) -> None:
        names = None if self.slots.queues is None else sorted(self.slots.queues)
        self._whole_walk, self._others_walk = Walk(names), Walk(names)

    @property
    def _walk(self) -> Walk:
        return self._others_walk if self._only_others else self._whole_walk

    def news(self) -> None:
        """There may be something to claim."""
        self._look_anew()
        self._bell.ring()

    def queues_changed(self) -> None:
        """A queue may have been paused, of which there are tasks in hand that have not started."""
        self._ask_for_closed = True
        self._bell.ring()

    def _look_anew(self) -> None:
        self._maybe_more = True
        self._whole_walk.again = self._others_walk.again = True  # perhaps where it has already been

    def freed(self) -> None:
        """There is room; worth a claim if the last one left something behind."""
        if self.on_idle is not None and not self.slots.busy:
            self._look_anew()  # make sure that nothing is left before calling it idle
        held_back = self._whole_walk.held_back or self._others_walk.held_back
        if held_back or any(self._room_in(queue) for queue in self._full):
            self._look_anew()  # nobody has asked for more of that queue
            self._not_before = -math.inf  # the slot is ours, unless somebody is faster
        if self._left_out and self.slots.transactions_left:
            self._look_anew()  # nor of those that open transactions
        self._bell.ring()

    def poll_anyhow(self, seconds: float) -> None:
        """Nobody will ring: poll, every *seconds* if no other interval was asked for."""
        self.interval = self.interval or seconds
        self._bell.ring()  # it may sleep without an end

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Claim until cancelled. Ready means: the store has answered once."""
        self._look_anew()  # what the claim that failed was for
        self._ask_for_closed = True
        while self.worker_id() is None:
            await self._bell.wait()
        await self._turn()
        task_status.started()
        while True:
            with trio.move_on_after(self._pause()) as pause:
                await self._bell.wait()
            if pause.cancelled_caught:
                self._look_anew()
                self._ask_for_closed = True  # nobody may have rung
            await self._turn()

    def _pause(self) -> float:
        interval = self.interval * self.rng.uniform(0.9, 1.1) if self.interval else math.inf
        # While it has no lease it promotes nothing, and is rung when it has one again.
        due = math.inf if self.worker_id() is None else self._due
        until = min(due, self._look_again, self.slots.oldest + HAND_BACK_AFTER)
        if self._wants_more and trio.current_time() < self._not_before:
            until = min(until, self._not_before)
        return max(0.0, min(interval, until - trio.current_time()))

    async def _turn(self) -> None:
        if late := self.slots.unstarted(waiting=HAND_BACK_AFTER):
            self.hand_back(late)
        if self._ask_for_closed:
            await self._withdraw()
        if self._look_again <= trio.current_time():
            self._look_anew()
            self._look_again = math.inf
        await self._claim_on()
        while self.on_idle is not None and self._seems_idle():
            with answered_within(CLAIM_TIMEOUT, "bringing back what was put aside"):
                brought = await self.store.unpark(list(self.app.task_types))
            self._look_anew()  # maintenance may have been faster
            if not self._walk.in_vain:  # a rest after a long walk is none before its repetition
                self._not_before = -math.inf
            await self._claim_on()
            if self._seems_idle() and not brought:
                self.on_idle()
                break

    async def _withdraw(self) -> None:
        """Give back what has been claimed ahead of queues of which nothing is to start now."""
        self._ask_for_closed = False
        if queues := self.slots.waiting:
            with answered_within(CLAIM_TIMEOUT, "asking which queues are paused"):
                closed = await self.store.closed_queues(sorted(queues))
            if withdrawn := self.slots.withdraw(closed):
                self.hand_back(withdrawn)

    def _seems_idle(self) -> bool:
        return not (self._maybe_more or self.slots.busy or self._look_again < math.inf)

    @property
    def _wants_more(self) -> bool:
        return self._maybe_more and self.slots.wants_more

    async def _claim_on(self) -> None:
        """Claim until there is no room, or nothing left."""
        while (worker_id := self.worker_id()) is not None:
            if self._due <= trio.current_time():
                await self._promote()
            if self.must_reconcile or trio.current_time() >= self._reconciled_at + RECONCILE_EVERY:
                await self.reconcile(worker_id)  # also if there is no room for more
            if not self._wants_more or trio.current_time() < self._not_before:
                break
            await self._claim(worker_id)

    async def _promote(self) -> None:
        """Make what is due ready. If that is refused, what is ready is claimed all the same."""
        try:
            with answered_within(CLAIM_TIMEOUT, "promoting what is due"):
                self._stuck = not await self.store.promote()
            self._refused = None
        except TransientError:
            raise
        except Exception as exc:  # noqa: BLE001  # it must not keep the worker from claiming
            if self._refused != (why := f"{type(exc).__name__}: {exc}"):
                self._refused = why
                log.error("what is due cannot be made ready, trying again: %s", why)  # noqa: TRY400
            self._stuck = True
        self._due = math.inf
        self._look_anew()

    async def reconcile(self, worker_id: UUID) -> None:
        """Give back what the store thinks we hold and we do not know of."""
        with answered_within(CLAIM_TIMEOUT, "giving back what may be ours"):
            given_back = await self.store.give_back_all_but(worker_id, set(self.slots.held))
        if given_back:
            log.warning("gave back %d tasks that came without an answer", given_back)
        self.must_reconcile = False
        self._reconciled_at = trio.current_time()

    async def _claim(self, worker_id: UUID) -> None:
        task_types, limit = self._wanted()
        queue_slots = self._walk.queue_slots(lambda queue: min(limit, self._room_in(queue)))
        self._maybe_more = False  # a ring from now on counts
        if self._walk.at_start:
            self._look_again = math.inf
        self._walk.goes_on()
        if queue_slots != [] and (task_types or not self._only_others):
            asked_at = trio.current_time()
            claimed = await self._ask(worker_id, task_types, limit, queue_slots)
            self.slots.pace.claimed(trio.current_time() - asked_at)
            if self.worker_id() != worker_id:
                return  # the lease ran out meanwhile: what came is not ours any more
            self._walk.saw(claimed)
            self._note_due(claimed)
            self._note_others(claimed)
            self.slots.take([self._execution(claim) for claim in claimed.claims])
            self.must_reconcile = False
            if self._left_something(claimed.claims, limit, queue_slots):
                self._walk.again = True
                self._others_next |= self._left_out and not self._only_others
            if self._walk.again or not self._walk.at_start:
                self._maybe_more = True
            else:
                # What opens transactions was left out, and may be had now.
                self._maybe_more |= self._only_others and self.slots.transactions_left > 0
        if self._only_others and self._walk.at_start:
            self._others_next = False
        self._full = {queue for queue in self.slots.queues or () if not self._room_in(queue)}

    def _wanted(self) -> tuple[list[str], int]:
        """Return which types to claim, and how many tasks.

        Tasks that open transactions are claimed only as far as there are connections for them:
        so many at most of whatever comes first, then the others alone. What is more urgent goes
        first all the same, by a claim or two.
        """
        room, left = self.slots.room, self.slots.transactions_left
        self._left_out = left < room
        self._only_others = self._left_out and (self._others_next or not left)
        if not self._only_others:
            return self.task_types(), int(min(left, room))
        return [name for name in self.task_types() if not self.app[name].transactional], room

    async def _ask(
        self,
        worker_id: UUID,
        task_types: Sequence[str],
        limit: int,
        queue_slots: Sequence[QueueSlots] | None,
    ) -> Claimed:
        await trio.lowlevel.checkpoint_if_cancelled()  # a ring may have come with the end
        self.must_reconcile = True
        # Shielded: once the store may have given us tasks, we must take them.
        with answered_within(CLAIM_TIMEOUT, "a claim", shield=True):
            return await self.store.claim(
                worker_id,
                task_types,
                limit=limit,
                queue_slots=queue_slots,
                at_once=self.slots.idle,
                after=self._walk.after,
            )

    def _room_in(self, queue: str) -> int:
        assert self.slots.queues is not None
        return self.slots.room_in(queue, self.slots.queues[queue])

    def _left_something(
        self, claims: Sequence[Claim], limit: int, queue_slots: Sequence[QueueSlots] | None
    ) -> bool:
        """Whether the store may have had more than we asked for."""
        if len(claims) >= limit:
            return True
        taken = [claim.queue for claim in claims]
        return any(taken.count(each.queue) >= each.slots for each in queue_slots or ())

    def _note_due(self, claimed: Claimed) -> None:
        if claimed.next_due is None:
            self._due = math.inf
        elif claimed.next_due <= 0 and self._stuck:
            # Somebody's transaction is in the way, or it was refused.
            self._due = trio.current_time() + (REFUSED_WAIT if self._refused else LOCKED_WAIT)
        else:
            self._due = trio.current_time() + max(0.0, claimed.next_due)
        self._stuck = False

    def _note_others(self, claimed: Claimed) -> None:
        """Note what is in the way of a claim."""
        if self._walk.at_start:  # it has come to the end
            first, last = HELD_BACK_WAIT
            self._calm = min(last, max(first, 2 * self._calm)) if self._walk.in_vain else 0.0
            self._not_before = trio.current_time() + max(self._calm, self._walk.rest)
        if claimed.contended:
            self._look_again = trio.current_time() + CONTENDED_WAIT
        if claimed.strangers and not self._only_others:
            self.on_strangers()

    def _execution(self, claim: Claim) -> Execution:
        task_type = self.app[claim.task_type]
        return Execution(
            claim=claim,
            task_type=task_type,
            policy=task_type.policy(claim),
            claimed_at=trio.current_time(),
        )
