"""Python values to what JSON has, and back, by annotation.

Bytes become base64, instants ISO 8601, durations seconds (a string where a float would round
them), sets arrays, enums their values; Decimal, UUID, paths, IP addresses and networks become
strings. The way back is strict: an array comes from an array, an
object from an object.
"""

from __future__ import annotations

import enum
import functools

from collections import abc
from collections.abc import Callable
from typing import Any, Literal, LiteralString, TypeVar, get_origin

import cattrs

from cattrs.errors import ForbiddenExtraKeysError

from ._containers import (
    dump_array,
    dump_fixed,
    dump_typed_dict,
    from_object,
    is_array,
    is_fixed,
    is_mixed_union,
    is_object,
    is_typed_dict,
    load_array,
    load_fixed,
    load_mapping,
    load_typed_dict,
    load_union,
    resolve_fields,
)
from ._endings import (
    dump_ending,
    is_any_result,
    is_dumpable_ending,
    is_ending,
    load_any_result,
    load_ending,
)
from ._scalars import (
    DUMPS,
    LOADS,
    Dump,
    Load,
    MisfitError,
    dump_member,
    is_enum,
    load_enum,
    load_literal,
    load_literal_string,
    named,
    refuse_subclass,
    shortened,
)


def reasons(error: BaseException, path: str) -> str:
    """Say in one line which values did not fit, and where: *path*, or a path below it."""
    found: list[str] = []
    for line in cattrs.transform_error(error, path, _reason):
        what, _, where = line.rpartition(" @ ")
        found.append(f"{where}: {what}")
    more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
    return "; ".join(found[:5]) + more


def _reason(error: BaseException, _: Any) -> str:
    match error:
        case MisfitError():
            return str(error)
        case KeyError():
            return "required, but missing"
        case ForbiddenExtraKeysError():
            return f"has no field {', '.join(sorted(map(repr, error.extra_fields)))}"
        case RecursionError():
            return "nested too deeply, or contains itself"
        case _:
            return f"{type(error).__qualname__}: {shortened(str(error))[1:-1]}"


def no_way(error: BaseException, hint: Any) -> str:
    """Say why there is no way from JSON to *hint*, and what to write instead."""
    if not isinstance(error, cattrs.StructureHandlerNotFoundError):
        return f"no way from JSON to {named(hint)}: {error}"
    inside = "" if error.type_ is hint else f" ({named(error.type_)})"
    return (
        f"no way from JSON to {named(hint)}{inside}: annotate it with what JSON has, a dataclass,"
        f" an attrs class or a TypedDict, or with str or Any, and convert it in the handler"
    )


class _Converter(cattrs.Converter):
    """cattrs, where an object is structured from a JSON object and from nothing else."""

    def get_structure_hook(self, type: Any, cache_result: bool = True) -> Load:  # noqa: A002  # as cattrs has it
        """Return the way back to *type*; by class it would be that of the values of an enum."""
        load: Load = super().get_structure_hook(type, cache_result)
        if load not in _OURS:
            return load
        if is_enum(type) and not issubclass(type, str | int):  # hooks of ours build these
            return load_enum(type, self)
        refuse_subclass(type, load)
        return load

    def gen_unstructure_attrs_fromdict(self, cl: type[Any]) -> Dump:
        """Return the way of an attrs class or dataclass to JSON."""
        resolve_fields(cl)
        return super().gen_unstructure_attrs_fromdict(cl)

    def gen_structure_attrs_fromdict(self, cl: type[Any]) -> Load:
        """Return the way back to an attrs class or dataclass."""
        resolve_fields(cl)
        return from_object(super().gen_structure_attrs_fromdict(cl), cl)


def _load_enum(value: Any, hint: Any) -> Any:
    return CONVERTER.get_structure_hook(hint)(value, hint)


_OURS = (*LOADS.values(), _load_enum)


def _is_anything(hint: Any) -> bool:
    return hint is object or isinstance(hint, TypeVar)


def _load_anything(_hint: Any, _converter: cattrs.Converter) -> Load:
    return lambda value, _: value


def _dump_anything(_hint: Any, converter: cattrs.Converter) -> Dump:
    # A plain `object()` would come back here, for ever.
    return lambda value: value if type(value) is object else converter.unstructure(value)


def _is_literal(hint: Any) -> bool:
    return get_origin(hint) is Literal


def _is_literal_string(hint: Any) -> bool:
    return hint is LiteralString


def _dump_leaf(dump: Dump, value: Any) -> Any:
    return dump_member(value, CONVERTER) if isinstance(value, enum.Enum) else dump(value)


def _make() -> cattrs.Converter:
    converter = _Converter(forbid_extra_keys=True, unstruct_collection_overrides={abc.Set: list})
    for cls, load in LOADS.items():
        converter.register_structure_hook(cls, load)
    for cls, dump in DUMPS.items():
        converter.register_unstructure_hook(cls, functools.partial(_dump_leaf, dump))
    # By class, because cattrs before 25.2 has a hook by class itself, which goes first.
    converter.register_structure_hook(enum.Enum, _load_enum)
    converter.register_unstructure_hook(enum.Enum, lambda value: dump_member(value, converter))
    loads: list[tuple[Callable[[Any], bool], Callable[[Any, cattrs.Converter], Load]]] = [
        (_is_anything, _load_anything),
        (_is_literal, load_literal),
        (_is_literal_string, lambda _hint, _converter: load_literal_string),
        (is_array, load_array),
        (is_fixed, load_fixed),
        (is_object, load_mapping),
        (is_typed_dict, load_typed_dict),
        (is_mixed_union, load_union),
        (is_ending, load_ending),
        (is_any_result, load_any_result),
    ]
    for predicate, make_load in loads:
        converter.register_structure_hook_factory(predicate, make_load)
    dumps: list[tuple[Callable[[Any], bool], Callable[[Any, cattrs.Converter], Dump]]] = [
        (_is_anything, _dump_anything),
        (_is_literal, _dump_anything),
        (is_array, dump_array),
        (is_fixed, dump_fixed),
        (is_typed_dict, dump_typed_dict),
        (is_dumpable_ending, dump_ending),
        (is_any_result, _dump_anything),
    ]
    for predicate, make_dump in dumps:
        converter.register_unstructure_hook_factory(predicate, make_dump)
    return converter


CONVERTER = _make()
