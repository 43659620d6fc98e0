"""What runs on each level of a worker, from the outside in: lease, settling, handlers, claiming."""

from __future__ import annotations

import contextlib
import functools
import logging

from collections.abc import AsyncGenerator

import trio

from nursery_queue._client._context import CancelReason
from nursery_queue._core._errors import DatabaseRefused, TransientError
from nursery_queue._store import WorkerStore

from ._lease_renewal import GOODBYE
from ._loops import Loops
from ._queue_declarer import IMPATIENCE
from ._shutdown import FLUSH
from ._wiring import Parts
from ._work_signal import listen


log = logging.getLogger("nursery_queue")


async def keep_lease(parts: Parts, loops: Loops, nursery: trio.Nursery) -> None:
    """Renew the lease, and watch it; report, as long as there may be outcomes."""
    await loops.start(nursery, "lease", parts.renewal.watch)
    impatience = parts.lease.impatience
    await loops.start(nursery, "heartbeat", parts.renewal.heartbeat, impatience)
    await loops.start(nursery, "reporter", parts.reporter.run)


async def settle(parts: Parts, loops: Loops, flushing: trio.CancelScope) -> None:
    """Store outcomes until the outbox is closed and empty, or *flushing* is over."""
    with flushing:
        async with trio.open_nursery() as nursery:
            await loops.start(nursery, "settler", parts.settler.run, parts.lease.impatience)
            await parts.settler.all_written()
            nursery.cancel_scope.cancel("every outcome is stored")


def close_settling(parts: Parts, loops: Loops, flushing: trio.CancelScope) -> None:
    """Store what there is, within bounds."""
    parts.outbox.close()
    loops["settler"].hurry(afresh=True)
    # Bounded, for the database may be down: what is not stored then is swept as lost by another
    # worker when the lease has run out, and the exit report says so.
    flushing.deadline = trio.current_time() + FLUSH


@contextlib.asynccontextmanager
async def ending_with_a_reason(parts: Parts) -> AsyncGenerator[None]:
    """Tell handlers that it is a shutdown if the block fails: a Ctrl-C, in trio's main task."""
    try:
        yield
    except BaseException:
        parts.slots.cancel_all(CancelReason.SHUTDOWN)
        raise


async def claim(
    parts: Parts, loops: Loops, store: WorkerStore, nursery: trio.Nursery, *, listening: bool
) -> None:
    """Begin to claim in *nursery*. Returns when the worker listens and has claimed once.

    And when its schedules are stored, and what is due of all schedules has been enqueued.
    """
    declarer = parts.declarer

    async def start_to_claim() -> None:
        await declarer.tried()
        await loops.start(nursery, "claimer", parts.claimer.run)

    if parts.scheduler.first:  # what is due counts before the worker may call itself idle
        await loops.start(nursery, "scheduler", parts.scheduler.run)
    # All at once: one that cannot begin keeps none of the others waiting.
    nursery.start_soon(loops.start, nursery, "declarations", declarer.run, IMPATIENCE)
    async with trio.open_nursery() as starting:
        if listening:
            bells = (parts.work, parts.renewal.bell, parts.scheduler.bell)
            listener = functools.partial(listen, store, *bells)
            starting.start_soon(loops.start, nursery, "listener", listener)
        starting.start_soon(start_to_claim)
        if not parts.scheduler.first:
            starting.start_soon(loops.start, nursery, "scheduler", parts.scheduler.run)
        starting.start_soon(loops.start, nursery, "maintenance", parts.maintenance.run)


def close_claiming(parts: Parts) -> None:
    """Give back what has been claimed and not started; nothing more is claimed."""
    parts.renewal.draining = True
    parts.shutdown.close_claims()


async def leave(parts: Parts) -> None:
    """Leave nothing behind in the store, if it answers; shielded, bounded."""
    if parts.claimer.must_reconcile:
        with trio.move_on_after(GOODBYE, shield=True):
            try:
                await parts.claimer.reconcile(parts.lease.worker_id)
            except (TransientError, DatabaseRefused) as exc:
                log.warning("could not give back what may be ours; it is swept: %s", exc)
    # After the row is gone its tasks can be claimed again, so the goodbye comes last of all
    # statements about tasks; the report has what is left of its seconds.
    until = trio.current_time() + GOODBYE
    await parts.renewal.end()
    await parts.reporter.end(until)
