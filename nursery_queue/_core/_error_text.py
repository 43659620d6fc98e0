"""The error of a handler as text that any store can hold, even if the exception misbehaves."""

from __future__ import annotations

import itertools
import re
import traceback

from collections.abc import Iterator
from types import TracebackType
from typing import cast

from ._errors import ParamsError, ResultError
from ._exception_groups import connected


MESSAGE_LIMIT = 10_000  # characters
TRACEBACK_LIMIT = 50_000
# The packages that call the user's code, and stand above it in every traceback.
_MACHINERY = frozenset(
    {"nursery_queue", "trio", "trio_asyncio", "asyncio", "outcome", "contextlib", "cattrs"}
    | {"concurrent", "threading"}
)
_ROW = re.compile(r"\s*DETAIL:\s+Failing row contains \(.*\)\.", re.DOTALL)
_CHAIN_LIMIT = 100  # exceptions; the standard formatter takes them all, however many


def cut(text: str, limit: int) -> str:
    """Return *text*, at most *limit* characters of it, with a note of how much is missing."""
    if len(text) <= limit:
        return text
    note = f"… ({len(text) - limit + 40} more characters)"
    return text[: limit - 40] + note


def cut_middle(text: str, limit: int) -> str:
    """Return *text* with enough of its middle replaced by a note to fit *limit* characters."""
    if len(text) <= limit:
        return text
    half = (limit - 50) // 2
    return f"{text[:half]}\n… ({len(text) - 2 * half} characters left out) …\n{text[-half:]}"


def _storable(text: str) -> str:
    text = text.replace("\0", "\\x00")
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def exact(text: str) -> str:
    """Return *text* as a plain `str`, even if it is of a subclass with methods of its own."""
    return "".join(("", text))  # noqa: FLY002  # an f-string calls them


def type_of(error: BaseException) -> str:
    """Return the full name of the class of *error*, as any store can hold it. Never raises."""
    return cut(_storable(_type_name(type(error))), 500)


def _type_name(cls: type[BaseException]) -> str:
    try:
        module, name = cls.__module__, cls.__qualname__
        return exact(name) if module == "builtins" else f"{module}.{name}"
    except BaseException:  # noqa: BLE001  # a metaclass may do anything
        return type.__repr__(cls)


def message_of(error: BaseException) -> str:
    """Return the message of *error*, at most 10,000 characters of it. Never raises."""
    return cut(_storable(_message(error)), MESSAGE_LIMIT)


def _message(error: BaseException) -> str:
    try:
        return exact(str(error))
    except BaseException as second:  # noqa: BLE001  # `__str__` is the user's, and may do anything
        return f"(no message: its __str__ raised {_type_name(type(second))})"


def refusal_of(error: BaseException) -> str:
    """Return the message of an error of a database, without the row that it quotes.

    That has params in it, and the messages of our own statements are for logs.
    """
    return _ROW.sub("", message_of(error))


def traceback_of(error: BaseException) -> str:
    """Return the traceback of *error* from the user's code on, cut in its middle. Never raises."""
    return cut_middle(_storable(_traceback(error)), TRACEBACK_LIMIT)


def _traceback(error: BaseException) -> str:
    try:
        if _is_long(error):
            return _long_traceback(error)
        text = traceback.TracebackException(type(error), error, error.__traceback__, compact=True)
        _trim(text, error)
        return "".join(text.format())
    except BaseException:  # noqa: BLE001  # formatting touches the user's attributes
        try:
            return _one(error)
        except BaseException as second:  # noqa: BLE001  # as above
            name = _type_name(type(error))
            return f"{name}: (no traceback: formatting it raised {_type_name(type(second))})\n"


def _is_long(error: BaseException) -> bool:
    """Whether more than a hundred exceptions hang together, by cause, context or group."""
    return next(itertools.islice(connected(error), _CHAIN_LIMIT, None), None) is not None


def _trim(text: traceback.TracebackException, error: BaseException) -> None:
    """Let the tracebacks of *error* and its causes begin at the user's code."""
    about_values = _is_about_values(error)
    pairs: list[tuple[traceback.TracebackException | None, BaseException | None]] = [(text, error)]
    while pairs:
        shown, each = pairs.pop()
        if shown is None or each is None:
            continue
        kept = sum(1 for _ in traceback.walk_tb(_beginning(each, about_values=about_values)))
        del shown.stack[: len(shown.stack) - kept]
        if not shown.stack:
            vars(shown)["stack"] = None  # else there is a headline with nothing below it
        pairs += [(shown.__cause__, each.__cause__), (shown.__context__, each.__context__)]
        if isinstance(each, BaseExceptionGroup):
            inside = cast("BaseExceptionGroup[BaseException]", each).exceptions
            pairs += zip(shown.exceptions or (), inside, strict=False)


def _beginning(error: BaseException, *, about_values: bool) -> TracebackType | None:
    """Return the traceback of *error* from the first frame that is the user's.

    If there is none the error is ours or trio's, and all of it counts, unless it is *about_values*
    that do not fit: then nothing of it says more than the message.
    """
    here = whole = error.__traceback__
    while here is not None and _package(here) in _MACHINERY:
        here = here.tb_next
    return here if here is not None or about_values else whole


def _is_about_values(error: BaseException) -> bool:
    return issubclass(type(error), ParamsError | ResultError)


def _package(here: TracebackType) -> str:
    return str(here.tb_frame.f_globals.get("__name__", "")).partition(".")[0]


def _long_traceback(error: BaseException) -> str:
    """Return the exceptions nearest to *error*, the oldest of them first, as Python does."""
    nearest = list(itertools.islice(_chain(error), _CHAIN_LIMIT))
    parts = [_one(each) for each in reversed(nearest)]
    left_out = "(more exceptions came before these, or are in groups; they are left out)\n"
    return "\n".join([left_out, *parts])


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        hidden = None if current.__suppress_context__ else current.__context__
        current = current.__cause__ or hidden


def _one(error: BaseException) -> str:
    frames = "".join(traceback.format_tb(_beginning(error, about_values=_is_about_values(error))))
    head = "Traceback (most recent call last):\n" if frames else ""
    return f"{head}{frames}{_type_name(type(error))}: {_message(error)}\n"


def one_line(text: str) -> str:
    """Return *text* without line breaks, which databases are fond of: logs are read by line."""
    return " ".join(text.split())
