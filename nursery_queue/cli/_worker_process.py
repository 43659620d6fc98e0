"""A worker in this process, from its start to its last exit code."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import signal
import sys
import threading

from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

import attrs
import trio

from nursery_queue._client._client import Client
from nursery_queue._core._errors import DatabaseRefused, TransientError
from nursery_queue._core._exception_groups import leaves
from nursery_queue._declare._app import App
from nursery_queue._trio._signals import Escalation, Look, obey
from nursery_queue._trio._task_tree import task_tree
from nursery_queue._worker._exit_report import ExitReport, tell
from nursery_queue._worker._worker import Worker

from ._database import Database
from ._deadline import Deadline
from ._failures import CLEAN, PROBLEM, USAGE, ProblemError
from ._garbage import freeze_the_start
from ._logging import say_at_once
from ._remaining_tasks import log_remaining_tasks


log = logging.getLogger("nursery_queue.cli")

MARGIN = 2.0  # seconds, for what is not counted


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a worker; SIGHUP, too, unless it is ignored (nohup)."""
    wanted = [signal.SIGTERM, signal.SIGINT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        wanted.append(signal.SIGHUP)
    return wanted


@attrs.frozen(kw_only=True)
class WorkerSpec:
    """How a worker process is to run."""

    app: App
    where: str  # APP, as it was given
    database: Database
    settings: Mapping[str, Any]  # keywords of Worker
    drain: bool = False
    pool_size: int | None = None  # connections for handlers, at most; None: as many as needed
    on_connected: Callable[[], object] = lambda: None
    # Given a function that stops the worker at once, from any thread: the parent may be gone.
    on_force: Callable[[Callable[[], None]], object] = lambda _force: None

    @property
    def cleanup(self) -> float:
        """Seconds that cancelled handlers have to clean up."""
        return float(self.settings["cleanup"])

    @property
    def grace(self) -> float:
        """Seconds that handlers have to finish."""
        return float(self.settings["grace"])


@attrs.define(eq=False)
class Stopping:
    """How far the stop of a worker has gone, and how long it may take.

    A blocked loop cannot even begin to stop: from the signal on, it has the time that handlers
    have.
    """

    spec: WorkerSpec
    deadline: Deadline
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    worker: Worker | None = None
    asked: bool = False  # a signal has asked for the end
    forced: bool = False
    claims: bool = True

    def heard(self, count: int) -> None:
        """A stop was asked for; called by the signal handler, however busy the loop is."""
        grace = self.spec.grace if count == 1 else 0.0
        self.deadline.within(grace + self.spec.cleanup + MARGIN)

    def drain(self, signum: signal.Signals) -> None:
        """Claim nothing more, let handlers finish."""
        self.asked = True
        if self.worker is None:
            self.deadline.within(MARGIN)
            self.scope.cancel(f"{signum.name} before there was anything to do")
            return
        self.deadline.within(self.worker.budget() + MARGIN)
        log.info(
            "%s: draining; tasks in hand: %d; a second signal cancels them, a third exits at once",
            signum.name,
            self.worker.health().held,
        )
        self.worker.stop()

    def stop_claiming(self, signum: signal.Signals) -> None:
        """Claim nothing more, and go on. Does not count as a request to stop."""
        held = 0 if self.worker is None else self.worker.health().held
        log.info("%s: claiming nothing more; tasks in hand: %d", signum.name, held)
        self.claims = False
        if self.worker is not None:
            self.worker.stop_claiming()

    def cancel(self, signum: signal.Signals) -> None:
        """Cancel handlers now, and release their tasks."""
        self.force(f"{signum.name} again")

    def force(self, why: str) -> None:
        """Cancel handlers now, and release their tasks."""
        running = 0 if self.worker is None else self.worker.health().running
        log.warning("%s: cancelling handlers (%d) and releasing their tasks", why, running)
        budget = 0.0 if self.worker is None else self.worker.budget(cancelled=True)
        self.deadline.within(budget + MARGIN)
        self.forced = True
        self.scope.cancel(why)

    def exit(self, signum: signal.Signals) -> None:
        """End the process at once."""
        say_at_once(logging.CRITICAL, f"{signum.name}: exiting at once")
        os._exit(PROBLEM)

    @property
    def code(self) -> int:
        """The exit code."""
        report = None if self.worker is None else self.worker.exit_report
        return exit_code(report, forced=self.forced)


async def work(spec: WorkerSpec) -> int:
    """Run a worker until it is told to stop or, draining, is idle; return the exit code.

    Handlers that ignore their cancellation, and all else that does not end in time, do not
    keep the process: it ends at once then. Raises `ProblemError` if the worker cannot start.
    """
    freeze_the_start()
    token, root = trio.lowlevel.current_trio_token(), trio.lowlevel.current_root_task()
    assert root is not None
    look = functools.partial(_dump, root)
    with Deadline(functools.partial(_exit_at_deadline, look)) as deadline:
        stopping = Stopping(spec, deadline)
        escalation = Escalation([stopping.drain, stopping.cancel], stopping.exit, stopping.heard)

        def force() -> None:
            deadline.within(spec.cleanup + MARGIN)
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(stopping.force, "the parent process is gone")

        async with trio.open_nursery() as watching:
            await watching.start(
                functools.partial(
                    obey,
                    escalation,
                    stop_signals(),
                    others={signal.SIGUSR1: stopping.stop_claiming},
                    at_once={signal.SIGUSR2: functools.partial(_dump_all, stopping, look)},
                    lasting=True,
                ),
                name="signals",
            )
            spec.on_force(force)
            # The client is entered in the scope, which may cancel that, and left outside of it.
            async with contextlib.AsyncExitStack() as stack:
                with stopping.scope:
                    client = await stack.enter_async_context(
                        spec.database.client(pool_size=spec.pool_size, full_for=math.inf)
                    )
                    worker = _make_worker(spec, client, stopping)
                    watching.start_soon(_exit_without_handlers, worker, look, name="abandoned")
                    await _run_worker(spec, worker)
                    if spec.drain and stopping.claims and not stopping.asked:
                        served = spec.settings["queues"]
                        await log_remaining_tasks(client, served, spec.where)
            log.info("stopped")
            watching.cancel_scope.cancel("the work is done")
    return stopping.code


def exit_code(report: ExitReport | None, *, forced: bool) -> int:
    """Return the exit code of a worker process: 0 if each of its claims came to a good end."""
    clean = report is None or report.clean
    return CLEAN if clean and not forced else PROBLEM


def _make_worker(spec: WorkerSpec, client: Client, stopping: Stopping) -> Worker:
    try:
        worker = Worker(spec.app, client, **spec.settings)
    except (TypeError, ValueError) as exc:
        raise ProblemError(str(exc), code=USAGE) from exc
    spec.on_connected()
    stopping.worker = worker
    if not stopping.claims:
        worker.stop_claiming()
    return worker


async def _run_worker(spec: WorkerSpec, worker: Worker) -> None:
    ready = False
    try:
        if spec.drain:
            log.info("working until idle: %s", _description(spec))
            await worker.run_until_idle()
            return
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run, name="worker")
            ready = True
            log.info("ready: %s", _description(spec))
    except* TransientError as group:
        if ready:
            raise
        raise spec.database.unreachable(next(leaves(group))) from group
    except* DatabaseRefused as group:
        refusal = next(leaves(group))
        raise spec.database.refused(refusal.__cause__ or refusal) from group


