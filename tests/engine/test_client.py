"""What a client refuses, and that it then has done nothing."""

from __future__ import annotations

import contextlib
import datetime as dt
import math

from collections.abc import Callable
from typing import Any, cast

import psycopg
import pytest
import trio

from psycopg.conninfo import make_conninfo

import nursery_queue as nq

from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._psycopg._connection import Connection
from nursery_queue.testing import VirtualTime
from tests.support.flaky_store import FlakyStore
from tests.support.workers import working


@pytest.fixture
def note(app: nq.App) -> nq.TaskType[[str], None]:
    @app.task(name="note")
    async def note(body: str) -> None: ...

    return note


async def test_a_closed_client(either: nq.Client, note: nq.TaskType[[str], None]) -> None:
    """Every method of a closed client raises `Closed`; closing it again is fine."""
    ref = await either.enqueue(note, "a")
    await either.aclose()
    await either.aclose()

    calls: list[Callable[[], Any]] = [
        lambda: either.enqueue(note, "a"),
        lambda: either.enqueue("note", body="a"),
        lambda: either.enqueue_many([note.bind("a")]),
        lambda: either.transaction().__aenter__(),
        lambda: either.status(ref),
        lambda: either.status_many([ref]),
        lambda: either.attempts(ref),
        lambda: either.wait(ref),
        lambda: either.result(ref),
        lambda: either.cancel(ref),
        lambda: either.retry(ref),
        either.list_tasks,
        either.stats,
        either.promote,
        either.sweep,
        either.prune,
    ]
    for call in calls:
        with pytest.raises(nq.Closed, match="closed"):
            await call()
    with pytest.raises(nq.Closed):
        await nq.Worker(nq.App(), either).run()


async def test_params_that_are_too_large(either: nq.Client, note: nq.TaskType[[str], None]) -> None:
    """Params over the limit are refused with task, size and limit; of a batch nothing is stored."""
    fits = "x" * (1_000_000 - len('{"body":""}'))
    await either.enqueue(note, fits)
    for body, size in [(fits + "x", 1_000_001), ("☃" * 400_000, 1_200_011)]:
        with pytest.raises(nq.PayloadTooLarge, match=f"note are {size} bytes.*1000000"):
            await either.enqueue(note, body)
        with pytest.raises(nq.PayloadTooLarge):
            await either.enqueue_many([note.bind("fine"), note.bind(body)])
        with pytest.raises(nq.PayloadTooLarge):
            async with either.transaction() as tx:
                await tx.enqueue(note, "fine")
                await tx.enqueue(note, body)

    assert len(await either.list_tasks()) == 1


async def test_a_limit_of_ones_own(app: nq.App, note: nq.TaskType[[str], None]) -> None:
    """The limit can be set for each client."""
    client = nq.Client(FlakyStore(), max_params_bytes=20)

    await client.enqueue(note, "short")
    with pytest.raises(nq.PayloadTooLarge, match="limit is 20"):
        await client.enqueue(note, "not so short any more")


NAIVE = dt.datetime(2030, 1, 1)  # noqa: DTZ001  # what is to be refused


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"run_at": NAIVE}, "2030"),
        ({"run_after": -1}, "-1"),
        ({"run_after": math.nan}, "nan"),
        ({"run_after": math.inf}, "inf"),
        ({"timeout": 0}, "0"),
        ({"timeout": -1.5}, "-1.5"),
        ({"timeout": math.nan}, "nan"),
        ({"keep_for": -1}, "-1"),
        ({"keep_for": math.nan}, "nan"),
        ({"max_attempts": 0}, "0"),
        ({"priority": 2**31}, str(2**31)),
        ({"queue": ""}, "queue"),
        ({"dedup_key": ""}, "dedup_key"),
        ({"run_at": dt.datetime(2030, 1, 1, tzinfo=dt.UTC), "run_after": 5}, "run_after"),
    ],
)
async def test_options_out_of_bounds(
    note: nq.TaskType[[str], None], options: dict[str, Any], named: str
) -> None:
    """Options out of bounds are refused at the call, with the offending value."""
    with pytest.raises(ValueError, match=named):
        note.options(**options)
    with pytest.raises(ValueError, match=named):
        nq.TaskRequest.by_name("note", **options)


