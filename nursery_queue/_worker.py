"""The worker: the nesting of its nurseries is the order of its shutdown."""

from __future__ import annotations

import logging
import os
import random
import socket
import uuid

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Literal

import attrs
import trio

from ._app import App
from ._client import Client
from ._core._checks import duration, label, whole
from ._core._model import WorkerInfo
from ._engine._asyncio_bridge import AsyncioBridge, open_bridge
from ._engine._crew import Crew, Settings
from ._runtime._supervisor import Sibling, SiblingState


log = logging.getLogger("nursery_queue")

SIBLINGS = ("heartbeat", "listener", "poller", "janitor")


@attrs.frozen(kw_only=True)
class SiblingHealth:
    """How one of the worker's loops is doing."""

    state: SiblingState
    restarts: int
    last_error: str | None


@attrs.frozen(kw_only=True)
class Health:
    """How a worker is doing.

    `lease_left` is in seconds. `notify`: whether it hears of new tasks at once ("listening"),
    or will ("polling" says it relies on the poll alone).
    """

    siblings: Mapping[str, SiblingHealth]
    notify: Literal["listening", "polling"]
    lease_left: float
    running: int  # handlers
    held: int  # tasks, the running ones included
    draining: bool
    worker_id: uuid.UUID | None


class Worker:
    """Claims tasks and runs them, each in its own cancel scope.

    Args:
        app: The task types it knows; it claims no others.
        client: Where the tasks are.
        queues: The queues it serves, each with the most tasks of it to hold at once; a
            sequence of names for no limit but *concurrency*. None: all queues.
        concurrency: Handlers at once, at most.
        poll_interval: Seconds between looks at the table, plus or minus 10 %, for what no
            notification told of; 0: none.
        listen: Whether to be woken by NOTIFY.
        lease: Seconds without a heartbeat after which others may take its tasks.
        heartbeat: Seconds between heartbeats; at most a third of *lease*.
        grace: Seconds that handlers have to finish after `stop()`.
        cleanup: Seconds that cancelled handlers have to clean up.
        prefetch: Tasks to claim ahead; "auto" adapts to how long handlers take.
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
        name: str | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._app, self._client = app, client
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
            grace=duration(grace, "grace"),
            cleanup=duration(cleanup, "cleanup"),
            prefetch=None if prefetch == "auto" else whole(prefetch, "prefetch", minimum=0),
            rng=rng or random.Random(),  # noqa: S311  # spreads timers, guards nothing
        )
        if self._settings.heartbeat * 3 > self._lease:
            msg = f"heartbeat ({heartbeat!r}) must be at most a third of lease ({lease!r})"
            raise ValueError(msg)
        self._stop = trio.Event()
        self._crew: Crew | None = None
        self._siblings = {name: Sibling(name) for name in SIBLINGS}

    def stop(self) -> None:
        """Shut down gracefully: claim nothing more, let handlers finish within *grace*.

        May be called again, and before `run`, which then returns at once.
        """
        self._stop.set()

    async def run_until_idle(self) -> None:
        """Work until nothing is ready that this worker could do, and nothing of it runs.

        Tasks scheduled for later are not waited for.
        """
        await self._run(until_idle=True)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until `stop` is called, or until cancelled. Ready when registered and listening.

        Stopped, it lets handlers finish for *grace* seconds, then cancels them with reason
        `shutdown`, gives them *cleanup* seconds, and releases what has not ended: back to
        ready, the attempt refunded. Cancelled, it does the same without the grace.

        Raises:
            SchemaError: The tables are not what this code needs.
            TransientError: The database cannot be reached at the start. Later outages are
                ridden out.
            RuntimeError: It is running already.
        """
        await self._run(until_idle=False, task_status=task_status)

    async def _run(
        self,
        *,
        until_idle: bool,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        if self._crew is not None:
            msg = "this worker is running already: make another one"
            raise RuntimeError(msg)
        info = WorkerInfo(
            id=uuid.uuid4(),
            name=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            task_types=list(self._app.task_types),
            lease=self._lease,
            queues=None if self._settings.queues is None else list(self._settings.queues),
        )
        on_idle = self.stop if until_idle else None
        self._crew = Crew(self._app, self._client, info, self._settings, on_idle, self._siblings)
        try:
            await self._client.store.check()
            if self._stop.is_set():
                task_status.started()
            else:
                await self._cancellable(self._crew, task_status)
        finally:
            self._crew = None
            self._stop = trio.Event()

    async def _cancellable(self, crew: Crew, task_status: trio.TaskStatus[None]) -> None:
        """Work; cancelled from outside, stop without grace.

        Such a cancellation goes through `stop`, and not to everybody at once: handlers are to
        learn the reason, and the lease is kept while they clean up.
        """
        ended = False

        async def heed() -> None:
            try:
                await trio.sleep_forever()
            finally:
                if not ended:
                    crew.patience.cancel("the scope around the worker was cancelled")
                    self.stop()

        try:
            await crew.tenancy.begin()
            async with trio.open_nursery() as outside:
                outside.start_soon(heed)
                with trio.CancelScope(shield=True):
                    await self._shift(crew, task_status)
                ended = True
                outside.cancel_scope.cancel("the worker has ended")
        finally:
            await crew.move_out()

    async def _shift(self, crew: Crew, task_status: trio.TaskStatus[None]) -> None:
        """Work. Read the indentation: what is innermost ends first.

        Leaving intake, nothing more is claimed; leaving work, no handler runs; leaving books,
        every outcome is stored; leaving tenancy, nobody renews the lease.
        """
        flushing = trio.CancelScope(shield=True)
        async with trio.open_nursery() as tenancy:
            await crew.keep_lease(tenancy)
            async with trio.open_nursery() as books:
                books.start_soon(crew.keep_books, flushing, name="settler")
                try:
                    async with self._loop_for_asyncio() as bridge, trio.open_nursery() as work:
                        crew.executor.bridge, crew.work = bridge, work
                        async with trio.open_nursery() as intake:
                            await self._unless_stopped(crew.open_intake, intake)
                            task_status.started()
                            await self._stop.wait()
                            crew.patience.deadline = trio.current_time() + self._settings.grace
                            intake.cancel_scope.cancel("the worker is draining")
                        await crew.drain()
                finally:
                    crew.close_books(flushing)
            tenancy.cancel_scope.cancel("the worker has ended")

    async def _unless_stopped(
        self, begin: Callable[[trio.Nursery], Awaitable[None]], intake: trio.Nursery
    ) -> None:
        """Begin, which may take as long as an outage of the database; leave off when stopped."""

        async def leave_off() -> None:
            await self._stop.wait()
            nursery.cancel_scope.cancel("stopped before it had begun")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave_off)
            await begin(intake)
            nursery.cancel_scope.cancel("it has begun")

    def _loop_for_asyncio(self) -> AbstractAsyncContextManager[AsyncioBridge | None]:
        if any(task_type.asyncio for task_type in self._app.task_types.values()):
            return open_bridge()
        return nullcontext()

    def health(self) -> Health:
        """Say how the worker is doing; callable at any time, never waits."""
        crew = self._crew
        listening = self._siblings["listener"].state is SiblingState.HEALTHY
        return Health(
            siblings={
                name: SiblingHealth(
                    state=sibling.state, restarts=sibling.restarts, last_error=sibling.last_error
                )
                for name, sibling in self._siblings.items()
            },
            notify="listening" if listening else "polling",
            lease_left=0.0 if crew is None else crew.tenancy.lease_left,
            running=0 if crew is None else len(crew.hands.running),
            held=0 if crew is None else len(crew.hands.held),
            draining=crew is not None and crew.tenancy.draining,
            worker_id=None if crew is None else crew.tenancy.info.id,
        )


def _checked_queues(
    queues: Mapping[str, int] | Sequence[str] | None, concurrency: int
) -> dict[str, int] | None:
    if queues is None:
        return None
    if isinstance(queues, str):
        msg = f"queues must be a mapping or a sequence of names: write [{queues!r}]"
        raise TypeError(msg)
    limits = queues if isinstance(queues, Mapping) else dict.fromkeys(queues, concurrency)
    if not limits:
        msg = "queues must name at least one queue; None means all"
        raise ValueError(msg)
    return {
        label(name, "queue"): whole(limit, f"the limit of queue {name!r}", minimum=1)
        for name, limit in limits.items()
    }
