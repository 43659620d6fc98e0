"""Whatever a database or a role has as default, our own statements run as they do elsewhere."""

from __future__ import annotations

import contextlib
import uuid

from collections.abc import AsyncGenerator, Generator

import psycopg
import pytest
import trio

from psycopg import errors, sql
from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from nursery_queue._pg import _migrator as _migrate
from nursery_queue._pg._postgres_store import PostgresStore
from tests.pg.queries import Session
from tests.support.pooler import pooled
from tests.support.store_steps import a_task, claim, hire


LEVELS = ("repeatable read", "serializable")
# Each breaks a program that relies on the server's own default.
HOSTILE = {
    "default_transaction_isolation": "serializable",
    "default_transaction_deferrable": "on",
    "search_path": "hostile, public",
    "array_nulls": "off",
    "DateStyle": "German",
    "IntervalStyle": "iso_8601",
    "TimeZone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "standard_conforming_strings": "off",
    "escape_string_warning": "off",
    "extra_float_digits": "-15",
    "row_security": "off",
    "client_min_messages": "debug5",
    "check_function_bodies": "off",
    "enable_indexscan": "off",
    "lock_timeout": "1ms",
    "idle_session_timeout": "200ms",
    "plpgsql.extra_errors": "all",
    "plpgsql.extra_warnings": "all",
    "xmloption": "document",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "debug_parallel_query": "on",
}


def let_default(session: Session, level: str) -> None:
    """Let transactions of this database be of that level unless they say otherwise."""
    alter = sql.SQL("alter database {} set default_transaction_isolation = {}")
    session.execute(alter.format(sql.Identifier(session.info.dbname), level))
    session.commit()


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, session: Session) -> str:
    let_default(session, request.param)
    return str(request.param)


# -- limits ---------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    "change",
    [
        "insert into nursery_queue.queue (name, max_running) values ('default', 10)",
        "update nursery_queue.queue set max_running = 10",
    ],
)
async def test_a_limit_is_set_only_where_all_that_runs_is_seen(
    session: Session, store: PostgresStore, level: str, change: str
) -> None:
    """In a transaction with a snapshot of its own a limit is refused, and the error says why."""
    await store.enqueue([a_task() for _ in range(20)])
    if change.startswith("update"):
        await store.configure("default", paused=False)
    session.execute(f"set transaction isolation level {level}".encode())
    session.execute("select from nursery_queue.task")  # its snapshot is older than the claim
    assert len(await claim(store, await hire(store), 20)) == 20
    told = f"limit of queue default cannot be set in a transaction that is {level}"
    with pytest.raises(errors.ObjectNotInPrerequisiteState, match=told) as caught:
        session.execute(change.encode())
    assert "begin isolation level read committed" in (caught.value.diag.message_hint or "")
    session.rollback()


@pytest.mark.parametrize("level", LEVELS)
async def test_what_sets_no_limit_is_free(
    session: Session, store: PostgresStore, level: str
) -> None:
    """A queue can be paused, and a limit be taken away, in a transaction of any level."""
    await store.configure("default", max_running=1)
    session.execute(f"set transaction isolation level {level}".encode())
    session.execute("insert into nursery_queue.queue (name, paused) values ('other', true)")
    session.execute("update nursery_queue.queue set max_running = null")
    session.commit()

    assert [(queue.name, queue.max_running) for queue in await store.queues()] == [
        ("default", None),
        ("other", None),
    ]


async def test_a_limit_set_by_the_client_holds(level: str, session: Session, migrated: str) -> None:
    """The client's own verbs are read committed, so what runs already counts."""
    assert session.execute("show transaction_isolation").fetchone() is not None
    async with nq.connect(migrated) as client:
        store = client.store
        await client.enqueue_many([nq.TaskRequest.by_name("work") for _ in range(20)])
        worker = await hire(store)
        assert len(await claim(store, worker, 7)) == 7
        await client.configure_queue("default", max_running=10)

        assert len(await claim(store, worker, 20)) == 3


# -- verbs ----------------------------------------------------------------------------------


