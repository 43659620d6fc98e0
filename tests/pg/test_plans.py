"""How the hot statements are planned: by index, few rows, on any plan and any statistics."""

from __future__ import annotations

import re
import uuid

from collections.abc import AsyncGenerator, Generator, Iterator, Mapping
from typing import Any, cast

import attrs
import psycopg
import pytest

from psycopg import sql

from nursery_queue._core._filters import TaskFilter
from nursery_queue._core._model import Fence, NewTask, WorkerInfo
from nursery_queue._core._states import Event, State
from nursery_queue._pg import _rows
from nursery_queue._pg._postgres_store import PostgresStore
from nursery_queue._pg._sql import query
from nursery_queue._psycopg._pool import Pool
from nursery_queue.testing import _pytest_plugin
from tests.pg.queries import BIG, FILL, prepared
from tests.support.store_steps import ends


# pyright: reportPrivateUsage=false

WORKER = uuid.UUID(int=1)
LIMIT = 100
HIRE = "insert into nursery_queue.worker values (%s, 'w', 'h', 1, null, '{a}', 30, now(), now())"
RUN = """
    insert into nursery_queue.running (task_id, worker_id, attempt, epoch, lost, started_at)
    select i, gen_random_uuid(), 1, 1, 0, now() from generate_series(1, %s::int) as i
"""
KEYED = NewTask(task_type="a", params="{}", dedup_key="k", keep_for=0)


def values(name: str) -> dict[str, Any]:
    """Return what a hot statement is called with."""
    settlements = [
        ends(Fence(i, 1), event, keep_for=keep_for)
        for i, event, keep_for in [
            (100001, Event.SUCCEED, 60),
            (100002, Event.RETRY, 60),
            (100003, Event.INTERRUPT, 60),
            (100004, Event.FAIL, 0),
        ]
    ]
    every: dict[str, dict[str, Any]] = {
        "claim": {
            "worker_id": WORKER,
            "task_types": ["a"],
            "limit": LIMIT,
            "queues": None,
            "slots": None,
            "at_once": None,
            "soon": None,
            "after_queue": "",
            "after_type": "",
            "after_lane": None,
            "most_queues": 32,
            "most_steps": 500,
        },
        "settle": _rows.settle_params(settlements),
        "settle_successes": _rows.success_params(
            [ends(Fence(i, 1), Event.SUCCEED, keep_for=60) for i in range(100_001, 100_005)]
        ),
        "heartbeat": {"id": WORKER, "draining": False},
        "promote": {"limit": LIMIT},
        "prune": {"limit": LIMIT, "chunks": LIMIT, "attempts": LIMIT},
        "prune_keys": {"limit": LIMIT},
        "cancel": {"id": 100, "running": True},
        "cancel_some": {
            "queue": None,
            "task_type": None,
            "before": None,
            "after": 99_950,
            "upto": 500_000,
            "most": LIMIT,
            "dry_run": False,
        },
        "outcomes": {"task_ids": list(range(150_000, 150_000 + LIMIT)), "epochs": [1] * LIMIT},
        "backlog": {"task_types": ["a"], "queues": None, "most": LIMIT},
        "list_tasks": attrs.asdict(TaskFilter(limit=LIMIT)),
        "enqueue_dedup": _rows.enqueue_params([KEYED]),
        "next_schedule": {"app": "main", "task_types": ["a"]},
        "due_schedules": {"app": "main", "task_types": ["a"], "most": LIMIT},
        "take_schedules": {
            "worker_id": WORKER,
            "app": "main",
            "task_types": ["a"],
            "most": LIMIT,
            "name": None,
        },
        "forget_ticks": {"limit": LIMIT},
        "unattended": {"most": LIMIT},
    }
    return every[name]


@pytest.fixture(scope="module")
def big_database(nursery_queue_server: str, nursery_queue_template: str) -> Generator[str]:
    """DSN of a database with 100,000 rows and more in every table that can be large."""
    with _pytest_plugin._database(nursery_queue_server, template=nursery_queue_template) as dsn:
        with psycopg.connect(dsn, autocommit=True) as session:
            session.execute(FILL)
            session.execute("vacuum analyze")
        yield dsn


