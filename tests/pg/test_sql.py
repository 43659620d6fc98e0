"""Every query file fits the schema, and returns what Python unpacks."""

from __future__ import annotations

import psycopg
import pytest

from psycopg import pq

from nursery_queue._pg import _rows
from tests.pg.queries import FILES, QUERIES, SCRIPTS, Prepared, prepared


# What _rows.py sends and reads, in the order of the columns.
HELD = (
    "task_id int8, epoch int4, attempt int4, lost int4, worker_id uuid, cancel_requested bool,"
    " keep_for float8, on_complete bool, task_type text, queue text, age float8,"
    " started bool, max_lost int4"
)
STATUS = (
    "id int8, task_type text, queue text, state text, attempt int4, created_at timestamptz,"
    " run_at timestamptz, started_at timestamptz, finished_at timestamptz, worker_id uuid,"
    " result jsonb, error_type text, error_message text, priority int4, lost int4,"
    " cancel_requested bool, on_complete text, completes int8, params jsonb, context jsonb,"
    " completion_error text, key text, dedup_key text, max_attempts int4,"
    " worker_name text"
)
ATTEMPT = (
    "task_id int8, number int8, outcome text, worker_id uuid, started_at timestamptz,"
    " finished_at timestamptz, error_type text, error_message text, error_traceback text,"
    " error_details jsonb, final bool, worker_name text"
)
CLAIM = (
    "next_due float8, contended bool, held_back bool, unknown_types bool, more bool,"
    " resume_queue text, resume_type text, resume_lane text, id int8, epoch int4, attempt int4,"
    " lost int4, lag float8, task_type text, queue text, params text, max_attempts int4,"
    " backoff jsonb, timeout float8, keep_for float8, has_completion bool, completes int8,"
    " suspect bool, limited bool, tick timestamptz"
)
WORKER = (
    "id uuid, name text, host text, pid int4, queues text[], task_types text[],"
    " started_at timestamptz, heartbeat_at timestamptz, draining bool, alive bool, running int8"
)
SETTLEMENTS = (
    "task_ids int8[], epochs int4[], states text[], finals bool[], attempts int4[], losts int4[],"
    " delays float8[], keep_fors float8[], outcomes text[], results text[], error_types text[],"
    " error_messages text[], error_tracebacks text[], error_details text[], on_completes bool[]"
)
EACH = "moved int4, refused jsonb"
EXPECTED = {
    "backfill": ("name text, ticks timestamptz[], dry_run bool", "backfill int4"),
    "clock": ("", "now timestamptz"),
    "declare_schedules": (
        ("worker_id uuid, app text, names text[], task_types text[], declared json"),
        "name text, problem text",
    ),
    "delete_schedule": ("name text", "?column? bool"),
    "due_schedules": ("app text, task_types text[], most int4", "name text"),
    "fire": ("firings json", "fire int4"),
    "forget_ticks": ("limit int4", "count int8"),
    "hold_schedule": ("seconds float8, error text, name text", "?column? bool"),
    "next_schedule": ("app text, task_types text[]", "due bool, next_in float8"),
    "orphan_schedules": ("names text[]", ""),
    "pause_schedule": ("paused bool, name text", "?column? bool"),
    "schedules": (
        "name text",
        (
            "name text, cron text, tz text, every float8, anchor timestamptz"
            ", next_at timestamptz, since timestamptz, last_tick timestamptz"
            ", last_task_id int8, fired int8, skipped int8, paused bool, app text"
            ", task_type text, queue text, orphaned bool, misfire text, overlap text"
            ", jitter float8, params jsonb, error text, now timestamptz"
        ),
    ),
    "set_schedule": (
        (
            "name text, cron text, tz text, every float8, anchor timestamptz, task_type text"
            ", params jsonb, queue text, priority int4, key text, run_after float8"
            ", max_attempts int4"
            ", backoff jsonb, timeout float8, keep_for float8, on_complete jsonb"
            ", context jsonb, misfire text, overlap text, jitter float8, paused bool"
        ),
        "",
    ),
    "take_schedules": (
        "app text, task_types text[], name text, worker_id uuid, most int4",
        (
            "name text, cron text, tz text, every float8, anchor timestamptz, misfire text"
            ", overlap text, jitter float8, since timestamptz, error text, task_type text"
            ", missed_until timestamptz, now timestamptz, busy bool, known bool"
            ", declared bool"
        ),
    ),
    "trigger_schedule": ("name text", "trigger_schedule int8"),
    "abandoned": ("after int8, look_at int4", "max int8, array int8[]"),
    "applied_migrations": ("", "version int4, checksum text"),
    "attempts": (
        "task_id int8",
        ATTEMPT,
    ),
    "cancel": ("id int8, running bool", "cancel bool"),
    "cancel_some": (
        (
            "queue text, task_type text, before timestamptz, after int8, upto int8, most int4,"
            " dry_run bool"
        ),
        "last int8, count int4",
    ),
    "claim": (
        (
            "worker_id uuid, task_types text[], queues text[], slots int4[], limit int4,"
            " at_once int4, soon int4, after_queue text, after_type text, after_lane text,"
            " most_queues int4, most_steps int4"
        ),
        CLAIM,
    ),
    "backlog": ("queues text[], task_types text[], most int4", "count int8"),
    "closed_queues": ("queues text[]", "name text"),
    "configure": ("queue text, changes jsonb", ""),
    "count_attempts": ("", "queue text, outcome text, final bool, count int8"),
    "count_tasks": ("", "queue text, state text, count int8, due int8"),
    "count_unknown": ("", "task_type text, count int8, since timestamptz"),
    "declare_queue": ("queue text, declared jsonb, patience text", "name text"),
    "declare_dead": ("ids uuid[], heartbeats timestamptz[], seconds float8[]", "id uuid"),
    "deregister": ("id uuid", ""),
    "encoding": ("", "current_setting text"),
    "copied": ("left_out int8", "answer text"),
    "enqueue": ("tasks json", "id int8"),
    "enqueue_dedup": ("tasks json", "id int8, created bool"),
    "forget_migration": ("version int4", ""),
    "forget_workers": ("left int8[], dead uuid[]", "array int8[]"),
    "heartbeat": ("draining bool, id uuid", "coalesce jsonb, coalesce jsonb"),
    "held": ("worker_id uuid", HELD),
    "keep_to_indexes": ("once bool", "set_config text"),
    "list_tasks": (
        "state text, queue text, task_type text, after int8, limit int4, payloads bool",
        STATUS,
    ),
    "list_workers": (
        "",
        WORKER,
    ),
    "lock_migrations": ("", "pg_advisory_xact_lock void"),
    "migration_table_exists": ("", "?column? bool"),
    "outcomes": ("task_ids int8[], epochs int4[]", "task_id int8, epoch int4, outcome text"),
    "note_started": (
        "task_ids int8[], epochs int4[], worker_id uuid",
        "task_id int8, epoch int4",
    ),
    "park_each": ("most int4", EACH),
    "park": (
        "most int4, after_queue text, after_type text",
        "moved int4, resume_queue text, resume_type text",
    ),
    "look": ("", "pg_backend_pid int4, current_setting text, ?column? bool"),
    "pin_settings": ("once bool", ", ".join(["set_config text"] * 4)),
    "promote": ("limit int4", "count int8, case void"),
    "promote_each": ("limit int4", EACH),
    "prune": (
        "attempts int4, limit int4, chunks int4",
        "count int8, exists bool, set_config text, set_config text",
    ),
    "prune_keys": ("limit int4", "count int8"),
    "prune_turns": ("limit int4", "count int8"),
    "prune_each": ("limit int4", EACH),
    "queues": (
        "",
        (
            "name text, paused bool, max_running int4, max_running_per_key int4, rate_count int4,"
            " rate_per float8, rate_burst int4, key_rate_count int4, key_rate_per float8,"
            " key_rate_burst int4, scheduled int8, ready int8, running int8, notify bool"
        ),
    ),
    "read_streams": (
        "task_ids int8[], names text[], starts int8[], restarts int4[], chunks int4, bytes int4",
        (
            "place int4, start int8, length int8, restarts int4, closed bool,"
            " last_write timestamptz, kind text, data bytea"
        ),
    ),
    "record_migration": ("version int4, name text, checksum text", ""),
    "register": (
        (
            "names text[], type_queues text[], priorities int4[], keep_fors float8[],"
            " on_completes text[], key_parameters text[], key_defaults text[], id uuid,"
            " name text, host text, pid int4, queues text[],"
            " task_types text[], lease float8, heartbeat float8, max_lost jsonb,"
            " app text, schedules text[]"
        ),
        "",
    ),
    "revive": ("id int8, states text[]", "?column? bool, case void"),
    "set_aside": ("id int8, error_type text, error_message text", "set_aside bool"),
    "settle": (
        SETTLEMENTS,
        "task_id int8, epoch int4, refusal text, untold jsonb",
    ),
    "settle_successes": (
        (
            "task_ids int8[], epochs int4[], attempts int4[], losts int4[], keep_fors float8[],"
            " results text[]"
        ),
        "left_alone int8[], case void, case void",
    ),
    "status": ("payloads bool, ids int8[]", STATUS),
    "take_ids": ("count int4", "ids int8[], instant timestamptz"),
    "write_stream": (
        (
            'task_id int8, epoch int4, name text, kinds "char"[], pieces bytea[], restart bool,'
            " close_on_finish bool, close bool, most int8"
        ),
        "write_stream text",
    ),
    "take_abandoned": ("ids int8[]", HELD),
    "undeclared_queues": ("declared jsonb", "name text"),
    "unattended": ("most int4", "queues text[], task_types text[]"),
    "unpark": ("task_types text[], most int4", "unpark int4"),
    "why": ("ids int8[]", "why jsonb"),
    "unpark_each": ("task_types text[], most int4", EACH),
}


