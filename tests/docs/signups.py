"""Signs people up with the functions of docs/frameworks.md, which is module `page` here.

Usage: python signups.py DSN. In every world one person signs up, and a second one is rolled
back. Prints the ids of the tasks of both as JSON, after what the page's functions print.
A process of its own, as Django can be set up only once in each.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import sys

from collections.abc import Iterator
from typing import Any

import django
import psycopg

from django.conf import settings
from django.db import connections, transaction
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

import nursery_queue as nq


page: Any = importlib.import_module("page")


class ChangedMindError(Exception):
    """What rolls a transaction back."""


def think_again(email: str) -> None:
    if email.startswith("not"):
        raise ChangedMindError


def people(world: str) -> list[str]:
    return [f"{world}@example.org", f"not-{world}@example.org"]


def by_psycopg(dsn: str) -> Iterator[nq.TaskRef]:
    for email in people("psycopg"):
        with contextlib.suppress(ChangedMindError), psycopg.connect(dsn) as connection:
            yield page.sign_up(connection, email)
            think_again(email)


def by_session(url: URL) -> Iterator[nq.TaskRef]:
    engine = create_engine(url)
    for email in people("session"):
        with contextlib.suppress(ChangedMindError), Session(engine) as session, session.begin():
            yield page.sign_up_in_session(session, email)
            think_again(email)
    engine.dispose()


def by_django(dsn: dict[str, Any]) -> Iterator[nq.TaskRef]:
    name = dsn.pop("dbname")
    backend = "django.db.backends.postgresql"
    database = {"ENGINE": backend, "NAME": name, "OPTIONS": dsn}
    settings.configure(DATABASES={"default": database})
    django.setup()
    for email in people("django"):
        with contextlib.suppress(ChangedMindError), transaction.atomic():
            yield page.sign_up_in_django(email)
            think_again(email)
    page.send_welcome = None  # which is refused after the person has been inserted
    with contextlib.suppress(TypeError):
        page.sign_up_in_django("never@example.org")
    connections.close_all()


async def by_asyncio(dsn: str, url: URL) -> list[nq.TaskRef]:
    refs: list[nq.TaskRef] = []
    for email in people("asyncio"):
        with contextlib.suppress(ChangedMindError):
            async with await psycopg.AsyncConnection.connect(dsn) as connection:
                refs.append(await page.sign_up_on_asyncio(connection, email))
                think_again(email)
    engine = create_async_engine(url)
    for email in people("async-session"):
        with contextlib.suppress(ChangedMindError):
            async with AsyncSession(engine) as session, session.begin():
                refs.append(await page.sign_up_in_async_session(session, email))
                think_again(email)
    await engine.dispose()
    return refs


def main(dsn: str) -> None:
    given = {name: str(value) for name, value in conninfo_to_dict(dsn).items()}
    url = URL.create("postgresql+psycopg", query=given)
    refs = [*by_psycopg(dsn), *asyncio.run(by_asyncio(dsn, url))]
    refs += [*by_session(url), *by_django(given)]
    json.dump([ref.id for ref in refs], sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
