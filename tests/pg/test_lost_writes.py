"""What a call says whose answer was lost: may it have been carried out, or not?"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable

import pytest
import trio

from nursery_queue._core._errors import CommitOutcomeUnknown, TransientError
from nursery_queue._core._filters import CancelFilter, TaskFilter
from nursery_queue._core._streams import StreamRequest
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._psycopg._connection import Connection
from tests.pg.queries import Session, rows
from tests.support.proxy import Proxy, proxied
from tests.support.store_steps import Known, a_task, claimed_once
from tests.support.stream_steps import write
from tests.support.waits import until_blocked


# In what executes a statement that the connection has prepared at its first use.
PREPARED = b"\0_pg3_"

IN_TIME = r"no answer within 0\.5 s"

Call = Callable[[PostgresStore, Known], Awaitable[object]]


async def cancel_some(store: PostgresStore, task: Known, *, dry_run: bool = False) -> object:
    which = CancelFilter(task_type="nobody's")
    return await store.cancel_some(which, after=task.id, upto=task.id, dry_run=dry_run)


WRITES: dict[str, Call] = {
    "enqueue": lambda store, _: store.enqueue([a_task()]),
    "enqueue with a dedup key": lambda store, _: store.enqueue([a_task(dedup_key="k")]),
    "cancel": lambda store, task: store.cancel(task.id),
    "cancel_some": cancel_some,
    "retry": lambda store, task: store.retry(task.id),
    "configure": lambda store, _: store.configure("q", paused=True, max_running=1),
    "write_stream": lambda store, task: write(store, task.fence, "data"),
}
READS: dict[str, Call] = {
    "status_many": lambda store, task: store.status_many([task.id]),
    "attempts": lambda store, task: store.attempts(task.id),
    "list_tasks": lambda store, _: store.list_tasks(TaskFilter()),
    "queues": lambda store, _: store.queues(),
    "workers": lambda store, _: store.workers(),
    "stats": lambda store, _: store.stats(),
    "read_streams": lambda store, task: store.read_streams(
        [StreamRequest(task_id=task.id, name="s")]
    ),
    "cancel_some, to count": lambda store, task: cancel_some(store, task, dry_run=True),
}
# They may be repeated, and whoever does so waits for `TransientError`.
FOR_WORKERS: dict[str, Call] = {
    "declare_queues": lambda store, _: store.declare_queues({"q": {"max_running": 1}}),
    "promote": lambda store, _: store.promote(),
    "sweep": lambda store, _: store.sweep(max_lost=3),
    "prune": lambda store, _: store.prune(),
    "settle": lambda store, task: store.give_back_all_but(task.worker, set()),
    "heartbeat": lambda store, task: store.heartbeat(task.worker, draining=False),
}


@pytest.fixture
async def far(proxy: Proxy) -> AsyncGenerator[PostgresStore]:
    """Give a store behind the proxy."""
    store = PostgresStore(proxy.dsn)
    yield store
    await store.aclose()


async def outcome(call: Call, store: PostgresStore, task: Known) -> type[BaseException] | None:
    try:
        await call(store, task)
    except (CommitOutcomeUnknown, TransientError) as error:
        return type(error)
    return None


@pytest.mark.parametrize("answered", [False, True], ids=["not applied", "applied"])
@pytest.mark.parametrize("name", [*WRITES, *READS, *FOR_WORKERS])
async def test_a_connection_that_dies(
    store: PostgresStore, far: PostgresStore, proxy: Proxy, name: str, answered: bool
) -> None:
    """A write says that it may have been carried out; of a read, that is of no interest."""
    call = (WRITES | READS | FOR_WORKERS)[name]
    task = await claimed_once(store)
    assert await outcome(call, far, task) is None
    proxy.drop_at(PREPARED, answered=answered)

    expected = CommitOutcomeUnknown if name in WRITES else TransientError
    assert await outcome(call, far, task) is expected
    assert await outcome(call, far, task) is None  # on another connection


@pytest.mark.parametrize("answered", [False, True], ids=["not applied", "applied"])
async def test_a_dedup_key_makes_it_safe_to_repeat(
    store: PostgresStore, far: PostgresStore, proxy: Proxy, session: Session, answered: bool
) -> None:
    """Whoever repeats an enqueue with a dedup key until it answers has stored it once."""
    await far.enqueue([a_task(dedup_key="the first")])
    proxy.drop_at(PREPARED, answered=answered)
    with pytest.raises(CommitOutcomeUnknown):
        await far.enqueue([a_task(dedup_key="k")])
    (ref,) = await far.enqueue([a_task(dedup_key="k")])

    assert ref.created is not answered
    assert rows(session, "task") == 2


@pytest.mark.parametrize("name", WRITES)
async def test_a_server_that_ends_the_session(
    store: PostgresStore, session: Session, name: str
) -> None:
    """A session that was closed while it was idle costs nothing: there is another."""
    task = await claimed_once(store)
    assert await outcome(WRITES[name], store, task) is None
    session.execute(
        "select pg_terminate_backend(pid, 10000) from pg_stat_activity"
        " where datname = current_database() and pid <> pg_backend_pid()"
    )

    assert await outcome(WRITES[name], store, task) is None


async def test_a_server_that_ends_the_session_meanwhile(
    store: PostgresStore, session: Session, migrated: str
) -> None:
    """A session that is closed during a write leaves it unknown: FATAL may follow a commit."""
    session.execute("lock table nursery_queue.task")

    async def expel() -> None:
        await until_blocked(migrated)
        session.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and wait_event = 'relation'"
        )

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expel)
            with pytest.raises(CommitOutcomeUnknown, match="administrator"):
                await store.enqueue([a_task()])


async def test_no_answer_in_time(
    migrated: str, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given up for want of an answer it is unknown; given up in time, with an answer, it is not."""
    monkeypatch.setattr(Connection, "cancel_timeout", 0.2)
    async with proxied(migrated) as proxy:
        store = PostgresStore(proxy.dsn, call_timeout=0.5)
        await store.enqueue([a_task()])
        session.execute("lock table nursery_queue.task")
        with pytest.raises(TransientError, match=IN_TIME):
            await store.enqueue([a_task()])
        session.rollback()
        assert rows(session, "task") == 1
        session.rollback()

        proxy.blackhole()
        with pytest.raises(CommitOutcomeUnknown, match=IN_TIME):
            await store.enqueue([a_task()])
        with pytest.raises(TransientError, match=r"no connection within 0\.5 s"):
            await store.enqueue([a_task()])
        await store.aclose()


async def test_no_connection(migrated: str) -> None:
    """What was certainly not sent may be tried again: no server, or no connection free."""
    async with proxied(migrated) as proxy:
        proxy.refusing = True
        store = PostgresStore(proxy.dsn)
        with pytest.raises(TransientError):
            await store.enqueue([a_task()])
        await store.aclose()

    store = PostgresStore(migrated, pool_size=1, call_timeout=0.2)
    async with store.transaction():
        with pytest.raises(TransientError):
            await store.enqueue([a_task()])
    await store.aclose()
