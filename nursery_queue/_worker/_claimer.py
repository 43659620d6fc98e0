"""Claims tasks: the only one who does."""

from __future__ import annotations

import logging
import math
import random

from collections.abc import Sequence
from uuid import UUID

import attrs
import trio

from nursery_queue._core._errors import TransientError
from nursery_queue._core._model import Claim, Claimed, QueueSlots
from nursery_queue._declare._app import App
from nursery_queue._store import WorkerStore
from nursery_queue._trio._timeouts import answered_within

from ._attempt import Attempt
from ._lease import Lease
from ._maintenance_requests import MaintenanceRequests
from ._outbox import Outbox
from ._queue_walk import Walk
from ._slots import Slots
from ._stop_signal import StopSignal
from ._threads import Threads
from ._work_signal import WorkSignal


log = logging.getLogger("nursery_queue")

POLL = 5.0  # seconds, where no notification ever comes and no interval was asked for
CLAIM_TIMEOUT = 10.0  # seconds; a claim is shielded for so long
# A claim whose connection was cut may commit after we have reconciled: look again now and then.
RECONCILE_EVERY = 60.0  # seconds
LOCKED_WAIT = 0.1  # seconds before trying again to promote what is due and does not move
REFUSED_WAIT = 5.0  # seconds before trying to promote again what the database would not take
CONTENDED_WAIT = 0.1  # seconds before looking again at what another worker was looking at
# A slot of a queue that is full rings for all workers when it is free, and one of them gets it:
# the others come ever more slowly, at last after so long.
HELD_BACK_WAIT = (0.005, 0.08)  # seconds
GIVE_BACK_AFTER = 1.0  # seconds that a claim may wait for a slot before others may have the task


