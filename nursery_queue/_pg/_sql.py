"""Loads the `.sql` files and puts the schema's name into them."""

from __future__ import annotations

import functools
import importlib.resources
import re

from typing import LiteralString, cast


DEFAULT_SCHEMA = "nursery_queue"
# Names of channels begin with the schema's name and may add 13 characters to it.
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,49}(?<!_cancel)(?<!_finished)(?<!_stream)(?<!_schedule)")
_TOKEN = re.compile(r"\bnursery_queue(?=\b|_(?:cancel|finished|stream|schedule)\b)")
# Words that cannot be names everywhere without quotes (tests/pg/test_schemas.py asks the server).
# Our files have the schema's name in identifiers, in names of settings and in texts: it is never
# quoted.
_WORDS = """
    all analyse analyze and any array as asc asymmetric authorization between bigint binary bit
    boolean both case cast char character check coalesce collate collation column concurrently
    constraint create cross current_catalog current_date current_role current_schema
    current_time current_timestamp current_user dec decimal default deferrable desc distinct do
    else end except exists extract false fetch float for foreign freeze from full grant greatest
    group grouping having ilike in initially inner inout int integer intersect interval into is
    isnull join json json_array json_arrayagg json_exists json_object json_objectagg json_query
    json_scalar json_serialize json_table json_value lateral leading least left like limit
    localtime localtimestamp merge_action national natural nchar none normalize not notnull null
    nullif numeric offset on only or order out outer overlaps overlay placing position precision
    primary real references returning right row select session_user setof similar smallint some
    substring symmetric system_user table tablesample then time timestamp to trailing treat trim
    true union unique user using values varchar variadic verbose when where window with
    xmlattributes xmlconcat xmlelement xmlexists xmlforest xmlnamespaces xmlparse xmlpi xmlroot
    xmlserialize xmltable
"""
# PostgreSQL refuses some as schemas, and PL/pgSQL has the settings that begin with its name.
_SERVERS = re.compile(r"pg_.*|information_schema|plpgsql")


def checked_schema(schema: str) -> str:
    """Return *schema*, a plain lower-case SQL name, or raise `ValueError`."""
    if not _NAME.fullmatch(schema):
        raise ValueError(
            "schema must be lower-case letters, digits and underscores, at most 50, must not"
            " begin with a digit, nor end in _cancel, _finished, _stream or _schedule, as names of"
            " channels do;"
            f" not {schema!r}"
        )
    if schema in _WORDS.split():
        msg = f"schema must be a name that SQL takes without quotes: {schema!r} is a word of SQL"
        raise ValueError(msg)
    if _SERVERS.fullmatch(schema):
        msg = f"schema must be a name of your own: {schema!r} is a name of PostgreSQL's own"
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
