"""Each role can do its work and nothing else."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import uuid

from collections.abc import Generator
from typing import Any

import psycopg
import pytest
import trio

from psycopg import errors
from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from nursery_queue._pg import _migrator as _migrate
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._pg._sql import query
from nursery_queue._psycopg._pooler import connect
from tests.pg.queries import Session
from tests.support.roles import Roles, made_roles, run
from tests.support.store_steps import claim, hire


# What a bare insert calls by itself.
PUBLIC_FUNCTIONS = {
    *("all_stored", "is_backoff", "is_completion", "is_cron", "now", "recall", "store")
}
# The table's to give.
NOT_TO_BE_SAID = {"id", "created_at", "completes", "schedule", "tick"}


@pytest.fixture(params=["nursery_queue", "jobs"])
def roles(request: pytest.FixtureRequest, dsn: str) -> Generator[Roles]:
    with made_roles(dsn, request.param) as roles:
        yield roles


@contextlib.contextmanager
def refused(
    session: Session, kind: type[psycopg.Error] = errors.InsufficientPrivilege
) -> Generator[None]:
    """Expect the server to refuse, and go on as if nothing had been."""
    with pytest.raises(kind), session.transaction():
        yield


def refuses(session: Session, schema: str, *statements: str) -> None:
    for statement in statements:
        with refused(session):
            session.execute(statement.replace("nursery_queue", schema).encode())


# -- functions --------------------------------------------------------------------------------


def test_only_what_an_insert_calls_is_for_everybody(session: Session) -> None:
    """EXECUTE is nobody's by default, but for what the table itself calls for who inserts."""
    found = session.execute(
        "select proname from pg_proc where pronamespace = 'nursery_queue'::regnamespace"
        " and has_function_privilege('public', oid, 'execute')"
    ).fetchall()

    assert {name for (name,) in found} == PUBLIC_FUNCTIONS


MINE = """
    create temporary table mine (id bigint, task_type text, queue text, priority integer,
                                 run_at timestamptz, dedup_key text);
    insert into mine (id, task_type, queue, priority) select 1, 'a', 'default', 0;
"""
ATTACKS = {
    "place": """
        create trigger again after insert on mine referencing new table as placed
            for each statement execute function nursery_queue.place();
        insert into mine (id, task_type, queue, priority) values (1, 'a', 'default', 0);
    """,
    "forget": """
        create trigger again after delete on mine referencing old table as gone
            for each statement execute function nursery_queue.forget();
        delete from mine;
    """,
    "forget_all": """
        create trigger again after truncate on mine
            for each statement execute function nursery_queue.forget_all();
        truncate mine;
    """,
}


@pytest.mark.parametrize("function", ATTACKS)
def test_the_trigger_is_for_its_own_table(session: Session, migrated: str, function: str) -> None:
    """A trigger's function can be put on a table of one's own by nobody, not even the owner."""
    attack = (MINE + ATTACKS[function]).encode()
    with refused(session):
        session.execute(attack)
    session.rollback()
    session.execute("create role intruder")
    session.execute("grant usage on schema nursery_queue to intruder; set role intruder")
    with pytest.raises(
        errors.InsufficientPrivilege, match=rf"permission denied for function .*{function}$"
    ):
        session.execute(attack)
    session.rollback()  # and the role with it


# -- producers --------------------------------------------------------------------------------


async def test_a_producer_enqueues_in_every_way(roles: Roles) -> None:
    """Single tasks, many, copies, keys, in transactions, for later, and cancelled again."""
    async with nq.connect(roles.login["producer"], schema=roles.schema) as client:
        request = nq.TaskRequest.by_name("work", {"a": 1})
        refs = [await client.enqueue("work", a=1)]
        refs += await client.enqueue_many([request, request.options(run_after=60, queue="q")])
        refs += await client.enqueue_many([request] * 3, copy=True)
        keyed = request.options(dedup_key="k", on_complete="told", context=[1])
        refs += await client.enqueue_many([keyed, keyed])
        async with client.transaction() as tx:
            refs.append(await tx.enqueue("work"))
            refs += await tx.enqueue_many([request] * 2, copy=True)
            refs += await nq.producer(tx).enqueue_many([request])
        assert await client.cancel(refs[0])
        assert not await client.cancel(refs[0])

    assert [ref.created for ref in refs] == [True] * 7 + [False] + [True] * 4
    assert len({ref.id for ref in refs}) == 11


