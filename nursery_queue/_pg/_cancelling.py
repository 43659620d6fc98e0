"""Asking the server to cancel what a connection is doing."""

from __future__ import annotations

from typing import Any

import psycopg
import trio

from psycopg import capabilities, pq

from ._waiting import guarded


async def request_cancel(conn: psycopg.AsyncConnection[Any]) -> None:
    """Ask over a connection of its own; on return the server has been told.

    So a request can never hit the statement after the one it was meant for. Bound it by a
    cancel scope. Raises `OperationalError` if the server cannot be asked.
    """
    if not capabilities.has_cancel_safe():  # libpq before 17
        await trio.to_thread.run_sync(conn.cancel, abandon_on_cancel=True)
        return
    request = conn.pgconn.cancel_conn()
    try:
        request.start()
        with guarded():
            await trio.lowlevel.wait_writable(request.socket)  # PQcancelPoll wants that first
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
