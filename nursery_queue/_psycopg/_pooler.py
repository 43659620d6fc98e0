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

    Cancelled, it leaves nothing open. A pooler's sessions serve other clients too, a transaction
    each: nothing that outlives a transaction may be left in them, so nothing is prepared.
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
    """Compare the backend's process id with the one told at connecting: a pooler invents that."""
    cursor = await OwnAsyncCursor(conn).execute(_LOOK, prepare=False)
    answer = await cursor.fetchone()
    assert answer is not None
    pid, conn.isolation, conn.unusual = answer
    # PgBouncer in transaction mode would answer LISTEN and PREPARE, and let them come to nothing
    # (failures.md F27).
    if pid != conn.pgconn.backend_pid:
        conn.pooled, conn.prepare_threshold = True, None
