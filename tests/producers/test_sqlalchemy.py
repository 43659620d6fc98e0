"""What is particular to SQLAlchemy."""

# pyright: reportPrivateUsage=false, reportUnusedFunction=false

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading

from collections.abc import Generator
from typing import Any

import pytest
import sqlalchemy as sa

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import event, exc
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)
from sqlalchemy.pool import NullPool

import nursery_queue as nq

from nursery_queue._producers import _committed_call as _call, _session_callbacks
from tests.producers.outside import Outside
from tests.producers.worlds import URL, engine


Greet = nq.TaskType[[str], str]
DEFERRED = "alter table note add unique (word) deferrable initially deferred"

request = contextvars.ContextVar("request", default="none")


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"

    word: Mapped[str] = mapped_column(primary_key=True)


@pytest.fixture
def at(outside: Outside) -> Generator[sa.Engine]:
    made = engine(outside.dsn)
    yield made
    made.dispose()


@pytest.fixture
def async_at(outside: Outside) -> AsyncEngine:
    return create_async_engine(URL, connect_args=conninfo_to_dict(outside.dsn), poolclass=NullPool)


@pytest.fixture(autouse=True)
def nothing_is_kept() -> Generator[None]:
    """Fail a test after which callbacks are still waiting."""
    yield
    assert len(_session_callbacks._pending) == 0


# -- the front door --------------------------------------------------------------------


def test_nothing_is_flushed(at: sa.Engine, greet: Greet) -> None:
    """What is new in a session stays there until its owner flushes it."""
    with Session(at) as session:
        session.add(note := Note(word="mine"))
        nq.producer(session).enqueue(greet, "Ann")

        assert note in session.new
        session.rollback()


def test_autobegin(outside: Outside, at: sa.Engine, greet: Greet) -> None:
    """A first call begins the transaction that `commit()` commits; `begin()` has its own."""
    with at.connect() as connection:
        nq.producer(connection).enqueue(greet, "Ann")
        assert connection.in_transaction()
        assert not connection.in_nested_transaction()
        connection.commit()
        assert len(outside.tasks()) == 1

    with Session(at) as session, session.begin():
        nq.producer(session).enqueue(greet, "Bob")
        assert not session.in_nested_transaction()
    assert len(outside.tasks()) == 2


def test_autocommit(outside: Outside, at: sa.Engine, greet: Greet) -> None:
    """With AUTOCOMMIT a call is committed at once, or has no effect."""
    at = at.execution_options(isolation_level="AUTOCOMMIT")
    with at.connect() as connection, Session(at) as session:
        givens: list[sa.Connection | Session] = [connection, session]
        for number, given in enumerate(givens, 1):
            nq.producer(given).enqueue(greet, "Ann")
            with pytest.raises(exc.ProgrammingError, match="nowhere"):
                nq.producer(given, schema="nowhere").enqueue(greet, "Ann")
            assert len(outside.tasks()) == number