@pytest.fixture
def big(big_database: str) -> Generator[psycopg.Connection]:
    """Give a session as a worker has it; what is done in it is undone."""
    with psycopg.connect(big_database) as session:
        session.execute(query("keep_to_indexes", "nursery_queue"), {"once": False})
        yield session
        session.rollback()


def literal(value: Any) -> str:
    return sql.Literal(value).as_string()


def explain(
    session: psycopg.Connection, name: str, options: str, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Prepare and EXPLAIN a query as a worker's session would run it."""
    statement = prepared(name)
    given = given or values(name)
    session.execute(f"prepare {name} as {statement.sql}".encode())
    args = ", ".join(literal(given[param]) for param in statement.names)
    explained = f"explain ({options}, format json) execute {name} ({args})"
    row = session.execute(explained.encode()).fetchone()
    assert row is not None
    return cast("dict[str, Any]", row[0][0]["Plan"])


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def promised(name: str) -> set[str]:
    """Return the indexes that the comment of a query names."""
    text = "\n".join(line for line in prepared(name).sql.splitlines() if line.startswith("--"))
    return set(re.findall(r"\w+_(?:pkey|key|due|cancel|expires|prune|since)\b", text))


HOT = {  # not the claim: it is a function (test_plans_survive_growth, test_counts.py)
    "settle": {"running_pkey"},
    "settle_successes": {"running_pkey"},
    "heartbeat": {"worker_pkey", "running_cancel"},
    "promote": {"scheduled_due"},
    "prune": {
        "finished_expires",
        "stream_task_id_name_key",
        "attempt_pkey",
        "task_pkey",
        "chunk_pkey",
    },
    "prune_keys": {"dedup_prune", "task_pkey"},
    "outcomes": {"attempt_pkey", "task_pkey"},
    "backlog": {"ready_key", "scheduled_due"},
    "next_schedule": {"schedule_due", "schedule_since"},
    "due_schedules": {"schedule_due"},
    "take_schedules": {"schedule_due"},
    "forget_ticks": {"tick_expires"},
    "unattended": {"ready_key", "parked_key"},
}


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", HOT)
def test_hot_statements_walk_their_indexes(big: psycopg.Connection, name: str, mode: str) -> None:
    """The index in the comment is used, and no large table is read from end to end."""
    big.execute(f"set plan_cache_mode = {mode}".encode())
    plan = list(nodes(explain(big, name, "costs off")))
    scanned = {n["Relation Name"] for n in plan if n["Node Type"] == "Seq Scan"}

    assert promised(name) >= HOT[name]
    assert {n["Index Name"] for n in plan if "Index Name" in n} >= HOT[name]
    assert scanned.isdisjoint(BIG)


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", HOT)
def test_plans_from_empty_tables(migrated: str, name: str, mode: str) -> None:
    """A plan made when the tables were empty, and known to be, does when they are large."""
    with psycopg.connect(migrated, autocommit=True) as session:
        session.execute("analyze")
        session.execute(query("keep_to_indexes", "nursery_queue"), {"once": False})
        session.execute(f"set plan_cache_mode = {mode}".encode())
        plan = list(nodes(explain(session, name, "costs off")))

    assert {n["Index Name"] for n in plan if "Index Name" in n} >= HOT[name]
    assert not [n for n in plan if n["Node Type"] == "Seq Scan" and n["Relation Name"] in BIG]


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("name", HOT)
def test_hot_statements_read_few_rows(big: psycopg.Connection, name: str, mode: str) -> None:
    """Rows read are in proportion to the rows asked for, not to those that are there."""
    big.execute(f"set plan_cache_mode = {mode}".encode())
    plan = list(nodes(explain(big, name, "analyze, buffers")))
    read = sum(
        (n["Actual Rows"] + n.get("Rows Removed by Filter", 0)) * n["Actual Loops"]
        for n in plan
        if "Scan" in n["Node Type"] and n.get("Relation Name") in BIG
    )
    pages = plan[0]["Shared Hit Blocks"] + plan[0]["Shared Read Blocks"]

    # 200,000 future tasks of better priority, and as many others, are not looked at.
    assert read <= 12 * LIMIT
    assert pages <= 80 * LIMIT


@pytest.mark.parametrize("name", ["settle", "settle_successes"])
def test_settling_by_statistics_of_an_empty_table(migrated: str, name: str) -> None:
    """Analysed at a moment when nothing ran, `running` is not read through for each batch.

    In a soak of three million tasks an autovacuum came at such a moment: until the next one each
    batch of 500 compared 250,000 pairs of rows, and took eight times as long.
    """
    size, made = 200, {"settle": _rows.settle_params, "settle_successes": _rows.success_params}
    settlements = [ends(Fence(i, 1), Event.SUCCEED, keep_for=60) for i in range(1, size + 1)]
    with psycopg.connect(migrated, autocommit=True) as session:
        session.execute("alter table nursery_queue.running set (autovacuum_enabled = false)")
        session.execute(RUN, [20_000])
        session.execute("delete from nursery_queue.running")
        session.execute("analyze")
        session.execute(RUN, [2 * size])
        session.execute(query("keep_to_indexes", "nursery_queue"), {"once": False})
        plan = list(nodes(explain(session, name, "analyze", made[name](settlements))))
        removed = ("Rows Removed by Join Filter", "Rows Removed by Filter")
        left = session.execute("select count(*) from nursery_queue.running").fetchone()

    assert left == (size,)
    assert sum(n.get(each, 0) * n["Actual Loops"] for n in plan for each in removed) <= 10 * size


@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
@pytest.mark.parametrize("after", [None, 250_000])
@pytest.mark.parametrize("state", [None, "scheduled", "running", "succeeded", "failed"])
def test_a_page_reads_few_rows(
    big: psycopg.Connection, state: str | None, after: int | None, mode: str
) -> None:
    """A list reads what is on its page, whichever state and however far down it is."""
    big.execute("update nursery_queue.finished set state = 'failed' where task_id % 1000 = 0")
    big.execute(f"set plan_cache_mode = {mode}".encode())
    for setting in ("seqscan", "bitmapscan"):
        big.execute(f"set enable_{setting} = on".encode())  # as in an application's session
    asked = TaskFilter(limit=LIMIT, state=State(state) if state else None, queue="q1", after=after)
    plan = list(nodes(explain(big, "list_tasks", "analyze", attrs.asdict(asked))))
    read = sum(
        (n["Actual Rows"] + n.get("Rows Removed by Filter", 0)) * n["Actual Loops"]
        for n in plan
        if "Scan" in n["Node Type"] and n.get("Relation Name") in BIG
    )

    assert read <= 20 * LIMIT


JOINS = ["nestloop", "hashjoin", "mergejoin"]
# Without these a nested loop runs what is on its inner side again and again.
OTHERS = ["tidscan", "material", "memoize", "hashagg", "sort"]


@pytest.mark.parametrize("queue_slots", [None, ["q0", "q2", "none"]])
@pytest.mark.parametrize("seqscan", ["on", "off"])
@pytest.mark.parametrize("only", [*JOINS, None])
@pytest.mark.parametrize("mode", ["force_custom_plan", "force_generic_plan"])
def test_no_plan_claims_more_than_asked(
    migrated: str, only: str | None, seqscan: str, queue_slots: list[str] | None, mode: str
) -> None:
    """Whatever the planner prefers, a claim takes as many as asked, the best ones, once."""
    slots = None if queue_slots is None else [5, 5, 5]
    params = values("claim") | {"limit": 7, "queues": queue_slots, "slots": slots}
    with psycopg.connect(migrated) as session:
        session.execute(HIRE, [WORKER])
        session.execute(
            "insert into nursery_queue.task (task_type, queue, priority)"
            " select 'a', 'q' || i % 3, i % 7 from generate_series(1, 300) as i",
        )
        for way in JOINS + OTHERS:
            if only not in (None, way):
                session.execute(f"set enable_{way} = off".encode())
        session.execute(f"set enable_seqscan = {seqscan}".encode())
        session.execute(f"set plan_cache_mode = {mode}".encode())
        best = session.execute(
            "select id from nursery_queue.task where %s::text[] is null or queue = any(%s)"
            " order by priority desc, id",
            [queue_slots, queue_slots],
        ).fetchall()
        seen: list[tuple[Any, ...]] = []
        for _ in range(3):
            *tasks, _ = session.execute(query("claim", "nursery_queue"), params, prepare=True)
            seen += [row[8:9] for row in tasks]
        count = session.execute("select count(*) from nursery_queue.running").fetchone()

    assert seen == best[:21]
    assert count == (21,)


def test_claims_step_over_each_other(migrated: str) -> None:
    """Beside a claim that is not committed yet, another takes the next best at once."""
    with psycopg.connect(migrated) as one, psycopg.connect(migrated) as other:
        one.execute(HIRE, [WORKER])
        one.execute(
            "insert into nursery_queue.task (task_type) select 'a' from generate_series(1, 9)"
        )
        one.commit()
        other.execute("set lock_timeout = '5s'")
        params = values("claim") | {"limit": 4}
        *first, _ = [row[8] for row in one.execute(query("claim", "nursery_queue"), params)]
        *second, _ = [row[8] for row in other.execute(query("claim", "nursery_queue"), params)]

    assert len(first) == len(second) == 4
    assert max(first) < min(second)


# -- a store that has worked on empty tables for a while -----------------------------------


@pytest.fixture(params=["auto", "force_generic_plan", "force_custom_plan"])
async def grown(request: pytest.FixtureRequest, migrated: str) -> AsyncGenerator[PostgresStore]:
    """Give a store whose plans were made when all tables were empty, and known to be."""
    with psycopg.connect(migrated, autocommit=True) as session:
        database = sql.Identifier(session.info.dbname)
        alter = sql.SQL("alter database {} set plan_cache_mode = {}")
        session.execute(alter.format(database, sql.Literal(request.param)))
        for table in BIG:
            alter = sql.SQL("alter table nursery_queue.{} set (autovacuum_enabled = off)")
            session.execute(alter.format(sql.Identifier(table)))
        session.execute("analyze")
    store = PostgresStore(migrated)
    await store.register(
        WorkerInfo(id=WORKER, name="w", host="h", pid=1, task_types=["a"], lease=99)
    )
    for pool, name in steps_of(store):
        await store._run(pool, name, values(name))
    (stored,) = await store.list_tasks(TaskFilter())
    await store.cancel(stored.id)  # it is not kept: the tables are empty again
    with psycopg.connect(migrated, autocommit=True) as session:
        session.execute(FILL)
    yield store
    await store.aclose()


def steps_of(store: PostgresStore) -> list[tuple[Pool, str]]:
    """Return the statements that must not depend on statistics, and where they are run."""
    return [
        *(
            (store._control, name)
            for name in ("claim", "settle", "settle_successes", "promote", "prune", "prune_keys")
        ),
        (store._heartbeat, "heartbeat"),
        (store._pool, "cancel"),
        (store._pool, "cancel_some"),
        (store._pool, "list_tasks"),
        (store._pool, "enqueue_dedup"),
    ]


async def test_plans_survive_growth(grown: PostgresStore) -> None:
    """With statistics from before they grew, no statement reads more rows than it needs."""
    for pool, name in steps_of(grown):
        async with pool.connection() as conn:
            await conn.fetch("select pg_stat_force_next_flush()::text")  # the counts begin anew
        async with pool.connection() as conn, conn.transaction(force_rollback=True):
            rows = await conn.fetch(query(name, "nursery_queue"), values(name))
            read = await conn.fetch(
                "select relname, seq_tup_read, idx_tup_fetch from pg_stat_xact_user_tables"
                " where relid::regclass::text = any(%s)"
                "   and seq_tup_read + coalesce(idx_tup_fetch, 0) > %s",
                [[f"nursery_queue.{table}" for table in BIG], 5 * LIMIT],
            )

        assert rows
        assert (name, read) == (name, [])
