"""Whatever is set in the session of a producer, tasks are stored as they were asked for."""

from __future__ import annotations

import datetime as dt

import pytest

import nursery_queue as nq

from tests.producers.conftest import Outside
from tests.producers.worlds import Side, World


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
