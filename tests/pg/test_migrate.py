"""Migrations: up, down, by hand, all at once, and what is said when they do not fit."""

from __future__ import annotations

import uuid

from collections.abc import AsyncGenerator, Callable, Sequence

import attrs
import psycopg
import pytest
import trio

from psycopg import errors, sql

import nursery_queue as nq

from nursery_queue._core._errors import SchemaError
from nursery_queue._pg import _migrator as _migrate
from nursery_queue._pg._migrator import Migration, migrations
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._pg._sql import DEFAULT_SCHEMA
from nursery_queue._psycopg._connection import Connection


OURS = [migration.version for migration in migrations()]
LATER = Migration(
    version=len(OURS) + 1,
    name="later",
    up="create table nursery_queue.later (id int); insert into nursery_queue.later values (1);",
    down="drop table nursery_queue.later;",
)
# Everything that a schema consists of, with its name taken out.
CATALOG = """
    with own as (select %(schema)s::text::regnamespace as schema)
    select replace(thing, %(schema)s::text, 'X') from (
        select format('column %%s.%%s %%s %%s %%s %%s', attrelid::regclass, attname,
                      format_type(atttypid, atttypmod), attnotnull, attidentity,
                      pg_get_expr(adbin, adrelid)) as thing
          from pg_attribute join pg_class on pg_class.oid = attrelid
          left join pg_attrdef on adrelid = attrelid and adnum = attnum, own
         where relnamespace = own.schema and attnum > 0 and not attisdropped
        union all
        select format('relation %%s %%s %%s', oid::regclass, relkind, reloptions)
          from pg_class, own where relnamespace = own.schema
        union all
        select format('constraint %%s %%s', conname, pg_get_constraintdef(oid))
          from pg_constraint, own where connamespace = own.schema
        union all
        select format('index %%s', pg_get_indexdef(indexrelid))
          from pg_index join pg_class on pg_class.oid = indexrelid, own
         where relnamespace = own.schema
        union all
        select format('function %%s', pg_get_functiondef(oid))
          from pg_proc, own where pronamespace = own.schema
        union all
        select format('trigger %%s', pg_get_triggerdef(pg_trigger.oid))
          from pg_trigger join pg_class on pg_class.oid = tgrelid, own
         where relnamespace = own.schema and not tgisinternal
        union all
        select format('view %%s', pg_get_viewdef(oid))
          from pg_class, own where relnamespace = own.schema and relkind = 'v'
        union all
        select format('comment %%s %%s', objoid::regclass, description)
          from pg_description join pg_class on pg_class.oid = objoid, own
         where relnamespace = own.schema
    ) as things
    order by 1
"""


async def catalog(conn: Connection, schema: str = DEFAULT_SCHEMA) -> list[str]:
    cursor = await conn.execute(CATALOG, {"schema": schema})
    return [thing for (thing,) in await cursor.fetchall()]


async def versions(conn: Connection) -> list[int]:
    return sorted(await _migrate.applied(conn))


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[Migration]], None]:
    """Let the code know other migrations than it has."""

    def replace(others: Sequence[Migration]) -> None:
        monkeypatch.setattr(_migrate, "migrations", lambda: others)

    return replace


@pytest.fixture
async def visitor(conn: Connection) -> AsyncGenerator[sql.Identifier]:
    """Name a role that may create nothing."""
    role = sql.Identifier(f"visitor_{uuid.uuid4().hex}")
    await conn.execute(sql.SQL("create role {}").format(role))
    yield role
    await conn.execute("reset role")
    await conn.execute(sql.SQL("drop owned by {}").format(role))
    await conn.execute(sql.SQL("drop role {}").format(role))


def test_the_files() -> None:
    """Versions count from 1 without gaps, and each can be undone."""
    known = migrations()

    assert [migration.version for migration in known] == [*range(1, len(known) + 1)]
    assert all(m.name and m.up.startswith("-- ") and m.down.startswith("-- ") for m in known)
    assert len({migration.checksum for migration in known}) == len(known)


async def test_up_and_down_and_up_again(conn: Connection) -> None:
    """What was made can be taken away whole, and made again just the same, many times."""
    assert await _migrate.applied(conn) == {}

    done = await _migrate.up(conn)
    made = await catalog(conn)

    assert done == list(migrations())
    assert await versions(conn) == [migration.version for migration in done]
    assert len(made) > 100

    for _ in range(6):
        assert await _migrate.up(conn) == []
        assert await _migrate.down(conn) == done[::-1]
        assert await _migrate.applied(conn) == {}
        assert [thing for thing in await catalog(conn) if "migration" not in thing] == []
        assert await _migrate.down(conn) == []
        assert await _migrate.up(conn) == done
        assert await catalog(conn) == made