@pytest.mark.parametrize(
    "options",
    [{"colour": "red"}, {"run_at": "tomorrow"}, {"priority": 1.5}, {"max_attempts": "3"}],
)
async def test_options_of_the_wrong_kind(
    note: nq.TaskType[[str], None], options: dict[str, Any]
) -> None:
    """Unknown options and values of the wrong type are refused at the call, by name."""
    (name,) = options
    with pytest.raises(TypeError, match=name):
        note.options(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"poll_interval": -1},
        {"poll_interval": math.nan},
        {"lease": 0},
        {"lease": 30, "heartbeat": 11},
        {"heartbeat": 0},
        {"grace": -1},
        {"cleanup": math.inf},
        {"prefetch": -1},
        {"queues": {"a": 0}},
        {"queues": {}},
        {"queues": [""]},
        {"name": ""},
    ],
)
async def test_worker_options(app: nq.App, client: nq.Client, options: dict[str, Any]) -> None:
    """Numbers that a worker cannot work with are refused when it is made, by name."""
    with pytest.raises(ValueError, match=next(reversed(options)).rstrip("s")):
        nq.Worker(app, client, **options)


async def test_what_can_be_enqueued(either: nq.Client, note: nq.TaskType[[str], None]) -> None:
    """A plain function, a wrong call, a call with arguments twice: `TypeError`, nothing stored."""

    async def plain() -> None: ...

    # Type checkers refuse all of these, and rightly so.
    enqueue = cast("Callable[..., Any]", either.enqueue)
    with pytest.raises(TypeError, match=r"plain.*decorated with @app.task"):
        await enqueue(plain)
    with pytest.raises(TypeError, match="body"):
        await enqueue(note)
    with pytest.raises(TypeError, match="colour"):
        await enqueue(note, "a", colour="red")
    with pytest.raises(TypeError, match="has its arguments already"):
        await enqueue(note.bind("a"), "b")
    with pytest.raises(TypeError, match="are keywords"):
        await enqueue("note", "b")
    with pytest.raises(nq.ParamsError, match="body"):
        await enqueue("note", body=object())
    with pytest.raises(TypeError, match=r"decorated with @app\.task"):
        await either.enqueue_many([note.bind("a"), cast("nq.TaskRequest", plain)])

    assert await either.list_tasks() == []


async def test_many_at_once(either: nq.Client, note: nq.TaskType[[str], None]) -> None:
    """`enqueue_many` stores all or none, and its ids are in the order of the requests."""
    with pytest.raises(TypeError):
        await either.enqueue_many([note.bind("a"), cast("Callable[..., Any]", note.bind)()])
    assert await either.list_tasks() == []

    requests = [note.options(priority=n % 3, queue=f"q{n % 5}").bind(str(n)) for n in range(100)]
    refs = await either.enqueue_many(requests)
    statuses = await either.status_many(refs)

    assert [status and status.queue for status in statuses] == [f"q{n % 5}" for n in range(100)]
    assert [ref.id for ref in refs] == sorted({ref.id for ref in refs})
    assert await either.enqueue_many([]) == []


async def test_by_name(app: nq.App, either: nq.Client) -> None:
    """A task type may be named whose code is elsewhere; its params are given by name."""
    ref = await either.enqueue("elsewhere", body="a", times=2)
    seen: list[object] = []
    other = nq.App()

    @other.task(name="elsewhere")
    async def elsewhere(body: str, times: int) -> None:
        seen.append((body, times))

    await nq.Worker(app, either).run_until_idle()
    assert (await either.stats()).unknown_task_types["elsewhere"].count == 1
    await nq.Worker(other, either).run_until_idle()

    assert seen == [("a", 2)]
    assert (await either.wait(ref)).state == "succeeded"


async def test_a_transaction_that_has_ended(
    either: nq.Client, note: nq.TaskType[[str], None]
) -> None:
    """A transaction cannot be used after its block, however that ended."""
    async with either.transaction() as good:
        await good.enqueue(note, "a")
    ended = [good]
    with contextlib.suppress(ValueError):
        async with either.transaction() as bad:
            ended.append(bad)
            await bad.enqueue(note, "b")
            raise ValueError

    for tx in ended:
        assert not tx.is_open
        with pytest.raises(nq.TransactionEnded):
            await tx.enqueue(note, "c")
        with pytest.raises(nq.TransactionEnded):
            await tx.cancel(1)
        with pytest.raises(nq.TransactionEnded):
            await tx.execute("select 1")
        with pytest.raises(nq.TransactionEnded):
            _ = tx.connection
    assert len(await either.list_tasks()) == 1


