from __future__ import annotations

import json
import time

from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from hypothesis import given, strategies as st

from nursery_queue._core._error_text import (
    MESSAGE_LIMIT,
    TRACEBACK_LIMIT,
    cut,
    cut_middle,
)
from nursery_queue._json._error_record import error_record


class CustomError(Exception):
    pass


def raised(error: BaseException) -> BaseException:
    try:
        raise error  # noqa: TRY301  # for the traceback
    except BaseException as caught:  # noqa: BLE001  # whatever it is, it is what the test wants
        return caught


def test_an_ordinary_error() -> None:
    """Type, message and traceback are as Python shows them."""
    record = error_record(raised(ValueError("no such user")))

    assert record.type == "ValueError"
    assert record.message == "no such user"
    assert record.traceback is not None
    assert record.traceback.startswith("Traceback (most recent call last):")
    assert record.traceback.endswith("ValueError: no such user\n")
    assert record.details is None


def test_the_type_is_qualified() -> None:
    """The class is named with its module, unless it is a builtin."""
    assert error_record(CustomError()).type == f"{__name__}.CustomError"


def test_causes_and_groups_are_in_the_traceback() -> None:
    """What led to the error, and what a group holds, is kept."""
    error = ExceptionGroup("several", [KeyError("inner"), CustomError("other")])
    error.__cause__ = OSError("the cause")

    text = error_record(raised(error)).traceback

    assert text is not None
    assert "OSError: the cause" in text
    assert "KeyError: 'inner'" in text
    assert "direct cause" in text


class _Text(str):
    __slots__ = ()

    def replace(self, *_: Any) -> NoReturn:
        raise SystemExit

    __str__ = __format__ = __len__ = isascii = encode = replace  # type: ignore[assignment]  # hostile


class _Meta(type):
    def __getattribute__(cls, name: str) -> Any:
        raise KeyboardInterrupt(name)


class BadStrError(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)

    __repr__ = __str__


class NoStrError(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307  # hostile


class SubclassedTextError(Exception):
    def __str__(self) -> str:
        return _Text("hello")


class BadClassError(Exception):
    @property
    def __class__(self) -> Any:
        raise KeyboardInterrupt

    @__class__.setter
    def __class__(self, _: Any) -> None:
        raise KeyboardInterrupt


class BadAttributesError(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise SystemExit(name)


def bad_meta_error() -> type[Exception]:
    # Not at the top of the module: pytest itself would look at it.
    class BadMetaError(Exception, metaclass=_Meta):
        pass

    return BadMetaError


class NamelessError(Exception):
    pass


NamelessError.__module__ = None  # type: ignore[assignment]  # hostile


@pytest.mark.parametrize(
    "make",
    [
        lambda: BadStrError,
        lambda: NoStrError,
        lambda: SubclassedTextError,
        lambda: BadClassError,
        lambda: BadAttributesError,
        lambda: NamelessError,
        bad_meta_error,
    ],
    ids=["str", "no str", "str subclass", "class", "attributes", "module", "metaclass"],
)
def test_a_hostile_exception(make: Callable[[], type[Exception]]) -> None:
    """Whatever the exception does when it is looked at, there is a record, of plain strings."""
    cls = make()
    cause = ValueError("outer")
    cause.__cause__ = cls("inner")

    for error in (raised(cls("hello")), cause, ExceptionGroup("group", [cls("member")])):
        record = error_record(error)

        assert {type(record.type), type(record.message), type(record.traceback)} == {str}


def test_a_message_that_raises() -> None:
    """An error without a readable message says so."""
    assert error_record(BadStrError()).message == "(no message: its __str__ raised SystemExit)"


def test_a_deep_chain_is_cut_short() -> None:
    """Thousands of causes are neither followed to the end nor left out altogether."""
    error = ValueError("number 0")
    for i in range(1, 20_000):
        following = ValueError(f"number {i}")
        following.__cause__ = error
        error = following

    started = time.process_time()
    text = error_record(error).traceback
    assert time.process_time() - started < 5  # followed to the end, it takes minutes

    assert text is not None
    assert text.startswith("(more exceptions came before these")
    assert text.endswith("\nValueError: number 19999\n")
    assert text.count("ValueError: number ") == 100
    # Break the chain, or freeing it would recurse.
    current: BaseException | None = error
    while current is not None:
        current.__cause__, current = None, current.__cause__


def test_a_chain_in_a_circle() -> None:
    """A chain that leads back to itself ends."""
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first

    assert error_record(first).message == "first"
    first.__cause__ = None


def test_a_huge_message() -> None:
    """A megabyte is cut to what can be stored, quickly, and the note says how much is gone."""
    started = time.process_time()
    record = error_record(raised(ValueError("x\0é" * 1_000_000)))
    assert time.process_time() - started < 10

    assert len(record.message) <= MESSAGE_LIMIT
    assert record.message.endswith(" more characters)")
    assert record.traceback is not None
    assert len(record.traceback) <= TRACEBACK_LIMIT
    assert "characters left out" in record.traceback


@given(st.text(), st.integers(60, 80))
def test_cut(text: str, limit: int) -> None:
    """What fits stays as it is; what does not is never longer than the limit."""
    text = text * 10

    for shorten in (cut, cut_middle):
        assert len(shorten(text, limit)) <= limit
        assert shorten(text[:limit], limit) == text[:limit]


@given(st.text())
def test_any_text_can_be_stored(text: str) -> None:
    """NUL and lone surrogates become visible; nothing else changes."""
    message = error_record(ValueError(text)).message

    assert "\0" not in message
    message.encode()
    if "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text):
        assert message == text


def test_escapes_are_visible() -> None:
    """One can read what was there."""
    assert error_record(ValueError("a\0b\ud800c")).message == "a\\x00b\\ud800c"


def test_details() -> None:
    """Notes, and a mapping called details, are stored as JSON."""
    error = CustomError("no")
    error.add_note("while testing")
    error.details = {"user": 5}  # type: ignore[attr-defined]  # any exception may have one

    details = error_record(error).details

    assert details is not None
    assert json.loads(details) == {"notes": ["while testing"], "user": 5}


@pytest.mark.parametrize(
    "details",
    [{"a": object()}, {1: 2}, {"a": "\0"}, {"a": float("nan")}, "text"],
)
def test_details_that_cannot_be_stored(details: Any) -> None:
    """Details that are not JSON are left out."""
    error = CustomError("no")
    error.details = details  # type: ignore[attr-defined]  # any exception may have one

    assert error_record(error).details is None


def test_details_that_are_too_long() -> None:
    """Notes are kept, cut, and a mark says how much there was."""
    error = CustomError("no")
    error.details = {"a": "x" * 99_993}  # type: ignore[attr-defined]  # any exception may have one
    for _ in range(30):
        error.add_note("n" * 3000)
    details = json.loads(error_record(error).details or "")

    assert details["cut"].startswith("1901")
    assert len(details["notes"]) == 20
    assert {note[:900] for note in details["notes"]} == {"n" * 900}
    assert max(len(note) for note in details["notes"]) <= 1000
    assert set(details) == {"cut", "notes"}
