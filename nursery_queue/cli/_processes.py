"""A parent of worker processes: starts them, passes signals on, waits for them."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import signal
import subprocess

from collections.abc import Sequence

import attrs
import trio

from nursery_queue._core._retry import Backoff
from nursery_queue._trio._rng import new_rng
from nursery_queue._trio._signals import Escalation, obey

from ._failures import CLEAN, PROBLEM, UNREACHABLE, USAGE
from ._interpreter import python
from ._logging import say_at_once
from ._parent_pipe import ParentPipe
from ._worker_process import stop_signals


log = logging.getLogger("nursery_queue.cli")


async def run_processes(count: int, args: Sequence[str]) -> int:
    """Run *count* workers with *args* until all have ended; return their worst exit code.

    The first must have reached the database before the others start, so that an error that all
    of them have is told once. A worker that finds the database away after that, or is killed before
    it is at work, is started again, ever more slowly; one that ends with exit code 2, which waiting
    does not cure, ends them all. One that ends otherwise, or has been at work, is not started
    again, and the others go on. When this process dies, even by SIGKILL, they end, too.
    """
    processes = WorkerProcesses(args)
    escalation = Escalation([processes.stop, processes.stop], processes.kill)
    async with trio.open_nursery() as watching:
        await watching.start(
            functools.partial(
                obey,
                escalation,
                stop_signals(),
                others={signal.SIGUSR1: processes.stop_claiming, signal.SIGUSR2: processes.pass_on},
                lasting=True,
            )
        )
        try:
            async with trio.open_nursery() as children:
                await children.start(processes.keep_running, 1)
                for number in range(2, count + 1):
                    if processes.claims and not processes.stopping and not processes.codes:
                        children.start_soon(processes.keep_running, number)
        finally:
            processes.end()
        watching.cancel_scope.cancel("all have ended")
    return max(processes.codes, default=CLEAN)


@attrs.define(eq=False)
class WorkerProcesses:
    """The worker processes of one parent: it starts them and passes signals on."""

    args: Sequence[str]
    codes: list[int] = attrs.field(factory=list[int], init=False)
    stopping: bool = attrs.field(default=False, init=False)
    claims: bool = attrs.field(default=True, init=False)
    reached: bool = attrs.field(default=False, init=False)  # the database, by one of them
    # Set once no worker is to be started any more.
    _no_more_starts: trio.Event = attrs.field(factory=trio.Event, init=False)
    # Read by the children: it ends with this process.
    _pipe: tuple[int, int] = attrs.field(factory=os.pipe, init=False)
    _children: dict[int, trio.Process] = attrs.field(factory=dict[int, trio.Process], init=False)
    # Those that handle signals. Before they do, most signals would kill them.
    _listening: set[trio.Process] = attrs.field(factory=set[trio.Process], init=False)

    async def keep_running(
        self, number: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Run a worker process until it is not to be started again.

        Ready when it is connected, has ended or, after a stop, is not started at all.
        """
        rng, ready = new_rng(), False
        for failures in itertools.count(1):
            if self.stopping:
                break
            process, connected = await self._run_once(number, None if ready else task_status)
            ready = ready or connected
            passing = _passing_trouble(process, connected=connected)
            if passing is None or not self.reached or self._no_more_starts.is_set():
                self._note_end(number, process)
                break
            delay = Backoff().delay(failures, rng)
            log.warning(
                "worker %d (process %d) %s: starting it again in %.3g s",
                number,
                process.pid,
                passing,
                delay,
            )
            with trio.move_on_after(delay):
                await self._no_more_starts.wait()
            if self._no_more_starts.is_set():
                return  # it had claimed nothing
        if not ready:
            task_status.started()

    async def _run_once(
        self, number: int, task_status: trio.TaskStatus[None] | None
    ) -> tuple[trio.Process, bool]:
        """Run a worker process to its end; return it, and whether it was connected."""
        ready, its_ready = os.pipe()
        with open(ready, "rb", buffering=0) as answer:  # noqa: ASYNC230, PTH123  # a pipe
            pipe = ParentPipe(number, self._pipe[0], its_ready)
            try:
                process = await self._started(pipe)
            finally:
                os.close(its_ready)
            self._children[number] = process
            if self.stopping:  # the stop came while a thread was making the process
                process.terminate()
            try:
                await trio.lowlevel.wait_readable(answer)
                if connected := bool(answer.read(1)):
                    self.reached = True
                    self._listening.add(process)
                    if not self.claims:
                        process.send_signal(signal.SIGUSR1)
                    if task_status is not None:
                        task_status.started()
                await process.wait()
            finally:
                if process.returncode is None:
                    process.kill()
            del self._children[number]
            self._listening.discard(process)
        return process, connected

    async def _started(self, pipe: ParentPipe) -> trio.Process:
        return await trio.lowlevel.open_process(
            [*python(), "-m", "nursery_queue", "worker", "--child", str(pipe), *self.args],
            stdin=subprocess.DEVNULL,
            pass_fds=[pipe.closed_by_parent, pipe.ready],
            # Ctrl-C on a terminal goes to the whole foreground group. Workers are not part of it,
            # or they would hear it twice: from the terminal, and from their parent.
            process_group=0,
        )

    def _note_end(self, number: int, process: trio.Process) -> None:
        code = process.returncode
        assert code is not None
        if code < 0:
            # Told to stop before it could handle the signal: it had claimed nothing.
            clean = self.stopping and -code == signal.SIGTERM
            if not clean:
                log.error(
                    "worker %d (process %d) was killed by %s",
                    number,
                    process.pid,
                    _signal_of(process),
                )
            code = CLEAN if clean else PROBLEM
        elif code != CLEAN:
            log.error("worker %d (process %d) ended with exit code %d", number, process.pid, code)
        self.codes.append(code)
        if code == USAGE and self.reached and not self.stopping:
            log.error("none can be started now: ending the others (%d)", len(self._children))
            self._end_all()

    def stop(self, signum: signal.Signals) -> None:
        """Ask all to stop, or to stop sooner."""
        log.info("%s: passing it on to %d workers", signum.name, len(self._children))
        self._end_all()

    def _end_all(self) -> None:
        self.stopping = True
        self._no_more_starts.set()
        for process in self._children.values():
            process.terminate()

    def stop_claiming(self, signum: signal.Signals) -> None:
        """Ask all to claim nothing more; those that are starting, once they handle signals."""
        self.claims = False
        self._no_more_starts.set()
        self.pass_on(signum)

    def pass_on(self, signum: signal.Signals) -> None:
        """Pass on a signal as it is."""
        for process in self._listening:
            process.send_signal(signum)

    def kill(self, signum: signal.Signals) -> None:
        """End all, and this process, at once."""
        for process in list(self._children.values()):
            process.kill()
        say_at_once(logging.CRITICAL, f"{signum.name}: exiting at once")
        os._exit(PROBLEM)

    def end(self) -> None:
        """Close the pipe, upon which a child that is still there ends, too."""
        for descriptor in self._pipe:
            os.close(descriptor)


def _passing_trouble(process: trio.Process, *, connected: bool) -> str | None:
    """Say what has kept a worker from starting, if that may pass."""
    assert process.returncode is not None
    if process.returncode == UNREACHABLE:
        return "could not reach the database"
    if process.returncode < 0 and not connected:
        return f"was killed by {_signal_of(process)} before it was at work"
    return None


def _signal_of(process: trio.Process) -> str:
    """Return the name of the signal that has ended a process."""
    assert process.returncode is not None
    return signal.Signals(-process.returncode).name
