"""The placeholders of our own statements, as PostgreSQL numbers them."""

# pyright: reportPrivateUsage=false
# What cursors do with a statement before they send it.

from __future__ import annotations

import pytest

from nursery_queue._psycopg._cursors import Params, Statement, _numbered


CASES: list[tuple[Statement, Params, object]] = [
    ("select 1 %% 2", None, ("select 1 %% 2", None)),
    ("select 5 %% 3", {}, (b"select 5 % 3", [])),
    ("select %s, %s", (1, 2), (b"select $1, $2", (1, 2))),
    (b"select %s", [7], (b"select $1", [7])),
    ("%(b)s %(a)s %(b)s", {"a": 1, "b": 2}, (b"$1 $2 $1", [2, 1])),
    ("%(é)s", {"é": 1}, (b"$1", [1])),
    ("like 'a%%s' or %(a)s", {"a": 1, "unused": 2}, (b"like 'a%s' or $1", [1])),
]


@pytest.mark.parametrize(("query", "params", "sent"), CASES)
def test_numbered(query: Statement, params: Params, sent: object) -> None:
    """Each name has one number, in the order of their first places; each nameless one its own."""
    assert _numbered(query, params) == sent


def test_missing() -> None:
    """A name without a value is an error that says so."""
    with pytest.raises(KeyError, match="absent"):
        _numbered("select %(absent)s", {"a": 1})
