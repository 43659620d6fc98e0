"""The schema's name is a parameter: everything works in another, and none sees the other."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator

import psycopg
import pytest

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

import nursery_queue as nq
import tests.contract

from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import Refusal
from nursery_queue._core._schedules import NewSchedule
from nursery_queue._core._states import Event, State
from nursery_queue._core._streams import StreamWrite
from nursery_queue._core._when import Every
from nursery_queue._pg import _migrator as _migrate
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._pg._sessions import channel_of
from nursery_queue._pg._sql import checked_schema
from nursery_queue._psycopg._connection import Connection
from nursery_queue._store import Bell, Store
from nursery_queue.testing import _pytest_plugin
from tests.support.databases import Stock
from tests.support.store_steps import (
    a_task,
    add,
    claim,
    claim_one,
    claimed_once,
    count,
    ends,
    hire,
    settle,
    state,
)


OTHER = "other_one"
Contract = Callable[[Store], Awaitable[None]]


def contracts() -> dict[str, Contract]:
    """Return the tests of the contract that need nothing but a store."""
    found: dict[str, Contract] = {}
    for module in pkgutil.iter_modules(tests.contract.__path__):
        if module.name.startswith("test_"):
            names = vars(importlib.import_module(f"tests.contract.{module.name}"))
            found |= {
                f"{module.name}.{name}": test
                for name, test in names.items()
                if name.startswith("test_") and [*inspect.signature(test).parameters] == ["store"]
            }
    return found


CONTRACTS = contracts()


async def migrate(dsn: str, *schemas: str) -> None:
    async with await Connection.connect(dsn) as conn:
        for schema in schemas:
            await _migrate.up(conn, schema)


@pytest.fixture(scope="module")
def databases(nursery_queue_server: str) -> Generator[Stock]:
    """Databases that have another schema, and no default one."""
    with _pytest_plugin._database(nursery_queue_server, template="template0") as dsn:
        _migrate.up_sync(dsn, OTHER)
        template = str(conninfo_to_dict(dsn)["dbname"])
        with contextlib.closing(Stock(nursery_queue_server, template)) as stock:
            yield stock


@pytest.fixture
async def elsewhere(databases: Stock) -> AsyncGenerator[PostgresStore]:
    """Give a store in another schema, of a database that has no default one."""
    with databases.lend() as database:
        store = PostgresStore(database.dsn, schema=OTHER)
        yield store
        await store.aclose()


@pytest.fixture
async def pair(dsn: str) -> AsyncGenerator[tuple[PostgresStore, PostgresStore]]:
    """Give two stores in one database, the name of one beginning with the other's."""
    await migrate(dsn, "jobs", "jobs_two")
    one, two = PostgresStore(dsn, schema="jobs"), PostgresStore(dsn, schema="jobs_two")
    yield one, two
    await one.aclose()
    await two.aclose()


@pytest.fixture
def conn_sync(dsn: str) -> Generator[psycopg.Connection]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        yield connection


def test_there_are_contracts() -> None:
    """The tests of the contract have been found."""
    assert len(CONTRACTS) > 40


@pytest.mark.parametrize("contract", CONTRACTS)
async def test_the_contract_elsewhere(elsewhere: PostgresStore, contract: str) -> None:
    """In a schema of another name the contract is kept too."""
    await CONTRACTS[contract](elsewhere)


async def test_two_do_not_see_each_other(pair: tuple[PostgresStore, PostgresStore]) -> None:
    """Tasks, keys, workers and claims of one schema are nothing to the other."""
    one, two = pair
    theirs, worker = await add(one, dedup_key="k"), await hire(two)
    mine = await add(two, dedup_key="k")

    assert [c.fence.task_id for c in await claim(two, worker)] == [mine]
    assert await claim(one, worker) == []
    assert [task.id for task in await two.list_tasks(TaskFilter())] == [mine]
    assert (await one.stats()).workers == []

    await one.cancel(theirs)

    assert await state(two, mine) is State.RUNNING


async def test_a_fence_is_of_one_schema(pair: tuple[PostgresStore, PostgresStore]) -> None:
    """The same id and epoch in the other schema is another claim."""
    one, two = pair
    task, twin = await claimed_once(one), await claimed_once(two)

    assert task.fence == twin.fence

    await settle(one, task.fence, Event.SUCCEED)

    assert await one.settle([ends(task.fence, Event.FAIL)]) == {task.fence: Refusal.STALE}
    assert await state(two, twin.id) is State.RUNNING


async def test_sweeping_one_leaves_the_other(pair: tuple[PostgresStore, PostgresStore]) -> None:
    """A worker that left one schema is not missed in the other."""
    one, two = pair
    task, twin = await claimed_once(one), await claimed_once(two)
    await one.deregister(task.worker)

    assert await two.sweep(max_lost=1) == 0
    assert await one.sweep(max_lost=9) == 1
    assert await state(two, twin.id) is State.RUNNING
    assert (await two.heartbeat(twin.worker, draining=False)).registered


