"""Loads the `.sql` files and puts the schema's name into them."""

from __future__ import annotations

import functools
import importlib.resources
import re

from typing import LiteralString, cast


DEFAULT_SCHEMA = "nursery_queue"
# Names of channels begin with the schema's name and may add 13 characters to it.
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,49}(?<!_cancel)(?<!_finished)(?<!_stream)")
_TOKEN = re.compile(r"\bnursery_queue(?=\b|_(?:cancel|finished|stream)\b)")


def checked_schema(schema: str) -> str:
    """Return *schema*, a plain lower-case SQL name, or raise `ValueError`."""
    if not _NAME.fullmatch(schema):
        msg = (
            "schema must be lower-case letters, digits and underscores, at most 50, must not"
            " begin with a digit, nor end in _cancel, _finished or _stream, as names of channels"
            " do;"
            f" not {schema!r}"
        )
        raise ValueError(msg)
    return schema


def render(text: str, schema: str) -> LiteralString:
    """Return SQL with the default schema's name replaced by *schema*."""
    # The files are part of the package, so as trustworthy as the code around them.
    return cast("LiteralString", _TOKEN.sub(schema, text))  # type: ignore[redundant-cast]  # mypy takes it for str


@functools.cache
def query(name: str, schema: str) -> LiteralString:
    """Return the statement of `queries/<name>.sql` for *schema*."""
    file = importlib.resources.files("nursery_queue._pg") / "queries" / f"{name}.sql"
    return render(file.read_text(encoding="utf-8"), schema)
