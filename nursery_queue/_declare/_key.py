"""The key that a task type declares: the value of a parameter, or what a function returns."""

from __future__ import annotations

import json

from collections.abc import Callable, Mapping
from typing import Any

from nursery_queue._core._errors import ParamsError
from nursery_queue._core._keys import as_key, key_in

from ._signature import Signature


KeyFunction = Callable[..., Any]  # called with the arguments by name; returns the key, or None
DeclaredKey = str | KeyFunction | None


def check_key(declared: object, signature: Signature) -> None:
    """Raise for a key that cannot be declared.

    Raises:
        TypeError: It is neither a name nor a function.
        ValueError: It names no parameter of the handler, or one whose default makes no key.
    """
    owner = signature.owner
    if declared is None or (callable(declared) and not isinstance(declared, type)):
        return
    if not isinstance(declared, str):
        raise TypeError(
            f"{owner}: key must be the name of a parameter or a function, not {declared!r:.100}"
        )
    names, more = signature.parameter_names()
    if declared not in names and not more:
        known = ", ".join(names) or "none"
        raise ValueError(f"{owner}: key={declared!r} is no parameter; there are: {known}")
    stored_default(declared, signature)


def stored_default(parameter: str, signature: Signature) -> str | None:
    """Return what `_default_of` does; None while an annotation names what is not there yet."""
    try:
        return _default_of(parameter, signature)
    except ParamsError:  # each call raises it, too
        return None


def _default_of(parameter: str, signature: Signature) -> str | None:
    """Return the key of a task that leaves *parameter* out: the key that its default makes."""
    values = {name: value for name, value in signature.defaults().items() if name == parameter}
    return key_in(signature.resolve().params.dump(values), parameter, None, _what(signature))


def key_of_call(
    declared: DeclaredKey, signature: Signature, values: Mapping[str, Any], params: str
) -> str | None:
    """Return the key of a call with *values*, of which *params* is the JSON text.

    Raises:
        TypeError, ValueError: It is no key; or what the declared function raises.
    """
    if declared is None:
        return None
    what = _what(signature)
    if not isinstance(declared, str):
        return as_key(declared(**(signature.defaults() | dict(values))), what)
    if declared in values:
        return key_in(params, declared, None, what)
    return _default_of(declared, signature)


def key_by_name(declared: DeclaredKey, signature: Signature, params: str) -> str | None:
    """Return the key of a call that was made by name: of *params* alone, JSON text.

    Raises:
        ParamsError: The declared key is a function, and they do not fit the handler.
    """
    if isinstance(declared, str):
        return key_of_call(declared, signature, json.loads(params), params)
    values = {} if declared is None else signature.resolve().params.load(params)
    return key_of_call(declared, signature, values, params)


def _what(signature: Signature) -> str:
    return f"the key of a task {signature.owner}"
