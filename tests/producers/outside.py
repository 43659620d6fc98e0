"""A plain session that looks at the database from outside of all worlds."""

from __future__ import annotations

import attrs
import psycopg


@attrs.define(eq=False)
class Outside:
    """What somebody else sees."""

    dsn: str
    session: psycopg.Connection

    def ask(self, query: str) -> list[tuple[object, ...]]:
        return self.session.execute(query.encode()).fetchall()

    def tasks(self) -> list[int]:
        query = "select id from nursery_queue.task order by id"
        return [task_id for (task_id,) in self.session.execute(query).fetchall()]

    def rings(self) -> int:
        """Return how often the bell has been rung so far, by commits."""
        self.session.execute("notify nursery_queue, 'the last'")
        heard = iter(notify.payload for notify in self.session.notifies())
        return len(list(iter(heard.__next__, "the last")))
