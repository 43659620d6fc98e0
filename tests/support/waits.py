"""Waiting for what happens by itself: `eventually` lets time pass, `until` only lets others run."""

from __future__ import annotations

import time

from collections.abc import Awaitable, Callable

import psycopg
import trio

from psycopg.conninfo import conninfo_to_dict


BLOCKED = """
    select count(*) from pg_stat_activity
     where datname = %s and wait_event_type = 'Lock' and state = 'active'
"""


def blocked(dsn: str) -> int:
    """Return how many sessions in the database wait for somebody else's lock."""
    with psycopg.connect(dsn, autocommit=True) as session:
        row = session.execute(BLOCKED, [conninfo_to_dict(dsn)["dbname"]]).fetchone()
    assert row is not None
    return int(row[0])


async def eventually(
    holds: Callable[[], bool | Awaitable[bool]], *, within: float = 10.0, every: float = 0.01
) -> None:
    """Return as soon as the condition holds; fail when it does not in time, of trio's clock."""
    with trio.fail_after(within):
        while not await _answer(holds()):  # noqa: ASYNC110  # it is in a database, say
            await trio.sleep(every)


async def _answer(found: bool | Awaitable[bool]) -> bool:
    return await found if isinstance(found, Awaitable) else found


async def until(holds: Callable[[], bool], *, within: float = 20.0) -> None:
    """Return as soon as the condition holds; fail when it does not in time, of the real clock.

    Virtual time does not move meanwhile.
    """
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < within
        await trio.lowlevel.checkpoint()


async def until_blocked(dsn: str, count: int = 1) -> None:
    """Return as soon as that many sessions wait for a lock."""
    await until(lambda: blocked(dsn) >= count)
