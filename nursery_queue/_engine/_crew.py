"""Wires the loops of one worker together."""

from __future__ import annotations

import functools
import logging
import random

from collections.abc import Callable, Mapping

import attrs
import trio

from nursery_queue._app import App
from nursery_queue._client import Client
from nursery_queue._context import CancelReason
from nursery_queue._core._errors import TransientError
from nursery_queue._core._model import WorkerInfo
from nursery_queue._core._outcome import MAX_LOST, Interrupted, NotStarted
from nursery_queue._core._retry import Backoff
from nursery_queue._runtime._supervisor import Service, Sibling, supervise
from nursery_queue._store import Bell

from ._executor import Executor
from ._hands import Execution, Hands
from ._janitor import Janitor
from ._poller import Poller
from ._settler import Settler
from ._tenancy import GOODBYE, Tenancy


log = logging.getLogger("nursery_queue")

FLUSH = 5.0  # seconds to store the last outcomes; what is not stored then is swept as lost


@attrs.frozen(kw_only=True)
class Settings:
    """What a worker was asked to be, checked."""

    queues: Mapping[str, int] | None
    concurrency: int
    poll_interval: float
    listen: bool
    heartbeat: float
    grace: float
    cleanup: float
    prefetch: int | None
    rng: random.Random


@attrs.define(eq=False)
class Crew:
    """The loops of one run of a worker, and how they call each other."""

    app: App
    client: Client
    info: WorkerInfo
    settings: Settings
    on_idle: Callable[[], None] | None
    siblings: Mapping[str, Sibling]
    hands: Hands = attrs.field(init=False)
    settler: Settler = attrs.field(init=False)
    poller: Poller = attrs.field(init=False)
    tenancy: Tenancy = attrs.field(init=False)
    janitor: Janitor = attrs.field(init=False)
    executor: Executor = attrs.field(init=False)
    work: trio.Nursery | None = attrs.field(default=None, init=False)
    # How long handlers may go on once the worker drains; may be cancelled before that.
    patience: trio.CancelScope = attrs.field(factory=trio.CancelScope, init=False)

    def __attrs_post_init__(self) -> None:
        settings, store, rng = self.settings, self.client.store, self.settings.rng
        self.hands = Hands(
            concurrency=settings.concurrency,
            queues=settings.queues,
            prefetch=settings.prefetch,
            start=self._start,
            freed=self._freed,
        )
        self.settler = Settler(
            store=store,
            rng=rng,
            backoff=Backoff(maximum=settings.heartbeat),
            settled=self.hands.settled,
            requeued=self._requeued,
        )
        self.executor = Executor(
            client=self.client,
            worker_id=lambda: self.tenancy.info.id,
            hands=self.hands,
            settler=self.settler,
            threads=trio.CapacityLimiter(settings.concurrency),
        )
        self.poller = Poller(
            store=store,
            app=self.app,
            hands=self.hands,
            interval=settings.poll_interval,
            rng=rng,
            worker_id=lambda: self.tenancy.info.id if self.tenancy.holds else None,
            hand_back=lambda late: self.executor.give_back(late, NotStarted()),
            on_idle=self.on_idle,
        )
        self.janitor = Janitor(
            store=store, max_lost=MAX_LOST, first_after=settings.heartbeat, rng=rng
        )
        self.tenancy = Tenancy(
            store=store,
            info=self.info,
            interval=settings.heartbeat,
            hands=self.hands,
            rng=rng,
            on_lease=self.poller.news,
            on_death=self.janitor.bell.ring,
        )

    # -- the four levels, from the outside in ----------------------------------------

    async def keep_lease(self, tenancy: trio.Nursery) -> None:
        """Renew the lease, and watch it."""
        tenancy.start_soon(self.tenancy.watch)
        # A heartbeat has no time for long waits: the lease is running.
        backoff = Backoff(maximum=self.settings.heartbeat)
        await self._supervise(tenancy, "heartbeat", self.tenancy.heartbeat, backoff)

    async def keep_books(self, flushing: trio.CancelScope) -> None:
        """Store outcomes until the books are closed."""
        with flushing:
            await self.settler.run()

    def close_books(self, flushing: trio.CancelScope) -> None:
        """Store what there is, within bounds."""
        self.settler.close()
        flushing.deadline = trio.current_time() + FLUSH

    async def open_intake(self, intake: trio.Nursery) -> None:
        """Begin to claim. Returns when the worker listens and has claimed once."""
        # All at once: one that cannot begin keeps none of the others waiting.
        async with trio.open_nursery() as nursery:
            if self.settings.listen:
                nursery.start_soon(self._supervise, intake, "listener", self._listen)
            nursery.start_soon(self._supervise, intake, "poller", self.poller.run)
            nursery.start_soon(self._supervise, intake, "janitor", self.janitor.run)

    async def drain(self) -> None:
        """Let handlers finish, then cancel them, then release what does not end."""
        self.tenancy.draining = True
        self.executor.give_back(self.hands.unstarted(), NotStarted())
        with self.patience:
            await self.hands.quiet()
        self.hands.cancel_all(CancelReason.SHUTDOWN)
        with trio.move_on_after(self.settings.cleanup):
            await self.hands.quiet()
        self.executor.give_back(self.hands.running, Interrupted())

    async def move_out(self) -> None:
        """Leave nothing behind in the store, if it answers; shielded, bounded."""
        if self.poller.must_reconcile:
            with trio.move_on_after(GOODBYE, shield=True):
                try:
                    await self.poller.reconcile(self.tenancy.info.id)
                except TransientError as exc:
                    log.warning("could not give back what may be ours; it is swept: %s", exc)
        await self.tenancy.end()

    # -- helpers -----------------------------------------------------------------------

    def _start(self, execution: Execution) -> None:
        assert self.work is not None
        self.work.start_soon(self.executor.execute, execution)

    def _freed(self) -> None:
        self.poller.freed()

    def _requeued(self) -> None:
        self.poller.news()

    async def _listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        def ring(bell: Bell) -> None:
            if bell is Bell.CANCEL:
                self.tenancy.bell.ring()
            else:
                self.poller.news()

        await self.client.store.listen(ring, [Bell.WORK, Bell.CANCEL], task_status=task_status)

    async def _supervise(
        self, nursery: trio.Nursery, name: str, service: Service, backoff: Backoff | None = None
    ) -> None:
        await nursery.start(
            functools.partial(
                supervise,
                service,
                self.siblings[name],
                backoff=backoff or Backoff(),
                rng=self.settings.rng,
            ),
            name=name,
        )