async def _exit_without_handlers(worker: Worker, look: Look) -> None:
    """End the process when all that is left are handlers that ignore their cancellation."""
    await worker.abandoned()
    # The run has not ended and never will, so it does not tell.
    if (report := worker.exit_report) is not None:
        tell(report)
    look(None)
    say_at_once(logging.CRITICAL, "exiting without the handlers that have not ended")
    os._exit(PROBLEM)


def _exit_at_deadline(look: Look) -> None:
    """End the process at its deadline; called in a thread."""
    ours = threading.main_thread().ident
    assert ours is not None
    look(sys._current_frames().get(ours))  # pyright: ignore[reportPrivateUsage]  # documented
    say_at_once(logging.CRITICAL, "the stop takes longer than it may: exiting at once")
    os._exit(PROBLEM)


def _dump(root: trio.lowlevel.Task, running: FrameType | None) -> None:
    """Write on stderr what every task waits for."""
    try:
        text = task_tree(root, running=running)
    except Exception as exc:  # noqa: BLE001  # the code that was interrupted is to go on
        text = f"could not be read: {exc!r}"
    say_at_once(logging.INFO, f"task tree:\n{text}")


def _dump_all(stopping: Stopping, look: Look, running: FrameType | None) -> None:
    """Write on stderr what every task waits for, and which threads are abandoned."""
    look(running)
    try:
        handlers = () if stopping.worker is None else stopping.worker.health().handlers
        abandoned = [f"in a thread: {each}" for each in handlers if each.state == "abandoned"]
    except Exception as exc:  # noqa: BLE001  # the same
        abandoned = [f"abandoned threads could not be read: {exc!r}"]
    if abandoned:
        say_at_once(logging.INFO, "\n".join(abandoned))


def _description(spec: WorkerSpec) -> str:
    queues = spec.settings.get("queues")
    types = len(spec.app.task_types)
    return (
        f"{types} task type{'' if types == 1 else 's'} of {spec.where},"
        f" {'all queues' if queues is None else 'queues ' + ', '.join(queues)},"
        f" concurrency {spec.settings['concurrency']}, {spec.database}"
    )
