"""All worlds, and a plain session to look at the database from outside of them."""

from __future__ import annotations

from collections.abc import Generator

import attrs
import django
import psycopg
import pytest

from django.conf import settings

import nursery_queue as nq

from tests.producers.worlds import WORLDS, World


settings.configure(
    DATABASES={
        "default": {"ENGINE": "django.db.backends.postgresql", "NAME": "named by each test"},
        "lite": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
    },
    CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    LOGGING_CONFIG=None,
    USE_TZ=False,
)
django.setup()


@attrs.define(eq=False)
class Outside:
    """What somebody else sees."""

    dsn: str
    session: psycopg.Connection

    def ask(self, query: str) -> list[tuple[object, ...]]:
        return self.session.execute(query.encode()).fetchall()

    def tasks(self) -> list[int]:
        query = "select id from nursery_queue.task order by id"
        return [task_id for (task_id,) in self.session.execute(query).fetchall()]

    def rings(self) -> int:
        """Return how often the bell has been rung so far, by commits."""
        self.session.execute("notify nursery_queue, 'the last'")
        heard = iter(notify.payload for notify in self.session.notifies())
        return len(list(iter(heard.__next__, "the last")))


@pytest.fixture
def outside(migrated: str) -> Generator[Outside]:
    with psycopg.connect(migrated, autocommit=True) as session:
        session.execute("listen nursery_queue")
        session.execute("create table note (word text)")
        session.execute("set statement_timeout = '20s'")
        yield Outside(migrated, session)


@pytest.fixture(params=WORLDS, ids=lambda world: world.name)
def world(request: pytest.FixtureRequest) -> World:
    world: World = request.param
    return world


@pytest.fixture
def greet(app: nq.App) -> nq.TaskType[[str], str]:
    @app.task(name="greet")
    async def greet(name: str) -> str:
        return f"Hello, {name}!"

    return greet
