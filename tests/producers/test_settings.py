"""Whatever is set in the session of a producer, tasks are stored as they were asked for."""

from __future__ import annotations

import datetime as dt

from typing import Any

import pytest
import sqlalchemy as sa

from django.db import connections
from django.utils.connection import ConnectionProxy
from psycopg.abc import Buffer, Loader
from psycopg.types.string import TextBinaryLoader, TextLoader
from sqlalchemy.ext.asyncio import AsyncConnection

import nursery_queue as nq

from tests.producers.outside import Outside
from tests.producers.worlds import Side, World, resolved


SETTINGS = {
    "array_nulls": "off",
    "standard_conforming_strings": "off",
    "backslash_quote": "off",
    "escape_string_warning": "on",
    "DateStyle": "'SQL, DMY'",
    "IntervalStyle": "sql_standard",
    "TimeZone": "'Asia/Kathmandu'",
    "extra_float_digits": "-15",
    "bytea_output": "escape",
    "xmloption": "document",
    "search_path": "nowhere",
    "row_security": "off",
    "transform_null_equals": "on",
    "quote_all_identifiers": "on",
    "plan_cache_mode": "force_generic_plan",
    "jit_above_cost": "0",
    "lc_messages": "'C'",
    "lc_numeric": "'C'",
    "client_min_messages": "debug5",
    "check_function_bodies": "off",
    "default_transaction_isolation": "serializable",
    "enable_indexscan": "off",
    "plpgsql.extra_errors": "'all'",
    "plpgsql.variable_conflict": "use_variable",
}
WHEN = dt.datetime(2030, 2, 1, 12, 30, tzinfo=dt.UTC)
KEY = "a\\'b \"é€日 NULL {},"
TEXT = "a\\'b\n\"é€日\x7f NULL {},"


async def use(side: Side) -> tuple[list[nq.TaskRef], nq.TaskRef]:
    said = nq.TaskRequest.by_name("said", {"text": TEXT}).options(
        queue="NULL",
        priority=-3,
        run_at=WHEN,
        retry=nq.RetryPolicy(max_attempts=3, initial=0.1),
        timeout=None,
        keep_for=0.1,
        on_complete="told",
        context=TEXT,
    )
    left = nq.TaskRequest.by_name("left")
    refs = await side.call("enqueue_many", [said, left])
    keyed = [said.options(dedup_key=KEY), left.options(dedup_key="NULL"), left]
    refs += await side.call("enqueue_many", keyed)
    again = await side.call("enqueue", left.options(dedup_key="NULL"))
    assert await side.call("cancel", refs[4])
    (status,) = await side.call("status_many", [refs[0]], payloads=True)
    assert (status.params, status.context) == ({"text": TEXT}, TEXT)
    assert (status.queue, status.run_at) == ("NULL", WHEN)
    return refs, again


def check(outside: Outside, refs: list[nq.TaskRef], again: nq.TaskRef) -> None:
    ids = [ref.id for ref in refs]
    assert ids == sorted(ids) == outside.tasks()
    assert again == nq.TaskRef(refs[3].id, created=False)
    stored = outside.ask(
        "select task_type, queue, priority, max_attempts, backoff ->> 'initial', timeout, keep_for,"
        " dedup_key, on_complete ->> 'task_type', context #>> '{}' from nursery_queue.task"
        " order by id"
    )
    said = ("said", "NULL", -3, 3, "0.1", float("inf"), 0.1)
    left = ("left", "default", 0, None, None, None, None)
    assert stored == [
        (*said, None, "told", TEXT),
        (*left, None, None, None),
        (*said, KEY, "told", TEXT),
        (*left, "NULL", None, None),
        (*left, None, None, None),
    ]


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting_of_the_session_changes_nothing(
    world: World, outside: Outside, setting: str
) -> None:
    """Whatever one setting is, what is stored and answered is what was asked for."""

    async def scenario(side: Side) -> tuple[list[nq.TaskRef], nq.TaskRef]:
        await side.execute(f"set {setting} = {SETTINGS[setting]}")
        answer = await use(side)
        await side.commit()
        return answer

    check(outside, *world.play(outside.dsn, scenario))


ENCODINGS = ["LATIN1", "EUC_JP", "SJIS", "SQL_ASCII"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_client_encoding_changes_nothing(world: World, outside: Outside, encoding: str) -> None:
    """Characters that the encoding has not, or writes in its own way, are stored and answered."""
    texts = ["日本", "1000¥", "‾", '¥"}', "\\", "é€"]

    async def scenario(side: Side) -> None:
        await side.execute(f"set client_encoding = {encoding}")
        asked = [nq.TaskRequest.by_name("said", {"text": text}) for text in texts]
        refs = await side.call("enqueue_many", asked)
        keyed = asked[0].options(dedup_key="日本¥")
        first = await side.call("enqueue", keyed)
        assert await side.call("enqueue", keyed) == nq.TaskRef(first.id, created=False)
        assert await side.call("cancel", first) is True
        assert await side.call("cancel", 10**12) is False
        found = await side.call("status_many", refs, payloads=True)
        assert [status.params["text"] for status in found] == texts
        await side.commit()

    world.play(outside.dsn, scenario)
    stored = outside.ask("select params ->> 'text' from nursery_queue.task order by id")
    assert [text for (text,) in stored] == [*texts, texts[0]]


class Upper(TextLoader):
    def load(self, data: Buffer) -> str | bytes:
        return super().load(data).upper()


LOADERS: dict[str, type[Loader]] = {"text": TextLoader, "bytes": TextBinaryLoader, "upper": Upper}


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("kind", ["bool", "int8", "text", "json", "bytea"])
def test_a_loader_of_the_owner_s_changes_nothing(
    world: World, outside: Outside, kind: str, loader: str
) -> None:
    """Whatever numbers, booleans and texts become elsewhere, refs and answers are as ever."""

    async def scenario(side: Side) -> tuple[list[nq.TaskRef], nq.TaskRef]:
        connection = await driver(side.given)
        connection.adapters.register_loader(kind, LOADERS[loader])
        answer = await use(side)
        assert type(answer[1].id) is int
        assert await side.call("cancel", 10**12) is False
        await side.commit()
        return answer

    check(outside, *world.play(outside.dsn, scenario))


async def driver(given: Any) -> Any:
    """Return psycopg's connection below *given*."""
    if isinstance(given, nq.Transaction):
        return given.connection
    if isinstance(given, ConnectionProxy):
        return connections["default"].connection
    if hasattr(given, "pgconn"):
        return given
    if not isinstance(given, sa.Connection | AsyncConnection):
        given = await resolved(given.connection())
    if isinstance(given, AsyncConnection):
        return (await given.get_raw_connection()).driver_connection
    return given.connection.driver_connection