@attrs.define(eq=False, kw_only=True)
class Claimer:
    """Claims when rung, when something falls due, and every *interval* seconds (0: never)."""

    store: WorkerStore
    app: App
    slots: Slots
    lease: Lease  # without one nothing is claimed
    threads: Threads
    outbox: Outbox
    work: WorkSignal
    requests: MaintenanceRequests
    stop: StopSignal
    interval: float
    rng: random.Random
    _more: bool = attrs.field(default=True, init=False)  # there may be something to claim
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
    _calm: float = attrs.field(default=0.0, init=False)  # seconds to wait after the last claim
    _not_before: float = attrs.field(default=-math.inf, init=False)  # on trio's clock
    _starting: trio.TaskStatus[None] | None = attrs.field(default=None, init=False)

    def __attrs_post_init__(self) -> None:
        names = None if self.slots.queues is None else sorted(self.slots.queues)
        self._whole_walk, self._others_walk = Walk(names), Walk(names)

    @property
    def _walk(self) -> Walk:
        return self._others_walk if self._only_others else self._whole_walk

    def _may_be_more(self) -> bool:
        """Take the signals; whether there may be something to claim, by all of them so far."""
        self._take_signals()
        return self._more

    def _take_signals(self) -> None:
        """Draw the conclusions from what other loops have signalled since the last time."""
        if self.work.news:
            self.work.news = False
            self._look_anew()
        if self.work.freed:
            self.work.freed = False
            self._note_room()

    def _look_anew(self) -> None:
        self._more = True
        self._whole_walk.again = self._others_walk.again = True  # perhaps where it has already been

    def _note_room(self) -> None:
        """There is more room; worth a claim if the last one left something behind."""
        if self.stop.when_idle and not self.slots.busy:
            self._look_anew()  # make sure that nothing is left before calling it idle
        held_back = self._whole_walk.held_back or self._others_walk.held_back
        if held_back or any(self._room_in(queue) for queue in self._full):
            self._look_anew()  # nothing has been asked for of that queue
            self._not_before = -math.inf  # the slot is ours, unless another worker is faster
        if self._left_out and self.slots.transactions_left:
            self._look_anew()  # nor of what opens transactions

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Claim until cancelled. Ready means: the store has answered once.

        Not that nothing is left: with many tasks that are done fast, that takes as long as they do
        (tests/engine/test_worker.py).
        """
        self._starting = task_status
        self._look_anew()  # what the claim that failed was for
        self.work.queues_changed = True
        while not self.lease.holds:
            await self.work.wait()
        await self._turn()
        self._is_ready()
        while True:
            with trio.move_on_after(self._pause()) as pause:
                await self.work.wait()
            if pause.cancelled_caught:
                self._look_anew()
                self.work.queues_changed = True  # no notification may have come
            await self._turn()

    def _is_ready(self) -> None:
        if self._starting is not None:
            self._starting.started()
            self._starting = None

    def _pause(self) -> float:
        interval = self.interval or (POLL if self.work.deaf else math.inf)
        interval *= self.rng.uniform(0.9, 1.1)
        # While it has no lease it promotes nothing, and is rung when it has one again.
        due = self._due if self.lease.holds else math.inf
        until = min(due, self._look_again, self.slots.oldest + GIVE_BACK_AFTER)
        if self._wants_more() and trio.current_time() < self._not_before:
            until = min(until, self._not_before)
        return max(0.0, min(interval, until - trio.current_time()))

    async def _turn(self) -> None:
        # A task that waits here is one that no other worker can run
        # (tests/engine/test_prefetch.py).
        if late := self.slots.unstarted(waiting=GIVE_BACK_AFTER):
            self.outbox.release(late)
        if self.work.queues_changed:
            await self._withdraw()
        if self._look_again <= trio.current_time():
            self._look_anew()
            self._look_again = math.inf
        await self._claim_on()
        # Idle only if nothing is left that was put aside: another worker may have parked tasks of
        # types that this one knows.
        while self.stop.when_idle and self._seems_idle():
            with answered_within(CLAIM_TIMEOUT, "bringing back what was put aside"):
                brought = await self.store.unpark(list(self.app.task_types))
            self._look_anew()  # maintenance may have been faster
            if not self._walk.in_vain:  # a rest after a long walk is none before its repetition
                self._not_before = -math.inf
            await self._claim_on()
            if self._seems_idle() and not brought:
                self.stop.stop()
                break

    async def _withdraw(self) -> None:
        """Give back what has been claimed ahead of queues of which nothing is to start now."""
        self.work.queues_changed = False
        if queues := self.slots.waiting:
            with answered_within(CLAIM_TIMEOUT, "asking which queues are paused"):
                closed = await self.store.closed_queues(sorted(queues))
            if withdrawn := self.slots.withdraw(closed):
                self.outbox.release(withdrawn)

    def _seems_idle(self) -> bool:
        return not (self._may_be_more() or self.slots.busy or self._look_again < math.inf)

    def _wants_more(self) -> bool:
        return self._may_be_more() and self.slots.wants_more

    async def _claim_on(self) -> None:
        """Claim until there is no room, or nothing left."""
        while self.lease.holds:
            worker_id = self.lease.worker_id
            # Promoting is the claimer's own work, just before it claims: so what falls due is run
            # without waiting for the turn of maintenance.
            if self._due <= trio.current_time():
                await self._promote()
            if self.must_reconcile or trio.current_time() >= self._reconciled_at + RECONCILE_EVERY:
                await self.reconcile(worker_id)  # also if there is no room for more
            if not self._wants_more() or trio.current_time() < self._not_before:
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
        self._due = self._whole_walk.due = self._others_walk.due = math.inf
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
        # Consumed by this claim; a signal that comes while it is under way has to cause another
        # one, or a task committed meanwhile would wait for the next poll.
        self._take_signals()
        self._more = False  # a signal from now on counts
        if self._walk.at_start:
            self._look_again = math.inf
        self._walk.goes_on()
        if queue_slots != [] and (task_types or not self._only_others):
            asked_at = trio.current_time()
            claimed = await self._ask(worker_id, task_types, limit, queue_slots)
            self._is_ready()
            self.slots.pace.claimed(trio.current_time() - asked_at)
            if not self.lease.holds or self.lease.worker_id != worker_id:
                return  # the lease ran out meanwhile: what came is not ours any more
            self._take_signals()  # they are about what was known before this answer
            self._walk.saw(claimed)
            self._note_due(claimed)
            self._note_others(claimed)
            now = trio.current_time()
            self.slots.take([self._attempt(claim, now) for claim in claimed.claims])
            self.must_reconcile = False
            if self._left_something(claimed.claims, limit, queue_slots):
                self._walk.again = True
                self._others_next |= self._left_out and not self._only_others
            elif not self._only_others:
                self._left_out = False  # it was asked for, and all that there was has come
            if self._walk.again or not self._walk.at_start:
                self._more = True
            else:
                # What opens transactions was left out, and may be had now.
                self._more |= self._only_others and self.slots.transactions_left > 0
        if self._only_others and self._walk.at_start:
            self._others_next = False
        self._full = {queue for queue in self.slots.queues or () if not self._room_in(queue)}

    def _wanted(self) -> tuple[list[str], int]:
        """Return which types to claim, and how many tasks.

        Tasks that open transactions are claimed only as far as there are connections for them:
        so many at most of whatever comes first, then the others alone. What is more urgent goes
        first all the same, by a claim or two.
        """
        room, startable = self.slots.room, self._startable()
        others = [name for name in startable if not self.app[name].transactional]
        left = self.slots.transactions_left if len(others) < len(startable) else math.inf
        self._left_out = left < room
        self._only_others = self._left_out and (self._others_next or not left)
        if not self._only_others:
            return startable, int(min(left, room))
        return others, room

    def _startable(self) -> list[str]:
        """Return the task types whose handlers can start: of what claims may give us."""
        known = self.app.task_types
        if not self.threads.exhausted:
            return list(known)
        startable = [name for name, task_type in known.items() if task_type.is_async]
        if len(startable) < len(known):
            self.threads.turn_away()
        return startable

    async def _ask(
        self,
        worker_id: UUID,
        task_types: Sequence[str],
        limit: int,
        queue_slots: Sequence[QueueSlots] | None,
    ) -> Claimed:
        await trio.lowlevel.checkpoint_if_cancelled()  # a ring may have come with the end
        # From here on the store may have given us tasks of which no answer tells: the connection
        # may be cut, or this loop may fail on what came. The next turn asks, before it claims again
        # (tests/faults/test_lost_answers.py).
        self.must_reconcile = True
        # Shielded: once the store may have given us tasks, we must take them.
        with answered_within(CLAIM_TIMEOUT, "a claim", shield=True):
            return await self.store.claim(
                worker_id,
                task_types,
                limit=limit,
                queue_slots=queue_slots,
                at_once=self.slots.idle,
                soon=self.slots.soon,
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
        """Note when something is due: what the claims of the last walks have said of it.

        Each knows of the rates of the queues alone that it has looked at.
        """
        if claimed.next_due is None:
            wait = math.inf
        elif claimed.next_due <= 0 and self._stuck:
            # Another transaction is in the way, or it was refused.
            wait = REFUSED_WAIT if self._refused else LOCKED_WAIT
        else:
            wait = max(0.0, claimed.next_due)
        self._walk.due = min(self._walk.due, trio.current_time() + wait)
        self._due = min(self._whole_walk.due, self._others_walk.due)
        self._stuck = False

    def _note_others(self, claimed: Claimed) -> None:
        """Note what is in the way of a claim."""
        if self._walk.at_start:  # it has come to the end
            first, last = HELD_BACK_WAIT
            self._calm = min(last, max(first, 2 * self._calm)) if self._walk.in_vain else 0.0
            self._not_before = trio.current_time() + max(self._calm, self._walk.rest)
        if claimed.contended:
            self._look_again = trio.current_time() + CONTENDED_WAIT
        if claimed.unknown_types and not self._only_others:
            self.requests.park_soon()

    def _attempt(self, claim: Claim, claimed_at: float) -> Attempt:
        task_type = self.app[claim.task_type]
        return Attempt(
            claim=claim,
            task_type=task_type,
            policy=task_type.policy(claim),
            lease=self.lease,
            claimed_at=claimed_at,
        )
