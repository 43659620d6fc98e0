"""Databases that many tests use, one after the other, and that are as new for each of them.

Making a database and dropping it takes longer than most tests do.
"""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import contextlib
import time

from collections.abc import Generator, Mapping
from typing import Any

import attrs
import psycopg

from psycopg.conninfo import conninfo_to_dict

from nursery_queue.testing import _pytest_plugin


OURS = """
    select pid, application_name, state, left(query, 60) from pg_stat_activity
     where datname = current_database() and pid <> pg_backend_pid()
       and application_name like 'nursery\\_queue%'
"""
# A server does not look for its client while a statement runs.
HURRY = """
    select pg_cancel_backend(pid) from pg_stat_activity
     where datname = current_database() and pid <> pg_backend_pid() and state = 'active'
       and application_name like 'nursery\\_queue%'
"""
EXPEL = """
    select pg_terminate_backend(pid) from pg_stat_activity
     where datname = current_database() and pid <> pg_backend_pid()
       and backend_type = 'client backend'
"""
STRANGERS = """
    select format('drop schema %%I cascade', nspname) from pg_namespace
     where oid >= 16384 and nspname !~ '^pg_' and oid <> all (%(schemas)s)
    union all
    select format('drop table %%s cascade', oid::regclass) from pg_class
     where oid >= 16384 and relkind = 'r' and relnamespace = 'public'::regnamespace
       and oid <> all (%(tables)s)
"""
USED = """
    select format('truncate %%s', string_agg(oid::regclass::text, ', ')) from pg_class
     where oid = any (%(empty)s) and pg_relation_size(oid) > 0
    having count(*) > 0
    union all
    select format('select setval(%%L, 1, false)', seqrelid::regclass) from pg_sequence
     where pg_sequence_last_value(seqrelid) is not null
"""
SCHEMAS = "select oid from pg_namespace where oid >= 16384 and nspname !~ '^pg_'"
TABLES = "select oid, oid::regclass::text from pg_class where oid >= 16384 and relkind = 'r'"
CATALOGS = """
    select oid::regclass::text from pg_class
     where relnamespace = 'pg_catalog'::regnamespace and relkind = 'r' and not relisshared
       and relname not in ('pg_class', 'pg_namespace')
"""
# Whoever changes a row becomes its xmin. In pg_class a truncation does so too, and temporary
# tables leave schemas behind: there only what a row says counts.
SUM_OF_ROWS = "select '{0}', count(*)::text || ' ' || sum(xmin::text::bigint) from {0}"
SUM_OF_THE_REST = """
    select 'pg_class', md5(string_agg((to_jsonb(pg_class)
           - '{relfilenode,relpages,reltuples,relallvisible,relallfrozen,relfrozenxid,relminmxid}'
               ::text[])::text, ',' order by oid)) from pg_class where oid >= 16384
    union all
    select 'pg_namespace', md5(string_agg(pg_namespace::text, ',' order by oid))
      from pg_namespace where nspname !~ '^pg_(toast_)?temp_'
    union all
    select 'pg_database', md5((to_jsonb(pg_database) - '{datfrozenxid,datminmxid}'::text[])::text)
      from pg_database where datname = current_database()
    union all
    select 'pg_db_role_setting', count(*)::text from pg_db_role_setting join pg_database
        on setdatabase = pg_database.oid and datname = current_database()
"""


@attrs.define(eq=False)
class Database:
    """A database, and what it was like when it was new."""

    dsn: str
    _dropped: contextlib.ExitStack
    patience: float = 10.0  # seconds; a server can be late to notice that a client is gone
    _session: psycopg.Connection = attrs.field(init=False)
    _first: Mapping[str, list[int]] = attrs.field(init=False)
    _sums: str = attrs.field(init=False)
    _sum: list[tuple[Any, ...]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._connect()
        tables: dict[int, str] = dict(self.ask(TABLES))
        filled = [table for table in tables.values() if self.ask(f"select from {table} limit 1")]
        self._first = {
            "schemas": [oid for (oid,) in self.ask(SCHEMAS)],
            "tables": list(tables),
            "empty": [oid for oid, table in tables.items() if table not in filled],
        }
        rows = [table for (table,) in self.ask(CATALOGS)] + filled
        self._sums = " union all ".join([*map(SUM_OF_ROWS.format, rows), SUM_OF_THE_REST])
        self._sum = self.ask(self._sums)

    @property
    def name(self) -> str:
        return name_in(self.dsn)

    def ask(self, query: str, params: Mapping[str, Any] | None = None) -> list[tuple[Any, ...]]:
        """Run a statement, if need be in a new session: a test may have ended the last one."""
        try:
            return self._session.execute(query.encode(), params).fetchall()
        except psycopg.OperationalError:
            self._session.close()
            self._connect()
            return self._session.execute(query.encode(), params).fetchall()

    def connections_left(self) -> list[tuple[Any, ...]]:
        """Return our connections, once the server has had time to notice what is closed."""
        return self._last(OURS, meanwhile=HURRY)

    def is_new_again(self) -> bool:
        """Remove what a test has left; False if that does not make it as it was."""
        try:
            self._last(EXPEL)
            for query in (STRANGERS, USED):
                for (statement,) in self.ask(query, self._first):
                    self._session.execute(statement.encode())
            return self.ask(self._sums) == self._sum
        except psycopg.OperationalError:  # a lock of somebody who could not be expelled
            return False

    def _last(self, query: str, *, meanwhile: str | None = None) -> list[tuple[Any, ...]]:
        """Ask until the answer is empty, and no longer than is reasonable."""
        begun = time.monotonic()
        while (answer := self.ask(query)) and (waited := time.monotonic() - begun) < self.patience:
            if meanwhile and waited > 0.05:
                self.ask(meanwhile)
            time.sleep(0.001)
        return answer

    def drop(self) -> None:
        self._session.close()
        self._dropped.close()

    def _connect(self) -> None:
        self._session = psycopg.connect(
            self.dsn,
            autocommit=True,
            application_name="stock of databases",
            options="-c lock_timeout=5s -c statement_timeout=30s",
        )


def name_in(dsn: str) -> str:
    return str(conninfo_to_dict(dsn).get("dbname"))


# Those of the present test, by name.
lent: dict[str, Database] = {}


@attrs.define(eq=False)
class Stock:
    """Lends databases that are copies of *template*; makes another one when it has none."""

    server: str
    template: str
    made: int = attrs.field(default=0, init=False)
    _free: list[Database] = attrs.field(factory=list[Database], init=False)

    @contextlib.contextmanager
    def lend(self) -> Generator[Database]:
        """Lend a database; what the last borrower has left in it is removed first."""
        database = self._take()
        lent[database.name] = database
        try:
            yield database
        finally:
            del lent[database.name]
            self._free.append(database)

    def close(self) -> None:
        """Drop them all."""
        for database in self._free:
            database.drop()

    def _take(self) -> Database:
        while self._free:
            database = self._free.pop()
            if database.is_new_again():
                return database
            database.drop()
        self.made += 1
        with contextlib.ExitStack() as stack:
            dsn = stack.enter_context(_pytest_plugin._database(self.server, template=self.template))
            return Database(dsn, stack.pop_all())
