"""Queries, as the server sees them."""

from __future__ import annotations

import re

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import psycopg

from psycopg import sql

import nursery_queue


PACKAGE = Path(nursery_queue.__file__).parent
FILES = {
    path.stem: path
    for folder in (PACKAGE / "_pg" / "queries", PACKAGE / "_psycopg")
    for path in folder.glob("*.sql")
}
QUERIES = sorted(FILES)
Session = psycopg.Connection[tuple[Any, ...]]
SCRIPTS = {
    "begin_migration",
    "end_migration",
    "create_migration_table",
    "copy_tasks",
    "vacuum",
}  # cannot be prepared
BIG = ("task", "ready", "running", "scheduled", "finished", "attempt", "dedup", "schedule", "tick")


@attrs.frozen
class Prepared:
    """A query with numbered parameters, and their names in that order."""

    sql: str
    names: list[str]


def prepared(name: str) -> Prepared:
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    text = re.sub(r"%\((\w+)\)[sb]", number, FILES[name].read_text())
    return Prepared(text, names)


def call(session: Session, function: str, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """Call an SQL function with named arguments."""
    named = [sql.SQL("{} => {}").format(sql.Identifier(k), v) for k, v in options.items()]
    query = sql.SQL("select * from nursery_queue.{}({})")
    row = session.execute(query.format(sql.Identifier(function), sql.SQL(", ").join(named)))
    (only,) = row.fetchall()
    return only


def rows(session: Session, table: str) -> int:
    query = sql.SQL("select count(*) from nursery_queue.{}").format(sql.Identifier(table))
    (found,) = session.execute(query).fetchall()
    return int(found[0])


# 100,000 rows and more in every table that can be large. Of the scheduled tasks, which have
# the best priority, 500 are due; of the finished ones half may be deleted.
FILL = """
    insert into nursery_queue.worker
    select overlay('00000000-0000-0000-0000-000000000000' placing to_hex(i) from 36)::uuid,
           'w', 'h', 1, null, '{a}', 30, now(), now() from generate_series(1, 9) as i
        on conflict do nothing;
    set session_replication_role = replica; -- no trigger; DDL would make sessions plan anew
    insert into nursery_queue.task (id, task_type, queue, priority, run_at, on_complete, dedup_key)
    overriding system value
    select i, 'a', 'q' || i % 3, case when i > 300000 then 9 else i % 5 end,
           case when i > 300000 then now() + interval '1 day' else now() end,
           null, case when i <= 100000 then 'k' || i end
      from generate_series(1, 500000) as i;
    insert into nursery_queue.ready
    select id, queue, priority, task_type, run_at from nursery_queue.task where id <= 100000;
    insert into nursery_queue.running
    select i, overlay('00000000-0000-0000-0000-000000000000' placing to_hex(i % 9 + 1) from 36)
              ::uuid, 1, 1, 0, now(), null, null
      from generate_series(100001, 200000) as i;
    insert into nursery_queue.finished
    select i, 'succeeded', 1, 1, 0, now(), now() + (i - 250000) * interval '1 minute'
      from generate_series(200001, 300000) as i;
    insert into nursery_queue.scheduled
    select i, now() + (i - 300500) * interval '1 minute' from generate_series(300001, 500000) as i;
    insert into nursery_queue.attempt
    select i, 1, 'succeeded', '00000000-0000-0000-0000-000000000001', now(), now()
      from generate_series(200001, 300000) as i;
    insert into nursery_queue.dedup
    select dedup_key, id, null, now() + (id - 500) * interval '1 minute' from nursery_queue.task
     where dedup_key is not null;
    insert into nursery_queue.schedule (name, app, every, task_type, last_task_id, look_at, paused)
    select 's' || i, 'main', 60, 'a', i, now() + (i - 500) * interval '1 minute', false
      from generate_series(1, 100000) as i
    union all
    select 'p' || i, 'main', 60, 'a', i, now() - interval '1 day', true
      from generate_series(1, 50000) as i;
    insert into nursery_queue.tick
    select 's', now() + i * interval '1 minute', now() + (i - 50000) * interval '1 minute'
      from generate_series(1, 100000) as i;
    set session_replication_role = origin;
    select setval(pg_get_serial_sequence('nursery_queue.task', 'id'), 500000);
"""
