"""All worlds, and a plain session to look at the database from outside of them."""

from __future__ import annotations

from collections.abc import Generator

import django
import psycopg
import pytest

from django.conf import settings

import nursery_queue as nq

from tests.producers.outside import Outside
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
