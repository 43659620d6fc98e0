"""Storing tasks by COPY: the session, the bells, and what happens when the network fails."""

from __future__ import annotations

import functools

import psycopg
import pytest
import trio

from nursery_queue._core._errors import CommitOutcomeUnknown, TransientError
from nursery_queue._pg._postgres_store import PostgresStore
from tests.pg.queries import Session, rows
from tests.support.proxy import Proxy, proxied
from tests.support.store_steps import a_task, count


async def test_it_rings_once(store: PostgresStore, session: Session) -> None:
    """Who listens hears of them with the commit."""
    session.autocommit = True
    session.execute("listen nursery_queue")
    await store.enqueue([a_task() for _ in range(1000)], copy=True)
    session.execute("notify nursery_queue, 'last'")
    heard = [notify.payload for notify in session.notifies(timeout=20, stop_after=2)]

    assert heard == ["", "last"]


async def test_a_refused_row_in_a_transaction(store: PostgresStore, session: Session) -> None:
    """A transaction whose COPY was refused goes on without it, if it likes."""
    async with store.transaction() as tx:
        await tx.enqueue([a_task()])
        with pytest.raises(psycopg.errors.CheckViolation, match="task_params_check"):
            await tx.enqueue([a_task(), a_task(params="[]")], copy=True)
        await tx.enqueue([a_task()], copy=True)

    assert rows(session, "ready") == 2


async def test_ids_are_nobody_elses(store: PostgresStore, session: Session) -> None:
    """Ids taken for COPY and ids given by plain inserts never meet."""
    seen: list[int] = []

    async def enqueue(*, copy: bool) -> None:
        for _ in range(10):
            refs = await store.enqueue([a_task() for _ in range(20)], copy=copy)
            seen.extend(ref.id for ref in refs)

    async with trio.open_nursery() as nursery:
        for copy in (True, False, True, False):
            nursery.start_soon(functools.partial(enqueue, copy=copy))

    assert len(set(seen)) == len(seen) == 800
    assert rows(session, "task") == rows(session, "ready") == 800


async def stored_through(proxy: Proxy) -> BaseException | None:
    """Store tasks through a proxy and return the error, if there was one."""
    store = PostgresStore(proxy.dsn)
    try:
        await store.enqueue([a_task(params=f'{{"i": {i}}}') for i in range(3000)], copy=True)
    except (TransientError, CommitOutcomeUnknown) as error:
        return error
    finally:
        await store.aclose()
    return None


# In the middle of COPY the server has nothing to answer.
@pytest.mark.parametrize(
    ("needle", "answered"),
    [
        *[(needle, False) for needle in (b"nextval", b"from stdin", b'{"i": 1}', b'{"i": 2999}')],
        *[(needle, True) for needle in (b"nextval", b"from stdin", b'{"i": 2999}')],
    ],
)
async def test_the_network_fails(
    store: PostgresStore, migrated: str, needle: bytes, answered: bool
) -> None:
    """If the connection is lost on the way, nothing is stored, and trying again may help."""
    async with proxied(migrated) as proxy:
        proxy.drop_at(needle, answered=answered)

        assert isinstance(await stored_through(proxy), TransientError)
        assert await count(store) == 0
        assert await stored_through(proxy) is None

    assert await count(store) == 3000


@pytest.mark.parametrize("answered", [False, True])
async def test_the_network_fails_at_the_end(
    store: PostgresStore, migrated: str, answered: bool
) -> None:
    """If the connection is lost during the commit, the error says that nobody knows."""
    async with proxied(migrated) as proxy:
        proxy.drop_at(b"COMMIT", answered=answered)

        assert isinstance(await stored_through(proxy), CommitOutcomeUnknown)

    assert await count(store) == (3000 if answered else 0)