async def test_workers_never_conflict(level: str, migrated: str) -> None:
    """Several workers drain one queue without one serialization failure."""
    app = nq.App()

    @app.task(name="work")
    async def work() -> None:
        """Do nothing."""

    async with nq.connect(migrated) as client:
        await client.enqueue_many([work.bind() for _ in range(300)])
        async with trio.open_nursery() as nursery:
            workers = [nq.Worker(app, client, concurrency=5) for _ in range(3)]
            for each in workers:
                nursery.start_soon(each.run_until_idle)
        stats = await client.stats()

    assert stats.completed == stats.counters["default"].succeeded == 300
    for each in workers:
        assert {loop.restarts for loop in each.health().loops.values()} == {0}


async def test_a_key_is_taken_once_by_all(level: str, migrated: str) -> None:
    """Many who enqueue with one dedup key at once get one task, and no serialization failure."""
    refs: list[nq.TaskRef] = []

    async def enqueue(client: nq.Client) -> None:
        request = nq.TaskRequest.by_name("work").options(dedup_key="k")
        refs.extend(await client.enqueue_many([request]))

    async with nq.connect(migrated, pool_size=8) as client, trio.open_nursery() as nursery:
        for _ in range(24):
            nursery.start_soon(enqueue, client)

    assert len({ref.id for ref in refs}) == 1
    assert sum(ref.created for ref in refs) == 1


async def test_migrating_at_once(dsn: str) -> None:
    """Of six that migrate at once one does it and the others see that it is done."""
    for level in LEVELS:
        with psycopg.connect(dsn, autocommit=True) as session:
            let_default(session, level)
        schema = level.replace(" ", "_")
        done: list[list[int]] = []

        async def migrate(done: list[list[int]] = done, schema: str = schema) -> None:
            done.append(await nq.migrate(dsn, schema=schema))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(migrate)

        applied = sorted(version for versions in done for version in versions)
        assert applied == [each.version for each in _migrate.migrations()]


# -- the user's own transactions ------------------------------------------------------------


async def shown(client: nq.Client, isolation: str | None = None) -> str:
    async with client.transaction(isolation=isolation) as tx:  # type: ignore[arg-type]  # wrong ones too
        cursor = await tx.execute("show transaction_isolation")
        (found,) = await cursor.fetchone()
        return str(found)


async def test_a_transaction_is_as_the_database_has_it(level: str, migrated: str) -> None:
    """The user's own transaction has the default of the database, whatever ours have."""
    async with nq.connect(migrated) as client:
        await client.enqueue("work")

        assert await shown(client) == level


async def test_a_transaction_is_as_asked_for(migrated: str) -> None:
    """Whoever needs another level asks for it, and the next transaction has the default again."""
    async with nq.connect(migrated, pool_size=1) as client:
        for asked in (*LEVELS, "read committed"):
            assert await shown(client, asked) == asked
            assert await shown(client) == "read committed"
        with pytest.raises(ValueError, match=r"one of read committed, .*, not 'chaos'"):
            await shown(client, "chaos")


async def test_read_committed_can_be_asked_for(level: str, migrated: str) -> None:
    """Where the default is stricter, a transaction can be read committed."""
    async with nq.connect(migrated) as client:
        assert await shown(client, "read committed") == "read committed"


# -- poolers --------------------------------------------------------------------------------


async def test_behind_a_pooler_it_is_so_for_each_transaction(level: str, migrated: str) -> None:
    """A limit holds and a worker drains, and nothing is left in sessions that others get."""
    app = nq.App()

    @app.task(name="work")
    async def work() -> None:
        """Do nothing."""

    async with pooled(migrated) as pooler:
        async with nq.connect(pooler.dsn) as client:
            refs = await client.enqueue_many([work.bind() for _ in range(20)], copy=True)
            worker = await hire(client.store)
            assert len(await claim(client.store, worker, 7)) == 7
            await client.configure_queue("default", max_running=10)
            assert len(await claim(client.store, worker, 20)) == 3
            assert await client.store.give_back_all_but(worker, set()) == 10
            await client.store.deregister(worker)
            await nq.Worker(app, client, listen=False).run_until_idle()
            assert await shown(client) == level
            assert await shown(client, "read committed") == "read committed"
            done = [await client.status(ref) for ref in refs]
            assert {status.state for status in done if status} == {nq.State.SUCCEEDED}
        left = await pooler.on_each_session("show default_transaction_isolation")
        assert {str(each) for each in left} != {"read committed"}


