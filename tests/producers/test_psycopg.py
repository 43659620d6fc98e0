"""What is particular to psycopg's own connections."""

from __future__ import annotations

import asyncio
import contextlib
import threading

from collections.abc import AsyncGenerator

import psycopg
import pytest
import trio

from psycopg.pq import TransactionStatus

import nursery_queue as nq

from tests.producers.outside import Outside
from tests.support.waits import blocked, until_blocked


Greet = nq.TaskType[[str], str]

IDLE, OPEN = TransactionStatus.IDLE, TransactionStatus.INTRANS


def test_the_implicit_begin(outside: Outside, greet: Greet) -> None:
    """Without autocommit a first call begins a transaction, which its owner ends."""
    with psycopg.connect(outside.dsn) as connection:
        tasks = nq.producer(connection)
        tasks.enqueue(greet, "Ann")

        assert connection.info.transaction_status == OPEN
        connection.rollback()
        assert outside.tasks() == []

        with pytest.raises(psycopg.errors.InvalidSchemaName):
            nq.producer(connection, schema="nowhere").enqueue(greet, "Ann")
        assert connection.info.transaction_status == OPEN


def test_autocommit(outside: Outside, greet: Greet) -> None:
    """With autocommit and no transaction a call is committed at once, or has no effect."""
    with psycopg.connect(outside.dsn, autocommit=True) as connection:
        ref = nq.producer(connection).enqueue(greet, "Ann")
        with pytest.raises(psycopg.errors.InvalidSchemaName):
            nq.producer(connection, schema="nowhere").enqueue(greet, "Ann")

        assert connection.info.transaction_status == IDLE
        assert outside.tasks() == [ref.id]

        with contextlib.suppress(ZeroDivisionError), connection.transaction():
            nq.producer(connection).enqueue(greet, "Bob")
            raise ZeroDivisionError
        assert outside.tasks() == [ref.id]


def test_autocommit_in_a_pipeline(outside: Outside, greet: Greet) -> None:
    """In a pipeline, too, with answers outstanding, it is seen whether there is a transaction."""
    with psycopg.connect(outside.dsn, autocommit=True) as connection, connection.pipeline():
        connection.execute("insert into note values ('first')")
        ref = nq.producer(connection).enqueue(greet, "Ann")
        assert outside.tasks() == [ref.id]

        connection.execute("begin")
        nq.producer(connection).enqueue(greet, "Bob")
        with pytest.raises(psycopg.errors.InvalidSchemaName):
            nq.producer(connection, schema="nowhere").enqueue(greet, "Ann")
        nq.producer(connection).enqueue(greet, "Cy")
        assert outside.tasks() == [ref.id]
        connection.execute("commit")

    assert len(outside.tasks()) == 3


def test_no_after(outside: Outside) -> None:
    """There is no commit hook, and `after` says so."""
    told = pytest.raises(TypeError, match="does not tell when its transaction is committed")
    with psycopg.connect(outside.dsn) as connection, told:
        nq.producer(connection).after(print)


def test_the_first_error_is_told(outside: Outside, greet: Greet) -> None:
    """When the connection is lost, the error is that of the call, not of what was to mend it."""
    keyed = greet.options(dedup_key="x")
    with psycopg.connect(outside.dsn) as other, psycopg.connect(outside.dsn) as connection:
        nq.producer(other).enqueue(keyed, "Ann")

        def terminate_once_it_waits() -> None:
            while not blocked(outside.dsn):
                pass
            outside.ask(f"select pg_terminate_backend({connection.info.backend_pid})")

        thread = threading.Thread(target=terminate_once_it_waits)
        thread.start()
        with pytest.raises(psycopg.errors.AdminShutdown):
            nq.producer(connection).enqueue(keyed, "Ann")
        thread.join()
        other.rollback()


def test_beside_a_statement_of_another_thread(outside: Outside, greet: Greet) -> None:
    """With autocommit, a statement of another thread's is not taken for a transaction."""
    with psycopg.connect(outside.dsn, autocommit=True) as connection:
        thread = threading.Thread(target=connection.execute, args=["select pg_sleep(0.05)"])
        thread.start()
        while connection.info.transaction_status != TransactionStatus.ACTIVE:
            pass
        ref = nq.producer(connection).enqueue(greet, "Ann")
        thread.join()

    assert outside.tasks() == [ref.id]