async def test_down_to(conn: Connection, known: Callable[[Sequence[Migration]], None]) -> None:
    """Only what is above the version named is undone."""
    known([*migrations(), LATER])
    await _migrate.up(conn)

    assert await _migrate.down(conn, to=len(OURS)) == [LATER]
    assert await versions(conn) == OURS
    with pytest.raises(errors.UndefinedTable):
        await conn.execute("select from nursery_queue.later")

    assert await _migrate.up(conn) == [LATER]
    assert await versions(conn) == [*OURS, LATER.version]


@pytest.mark.parametrize("schema", [DEFAULT_SCHEMA, "other_one"])
async def test_the_script(conn: Connection, dsn: str, schema: str) -> None:
    """Run by any client, the script makes what `up` makes, and `check` is content with it."""
    with psycopg.connect(dsn, autocommit=True) as session:
        session.execute(_migrate.sql(schema).encode())
    by_hand = await catalog(conn, schema)
    await _migrate.check(conn, schema)

    assert await _migrate.up(conn, schema) == []

    await _migrate.up(conn, "third")

    assert await catalog(conn, "third") == by_hand


async def test_the_script_is_one_transaction(dsn: str, conn: Connection) -> None:
    """If anything in the script fails, nothing has been made."""
    with psycopg.connect(dsn, autocommit=True) as session, pytest.raises(errors.DivisionByZero):
        session.execute(_migrate.sql().replace("commit;", "select 1 / 0; commit;").encode())

    assert await _migrate.applied(conn) == {}
    assert await conn.fetch("select to_regnamespace('nursery_queue')") == [(None,)]


@pytest.mark.parametrize("here", [0, len(OURS)])
async def test_ten_at_once(
    dsn: str, known: Callable[[Sequence[Migration]], None], here: int
) -> None:
    """Of ten who migrate at the same moment each step is taken by one, and all succeed."""
    async with await Connection.connect(dsn) as conn:
        if here:
            await _migrate.up(conn)
    known([*migrations(), LATER])
    done: list[int] = []

    async def up() -> None:
        async with await Connection.connect(dsn) as conn:
            done.extend(step.version for step in await _migrate.up(conn))
            await _migrate.check(conn)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(up)

    assert sorted(done) == [*OURS, LATER.version][here:]


async def test_a_failing_migration(
    conn: Connection, known: Callable[[Sequence[Migration]], None]
) -> None:
    """What failed has left nothing, what went before it stays, and it can be tried again."""
    broken = attrs.evolve(LATER, up=LATER.up + "select 1 / 0;")
    ours = list(migrations())
    known([*ours, broken])
    with pytest.raises(errors.DivisionByZero):
        await _migrate.up(conn)

    assert await versions(conn) == OURS
    assert await conn.fetch("select to_regclass('nursery_queue.later')") == [(None,)]

    known([*ours, LATER])

    assert await _migrate.up(conn) == [LATER]
    assert await conn.fetch("select id from nursery_queue.later") == [(1,)]


async def test_a_failing_first_migration(
    conn: Connection, known: Callable[[Sequence[Migration]], None]
) -> None:
    """Not even the schema is there if the first step failed."""
    known([Migration(version=1, name="tasks", up="select 1 / 0;", down="")])
    with pytest.raises(errors.DivisionByZero):
        await _migrate.up(conn)

    assert await conn.fetch("select to_regnamespace('nursery_queue')") == [(None,)]


async def test_a_failing_undo(
    conn: Connection, known: Callable[[Sequence[Migration]], None]
) -> None:
    """An undo that fails changes nothing."""
    known([*migrations(), attrs.evolve(LATER, down=LATER.down * 2)])
    await _migrate.up(conn)
    with pytest.raises(errors.UndefinedTable):
        await _migrate.down(conn)

    assert await versions(conn) == [*OURS, LATER.version]
    assert await conn.fetch("select id from nursery_queue.later") == [(1,)]


# -- check ----------------------------------------------------------------------------------


async def test_a_fitting_schema(conn: Connection, dsn: str) -> None:
    """There is nothing to say of a schema that fits."""
    await _migrate.up(conn)
    await _migrate.check(conn)
    store = PostgresStore(dsn)
    await store.check()
    await store.aclose()


async def test_a_missing_schema(conn: Connection, dsn: str) -> None:
    """The message names schema and database, and the command that makes it."""
    with pytest.raises(SchemaError) as caught:
        await _migrate.check(conn)

    assert "'nursery_queue'" in str(caught.value)
    assert conn.info.dbname in str(caught.value)
    assert "`nursery-queue migrate up`" in str(caught.value)

    with pytest.raises(SchemaError, match="`nursery-queue migrate up --schema other_one`"):
        await _migrate.check(conn, "other_one")

    store = PostgresStore(dsn)
    with pytest.raises(SchemaError, match="migrate up"):
        await store.check()
    await store.aclose()


async def test_a_schema_taken_away(conn: Connection) -> None:
    """After `down` the schema is as good as missing."""
    await _migrate.up(conn)
    await _migrate.down(conn)
    with pytest.raises(SchemaError, match="is not there"):
        await _migrate.check(conn)


