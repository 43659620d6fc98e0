"""Asking the server to cancel the statement of a connection."""

from __future__ import annotations

import contextlib

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import psycopg
import trio

from psycopg import capabilities, pq

from nursery_queue._trio._clock import held


if TYPE_CHECKING:
    from ._connection import Connection


@contextlib.contextmanager
def expendable(conn: Connection) -> Generator[None]:
    """Close *conn* at once when a call in the block is cancelled, not after cancelling it.

    For a connection that would not be kept anyway: to cancel its statement takes a connection more,
    and up to `cancel_timeout` seconds if the server is gone.
    """
    usual, conn.cancel_timeout = conn.cancel_timeout, 0.0
    try:
        yield
    finally:
        conn.cancel_timeout = usual


async def request_cancel(conn: psycopg.AsyncConnection[Any]) -> None:
    """Ask over a connection of its own; on return the server has been told.

    So a request can never hit the statement after the one it was meant for. Raises
    `OperationalError` if the server cannot be asked. Bound it by a cancel scope.
    """
    with held():
        if capabilities.has_cancel_safe():
            await _request_cancel(conn)
        else:  # libpq before 17 can only block, so in a thread; and without TLS
            await trio.to_thread.run_sync(conn.cancel, abandon_on_cancel=True)


async def _request_cancel(conn: psycopg.AsyncConnection[Any]) -> None:
    request = conn.pgconn.cancel_conn()
    try:
        request.start()
        # PQcancelPoll must not be called before that (psycopg#1335).
        await trio.lowlevel.wait_writable(request.socket)
        while (status := request.poll()) != pq.PollingStatus.OK:
            if status == pq.PollingStatus.READING:
                await trio.lowlevel.wait_readable(request.socket)
            elif status == pq.PollingStatus.WRITING:
                await trio.lowlevel.wait_writable(request.socket)
            else:
                msg = f"the cancel request failed: {request.get_error_message()}"
                raise psycopg.OperationalError(msg)
    finally:
        request.finish()
