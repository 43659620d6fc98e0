"""Isolation levels, and the statements that set them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import LiteralString


# The first statement of a transaction whose level is not the default of its session. PostgreSQL
# takes it only before the first query (tests/pg/test_isolation.py).
ISOLATION: Mapping[str, LiteralString] = {
    level: f"set transaction isolation level {level}"
    for level in ("read uncommitted", "read committed", "repeatable read", "serializable")
}
USUAL = "read committed"
READ_COMMITTED = ISOLATION[USUAL]
