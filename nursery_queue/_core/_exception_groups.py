"""Looking into exceptions: the errors inside groups, and the causes of errors.

An exception is the user's, and so may be its `__class__` and its attributes: neither is asked.
A class that raises when it is looked at would else end the worker (tests/engine/test_poison.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast


cause_of = BaseException.__dict__["__cause__"].__get__
context_of = BaseException.__dict__["__context__"].__get__
hides_context = BaseException.__dict__["__suppress_context__"].__get__
_exceptions = BaseExceptionGroup.__dict__["exceptions"].__get__


def is_a(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Tell whether *error* is of one of these classes, even if its `__class__` denies it."""
    return issubclass(type(error), kinds)


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors inside nested groups, or the error itself; at least one."""
    inside = _inside(error)
    for inner in inside:
        yield from leaves(inner)
    if not inside:
        yield error


def connected(error: BaseException, *, hidden: bool = True) -> Iterator[BaseException]:
    """Yield *error*, the errors inside it, and the causes and contexts of these; each once.

    *hidden* False: without contexts that `raise ... from` hides.
    """
    seen, waiting = set[int](), list[BaseException | None]([error])
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        context = context_of(current) if hidden or not hides_context(current) else None
        waiting += [cause_of(current), context, *_inside(current)]


def unwrapped(error: BaseException) -> BaseException:
    """Return *error* without the groups around it that hold nothing else."""
    inside = _inside(error)
    return unwrapped(inside[0]) if len(inside) == 1 else error


def _inside(error: BaseException) -> Sequence[BaseException]:
    if is_a(error, BaseExceptionGroup):
        return cast("Sequence[BaseException]", _exceptions(error))
    return ()