async def test_transactions_that_roll_back(
    either: nq.Client, note: nq.TaskType[[str], None]
) -> None:
    """Ten transactions that enqueue and roll back, by an error or a cancel, leave nothing."""
    for n in range(10):
        with trio.CancelScope() as scope, contextlib.suppress(ValueError):
            async with either.transaction() as tx:
                await tx.enqueue(note, "a")
                if n % 2:
                    raise ValueError
                scope.cancel()
                await trio.lowlevel.checkpoint()

    assert await either.list_tasks() == []


async def test_an_open_transactions_task_starts_after_its_commit(
    virtual_time: VirtualTime, app: nq.App, pg: nq.Client, migrated: str
) -> None:
    """A task enqueued in a transaction is claimed after COMMIT, and then at once."""
    started: list[float] = []

    @app.task(name="note")
    async def note() -> None:
        started.append(trio.current_time())

    async with (
        nq.connect(migrated) as other,
        working(nq.Worker(app, other, poll_interval=0.05)),
    ):
        async with pg.transaction() as tx:
            ref = await tx.enqueue(note)
            await trio.sleep(0.3)
            assert started == []
        committed = trio.current_time()
        await pg.result(ref, timeout=10)

    assert started == [committed]


# -- opening a client ------------------------------------------------------------------------


async def opened(dsn: str, **options: Any) -> None:
    async with nq.connect(dsn, **options):
        pass


async def test_the_server_is_not_there(migrated: str) -> None:
    """A server that cannot be reached is a `TransientError`."""
    with pytest.raises(nq.TransientError):
        await opened(make_conninfo(migrated, host="127.0.0.1", port=1))


async def test_a_wrong_dsn() -> None:
    """A DSN that is none is psycopg's error, and not one that waiting would cure.

    It is not quoted: what libpq takes for a parameter may be part of a password with a "?".
    """
    with pytest.raises(psycopg.ProgrammingError, match=r'a parameter after "\?"') as caught:
        await opened("postgresql://localhost/x?colour=red")
    assert "colour" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"user": "nobody_here"}, {"dbname": "no_such_database"}])
async def test_what_the_server_refuses(migrated: str, wrong: dict[str, str]) -> None:
    """A role or database that does not exist is psycopg's error, and not transient."""
    with pytest.raises(psycopg.Error) as caught:
        await opened(make_conninfo(migrated, **wrong))
    assert not isinstance(caught.value, nq.TransientError)


async def test_the_schema_is_missing(dsn: str, migrated: str) -> None:
    """Without the schema, the error says what it is called and what to do."""
    with pytest.raises(nq.SchemaError, match=r"nursery_queue.*migrate up"):
        await opened(dsn)
    with pytest.raises(nq.SchemaError, match="elsewhere"):
        await opened(migrated, schema="elsewhere")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("insert into nursery_queue.migration values (9999, 'future', 'x')", "newer"),
        ("delete from nursery_queue.migration", "migrate up"),
    ],
)
async def test_the_schema_is_of_another_version(migrated: str, change: str, message: str) -> None:
    """A newer or older schema is refused, and the error says what to do."""
    db = await Connection.connect(migrated)
    await db.execute(change.encode())
    db.abort()
    with pytest.raises(nq.SchemaError, match=message):
        await opened(migrated)
    client = nq.Client(_store(migrated))
    with pytest.raises(nq.SchemaError, match=message):
        await nq.Worker(nq.App(), client).run()
    await client.aclose()


def _store(dsn: str) -> nq.Store:
    return PostgresStore(dsn)


@pytest.mark.parametrize("schema", ["", "a b", "x" * 60, "Üml", "1st", 'a"b'])
async def test_schema_names(migrated: str, schema: str) -> None:
    """A schema name that could not be used safely is refused before anything is sent."""
    with pytest.raises(ValueError, match="schema"):
        await opened(migrated, schema=schema)
