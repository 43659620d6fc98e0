"""The one place that picks a store, and the only one above `_pg` that knows it."""

from __future__ import annotations

import contextlib

from collections.abc import AsyncGenerator, Sequence

from nursery_queue._client._client import Client
from nursery_queue._client._instruments import Instrument, LogEvents
from nursery_queue._client._stream_reader import POLL
from nursery_queue._core._checks import whole
from nursery_queue._declare._app import App
from nursery_queue._declare._task_type import MAX_PARAMS_BYTES, MAX_RESULT_BYTES
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._pg._sql import DEFAULT_SCHEMA

from ._admin import migrate_up, readable_dsn


@contextlib.asynccontextmanager
async def connect(
    dsn: str = "",
    *,
    schema: str = DEFAULT_SCHEMA,
    pool_size: int | None = None,
    max_params_bytes: int = MAX_PARAMS_BYTES,
    max_result_bytes: int = MAX_RESULT_BYTES,
    instruments: Sequence[Instrument] | None = None,
    stream_poll_interval: float = POLL,
    app: App | None = None,
) -> AsyncGenerator[Client]:
    """Open a client on a PostgreSQL database, and close it when the block ends.

    Args:
        dsn: A libpq URL or keyword string, or a URL with a driver, as SQLAlchemy has it; what it
            leaves out comes from `PG*` variables. Each address has 5 s to answer unless it has a
            `connect_timeout`; of several hosts it must be one that takes writes unless it has
            `target_session_attrs`.
        schema: Where the tables are.
        pool_size: Connections at most that are lent to the application and to handlers; None: 10,
            and with a worker as many more as it runs handlers at once, at most 8. They are
            opened when needed, and closed when they have been idle for five seconds (two of them:
            ten minutes). A worker adds four of its own, and all who wait for results or read
            streams one. With a number, a quarter of it, at least two and at most ten, is kept
            from the transactions of handlers, so that these get connections for whatever else
            they do: 42 has room for 32 transactions at once, and 3 is the least with which a
            handler may open a transaction while it has `ctx.tx` open.
        max_params_bytes: The largest params, and the largest context, of one task, in bytes of
            JSON.
        max_result_bytes: The largest result of one task that workers with this client store,
            in bytes of JSON; a larger one fails the task at once.
        instruments: Who hears of what happens to tasks, here and in workers with this client;
            None: `LogEvents()` alone.
        stream_poll_interval: Seconds between polls of a stream that is read, should a
            notification get lost; 0: none. All readers together use one more connection, to
            listen.
        app: Whose declarations count for what is enqueued by name; see `Client`.

    Raises:
        TypeError: One of *instruments* is none.
        SchemaError: The schema is missing, older or newer than this code, or the database is not
            in UTF8: it says what to do.
        TransientError: The database cannot be reached.
        psycopg.Error: It refuses us, for instance for a wrong password.
    """
    if pool_size is not None:
        whole(pool_size, "pool_size", minimum=1, maximum=1000)
    store = PostgresStore(readable_dsn(dsn), schema=schema, pool_size=pool_size)
    limit = whole(max_params_bytes, "max_params_bytes", minimum=2)
    heard = (LogEvents(),) if instruments is None else instruments
    async with Client(
        store,
        max_params_bytes=limit,
        max_result_bytes=whole(max_result_bytes, "max_result_bytes", minimum=2),
        instruments=heard,
        stream_poll_interval=stream_poll_interval,
        app=app,
    ) as client:
        await store.check()
        yield client


async def migrate(dsn: str = "", *, schema: str = DEFAULT_SCHEMA) -> list[int]:
    """Create or upgrade the tables, and return the versions that were applied.

    Nothing to do is fine. Any number of processes may do so at once: one does it, the others
    wait. Each migration is a transaction: one that fails or is cancelled leaves nothing.

    Raises:
        SchemaError: The schema was made by newer code, or by other files of the same version;
            or a version is there that the table `migration` does not have; or the database is
            not in UTF8.
        TransientError: The database cannot be reached.
        psycopg.Error: It refuses us.
    """
    return [step.version for step in await migrate_up(dsn, schema)]
