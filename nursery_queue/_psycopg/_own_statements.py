"""Statements of our own on a connection: prepared, on a cursor that is kept."""

from __future__ import annotations

from typing import Any

import psycopg

from psycopg import pq
from psycopg.rows import TupleRow

from ._cursors import OwnAsyncCursor, Params, Statement


class OwnStatements(psycopg.AsyncConnection[TupleRow]):
    """The part of a `Connection` for our own statements, whatever its program has registered."""

    _fetch_cursor: OwnAsyncCursor | None = None

    async def fetch(self, query: Statement, params: Params = None) -> list[TupleRow]:
        """Run *query*, of ours, as a prepared statement and return its rows, none if it gives none.

        A third cheaper than `execute()` for a small statement: the cursor, an own one, is kept.
        """
        # No checkpoint from the answer to the rows: another task may use the cursor next
        # (tests/pg/test_connection.py, fetch by many tasks).
        cursor = await self._ask(query, params)
        return [] if cursor is None else await cursor.fetchall()

    async def fetch_named(self, query: Statement, params: Params = None) -> list[dict[str, Any]]:
        """Run *query* as `fetch` does, and return its rows by the names of their columns."""
        cursor = await self._ask(query, params)
        if cursor is None or cursor.description is None:
            return []
        names = [column.name for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in await cursor.fetchall()]

    async def sync_pipeline(self) -> None:
        """Read all answers of the pipeline; nothing to do outside of one."""
        if self._pipeline is not None:
            await self._pipeline.sync()

    async def _ask(self, query: Statement, params: Params) -> OwnAsyncCursor | None:
        """Run *query* and return the cursor that has its rows; None: it gives none."""
        if self._pipeline is not None:  # each statement under way needs a cursor of its own
            cursor = await OwnAsyncCursor(self).run(query, params, prepare=True)
            await self.sync_pipeline()
        else:
            cursor = self._fetch_cursor = self._fetch_cursor or OwnAsyncCursor(self)
            await cursor.run(query, params, prepare=True)  # not if `prepare_threshold` is None
        if cursor.pgresult is None or cursor.pgresult.status != pq.ExecStatus.TUPLES_OK:
            return None
        return cursor
