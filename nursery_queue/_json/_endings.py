"""The classes of `nq.Result` between Python and JSON, told apart by "status"."""

from __future__ import annotations

import types

from typing import Any, Union, get_args, get_origin

import cattrs

from cattrs.errors import AttributeValidationNote, ClassValidationError

from nursery_queue._core._completion import STATUSES, AnyResult, Result

from ._scalars import Dump, Load, misfit, named


def is_ending(hint: Any) -> bool:
    """Whether this is one of the three classes, or a union of nothing but them and None."""
    members = _members(hint)
    return any(member in STATUSES for member in members) and all(
        member in STATUSES or member is type(None) for member in members
    )


def _members(hint: Any) -> tuple[Any, ...]:
    origin: Any = get_origin(hint)
    if origin is Union or origin is types.UnionType:
        return get_args(hint)
    return (hint,) if isinstance(hint, type) else ()


def load_ending(hint: Any, converter: cattrs.Converter) -> Load:
    """Return the way back to one of the classes, told apart by "status"."""
    members = _members(hint)
    loads = {
        STATUSES[cls]: (converter.gen_structure_attrs_fromdict(cls), cls)
        for cls in members
        if cls in STATUSES
    }
    expected = f"an object ({' | '.join(map(named, members))})"
    choice = ("" if len(loads) == 1 else "one of ") + ", ".join(map(repr, loads))

    def hook(value: Any, _: Any) -> Any:
        if value is None and type(None) in members:
            return None
        if type(value) is not dict:
            raise misfit(expected, value)
        fields: dict[str, Any] = dict(value)  # pyright: ignore[reportUnknownArgumentType]  # just a dict
        status = fields.pop("status", None)
        if not isinstance(status, str) or status not in loads:
            raise _at_status(misfit(choice, status) if "status" in value else KeyError(), hint)
        load, cls = loads[status]
        return load(fields, cls)

    return hook


def _at_status(error: Exception, hint: Any) -> ClassValidationError:
    error.add_note(AttributeValidationNote("at status", "status", str))
    return ClassValidationError(f"in {hint}", [error], hint)  # pyright: ignore[reportCallIssue]  # its __new__ is untyped


def is_dumpable_ending(hint: Any) -> bool:
    """Whether this is one of the three classes; a value of a union is one of them."""
    return isinstance(hint, type) and hint in STATUSES


def dump_ending(hint: Any, converter: cattrs.Converter) -> Dump:
    """Return the way of one of the classes to JSON."""
    fields = converter.gen_unstructure_attrs_fromdict(hint)

    def hook(value: Any) -> Any:
        if type(value) is not hint:
            raise misfit(named(hint), value)
        return {"status": STATUSES[hint], **fields(value)}

    return hook


def is_any_result(hint: Any) -> bool:
    """Whether this stands for the annotation that a `result` does not have."""
    return hint is AnyResult


def load_any_result(_hint: Any, converter: cattrs.Converter) -> Load:
    """Return the way back to an ending, or else to the JSON value as it is."""
    load = converter.get_structure_hook(Result)

    def hook(value: Any, _: Any) -> Any:
        try:
            return load(value, Result)
        except Exception:  # noqa: BLE001  # a value that is no ending stays as it is
            return value

    return hook
