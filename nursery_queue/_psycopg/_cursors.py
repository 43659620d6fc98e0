"""Cursors for our own statements, which ignore all adapters that a program has registered.

They have their placeholders numbered here, once for each statement. psycopg would look for them
again at each call, since it forgets what is longer than 4,096 characters: 70 us for the claim.

A program may have psycopg turn JSON, instants, numbers or text into values of its own, for all
connections or for one; and a connection's cursors may be of any class, with rows of any kind.
That is for the program's statements (tests/pg/test_adapters.py, tests/producers/test_settings.py).
"""

from __future__ import annotations

import functools
import re

from collections.abc import Mapping, Sequence
from typing import Any, LiteralString, Self

import psycopg

from psycopg import AsyncConnection, Connection
from psycopg.adapt import AdaptersMap
from psycopg.postgres import register_default_adapters, register_default_types
from psycopg.rows import TupleRow, tuple_row
from psycopg.types import TypesRegistry
from psycopg.types.array import ListBinaryDumper, register_all_arrays
from psycopg.types.json import set_json_loads

from nursery_queue._core._json_text import from_text


Statement = bytes | LiteralString
Params = Sequence[Any] | Mapping[str, Any] | None

_PLACEHOLDER = re.compile(r"%(?:%|s|\((?P<name>\w+)\)s)")


class BinaryArray(list[bytes]):
    """Is sent in binary: bytes as text are twice as long."""


def _as_delivered() -> AdaptersMap:
    """Return the adapters that psycopg itself begins with; only JSON is read in our own way."""
    types = TypesRegistry()
    register_default_types(types)
    made = AdaptersMap(types=types)
    register_default_adapters(made)
    register_all_arrays(made)
    set_json_loads(from_text, made)
    made.register_dumper(BinaryArray, ListBinaryDumper)
    return made


_OURS = _as_delivered()


class _Own:
    @property
    def adapters(self) -> AdaptersMap:
        """Our own, not the connection's (tests/pg/test_adapters.py)."""
        return _OURS


class OwnCursor(_Own, psycopg.RawCursor[TupleRow]):
    """On a blocking connection of any class, ours or the application's."""

    def __init__(self, connection: Connection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)

    def run(self, query: Statement, params: Params = None) -> Self:
        """Run *query*, with placeholders as psycopg's usual cursors have them."""
        return self.execute(*_numbered(query, params))


class OwnAsyncCursor(_Own, psycopg.AsyncRawCursor[TupleRow]):
    """On an async connection of any class, ours or the application's."""

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        super().__init__(connection, row_factory=tuple_row)

    async def run(
        self, query: Statement, params: Params = None, *, prepare: bool | None = None
    ) -> Self:
        """Run *query*, with placeholders as psycopg's usual cursors have them."""
        return await self.execute(*_numbered(query, params), prepare=prepare)


def _numbered(query: Statement, params: Params) -> tuple[Statement, Sequence[Any] | None]:
    """Return *query* as PostgreSQL reads it, and its parameters in their order."""
    if params is None:
        return query, None
    text, names = _parsed(query)
    return text, [params[name] for name in names] if isinstance(params, Mapping) else params


@functools.lru_cache(maxsize=256)  # our files, times the schemas that a process works with
def _parsed(query: Statement) -> tuple[bytes, list[str]]:
    """Return *query* with `$1` for its first placeholder and so on, and the names of these."""
    names: list[str] = []

    def number(found: re.Match[str]) -> str:
        if found[0] == "%%":
            return "%"
        name = found["name"] or str(len(names))  # each without a name is another one
        if name not in names:
            names.append(name)
        return f"${names.index(name) + 1}"

    text = query if isinstance(query, str) else query.decode()
    return _PLACEHOLDER.sub(number, text).encode(), names