async def make_all_kinds_of_news(store: Store) -> None:
    task, worker = await add(store), await hire(store)
    fence = (await claim_one(store, worker)).fence
    await store.write_stream(StreamWrite(fence=fence, name="s", close=True))
    await store.cancel(task)
    await store.give_back_all_but(worker, set())
    await store.retry(task)
    await store.cancel(task)
    async with store.transaction() as tx:
        await tx.enqueue([a_task(run_after=60)])
    await store.set_schedule(NewSchedule(name="s", when=Every(60), task=a_task()))


async def test_news_is_for_one(dsn: str, pair: tuple[PostgresStore, PostgresStore]) -> None:
    """What happens in one schema rings in that one only."""
    names = {store.schema: {channel_of(bell, store.schema) for bell in Bell} for store in pair}

    assert names["jobs"].isdisjoint(names["jobs_two"])

    with psycopg.connect(dsn, autocommit=True) as ear:
        for channel in (*names["jobs"], *names["jobs_two"], "end"):
            ear.execute(sql.SQL("listen {}").format(sql.Identifier(channel)))
        for store in pair:
            await make_all_kinds_of_news(store)
            with psycopg.connect(dsn, autocommit=True) as other:
                other.execute('notify "end"')
            heard: set[str] = set()
            for notify in ear.notifies(timeout=20):
                if notify.channel == "end":
                    break
                heard.add(notify.channel)

            assert heard == names[store.schema]


async def test_the_longest_name(dsn: str) -> None:
    """A name of 50 characters is not cut off anywhere, channels included."""
    name = "a" * 50
    await migrate(dsn, name, "a" * 49)
    store = PostgresStore(dsn, schema=name)
    await add(store)

    assert await count(store, State.READY) == 1
    assert all(len(channel_of(bell, name)) <= 63 for bell in Bell)

    await store.aclose()


BAD = ["", "Jobs", "my jobs", "my-jobs", "1st", 'a"b', "a.b", "a;drop", "jöbs", "a" * 51, "a\n"]
TAKEN = ["jobs_cancel", "jobs_finished", "jobs_stream", "jobs_schedule"]  # the channels of jobs


@pytest.mark.parametrize("name", BAD + TAKEN)
async def test_bad_names(conn: Connection, dsn: str, name: str) -> None:
    """A name that would need quoting, or that names a channel, is refused before it is used."""
    with pytest.raises(ValueError, match="schema must be"):
        PostgresStore(dsn, schema=name)
    for verb in (_migrate.up, _migrate.down, _migrate.check, _migrate.applied):
        with pytest.raises(ValueError, match="schema must be"):
            await verb(conn, name)
    with pytest.raises(ValueError, match="schema must be"):
        _migrate.sql(name)


def plain_statements(schema: str) -> bytes:
    """Return what our files write around the name of the schema, without quotes."""
    return f"""
        create schema {schema};
        create table {schema}.task (id integer);
        create function {schema}.now() returns integer language sql return 1;
        set local {schema}.now = '1';
        insert into {schema}.task values (coalesce({schema}.now(), 2) + {schema}.now());
        do $$ declare found {schema}.task; begin
            perform {schema}.now(); delete from {schema}.task where id = {schema}.now();
        end $$;
    """.encode()


def test_words_of_sql_are_refused(conn_sync: psycopg.Connection) -> None:
    """A name is refused if it would have to be quoted somewhere."""
    words = conn_sync.execute("select word from pg_get_keywords() order by word").fetchall()
    assert len(words) > 400
    for (word,) in words:
        try:
            with conn_sync.transaction(force_rollback=True):
                conn_sync.execute(plain_statements(word))
        except psycopg.errors.SyntaxError:
            with pytest.raises(ValueError, match=f"'{word}' is a word of SQL"):
                checked_schema(word)


@pytest.mark.parametrize("name", ["pg_jobs", "information_schema", "plpgsql"])
def test_schemas_of_the_server_are_refused(name: str) -> None:
    """Names that PostgreSQL keeps to itself are refused, as schemas and as names of settings."""
    with pytest.raises(ValueError, match=f"'{name}' is a name of PostgreSQL's own"):
        checked_schema(name)


@pytest.mark.parametrize("name", ["new", "set", "stored", "task", "text", "queue"])
async def test_confusing_names(dsn: str, name: str) -> None:
    """A schema may be called like a table, a column, a type or a variable of ours."""
    await migrate(dsn, name)
    async with nq.Client(PostgresStore(dsn, schema=name)) as client:
        store = client.store
        task, worker = await add(store, dedup_key="k"), await hire(store)
        assert (await claim_one(store, worker)).fence.task_id == task
        await make_all_kinds_of_news(store)
        assert await store.sweep(max_lost=1) == await store.prune() == 0
    async with await Connection.connect(dsn) as conn:
        assert await _migrate.down(conn, name)


@pytest.mark.parametrize("name", ["_", "a", "jobs_", "cancel", "jobs_cancelled", "a" * 50])
def test_good_names(name: str) -> None:
    """Names that are plain in SQL are taken as they are."""
    assert checked_schema(name) == name