async def test_an_older_schema(
    conn: Connection, known: Callable[[Sequence[Migration]], None]
) -> None:
    """The message says which steps are lacking, and how to take them."""
    await _migrate.up(conn)
    known([*migrations(), LATER])
    with pytest.raises(
        SchemaError, match=rf"older.*lacks \[{LATER.version}\].*`nursery-queue migrate up`"
    ):
        await _migrate.check(conn)


async def test_a_newer_schema(
    conn: Connection, known: Callable[[Sequence[Migration]], None]
) -> None:
    """A schema from the future is refused, by `up` too, which changes nothing."""
    ours = list(migrations())
    known([*ours, LATER])
    await _migrate.up(conn)
    known(ours)
    told = rf"newer \(version {LATER.version}\).*\({len(OURS)}\): upgrade nursery-queue"
    with pytest.raises(SchemaError, match=told):
        await _migrate.check(conn)
    with pytest.raises(SchemaError, match="newer"):
        await _migrate.up(conn)

    assert await versions(conn) == [*OURS, LATER.version]


async def test_another_migration_of_the_same_number(conn: Connection) -> None:
    """A step that was edited after it had been applied is refused, by `up` too."""
    await _migrate.up(conn)
    await conn.execute("update nursery_queue.migration set checksum = 'x'")
    told = (
        rf"other files.*version \[{', '.join(map(str, OURS))}\].*: use that one, or .*"
        "`nursery-queue migrate down --yes`, which deletes its tasks, and then"
        " `nursery-queue migrate up`"
    )
    for refuses in (_migrate.check, _migrate.up):
        with pytest.raises(SchemaError, match=told):
            await refuses(conn)

    await _migrate.down(conn)  # what we were told to do
    await _migrate.up(conn)
    await _migrate.check(conn)


async def test_up_changes_nothing_where_other_files_were_applied(
    conn: Connection, known: Callable[[Sequence[Migration]], None]
) -> None:
    """What is missing is not put on top of what this code does not know."""
    await _migrate.up(conn)
    await conn.execute("update nursery_queue.migration set checksum = 'x' where version = 1")
    known([*migrations(), LATER])
    with pytest.raises(SchemaError, match=r"other files.*version \[1\]"):
        await _migrate.up(conn)

    assert await versions(conn) == OURS


async def test_a_version_without_its_record(conn: Connection) -> None:
    """Where what a step makes is there already, the message says what may have happened."""
    await _migrate.up(conn)
    await conn.execute("delete from nursery_queue.migration where version = 1")
    told = (
        r"'nursery_queue'.*version 1 \(tables\).*already exists.*row of version 1 .*"
        "nursery_queue.migration.*put it back"
    )
    with pytest.raises(SchemaError, match=told):
        await _migrate.up(conn)

    assert await versions(conn) == OURS[1:]


@pytest.mark.parametrize(
    "thing",
    ["table usr (id int)", "function usr() returns int return 1", "table migration2 (id int)"],
)
@pytest.mark.parametrize("schema", ["public", "shop"])
async def test_a_schema_of_others(conn: Connection, dsn: str, schema: str, thing: str) -> None:
    """Where something is already, nothing is made, and nobody's rights are touched."""
    await conn.execute(f"create schema if not exists {schema}".encode())
    await conn.execute(f"create {thing.replace(' ', f' {schema}.', 1)}".encode())
    before = await (await conn.execute(CATALOG, {"schema": schema})).fetchall()

    with pytest.raises(errors.DuplicateSchema, match=f"in the schema {schema} already"):
        await nq.migrate(dsn, schema=schema)
    with pytest.raises(errors.DuplicateSchema, match=f"in the schema {schema} already"):
        await conn.execute(_migrate.sql(schema).encode())

    await conn.execute("rollback")
    assert await (await conn.execute(CATALOG, {"schema": schema})).fetchall() == before


async def test_by_a_role_that_may_create_nothing(conn: Connection, visitor: sql.Identifier) -> None:
    """Whoever may read the schema can check it, and `up` finds that there is nothing to do."""
    await _migrate.up(conn)
    grants = (
        "grant usage on schema nursery_queue to {}",
        "grant select on nursery_queue.migration to {}",
        "revoke create on database {} from public",
    )
    database = sql.Identifier(conn.info.dbname)
    for grant, whom in zip(grants, (visitor, visitor, database), strict=True):
        await conn.execute(sql.SQL(grant).format(whom))
    await conn.execute(sql.SQL("set role {}").format(visitor))
    await _migrate.check(conn)

    assert await _migrate.up(conn) == []
    with pytest.raises(errors.InsufficientPrivilege):
        await _migrate.up(conn, "other_one")
    await conn.execute("reset role")


async def test_the_public_way(dsn: str) -> None:
    """`nq.migrate` applies what is missing, says which versions, and then has nothing to do."""
    assert await nq.migrate(dsn) == [each.version for each in migrations()]
    assert await nq.migrate(dsn) == []
    async with nq.connect(dsn) as client:
        assert await client.list_tasks() == []
