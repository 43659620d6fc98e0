"""JSON text as PostgreSQL's jsonb takes it, and why it refuses a value."""

from __future__ import annotations

import contextlib
import json
import math
import re
import types

from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NoReturn


SCALARS = frozenset({str, int, float, bool, type(None)})

# A string, which is left alone, or a number.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?')
# A string, which is left alone, or where something begins or ends.
_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{}]')
_DEEPEST = 100
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def is_of(value: object, kind: type | types.UnionType) -> bool:
    """Whether *value* is a *kind*; unlike `isinstance`, this leaves `Any` what it is."""
    return isinstance(value, kind)


class NotJsonError(ValueError):
    """A value that cannot be written as JSON; the message says which part of it, and why."""

    __module__ = "nursery_queue"  # what users read in tracebacks


def to_text(value: Any, path: str, *, deep: bool = True) -> str:
    """Return *value* as JSON text, or raise `NotJsonError`.

    *path* is what the value is called, empty for a mapping of names. *deep* False says that
    it holds no mapping with keys other than strings, which is dear to find out.
    """
    try:
        text = _encode(value)
    except (TypeError, ValueError) as error:
        raise NotJsonError(find_fault(value, path) or f"{path} is not JSON: {error}") from None
    except RecursionError:
        raise NotJsonError(_too_deep(path)) from None
    # The encoder turns other keys into strings, passes NUL on as an escape and lone
    # surrogates as they are: the last two are cheap to suspect.
    if deep or "\\u0000" in text or not text.isascii():
        fault = find_fault(value, path)
        if fault is not None:
            raise NotJsonError(fault)
    # Cheap to suspect again; may be part of a string.
    return _TOKEN.sub(_plain_float, text) if "e+" in text or "-0.0" in text else text


def _plain_float(token: re.Match[str]) -> str:
    """Write a float so that jsonb, which drops exponents and the sign of zero, gives a float."""
    text = token[0]
    if text == "-0.0":
        return "0.0"
    if text[0] == '"' or "e+" not in text:
        return text
    return format(Decimal(text), "f") + ".0"


def as_jsonb(text: str) -> str:
    """Return JSON text as PostgreSQL gives it back from a column of type jsonb.

    Names by length and then by their bytes, the last of each that is there twice; a number
    without an exponent, an integer if it has no fraction then.
    """
    return json.dumps(_AS_JSONB.decode(text), ensure_ascii=False)


def _sorted_names(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    return dict(sorted(dict(pairs).items(), key=lambda pair: _by_length(pair[0].encode())))


def _by_length(name: bytes) -> tuple[int, bytes]:
    return len(name), name


def _plain_number(text: str) -> float:
    plain = format(Decimal(text), "f")
    return float(plain) + 0.0 if "." in plain else int(plain)


_AS_JSONB = json.JSONDecoder(object_pairs_hook=_sorted_names, parse_float=_plain_number)


def from_text(text: str | bytes) -> Any:
    """Return the value that the text of a jsonb holds, also of one that plain SQL has stored.

    An integer of more digits than Python reads becomes a float, infinity if need be. A value nested
    more deeply than Python reads becomes its text, below the hundredth level. One row must not keep
    the others of its page from being shown (tests/pg/test_adapters.py).
    """
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(text)
    with contextlib.suppress(RecursionError):
        return json.loads(text, parse_int=_any_int)
    text = text if isinstance(text, str) else text.decode()
    return json.loads(_flattened(text), parse_int=_any_int)


def _any_int(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _flattened(text: str) -> str:
    """Return JSON text with strings in place of all objects and arrays that are too deep."""
    parts, kept, start, depth = list[str](), 0, 0, 0
    for token in _BRACKET.finditer(text):
        if token[0] in {"[", "{"}:
            depth += 1
            if depth == _DEEPEST + 1:
                start = token.start()
                parts.append(text[kept:start])
        elif token[0] in {"]", "}"}:
            if depth == _DEEPEST + 1:
                kept = token.end()
                parts.append(json.dumps(text[start:kept], ensure_ascii=False))
            depth -= 1
    return "".join([*parts, text[kept:]])


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _decoded(text: str) -> Any:
    # Without a search for blanks around it, of which jsonb has none: less than half of the time.
    try:
        found, end = _DECODER.raw_decode(text)
    except ValueError:
        return _DECODER.decode(text)
    return found if end == len(text) else _DECODER.decode(text)


def object_from_text(text: str) -> dict[str, Any]:
    """Return the object that *text* describes, or raise `NotJsonError`."""
    if text == "{}":  # so many tasks have no params that this is worth a line
        return {}
    try:
        found: Any = _decoded(text)
    except ValueError as error:
        raise NotJsonError(str(error)) from None
    except RecursionError:
        raise NotJsonError("it is nested too deeply") from None
    if not is_of(found, dict):
        raise NotJsonError(f"they must be a JSON object, not {text:.100}")
    return found  # type: ignore[no-any-return]  # JSON objects have string keys


def find_fault(value: Any, path: str) -> str | None:
    """Say which part of *value* is not JSON, and why; None if it all is."""
    try:
        return _fault(value, path)
    except RecursionError:
        return _too_deep(path)


def _fault(value: Any, path: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, str | int | float):
        return _fault_of_scalar(value, path)
    if is_of(value, list | tuple):
        faults = (_fault(item, f"{path}[{i}]") for i, item in enumerate(value))
        return next(filter(None, faults), None)
    if is_of(value, dict):
        return _fault_of_mapping(value, path)
    return f"{path} is of type {type(value).__qualname__}, which is not JSON"


def _fault_of_scalar(value: str | float, path: str) -> str | None:
    if isinstance(value, str):
        return _fault_of_text(value, path)
    if isinstance(value, int):
        return _fault_of_int(value, path)
    return None if math.isfinite(value) else f"{path} is {value!r}, which JSON does not have"


def _fault_of_mapping(value: dict[Any, Any], path: str) -> str | None:
    for key, item in value.items():
        if not isinstance(key, str):
            kind = type(key).__qualname__
            return f"{path or 'name'}: a key is of type {kind}; keys in JSON are strings"
        fault = _fault_of_text(key, f"a key in {path}" if path else "name")
        fault = fault or _fault(item, f"{path}.{key}" if path else key)
        if fault is not None:
            return fault
    return None


def _fault_of_text(value: str, path: str) -> str | None:
    if "\0" in value:
        return f"{path} contains a NUL character, which PostgreSQL cannot store"
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            code = ord(value[error.start])
            return f"{path} contains half a character (the lone surrogate U+{code:04X})"
    return None


def _fault_of_int(value: int, path: str) -> str | None:
    if value.bit_length() > 10_000:  # Python writes and reads no more than 4300 digits
        try:
            str(int(value))
        except ValueError as error:
            return f"{path} is too large a number: {error}"
    return None


def _too_deep(path: str) -> str:
    return f"{path or 'a value'} is nested too deeply, or contains itself"
