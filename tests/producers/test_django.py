"""What is particular to Django."""

from __future__ import annotations

import threading

from collections.abc import Generator

import django.db
import pytest

from django.core.cache import cache
from django.db import connection, connections, transaction

import nursery_queue as nq

from tests.producers.outside import Outside
from tests.producers.worlds import django_at


Greet = nq.TaskType[[str], str]


@pytest.fixture(autouse=True)
def default(outside: Outside) -> Generator[None]:
    with django_at(outside.dsn):
        yield


def test_outside_of_atomic(outside: Outside, greet: Greet) -> None:
    """In Django's autocommit mode a call is committed at once, or has no effect."""
    for given in (connection, connections["default"]):
        nq.producer(given).enqueue(greet, "Ann")
        with pytest.raises(django.db.ProgrammingError, match="nowhere"):
            nq.producer(given, schema="nowhere").enqueue(greet, "Ann")

    assert len(outside.tasks()) == 2
    assert not connection.in_atomic_block


def test_without_autocommit(outside: Outside, greet: Greet) -> None:
    """Without autocommit a call waits for its owner's commit."""
    transaction.set_autocommit(False)  # Django's own spelling
    nq.producer(connection).enqueue(greet, "Ann")
    assert outside.tasks() == []
    transaction.commit()

    assert len(outside.tasks()) == 1


def test_nested_atomic(outside: Outside, greet: Greet) -> None:
    """An inner `atomic` that fails takes its tasks and callbacks with it, and only those."""
    called: list[str] = []
    tasks = nq.producer(connection)
    with transaction.atomic():
        tasks.enqueue(greet, "Ann")
        tasks.after(called.append, "Ann")
        with pytest.raises(ZeroDivisionError), transaction.atomic():
            tasks.enqueue(greet, "Bob")
            tasks.after(called.append, "Bob")
            raise ZeroDivisionError
        assert called == []

    assert len(outside.tasks()) == 1
    assert called == ["Ann"]
    assert tasks.callbacks == nq.CallbackCounts(finished=1)


def test_after(outside: Outside, greet: Greet, caplog: pytest.LogCaptureFixture) -> None:
    """Callbacks are Django's `on_commit`; one that fails is logged, and the others are called."""
    called: list[int] = []
    tasks = nq.producer(connection)
    with transaction.atomic():
        tasks.enqueue(greet, "Ann")
        tasks.after(divmod, 1, 0)
        tasks.after(lambda: called.append(len(outside.tasks())))

    assert called == [1]
    assert tasks.callbacks == nq.CallbackCounts(finished=1, failed=1)
    assert "divmod" in caplog.text

    async def never() -> None: ...

    with pytest.raises(TypeError, match="async"):
        tasks.after(never)


def test_a_kept_producer_is_for_every_thread(outside: Outside, greet: Greet) -> None:
    """A producer that is kept uses the connection of the thread it is called in."""
    tasks = nq.producer(connections["default"])

    def elsewhere() -> None:
        tasks.enqueue(greet, "Bob")
        connections.close_all()

    with transaction.atomic():
        tasks.enqueue(greet, "Ann")
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(outside.tasks()) == 1
        transaction.set_rollback(True)  # Django's own spelling

    assert len(outside.tasks()) == 1


def test_another_database() -> None:
    """A database that is not PostgreSQL is refused with what to do, and so is a cache."""
    with pytest.raises(TypeError, match=r"'lite' is sqlite.*django.db.backends.postgresql"):
        nq.producer(connections["lite"])
    with pytest.raises(TypeError, match=r"django\.db\.connection"):
        nq.producer(cache)  # type: ignore[call-overload]  # that is the point
