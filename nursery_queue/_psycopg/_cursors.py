"""Cursors for our own statements, which ignore all adapters that a program has registered.

A program may have psycopg turn JSON, instants, numbers or text into values of its own, for all
connections or for one; and a connection's cursors may be of any class, with rows of any kind.
That is for the program's statements (tests/pg/test_adapters.py, tests/producers/test_settings.py).
"""

from __future__ import annotations

from typing import Any

import psycopg

from psycopg import AsyncConnection, Connection
from psycopg.adapt import AdaptersMap
from psycopg.postgres import register_default_adapters, register_default_types
from psycopg.rows import TupleRow, tuple_row
from psycopg.types import TypesRegistry
from psycopg.types.array import register_all_arrays
from psycopg.types.json import set_json_loads

from nursery_queue._core._json_text import from_text


def _as_delivered() -> AdaptersMap:
    """Return the adapters that psycopg itself begins with; only JSON is read in our own way."""
    types = TypesRegistry()
    register_default_types(types)
    made = AdaptersMap(types=types)
    register_default_adapters(made)
    register_all_arrays(made)
    set_json_loads(from_text, made)
    return made


_OURS = _as_delivered()


class _Own:
    @property
    def adapters(self) -> AdaptersMap:
        """Our own, not the connection's (tests/pg/test_adapters.py)."""
        return _OURS


class OwnCursor(_Own, psycopg.Cursor[TupleRow]):
    """On a blocking connection of any class, ours or the application's."""

    def __init__(self, connection: Connection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)


class OwnAsyncCursor(_Own, psycopg.AsyncCursor[TupleRow]):
    """On an async connection of any class, ours or the application's."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)
