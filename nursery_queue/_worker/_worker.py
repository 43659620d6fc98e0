"""The worker: the nesting of its nurseries is the order of its shutdown."""

from __future__ import annotations

import logging
import os
import random
import socket
import uuid

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Literal, TypeVarTuple

import trio

from nursery_queue._client._client import Client
from nursery_queue._core._checks import duration, label, limit, whole
from nursery_queue._core._model import WorkerInfo
from nursery_queue._core._outcome import MAX_LOST
from nursery_queue._declare._app import App
from nursery_queue._declare._options import as_max_lost
from nursery_queue._first_use import import_all
from nursery_queue._trio._printable import attempts_guarded
from nursery_queue._trio._rng import new_rng
from nursery_queue._trio._supervisor import LoopState

from ._asyncio_bridge import AsyncioBridge, open_bridge
from ._claimer import CLAIM_TIMEOUT
from ._exit_report import ExitReport, tell
from ._handler_health import handlers
from ._health import Health
from ._lease_renewal import GOODBYE
from ._levels import (
    claim,
    close_claiming,
    close_settling,
    ending_with_a_reason,
    keep_lease,
    leave,
    settle,
)
from ._loops import Loops
from ._shutdown import FLUSH
from ._stop_signal import StopSignal
from ._wiring import Parts, Settings, wire


log = logging.getLogger("nursery_queue")
Ts = TypeVarTuple("Ts")