def test_a_producer_with_plain_sql(roles: Roles) -> None:
    """Insert, COPY, `returning id`, the functions: and no id, instant or task of others."""
    schema = roles.schema
    with psycopg.connect(roles.login["producer"]) as session:
        for statement in (
            "insert into nursery_queue.task (task_type) values ('a') returning id",
            (
                "insert into nursery_queue.task (task_type, params, queue, priority, run_at,"
                " max_attempts, backoff, timeout, keep_for, dedup_key, on_complete, context) values"
                " ('a', '{}', 'q', 1, now(), 1, '{\"initial\": 1, \"maximum\": 2}', 1, 1, 'k',"
                " '{\"task_type\": \"b\"}', '1')"
            ),
            "select * from nursery_queue.enqueue('a', dedup_key => 'l')",
            "select * from nursery_queue.enqueue('a', dedup_key => 'l')",
            "select nursery_queue.cancel(1)",
            "notify nursery_queue",
        ):
            session.execute(statement.replace("nursery_queue", schema).encode())
        copy = f"copy {schema}.task (task_type) from stdin"
        with session.cursor().copy(copy.encode()) as sink:
            sink.write_row(("a",))
        session.commit()
        refuses(
            session,
            schema,
            "insert into nursery_queue.task (id, task_type) overriding system value select 9, 'a'",
            "insert into nursery_queue.task (task_type, created_at) values ('a', now())",
            "insert into nursery_queue.task (task_type, completes) values ('a', 1)",
            "copy nursery_queue.task (id, task_type) from stdin",
            "select params from nursery_queue.task",
            "select from nursery_queue.task_status",
            "select from nursery_queue.dedup",
            "update nursery_queue.task set params = '{}'",
            "delete from nursery_queue.task",
            "insert into nursery_queue.ready (task_id, queue, priority, task_type)"
            " values (1, 'q', 0, 'a')",
            "insert into nursery_queue.queue (name) values ('q')",
            "insert into nursery_queue.task_type values ('a', 'b', 1, 1)",
            "select nextval(pg_get_serial_sequence('nursery_queue.task', 'id'))",
            "select nursery_queue.cancel_many('{1}')",
            "select nursery_queue.complete('{1}', '{}', '{}', '{}')",
            "select nursery_queue.forget_streams('{1}')",
            "select nursery_queue.park(1)",
            "create table nursery_queue.mine ()",
            "truncate nursery_queue.task",
        )


def test_all_columns_are_a_producers_but_a_few(roles: Roles) -> None:
    """Whatever can be said of a task a producer can say, but for what the table gives."""
    with psycopg.connect(roles.login["producer"]) as session:
        found = session.execute(
            "select attname from pg_attribute where attrelid = %s::regclass and attnum > 0"
            " and not attisdropped and not has_column_privilege(attrelid, attnum, 'insert')",
            [f"{roles.schema}.task"],
        ).fetchall()

    assert {name for (name,) in found} == NOT_TO_BE_SAID


def test_ids_are_not_for_the_choosing(session: Session) -> None:
    """Who may insert into the whole table gets an id, too, unless they insist."""
    with pytest.raises(errors.GeneratedAlways):
        session.execute("insert into nursery_queue.task (id, task_type) values (9, 'a')")


@pytest.mark.parametrize("now", ["infinity", "-infinity", "0001-01-01 BC", "20000-01-01"])
def test_a_producer_with_a_clock_of_its_own(roles: Roles, now: str) -> None:
    """Who sets the clock of a test to what no client can read is refused, and harms no list."""
    schema = roles.schema
    with psycopg.connect(roles.login["producer"]) as session:
        session.execute(f"insert into {schema}.task (task_type) values ('a')".encode())
        session.commit()
        session.execute(f"set {schema}.now = '{now}'".encode())
        for statement in (
            "select nursery_queue.cancel(1)",
            "insert into nursery_queue.task (task_type) values ('a')",
            "select nursery_queue.enqueue('a')",
        ):
            with refused(session, errors.CheckViolation):
                session.execute(statement.replace("nursery_queue.", f"{schema}.").encode())
    with psycopg.connect(roles.login["reader"]) as session:
        found = session.execute(f"select state from {schema}.task_status".encode()).fetchall()

    assert found == [("ready",)]


# -- readers ----------------------------------------------------------------------------------


