"""The loops that keep the lease: the heartbeat renews it, the watch ends what it covered."""

from __future__ import annotations

import logging
import math
import random
import uuid

from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
import trio

from nursery_queue._client._context import CancelReason
from nursery_queue._core._error_text import one_line
from nursery_queue._core._errors import DatabaseRefused, TransientError
from nursery_queue._core._heartbeat import Beat
from nursery_queue._store import WorkerStore
from nursery_queue._trio._wakeup import Wakeup

from ._lease import Lease
from ._loops import Loops
from ._maintenance_requests import MaintenanceRequests
from ._sightings import Sightings
from ._slots import Slots
from ._work_signal import WorkSignal


log = logging.getLogger("nursery_queue")
T = TypeVar("T")

GOODBYE = 2.0  # seconds to take the row away, else the lease runs out by itself


@attrs.define(eq=False, kw_only=True)
class LeaseRenewal:
    """Registers the worker, sends its heartbeats, and ends its attempts when the lease is lost."""

    store: WorkerStore
    lease: Lease
    interval: float  # seconds from one heartbeat to the next
    slots: Slots
    rng: random.Random
    sightings: Sightings  # of others
    requests: MaintenanceRequests
    work: WorkSignal
    schedules: Wakeup
    loops: Loops
    bell: Wakeup = attrs.field(factory=Wakeup, init=False)  # a cancel may have been asked for
    draining: bool = attrs.field(default=False, init=False)
    _may_be_there: bool = attrs.field(default=False, init=False)  # our row
    _overdue: bool = attrs.field(default=False, init=False)  # the last beat got no answer
    _recovering: bool = attrs.field(default=False, init=False)  # nor did the one before this

    async def begin(self) -> None:
        """Register; the id must never have been used before."""
        sent = trio.current_time()
        # Before the statement: whether it is cancelled or its answer is lost, the row may be there,
        # and `end` has to take it away (tests/faults/test_outages.py).
        self._may_be_there = True
        try:
            await self.store.register(self.lease.info)
        except DatabaseRefused:
            self._may_be_there = False
            raise
        self.lease.extend(sent)

    async def end(self) -> None:
        """Take the row away, if the store answers; shielded, bounded."""
        self.lease.until = -math.inf
        if not self._may_be_there:
            return
        why = f"no answer within {GOODBYE:g} s"
        with trio.move_on_after(GOODBYE, shield=True):
            try:
                await self.store.deregister(self.lease.info.id)
            except (TransientError, DatabaseRefused) as exc:
                why = one_line(str(exc))
            else:
                return
        log.warning("could not deregister; the lease will run out: %s", why)

    async def heartbeat(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Renew the lease every interval, and at once when a cancel is asked for."""
        if self._overdue:
            await self._beat()
        task_status.started()
        while True:
            with trio.move_on_after(self.interval * self.rng.uniform(0.9, 1.0)):
                await self.bell.wait()
            await self._beat()

    async def _beat(self) -> None:
        # Noted before the request, so that a beat that is cancelled or raises leaves it noted: the
        # next one is sent at once when the supervisor starts this loop again.
        self._recovering, self._overdue = self._overdue, True
        if not self.lease.holds:
            self._give_up()  # never anew before the old tasks are given up
            await self._begin_anew()
        sent = trio.current_time()
        beat = await self._in_time(
            lambda: self.store.heartbeat(self.lease.info.id, draining=self.draining)
        )
        self._answered()
        if not self.lease.holds:
            # A beat may be answered after the lease has run out and its attempts were given up:
            # what the store granted then is not taken, or handlers of two workers would run at
            # once.
            self._give_up()  # the answer came too late, whatever it says
        elif not beat.registered:
            self._lose("another worker took this one for dead")
        else:
            self.lease.extend(sent)
            self._obey(beat)
            await self._note_started()
        self._overdue = False

    async def _note_started(self) -> None:
        """Let the store know which tasks that were claimed ahead run: they count if we die.

        Not those whose transaction may have a snapshot from before: their settlement would
        conflict with the note. If we die, their next start is noted before it happens.
        """
        begun = {
            each.claim.fence: each
            for each in self.slots.running
            if not (each.claim.started or each.noted or each.over or each.task_type.transactional)
        }
        if not begun:
            return
        try:
            with trio.move_on_after(self.lease.info.lease / 6):  # what is left is for the heartbeat
                for fence in await self.store.note_started(self.lease.info.id, list(begun)):
                    begun[fence].noted = True
        except (TransientError, DatabaseRefused) as exc:
            log.info("which tasks have started is noted with the next heartbeat: %s", exc)

    async def _in_time(self, verb: Callable[[], Awaitable[T]]) -> T:
        # So that a call that hangs leaves time for another one.
        with trio.move_on_after(limit := self.lease.info.lease / 3):
            return await verb()
        raise TransientError(f"a heartbeat got no answer within {limit:g} s")

    async def watch(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Cancel all handlers the moment the lease runs out, whatever the heartbeat does."""
        task_status.started()
        while True:
            await trio.sleep_until(self.lease.until)
            if not self.lease.holds:
                self._give_up()
                await self.lease.renewed()

    async def _begin_anew(self) -> None:
        """Register under a new name; what the old one still holds in the store is swept."""
        # Under a new name, since the old one may still be in a statement under way: a claim that
        # commits late finds no such worker, and nothing is claimed behind our back
        # (tests/engine/test_lease_anew.py).
        await self._in_time(lambda: self.store.deregister(self.lease.info.id))
        # Newer code may have been declared since: only a start declares.
        self.lease.info = attrs.evolve(self.lease.info, id=uuid.uuid4(), declared=())
        await self._in_time(self.begin)
        self._answered()
        log.info("registered anew as worker %s", self.lease.info.id)
        self.requests.sweep_by(-math.inf)  # what we held is to be had at once
        self.work.ring()
        self.schedules.ring()
        self.requests.bring_back()

    def _answered(self) -> None:
        # Before others may be seen to be overdue: they have been cut off, too.
        if self._recovering:
            self._recovering = False
            self.requests.hold_off()
            self.loops.recovered()

    def _give_up(self) -> None:
        """Cancel the tasks of a lease that has run out, unless that has been done."""
        if self.lease.until != -math.inf:
            self._lose("it was not renewed in time")

    def _lose(self, why: str) -> None:
        log.error("lost the lease of worker %s: %s; cancelling its tasks", self.lease.info.id, why)
        self.slots.cancel_all(CancelReason.LEASE_LOST)
        self.lease.until = -math.inf  # after that: if it goes wrong, it is done again
        self.bell.ring()

    def _obey(self, beat: Beat) -> None:
        for request in beat.cancel_requests:
            self.slots.obey(request)
        if (due := self.sightings.note(beat.late)) < math.inf:
            self.requests.sweep_by(due)
