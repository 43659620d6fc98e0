"""What is left of a client that is cancelled."""

from __future__ import annotations

import psycopg
import trio

import nursery_queue as nq


async def test_a_client_cancelled_as_a_whole(migrated: str) -> None:
    """Cancelling the scope around `connect()` leaves no connection, whichever pools were used."""
    with trio.CancelScope() as scope:
        async with nq.connect(migrated) as client:
            await client.promote()
            await client.stats()
            scope.cancel()
            await trio.sleep_forever()

    query = (
        "select count(*) from pg_stat_activity"
        " where datname = current_database() and application_name = 'nursery_queue'"
    )
    with psycopg.connect(migrated, autocommit=True, application_name="watcher") as conn:
        with trio.fail_after(5):
            while conn.execute(query).fetchone() != (0,):  # noqa: ASYNC110  # no event tells
                await trio.sleep(0.01)