async def filled(roles: Roles) -> nq.TaskRef:
    """Let a worker run a task that writes a stream, and leave one that waits."""
    app = nq.App()

    @app.task(name="work", nursery=True)
    async def work(ctx: nq.TaskContext) -> int:
        await ctx.stream("s").write("word")
        return 7

    async with nq.connect(roles.login["worker"], schema=roles.schema) as client:
        ref = await client.enqueue(work)
        await client.enqueue("unknown")
        await nq.Worker(app, client).run_until_idle()
    return ref


async def test_a_reader_sees_everything(roles: Roles) -> None:
    """Tasks, attempts, results, counts, queues, workers and streams, live ones too."""
    ref = await filled(roles)
    async with nq.connect(roles.login["reader"], schema=roles.schema) as client:
        status = await client.status(ref, payloads=True)
        assert status is not None
        assert (status.state, status.result) == (nq.State.SUCCEEDED, 7)
        assert await client.result(ref) == 7
        assert len(await client.attempts(ref)) == 1
        assert len(await client.list_tasks(payloads=True)) == 2
        assert (await client.stats()).completed == 1
        assert [queue.name for queue in await client.queues()] == ["default"]
        assert await client.workers() == []
        assert (await client.why(ref)).codes == (nq.ReasonCode.FINISHED,)
        assert [chunk async for chunk in client.read_stream(ref, "s")] == ["word"]
        with pytest.raises(errors.InsufficientPrivilege):
            await client.enqueue("work")
        with pytest.raises(errors.InsufficientPrivilege):
            await client.cancel(ref)
    with psycopg.connect(roles.login["reader"]) as session:
        refuses(
            session,
            roles.schema,
            "insert into nursery_queue.task (task_type) values ('a')",
            "delete from nursery_queue.finished",
            "update nursery_queue.queue set paused = true",
            "select nursery_queue.enqueue('a')",
            "select nursery_queue.cancel(1)",
            "select nursery_queue.unpark('{}', 1)",
            "create table nursery_queue.mine ()",
        )


# -- workers ----------------------------------------------------------------------------------


async def test_a_worker_does_all_that_workers_do(
    roles: Roles, caplog: pytest.LogCaptureFixture
) -> None:
    """It runs, retries, tells, sweeps, prunes, parks and steers, and no loop of it ever fails."""
    app, ends, all_told = nq.App(), set[int](), trio.Event()

    @app.task(name="told")
    async def told(task_id: int, context: Any, result: nq.Result) -> None:
        ends.add(task_id)
        if len(ends) == 3:
            all_told.set()

    @app.task(name="work", on_complete=told, keep_for=0)
    async def work(ctx: nq.TaskContext) -> None:
        await ctx.stream("s").write("word")
        if ctx.attempt == 1:
            raise nq.RetryAfter(0.01)

    @app.task(name="both", transactional=True)
    async def both(ctx: nq.TaskContext) -> None:
        await ctx.tx.enqueue(work)
        await ctx.client.enqueue("nobody")

    async with nq.connect(roles.login["worker"], schema=roles.schema) as client:
        store = client.store
        assert isinstance(store, PostgresStore)
        ref = await client.enqueue(both)
        await client.enqueue_many([work.bind()] * 2, copy=True)
        await client.configure_queue("default", max_running=5)
        await client.pause("other")
        async with trio.open_nursery() as nursery:
            worker = nq.Worker(app, client)
            await nursery.start(worker.run)
            await client.result(ref)
            with trio.fail_after(20):
                await all_told.wait()
            assert {each.restarts for each in worker.health().loops.values()} == {0}
            worker.stop()
        lost = await hire(store)
        await client.enqueue("work")
        assert await claim(store, lost)
        await store.deregister(lost)
        assert await client.sweep(max_lost=1) == 1
        assert await store.park() >= 1
        assert await store.unpark(["nobody"]) >= 1
        await store._run(store._control, "vacuum")
        await client.promote()
        await client.prune()
        doomed = await client.enqueue("nobody")
        assert await client.cancel(doomed)
        assert await client.retry(doomed)
        assert await client.cancel_all(task_type="nobody") == 2
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    with psycopg.connect(roles.login["worker"]) as session:
        refuses(
            session,
            roles.schema,
            "create table nursery_queue.mine ()",
            "drop table nursery_queue.ready",
            "alter table nursery_queue.ready add mine text",
            "truncate nursery_queue.task",
            "delete from nursery_queue.migration",
            "create schema mine",
            "create temporary table mine (id bigint); create trigger again after insert on mine"
            " referencing new table as placed for each statement"
            " execute function nursery_queue.place()",
        )


