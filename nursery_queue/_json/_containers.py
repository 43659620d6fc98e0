"""Arrays, objects and unions between Python and JSON, by annotation."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import itertools
import threading
import types

from collections import abc, deque
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Required,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import attrs
import cattrs
import cattrs.cols

from cattrs.errors import IterableValidationError, IterableValidationNote

from nursery_queue._core._json_text import is_of

from ._scalars import Dump, Load, dump_member, misfit, named


_ARRAYS: Mapping[Any, Callable[[Any], Any]] = {
    list: list,
    abc.MutableSequence: list,
    abc.Sequence: list,
    abc.Collection: list,
    abc.Iterable: list,
    tuple: tuple,
    set: set,
    abc.MutableSet: set,
    abc.Set: set,
    frozenset: frozenset,
    deque: deque,
}
_OBJECTS = frozenset({dict, abc.Mapping, abc.MutableMapping})
_NO_KEYS = frozenset({int, float, bool, None, type(None), *_ARRAYS, *_OBJECTS})
_EXACT = frozenset({str, int, float, bool, type(None)})


def from_object(load: Load, hint: Any) -> Load:
    """Return *load*, but refusing values that are no JSON object."""
    expected = f"an object ({named(hint)})"

    def hook(value: Any, cls: Any) -> Any:
        if type(value) is not dict:
            raise misfit(expected, value)
        return load(value, cls)

    return hook


def is_array(hint: Any) -> bool:
    """Whether this is a list, set, or anything else that is an array of one kind of thing."""
    return _origin(hint) in _ARRAYS


def _origin(hint: Any) -> Any:
    origin = get_origin(hint) or hint
    return origin if isinstance(origin, type) else None


def is_fixed(hint: Any) -> bool:
    """Whether this is a tuple with an annotation for each item."""
    args = get_args(hint)
    return _is_namedtuple(hint) or (_origin(hint) is tuple and bool(args) and args[-1] is not ...)


def _is_namedtuple(hint: Any) -> bool:
    # A tuple[int] is a type, too, but no class.
    is_tuple = isinstance(hint, type) and get_origin(hint) is None and issubclass(hint, tuple)
    return is_tuple and hasattr(hint, "_fields")  # pyright: ignore[reportUnknownArgumentType]  # just a tuple


def load_array(hint: Any, converter: cattrs.Converter) -> Load:
    """Return the way back to an array."""
    kinds = get_args(hint)[:1] or (Any,)
    return _array_hook(hint, converter, kinds, build=_ARRAYS[_origin(hint)], fixed=False)


def load_fixed(hint: Any, converter: cattrs.Converter) -> Load:
    """Return the way back to a tuple with an annotation for each item."""
    build = hint._make if _is_namedtuple(hint) else tuple
    with _building(hint):
        return _array_hook(hint, converter, _kinds(hint), build=build, fixed=True)


def dump_fixed(hint: Any, converter: cattrs.Converter) -> Dump:
    """Return the way of such a tuple to JSON."""
    kinds = _kinds(hint)

    def hook(value: Any) -> Any:
        if not is_of(value, tuple) or len(value) != len(kinds):
            raise misfit(named(hint), value)
        return [converter.unstructure(item, kind) for item, kind in zip(value, kinds, strict=True)]

    return hook


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the annotations of the items of a tuple, one by one."""
    if not _is_namedtuple(hint):
        return get_args(hint)
    hints = get_type_hints(hint, include_extras=True)
    return tuple(hints.get(name, Any) for name in hint._fields)


def _array_hook(
    hint: Any,
    converter: cattrs.Converter,
    kinds: tuple[Any, ...],
    *,
    build: Callable[[Any], Any],
    fixed: bool,
) -> Load:
    loads = [(_late(converter, kind), kind) for kind in kinds]
    expected = f"an array ({named(hint)})"

    def hook(value: Any, _: Any) -> Any:
        if not is_of(value, list) or (fixed and len(value) != len(loads)):
            raise misfit(expected, value)
        items = zip(itertools.count(), value, strict=False)
        return build(_load_items(items, itertools.cycle(loads), hint))

    return hook


def _load_items(
    values: Iterable[tuple[Any, Any]], loads: Iterable[tuple[Load, Any]], hint: Any
) -> list[Any]:
    """Load *values*, by index or name; report all that do not fit, not just the first."""
    items: list[Any] = []
    errors: list[Exception] = []
    for (i, item), (load, kind) in zip(values, loads, strict=False):
        try:
            items.append(load(item, kind))
        except Exception as error:  # noqa: BLE001  # hooks and users' validators raise anything
            error.add_note(IterableValidationNote(f"at {i}", i, kind))
            errors.append(error)
    if errors:
        raise IterableValidationError(f"in {hint}", errors, hint)  # pyright: ignore[reportCallIssue]  # its __new__ is untyped
    return items


def _late(converter: cattrs.Converter, hint: Any) -> Load:
    """Return the hook, or, for a class that refers to itself, one that looks it up each time."""
    try:
        return converter.get_structure_hook(hint)
    except RecursionError:
        return converter.structure


_under_way = threading.local()


@contextlib.contextmanager
def _building(hint: Any) -> Generator[None]:
    """Raise `RecursionError` at once if the hook for *hint* turns out to need itself."""
    hints: list[Any] = _under_way.__dict__.setdefault("hints", [])
    if hint in hints:
        raise RecursionError
    hints.append(hint)
    try:
        yield
    finally:
        hints.pop()


