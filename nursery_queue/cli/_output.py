"""Data on stdout: tables for people, tab-separated lines and JSON for programs."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import sys

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs

from ._failures import OutputClosedError


if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


# One for each state of a task; the words of migrations and workers, too.
_STYLES: Mapping[str, str] = {
    "running": "cyan",
    "succeeded": "green",
    "failed": "red",
    "timed_out": "red",
    "lost": "red",
    "cancelled": "yellow",
    "interrupted": "yellow",
    "scheduled": "blue",
    "applied": "green",
    "pending": "yellow",
    "edited": "red",
    "unknown": "red",
    "alive": "green",
    "draining": "yellow",
    "dead": "red",
    "open": "green",
    "paused": "yellow",
    "not served": "yellow",
    "on": "green",
    "orphaned": "yellow",
}
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def on_terminal() -> bool:
    """Whether a person looks at stdout."""
    return sys.stdout.isatty()


@contextlib.contextmanager
def _to_stdout() -> Generator[None]:
    try:
        yield
    except BrokenPipeError as exc:
        raise OutputClosedError from exc


def write(text: str) -> None:
    """Write a line."""
    with _to_stdout():
        print(text)


def flush() -> None:
    """Let a reader have the lines that were written."""
    with _to_stdout():
        sys.stdout.flush()


def write_json(value: Mapping[str, Any]) -> None:
    """Write an object as one line of JSON; instants in ISO 8601, ids of workers as text."""
    write(json.dumps(value, ensure_ascii=False, default=_jsonable))


def write_rows(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a table on a terminal, else a line of tab-separated cells for each row.

    *columns* that begin with "#" hold numbers. Only a terminal shows them.
    """
    if not on_terminal():
        for row in rows:
            write("\t".join(cell(value) for value in row))
        return
    to_terminal(as_table(columns, rows))


def as_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return the table that `write_rows` writes on a terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        table.add_column(
            column.removeprefix("#"),
            justify="right" if column.startswith("#") else "left",
            overflow="fold",
        )
    for row in rows:
        words = [short(value) for value in row]
        table.add_row(*(Text(word, style=_STYLES.get(word, "")) for word in words))
    return table


def write_fields(fields: Mapping[str, object]) -> None:
    """Write name and value, aligned, one a line; what is None is left out."""
    shown = {name: value for name, value in fields.items() if value is not None}
    width = max(map(len, shown))
    for name, value in shown.items():
        if not on_terminal():
            write(f"{name + ':':<{width + 1}} {cell(value)}")
            continue
        from rich.text import Text

        word = cell(value)
        line = Text(f"{name + ':':<{width + 1}} ", style="bold")
        to_terminal(line.append(word, style=_STYLES.get(word, "not bold")))


def cell(value: object) -> str:
    """Return *value* as text that stays in its cell and steers no terminal."""
    match value:
        case None:
            text = ""
        case dt.datetime():
            text = value.astimezone().isoformat(" ", "seconds")
        case bool():
            text = "yes" if value else "no"
        case _:
            text = str(value)
    return harmless(text)


def harmless(text: str) -> str:
    """Return *text* with control characters, line ends and tabs included, spelled out."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def short(value: object) -> str:
    """Return *value* for a person: instants as how long ago or ahead."""
    return ago(value) if isinstance(value, dt.datetime) else cell(value)


def ago(instant: dt.datetime) -> str:
    """Return how long ago or ahead *instant* is, in the largest unit that fits."""
    seconds = (dt.datetime.now(tz=dt.UTC) - instant).total_seconds()
    for size, unit in _UNITS:
        if abs(seconds) >= size:
            amount = f"{abs(seconds) // size:.0f} {unit}"
            return f"{amount} ago" if seconds > 0 else f"in {amount}"
    return "now"


def plain(value: Any) -> dict[str, Any]:
    """Return an attrs value as a JSON object."""
    return attrs.asdict(value)


def _jsonable(value: object) -> str:
    return value.isoformat() if isinstance(value, dt.datetime) else str(value)


def terminal() -> Console:
    """Return rich's console on stdout."""
    from rich.console import Console

    return Console(
        file=sys.stdout,
        force_terminal=True,
        color_system=None if os.environ.get("NO_COLOR") else "auto",
        highlight=False,
        soft_wrap=False,
    )


def to_terminal(thing: Any) -> None:
    """Let rich write something on the terminal that stdout is."""
    with _to_stdout():
        terminal().print(thing)