def test_a_worker_vacuums_what_it_has_emptied(roles: Roles) -> None:
    """From PostgreSQL 17 on the right to it can be granted; the server would skip it silently."""
    heard: list[str | None] = []
    with psycopg.connect(roles.login["worker"], autocommit=True) as session:
        if session.info.server_version < 170000:
            pytest.skip("there is no such right")
        session.add_notice_handler(lambda notice: heard.append(notice.message_primary))
        session.execute(query("vacuum", roles.schema))

    assert heard == []


async def test_limits_can_be_set_with_rights_on_queues_alone(
    session: Session, store: PostgresStore
) -> None:
    """Who may write rows of `queue` needs no right on tasks, and what runs already counts."""
    await store.enqueue([nq.TaskRequest.by_name("work").to_new_task() for _ in range(5)])
    worker = await hire(store)
    assert len(await claim(store, worker, 2)) == 2
    session.execute("create role steward; grant usage on schema nursery_queue to steward")
    session.execute("grant select, insert, update on nursery_queue.queue to steward")
    session.execute("set role steward")
    session.execute("insert into nursery_queue.queue (name, max_running) values ('default', 3)")
    session.execute("reset role; drop owned by steward; drop role steward")
    session.commit()

    assert len(await claim(store, worker, 9)) == 1


# -- owners -----------------------------------------------------------------------------------


async def test_an_owner_migrates(roles: Roles) -> None:
    """Down and up again, without being a superuser; then the script gives the others their due."""
    last = _migrate.migrations()[-1].version
    owner = roles.login["owner"]
    async with await connect(owner) as conn:
        assert [each.version for each in await _migrate.down(conn, roles.schema, to=last - 1)] == [
            last
        ]
    assert await nq.migrate(owner, schema=roles.schema) == [last]
    roles.again()
    roles.again()
    async with nq.connect(roles.login["producer"], schema=roles.schema) as client:
        assert (await client.enqueue("work")).id == 1


async def test_what_an_owner_has_made_anew_is_the_owners(roles: Roles) -> None:
    """Tables and functions have one owner after `down` and `up`, so they work before the script."""
    owner = roles.login["owner"]
    async with await connect(owner) as conn:
        await _migrate.down(conn, roles.schema)
    await nq.migrate(owner, schema=roles.schema)

    async with nq.connect(owner, schema=roles.schema) as client:
        ref = await client.enqueue("work")
        assert await client.cancel(ref)


async def test_a_member_of_the_group_that_owns_the_schema_migrates(app: nq.App, dsn: str) -> None:
    """Where an administrator has made the schema for a group, one of its members can do all."""

    @app.task(name="double")
    async def double(number: int) -> int:
        return 2 * number

    group, member = (f"{kind}_{uuid.uuid4().hex[:8]}" for kind in ("group", "member"))
    run(
        dsn,
        f"create role {group}; create role {member} login in role {group};"
        f" create schema nursery_queue authorization {group}",
    )
    try:
        as_member = make_conninfo(dsn, user=member)
        await nq.migrate(as_member)
        async with nq.connect(as_member) as client:
            ref = await client.enqueue(double.options(dedup_key="once"), 21)
            await nq.Worker(app, client).run_until_idle()
            assert await client.result(ref) == 42
    finally:
        run(dsn, f"drop owned by {group}, {member} cascade; drop role {group}, {member}")


def test_who_was_granted_nothing_can_do_nothing(roles: Roles) -> None:
    """Without a role there is not even a schema."""
    with psycopg.connect(roles.login["nobody"]) as session:
        refuses(
            session,
            roles.schema,
            "insert into nursery_queue.task (task_type) values ('a')",
            "select nursery_queue.now()",
            "select nursery_queue.enqueue('a')",
        )


# -- the script -------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["Big_", "pg_x", "1_", "a-b", "x" * 55, ""])
def test_a_prefix_that_will_not_do(prefix: str) -> None:
    """What is no beginning of a plain name is refused."""
    with pytest.raises(ValueError, match="prefix of roles must be"):
        _migrate.roles(prefix=prefix)
