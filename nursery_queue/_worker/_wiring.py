"""Makes the parts of one run of a worker, and tells each what it shares with the others."""

from __future__ import annotations

import random

from collections.abc import Mapping

import attrs

from nursery_queue._client._client import Client
from nursery_queue._core._model import WorkerInfo
from nursery_queue._declare._app import App
from nursery_queue._trio._wakeup import Wakeup

from ._attempt_runner import AttemptRunner
from ._claimer import Claimer
from ._executor import Executor
from ._lease import Lease
from ._lease_renewal import LeaseRenewal
from ._loops import Loops
from ._maintenance import Maintenance
from ._maintenance_requests import MaintenanceRequests
from ._outbox import Outbox
from ._outcome_writer import OutcomeWriter
from ._queue_declarer import QueueDeclarer
from ._recorder import Recorder
from ._refunds import Refunds
from ._reporter import Reporter
from ._scheduler import Scheduler
from ._settler import Settler
from ._shutdown import Shutdown
from ._sightings import Sightings
from ._single_settler import SingleSettler
from ._slots import Slots
from ._stop_signal import StopSignal
from ._threads import Threads
from ._watchdog import Watchdog
from ._work_signal import WorkSignal


SILENCE = 1.0  # seconds that the event loop may stand still before the log says so


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


@attrs.frozen(kw_only=True)
class Parts:
    """The parts of one run; first what they share, then what each level of the worker runs."""

    slots: Slots
    lease: Lease
    work: WorkSignal

    renewal: LeaseRenewal
    reporter: Reporter
    settler: Settler
    executor: Executor
    shutdown: Shutdown
    declarer: QueueDeclarer
    claimer: Claimer
    scheduler: Scheduler
    maintenance: Maintenance
    watchdog: Watchdog

    @property
    def outbox(self) -> Outbox:
        """What is on its way to the store."""
        return self.settler.outbox

    @property
    def threads(self) -> Threads:
        """The threads of handlers without `async`."""
        return self.executor.runner.threads


def wire(
    app: App, client: Client, info: WorkerInfo, settings: Settings, loops: Loops, stop: StopSignal
) -> Parts:
    """Make the parts of one run of a worker."""
    store, rng, work, lease = client.store, settings.rng, WorkSignal(), Lease(info)
    slots = Slots(settings.concurrency, settings.queues, settings.prefetch, work)
    recorder = Recorder(slots, lease, client.events)
    outbox = Outbox(slots, recorder)
    writer = OutcomeWriter(store, info.lease / 3, rng, slots, outbox, recorder, work)
    threads = Threads(settings.concurrency, work)
    runner = AttemptRunner(client=client, lease=lease, threads=threads, recorder=recorder)
    executor = Executor(runner, slots, outbox, recorder, Refunds(rng), rng)
    slots.start = executor.start
    requests, sightings = MaintenanceRequests(settings.heartbeat), Sightings()
    schedules = Wakeup()
    return Parts(
        slots=slots,
        lease=lease,
        work=work,
        renewal=LeaseRenewal(
            store=store,
            lease=lease,
            interval=settings.heartbeat,
            slots=slots,
            rng=rng,
            sightings=sightings,
            requests=requests,
            work=work,
            schedules=schedules,
            loops=loops,
        ),
        reporter=Reporter(store=store, slots=slots, lease=lease, recorder=recorder),
        settler=Settler(writer, outbox, SingleSettler(store, rng, writer)),
        executor=executor,
        shutdown=Shutdown(slots, outbox, stop, settings.grace, settings.cleanup),
        declarer=QueueDeclarer(store, dict(app.queues)),
        claimer=Claimer(
            store=store,
            app=app,
            slots=slots,
            lease=lease,
            threads=threads,
            outbox=outbox,
            work=work,
            requests=requests,
            stop=stop,
            interval=settings.poll_interval,
            rng=rng,
        ),
        scheduler=Scheduler(
            store, lease, work, app, schedules, settings.poll_interval, rng, stop.when_idle
        ),
        maintenance=Maintenance(
            store, app, settings.max_lost, rng, requests, sightings, recorder, work
        ),
        watchdog=Watchdog(min(SILENCE, info.lease / 10)),
    )