def test_threads_take_turns(outside: Outside, greet: Greet) -> None:
    """Calls that fail in one thread take nothing with them that others do meanwhile."""
    refs: list[nq.TaskRef] = []

    def enqueue() -> None:
        for number in range(60):
            if number % 3:
                refs.append(nq.producer(connection).enqueue(greet, "Ann"))
            else:
                with pytest.raises(psycopg.errors.InvalidSchemaName):
                    nq.producer(connection, schema="nowhere").enqueue(greet, "Ann")

    with psycopg.connect(outside.dsn) as connection:
        threads = [threading.Thread(target=enqueue) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert len(refs) == 160
    assert outside.tasks() == sorted(ref.id for ref in refs)


def test_no_savepoint_is_left(outside: Outside, greet: Greet) -> None:
    """What a call has put up it takes down again, whether it fails or not."""
    with psycopg.connect(outside.dsn) as connection:
        for schema, outcome in (
            ("nursery_queue", contextlib.nullcontext()),
            ("nowhere", pytest.raises(psycopg.errors.InvalidSchemaName)),
        ):
            with outcome:
                nq.producer(connection, schema=schema).enqueue(greet, "Ann")
            with pytest.raises(psycopg.errors.InvalidSavepointSpecification):
                connection.execute("release savepoint nursery_queue_producer")
            connection.rollback()


# -- asyncio -------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def waiting(
    outside: Outside, connection: psycopg.AsyncConnection, greet: Greet
) -> AsyncGenerator[asyncio.Task[nq.TaskRef]]:
    """Have a call under way that waits for somebody else's transaction to end."""
    with psycopg.connect(outside.dsn) as other:
        nq.producer(other).enqueue(greet.options(dedup_key="x"), "Ann")
        call = asyncio.ensure_future(
            nq.producer(connection).enqueue(greet.options(dedup_key="x"), "Ann")
        )
        while not blocked(outside.dsn):  # noqa: ASYNC110  # the server rings no bell for that
            await asyncio.sleep(0)
        yield call
        other.rollback()


def test_gathered_calls(outside: Outside, greet: Greet) -> None:
    """Calls that are made at once on a connection, each with a producer of its own, all count."""

    async def main() -> list[nq.TaskRef]:
        async with await psycopg.AsyncConnection.connect(outside.dsn) as connection:
            results = await asyncio.gather(
                *[
                    nq.producer(
                        connection, schema="nowhere" if number % 3 == 0 else "nursery_queue"
                    ).enqueue(greet, str(number))
                    for number in range(9)
                ],
                return_exceptions=True,
            )
        return [each for each in results if isinstance(each, nq.TaskRef)]

    refs = asyncio.run(main())

    assert len(refs) == 6
    assert outside.tasks() == [ref.id for ref in refs]


def test_beside_the_owners_statement(outside: Outside, greet: Greet) -> None:
    """With autocommit, a statement of the owner's under way is not taken for a transaction."""

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(
            outside.dsn, autocommit=True
        ) as connection:
            _, ref = await asyncio.gather(
                connection.execute("select pg_sleep(0.01)"),
                nq.producer(connection).enqueue(greet, "Ann"),
            )
        assert outside.tasks() == [ref.id]

    asyncio.run(main())


def test_cancelled_while_it_waits(outside: Outside, greet: Greet) -> None:
    """A call that is cancelled had no effect, and the transaction goes on."""

    async def main() -> nq.TaskRef:
        async with await psycopg.AsyncConnection.connect(outside.dsn) as connection:
            await connection.execute("insert into note values ('mine')")
            async with waiting(outside, connection, greet) as call:
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await call
            ref = await nq.producer(connection).enqueue(greet, "Bob")
            await connection.commit()
            return ref

    ref = asyncio.run(main())

    assert outside.tasks() == [ref.id]
    assert outside.ask("select word from note") == [("mine",)]


def test_cancelled_at_any_moment(outside: Outside, greet: Greet) -> None:
    """Wherever it is cancelled, the transaction goes on."""

    async def main() -> int:
        async with await psycopg.AsyncConnection.connect(outside.dsn) as connection:
            for moment in range(1000):
                call = asyncio.ensure_future(nq.producer(connection).enqueue(greet, "Ann"))
                for _ in range(moment):
                    await asyncio.sleep(0)
                    if call.done():
                        return moment
                call.cancel()
                await asyncio.wait([call])
                await connection.execute("insert into note values ('mine')")
        raise AssertionError

    moments = asyncio.run(main())

    assert moments > 3
    assert outside.ask("select count(*) from note") == [(moments,)]