def dump_array(hint: Any, converter: cattrs.Converter) -> Dump:
    """Return the way of an array to JSON."""
    dump: Dump = cattrs.cols.iterable_unstructure_factory(hint, converter, unstructure_to=list)

    def hook(value: Any) -> Any:
        if isinstance(value, str | bytes | Mapping):  # or "ab" would become ["a", "b"]
            raise misfit(named(hint), value)
        return dump(value)

    return hook


def is_object(hint: Any) -> bool:
    """Whether this is a mapping of one kind of thing."""
    return _origin(hint) in _OBJECTS


def load_mapping(hint: Any, converter: cattrs.Converter) -> Load:
    """Return the way back to a mapping. Raises `TypeError` if none of its keys can be a string."""
    keys = get_args(hint)[:1]
    if keys and not _may_be_key(keys[0], converter):
        msg = f"keys in JSON are strings, and {named(keys[0])} is none: convert them in the handler"
        raise TypeError(msg)
    load = cattrs.cols.mapping_structure_factory(hint, converter, dict)  # pyright: ignore[reportUnknownMemberType]  # half typed in cattrs
    return from_object(load, hint)


def _may_be_key(hint: Any, converter: cattrs.Converter) -> bool:
    """Whether at least some values of *hint* are strings in JSON."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _may_be_key(hint.__origin__, converter)
    if origin is Union or origin is types.UnionType:
        return any(_may_be_key(arg, converter) for arg in get_args(hint))
    if origin is Literal or isinstance(hint, enum.EnumType):
        values: Iterable[Any] = hint if origin is None else get_args(hint)
        return any(isinstance(dump_member(value, converter), str) for value in values)
    return hint not in _NO_KEYS and origin not in _ARRAYS and not _is_class(hint)


def is_mixed_union(hint: Any) -> bool:
    """Whether this is a union that holds more than classes, which cattrs tells apart itself."""
    origin: Any = get_origin(hint)
    if origin is not Union and origin is not types.UnionType:
        return False
    return not all(arg is type(None) or _is_class(arg) for arg in get_args(hint))


def _is_class(hint: Any) -> bool:
    origin = _origin(hint)
    return origin is not None and (attrs.has(origin) or hasattr(origin, "__dataclass_fields__"))


def load_union(hint: Any, converter: cattrs.Converter) -> Load:
    """Take the exact type first; then the first member that fits, in the order written."""
    members = get_args(hint)
    exact = _EXACT.intersection(arg for arg in members if arg in _EXACT)
    classes = tuple(arg for arg in members if _is_class(arg))
    others = [arg for arg in members if arg not in _EXACT and not _is_class(arg)]
    if classes:
        others.append(Union[classes])  # noqa: UP007  # a tuple of them, at run time
    loads = [(other, _late(converter, other)) for other in others]
    only = loads[0] if len(loads) == 1 and exact <= {type(None)} else None
    expected = named(hint)

    def hook(value: Any, _: Any) -> Any:
        if type(value) in exact:
            return value
        if only is not None:
            return only[1](value, only[0])
        if type(value) is int and float in exact:
            return float(value)
        for other, load in loads:
            try:
                return load(value, other)
            except Exception:  # noqa: BLE001, S112  # hooks raise anything; the next may fit
                continue
        raise misfit(expected, value)

    return hook


def resolve_fields(cls: Any) -> None:
    """Look up quoted annotations in the fields of an attrs class or dataclass, itself for instance.

    cattrs does so only for annotations that are in quotes as a whole. A name that cannot be found
    stays as it is.
    """
    cls = get_origin(cls) or cls
    with contextlib.suppress(NameError):
        hints = get_type_hints(cls, localns={cls.__name__: cls}, include_extras=True)
        if attrs.has(cls):
            attrs.resolve_types(cls, localns={cls.__name__: cls})
        else:
            for field in dataclasses.fields(cls):
                if not isinstance(field.type, str):
                    field.type = hints[field.name]


def is_typed_dict(hint: Any) -> bool:
    """Whether this is a TypedDict, also a generic one."""
    return is_typeddict(get_origin(hint) or hint)


def load_typed_dict(hint: Any, converter: cattrs.Converter) -> Load:
    """Return the way back to a TypedDict."""
    kinds, required = _fields(hint)
    with _building(hint):
        loads = {name: (_late(converter, kind), kind) for name, kind in kinds.items()}

    def hook(value: dict[str, Any], _: Any) -> dict[str, Any]:
        if wrong := value.keys() - kinds.keys():
            raise misfit(f"no field {', '.join(sorted(map(repr, wrong)))}", value)
        if missing := required - value.keys():
            raise misfit(f"a field {', '.join(sorted(map(repr, missing)))}", value)
        items = _load_items(value.items(), (loads[name] for name in value), hint)
        return dict(zip(value, items, strict=True))

    return from_object(hook, hint)


def dump_typed_dict(hint: Any, converter: cattrs.Converter) -> Dump:
    """Return the way of a TypedDict to JSON."""
    kinds, _ = _fields(hint)
    return lambda value: {
        name: converter.unstructure(item, kinds.get(name)) for name, item in value.items()
    }


def _fields(hint: Any) -> tuple[dict[str, Any], frozenset[str]]:
    """Return the kinds of a TypedDict's fields, and which of them are required."""
    # Not `__required_keys__`: where annotations are postponed it does not see `NotRequired`.
    cls = get_origin(hint) or hint
    kinds: dict[str, Any] = {}
    required = set(cls.__required_keys__)
    for name, kind in get_type_hints(cls, include_extras=True).items():
        marker = get_origin(kind)
        if marker is Required or marker is NotRequired:
            (required.add if marker is Required else required.discard)(name)
            kinds[name] = get_args(kind)[0]
        else:
            kinds[name] = kind
    return kinds, frozenset(required)
