"""What wakes the claimer: one object that anything may ring and that tells nothing but why."""

from __future__ import annotations

import attrs
import trio

from nursery_queue._core._errors import NotifyUnavailable
from nursery_queue._store import Bell, WorkerStore
from nursery_queue._trio._wakeup import Wakeup


@attrs.define(eq=False)
class WorkSignal:
    """There may be work. Level-triggered: what was set stays set until the claimer takes it."""

    news: bool = False  # something may be ready that the claimer has not seen
    freed: bool = False  # there is more room than there was
    queues_changed: bool = False  # one may have been paused of which claims wait for a slot
    deaf: bool = False  # no notification will ever come
    _bell: Wakeup = attrs.field(factory=Wakeup, init=False)

    def ring(self) -> None:
        """Say that something may be ready."""
        self.news = True
        self._bell.ring()

    def free(self) -> None:
        """Say that there is room for more claims."""
        self.freed = True
        self._bell.ring()

    def change_queues(self) -> None:
        """Say that a queue may have been paused, or limited anew."""
        self.queues_changed = True
        self._bell.ring()

    def deafen(self) -> None:
        """Say that nothing will ring for what others enqueue."""
        self.deaf = True
        self._bell.ring()  # the claimer may sleep without an end

    async def wait(self) -> None:
        """Wait until something has been said since the last wait. For one waiter."""
        await self._bell.wait()


async def listen(
    store: WorkerStore,
    work: WorkSignal,
    beat: Wakeup,
    schedules: Wakeup,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    """Ring for what notifications tell: *work*, a *beat*, for a cancel, or *schedules* changed.

    Raises `NotifyUnavailable` where none ever come.
    """

    def ring(bell: Bell, task_id: int | None = None) -> None:
        del task_id
        match bell:
            case Bell.CANCEL:
                beat.ring()
                work.change_queues()
            case Bell.SCHEDULE:
                schedules.ring()
            case _:
                work.ring()

    bells = [Bell.WORK, Bell.CANCEL, Bell.SCHEDULE]
    try:
        await store.listen(ring, bells, task_status=task_status)
    except NotifyUnavailable:
        work.deafen()
        raise
