"""The worker processes, and what can be seen of their work from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from collections.abc import Callable

import trio

import nursery_queue as nq


async def start_worker(nursery: trio.Nursery, client: nq.Client, dsn: str) -> trio.Process:
    """Start a worker process in *nursery*; return when it is at work."""
    process: trio.Process = await nursery.start(run_worker, dsn)
    nursery.start_soon(relay_log, process)
    await until(client, lambda stats: process.pid in {worker.pid for worker in stats.workers})
    return process


async def run_worker(
    dsn: str, *, task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a worker process until it ends. Cancelled, it sends SIGTERM and waits."""
    try:
        await trio.run_process(
            [sys.executable, "-m", "examples.checksum_tree.worker"],
            # Not as an argument: all users of the machine can read it, with its password.
            env={**os.environ, "NURSERY_QUEUE_DSN": dsn},
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us alone: we tell the workers
            task_status=task_status,
        )
    except subprocess.CalledProcessError as exc:
        if exc.returncode != -signal.SIGKILL:  # which is what happens to one of them here
            raise


async def relay_log(process: trio.Process) -> None:
    """Print what a worker has to say; by itself it would write across the progress bar."""
    assert process.stderr is not None
    async for some in process.stderr:
        print(f"worker {process.pid}: {some.decode(errors='replace').rstrip()}", flush=True)


async def kill(victim: trio.Process, client: nq.Client) -> int:
    """Kill a worker in the middle of its work; return how many tasks it held.

    It is frozen first. What it holds when the server has dealt with all that it had sent, it
    never gives back.
    """
    while True:
        victim.send_signal(signal.SIGSTOP)
        await trio.sleep(0.1)
        stats = await client.stats()
        held = sum(worker.running for worker in stats.workers if worker.pid == victim.pid)
        if held or not remaining(stats):
            victim.kill()
            return held
        victim.send_signal(signal.SIGCONT)
        await trio.sleep(0.01)


async def until(client: nq.Client, condition: Callable[[nq.Stats], bool]) -> None:
    """Look until *condition* is true."""
    while not condition(await client.stats()):  # noqa: ASYNC110  # other processes make it true
        await trio.sleep(0.05)


def remaining(stats: nq.Stats) -> int:
    """Count the tasks that have not ended yet."""
    return sum(
        count
        for states in stats.queues.values()
        for state, count in states.items()
        if not state.is_final
    )
