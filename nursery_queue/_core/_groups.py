"""Looking into exception groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors inside nested groups, or the error itself; at least one."""
    inside = _inside(error)
    for inner in inside:
        yield from leaves(inner)
    if not inside:
        yield error


def unwrapped(error: BaseException) -> BaseException:
    """Return *error* without the groups around it that hold nothing else."""
    inside = _inside(error)
    return unwrapped(inside[0]) if len(inside) == 1 else error


def _inside(error: BaseException) -> Sequence[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return cast("BaseExceptionGroup[BaseException]", error).exceptions
    return ()
