"""Who does it: a worker process, which ends well when it is told to.

Started as `python -m examples.checksum_tree.worker`, with the DSN in `NURSERY_QUEUE_DSN`.
"""

from __future__ import annotations

import os
import signal

import trio

import nursery_queue as nq

from .app import SCHEMA, app


CONCURRENCY = 8


async def main(dsn: str) -> None:
    """Work until SIGTERM or SIGINT, then finish what has been begun."""
    async with nq.connect(dsn, schema=SCHEMA) as client, trio.open_nursery() as nursery:
        # Other workers cannot know that one has been killed until its lease has run out. The
        # default of 30 s forgives long pauses; here it is short, since you are watching.
        worker = nq.Worker(app, client, concurrency=CONCURRENCY, lease=3, heartbeat=1, grace=3)
        await nursery.start(stop_when_told, worker)
        await worker.run()
        nursery.cancel_scope.cancel("the worker has ended")


async def stop_when_told(
    worker: nq.Worker, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Stop *worker* when the process gets a signal."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for _ in signals:
            worker.stop()


if __name__ == "__main__":
    trio.run(main, os.environ["NURSERY_QUEUE_DSN"])