class Worker:
    """Claims tasks and runs them, each in its own cancel scope.

    Stopped, it ends within max(*grace* + *cleanup*, 10) + 9 seconds even if the database is
    down: leases then expire. See `budget` for what these seconds are, and for the exceptions.

    Args:
        app: The task types it knows; it claims no others. What it declares of them is stored
            when the worker starts, for those who enqueue by name and do not have it; and so are its
            schedules.
        client: Where the tasks are.
        queues: The queues it serves, each with the most tasks of it to hold at once; a
            sequence of names for no limit but *concurrency*. None: all queues.
        concurrency: Handlers at once, at most. Of tasks with `transactional=True` a worker takes
            no more than there are connections for; see `connect`.
        poll_interval: Seconds between looks at the table, plus or minus 10 %, for what no
            notification told of; 0: none.
        listen: Whether to be woken by NOTIFY.
        lease: Seconds without a heartbeat after which others may take its tasks.
        heartbeat: Seconds between heartbeats; at most a third of *lease*.
        grace: Seconds that handlers have to finish after `stop()`; infinity: as long as they take.
        cleanup: Seconds that cancelled handlers have to clean up; then their tasks are released.
        prefetch: Tasks to claim ahead; "auto" adapts to how long handlers take.
        max_lost: With how many workers that die while they run it a task fails, unless its task
            type says so. Claims that had not started do not count.
        name: What to call it in lists; host and process by default.
        rng: Where its random numbers come from.

    Raises:
        ValueError, TypeError: A number out of its bounds, or not a number.
    """

    def __init__(
        self,
        app: App,
        client: Client,
        *,
        queues: Mapping[str, int] | Sequence[str] | None = None,
        concurrency: int = 32,
        poll_interval: float = 5.0,
        listen: bool = True,
        lease: float = 30.0,
        heartbeat: float = 3.0,
        grace: float = 20.0,
        cleanup: float = 5.0,
        prefetch: int | Literal["auto"] = "auto",
        max_lost: int = MAX_LOST,
        name: str | None = None,
        rng: random.Random | None = None,
    ) -> None:
        import_all()
        self._app, self._client = app, client
        if client.app is None:  # what its handlers enqueue by name is as its code declares
            client.app = app
        self._lease = duration(lease, "lease", positive=True)
        default_name = f"{socket.gethostname()}:{os.getpid()}"
        self._name = label(default_name if name is None else name, "name")
        concurrency = whole(concurrency, "concurrency", minimum=1, maximum=10_000)
        self._settings = Settings(
            queues=_checked_queues(queues, concurrency),
            concurrency=concurrency,
            poll_interval=duration(poll_interval, "poll_interval"),
            listen=listen,
            heartbeat=duration(heartbeat, "heartbeat", positive=True),
            grace=limit(grace, "grace"),
            cleanup=duration(cleanup, "cleanup"),
            prefetch=None if prefetch == "auto" else whole(prefetch, "prefetch", minimum=0),
            max_lost=as_max_lost(max_lost),
            rng=rng or new_rng(),
        )
        if self._settings.heartbeat * 3 > self._lease:
            msg = f"heartbeat ({heartbeat!r}) must be at most a third of lease ({lease!r})"
            raise ValueError(msg)
        self._stop = StopSignal()
        self._loops = Loops(self._settings.rng)
        self._parts: Parts | None = None  # of the run that is under way
        self._exit_report: ExitReport | None = None

    def stop(self) -> None:
        """Shut down gracefully: claim nothing more, let handlers finish within *grace*.

        May be called again, and before `run`, which then returns at once.
        """
        self._stop.stop()

    def stop_claiming(self) -> None:
        """Claim nothing more, but go on: what is in hand is worked on, until `stop` is called.

        What was claimed ahead goes back. May be called again, and before `run`, which then
        never claims. `run_until_idle` ends when what is in hand has ended.
        """
        self._stop.stop_claiming()

    def budget(self, *, cancelled: bool = False) -> float:
        """Return within how many seconds `run` ends after `stop`, whatever the database does.

        Or after the scope around it is *cancelled*, which leaves out the grace. A claim under
        way is awaited for 10 s, meanwhile handlers have *grace* and then *cleanup*; the last
        outcomes have 5 s to be stored, and leaving has 4 s. PostgreSQL that has fallen silent
        may add 2 s for a statement of ours and 5 s for a handler's, 20 s in all. A handler that
        ignores its cancellation is waited for without end; see `abandoned`.
        """
        grace = 0.0 if cancelled else self._settings.grace
        return max(grace + self._settings.cleanup, CLAIM_TIMEOUT) + FLUSH + 2 * GOODBYE

    async def abandoned(self) -> None:
        """Wait until all that is left of the worker are handlers that ignore their cancellation.

        Then their tasks are released and `exit_report` is there; this leaves the database, and
        returns. The caller may end the process without them. If all handlers end, it
        never returns.
        """
        await self._stop.abandoned.wait()
        if self._parts is not None:
            await leave(self._parts)

    @property
    def exit_report(self) -> ExitReport | None:
        """What became of the tasks in hand at the last `stop`; None until `run` has ended."""
        return self._exit_report if self._parts is None else self._parts.shutdown.abandoned_with

    async def run_until_idle(self) -> None:
        """Work until nothing is ready that this worker could do, and nothing of it runs.

        A ready task whose queue has reached its `max_running` is waited for, also while other
        workers hold the slots: it is run here unless one of them takes it. Not waited for are
        tasks scheduled for later, of paused queues, and of types that this worker does not know;
        nor what others run, when nothing else is left. Cancelled or stopped, it ends as `run`.
        """
        await self._run(until_idle=True)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until `stop` is called, or until cancelled. Ready when registered and listening.

        Stopped, it lets handlers finish for *grace* seconds, then cancels them with reason
        `shutdown`, gives them *cleanup* seconds, and releases what has not ended: back to
        ready, the attempt refunded. Cancelled, it does the same without the grace. Either way
        it ends within its `budget`, except that it waits for handlers that ignore their
        cancellation, and logs who they are.

        Raises:
            SchemaError: The tables are not what this code needs.
            TransientError: The database cannot be reached at the start. Later outages are
                ridden out.
            DatabaseRefused: The database lets no worker register. Later on it is tried again.
            RuntimeError: It is running already.
            Closed: Its client was closed while it ran.
        """
        await self._run(until_idle=False, task_status=task_status)

    async def _run(
        self,
        *,
        until_idle: bool,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        if self._parts is not None:
            raise RuntimeError("this worker is running already: make another one")
        self._exit_report = None
        stop, store = self._stop, self._client.store
        stop.when_idle = until_idle
        parts = self._parts = wire(
            self._app, self._client, self._info(), self._settings, self._loops, stop
        )
        try:
            with self._client.lifetime.used(self._evict):
                await _unless(stop.requested, store.check)
                if stop.requested.is_set():
                    task_status.started()
                else:
                    # The pool of connections grows for the handlers while the block lasts.
                    with store.room_for(self._settings.concurrency) as transactions:
                        parts.slots.transactions = transactions
                        with parts.watchdog.watching_loop(), attempts_guarded():
                            await self._cancellable(parts, task_status)
        finally:
            self._exit_report = parts.shutdown.report()
            tell(self._exit_report)
            self._parts = None
            self._stop = StopSignal()

    def _info(self) -> WorkerInfo:
        task_types, queues = self._app.task_types, self._settings.queues
        return WorkerInfo(
            id=uuid.uuid4(),
            name=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            task_types=list(task_types),
            declared=[each.declaration() for each in task_types.values()],
            lease=self._lease,
            heartbeat=self._settings.heartbeat,
            queues=None if queues is None else list(queues),
            max_lost=self._max_lost(),
            app=self._app.name,
            schedules=list(self._app.schedules),
        )

    def _evict(self) -> float:
        """End now, as if cancelled: the client is being closed."""
        assert self._parts is not None
        self._parts.shutdown.grace_scope.cancel("the client of the worker is being closed")
        self.stop()
        return self.budget(cancelled=True)

    def _max_lost(self) -> dict[str, int]:
        """Return what other workers are to heed, which may know less, if this one dies."""
        usual = self._settings.max_lost
        asked = {} if usual == MAX_LOST else dict.fromkeys(self._app.task_types, usual)
        return {**asked, **self._app.max_lost}

    async def _cancellable(self, parts: Parts, task_status: trio.TaskStatus[None]) -> None:
        """Work; cancelled from outside, stop without grace.

        Such a cancellation goes through `stop`, and not to all tasks at once: handlers are to
        learn the reason, and the lease is kept while they clean up.
        """
        ended = False

        async def heed() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if not ended:
                    parts.shutdown.grace_scope.cancel("the scope around the worker was cancelled")
                    self.stop()

        try:
            await _unless(self._stop.requested, parts.renewal.begin)
            if self._stop.requested.is_set():
                task_status.started()
                return
            async with trio.open_nursery() as outside:
                outside.start_soon(heed, name="cancellation")
                with trio.CancelScope(shield=True):
                    await self._work(parts, task_status)
                ended = True
                outside.cancel_scope.cancel("the worker has ended")
        finally:
            await leave(parts)

    async def _work(self, parts: Parts, task_status: trio.TaskStatus[None]) -> None:
        """Work. Read the indentation: what is innermost ends first.

        Leaving claiming, nothing more is claimed; leaving handlers, none runs; leaving settling,
        every outcome is stored; leaving lease, it is not renewed any more.
        """
        stop, loops, flushing = self._stop, self._loops, trio.CancelScope(shield=True)
        async with trio.open_nursery() as lease:
            await keep_lease(parts, loops, lease)
            async with trio.open_nursery() as settling:
                settling.start_soon(settle, parts, loops, flushing, name="settling")
                try:
                    async with self._loop_for_asyncio() as bridge, trio.open_nursery() as handlers:
                        parts.executor.open(handlers, bridge)
                        handlers.start_soon(parts.shutdown.run, handlers, name="shutdown")
                        async with (
                            ending_with_a_reason(parts),
                            trio.open_nursery() as claiming,
                        ):
                            await _unless(stop.no_claims, self._claim, parts, claiming)
                            task_status.started()
                            await stop.no_claims.wait()
                            claiming.cancel_scope.cancel("the worker claims nothing more")
                        close_claiming(parts)
                finally:
                    close_settling(parts, loops, flushing)
            lease.cancel_scope.cancel("the worker has ended")

    async def _claim(self, parts: Parts, claiming: trio.Nursery) -> None:
        store, listening = self._client.store, self._settings.listen
        await claim(parts, self._loops, store, claiming, listening=listening)

    def _loop_for_asyncio(self) -> AbstractAsyncContextManager[AsyncioBridge | None]:
        if any(task_type.asyncio for task_type in self._app.task_types.values()):
            return open_bridge()
        return nullcontext()

    def health(self) -> Health:
        """Say how the worker is doing. Never waits; call it at any time, in trio's thread."""
        parts = self._parts
        listening = self._loops["listener"].state is LoopState.HEALTHY
        return Health(
            loops=self._loops.health(),
            notify="listening" if listening else "polling",
            lease_left=0.0 if parts is None else parts.lease.left,
            loop_lag=0.0 if parts is None else parts.watchdog.lag,
            running=0 if parts is None else len(parts.slots.running),
            handlers=() if parts is None else tuple(handlers(parts.slots, parts.threads)),
            held=0 if parts is None else len(parts.slots.held),
            claiming=parts is not None and not self._stop.no_claims.is_set(),
            draining=parts is not None and self._stop.requested.is_set(),
            worker_id=None if parts is None else parts.lease.worker_id,
        )


async def _unless(stop: trio.Event, begin: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
    """Begin, which may take as long as an outage of the database; leave off when stopped."""
    if stop.is_set():
        await trio.lowlevel.checkpoint()
        return
    error: Exception | None = None

    async def leave_off() -> None:
        await stop.wait()
        nursery.cancel_scope.cancel("stopped before it had begun")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leave_off, name="leave off")
        try:
            await begin(*args)
        except Exception as exc:  # noqa: BLE001  # raised below: the nursery would make it a group
            error = exc
        nursery.cancel_scope.cancel("it has begun")
    if error is not None:
        raise error


def _checked_queues(
    queues: Mapping[str, int] | Sequence[str] | None, concurrency: int
) -> dict[str, int] | None:
    if queues is None:
        return None
    if isinstance(queues, str):
        raise TypeError(f"queues must be a mapping or a sequence of names: write [{queues!r}]")
    limits = queues if isinstance(queues, Mapping) else dict.fromkeys(queues, concurrency)
    if not limits:
        raise ValueError("queues must name at least one queue; None means all")
    return {
        label(name, "queue"): whole(limit, f"the limit of queue {name!r}", minimum=1)
        for name, limit in limits.items()
    }
