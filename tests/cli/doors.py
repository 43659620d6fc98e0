"""A database that lets nobody in for a while."""

from __future__ import annotations

import attrs
import psycopg


@attrs.frozen
class Doors:
    """Lets nobody into a database, as if there were none."""

    server: str
    name: str

    def shut(self) -> None:
        self._do(f"alter database {self.name} allow_connections false")
        self._do(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            f" where datname = '{self.name}' and application_name like 'nursery_queue%'"
        )

    def open(self) -> None:
        self._do(f"alter database {self.name} allow_connections true")

    def _do(self, statement: str) -> None:
        with psycopg.connect(self.server, autocommit=True) as connection:
            connection.execute(statement.encode())
