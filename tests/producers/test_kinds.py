"""What a producer can be made of, and what it cannot."""

from __future__ import annotations

import subprocess
import sys

import psycopg
import pytest
import sqlalchemy as sa

from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import sessionmaker

import nursery_queue as nq

from nursery_queue.testing import MemoryStore
from tests.producers.outside import Outside
from tests.producers.worlds import URL, World


ASYNC = {"psycopg-async", "nq", "sqlalchemy-async"}

USES = """
import sys
import psycopg
import nursery_queue as nq

app = nq.App()

@app.task(name="greet")
def greet(name: str) -> None: ...

with psycopg.connect(sys.argv[1]) as connection:
    nq.producer(connection).enqueue(greet, "Ann")
print(sorted({"sqlalchemy", "django", "greenlet"} & set(sys.modules)))
"""


def test_the_right_kinds(outside: Outside, world: World) -> None:
    """What is async gives an `AsyncProducer`, what is not a `Producer`."""

    async def scenario(side: object) -> type:
        return type(nq.producer(side.given))  # type: ignore[attr-defined]  # it is a Side

    made = world.play(outside.dsn, scenario)
    is_async = any(world.name.startswith(name) for name in ASYNC)

    assert issubclass(made, nq.AsyncProducer if is_async else nq.Producer)


@pytest.mark.parametrize(
    "wrong",
    [
        "postgresql://localhost/db",
        None,
        sa.create_engine(URL),
        create_async_engine(URL),
        sessionmaker(),
        object(),
        psycopg,
        psycopg.Connection,
        MemoryStore(),
    ],
    ids=lambda wrong: type(wrong).__name__,
)
def test_the_wrong_kinds(wrong: object) -> None:
    """Anything else is refused with a list of what would do."""
    with pytest.raises(TypeError) as raised:
        nq.producer(wrong)  # type: ignore[call-overload]  # that is the point

    message = str(raised.value)
    for kind in ("psycopg.AsyncConnection", "Session", "AsyncConnection", "django.db.connection"):
        assert kind in message
    assert type(wrong).__qualname__ in message


async def test_a_client_does_it_itself() -> None:
    """Of a client it is said that it enqueues by itself."""
    async with nq.Client(MemoryStore()) as client:
        with pytest.raises(TypeError, match=r"client\.enqueue"):
            nq.producer(client)  # type: ignore[call-overload]  # that is the point


def test_options_are_checked(migrated: str) -> None:
    """Schema and limit are checked when the producer is made."""
    with psycopg.connect(migrated) as connection:
        with pytest.raises(ValueError, match="schema must be"):
            nq.producer(connection, schema="No Name")
        with pytest.raises(ValueError, match="max_params_bytes must be"):
            nq.producer(connection, max_params_bytes=0)


def test_a_wrapper_is_what_it_wraps(outside: Outside) -> None:
    """Instrumentation wraps connections in objects that pass for them."""
    with psycopg.connect(outside.dsn) as connection:

        class Wrapper:
            __class__ = psycopg.Connection  # type: ignore[assignment]  # what such wrappers do

            def __getattr__(self, name: str) -> object:
                return getattr(connection, name)

        assert isinstance(nq.producer(Wrapper()), nq.Producer)  # type: ignore[call-overload]  # as above


def test_only_what_is_used_is_imported(migrated: str) -> None:
    """Who enqueues with psycopg does not import other libraries by it."""
    done = subprocess.run(
        [sys.executable, "-c", USES, migrated], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"
