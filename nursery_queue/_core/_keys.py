"""The key of a task, which divides its queue, as text: a customer, a host."""

from __future__ import annotations

import datetime as dt
import enum
import json
import math
import re

from decimal import Decimal
from pathlib import PurePath
from typing import Any
from uuid import UUID


LONGEST_KEY = 200  # bytes of UTF-8; as in the table
_WRITTEN = (int, UUID, PurePath)
_CONTROL = re.compile("[\0-\x1f\x7f]")


def as_key(value: Any, what: str = "key") -> str | None:
    """Return *value* as a key; None: none. *what* names it in messages.

    A number, UUID, path, date or time is written as in params.

    Raises:
        TypeError: It is nothing of these and no text.
        ValueError: It is empty, longer than 200 bytes, or has control characters.
    """
    if value is None:
        return None
    text = _text(value, what)
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= LONGEST_KEY or _CONTROL.search(text):
        raise ValueError(
            f"{what} must have 1 to {LONGEST_KEY} bytes, and no control characters, not {text!r}"
            if len(text) <= LONGEST_KEY
            else f"{what} must have at most {LONGEST_KEY} bytes, not {size}: {text[:40]!r}..."
        )
    return text


def key_in(params: str, parameter: str, default: str | None, what: str) -> str | None:
    """Return the key in *params*, JSON text: the value of *parameter*; left out: *default*.

    It is what PostgreSQL makes of it, for a task that is stored by plain SQL
    (`nursery_queue.as_declared`). Raises as `as_key`.
    """
    values = json.loads(params, parse_float=Decimal)
    return as_key(values[parameter], what) if parameter in values else default


def _text(value: Any, what: str) -> str:
    if isinstance(value, enum.Enum):
        return _text(value.value, what)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal) and math.isfinite(value):
        return f"{Decimal(str(value)):f}"  # as the database writes a number: no exponent
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, _WRITTEN):
        return str(value)
    raise TypeError(f"{what} must be text, a number, a UUID, a date or None, not {value!r:.100}")
