"""A worker in this process, from its start to its last exit code."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal

from collections.abc import Callable, Mapping
from typing import Any

import attrs
import trio

from nursery_queue._app import App
from nursery_queue._client import Client
from nursery_queue._core._errors import TransientError
from nursery_queue._core._groups import leaves
from nursery_queue._runtime._signals import Escalation, obey
from nursery_queue._worker import Worker

from ._database import Database
from ._errors import CLEAN, PROBLEM, USAGE, ProblemError


log = logging.getLogger("nursery_queue.cli")


def stop_signals() -> list[signal.Signals]:
    """Return what asks us to stop; a hang-up, too, unless somebody (nohup) has said otherwise."""
    wanted = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    return wanted


@attrs.frozen(kw_only=True)
class Shift:
    """What a worker process has been asked to do."""

    app: App
    where: str  # APP, as it was given
    database: Database
    settings: Mapping[str, Any]  # keywords of Worker
    drain: bool = False
    entered: Callable[[], object] = lambda: None  # called when the database has let us in
    # Told how to stop us at once; for those who know of reasons that are no signals.
    on_force: Callable[[Callable[[], None]], object] = lambda _force: None


@attrs.define(eq=False)
class Stopping:
    """How far the stop of a worker has gone."""

    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    worker: Worker | None = None
    forced: bool = False

    def drain(self, signum: signal.Signals) -> None:
        """Claim nothing more, let handlers finish."""
        if self.worker is None:
            self.scope.cancel(f"{signum.name} before there was anything to do")
            return
        log.info(
            "%s: draining; tasks in hand: %d; a second signal cancels them, a third exits at once",
            signum.name,
            self.worker.health().held,
        )
        self.worker.stop()

    def quiet(self, signum: signal.Signals) -> None:
        """Claim nothing more. Does not count as a request to stop."""
        # The worker knows only one way to stop claiming, which has an end.
        log.info("%s: claiming nothing more", signum.name)
        if self.worker is None:
            self.scope.cancel(f"{signum.name} before there was anything to do")
        else:
            self.worker.stop()

    def cancel(self, signum: signal.Signals) -> None:
        """Cancel handlers now, and release their tasks."""
        self.force(f"{signum.name} again")

    def force(self, why: str) -> None:
        """Cancel handlers now, and release their tasks."""
        running = 0 if self.worker is None else self.worker.health().running
        log.warning("%s: cancelling handlers (%d) and releasing their tasks", why, running)
        self.forced = True
        self.scope.cancel(why)

    def exit(self, signum: signal.Signals) -> None:
        """End the process, whatever it is doing."""
        # In the signal handler: no logging, whose locks the interrupted code may hold.
        os.write(2, f"{signum.name}: exiting at once\n".encode())
        os._exit(PROBLEM)


async def work(shift: Shift) -> int:
    """Run a worker until it is told to stop or, draining, is idle; return the exit code.

    Raises `ProblemError` for what keeps it from starting.
    """
    stopping = Stopping()
    escalation = Escalation([stopping.drain, stopping.cancel], stopping.exit)
    async with trio.open_nursery() as watching:
        await watching.start(
            functools.partial(
                obey, escalation, stop_signals(), others={signal.SIGUSR1: stopping.quiet}
            )
        )
        shift.on_force(lambda: stopping.force("the parent process is gone"))
        # What we enter inside, the scope may cancel; we leave it outside, whole.
        async with contextlib.AsyncExitStack() as stack:
            with stopping.scope:
                client = await stack.enter_async_context(shift.database.client())
                await _serve(shift, client, stopping)
        log.info("stopped")
        watching.cancel_scope.cancel("the work is done")
    return PROBLEM if stopping.forced else CLEAN


async def _serve(shift: Shift, client: Client, stopping: Stopping) -> None:
    try:
        worker = Worker(shift.app, client, **shift.settings)
    except (TypeError, ValueError) as exc:
        raise ProblemError(str(exc), code=USAGE) from exc
    shift.entered()
    stopping.worker = worker
    if shift.drain:
        log.info("working until idle: %s", _introduction(shift))
        await worker.run_until_idle()
        return
    ready = False
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            ready = True
            log.info("ready: %s", _introduction(shift))
    except* TransientError as group:
        if ready:
            raise
        raise shift.database.unreachable(next(leaves(group))) from group


def _introduction(shift: Shift) -> str:
    queues = shift.settings.get("queues")
    types = len(shift.app.task_types)
    return (
        f"{types} task type{'' if types == 1 else 's'} of {shift.where},"
        f" {'all queues' if queues is None else 'queues ' + ', '.join(queues)},"
        f" concurrency {shift.settings['concurrency']}, {shift.database}"
    )