def test_autocommit_on_asyncio(outside: Outside, async_at: AsyncEngine, greet: Greet) -> None:
    """With AUTOCOMMIT a call is committed at once, on asyncio, too."""

    async def main() -> None:
        made = async_at.execution_options(isolation_level="AUTOCOMMIT")
        async with made.connect() as connection:
            await nq.producer(connection).enqueue(greet, "Ann")
            assert len(outside.tasks()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("options", [{"stream_results": True}, {"yield_per": 5}])
def test_a_connection_that_streams(
    outside: Outside, at: sa.Engine, greet: Greet, options: dict[str, Any]
) -> None:
    """Ours are no results to stream: they come at once, and the owner's are streamed as before."""
    with at.execution_options(**options).connect() as connection:
        producer = nq.producer(connection)
        ref = producer.enqueue(greet, "Ann")
        with pytest.raises(exc.DBAPIError):
            nq.producer(connection, schema="nowhere").enqueue(greet, "Ann")
        assert len(producer.enqueue_many([greet.bind(str(number)) for number in range(20)])) == 20
        assert producer.cancel(ref)
        with connection.exec_driver_sql("select 1") as result:
            assert result.context._is_server_side
            result.all()
        connection.commit()
    assert len(outside.tasks()) == 21


def test_a_session_with_several_engines(outside: Outside, at: sa.Engine, greet: Greet) -> None:
    """Its connection for a table, or for an engine, takes the task into that transaction."""

    class Routing(Session):
        def get_bind(self, *_args: Any, **_kwargs: Any) -> sa.Engine:
            return at if self._flushing else elsewhere

    elsewhere = engine(outside.dsn)
    with Session(binds={Note: at}) as by_table, Routing() as by_statement:
        for session, how in ((by_table, {"mapper": Note}), (by_statement, {"bind": at})):
            session.add(Note(word=str(how)))
            session.flush()
            connection = session.connection(bind_arguments=how)
            nq.producer(connection).enqueue(greet, "Ann")
            writers = "select from pg_stat_activity where backend_xid is not null"
            of_ours = " and backend_type = 'client backend' and datname = current_database()"
            assert len(outside.ask(writers + of_ours)) == 1
            session.rollback()
    assert outside.tasks() == []


def test_gathered_calls(outside: Outside, async_at: AsyncEngine, greet: Greet) -> None:
    """Calls that are made at once on an AsyncSession or an AsyncConnection take turns."""

    async def main() -> None:
        async with AsyncSession(async_at) as session, async_at.connect() as connection:
            for given in (session, connection):
                results = await asyncio.gather(
                    *[
                        nq.producer(
                            given, schema="nowhere" if number % 3 == 0 else "nursery_queue"
                        ).enqueue(greet, "Ann")
                        for number in range(9)
                    ],
                    return_exceptions=True,
                )
                assert sum(isinstance(each, nq.TaskRef) for each in results) == 6
                await given.commit()

    asyncio.run(main())

    assert len(outside.tasks()) == 12


def test_a_scoped_session_is_that_of_the_call(
    outside: Outside, at: sa.Engine, greet: Greet
) -> None:
    """A producer for a scoped_session may be kept: it uses the session of the moment."""
    sessions = scoped_session(sessionmaker(at))
    tasks, called = nq.producer(sessions), list[str]()

    def elsewhere() -> None:
        tasks.enqueue(greet, "Ann")
        tasks.after(called.append, "Ann")
        sessions.rollback()
        sessions.remove()

    ref = tasks.enqueue(greet, "Bob")
    tasks.after(called.append, "Bob")
    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    sessions.commit()
    sessions.remove()

    assert outside.tasks() == [ref.id]
    assert called == ["Bob"]


def test_another_driver(greet: Greet) -> None:
    """An engine of another driver is refused with the URL to use."""
    lite = sa.create_engine("sqlite://")
    with lite.connect() as connection, Session(lite) as session:
        for given in (connection, session):
            with pytest.raises(TypeError, match=r"sqlite\+pysqlite.*postgresql\+psycopg://"):
                nq.producer(given).enqueue(greet, "Ann")
    lite.dispose()


def test_no_after_on_a_connection(at: sa.Engine, async_at: AsyncEngine) -> None:
    """Core connections have no commit hook, and `after` says so."""

    async def main() -> None:
        async with async_at.connect() as connection:
            with pytest.raises(TypeError, match="does not tell when"):
                nq.producer(connection).after(print)

    asyncio.run(main())
    with at.connect() as connection, pytest.raises(TypeError, match="does not tell when"):
        nq.producer(connection).after(print)


# -- after, in a Session ---------------------------------------------------------------


def test_after(outside: Outside, at: sa.Engine, greet: Greet) -> None:
    """Callbacks are called in order, once, by whoever commits, when everybody sees the commit."""
    called: list[object] = []

    def look(word: str) -> None:
        called.append((word, len(outside.tasks()), threading.get_ident()))

    with Session(at) as session:
        tasks = nq.producer(session)
        tasks.after(look, "before anything")
        tasks.enqueue(greet, "Ann")
        tasks.after(look, "a")
        nq.producer(session).after(look, "b")
        assert called == []
        session.commit()
        words = ("before anything", "a", "b")
        assert called == [(word, 1, threading.get_ident()) for word in words]

        session.execute(sa.text("select 1"))
        session.commit()

    assert len(called) == 3
    assert tasks.callbacks == nq.CallbackCounts(finished=2)


def test_after_a_rollback(at: sa.Engine) -> None:
    """Rolled back or closed, callbacks are dropped; those of the next transaction are not."""
    called: list[int] = []
    with Session(at) as session:
        nq.producer(session).after(called.append, 1)
        session.rollback()
        nq.producer(session).after(called.append, 2)
        session.commit()
        nq.producer(session).after(called.append, 3)
        session.close()
        session.commit()
        with pytest.raises(ZeroDivisionError), session.begin():
            nq.producer(session).after(called.append, 4)
            raise ZeroDivisionError

    assert called == [2]


def test_after_a_commit_that_fails(outside: Outside, at: sa.Engine) -> None:
    """A COMMIT that the database refuses is none."""
    outside.session.execute(DEFERRED.encode())
    called: list[int] = []
    with Session(at) as session:
        nq.producer(session).after(called.append, 1)
        session.execute(sa.text("insert into note values ('twice'), ('twice')"))
        with pytest.raises(exc.IntegrityError):
            session.commit()
        session.rollback()

    assert called == []


def test_after_and_savepoints(at: sa.Engine) -> None:
    """A savepoint that is rolled back drops its own callbacks, also those released into it."""
    called: list[str] = []
    with Session(at) as session:
        after = nq.producer(session).after
        after(called.append, "outermost")
        with session.begin_nested():
            after(called.append, "released")
            session.execute(sa.text("select 1"))
        assert called == []
        nested = session.begin_nested()
        after(called.append, "dropped")
        with session.begin_nested():
            after(called.append, "released, then dropped")
        nested.rollback()
        with session.begin_nested():
            with session.begin_nested():
                after(called.append, "released twice")
            after(called.append, "and released")
        after(called.append, "last")
        assert called == []
        session.commit()

        assert called == ["outermost", "released", "released twice", "and released", "last"]

        session.begin_nested()
        after(called.append, "released by the commit")
        session.commit()

        session.begin_nested()
        after(called.append, "rolled back with all")
        session.rollback()

    assert called[5:] == ["released by the commit"]


def test_after_in_a_flush(at: sa.Engine) -> None:
    """Callbacks may come from the events of a flush, which has a transaction inside ours."""
    called: list[str] = []
    with Session(at) as session:

        @event.listens_for(session, "before_flush")
        def before_flush(*_args: object) -> None:
            nq.producer(session).after(called.append, "before")
            with session.begin_nested():
                nq.producer(session).after(called.append, "nested")

        @event.listens_for(session, "after_flush")
        def after_flush(*_args: object) -> None:
            nq.producer(session).after(called.append, "after")

        session.add(Note(word="mine"))
        session.commit()

    assert called == ["before", "nested", "after"]


@pytest.mark.parametrize("within", ["a transaction", "a savepoint"])
@pytest.mark.parametrize("mode", ["conditional_savepoint", "create_savepoint", "rollback_only"])
def test_a_session_in_somebody_s_transaction_commits_nothing(
    outside: Outside,
    at: sa.Engine,
    greet: Greet,
    caplog: pytest.LogCaptureFixture,
    mode: Any,
    within: str,
) -> None:
    """Its callbacks are dropped, and that is said: nobody tells when the connection commits."""
    told: list[str] = []
    with at.connect() as connection, connection.begin():
        if within == "a savepoint":
            connection.begin_nested()
        with Session(connection, join_transaction_mode=mode) as session:
            producer = nq.producer(session)
            producer.enqueue(greet, "Ann")
            producer.after(told.append, "Ann")
            session.commit()
        assert outside.tasks() == []
    assert told == []
    assert "1 function for after the commit of a session is not called" in caplog.text


def test_a_session_that_controls_the_connection_commits(
    outside: Outside, at: sa.Engine, greet: Greet
) -> None:
    """Its commit is that of the connection, so its callbacks are called."""
    told: list[list[int]] = []
    with at.connect() as connection:
        connection.begin()
        with Session(connection, join_transaction_mode="control_fully") as session:
            ref = nq.producer(session).enqueue(greet, "Ann")
            nq.producer(session).after(lambda: told.append(outside.tasks()))
            session.commit()
    assert told == [[ref.id]]


def test_the_session_can_be_used_in_a_callback(
    outside: Outside, at: sa.Engine, greet: Greet
) -> None:
    """A callback may begin the session's next transaction, with callbacks of its own."""
    called: list[str] = []

    def again() -> None:
        nq.producer(session).enqueue(greet, "Bob")
        nq.producer(session).after(called.append, "again")
        session.commit()

    with Session(at) as session:
        nq.producer(session).enqueue(greet, "Ann")
        nq.producer(session).after(again)
        nq.producer(session).after(called.append, "once")
        session.commit()

    assert called == ["again", "once"]
    assert len(outside.tasks()) == 2


def test_the_session_cannot_be_used_in_its_own_block(at: sa.Engine) -> None:
    """In `with session.begin()` SQLAlchemy does not let a callback use the session."""
    with Session(at) as session:
        tasks = nq.producer(session)
        with session.begin():
            tasks.after(session.execute, sa.text("select 1"))

    assert tasks.callbacks == nq.CallbackCounts(failed=1)


def test_a_callback_that_fails(at: sa.Engine, caplog: pytest.LogCaptureFixture) -> None:
    """An error of a callback is logged and counted, not raised, and the others are called."""
    called: list[str] = []
    with Session(at) as session:
        tasks = nq.producer(session)
        tasks.after(divmod, 1, 0)
        tasks.after(called.append, "after all")
        session.commit()

    assert called == ["after all"]
    assert tasks.callbacks == nq.CallbackCounts(finished=1, failed=1)
    (record,) = (each for each in caplog.records if each.name == "nursery_queue")
    assert record.levelno == logging.ERROR
    assert "divmod" in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_an_interrupt_goes_through(at: sa.Engine) -> None:
    """KeyboardInterrupt is nobody's error: it goes on, and what comes after is not called."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    called: list[str] = []
    with Session(at) as session:
        tasks = nq.producer(session)
        tasks.after(interrupt)
        tasks.after(called.append, "after all")
        with pytest.raises(KeyboardInterrupt):
            session.commit()

    assert called == []
    assert tasks.callbacks.cancelled == 1


def test_the_context_of_a_callback(at: sa.Engine) -> None:
    """A callback sees the context variables of where it was registered."""
    seen: list[str] = []
    with Session(at) as session:
        token = request.set("first")
        nq.producer(session).after(lambda: seen.append(request.get()))
        request.reset(token)
        session.commit()

    assert seen == ["first"]


def test_what_cannot_be_called(at: sa.Engine) -> None:
    """What cannot be called, or would have to be awaited, is refused at once."""

    async def never() -> None: ...

    with Session(at) as session:
        with pytest.raises(TypeError, match="something to call"):
            nq.producer(session).after("print")  # type: ignore[arg-type]  # that is the point
        with pytest.raises(TypeError, match="async"):
            nq.producer(session).after(never)


# -- after, in an AsyncSession -----------------------------------------------------------


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_call, "TIMEOUT", 0.01)


def test_after_on_asyncio(outside: Outside, async_at: AsyncEngine, greet: Greet) -> None:
    """`commit()` returns when all callbacks have; async ones run at the same time."""
    called: list[object] = []
    together = asyncio.Barrier(3)

    async def meet(word: str) -> None:
        await together.wait()
        called.append((word, len(outside.tasks()), request.get()))

    async def main() -> None:
        async with AsyncSession(async_at) as session:
            tasks = nq.producer(session)
            await tasks.enqueue(greet, "Ann")
            for word in "abc":
                token = request.set(word)
                tasks.after(meet, word)
                request.reset(token)
            tasks.after(called.append, "plain")
            assert called == []
            await session.commit()
            assert set(called) == {"plain", *((word, 1, word) for word in "abc")}

            tasks.after(called.append, "never")
            await session.rollback()
            async with session.begin():
                tasks.after(called.append, "again")
            assert called[4:] == ["again"]
            assert tasks.callbacks == nq.CallbackCounts(finished=5)

    asyncio.run(main())


def test_an_async_session_in_somebody_s_transaction_commits_nothing(
    outside: Outside, async_at: AsyncEngine, greet: Greet, caplog: pytest.LogCaptureFixture
) -> None:
    """Its callbacks are dropped, and that is said."""
    told: list[str] = []

    async def main() -> None:
        async with async_at.connect() as connection, connection.begin():
            async with AsyncSession(connection) as session:
                producer = nq.producer(session)
                await producer.enqueue(greet, "Ann")
                producer.after(told.append, "Ann")
                await session.commit()
            assert outside.tasks() == []

    asyncio.run(main())
    assert told == []
    assert "1 function for after the commit of a session is not called" in caplog.text


def test_savepoints_on_asyncio(async_at: AsyncEngine) -> None:
    """Savepoints count on asyncio, too."""
    called: list[str] = []

    async def call(word: str) -> None:
        called.append(word)

    async def main() -> None:
        async with AsyncSession(async_at) as session:
            tasks = nq.producer(session)
            async with session.begin_nested():
                tasks.after(call, "released")
            nested = await session.begin_nested()
            tasks.after(call, "dropped")
            await nested.rollback()
            await session.commit()

    asyncio.run(main())

    assert called == ["released"]


def test_so_many_at_once(async_at: AsyncEngine) -> None:
    """Of 1,000 callbacks never more than 10 run at once, begun in order."""
    running, most, begun = 0, 0, list[int]()

    async def count(number: int) -> None:
        nonlocal running, most
        begun.append(number)
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1

    async def main() -> None:
        async with AsyncSession(async_at) as session:
            for number in range(1000):
                nq.producer(session).after(count, number)
            await session.commit()

    asyncio.run(main())

    assert most == 10
    assert begun == list(range(1000))


@pytest.mark.usefixtures("hurried")
def test_failures_on_asyncio(async_at: AsyncEngine, caplog: pytest.LogCaptureFixture) -> None:
    """One that fails or takes too long is logged and counted, not raised; the others run."""

    async def fail() -> None:
        raise ValueError("of its own")

    async def time_out() -> None:
        raise TimeoutError("of its own")

    async def main() -> nq.CallbackCounts:
        async with AsyncSession(async_at) as session:
            tasks = nq.producer(session)
            tasks.after(fail)
            tasks.after(time_out)
            tasks.after(asyncio.Event().wait)
            tasks.after(len, "")
            await session.commit()
            return tasks.callbacks

    assert asyncio.run(main()) == nq.CallbackCounts(finished=1, failed=2, timed_out=1)
    assert len([each for each in caplog.records if each.name == "nursery_queue"]) == 3


@pytest.mark.usefixtures("hurried")
def test_each_has_its_own_time(async_at: AsyncEngine) -> None:
    """The time limit of a callback counts from its start, not from the commit."""
    begun: list[int] = []

    async def last(number: int) -> None:
        begun.append(number)
        await asyncio.Event().wait()

    async def main() -> nq.CallbackCounts:
        async with AsyncSession(async_at) as session:
            tasks = nq.producer(session)
            for number in range(20):
                tasks.after(last, number)
            await session.commit()
            return tasks.callbacks

    assert asyncio.run(main()) == nq.CallbackCounts(timed_out=20)
    assert begun == list(range(20))


def test_cancelled_in_the_callbacks(outside: Outside, async_at: AsyncEngine, greet: Greet) -> None:
    """To cancel `commit()` while callbacks run cancels them; the commit has been made."""
    begun = asyncio.Event()
    tasks: list[nq.AsyncProducer] = []

    async def last() -> None:
        begun.set()
        await asyncio.Event().wait()

    async def commit() -> None:
        async with AsyncSession(async_at) as session:
            tasks.append(nq.producer(session))
            await tasks[0].enqueue(greet, "Ann")
            tasks[0].after(last)
            await session.commit()

    async def main() -> None:
        call = asyncio.ensure_future(commit())
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(main())

    assert len(outside.tasks()) == 1
    assert tasks[0].callbacks == nq.CallbackCounts(cancelled=1)
