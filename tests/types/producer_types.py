"""What type checkers must see of producers. Never executed; see app_types.py."""

from __future__ import annotations

from typing import Any, assert_type

import psycopg

from django.db import connection as django_connection, connections
from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

import nursery_queue as nq


app = nq.App()


@app.task
async def welcome(ctx: nq.TaskContext, email: str, *, count: int = 1) -> str:
    return ""


@app.task
def resize(path: str, width: int = 640) -> bytes:
    return b""


def sync_kinds(
    plain: psycopg.Connection,
    rows: psycopg.Connection[dict[str, Any]],
    session: Session,
    scoped: scoped_session[Session],
    core: Connection,
) -> None:
    assert_type(nq.producer(plain), nq.Producer)
    assert_type(nq.producer(rows, schema="other", max_params_bytes=5), nq.Producer)
    assert_type(nq.producer(session), nq.Producer)
    assert_type(nq.producer(scoped), nq.Producer)
    assert_type(nq.producer(core), nq.Producer)
    assert_type(nq.producer(django_connection), nq.Producer)
    assert_type(nq.producer(connections["default"]), nq.Producer)


def async_kinds(
    plain: psycopg.AsyncConnection,
    rows: psycopg.AsyncConnection[dict[str, Any]],
    session: AsyncSession,
    scoped: async_scoped_session[AsyncSession],
    core: AsyncConnection,
    tx: nq.Transaction,
) -> None:
    assert_type(nq.producer(plain), nq.AsyncProducer)
    assert_type(nq.producer(rows), nq.AsyncProducer)
    assert_type(nq.producer(session), nq.AsyncProducer)
    assert_type(nq.producer(scoped), nq.AsyncProducer)
    assert_type(nq.producer(core), nq.AsyncProducer)
    assert_type(nq.producer(tx), nq.AsyncProducer)


def wrong_kinds(engine: Engine, async_engine: AsyncEngine, client: nq.Client) -> None:
    nq.producer(engine)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # an engine
    nq.producer(async_engine)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # an engine
    nq.producer(client)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # has enqueue
    nq.producer("postgresql://")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # a DSN


def sync_calls(tasks: nq.Producer, ref: nq.TaskRef) -> None:
    assert_type(tasks.enqueue(welcome, "a@b.c", count=2), nq.TaskRef)
    assert_type(tasks.enqueue(resize, "x", width=3), nq.TaskRef)
    assert_type(tasks.enqueue(resize.bind("x")), nq.TaskRef)
    assert_type(tasks.enqueue("elsewhere", email="a@b.c"), nq.TaskRef)
    assert_type(tasks.enqueue_many([resize.bind("x"), welcome.bind("y")]), list[nq.TaskRef])
    assert_type(tasks.cancel(ref, running=False), bool)
    assert_type(tasks.status(ref.id, payloads=True), nq.TaskStatus | None)
    assert_type(tasks.status_many([ref, 5]), list[nq.TaskStatus | None])
    assert_type(tasks.callbacks, nq.CallbackCounts)
    tasks.after(print, "x")
    tasks.after(divmod, 1, 2)

    tasks.enqueue(welcome)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # no email
    tasks.enqueue(welcome, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # no str
    tasks.enqueue(welcome, "a", 2)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # keyword only
    tasks.enqueue(resize, "a", height=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue, reportArgumentType]  # no height
    tasks.enqueue(resize.bind("x"), "y")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # has its arguments
    tasks.enqueue("elsewhere", "x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # by keyword
    tasks.enqueue_many([resize])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]  # not bound
    tasks.cancel("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # no str
    tasks.after("x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # not callable


async def async_calls(tasks: nq.AsyncProducer, client: nq.Client, tx: nq.Transaction) -> None:
    assert_type(await tasks.enqueue(welcome, "a@b.c", count=2), nq.TaskRef)
    assert_type(await tasks.enqueue(resize.options(priority=1), "x"), nq.TaskRef)
    assert_type(await tasks.enqueue(resize.bind("x")), nq.TaskRef)
    assert_type(await tasks.enqueue("elsewhere", email="a@b.c"), nq.TaskRef)
    assert_type(await tasks.enqueue_many([resize.bind("x")]), list[nq.TaskRef])
    assert_type(await tasks.cancel(5), bool)
    assert_type(await tasks.status(5), nq.TaskStatus | None)
    assert_type(await tx.status(5), nq.TaskStatus | None)
    assert_type(await client.enqueue(welcome, "a@b.c"), nq.TaskRef)
    assert_type(await tx.enqueue(welcome, "a@b.c"), nq.TaskRef)
    tasks.after(client.aclose)
    tasks.after(client.cancel, 5)

    await tasks.enqueue(welcome, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # no str
    await tasks.enqueue(resize, "a", height=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue, reportArgumentType]  # no height
    await client.enqueue(welcome, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # no str
    await client.enqueue(resize)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # no path
    await tx.enqueue(welcome, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]  # no str
    await tx.enqueue(resize, "a", height=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue, reportArgumentType]  # no height
    tasks.after(client.cancel)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # which task
