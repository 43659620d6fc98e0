"""Waiting for notifications."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psycopg
import trio

from psycopg.pq.abc import PGconn

from ._waiting import READ, ready_now


async def wait_for_input(pgconn: PGconn) -> None:
    """Wait until the server says something, and read it.

    A virtual clock is not held meanwhile: nothing was asked, so no answer is due.
    """
    try:
        await trio.lowlevel.wait_readable(pgconn.socket)
    except (OSError, trio.ClosedResourceError) as exc:
        msg = "the connection was closed while waiting for notifications"
        raise psycopg.OperationalError(msg) from exc
    pgconn.consume_input()


async def receive(
    pgconn: PGconn, take: Callable[[], list[psycopg.Notify]], deadline: float
) -> list[psycopg.Notify]:
    """Return the notifications *take* finds, waiting until *deadline* for the first.

    Notifications that have arrived are found even if the deadline has passed.
    """
    batch = take()
    with trio.CancelScope(deadline=deadline):
        while not batch:
            # Without waiting first: with a deadline in the past the wait would only raise.
            if ready_now(pgconn.socket, READ):
                pgconn.consume_input()
            else:
                await wait_for_input(pgconn)
            while notify := pgconn.notifies():
                if pgconn.notify_handler is not None:
                    pgconn.notify_handler(notify)
            batch = take()
    return batch


def take_backlog(conn: psycopg.AsyncConnection[Any]) -> list[psycopg.Notify]:
    """Take the notifications that psycopg has kept, since they came along with answers."""
    backlog = conn._notifies_backlog  # pyright: ignore[reportPrivateUsage]  # a test knows
    batch = list(backlog or ())
    if backlog:
        backlog.clear()
    return batch