def test_cancelled_while_it_waits_for_its_turn(outside: Outside, greet: Greet) -> None:
    """A call that is cancelled before it could begin has done nothing."""

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(outside.dsn) as connection:
            await connection.execute("insert into note values ('mine')")
            async with waiting(outside, connection, greet) as first:
                second = asyncio.ensure_future(nq.producer(connection).enqueue(greet, "Bob"))
                await asyncio.sleep(0)
                second.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await second
                first.cancel()
                await asyncio.wait([first])
            await connection.execute("insert into note values ('mine, too')")

    asyncio.run(main())

    assert outside.tasks() == []
    assert outside.ask("select word from note") == [("mine",), ("mine, too",)]


def test_cancelled_behind_statements_of_the_owner(outside: Outside, greet: Greet) -> None:
    """A call that is cancelled while the owner's statements keep it from going on does no harm."""

    async def main() -> None:
        async with await psycopg.AsyncConnection.connect(outside.dsn) as connection:
            held, enough = asyncio.Event(), asyncio.Event()

            async def statement() -> None:
                async with connection.lock:
                    held.set()
                    await enough.wait()

            await connection.execute("insert into note values ('mine')")
            async with connection.lock:
                call = asyncio.ensure_future(nq.producer(connection).enqueue(greet, "Ann"))
                await asyncio.sleep(0)
                next_one = asyncio.ensure_future(statement())
                await asyncio.sleep(0)
            await held.wait()
            call.cancel()
            enough.set()
            await asyncio.wait([call, next_one])
            assert call.cancelled()
            await connection.execute("insert into note values ('mine, too')")

    asyncio.run(main())

    assert outside.tasks() == []
    assert outside.ask("select word from note") == [("mine",), ("mine, too",)]


def test_autocommit_in_a_pipeline_on_asyncio(outside: Outside, greet: Greet) -> None:
    """With answers outstanding it is seen, too, whether there is a transaction."""

    async def main() -> None:
        async with (
            await psycopg.AsyncConnection.connect(outside.dsn, autocommit=True) as connection,
            connection.pipeline(),
        ):
            await connection.execute("insert into note values ('first')")
            await nq.producer(connection).enqueue(greet, "Ann")
            assert len(outside.tasks()) == 1

    asyncio.run(main())


# -- trio ----------------------------------------------------------------------------


async def test_cancelled_on_trio(outside: Outside, greet: Greet) -> None:
    """A call that is cancelled on our own connection had no effect, and the transaction goes on."""
    async with nq.connect(outside.dsn) as client, client.transaction() as tx:
        await tx.execute("insert into note values ('mine')")
        connection: psycopg.AsyncConnection = tx.connection
        mine = nq.producer(connection)
        for tasks in (nq.producer(tx), mine):
            with psycopg.connect(outside.dsn) as other:
                nq.producer(other).enqueue(greet.options(dedup_key="x"), "Ann")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(tasks.enqueue, greet.options(dedup_key="x").bind("Ann"))
                    await until_blocked(outside.dsn)
                    nursery.cancel_scope.cancel()
                other.rollback()
        ref = await mine.enqueue(greet, "Bob")

    assert outside.tasks() == [ref.id]
    assert outside.ask("select word from note") == [("mine",)]


async def test_at_once_on_trio(outside: Outside, greet: Greet) -> None:
    """Tasks that use one connection of ours at the same time take turns."""

    async def enqueue(schema: str) -> None:
        connection: psycopg.AsyncConnection = tx.connection
        tasks = nq.producer(connection, schema=schema)
        with contextlib.suppress(psycopg.errors.InvalidSchemaName):
            await tasks.enqueue(greet, "Ann")

    async with (
        nq.connect(outside.dsn) as client,
        client.transaction() as tx,
        trio.open_nursery() as nursery,
    ):
        for number in range(9):
            nursery.start_soon(enqueue, "nowhere" if number % 3 == 0 else "nursery_queue")

    assert len(outside.tasks()) == 6
