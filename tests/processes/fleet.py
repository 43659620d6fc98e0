"""Task types and a worker program for tests that need real processes.

Run as a program, it works until SIGTERM, with every log line on stderr.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys

import trio

import nursery_queue as nq


app = nq.App()


@app.task(name="ran", transactional=True)
async def ran(ctx: nq.TaskContext, i: int) -> None:
    """Note, with the completion, which process ran which task."""
    await ctx.tx.execute("insert into ran (i, pid) values (%s, %s)", [i, os.getpid()])


@app.task(name="count")
async def count(i: int) -> int:
    """Say who ran it."""
    return os.getpid()


async def main(dsn: str, concurrency: int) -> None:
    """Work until SIGTERM."""
    # Four of them, and what the test and its neighbours open, fit into one server.
    async with nq.connect(dsn, pool_size=10) as client, trio.open_nursery() as nursery:
        worker = nq.Worker(app, client, concurrency=concurrency)
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            await nursery.start(worker.run)
            print("ready", flush=True)  # noqa: T201  # the test waits for it
            async for _ in signals:
                worker.stop()
                break


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    parser = argparse.ArgumentParser()
    parser.add_argument("dsn")
    parser.add_argument("--concurrency", type=int, default=32)
    options = parser.parse_args()
    trio.run(main, options.dsn, options.concurrency)
