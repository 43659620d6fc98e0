"""Wires the loops of one worker together."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import logging
import random

from collections.abc import AsyncGenerator, Callable, Generator, Mapping

import attrs
import trio

from nursery_queue._client._client import Client
from nursery_queue._client._context import CancelReason
from nursery_queue._core._errors import DatabaseRefused, NotifyUnavailable, TransientError
from nursery_queue._core._model import WorkerInfo
from nursery_queue._core._retry import Backoff
from nursery_queue._declare._app import App
from nursery_queue._store import Bell
from nursery_queue._trio._supervisor import Loop, Service, supervise

from ._asyncio_bridge import AsyncioBridge
from ._claimer import Claimer
from ._execution import AttemptRunner
from ._executor import Executor
from ._exit_report import ExitReport
from ._lease import GOODBYE, Lease
from ._maintenance import Maintenance
from ._refunds import Refunds
from ._reporter import Reporter
from ._settler import Settler
from ._shutdown import FLUSH, Shutdown, task_name
from ._sightings import Sightings
from ._slots import Execution, Slots
from ._threads import Threads
from ._watchdog import Watchdog


log = logging.getLogger("nursery_queue")

POLL = 5.0  # seconds, where no notification ever comes and no interval was asked for
SILENCE = 1.0  # seconds that the event loop may stand still before we say so


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
    max_lost: int
    rng: random.Random


@attrs.define(eq=False)
class Crew:
    """The loops of one run of a worker, and how they call each other."""

    app: App
    client: Client
    info: WorkerInfo
    settings: Settings
    on_idle: Callable[[], None] | None
    on_abandoned: Callable[[], None]  # all that is left are handlers that ignore cancellation
    loops: Mapping[str, Loop]
    slots: Slots = attrs.field(init=False)
    settler: Settler = attrs.field(init=False)
    claimer: Claimer = attrs.field(init=False)
    sightings: Sightings = attrs.field(factory=Sightings, init=False)
    lease: Lease = attrs.field(init=False)
    reporter: Reporter = attrs.field(init=False)
    maintenance: Maintenance = attrs.field(init=False)
    stage: AttemptRunner = attrs.field(init=False)
    executor: Executor = attrs.field(init=False)
    watchdog: Watchdog = attrs.field(init=False)
    work: trio.Nursery | None = attrs.field(default=None, init=False)
    # Of which each attempt gets a copy; None until work is open.
    _context: contextvars.Context | None = attrs.field(default=None, init=False)
    drain: Shutdown = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._hire_for_work()
        self._hire_for_intake()
        self.watchdog = Watchdog(min(SILENCE, self.info.lease / 10))

    def _hire_for_work(self) -> None:
        settings, store, rng = self.settings, self.client.store, self.settings.rng
        self.slots = Slots(
            concurrency=settings.concurrency,
            queues=settings.queues,
            prefetch=settings.prefetch,
            start=self._start,
            taken=self._taken,
            freed=self._freed,
        )
        self.reporter = Reporter(
            store=store,
            slots=self.slots,
            audience=self.client.audience,
            info=lambda: self.lease.info,
        )
        self.settler = Settler(
            store=store,
            limit=self.info.lease / 3,
            rng=rng,
            settled=self.slots.settled,
            stored=self.reporter.stored,
            requeued=self._requeued,
        )
        self.stage = AttemptRunner(
            client=self.client,
            worker_id=lambda: self.lease.info.id,
            leased=lambda: self.lease.holds,
            threads=Threads(settings.concurrency, self._thread_freed),
        )
        self.executor = Executor(
            stage=self.stage,
            slots=self.slots,
            settler=self.settler,
            refunds=Refunds(rng),
            starts=self.client.audience.started,
        )
        self.stage.begins = self.executor.begins  # each of them needs the other
        self.drain = Shutdown(
            slots=self.slots,
            executor=self.executor,
            settler=self.settler,
            grace=settings.grace,
            cleanup=settings.cleanup,
            on_idle=self.on_idle,
            on_abandoned=self.on_abandoned,
        )

    def _hire_for_intake(self) -> None:
        settings, store, rng = self.settings, self.client.store, self.settings.rng
        self.claimer = Claimer(
            store=store,
            app=self.app,
            task_types=self._startable,
            slots=self.slots,
            interval=settings.poll_interval,
            rng=rng,
            worker_id=lambda: self.lease.info.id if self.lease.holds else None,
            hand_back=self.executor.give_back,
            on_strangers=self._strangers,
            on_idle=self.on_idle,
        )
        self.maintenance = Maintenance(
            store=store,
            app=self.app,
            max_lost=settings.max_lost,
            heartbeat=settings.heartbeat,
            rng=rng,
            seen=self.sightings.until_now,
            on_work=self.claimer.news,
            on_lost=self.reporter.lost,
        )
        self.lease = Lease(
            store=store,
            info=self.info,
            interval=settings.heartbeat,
            slots=self.slots,
            rng=rng,
            on_lease=self._leased,
            sightings=self.sightings,
            on_death=self.maintenance.sweep_by,
            on_recovery=self._recovered,
        )

    @contextlib.contextmanager
    def making_room(self) -> Generator[None]:
        """Let the pool of connections grow for our handlers while the block lasts."""
        with self.client.store.room_for(self.settings.concurrency) as transactions:
            self.slots.transactions = transactions
            yield

    # -- the four levels, from the outside in ----------------------------------------

    async def keep_lease(self, lease: trio.Nursery) -> None:
        """Renew the lease, and watch it; report, as long as there may be outcomes."""
        await self._supervise(lease, "lease", self._watch)
        await self._supervise(lease, "heartbeat", self.lease.heartbeat, self._impatient())
        await self._supervise(lease, "reporter", self.reporter.run)

    async def keep_books(self, flushing: trio.CancelScope) -> None:
        """Store outcomes until the books are closed."""
        with flushing:
            async with trio.open_nursery() as nursery:
                await self._supervise(nursery, "settler", self.settler.run, self._impatient())
                await self.settler.all_written()
                nursery.cancel_scope.cancel("every outcome is stored")

    def close_books(self, flushing: trio.CancelScope) -> None:
        """Store what there is, within bounds."""
        self.settler.close()
        self.loops["settler"].hurry(afresh=True)
        flushing.deadline = trio.current_time() + FLUSH

    def open_work(self, work: trio.Nursery, bridge: AsyncioBridge | None) -> None:
        """Take the nursery of the handlers, and the context of the caller for each of them.

        It is copied once, so that no handler starts in what another one has left of it.
        """
        self.stage.bridge, self.work = bridge, work
        self._context = contextvars.copy_context()
        self._context.run(self.client.lifetime.lend)

    @contextlib.asynccontextmanager
    async def ending_with_a_reason(self) -> AsyncGenerator[None]:
        """Tell handlers that it is a shutdown if the block fails: a Ctrl-C, in trio's main task."""
        try:
            yield
        except BaseException:
            self.slots.cancel_all(CancelReason.SHUTDOWN)
            raise

    async def open_intake(self, intake: trio.Nursery) -> None:
        """Begin to claim. Returns when the worker listens and has claimed once."""
        # All at once: one that cannot begin keeps none of the others waiting.
        async with trio.open_nursery() as nursery:
            if self.settings.listen:
                nursery.start_soon(self._supervise, intake, "listener", self._listen)
            nursery.start_soon(self._supervise, intake, "claimer", self.claimer.run)
            nursery.start_soon(self._supervise, intake, "maintenance", self.maintenance.run)

    def close_intake(self) -> None:
        """Nothing more is claimed; what has not been started goes back."""
        self.lease.draining = True
        self.drain.intake_closed()

    def report(self) -> ExitReport:
        """Say what became of the tasks in hand."""
        running = {each for each in self.slots.running if not each.ended}
        return self.drain.ledger.report(running=running)

    async def move_out(self) -> None:
        """Leave nothing behind in the store, if it answers; shielded, bounded."""
        if self.claimer.must_reconcile:
            with trio.move_on_after(GOODBYE, shield=True):
                try:
                    await self.claimer.reconcile(self.lease.info.id)
                except (TransientError, DatabaseRefused) as exc:
                    log.warning("could not give back what may be ours; it is swept: %s", exc)
        until = trio.current_time() + GOODBYE
        await self.lease.end()
        await self.reporter.end(until)

    # -- helpers -----------------------------------------------------------------------

    def _start(self, execution: Execution) -> None:
        assert self._context is not None
        if self.drain.over:
            execution.cancel(CancelReason.SHUTDOWN)
        # Often called by the attempt that has just ended, and a nursery starts a task in the
        # context of its caller: without this, one customer's values are in another's task
        # (tests/engine/test_isolation.py).
        self._context.copy().run(self._start_here, execution)

    def _start_here(self, execution: Execution) -> None:
        assert self.work is not None
        self.work.start_soon(self.executor.execute, execution, name=task_name(execution))

    def _startable(self) -> list[str]:
        """Return the task types whose handlers can start: of what claims may give us."""
        known = self.app.task_types
        if not self.stage.threads.exhausted:
            return list(known)
        startable = [name for name, task_type in known.items() if task_type.is_async]
        if len(startable) < len(known):
            self.stage.threads.turn_away()
        return startable

    def _thread_freed(self) -> None:
        self.claimer.news()

    def _taken(self) -> None:
        self.reporter.busy()

    def _freed(self) -> None:
        self.claimer.freed()
        self.drain.freed()

    def _strangers(self) -> None:
        self.maintenance.park_soon()

    def _leased(self) -> None:
        self.claimer.news()
        self.maintenance.bring_back()

    def _requeued(self) -> None:
        self.claimer.news()

    def _recovered(self) -> None:
        """The store answers heartbeats again: nobody needs to wait any longer."""
        # Only the heartbeat says so to all, or else they would wake each other in circles.
        self.maintenance.hold_off()
        for name in ("listener", "claimer", "maintenance", "settler"):
            self.loops[name].hurry()

    def _answered_again(self) -> None:
        """One of the loops is back, so the store may answer the heartbeat, too."""
        # Its wait may be a third of a lease that has not so much left.
        self.loops["heartbeat"].hurry(afresh=True)

    def _impatient(self) -> Backoff:
        """How to restart what has no time for long waits: the lease is running."""
        # One statement that went through is all the health it takes, or else a server that
        # is away every other second would cost the lease.
        return Backoff(maximum=self.info.lease / 3, healthy_after=0.0)

    async def _watch(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await self.lease.watch()

    async def _listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        def ring(bell: Bell, task_id: int | None = None) -> None:
            del task_id
            if bell is Bell.CANCEL:
                self.lease.bell.ring()
                self.claimer.queues_changed()
            else:
                self.claimer.news()

        bells = [Bell.WORK, Bell.CANCEL]
        try:
            await self.client.store.listen(ring, bells, task_status=task_status)
        except NotifyUnavailable:
            self.claimer.poll_anyhow(POLL)
            raise

    async def _supervise(
        self, nursery: trio.Nursery, name: str, service: Service, backoff: Backoff | None = None
    ) -> None:
        await nursery.start(
            functools.partial(
                supervise,
                service,
                self.loops[name],
                backoff=backoff or Backoff(),
                rng=self.settings.rng,
                on_back=self._answered_again,
            ),
            name=name,
        )
