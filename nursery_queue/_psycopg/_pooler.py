"""Poolers such as PgBouncer, which lend one session of the server to many clients in turn."""

from __future__ import annotations

import importlib.resources

from ._cancelling import expendable
from ._connection import Connection
from ._cursors import OwnAsyncCursor
from ._hosts import Hosts


_LOOK = (importlib.resources.files("nursery_queue._psycopg") / "look.sql").read_bytes()


async def connect(conninfo: str, hosts: Hosts | None = None) -> Connection:
    """Connect, and find out whether a pooler stands in between: then `pooled` is true.

    Its sessions are other clients' too, a transaction each: nothing that outlives a
    transaction may be left in them, so nothing is prepared. Cancelled, it leaves nothing open.
    """
    conn = await Connection.connect_to(hosts or Hosts(), conninfo)
    try:
        with expendable(conn):
            await _look(conn)
    except BaseException:
        conn.abort()
        raise
    return conn


async def _look(conn: Connection) -> None:
    """Compare who answers with who let us in: a pooler has invented the latter."""
    cursor = await OwnAsyncCursor(conn).execute(_LOOK, prepare=False)
    answer = await cursor.fetchone()
    assert answer is not None
    pid, conn.isolation, conn.unusual = answer
    if pid != conn.pgconn.backend_pid:
        conn.pooled, conn.prepare_threshold = True, None
