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
from nursery_queue._worker._exit_report import ExitReport
from nursery_queue._worker._worker import Worker

from ._database import Database
from ._deadline import Deadline
from ._failures import CLEAN, PROBLEM, USAGE, ProblemError
from ._left_over import tell_what_is_left
from ._logging import say_at_once


log = logging.getLogger("nursery_queue.cli")

MARGIN = 2.0  # seconds, for what is not counted


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
    pool_size: int | None = None  # connections for handlers, at most; None: as many as needed
    entered: Callable[[], object] = lambda: None  # called when the database has let us in
    # Told how to stop us at once, from any thread; for those whose reasons are no signals.
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

    A loop that is blocked cannot even begin to stop: it has the time that handlers have to
    do something about it.
    """

    shift: Shift
    deadline: Deadline
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    worker: Worker | None = None
    asked: bool = False  # a signal has asked for the end
    forced: bool = False
    claims: bool = True

    def heard(self, count: int) -> None:
        """A stop was asked for; called by the signal handler, however busy the loop is."""
        grace = self.shift.grace if count == 1 else 0.0
        self.deadline.within(grace + self.shift.cleanup + MARGIN)

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

    def quiet(self, signum: signal.Signals) -> None:
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
        """End the process, whatever it is doing."""
        say_at_once(logging.CRITICAL, f"{signum.name}: exiting at once")
        os._exit(PROBLEM)

    @property
    def code(self) -> int:
        """The exit code."""
        report = None if self.worker is None else self.worker.exit_report
        return exit_code(report, forced=self.forced)


async def work(shift: Shift) -> int:
    """Run a worker until it is told to stop or, draining, is idle; return the exit code.

    Handlers that ignore their cancellation, and whatever else does not end in time, do not
    keep the process: it ends at once then. Raises `ProblemError` for what keeps it from starting.
    """
    token, root = trio.lowlevel.current_trio_token(), trio.lowlevel.current_root_task()
    assert root is not None
    look = functools.partial(_dump, root)
    with Deadline(functools.partial(_too_late, look)) as deadline:
        stopping = Stopping(shift, deadline)
        escalation = Escalation([stopping.drain, stopping.cancel], stopping.exit, stopping.heard)

        def force() -> None:
            deadline.within(shift.cleanup + MARGIN)
            with contextlib.suppress(trio.RunFinishedError):
                token.run_sync_soon(stopping.force, "the parent process is gone")

        async with trio.open_nursery() as watching:
            await watching.start(
                functools.partial(
                    obey,
                    escalation,
                    stop_signals(),
                    others={signal.SIGUSR1: stopping.quiet},
                    at_once={signal.SIGUSR2: functools.partial(_tell, stopping, look)},
                    lasting=True,
                ),
                name="signals",
            )
            shift.on_force(force)
            # What we enter inside, the scope may cancel; we leave it outside, whole.
            async with contextlib.AsyncExitStack() as stack:
                with stopping.scope:
                    client = await stack.enter_async_context(
                        shift.database.client(pool_size=shift.pool_size, patience=math.inf)
                    )
                    worker = _employ(shift, client, stopping)
                    watching.start_soon(_leave_without, worker, look, name="abandoned")
                    await _serve(shift, worker)
                    if shift.drain and stopping.claims and not stopping.asked:
                        served = shift.settings["queues"]
                        await tell_what_is_left(client, served, shift.where)
            log.info("stopped")
            watching.cancel_scope.cancel("the work is done")
    return stopping.code


def exit_code(report: ExitReport | None, *, forced: bool) -> int:
    """Return what a worker process ends with: was every task in hand brought to a good end?"""
    clean = report is None or report.clean
    return CLEAN if clean and not forced else PROBLEM


def _employ(shift: Shift, client: Client, stopping: Stopping) -> Worker:
    try:
        worker = Worker(shift.app, client, **shift.settings)
    except (TypeError, ValueError) as exc:
        raise ProblemError(str(exc), code=USAGE) from exc
    shift.entered()
    stopping.worker = worker
    if not stopping.claims:
        worker.stop_claiming()
    return worker


async def _serve(shift: Shift, worker: Worker) -> None:
    ready = False
    try:
        if shift.drain:
            log.info("working until idle: %s", _introduction(shift))
            await worker.run_until_idle()
            return
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run, name="worker")
            ready = True
            log.info("ready: %s", _introduction(shift))
    except* TransientError as group:
        if ready:
            raise
        raise shift.database.unreachable(next(leaves(group))) from group
    except* DatabaseRefused as group:
        refusal = next(leaves(group))
        raise shift.database.refused(refusal.__cause__ or refusal) from group


async def _leave_without(worker: Worker, look: Look) -> None:
    """End the process when all that is left are handlers that ignore their cancellation."""
    await worker.abandoned()
    look(None)
    say_at_once(logging.CRITICAL, "exiting without the handlers that have not ended")
    os._exit(PROBLEM)


def _too_late(look: Look) -> None:
    """End the process; called in a thread."""
    ours = threading.main_thread().ident
    assert ours is not None
    look(sys._current_frames().get(ours))  # pyright: ignore[reportPrivateUsage]  # documented
    say_at_once(logging.CRITICAL, "the stop takes longer than it may: exiting at once")
    os._exit(PROBLEM)


def _dump(root: trio.lowlevel.Task, running: FrameType | None) -> None:
    """Write on stderr what every task waits for."""
    try:
        text = task_tree(root, running=running)
    except Exception as exc:  # noqa: BLE001  # whatever was interrupted is to go on
        text = f"could not be read: {exc!r}"
    say_at_once(logging.INFO, f"task tree:\n{text}")


def _tell(stopping: Stopping, look: Look, running: FrameType | None) -> None:
    """Write on stderr what every task waits for, and what is in no tree: abandoned threads."""
    look(running)
    try:
        handlers = () if stopping.worker is None else stopping.worker.health().handlers
        abandoned = [f"in a thread: {each}" for each in handlers if each.state == "abandoned"]
    except Exception as exc:  # noqa: BLE001  # as above
        abandoned = [f"abandoned threads could not be read: {exc!r}"]
    if abandoned:
        say_at_once(logging.INFO, "\n".join(abandoned))


def _introduction(shift: Shift) -> str:
    queues = shift.settings.get("queues")
    types = len(shift.app.task_types)
    return (
        f"{types} task type{'' if types == 1 else 's'} of {shift.where},"
        f" {'all queues' if queues is None else 'queues ' + ', '.join(queues)},"
        f" concurrency {shift.settings['concurrency']}, {shift.database}"
    )