# -- whatever a role may have ---------------------------------------------------------------


@contextlib.contextmanager
def role_with(session: Session, settings: dict[str, str]) -> Generator[str]:
    """Make a role that may log in and create, and that has these settings."""
    name = f"hostile_{uuid.uuid4().hex}"
    role, database = sql.Identifier(name), sql.Identifier(session.info.dbname)
    session.execute(sql.SQL("create role {} login").format(role))
    session.execute(sql.SQL("grant create on database {} to {}").format(database, role))
    for key, value in settings.items():
        known = session.execute("select current_setting(%s, true) is not null", [key]).fetchone()
        if known == (True,) or "." in key:
            alter = sql.SQL("alter role {} set {} = {}")
            setting = sql.SQL(".").join(map(sql.Identifier, key.split(".")))
            # A list of names is not one name.
            names = sql.SQL(", ").join(map(sql.Identifier, value.split(", ")))
            given = names if key == "search_path" else sql.Literal(value)
            session.execute(alter.format(role, setting, given))
    session.commit()
    yield name
    session.rollback()
    session.execute(sql.SQL("drop owned by {0} cascade; drop role {0}").format(role))
    session.commit()


@pytest.fixture
def hostile(session: Session) -> Generator[str]:
    """DSN of a role whose settings are of no good to anybody."""
    with role_with(session, HOSTILE) as name:
        yield make_conninfo(session.info.dsn, user=name)


@pytest.fixture
async def theirs(hostile: str) -> AsyncGenerator[nq.Client]:
    await nq.migrate(hostile, schema="theirs")
    async with nq.connect(hostile, schema="theirs") as client:
        yield client


async def test_a_hostile_role_changes_nothing(theirs: nq.Client) -> None:
    """Settings of a role do not change what is stored, what runs and what is read."""
    app = nq.App()

    @app.task(name="told")
    async def told(task_id: int, context: object, result: nq.Result) -> str:
        return f"{context}"

    @app.task(name="work", on_complete=told)
    async def work(ctx: nq.TaskContext, text: str) -> str:
        await ctx.stream("s").write(b"\\\x00\xff")
        return text

    text = "a\\'b"
    one = await theirs.enqueue(work.options(context=text), text)
    (two,) = await theirs.enqueue_many([work.bind(text)], copy=True)
    (three,) = await theirs.enqueue_many([work.options(dedup_key="NULL").bind(text)])
    by_name = await theirs.enqueue("work", text=text)
    later = await theirs.enqueue(work.options(run_after=3600), text)
    async with theirs.transaction() as tx:
        four = await tx.enqueue(work, text)
        assert await tx.cancel(later)
    rate = nq.Rate(1_000_000, per=1.123456789, burst=9)
    await theirs.configure_queue("default", max_running=2, rate=rate)
    await theirs.set_schedule("s", nq.Every(1.123457), "work", paused=True)
    async with trio.open_nursery() as nursery:
        worker = nq.Worker(app, theirs)
        await nursery.start(worker.run)
        for ref in (one, two, three, by_name, four):
            assert await theirs.result(ref) == text
            assert [chunk async for chunk in theirs.read_stream(ref, "s")] == [b"\\\x00\xff"]
        worker.stop()

    status = await theirs.status(one)
    assert status is not None
    assert status.created_at.utcoffset() is not None
    assert {queue.name: queue.rate for queue in await theirs.queues()} == {"default": rate}
    schedule = await theirs.schedule("s")
    assert schedule is not None
    assert schedule.when == nq.Every(1.123457)
    assert (await theirs.stats()).completed >= 5
