"""What a program registers with psycopg for its own statements does not reach ours."""

from __future__ import annotations

import datetime as dt

from typing import Any, NoReturn
from uuid import UUID

import psycopg
import pytest

from psycopg import adapters, postgres
from psycopg.adapt import AdaptersMap, Buffer, Dumper, Loader
from psycopg.rows import dict_row

import nursery_queue as nq

from tests.pg.queries import Session


LOADED = (
    *("bool", "int2", "int4", "int8", "float8", "numeric", "text", "varchar", "name"),
    *('"char"', "bytea", "timestamptz", "interval", "uuid", "json", "jsonb"),
)
DUMPED = (str, int, float, bool, bytes, list, dict, dt.datetime, dt.timedelta, UUID, type(None))


class Reversed(Loader):
    """Loads anything as the reverse of its text."""

    def load(self, data: Buffer) -> str:
        return bytes(data).decode()[::-1]


class Refusing(Dumper):
    def dump(self, obj: Any) -> NoReturn:
        raise ArithmeticError(obj)


def make_hostile(made: AdaptersMap) -> None:
    for name in LOADED:
        made.register_loader(name, Reversed)
    for kind in DUMPED:
        made.register_dumper(kind, type("Refusing", (Refusing,), {}))


@pytest.fixture
def hostile(migrated: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """DSN of a database; for connections that are opened from now on all adapters are hostile."""
    made = AdaptersMap(adapters)
    make_hostile(made)
    monkeypatch.setattr(postgres, "adapters", made)
    return migrated


async def test_everything_works_whatever_is_registered(hostile: str) -> None:
    """Tasks are enqueued, run, told of and steered with whatever a program has registered."""
    app = nq.App()

    @app.task(name="told")
    async def told(task_id: int, context: object, result: nq.Result) -> str:
        return f"{context}"

    @app.task(name="work", on_complete=told)
    async def work(ctx: nq.TaskContext, text: str) -> str:
        await ctx.stream("s").write(b"\x00\xff")
        return text

    async with nq.connect(hostile) as client:
        one = await client.enqueue(work.options(context="a", timeout=3, priority=2), "a")
        (two,) = await client.enqueue_many([work.bind("b")], copy=True)
        three = await client.enqueue(work.options(dedup_key="k", queue="q"), "c")
        later = await client.enqueue(work.options(run_after=3600), "d")
        async with client.transaction() as tx:
            four = await tx.enqueue(work, "e")
            status = await tx.status(four)
            assert status is not None
            assert status.task_type == "work"
            assert await tx.cancel(later)
        await client.configure_queue("default", max_running=2)
        await nq.Worker(app, client).run_until_idle()
        assert [await client.result(ref) for ref in (one, two, three, four)] == [*"abce"]
        (attempt,) = await client.attempts(one)
        assert isinstance(attempt.worker_id, UUID)
        assert [chunk async for chunk in client.read_stream(one, "s")] == [b"\x00\xff"]
        assert {queue.name for queue in await client.queues()} == {"default"}
        assert (await client.stats()).completed == 9
        assert await client.sweep() == await client.promote() == 0
        assert await client.retry(later)


async def test_migrations_work_whatever_is_registered(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`migrate` and the look at the schema do not depend on what is registered."""
    made = AdaptersMap(adapters)
    make_hostile(made)
    monkeypatch.setattr(postgres, "adapters", made)
    assert await nq.migrate(dsn)
    assert await nq.migrate(dsn) == []


async def test_statements_of_the_user_have_what_is_registered(
    migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a transaction of ours the user's statements are as on any connection of psycopg's."""
    made = AdaptersMap(adapters)
    made.register_loader("int4", Reversed)
    monkeypatch.setattr(postgres, "adapters", made)
    async with nq.connect(migrated) as client, client.transaction() as tx:
        cursor = await tx.execute("select 12")
        assert await cursor.fetchone() == ("21",)
        tx.connection.row_factory = dict_row
        assert (await tx.enqueue("work")).created


def test_producers_do_not_depend_on_adapters(session: Session) -> None:
    """A connection of the user's may turn anything into anything, and take nothing."""
    with psycopg.connect(session.info.dsn) as connection:
        make_hostile(connection.adapters)
        producer = nq.producer(connection)
        refs = producer.enqueue_many(
            [nq.TaskRequest.by_name("a"), nq.TaskRequest.by_name("b").options(dedup_key="k")]
        )
        assert [ref.created for ref in refs] == [True, True]
        found = producer.status_many(refs)
        assert [status and status.task_type for status in found] == ["a", "b"]
        assert producer.cancel(refs[0])
