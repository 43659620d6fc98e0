"""What a transaction sees of others: how it is said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import LiteralString


# The first statements of a transaction that is not as the session's default has it.
ISOLATION: Mapping[str, LiteralString] = {
    level: f"set transaction isolation level {level}"
    for level in ("read uncommitted", "read committed", "repeatable read", "serializable")
}
USUAL = "read committed"
READ_COMMITTED = ISOLATION[USUAL]
