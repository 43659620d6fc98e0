"""The error of a handler, as the attempt log keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from nursery_queue._core._error_text import cut, exact, message_of, traceback_of, type_of
from nursery_queue._core._model import ErrorRecord

from ._codec import Params


DETAILS_LIMIT = 50_000  # characters
_NOTES, _NOTE_LIMIT = 20, 1_000  # of details that are too long: so many, and characters of each
_DETAILS = Params.of_unknown("details")


def error_record(error: BaseException) -> ErrorRecord:
    """Return *error* with its message, traceback and details. Never raises.

    A message is cut at 10,000 characters and a traceback at 50,000, with a note of how much
    is missing. NUL and lone surrogates, which PostgreSQL does not take, become visible
    escapes. Details are the exception's attribute `details`, if that is a mapping that
    can be written as JSON, and its `__notes__`; of more than 50,000 characters only the first
    notes are kept, cut, and "cut" says how much there was.
    """
    return ErrorRecord(
        type=type_of(error),
        message=message_of(error),
        traceback=traceback_of(error),
        details=_details(error),
    )


def _details(error: BaseException) -> str | None:
    try:
        found: dict[str, Any] = {}
        notes = getattr(error, "__notes__", None)
        if isinstance(notes, list) and notes:
            found["notes"] = notes
        details = getattr(error, "details", None)
        if isinstance(details, Mapping):
            found |= details
        text = _DETAILS.dump(found) if found else None
        if text is None or len(text) <= DETAILS_LIMIT:
            return text
        return _cut_details(len(text), found.get("notes"))
    except BaseException:  # noqa: BLE001  # attributes are the user's; details are a courtesy
        return None


def _cut_details(length: int, notes: object) -> str:
    """Return as much as fits of details that are too long: notes, cut, and a mark."""
    listed = cast("list[object]", notes) if isinstance(notes, list) else []
    strings = [exact(each) for each in listed if isinstance(each, str)]
    mark = f"{length} characters of details; more than {DETAILS_LIMIT} are not stored"
    kept: dict[str, Any] = {"cut": mark}
    if strings:
        kept["notes"] = [cut(each, _NOTE_LIMIT) for each in strings[:_NOTES]]
    return _DETAILS.dump(kept)