def type_name(session: psycopg.Connection, oid: int) -> str:
    info = session.adapters.types.get(oid)
    if info is None:
        row = session.execute("select typname from pg_type where oid = %s", [oid]).fetchone()
        assert row is not None
        return str(row[0])
    return f"{info.name}[]" if oid == info.array_oid else info.name


def described(session: psycopg.Connection, name: str) -> tuple[str, str]:
    """Return the parameters and the columns of a query, as the server understands it."""
    query: Prepared = prepared(name)
    result = session.pgconn.prepare(name.encode(), query.sql.encode())

    assert result.status == pq.ExecStatus.COMMAND_OK, result.error_message.decode()

    plan = session.pgconn.describe_prepared(name.encode())
    params = [
        f"{param} {type_name(session, plan.param_type(i))}" for i, param in enumerate(query.names)
    ]
    columns = [
        f"{(plan.fname(i) or b'').decode()} {type_name(session, plan.ftype(i))}"
        for i in range(plan.nfields)
    ]
    return ", ".join(params), ", ".join(columns)


@pytest.mark.parametrize("name", QUERIES)
def test_it_says_what_it_is_for(name: str) -> None:
    """A file begins with a comment and holds one statement."""
    text = FILES[name].read_text()
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("--"))

    assert text.startswith("-- ")
    assert name in SCRIPTS or ";" not in code


@pytest.mark.parametrize("name", [name for name in QUERIES if name not in SCRIPTS])
def test_it_fits_the_schema(migrated: str, name: str) -> None:
    """The server accepts each query, with the parameters and the columns we expect."""
    with psycopg.connect(migrated) as session:
        assert described(session, name) == EXPECTED[name]


def test_nothing_is_expected_in_vain() -> None:
    """Each file is held to the list, and nothing else is in it."""
    assert {*EXPECTED, *SCRIPTS} == set(QUERIES)


def test_the_parameters_are_those_that_python_sends() -> None:
    """The names in the files are the names of the values."""
    assert set(prepared("enqueue_dedup").names) == set(_rows.enqueue_params([]))
    assert set(prepared("enqueue").names) == set(_rows.enqueue_params([]))
    assert set(prepared("settle").names) == set(_rows.settle_params([]))
    assert set(prepared("settle_successes").names) == set(_rows.success_params([]))
